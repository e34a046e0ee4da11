"""The coordinator: questions become workflows, three a second, and approved reports end them."""

import asyncio
import itertools
import time
from collections.abc import Mapping
from typing import Any

from agent import Agent, Envelope, Handover, main, rfc3339

WORDS = ("people", "right", "nation", "law", "dead", "state", "jury", "war", "freedom", "dedicate", "house", "person")
BEGIN_EVERY_SECONDS = 0.3
RESEARCH_SECONDS = 2.0
"""How long the researcher may take, said with every handoff."""
WORKFLOW_SECONDS = 15.0
"""A workflow without an approved report after this long is given up."""


class Coordinator(Agent):
    name = "coordinator"
    description = "Asks, and publishes what is approved."

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._open: dict[str, asyncio.Event] = {}
        self._going = asyncio.Event()

    def obey(self, order: Mapping[str, Any]) -> None:
        super().obey(order)
        if order.get("go") is True:
            self._going.set()
        elif order.get("go") is False:
            self._going.clear()
            self._say_idle()

    def work(self, envelope: Envelope) -> list[Handover]:
        workflow = envelope["context"]["decisions_made"][0]
        done = self._open.get(workflow)
        if done is None:
            self.report(published_again=workflow)
        else:
            done.set()
        return []

    async def begin(self) -> None:
        if not self.supervised:
            self._going.set()
        due = time.monotonic()
        for number in itertools.count(1):
            await self._going.wait()
            self.spawn(self._workflow(f"report-{number:04}", WORDS[number % len(WORDS)]))
            due = max(due + BEGIN_EVERY_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _workflow(self, workflow: str, word: str) -> None:
        done = self._open[workflow] = asyncio.Event()
        context = {"original_goal": f"What does the library say of {word!r}?", "constraints": [], "decisions_made": []}
        asked = self.envelope(
            "researcher",
            "question",
            status="completed",
            summary=context["original_goal"],
            artifacts=[{"name": "question", "word": word}],
            confidence=1.0,
            context=context,
            decided=workflow,
        )
        deadline = rfc3339(time.time() + RESEARCH_SECONDS)
        await self.hand_over(Handover("researcher", asked, {"handrail-deadline": deadline}), workflow)
        try:
            await asyncio.wait_for(done.wait(), WORKFLOW_SECONDS)
            self.report(published=workflow)
        except TimeoutError:
            self.report(lost=workflow)
        del self._open[workflow]
        self._say_idle()

    def _say_idle(self) -> None:
        if not self._open and not self._going.is_set():
            self.report(idle=True)


if __name__ == "__main__":
    main(Coordinator)
