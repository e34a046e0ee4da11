"""The laws of every decoder: any chunking gives the same messages; garbage gives a Fault and never an exception; what
is buffered is bounded.

One drive for each decoder turns a list of pieces into what came out, so that each law is written once.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handrail.event import Fault
from handrail.wire import HeadLimits, Reply, Request
from handrail.wire.http1 import REASONS, ChunkedDecoder, CopyBudget, ReplyDecoder, RequestDecoder
from handrail.wire.nats import NatsDecoder
from handrail.wire.operation import Connection
from handrail.wire.resp import PIPELINE, RespDecoder
from handrail.wire.sse import ServerSentEvent, SseDecoder

LIMITS = HeadLimits(head_bytes=2048, field_bytes=512, lines=32)
COPY = 4096

Seen = tuple[object, ...]


def requests(pieces: Sequence[bytes]) -> list[Seen]:
    """As the edge drives it: what follows a complete request waits until that one is answered."""
    decoder = RequestDecoder(LIMITS, COPY)
    seen: list[Seen] = []
    forwarded = b""
    for piece in [*pieces, None]:
        got = decoder.close(1.0) if piece is None else decoder.feed(piece, 1.0)
        while True:
            forwarded += (decoder.head or b"") + decoder.out
            decoder.head, decoder.out = None, b""
            if got is None:
                break
            if isinstance(got, Fault):
                assert got.reason in REASONS
                return [*seen, ("fault", got.reason)]
            seen.append((got.method, got.target, got.headers, got.body, got.size, got.cut, forwarded))
            forwarded = b""
            if not decoder.rest:
                break
            got = decoder.feed(b"", 1.0)
    return seen


def replies(method: str) -> Callable[[Sequence[bytes]], list[Seen]]:
    """As the edge drives it: what stands behind a reply is not of it, with the reply or in a piece of its own."""

    def drive(pieces: Sequence[bytes]) -> list[Seen]:
        decoder = ReplyDecoder(LIMITS, COPY)
        seen: list[Seen] = []
        decoder.expect(method)
        for piece in [*pieces, None]:
            got = decoder.close(1.0) if piece is None else decoder.feed(piece, 1.0)
            if isinstance(got, Fault):
                assert got.reason in REASONS
                return [*seen, ("unasked" if got.reason == "unexpected" else "fault",)]
            if isinstance(got, Reply):
                seen.append((got.status, got.headers, got.body, got.size, got.cut))
                if got.status == 101:
                    return seen
                if decoder.excess:
                    return [*seen, ("unasked",)]
        return seen

    return drive


def chunks(pieces: Sequence[bytes]) -> list[Seen]:
    content: list[bytes] = []
    decoder = ChunkedDecoder(content.append, LIMITS)
    used = 0
    for piece in pieces:
        used += decoder.feed(piece)
        if decoder.done or decoder.problem:
            break
    return [
        (
            b"".join(content) if not decoder.problem else b"",
            decoder.done,
            decoder.problem is None,
            decoder.done and used,
        )
    ]


def server_sent(pieces: Sequence[bytes]) -> list[Seen]:
    decoder = SseDecoder(1024)
    got: list[ServerSentEvent | Fault] = []
    for piece in pieces:
        got += decoder.feed(piece, 1.0)
    got += decoder.close(1.0)
    return [("fault", each.reason) if isinstance(each, Fault) else (each,) for each in got]


def store_commands(pieces: Sequence[bytes]) -> list[Seen]:
    decoder = store_decoder()
    seen = [each for piece in pieces for each in decoder.commands(piece, 1.0)] + decoder.close(1.0)
    return [(each,) for each in seen]


def store_replies(pieces: Sequence[bytes]) -> list[Seen]:
    """To commands of every sort that replies are paired with."""
    decoder = store_decoder()
    decoder.commands(ASKED, 1.0)
    seen = [each for piece in pieces for each in decoder.replies(piece, 1.0)] + decoder.close(1.0)
    return [(each,) for each in seen]


def store_decoder() -> RespDecoder:
    return RespDecoder(
        Connection(id="c"), lambda args: args[0] != b"PING", lambda channel: True, COPY, CopyBudget(16 * COPY)
    )


ASKED = (
    b"GET a\r\nPING\r\nMULTI\r\nGET b\r\nPING\r\nEXEC\r\nSUBSCRIBE c d\r\nBLPOP q 0\r\nUNSUBSCRIBE\r\nPING\r\n"
    b"GET e\r\nCLIENT REPLY SKIP\r\nGET f\r\nSELECT 3\r\nGET g\r\n"
)


def bus_client(pieces: Sequence[bytes]) -> list[Seen]:
    decoder = NatsDecoder(Connection(id="c"), lambda subject: subject != "dull", COPY)
    return [(each,) for piece in pieces for each in decoder.client(piece, 1.0)]


def bus_server(pieces: Sequence[bytes]) -> list[Seen]:
    """To a client that subscribed and published with a reply subject."""
    decoder = NatsDecoder(Connection(id="c"), lambda subject: subject != "dull", COPY)
    decoder.client(b"SUB a.* 1\r\nPUB a.b inbox 2\r\nhi\r\n", 1.0)
    return [(each,) for piece in pieces for each in decoder.server(piece, 1.0)]


DRIVES: dict[str, Callable[[Sequence[bytes]], list[Seen]]] = {
    "requests": requests,
    "replies": replies("GET"),
    "replies to HEAD": replies("HEAD"),
    "chunks": chunks,
    "server-sent events": server_sent,
    "commands of a store": store_commands,
    "answers of a store": store_replies,
    "a client of a bus": bus_client,
    "the server of a bus": bus_server,
}

TOKENS = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a?b=%20 HTTP/1.1\r\n",
    b"HEAD / HTTP/1.0\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 304 Not Modified\r\n",
    b"HTTP/1.0 200\r\n",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"content-length:9999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: x\r\n",
    b"Expect: 100-continue\r\n",
    b"Content-Type: application/json\r\n",
    b"Content-Type: image/png\r\n",
    b"X: " + b"y" * 600 + b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"hello",
    b"5\r\nhello\r\n",
    b"5;ext=1\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\nT: r\r\n\r\n",
    b"ffffffffffff\r\n",
    b"data: one\n\n",
    b"data: two\r\ndata:three\r\n\r\n",
    b"event: e\rid: 7\r\r",
    b": comment\n",
    b"\xef\xbb\xbf",
    b"\x00\xff",
]

STORE_TOKENS = [
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n",
    b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5000\r\n" + b"x" * 5000 + b"\r\n",
    b"*1\r\n$5\r\nMULTI\r\n",
    b"*1\r\n$4\r\nEXEC\r\n",
    b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$4\r\nSKIP\r\n",
    b"GET a\r\n",
    b"MONITOR\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"+OK\r\n",
    b"+QUEUED\r\n",
    b"-ERR no\r\n",
    b":1\r\n",
    b"$3\r\nabc\r\n",
    b"$5000\r\n" + b"x" * 5000 + b"\r\n",
    b"$-1\r\n",
    b"*2\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
    b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
    b"%1\r\n",
    b"|1\r\n+a\r\n+b\r\n",
    b"~?\r\n",
    b".\r\n",
    b"$?\r\n",
    b";1\r\nx\r\n",
    b";0\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"(99999999999999999999\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"_\r\n",
]

BUS_TOKENS = [
    b'INFO {"connect_urls":["a:1"]}\r\n',
    b'CONNECT {"name":"n","user":"u"}\r\n',
    b"PING\r\n",
    b"+OK\r\n",
    b"-ERR 'no'\r\n",
    b"SUB a.* q 1\r\n",
    b"UNSUB 1\r\n",
    b"PUB a.b 2\r\nhi\r\n",
    b"pub\ta.b  r 2\r\nhi\r\n",
    b"PUB dull 2\r\nhi\r\n",
    b"PUB a.b 5000\r\n" + b"x" * 5000 + b"\r\n",
    b"HPUB a.b 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n",
    b"PUB $JS.ACK.S.C.1.2.3.4.5 4\r\n+ACK\r\n",
    b"MSG a.b 1 2\r\nhi\r\n",
    b"MSG a.b 1 $JS.ACK.S.C.1.2.3.4.5 2\r\nhi\r\n",
    b'MSG inbox 2 22\r\n{"stream":"S","seq":1}\r\n',
    b"HMSG inbox 2 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
    b"\x16\x03\x01",
]

streams = st.sampled_from([TOKENS, STORE_TOKENS, BUS_TOKENS]).flatmap(
    lambda tokens: st.lists(
        st.one_of(*(st.sampled_from(tokens) for _ in range(4)), st.binary(max_size=8)), max_size=14
    ).map(b"".join)
)


@st.composite
def whole_messages(draw: st.DrawFn, is_reply: bool = False) -> bytes:
    """A well-formed message, so that the laws are about messages and not only about faults."""
    body = draw(st.binary(max_size=40))
    fields = draw(st.lists(st.sampled_from([b"X-A: 1", b"x-a:2", b"X-Empty:", b"Connection: keep-alive"]), max_size=3))
    first = b"HTTP/1.1 200 OK" if is_reply else b"POST /x?y HTTP/1.1"
    fields = [*([] if is_reply else [b"Host: a"]), *fields]
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        framed = b"".join(b"%x%b\r\n%b\r\n" % (len(p), draw(st.sampled_from([b"", b";e=1"])), p) for p in parts if p)
        framed += b"0\r\n" + draw(st.sampled_from([b"", b"T: r\r\n"])) + b"\r\n"
        fields.append(b"Transfer-Encoding: chunked")
    else:
        framed = body
        fields.append(b"Content-Length: %d" % len(body))
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"])) if is_reply else b""
    return interim + b"\r\n".join([first, *fields]) + b"\r\n\r\n" + framed


def split(raw: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({cut % (len(raw) + 1) for cut in cuts})
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True) if a < b]


many_cuts = st.lists(st.integers(0, 4000), max_size=12)


@pytest.mark.parametrize("name", DRIVES)
@settings(max_examples=120, deadline=None)
@given(raw=streams, cuts=many_cuts)
@example(raw=b"PUB a.b 2\r\nhi\r\n\x16\x03\x01", cuts=[16])
@example(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", cuts=[38])
@example(raw=b"\r\nHTTP/1.1 204 No Content\r\n\r\n", cuts=[1])
@example(raw=b"HTTP/1.1 100 Continue\r\n\r\n\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", cuts=[26, 28])
@example(raw=b"\nHTTP/1.1 204 No Content\r\n\r\n", cuts=[1])
@example(raw=b"HTTP/1.1 204 No Content\nX: y\r\n\r\n", cuts=[25])
@example(raw=b"HTTP/2.0 204 No Content\r\n\r\n", cuts=[7])
def test_any_chunking_of_anything_gives_the_same(name: str, raw: bytes, cuts: list[int]) -> None:
    """Also of what is no message: the same messages before the fault, and the same fault."""
    drive = DRIVES[name]
    whole = drive([raw])
    assert drive(split(raw, cuts)) == whole
    if len(raw) < 1000:
        assert drive([raw[n : n + 1] for n in range(len(raw))]) == whole


@settings(max_examples=120, deadline=None)
@given(messages=st.lists(whole_messages(), min_size=1, max_size=3), cuts=many_cuts)
def test_any_chunking_of_requests_gives_the_same(messages: list[bytes], cuts: list[int]) -> None:
    """Pipelined requests come out whole and in order, and what may be forwarded is what came in."""
    raw = b"".join(messages)
    seen = requests(split(raw, cuts))
    assert [each[-1] for each in seen] == messages
    assert seen == requests([raw])


@settings(max_examples=120, deadline=None)
@given(messages=st.lists(whole_messages(is_reply=True), min_size=1, max_size=3), cuts=many_cuts)
def test_any_chunking_of_replies_gives_the_same(messages: list[bytes], cuts: list[int]) -> None:
    """Each reply is complete at its last byte and not before."""
    for message in messages:
        drive = replies("GET")
        (whole,) = drive([message])
        assert whole[0] == 200
        assert drive(split(message, cuts)) == [whole]
        assert drive([message[:-1]]) == [("fault",)]


@pytest.mark.parametrize("name", DRIVES)
@settings(max_examples=120, deadline=None)
@given(raw=st.binary(max_size=300), cuts=many_cuts)
def test_garbage_gives_a_fault_and_never_an_exception(name: str, raw: bytes, cuts: list[int]) -> None:
    """Whatever the bytes, the drive returns."""
    DRIVES[name](split(raw, cuts))


@pytest.mark.parametrize("name", DRIVES)
@settings(max_examples=100, deadline=None)
@given(raw=streams, at=st.integers(0, 4000), byte=st.integers(0, 255))
def test_one_wrong_byte_gives_no_exception(name: str, raw: bytes, at: int, byte: int) -> None:
    """A flipped byte in something that was nearly a message."""
    place = at % (len(raw) + 1)
    DRIVES[name]([raw[:place] + bytes([byte]) + raw[place + 1 :]])


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a request line": (b"GET /", b"a"),
    "empty lines": (b"", b"\r\n"),
    "headers": (b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
    "a sized body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", b"a"),
    "a sized body in one-byte chunks": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\na\r\n",
    ),
    "a chunk extension": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "trailers": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "a status line": (b"HTTP/1.1 200 ", b"a"),
    "headers of a reply": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "interim replies": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body to the end": (b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
    "chunks of a reply": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "trailers of a reply": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "a line of an event": (b"data: ", b"a"),
    "data lines": (b"", b"data: x\n"),
}

STORE_ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a line": (b"+", b"a"),
    "an inline command": (b"", b"a"),
    "a string": (b"*2\r\n$3\r\nSET\r\n$9999999999\r\n", b"a"),
    "a string in a reply": (b"$9999999999\r\n", b"a"),
    "arguments": (b"*1000000\r\n$3\r\nSET\r\n", b"$1\r\na\r\n"),
    "empty arguments": (b"*1000000\r\n$3\r\nSET\r\n", b"$0\r\n\r\n"),
    "items": (b"*9999999999\r\n", b"_\r\n"),
    "streamed items": (b"*?\r\n", b"*0\r\n"),
    "a streamed string": (b"$?\r\n", b";1\r\na\r\n"),
    "attributes": (b"", b"|1\r\n+a\r\n+b\r\n"),
    "pushes": (b"", b">2\r\n+a\r\n+b\r\n"),
    "a line of a bus": (b"PUB ", b"a"),
    "a payload": (b"PUB a 9999999999\r\n", b"a"),
    "a delivery": (b"MSG a 1 9999999999\r\n", b"a"),
    "requests": (b"", b"PUB a r 0\r\n\r\n"),
}


def deep_size(value: Any) -> int:
    """Bytes that a decoder holds on to, by walking what it references."""
    if isinstance(value, bytes | bytearray | str):
        return sys.getsizeof(value)
    if isinstance(value, list | tuple | deque):
        return sys.getsizeof(value) + sum(map(deep_size, value))
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(deep_size(key) + deep_size(each) for key, each in value.items())
    if type(value).__module__.startswith("handrail") and not isinstance(value, CopyBudget | HeadLimits):
        slots = [slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())]
        held = {slot: getattr(value, slot, None) for slot in slots} | getattr(value, "__dict__", {})
        return sum(deep_size(each) for each in held.values())
    return 0


@pytest.mark.parametrize("stream", ENDLESS)
@pytest.mark.parametrize("name", ["requests", "replies", "replies to HEAD", "server-sent events"])
def test_what_is_buffered_is_bounded(name: str, stream: str) -> None:
    """A stream without end, a thousand times its limits, leaves a decoder that holds no more than its limits."""
    decoder: Any
    if name == "requests":
        decoder = RequestDecoder(LIMITS, COPY)
    elif name == "server-sent events":
        decoder = SseDecoder(COPY)
    else:
        decoder = ReplyDecoder(LIMITS, COPY)
        decoder.expect("HEAD" if name.endswith("HEAD") else "GET")
    start, more = ENDLESS[stream]
    more *= max(1, 1000 // len(more))
    got = decoder.feed(start, 1.0)
    for _ in range(600):
        if isinstance(got, Fault | Reply | Request):
            break
        got = decoder.feed(more, 1.0)
        if name == "server-sent events":
            got = list(got)
    # One string in CPython costs some 40 bytes, and a body may come in one-byte pieces: hence the factor.
    assert deep_size(decoder) < 64 * COPY + 8 * LIMITS.head_bytes


@pytest.mark.parametrize("stream", STORE_ENDLESS)
@pytest.mark.parametrize("side", ["commands", "replies", "client", "server"])
def test_what_is_buffered_of_stores_and_buses_is_bounded(side: str, stream: str) -> None:
    """A stream without end leaves a decoder that holds no more than its limits and one long line."""
    decoder: Any
    if side in ("commands", "replies"):
        decoder = store_decoder()
        decoder.commands(b"GET a\r\n", 1.0)
    else:
        decoder = NatsDecoder(Connection(id="c"), lambda subject: True, COPY)
    feed = getattr(decoder, side)
    start, more = STORE_ENDLESS[stream]
    more *= max(1, 1000 // len(more))
    feed(start, 1.0)
    for _ in range(300):
        feed(more, 1.0)
    # Of a command that nobody wants, its place among the replies is all that is kept.
    assert deep_size(decoder) < 64 * COPY + (16 * PIPELINE if side == "commands" else 0)
