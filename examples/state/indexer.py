"""The indexer: the terms of a page become an index, by the plan that it finds on the replica.

An entry that it took and did not acknowledge before it ended is done again when it is back, as a stream promises; that
the output may lie there already it never asks.
"""

from collections import Counter

from agent import Agent, main


class Indexer(Agent):
    name = "indexer"
    description = "Counts the terms of a page."

    def begin(self) -> None:
        self.subscribe("tasks:terms")
        while self._index(pending=True):
            pass

    def step(self) -> None:
        self._index()

    def _index(self, *, pending: bool = False) -> bool:
        taken = self.take("tasks:terms", "scout", pending=pending)
        if taken is None:
            return False
        entry, event = taken
        page = event["workflow_id"]
        found = self.read(self.primary, f"agents:{page}:terms:output", "scout")
        plan = self.read(self.replica, f"agents:{page}:plan:state", "scout")
        at_least = plan["output"]["at_least_letters"] if plan is not None else 1
        terms = found["output"]["terms"] if found is not None else []
        index = Counter(term for term in terms if len(term) >= at_least)
        metadata = {"attempt": 2 if pending else 1}
        output = self.envelope("archivist", page, "index", {"page": page, "index": index}, metadata=metadata)
        self.write(f"agents:{page}:index:output", output)
        self.announce("tasks:index", output)
        if self.is_dying:
            self.die()
        self.primary.xack("tasks:terms", self.name, entry)
        return True


if __name__ == "__main__":
    main(Indexer)
