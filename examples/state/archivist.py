"""The archivist: each index that is announced is added to the catalogue. One that is announced twice is added twice."""

from collections import Counter

from agent import Agent, main


class Archivist(Agent):
    name = "archivist"
    description = "Adds the index of a page to the catalogue."

    def begin(self) -> None:
        self.catalogue: Counter[str] = Counter()
        self.subscribe("tasks:index")

    def step(self) -> None:
        taken = self.take("tasks:index", "indexer")
        if taken is None:
            return
        entry, event = taken
        index = self.read(self.primary, f"agents:{event['workflow_id']}:index:output", "indexer")
        if index is not None:
            self.catalogue.update(index["output"]["index"])
        self.primary.xack("tasks:index", self.name, entry)


if __name__ == "__main__":
    main(Archivist)
