"""budget.exceeded: a handoff that is not over when its time is."""

import pytest

from handrail.event import Event


def call(number: int = 1, at: float = 0.0, outcome: str = "completed", **fields: object) -> Event:
    known = {"kind": "handoff", "source": "a", "target": "b"}
    return Event(id=f"e{number}", at=at, outcome=outcome, **known | fields)  # type: ignore[arg-type]


def test_it_is_noticed_when_the_time_passes(build) -> None:
    """Nothing at the deadline, the finding right after it with the deadline as its time, then silence."""
    pipeline = build("budget.exceeded", {"seconds": 30})
    pipeline.observe(call(outcome="asked"))
    assert not pipeline.advance(30.0).findings
    (found,) = pipeline.advance(30.001).findings
    assert (found.at, found.event, found.events, found.side) == (30.0, None, ("e1",), "receiver")
    assert found.evidence == {
        "deadline": "1970-01-01T00:00:30.000000Z",
        "budget_seconds": 30.0,
        "declared_by": "rule",
    }
    assert found.message == "handoff from a to b was not over after the 30 s that it had"
    assert not pipeline.advance(31).findings
    assert not pipeline.observe(call(duration_ms=90_000.0)).findings
    assert len(pipeline.watches[0].detector) == 0


def test_a_recording_gives_the_finding_that_the_live_system_gave(build) -> None:
    """By time, by a late reply between two ticks, or from a whole event: the same finding."""
    params = {"seconds": 30}
    live, between, recorded = (build("budget.exceeded", params) for _ in range(3))
    live.observe(call(outcome="asked"))
    by_time = live.advance(31).findings
    between.observe(call(outcome="asked"))
    by_reply = between.observe(call(duration_ms=30_500.0)).findings
    assert by_time == by_reply == recorded.observe(call(duration_ms=30_500.0)).findings != ()


@pytest.mark.parametrize("outcome", ["completed", "failed", "rejected", "interrupted"])
def test_a_call_that_ends_in_time_is_silent(build, outcome: str) -> None:
    """Whatever the outcome, and even at the very deadline."""
    pipeline = build("budget.exceeded", {"seconds": 30})
    pipeline.observe(call(outcome="asked"))
    assert not pipeline.observe(call(outcome=outcome, duration_ms=30_000.0)).findings
    assert not pipeline.advance(100).findings


def test_without_a_deadline_nothing_is_late(build) -> None:
    """The shipped parameters hold nobody to anything that was not declared."""
    pipeline = build("budget.exceeded")
    pipeline.observe(call(outcome="asked"))
    assert not pipeline.advance(1e9).findings
    assert not pipeline.observe(call(2, duration_ms=1e9)).findings


def test_asked_too_late_is_the_senders_fault(build) -> None:
    """The deadline was past when the request was made: told at once and once."""
    pipeline = build("budget.exceeded")
    (found,) = pipeline.observe(call(at=40.0, outcome="asked", deadline=30.0)).findings
    assert (found.at, found.event, found.side) == (40.0, "e1", "sender")
    assert not pipeline.advance(50).findings
    assert not pipeline.observe(call(at=40.0, deadline=30.0, duration_ms=1.0)).findings
    assert build("budget.exceeded").observe(call(at=40.0, deadline=30.0, duration_ms=1.0)).findings == (found,)


def test_enforced_asking_too_late_is_refused(build) -> None:
    """504, and nothing for a deadline that is still ahead."""
    pipeline = build("budget.exceeded", action="enforce")
    refusal = pipeline.observe(call(at=40.0, outcome="asked", deadline=30.0)).refusal
    assert refusal is not None
    assert refusal.status == 504
    assert pipeline.observe(call(2, 40.0, "asked", deadline=41.0)).refusal is None


def test_of_two_deadlines_the_earlier_counts(build) -> None:
    """The declared one, the rule's, or the rule's alone where declarations are disregarded."""
    late, early = call(outcome="asked", deadline=50.0), call(2, outcome="asked", deadline=10.0)
    found = []
    for declared in (True, False):
        pipeline = build("budget.exceeded", {"seconds": 30, "declared": declared})
        pipeline.observe(late)
        pipeline.observe(early)
        found.append([(each.events, each.at, each.evidence["declared_by"]) for each in pipeline.advance(99).findings])
    assert found == [
        [(("e2",), 10.0, "handrail-deadline"), (("e1",), 30.0, "rule")],
        [(("e1",), 30.0, "rule"), (("e2",), 30.0, "rule")],
    ]


def test_the_first_edge_that_matches_sets_the_budget(build) -> None:
    """An edge's seconds before the rule's, an unnamed edge gets the rule's, and none where there is none."""
    edges = [{"target": "slow*", "seconds": 100}, {"source": "a", "target": "slow-b", "seconds": 1}]
    pipeline = build("budget.exceeded", {"seconds": 10, "edges": edges})
    for number, target in enumerate(["slow-b", "b", None]):
        pipeline.observe(call(number, outcome="asked", target=target))
    assert [each.events for each in pipeline.advance(50).findings] == [("e1",), ("e2",)]
    only = build("budget.exceeded", {"edges": edges})
    only.observe(call(outcome="asked"))
    assert not only.advance(1e6).findings


def test_replies_leave_no_memory_behind(build) -> None:
    """The heap is swept as calls end, so that a long deadline on every call costs nothing."""
    pipeline = build("budget.exceeded", {"seconds": 1e6})
    for number in range(1_000):
        pipeline.observe(call(number, float(number), "asked"))
        pipeline.observe(call(number, float(number), duration_ms=1.0))
    detector = pipeline.watches[0].detector
    assert len(detector) == 0
    assert len(detector._heap) < 100
