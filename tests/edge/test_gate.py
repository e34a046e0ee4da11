"""Replies of models in enforce mode: text passes at once, a call of a tool waits until it was judged."""

import json
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from edge.recorder import Stage, Wire, play, replying
from handrail.edge.gate import ReplyGate

RULES = """
language: 1
rules:
  - id: schema.violation
    title: t
    why: w
    maturity: stable
    severity: critical
    kind: schema.violation
    action: enforce
    tests:
      - {name: a repeated key, events: [{at: 0, uninspected: duplicate_key}], finds: 1}
      - {name: nothing wrong, events: [{at: 0}], finds: 0}
"""
SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}
TOOL = {"type": "function", "function": {"name": "transfer_to_billing", "description": "", "parameters": SCHEMA}}
SYSTEM = {"role": "system", "content": "You are the triage agent."}
BODY = json.dumps({"model": "m", "messages": [SYSTEM, {"role": "user", "content": "x"}], "tools": [TOOL]}).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(BODY), BODY)
)
TEXT_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(value: Any) -> bytes:
    data = b"data: " + (value if isinstance(value, bytes) else orjson.dumps(value)) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def delta(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]}


def call(arguments: str) -> dict[str, Any]:
    function = {"name": "transfer_to_billing", "arguments": arguments}
    return delta(tool_calls=[{"index": 0, "id": "k1", "type": "function", "function": function}])


def stream(arguments: str) -> tuple[bytes, bytes, bytes]:
    """Head and text; the call; the end."""
    return TEXT_HEAD + chunk(delta(content="let me see")), chunk(call(arguments)), chunk(b"[DONE]") + b"0\r\n\r\n"


def plain(arguments: str) -> bytes:
    function = {"name": "transfer_to_billing", "arguments": arguments}
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "k1", "function": function}]}
    body = orjson.dumps({"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": message}]})
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


GOOD, BAD = '{"amount": 4}', '{"amount": "lots"}'


def answer_of(*pieces: bytes, pause: float = 0.0) -> bytes:
    """What a client gets of these pieces, with the rule in force."""
    got = bytearray()

    async def scenario(stage: Stage) -> None:
        client = await stage.client()
        await client.send(REQUEST)
        while not got.endswith(b"0\r\n\r\n") and b"content-length" not in bytes(got).lower():
            got.extend(await client.more())
        client.close()

    play(scenario, replying(*pieces, pause=pause), rules_text=RULES)
    return bytes(got)


def test_a_good_call_passes_byte_for_byte() -> None:
    """Streamed and plain, in one piece and in several."""
    pieces = stream(GOOD)
    assert answer_of(*pieces, pause=0.01) == answer_of(b"".join(pieces)) == b"".join(pieces)
    assert answer_of(plain(GOOD)) == plain(GOOD)


def test_a_bad_call_in_a_plain_reply_is_answered_422() -> None:
    """The reply never reaches the client."""
    got = answer_of(plain(BAD))
    assert got.startswith(b"HTTP/1.1 422 ")
    assert b"transfer_to_billing" not in got.partition(b"\r\n\r\n")[0]
    assert b"schema.violation" in got


def test_a_bad_call_in_a_stream_becomes_an_error_event() -> None:
    """What was said before has passed; the call has not, and the stream ends in good order."""
    first, second, third = stream(BAD)
    got = answer_of(first, second, third, pause=0.01)
    assert got.startswith(first)
    assert b"lots" not in got
    assert b'"code":"schema.violation"' in got
    assert got.endswith(b"\n\n\r\n0\r\n\r\n")


def test_text_is_not_held() -> None:
    """The client has the text while the call has not come to its end."""

    async def scenario(stage: Stage) -> None:
        client = await stage.client()
        await client.send(REQUEST)
        got = b""
        while b"let me see" not in got:
            got += await client.more()
        assert b"transfer_to" not in got
        client.close()

    first, second, _ = stream(BAD)
    play(scenario, replying(first + second), rules_text=RULES)


def test_a_handoff_is_one_record_when_its_target_has_spoken() -> None:
    """Live and streamed, nothing enforced: bytes untouched, two calls of the model and one handoff."""
    first = b"".join(stream(GOOD))
    second = TEXT_HEAD + chunk(delta(content="done")) + chunk(b"[DONE]") + b"0\r\n\r\n"
    asked = {"role": "assistant", "tool_calls": [{"id": "k1", "function": {"name": "transfer_to_billing"}}]}
    history = [{"role": "user", "content": "x"}, asked, {"role": "tool", "tool_call_id": "k1", "content": "done"}]
    body = json.dumps({"messages": [{"role": "system", "content": "You bill."}, *history]}).encode()
    on = REQUEST.replace(b"%d" % len(BODY), b"%d" % len(body)).replace(BODY, body)

    async def upstream(wire: Wire) -> None:
        for reply in (first, second):
            await wire.message()
            await wire.send(*[reply[at : at + 50] for at in range(0, len(reply), 50)])
        await wire.rest()

    async def scenario(stage: Stage) -> None:
        client = await stage.client()
        got = []
        for request in (REQUEST, on):
            await client.send(request)
            got.append(await client.message())
        client.close()
        found = await stage.settled(events=3)
        assert got == [first, second]
        assert sorted((event.kind, event.outcome) for event in found) == [
            ("handoff", "accepted"),
            ("usage", "completed"),
            ("usage", "completed"),
        ]

    play(scenario, upstream)


@given(st.lists(st.integers(1, 400), max_size=6), st.sampled_from([GOOD, BAD]))
def test_every_cut_releases_the_same_bytes(cuts: list[int], arguments: str) -> None:
    """What passes and what waits are together what came, and no whole call is among what passed."""
    raw = b"".join(stream(arguments))
    gate = ReplyGate()
    passed = b""
    at = 0
    for cut in [*sorted(cuts), len(raw)]:
        passed += gate.feed(raw[at:cut])
        at = max(at, cut)
    assert b"amount" not in passed
    assert passed + gate.release() == raw
