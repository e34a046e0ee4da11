"""The researcher: a question becomes the sentences of the library that speak of it."""

import re
import time

from agent import LIBRARY, Agent, Envelope, Handover, main

SENTENCES = [
    (path.stem, number, sentence.strip())
    for path in sorted(LIBRARY.glob("*.txt"))
    for number, sentence in enumerate(re.split(r"(?<=\.)\s+", path.read_text("utf-8").strip()), 1)
]


class Researcher(Agent):
    name = "researcher"
    description = "Finds what the library says about a word."
    streaming = True

    def work(self, envelope: Envelope) -> list[Handover]:
        started = time.time()
        [word] = (item["word"] for item in envelope["output"]["artifacts"] if item["name"] == "question")
        spoken = re.compile(rf"\b{re.escape(word)}", re.IGNORECASE)
        quotations = [
            {"document": document, "sentence": number, "text": text, "mentions": len(spoken.findall(text))}
            for document, number, text in SENTENCES
            if spoken.search(text)
        ]
        if not quotations:
            raise ValueError(f"the library does not speak of {word!r}")
        handed = self.envelope(
            "analyst",
            "research",
            status="completed",
            summary=f"{len(quotations)} of {len(SENTENCES)} sentences speak of {word!r}.",
            artifacts=[
                {"name": "question", "word": word},
                {"name": "quotations", "read": len(SENTENCES), "quotations": quotations},
            ],
            confidence=1.0,
            context=envelope["context"],
            decided="whole sentences only",
            started=started,
        )
        return [Handover("analyst", handed)]


if __name__ == "__main__":
    main(Researcher)
