"""Verdicts on pairs of schemas: transcripts of each mode, and laws that hold for any pair."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handrail.schema.compatibility import MODES, Verdict, changes, check, check_all, draft_number
from handrail.schema.registry import SchemaError

CASES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "compat"

DISAGREEMENTS: dict[str, str] = {}
"""Core cases of the two registries that are answered otherwise, each with its reason."""

VALIDATORS = {
    4: jsonschema_rs.Draft4Validator,
    6: jsonschema_rs.Draft6Validator,
    7: jsonschema_rs.Draft7Validator,
    19: jsonschema_rs.Draft201909Validator,
    20: jsonschema_rs.Draft202012Validator,
}


def admits(schema: Any, payload: Any, draft: int = 20) -> bool:
    """What the validator of the data path says."""
    named = schema.get("$schema") if isinstance(schema, dict) else None
    return VALIDATORS[draft_number(named) if named else draft](schema).is_valid(payload)


def shown(verdict: Verdict, old: Any, new: Any, draft: int = 20) -> Any:
    """The witness, after checking that it is one, and that there are reasons."""
    assert not verdict.compatible
    assert verdict.decided == "witness"
    writer, reader = (old, new) if verdict.direction == "backward" else (new, old)
    assert admits(writer, verdict.witness, draft)
    assert not admits(reader, verdict.witness, draft)
    assert verdict.reasons
    return verdict.witness


def test_a_reader_that_admits_more_is_compatible() -> None:
    """An optional field more, a wider type, a looser bound: who reads with the new version can read the old."""
    old = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}, "required": ["n"]}
    new = {"type": "object", "properties": {"n": {"type": "number", "maximum": 6}}}
    assert check(old, new, "BACKWARD") == Verdict(True, "proved")
    assert not check(old, new, "FORWARD").compatible


@pytest.mark.parametrize(
    ("mode", "compatible"), [("NONE", True), ("BACKWARD", True), ("FORWARD", False), ("FULL", False)]
)
def test_each_mode_asks_its_own_direction(mode: str, compatible: bool) -> None:
    """A string may become a string or null for its readers, not for its writers; a transitive mode is the plain one."""
    for name in (mode, f"{mode}_TRANSITIVE"):
        if name in MODES:
            assert check({"type": "string"}, {"type": ["string", "null"]}, name).compatible is compatible


def test_a_refusal_says_where_and_why() -> None:
    """Path, keyword, old and new value, and a sentence, for each change that breaks a reader."""
    old = {
        "type": "object",
        "properties": {
            "status": {"enum": ["done", "failed"]},
            "artifacts": {"type": "array", "items": {"type": "object", "properties": {"size": {"type": "number"}}}},
        },
    }
    new = {
        "type": "object",
        "properties": {
            "status": {"enum": ["done"]},
            "artifacts": {"type": "array", "items": {"type": "object", "properties": {"size": {"type": "integer"}}}},
        },
        "required": ["status"],
    }
    verdict = check(old, new, "BACKWARD")
    shown(verdict, old, new)
    found = {(reason.path, reason.keyword): reason for reason in verdict.reasons}
    assert set(found) == {("", "required"), ("/status", "enum"), ("/artifacts/*/size", "type")}
    assert (found["", "required"].old, found["", "required"].new) == (None, ["status"])
    size = found["/artifacts/*/size", "type"]
    assert (size.old, size.new, size.direction) == ("number", "integer", "backward")
    assert (
        found["/status", "enum"].message
        == 'The new version knows only ["done"], and the old version may send "failed".'
    )


def test_a_member_that_a_closed_reader_no_longer_knows_is_named() -> None:
    """The place is the member, and what the old version said of it is the old value."""
    old = {"properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    reason = check(old, {"additionalProperties": False}, "BACKWARD").reasons[0]
    assert (reason.path, reason.keyword, reason.old, reason.new) == (
        "/a",
        "additionalProperties",
        {"type": "integer"},
        False,
    )


def test_both_directions_are_told_with_the_versions_named() -> None:
    """FULL: what each version refuses of the other's."""
    verdict = check({"type": "string"}, {"type": "integer"}, "FULL")
    assert {reason.direction for reason in verdict.reasons} == {"backward", "forward"}
    assert any(reason.message.startswith("The old version expects") for reason in verdict.reasons)


def test_a_recursive_schema_is_proved_however_it_is_spelled() -> None:
    """One step of a recursion written out admits the same payloads."""
    node = {"type": "object", "properties": {"name": {"type": "string"}, "kids": {"items": {"$ref": "#/$defs/node"}}}}
    short = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    long = {"allOf": [node], "$defs": {"node": node}}
    assert check(short, long, "FULL") == Verdict(True, "proved")
    narrow = json.loads(json.dumps(long).replace('"string"', '"null"'))
    assert shown(check(short, narrow, "BACKWARD"), short, narrow) == {"name": ""}


def test_a_change_far_down_a_recursion_is_shown() -> None:
    """The payload goes down as far as it must."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    old = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    new = {"$ref": "#/$defs/node", "$defs": {"node": {**node, "maxProperties": 1, "properties": {"next": node}}}}
    new["$defs"]["node"]["properties"]["next"] = {"properties": {"next": {"properties": {"next": {"type": "object"}}}}}
    new["$defs"]["node"].pop("maxProperties")
    assert check(old, new, "BACKWARD").compatible
    new["$defs"]["node"]["properties"]["next"]["properties"]["next"]["properties"]["next"] = False
    assert shown(check(old, new, "BACKWARD"), old, new) == {"next": {"next": {"next": {}}}}


def test_drafts_may_differ() -> None:
    """Each schema is read by its own draft: a bound was exclusive by a flag before it was by a number."""
    old = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "number",
        "minimum": 10,
        "exclusiveMinimum": True,
    }
    new = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "number", "exclusiveMinimum": 10}
    assert check(old, new, "FULL") == Verdict(True, "proved")
    new["exclusiveMinimum"] = 11
    shown(check(old, new, "BACKWARD"), old, new)


def test_an_integer_of_draft_4_is_no_integer_with_a_point() -> None:
    """Draft 6 takes 1.0 for an integer and draft 4 does not, so they differ."""
    later, draft4 = ({"$schema": f"http://json-schema.org/draft-0{each}/schema#", "type": "integer"} for each in (6, 4))
    assert isinstance(shown(check(later, draft4, "BACKWARD"), later, draft4), float)
    assert check(draft4, later, "BACKWARD").compatible


@pytest.mark.parametrize(
    ("old", "new", "witness"),
    [
        ({"maximum": 2**64 + 1}, {"maximum": 2**64}, 2**64 + 1),
        ({"type": "array", "minItems": 67}, {"type": "array", "minItems": 68}, [{}] * 67),
        ({"enum": list(range(5_000))}, {"enum": list(range(1, 5_000))}, 0),
        ({"pattern": "^(?=.*[0-9]).{4}$", "type": "string"}, {"pattern": "^[0-9]", "type": "string"}, None),
        ({"type": "object"}, {"dependentRequired": {"a": ["b"]}}, None),
        ({"type": "object"}, {"dependentSchemas": {"a": {"minProperties": 3}}}, None),
        ({"type": "object", "propertyNames": {"pattern": "^x-"}}, {"maxProperties": 2}, None),
        ({"allOf": [{"properties": {"a": {}}}]}, {"properties": {"b": {}}, "unevaluatedProperties": False}, None),
        ({"type": "array"}, {"prefixItems": [{"type": "string"}], "unevaluatedItems": False}, None),
        ({"type": "array"}, {"contains": {"const": 7}, "maxContains": 2, "minContains": 0}, [7, 7, 7]),
        ({"type": "array", "items": {"type": "boolean"}}, {"uniqueItems": True}, None),
        ({}, {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, None),
        ({}, {"oneOf": [{"type": "number"}, {"type": "integer"}]}, None),
        ({"type": "number", "multipleOf": 0.1}, {"multipleOf": 0.5}, None),
    ],
)
def test_keywords_of_every_kind_are_refuted(old: Any, new: Any, witness: Any) -> None:
    """A payload is found for each; where there is only one simplest payload, it is that one."""
    found = shown(check(old, new, "BACKWARD"), old, new)
    assert witness is None or found == witness


def test_a_format_counts_where_its_draft_asserts_it() -> None:
    """Up to draft 7 a format refuses; later it is an annotation, and says nothing about payloads."""
    old, new = {"type": "string"}, {"type": "string", "format": "date-time"}
    shown(check(old, new, "BACKWARD", draft="7"), old, new, 7)
    assert check(old, new, "BACKWARD", draft="2020-12").compatible


def test_what_is_neither_proved_nor_refuted_is_taken_for_incompatible() -> None:
    """Unless told otherwise; and it is said that nothing was decided, and what differs."""
    old, new = ({"type": "array", "minItems": 10**9 + more} for more in (0, 1))
    verdict = check(old, new, "BACKWARD")
    assert (verdict.compatible, verdict.decided, verdict.witness) == (False, "undecided", None)
    assert [(reason.keyword, reason.old, reason.new) for reason in verdict.reasons] == [("minItems", 10**9, 10**9 + 1)]
    assert check(old, new, "BACKWARD", accept_undecided=True) == Verdict(True, "undecided")


def test_time_that_is_up_ends_the_search() -> None:
    """The clock is the caller's; without time there is no witness, and the answer stays on the safe side."""
    old, new = {"type": "number"}, {"type": "integer"}
    assert check(old, new, "BACKWARD").decided == "witness"
    asked = []
    verdict = check(old, new, "BACKWARD", out_of_time=lambda: not asked.append(1))  # type: ignore[func-returns-value]
    assert not verdict.compatible


def test_a_transitive_mode_looks_at_every_version() -> None:
    """The newest version that stands in the way is named."""
    versions = [{"type": "string"}, {"type": "integer"}, {"type": "integer", "minimum": 0}]
    new = {"type": "integer"}
    assert check_all(versions, new, "BACKWARD").compatible
    assert check_all([], new, "FULL_TRANSITIVE").compatible
    assert check_all(versions, new, "BACKWARD_TRANSITIVE").version == 0


@pytest.mark.parametrize(
    "bad", [5, None, "x", [], {"type": 5}, {"$ref": "http://127.0.0.1:9/x"}, {"$schema": "my:own"}]
)
def test_what_is_no_schema_is_refused_by_name(bad: Any) -> None:
    """Nothing is fetched; the message says which of the two it is about."""
    with pytest.raises(SchemaError, match=r"^new: "):
        check(True, bad, "BACKWARD")


def test_unknown_words_are_refused() -> None:
    """Mode, policy and draft."""
    for wrong in ({"mode": "SIDEWAYS"}, {"mode": "FULL", "policy": "lax"}, {"mode": "FULL", "draft": "draft-99"}):
        with pytest.raises(ValueError, match="unknown"):
            check(True, True, **{"mode": "FULL", **wrong})


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("7", 7),
        (6, 6),
        ("draft-04", 4),
        ("draft7", 7),
        ("2019-09", 19),
        ("draft2020-12", 20),
        (None, 20),
        ("http://json-schema.org/draft-07/schema#", 7),
        ("https://json-schema.org/draft/2020-12/schema", 20),
    ],
)
def test_a_draft_goes_by_many_names(name: Any, number: int) -> None:
    """A URI or short."""
    assert draft_number(name) == number


def test_the_difference_is_listed_place_by_place() -> None:
    """Added, removed and changed, with the path in the payload; annotations do not count."""
    old = {"properties": {"a": {"type": "string"}, "b": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"maximum": 1}}}
    new = {"properties": {"b": {"maximum": 2}, "c": {}}, "required": ["c"], "title": "New"}
    found = {(each.kind, each.path, each.keyword) for each in changes(old, new)}
    assert found == {
        ("removed", "/a", "properties"),
        ("added", "/c", "properties"),
        ("added", "/c", "required"),
        ("changed", "/b", "maximum"),
    }
    assert changes(old, old) == []


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
def test_two_registries_are_agreed_with() -> None:
    """Every core case but those listed; a witness always is one; no case is left without an answer."""
    tally: Counter[tuple[str, bool]] = Counter()
    disagreements = {}
    for source in ("karapace", "apicurio"):
        for line in CASES.joinpath(f"{source}.jsonl").read_text("utf-8").rstrip("\n").split("\n"):
            case = json.loads(line)
            verdict = check(case["original"], case["update"], case["mode"], draft=case["draft"])
            if verdict.decided == "witness":
                shown(verdict, case["original"], case["update"], draft_number(case["draft"]))
            agrees = verdict.compatible == case["expected"]
            tally[source, bool(case["core"])] += agrees
            if case["core"] and not agrees:
                disagreements[case["id"]] = verdict
    assert disagreements.keys() == DISAGREEMENTS.keys()
    assert (tally["karapace", True], tally["apicurio", True]) == (235, 263)


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
def test_the_confluent_policy_is_strict_about_open_content() -> None:
    """Karapace follows it: its core cases are all agreed with under this policy too."""
    for line in CASES.joinpath("karapace.jsonl").read_text("utf-8").rstrip("\n").split("\n"):
        case = json.loads(line)
        if case["core"]:
            verdict = check(case["original"], case["update"], case["mode"], draft=case["draft"], policy="confluent")
            assert verdict.compatible == case["expected"], case["id"]


names = st.sampled_from(["a", "b", "c"])
simple = st.sampled_from(
    [True, False, {}]
    + [{"type": each} for each in ("string", "integer", "number", "null", "object", "array")]
    + [{"type": ["string", "null"]}, {"const": 1}, {"enum": ["x", None, 2]}, {"pattern": "^a"}, {"minLength": 2}]
    + [{"minimum": 1}, {"exclusiveMaximum": 2}, {"multipleOf": 2}, {"required": ["a"]}, {"maxProperties": 1}]
    + [{"minItems": 1}, {"maxItems": 1}, {"uniqueItems": True}, {"dependentRequired": {"a": ["b"]}}]
)


def applied(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas that apply schemas."""
    some = st.lists(inner, min_size=1, max_size=3)
    keywords = {
        "type": st.sampled_from(["object", "array", "string", "number", ["object", "null"]]),
        "properties": st.dictionaries(names, inner, max_size=2),
        "required": st.lists(names, unique=True, max_size=2),
        "additionalProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b", "c$"]), inner, max_size=1),
        "propertyNames": st.sampled_from([{"maxLength": 1}, {"enum": ["a", "b"]}]),
        "prefixItems": some,
        "items": inner,
        "contains": inner,
        "anyOf": some,
        "oneOf": some,
        "allOf": some,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "dependentSchemas": st.dictionaries(names, inner, max_size=1),
        "unevaluatedProperties": st.sampled_from([False, {"type": "string"}]),
        "unevaluatedItems": st.sampled_from([False, {"type": "string"}]),
    }
    return st.lists(st.sampled_from(list(keywords)), min_size=1, max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: keywords[name] for name in chosen})
    )


schemas = st.recursive(simple, applied, max_leaves=6)
payloads = st.recursive(
    st.sampled_from([None, True, 0, 1, 1.0, 1.5, 2, 3, "", "a", "ab", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
laws = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@laws
@given(schemas, schemas, st.lists(payloads, min_size=20, max_size=40))
def test_no_payload_contradicts_a_verdict(old: Any, new: Any, tried: list[Any]) -> None:
    """Where versions are called compatible no payload is admitted by the one and refused by the other; and a witness
    is one. This holds the canonical forms of jsonschema-rs to account too, whose proofs are believed."""
    verdict = check(old, new, "BACKWARD")
    if verdict.decided == "witness":
        shown(verdict, old, new)
    if verdict.compatible:
        assert [each for each in tried if admits(old, each) and not admits(new, each)] == []


@laws
@given(schemas, schemas)
def test_a_schema_is_compatible_with_itself_and_with_less(one: Any, other: Any) -> None:
    """Reflexive; a union reads each of its members, and each reads what an intersection writes."""
    assert check(one, one, "FULL").compatible
    for writer, reader in ((one, {"anyOf": [one, other]}), ({"allOf": [one, other]}, one)):
        verdict = check(writer, reader, "BACKWARD")
        assert verdict.compatible or verdict.decided == "undecided"


@laws
@given(schemas, schemas)
def test_forward_is_backward_the_other_way_round(old: Any, new: Any) -> None:
    """The same question with the names exchanged, and the same answer again when asked again."""
    forward, backward = check(old, new, "FORWARD"), check(new, old, "BACKWARD")
    assert (forward.compatible, forward.decided) == (backward.compatible, backward.decided)
    assert forward == check(old, new, "FORWARD")
