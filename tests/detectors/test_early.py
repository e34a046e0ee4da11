"""handoff.early: an event ahead of the write it announces, or behind its successor."""

from typing import Any

import pytest

from handrail.event import Event


def event(kind: str, id: str, at: float, **fields: Any) -> Event:
    known = {"workflow": "w", "task": "t", "outcome": "completed", "source": "a"}
    known |= {"store": "s", "key": "out"} if kind in ("write", "read") else {"store": "bus", "key": "task.complete"}
    return Event(kind=kind, id=id, at=at, **known | fields)  # type: ignore[arg-type]


def found(build, *events: Event, **params: Any):
    pipeline = build("handoff.early", params)
    seen = [each for one in events for each in pipeline.observe(one).findings]
    return [*seen, *pipeline.close(events[-1].at).findings]


@pytest.mark.parametrize(
    ("at", "finds"), [(0.0, 1), (9.9, 1), (10.2, 1), (10.5, 0), (11.0, 0), (10.499, 0), (-25.0, 0)]
)
def test_before_the_acknowledgement(build, at: float, finds: int) -> None:
    """The write is asked for at 10 s and acknowledged half a second later."""
    write = event("write", "w", 10.0, duration_ms=500.0)
    got = found(build, *sorted((event("publish", "p", at), write), key=lambda each: each.at))
    assert [each.events for each in got] == [("p", "w")] * finds


def test_one_finding_for_one_write(build) -> None:
    """With who got it too early, and who went to look."""
    (one,) = found(
        build,
        event("publish", "p", 0.0),
        event("deliver", "d", 0.1, target="b"),
        event("read", "r", 0.2, source=None, target="b", status="missing"),
        event("write", "w", 0.0, duration_ms=900.0),
    )
    assert one.events == ("p", "d", "r", "w")
    assert one.evidence["delivered_to"] == ["b"]
    assert [each["by"] for each in one.evidence["acted"]] == ["b"]


def test_an_event_announces_what_is_there(build) -> None:
    """A later write of the same task was not meant."""
    assert not found(build, event("write", "w1", 0.0), event("publish", "p", 1.0), event("write", "w2", 9.0))


@pytest.mark.parametrize("fields", [{"key": "task.started"}, {"task": "u"}, {"source": "c"}, {"outcome": "failed"}])
def test_other_events_announce_nothing(build, fields: dict[str, Any]) -> None:
    """A start, another task, another agent, one that never went out."""
    assert not found(build, event("publish", "p", 0.0, **fields), event("write", "w", 5.0))


@pytest.mark.parametrize(
    ("numbers", "attempts", "finds"),
    [((1, 2, 3), (1, 1, 1), 0), ((1, 3, 2), (1, 1, 1), 1), ((1, 3, 1), (1, 1, 2), 0), ((1, 3, 2), (1, 1, 2), 0)],
    ids=["in order", "out of order", "delivered again", "delivered late, for the second time"],
)
def test_the_sequence(build, numbers: tuple[int, ...], attempts: tuple[int, ...], finds: int) -> None:
    """Lower than one that came before, and new."""
    events = [
        event("deliver", f"d{n}", float(n), target="b", state_version=number, attempt=attempt)
        for n, (number, attempt) in enumerate(zip(numbers, attempts, strict=True))
    ]
    assert len(found(build, *events)) == finds
