"""wait.deadlock: rings and knots of waits, from every mechanism, and what only looks like one."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.dialects import Reader
from handrail.dialects.http import Http
from handrail.event import Event, Finding
from handrail.pipeline import Inspector, Pipeline, replay_events

_ids = itertools.count()


def seen(kind: str, at: float, source: str | None, target: str | None = None, **fields: Any) -> Event:
    """An event of workflow w with an id of its own."""
    known: dict[str, Any] = {"id": f"n{next(_ids)}", "workflow": "w"} | fields
    return Event(kind=kind, at=at, source=source, target=target, **known)  # type: ignore[arg-type]


def asked(at: float, source: str, target: str, **fields: Any) -> Event:
    return seen("handoff", at, source, target, outcome="asked", **fields)


def over(event: Event, after: float, outcome: str = "completed") -> Event:
    """The final sight of a call."""
    return event.but(outcome=outcome, duration_ms=after * 1000)


def found_in(pipeline: Pipeline, *events: Event, until: float = 60.0) -> list[Finding]:
    """What is found when events come in this order and time goes on with them."""
    found: list[Finding] = []
    opened: set[str] = set()
    now = float("-inf")
    for event in events:
        now = max(now, event.at + (event.duration_ms or 0) / 1000 * (event.id in opened))
        opened.add(event.id)
        found += pipeline.advance(now).findings
        decision = pipeline.observe(event)
        assert not decision.faults
        found += decision.findings
    return [*found, *pipeline.advance(until).findings]


RING = (("a", "b"), ("b", "c"), ("c", "a"))


def ring(start: float = 0.0) -> list[Event]:
    return [asked(start + at, *pair, task=f"t{at}") for at, pair in enumerate(RING)]


def test_a_ring_of_calls_is_named_agent_by_agent(build) -> None:
    """What each holds and waits for, since when, how, and which wait is cheapest to break."""
    events = ring()
    (found,) = found_in(build("wait.deadlock"), *events)
    assert (found.at, found.side, found.event) == (2.0, "graph", events[2].id)
    assert found.events == tuple(event.id for event in events)
    evidence = found.evidence
    assert evidence["cycle"] == ["a", "b", "c"]
    assert evidence["waits"][0] == {
        "from": "a",
        "to": "b",
        "via": "call",
        "since": "1970-01-01T00:00:00.000000Z",
        "task": "t0",
        "holds": ["task t2 of c"],
    }
    assert (evidence["break"]["from"], evidence["break"]["to"]) == ("c", "a")
    assert found.message.startswith("a, b and c wait for each other and none can go on: a for b (open call, 2 s), ")


def test_it_is_told_once_and_at_once(build) -> None:
    """Half a second after the ring closed, not when a call times out, and not again."""
    pipeline = build("wait.deadlock")
    for event in ring():
        pipeline.observe(event)
    assert not pipeline.advance(2.5).findings
    assert len(pipeline.advance(2.501).findings) == 1
    assert not pipeline.advance(100).findings
    assert not found_in(pipeline, asked(3, "d", "a"))


@pytest.mark.parametrize("outcome", ["completed", "failed", "timeout", "interrupted"])
def test_a_ring_that_resolves_itself_in_time_is_none(build, outcome: str) -> None:
    """One call ends within the confirmation, however it ends; memory is free when all are over."""
    pipeline = build("wait.deadlock")
    events = ring()
    ends = [over(events[2], 0.3, outcome), over(events[1], 1.5), over(events[0], 2.6)]
    assert not found_in(pipeline, *events, *ends)
    assert len(pipeline.watches[0].detector) == 0


def test_a_ring_that_never_closed_is_none(build) -> None:
    """The first call was over before the last began."""
    first, second, third = ring()
    assert not found_in(build("wait.deadlock"), first, second, over(first, 1.5), third)


def test_calls_there_and_back_one_after_another_are_none(build) -> None:
    """What most workflows do, and calls to several at once."""
    events: list[Event] = []
    for at in range(5):
        call = asked(at, "a", "b")
        back = asked(at + 0.6, "b", "a")
        events += [call, over(call, 0.55), back, over(back, 0.3)]
    assert not found_in(build("wait.deadlock"), *events, asked(9, "a", "b"), asked(9, "a", "c"), asked(9, "b", "c"))


def test_a_member_that_acts_is_not_blocked(build) -> None:
    """c answers d within the confirmation: then it can answer others too, until it is silent for as long again."""
    events = ring()
    acting = seen("handoff", 2.2, "c", "d", outcome="completed", duration_ms=1.0)
    pipeline = build("wait.deadlock")
    for event in (*events, acting):
        pipeline.observe(event)
    assert not pipeline.advance(2.65).findings
    assert len(pipeline.advance(2.75).findings) == 1


def test_agents_that_answer_while_they_wait_can_be_named(build) -> None:
    """Their open calls hold up nobody."""
    assert not found_in(build("wait.deadlock", {"reentrant": ["a*"]}), *ring())


def test_streams_stay_open_without_anybody_waiting(build) -> None:
    """A subscription is no wait."""
    events = [asked(0, "a", "b", operation="GET /events"), asked(1, "b", "a")]
    assert not found_in(build("wait.deadlock"), *events)


def test_a_recording_of_final_events_gives_what_the_live_system_gave(build) -> None:
    """Three calls that timed out after 30 s, one line each; one of which was over before the others met gives none."""
    calls = [over(event, 30.0, "timeout") for event in ring()]
    (live,) = found_in(build("wait.deadlock"), *ring())
    (recorded,) = found_in(build("wait.deadlock"), *calls)
    assert (recorded.at, recorded.evidence["cycle"]) == (live.at, live.evidence["cycle"])
    short = [over(event, lasts) for event, lasts in zip(ring(), (1.9, 30.0, 30.0), strict=True)]
    assert not found_in(build("wait.deadlock"), *short)


def test_declared_waits_end_with_what_they_name(build) -> None:
    """A resume of another task or target leaves the wait; one of the source alone ends it."""

    def waits(*resumes: Event) -> int:
        return len(
            found_in(
                build("wait.deadlock"),
                seen("wait", 0, "a", "b", task="t"),
                *resumes,
                seen("wait", 2, "b", "a", task="t"),
            )
        )

    assert waits() == 1
    assert waits(seen("resume", 1, "a", task="other")) == 1
    assert waits(seen("resume", 1, "a", "c")) == 1
    assert waits(seen("resume", 1, "c")) == 1
    assert waits(seen("resume", 1, "a")) == 0
    assert waits(seen("resume", 1, "a", "b", task="t")) == 0
    assert waits(seen("resume", 1, "b", "a")) == 0  # as the one who lets go says it


@pytest.mark.parametrize(
    "first",
    [
        [seen("wait", 0, "a", payload={"for": ["b", "c"], "join": "any"})],
        [seen("wait", 0, "a", payload={"any_of": ["b", "c"]})],
        [seen("wait", 0, "a", "b", payload={"join": "any"}), seen("wait", 0, "a", "c", payload={"join": "any"})],
        [seen("wait", 0, "a", "b", operation="any"), seen("wait", 0, "a", "c", operation="any")],
    ],
)
def test_any_of_several_needs_a_knot(build, first: list[Event]) -> None:
    """However it is said: with one of them free nothing is stuck, with none all are."""
    circle = [*first, seen("wait", 1, "b", "a")]
    assert not found_in(build("wait.deadlock"), *circle)
    (found,) = found_in(build("wait.deadlock"), *circle, seen("wait", 2, "c", "a"))
    assert found.evidence["knot"] == ["a", "b", "c"]
    assert found.evidence["waits"][0]["any_of"] == ["b", "c"]


def test_all_of_several_needs_only_one_cycle(build) -> None:
    """The default, and `join: all`."""
    for payload in ({"for": ["b", "c"]}, {"all_of": ["b", "c"]}, {"for": ["b", "c"], "join": "all"}):
        events = [seen("wait", 0, "a", payload=payload), seen("wait", 1, "b", "a")]
        assert len(found_in(build("wait.deadlock"), *events)) == 1


def test_news_that_is_late_is_no_deadlock(build) -> None:
    """The end of a wait is seen after the ring seemed closed, or before the wait itself is seen."""
    a, b = seen("wait", 0, "a", "b"), seen("wait", 2, "b", "a")
    ended = seen("resume", 1.5, "a")
    for order in itertools.permutations([a, b, ended]):
        pipeline = build("wait.deadlock")
        for event in order:
            assert not pipeline.observe(event).findings
        assert not pipeline.advance(60).findings


def queue(
    kind: str, at: float, source: str, key: str, operation: str, outcome: str = "completed", **more: Any
) -> Event:
    fields = {"store": "s", "key": key, "channel": "store", "protocol": "redis"} | more
    return seen(kind, at, source, operation=operation, outcome=outcome, **fields)


@pytest.mark.parametrize("workflow", ["w", None])
def test_two_queues_that_wait_for_each_other(build, workflow: str | None) -> None:
    """Whoever writes to a queue is learned; a reader waits for any of them."""
    events = [
        queue("write", 0, "a", "to-b", "RPUSH", workflow=workflow),
        queue("write", 1, "b", "to-a", "RPUSH", workflow=workflow),
        queue("read", 2, "a", "to-a", "BLPOP", "asked", workflow=workflow),
        queue("read", 3, "b", "to-b", "BLPOP", "asked", workflow=workflow),
    ]
    (found,) = found_in(build("wait.deadlock"), *events)
    assert found.workflow == workflow
    assert [wait["via"] for wait in found.evidence["waits"]] == ["queue", "queue"]
    assert (found.evidence["waits"][0]["store"], found.evidence["waits"][0]["key"]) == ("s", "to-a")
    third = queue("write", 1, "c", "to-b", "RPUSH", workflow=workflow)
    assert not found_in(build("wait.deadlock"), third, *events)
    late = queue("write", 3.2, "c", "to-b", "RPUSH", workflow=workflow)
    assert not found_in(build("wait.deadlock"), *events, late)


def test_a_consumer_in_the_background_is_not_blocked(build) -> None:
    """An orchestrator that sends work while it reads results: idle, both read, and nobody is stuck."""
    events: list[Event] = []
    for at in range(0, 20, 10):
        results = queue("read", at, "boss", "results", "BLPOP", "asked")
        work = queue("read", at, "worker", "work", "BLPOP", "asked")
        events += [
            results,
            work,
            queue("write", at + 0.1, "boss", "work", "RPUSH"),
            over(work, 0.1),
            queue("write", at + 0.2, "worker", "results", "RPUSH"),
            over(results, 0.2),
        ]
    events += [queue("read", 30, who, key, "BLPOP", "asked") for who, key in (("boss", "results"), ("worker", "work"))]
    assert not found_in(build("wait.deadlock"), *events)


def test_a_ring_over_a_call_and_a_queue(build) -> None:
    """The queue's read names no workflow: it belongs to that in which its reader owes an answer."""
    events = [
        queue("write", 0, "a", "work", "RPUSH", workflow=None),
        asked(1, "a", "b", task="t"),
        queue("read", 2, "b", "work", "BLPOP", "asked", workflow=None),
    ]
    (found,) = found_in(build("wait.deadlock"), *events)
    assert (found.workflow, [wait["via"] for wait in found.evidence["waits"]]) == ("w", ["call", "queue"])
    assert len(found_in(build("wait.deadlock"), events[0], events[2], events[1])) == 1  # the call is seen last
    idle = [events[0], queue("read", 0.5, "b", "work", "BLPOP", "asked", workflow=None), events[1]]
    assert not found_in(build("wait.deadlock"), *idle)


def lock(at: float, source: str, key: str, outcome: str = "completed", operation: str = "SET NX") -> Event:
    return queue("write", at, source, key, operation, outcome)


def test_two_locks_in_the_other_order(build) -> None:
    """The finding names what each holds; a release, another task or giving up in time ends it."""
    events = [lock(0, "a", "l1"), lock(1, "b", "l2"), lock(2, "a", "l2", "rejected"), lock(3, "b", "l1", "rejected")]
    (found,) = found_in(build("wait.deadlock"), *events)
    assert [wait["holds"] for wait in found.evidence["waits"]] == [["lock s/l1"], ["lock s/l2"]]
    assert not found_in(build("wait.deadlock"), *events[:3], lock(2.5, "b", "l2", operation="DEL"), events[3])
    assert not found_in(build("wait.deadlock"), *events[:3], asked(2.5, "a", "x"), events[3])
    again = [lock(2 + at, "a", "l2", "rejected") for at in range(1, 40, 5)]
    assert len(found_in(build("wait.deadlock"), *events[:3], *again, lock(40, "b", "l1", "rejected"))) == 1
    assert not found_in(build("wait.deadlock"), *events[:3], lock(20, "b", "l1", "rejected"))


def test_a_task_that_asks_for_input_waits_for_its_caller(build) -> None:
    """Until the caller speaks to it again."""
    asking = seen("handoff", 0, "a", "b", task="t", protocol="a2a", outcome="interrupted", status=200, duration_ms=50.0)
    waits = seen("wait", 1, "a", "b")
    (found,) = found_in(build("wait.deadlock"), asking, waits)
    assert {wait["via"] for wait in found.evidence["waits"]} == {"input", "wait"}
    answer = seen("resume", 0.5, "a", "b", task="t", protocol="a2a", outcome="completed", duration_ms=10.0)
    assert not found_in(build("wait.deadlock"), asking, answer, waits)


def test_calls_that_nothing_groups_must_stand_longer(build) -> None:
    """Two calls in opposite directions without workflow and task may be two customers'."""
    pair = [asked(0, "a", "b", workflow=None), asked(0, "b", "a", workflow=None)]
    pipeline = build("wait.deadlock")
    for event in pair:
        pipeline.observe(event)
    assert not pipeline.advance(4.9).findings
    assert len(pipeline.advance(5.1).findings) == 1
    tasks = [asked(0, "a", "b", workflow=None, task="1"), asked(0, "b", "a", workflow=None, task="2")]
    assert not found_in(build("wait.deadlock"), *tasks)


def test_a_retry_that_closes_the_ring_again_is_told_again(build) -> None:
    """It is a new deadlock: somebody acted in between."""
    events = ring()
    gave_up = over(events[2], 10.0, "timeout")
    assert len(found_in(build("wait.deadlock"), *events, gave_up, asked(13, "c", "a"))) == 2


def test_enforced_the_call_that_closes_the_ring_is_refused(build) -> None:
    """At once, because afterwards is too late."""
    pipeline = build("wait.deadlock", action="enforce")
    first, second, third = ring()
    assert pipeline.observe(first).refusal is None
    assert pipeline.observe(second).refusal is None
    refusal = pipeline.observe(third).refusal
    assert refusal is not None
    assert refusal.status == 508


def test_a_recording_that_ends_in_a_deadlock_tells_it(build) -> None:
    """No later event confirms it: that nothing more was seen does."""
    pipeline = build("wait.deadlock")
    inspector = Inspector(Reader([], Http()), pipeline)
    assert not [each for decision in replay_events(ring(), inspector) for each in decision.findings]
    assert len(pipeline.settle().findings) == 1
    assert not pipeline.settle().findings


@given(seed=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_arrival_does_not_matter(build, seed: Any) -> None:
    """Within the confirmation: the same waits and ends in any order give the same rings."""
    agents = "abcd"
    events: list[Event] = []
    for number in range(8):
        source, target = seed.sample(agents, 2)
        begun = number * 0.01
        wait = seen("wait", begun, source, target, id=f"w{number}", task=f"t{number}")
        events.append(wait)
        if seed.random() < 0.5:
            events.append(seen("resume", begun + 0.2, source, target, task=f"t{number}", id=f"r{number}"))
    shuffled = seed.sample(events, len(events))
    results = []
    for order in (sorted(events, key=lambda event: event.at), shuffled):
        pipeline = build("wait.deadlock")
        found = [each for event in order for each in pipeline.observe(event).findings]
        found += pipeline.advance(60).findings
        results.append(sorted((each.at, tuple(sorted(each.evidence["knot"]))) for each in found))
    assert results[0] == results[1]
