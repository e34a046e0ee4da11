"""schema.drift: a payload whose shape is not what its schema declares, or not what its sender used to send."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.detectors.drift import Measure, bin_of, ks_distance, ks_limit, value_of
from handrail.event import Event, Finding
from handrail.pipeline import Pipeline

STATUSES = ("completed", "partial", "failed")
SCHEMA = {
    "type": "object",
    "required": ["task_id"],
    "properties": {
        "task_id": {"type": "string"},
        "status": {"type": "string"},
        "output": {"$ref": "#/$defs/output"},
        "metadata": {"type": "object"},
        "parts": {
            "items": {
                "oneOf": [
                    {"properties": {"kind": {"const": "text"}, "text": {"type": "string"}}, "required": ["kind"]},
                    {"properties": {"kind": {"const": "data"}, "data": {"type": "object"}}, "required": ["kind"]},
                ]
            }
        },
    },
    "$defs": {
        "output": {
            "allOf": [{"properties": {"summary": {"type": "string"}}}],
            "properties": {"confidence": {}, "due": {"type": "string", "format": "date-time"}},
        }
    },
}


def payload(index: int, seed: int = 0) -> dict[str, Any]:
    """One of a stable stream: words, numbers and optional fields vary, the shape does not."""
    chance = random.Random(f"{seed}-{index}")
    value: dict[str, Any] = {
        "task_id": f"t{index}",
        "status": chance.choice(STATUSES),
        "output": {
            "summary": "word " * chance.randint(3, 30),
            "confidence": round(chance.random(), 3),
            "due": f"2026-01-01T00:{index % 60:02d}:00Z",
        },
        "metadata": {"tokens": chance.randint(10, 4000), "model": "large-2"},
        "parts": [{"kind": "text", "text": "a b"}, {"kind": "data", "data": {"n": index}}][: chance.randint(1, 2)],
    }
    if chance.random() < 0.4:
        value["note"] = "now and then"
    return value


def known(index: int) -> dict[str, Any]:
    """As `payload`, with nothing that the schema does not name."""
    value = payload(index)
    value.pop("note", None)
    return value


def handoff(index: int, value: Any, **fields: Any) -> Event:
    said: dict[str, Any] = {"kind": "handoff", "source": "writer", "target": "reviewer", "outcome": "completed"}
    return Event(id=f"e{index}", at=float(index), payload=value, **said | fields)


def observed(pipeline: Pipeline, events: Iterable[Event]) -> list[Finding]:
    found: list[Finding] = []
    for event in events:
        decision = pipeline.observe(event)
        assert not decision.faults, decision.faults
        found += decision.findings
    return found


def told(found: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(each.evidence["path"], each.evidence["change"]) for each in found]


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return change


CHANGES = [
    (_set("reasoning_trace", to=["because"]), "/reasoning_trace", "added"),
    (_set("output", "raw", to="x"), "/output/raw", "added"),
    (_set("metadata", "trace", to={"a": 1}), "/metadata/trace", "added"),
    (_set("parts", 0, "lang", to="en"), "/parts/*/lang", "added"),
    (_set("output", "confidence", to=None), "/output/confidence", "nullability"),
    (_set("output", "confidence", to="high"), "/output/confidence", "type"),
    (_set("metadata", "tokens", to=0.5), "/metadata/tokens", "type"),
    (_set("metadata", "tokens", to=[1]), "/metadata/tokens", "type"),
    (_set("status", to="escalated"), "/status", "enumeration"),
    (_set("output", "due", to="1767225600"), "/output/due", "format"),
]


@pytest.mark.parametrize("with_schema", [True, False], ids=["registered", "own past"])
@pytest.mark.parametrize(("change", "path", "name"), CHANGES, ids=[f"{path} {name}" for _, path, name in CHANGES])
def test_a_change_is_told_on_its_first_payload_and_never_again(
    build: Any, change: Any, path: str, name: str, with_schema: bool
) -> None:
    """After forty like payloads, one that differs in one place, which its schema allows: one finding, with its path."""
    pipeline = build("schema.drift", schemas={"writer.reviewer": {"1": SCHEMA}} if with_schema else None)
    assert observed(pipeline, (handoff(index, known(index), agent_version="1.0") for index in range(40))) == []
    changed = []
    for index in range(40, 60):
        value = known(index)
        change(value)
        changed.append(handoff(index, value, agent_version="2.0"))
    (found,) = observed(pipeline, changed)
    assert (found.event, found.evidence["path"], found.evidence["change"]) == ("e40", path, name)
    assert (found.side, found.source, found.subject) == ("sender", "writer", "writer.reviewer")
    assert found.evidence["agent_version"] == "2.0"
    assert found.evidence["agent_version_before"] == "1.0"
    assert found.evidence["payloads"] == 41
    assert found.evidence["since"] == "1970-01-01T00:00:40.000000Z"


@pytest.mark.parametrize("before", [20, 40])
def test_a_declared_field_that_stays_away_is_told_on_the_first_payload_without_it(build: Any, before: int) -> None:
    """Once, whether it stays away or comes back; not where it was missing before, nor where the past is short."""
    schema = {"type": "object", "properties": {"task_id": {"type": "string"}, "note": {"type": "string"}}}
    schemas = {"writer.reviewer": {"1": schema}}

    def sent(gaps: set[int], count: int) -> list[Event]:
        values = ({"task_id": "t" * 200} | ({} if index in gaps else {"note": "a b"}) for index in range(count))
        return [handoff(index, value) for index, value in enumerate(values)]

    for gaps in (set(range(before, 200)), {before}):
        (found,) = observed(build("schema.drift", schemas=schemas), sent(gaps, 200))
        assert (found.event, *told([found])) == (f"e{before}", ("/note", "removed"))
        assert (found.evidence["old"], found.evidence["against"], found.side) == ("100%", "past", "sender")
    assert observed(build("schema.drift", schemas=schemas), sent({3, before}, 60)) == []
    assert observed(build("schema.drift", schemas=schemas), sent({15}, 18)) == []


def test_a_field_that_the_schema_does_not_name_is_news_at_once(build: Any) -> None:
    """The very first payload is enough, at any depth, through references, in arrays and in the wrong branch."""
    pipeline = build("schema.drift", schemas={"writer.reviewer": {"1": SCHEMA}})
    value = known(0) | {"extra": 1}
    value["output"]["deep"] = {"not": "told beside its parent"}
    value["parts"] = [{"kind": "text", "data": {}}]
    found = observed(pipeline, [handoff(0, value)])
    assert told(found) == [("/output/deep", "added"), ("/parts/*/data", "added"), ("/extra", "added")]
    assert {each.evidence["against"] for each in found} == {"schema"}


@pytest.mark.parametrize("seed", range(6))
def test_a_stable_stream_is_silent(build: Any, seed: int) -> None:
    """Nothing is told of 1,500 payloads of one shape, however their values and optional fields vary."""
    pipeline = build("schema.drift")
    assert observed(pipeline, (handoff(index, payload(index, seed)) for index in range(1_500))) == []


@pytest.mark.parametrize("before", [12, 40, 400])
@pytest.mark.parametrize(
    ("drop", "path"),
    [
        (lambda value: value["output"].pop("summary"), "/output/summary"),
        (lambda value: [part.pop("kind") for part in value["parts"]], "/parts/*/kind"),
        (lambda value: value.pop("output"), "/output"),
    ],
)
def test_a_field_that_stopped_coming_is_told_after_few_payloads(build: Any, drop: Any, path: str, before: int) -> None:
    """Of a field that was always there, three to eight absences say it, the fewer the more is known; once."""
    pipeline = build("schema.drift")
    observed(pipeline, (handoff(index, known(index)) for index in range(before)))
    changed = []
    for index in range(before, before + 45):
        value = known(index)
        drop(value)
        changed.append(handoff(index, value))
    (found,) = [each for each in observed(pipeline, changed) if each.evidence["change"] == "removed"]
    assert found.evidence["path"] == path
    assert 3 <= found.evidence["seen"] <= 8
    assert found.event == f"e{before + found.evidence['seen'] - 1}" or before < 20


def test_one_absence_is_no_change(build: Any) -> None:
    """A field that is missing now and then did not stop coming."""
    pipeline = build("schema.drift")
    events = []
    for index in range(300):
        value = known(index)
        if index % 10 == 9:
            del value["metadata"]
        events.append(handoff(index, value))
    assert told(observed(pipeline, events)) == []


def test_keys_of_a_map_are_no_fields(build: Any) -> None:
    """Maps keyed by ids are silent from the start, maps keyed by words once they are known for maps."""
    pipeline = build("schema.drift")
    words = [f"{a}{b}" for a in ("red", "blue", "green", "old", "new") for b in ("fox", "dog", "owl", "elk", "ant")]
    chance = random.Random(7)
    events = [
        handoff(
            index,
            {
                "by_id": {f"task-{index}": {"ok": True}, str(index): {"ok": False}},
                "by_word": dict.fromkeys(chance.sample(words, 3), index),
            },
        )
        for index in range(200)
    ]
    assert told(observed(pipeline, events)) == []


def test_many_new_names_at_once_are_one_finding(build: Any) -> None:
    """An object that the schema describes and that is used as a map is told as one place, once."""
    pipeline = build("schema.drift", schemas={"writer.reviewer": {"1": {"properties": {"a": {}}}}})
    names = [f"{first}{second}" for first in "abcdefgh" for second in "xyz"]
    found = observed(
        pipeline,
        [handoff(index, {"a": 1, **{f"{name}{'abc'[index % 3]}": 1 for name in names}}) for index in range(12)],
    )
    assert told(found) == [("/*", "added")]


def test_what_comes_and_goes_is_told_a_few_times_at_most(build: Any) -> None:
    """Two releases that take turns do not make a finding each time."""
    pipeline = build("schema.drift")
    events = []
    for index in range(2_000):
        value = known(index)
        if index // 50 % 2:
            value["metadata"]["tokens"] = str(value["metadata"]["tokens"])
            del value["output"]["confidence"]
            value["status"] = "other"
        events.append(handoff(index, value))
    found = told(observed(pipeline, events))
    assert all(found.count(each) <= 3 for each in found)
    assert {("/metadata/tokens", "type"), ("/output/confidence", "removed"), ("/status", "enumeration")} <= set(found)


def test_numbers_rates_and_sizes_that_move(build: Any) -> None:
    """A median ten times what it was, a field that is always there now, payloads that grew; the test is named."""
    pipeline = build("schema.drift")
    events = [handoff(index, payload(index), payload_bytes=1_000 + index % 90) for index in range(300)]
    for index in range(300, 600):
        value = payload(index)
        value["metadata"]["tokens"] *= 10
        value["note"] = "now and then"
        events.append(handoff(index, value, payload_bytes=5_000 + index % 90))
    found = observed(pipeline, events)
    assert sorted(told(found)) == [("", "size"), ("/metadata/tokens", "distribution"), ("/note", "presence")]
    numbers = next(each.evidence for each in found if each.evidence["change"] == "distribution")
    assert numbers["test"] == "two-sample Kolmogorov-Smirnov"
    assert numbers["distance"] > numbers["limit"]
    assert numbers["new"]["p50"] > 3 * numbers["old"]["p50"]


@pytest.mark.parametrize(("before", "absences"), [(30, 4), (97, 4), (98, 3), (400, 3)])
def test_a_field_that_was_always_there_is_missed_soon(build: Any, before: int, absences: int) -> None:
    """Of all payloads so far, not of those alone that were counted place by place."""
    pipeline = build("schema.drift")
    values = [{**known(index), "gist": "in a few words"} for index in range(before)]
    values += [known(index) for index in range(before, before + 10)]
    (found,) = observed(pipeline, (handoff(index, value) for index, value in enumerate(values)))
    assert told([found]) == [("/gist", "removed")]
    assert found.event == f"e{before + absences - 1}"


def test_numbers_of_any_length_are_measured(build: Any) -> None:
    """Integers longer than any float are numbers like others, and none is a fault."""
    pipeline = build("schema.drift")
    values = [10**400 + index if index % 3 else -(10**500) for index in range(120)]
    assert observed(pipeline, (handoff(index, {"n": value}) for index, value in enumerate(values))) == []
    assert bin_of(10**400) == bin_of(1e300)
    assert bin_of(-(10**400)) == -bin_of(10**400)


def test_items_of_an_array_that_differ_do_not_drift(build: Any) -> None:
    """Each payload has four items and only one of them has the field: a quarter of the items, and every payload."""
    items = [{"name": "a", "x": 1}, {"name": "b", "y": 2}, {"name": "c", "z": 3}, {"name": "d"}]
    assert observed(build("schema.drift"), [handoff(index, {"items": items}) for index in range(200)]) == []


def test_counters_and_clocks_do_not_drift(build: Any) -> None:
    """A number that goes up with each payload moves, and that is what it is for."""
    pipeline = build("schema.drift")
    events = [handoff(index, {"sequence": index, "at": 1.7e9 + index * 3.5}) for index in range(500)]
    assert told(observed(pipeline, events)) == []


def test_replies_are_payloads_too(build: Any) -> None:
    """What the target answers has a past of its own, and its changes are the receiver's."""
    pipeline = build("schema.drift")
    replies = [{"ok": True, "n": index} for index in range(40)] + [{"ok": True, "n": 1, "warnings": []}]
    found = observed(pipeline, [handoff(index, {"a": 1}, reply=reply) for index, reply in enumerate(replies)])
    (only,) = found
    assert (only.evidence["path"], only.evidence["part"], only.side) == ("/warnings", "reply", "receiver")
    errors = [handoff(100 + index, {"a": 1}, reply={"error": "x"}, outcome="failed") for index in range(5)]
    assert observed(pipeline, errors) == []


def test_a_call_that_is_seen_twice_counts_once(build: Any) -> None:
    """Asked and answered is one payload; the reply is seen with the answer."""
    pipeline = build("schema.drift", schemas={"writer.reviewer": {"1": {"properties": {"a": {}}}}})
    asked, done = handoff(0, {"a": 1, "b": 2}, outcome="asked"), handoff(0, {"a": 1, "b": 2})
    assert told(pipeline.observe(asked).findings) == [("/b", "added")]
    assert pipeline.observe(done).findings == ()


def test_a_new_version_begins_a_new_past(build: Any) -> None:
    """What a person registers is not drift; the version that is not registered shares the past of its sender."""
    two = {"properties": {**SCHEMA["properties"], "plan": {"type": "array"}}, "$defs": SCHEMA["$defs"]}
    pipeline = build("schema.drift", schemas={"report": {"1": SCHEMA, "2": two}})
    first = [handoff(index, known(index), subject="report", version="1") for index in range(40)]
    second = [handoff(40 + index, known(index) | {"plan": []}, subject="report", version="2") for index in range(40)]
    assert observed(pipeline, first + second) == []


def test_what_the_schema_declares_may_begin_at_any_time(build: Any) -> None:
    """An optional field that was never sent, and a map that is declared as one, are no news."""
    schema = {
        "properties": {
            "a": {},
            "later": {"properties": {"x": {}}},
            "map": {"additionalProperties": {"type": "integer"}},
        },
        "patternProperties": {"^x-": {"type": "string"}},
    }
    pipeline = build("schema.drift", schemas={"writer.reviewer": {"1": schema}})
    events = [handoff(index, {"a": 1}) for index in range(50)]
    events += [handoff(50, {"a": 1, "later": {"x": 1}, "map": {"any": 1}, "x-trace": "t"})]
    assert told(observed(pipeline, events)) == []
    assert told(observed(pipeline, [handoff(51, {"a": 1, "later": {"x": 1, "y": 2}})])) == [("/later/y", "added")]


def test_the_version_comes_from_the_payload_where_the_event_says_none(build: Any) -> None:
    """`metadata.model` before and after is evidence: a new model is why shapes change."""
    pipeline = build("schema.drift")
    events = [handoff(index, known(index)) for index in range(40)]
    changed = known(40) | {"thoughts": "x"}
    changed["metadata"]["model"] = "small-3"
    (found,) = observed(pipeline, [*events, handoff(40, changed)])
    assert (found.evidence["agent_version"], found.evidence["agent_version_before"]) == ("small-3", "large-2")
    assert "small-3" in found.message


@given(one=st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=50))
@settings(max_examples=60, deadline=None)
def test_bins_keep_the_order_of_numbers(one: list[float]) -> None:
    """Sorted numbers have sorted bins, and a bin shows a number within an eighth of those in it."""
    ordered = sorted(one)
    bins = [bin_of(value) for value in ordered]
    assert bins == sorted(bins)
    for value, key in zip(ordered, bins, strict=True):
        assert abs(value_of(key) - value) <= 0.13 * abs(value) + 1e-300


@pytest.mark.parametrize("shape", ["uniform", "skewed", "few values", "presence"])
def test_the_test_keeps_its_false_alarm_rate(shape: str) -> None:
    """Of 2,000 pairs of samples from one distribution no more than 5% (and three deviations) are told apart at 5%."""
    chance = random.Random(shape)
    draw = {
        "uniform": chance.random,
        "skewed": lambda: chance.lognormvariate(3, 2),
        "few values": lambda: chance.randint(1, 5),
        "presence": lambda: int(chance.random() < 0.3),
    }[shape]
    alarms = 0
    for _ in range(2_000):
        one, two = ({}, {})  # type: tuple[dict[int, int], dict[int, int]]
        for bins, size in ((one, 120), (two, 50)):
            for _ in range(size):
                key = bin_of(draw())
                bins[key] = bins.get(key, 0) + 1
        alarms += ks_distance(one, two) > ks_limit(120, 50, 0.05)
    print(f"\n{shape}: {alarms / 20:.2f}% false alarms at 5%")
    assert alarms <= 2_000 * 0.05 + 3 * (2_000 * 0.05 * 0.95) ** 0.5


def test_absence_keeps_its_false_alarm_rate() -> None:
    """Fields that come by chance are reported gone at a rate below the one that was asked for, for each payload."""
    chance = random.Random(3)
    payloads = alarms = 0
    for _ in range(300):
        rate = chance.uniform(0.2, 0.9)
        measure = Measure("presence", ("a",))
        for _ in range(50):
            measure.remember(int(chance.random() < rate), 1)
        for _ in range(200):
            measure.mark(chance.random() < rate)
            payloads += 1
            if measure.absent and measure.is_gone(0.01):
                alarms += 1
                measure.absent = 0
    print(f"\n{100 * alarms / payloads:.3f}% of payloads raise a false alarm at 1%")
    assert alarms / payloads <= 0.01


def test_a_stream_that_is_known_is_seldom_walked(build: Any) -> None:
    """What does not drift costs one validation: of 5,000 payloads fewer than 200 are walked in Python."""
    pipeline = build("schema.drift")
    observed(pipeline, (handoff(index, known(index)) for index in range(5_000)))
    (sender,) = pipeline.watches[0].detector.learned()
    assert sender.profile.payloads < 200


@given(subjects=st.lists(st.integers(0, 6), max_size=60), keys=st.integers(1, 5))
def test_the_sender_that_was_silent_longest_goes_first(build: Any, subjects: list[int], keys: int) -> None:
    """Of more senders than are remembered, exactly those stay that were judged last."""
    pipeline = build("schema.drift", {"keys": keys})
    stay: OrderedDict[str, None] = OrderedDict()
    for index, subject in enumerate(subjects):
        pipeline.observe(handoff(index, {"a": 1}, subject=f"s{subject}"))
        stay[f"s{subject}"] = None
        stay.move_to_end(f"s{subject}")
        if len(stay) > keys:
            stay.popitem(last=False)
        assert {each.subject for each in pipeline.watches[0].detector.learned()} == set(stay)
