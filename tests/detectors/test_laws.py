"""The laws that every detector obeys, over every kind of rule there is."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from functools import cache
from typing import Any

import msgspec
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.detectors import Detector, Rule
from handrail.event import Event, Finding, to_json
from handrail.rules import KINDS
from handrail.schema.registry import Registry
from handrail.wire.body import REASONS

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"items": {"type": "string"}}},
    "additionalProperties": False,
}
PARAMS: dict[str, tuple[dict[str, Any], ...]] = {
    "schema.violation": ({}, {"violations": 1}),
    "schema.unknown": ({}, {"of": "subject"}, {"of": "subject", "even_if_empty": True, "again_seconds": 5}),
    "schema.mismatch": ({}, {"again_seconds": 5, "undecided": False}),
    "schema.drift": ({}, {"learn": 1, "window": 10, "false_alarm": 0.4}),
    "output.duplicate": ({}, {"within_seconds": 10}),
    "state.stale_read": ({}, {"grace_seconds": 3, "acts_seconds": 0}, {"refuse": "stale"}),
    "state.lost_update": ({}, {"within_seconds": 5}),
    "state.torn_read": ({}, {"within_seconds": 1, "together_seconds": 20}),
    "handoff.partial": ({}, {"seconds": 3, "until_read": False}),
    "handoff.early": ({}, {"within_seconds": 5, "lateness_seconds": 0}),
    "handoff.loop": (
        {},
        {"setting": "sensitive", "first_rounds": 0},
        {"edges": [{"source": "a", "at_most": 1}], "unseen_rounds": 1, "new_phrases": 0},
    ),
    "graph.cycle": ({}, {"undeclared": False}),
    "wait.deadlock": (
        {},
        {"confirm_seconds": 0, "unlabelled_confirm_seconds": 0, "lock_retry_seconds": 3},
        {"reentrant": ["a"], "queues": 1},
    ),
    "context.growth": ({}, {"window": 5, "over_hops": 2, "within_hops": 9}),
    "context.forwarded": ({"at_least_words": 1}, {"edges": [{"source": "a", "share": 1}]}),
    "context.lost": (
        {},
        {"decisions": "always", "constraints": "always", "artifacts": "always"},
        {"edges": [{"source": "a", "decisions": "never"}]},
    ),
    "budget.exceeded": (
        {},
        {"seconds": 3},
        {"declared": False, "edges": [{"source": "a*", "seconds": 1}]},
        {"agents": [{"agent": "b", "seconds": 5}], "workflow_seconds": 10},
    ),
    "agent.unavailable": ({}, {"silence_seconds": 5, "failures": 5}),
}
VARIANTS = [(kind, params, "observe") for kind in KINDS for params in PARAMS[kind]]
VARIANTS += [(kind, {}, "enforce") for kind in KINDS]


def over_every_detector(law: Callable[[str, dict[str, Any], str], None], but: Set[str] = frozenset()) -> None:
    """A law held to every variant of every kind, on one draw: drawing a stream costs more than observing it."""
    for kind, params, action in VARIANTS:
        if kind not in but:
            try:
                law(kind, params, action)
            except Exception as error:
                error.add_note(f"{kind} {params} {action}")
                raise


@cache
def registered() -> Registry:
    """Detectors only read it."""
    registry = Registry()
    assert registry.load({"s/1.json": orjson.dumps(SCHEMA), "s/2.json": b"true"}) == []
    return registry


def fresh(kind: str, params: dict[str, Any], action: str, keys: int = 1_000) -> Detector:
    detector = KINDS[kind]
    if "keys" in detector.Params.__struct_fields__:
        params = params | {"keys": keys}
    rule = Rule(id=kind, kind=kind, action=action)  # type: ignore[arg-type]
    return detector(rule, msgspec.convert(params, detector.Params), registered())


def test_every_kind_is_under_the_laws() -> None:
    """A new kind without parameters here fails, so that no detector escapes."""
    assert set(PARAMS) == set(KINDS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "/~"]), inner, max_size=3),
    max_leaves=8,
)
not_json = st.sampled_from([math.nan, {1: 2}, object(), "\ud800", {"a": {1, 2}}, b"bytes", [math.inf]])
some_name = st.none() | st.sampled_from(["a", "b", ""])
instants = st.integers(0, 40).map(float)
strange_instants = st.sampled_from([math.nan, math.inf, -math.inf, -1e300, 1e18, -62_135_596_800.0])


@st.composite
def events(draw: st.DrawFn, *, strange: bool = False) -> Event:
    """An event with few distinct names, so that keys meet; ids and keys of stores belong to one workflow."""
    workflow = draw(some_name)
    at = instants | strange_instants if strange else instants
    return Event(
        kind=draw(st.sampled_from(["handoff", "handoff", "write", "write", "publish", "deliver", "read", "wait"])),
        id=f"{workflow}-{draw(st.integers(0, 6))}",
        at=draw(at),
        workflow=workflow,
        task=draw(some_name),
        attempt=draw(st.none() | st.integers(1, 3)),
        source=draw(some_name),
        target=draw(some_name),
        outcome=draw(st.sampled_from(["asked", "completed", "completed", "accepted", "failed", "timeout", "unknown"])),
        subject=draw(st.sampled_from([None, "s", "s", "other"])),
        version=draw(st.sampled_from([None, "1", "1", "2", "3"])),
        payload=draw(json_values | not_json if strange else json_values),
        digest=draw(st.none() | st.sampled_from(["d1", "d2"])),
        duration_ms=draw(st.none() | st.integers(0, 20_000).map(float)),
        deadline=draw(st.none() | at),
        store=draw(st.none() | st.just("s")),
        key=draw(st.none() | st.sampled_from(["k", "l"]).map(lambda key: f"{workflow}-{key}")),
        state_version=draw(st.none() | st.sampled_from([1, 2, 3, "1.2", "2.1", "etag"])),
        status=draw(st.none() | st.sampled_from(["missing", 200])),
        uninspected=draw(st.none() | st.none() | st.sampled_from(sorted(REASONS))),
        reads=draw(st.sampled_from([None, "s@1", "s@2, s@1", "2", "@,"])),
    )


streams = st.lists(events(), max_size=10)


def run(detector: Detector, stream: Iterable[Event], *, ticking: bool = True, until: float = 1e6) -> list[Finding]:
    """Everything that a detector finds in a stream; time moves on with the events and never back."""
    found: list[Finding] = []
    now = -math.inf
    for event in stream:
        now = max(now, event.at)
        if ticking:
            found += detector.advance(now)
        found += detector.observe(event)
    found += detector.advance(until)
    return found


@given(stream=streams)
@settings(max_examples=60, deadline=None)
def test_same_events_give_same_findings(stream: list[Event]) -> None:
    """Two fresh detectors that see one stream say the same, to the last byte."""

    def law(kind: str, params: dict[str, Any], action: str) -> None:
        once, again = (run(fresh(kind, params, action), stream) for _ in range(2))
        assert [to_json(found) for found in once] == [to_json(found) for found in again]

    over_every_detector(law)


@given(stream=st.lists(events(strange=True), max_size=10))
@settings(max_examples=100, deadline=None)
def test_no_event_raises(stream: list[Event]) -> None:
    """Whatever an event holds, a detector finds something or nothing, and a finding can be written down."""

    def law(kind: str, params: dict[str, Any], action: str) -> None:
        for found in run(fresh(kind, params, action), stream):
            orjson.dumps(msgspec.structs.asdict(found))

    over_every_detector(law)


@given(stream=streams, keys=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_memory_is_bounded(stream: list[Event], keys: int) -> None:
    """A detector never holds more keys than it may."""

    def law(kind: str, params: dict[str, Any], action: str) -> None:
        detector = fresh(kind, params, action, keys)
        for event in stream:
            detector.observe(event)
            assert len(detector) <= keys

    over_every_detector(law)


@given(stream=streams, now=instants)
@settings(max_examples=60, deadline=None)
def test_advance_twice_changes_nothing(stream: list[Event], now: float) -> None:
    """The second `advance` at an instant finds nothing, and leaves the detector as it was."""

    def law(kind: str, params: dict[str, Any], action: str) -> None:
        once, twice = fresh(kind, params, action), fresh(kind, params, action)
        for event in stream:
            assert list(once.observe(event)) == list(twice.observe(event))
            assert list(once.advance(now)) == list(twice.advance(now))
            assert list(twice.advance(now)) == []
        assert list(once.advance(1e6)) == list(twice.advance(1e6))

    over_every_detector(law)


@given(stream=streams)
@settings(max_examples=60, deadline=None)
def test_evidence_names_only_events_that_were_seen(stream: list[Event]) -> None:
    """No finding names an id that was not observed before it."""

    def law(kind: str, params: dict[str, Any], action: str) -> None:
        detector, seen = fresh(kind, params, action), set()
        for event in stream:
            seen.add(event.id)
            for found in (*detector.observe(event), *detector.advance(event.at)):
                assert found.events
                assert set(found.events) <= seen
                assert found.event is None or found.event in found.events
        for found in detector.advance(1e6):
            assert set(found.events) <= seen

    over_every_detector(law)


ACROSS_WORKFLOWS = {"schema.drift", "agent.unavailable"}
"""What an agent used to send is known from all of its workflows, and a change is told once, not once in each; whether
an agent is there does not hang on the workflow that asks."""


@given(stream=streams)
@settings(max_examples=60, deadline=None)
def test_workflows_do_not_touch_each_other(stream: list[Event]) -> None:
    """What is found in a workflow is what is found when it runs alone, within the bound on keys."""

    def law(kind: str, params: dict[str, Any], action: str) -> None:
        together = run(fresh(kind, params, action), stream, ticking=False)
        for workflow in {event.workflow for event in stream}:
            own = [event for event in stream if event.workflow == workflow]
            alone = run(fresh(kind, params, action), own, ticking=False)
            assert [found for found in together if found.workflow == workflow] == alone

    over_every_detector(law, but=ACROSS_WORKFLOWS)


def stories(found: Sequence[Finding]) -> Counter[tuple[str | None, ...]]:
    """Findings as what they say, without the order in which they were found."""
    return Counter(
        (each.workflow, each.task, each.source, each.target, each.event, *each.events, each.message) for each in found
    )


@given(stream=streams, repeats=st.integers(1, 3), data=st.data())
@settings(max_examples=50, deadline=None)
def test_an_event_delivered_again_is_not_a_duplicate(stream: list[Event], repeats: int, data: st.DataObject) -> None:
    """output.duplicate counts outputs, not deliveries: repeating events by id adds no finding."""
    unique = list({event.id: event for event in stream if event.outcome != "asked"}.values())
    again = [event for event in unique for _ in range(repeats)]
    plain, repeated = (run(fresh("output.duplicate", {}, "observe"), each) for each in (unique, again))
    assert stories(plain) == stories(repeated)


@given(first=events(), second=events())
@settings(max_examples=300, deadline=None)
def test_two_outputs_give_the_same_finding_in_either_order(first: Event, second: Event) -> None:
    """Which of two outputs is the repeat goes by their time, not by which arrived first."""
    same = {"workflow": "w", "task": "t", "kind": "handoff"}
    one = first.but(id="one", source=second.source, target=second.target, **same)
    two = second.but(id="two", **same)
    forward, backward = (
        run(fresh("output.duplicate", {"within_seconds": 10}, "observe"), order) for order in ([one, two], [two, one])
    )
    assert stories(forward) == stories(backward)
