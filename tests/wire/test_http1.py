"""What the HTTP/1.1 decoders take, what they refuse, and what a request or reply says. Their laws are in test_laws."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.event import Fault
from handrail.wire import HeadLimits, Reply, Request, http1
from handrail.wire.http1 import ChunkedDecoder, CopyBudget, ReplyDecoder, RequestDecoder

HEAD = b"POST /a HTTP/1.1\r\nHost: agent\r\n"
LIMIT = 1 << 20


def read(raw: bytes, **limits: int) -> Request | Fault | None:
    return RequestDecoder(HeadLimits(**limits), LIMIT).feed(raw, 1.0)


def reply(raw: bytes, method: str = "GET") -> Reply | Fault | None:
    decoder = ReplyDecoder(HeadLimits(), LIMIT)
    decoder.expect(method)
    return decoder.feed(raw, 1.0)


AMBIGUOUS = {
    "length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "a hexadecimal length": HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    "a length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\nhellohello",
    "an empty length": HEAD + b"Content-Length:\r\n\r\n",
    "a length past 64 bits": HEAD + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "a length that is a word": HEAD + b"Content-Length: five\r\n\r\nhello",
    "two codings": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a list of codings": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a coding before chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n",
    "an empty coding": HEAD + b"Transfer-Encoding:\r\n\r\n",
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a tab before the colon": HEAD + b"Content-Length\t: 5\r\n\r\nhello",
    "a vertical tab in the value": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": HEAD + b"X: a\r\n b\r\n\r\n",
    "a folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a line ended by LF": HEAD + b"X: a\nContent-Length: 5\r\n\r\nhello",
    "a head ended by LF LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "a head ended by CRLF LF": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "a bare CR": HEAD + b"X: a\rContent-Length: 5\r\n\r\nhello",
    "a NUL in a value": HEAD + b"X: a\x00b\r\n\r\n",
    "a NUL in a name": HEAD + b"X\x00: a\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two equal Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
    "a line without colon": HEAD + b"Content-Length\r\n\r\n",
    "a nameless field": HEAD + b": 5\r\n\r\n",
    "two spaces in the request line": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab in the request line": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space behind the version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a first line feed": b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "another protocol": b"OPTIONS * RTSP/1.0\r\nHost: a\r\n\r\n",
    "a reply": b"HTTP/1.1 200 OK\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
"""Requests that two parsers may read in two ways, or that no parser should read at all."""

CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS = {
    "a size ended by LF": CHUNKS + b"5\nhello\r\n0\r\n\r\n",
    "data ended by LF": CHUNKS + b"5\r\nhello\n0\r\n\r\n",
    "a trailer ended by LF": CHUNKS + b"0\r\nX: y\n\r\n",
    "the end as LF": CHUNKS + b"0\r\n\n",
    "data longer than its size": CHUNKS + b"5\r\nhello!\r\n0\r\n\r\n",
    "a size past 64 bits": CHUNKS + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": CHUNKS + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a signed size": CHUNKS + b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with a space": CHUNKS + b"5 \r\nhello\r\n0\r\n\r\n",
    "a size with an underscore": CHUNKS + b"1_0\r\nhellohellohello!\r\n0\r\n\r\n",
    "no size": CHUNKS + b"\r\nhello\r\n0\r\n\r\n",
    "no size but an extension": CHUNKS + b";a=b\r\nhello\r\n0\r\n\r\n",
    "a bare CR in an extension": CHUNKS + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a bare LF in an extension": CHUNKS + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a NUL in an extension": CHUNKS + b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "a trailer without colon": CHUNKS + b"0\r\nGET / HTTP/1.1\r\n\r\n",
    "a folded trailer": CHUNKS + b"0\r\nX: y\r\n z\r\n\r\n",
}


@pytest.mark.parametrize("raw", [*AMBIGUOUS.values(), *BAD_CHUNKS.values()], ids=[*AMBIGUOUS, *BAD_CHUNKS])
def test_ambiguous_framing_is_a_fault(raw: bytes) -> None:
    """What two parsers could read in two ways gives no request."""
    assert isinstance(read(raw), Fault)


@pytest.mark.parametrize(
    ("raw", "method", "target", "body"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/", b""),
        (b"GET / HTTP/1.0\r\n\r\n", "GET", "/", b""),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/", b""),
        (b"GET /a%2Fb//../c?x=%41&y=a+b HTTP/1.1\r\nHost:\r\n\r\n", "GET", "/a%2Fb//../c?x=%41&y=a+b", b""),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS", "*", b""),
        (b"GET http://other/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "http://other/x?y", b""),
        (HEAD + b"content-LENGTH:5\r\n\r\nhello", "POST", "/a", b"hello"),
        (HEAD + b"Content-Length: 0\r\n\r\n", "POST", "/a", b""),
        (HEAD + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "POST", "/a", b"hello"),
        (
            CHUNKS + b'5;a="b c";d\r\nhello\r\n00A;x\r\n, 10 bytes\r\n000\r\nX: y\r\nZ:\r\n\r\n',
            "POST",
            "/a",
            b"hello, 10 bytes",
        ),
        (CHUNKS + b"0\r\n\r\n", "POST", "/a", b""),
        (HEAD + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello", "POST", "/a", b"hello"),
        (b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "GET", "/ws", b""),
        (b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", "CONNECT", "b:443", b""),
    ],
)
def test_a_request_says_what_was_sent(raw: bytes, method: str, target: str, body: bytes) -> None:
    """Method, target and body come out as they were sent, whichever way the body is framed."""
    request = read(raw)
    assert isinstance(request, Request), request
    assert (request.method, request.target, request.body, request.size) == (method, target, body, len(body))
    assert request.cut is None


def test_names_are_lower_case_and_repeated_values_are_joined() -> None:
    """RFC 9110 5.2: a repeated header is one list."""
    request = read(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a:2\r\nX-Empty:\r\nX-B: \xc3\xa9\r\n\r\n")
    assert isinstance(request, Request)
    assert request.headers == {b"host": b"a", b"x-a": b"1, 2", b"x-empty": b"", b"x-b": "é".encode()}


@pytest.mark.parametrize(
    ("raw", "limits"),
    [
        (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", {"head_bytes": 1000}),
        (b"GET /" + b"a" * 2000, {"head_bytes": 1000}),
        (HEAD + b"X: " + b"a" * 2000 + b"\r\n\r\n", {"field_bytes": 1000}),
        (HEAD + b"X: a\r\n" * 20 + b"\r\n", {"lines": 10}),
        (HEAD + b"".join(b"X%d: a\r\n" % n for n in range(20)) + b"\r\n", {"lines": 10}),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(2000)) + b"\r\n", {}),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 140_000 + b"\r\n\r\n", {}),
    ],
)
def test_a_head_past_its_limits_is_head_too_large(raw: bytes, limits: dict[str, int]) -> None:
    """In bytes, in bytes of one line, and in lines."""
    fault = read(raw, **limits)
    assert isinstance(fault, Fault)
    assert fault.reason == "head_too_large"


def test_a_head_at_its_limits_passes() -> None:
    """255 fields and Host, and a field of almost 16 KiB."""
    fields = b"".join(b"X%d: a\r\n" % n for n in range(255))
    assert isinstance(read(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n"), Request)
    assert isinstance(read(HEAD + b"X: " + b"a" * 16_000 + b"\r\nContent-Length: 0\r\n\r\n"), Request)


def test_pipelined_requests_come_one_at_a_time() -> None:
    """Bytes behind a complete request wait in `rest`, and begin when they arrived."""
    decoder = RequestDecoder(HeadLimits(), LIMIT)
    one = HEAD + b"Content-Length: 2\r\n\r\n"
    first = decoder.feed(one + b"AA" + one + b"B", 1.0)
    assert isinstance(first, Request)
    assert (first.at, first.body, decoder.rest) == (1.0, b"AA", one + b"B")
    decoder.wait(b"B" + one, 2.0)
    second = decoder.feed(b"", 3.0)
    assert isinstance(second, Request)
    assert (second.at, second.end, second.body, decoder.rest) == (1.0, 3.0, b"BB", one)
    assert decoder.feed(b"", 4.0) is None
    third = decoder.feed(b"CC", 5.0)
    assert isinstance(third, Request)
    assert (third.at, third.body, decoder.rest) == (3.0, b"CC", b"")
    decoder.wait(one + b"DD", 6.0)
    fourth = decoder.feed(b"", 7.0)
    assert isinstance(fourth, Request)
    assert (fourth.at, fourth.body) == (6.0, b"DD")


def test_what_may_be_forwarded_is_what_was_fed() -> None:
    """`head` and `out` together are the bytes of the messages, without what waits in `rest`."""
    decoder = RequestDecoder(HeadLimits(), LIMIT)
    raw = CHUNKS + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"
    forwarded = b""
    for number in range(len(raw)):
        decoder.feed(raw[number : number + 1], 1.0)
        forwarded += (decoder.head or b"") + decoder.out
        decoder.out = b""
    assert forwarded == raw


def test_an_http2_preface_is_kept_whole() -> None:
    """However it is cut, `rest` holds all of it for the tunnel."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04"
    for cut in range(len(b"PRI * HTTP/2.0\r\n\r\n")):
        decoder = RequestDecoder(HeadLimits(), LIMIT)
        assert decoder.feed(preface[:cut], 1.0) is None
        fault = decoder.feed(preface[cut:], 1.0)
        assert isinstance(fault, Fault)
        assert (fault.reason, decoder.rest) == ("http2", preface)


@pytest.mark.parametrize("raw", [b"GET / HT", HEAD, HEAD + b"Content-Length: 5\r\n\r\nhell", CHUNKS + b"5\r\nhel"])
def test_a_request_that_is_cut_is_incomplete(raw: bytes) -> None:
    """The end of the connection inside a request is a Fault."""
    decoder = RequestDecoder(HeadLimits(), LIMIT)
    assert decoder.feed(raw, 1.0) is None
    fault = decoder.close(2.0)
    assert isinstance(fault, Fault)
    assert fault.reason == "incomplete"


@pytest.mark.parametrize(
    ("head", "length", "cut"),
    [
        (b"Content-Type: application/json\r\n", LIMIT, None),
        (b"Content-Type: application/json\r\n", LIMIT + 1, "too_large"),
        (b"Content-Type: text/plain\r\n", 10, "not_json"),
        (b"Content-Type: Application/A2A+JSON; charset=utf-8\r\n", 10, None),
        (b"Content-Type: Text/Event-Stream\r\n", 10, None),
        (b"", 10, None),
    ],
)
def test_the_copy_is_bounded_and_says_why_it_is_cut(head: bytes, length: int, cut: str | None) -> None:
    """A copy of what may be JSON, up to the limit; the size is known all the same, framed either way."""
    body = b"x" * length
    sized = read(HEAD + head + b"Content-Length: %d\r\n\r\n" % length + body)
    chunked = read(HEAD + head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % length + body + b"\r\n0\r\n\r\n")
    for request in (sized, chunked):
        assert isinstance(request, Request)
        assert (request.cut, request.size, request.body) == (cut, length, b"" if cut else body)


def test_copies_share_one_budget_and_give_it_back() -> None:
    """Two bodies in pieces that together pass the budget: the second copy is given up, and nothing stays taken."""
    budget = CopyBudget(1000)
    one, two = (RequestDecoder(HeadLimits(), LIMIT, budget) for _ in range(2))
    head = HEAD + b"Content-Length: 900\r\n\r\n"
    for decoder in (one, two):
        decoder.feed(head, 1.0)
        for _ in range(8):
            assert decoder.feed(b"x" * 100, 1.0) is None
    second = two.feed(b"x" * 100, 2.0)
    first = one.feed(b"x" * 100, 2.0)
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert (first.cut, first.size) == (None, 900)
    assert (second.cut, second.size) == ("overload", 900)
    assert budget.left == 1000


@pytest.mark.parametrize(
    ("raw", "method", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "GET", 200, b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", "GET", 200, b"hello"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX: y\r\n\r\n",
            "GET",
            200,
            b"hello",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", 304, b""),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", 304, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", 200, b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", 200, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HEAD", 200, b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", "HEAD", 200, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HEAD", 200, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "POST", 200, b"ok"),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "GET",
            200,
            b"ok",
        ),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: ws\r\nConnection: upgrade\r\n\r\n\x81\x00", "GET", 101, b""),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "GET", 200, b"ok"),
    ],
)
def test_a_reply_ends_where_its_framing_says(raw: bytes, method: str, status: int, body: bytes) -> None:
    """Interim replies are passed over; the final one has its status and its body, also where it has none."""
    got = reply(raw, method)
    assert isinstance(got, Reply), got
    assert (got.status, got.body, got.size, got.cut) == (status, body, len(body), None)


@pytest.mark.parametrize(
    ("raw", "method"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "GET"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "GET"),
        (b"HTTP/3.0 200 OK\r\n\r\n", "GET"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "GET"),
        (b"SSH-2.0-OpenSSH_9\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "GET"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "HEAD"),
    ],
)
def test_a_reply_that_is_not_http_is_a_fault(raw: bytes, method: str) -> None:
    """Conflicting framing, and what is no HTTP."""
    assert isinstance(reply(raw, method), Fault)


FIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TOO_MUCH = {
    "a second reply": ("GET", FIVE, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "a body that is longer than it says": ("GET", FIVE, b"more"),
    "a body that should be empty": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"more"),
    "behind the last chunk": ("GET", CHUNKED_HEAD + b"2\r\nok\r\n0\r\n\r\n", b"\r\n"),
    "a body in answer to HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello"),
    "a body of 204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"{}"),
}
"""Method, a complete reply, and what its upstream sends behind it."""


@pytest.mark.parametrize(("method", "raw", "excess"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_stands_behind_a_reply_is_not_of_it(method: str, raw: bytes, excess: bytes) -> None:
    """A reply in one piece with it, with some of it, and without it is the same reply."""
    for among in range(len(excess) + 1):
        decoder = ReplyDecoder(HeadLimits(), LIMIT)
        decoder.expect(method)
        got = decoder.feed(raw + excess[:among], 1.0)
        assert got == reply(raw, method)
        assert isinstance(got, Reply)
        assert decoder.excess == among
    decoder.expect(method)
    assert decoder.feed(raw, 1.0) == got
    assert decoder.excess == 0


def test_bytes_that_answer_no_request_are_a_fault() -> None:
    """An upstream that speaks first, or goes on after its reply."""
    decoder = ReplyDecoder(HeadLimits(), LIMIT)
    fault = decoder.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n", 1.0)
    assert isinstance(fault, Fault)
    assert fault.reason == "unexpected"


def test_replies_on_one_connection_follow_each_other() -> None:
    """HEAD, chunks, a length, nothing: each is framed by its own request."""
    decoder = ReplyDecoder(HeadLimits(), LIMIT)
    for method, raw, size in [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 5),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 0),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 2),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", 0),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0),
    ]:
        decoder.expect(method)
        got = decoder.feed(raw, 1.0)
        assert isinstance(got, Reply), (raw, got)
        assert got.size == size
        assert decoder.close(2.0) is None


@pytest.mark.parametrize(
    ("raw", "ends"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "replied"),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nhello", "replied"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", "cut"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "cut"),
        (b"HTTP/1.1 200 O", "cut"),
        (b"", "cut"),
    ],
)
def test_the_end_of_the_connection_completes_a_reply_only_where_it_delimits_it(raw: bytes, ends: str) -> None:
    """RFC 9112 6.3: without length and chunks the body ends with the connection; else the reply is cut."""
    decoder = ReplyDecoder(HeadLimits(), LIMIT)
    decoder.expect("GET")
    assert not raw or decoder.feed(raw, 1.0) is None
    got = decoder.close(2.0)
    if ends == "replied":
        assert isinstance(got, Reply)
        assert (got.body, got.size, got.end) == (b"hello", 5, 2.0)
    else:
        assert isinstance(got, Fault)
        assert got.reason == "incomplete"


def test_a_chunked_body_ends_at_its_byte() -> None:
    """`feed` says how many bytes were of the body."""
    pieces: list[bytes] = []
    decoder = ChunkedDecoder(pieces.append, HeadLimits())
    raw = b"5\r\nhello\r\n0\r\n\r\n"
    assert decoder.feed(raw + b"GET / HTTP/1.1") == len(raw)
    assert (decoder.done, b"".join(pieces), decoder.size) == (True, b"hello", 5)


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"])
@pytest.mark.parametrize("lines", [b"", b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n"])
def test_a_chunked_reply_may_have_white_space_in_its_extensions(before: bytes, lines: bytes) -> None:
    """RFC 9112 7.1.1; at any cut, and behind an interim reply."""
    raw = (
        before
        + b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
        + lines
        + b"\r\n3; a = 1\r\nabc\r\n0\r\nT: 1\r\n\r\n"
    )
    for cut in range(1, len(raw)):
        decoder = ReplyDecoder(HeadLimits(), 1000)
        decoder.expect("GET")
        assert decoder.feed(raw[:cut], 1.0) is None
        reply = decoder.feed(raw[cut:], 2.0)
        assert isinstance(reply, Reply)
        assert (reply.status, reply.body, reply.size, reply.cut) == (200, b"abc", 3, None)
        assert decoder.close(3.0) is None


TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LINES = (
    b"host: b",
    b"Content-Length: 0",
    b"traceparent: " + TRACE,
    b"traceparent: " + TRACE[::-1],
    b"traceparent: " + TRACE.upper(),
    b"traceparent: " + TRACE + b"0",
    b"Traceparent: " + TRACE,
    b"X-Request-Id: 7",
    b"Accept: */*",
    b"accept: text/html",
    b"X-Empty:",
    b"X-Spaces:  two ",
    b"Content-Type: application/json",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
)


def _known_to(decoder: RequestDecoder | ReplyDecoder, got: Any) -> object:
    if isinstance(got, Fault):
        return got.reason
    headers = decoder.headers
    return headers, got and (got.status if isinstance(got, Reply) else (got.method, got.target)), got and got.body


@given(heads=st.lists(st.lists(st.sampled_from(LINES), max_size=6), min_size=1, max_size=4))
def test_a_head_that_was_seen_before_reads_as_one_that_was_not(heads: list[list[bytes]]) -> None:
    """Whole heads, lines and llhttp: three ways to the same answer, whatever came before."""
    with pytest.MonkeyPatch.context() as patch:
        for lines in heads + heads:
            lines = [b"Host: a", *lines, b"Content-Length: 2"]
            raw = b"POST /a HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\nhi"
            answer = b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\nhi"
            said = []
            for remembers in (True, False):
                if not remembers:  # nothing is plain, so llhttp reads it
                    patch.setattr(http1, "_plain_headers", lambda _: None)
                    patch.setattr(http1, "_heads", {})
                    patch.setattr(http1, "_replies", {})
                asking, answering = RequestDecoder(HeadLimits(), 64), ReplyDecoder(HeadLimits(), 64)
                answering.expect("POST")
                said.append(
                    (_known_to(asking, asking.feed(raw, 1.0)), _known_to(answering, answering.feed(answer, 1.0)))
                )
                patch.undo()
            assert said[0] == said[1]


OTHER_TRACE = b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
FEW = (b"Accept: */*", b"Content-Type: text/csv", b"baggage: workflow=w")
TRACES = (TRACE, OTHER_TRACE, TRACE.upper(), TRACE + b"0", TRACE.replace(b"-", b"_"), b"")


@given(
    messages=st.lists(
        st.tuples(
            st.lists(st.sampled_from(FEW), max_size=1),
            st.sampled_from([None, *TRACES]),
            st.integers(0, 3),
            st.sampled_from([b"", b"hi", b"twelve bytes"]),
            st.integers(1, 300),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_a_connection_said_before_changes_nothing(messages: list[Any]) -> None:
    """A head that is the last one but for its traceparent reads as llhttp reads it, in one piece or in two."""
    asking, answering = RequestDecoder(HeadLimits(), 8), ReplyDecoder(HeadLimits(), 8)
    for lines, trace, place, body, cut in messages:
        lines = [b"Host: a", *lines, b"Content-Length: %d" % len(body)]
        if trace is not None:
            lines.insert(place, b"traceparent: " + trace)
        raw = b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(http1, "_plain_headers", lambda _: None)
            patch.setattr(http1, "_heads", {})
            patch.setattr(http1, "_replies", {})
            read_by_llhttp = RequestDecoder(HeadLimits(), 8).feed(b"POST /a HTTP/1.1\r\n" + raw, 1.0)
            decoder = ReplyDecoder(HeadLimits(), 8)
            decoder.expect("POST")
            replied = decoder.feed(b"HTTP/1.1 200 OK\r\n" + raw, 1.0)
        raw = b"POST /a HTTP/1.1\r\n" + raw
        got = asking.feed(raw[:cut], 1.0)
        while got is None:
            got, cut = asking.feed(raw[cut:], 1.0), len(raw)
        assert isinstance(got, Request)
        assert got == read_by_llhttp
        assert got.trace is None or got.trace == got.headers[b"traceparent"]
        assert got.known is None or got.known.is_silent == (b"baggage" not in got.headers)
        answering.expect("POST")
        assert answering.feed(b"HTTP/1.1 200 OK\r\n" + raw.partition(b"\r\n")[2], 1.0) == replied


@pytest.mark.parametrize("length", ["0", "5", "05", "9" * 18, "9" * 19, "+5", ""])
@pytest.mark.parametrize("status", [100, 101, 200, 204, 304, 500])
@pytest.mark.parametrize("body", [b"", b"hello", b"hello and more"])
def test_what_a_known_head_says_of_its_body_depends_on_the_method(length: str, status: int, body: bytes) -> None:
    """A head that answered GET answers HEAD too: it is remembered, where its message ends is not."""
    answer = b"HTTP/1.1 %d OK\r\nX-Of: %d\r\nContent-Length: %b\r\n\r\n" % (status, len(body), length.encode()) + body

    def said(decoder: ReplyDecoder, method: str) -> object:
        decoder.expect(method)
        got = decoder.feed(answer, 1.0)
        return got, decoder.status, decoder.feed(b"", 2.0) if got is None else None

    for method in ("GET", "HEAD", "GET", "HEAD"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(http1, "_replies", {})
            fresh = said(ReplyDecoder(HeadLimits(), LIMIT), method)
        assert said(ReplyDecoder(HeadLimits(), LIMIT), method) == fresh


@pytest.mark.parametrize("size", [1, 300, 200_000])
def test_tls_is_malformed_however_long_its_hello(size: int) -> None:
    """In one piece and in many: the reason does not depend on how much of it came at once."""
    raw = b"\x16\x03\x01" + b"a" * size
    decoder = RequestDecoder(HeadLimits(), LIMIT)
    for got in (read(raw), decoder.feed(raw[:1], 1.0)):
        assert isinstance(got, Fault)
        assert got.reason == "malformed"
        assert "TLS" in got.message
