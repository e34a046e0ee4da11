"""What the recorder adds to Decisions before it writes them down, and what goes to the log."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.edge.metrics import Metrics
from handrail.edge.record import Recorder
from handrail.event import Decision, Event, Fault, Outcome


def decision(number: int, outcome: Outcome) -> Decision:
    return Decision(event=Event(kind="handoff", id=f"e{number}", at=float(number), outcome=outcome))


@given(st.lists(st.sampled_from(["asked", "completed", "failed", None])), st.floats(0, 10))
def test_the_time_of_a_batch_is_shared_among_what_is_over(outcomes: list[Outcome | None], seconds: float) -> None:
    """The shares add up to the whole; what is still open, and a Decision without an event, have none."""
    decisions = [Decision() if outcome is None else decision(n, outcome) for n, outcome in enumerate(outcomes)]
    Recorder(Metrics(), ()).inspected(decisions, seconds)
    events = [each.event for each in decisions if each.event is not None]
    over = [event for event in events if event.outcome != "asked"]
    assert all(event.inspection_ms is None for event in events if event.outcome == "asked")
    if over:
        assert sum(event.inspection_ms or 0.0 for event in over) == pytest.approx(seconds * 1000)
        assert len({event.inspection_ms for event in over}) == 1


def told(caplog: pytest.LogCaptureFixture, *faults: tuple[str, float]) -> list[str]:
    """The lines of the log after faults of the registry or of a detector, each with its instant."""
    caplog.set_level(logging.WARNING)
    recorder = Recorder(Metrics(), ())
    for message, now in faults:
        component = "registry" if message.endswith("json") else "detector.x"
        recorder.fault(Fault(component=component, reason="invalid", message=message), now)
    return [record.getMessage().rpartition(": ")[2] for record in caplog.records]


def test_every_wrong_schema_file_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Several at once too, for there is one to be put right for each line."""
    assert told(caplog, ("a/1.json", 0.0), ("b/1.json", 0.0), ("a/1.json", 1.0)) == ["a/1.json", "b/1.json"]


def test_what_fails_again_and_again_is_said_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it says of itself: a payload can be part of it, and no two are alike."""
    assert told(caplog, ("one", 0.0), ("two", 9.0), ("three", 10.0)) == ["one", "three"]
