"""Replies of models in enforce mode: text passes at once, a call of a tool waits until it was judged."""

import itertools
import json
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.recorder import Stage, Wire, eventually, limits, play, replying
from handrail.config import Config, HandoffsConfig
from handrail.dialects.anthropic import Anthropic
from handrail.dialects.gemini import Gemini
from handrail.dialects.openai import OpenAi
from handrail.dialects.turns import Call, Format, Reading, Turn
from handrail.edge.gate import ReplyGate
from handrail.event import Finding, Refusal
from handrail.wire import HeadLimits, Reply
from handrail.wire.http1 import ReplyDecoder
from handrail.wire.sse import ServerSentEvent, SseDecoder

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


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
GEMINI = "/v1beta/models/m:streamGenerateContent?alt=sse"


def sse(*values: Any, end: str = "\n\n", event: bool = False) -> list[bytes]:
    """The events of a stream."""
    return [
        ((f"event: {value['type']}\n" if event else "") + "data: " + json.dumps(value) + end).encode()
        for value in values
    ]


def part(arguments: str, index: int = 0, **first: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": "transfer_to_billing"} if first else {})
    return delta(tool_calls=[{"index": index, **first, "function": function}])


def of_chat(*calls: str) -> list[bytes]:
    """Text, then calls side by side, each in three parts, and the end."""
    values = [delta(role="assistant", content=""), delta(content="let me see")]
    for at, arguments in enumerate(calls):
        values += [part("", at, id=f"k{at}"), part(arguments[:5], at), part(arguments[5:], at)]
    end = {"id": "c", "object": "chat.completion.chunk"}
    values.append({**end, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    return [*sse(*values, {**end, "choices": [], "usage": {"total_tokens": 70}}), b"data: [DONE]\n\n"]


def of_responses(*calls: str) -> list[bytes]:
    response = {"id": "r", "object": "response", "status": "in_progress", "output": []}
    values: list[Any] = [{"type": "response.created", "response": response}]
    values.append({"type": "response.output_text.delta", "output_index": 0, "delta": "let me see"})
    items = []
    for at, arguments in enumerate(calls, 1):
        item = {"type": "function_call", "id": f"fc{at}", "call_id": f"k{at}", "name": "transfer_to_billing"}
        where = {"output_index": at, "item_id": f"fc{at}"}
        items.append({**item, "arguments": arguments})
        values.append({"type": "response.output_item.added", **where, "item": {**item, "arguments": ""}})
        deltas = ({"delta": some} for some in (arguments[:5], arguments[5:]))
        values += [{"type": "response.function_call_arguments.delta", **where, **each} for each in deltas]
        values.append({"type": "response.function_call_arguments.done", **where, "arguments": arguments})
        values.append({"type": "response.output_item.done", **where, "item": items[-1]})
    values.append({"type": "response.completed", "response": {**response, "status": "completed", "output": items}})
    return sse(*values, event=True)


def of_messages(*calls: str) -> list[bytes]:
    values: list[Any] = [{"type": "message_start", "message": {"id": "m", "model": "m", "content": []}}]
    blocks = [({"type": "text", "text": ""}, [{"type": "text_delta", "text": "let me see"}])]
    for at, arguments in enumerate(calls):
        use = {"type": "tool_use", "id": f"k{at}", "name": "transfer_to_billing", "input": {}}
        parts = [{"type": "input_json_delta", "partial_json": some} for some in (arguments[:5], arguments[5:])]
        blocks.append((use, parts))
    for at, (block, deltas) in enumerate(blocks):
        values.append({"type": "content_block_start", "index": at, "content_block": block})
        values += [{"type": "content_block_delta", "index": at, "delta": each} for each in deltas]
        values.append({"type": "content_block_stop", "index": at})
    return sse(*values, {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, {"type": "message_stop"})


def of_gemini(*calls: str) -> list[bytes]:
    said = [{"text": "let me see"}]
    used = [{"functionCall": {"name": "transfer_to_billing", "args": json.loads(each)}} for each in calls]
    values = [
        {"candidates": [{"content": {"role": "model", "parts": parts}}]} for parts in (said, *([u] for u in used))
    ]
    values.append({"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"totalTokenCount": 70}})
    return sse(*values, end="\r\n\r\n")


STREAMS = {"chat": (CHAT, of_chat), "responses": (RESPONSES, of_responses)}
STREAMS |= {"messages": (MESSAGES, of_messages), "gemini": (GEMINI, of_gemini)}
FRAMES = ("chunks", "length", "connection")


def framed(events: list[bytes], frame: str, sizes: list[int] = []) -> bytes:  # noqa: B006
    """A reply with these events; chunks of these sizes, or one for each event."""
    body = b"".join(events)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    if frame == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if frame == "connection":
        return head + b"Connection: close\r\n\r\n" + body
    pieces, at = [], 0
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    pieces = [*pieces, body[at:]] if sizes else events
    chunks = b"".join(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: t\r\n\r\n"


def asked(path: str) -> bytes:
    """A request to each API with the same tool."""
    body: dict[str, Any] = {"model": "m", "stream": True, "max_tokens": 9}
    function = {"name": "transfer_to_billing", "description": "", "parameters": SCHEMA}
    user = {"role": "user", "content": "x"}
    if path == GEMINI:
        body = {"contents": [{"role": "user", "parts": [{"text": "x"}]}]}
        body["tools"] = [{"functionDeclarations": [{**function, "parameters": None, "parametersJsonSchema": SCHEMA}]}]
    elif path == MESSAGES:
        body |= {"system": "You are the triage agent.", "messages": [user]}
        body["tools"] = [{"name": "transfer_to_billing", "input_schema": SCHEMA}]
    elif path == RESPONSES:
        body |= {
            "instructions": "You are the triage agent.",
            "input": [user],
            "tools": [{"type": "function", **function}],
        }
    else:
        body |= {"messages": [SYSTEM, user], "tools": [TOOL]}
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def reading(path: str) -> Reading:
    formats: dict[str, Format] = {CHAT: OpenAi(), RESPONSES: OpenAi(), MESSAGES: Anthropic(), GEMINI: Gemini()}
    return formats[path].reading(Turn("chat.completions" if path == CHAT else "responses", []))


def cut(raw: bytes, sizes: list[int]) -> list[bytes]:
    """These bytes in pieces of these sizes, over and over."""
    pieces, at = [], 0
    for size in itertools.cycle(sizes):
        pieces.append(raw[at : at + size])
        at += size
        if at >= len(raw):
            return pieces
    return [raw]


SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=6)
CALLS = st.lists(st.sampled_from(['{"amount": 4}', '{"amount": 5, "note": "\\"tool_calls\\" \\n\\n"}']), max_size=3)


@pytest.mark.parametrize("kind", STREAMS)
@given(SIZES, SIZES, CALLS, st.sampled_from(FRAMES))
def test_without_a_finding_the_bytes_are_the_same(
    kind: str, sizes: list[int], chunks: list[int], calls: list[str], frame: str
) -> None:
    """However a stream is cut and framed, all of it passes, and every call is judged once."""
    path, made = STREAMS[kind]
    raw = framed(made(*calls), frame, chunks)
    judged: list[Call] = []

    def judge(found: dict[int, Call]) -> None:
        judged.extend(found.values())

    gate = ReplyGate(reading(path), judge)
    passed = b"".join(gate.feed(piece) for piece in cut(raw, sizes))
    assert not gate.is_due
    assert passed + gate.release() == raw
    values = [json.loads(call.arguments) if type(call.arguments) is str else call.arguments for call in judged]
    assert values == [json.loads(each) for each in calls]


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("frame", FRAMES)
def test_only_what_belongs_to_a_call_waits(kind: str, frame: str) -> None:
    """Event by event: text has passed when it is there; of a call nothing has before its end, and then all of it."""
    path, made = STREAMS[kind]
    events = made(GOOD, GOOD)
    raw = framed(events, frame)
    head, _, body = raw.partition(b"\r\n\r\n")
    gate = ReplyGate(reading(path), lambda found: None)
    assert gate.feed(head + b"\r\n\r\n") == head + b"\r\n\r\n"
    passed = held = 0
    for event in events:
        at = body.index(event) + len(event)
        out = gate.feed(body[passed + held : at])
        held += at - passed - held - len(out)
        passed += len(out)
        assert held == 0 or gate.is_due
        assert b"amount" not in out or not held
    assert held == 0
    assert body[:passed].count(b"let me see") == 1


@pytest.mark.parametrize("kind", STREAMS)
@given(SIZES, SIZES, st.sampled_from(FRAMES), st.integers(0, 2))
def test_a_refused_call_never_passes(kind: str, sizes: list[int], chunks: list[int], frame: str, bad: int) -> None:
    """Nor anything behind it; and the stream ends in good order with an error, wherever it was cut."""
    path, made = STREAMS[kind]
    calls = [GOOD] * bad + [BAD, GOOD]
    raw = framed(made(*calls), frame, chunks)
    no = Refusal(
        status=422, finding=Finding(rule="r", kind="k", severity="critical", at=0.0, side="sender", message="m")
    )
    gate = ReplyGate(reading(path), lambda found: no if "lots" in str(found) else None)
    passed = b"".join(gate.feed(piece) for piece in cut(raw, sizes))
    assert gate.refusal is no
    assert raw.startswith(passed)
    assert b"lots" not in passed
    ending = gate.ending("schema.violation", "wrong")
    if ending is None:
        assert frame == "length"  # there is no room for it
        return
    decoder = ReplyDecoder(HeadLimits(), 1_048_576)
    decoder.expect("POST")
    got = decoder.feed(passed + ending, 0.0) or decoder.close(0.0)
    assert isinstance(got, Reply)
    *_, last = SseDecoder().feed(got.body, 0.0)
    assert isinstance(last, ServerSentEvent)
    assert b"wrong" in last.data


KEYS = "type choices delta tool_calls index id function name arguments finish_reason output_index item content_block"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "x", "{}", "{", "function_call", "tool_use"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", STREAMS)
@given(st.lists(VALUES, max_size=5), st.sampled_from(FRAMES))
def test_no_stream_breaks_the_gate(kind: str, values: list[Any], frame: str) -> None:
    """Whatever its events say, all of it is there at the end."""
    path, made = STREAMS[kind]
    raw = framed([*made(GOOD)[:-2], *sse(*values), b"data: tool_calls {\n\n"], frame)
    gate = ReplyGate(reading(path), lambda found: None)
    assert gate.feed(raw) + gate.release() == raw


@pytest.mark.parametrize("kind", STREAMS)
def test_events_without_calls_are_not_parsed(kind: str) -> None:
    """Holding costs where there is something to hold: text is looked through for a call and no more."""
    _, made = STREAMS[kind]
    read: list[Any] = []

    class Counting:
        is_calling = False

        def add(self, value: Any) -> None:
            read.append(value)

    gate = ReplyGate(cast(Any, Counting()), lambda found: None)
    for piece in cut(framed(made()[:2] * 20, "chunks"), [100]):
        gate.feed(piece)
    assert read == []


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_of_every_api_through_the_proxy(kind: str) -> None:
    """Good calls pass byte for byte; of two the second is bad: its stream ends with an error before it."""
    path, made = STREAMS[kind]
    good, bad = framed(made(GOOD, GOOD), "chunks"), made(GOOD, BAD)

    async def upstream(wire: Wire) -> None:
        await wire.message()
        await wire.send(*cut(good, [100]))
        await wire.message()
        await wire.send(framed(bad, "chunks"))
        await wire.rest()

    async def scenario(stage: Stage) -> None:
        client = await stage.client()
        await client.send(asked(path))
        assert await client.message() == good
        await client.send(asked(path))
        got = await client.message()
        assert b"let me see" in got
        assert b"lots" not in got
        assert b"schema.violation" in got or b"amount" in got
        assert got.count(b"handrail_refused") + got.count(b"FAILED_PRECONDITION") == 1
        assert stage.counted("handrail_refused_total", "rule") == 1
        client.close()
        await stage.settled()

    play(scenario, upstream, rules_text=RULES)


def test_a_stream_that_is_refused_ends_at_once() -> None:
    """The upstream has more to say and is let go; the client's next request has a connection of its own."""
    first, second, _ = stream(BAD)
    finish = chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})

    async def scenario(stage: Stage) -> None:
        client = await stage.client()
        for _ in range(2):
            await client.send(REQUEST)
            assert b'"code":"schema.violation"' in await client.message()
        assert len(stage.upstream.wires) == 2
        client.close()
        events = await stage.settled(4)
        assert sorted((event.kind, event.outcome) for event in events) == [
            ("handoff", "rejected"),
            ("handoff", "rejected"),
            ("usage", "rejected"),
            ("usage", "rejected"),
        ]

    play(scenario, replying(first + second + finish), rules_text=RULES)


def test_a_call_that_is_too_long_to_hold_passes_and_is_counted() -> None:
    """What is held is bounded by `limits.hold_bytes`."""
    long = {"amount": "l" * 5_000}
    reply = framed(of_chat(json.dumps(long)), "chunks")

    async def scenario(stage: Stage) -> None:
        assert await stage.ask(REQUEST) == reply
        assert stage.counted("handrail_uninspected_total", "too_large_to_hold") == 1

    play(scenario, replying(*cut(reply, [700]), pause=0.001), rules_text=RULES, limits=limits(hold_bytes=4_000))


def test_a_call_that_is_too_slow_to_hold_passes_and_is_counted() -> None:
    """What is held is held for `limits.hold_seconds` at most."""
    reply = framed(of_chat(BAD), "chunks")
    split = reply.index(b"lots")

    async def scenario(stage: Stage) -> None:
        assert await stage.ask(REQUEST) == reply
        assert stage.counted("handrail_uninspected_total", "too_slow_to_hold") == 1

    play(scenario, replying(reply[:split], reply[split:], pause=0.8), rules_text=RULES, limits=limits(hold_seconds=0.2))


def test_a_handoff_in_a_stream_is_told_once_with_its_tokens() -> None:
    """It is judged before its reply is over, and known by what the whole reply said."""
    reply = framed(of_chat(GOOD, GOOD), "chunks")

    async def scenario(stage: Stage) -> None:
        await stage.ask(REQUEST)
        await eventually(lambda: len(stage.kept.events) == 3, patience=5)
        found = [event for event in stage.kept.events if event.kind == "handoff"]
        assert [(event.tokens, event.status, event.payload) for event in found] == [(70, 200, {"amount": 4})] * 2
        assert len({event.id for event in found}) == 2

    config = Config(handoffs=HandoffsConfig(silence_seconds=0.2))
    play(scenario, replying(*cut(reply, [90])), rules_text=RULES, config=config)
