"""The writer: statistics and quotations become a report; a report that was sent back becomes a shorter one.

It trusts what it is handed. A figure that it does not find is written as "n/a", and nobody notices; a task that it is
handed twice is written twice, and both drafts go on their way.
"""

import time
from typing import Any

from a2a.utils.constants import TransportProtocol
from agent import Agent, Envelope, Handover, main


def composed(word: str, figures: Any, quotations: list[dict[str, Any]]) -> str:
    def figure(name: str) -> str:
        value = figures.get(name) if isinstance(figures, dict) else None
        return "n/a" if value is None else f"{value:g}"

    quoted = " ".join(f'"{item["text"]}" ({item["document"]}, {item["sentence"]:g})' for item in quotations)
    return (
        f"The library speaks of {word!r} {figure('mentions')} times in {figure('sentences')} sentences. "
        f"They are {figure('mean_words')} words long on average "
        f"({figure('mean_words_low')} to {figure('mean_words_high')}); the longest has {figure('longest_words')}. "
        f"{quoted}"
    ).strip()


class Writer(Agent):
    name = "writer"
    description = "Writes the report."
    binding = TransportProtocol.HTTP_JSON

    def work(self, envelope: Envelope) -> list[Handover]:
        started = time.time()
        artifacts = {item["name"]: item for item in envelope["output"]["artifacts"]}
        question, found, measured = artifacts["question"], artifacts["quotations"], artifacts["statistics"]
        again = envelope["source_agent"] == "reviewer"
        report = composed(question["word"], measured["statistics"], [] if again else found["quotations"][:2])
        handed = self.envelope(
            "reviewer",
            "second draft" if again else "first draft",
            status="completed",
            summary=f"A report of {len(report.split())} words.",
            artifacts=[question, found, measured, {"name": "report", "text": report}],
            confidence=0.9 if again else 0.7,
            context=envelope["context"],
            decided="no quotations" if again else "two quotations",
            started=started,
        )
        return [Handover("reviewer", handed)]


if __name__ == "__main__":
    main(Writer)
