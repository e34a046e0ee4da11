"""state.lost_update: two writers start from one version, and the second overwrites the first."""

from typing import Any

import pytest

from handrail.event import Event


def event(kind: str, id: str, at: float, agent: str, **fields: Any) -> Event:
    known = {"workflow": "w", "store": "s", "key": "k", "outcome": "completed", "source": agent}
    return Event(kind=kind, id=id, at=at, **known | fields)  # type: ignore[arg-type]


def found(build, *events: Event, **params: Any):
    pipeline = build("state.lost_update", params)
    seen = [each for one in events for each in pipeline.observe(one).findings]
    return [*seen, *pipeline.close(events[-1].at).findings]


def test_the_evidence_names_both_and_what_they_started_from(build) -> None:
    """Who wrote what from what, and which write is lost."""
    (one,) = found(
        build,
        event("read", "ra", 0.0, "a", state_version=1),
        event("read", "rb", 1.0, "b", state_version=1),
        event("write", "wa", 2.0, "a", state_version=2, digest="d1"),
        event("write", "wb", 5.0, "b", state_version=2, digest="d2"),
    )
    assert (one.event, one.events, one.side) == ("wb", ("ra", "rb", "wa", "wb"), "sender")
    assert (one.evidence["lost"], one.evidence["writers"], one.evidence["bases"]) == ("wa", ["a", "b"], [1, 1])
    assert one.message == "b wrote version 2 over version 2 of a, 3 s later: the update of k in s is lost"


@pytest.mark.parametrize("first", ["d0", None])
def test_by_content(build, first: str | None) -> None:
    """Without versions the base is the content that was read, or that nothing was there."""
    base: dict[str, Any] = {"digest": first} if first else {"status": "missing"}
    (one,) = found(
        build,
        event("read", "ra", 0.0, "a", **base),
        event("read", "rb", 1.0, "b", **base),
        event("write", "wa", 2.0, "a", digest="d1"),
        event("write", "wb", 5.0, "b", digest="d2"),
    )
    assert one.evidence["judged_by"] == "same_base"
    assert "b had read" in one.message


@pytest.mark.parametrize(
    "second",
    [
        {"digest": "d1", "state_version": 2},
        {"digest": "d2", "state_version": 3},
        {"digest": "d2", "state_version": 2, "outcome": "failed"},
        {"digest": "d2", "state_version": 2, "agent": "a"},
        {"digest": "d2", "state_version": 2, "key": "l"},
        {"digest": "d2", "agent": None},
    ],
    ids=["the same content", "a blind write of the next version", "failed", "its own", "another key", "by nobody"],
)
def test_what_loses_nothing(build, second: dict[str, Any]) -> None:
    """The second write is no update of another's, or replaces nothing."""
    fields = {"agent": "b"} | second
    events = event("write", "wa", 2.0, "a", state_version=2, digest="d1"), event("write", "wb", 5.0, **fields)
    assert not found(build, *events)


def test_one_who_reads_again_knows(build) -> None:
    """A base is what was last read."""
    assert not found(
        build,
        event("read", "r1", 0.0, "b", digest="d0"),
        event("write", "wa", 1.0, "a", digest="d1"),
        event("read", "r2", 2.0, "b", digest="d1"),
        event("write", "wb", 3.0, "b", digest="d2"),
        event("write", "wc", 4.0, "b", digest="d3"),
    )


@pytest.mark.parametrize(("operation", "finds"), [("EXPIRE", 0), ("APPEND", 1)])
def test_a_new_time_to_live_overwrites_nothing(build, operation: str, finds: int) -> None:
    """A write that leaves the content as it was loses no update."""
    got = found(
        build,
        event("read", "ra", 0.0, "a", digest="d0"),
        event("read", "rb", 1.0, "b", digest="d0"),
        event("write", "wa", 2.0, "a", digest="d1"),
        event("write", "wb", 5.0, "b", operation=operation),
    )
    assert len(got) == finds
