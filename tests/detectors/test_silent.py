"""agent.unavailable: a target that was asked and did not speak."""

import pytest

from handrail.event import Event


def call(number: int = 1, at: float = 0.0, outcome: str = "completed", **fields: object) -> Event:
    known = {"kind": "handoff", "source": "a", "target": "b", "workflow": "w"}
    return Event(id=f"e{number}", at=at, outcome=outcome, **known | fields)  # type: ignore[arg-type]


def test_a_call_that_stays_open_in_silence_is_told_once(build) -> None:
    """At the end of the silence, and not again when the call times out at last."""
    pipeline = build("agent.unavailable")
    pipeline.observe(call(outcome="asked"))
    assert not pipeline.advance(300.0).findings
    (found,) = pipeline.advance(301.0).findings
    assert (found.at, found.event, found.events, found.side) == (300.0, None, ("e1",), "receiver")
    assert found.message == "handoff from a to b was asked for, and b never spoke in 5 min"
    assert not pipeline.observe(call(outcome="timeout", duration_ms=400_000.0)).findings


def test_a_recorded_timeout_in_silence_is_told(build) -> None:
    """What the live system told by time, a recording tells from the duration."""
    assert build("agent.unavailable").observe(call(outcome="timeout", duration_ms=300_000.0)).findings
    assert not build("agent.unavailable").observe(call(outcome="timeout", duration_ms=299_000.0)).findings


def test_an_agent_that_is_at_work_is_not_silent(build) -> None:
    """Each thing it does in the workflow starts its silence again; what it does elsewhere does not."""
    pipeline = build("agent.unavailable")
    pipeline.observe(call(1, outcome="asked"))
    pipeline.observe(call(2, 200.0, source="b", target="c"))
    assert not pipeline.advance(450.0).findings
    pipeline.observe(call(3, 460.0, source="b", target="c", workflow="v"))
    (found,) = pipeline.advance(501.0).findings
    assert found.at == 500.0


def test_a_handoff_that_was_dropped_is_told(build) -> None:
    """Dropped is what a dialect says of a target that never spoke."""
    (found,) = build("agent.unavailable").observe(call(outcome="dropped", duration_ms=60_000.0)).findings
    assert found.message == "handoff from a to b was asked for, and b never spoke in 60 s"


@pytest.mark.parametrize(
    "fields",
    [
        {"outcome": "timeout"},
        {"outcome": "failed"},
        {"outcome": "failed", "status": 503},
        {"outcome": "rejected", "status": 429},
    ],
)
def test_three_in_a_row_are_told_once_until_it_answers(build, fields: dict[str, object]) -> None:
    """Whoever asked; and again when it was there in between."""
    pipeline = build("agent.unavailable")

    def fail(*numbers: int) -> list[tuple[str, ...]]:
        events = [
            call(number, float(number), source=f"s{number}", workflow=f"w{number}", **fields) for number in numbers
        ]
        return [found.events for event in events for found in pipeline.observe(event).findings]

    assert fail(1, 2, 3, 4, 5) == [("e1", "e2", "e3")]
    pipeline.observe(call(6, 6.0))
    assert fail(7, 8) == []
    assert fail(9) == [("e7", "e8", "e9")]


@pytest.mark.parametrize(
    "fields",
    [
        {"outcome": "failed", "status": 500},
        {"outcome": "rejected", "status": 400},
        {"outcome": "rejected"},
        {"outcome": "interrupted"},
        {"outcome": "accepted", "status": 202},
    ],
)
def test_what_an_agent_answers_is_no_absence(build, fields: dict[str, object]) -> None:
    """An error of its own, a task it does not take, and a caller that goes away are not the same as nobody there."""
    pipeline = build("agent.unavailable")
    assert not [found for number in range(9) for found in pipeline.observe(call(number, **fields)).findings]


def test_failures_far_apart_are_no_outage(build) -> None:
    """Three in a row over a day are three mishaps."""
    pipeline = build("agent.unavailable")
    assert not [
        found for number in range(9) for found in pipeline.observe(call(number, number * 700.0, "timeout")).findings
    ]


def test_the_same_event_counts_once(build) -> None:
    """An event that is delivered again is not another failure."""
    pipeline = build("agent.unavailable")
    assert not [found for _ in range(9) for found in pipeline.observe(call(outcome="timeout")).findings]
