"""The OpenAI Agents SDK's own traces: what their records say as spans."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.wire.ingest import ingest_of

HEX = "ca2fbabae0e84429900974eebd929682"
TIMES = {"started_at": "2026-01-01T00:00:01+00:00", "ended_at": "2026-01-01T00:00:02.5+00:00"}


def span(id: str = "span_1", error: Any = None, parent: str | None = None, **data: Any) -> dict[str, Any]:
    head = {"object": "trace.span", "id": id, "trace_id": f"trace_{HEX}", "parent_id": parent, **TIMES}
    return {**head, "span_data": data, "error": error}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"type": "handoff", "from_agent": "Triage", "to_agent": "Billing"},
            {"gen_ai.handoff.from_agent": "Triage", "gen_ai.handoff.to_agent": "Billing"},
        ),
        ({"type": "agent", "name": "Triage"}, {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Triage"}),
        (
            {"type": "function", "name": "ask", "input": "{}"},
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "ask",
                "gen_ai.tool.call.arguments": "{}",
            },
        ),
        ({"type": "custom", "name": "turn", "data": {}}, {}),
        ({"type": "of tomorrow"}, {}),
    ],
)
def test_a_span_says_what_its_type_means(data: dict[str, Any], says: dict[str, Any]) -> None:
    """Under the names of the GenAI conventions, with W3C's trace id and its own times."""
    [read] = ingest_of({"data": [span(parent="span_0", **data)]}).spans
    assert dict(read.attributes) == says
    assert (read.trace_id, read.span_id, read.parent_id) == (HEX, "span_1", "span_0")
    assert (read.start, read.end - read.start, read.error) == (1767225601.0, 1.5, None)


def test_a_trace_says_what_its_conversation_is_called() -> None:
    """In a record of its own, and only where it has a name."""
    named = {"object": "trace", "id": f"trace_{HEX}", "workflow_name": "Refund flow", "group_id": "thread-77"}
    [read, other] = ingest_of({"data": [named, {**named, "group_id": None}]}).spans
    assert read.trace_id == other.trace_id == HEX
    assert dict(read.attributes) == {"openai.agents.group_id": "thread-77"}
    assert dict(other.attributes) == {}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, None),
        ({"message": "Error in input", "data": None}, "Error in input"),
        ({}, ""),
        ({"message": "Multiple handoffs requested", "data": {"requested_agents": ["a", "b"]}}, None),
    ],
)
def test_an_error_is_told_unless_it_is_a_note(error: Any, told: str | None) -> None:
    """The SDK marks the one handoff that it takes of several: that one was done."""
    [read] = ingest_of({"data": [span(error=error, type="handoff", from_agent="a", to_agent="b")]}).spans
    assert read.error == told


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["trace", "trace.span", HEX, "handoff"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "object", "id", "trace_id", *TIMES, "span_data", "error"]), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_whatever_comes_is_read_or_counted(value: Any) -> None:
    """Nothing breaks the reader, and every record is one span or one that was rejected."""
    for given_ in (value, {"data": value}):
        read = ingest_of(given_)
        data = given_.get("data") if isinstance(given_, dict) else None
        assert len(read.spans) + read.rejected == (len(data) if isinstance(data, list) else 1)
