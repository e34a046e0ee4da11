"""References between subjects: where they lead, what they can never reach, and that a payload is judged by them."""

import json
from typing import Any

import pytest

from handrail.schema.registry import MAX_DOCUMENTS, Documents, Registry, Schema

ADDRESS = {"type": "object", "required": ["street"], "$defs": {"zip": {"maxLength": 5}}}


def registry_of(schemas: dict[str, Any], references: dict[str, dict[str, str]] | None = None) -> Registry:
    registry = Registry()
    problems = registry.load({file: json.dumps(schema).encode() for file, schema in schemas.items()}, references)
    assert [str(each) for each in problems] == []
    return registry


def problem_of(schemas: dict[str, Any], references: dict[str, dict[str, str]] | None = None) -> str:
    problems = Registry().load({file: json.dumps(schema).encode() for file, schema in schemas.items()}, references)
    return "; ".join(map(str, problems))


def is_valid(registry: Registry, payload: Any, subject: str = "order", version: str = "1") -> bool:
    schema = registry.schema(subject, version)
    assert schema is not None
    return schema.is_valid(payload)


@pytest.mark.parametrize("text", ["../address/1.json", "/address/1.json", "http://registry.invalid/address/1.json"])
def test_files_refer_to_each_other_by_path(text: str) -> None:
    """In a directory, as a browser would resolve it."""
    registry = registry_of({"address/1.json": ADDRESS, "order/1.json": {"properties": {"to": {"$ref": text}}}})
    assert is_valid(registry, {"to": {"street": "Main"}})
    assert not is_valid(registry, {"to": {}})


def test_files_refer_to_each_other_by_identity() -> None:
    """To the latest version of the subject whose `$id` it is; two subjects of one `$id` are none."""
    named = {"$id": "https://example.com/address", **ADDRESS}
    order = {"properties": {"to": {"$ref": "https://example.com/address#/$defs/zip"}}}
    registry = registry_of({"address/1.json": {"$id": named["$id"]}, "address/2.json": named, "order/1.json": order})
    assert not is_valid(registry, {"to": "123456"})
    assert "nothing is fetched" in problem_of({"a/1.json": named, "b/1.json": named, "order/1.json": order})


def test_names_are_those_of_each_document() -> None:
    """Two documents may call different things by one name."""
    registry = registry_of(
        {
            "order/1.json": {"properties": {"a": {"$ref": "x.json"}, "b": {"$ref": "inner.json"}}},
            "inner/1.json": {"properties": {"c": {"$ref": "x.json"}}},
            "text/1.json": {"type": "string"},
            "number/1.json": {"type": "number"},
        },
        {
            "order/1.json": {"x.json": "text/1.json", "inner.json": "inner/1.json"},
            "inner/1.json": {"x.json": "number/1.json"},
        },
    )
    assert is_valid(registry, {"a": "text", "b": {"c": 1}})
    assert not is_valid(registry, {"a": 1})
    assert not is_valid(registry, {"b": {"c": "text"}})


def test_documents_may_refer_to_each_other_in_a_circle() -> None:
    """A tree whose branches are forests."""
    registry = registry_of(
        {
            "tree/1.json": {"properties": {"under": {"$ref": "../forest/1.json"}}, "required": ["name"]},
            "forest/1.json": {"items": {"$ref": "../tree/1.json"}},
        }
    )
    assert is_valid(registry, {"name": 1, "under": [{"name": 2, "under": []}]}, "tree")
    assert not is_valid(registry, {"name": 1, "under": [{"name": 2, "under": [{}]}]}, "tree")


def test_a_document_keeps_its_draft() -> None:
    """One that names none is of the draft of whoever refers to it."""
    old = "http://json-schema.org/draft-07/schema#"
    pair = {"definitions": {"pair": {"items": [{"type": "string"}], "additionalItems": False}}}
    order = {"$schema": old, "properties": {"pair": {"$ref": "p#/definitions/pair"}}}
    names = {"order/1.json": {"p": "pair/1.json"}}
    files = {"order/1.json": json.dumps(order).encode(), "pair/1.json": json.dumps(pair).encode()}
    schema = Schema("order", "1", files["order/1.json"], Documents(files, names))
    assert not schema.is_valid({"pair": ["a", "b"]})
    newer = {"$schema": "https://json-schema.org/draft/2020-12/schema", "prefixItems": [{"type": "string"}]}
    mixed = registry_of(
        {"order/1.json": {"$schema": old, "properties": {"pair": {"$ref": "../pair/1.json"}}}, "pair/1.json": newer}
    )
    assert not is_valid(mixed, {"pair": [1]})


def test_what_is_not_registered_is_never_reached() -> None:
    """A name that is not given leads nowhere, whatever lies beside it."""
    order = {"$ref": "../address/1.json"}
    assert "nothing is fetched" in problem_of({"order/1.json": order, "address/1.json": {}}, {"order/1.json": {}})
    assert "nothing is fetched" in problem_of({"order/1.json": {"$ref": "../../etc/passwd"}})
    assert "nothing is fetched" in problem_of({"order/1.json": {"$ref": "file:///etc/passwd"}})
    assert "is not in the document" in problem_of({"order/1.json": {"$ref": "#/nowhere"}})
    assert problem_of({"order/1.json": {"$ref": "../address/1.json#/nowhere"}, "address/1.json": {}})


def test_documents_together_are_bounded_like_one() -> None:
    """A chain of references is not a way past the limits."""
    chain = {f"s{n}/1.json": {"properties": {"a": {"$ref": f"../s{n + 1}/1.json"}}} for n in range(MAX_DOCUMENTS + 2)}
    assert f"more than {MAX_DOCUMENTS} documents" in problem_of({**chain, f"s{MAX_DOCUMENTS + 2}/1.json": {}})
    many = {"anyOf": [{"minLength": n} for n in range(1500)]}
    both = {"allOf": [{"$ref": "../a/1.json"}, {"$ref": "../b/1.json"}]}
    assert "more than 2000 subschemas" in problem_of({"a/1.json": many, "b/1.json": many, "order/1.json": both})
    loop = {"a/1.json": {"allOf": [{"$ref": "../b/1.json"}]}, "b/1.json": {"$ref": "../a/1.json"}}
    assert "lead back here" in problem_of(loop)


def test_a_change_behind_a_reference_is_a_change() -> None:
    """The version that refers is compiled anew, though its own text is the same."""
    registry = registry_of({"a/1.json": {"type": "string"}, "order/1.json": {"$ref": "../a/1.json"}})
    assert is_valid(registry, "text")
    assert registry.load({"a/1.json": b'{"type":"null"}', "order/1.json": b'{"$ref": "../a/1.json"}'}) == []
    assert not is_valid(registry, "text")


@pytest.mark.parametrize(
    "draft", ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"]
)
def test_a_bundle_says_the_same(draft: str) -> None:
    """With everything embedded, for those who look at one document."""
    files = {
        "order/1.json": json.dumps({"$schema": draft, "properties": {"to": {"$ref": "../a/1.json#/definitions/x"}}}),
        "a/1.json": json.dumps({"$id": "http://example.com/a", "definitions": {"x": {"allOf": [{"$ref": "b"}]}}}),
        "b/1.json": json.dumps({"$id": "http://example.com/b", "type": "string"}),
    }
    documents = Documents({file: text.encode() for file, text in files.items()})
    bundle = documents.bundled("order/1.json", json.loads(files["order/1.json"]))
    alone = Schema("order", "1", json.dumps(bundle).encode())
    whole = Schema("order", "1", files["order/1.json"].encode(), documents)
    for payload in ({}, {"to": "text"}, {"to": 7}):
        assert alone.is_valid(payload) == whole.is_valid(payload) == (payload.get("to", "") != 7)


MISPLACED = [
    ("draft-04", {"const": 1}),
    ("draft-06", {"if": {}}),
    ("draft-07", {"items": {"dependentRequired": {}}}),
    ("draft-07", {"properties": {"a": {"$ref": "#/definitions/a", "type": "string"}}, "definitions": {"a": {}}}),
    ("2019-09", {"prefixItems": []}),
    ("2020-12", {"additionalItems": False}),
    ("2020-12", {"$defs": {"a": {"nullable": True}}}),
    ("2020-12", {"divisibleBy": 2}),
]
MEANT = [
    ("draft-07", {"$ref": "#/definitions/a", "definitions": {"a": {}}, "title": "t", "description": "d"}),
    ("2020-12", {"$ref": "#/$defs/a", "$defs": {"a": {}}, "maxLength": 3}),
    ("2020-12", {"properties": {"nullable": {"const": 1}, "additionalItems": {}}}),
    ("draft-07", {"x-note": {"if": 1, "prefixItems": 2}, "examples": [{"nullable": True}], "enum": [{"const": 1}]}),
]
URIS = {
    "draft-04": "http://json-schema.org/draft-04/schema#",
    "draft-06": "http://json-schema.org/draft-06/schema#",
    "draft-07": "http://json-schema.org/draft-07/schema#",
    "2019-09": "https://json-schema.org/draft/2019-09/schema",
    "2020-12": "https://json-schema.org/draft/2020-12/schema",
}


@pytest.mark.parametrize(("draft", "schema"), MISPLACED)
def test_a_keyword_that_would_be_ignored_is_refused(draft: str, schema: Any) -> None:
    """With its place and the reason."""
    assert "would be ignored" in problem_of({"s/1.json": {"$schema": URIS[draft], **schema}})


@pytest.mark.parametrize(("draft", "schema"), MEANT)
def test_what_only_looks_like_a_keyword_passes(draft: str, schema: Any) -> None:
    """Names of members, annotations, examples."""
    assert problem_of({"s/1.json": {"$schema": URIS[draft], **schema}}) == ""
