"""The analyst: quotations become statistics.

It waits two seconds for the writer and then asks again, whether its first call arrived or not.

Version 1.0 keeps to the contract. Version 2.0 came with another shape of its output: numbers as text, other names, and
nobody told the writer. Version 3.0 has the old shape back, under a version of the contract that nobody registered.
"""

import random
import statistics
import time
from typing import Any

from agent import Agent, Envelope, Handover, main


def interval(values: list[int], rounds: int = 400) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean; the same values give the same interval."""
    draw = random.Random(len(values))
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(rounds))
    return round(means[rounds // 40], 2), round(means[-1 - rounds // 40], 2)


def described(quotations: list[dict[str, Any]], read: int) -> dict[str, Any]:
    lengths = [len(quotation["text"].split()) for quotation in quotations]
    low, high = interval(lengths)
    return {
        "sentences": len(quotations),
        "share": round(len(quotations) / read, 4),
        "mentions": int(sum(quotation["mentions"] for quotation in quotations)),
        "mean_words": round(statistics.fmean(lengths), 2),
        "mean_words_low": low,
        "mean_words_high": high,
        "longest_words": max(lengths),
    }


class Analyst(Agent):
    name = "analyst"
    description = "Counts and measures quotations."
    patience_seconds = 2.0

    def work(self, envelope: Envelope) -> list[Handover]:
        started = time.time()
        artifacts = {item["name"]: item for item in envelope["output"]["artifacts"]}
        found = artifacts["quotations"]
        measured: Any = described(found["quotations"], int(found["read"]))
        confidence: Any = round(1 - 1 / (1 + measured["sentences"]), 3)
        extra: dict[str, Any] = {}
        if self.version == "2.0":
            measured = [{"metric": name.replace("_", "-"), "value": str(value)} for name, value in measured.items()]
            confidence = f"{confidence:.0%}"
        elif self.version == "3.0":
            extra["schema_version"] = "3"
        handed = self.envelope(
            "writer",
            "analysis",
            status="completed",
            summary=f"Measured {len(found['quotations'])} sentences.",
            artifacts=[
                artifacts["question"],
                {"name": "quotations", "quotations": found["quotations"]},
                {"name": "statistics", "statistics": measured},
            ],
            confidence=confidence,
            context=envelope["context"],
            decided="mean length with a bootstrap interval",
            started=started,
            **extra,
        )
        return [Handover("writer", handed)]


if __name__ == "__main__":
    main(Analyst)
