"""What jsonschema-rs says of a payload, held against the official suite and against the reference implementation."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.schema.registry import Documents, Schema, SchemaError

SUITE = Path(__file__).parents[2].parent / "shared" / "fixtures" / "json-schema-test-suite" / "tests"
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


REMOTES = SUITE.parent / "remotes"
HOST = "http://localhost:1234/"
"""Where the suite says that its remotes are. Here they are registered documents, and nothing listens there."""

REFUSED = {
    "ref overrides any sibling keywords": "a keyword that its draft passes over beside `$ref` is refused, not ignored",
    "id inside an enum is not a real identifier": "it holds `const`, which draft-04 would pass over",
    "schema that uses custom metaschema with with no validation vocabulary": "a meta-schema of one's own is refused",
    "ignore unrecognized optional vocabulary": "a meta-schema of one's own is refused",
    "schema that uses custom metaschema with format-assertion: false": "a meta-schema of one's own is refused",
    "schema that uses custom metaschema with format-assertion: true": "a meta-schema of one's own is refused",
    "refs to historic drafts are processed as historic drafts": "the other document holds what its draft passes over",
}
"""The schemas of the suite that cannot be registered, by what it calls them, and why not."""


def remotes() -> dict[str, bytes]:
    """The suite's remotes by their URIs, but for those of drafts that nobody writes or that is not out."""
    found = {}
    for file in sorted(REMOTES.rglob("*.json")):
        name = file.relative_to(REMOTES).as_posix()
        if not name.startswith(("draft3/", "v1/")):
            found[HOST + name] = file.read_bytes()
    return found


def answers(draft: str, pattern: str) -> tuple[list[str], list[str], int]:
    """The cases that are answered otherwise than the suite says, the schemas that are refused, how many were asked."""
    known = {uri: (f"remote-{place}/1.json", raw) for place, (uri, raw) in enumerate(remotes().items())}
    names = {uri: file for uri, (file, _) in known.items()}
    others = dict(known.values())
    references = dict.fromkeys(["suite/1.json", *others], names)
    wrong, refused, asked = [], [], 0
    for file in sorted(SUITE.joinpath(draft).glob(pattern)):
        for group in json.loads(file.read_text("utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": DRAFTS[draft], **schema}
            raw = json.dumps(schema).encode()
            try:
                compiled = Schema("suite", "1", raw, Documents({"suite/1.json": raw, **others}, references))
            except SchemaError:
                refused.append(group["description"])
                continue
            for case in group["tests"]:
                asked += 1
                if compiled.is_valid(case["data"]) != case["valid"]:
                    wrong.append(f"{file.stem}: {group['description']}: {case['description']}")
    return wrong, refused, asked


@pytest.mark.skipif(not SUITE.is_dir(), reason="the suite is not beside this checkout")
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(("pattern", "least"), [("*.json", 600), ("optional/*.json", 90)])
def test_the_suite_is_answered_as_it_says(draft: str, pattern: str, least: int) -> None:
    """Every case, required and optional, of every schema that may be registered; each that may not has its reason."""
    wrong, refused, asked = answers(draft, pattern)
    assert wrong == []
    assert [name for name in refused if name not in REFUSED] == []
    assert asked > least


@pytest.mark.skipif(not SUITE.is_dir(), reason="the suite is not beside this checkout")
@pytest.mark.parametrize("draft", ["draft4", "draft6", "draft7"])
def test_formats_are_asserted_in_the_older_drafts(draft: str) -> None:
    """Every format that the suite knows, every case."""
    wrong, refused, asked = answers(draft, "optional/format/*.json")
    assert (wrong, refused) == ([], [])
    assert asked > 200


@pytest.mark.skipif(not SUITE.is_dir(), reason="the suite is not beside this checkout")
@pytest.mark.parametrize("draft", ["draft2019-09", "draft2020-12"])
def test_formats_are_annotations_in_the_newer_drafts(draft: str) -> None:
    """As these drafts say: a format refuses nothing, whatever the string."""
    for file in sorted(SUITE.joinpath(draft).glob("optional/format/*.json")):
        for group in json.loads(file.read_text("utf-8")):
            if set(group["schema"]) == {"$schema", "format"}:
                schema = Schema("suite", "1", json.dumps(group["schema"]).encode())
                assert all(schema.is_valid(case["data"]) for case in group["tests"])


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)
schemas = st.deferred(
    lambda: (
        st.booleans()
        | st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"]),
                "enum": st.lists(
                    plain, min_size=1, max_size=3, unique_by=lambda value: json.dumps(value, sort_keys=True)
                ),
                "minimum": st.integers(-2, 2),
                "maxLength": st.integers(0, 2),
                "maxItems": st.integers(0, 2),
                "required": st.lists(st.sampled_from(["a", "b"]), unique=True, max_size=2),
                "properties": st.dictionaries(st.sampled_from(["a", "b"]), schemas, max_size=2),
                "additionalProperties": schemas,
                "items": schemas,
                "not": schemas,
                "anyOf": st.lists(schemas, min_size=1, max_size=2),
            },
        )
    )
)


@given(schema=schemas, payload=plain)
def test_the_reference_implementation_agrees(schema: Any, payload: Any) -> None:
    """On any schema of the common keywords and any payload."""
    ours = Schema("law", "1", json.dumps(schema).encode())

    assert ours.is_valid(payload) == jsonschema.Draft202012Validator(schema).is_valid(payload)
