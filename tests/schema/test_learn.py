"""Schemas that traffic carries: each form is a version, equal forms are one, and what is kept is bounded."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.schema.registry import LEARNED_SUBJECTS, LEARNED_VERSIONS, Registry, SchemaError, is_untyped

NUMBER, TEXT = ({"type": "object", "properties": {"n": {"type": kind}}} for kind in ("number", "string"))


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_equal_forms_are_one_version(names: str) -> None:
    """In the order in which they were first seen, whatever comes between."""
    registry = Registry()
    versions = [registry.learn("s", {"title": name}) for name in names]
    order = list(dict.fromkeys(names))
    assert versions == [str(1 + order.index(name)) for name in names]


def test_a_registered_form_is_not_learned_again() -> None:
    """A new one is counted on from what is registered, and does not become what somebody registered."""
    registry = Registry()
    registry.load({"s/3.json": orjson.dumps(NUMBER)})
    assert (registry.learn("s", NUMBER), registry.learn("s", TEXT)) == ("3", "4")
    assert (registry.is_learned("s", "3"), registry.is_learned("s", "4")) == (False, True)
    assert registry.versions("s") == ("3", "4")
    registry.load({"s/3.json": orjson.dumps(NUMBER)})
    schema = registry.schema("s", "4")
    assert schema is not None
    assert schema.is_valid({"n": "x"})
    assert not schema.is_valid({"n": 1})


def test_what_cannot_be_enforced_is_refused() -> None:
    """And leaves nothing behind."""
    registry = Registry()
    with pytest.raises(SchemaError):
        registry.learn("s", {"$ref": "https://elsewhere.test/schema.json"})
    with pytest.raises(SchemaError):
        registry.learn("s", {"type": "nonsense"})
    assert registry.versions("s") == ()


def test_memory_is_bounded() -> None:
    """The subject that came first goes first, and so does the first form of one subject."""
    registry = Registry()
    for number in range(LEARNED_VERSIONS + 5):
        registry.learn("s", {"title": str(number)})
    assert len(registry.versions("s")) == LEARNED_VERSIONS
    for number in range(LEARNED_SUBJECTS):
        registry.learn(f"t{number}", {})
    assert registry.versions("s") == ()
    assert registry.versions(f"t{LEARNED_SUBJECTS - 1}") == ("1",)


def test_untyped() -> None:
    """An object about which nothing is said, whatever it is called."""
    assert is_untyped({"type": "object", "properties": {}, "required": [], "title": "t", "additionalProperties": False})
    assert not is_untyped(NUMBER)
    assert not is_untyped({"$ref": "#/$defs/a"})
