"""output.duplicate in stores and on buses: what is there twice, and what only looks so."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.detectors.copies import _sketcher
from handrail.event import Event, digest_of

TEXT = (
    "The quarterly revenue of the northern region grew by twelve percent, driven by two large renewals and a better "
    "mix of services; the southern region was flat because one account moved its start into the next quarter. "
)


def event(kind: str, id: str, at: float, **fields: Any) -> Event:
    known = {"workflow": "w", "task": "t", "outcome": "completed", "source": "a", "store": "s", "key": "out"}
    payload = fields.get("payload")
    if payload is not None:
        known["digest"] = digest_of(payload)
    return Event(kind=kind, id=id, at=at, **known | fields)  # type: ignore[arg-type]


def found(build, *events: Event, **params: Any):
    pipeline = build("output.duplicate", params)
    seen = [each for one in events for each in pipeline.observe(one).findings]
    return [*seen, *pipeline.close(events[-1].at).findings]


def twice(build, first: dict[str, Any], second: dict[str, Any], kind: str = "write", **params: Any):
    return found(build, event(kind, "e1", 0.0, **first), event(kind, "e2", 9.0, **second), **params)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"digest": "d1"}, {"digest": "d1"}, True),
        ({"digest": "d1"}, {"digest": "d2"}, False),
        ({}, {}, None),
        ({"digest": "d1", "state_version": 1}, {"digest": "d1", "state_version": 2}, True),
        ({"digest": "d1", "attempt": 1}, {"digest": "d2", "attempt": 2, "source": "b"}, False),
    ],
    ids=["the same content", "different content", "content unknown", "a version of the store", "another's attempt"],
)
def test_an_output_written_twice(build, first: dict[str, Any], second: dict[str, Any], same: bool | None) -> None:
    """Whatever the content, which the evidence compares."""
    (one,) = twice(build, first, second)
    assert (one.events, one.evidence["reason"], one.evidence["same_content"]) == (("e1", "e2"), "same_task", same)
    assert one.evidence["gap_seconds"] == 9.0


def test_announcements_are_in_the_order_in_which_they_were_over(build) -> None:
    """One that the bus took two seconds to acknowledge is the repeat, whichever of the two is seen first."""
    slow = event("publish", "slow", 0.0, duration_ms=2000.0)
    quick = event("publish", "quick", 0.5, duration_ms=0.0)
    for seen in ((quick, slow), (slow, quick)):
        (one,) = found(build, *seen)
        assert (one.events, one.evidence["gap_seconds"]) == (("quick", "slow"), 1.5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"digest": "d1", "state_version": 1}, {"digest": "d2", "state_version": 2}),
        ({"digest": "d1"}, {"digest": "d2", "source": "b"}),
        ({"digest": "d1"}, {"digest": "d2", "outcome": "failed"}),
        ({"digest": "d1", "key": "agents:w:t:status"}, {"digest": "d2", "key": "agents:w:t:status"}),
        ({"digest": "d1", "outcome": "accepted"}, {"digest": "d2"}),
        ({"digest": "d1"}, {"digest": "d2", "task": "u"}),
        ({"digest": "d1", "payload_bytes": 2}, {"digest": "d1", "payload_bytes": 2, "task": "u"}),
    ],
    ids=["update", "race", "failed", "working state", "progress, then the output", "another task", "two bytes"],
)
def test_what_is_no_second_output(build, first: dict[str, Any], second: dict[str, Any]) -> None:
    """An update, a race (which is another failure), a failure, working state."""
    assert not twice(build, first, second)


def test_a_second_announcement(build) -> None:
    """Of one output it is a duplicate; of an output that was written again it is news."""
    assert len(twice(build, {}, {}, "publish")) == 1
    again = event("write", "w", 5.0, key="result", store="t", state_version=2)
    assert not found(build, event("publish", "e1", 0.0), again, event("publish", "e2", 9.0))


@pytest.mark.parametrize(
    ("second", "finds"),
    [({"state_version": 5}, 0), ({"state_version": 5, "attempt": 2}, 0), ({"state_version": 6}, 1), ({}, 0)],
    ids=["the same message", "delivered again", "another message", "nobody can say"],
)
def test_a_bus_may_repeat_itself(build, second: dict[str, Any], finds: int) -> None:
    """A delivery counts against the sender only with a sequence number of its own."""
    assert len(twice(build, {"state_version": 5, "target": "b"}, {"target": "b"} | second, "deliver")) == finds


def test_the_same_content_under_two_tasks(build) -> None:
    """Told once for each further task."""
    events = [event("write", f"e{n}", n, task=f"t{n}", key=f"k{n}", digest="d") for n in range(3)]
    assert [one.evidence["tasks"] for one in found(build, *events)] == [["t0", "t1"], ["t0", "t2"]]


@pytest.mark.parametrize(("threshold", "finds"), [(0.5, 1), (0.99, 0), (None, 0)])
def test_nearly_the_same_text(build, threshold: float | None, finds: int) -> None:
    """Where the rule asks for it, with the similarity and the threshold in the evidence."""
    pytest.importorskip("datasketch")
    first, second = {"summary": TEXT * 2}, {"summary": TEXT * 2 + "This was checked against the ledger."}
    params = {} if threshold is None else {"similarity": threshold}
    got = twice(build, {"payload": first}, {"payload": second, "task": "u", "key": "out2"}, **params)
    assert len(got) == finds
    for one in got:
        assert (one.evidence["reason"], one.evidence["threshold"]) == ("similar", threshold)
        assert 0.5 <= one.evidence["similarity"] < 1.0


def test_another_text_is_not_similar(build) -> None:
    """Two tasks of one workflow that speak of different things."""
    pytest.importorskip("datasketch")
    other = {"summary": "Nothing of this is about money: the garden needs water in the morning and shade at noon."}
    assert not twice(build, {"payload": {"summary": TEXT}}, {"payload": other, "task": "u"}, similarity=0.3)


@settings(max_examples=60, deadline=None)
@given(
    one=st.lists(st.integers(0, 400), min_size=1, max_size=700),
    kept=st.integers(0, 700),
    added=st.lists(st.integers(0, 400), max_size=80),
    least=st.sampled_from((0.5, 0.65, 0.8, 0.95)),
)
def test_no_likeness_is_ruled_out_that_a_minhash_would_tell(
    one: list[int], kept: int, added: list[int], least: float
) -> None:
    """The cheaper look at a sample never hides what is as much alike as the rule asks for."""
    sketch = _sketcher()
    first, second = (sketch(" ".join(f"w{word}" for word in words), None) for words in (one, [*one[:kept], *added]))
    if second is not None and first.jaccard(second) >= least:
        assert first.may_reach(second, second.sample(), least)
        assert second.may_reach(first, first.sample(), least)


@pytest.mark.parametrize(("operation", "finds"), [("EXPIRE", 0), ("PEXPIRE", 0), ("APPEND", 1)])
def test_a_new_time_to_live_is_no_second_output(build, operation: str, finds: int) -> None:
    """What a key holds is the same after it."""
    assert len(twice(build, {"digest": "d1", "operation": "SET"}, {"operation": operation})) == finds
