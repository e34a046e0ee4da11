"""state.stale_read: what a read should have seen, by version, by content, by epoch; and what its reader did then."""

from typing import Any

import pytest

from handrail.detectors.sighting import epoch_of, order_of
from handrail.event import Event, Finding
from handrail.pipeline import Pipeline


def event(kind: str, id: str, at: float, **fields: Any) -> Event:
    known = {"workflow": "w", "task": "t", "store": "s", "key": "k", "outcome": "completed"}
    return Event(kind=kind, id=id, at=at, **known | fields)  # type: ignore[arg-type]


def write(id: str, at: float, **fields: Any) -> Event:
    return event("write", id, at, **{"source": "a"} | fields)


def read(id: str, at: float, **fields: Any) -> Event:
    return event("read", id, at, **{"target": "b"} | fields)


def found(pipeline: Pipeline, *events: Event) -> list[Finding]:
    seen = [each for one in events for each in pipeline.observe(one).findings]
    decision = pipeline.close(events[-1].at)
    assert not decision.faults
    return [*seen, *decision.findings]


def test_the_evidence_says_what_how_old_and_by_whom(build) -> None:
    """Which version was read, which existed, since when, who wrote it."""
    (one,) = found(
        build("state.stale_read"),
        write("w1", 0.0, state_version=1),
        write("w2", 10.0, state_version=2, duration_ms=500.0),
        write("w3", 20.0, state_version=3, source="c"),
        read("r", 30.0, state_version=1, duration_ms=4.0),
    )
    assert (one.event, one.events, one.at, one.side) == ("r", ("w3", "r"), 30.0, "store")
    assert one.message == "b read version 1 of k in s, although version 3 by c had been there for 10 s"
    evidence = one.evidence
    assert (evidence["version_read"], evidence["version_existed"], evidence["written_by"]) == (1, 3, "c")
    assert (evidence["existed_seconds"], evidence["stale_seconds"]) == (10.0, 19.5)
    assert (evidence["reader"], evidence["write_read"], evidence["acted"]) == ("b", "w1", None)


@pytest.mark.parametrize(
    ("asked", "grace", "stale"), [(10.4, 0.0, 0), (10.5, 0.0, 1), (10.6, 0.2, 0), (10.7, 0.2, 1), (10.8, 0.2, 1)]
)
def test_only_what_was_acknowledged_before_counts(build, asked: float, grace: float, stale: int) -> None:
    """The write is acknowledged at 10.5 s; the grace is taken off the read's instant."""
    pipeline = build("state.stale_read", {"grace_seconds": grace})
    events = write("w1", 0.0, state_version=1), write("w2", 10.0, state_version=2, duration_ms=500.0)
    assert len(found(pipeline, *events, read("r", asked, state_version=1))) == stale


def test_a_reader_that_acts_ends_the_wait(build) -> None:
    """One finding, with what was done; told at once, and not when the wait is over."""
    pipeline = build("state.stale_read", {"lateness_seconds": 1, "acts_seconds": 60})
    for each in (write("w", 0.0, state_version=2), read("r", 5.0, state_version=1)):
        pipeline.observe(each)
    pipeline.observe(event("handoff", "h", 7.0, source="b", target="c", store=None, key=None))
    assert not pipeline.advance(7.9).findings
    (one,) = pipeline.advance(8.1).findings
    assert one.events == ("w", "r", "h")
    assert one.evidence["acted"]["event"] == "h"
    assert one.message.endswith("; 2 s later it acted on it with a handoff to c")


def test_a_reader_that_acts_later_is_told_again(build) -> None:
    """The finding does not wait for ever; the act is a second one of the same fingerprint."""
    pipeline = build("state.stale_read")
    for each in (write("w", 0.0, state_version=2), read("r", 5.0, state_version=1)):
        pipeline.observe(each)
    assert not pipeline.advance(9.9).findings
    (first,) = pipeline.advance(10.1).findings
    pipeline.observe(write("x", 40.0, source="b", key="other"))
    (second,) = pipeline.advance(50.0).findings
    assert (first.evidence["acted"], second.evidence["acted"]["event"]) == (None, "x")
    assert first.fingerprint == second.fingerprint


def test_a_recording_has_one_finding_with_the_act(build) -> None:
    """Nobody waits for it, so it waits."""
    pipeline = build("state.stale_read")
    pipeline.recorded()
    for each in (write("w", 0.0, state_version=2), read("r", 5.0, state_version=1)):
        pipeline.observe(each)
    assert not pipeline.advance(60.0).findings
    pipeline.observe(event("publish", "p", 60.0, source="b"))
    (one,) = pipeline.close(60.0).findings
    assert one.evidence["acted"]["event"] == "p"


@pytest.mark.parametrize("fields", [{"source": "c"}, {"workflow": "v"}, {"at": 4.0}])
def test_what_others_do_is_no_act(build, fields: dict[str, Any]) -> None:
    """Another agent, another workflow, or before the read."""
    act = {"kind": "handoff", "id": "h", "at": 6.0, "source": "b"} | fields
    (one,) = found(
        build("state.stale_read"), write("w", 0.0, state_version=2), read("r", 5.0, state_version=1), event(**act)
    )
    assert one.evidence["acted"] is None


def test_content_tells_where_there_are_no_versions(build) -> None:
    """The read shows what an earlier write wrote, and a later one replaced."""
    (one,) = found(
        build("state.stale_read"),
        write("w1", 0.0, digest="d1"),
        write("w2", 10.0, digest="d2"),
        write("w3", 12.0, digest="d3"),
        read("r", 20.0, digest="d1"),
    )
    assert (one.evidence["judged_by"], one.evidence["write_read"]) == ("content", "w1")
    assert (one.evidence["stale_seconds"], one.evidence["existed_seconds"]) == (10.0, 8.0)


@pytest.mark.parametrize(
    "writes",
    [
        (("d1", 0.0, 0), ("d2", 1.0, 0), ("d1", 5.0, 9_000)),
        (("d1", 0.0, 2_000), ("d2", 1.0, 100)),
        (("d2", 1.0, 0),),
        (("d1", 0.0, 0), (None, 1.0, 0)),
    ],
    ids=["written again, and still under way", "two at once", "never seen to be written", "by something unknown"],
)
def test_content_that_may_be_there_is_not_stale(build, writes: tuple[tuple[str | None, float, float], ...]) -> None:
    """Without versions only a write that came after, as a whole, replaces another."""
    made = [write(f"w{n}", at, digest=d, duration_ms=float(ms)) for n, (d, at, ms) in enumerate(writes)]
    assert not found(build("state.stale_read"), *made, read("r", 10.0, digest="d1"))


@pytest.mark.parametrize(("epochs", "stale"), [(("2.1", "1.9"), 1), (("2.1", "2.1"), 0), (("1.1", "2.1"), 0)])
def test_an_epoch_of_the_task_counts_whatever_the_time(build, epochs: tuple[str, str], stale: int) -> None:
    """Another key of the task, within the grace."""
    begun, seen = epochs
    events = write("w", 5.0, state_version=begun), read("r", 5.0, key="other", state_version=seen)
    assert len(found(build("state.stale_read", {"grace_seconds": 60}), *events)) == stale


@pytest.mark.parametrize(("refuse", "refused"), [("epoch", [True, False]), ("stale", [True, True])])
def test_enforced_the_reader_gets_no_old_epoch(build, refuse: str, refused: list[bool]) -> None:
    """Refused before the reply arrives, and told once; what is merely old is refused only where the rule says so."""
    pipeline = build("state.stale_read", {"refuse": refuse}, action="enforce")
    pipeline.observe(write("w1", 0.0, state_version="2.1"))
    pipeline.observe(write("w2", 0.0, key="l", state_version=7))
    asked = [
        read("r1", 9.0, state_version="1.4", outcome="asked"),
        read("r2", 9.0, key="l", state_version=3, outcome="asked"),
    ]
    decisions = [pipeline.observe(each) for each in asked]
    assert [decision.refusal is not None for decision in decisions] == refused
    pipeline.observe(read("r1", 9.0, state_version="1.4", outcome="rejected"))
    assert not [each for each in pipeline.close(9.0).findings if each.event == "r1"]


@pytest.mark.parametrize(
    ("versions", "increasing"),
    [
        ((1, 2), True),
        (("v9", "v10"), True),
        (("1700-3", "1700-12"), True),
        (("3.9", "3.10"), True),
        (("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"), True),
        ((2, 1), False),
    ],
)
def test_versions_are_ordered_as_people_count(versions: tuple[Any, Any], increasing: bool) -> None:
    """Numbers by size, epochs first, streams by time and place, instants by the calendar."""
    one, two = map(order_of, versions)
    assert one is not None
    assert two is not None
    assert (one < two) is increasing


def test_what_has_no_order_has_none() -> None:
    """An ETag can be equal and no more; a number alone is of no epoch."""
    assert order_of('W/"abc"') is None
    assert (epoch_of("7"), epoch_of(7), epoch_of("3.1"), epoch_of("e4/v2")) == (None, None, 3, 4)


def test_a_hundred_thousand_keys_are_bounded(build) -> None:
    """No more keys than the rule allows, whatever is read and written."""
    pipeline = build("state.stale_read", {"keys": 500, "lateness_seconds": 0})
    (watch,) = pipeline.watches
    for number in range(100_000):
        pipeline.observe(write(f"w{number}", number / 1000, key=f"k{number}", digest="d"))
        if number % 1000 == 0:
            pipeline.advance(number / 1000)
    assert len(watch.detector) == 500


def test_the_same_read_of_another_task_is_the_same_finding(build) -> None:
    """Ids of workflow and task inside a key make no new finding; another key does."""

    def stale(workflow: str, task: str, name: str) -> str:
        at = {"workflow": workflow, "task": task, "key": f"agents:{workflow}:{task}:{name}"}
        (one,) = found(
            build("state.stale_read"),
            write("w1", 0.0, state_version=1, **at),
            write("w2", 10.0, state_version=2, **at),
            read("r", 30.0, state_version=1, **at),
        )
        return one.fingerprint

    assert stale("w1", "t1", "output") == stale("w2", "t7", "output") != stale("w1", "t1", "meta")
