"""What jsonschema-rs says of a payload, held against the official suite and against the reference implementation."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.schema.registry import Schema, SchemaError

SUITE = Path(__file__).parents[2].parent / "shared" / "fixtures" / "json-schema-test-suite" / "tests"
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


def compiled(schema: Any, draft: str) -> Schema | None:
    """A schema of the suite as the registry would hold it; None where the registry refuses it, which is its right."""
    if isinstance(schema, dict):
        schema = {"$schema": DRAFTS[draft], **schema}
    try:
        return Schema("suite", "1", json.dumps(schema).encode())
    except SchemaError:
        return None


@pytest.mark.skipif(not SUITE.is_dir(), reason="the suite is not beside this checkout")
@pytest.mark.parametrize("draft", DRAFTS)
def test_the_required_suite_is_answered_as_it_says(draft: str) -> None:
    """Every case of every schema that may be registered; what is refused refers to other documents."""
    wrong, answered, refused = [], 0, []
    for file in sorted(SUITE.joinpath(draft).glob("*.json")):
        for group in json.loads(file.read_text("utf-8")):
            schema = compiled(group["schema"], draft)
            if schema is None:
                refused.append(f"{file.stem}: {group['description']}")
                continue
            for case in group["tests"]:
                answered += 1
                if schema.is_valid(case["data"]) != case["valid"]:
                    wrong.append(f"{file.stem}: {group['description']}: {case['description']}")
    assert wrong == []
    assert answered > 500
    assert len(refused) < 60, refused


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
