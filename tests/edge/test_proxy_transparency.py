"""Promise 1: what the upstream receives is what the client sent, and the other way round, byte for byte.

And framing agreement: what the upstream saw parses in h11 as the requests that were read here, or the client got 400.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.recorder import OK, Stage, Wire, eventually, play, staged
from handrail.event import Event
from handrail.pipeline import Inspector
from handrail.wire import Exchange, Request

T = TypeVar("T")

COMMON = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for the properties of this module: a stage for each example on it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def run(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    async def within() -> T:
        async with asyncio.timeout(20):
            return await work

    return runner.run(within())


token = st.text("ABCxyz-_.!#$%&'*+^`|~09", min_size=1, max_size=8).filter(
    lambda name: name.lower() not in {"te", "host", "expect", "connection", "upgrade"}
)
value = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=12).map(
    lambda text: text.encode("latin-1")
)
inner = st.tuples(value, st.sampled_from([b"", b" ", b"\t ", b", ", b"; q=0.5, "]), value).map(b"".join)


@st.composite
def header_lines(draw: st.DrawFn) -> list[bytes]:
    """Names in any case, repeated or not, values odd but legal, white space around them as senders write it."""
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(
            st.one_of(token.map(str.encode), st.sampled_from([b"Cookie", b"COOKIE", b"X-Dup", b"x-dup", b"Via"]))
        )
        lines.append(name + b":" + draw(st.sampled_from([b"", b" ", b"  ", b"\t"])) + draw(inner).strip(b"\xa0\x85 \t"))
    return lines


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A framing header (with its CRLF, or empty) and the framed body."""
    body = draw(
        st.one_of(
            st.just(b""), st.binary(max_size=60), st.just(b'{"task_id":"t1","output":{}}'), st.just(b"x" * 70_000)
        )
    )
    how = draw(st.sampled_from(["none", "length", "chunks"]))
    if how == "none":
        return b"", b""
    if how == "length":
        name = draw(st.sampled_from([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH:  "]))
        return name + b"%d\r\n" % len(body), body
    size = draw(st.integers(1, 40)) if len(body) < 1000 else 30_000
    spelled = draw(st.sampled_from([b"%x", b"%X", b"00%x"]))
    extension = draw(st.sampled_from([b"", b";a", b';name="va lue"', b"; spaced = 1"]))
    framed = b"".join(
        (spelled % len(part)) + extension + b"\r\n" + part + b"\r\n"
        for part in (body[n : n + size] for n in range(0, len(body), size))
    )
    trailers = draw(st.sampled_from([b"", b"Digest: x\r\n", b"X-T: 1\r\nx-t:\r\n"]))
    return b"Transfer-Encoding: chunked\r\n", framed + b"0\r\n" + trailers + b"\r\n"


targets = st.one_of(
    st.sampled_from(
        [
            b"/",
            b"*",
            b"/a%2Fb//../c?x=%41",
            b"//double//",
            b"/?",
            b"/#f",
            b"/.well-known/agent-card.json",
            b"/a;b=c?d&&e",
        ]
    ),
    st.text("abcXYZ019-._~:/?@!$&'()*+,;=%", max_size=30).map(lambda text: b"/" + text.encode()),
)


@st.composite
def raw_requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request as the client sends it, and the same with `<authority>` for the value of its Host header."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"QUERY", b"REPORT"]))
    framing, body = draw(bodies())
    lines = draw(header_lines())
    host = draw(st.sampled_from([b"Host: ", b"host:", b"HOST:\t "]))
    where = draw(st.integers(0, len(lines)))

    def put_together(host_line: bytes) -> bytes:
        all_lines = [*lines[:where], host_line, *lines[where:]]
        head = method + b" " + target + b" HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in all_lines)
        return head + framing + b"\r\n" + body

    target = draw(targets)
    return put_together(host + b"agent.internal:9"), put_together(host + b"<authority>")


def pieces_of(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(raw) + 1) for cut in cuts})
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True) if a < b]


async def through(
    raw: bytes, cuts: list[int], count: int, replies: bytes = OK, **options: Any
) -> tuple[bytes, bytes, Stage]:
    """Sends raw requests in pieces; what the upstream saw, what the client got, and the stage."""
    got = b""

    async def answer(wire: Wire) -> None:
        for _ in range(count):
            await wire.message()
            await wire.send(replies)
        await wire.rest()

    async with staged(answer, **options) as stage:
        client = await stage.client()
        await client.send(*pieces_of(raw, cuts))
        for _ in range(count):
            got += await client.message()
        await stage.settled(count)
    return stage.upstream.seen, got, stage


@COMMON
@given(requests=st.lists(raw_requests(), min_size=1, max_size=3), cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_the_upstream_receives_what_the_client_sent(
    runner: asyncio.Runner, requests: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """Every byte but the value of Host, whatever the request and its pieces; pipelined requests in their order."""
    sent = b"".join(raw for raw, _ in requests)
    seen, got, stage = run(runner, through(sent, cuts, len(requests)))
    authority = b"127.0.0.1:%d" % stage.upstream.port
    assert seen == b"".join(expected.replace(b"<authority>", authority, 1) for _, expected in requests)
    assert got == OK * len(requests)


@COMMON
@given(requests=st.lists(raw_requests(), min_size=1, max_size=3), cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_with_the_clients_host_every_byte_is_the_same(
    runner: asyncio.Runner, requests: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """`host: client` leaves nothing that differs."""
    sent = b"".join(raw for raw, _ in requests)
    seen, _, _ = run(runner, through(sent, cuts, len(requests), own_host=True))
    assert seen == sent


@st.composite
def raw_replies(draw: st.DrawFn) -> tuple[bytes, str, bool]:
    """A reply, the method of the request it answers, and whether the upstream closes behind it."""
    interim = draw(
        st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"])
    )
    first = draw(
        st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Nope, sorry", b"HTTP/1.1 500 ", b"HTTP/1.1 299 \xe4"])
    )
    lines = b"".join(line + b"\r\n" for line in draw(header_lines()))
    how = draw(st.sampled_from(["framed", "to the end", "HEAD", "204", "304"]))
    if how == "204":
        return interim + b"HTTP/1.1 204 No Content\r\n" + lines + b"\r\n", "GET", False
    if how == "304":
        return interim + b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n" + lines + b"\r\n", "GET", False
    framing, body = draw(bodies().filter(lambda framed: framed[0] != b""))
    if how == "HEAD":
        return interim + first + b"\r\n" + lines + framing + b"\r\n", "HEAD", False
    if how == "to the end":
        return interim + first + b"\r\n" + lines + b"\r\n" + draw(st.binary(min_size=1, max_size=80)), "GET", True
    return interim + first + b"\r\n" + framing + lines + b"\r\n" + body, "GET", False


@COMMON
@given(replied=raw_replies(), cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_the_client_receives_what_the_upstream_sent(
    runner: asyncio.Runner, replied: tuple[bytes, str, bool], cuts: list[int]
) -> None:
    """Every byte of every reply: interim ones, reason phrases, chunks with extensions and trailers, none at all."""
    raw, method, closes = replied

    async def answer(wire: Wire) -> None:
        await wire.until()
        await wire.send(*pieces_of(raw, cuts))
        if closes:
            wire.close()
        else:
            await wire.rest()

    async def ask() -> tuple[bytes, int | str | None]:
        async with staged(answer) as stage:
            client = await stage.client()
            await client.send(method.encode() + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
            got = await client.rest() if closes else await client.exactly(len(raw))
            (event,) = await stage.settled(1)
            return got, event.status

    got, status = run(runner, ask())
    assert got == raw
    assert status == int(raw.split(b"HTTP/1.1 ")[-1 if b"HTTP/1.1 1" in raw[:12] else 1][:3])


MUTANTS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b"\x0b", b":", b",", b";", b"0", b"5", b"a", b"\xff", b"chunked",
    b"identity", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b" chunked",
    b"0\r\n\r\n", b"HTTP/1.0",
    b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"Connection: close\r\n", b"X: y\r\n z\r\n",
]  # fmt: skip


def as_h11_reads_it(raw: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    """Method, target and body of every complete request; None where h11 refuses the first."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    connection.receive_data(b"")
    read: list[tuple[bytes, bytes, bytes]] = []
    under_way: h11.Request | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                under_way, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert under_way is not None
                read.append((under_way.method, under_way.target, body))
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return read
                connection.start_next_cycle()
            else:
                return read
    except h11.RemoteProtocolError:
        return read or None


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    raw = b"".join(
        draw(
            st.lists(
                st.sampled_from(
                    [
                        b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
                        b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
                        b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                    ]
                ),
                min_size=1,
                max_size=2,
            )
        )
    )
    for _ in range(draw(st.integers(1, 3))):
        seams = [at for at, byte in enumerate(raw) if byte in b" \r\n:"]
        place = draw(st.one_of(st.sampled_from(seams), st.integers(0, len(raw))))
        raw = raw[:place] + draw(st.sampled_from(MUTANTS)) + raw[place + draw(st.integers(0, 2)) :]
    return raw


class Keeper:
    """A dialect that is asked about every exchange first, and reads none."""

    name = "keeper"

    def __init__(self, kept: list[Request]) -> None:
        self._kept = kept

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        self._kept.append(exchange.request)
        return ()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=mutants())
def test_the_upstream_sees_the_requests_that_were_read_here(runner: asyncio.Runner, raw: bytes) -> None:
    """Mutated requests: h11 reads from the upstream's bytes the requests of the events, or the client got 400."""

    async def swallow(wire: Wire) -> None:
        """Answers each request as soon as it is whole by h11's reading, so that pipelined ones follow."""
        answered = 0
        while await wire.more(2.0):
            whole = as_h11_reads_it(bytes(wire.seen)) or []
            await wire.send(OK * (len(whole) - answered))
            answered = max(answered, len(whole))

    async def go() -> tuple[bytes, bytes, int, list[tuple[bytes, bytes, int]]]:
        kept: list[Request] = []

        def keep(inspector: Inspector) -> Inspector:
            reader = inspector.reader
            reader._chosen[()] = (Keeper(kept), *reader._all)  # type: ignore[arg-type]
            return inspector

        async with staged(swallow, own_host=True, wrap=keep) as stage:
            client = await stage.client()
            await client.send(raw)
            client.fin()
            got = await client.rest()
            await eventually(lambda: not stage.proxy.clients)
            await stage.proxy.stop(0.0)
            read_here = [
                (asked.method.encode(), asked.target.partition("?")[0].encode("latin-1"), asked.size)
                for asked in kept
                if asked.cut != "incomplete"
            ]
            return stage.upstream.seen, got, len(stage.upstream.wires), read_here

    seen, got, connections, read_here = run(runner, go())
    read = [(method, target.partition(b"?")[0], len(body)) for method, target, body in as_h11_reads_it(seen) or []]
    assert connections <= 1
    # Nothing was changed, left out in the middle or made up; but an empty line before a request line belongs to no
    # request (RFC 9112 2.2) and is not passed on.
    assert seen in raw or seen.replace(b"\r\n", b"") in raw.replace(b"\r\n", b"")
    assert read == read_here
    assert got.count(b"HTTP/1.1 200 OK") == len(read)
    if seen not in raw:  # the empty lines between requests are no request left over
        raw, seen = raw.replace(b"\r\n", b""), seen.replace(b"\r\n", b"")
    left_over = raw.replace(seen, b"", 1).strip(b"\r\n")
    assert not left_over or b"HTTP/1.1 400 " in got or _unfinished(left_over)


def _unfinished(left_over: bytes) -> bool:
    """What the client never completed needs no answer: it ended the connection itself."""
    return len(as_h11_reads_it(left_over) or []) == 0


# Streams.


def test_an_event_of_a_stream_reaches_the_client_before_the_next_is_written() -> None:
    """No added delay: each server-sent event is with the client before the upstream may go on."""
    arrived = asyncio.Queue[float]()
    written: list[float] = []

    async def stream(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            event = b'data: {"n": %d}\n\n' % number
            written.append(time.perf_counter())
            await wire.send(b"%x\r\n%b\r\n" % (len(event), event))
            await arrived.get()
        await wire.send(b"0\r\n\r\n")

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(b"GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
        await client.until()
        lags = []
        for number in range(20):
            await client.until(b'data: {"n": %d}\n\n\r\n' % number)
            lags.append(time.perf_counter() - written[number])
            arrived.put_nowait(lags[-1])
        await client.until(b"0\r\n\r\n")
        assert sorted(lags)[10] < 0.01, lags
        (event,) = await stage.settled(1)
        assert (event.outcome, event.reply_bytes) == (
            "completed",
            sum(len(b'data: {"n": %d}\n\n' % n) for n in range(20)),
        )

    play(go, stream)


def test_one_byte_at_a_time_arrives_one_byte_at_a_time() -> None:
    """Faults 64: a trickled reply is not gathered up."""
    stepped = asyncio.Queue[None]()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

    async def trickle(wire: Wire) -> None:
        await wire.message()
        for number in range(len(reply)):
            await wire.send(reply[number : number + 1])
            await stepped.get()

    async def go(stage: Stage) -> None:
        client = await stage.client()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for number in range(len(reply)):
            assert await client.exactly(1) == reply[number : number + 1]
            stepped.put_nowait(None)
        await stage.settled(1)

    play(go, trickle)
