"""What the recorder adds to Decisions before it writes them down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.edge.metrics import Metrics
from handrail.edge.record import Recorder
from handrail.event import Decision, Event, Outcome


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
