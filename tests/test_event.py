"""The records: what is written can be read again, and equal content has equal digests."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import handrail.event
from handrail.event import (
    FIELDS,
    Event,
    EventFields,
    Fault,
    Finding,
    canonical,
    digest_of,
    event_from,
    event_with,
    fingerprint_of,
    rfc3339,
    seconds,
    to_json,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
instants = st.integers(0, 4_000_000_000_000_000).map(lambda microseconds: microseconds / 1e6)
sizes = st.none() | st.integers(0, 2**40)
spans = st.none() | st.floats(0, 1e9)
full_events = st.builds(
    Event,
    kind=st.sampled_from(["handoff", "write", "usage"]),
    id=text,
    at=instants,
    workflow=st.none() | text,
    task=st.none() | text,
    attempt=st.none() | st.integers(0, 9),
    source=st.none() | text,
    channel=st.sampled_from([None, "call", "store", "event"]),
    outcome=st.sampled_from(["asked", "completed", "unknown"]),
    side=st.sampled_from([None, "egress", "ingress"]),
    version=st.none() | text,
    payload=json_values,
    reply=json_values,
    payload_bytes=sizes,
    status=st.none() | st.integers(100, 599) | text,
    duration_ms=spans,
    state_version=st.none() | st.integers() | text,
    deadline=st.none() | instants,
    uninspected=st.none() | st.just("too_large"),
)


@given(full_events)
def test_what_is_written_is_read_again(event: Event) -> None:
    """to_json and event_from are inverse, payloads included, times to the microsecond."""
    again = event_from(json.loads(to_json(event, payloads=True)))
    for name in FIELDS:
        wanted, got = getattr(event, name), getattr(again, name)
        if name in ("at", "deadline") and wanted is not None:
            assert got == pytest.approx(wanted, abs=2e-6)
        else:
            assert got == wanted, name


@given(full_events)
def test_every_field_is_there_and_absent_is_null(event: Event) -> None:
    """One JSON object with every field of the record and its type, on one line."""
    written = to_json(event)
    assert b"\n" not in written
    assert set(json.loads(written)) == {"type", *FIELDS}


@given(full_events)
def test_payloads_are_left_out_unless_asked_for(event: Event) -> None:
    """Neither half of an exchange is written by default."""
    written = orjson.loads(to_json(event))
    assert (written["payload"], written["reply"]) == (None, None)


def test_a_finding_and_a_fault_are_written_whole() -> None:
    """Each with its type; a fault may have no time."""
    finding = Finding(rule="r", kind="k", severity="info", at=0.5, events=("a",), evidence={"path": "/a"})
    written = orjson.loads(to_json(finding))
    assert set(written) == {"type", *Finding.__struct_fields__}
    assert (written["type"], written["at"], written["event"]) == ("finding", "1970-01-01T00:00:00.500000Z", None)
    fault = orjson.loads(to_json(Fault(component="c", reason="r")))
    assert fault == {"type": "fault", "component": "c", "reason": "r", "message": "", "at": None}


def test_a_newer_recording_is_still_read() -> None:
    """Unknown keys are passed over; a number of seconds is a time too."""
    event = event_from({"type": "event", "kind": "handoff", "id": "e", "at": 1.5, "since": "2030"})
    assert (event.id, event.at, event.outcome) == ("e", 1.5, "unknown")


WRONG = {
    "kind": {"kind": "handover", "id": "e", "at": 0},
    "id": {"kind": "handoff", "at": 0},
    "at": {"kind": "handoff", "id": "e", "at": "yesterday"},
    "deadline": {"kind": "handoff", "id": "e", "at": 0, "deadline": "25:00"},
    "attempt": {"kind": "handoff", "id": "e", "at": 0, "attempt": "two"},
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named(field: str) -> None:
    """What is no event raises ValueError that says which field."""
    with pytest.raises(ValueError, match=field):
        event_from(WRONG[field])


@given(instants)
def test_times_survive_their_text(at: float) -> None:
    """RFC 3339 and back, to the microsecond; a zone is heeded and its absence means UTC."""
    assert seconds(rfc3339(at)) == pytest.approx(at, abs=2e-6)
    assert seconds(rfc3339(at).removesuffix("Z")) == seconds(rfc3339(at))


def test_a_zone_is_heeded() -> None:
    """Noon in Paris is eleven in UTC in winter."""
    assert seconds("2026-01-01T12:00:00+01:00") == seconds("2026-01-01T11:00:00Z")


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_a_digest_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    """Nor on white space, as both went through a parser."""
    assert digest_of(shuffled(value)) == digest_of(value)
    assert canonical(json.loads(json.dumps(value, indent=2))) == canonical(value)


@given(json_values, json_values)
def test_different_content_has_different_digests(one: Any, two: Any) -> None:
    """Equal digests mean equal canonical text, integers past 64 bits included."""
    assert (digest_of(one) == digest_of(two)) == (canonical(one) == canonical(two))


@pytest.mark.parametrize("value", [object(), {1, 2}, {"a": b"x"}, "\ud800", [10**30, "\ud800"], [10**30, float("nan")]])
def test_what_is_not_json_has_no_digest(value: Any) -> None:
    """TypeError, whichever writer noticed."""
    with pytest.raises(TypeError):
        digest_of(value)


@given(st.lists(st.none() | st.integers() | st.text(max_size=4), max_size=4))
def test_a_fingerprint_is_stable_and_short(parts: list[Any]) -> None:
    """16 hex digits for any parts, the same for the same."""
    assert fingerprint_of(*parts) == fingerprint_of(*parts)
    assert len(fingerprint_of(*parts)) == 16
    assert fingerprint_of("ab", "c") != fingerprint_of("a", "bc")


def test_records_are_frozen() -> None:
    """What was seen does not change; of an event the types say so, and the compiled build."""
    finding = Finding(rule="r", kind="k", severity="info", at=0.5)
    with pytest.raises(AttributeError):
        finding.at = 1.0  # type: ignore[misc]
    event = Event(kind="handoff", id="e", at=0.0)
    if not handrail.event.__file__.endswith(".py"):
        with pytest.raises(AttributeError):
            event.at = 1.0  # type: ignore[misc]
    assert event.but(at=1.0).at == 1.0
    assert event.at == 0.0
    with pytest.raises(TypeError):
        event.but(since=1.0)


@given(full_events)
def test_an_event_has_the_fields_that_files_know(event: Event) -> None:
    """By the same names, with the same defaults; what is absent is left out where it is written down."""
    known = msgspec.structs.asdict(msgspec.convert(event.fields(), EventFields))
    assert known == {name: getattr(event, name) for name in FIELDS}
    least = Event(kind="handoff", id="e", at=0.0)
    assert least == event_with(EventFields(kind="handoff", id="e", at=0.0))
    assert least.fields() == {"kind": "handoff", "id": "e", "at": 0.0}


WHOLE: dict[str, Any] = (
    {name: f"{name} of it" for name in FIELDS}
    | {name: 7.0 for name in FIELDS if name in ("at", "deadline") or name.endswith("_ms")}
    | {name: 7 for name in FIELDS if name in ("attempt", "tokens") or name.endswith("_bytes")}
)
ANSWER: dict[str, Any] = {
    "outcome": "completed",
    "status": 200,
    "duration_ms": 1.0,
    "ttfb_ms": 2.0,
    "overhead_ms": 3.0,
    "transfer_ms": 4.0,
    "reply": ["x"],
    "reply_bytes": 5,
    "reads": "s@1",
}


@pytest.mark.parametrize(
    ("made", "changed"),
    [
        (lambda event: event.but(), {}),
        (lambda event: event.but(lag_ms=1.5, source=None), {"lag_ms": 1.5, "source": None}),
        (lambda event: event.bare(), {"payload": None, "reply": None}),
        (lambda event: event.identified("s", "2", "d"), {"subject": "s", "version": "2", "digest": "d"}),
        (lambda event: event.answered(**ANSWER), ANSWER),
    ],
    ids=["the same", "but", "bare", "identified", "answered"],
)
def test_what_is_made_of_an_event_has_all_else_as_it_was(
    made: Callable[[Event], Event], changed: dict[str, Any]
) -> None:
    """Every field of it, whichever way it was made."""
    event = Event(**WHOLE)
    again = made(event)
    assert {name: getattr(again, name) for name in FIELDS} == WHOLE | changed
    assert {name: getattr(event, name) for name in FIELDS} == WHOLE
    assert (again == event) == (not changed)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"outcome": "done"}, "outcome: Invalid enum value 'done'; one of asked, accepted, completed"),
        ({"kind": "call"}, "kind: Invalid enum value 'call'; one of handoff, write"),
        ({"tokens": "many"}, "tokens: Expected `int | null`, got `str`"),
        ({"at": "yesterday"}, "at: "),
    ],
)
def test_a_wrong_field_is_named_with_what_it_may_be(wrong: dict[str, str], told: str) -> None:
    """The key, the problem, the fix."""
    with pytest.raises(ValueError) as caught:
        event_from({"kind": "handoff", "id": "e1", "at": 1} | wrong)
    assert str(caught.value).startswith(told)
