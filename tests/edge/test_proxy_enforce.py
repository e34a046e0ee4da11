"""Enforce mode: a request is held until its Decision; refused means that no byte of it reached the upstream (I12).

What passes, passes byte for byte; what cannot be held passes unheld and is counted.
"""

import asyncio
from typing import Any

import orjson
import pytest

from edge.recorder import OK, Stage, Wire, eventually, limits, play

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
  - id: output.duplicate
    title: t
    why: w
    maturity: stable
    severity: warning
    kind: output.duplicate
    scope: workflow
    action: enforce
    tests:
      - {name: twice, events: [{at: 0}, {at: 5}], finds: 1}
      - {name: once, events: [{at: 0}], finds: 0}
"""
SCHEMAS = {"peer.agent": {"1": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}}}
ENFORCED: dict[str, Any] = {"rules_text": RULES, "schemas": SCHEMAS}


def post(body: bytes, *lines: bytes) -> bytes:
    head = [
        b"POST /t HTTP/1.1",
        b"Host: a",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *lines,
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    head = b"POST /t HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"1;x\r\n%c\r\n" % byte for byte in body) + b"0\r\nT: r\r\n\r\n"


GOOD = b'{"a": 1}'
BAD = b'{"a": "one"}'


@pytest.mark.parametrize(
    "request_",
    [
        post(BAD),
        chunked(BAD),
        post(b"{}"),
        post(b"[]"),
        post(b'{"a":1,"a":"two"}'),
        post(BAD, b"Connection: Upgrade", b"Upgrade: h2c"),
        post(BAD, b"Upgrade: websocket", b"Connection: keep-alive, upgrade"),
    ],
)
@pytest.mark.parametrize("size", [1, 40, 100_000])
def test_a_violation_is_refused_and_nothing_reaches_the_upstream(request_: bytes, size: int) -> None:
    """422 with problem+json however the request is framed and cut, zero connections, and the client's stays usable."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(*[request_[n : n + size] for n in range(0, len(request_), size)])
        head, _, body = (await client.message()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 422 Unprocessable Content\r\n")
        assert b"content-type: application/problem+json\r\n" in head
        assert b"handrail-findings: schema.violation" in head
        problem = orjson.loads(body)
        assert (problem["status"], problem["type"]) == (422, "urn:handrail:schema.violation")
        assert problem["rule"] == "schema.violation"
        assert not stage.upstream.wires
        await client.send(post(GOOD))
        assert await client.message() == OK
        events = await stage.settled(2)
        assert [(event.outcome, event.status) for event in events] == [("rejected", 422), ("completed", 200)]
        assert len(stage.kept.findings) == 1
        assert stage.kept.findings[0].event == events[0].id
        assert stage.counted("handrail_refused_total", "rule") == 1

    play(go, **ENFORCED)


@pytest.mark.parametrize("request_", [post(GOOD), chunked(GOOD), post(b""), b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 100_000])
def test_what_is_right_passes_byte_for_byte(request_: bytes, size: int) -> None:
    """Held and released, in whatever pieces it came."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        for _ in range(2):
            await client.send(*[request_[n : n + size] for n in range(0, len(request_), size)])
            assert await client.message() == OK
        assert stage.upstream.seen == request_ * 2
        assert len(stage.upstream.wires) == 1
        await stage.settled(2)
        assert stage.counted("handrail_uninspected_total") == 0

    play(go, own_host=True, **ENFORCED)


def test_pipelined_requests_are_judged_one_by_one() -> None:
    """Good, bad, good: OK, 422, OK in this order, and the upstream sees the good ones."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(GOOD) + post(BAD) + post(GOOD))
        got = [(await client.message()).split(b" ")[1] for _ in range(3)]
        assert got == [b"200", b"422", b"200"]
        assert stage.upstream.seen == post(GOOD) * 2
        await stage.settled(3)

    play(go, own_host=True, **ENFORCED)


@pytest.mark.parametrize("request_", [post(BAD, b"Connection: close"), post(BAD).replace(b"HTTP/1.1", b"HTTP/1.0")])
def test_a_client_that_does_not_keep_alive_is_refused_and_closed(request_: bytes) -> None:
    """With the whole answer."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(request_)
        reply = await client.rest()
        assert reply.startswith(b"HTTP/1.1 422 ")
        assert orjson.loads(reply.partition(b"\r\n\r\n")[2])["status"] == 422
        await stage.settled(1)

    play(go, **ENFORCED)


def test_a_json_rpc_caller_gets_a_json_rpc_error() -> None:
    """A2A: status 200, the id of the call, -32602, the finding as data."""
    call = {
        "jsonrpc": "2.0",
        "id": "call-7",
        "method": "message/send",
        "params": {
            "message": {
                "kind": "message",
                "role": "user",
                "messageId": "m1",
                "parts": [{"kind": "data", "data": {"a": "one"}}],
            }
        },
    }

    async def go(stage: Stage) -> None:
        body = orjson.dumps(call)
        reply = await stage.ask(post(body))
        (event,) = await stage.settled(1)
        assert event.protocol == "a2a"
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        answer = orjson.loads(reply.partition(b"\r\n\r\n")[2])
        assert (answer["jsonrpc"], answer["id"], answer["error"]["code"]) == ("2.0", "call-7", -32602)
        assert answer["error"]["data"]["rule"] == "schema.violation"
        assert not stage.upstream.wires
        assert event.outcome == "rejected"

    play(go, rules_text=RULES, schemas={"peer.agent": {"1": {"type": "object", "required": ["no_such_key"]}}})


def test_a_duplicate_is_refused_with_409() -> None:
    """The second request for a completed task of one workflow, however soon it comes; another task passes."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        statuses = []
        for task in (b"t1", b"t1", b"t2"):
            await client.send(post(GOOD, b"handrail-workflow: w", b"handrail-task: " + task))
            statuses.append((await client.message()).split(b" ")[1])
        assert statuses == [b"200", b"409", b"200"]
        events = await stage.settled(3)
        assert [event.outcome for event in events] == ["completed", "rejected", "completed"]
        assert stage.upstream.seen.count(b"POST /t") == 2

    play(go, **ENFORCED)


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Go on\r\nX: y\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_held_request_with_expect_gets_one_100(interim: bytes, size: int) -> None:
    """Ours, so that its body comes; the upstream's own is taken out, however it is cut."""
    reply = interim + OK

    async def answer(wire: Wire) -> None:
        while True:
            await wire.message()
            await wire.send(*[reply[n : n + size] for n in range(0, len(reply), size)], pause=0.001)

    async def go(stage: Stage) -> None:
        client = await stage.client()
        request = post(GOOD, b"Expect: 100-continue")
        await client.send(request[: -len(GOOD)])
        assert await client.until() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert not stage.upstream.wires
        await client.send(GOOD)
        assert await client.message() == OK
        await client.send(post(BAD, b"Expect: 100-continue")[: -len(BAD)])
        assert await client.until() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(BAD)
        assert (await client.message()).startswith(b"HTTP/1.1 422 ")
        await stage.settled(2)

    play(go, answer, **ENFORCED)


@pytest.mark.parametrize("frame", [post, chunked])
def test_what_is_too_long_to_hold_passes_and_is_counted(frame: Any) -> None:
    """Past `hold_bytes`, byte for byte; the finding is made all the same, and comes too late to refuse."""
    request = frame(b'{"a":"' + b"x" * 3000 + b'"}')

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(*[request[n : n + 500] for n in range(0, len(request), 500)], pause=0.001)
        assert await client.message() == OK
        assert stage.upstream.seen == request
        await stage.settled(1)
        assert stage.counted("handrail_uninspected_total", "too_large_to_hold") == 1
        assert len(stage.kept.findings) == 1

    play(go, own_host=True, limits=limits(hold_bytes=2000), **ENFORCED)


def test_what_is_too_slow_to_hold_passes_and_is_counted() -> None:
    """Past `hold_seconds`."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        request = post(BAD)
        await client.send(request[:-3])
        await eventually(lambda: stage.upstream.seen == request[:-3])
        await client.send(request[-3:])
        assert await client.message() == OK
        assert stage.upstream.seen == request
        await stage.settled(1)
        assert stage.counted("handrail_uninspected_total", "too_slow_to_hold") == 1

    play(go, own_host=True, limits=limits(hold_seconds=0.2), **ENFORCED)


@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_goes_away_while_held_reaches_nobody(reset: bool) -> None:
    """One event, interrupted; nothing at the upstream; no finding about half a request."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(GOOD))
        assert await client.message() == OK
        await client.send(post(BAD)[:-3])
        await eventually(lambda: stage.proxy.in_flight == 1)
        if reset:
            client.rst()
        else:
            client.close()
        events = await stage.settled(2)
        assert (events[1].outcome, events[1].status, events[1].uninspected) == ("interrupted", None, "incomplete")
        assert stage.upstream.seen == post(GOOD)

    play(go, own_host=True, **ENFORCED)


def test_an_upstream_that_closes_while_a_request_is_held_costs_nothing() -> None:
    """It has seen nothing of the request, so a fresh connection carries it."""

    async def once(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        await asyncio.sleep(0.1)
        wire.close()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(GOOD))
        assert await client.message() == OK
        await client.send(post(GOOD)[:-3])
        await eventually(lambda: stage.proxy.in_flight == 1)
        await asyncio.sleep(0.2)
        await client.send(post(GOOD)[-3:])
        assert await client.message() == OK
        assert [bytes(wire.seen) for wire in stage.upstream.wires] == [post(GOOD)] * 2
        await stage.settled(2)

    play(go, once, own_host=True, **ENFORCED)
