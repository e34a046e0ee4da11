"""Bytes of one direction of an HTTP/1.1 connection become requests or replies, strictly framed (RFC 9112).

llhttp (httptools) reads heads. What decides where a message ends is ours, because a proxy must know at which byte it
ends, and refuse what two parsers could read in two ways. One message at a time: bytes behind a complete request wait in
`rest` until the caller feeds again.

The heads of a connection are nearly the same every time. A plain head, one that any two parsers read alike, is compared
with the one before it, but for its traceparent; else looked up as a whole; and where it is new taken apart line by line
against a memory of lines seen before: 0.3, 1 and 3 µs where llhttp's callbacks take 9. Whatever is not plain goes to
llhttp, and a test holds them all to the same answer.

After each `feed` the caller finds in `head` the raw head if it was completed by this call, and in `out` the raw bytes
of the body that arrived with it, both exactly as received: what may be forwarded.
"""

import re
from collections.abc import Callable
from typing import Any, Final

import httptools

from handrail.event import Fault
from handrail.wire import TRACE_BYTES, HeadLimits, Known, Reply, Request, is_trace, place

REASONS = {
    "ambiguous_framing": "two parsers could disagree on where the message ends",
    "malformed": "not HTTP/1.1",
    "head_too_large": "the head is larger than limits.header_bytes, header_field_bytes or header_lines",
    "incomplete": "the connection ended inside the message",
    "unexpected": "bytes that belong to no message",
    "http2": "an HTTP/2 connection (RFC 9113 3.4); the caller tunnels what is in `rest` and what follows",
}


class CopyBudget:
    """How many bytes the copies of all bodies under way may hold together; counts only bodies that come in pieces."""

    __slots__ = ("left",)

    def __init__(self, size: int = 67_108_864) -> None:
        self.left = size


def _fault(reason: str, message: str, at: float) -> Fault:
    return Fault(component="wire.http1", reason=reason, message=message, at=at)


class _Copy:
    """The bounded copy of one body. `cut` says why it is not whole."""

    __slots__ = ("_budget", "_limit", "_pieces", "_size", "_taken", "cut")

    def __init__(self, limit: int, budget: CopyBudget) -> None:
        self._limit = limit
        self._budget = budget
        self._pieces: list[bytes] = []
        self._size = 0
        self._taken = 0
        self.cut: str | None = None

    def open(self, is_read: bool, length: int) -> None:
        """A body of this length begins, -1 where that is not known; `is_read`: its type is one that we read."""
        if self._pieces:
            self._pieces.clear()
        self._size = 0
        if not is_read and length != 0:
            self.cut = "not_json"
        elif length > self._limit:
            self.cut = "too_large"
        else:
            self.cut = None

    def add(self, data: bytes) -> None:
        if self.cut is not None:
            return
        self._size += len(data)
        if self._pieces:
            self._budget.left -= len(data)
            self._taken += len(data)
            if self._budget.left < 0:
                self._drop("overload")
                return
        if self._size > self._limit:
            self._drop("too_large")
            return
        self._pieces.append(data)

    def _drop(self, reason: str) -> None:
        self.cut = reason
        self._pieces.clear()
        self._budget.left += self._taken
        self._taken = 0

    def take(self) -> bytes:
        pieces = self._pieces
        if not pieces:
            return b""
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._budget.left += self._taken
        self._taken = 0
        return whole


_ONCE: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})
_BARE_LF = re.compile(rb"(?<!\r)\n")
_TLS: Final = b"\x16"
"""How a TLS connection begins: a handshake record (RFC 8446 5.1)."""
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_METHODS: Final[dict[bytes, str]] = {}


_REMEMBERED: Final = 4_096
_LINE_BYTES: Final = 256
_NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"upgrade", b"trailer"})
_NEVER_TWICE: Final = frozenset({b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"handrail-task"})
_PLAIN_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")
_PLAIN_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[\x21-\x7e]*) HTTP/1\.1")
_PLAIN_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [A-Za-z -]*")

_HEADS: Final = 512
_HEAD_BYTES: Final = 1_024
_TRACE: Final = b"\r\ntraceparent: "

_fields: Final[dict[bytes, tuple[bytes, bytes]]] = {}
_requests: Final[dict[bytes, tuple[str, bytes, str]]] = {}
_statuses: Final[dict[bytes, int]] = {}


def _is_read(headers: dict[bytes, bytes]) -> bool:
    """Whether a body under this head is of a type that is read."""
    kind = headers.get(b"content-type")
    if kind is None or kind == b"application/json":
        return True
    folded = kind.lower()
    return b"json" in folded or b"event-stream" in folded


class _RequestHead(Known):
    """What a plain head says but for the value of its traceparent, its framing included; never changed."""

    __slots__ = ("after", "before", "headers", "is_read", "length", "lines", "method", "target", "text")

    def __init__(
        self,
        before: bytes,
        after: bytes,
        line: tuple[str, bytes, str],
        lines: int,
        headers: dict[bytes, bytes],
        length: int,
    ) -> None:
        super().__init__(headers, place(line[0], line[2]))
        self.before, self.after = before, after
        """The head up to the value of its traceparent, and behind it; all of it and nothing where it has none."""
        self.method, self.target, self.text = line
        self.lines = lines
        self.headers = headers
        self.length = length
        self.is_read = _is_read(headers)


class _ReplyHead(Known):
    """What a plain head says; `length` is that of its body where Content-Length alone says it, else -1."""

    __slots__ = ("head", "headers", "is_read", "length", "lines", "status")

    def __init__(self, head: bytes, status: int, lines: int, headers: dict[bytes, bytes]) -> None:
        super().__init__(headers)
        self.head = head
        self.status = status
        self.lines = lines
        self.headers = headers
        self.is_read = _is_read(headers)
        length = headers.get(b"content-length", b"")
        is_all = status >= 200 and status not in (204, 304) and length.isdigit() and len(length) <= 18
        self.length = int(length) if is_all else -1


_heads: Final[dict[bytes, _RequestHead]] = {}
_replies: Final[dict[bytes, _ReplyHead]] = {}


def _remember(memory: dict[bytes, Any], line: bytes, read: Any) -> None:
    if len(line) <= _LINE_BYTES:
        if len(memory) >= _REMEMBERED:
            memory.clear()
        memory[line] = read


def _plain_field(line: bytes) -> tuple[bytes, bytes] | None:
    """A header line that any parser reads alike, to its lower-case name and its value; None for any other."""
    match = _PLAIN_FIELD.fullmatch(line)
    if match is None:
        return None
    field = name, _ = match[1].lower(), match[2]
    if name in _NOT_PLAIN:
        return None
    if name not in _NEVER_TWICE:
        _remember(_fields, line, field)
    return field


def _around_trace(head: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands before the value of a head's first traceparent, the value, and what stands behind it.

    All of the head, and nothing twice, where it has none that is written as everybody writes it.
    """
    start = head.find(_TRACE) + len(_TRACE)
    end = start + TRACE_BYTES
    if start < len(_TRACE) or head[end : end + 2] != b"\r\n" or not is_trace(head[start:end]):
        return head, b"", b""
    return head[:start], head[start:end], head[end:]


def _is_lasting(headers: dict[bytes, bytes]) -> bool:
    """Whether a head with these headers may come again."""
    return _NEVER_TWICE.isdisjoint(headers)


def _plain_headers(lines: list[bytes]) -> dict[bytes, bytes] | None:
    """The header lines of a head that was split at CRLF to a dictionary; None where one is not plain."""
    headers: dict[bytes, bytes] = {}
    for line in lines[1:-2]:
        field = _fields.get(line) or _plain_field(line)
        if field is None:
            return None
        name, value = field
        if name not in headers:
            headers[name] = value
        elif name in _ONCE:
            return None
        else:
            headers[name] += b", " + value
    return headers


class RequestDecoder:
    """Bytes that a client sends to requests.

    `feed` gives the request that became complete, or a Fault, or None while there is more to come. After a Fault the
    connection is of no use. What it buffers is bounded by `limits.head_bytes` and `copy_bytes`; a caller that has more
    while a complete request is being answered gives it to `wait` and feeds nothing until then.
    """

    def __init__(self, limits: HeadLimits, copy_bytes: int, budget: CopyBudget | None = None) -> None:
        self._limits = limits
        self._head_bytes, self._field_bytes, self._lines = limits.head_bytes, limits.field_bytes, limits.lines
        self._copy = _Copy(copy_bytes, budget or CopyBudget())
        self._parser: httptools.HttpRequestParser | None = None
        self._left = 0  # bytes of a body of known length still to come
        self._chunks: ChunkedDecoder | None = None
        self.rest = b""
        self.head: bytes | None = None
        self.out = b""
        self.started = 0.0
        self.inside = False
        """Whether a head is complete whose body is not."""
        self.method = ""
        self.target = b""
        self._text = ""
        self._plain = False  # the head under way was read without llhttp
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}
        self.length = 0
        """Of the body under way in bytes; -1 where it is chunked."""
        self._repeated: bytes | None = None
        self._size = 0
        self._seen: _RequestHead | None = None  # what the last head was known as, None where it was not
        self._trace: bytes | None = None  # its traceparent, None where it had none or was not known

    # What llhttp calls.

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self.headers
        if name in headers:
            if name in _ONCE:
                self._repeated = name
            headers[name] += b", " + value
        else:
            headers[name] = value

    # What the edge calls.

    def feed(self, data: bytes, at: float) -> Request | Fault | None:
        """Bytes, and the instant at which they were seen, to the next complete request."""
        self.head = None
        if self.inside:
            return self._body(data, at)
        if self.rest:
            data = self.rest + data
        else:
            self.started = at
        self.out = b""
        end = self._same_head(data)
        if end < 0:
            if data.startswith(b"\r\n"):  # RFC 9112 2.2: empty lines before a request line are ignored
                data = data[_EMPTY_LINES.match(data).end() :]  # type: ignore[union-attr]
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                return self._wait(data, at)
            fault = self._read_head(data if end == len(data) else data[:end], at)
            if fault is not None:
                self.rest = data if fault.reason == "http2" else b""
                return fault
        self.rest = b""
        self.head = data if end == len(data) else data[:end]
        self._size = 0
        seen, length = self._seen, self.length
        self._copy.open(_is_read(self.headers) if seen is None else seen.is_read, length)
        if length == 0:
            self.rest = data[end:] if end < len(data) else b""
            return self._complete(b"", at)
        if end + length == len(data) and self._plain:
            self.out = out = data[end:]  # the whole body came with its head
            self._size = length
            self._left = 0
            return self._complete(b"" if self._copy.cut is not None else out, at)
        self.inside = True
        if end == len(data):
            return None
        return self._body(data[end:], at)

    def close(self, at: float) -> Fault | None:
        """The client will send no more; a Fault if that cuts a message."""
        if self.inside or self.rest:
            return _fault("incomplete", "the client ended the connection inside a request", at)
        return None

    def _wait(self, data: bytes, at: float) -> Fault | None:
        """A head that is not complete: kept, unless it can become none."""
        self.rest = data
        if data.startswith(_TLS):  # its sender waits for an answer, and would until limits.header_seconds
            return _fault("malformed", "a TLS connection; this address speaks plain HTTP", at)
        if len(data) > self._head_bytes:
            return self._too_large(data, f"no end of the head within {self._head_bytes} bytes", at)
        if _BARE_LF.search(data):
            return _fault("malformed", "a line ends in LF without CR", at)
        return None

    def _same_head(self, data: bytes) -> int:
        """Where the head ends that `data` begins with, if it is the last one again; else -1.

        Two comparisons in place of two searches and a look-up: 4,000 instructions less.
        """
        seen = self._seen
        if seen is None or not data.startswith(seen.before):
            return -1
        start = len(seen.before)
        if not seen.after:
            self._take_head(seen, None)
            return start
        end = start + TRACE_BYTES
        whole = end + len(seen.after)
        if data[end:whole] != seen.after or not is_trace(data[start:end]):
            return -1
        self._take_head(seen, data[start:end])
        return whole

    def _take_head(self, seen: _RequestHead, trace: bytes | None) -> None:
        self.headers = headers = seen.headers.copy()
        if trace is not None:
            headers[b"traceparent"] = trace
        self.method, self.target, self._text = seen.method, seen.target, seen.text
        self.version = "1.1"
        self._repeated = None
        self._plain = True
        self.length = self._left = seen.length
        self._seen, self._trace = seen, trace

    def _read_head(self, head: bytes, at: float) -> Fault | None:
        self._seen = self._trace = None
        if len(head) > self._head_bytes:
            return self._too_large(head, f"the head is longer than {self._head_bytes} bytes", at)
        if len(head) > self._field_bytes and max(map(len, head.split(b"\r\n"))) > self._field_bytes:
            return self._too_large(head, f"a header is longer than {self._field_bytes} bytes", at)
        if head.startswith(b"PRI * HTTP/2"):
            return _fault("http2", "an HTTP/2 connection", at)
        self._repeated = None
        before, trace, after = _around_trace(head)
        seen = _heads.get(before + after)
        # As long behind the value, because a head whose traceparent is empty is the same text otherwise.
        if seen is not None and len(seen.after) == len(after) and seen.lines <= self._lines + 3:
            self._take_head(seen, trace or None)
            return None
        lines = head.split(b"\r\n")
        known = _requests.get(lines[0]) or self._plain_request(lines[0])
        plain = _plain_headers(lines) if known is not None and len(lines) <= self._lines + 3 else None
        if known is None or plain is None:
            return self._read_odd_head(head, at)
        self.method, self.target, self._text = known
        self.version = "1.1"
        self.headers = plain
        self._plain = True
        fault = self._read_framing(plain, at)
        if fault is None and len(head) <= _HEAD_BYTES:
            lasting = plain.copy()
            if trace:
                del lasting[b"traceparent"]
            if _is_lasting(lasting) and plain.get(b"traceparent", b"") == trace:
                if len(_heads) >= _HEADS:
                    _heads.clear()
                seen = _RequestHead(before, after, known, len(lines), lasting, self.length)
                _heads[before + after] = self._seen = seen
                self._trace = trace or None
        return fault

    def _read_odd_head(self, head: bytes, at: float) -> Fault | None:
        """A head that is not plain: llhttp reads it."""
        headers: dict[bytes, bytes] = {}
        self.headers = headers
        self.target = b""
        self._plain = False
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:  # it reads no further; whether the upgrade happens, the reply says
            self._parser = None
        except httptools.HttpParserError as error:
            return _fault("malformed", str(error), at)
        if len(headers) > self._lines or head.count(b"\n") > self._lines + 2:
            return _fault("head_too_large", f"more than {self._lines} header lines", at)
        if b"\x00" in head:
            return _fault("malformed", "a NUL byte in the head", at)
        method = parser.get_method()
        self.method = _METHODS.get(method) or _METHODS.setdefault(method, method.decode("latin-1"))
        self.version = parser.get_http_version()
        self._text = self.target.decode("latin-1")
        if not head.startswith(b"%b %b HTTP/" % (method, self.target)):  # llhttp takes two spaces, RTSP/1.0, a first LF
            return _fault("malformed", "the request line is not method, target and HTTP/1.x with one space between", at)
        return self._read_framing(headers, at)

    def _plain_request(self, line: bytes) -> tuple[str, bytes, str] | None:
        match = _PLAIN_REQUEST.fullmatch(line)
        if match is None:
            return None
        read = match[1].decode(), match[2], match[2].decode()
        _remember(_requests, line, read)
        return read

    def _too_large(self, head: bytes, message: str, at: float) -> Fault:
        """In small pieces TLS, or a line that ends in LF, would have been noticed first, so it is here too."""
        if head.startswith(_TLS):
            return _fault("malformed", "a TLS connection; this address speaks plain HTTP", at)
        if _BARE_LF.search(head, 0, self._limits.head_bytes):
            return _fault("malformed", "a line ends in LF without CR", at)
        return _fault("head_too_large", message, at)

    def _read_framing(self, headers: dict[bytes, bytes], at: float) -> Fault | None:
        """RFC 9112 6.1 to 6.3, and refusal wherever a proxy and an upstream could differ."""
        if self._repeated is not None:
            return _fault("ambiguous_framing", f"more than one {self._repeated.decode('latin-1')} header", at)
        modern = self.version == "1.1"
        if not modern and self.version != "1.0":
            return _fault("malformed", f"HTTP/{self.version} is not HTTP/1.x", at)
        if modern and b"host" not in headers:
            return _fault("malformed", "no Host header", at)
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if coding is not None:
            if not modern:
                return _fault("ambiguous_framing", "Transfer-Encoding in HTTP/1.0", at)
            if length is not None:
                return _fault("ambiguous_framing", "both Content-Length and Transfer-Encoding", at)
            if coding.lower() != b"chunked":
                return _fault("ambiguous_framing", "a Transfer-Encoding other than chunked", at)
            self.length = -1
            self._chunks = ChunkedDecoder(self._copy.add, self._limits)
            self._parser = None
            return None
        if length is None:
            self.length = 0
            return None
        if not length.isdigit() or len(length) > 18:
            return _fault("ambiguous_framing", "Content-Length is not a number", at)
        self.length = self._left = int(length)
        return None

    def _body(self, data: bytes, at: float) -> Request | Fault | None:
        chunks = self._chunks
        if chunks is not None:
            used = chunks.feed(data)
            if chunks.problem is not None:
                return _fault("malformed", chunks.problem, at)
            if not chunks.done:
                self.out = data
                return None
            self._chunks = None
            self._size = chunks.size
        else:
            left = self._left
            used = len(data)
            if used > left:
                used = left
            self._left = left - used
        out = data if used == len(data) else data[:used]
        self.out = out
        if chunks is None:
            self._copy.add(out)
            if self._parser is not None and not self._plain:
                self._parser.feed_data(out)  # keeps llhttp in step: it skips a body of known length at no cost
            if self._left:
                return None
            self._size = self.length
        self.inside = False
        if used < len(data):
            self.rest = data[used:]
        return self._complete(self._copy.take(), at)

    def wait(self, data: bytes, at: float) -> int:
        """Bytes behind a complete request that is being answered; how many wait now."""
        if not self.rest:
            self.started = at
        self.rest += data
        return len(self.rest)

    def _complete(self, body: bytes, at: float) -> Request:
        started, self.started = self.started, at  # what is in `rest` begins here
        return Request(
            method=self.method,
            target=self._text,
            headers=self.headers,
            at=started,
            end=at,
            body=body,
            size=self._size,
            cut=self._copy.cut if self._size else None,
            known=self._seen,
            trace=self._trace,
        )

    def partial(self, at: float) -> Request:
        """What has come of the request under way, its head complete."""
        return Request(
            method=self.method,
            target=self._text,
            headers=self.headers,
            at=self.started,
            end=at,
            body=self._copy.take(),
            size=self.length - self._left if self._chunks is None else self._chunks.size,
            cut="incomplete",
        )

    def drop(self) -> None:
        """Forget a message under way; gives its part of the copy budget back."""
        self._copy.take()


class ChunkedDecoder:
    """A chunked body (RFC 9112 7.1) to its content and the byte at which it ends.

    Strict where lenience has been used for smuggling: CRLF only, hexadecimal digits only, no white space around the
    size. Chunk extensions and trailer fields are skipped, within the limits of a head. Content goes to `sink`.
    """

    __slots__ = ("_buffer", "_left", "_limits", "_sink", "_state", "done", "problem", "size")

    def __init__(self, sink: Callable[[bytes], None], limits: HeadLimits) -> None:
        self._sink = sink
        self._limits = limits
        self._buffer = b""
        self._left = 0
        self._state = "size"
        self.done = False
        self.problem: str | None = None
        self.size = 0

    def feed(self, data: bytes) -> int:
        """How many bytes of `data` belong to the body; `done` or `problem` say why it stopped."""
        at = 0
        length = len(data)
        while at < length and not self.done and self.problem is None:
            if self._state == "data":
                take = min(self._left, length - at)
                self._sink(data[at : at + take])
                self.size += take
                self._left -= take
                at += take
                if not self._left:
                    self._state = "end"
                continue
            feed = data.find(b"\n", at)
            upto = length if feed < 0 else feed + 1
            line = self._buffer + data[at:upto]
            at = upto
            if len(line) > self._limits.field_bytes:
                self.problem = "a chunk line or trailer is too long"
            elif feed < 0:
                self._buffer = line
                if self._state == "end" and not b"\r\n".startswith(line):
                    self.problem = "a chunk is longer than its size says"
            else:
                self._buffer = b""
                self._line(line)
        return at

    def _line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") or b"\r" in line[:-2] or b"\x00" in line:
            self.problem = "a chunk line does not end in CRLF"
            return
        line = line[:-2]
        if self._state == "end":
            if line:
                self.problem = "a chunk is longer than its size says"
            self._state = "size"
        elif self._state == "size":
            digits = line.partition(b";")[0]
            if not digits or len(digits) > 15 or not _HEX.fullmatch(digits):
                self.problem = "a chunk size is not hexadecimal"
                return
            self._left = int(digits, 16)
            self._state = "data" if self._left else "trailer"
        elif not line:
            self.done = True
        elif line[:1] in b" \t" or b":" not in line:
            self.problem = "a trailer is not a header field"
        else:
            self._left += len(line)
            if self._left > self._limits.head_bytes:
                self.problem = "the trailers are too long"


_HEX = re.compile(rb"[0-9A-Fa-f]+")


def _plain_status(line: bytes) -> int | None:
    match = _PLAIN_STATUS.fullmatch(line)
    if match is None:
        return None
    _remember(_statuses, line, int(match[1]))
    return int(match[1])


class ReplyDecoder:
    """Bytes that an upstream sends to replies.

    `expect` says that a request was sent; then `feed` gives the final reply, or a Fault, or None while there is more to
    come. The last `excess` bytes of a piece with which a reply ends are not of it; in a piece of their own they are a
    Fault. Interim replies (1xx) are passed over; 101 is a final reply with `switched` set. A reply that ends with the
    connection is given by `close`.
    """

    def __init__(self, limits: HeadLimits, copy_bytes: int, budget: CopyBudget | None = None) -> None:
        self._limits = limits
        self._head_bytes, self._field_bytes, self._lines = limits.head_bytes, limits.field_bytes, limits.lines
        self._copy = _Copy(copy_bytes, budget or CopyBudget())
        self._expecting = False
        self._no_body = False
        self._held = b""  # a head that is not complete yet
        self._chunks: ChunkedDecoder | None = None
        self._left = 0  # bytes of a body of known length still to come; -1 where it ends with the connection
        self._headers: dict[bytes, bytes] = {}
        self._seen: _ReplyHead | None = None  # what the last head was known as, None where it was not
        self._repeated: bytes | None = None
        self._size = 0
        self._first = 0.0
        self._at = 0.0
        self.started = False
        """Whether any byte of the reply was seen."""
        self.status = 0
        """Of the final reply once its head is complete, else 0."""
        self.switched = False
        self.excess = 0
        """Bytes of the last piece that stand behind the complete reply and answer no request."""

    def expect(self, method: str) -> None:
        """A request with this method is on its way to the upstream."""
        self._expecting = True
        self._no_body = method == "HEAD"
        self._held = b""
        self._chunks = None
        self.started = False
        self.switched = False
        self.status = 0
        self.excess = 0

    @property
    def headers(self) -> dict[bytes, bytes]:
        return self._headers

    def on_header(self, name: bytes, value: bytes) -> None:
        """What llhttp calls for each line of a head that is not plain."""
        name = name.lower()
        headers = self._headers
        if name in headers:
            if name in _ONCE:
                self._repeated = name
            headers[name] += b", " + value
        else:
            headers[name] = value

    def feed(self, data: bytes, at: float) -> Reply | Fault | None:
        """Bytes, and the instant at which they were seen, to the final reply of the request under way."""
        if not self._expecting:
            return _fault("unexpected", "the upstream sent bytes that answer no request", at)
        self._at = at
        self.started = True
        if self.status:
            return self._body(data, at)
        if self._held:
            data = self._held + data
            self._held = b""
        seen = self._seen
        if seen is not None and seen.length > 0 and data.startswith(seen.head):
            # The last head again, but for a later second in its Date: two searches less, 2,000 instructions.
            self._headers = seen.headers.copy()
            status, data = seen.status, data[len(seen.head) :]
        else:
            while True:
                if data.startswith(b"\r\n"):  # as llhttp does, and so every client that is built on it
                    data = data[_EMPTY_LINES.match(data).end() :]  # type: ignore[union-attr]
                end = data.find(b"\r\n\r\n") + 4
                if end < 4 or end > self._head_bytes:
                    return self._wait(data, end, at)
                read = self._read_head(data[:end] if end < len(data) else data)
                if isinstance(read, str):
                    return _fault("malformed", read, at)
                status, data = read, data[end:]
                if status == 101 or status >= 200:
                    break
                if not data:
                    return None
        self.status = status
        self._first = at
        return self._framing(data, at)

    def close(self, at: float) -> Reply | Fault | None:
        """The upstream will send no more: the reply that ends here, a Fault if it is cut, None if none was due."""
        if not self._expecting:
            return None
        self._at = at
        if not self.status or self._chunks is not None or self._left >= 0:
            return _fault("incomplete", "the upstream ended the connection before the reply was complete", at)
        return self._finish(self._copy.take())

    def partial(self) -> Reply | None:
        """What has come of a reply that will not be completed; None before the end of its head."""
        if not self._expecting or not self.status:
            self.drop()
            return None
        reply = self._finish(self._copy.take())
        reply.cut = self._copy.cut or "incomplete"
        return reply

    def drop(self) -> None:
        """Forget a reply under way; gives its part of the copy budget back."""
        self._copy.take()

    def _wait(self, data: bytes, end: int, at: float) -> Fault | None:
        """A head that is not complete: kept, unless it can become none."""
        if len(data) > self._limits.head_bytes:
            return _fault("head_too_large", f"the reply's head exceeds {self._limits.head_bytes} bytes", at)
        if (data[:7] != b"HTTP/1."[: len(data)] and data != b"\r") or _BARE_LF.search(data):
            return _fault("malformed", "the upstream's bytes are not an HTTP/1.x reply", at)
        self._held = data
        return None

    def _read_head(self, head: bytes) -> int | str:
        """A complete head to its status, or what is wrong with it; `_headers` holds its fields."""
        seen = _replies.get(head)
        if seen is not None and len(head) <= self._field_bytes and seen.lines <= self._lines:
            self._headers = seen.headers.copy()
            self._seen = seen
            return seen.status
        self._seen = None
        lines = head.split(b"\r\n")
        status = _statuses.get(lines[0]) or _plain_status(lines[0])
        if status is not None and len(head) <= self._field_bytes and len(lines) <= self._lines:
            plain = _plain_headers(lines)
            if plain is not None:
                self._headers = plain
                if len(head) <= _HEAD_BYTES and _is_lasting(plain):
                    if len(_replies) >= _HEADS:
                        _replies.clear()
                    _replies[head] = _ReplyHead(head, status, len(lines), plain.copy())
                return status
        if max(map(len, lines)) > self._field_bytes or len(lines) > self._lines + 3:
            return "a header is too long, or there are too many"
        if not head.startswith(b"HTTP/1.") or _BARE_LF.search(head):  # as `_wait` says of it in pieces
            return "the upstream's bytes are not an HTTP/1.x reply"
        self._headers = {}
        self._repeated = None
        parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            return str(error)
        return int(parser.get_status_code())

    def _framing(self, data: bytes, at: float) -> Reply | Fault | None:
        """Where the reply ends (RFC 9112 6.3); `data` is what came behind its head."""
        headers, status = self._headers, self.status
        if self._repeated is not None:
            return _fault("ambiguous_framing", f"more than one {self._repeated.decode('latin-1')} header", at)
        self._size = 0
        seen = self._seen
        is_read = _is_read(headers) if seen is None else seen.is_read
        if seen is not None and seen.length > 0 and not self._no_body:
            self._copy.open(is_read, seen.length)
            if len(data) == seen.length:  # the whole body came with its head
                self._left = 0
                self._size = seen.length
                return self._finish(b"" if self._copy.cut is not None else data)
            self._left = seen.length
            return self._body(data, at) if data else None
        self._left = 0
        if status == 101:
            self.switched = True
            self._copy.open(is_read, 0)
            return self._finish(b"")
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if coding is not None and length is not None:
            return _fault("ambiguous_framing", "both Content-Length and Transfer-Encoding", at)
        if self._no_body or status in (204, 304):
            self._copy.open(is_read, 0)
            return self._finish_before(data)
        if coding is not None:
            self._copy.open(is_read, -1)
            if coding.lower().rpartition(b",")[2].strip() == b"chunked":
                self._chunks = ChunkedDecoder(self._take, self._limits)
            else:
                self._left = -1
            if coding.lower() != b"chunked":
                self._copy.cut = "unknown_encoding"
        elif length is None:
            self._copy.open(is_read, -1)
            self._left = -1
        elif length.isdigit() and len(length) <= 18:
            self._left = int(length)
            self._copy.open(is_read, self._left)
            if not self._left:
                return self._finish_before(data)
        else:
            return _fault("malformed", "Content-Length is not a number", at)
        return self._body(data, at) if data else None

    def _body(self, data: bytes, at: float) -> Reply | Fault | None:
        chunks = self._chunks
        if chunks is not None:
            used = chunks.feed(data)
            if chunks.problem is not None:
                return _fault("malformed", chunks.problem, at)
            if not chunks.done:
                return None
            self._chunks = None
            return self._finish_before(data[used:])
        left = self._left
        if left < 0 or len(data) < left:
            self._take(data)
            if left > 0:
                self._left = left - len(data)
            return None
        self._left = 0
        if len(data) == left:
            self._take(data)
            return self._finish(self._copy.take())
        self._take(data[:left])
        return self._finish_before(data[left:])

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        self._copy.add(data)

    def _finish_before(self, rest: bytes) -> Reply:
        """The reply is complete; what follows it is no part of it, whether it came with it or later."""
        self.excess = len(rest)
        return self._finish(self._copy.take())

    def _finish(self, body: bytes) -> Reply:
        self._expecting = False
        return Reply(
            status=self.status,
            headers=self._headers,
            at=self._first,
            end=self._at,
            body=body,
            size=self._size,
            cut=self._copy.cut if self._size else None,
            known=self._seen,
        )
