"""The data path where something goes wrong: bad bytes, lost connections, silence, limits, and our own failures.

Whatever happens, the other side sees what it would have seen without us, one event says how it ended, and nothing stays
behind (`recorder.staged` asserts the last).
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
import uvloop

from edge.recorder import OK, Stage, Upstream, Wire, answer_all, eventually, limits, play, replying, staged
from handrail.config import LimitsConfig
from handrail.edge.metrics import Metrics
from handrail.event import Event, Finding
from handrail.pipeline import Inspector
from wire.test_http1 import AMBIGUOUS, BAD_CHUNKS, TOO_MUCH

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b'POST /t HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
CHUNKED_REPLY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
SIZED_REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
OPEN_REPLY = b"HTTP/1.1 200 OK\r\n\r\nhello"


async def never(wire: Wire) -> None:
    """Reads and says nothing."""
    await wire.rest(20)


# What a client may send.


@pytest.mark.parametrize("raw", [*AMBIGUOUS.values(), *BAD_CHUNKS.values()], ids=[*AMBIGUOUS, *BAD_CHUNKS])
def test_ambiguous_framing_is_refused_and_the_upstream_is_not_contacted(raw: bytes) -> None:
    """Faults 36 to 39: 400, the connection closed, zero connections to the upstream, counted."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(raw)
        reply = await client.rest()
        assert reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"connection: close\r\n" in reply
        assert not stage.upstream.wires
        assert stage.counted("handrail_refused_total") == 1
        await stage.settled(0)

    play(go)


def test_a_client_that_speaks_tls_is_told_at_once() -> None:
    """It waits for the server's hello, and would until the time-out: an https URL for a plain listener is a slip."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="agent")
    with contextlib.suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    hello = outgoing.read()

    async def go(stage: Stage) -> None:
        for pieces in ((hello,), (hello[:1], hello[1:])):
            client = await stage.client()
            await client.send(*pieces)
            reply = await client.rest(2)
            assert reply.startswith(b"HTTP/1.1 400 ")
            assert b"TLS" in reply
        assert not stage.upstream.wires
        await stage.settled(0)

    play(go)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_bad_bytes_behind_a_good_exchange_are_refused(method: bytes) -> None:
    """The first exchange is whole; the second is answered 400 with its body, also behind a HEAD."""

    async def answer(wire: Wire) -> None:
        await wire.until()
        await wire.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await client.until() == b"HTTP/1.1 204 No Content\r\n\r\n"
        await client.send(AMBIGUOUS["length and chunks"])
        reply = await client.rest()
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert reply.endswith(b'"}')
        await stage.settled(1)

    play(go, answer)


def test_a_bad_chunk_in_the_middle_of_a_body_ends_both_connections() -> None:
    """What was forwarded stays incomplete for the upstream; the client gets 400."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        await client.send(head)
        await eventually(lambda: stage.upstream.seen.endswith(b"hello\r\n"))
        await client.send(b"zz\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        (event,) = await stage.settled(1)
        assert (event.outcome, event.uninspected, event.payload_bytes) == ("interrupted", "incomplete", 5)
        await eventually(lambda: stage.upstream.wires[0].end is not None)
        assert b"smuggled" not in stage.upstream.seen

    play(go, never)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(2000)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 140_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 140_000, 431),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: %b\r\n" % (n, b"a" * 200) for n in range(200)) + b"\r\n",
            200,
        ),
    ],
)
def test_heads_are_limited(raw: bytes, status: int) -> None:
    """Faults 52: 431 past the limits, forwarded below them."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(raw)
        assert (await client.message()).startswith(b"HTTP/1.1 %d " % status)
        await stage.settled(int(status == 200))
        assert len(stage.upstream.wires) == int(status == 200)

    play(go)


def test_slow_requests_time_out_where_they_make_no_progress() -> None:
    """Faults 46: no head 408, half a head 408, a stalled body 408; a body that trickles passes."""

    async def go(stage: Stage) -> None:
        silent, half, stalled, trickling = [await stage.client() for _ in range(4)]
        await half.send(b"GET / HTT")
        await stalled.send(POST[:-3])
        sending = asyncio.create_task(trickling.send(POST[:-7], *[bytes([byte]) for byte in POST[-7:]], pause=0.15))
        for client in (silent, half, stalled):
            assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        await sending
        assert await trickling.message() == OK
        events = await stage.settled(2)
        assert sorted(event.outcome for event in events) == ["completed", "interrupted"]
        assert stage.counted("handrail_refused_total", "header_timeout") == 2
        assert stage.counted("handrail_refused_total", "body_timeout") == 1

    play(go, limits=limits(header_seconds=0.4, body_idle_seconds=0.4))


def test_an_idle_connection_is_closed_without_a_word() -> None:
    """After `keepalive_seconds`, on both sides."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST)
        assert await client.message() == OK
        assert await client.rest() == b""
        await eventually(lambda: stage.upstream.wires[0].end == "fin")
        await stage.settled(1)

    play(go, limits=limits(keepalive_seconds=0.3))


def test_connections_and_requests_in_flight_are_limited() -> None:
    """503 past either limit, and service again below it."""

    async def go(stage: Stage) -> None:
        first, second = await stage.client(), await stage.client()
        await first.send(POST)
        await eventually(lambda: stage.proxy.in_flight == 1)
        await second.send(POST)
        refused = await second.rest()
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in refused
        more = [await stage.client() for _ in range(3)]
        await eventually(lambda: len(stage.proxy.clients) >= 3)
        assert (await more[-1].rest()).startswith(b"HTTP/1.1 503 ")
        for client in (first, second, *more):
            client.close()
        await eventually(lambda: not stage.proxy.clients)
        again = await stage.client()
        await again.send(POST)
        await eventually(lambda: len(stage.upstream.wires) == 2)
        again.close()
        await stage.settled(2)
        assert stage.counted("handrail_refused_total", "in_flight") == 1
        assert stage.counted("handrail_refused_total", "connections") >= 1

    play(go, never, limits=limits(connections=3, in_flight=1))


def test_a_hundred_idle_connections_cost_little_and_end() -> None:
    """Faults 55 in small: bounded, and gone after the limit."""

    async def go(stage: Stage) -> None:
        clients = [await stage.client() for _ in range(100)]
        for client in clients:
            await client.send(POST)
        for client in clients:
            assert await client.message() == OK
        await stage.settled(100)
        await eventually(lambda: not stage.proxy.clients)
        await eventually(lambda: all(wire.end for wire in stage.upstream.wires))

    play(go, limits=limits(keepalive_seconds=0.4))


# A client that goes away.


async def by_closing(client: Wire) -> None:
    client.close()


async def by_reset(client: Wire) -> None:
    client.rst()


async def slowly_forever(wire: Wire) -> None:
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    while not wire.end:
        await wire.send(b"data: {}\n\n")
        with contextlib.suppress(TimeoutError):
            await wire.more(0.02)


@pytest.mark.parametrize("how", [by_closing, by_reset])
@pytest.mark.parametrize(
    ("state", "sent", "script", "outcomes"),
    [
        ("before a byte", b"", never, []),
        ("inside a head", POST[:20], never, []),
        ("inside a body", POST[:-3], never, ["interrupted"]),
        (
            "inside a chunk",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhe",
            never,
            ["interrupted"],
        ),
        ("waiting", POST, never, ["interrupted"]),
        ("inside a reply", POST, slowly_forever, ["interrupted"]),
        ("with another request waiting", POST + POST, never, ["interrupted"]),
    ],
)
def test_a_client_that_goes_away_is_gone_for_the_upstream_too(
    how: Callable[[Wire], Any], state: str, sent: bytes, script: Any, outcomes: list[str]
) -> None:
    """Faults 49, in every state: the upstream sees the end within two seconds, and one event is `interrupted`."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(sent)
        await eventually(lambda: len(stage.proxy.clients) == 1)
        if outcomes:
            await eventually(lambda: stage.upstream.seen != b"")
        if script is slowly_forever:
            await client.until(b"data: {}\n\n")
        await how(client)
        await eventually(lambda: not stage.proxy.clients, 3.0)
        events = await stage.settled(len(outcomes))
        assert [event.outcome for event in events] == outcomes
        for wire in stage.upstream.wires:
            await eventually(lambda wire=wire: wire.end is not None, 2.0)  # type: ignore[misc]

    play(go, script)


@pytest.mark.parametrize("cut", range(1, len(POST), 9))
def test_an_upload_cut_anywhere_is_never_whole_for_the_upstream(cut: int) -> None:
    """I5, I6: the upstream sees a prefix of the request and the end of the connection."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST[:cut])
        client.close()
        await eventually(lambda: not stage.proxy.clients)
        seen = stage.upstream.seen.replace(b"127.0.0.1:%d" % stage.upstream.port, b"a")
        assert POST.startswith(seen)
        assert len(seen) < len(POST)

    play(go, never)


# An upstream that fails.


def test_an_upstream_that_refuses_is_a_502() -> None:
    """Faults 56: with our header, for the request and not for the proxy; recorded as failed."""

    async def go(stage: Stage) -> None:
        reply = await stage.ask(POST)
        assert reply.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"handrail-error: 502\r\n" in reply
        (event,) = await stage.settled(1)
        assert (event.outcome, event.payload, event.status) == ("failed", {"a": 1}, None)
        assert stage.counted("handrail_refused_total", "upstream") == 1

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        play(go, upstream_port=taken.getsockname()[1])


CALL = (
    b'{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"kind":"message","messageId":"m",'
    b'"contextId":"c","role":"user","parts":[{"kind":"text","text":"hi"}]}}}'
)
CALL_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(CALL)


@pytest.mark.parametrize("pieces", [(CALL_HEAD, CALL), (CALL_HEAD, CALL[:50], CALL[50:])], ids=["body", "pieces"])
def test_a_request_that_nobody_took_is_recorded_with_what_it_says(pieces: tuple[bytes, ...]) -> None:
    """Most clients send the head in a segment of its own, and a refusal overtakes the body: the caller is answered at
    once, and the record tells who asked whom for what all the same."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(pieces[0])
        assert (await client.until()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert stage.kept.events == []
        await client.send(*pieces[1:], pause=0.02)
        (event,) = await stage.settled(1)
        assert (event.protocol, event.workflow, event.task, event.outcome) == ("a2a", "c", "m", "failed")
        assert (event.source, event.target, event.uninspected) == ("peer", "agent", None)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        play(go, upstream_port=taken.getsockname()[1])


@pytest.mark.parametrize("end", ["fin", "silence"])
def test_a_request_that_nobody_took_and_that_never_ends_is_recorded_as_cut(end: str) -> None:
    """The client that leaves, or says nothing more for as long as a refused one is read."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(CALL_HEAD + CALL[:10])
        assert (await client.until()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        if end == "fin":
            client.close()
        (event,) = await stage.settled(1)
        assert (event.outcome, event.uninspected) == ("failed", "incomplete")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        play(go, upstream_port=taken.getsockname()[1])


def test_an_upstream_that_cannot_be_reached_in_time_is_a_504() -> None:
    """A listener whose queue is full drops the SYN."""

    async def go(stage: Stage) -> None:
        reply = await stage.ask(POST)
        assert reply.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        (event,) = await stage.settled(1)
        assert event.outcome == "timeout"

    with socket.socket() as full, contextlib.ExitStack() as held:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        play(go, upstream_port=full.getsockname()[1], limits=limits(connect_seconds=0.3))


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_an_upstream_that_ends_without_a_reply_is_a_502_on_a_fresh_connection(end: str) -> None:
    """The client learns what happened."""

    async def go(stage: Stage) -> None:
        assert (await stage.ask(POST)).startswith(b"HTTP/1.1 502 ")
        (event,) = await stage.settled(1)
        assert event.outcome == "interrupted"
        assert len(stage.upstream.wires) == 1

    play(go, replying(then=end))


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_an_upstream_that_ends_on_a_reused_connection_ends_the_clients(end: str) -> None:
    """Faults 59: no error of ours and no repetition; the client may repeat by its own rules."""

    async def once(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)
        await wire.message()
        if end == "fin":
            wire.close()
        else:
            wire.rst()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST)
        assert await client.message() == OK
        await client.send(POST)
        assert await client.rest() == b""
        assert client.end == end
        events = await stage.settled(2)
        assert [event.outcome for event in events] == ["completed", "interrupted"]
        assert len(stage.upstream.wires) == 1

    play(go, once)


def test_an_upstream_that_closes_an_idle_connection_closes_the_clients() -> None:
    """So that the client opens a fresh one by its own rules."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST)
        assert await client.message() == OK
        assert await client.rest() == b""
        await stage.settled(1)

    play(go, replying(OK, then="fin"))


@pytest.mark.parametrize("order", ["client first", "upstream first", "half a head first"])
def test_a_request_that_crosses_the_end_of_an_idle_upstream_is_answered(order: str) -> None:
    """Both are here when the loop looks: no upstream has seen the request, so another connection carries it, once."""

    async def go(stage: Stage) -> None:
        with socket.create_connection(("127.0.0.1", stage.port)) as client:

            async def answer() -> bytes:
                got = b""
                while not got.endswith(OK):
                    more = await asyncio.get_running_loop().sock_recv(client, 65_536)
                    assert more, got
                    got += more
                return got

            client.setblocking(False)
            client.send(POST)
            assert await answer() == OK
            await asyncio.sleep(0.1)
            acts = [lambda: client.send(POST), stage.upstream.wires[0].shut]
            if order == "half a head first":
                client.send(POST[:20])
                await eventually(lambda: any(each.decoder.rest for each in stage.proxy.clients))
                stage.upstream.wires[0].shut()
                await asyncio.sleep(0.05)
                client.send(POST[20:])
            else:
                for act in acts if order == "client first" else acts[::-1]:
                    act()
            assert await answer() == OK
            events = await stage.settled(2)
            assert [event.outcome for event in events] == ["completed", "completed"]
            assert [bytes(wire.seen).count(b"POST") for wire in stage.upstream.wires] == [1, 1]

    play(go)


def test_what_was_sent_behind_the_last_reply_is_not_answered() -> None:
    """An upstream that says `close` has answered for the last time, and what came behind goes nowhere."""
    last = OK.replace(b"Content-Type", b"Connection: close\r\nContent-Type")

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST)
        assert await client.message() == last
        await client.send(POST[:20])
        assert await client.rest() == b""
        await stage.settled(1)
        assert len(stage.upstream.wires) == 1

    async def ends(wire: Wire) -> None:
        await wire.message()
        await wire.send(last)
        await asyncio.sleep(0.1)
        wire.close()

    play(go, ends)


def test_what_was_sent_with_the_last_request_is_no_exchange() -> None:
    """RFC 9112 9.6: behind a reply that says `close` nothing is processed, also where it was here before the reply."""
    last = OK.replace(b"Content-Type", b"Connection: close\r\nContent-Type")

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST + GET + POST)
        assert await client.rest() == last
        await stage.settled(1)
        assert stage.upstream.seen == POST.replace(b"Host: a", b"Host: 127.0.0.1:%d" % stage.upstream.port)

    async def ends(wire: Wire) -> None:
        await wire.message()
        await wire.send(last)
        await asyncio.sleep(0.1)  # time enough for more to arrive
        wire.close()

    play(go, ends)


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("sent", [SIZED_REPLY, CHUNKED_REPLY, OPEN_REPLY, SIZED_REPLY[:30]])
def test_a_reply_that_is_cut_is_cut_for_the_client(sent: bytes, end: str) -> None:
    """Faults 57: never a well-formed short body; what ends with the connection is whole after FIN, cut after RST."""
    whole = sent == OPEN_REPLY and end == "fin"

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST)
        got = await client.rest()
        assert sent.startswith(got) if end == "rst" else got == sent
        assert client.end == end
        (event,) = await stage.settled(1)
        assert event.outcome == ("completed" if whole else "interrupted")
        assert event.status == (200 if b"\r\n\r\n" in sent else None)

    play(go, replying(sent, then=end))


def test_an_upstream_that_never_answers_is_a_504() -> None:
    """After `reply_seconds` of silence, also where it has sent an interim reply."""

    async def hints(wire: Wire) -> None:
        head = await wire.until()
        if b"/hints" in head:
            await wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await wire.rest()

    async def go(stage: Stage) -> None:
        assert (await stage.ask(GET)).startswith(b"HTTP/1.1 504 ")
        client = await stage.client()
        await client.send(GET.replace(b"/ ", b"/hints "))
        assert (await client.until()).startswith(b"HTTP/1.1 103 ")
        assert (await client.until()).startswith(b"HTTP/1.1 504 ")
        events = await stage.settled(2)
        assert [event.outcome for event in events] == ["timeout", "timeout"]
        assert stage.counted("handrail_refused_total", "reply_timeout") == 2

    play(go, hints, limits=limits(reply_seconds=0.4))


def test_a_stream_may_be_silent_as_long_as_it_likes() -> None:
    """Faults 62: before its first byte where the client accepts a stream, and after it in any case."""

    async def quiet(wire: Wire) -> None:
        head = await wire.until()
        if b"event-stream" in head:
            await asyncio.sleep(0.8)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await asyncio.sleep(0.8)
        await wire.send(b"ok")
        await wire.rest()

    async def go(stage: Stage) -> None:
        streaming = GET.replace(b"\r\n\r\n", b"\r\nAccept: text/event-stream\r\n\r\n")
        replies = await asyncio.gather(stage.ask(GET), stage.ask(streaming))
        assert [reply[-2:] for reply in replies] == [b"ok", b"ok"]
        await stage.settled(2)

    play(go, quiet, limits=limits(reply_seconds=0.3, body_idle_seconds=0.3))


@pytest.mark.parametrize("closes", [True, False])
def test_a_reply_before_the_request_is_complete_is_forwarded(closes: bool) -> None:
    """Faults 58: the client gets it at once; an upstream that keeps reading gets the rest."""
    early = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"

    async def hasty(wire: Wire) -> None:
        await wire.until()
        await wire.exactly(3)
        await wire.send(early)
        if closes:
            wire.close()
            return
        await wire.exactly(4)
        await wire.message()
        await wire.send(OK)
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST[:-4])
        assert await client.message() == early
        if closes:
            await client.send(POST[-4:])
            assert await client.rest() == b""
        else:
            await client.send(POST[-4:])
            await client.send(POST)
            assert await client.message() == OK
        events = await stage.settled(1 if closes else 2)
        assert (events[0].outcome, events[0].status, events[0].uninspected) == ("rejected", 413, "incomplete")

    play(go, hasty)


def test_a_reply_that_came_before_a_reset_is_forwarded() -> None:
    """Faults 58: the upstream answers, closes, and leaves the upload unread; what is sent to it then is reset, and the
    write fails before the loop has read the answer."""
    early = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1)

    async def go(stage: Stage) -> None:
        with socket.create_connection(("127.0.0.1", stage.port), 5) as client:
            client.sendall(POST[:-4])
            upstream = await asyncio.to_thread(lambda: listening.accept()[0])
            await asyncio.to_thread(upstream.recv, 1, socket.MSG_PEEK)
            client.sendall(POST[-4:])  # these three in this order and within one turn of the loop
            upstream.sendall(early)
            upstream.close()
            assert await asyncio.to_thread(client.recv, 65_536) == early
        (event,) = await stage.settled(1)
        assert (event.outcome, event.status) == ("rejected", 413)

    with listening:
        play(go, upstream_port=listening.getsockname()[1])


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 80_000,
    ],
)
def test_a_reply_that_is_not_http_is_a_502(reply: bytes) -> None:
    """Faults 61: none of it reaches the client, and the connection is not used again."""

    async def go(stage: Stage) -> None:
        got = await stage.ask(POST)
        assert got.startswith(b"HTTP/1.1 502 "), got
        (event,) = await stage.settled(1)
        assert event.outcome == "failed"
        await eventually(lambda: stage.upstream.wires[0].end is not None)
        assert stage.counted("handrail_refused_total", "upstream_invalid") == 1

    play(go, replying(reply))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 6])
def test_a_reply_behind_empty_lines_passes_as_it_came(at: int) -> None:
    """Some servers end a body with a line too many. Whether a client takes what follows is the client's affair."""
    raw = b"\r\n\r\n" + OK

    async def twice(wire: Wire) -> None:
        for _ in range(2):
            await wire.message()
            await wire.send(*[piece for piece in (raw[:at], raw[at:]) if piece], pause=0.03)
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        for number in (1, 2):
            await client.send(POST)
            assert await client.exactly(len(raw)) == raw
            events = await stage.settled(number)
            assert [(event.outcome, event.status) for event in events] == [("completed", 200)] * number
        assert len(stage.upstream.wires) == 1
        assert stage.counted("handrail_refused_total") == 0

    play(go, twice)


@pytest.mark.parametrize("cut", ["nowhere", "in the reply", "behind it", "behind its excess"])
@pytest.mark.parametrize(("method", "reply", "excess"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_reply_passes_without_what_its_upstream_sent_behind_it(
    method: str, reply: bytes, excess: bytes, cut: str
) -> None:
    """A length that is wrong by a few bytes is no reason to take a whole reply from its client, however the network cut
    it; what answers no request never passes, is counted, and ends both connections."""
    raw = reply + excess
    at = {"nowhere": len(raw), "in the reply": 20, "behind it": len(reply), "behind its excess": len(raw) - 1}[cut]
    pieces = [piece for piece in (raw[:at], raw[at:]) if piece]

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST.replace(b"POST", method.encode()))
        assert await client.rest() == reply
        assert client.end == "fin"
        (event,) = await stage.settled(1)
        assert (event.outcome, event.status) == ("completed", int(reply[9:12]))
        await eventually(lambda: stage.upstream.wires[0].end is not None)
        assert len(stage.upstream.wires) == 1
        assert stage.counted("handrail_refused_total", "upstream_unexpected") == 1
        assert stage.counted("handrail_refused_total") == 1

    play(go, replying(*pieces, pause=0.03))


@pytest.mark.parametrize("pieces", [(OK + OK,), (OK, OK)], ids=["at once", "later"])
def test_a_reply_before_the_request_is_complete_passes_without_what_stands_behind_it(pieces: tuple[bytes, ...]) -> None:
    """The client reads it to its end, also when it sends what is left of its request."""

    async def hasty(wire: Wire) -> None:
        await wire.until()
        await wire.exactly(3)
        await wire.send(*pieces, pause=0.03)
        await wire.rest()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST[:-4])
        assert await client.message() == OK
        await client.send(POST[-4:])
        assert await client.rest() == b""
        assert client.end == "fin"
        (event,) = await stage.settled(1)
        assert (event.outcome, event.status) == ("completed", 200)
        await eventually(lambda: stage.counted("handrail_refused_total", "upstream_unexpected") == 1)
        assert stage.counted("handrail_refused_total") == 1

    play(go, hasty)


def test_what_an_upstream_sends_between_requests_answers_none() -> None:
    """Pipelined requests: what stands behind the first answer is not taken for the second; the client asks again."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(GET + GET)
        assert await client.rest() == OK
        await stage.settled(1)
        assert stage.counted("handrail_refused_total", "upstream_unexpected") == 1

    play(go, replying(OK + OK))


def test_a_reply_that_turns_bad_half_way_is_cut() -> None:
    """What was forwarded cannot be taken back, so the client sees a cut."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(POST)
        got = await client.rest()
        assert CHUNKED_REPLY.startswith(got)
        assert client.end == "rst"
        (event,) = await stage.settled(1)
        assert event.outcome == "failed"

    play(go, replying(CHUNKED_REPLY, b"zz\r\n", pause=0.05))


def test_large_heads_of_replies_pass() -> None:
    """Faults 60: 200 lines, 20 KiB."""
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
        + b"".join(b"X%d: %b\r\n" % (n, b"a" * 100) for n in range(200))
        + b"\r\n"
    )

    async def go(stage: Stage) -> None:
        assert await stage.ask(GET) == reply
        await stage.settled(1)

    play(go, replying(reply))


def test_a_reply_without_end_streams_and_is_not_kept() -> None:
    """Faults 63: the client has its bytes while the copy has been given up."""

    async def endless(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not wire.end:
            await wire.send(b"x" * 65_536)

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(GET)
        for _ in range(300):
            await client.more()
            assert stage.proxy.budget.left > 50_000_000
        client.rst()
        (event,) = await stage.settled(1)
        assert event.outcome == "interrupted"
        assert stage.counted("handrail_uninspected_total", "too_large") == 1

    play(go, endless)


# TLS to the upstream.


def authority() -> tuple[trustme.CA, ssl.SSLContext]:
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(server)
    return ca, server


def test_a_tls_upstream_is_verified_and_gets_its_own_host() -> None:
    """The certificate's name is checked; Host is the upstream's."""
    ca, server = authority()
    trust = ssl.create_default_context()
    ca.configure_trust(trust)

    async def go(stage: Stage) -> None:
        client = await stage.client()
        for _ in range(3):
            await client.send(POST)
            assert await client.message() == OK
        assert b"Host: localhost:%d\r\n" % stage.upstream.port in stage.upstream.seen
        await stage.settled(3)
        assert len(stage.upstream.wires) == 1

    play(go, tls=server, trust=trust)


def test_a_tls_upstream_that_cannot_be_verified_gets_nothing() -> None:
    """Another authority's certificate: 502, and no byte of the request in any form."""
    _, server = authority()

    async def go(stage: Stage) -> None:
        reply = await stage.ask(POST)
        assert reply.startswith(b"HTTP/1.1 502 ")
        assert b"certificate" in reply
        assert not stage.upstream.seen
        (event,) = await stage.settled(1)
        assert event.outcome == "failed"

    play(go, tls=server, trust=ssl.create_default_context())


def test_a_plain_upstream_behind_an_https_route_gets_no_plain_request() -> None:
    """Never a fall-back to plaintext."""

    async def run() -> None:
        plain = Upstream(never)
        await plain.start()
        try:
            _, server = authority()
            async with staged(tls=server, trust=ssl.create_default_context(), upstream_port=plain.port) as stage:
                assert (await stage.ask(POST)).startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 504 "))
                assert b"POST" not in plain.seen
                assert plain.seen.startswith(b"\x16\x03")
                await stage.settled(1)
        finally:
            await plain.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# Our own failures (promise 2).


class Broken(Exception):
    pass


def broken(*_: object, **__: object) -> Any:
    raise Broken("on purpose")


class BrokenTable(dict[Any, Any]):
    __getitem__ = __setitem__ = broken


def broken_metrics() -> Metrics:
    """Fails at everything that it is told. A compiled class takes no subclass, so its tables are what breaks."""
    metrics = Metrics()
    metrics._edges = metrics._counters = metrics._gauges = BrokenTable()
    return metrics


class BrokenSink:
    def put(self, record: Event | Finding) -> None:
        raise Broken("on purpose")


class BrokenDialect:
    name = "broken"
    ask = answer = broken


def with_broken_dialect(inspector: Inspector) -> Inspector:
    reader = inspector.reader
    reader._chosen[()] = (BrokenDialect(), *reader._all)  # type: ignore[arg-type]
    return inspector


def with_broken_steps(inspector: Inspector) -> Inspector:
    """A detector that raises, of a rule that has no id to report it under: nothing in the core contains that."""
    pipeline = with_broken_detector(inspector).pipeline
    pipeline._final_of_asked = pipeline._whole  # else a call that was asked closes without it
    for watch in pipeline.watches:
        watch.rule = SimpleNamespace(action=watch.rule.action)  # type: ignore[assignment]
    return inspector


class BrokenDetector:
    observe = advance = staticmethod(broken)

    def due(self, event: object) -> None:
        return None


def with_broken_detector(inspector: Inspector) -> Inspector:
    for watch in inspector.pipeline.watches:
        watch.detector = BrokenDetector()  # type: ignore[assignment]
    return inspector


RULE = """
language: 1
rules:
  - id: schema.violation
    title: t
    why: w
    maturity: stable
    severity: critical
    kind: schema.violation
    action: ACTION
    tests:
      - {name: a repeated key, events: [{at: 0, uninspected: duplicate_key}], finds: 1}
      - {name: nothing wrong, events: [{at: 0}], finds: 0}
"""


@pytest.mark.parametrize("action", ["observe", "enforce"])
@pytest.mark.parametrize(
    ("options", "events", "component"),
    [
        ({"wrap": with_broken_dialect}, 4, "dialect.broken"),
        ({"wrap": with_broken_detector}, 4, "detector.schema.violation"),
        ({"wrap": with_broken_steps}, 0, "inspector"),
        ({"sinks": (BrokenSink(),)}, 4, "sink"),
        ({"metrics": broken_metrics()}, 4, None),
    ],
    ids=["dialect", "detector", "inspector", "sink", "metrics"],
)
def test_our_own_failures_change_no_exchange(
    options: dict[str, Any], events: int, component: str | None, action: str
) -> None:
    """A part that raises at everything: the same bytes both ways, and the fault counted."""

    async def go(stage: Stage) -> None:
        client = await stage.client()
        for _ in range(4):
            await client.send(POST)
            assert await client.message() == OK
        expected = POST.replace(b"Host: a", b"Host: 127.0.0.1:%d" % stage.upstream.port)
        assert stage.upstream.seen == expected * 4
        await asyncio.sleep(0.6)  # two sweeps
        await stage.settled(events)
        bad = await stage.client()
        await bad.send(AMBIGUOUS["two lengths"])
        assert (await bad.rest()).startswith(b"HTTP/1.1 400 ")
        if component is not None:
            assert stage.counted("handrail_faults_total", component) >= 4

    play(go, answer_all, rules_text=RULE.replace("ACTION", action), **options)


def test_the_defaults_are_the_documented_limits() -> None:
    """Faults, section 4."""
    documented = LimitsConfig()
    assert (documented.header_bytes, documented.header_lines, documented.header_seconds) == (65_536, 256, 10.0)
    assert (documented.body_idle_seconds, documented.connect_seconds, documented.hold_bytes) == (30.0, 1.0, 1_048_576)
