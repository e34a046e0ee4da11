"""The reviewer: a report is approved, or sent back with what is wrong with it."""

import re
import time

from agent import Agent, Envelope, Handover, main

LONGEST_REPORT_WORDS = 120


class Reviewer(Agent):
    name = "reviewer"
    description = "Checks reports."

    def work(self, envelope: Envelope) -> list[Handover]:
        started = time.time()
        artifacts = {item["name"]: item for item in envelope["output"]["artifacts"]}
        report: str = artifacts["report"]["text"]
        context = envelope["context"]
        words = len(report.split())
        if words > LONGEST_REPORT_WORDS:
            constraint = f"at most {LONGEST_REPORT_WORDS} words"
            back = self.envelope(
                "writer",
                "review",
                status="partial",
                summary=f"{words} words are too many.",
                artifacts=[artifacts["question"], artifacts["quotations"], artifacts["statistics"]],
                confidence=1.0,
                context=context | {"constraints": [*context["constraints"], constraint]},
                decided="sent back",
                started=started,
            )
            return [Handover("writer", back)]
        figures = len(re.findall(r"\d+", report))
        approved = self.envelope(
            "coordinator",
            "approval",
            status="completed",
            summary=f"Approved: {words} words, {figures} figures.",
            artifacts=[artifacts["question"], artifacts["report"]],
            confidence=0.95,
            context=context,
            decided="approved",
            started=started,
        )
        return [Handover("coordinator", approved)]


if __name__ == "__main__":
    main(Reviewer)
