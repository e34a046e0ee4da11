"""The bytes of one NATS client connection, both directions, become what was published, delivered and acknowledged.

The client protocol is lines, with a payload behind some (docs.nats.io/reference/reference-protocols/nats-protocol);
JetStream is messages on top of it: an acknowledgement is a publish to the reply subject of the delivery, which says
stream, consumer, how often it was delivered, and both sequences (ADR-15).

What cannot be read ends the reading of that connection with one Fault. A payload that nobody wants, or that is past
`payload_bytes`, is skipped by its length.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Literal

import orjson

from handrail.event import Fault
from handrail.wire.http1 import CopyBudget
from handrail.wire.operation import Acknowledged, Connection, Delivered, JetStream, Published, Stored, Unread

REASONS = ("invalid_line", "line_too_long", "invalid_payload")
"""Why reading may end: the reasons of a Fault of component `wire.nats`."""

LINE_BYTES: Final = 65_536
COUNTED_BYTES: Final = 16_384
"""A longer payload counts against the one budget of all copies while it comes in."""
REQUESTS: Final = 10_000
"""Publishes of one connection whose answer is awaited; the oldest go first."""
SUBSCRIPTIONS: Final = 100_000

Seen = Published | Stored | Delivered | Acknowledged | Unread | Fault

_ACK: Final = b"$JS.ACK."
_CRLF: Final = b"\r\n"

_KINDS: Final[dict[bytes, Literal["ack", "nak", "progress", "term", "next"]]] = {
    b"": "ack",
    b"+ACK": "ack",
    b"-NAK": "nak",
    b"+WPI": "progress",
    b"+TERM": "term",
    b"+NXT": "next",
}


class Deliveries:
    """Deliveries of JetStream that were not acknowledged yet, over all connections of a bus.

    Keyed by reply subject, which is unique for each delivery; so an acknowledgement is known after a reconnect too. At
    most `limit`; the oldest go first.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._known: OrderedDict[bytes, tuple[str, float, str, JetStream]] = OrderedDict()

    def add(self, reply_to: bytes, id: str, at: float, subject: str, jetstream: JetStream) -> None:
        self._known[reply_to] = (id, at, subject, jetstream)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def get(self, reply_to: bytes, is_final: bool) -> tuple[str, float, str, JetStream] | None:
        return self._known.pop(reply_to, None) if is_final else self._known.get(reply_to)

    def __len__(self) -> int:
        return len(self._known)


class _Stream:
    """One direction: part of a line, or what is left of a payload."""

    def __init__(self) -> None:
        self.line = b""
        self.fields: list[bytes] = []
        self.left = 0
        self.size = 0
        self.parts: list[bytes] | None = None
        self.taken = 0
        """What the copy took from the budget; -1 where there is none because it would be too large."""


class NatsDecoder:
    """Both directions of one client connection.

    `client` takes what the client sent, `server` what the server sent, in the order in which they were seen; both
    return what became known.
    """

    def __init__(
        self,
        connection: Connection,
        wants: Callable[[str], bool],
        payload_bytes: int = 1_048_576,
        deliveries: Deliveries | None = None,
        budget: CopyBudget | None = None,
    ) -> None:
        self.connection = connection
        self._wants = wants
        self._payload_bytes = payload_bytes
        self._deliveries = deliveries if deliveries is not None else Deliveries()
        self._budget = budget or CopyBudget()
        self._client = _Stream()
        self._server = _Stream()
        self._over = False
        self._number = 0
        self._names_others = False
        self._subscriptions: dict[bytes, tuple[str, str | None]] = {}
        self._requests: OrderedDict[bytes, tuple[str, float, str]] = OrderedDict()
        self._out: list[Seen] = []

    def is_over(self) -> bool:
        """Nothing more is read: after a fault, or once the connection is encrypted."""
        return self._over

    def client(self, data: bytes, at: float) -> list[Seen]:
        out = self._out = []
        if not self._over:
            self._read(self._client, data, at, False)
        return out

    def server(self, data: bytes, at: float) -> list[Seen]:
        out = self._out = []
        if not self._over:
            self._read(self._server, data, at, True)
        return out

    def close(self, at: float) -> list[Seen]:
        """The connection ended. `at` is when; nothing that was begun can be whole any more."""
        self._drop()
        return []

    def _end(self, reason: str) -> None:
        self._out.append(Unread(reason=reason))
        self._drop()

    def _fail(self, reason: str, at: float) -> None:
        self._out.append(Fault(component="wire.nats", reason=reason, at=at))
        self._drop()

    def _drop(self) -> None:
        self._over = True
        for stream in (self._client, self._server):
            self._budget.left += max(0, stream.taken)
            stream.taken = 0
            stream.parts = None
            stream.line = b""
        self._requests.clear()
        self._subscriptions.clear()

    def _read(self, stream: _Stream, data: bytes, at: float, is_server: bool) -> None:
        pos = 0
        end = len(data)
        while pos < end:
            if stream.left:
                taken = min(end - pos, stream.left)
                if stream.parts is not None:
                    stream.parts.append(data[pos : pos + taken])
                pos += taken
                stream.left -= taken
                if not stream.left:
                    self._whole(stream, at, is_server)
            elif not is_server and data[pos] == 0x16 and not stream.line:  # where a line begins, however it was cut
                self._end("tls")
            else:
                eol = data.find(b"\n", pos)
                if eol < 0:
                    stream.line += data[pos:]
                    if len(stream.line) > LINE_BYTES:
                        self._fail("line_too_long", at)
                    return
                line = data[pos:eol]
                if stream.line:
                    line = stream.line + line
                    stream.line = b""
                pos = eol + 1
                if len(line) > LINE_BYTES:
                    self._fail("line_too_long", at)
                elif not self._line(stream, line, is_server):
                    self._fail("invalid_line", at)
            if self._over:
                return

    def _line(self, stream: _Stream, line: bytes, is_server: bool) -> bool:
        """A line, LF taken off. False where it is none of the protocol."""
        fields = line.split()
        if not fields:
            return not is_server
        word = fields[0].upper()
        if is_server:
            if word == b"MSG":
                return len(fields) in (4, 5) and self._begin(stream, fields, fields[-1:])
            if word == b"HMSG":
                return len(fields) in (5, 6) and self._begin(stream, fields, fields[-2:])
            if word == b"INFO":
                self._info(line)
                return True
            return word in _SERVER_WORDS or word.startswith((b"+", b"-"))
        if word == b"PUB":
            return len(fields) in (3, 4) and self._begin(stream, fields, fields[-1:])
        if word == b"HPUB":
            return len(fields) in (4, 5) and self._begin(stream, fields, fields[-2:])
        if word == b"SUB" and len(fields) in (3, 4):
            if len(self._subscriptions) < SUBSCRIPTIONS:
                queue = _text(fields[2]) if len(fields) == 4 else None
                self._subscriptions[fields[-1]] = (_text(fields[1]), queue)
            return True
        if word == b"UNSUB" and len(fields) in (2, 3):
            if len(fields) == 2:
                self._subscriptions.pop(fields[1], None)
            return True
        if word == b"CONNECT":
            self._connect(line)
            return True
        return word in _CLIENT_WORDS

    def _begin(self, stream: _Stream, fields: list[bytes], sizes: list[bytes]) -> bool:
        """A message is announced. False where its sizes are wrong."""
        for digits in sizes:
            if not digits.isdigit() or len(digits) > 10:
                return False
        size = int(sizes[-1])
        if len(sizes) == 2 and int(sizes[0]) > size:
            return False
        stream.fields = fields
        stream.size = size
        stream.left = size + 2
        stream.parts = None
        subject = fields[1]
        if subject.startswith(_ACK) or subject in self._requests or self._wants(_text(subject)):
            stream.parts = []
            if size > self._payload_bytes or (size > COUNTED_BYTES and size > self._budget.left):
                stream.parts = None
                stream.taken = -1
            elif size > COUNTED_BYTES:
                self._budget.left -= size
                stream.taken = size
        return True

    def _whole(self, stream: _Stream, at: float, is_server: bool) -> None:
        """The payload of a message is complete."""
        parts, stream.parts = stream.parts, None
        is_cut = stream.taken < 0
        if stream.taken > 0:
            self._budget.left += stream.taken
        stream.taken = 0
        fields = stream.fields
        body = b""
        if parts is not None:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            if body[-2:] != _CRLF:
                self._fail("invalid_payload", at)
                return
            body = body[:-2]
        elif not is_cut:
            return
        headers: dict[str, str] = {}
        size = stream.size
        if fields[0][:1] in b"hH":
            count = int(fields[-2])
            headers = _headers(body[:count])
            body = body[count:]
            size -= count
            fields = [*fields[:-2], fields[-1]]
        if is_server:
            self._delivered(fields, headers, body, size, is_cut, at)
        else:
            self._published(fields, headers, body, size, is_cut, at)

    def _published(
        self, fields: list[bytes], headers: dict[str, str], body: bytes, size: int, is_cut: bool, at: float
    ) -> None:
        subject = fields[1]
        if subject.startswith(_ACK):
            self._acknowledged(subject, body, at)
            return
        reply_to = fields[2] if len(fields) == 4 else None
        self._number += 1
        id = f"{self.connection.id}-{self._number}"
        name = _text(subject)
        if reply_to is not None:
            self._requests[reply_to] = (id, at, name)
            if len(self._requests) > REQUESTS:
                self._requests.popitem(last=False)
        self._out.append(
            Published(
                id=id,
                at=at,
                subject=name,
                reply_to=None if reply_to is None else _text(reply_to),
                headers=headers,
                payload=body,
                size=size,
                cut="too_large" if is_cut else None,
                connection=self.connection,
            )
        )

    def _acknowledged(self, subject: bytes, body: bytes, at: float) -> None:
        kind = _KINDS.get(body.split(maxsplit=1)[0] if body else b"")
        if kind is None:
            return
        known = self._deliveries.get(subject, kind != "progress")
        if known is None:
            return
        id, delivered_at, name, jetstream = known
        self._out.append(
            Acknowledged(
                id=id,
                at=at,
                kind=kind,
                subject=name,
                delivered_at=delivered_at,
                jetstream=jetstream,
                connection=self.connection,
            )
        )

    def _delivered(
        self, fields: list[bytes], headers: dict[str, str], body: bytes, size: int, is_cut: bool, at: float
    ) -> None:
        subject = fields[1]
        asked = self._requests.pop(subject, None)
        if asked is not None:
            self._stored(asked, headers, body, at)
            return
        reply_to = fields[3] if len(fields) == 5 else None
        jetstream = None if reply_to is None else jetstream_of(reply_to)
        name = _text(subject)
        subscription, queue = self._subscriptions.get(fields[2], (None, None))
        self._number += 1
        id = f"{self.connection.id}-{self._number}"
        if reply_to is not None and jetstream is not None:
            self._deliveries.add(reply_to, id, at, name, jetstream)
        self._out.append(
            Delivered(
                id=id,
                at=at,
                subject=name,
                sid=_text(fields[2]),
                subscription=subscription,
                queue=queue,
                reply_to=None if reply_to is None else _text(reply_to),
                headers=headers,
                payload=body,
                size=size,
                cut="too_large" if is_cut else None,
                jetstream=jetstream,
                connection=self.connection,
            )
        )

    def _stored(self, asked: tuple[str, float, str], headers: dict[str, str], body: bytes, at: float) -> None:
        """The answer to a publish: JetStream's, or any other, which says nothing about storing."""
        id, published_at, subject = asked
        stream: str | None = None
        sequence: int | None = None
        is_duplicate = False
        error: str | None = None
        status = headers.get("")
        if status is not None and status.startswith("503"):
            error = "no responders"
        else:
            answer = _json(body)
            if not isinstance(answer, dict):
                return
            told = answer.get("error")
            if isinstance(told, dict):
                error = str(told.get("description") or told.get("code") or "error")
            elif isinstance(answer.get("stream"), str) and isinstance(answer.get("seq"), int):
                stream, sequence = answer["stream"], answer["seq"]
                is_duplicate = answer.get("duplicate") is True
            else:
                return
        self._out.append(
            Stored(
                id=id,
                published_at=published_at,
                at=at,
                subject=subject,
                stream=stream,
                sequence=sequence,
                is_duplicate=is_duplicate,
                error=error,
                connection=self.connection,
            )
        )

    def _connect(self, line: bytes) -> None:
        """What the client says of itself; of its secrets nothing is kept."""
        told = _json(line.split(maxsplit=1)[1] if b"{" in line else b"")
        if isinstance(told, dict):
            user, name = told.get("user"), told.get("name")
            if isinstance(user, str) and user:
                self.connection.user = user
            if isinstance(name, str) and name:
                self.connection.name = name

    def _info(self, line: bytes) -> None:
        """The server may name other servers, to which a client then goes without passing here."""
        if b'"connect_urls"' in line and not self._names_others:
            self._names_others = True
            self._out.append(Unread(reason="connect_urls"))


_SERVER_WORDS: Final = frozenset((b"PING", b"PONG"))
_CLIENT_WORDS: Final = frozenset((b"PING", b"PONG", b"+OK"))


def _text(word: bytes) -> str:
    return word.decode("utf-8", "replace")


def _json(body: bytes) -> Any:
    """The JSON value, None where it is none."""
    if not body:
        return None
    try:
        return orjson.loads(body)
    except ValueError:
        return None


def _headers(head: bytes) -> dict[str, str]:
    """`NATS/1.0[ status]` and its fields; the status, where there is one, under the empty name."""
    headers: dict[str, str] = {}
    first, _, rest = head.partition(_CRLF)
    status = first[8:].strip()
    if status:
        headers[""] = _text(status)
    for line in rest.split(_CRLF):
        name, colon, value = line.partition(b":")
        if colon and name:
            known, text = _text(name), _text(value.strip())
            headers[known] = f"{headers[known]}, {text}" if known in headers else text
    return headers


def jetstream_of(reply_to: bytes) -> JetStream | None:
    """What the reply subject of a delivery says, None where it is no JetStream's.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<time in ns>.<pending>`, or with
    domain and account hash before the stream and perhaps more at the end.
    """
    if not reply_to.startswith(_ACK):
        return None
    words = reply_to.split(b".")
    domain: bytes | None = None
    if len(words) >= 11:
        domain = words[2]
        words = words[4:11]
    elif len(words) in (8, 9):
        words = words[2:]
    else:
        return None
    for word in words[2:]:
        if not word.isdigit() or len(word) > 20:
            return None
    return JetStream(
        stream=_text(words[0]),
        consumer=_text(words[1]),
        deliveries=int(words[2]),
        stream_sequence=int(words[3]),
        consumer_sequence=int(words[4]),
        stored_at=int(words[5]) / 1e9,
        pending=int(words[6]) if len(words) > 6 else None,
        domain=None if domain is None or domain == b"_" else _text(domain),
    )
