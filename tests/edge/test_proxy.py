"""The data path where nothing goes wrong: every shape of an exchange passes, and each gives one event."""

import asyncio
import gzip
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import brotli
import orjson
import pytest
import zstandard

from edge.recorder import OK, Stage, Upstream, Wire, eventually, play, replying
from handrail.edge.route import Listener
from handrail.wire import BodyLimits, Route

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def post(body: bytes, *lines: bytes, kind: bytes = b"application/json") -> bytes:
    head = [b"POST /task HTTP/1.1", b"Host: a", b"Content-Type: " + kind, b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def test_one_connection_carries_many_exchanges() -> None:
    """Keep-alive: as many upstream connections as client connections, one event for each exchange."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        for number in range(10):
            await client.send(post(b'{"n":%d}' % number))
            assert await client.message() == OK
        events = await stage.settled(10)
        assert [event.payload for event in events] == [{"n": number} for number in range(10)]
        assert [event.reply for event in events] == [{"ok": True}] * 10
        assert {(event.outcome, event.status, event.source, event.target) for event in events} == {
            ("completed", 200, "peer", "agent")
        }
        assert all(event.overhead_ms is not None and 0 < event.overhead_ms < 1000 for event in events)
        assert all(event.inspection_ms is not None and 0 < event.inspection_ms < 1000 for event in events)
        assert stage.counted("handrail_handoff_inspection_seconds_count") == 10
        assert stage.counted("handrail_handoff_transfer_seconds_count") == 10
        assert len(stage.upstream.wires) == 1
        assert stage.counted("handrail_handoffs_total") == 10
        assert stage.counted("handrail_connections_total") == 1

    play(go)


@pytest.mark.parametrize(
    ("kind", "transfer", "rest"), [(b"application/json", 0.2, 0.1), (b"text/event-stream; charset=utf-8", 0.1, 0.2)]
)
def test_the_time_of_the_bytes_is_told_apart_from_that_of_the_target(kind: bytes, transfer: float, rest: float) -> None:
    """Request and reply take 0.1 s each to come, the target 0.1 s between; a stream's pauses are the target's."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nContent-Length: 11\r\n\r\n"

    async def slowly(wire: Wire) -> None:
        await wire.message()
        await asyncio.sleep(0.1)
        await wire.send(head + b'{"ok"', b":true}", pause=0.1)

    async def go(stage: Stage) -> None:
        client = await stage.client()
        request = post(b'{"n":1}')
        await client.send(request[:-3], request[-3:], pause=0.1)
        await client.message()
        (event,) = await stage.settled(1)
        assert event.transfer_ms is not None
        assert event.duration_ms is not None
        assert event.transfer_ms >= 1000 * transfer - 5
        assert event.duration_ms - event.transfer_ms >= 1000 * rest - 5

    play(go, slowly)


def test_pipelined_requests_are_answered_in_order_and_one_at_a_time() -> None:
    """The upstream sees the next request when it has answered the one before (RFC 9112 9.3.2)."""
    ahead: list[bytes] = []

    async def answer(wire: Wire) -> None:
        for number in range(20):
            await wire.message()
            await asyncio.sleep(0.002)
            ahead.append(wire._buffer)
            body = b'{"n":%d}' % number
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(b"".join(post(b'{"ask":%d}' % number) for number in range(20)))
        for number in range(20):
            assert (await client.message()).endswith(b'{"n":%d}' % number)
        events = await stage.settled(20)
        assert [event.payload for event in events] == [{"ask": number} for number in range(20)]
        assert [event.reply for event in events] == [{"n": number} for number in range(20)]
        assert ahead == [b""] * 20

    play(go, answer)


def test_a_client_that_pipelines_past_the_bound_is_not_read() -> None:
    """What waits behind an open exchange is bounded, and arrives all the same."""
    body = b'{"a":"' + b"x" * 50_000 + b'"}'

    async def go(stage: Stage) -> None:
        client = await stage.client()
        sending = asyncio.create_task(client.send(post(body) * 80))
        for _ in range(80):
            assert await client.message() == OK
            for under_way in stage.proxy.clients:
                assert len(under_way.decoder.rest) < 65_536 + 2 * 262_144
        await sending
        await stage.settled(80)

    play(go)


def test_pipelined_requests_before_a_half_close_are_all_answered() -> None:
    """Two requests and a FIN: two replies and a FIN."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(b"1") + post(b"2"))
        client.fin()
        assert await client.rest() == OK + OK
        await stage.settled(2)

    play(go)


def test_half_a_request_before_a_half_close_costs_the_whole_ones_nothing() -> None:
    """The first is answered, the connection ends, and the half one never reaches anybody as a whole."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(b"1") + b"POST /two HTTP/1.1\r\nHo")
        client.fin()
        assert await client.rest() == OK
        await stage.settled(1)
        assert b"/two" not in stage.upstream.seen

    play(go)


@pytest.mark.parametrize("delay", [0.0, 1.4])
def test_a_half_closed_client_gets_its_answer(delay: float) -> None:
    """Faults 48: also where the answer takes longer than the upstream is kept from knowing."""

    async def answer(wire: Wire) -> None:
        await wire.message()
        await asyncio.sleep(delay)
        await wire.send(OK)
        wire.close()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(b"{}"))
        client.fin()
        assert await client.rest() == OK
        (event,) = await stage.settled(1)
        assert event.outcome == "completed"

    play(go, answer)


def test_expect_100_continue_is_between_client_and_upstream() -> None:
    """The client's wait, the upstream's 100 and the body pass in this order."""
    order: list[str] = []

    async def answer(wire: Wire) -> None:
        await wire.until()
        order.append("head")
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.exactly(2)
        order.append("body")
        await wire.send(OK)
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        head = post(b"{}", b"Expect: 100-continue")[:-2]
        await client.send(head)
        assert await client.until() == b"HTTP/1.1 100 Continue\r\n\r\n"
        order.append("100")
        await client.send(b"{}")
        assert await client.message() == OK
        (event,) = await stage.settled(1)
        assert (event.status, event.payload_bytes) == (200, 2)
        assert order == ["head", "100", "body"]

    play(go, answer)


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        (GET, b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK),
        (GET, b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"),
    ],
)
def test_replies_without_a_body_leave_the_connection_usable(request_: bytes, reply: bytes) -> None:
    """HEAD, 204, 304 and interim replies, each followed by another exchange on the same connection."""

    async def answer(wire: Wire) -> None:
        for _ in range(2):
            await wire.until()
            await wire.send(reply)
        await wire.message()
        await wire.send(OK)
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        for _ in range(2):
            await client.send(request_)
            assert await client.exactly(len(reply)) == reply
        await client.send(post(b"{}"))
        assert await client.message() == OK
        await stage.settled(3)
        assert len(stage.upstream.wires) == 1

    play(go, answer)


def test_http_1_0_passes() -> None:
    """No Host, no keep-alive, the reply to the end of the connection."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(b"GET /old HTTP/1.0\r\n\r\n")
        assert await client.rest() == b"HTTP/1.0 200 OK\r\n\r\nold"
        assert stage.upstream.seen == b"GET /old HTTP/1.0\r\n\r\n"
        (event,) = await stage.settled(1)
        assert (event.outcome, event.reply_bytes) == ("completed", 3)

    play(go, replying(b"HTTP/1.0 200 OK\r\n\r\nold", then="fin"))


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_an_upgraded_connection_is_a_tunnel_both_ways(first: str) -> None:
    """Bytes of both sides pass unread, also behind the half-close of either; the handshake is one event."""

    async def talk(wire: Wire) -> None:
        await wire.until()
        await wire.send(SWITCHED + b"\x81\x02hi")
        assert await wire.exactly(5) == b"early"
        for number in range(50):
            assert await wire.exactly(3) == b"%03d" % number
            await wire.send(b"%03d" % number)
        if first == "client":
            assert await wire.rest() == b""
            await wire.send(b"last words")
            wire.fin()
        else:
            wire.fin()
            assert await wire.rest() == b"last words"

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(UPGRADE + b"early")
        assert await client.exactly(len(SWITCHED) + 4) == SWITCHED + b"\x81\x02hi"
        for number in range(50):
            await client.send(b"%03d" % number)
            assert await client.exactly(3) == b"%03d" % number
        if first == "client":
            client.fin()
            assert await client.rest() == b"last words"
        else:
            assert await client.rest() == b""
            await client.send(b"last words")
            client.fin()
        (event,) = await stage.settled(1)
        assert event.status == 101
        assert stage.counted("handrail_uninspected_total", "tunnel") == 1
        await eventually(lambda: not stage.proxy.clients)

    play(go, talk)


def test_an_upgrade_that_is_declined_is_an_ordinary_exchange() -> None:
    """A 200 to an upgrade, and the next request on the same connection."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        for request in (UPGRADE, post(b"{}", b"Connection: Upgrade", b"Upgrade: h2c"), post(b"{}")):
            await client.send(request)
            assert await client.message() == OK
        await stage.settled(3)
        assert stage.counted("handrail_uninspected_total", "tunnel") == 0

    play(go)


@pytest.mark.parametrize("cut", [0, 3, 17, 24])
def test_an_http2_connection_is_a_tunnel(cut: int) -> None:
    """The preface and all that follows reach the upstream, counted and without an event."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

    async def settle(wire: Wire) -> None:
        assert await wire.exactly(len(preface)) == preface
        await wire.send(b"\x00\x00\x00\x04\x01\x00\x00\x00\x00")
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(preface[:cut], preface[cut:], pause=0.02)
        assert await client.exactly(9) == b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"
        await stage.settled(0)
        assert stage.counted("handrail_uninspected_total", "tunnel") == 1

    play(go, settle)


# The forward proxy.


def test_the_forward_proxy_takes_absolute_targets_to_allowed_hosts() -> None:
    """Origin form and Host of the target; the rest of the request as it was, its path and query byte for byte."""

    async def go(stage: Stage) -> None:
        port = b"%d" % stage.upstream.port
        client = await stage.client()
        for path in (b"/a%2Fb//../c?x=%41&y", b"//two", b"/?", b"?q", b"", b"/a?"):
            await client.send(
                b"GET http://127.0.0.1:" + port + path + b" HTTP/1.1\r\nX-One: 1\r\nHost: whoever\r\n"
                b"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nX-two:2\r\n\r\n"
            )
            assert await client.message() == OK
        expected = [
            b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1:" + port + b"\r\nX-One: 1\r\nX-two:2\r\n\r\n"
            for path in (b"/a%2Fb//../c?x=%41&y", b"//two", b"/?", b"/?q", b"/", b"/a?")
        ]
        assert stage.upstream.seen == b"".join(expected)
        events = await stage.settled(6)
        assert events[0].operation == "GET /a%2Fb//../c"

    play(go, allow=("127.0.0.1:UPSTREAM",))


@pytest.mark.parametrize(
    ("pattern", "host", "port", "allowed"),
    [
        ("agents.local", "agents.local", 80, True),
        ("agents.local", "agents.local.evil", 80, False),
        ("*.agents.local", "a.agents.local", 8080, True),
        ("a:80", "a", 8080, False),
        ("a:80*", "A", 8080, True),
        ("[::1]", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:80", "::1", 81, False),
        ("[2001:db8::*]:80", "2001:db8::7", 80, True),
    ],
)
def test_a_destination_is_allowed_by_host_and_port(pattern: str, host: str, port: int, allowed: bool) -> None:
    """A pattern without a port stands for all of them; an IPv6 address stands in brackets."""
    assert Listener(host="", port=0, route=Route(), allow=(pattern,)).allows(host, port) is allowed


def test_every_request_of_a_connection_has_the_host_of_the_upstream() -> None:
    """Whatever its own Host was: as before, one that begins as the one before, in another place, or none."""
    heads = [
        b"GET /a HTTP/1.1\r\nHost: agent\r\nX-One: 1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: agent\r\nX-One: 2\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: agent:80\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: UPSTREAM\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: agent:80\r\nX-One: 3\r\n\r\n",
        b"GET /a HTTP/1.1\r\nX-One: 4\r\nhost:agent\r\n\r\n",
        b"GET /a HTTP/1.1\r\nX-One: 5\r\nhost:agent\r\n\r\n",
        b"GET /" + b"a" * 600 + b" HTTP/1.1\r\nHost: agent\r\n\r\n",
        b"GET /" + b"a" * 600 + b" HTTP/1.1\r\nHost: agents\r\n\r\n",
        b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ]

    async def go(stage: Stage) -> None:
        upstream = b"127.0.0.1:%d" % stage.upstream.port
        client = await stage.client()
        wanted = b""
        for head in heads:
            await client.send(head.replace(b"UPSTREAM", upstream))
            assert await client.message() == OK
            wanted += re.sub(rb"(?i)(\r\nhost: ?)[^\r]*", rb"\g<1>" + upstream, head)
        await stage.settled(len(heads))
        assert stage.upstream.seen == wanted

    play(go)


def test_one_client_connection_reaches_two_hosts_through_the_forward_proxy() -> None:
    """The destination is that of each request, never that of the one before."""

    async def go(stage: Stage) -> None:
        other = Upstream(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"))
        await other.start()
        try:
            client = await stage.client()
            for _ in range(2):
                for port, body in ((stage.upstream.port, b'{"ok":true}'), (other.port, b"other")):
                    await client.send(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
                    assert (await client.message()).endswith(body)
            await stage.settled(4)
            assert stage.counted("handrail_uninspected_total") == 0
        finally:
            await other.stop()

    play(go, allow=("127.0.0.1",))


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\n\r\n", 403, "destination"),
        (b"GET http://localhost:UPSTREAM/ HTTP/1.1\r\nHost: 127.0.0.1:UPSTREAM\r\n\r\n", 403, "destination"),
        (b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: 127.0.0.1:UPSTREAM\r\n\r\n", 403, "destination"),
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n", 403, "destination"),
        (b"CONNECT evil:443 HTTP/1.1\r\nHost: 127.0.0.1:UPSTREAM\r\n\r\n", 403, "destination"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:UPSTREAM\r\n\r\n", 400, "not_absolute"),
        (b"GET https://127.0.0.1:UPSTREAM/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "not_absolute"),
        (b"GET ftp://127.0.0.1:UPSTREAM/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "not_absolute"),
        (b"GET http://127.0.0.1:UPSTREAM@evil/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"GET http://user:word@127.0.0.1:UPSTREAM/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"GET http://127.0.0.1:99999/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"CONNECT 127.0.0.1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"CONNECT 127.0.0.1:UPSTREAM HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400, "malformed"),
    ],
)
def test_the_forward_proxy_goes_nowhere_else(request_: bytes, status: int, reason: str) -> None:
    """Destinations come from the configuration; what else is asked for is refused, counted, and contacts nobody."""

    async def go(stage: Stage) -> None:
        port = b"%d" % stage.upstream.port
        reply = await stage.ask(request_.replace(b"UPSTREAM", port))
        assert reply.startswith(b"HTTP/1.1 %d " % status), reply
        assert stage.counted("handrail_refused_total") == stage.counted("handrail_refused_total", reason) >= 1
        assert not stage.upstream.wires
        await stage.settled(0)

    play(go, allow=("127.0.0.1:UPSTREAM",))


def test_connect_is_a_tunnel_to_an_allowed_host() -> None:
    """Also with early bytes, with a half-close, and on a connection that has carried a request before."""

    async def echo(wire: Wire) -> None:
        first = await wire.more()
        if first.startswith(b"GET"):
            await wire.send(OK)
            await wire.rest()
        else:
            await wire.send(first + await wire.rest() + b"!")

    async def go(stage: Stage) -> None:
        port = stage.upstream.port
        client = await stage.client()
        await client.send(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
        assert await client.message() == OK
        await client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nearly " % port)
        assert (await client.until()).startswith(b"HTTP/1.1 200 ")
        await client.send(b"late")
        client.fin()
        assert await client.rest() == b"early late!"
        hasty = await stage.client()
        await hasty.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nall" % port)
        hasty.fin()
        assert (await hasty.rest()).endswith(b"\r\n\r\nall!")
        await stage.settled(1)
        assert stage.counted("handrail_uninspected_total", "tunnel") == 2

    play(go, echo, allow=("127.0.0.1:UPSTREAM",))


def test_the_forward_proxy_does_not_lead_to_itself() -> None:
    """508, also by another of its names."""

    async def go(stage: Stage) -> None:
        for host in (b"127.0.0.1", b"localhost"):
            for form in (
                b"CONNECT %b:%d HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET http://%b:%d/ HTTP/1.1\r\nHost: x\r\n\r\n",
            ):
                assert (await stage.ask(form % (host, stage.port))).startswith(b"HTTP/1.1 508 ")
        assert stage.counted("handrail_refused_total", "loop") == 4

    play(go, allow=("*",))


def test_a_route_serves_no_connect_and_no_other_host() -> None:
    """CONNECT is 501; an absolute target goes to the route's upstream, whatever host it names."""

    async def go(stage: Stage) -> None:
        assert (await stage.ask(b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n")).startswith(b"HTTP/1.1 501 ")
        assert not stage.upstream.wires
        assert await stage.ask(b"GET http://evil/x HTTP/1.1\r\nHost: evil\r\n\r\n") == OK
        assert stage.upstream.seen.startswith(b"GET http://evil/x HTTP/1.1\r\nHost: 127.0.0.1:")

    play(go)


# Bodies.

PAYLOAD = orjson.dumps({"task_id": "t1", "output": {"summary": "é" * 500}})
DEFLATER = zlib.compressobj(wbits=-15)
RAW_DEFLATE = DEFLATER.compress(PAYLOAD) + DEFLATER.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", gzip.compress(PAYLOAD, mtime=0)),
        (b"x-gzip", gzip.compress(PAYLOAD, mtime=0)),
        (b"deflate", zlib.compress(PAYLOAD)),
        (b"deflate", RAW_DEFLATE),
        (b"br", brotli.compress(PAYLOAD)),
        (b"zstd", zstandard.compress(PAYLOAD)),
        (b"identity", PAYLOAD),
    ],
)
def test_compressed_bodies_are_read_both_ways_and_passed_untouched(encoding: bytes, body: bytes) -> None:
    """The wire bytes travel; the event holds the JSON."""
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
        % (encoding, len(body))
    ) + body

    async def go(stage: Stage) -> None:
        assert await stage.ask(post(body, b"Content-Encoding: " + encoding)) == reply
        assert stage.upstream.seen.endswith(b"\r\n\r\n" + body)
        (event,) = await stage.settled(1)
        assert event.payload == orjson.loads(PAYLOAD)
        assert event.reply == orjson.loads(PAYLOAD)
        assert (event.payload_bytes, event.reply_bytes, event.uninspected) == (len(body), len(body), None)
        assert stage.counted("handrail_uninspected_total") == 0

    play(go, replying(reply), bodies=BodyLimits(), dialects=("nothing",))


SMALL = BodyLimits(body_bytes=20_000, decoded_bytes=50_000)


@pytest.mark.parametrize(
    ("body", "lines", "reason"),
    [
        (b'{"a":"' + b"x" * 30_000 + b'"}', (), "too_large"),
        (gzip.compress(b"[" + b"0," * 500_000 + b"0]", mtime=0), (b"Content-Encoding: gzip",), "bomb"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), (b"Content-Encoding: gzip, gzip",), "unknown_encoding"),
        (b"{}", (b"Content-Encoding: lzma",), "unknown_encoding"),
        (gzip.compress(PAYLOAD, mtime=0)[:-9], (b"Content-Encoding: gzip",), "decode_error"),
        (b"\x1f\x8b not gzip", (b"Content-Encoding: gzip",), "decode_error"),
        (b"{", (), "invalid_json"),
        (b"NaN", (), "invalid_json"),
        (b'{"a":"\xff"}', (), "invalid_json"),
        (b'"\\ud800"', (), "invalid_json"),
        (b"{} {}", (), "invalid_json"),
        (b'{"a":1,"a":2}', (), "duplicate_key"),
        (b"[" * 500 + b"]" * 500, (), "too_deep"),
        (b"[" * 9_000 + b"]" * 9_000, (), "too_deep"),
        (b"\x89PNG", (b"Content-Type: image/png",), None),
    ],
)
def test_what_cannot_be_read_passes_untouched_and_is_counted(
    body: bytes, lines: tuple[bytes, ...], reason: str | None
) -> None:
    """Promise 5, in both directions: the bytes arrive, the reason is on the event and in the counter."""
    if reason is None:
        lines, kind, reason = (), b"image/png", "not_json"
    else:
        kind = b"application/json"
    reply = post(body, *lines, kind=kind).replace(b"POST /task HTTP/1.1\r\nHost: a", b"HTTP/1.1 200 OK", 1)

    async def go(stage: Stage) -> None:
        assert await stage.ask(post(body, *lines, kind=kind)) == reply
        assert stage.upstream.seen.endswith(b"\r\n\r\n" + body)
        (event,) = await stage.settled(1)
        assert (event.outcome, event.uninspected, event.payload_bytes) == ("completed", reason, len(body))
        assert event.payload is None or reason == "duplicate_key"
        assert stage.counted("handrail_uninspected_total", reason) >= 1
        assert stage.counted("handrail_faults_total") == 0

    play(go, replying(reply), bodies=SMALL)


def test_a_card_is_rewritten_where_the_route_says_so() -> None:
    """The interface URLs lead back to the listener; everything that is no card stays as it is."""
    card = orjson.dumps({"name": "x", "url": "http://upstream:1/rpc", "protocolVersion": "0.3.0", "skills": []})
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: x\r\nContent-Length: %d\r\n\r\n" % len(card) + card
    )

    async def answer(wire: Wire) -> None:
        while True:
            request = await wire.message()
            if b"early" in request:
                await wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await wire.send(reply[:30], reply[30:], pause=0.01)

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(b"GET /.well-known/agent-card.json HTTP/1.1\r\nHost: me:%d\r\n\r\n" % stage.port)
        got = await client.message()
        head, _, body = got.partition(b"\r\n\r\n")
        assert orjson.loads(body)["url"] == f"http://me:{stage.port}/rpc"
        assert b"ETag" not in head
        await client.send(b"GET /.well-known/other.json HTTP/1.1\r\nHost: me\r\n\r\n")
        assert await client.message() == reply
        await client.send(b"GET /.well-known/agent-card.json?early HTTP/1.1\r\nHost: me:%d\r\n\r\n" % stage.port)
        assert await client.message() == b"HTTP/1.1 103 Early Hints\r\n\r\n"
        assert (await client.message()).startswith(b"HTTP/1.1 200 OK")
        await stage.settled(3)

    play(go, answer, rewrite_cards=True)


# What the route adds.

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_stamped_route_adds_what_is_missing_and_nothing_else() -> None:
    """`traceparent`, the sender in `baggage`, and `handrail-workflow`, at the end of the head."""

    async def go(stage: Stage) -> None:
        await stage.ask(post(b'{"task_id":"t1"}'))
        head, _, body = stage.upstream.seen.partition(b"\r\n\r\n")
        (event,) = await stage.settled(1)
        lines = head.split(b"\r\n")
        assert lines[-3] == b"traceparent: 00-%b-%b-01" % (event.trace_id.encode(), event.span_id.encode())
        assert lines[-2] == b"baggage: handrail-chain=" + event.source.encode()
        assert lines[-1] == b"handrail-workflow: " + event.workflow.encode()
        sent = post(b'{"task_id":"t1"}').replace(b"Host: a", b"Host: 127.0.0.1:%d" % stage.upstream.port)
        assert b"\r\n".join(lines[:-3]) + b"\r\n\r\n" + body == sent

    play(go, stamp=True)


def test_a_stamped_route_leaves_what_is_there() -> None:
    """The caller's own trace, workflow and baggage stay as they are, and are read; the sender joins the chain."""

    async def go(stage: Stage) -> None:
        mine = b"Baggage: user=7, handrail-chain=x|y"
        request = post(b"{}", b"TraceParent: " + TRACEPARENT, mine, b"Handrail-Workflow: w-9")
        await stage.ask(request)
        (event,) = await stage.settled(1)
        sent = request.replace(b"Host: a", b"Host: 127.0.0.1:%d" % stage.upstream.port)
        joined = b"\r\nbaggage: user=7,handrail-chain=x|y|" + event.source.encode()
        assert stage.upstream.seen == sent.replace(b"\r\n" + mine, b"").replace(b"\r\n\r\n", joined + b"\r\n\r\n")
        assert event.chain == "x|y"
        assert (event.workflow, event.trace_id) == ("w-9", "0af7651916cd43dd8448eb211c80319c")

    play(go, stamp=True)


# Backpressure and the end.

FLOOD = Path(__file__).with_name("flood.py")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_memory_is_flat_while_a_large_body_meets_a_slow_reader(direction: str) -> None:
    """256 MiB each way past a reader that stops and goes, in a process of its own, grows it by less than 32 MiB.

    HANDRAIL_FLOOD_MIB raises the size: 1024 takes about ten seconds and shows the same growth, which is the point.
    """
    size = os.environ.get("HANDRAIL_FLOOD_MIB", "256")
    done = subprocess.run(
        [sys.executable, str(FLOOD), direction, size], capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    report = orjson.loads(done.stdout)
    assert report["bytes"] == int(size) << 20
    assert report["outcome"] == "completed"
    assert report["uninspected"] == "too_large"
    assert report["growth_mib"] < 32, report


def test_twenty_requests_in_flight_complete_when_the_sidecar_ends() -> None:
    """New connections are refused, idle ones end, and every open exchange gets its reply."""
    release: list[asyncio.Event] = []

    async def slow(wire: Wire) -> None:
        await wire.message()
        await release[0].wait()
        await wire.send(OK)
        await wire.rest()

    async def go(stage: Stage) -> None:
        release.append(asyncio.Event())
        clients = [await stage.client() for _ in range(20)]
        idle = await stage.client()
        for client in clients:
            await client.send(post(b"{}"))
        await eventually(lambda: stage.proxy.in_flight == 20 and len(stage.upstream.wires) == 20)
        stopping = asyncio.create_task(stage.proxy.stop(5.0))
        assert await idle.rest() == b""
        with pytest.raises(ConnectionError):
            await Wire.connect(stage.port)
        release[0].set()
        for client in clients:
            assert await client.rest() == OK
        await stopping
        events = await stage.settled(20)
        assert {event.outcome for event in events} == {"completed"}

    play(go, slow)


def test_what_is_still_open_after_the_drain_is_cut_and_recorded() -> None:
    """An upstream that never answers does not keep the sidecar from ending."""

    async def never(wire: Wire) -> None:
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(b"{}"))
        await eventually(lambda: stage.upstream.seen.endswith(b"{}"))
        await stage.proxy.stop(0.1)
        assert await client.rest() == b""
        (event,) = await stage.settled(1)
        assert event.outcome == "interrupted"

    play(go, never)


def test_copies_of_long_bodies_are_bounded_while_their_exchanges_are_open() -> None:
    """The second of two long requests that wait for their replies passes unread; both arrive whole."""
    body = b'{"a": "' + b"x" * 150_000 + b'"}'
    request = b"POST /long HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    release = asyncio.Event()

    async def upstream(wire: Wire) -> None:
        await wire.message()
        await release.wait()
        await wire.send(answer)

    async def scenario(stage: Stage) -> None:
        budget = stage.proxy.budget
        taken = budget.left - 330_000
        budget.left -= taken
        clients = [await stage.client() for _ in range(3)]
        for client in clients:
            await client.send(request + body)
        await eventually(lambda: sum(len(wire.seen) for wire in stage.upstream.wires) >= 3 * len(request + body))
        release.set()
        for client in clients:
            assert (await client.message()).endswith(b"ok")
        events = await stage.settled(3)
        assert sorted(event.uninspected or "" for event in events) == ["", "", "overload"]
        assert stage.counted("handrail_uninspected_total", "overload") == 1
        budget.left += taken
        assert budget.left == 67_108_864

    play(scenario, upstream)
