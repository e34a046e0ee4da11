"""Anthropic's Messages API: tool use, plain and streamed."""

import json
from typing import Any

import pytest

from dialects.talk import at, events, handoffs
from handrail.event import Event

TOOL = {
    "name": "transfer_to_billing",
    "description": "Handoff to the Billing agent to handle the request.",
    "input_schema": {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]},
}
BODY = {
    "model": "claude",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "You are the triage agent."}],
    "messages": [{"role": "user", "content": "refund"}],
    "tools": [TOOL],
}
USE = {"type": "tool_use", "id": "toolu_1", "name": "transfer_to_billing", "input": {"amount": 4}}
USAGE = {"input_tokens": 10, "cache_read_input_tokens": 30, "output_tokens": 5}
PATH = "/v1/messages"


def message(*content: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": list(content),
        "stop_reason": "tool_use",
        "usage": USAGE,
    }


def stream(*values: dict[str, Any]) -> bytes:
    return "".join(f"event: {value['type']}\ndata: {json.dumps(value)}\n\n" for value in values).encode()


STREAM = (
    {"type": "message_start", "message": message() | {"usage": USAGE | {"output_tokens": 1}}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Passing on."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": USE | {"input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"amo'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": 'unt": 4}'}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
)


def usage_of(found: list[Event]) -> Event:
    [usage] = [event for event in found if event.kind == "usage"]
    return usage


@pytest.mark.parametrize("reply", [message({"type": "text", "text": "Passing on."}, USE), stream(*STREAM)])
def test_tool_use_is_a_handoff(reply: Any) -> None:
    """Plain and streamed give the same; what was read from a cache is input."""
    found = events([at(0, BODY, reply, path=PATH)])
    usage, [handoff] = usage_of(found), [event for event in found if event.kind == "handoff"]
    assert (handoff.source, handoff.target, handoff.payload) == ("triage agent", "Billing", {"amount": 4})
    assert (handoff.task, handoff.subject, handoff.version) == ("toolu_1", "triage_agent.billing", "1")
    assert (usage.outcome, usage.tokens, usage.reply["input_tokens"]) == ("completed", 45, 40)


@pytest.mark.parametrize(
    ("system", "result", "outcome"),
    [
        ("You are the billing agent.", {"content": "Successfully transferred to Billing"}, "accepted"),
        ("You are the triage agent.", {"content": "amount is missing", "is_error": True}, "rejected"),
        ("You are the triage agent.", {"content": [{"type": "text", "text": "Error: no such agent"}]}, "rejected"),
    ],
)
def test_the_result_of_the_tool_tells_what_came_of_it(system: str, result: dict[str, Any], outcome: str) -> None:
    """By the id of the tool's use, exact."""
    done = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"} | result]}
    history = [*BODY["messages"], {"role": "assistant", "content": [USE]}, done]  # type: ignore[misc]
    tools = BODY["tools"] if "triage" in system else []
    second = BODY | {"system": system, "messages": history, "tools": tools}
    reply = message({"type": "text", "text": "ok"})
    [found] = handoffs([at(0, BODY, message(USE), path=PATH), at(1, second, reply, path=PATH)])
    assert found.outcome == outcome


def test_a_stream_that_fails() -> None:
    """An error event after a good beginning."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    usage = usage_of(events([at(0, BODY, stream(*STREAM[:4], error), path=PATH)]))
    assert (usage.outcome, usage.reply["error"]) == ("failed", "overloaded_error")


def test_half_a_stream() -> None:
    """A use that was not finished has asked nobody for anything."""
    found = events([at(0, BODY, stream(*STREAM[:7]), path=PATH, end="upstream_reset", cut="incomplete")])
    assert [(event.kind, event.outcome) for event in found] == [("usage", "interrupted")]


def test_a_path_alone_is_not_enough() -> None:
    """An agent's own `/messages` endpoint is not this API."""
    [found] = events([at(0, {"messages": [{"text": "hi"}]}, {}, path="/chat/messages")])
    assert found.protocol == "http"
    [found] = events([at(0, {"model": "claude", "messages": []}, {"input_tokens": 3}, path=PATH + "/count_tokens")])
    assert (found.protocol, found.kind) == ("anthropic", "usage")
