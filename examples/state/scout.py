"""The scout: two pages a second become lists of terms, each under a key of its own, and an event says so.

It plans ahead: which words are worth indexing is written for a page long before its turn, and revised when it is read.
Like a careful agent it waits for the replica after the revision, and like most it goes on when that takes too long.
"""

import re
from typing import Any

from agent import Agent, main

TEXT = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, "
    "and dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war, testing "
    "whether that nation, or any nation so conceived and so dedicated, can long endure."
)
EVERY_SECONDS = 0.5
AHEAD = 12
"""So many pages are planned before they are read."""
REPLICA_MS = 200
"""How long it waits for the replica."""


class Scout(Agent):
    name = "scout"
    description = "Reads pages and lists their terms."

    def begin(self) -> None:
        if self.primary.get("catalogue:page") is None:
            for number in range(1, AHEAD + 1):
                self._plan(number, 1, at_least=4)

    def _plan(self, number: int, version: int, *, at_least: int) -> None:
        page = f"page-{number:04}"
        plan = self.envelope("indexer", page, "plan", {"at_least_letters": at_least}, version=version)
        self.write(f"agents:{page}:plan:state", plan)

    def step(self) -> None:
        number = int(str(self.primary.incr("catalogue:page")))
        page = f"page-{number:04}"
        words = re.findall(r"[a-z]+", TEXT.lower())
        start = number * 7 % len(words)
        terms = (words + words)[start : start + 24]
        self._plan(number + AHEAD, 1, at_least=4)
        self._plan(number, 2, at_least=6 if max(map(len, terms)) > 9 else 5)
        replicas: Any = self.primary.execute_command("WAIT", 1, REPLICA_MS)
        if not replicas:
            self.report(behind=page)
        output = self.envelope("indexer", page, "terms", {"page": number, "terms": terms})
        self.write(f"agents:{page}:terms:output", output)
        if self.is_dying:
            self.die()
        self.announce("tasks:terms", output)
        self.over.wait(EVERY_SECONDS)


if __name__ == "__main__":
    main(Scout)
