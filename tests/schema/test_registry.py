"""The registry: what is put in force, what is refused, what applies to an event, and what a schema says."""

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.config import EdgeConfig
from handrail.event import Event
from handrail.schema.registry import (
    DRAFTS,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_SUBSCHEMAS,
    MAX_VIOLATIONS,
    Registry,
    Schema,
    matcher,
    version_order,
)


def registry_of(schemas: dict[str, dict[str, Any]], edges: tuple[EdgeConfig, ...] = ()) -> Registry:
    registry = Registry(edges)
    files = {
        f"{subject}/{version}.json": orjson.dumps(s) for subject, vs in schemas.items() for version, s in vs.items()
    }
    assert registry.load(files) == []
    return registry


def schema_of(document: Any) -> Schema:
    return Schema("s", "1", orjson.dumps(document))


def handoff(**fields: Any) -> Event:
    return Event(kind="handoff", id="e", at=0.0, **fields)


# --- load


def test_a_set_is_replaced_as_a_whole() -> None:
    """One wrong file keeps the last good set in force, all of it, and every wrong file is named."""
    registry = registry_of({"a": {"1": {}}, "b": {"1": {}}})
    problems = registry.load({"a/2.json": b"{}", "c/1.json": b"{", "d/1.json": b'{"type": "text"}', "e.json": b"{}"})
    assert [problem.file for problem in problems] == ["c/1.json", "d/1.json", "e.json"]
    assert registry.subjects() == {"a": ("1",), "b": ("1",)}
    assert registry.load({"a/2.json": b"{}"}) == []
    assert registry.subjects() == {"a": ("2",)}
    assert registry.schema("a", "1") is None
    assert registry.schema("b", "1") is None


def test_a_schema_that_did_not_change_is_not_compiled_again() -> None:
    """Reloading a directory costs only what changed in it; changed content is noticed."""
    registry = registry_of({"a": {"1": {}, "2": {}}})
    same, other = registry.schema("a", "1"), registry.schema("a", "2")
    assert registry.load({"a/1.json": b"{}", "a/2.json": b'{"type":"null"}'}) == []
    assert registry.schema("a", "1") is same
    assert registry.schema("a", "2") is not other


def test_subjects_may_be_paths_and_other_files_are_passed_over() -> None:
    """`mcp/tools.call` is a subject; a README beside the schemas is none."""
    registry = Registry()
    assert registry.load({"mcp/tools.call/v1.json": b"true", "mcp/README.md": b"# Schemas", "NOTES": b""}) == []
    assert registry.subjects() == {"mcp/tools.call": ("v1",)}


def nested(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def doubling(levels: int) -> Any:
    each = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2} for n in range(1, levels)}
    return {"$defs": {"d0": {"type": "null"}} | each, "$ref": f"#/$defs/d{levels - 1}"}


REFUSED = {
    "not JSON": (b"{", "not JSON"),
    "a repeated key": (b'{"type": "string", "type": "null"}', "duplicate_key"),
    "not an object": (b"[]", "expected an object or a boolean"),
    "not a schema": ({"properties": {"a": {"type": "text"}}}, "/properties/a/type: is not a schema"),
    "an unknown draft": ({"$schema": "https://example.com/draft"}, "/$schema: unknown draft"),
    "a remote reference": (
        {"items": {"$ref": "http://127.0.0.1:9/x"}},
        "/items/$ref: http://127.0.0.1:9/x leaves the document",
    ),
    "a file reference": ({"$ref": "file:///etc/hostname"}, "/$ref: "),
    "a relative reference": ({"$ref": "other.json"}, "/$ref: "),
    "a remote dynamic reference": (
        {"$dynamicRef": "https://example.com/x#a"},
        "/$dynamicRef: https://example.com/x#a leaves",
    ),
    "a remote reference that nothing leads to": ({"$defs": {"a": {"$ref": "http://h/x"}}}, "leaves the document"),
    "a remote reference under an id": ({"$id": "http://h/a", "$ref": "b"}, "leaves the document"),
    "a dangling reference": ({"$ref": "#/$defs/none"}, "/$ref: #/$defs/none is not in the document"),
    "a reference to itself": ({"$ref": "#"}, "/: references lead back here"),
    "a ring of references": (
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}] * 2}, "b": {"$ref": "#/$defs/a"}}},
        "references lead back here",
    ),
    "look-around": ({"properties": {"a": {"pattern": "(?=x)y"}}}, "/properties/a/pattern: pattern is not"),
    "look-around in a name": ({"patternProperties": {"(?!x)": {}}}, "/patternProperties/(?!x): pattern is not"),
    "a back-reference": ({"pattern": r"(a)\1"}, "/pattern: pattern is not"),
    "a pattern that explodes": ({"pattern": "((a{1000}){1000}){1000}"}, "/pattern: pattern is not"),
    "too long": ({"description": "x" * MAX_BYTES}, f"more than {MAX_BYTES}"),
    "too deep": (nested(MAX_DEPTH + 1), f"deeper than {MAX_DEPTH}"),
    "far too deep": (b'{"items":' * 100_000 + b"true" + b"}" * 100_000, "more than"),
    "deep and short": (b'{"not":' * 20_000 + b"true" + b"}" * 20_000, "nested deeper"),
    "too many": ({"anyOf": [{}] * MAX_SUBSCHEMAS}, f"more than {MAX_SUBSCHEMAS} subschemas"),
    "too many by doubling": (doubling(30), f"more than {MAX_SUBSCHEMAS} subschemas to one value"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_enforced_is_refused(why: str) -> None:
    """Each with its place and its reason, in well under a second."""
    document, reason = REFUSED[why]
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    began = time.perf_counter()
    (problem,) = Registry().load({"s/1.json": raw})
    assert reason in problem.reason
    assert time.perf_counter() - began < 1


ACCEPTED = {
    "deep enough": nested(MAX_DEPTH),
    "many": {"anyOf": [{}] * (MAX_SUBSCHEMAS - 1)},
    "doubling a little": doubling(8),
    "recursion": {"properties": {"next": {"$ref": "#"}}},
    "an anchor": {"$ref": "#a", "$defs": {"x": {"$anchor": "a"}}},
    "an id of its own": {"$id": "https://h/a", "$ref": "b", "$defs": {"x": {"$id": "b"}}},
    "relative ids": {
        "$id": "https://h/a",
        "$ref": "#/$defs/x/$defs/y",
        "$defs": {"x": {"$id": "folder/", "$defs": {"y": {"$ref": "z#n"}, "z": {"$id": "z", "$anchor": "n"}}}},
    },
    "a ring of names that is none of references": {
        "$id": "https://h/a",
        "$defs": {"a": {"$ref": "r"}, "r": {"$id": "r", "$ref": "#/$defs/a", "$defs": {"a": {}}}},
    },
    "a remote reference that is only a value": {"const": {"$ref": "http://h/x"}, "enum": [{"$ref": "file:///x"}]},
    "a property called $ref": {"properties": {"$ref": {"type": "string"}}},
    "a bounded word": {"pattern": r"^[\w.-]{1,64}@[\w.-]{1,255}$"},
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_looks_dangerous_and_is_not(what: str) -> None:
    """Near misses of the refusals are put in force."""
    assert Registry().load({"s/1.json": orjson.dumps(ACCEPTED[what])}) == []


# --- select


def test_what_the_wire_says_comes_first() -> None:
    """Subject and version as sent, even where they are not registered and an edge says otherwise."""
    registry = registry_of({"a": {"1": {}, "2": {}}}, (EdgeConfig(subject="edge", version="7"),))
    assert registry.select(handoff(subject="a", version="1")) == ("a", "1")
    assert registry.select(handoff(subject="a", version="5")) == ("a", "5")
    assert registry.select(handoff(subject="a")) == ("a", "2")
    assert registry.select(handoff(subject="none")) == ("none", None)
    assert registry.select(handoff(version="3")) == ("edge", "3")


def test_then_the_first_edge_that_matches() -> None:
    """By source, target and task patterns; pinned or latest."""
    edges = (
        EdgeConfig(source="w*", target="r", task="review-*", subject="a", version="1"),
        EdgeConfig(source="w*", subject="a"),
        EdgeConfig(target="never", subject="none"),
    )
    registry = registry_of({"a": {"1": {}, "2": {}}}, edges)
    assert registry.select(handoff(source="writer", target="r", task="review-1")) == ("a", "1")
    assert registry.select(handoff(source="writer", target="r", task="draft")) == ("a", "2")
    assert registry.select(handoff(source="writer")) == ("a", "2")
    assert registry.select(handoff(source="x", target="r", task="review-1")) == ("x.r", None)


def test_then_source_and_target() -> None:
    """`<source>.<target>` where both are known, nothing where one is not."""
    registry = registry_of({"x.y": {"9": {}, "10": {}}})
    assert registry.select(handoff(source="x", target="y")) == ("x.y", "10")
    assert registry.select(handoff(source="x")) == (None, None)


names = st.none() | st.sampled_from(["a", "b", "ab", "*"])
patterns = st.sampled_from(["*", "a", "a*", "*b", "b"])
edge_configs = st.builds(
    EdgeConfig,
    source=patterns,
    target=patterns,
    task=patterns,
    subject=st.sampled_from(["a", "b"]),
    version=st.none() | st.sampled_from(["1", "2"]),
)
some_events = st.builds(
    handoff,
    source=names,
    target=names,
    task=names,
    subject=names,
    version=st.none() | st.sampled_from(["1", "3"]),
)


@given(edges=st.lists(edge_configs, max_size=3), events=st.lists(some_events, max_size=12))
def test_remembering_changes_no_selection(edges: list[EdgeConfig], events: list[Event]) -> None:
    """A registry that remembers selects what one that forgets at once selects, also after a reload."""
    remembers, forgets = Registry(edges), Registry(edges, remembered=1)
    for files in ({"a/1.json": b"{}"}, {"a/1.json": b"{}", "a/2.json": b"{}", "a.b/1.json": b"{}"}):
        for registry in (remembers, forgets):
            assert registry.load(files) == []
        for event in events:
            fresh = Registry(edges)
            fresh.load(files)
            assert remembers.select(event) == forgets.select(event) == fresh.select(event)


def test_what_is_remembered_is_bounded() -> None:
    """A stream of ever new names does not grow the memo."""
    registry = Registry(remembered=10)
    for number in range(1_000):
        registry.select(handoff(source=f"s{number}", target="t"))
    assert len(registry._memo) <= 10


# --- order of versions and patterns


ORDERED = [
    "1.0-rc1",
    "1.0-rc2",
    "1.0",
    "1.0.1",
    "1.2",
    "1.9",
    "1.10",
    "v2",
    "3",
    "v9",
    "10",
    "2024-01-15",
    "2024-02-01",
]


def test_versions_are_in_the_order_that_people_mean() -> None:
    """Numbers by value, `v` does not matter, a candidate before its release, dates as dates."""
    assert [*map(version_order, ORDERED)] == sorted(map(version_order, ORDERED))


@given(st.lists(st.from_regex(r"v?[0-9]{1,3}(\.[0-9]{1,3}){0,2}(-?[a-z]{1,2}[0-9]?)?", fullmatch=True), max_size=8))
def test_the_order_is_total(versions: list[str]) -> None:
    """However they are shuffled, versions sort into one sequence; no two different ones are equal."""
    backwards = versions[::-1]
    assert sorted(versions, key=version_order) == sorted(backwards, key=version_order)
    assert len({version_order(version) for version in versions}) == len(set(versions))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_numbers_are_ordered_by_value(one: int, two: int) -> None:
    """10 comes after 9, alone, with a `v`, and after a point."""
    for form in ("{}", "v{}", "1.{}", "1.{}.0"):
        assert (version_order(form.format(one)) < version_order(form.format(two))) == (one < two)


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
def test_a_pattern_matches_as_the_definition_says(pattern: str, name: str) -> None:
    """`*` stands for any run of characters and everything else for itself; compared with the plain recursion."""

    def means(pattern: str, name: str) -> bool:
        if not pattern:
            return not name
        if pattern[0] == "*":
            return any(means(pattern[1:], name[at:]) for at in range(len(name) + 1))
        return name[:1] == pattern[0] and means(pattern[1:], name[1:])

    assert matcher(pattern)(name) == means(pattern, name)


# --- check


@pytest.mark.parametrize("uri", DRAFTS)
def test_each_draft_is_read_as_its_own(uri: str) -> None:
    """With and without the empty fragment; what one draft says and another does not tells them apart."""
    old = DRAFTS[uri] == "draft-04"
    for named in (uri, uri + "#"):
        schema = schema_of({"$schema": named, "minimum": 3, "exclusiveMinimum": True if old else 3, "format": "ipv4"})
        assert schema.draft == DRAFTS[uri]
        assert [each.keyword for each in schema.check(3)] == ["exclusiveMinimum"]
        asserted = DRAFTS[uri].startswith("draft")
        assert bool(schema.check("not an address")) == asserted


def test_the_default_draft_is_the_latest() -> None:
    """`prefixItems` is 2020-12's own."""
    assert schema_of({"prefixItems": [{"type": "null"}]}).check([1])[0].path == "/*"


def test_a_violation_says_what_was_expected_and_the_type_found() -> None:
    """Path, keyword and schema path are pointers; names that the schema does not name are `*`."""
    schema = schema_of(
        {"properties": {"a/b~": {"type": ["string", "null"]}, "k": {"enum": [1, 2]}}, "additionalProperties": False}
    )
    found = schema.check({"a/b~": [0], "k": 3, "zz": 1})
    assert [(each.path, each.keyword, each.message, each.schema_path) for each in found] == [
        ("", "additionalProperties", "properties that the schema does not allow: 1", "/additionalProperties"),
        ("/a~1b~0", "type", "expected null or string, found array", "/properties/a~1b~0/type"),
        ("/k", "enum", "expected one of [1,2], found another integer", "/properties/k/enum"),
    ]
    keys = schema_of({"additionalProperties": {"properties": {"n": {"type": "null"}}}})
    assert keys.check({"somebody@example.com": {"n": 1}})[0].path == "/*/n"


def test_a_thousand_equal_violations_are_one() -> None:
    """Equal but for the index, they share a path."""
    assert len(schema_of({"items": {"type": "null"}}).check([1] * 1_000)) == 1


def test_violations_are_bounded_and_so_is_the_time() -> None:
    """Fifty missing properties give twenty violations; a million wrong items give one, soon."""
    required = schema_of({"required": [f"p{n}" for n in range(50)]})
    assert len(required.check({})) == MAX_VIOLATIONS
    wrong = schema_of({"items": {"type": "null"}})
    began = time.perf_counter()
    assert len(wrong.check(["x"] * 1_000_000)) == 1
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_an_entangled_schema_cannot_stall(keyword: str) -> None:
    """A schema that applies itself twice to each member doubles with each level: judged all the same, and soon."""
    schema = schema_of({"type": "object", "properties": {"a": {keyword: [{"$ref": "#"}, {"$ref": "#"}]}}})
    payload: Any = 1
    for _ in range(60):
        payload = {"a": payload}
    began = time.perf_counter()
    assert not schema.is_valid(payload)
    assert [each.keyword for each in schema.check(payload)] == ["schema"]
    assert time.perf_counter() - began < 1
    assert schema.check({"a": 1})[0].path == "/a"


def test_a_recursive_schema_still_says_where() -> None:
    """A plain tree grows with the payload and no faster."""
    schema = schema_of({"properties": {"name": {"type": "string"}, "children": {"items": {"$ref": "#"}}}})
    payload: Any = {"name": 1}
    for _ in range(20):
        payload = {"name": "n", "children": [payload]}
    assert [each.path for each in schema.check(payload)] == ["/children/*" * 20 + "/name"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)
SAMPLE = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {"items": {"minimum": 0}}}}


@given(json_values)
def test_valid_means_no_violation(payload: Any) -> None:
    """`is_valid` and `check` never disagree."""
    schema = schema_of(SAMPLE)
    assert schema.is_valid(payload) == (schema.check(payload) == [])


@pytest.mark.parametrize("payload", [{1: 2}, object(), "\ud800", b"x"], ids=lambda value: type(value).__name__)
def test_what_is_not_json_is_a_violation_and_no_exception(payload: Any) -> None:
    """Nothing that a payload holds raises."""
    schema = schema_of(SAMPLE)
    assert not schema.is_valid(payload)
    assert schema.check(payload)


def test_numbers_are_exact() -> None:
    """Past 64 bits a limit still tells n from n + 1."""
    schema = schema_of({"maximum": 2**64 - 1})
    assert [schema.is_valid(2**64 - 1), schema.is_valid(2**64), schema.is_valid(10**30)] == [True, False, False]


def test_a_catastrophic_pattern_does_not_stall() -> None:
    """`^(a+)+$` against a long near miss is linear here."""
    schema = schema_of({"pattern": "^(a+)+$"})
    began = time.perf_counter()
    assert not schema.is_valid("a" * 100_000 + "b")
    assert time.perf_counter() - began < 1
