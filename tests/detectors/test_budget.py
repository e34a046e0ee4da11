"""budget.exceeded: a handoff that is not over when its time is."""

import pytest

from handrail.config import ConfigError
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
    assert not pipeline.watches[0].detector._calls


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
    assert not detector._calls
    assert len(detector._heap) < 100


# Deadlines that shrink along the chain.


def chained(number: int, at: float, source: str, target: str, outcome: str = "asked", **fields: object) -> Event:
    return call(number, at, outcome, source=source, target=target, workflow="w", **fields)


def test_a_nested_call_is_held_to_the_call_that_its_sender_serves(build) -> None:
    """No deadline of its own: it is late when the outer one is, and the finding names both."""
    pipeline = build("budget.exceeded")
    pipeline.observe(chained(1, 0.0, "a", "b", deadline=30.0))
    assert not pipeline.observe(chained(2, 5.0, "b", "c")).findings
    outer, inner = pipeline.advance(31.0).findings
    assert (outer.events, outer.target) == (("e1",), "b")
    assert (inner.events, inner.target, inner.at, inner.side) == (("e1", "e2"), "c", 30.0, "receiver")
    assert inner.evidence["declared_by"] == "outer"
    assert inner.evidence["budget_seconds"] == 25.0


def test_a_chain_hands_the_shortest_deadline_down(build) -> None:
    """a to b has 30 s, b to c only 10, c to d what c has."""
    pipeline = build("budget.exceeded")
    pipeline.observe(chained(1, 0.0, "a", "b", deadline=30.0))
    pipeline.observe(chained(2, 1.0, "b", "c", deadline=10.0))
    pipeline.observe(chained(3, 2.0, "c", "d", deadline=10.0))
    detector = pipeline.watches[0].detector
    assert [detector.due(chained(number, 0.0, "", "")) for number in (1, 2, 3)] == [30.0, 10.0, 10.0]


def test_an_inner_deadline_after_the_outer_one_is_told_before_the_call(build) -> None:
    """Nobody will be there for the answer; a deadline that is rounded the other way is none of that."""
    pipeline = build("budget.exceeded")
    pipeline.observe(chained(1, 0.0, "a", "b", deadline=30.0))
    (found,) = pipeline.observe(chained(2, 5.0, "b", "c", deadline=60.0)).findings
    assert (found.event, found.events, found.side, found.at) == ("e2", ("e1", "e2"), "sender", 5.0)
    assert found.evidence["deadline"] == "1970-01-01T00:00:30.000000Z"
    assert found.evidence["declared"] == "1970-01-01T00:01:00.000000Z"
    assert not pipeline.observe(chained(3, 5.0, "b", "c", deadline=30.0005)).findings


def test_an_inner_deadline_after_the_outer_one_is_told_from_a_recording_too(build) -> None:
    """Both calls are over, both in time: the inner one was promised time that nobody had."""
    pipeline = build("budget.exceeded")
    pipeline.observe(chained(1, 0.0, "a", "b", "completed", deadline=30.0, duration_ms=20_000.0))
    (found,) = pipeline.observe(chained(2, 5.0, "b", "c", "completed", deadline=60.0, duration_ms=9_000.0)).findings
    assert found.side == "sender"
    assert not pipeline.observe(chained(3, 21.0, "b", "c", "completed", deadline=60.0, duration_ms=9.0)).findings


@pytest.mark.parametrize(
    "other",
    [
        {"workflow": "v"},  # another workflow's call
        {"source": "x"},  # somebody who serves nothing
    ],
)
def test_who_does_not_serve_the_call_is_not_held_to_it(build, other: dict[str, object]) -> None:
    """Only the agent that was called, and only in the workflow in which it was."""
    pipeline = build("budget.exceeded")
    pipeline.observe(chained(1, 0.0, "a", "b", deadline=30.0))
    fields = {"source": "b", "target": "c", "workflow": "w", "deadline": 60.0} | other
    assert not pipeline.observe(call(2, 5.0, "asked", **fields)).findings


def test_an_agent_that_serves_several_is_held_to_the_most_generous(build) -> None:
    """Which of them a call is part of cannot be known: the latest deadline counts, and none where one has none."""
    pipeline = build("budget.exceeded")
    pipeline.observe(chained(1, 0.0, "a", "b", deadline=30.0))
    pipeline.observe(chained(2, 0.0, "x", "b", deadline=50.0))
    assert not pipeline.observe(chained(3, 5.0, "b", "c", deadline=50.0)).findings
    pipeline.observe(chained(4, 6.0, "y", "b"))
    assert not pipeline.observe(chained(5, 7.0, "b", "c", deadline=90.0)).findings


def test_inheritance_can_be_switched_off(build) -> None:
    """Then a nested call has only what it declares."""
    pipeline = build("budget.exceeded", {"inherited": False})
    pipeline.observe(chained(1, 0.0, "a", "b", deadline=30.0))
    assert not pipeline.observe(chained(2, 5.0, "b", "c", deadline=60.0)).findings
    assert [found.events for found in pipeline.advance(61).findings] == [("e1",), ("e2",)]


# What cannot be met.


def test_less_time_than_an_edge_ever_took_is_told_before_the_call(build) -> None:
    """Twenty handoffs never took under 4 s: one that has 3 s left is told at once, one that has 4 s is not."""
    pipeline = build("budget.exceeded")
    for number in range(20):
        pipeline.observe(call(number, float(number), duration_ms=4_000.0 + number))
    assert not pipeline.observe(call(50, 100.0, "asked", deadline=104.0)).findings
    (found,) = pipeline.observe(call(51, 100.0, "asked", deadline=103.0)).findings
    assert (found.event, found.side, found.evidence["least_seconds"]) == ("e51", "sender", 4.0)
    assert not [each for each in pipeline.advance(200).findings if "e51" in each.events]


def test_a_forecast_needs_enough_handoffs_and_a_fact_outweighs_it(build) -> None:
    """Nineteen are too few; and a recorded call that was in time was no impossible one."""
    pipeline = build("budget.exceeded")
    for number in range(19):
        pipeline.observe(call(number, float(number), duration_ms=4_000.0))
    assert not pipeline.observe(call(50, 100.0, "asked", deadline=103.0)).findings
    pipeline.observe(call(19, 19.0, duration_ms=4_000.0))
    assert not pipeline.observe(call(51, 100.0, deadline=103.0, duration_ms=2_000.0)).findings


def test_a_declared_minimum_is_known_from_the_start(build) -> None:
    """`at_least_seconds` of an edge, refused in enforce mode before the call; wrong where it is above the budget."""
    edges = [{"target": "b", "at_least_seconds": 5}]
    pipeline = build("budget.exceeded", {"edges": edges}, action="enforce")
    refusal = pipeline.observe(call(outcome="asked", deadline=3.0)).refusal
    assert refusal is not None
    assert refusal.status == 504
    assert pipeline.observe(call(2, outcome="asked", deadline=5.0)).refusal is None
    with pytest.raises(ConfigError, match="at_least_seconds is more than seconds"):
        build("budget.exceeded", {"edges": [{"seconds": 1, "at_least_seconds": 5}]})


# Budgets of an agent and of a workflow.


def test_an_agents_budget_is_used_up_by_all_calls_to_it(build) -> None:
    """Two calls of 20 s leave nothing of 40, so a third begins too late; another workflow has its own."""
    pipeline = build("budget.exceeded", {"agents": [{"agent": "b", "seconds": 40}]})
    for number, at in ((1, 0.0), (2, 20.0)):
        assert not pipeline.observe(chained(number, at, "a", "b", "completed", duration_ms=20_000.0)).findings
    assert not pipeline.observe(call(3, 50.0, duration_ms=20_000.0, workflow="v")).findings
    (found,) = pipeline.observe(chained(4, 50.0, "a", "b", "completed", duration_ms=1.0)).findings
    assert (found.side, found.evidence["declared_by"]) == ("receiver", "agent")


def test_an_agents_budget_is_not_charged_twice_for_the_same_time(build) -> None:
    """Calls under way at the same time are not added up."""
    pipeline = build("budget.exceeded", {"agents": [{"agent": "b", "seconds": 40}]})
    for number in range(3):
        assert not pipeline.observe(
            chained(number, float(number), "a", "b", "completed", duration_ms=30_000.0)
        ).findings


def test_a_workflows_budget_is_told_once(build) -> None:
    """At the deadline where a call is open then, else with the first call after it."""
    pipeline = build("budget.exceeded", {"workflow_seconds": 60})
    pipeline.observe(chained(1, 0.0, "a", "b", "completed", duration_ms=1.0))
    pipeline.observe(chained(2, 50.0, "b", "c"))
    pipeline.observe(chained(3, 55.0, "b", "d"))
    (found,) = pipeline.advance(61.0).findings
    assert (found.at, found.side, found.event, found.evidence["declared_by"]) == (60.0, "graph", None, "workflow")
    assert not pipeline.observe(chained(4, 70.0, "c", "d", "completed", duration_ms=1.0)).findings
    quiet = build("budget.exceeded", {"workflow_seconds": 60})
    quiet.observe(chained(1, 0.0, "a", "b", "completed", duration_ms=1.0))
    (found,) = quiet.observe(chained(2, 70.0, "c", "d", "completed", duration_ms=1.0)).findings
    assert (found.at, found.event) == (70.0, "e2")


def test_an_enforced_workflow_budget_refuses_every_call_after_it(build) -> None:
    """Told once is enough for a person; a caller must be told each time."""
    pipeline = build("budget.exceeded", {"workflow_seconds": 60}, action="enforce")
    pipeline.observe(chained(1, 0.0, "a", "b", "completed", duration_ms=1.0))
    assert all(pipeline.observe(chained(number, 70.0, "b", "c")).refusal for number in (2, 3))


def test_a_reply_at_the_very_deadline_is_in_time_whatever_the_float(build) -> None:
    """Seconds since the epoch are not exact to the microsecond."""
    for micro in range(0, 1_000_000, 997):
        at = 1_790_000_000 + micro / 1e6
        deadline, duration = round(at + 0.3, 6), 300.0
        assert not build("budget.exceeded").observe(call(at=at, deadline=deadline, duration_ms=duration)).findings


def test_a_long_time_is_told_in_days(build) -> None:
    """A deadline in another year is a slip of the sender's clock, and no number of hours in powers of ten."""
    pipeline = build("budget.exceeded")
    (found,) = pipeline.observe(call(at=217_563_000.0, deadline=0.0)).findings
    assert found.message == "handoff from a to b began 2,518 days after its own deadline"
