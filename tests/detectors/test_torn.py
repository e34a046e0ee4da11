"""state.torn_read: keys of one task read in two versions."""

from typing import Any

import pytest

from handrail.event import Event


def event(kind: str, id: str, at: float, key: str, **fields: Any) -> Event:
    known = {"workflow": "w", "task": "t", "store": "s", "outcome": "completed"}
    known["source"] = "a" if kind == "write" else "b"
    return Event(kind=kind, id=id, at=at, key=key, **known | fields)  # type: ignore[arg-type]


def found(build, *events: Event, **params: Any):
    pipeline = build("state.torn_read", params)
    seen = [each for one in events for each in pipeline.observe(one).findings]
    return [*seen, *pipeline.close(events[-1].at).findings]


def versions(*numbers: int, field: str) -> list[dict[str, Any]]:
    return [{field: number if field == "state_version" else f"d{number}"} for number in numbers]


@pytest.mark.parametrize("field", ["state_version", "digest"])
@pytest.mark.parametrize(("seen", "torn"), [((2, 1), 1), ((1, 1), 0), ((2, 2), 0)])
def test_between_two_writes(build, field: str, seen: tuple[int, int], torn: int) -> None:
    """Half new and half old; both old, and both new, are one version."""
    old, new = versions(1, 2, field=field)
    one, other = versions(*seen, field=field)
    events = [
        event("write", "w1", 0.0, "plan", **old),
        event("write", "w2", 0.1, "result", **old),
        event("write", "w3", 9.0, "plan", **new),
        event("read", "r1", 9.1, "plan", **one),
        event("read", "r2", 9.2, "result", **other),
        event("write", "w4", 9.3, "result", **new),
    ]
    got = found(build, *events)
    assert len(got) == torn
    if torn:
        assert got[0].events == ("w4", "r1", "r2")
        assert got[0].evidence["keys"] == ["result", "plan"]


def test_a_look_ends_where_a_key_is_read_again(build) -> None:
    """Who reads both keys, waits, and reads both again has seen two whole versions."""
    looks = [event("read", f"r{n}{key}", n * 2.0, key, state_version=n + 1) for n in (0, 1) for key in ("k", "l")]
    writes = [
        event("write", f"w{n}{key}", n * 2.0 - 0.5, key, state_version=n + 1) for n in (0, 1) for key in ("k", "l")
    ]
    assert not found(build, *sorted(looks + writes, key=lambda each: each.at))


def test_versions_that_never_met_are_not_of_one_count(build) -> None:
    """Two keys with counters of their own."""
    assert not found(
        build,
        event("write", "w1", 0.0, "k", state_version=3),
        event("write", "w2", 0.1, "l", state_version=9),
        event("read", "r1", 1.0, "k", state_version=3),
        event("read", "r2", 1.1, "l", state_version=9),
    )


def test_reads_far_apart_are_two_looks(build) -> None:
    """Nobody holds both halves at once."""
    events = [
        event("write", "w1", 0.0, "k", state_version=1),
        event("write", "w2", 0.0, "l", state_version=1),
        event("read", "r1", 1.0, "l", state_version=1),
        event("write", "w3", 60.0, "k", state_version=2),
        event("read", "r2", 61.0, "k", state_version=2),
        event("write", "w4", 62.0, "l", state_version=2),
    ]
    assert not found(build, *events)
    assert len(found(build, *events, within_seconds=100)) == 1
