"""A hundred thousand keys pass through the dialect and every shipped rule, and memory stays where it was."""

import gc
import os
from pathlib import Path

import orjson

from handrail.dialects.patterns import default_keys, default_subjects
from handrail.dialects.redis import Redis
from handrail.pipeline import Pipeline
from handrail.rules import load, watches
from handrail.schema.registry import Registry
from handrail.wire.operation import Connection, Operation

PACKS = Path(__file__).parents[2] / "rules" / "detection"


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_hundred_thousand_keys() -> None:
    """Once every bound is reached (10,000 keys), the next 70,000 cost nothing; nothing is wrong, so nothing is found.
    Every fifth key is read by another agent."""
    registry = Registry()
    names = ("state.yaml", "handoff.yaml", "output.yaml")
    packs = [load((PACKS / name).read_text(), name, builtin=True) for name in names]
    pipeline = Pipeline(watches(packs, registry), registry)
    redis = Redis("s", default_keys(), default_subjects(), ("writer", "reader"))
    people = Connection(id="c0"), Connection(id="c1", listener=1)
    found, size = 0, 0
    for number in range(100_000):
        if number == 30_000:
            size = resident()
        at = number / 5_000
        key = b"agents:w%d:t:output" % number
        value = orjson.dumps({"summary": f"finding {number}", "version": 1})
        done = [(0, (b"SET", key, value), b"OK"), (1, (b"GET", key), value)]
        for place, args, reply in done if number % 5 == 0 else done[:1]:
            assert redis.wants(args)
            operation = Operation(
                id=f"o{number}-{place}", at=at, ended=at, args=args, reply=reply, connection=people[place]
            )
            for event in redis.read(operation):
                found += len(pipeline.observe(event).findings)
        if number % 1_000 == 0:
            found += len(pipeline.advance(at).findings)
    assert found == 0
    assert all(len(watch.detector) <= 10_000 for watch in pipeline.watches)
    grown = resident() - size
    assert size
    assert grown < 15_000_000, f"{grown / 1e6:.1f} MB more"
