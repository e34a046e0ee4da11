"""The laws of inference: a profile accepts what it was made of, refuses another type, merges, and stays small."""

from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.schema import inference
from handrail.schema.inference import MAX_NODES, Profile, format_of, is_id
from handrail.schema.registry import Schema, type_name

texts = st.sampled_from(
    ["done", "partial", "two words", "2026-01-02T03:04:05Z", "https://a.example/x", "é\n", "", "a@b.example", "12.5"]
) | st.text(max_size=6)
names = st.sampled_from(["a", "b", "status", "api_key", "t-1", "42", "/~"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
payloads = st.lists(st.dictionaries(names, values, max_size=5), min_size=1, max_size=30)


def profile_of(those: list[Any]) -> Profile:
    profile = Profile()
    for payload in those:
        profile.add(payload)
    return profile


@given(those=payloads, repeats=st.sampled_from([1, 25]))
@settings(max_examples=60, deadline=None)
def test_an_inferred_schema_accepts_what_it_was_inferred_from(those: list[Any], repeats: int) -> None:
    """The proposed form and the closed form both do, formats asserted, and the proposal can be registered."""
    profile = profile_of(those * repeats)
    for schema in (profile.schema(), profile.closed()):
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
        for payload in those:
            assert validator.is_valid(payload), (schema, payload)
    Schema("s", "1", orjson.dumps(profile.schema()))


@given(those=payloads, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_field_of_another_type_is_refused(those: list[dict[str, Any]], data: st.DataObject) -> None:
    """Where a field was always of some types, a value of a type that it never had does not pass."""
    fields = sorted({name for payload in those for name in payload if not is_id(name)})
    if not fields:
        return
    name = data.draw(st.sampled_from(fields))
    had = {type_name(payload[name]) for payload in those if name in payload}
    other = [value for value in (None, True, 0.5, "text", [0], {"a": 0}) if type_name(value) not in had]
    if not other:
        return
    carrier = dict(next(payload for payload in those if name in payload))
    carrier[name] = data.draw(st.sampled_from(other))
    profile = profile_of(those)
    if profile.root.is_maplike() and type_name(carrier[name]) in {type_name(v) for p in those for v in p.values()}:
        return  # the object is taken for a map, whose values share their types
    assert not Schema("s", "1", orjson.dumps(profile.schema())).is_valid(carrier)


@given(one=payloads, two=payloads, three=payloads)
@settings(max_examples=40, deadline=None)
def test_merging_does_not_hang_on_the_order(one: list[Any], two: list[Any], three: list[Any]) -> None:
    """Merging is associative and commutative, and the same as counting all payloads in one profile."""
    a, b, c = profile_of(one), profile_of(two), profile_of(three)
    together = profile_of(one + two + three).outline()
    assert a.merge(b).merge(c).outline() == together
    assert a.merge(b.merge(c)).outline() == together
    assert c.merge(a).merge(b).outline() == together


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "payload",
    [
        lambda index: {f"name{index}x{number}y": {"inner": number} for number in range(50)},
        lambda index: {f"n{index % 150}": {f"m{index * number % 151}q": {f"o{number}p": 1}} for number in range(40)},
        lambda index: deep(900),
        lambda index: {"s": f"{index} {'x' * 1000}", "list": [{f"k{index}z": 1}] * 20},
    ],
    ids=["names", "names in names", "depth", "text"],
)
def test_memory_is_bounded(payload: Any) -> None:
    """Endless names, depths and texts end in a bounded number of nodes, which still accept all payloads."""
    profile = Profile()
    for index in range(400):
        profile.add(payload(index))
    assert inference._size(profile.root) <= 2 * MAX_NODES
    assert len(orjson.dumps(profile.outline())) < 1_000_000
    validator = jsonschema_rs.validator_for(profile.schema())
    if payload(0) != deep(900):  # deeper than any validator goes
        assert all(validator.is_valid(payload(index)) for index in range(400))


def test_no_value_is_kept_but_words_that_repeat() -> None:
    """Neither prose, nor keys and tokens, nor words under a secret's name, nor many different words."""
    profile = profile_of(
        [
            {
                "goal": f"write to person {index} about the matter",
                "key": "sk-ant-0123456789abcdef0123456789abcdef",
                "password": "hunter",
                "auth": {"kind": "swordfish"},
                "city": f"Town{index}",
                "status": ("completed", "failed")[index % 2],
            }
            for index in range(60)
        ]
    )
    kept = orjson.dumps(profile.outline()).decode()
    for secret in ("matter", "sk-ant", "hunter", "swordfish", "Town"):
        assert secret not in kept
    assert profile.schema()["properties"]["status"] == {"enum": ["completed", "failed"]}


def test_what_is_proposed_for_a_known_stream() -> None:
    """Types, presence, enumeration, range, format, array and map, as a person would have written them."""
    profile = profile_of(
        [
            {
                "at": "2026-01-02T03:04:05Z",
                "score": index / 60,
                "note": None if index % 3 else "some words here and there",
                "parts": [{"kind": ("text", "data")[index % 2], "size": index}],
                "by_task": {f"task-{index}": {"ok": True}},
                **({"extra": 1} if index % 2 else {}),
            }
            for index in range(60)
        ]
    )
    assert profile.schema() == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "at": {"type": "string", "format": "date-time"},
            "by_task": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {"ok": {"type": "boolean"}},
                    "required": ["ok"],
                },
            },
            "extra": {"type": "integer", "minimum": 0, "maximum": 1},
            "note": {"type": ["null", "string"]},
            "parts": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "kind": {"enum": ["data", "text"]},
                        "size": {"type": "integer", "minimum": 0, "maximum": 100},
                    },
                    "required": ["kind", "size"],
                },
            },
            "score": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["at", "by_task", "note", "parts", "score"],
    }


def test_stability_falls_with_what_is_new() -> None:
    """A stream that repeats is stable; one where each payload brings a name of its own never is."""
    assert profile_of([{"a": 1}] * 40).stability().is_stable
    assert not profile_of([{"a": 1}] * 5).stability().is_stable
    assert not profile_of([{f"name_{chr(97 + index)}": 1} for index in range(26)]).stability().is_stable


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-01-02T03:04:05Z", "date-time"),
        ("2026-01-02", "date"),
        ("2026-13-02", ""),
        ("1b4e28ba-2fa1-11d2-883f-0016d3cca427", "uuid"),
        ("https://a.example/x?y=1", "uri"),
        ("a@b.example", "email"),
        ("10.0.0.1", "ipv4"),
        ("fe80::1:2", "ipv6"),
        ("plain words", ""),
        ("\ud800@x", ""),
    ],
)
def test_formats(text: str, wanted: str) -> None:
    """Each format is told by the validator's own check."""
    assert format_of(text) == wanted


@pytest.mark.parametrize("name", ["42", "task-12", "1b4e28ba-2fa1-11d2-883f-0016d3cca427", "a@b", "a/b.py", "x" * 70])
def test_ids_are_no_field_names(name: str) -> None:
    """A name that is a value of its own is a key of a map."""
    assert is_id(name)


@pytest.mark.parametrize("name", ["reasoning_trace", "sha256", "address2", "utf8", "x-trace", "camelCase", "deadbeef"])
def test_field_names_are_no_ids(name: str) -> None:
    """Digits alone do not make an id."""
    assert not is_id(name)
