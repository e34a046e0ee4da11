"""What the OpenAI Agents SDK exports of its traces (`POST /v1/traces/ingest`) becomes spans as OpenTelemetry has them.

`{"data": [{"object": "trace", "id": "trace_<32 hex>", "group_id"}, {"object": "trace.span", "id", "trace_id",
"parent_id", "started_at", "ended_at", "span_data": {"type", …}, "error"}]}`, as openai-agents 0.24 writes it
(`agents/tracing/processors.py`, `span_data.py`). Attributes get the names of the GenAI conventions.
"""

from typing import Any

from handrail.event import seconds
from handrail.wire.otlp import Read, Span, id_of

__all__ = ["ingest_of"]

SCOPE = "openai.agents"
_LONGEST = 128
_NO_ERROR = "Multiple handoffs requested"
"""What the SDK notes on the handoff that it did take where a model asked for several."""


def ingest_of(value: object) -> Read:
    """The JSON value of an export to its spans; what is wrong with one record costs that record."""
    read = Read()
    data = value.get("data") if type(value) is dict else None
    if type(data) is not list:
        read.reject("data is no list")
        return read
    for item in data:
        span = _trace(item) if type(item) is dict and item.get("object") == "trace" else _span(item)
        if span is None:
            read.reject("a record is no trace and no span")
        else:
            read.spans.append(span)
    return read


def _trace(item: dict[str, Any]) -> Span | None:
    """A trace says what the conversation is called, in a record of its own."""
    trace, group = _trace_id(item.get("id")), item.get("group_id")
    if trace is None:
        return None
    said = {"openai.agents.group_id": group} if type(group) is str and group else {}
    return Span(trace_id=trace, span_id=trace, name="trace", attributes=said, scope=SCOPE)


def _span(item: object) -> Span | None:
    if type(item) is not dict or type(data := item.get("span_data")) is not dict:
        return None
    trace, own = _trace_id(item.get("trace_id")), _id(item.get("id"))
    start = _instant(item.get("started_at"))
    if trace is None or own is None or start is None:
        return None
    name, said = _said(data)
    error = item.get("error")
    problem = error.get("message") if type(error) is dict else None
    if type(error) is dict and type(problem) is not str:
        problem = ""
    return Span(
        trace_id=trace,
        span_id=own,
        parent_id=_id(item.get("parent_id")),
        name=name,
        start=start,
        end=max(start, _instant(item.get("ended_at")) or start),
        attributes={key: each for key, each in said.items() if each is not None},
        scope=SCOPE,
        error=problem if problem != _NO_ERROR else None,
    )


def _said(data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and attributes of a span, by its type."""
    kind, name = data.get("type"), data.get("name")
    if kind == "handoff":
        source, target = data.get("from_agent"), data.get("to_agent")
        return "handoff", {"gen_ai.handoff.from_agent": source or "", "gen_ai.handoff.to_agent": target}
    if kind == "agent":
        return "agent", {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}
    if kind == "function":
        tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
        return "tool", tool | {"gen_ai.tool.call.arguments": data.get("input")}
    if kind in ("generation", "response"):
        return "model", {"gen_ai.operation.name": "chat", "gen_ai.output.messages": data.get("output")}
    return "other", {}


def _trace_id(value: object) -> str | None:
    """The id without its prefix where it is a W3C trace id, else as it is."""
    if type(value) is not str:
        return None
    return id_of(value.removeprefix("trace_"), 32) or _id(value)


def _id(value: object) -> str | None:
    return value[:_LONGEST] if type(value) is str and value else None


def _instant(value: object) -> float | None:
    try:
        return seconds(value) if type(value) is str else None
    except ValueError:
        return None
