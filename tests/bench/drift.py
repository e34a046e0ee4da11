"""What schema.drift costs for a payload of about 4 KB in which nothing drifts, and what one sender takes in memory.

    PYTHONPATH=collector python tests/bench/drift.py

Best of twenty rounds over 200 payloads, after 2,000 payloads of the same shape; `validate` is the compiled closed form
alone.
"""

import time
import tracemalloc
from typing import Any

import orjson

from handrail.detectors import Rule
from handrail.detectors.drift import SchemaDrift
from handrail.detectors.params import DriftParams
from handrail.event import Event
from handrail.schema.registry import Registry


def prose(index: int) -> dict[str, Any]:
    """An envelope that is mostly text: 40 values."""
    return {
        "task_id": f"t{index}",
        "source_agent": "writer",
        "target_agent": "reviewer",
        "status": ("completed", "partial")[index % 2],
        "output": {
            "summary": "word " * 450,
            "artifacts": [{"name": f"f{each}.txt", "uri": f"https://x.example/{index}/{each}"} for each in range(8)],
            "confidence": 0.5 + index % 7 / 20,
        },
        "context": {
            "original_goal": "goal " * 80,
            "constraints": ["abc " * 10] * 5,
            "decisions_made": ["dec " * 20] * 6,
        },
        "metadata": {"started_at": "2026-01-01T00:00:00Z", "token_count": 100 + index % 50, "model": "large-2"},
    }


def rows(index: int) -> dict[str, Any]:
    """An envelope that is mostly small values: 290 of them."""
    value = prose(index)
    value["output"] = {
        "summary": "short",
        "rows": [
            {"id": f"r{each}", "uri": f"https://x.example/{each}", "size": index * each, "kind": "text"}
            for each in range(56)
        ],
    }
    value["context"] = {"original_goal": "goal", "constraints": [], "decisions_made": []}
    return value


def main() -> None:
    for make in (prose, rows):
        payloads = [make(index) for index in range(200)]
        sizes = [len(orjson.dumps(payload)) for payload in payloads]
        events = [
            Event(
                kind="handoff",
                id=f"e{index}",
                at=float(index),
                source="writer",
                target="reviewer",
                subject="writer.reviewer",
                outcome="completed",
                payload=payload,
                payload_bytes=size,
            )
            for index, (payload, size) in enumerate(zip(payloads, sizes, strict=True))
        ]
        rule = Rule(id="schema.drift", kind="schema.drift")
        tracemalloc.start()
        detector = SchemaDrift(rule, DriftParams(), Registry())
        for _ in range(10):
            found = [each for event in events for each in detector.observe(event)]
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        (sender,) = detector.learned()
        whole = validate = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            for event in events:
                detector.observe(event)
            whole = min(whole, time.perf_counter() - start)
            start = time.perf_counter()
            for payload in payloads:
                sender.fits(payload)
            validate = min(validate, time.perf_counter() - start)
        each = 1e6 / len(events)
        print(
            f"{make.__name__}: {sum(sizes) // len(sizes)} bytes: {whole * each:.1f} µs, of which validate "
            f"{validate * each:.1f} µs; {memory / 1024:.0f} KB; {len(found)} findings"
        )


if __name__ == "__main__":
    main()
