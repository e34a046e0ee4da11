"""output.duplicate: one task handed over twice by one sender."""

import pytest

from handrail.event import Event


def handoff(number: int, at: float = 0.0, outcome: str = "completed", **fields: object) -> Event:
    known = {"kind": "handoff", "workflow": "w", "task": "t", "source": "a", "target": "b", "payload": {"n": 1}}
    return Event(id=f"e{number}", at=at, outcome=outcome, **known | fields)  # type: ignore[arg-type]


def counts(pipeline, *events: Event) -> list[int]:
    return [len(pipeline.observe(event).findings) for event in events]


def test_twice_with_the_same_content(build) -> None:
    """The finding names both events, the gap, the attempts and says that the content is the same."""
    pipeline = build("output.duplicate")
    assert not pipeline.observe(handoff(1, 10.0, attempt=1)).findings
    (found,) = pipeline.observe(handoff(2, 22.5, attempt=2)).findings
    assert (found.event, found.events, found.at, found.side) == ("e2", ("e1", "e2"), 22.5, "sender")
    assert found.evidence == {
        "first": "e1",
        "first_at": "1970-01-01T00:00:10.000000Z",
        "gap_seconds": 12.5,
        "same_content": True,
        "attempts": [1, 2],
    }
    assert found.message == "a handed task t to b again after 12.5 s, with the same content"


@pytest.mark.parametrize(("payload", "same"), [({"n": 2}, False), ({"n": 1}, True), (None, None)])
def test_the_content_is_compared(build, payload: object, same: bool | None) -> None:
    """Same, different, or not known where a payload could not be read."""
    pipeline = build("output.duplicate")
    pipeline.observe(handoff(1))
    assert pipeline.observe(handoff(2, 1.0, payload=payload)).findings[0].evidence["same_content"] is same


def test_each_further_repeat_is_one_more_finding(build) -> None:
    """Four outputs of one task are three findings, all against the first."""
    pipeline = build("output.duplicate")
    found = [found for n in range(4) for found in pipeline.observe(handoff(n, float(n))).findings]
    assert [each.events for each in found] == [("e0", "e1"), ("e0", "e2"), ("e0", "e3")]
    assert len({each.fingerprint for each in found}) == 1


@pytest.mark.parametrize("outcome", ["failed", "rejected", "timeout", "interrupted", "ignored", "dropped", "unknown"])
def test_a_retry_after_what_is_no_output(build, outcome: str) -> None:
    """Trying again after a failure is what a sender should do, before and after."""
    attempts = handoff(1, outcome=outcome), handoff(2), handoff(3, 1, outcome)
    assert counts(build("output.duplicate"), *attempts) == [0, 0, 0]


@pytest.mark.parametrize("field", ["workflow", "task", "source", "target"])
def test_another_task_sender_target_or_workflow(build, field: str) -> None:
    """Any part of the key makes it another output."""
    assert counts(build("output.duplicate"), handoff(1), handoff(2, **{field: "other"})) == [0, 0]


def test_without_a_task_or_anybody_to_ask_nothing_is_said(build) -> None:
    """No task, or neither workflow nor source: it could be anybody's."""
    nobody = {"workflow": None, "source": None}
    pipeline = build("output.duplicate")
    assert counts(pipeline, handoff(1, task=None), handoff(2, task=None)) == [0, 0]
    assert counts(pipeline, handoff(3, **nobody), handoff(4, **nobody)) == [0, 0]


def test_accepted_then_completed_is_one_output(build) -> None:
    """A 202 and the completion that follows, in either order."""
    assert counts(build("output.duplicate"), handoff(1, outcome="accepted"), handoff(2, 1)) == [0, 0]
    assert counts(build("output.duplicate"), handoff(1), handoff(2, 1, "accepted")) == [0, 0]


def test_accepted_twice_counts_with_the_same_content(build) -> None:
    """A running task takes turns, each accepted; the very same turn again is a repeat."""
    turns = [handoff(n, float(n), "accepted", payload={"n": payload}) for n, payload in enumerate([1, 2, 1])]
    assert counts(build("output.duplicate"), *turns) == [0, 0, 1]


def test_the_window_ends(build) -> None:
    """At `within_seconds` still a repeat, past it a new task with an old name, and repeats count from there."""
    pipeline = build("output.duplicate", {"within_seconds": 60})
    assert counts(pipeline, handoff(1, 0), handoff(2, 60), handoff(3, 121), handoff(4, 122)) == [0, 1, 0, 1]


def test_time_forgets_what_is_past_the_window(build) -> None:
    """`advance` frees the memory of tasks whose window is over, and of no other."""
    pipeline = build("output.duplicate", {"within_seconds": 60})
    pipeline.observe(handoff(1, 0))
    pipeline.observe(handoff(2, 30, task="u"))
    detector = pipeline.watches[0].detector
    pipeline.advance(60)
    assert len(detector) == 2
    pipeline.advance(61)
    assert len(detector) == 1


def test_observed_it_is_told_when_it_has_happened(build) -> None:
    """A request alone is no output; the reply makes it one."""
    pipeline = build("output.duplicate")
    assert counts(pipeline, handoff(1), handoff(2, 1, "asked"), handoff(2, 1)) == [0, 0, 1]


def test_enforced_it_is_refused_before_it_happens(build) -> None:
    """The second request is refused with 409, its rejection is no output, and it is told once."""
    pipeline = build("output.duplicate", action="enforce")
    assert counts(pipeline, handoff(1, 0, "asked"), handoff(1)) == [0, 0]
    refusal = pipeline.observe(handoff(2, 1, "asked")).refusal
    assert refusal is not None
    assert (refusal.status, refusal.finding.events) == (409, ("e1", "e2"))
    assert counts(pipeline, handoff(2, 1, "rejected")) == [0]


def test_enforced_a_retry_after_a_failure_passes(build) -> None:
    """Nothing is completed yet, so nothing is refused."""
    pipeline = build("output.duplicate", action="enforce")
    assert counts(pipeline, handoff(1, 0, "asked"), handoff(1, 0, "failed"), handoff(2, 1, "asked")) == [0, 0, 0]


def test_enforced_what_passes_all_the_same_is_told_once(build) -> None:
    """A request too long to hold is found when asked and completes: one finding."""
    pipeline = build("output.duplicate", action="enforce")
    assert counts(pipeline, handoff(1), handoff(2, 1, "asked"), handoff(2, 1)) == [0, 1, 0]


def test_a_task_named_like_its_workflow_is_a_conversation(build) -> None:
    """Turn after turn under one name is no duplicate; the same turn again is one."""
    pipeline = build("output.duplicate")
    turns = [
        handoff(n, float(n), task="w", payload={"turn": said}) for n, said in enumerate(["go", "on", "go", "stop"])
    ]
    assert counts(pipeline, *turns) == [0, 0, 1, 0]
