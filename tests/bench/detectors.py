"""`python tests/bench/detectors.py`: what all built-in detectors together cost on one core, and what they remember.

Handoffs of 4 KB between thirteen agents, parsed and with their digest as the pipeline gets them: twelve of each
workflow, a new text in each, and a registered schema that each is validated by. Their instants are as far apart as
the rate that is asked for, because some rules compare so many texts in a second and no more. First every rule as it
ships at 50,000 a second; then with every text compared, that of `output.duplicate` included, at 5,000 a second.
Events come in eights, as the sidecar shows them to the pipeline under load; a second line says what they cost one at
a time. Then each detector alone (`--each`), and the memory of 100,000 live workflows. Processor time, not time on the
wall. The first half warms up, in which payloads are learned; of the rest the first decile of slices is told, because
what else the machine does only ever makes a slice slower.
"""

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from handrail import rules
from handrail.event import Event, digest_of
from handrail.pipeline import Pipeline
from handrail.rules import Pack, Watch
from handrail.schema.registry import Registry

PACKS = Path(__file__).parents[2] / "rules" / "detection"
PLAIN_BAR, SIMILAR_BAR = 50_000, 5_000
MEMORY_BAR_MB = 1_000
"""Of 100,000 live workflows: 10 KB each."""
SLICE = 400
TOGETHER = 8
WORDS = tuple(
    f"{a}{b}{c}" for a in ("ka", "mo", "ti", "re", "lu") for b in ("ran", "sel", "vin", "do") for c in "aeiou"
)


STEPS = 12
_TEXTS = {"type": "array", "items": {"type": "string"}}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["task_id", "source_agent", "target_agent", "status", "output", "context", "metadata"],
    "additionalProperties": False,
    "properties": {
        "task_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "source_agent": {"type": "string", "pattern": "^[a-z][a-z0-9_-]*$"},
        "target_agent": {"type": "string", "pattern": "^[a-z][a-z0-9_-]*$"},
        "status": {"enum": ["completed", "partial", "failed"]},
        "output": {
            "type": "object",
            "required": ["summary"],
            "properties": {
                "summary": {"type": "string", "minLength": 1},
                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                "artifacts": {"type": "array", "items": {"type": "object", "required": ["id", "size"]}},
                "rows": {"type": "array", "items": {"type": "object", "required": ["id", "uri", "size"]}},
            },
        },
        "context": {
            "type": "object",
            "required": ["original_goal", "constraints", "decisions_made"],
            "properties": {"original_goal": {"type": "string"}, "constraints": _TEXTS, "decisions_made": _TEXTS},
        },
        "metadata": {
            "type": "object",
            "required": ["started_at", "completed_at", "token_count", "model"],
            "properties": {"token_count": {"type": "integer", "minimum": 0}, "model": {"type": "string"}},
        },
    },
}


def registry() -> Registry:
    """The schema of every edge of the chain."""
    filled = Registry()
    raw = json.dumps(SCHEMA).encode()
    problems = filled.load({f"agent-{step}.agent-{step + 1}/1.json": raw for step in range(STEPS)})
    assert problems == []
    return filled


REGISTRY = registry()


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def handoffs(count: int, per_second: float, *, steps: int = STEPS, seed: int = 1) -> list[Event]:
    """Envelopes of 4 KB along chains of agents."""
    chance = random.Random(seed)
    made: list[Event] = []
    for number in range(count):
        flow, step = divmod(number, steps)
        source, target = f"agent-{step}", f"agent-{step + 1}"
        payload = {
            "task_id": f"task-{number}",
            "source_agent": source,
            "target_agent": target,
            "status": "completed",
            "output": {
                "summary": text(chance, 420),
                "artifacts": [{"id": f"doc-{number}-{part}", "size": part * 17} for part in range(4)],
                "confidence": 0.9,
            },
            "context": {
                "original_goal": f"Write a report on {flow}",
                "constraints": ["no personal data", "at most ten pages"],
                "decisions_made": [f"step {step} is done", text(chance, 12)],
            },
            "metadata": {
                "started_at": "2026-01-01T00:00:00Z",
                "completed_at": "2026-01-01T00:00:09Z",
                "token_count": 800,
                "model": "gpt-4o",
            },
        }
        made.append(
            Event(
                kind="handoff",
                id=f"e{number}",
                at=1_790_000_000 + number / per_second,
                workflow=f"w{flow}",
                task=f"task-{number}",
                attempt=1,
                source=source,
                target=target,
                channel="call",
                protocol="envelope",
                outcome="completed",
                confidence="exact",
                side="egress",
                subject=f"{source}.{target}",
                payload=payload,
                payload_bytes=4096,
                digest=digest_of(payload),
                tokens=800,
                duration_ms=5.0,
            )
        )
    return made


def dense(events: Sequence[Event]) -> list[Event]:
    """The same handoffs with 290 small values in place of prose, in as many bytes."""
    made = []
    for number, event in enumerate(events):
        rows = [
            {"id": f"r{row}", "uri": f"https://x.example/{row}", "size": number * row, "kind": "text"}
            for row in range(56)
        ]
        payload = {**event.payload, "output": {"summary": "short", "rows": rows}}
        made.append(event.but(payload=payload, digest=digest_of(payload)))
    return made


def packs() -> list[Pack]:
    return [rules.load(path.read_text(), path.name, builtin=True) for path in sorted(PACKS.glob("*.yaml"))]


COMPARING = {"output.duplicate": {"similarity": 0.8}, "context.forwarded": {"per_second": 1_000_000}}
"""What makes rules compare every text."""


def watches(changes: Mapping[str, Mapping[str, Any]]) -> tuple[Watch, ...]:
    """The built-in rules with some parameters changed."""
    changed = []
    for pack in packs():
        configs = tuple(
            msgspec.structs.replace(config, with_={**config.with_, **changes.get(config.id, {})})
            for config in pack.rules
        )
        changed.append(msgspec.structs.replace(pack, rules=configs))
    return rules.watches(changed, REGISTRY)


def rate(found: Sequence[Watch], events: Sequence[Event], together: int = TOGETHER) -> float:
    """Events a second through a pipeline with these rules: the first decile of slices that are warm."""
    pipeline = Pipeline(found, REGISTRY)
    slices = []
    gc.collect()
    gc.freeze()
    gc.disable()
    for begin in range(0, len(events) - SLICE + 1, SLICE):
        part = events[begin : begin + SLICE]
        begun = time.process_time()
        if together == 1:
            for event in part:
                pipeline.observe(event)
        else:
            for at in range(0, SLICE, together):
                pipeline.observe_together(part[at : at + together])
        pipeline.advance(part[-1].at)
        slices.append(time.process_time() - begun)
    gc.enable()
    gc.unfreeze()
    slices = sorted(slices[len(slices) // 2 :])
    return SLICE / slices[len(slices) // 10]


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def tell(what: str, value: str, verdict: str = "") -> None:
    sys.stdout.write(f"{what:<44} {value:>16} {verdict}\n")
    sys.stdout.flush()


def against(found: float, bar: float) -> str:
    return f"{'meets' if found >= bar else 'MISSES'} {bar:,.0f}/s"


def target(title: str, limit: float, reached: float, *, is_at_least: bool = True) -> dict[str, Any]:
    """As `suite.Figure` takes it."""
    return {"title": title, "limit": limit, "is_at_least": is_at_least, "reached": reached}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=36_000, help="handoffs (default 36,000)")
    parser.add_argument("--workflows", type=int, default=100_000, help="live workflows whose memory is measured")
    parser.add_argument("--each", action="store_true", help="also each detector alone")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write what was measured as JSON")
    options = parser.parse_args()
    targets: list[dict[str, Any]] = []
    events = handoffs(options.count, PLAIN_BAR)
    found = rate(watches({}), events)
    tell("all rules as they ship", f"{found:,.0f}/s", against(found, PLAIN_BAR))
    targets.append(target("all rules as they ship, events/s", PLAIN_BAR, found))
    missed = found < PLAIN_BAR
    tell("  one at a time", f"{rate(watches({}), events, 1):,.0f}/s")
    if options.each:
        idle = 1e6 / rate((), events)
        tell("the pipeline without any", f"{idle:.2f} µs")
        for watch in watches({}):
            tell(f"  {watch.rule.id}", f"{1e6 / rate([watch], events) - idle:.2f} µs")
        small = dense(events[:12_000])
        for watch in watches({}):
            if watch.rule.id == "schema.drift":  # nothing else looks at every value without a schema
                tell(f"  {watch.rule.id}, 290 small values", f"{1e6 / rate([watch], small) - idle:.2f} µs")
    events = handoffs(options.count // 8, SIMILAR_BAR)
    found = rate(watches(COMPARING), events)
    tell("all rules, every text compared", f"{found:,.0f}/s", against(found, SIMILAR_BAR))
    targets.append(target("all rules, every text compared, events/s", SIMILAR_BAR, found))
    missed = missed or found < SIMILAR_BAR
    if options.workflows:
        del events
        gc.collect()
        before = resident()
        pipeline = Pipeline(watches({}), REGISTRY)
        for number, event in enumerate(handoffs(1_000, PLAIN_BAR, steps=1)):
            for copy in range(options.workflows // 1_000):
                name = f"{number}-{copy}"
                pipeline.observe(event.but(id=f"m{name}", workflow=f"v{name}", task=f"t{name}", outcome="asked"))
        held = sum(len(watch.detector) for watch in pipeline.watches)
        tell(
            f"memory of {options.workflows:,} live workflows",
            f"{(resident() - before) / 1e6:,.0f} MB",
            f"{held:,} keys",
        )
        megabytes = (resident() - before) / 1e6
        bar = MEMORY_BAR_MB * options.workflows / 100_000
        targets.append(target(f"memory of {options.workflows:,} live workflows, MB", bar, megabytes, is_at_least=False))
    if options.results is not None:
        options.results.write_text(json.dumps({"targets": targets}) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
