"""Gemini's generateContent: function calls, plain and streamed, and ADK's way of handing off."""

import json
from typing import Any

import pytest

from dialects.talk import at, events, handoffs, told
from handrail.config import Config
from handrail.pipeline import build
from handrail.schema.registry import Registry

PATH = "/v1beta/models/gemini-3-flash:generateContent"
STREAM_PATH = "/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse"
ENUM = {"type": "object", "properties": {"agent_name": {"type": "string", "enum": ["billing_agent"]}}}


def body(system: str, *contents: Any, schema: Any = ENUM, tool: str | None = "transfer_to_agent") -> dict[str, Any]:
    declared = [] if tool is None else [{"name": tool, "description": "Transfer.", "parameters_json_schema": schema}]
    return {
        "systemInstruction": {"parts": [{"text": system}], "role": "user"},
        "contents": list(contents),
        "tools": [{"functionDeclarations": declared}],
    }


def said(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


def call(name: str = "transfer_to_agent", **args: Any) -> dict[str, Any]:
    return {"role": "model", "parts": [{"functionCall": {"name": name, "args": args}}]}


def reply(*contents: Any, finish: str | None = "STOP") -> dict[str, Any]:
    candidates = [{"content": content, "finishReason": finish} for content in contents]
    usage = {"promptTokenCount": 50, "candidatesTokenCount": 20, "totalTokenCount": 70}
    return {"candidates": candidates, "usageMetadata": usage, "modelVersion": "gemini-3", "responseId": "r1"}


def sse(*values: Any) -> bytes:
    return "".join(f"data: {json.dumps(value)}\r\n\r\n" for value in values).encode()


TRIAGE = 'Route.\n\nYour internal name is "triage_agent".'
BILLING = 'Bill.\n\nYour internal name is "billing_agent".'
QUOTED = (
    "For context:\n<<<BEGIN_QUOTED_AGENT_CONTENT>>>\n[triage_agent] called tool `transfer_to_agent` with parameters:"
    " {'agent_name': 'billing_agent'}\n<<<END_QUOTED_AGENT_CONTENT>>>"
)


def adk(start: float, *, streamed: bool = False, asked: str = "refund me") -> list[Any]:
    replies = (reply(call(agent_name="billing_agent")), reply(said("done", "model")))
    path = STREAM_PATH if streamed else PATH
    first, second = (sse(each) if streamed else each for each in replies)
    return [
        at(start, body(TRIAGE, said(asked)), first, path=path),
        at(start + 1, body(BILLING, said(asked), said(QUOTED), tool=None), second, path=path),
    ]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_transfer_without_ids(streamed: bool) -> None:
    """Names are in the prompts and in the argument; the call has no id, so the link is inferred."""
    exchanges = adk(0.0, streamed=streamed)
    assert told(exchanges) == [("triage_agent", "billing_agent", "accepted", "inferred")]
    usage = [event for event in events(exchanges) if event.kind == "usage"]
    assert [(event.tokens, event.outcome) for event in usage] == [(70, "completed")] * 2


def test_identical_conversations_are_ambiguous() -> None:
    """Nothing tells them apart, and nothing is guessed."""
    exchanges = sorted([*adk(0.0), *adk(0.1)], key=lambda exchange: exchange.request.at)
    assert told(exchanges) == [("triage_agent", "billing_agent", "accepted", "ambiguous")] * 2


def test_one_after_the_other_they_are_not() -> None:
    """The same words once more, when the first conversation is over."""
    assert {each[3] for each in told([*adk(0.0), *adk(10.0)])} == {"inferred"}


def test_a_function_response_answers_its_call_by_name() -> None:
    """An error in it rejects the handoff; the same agent goes on."""
    answer = {
        "role": "user",
        "parts": [{"functionResponse": {"name": "transfer_to_agent", "response": {"error": "no"}}}],
    }
    asked = call(agent_name="billing_agent")
    exchanges = [
        at(0, body(TRIAGE, said("hi")), reply(asked), path=PATH),
        at(1, body(TRIAGE, said("hi"), asked, answer), reply(said("sorry", "model")), path=PATH),
    ]
    [found] = handoffs(exchanges)
    assert (found.outcome, found.workflow) == ("rejected", exchanges[0].id)


def test_geminis_own_schemas_are_read_as_json_schema() -> None:
    """Types in capitals, `nullable`, counts as text."""
    schema = {
        "type": "OBJECT",
        "properties": {"amount": {"type": "NUMBER"}, "note": {"type": "STRING", "nullable": True, "maxLength": "5"}},
    }
    request = body(TRIAGE, said("hi"), tool=None)
    request["tools"] = [{"functionDeclarations": [{"name": "transfer_to_billing", "parameters": schema}]}]
    registry = Registry()
    inspector = build(Config(), registry, ())
    good, bad = {"amount": 4, "note": None}, {"amount": "lots"}
    for number, args in enumerate((good, bad)):
        list(inspector.whole(at(number, request, reply(call("transfer_to_billing", **args)), path=PATH)))
    found = [decision.event for decision in inspector.end() if decision.event]
    assert [(event.version, event.outcome) for event in found] == [("1", "dropped"), ("1", "rejected")]


def test_a_stream_without_sse_is_an_array() -> None:
    """What streamGenerateContent gives where `alt=sse` is not asked for."""
    path = STREAM_PATH.partition("?")[0]
    parts = [reply(said("let me", "model"), finish=None), reply(call(agent_name="billing_agent"))]
    [found] = handoffs([at(0, body(TRIAGE, said("hi")), parts, path=path)])
    assert found.target == "billing_agent"


def test_half_a_stream_and_an_error() -> None:
    """Cut before its finish; an error in place of candidates; a prompt that was blocked."""
    half = sse(reply(said("let", "model"), finish=None))
    cases = {
        "interrupted": at(0, body(TRIAGE, said("hi")), half, path=STREAM_PATH, end="upstream_reset"),
        "failed": at(0, body(TRIAGE, said("hi")), {"error": {"code": 503, "status": "UNAVAILABLE"}}, path=PATH),
        "completed": at(0, body(TRIAGE, said("hi")), {"promptFeedback": {"blockReason": "SAFETY"}}, path=PATH),
    }
    for outcome, exchange in cases.items():
        assert [event.outcome for event in events([exchange])] == [outcome]


def test_counting_tokens_is_no_handoff() -> None:
    """The API's other methods are calls of a model."""
    [found] = events([at(0, {"contents": []}, {"totalTokens": 3}, path=PATH.replace("generateContent", "countTokens"))])
    assert (found.kind, found.protocol, found.operation) == ("usage", "gemini", "countTokens")
