"""handoff.partial: an output that nobody is told of, and its retry."""

from typing import Any

import pytest

from handrail.event import Event

OUT = {"store": "s", "key": "agents:w:t:output"}


def event(kind: str, id: str, at: float, source: str | None, target: str | None = None, **fields: Any) -> Event:
    known = {"workflow": "w", "task": "t", "outcome": "completed"}
    return Event(kind=kind, id=id, at=at, source=source, target=target, **known | fields)  # type: ignore[arg-type]


def write(**fields: Any) -> Event:
    return event("write", "w1", 0.0, "a", **OUT | {"state_version": 3} | fields)


def found(build, *events: Event, until: float = 0.0, **params: Any):
    pipeline = build("handoff.partial", params)
    seen = [each for one in events for each in pipeline.observe(one).findings]
    return [*seen, *pipeline.advance(until).findings, *pipeline.close(until).findings]


@pytest.mark.parametrize(("until", "finds"), [(30.0, 0), (30.1, 1), (40.0, 1)])
def test_the_budget_runs_from_the_acknowledgement(build, until: float, finds: int) -> None:
    """A deadline that was still open when the recording ended was not missed."""
    got = found(build, write(), until=until)
    assert len(got) == finds
    if finds:
        assert (got[0].at, got[0].event, got[0].events) == (30.0, None, ("w1",))
        assert (got[0].evidence["version"], got[0].evidence["written_by"]) == (3, "a")


@pytest.mark.parametrize(
    "told",
    [
        event("publish", "p", 20.0, "a", store="bus", key="task.complete"),
        event("deliver", "p", 20.0, None, "b", store="bus", key="task.complete"),
        event("handoff", "p", 20.0, "a", "b"),
        event("read", "p", 20.0, None, "b", **OUT),
        event("publish", "p", -1.0, "a", store="bus"),
    ],
    ids=["published", "delivered", "handed over", "read by another", "published early"],
)
def test_what_hands_it_on(build, told: Event) -> None:
    """Each is enough."""
    assert not found(build, *sorted((write(), told), key=lambda each: each.at), until=100.0)


@pytest.mark.parametrize(
    "other",
    [
        event("publish", "p", 20.0, "a", store="bus", key="task.started"),
        event("publish", "p", 20.0, "a", store="bus", key="task.complete", outcome="failed"),
        event("publish", "p", 20.0, "a", store="bus", key="task.complete", task="other"),
        event("read", "p", 20.0, None, "a", **OUT),
        event("publish", "p", 31.0, "a", store="bus", key="task.complete"),
    ],
    ids=["a start", "one that failed", "of another task", "the writer's own read", "too late"],
)
def test_what_does_not(build, other: Event) -> None:
    """The wait goes on."""
    assert len(found(build, write(), other, until=100.0)) == 1


def test_a_retry_names_what_is_there(build) -> None:
    """The coordinator hands the task out again; the wait for the event is then over as well."""
    again = event("handoff", "h2", 12.0, "boss", "a2", attempt=2)
    (one,) = found(build, event("handoff", "h1", -5.0, "boss", "a"), write(), again, until=100.0)
    assert (one.event, one.events, one.evidence["version"]) == ("h2", ("w1", "h2"), 3)
    assert one.message.removeprefix("boss handed out task t again, although its output ") == (
        "(version 3, by a) had been in agents:w:t:output in s for 12 s"
    )


def test_enforced_the_retry_is_refused(build) -> None:
    """409 while the request is held, though the write was seen a moment ago; and told once."""
    pipeline = build("handoff.partial", action="enforce")
    pipeline.observe(event("handoff", "h1", -5.0, "boss", "a"))
    pipeline.observe(write())
    asked = pipeline.observe(event("handoff", "h2", 0.5, "boss", "a", attempt=2, outcome="asked"))
    assert asked.refusal is not None
    assert asked.refusal.status == 409
    assert asked.refusal.finding.evidence["version"] == 3
    pipeline.observe(event("handoff", "h2", 0.5, "boss", "a", attempt=2, outcome="rejected"))
    assert not pipeline.advance(100.0).findings


def test_what_was_handed_out_before_there_was_a_store_is_known(build) -> None:
    """The coordinator's first handoff came before anybody wrote anything; its second, to somebody else, is a retry."""
    first = event("handoff", "h1", -60.0, "boss", "a", payload={"text": "work"})
    again = event("handoff", "h2", 20.0, "boss", "b")
    (got,) = found(build, first, write(), again, until=25.0)
    assert (got.event, got.evidence["reason"]) == ("h2", "retried")
    assert not found(build, write(), again, until=25.0), "who never handed it out hands it on"


@pytest.mark.parametrize(("operation", "finds"), [("EXPIRE", 0), ("PEXPIREAT", 0), ("SET", 1)])
def test_a_new_time_to_live_is_no_new_output(build, operation: str, finds: int) -> None:
    """The output was announced, and nothing was written after that."""
    told = event("publish", "p", 1.0, "a", store="bus", key="task.complete")
    later = event("write", "w2", 50.0, "a", **OUT | {"operation": operation})
    assert len(found(build, write(), told, later, until=100.0)) == finds
