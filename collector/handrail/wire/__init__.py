"""Bytes of one connection become messages, and messages become exchanges. No socket, no clock, no loop.

- `http1`: heads and bodies of HTTP/1.1, strict about framing.
- `body`: a message's bounded copy becomes a JSON value, or the reason why not.
- `sse`: the events of a server-sent event stream.
- `har`: recorded exchanges (HAR 1.2) for replay.
- `operation`: what stores and buses were asked and answered; `resp` and `nats` make it of bytes.

Every decoder obeys three laws that one shared test runs over all of them: any chunking of the bytes gives the same
messages; garbage gives a Fault, never an exception; what it buffers is bounded.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal, Protocol

from handrail.event import Fault
from handrail.wire.body import Body, read_body
from handrail.wire.route import BodyLimits, HeadLimits, Route

__all__ = ["Body", "BodyLimits", "Decoder", "End", "Exchange", "HeadLimits", "Message", "Reply", "Request", "Route"]

End = Literal[
    "replied",  # a complete reply
    "client_abort",  # the client went away before the reply was complete
    "upstream_refused",  # no connection to the upstream
    "upstream_reset",  # the upstream went away before the reply was complete
    "upstream_invalid",  # the upstream's bytes are not HTTP
    "timeout",  # a limit on time was reached while waiting for the upstream
    "refused",  # a rule in enforce mode refused the request
    "shutdown",  # the sidecar ended first
]


class Decoder(Protocol):
    """Bytes of one direction of one connection to messages, in order.

    Those of `http1` give one message at a time in place of an iterator, because the next waits for the reply.
    """

    def feed(self, data: bytes, at: float) -> Iterator[Any | Fault]: ...

    def close(self, at: float) -> Iterator[Any | Fault]: ...


class Known:
    """What follows from the head of a message alone, found once for all messages that have the same."""

    __slots__ = ("is_json", "is_silent", "place")

    def __init__(self, headers: dict[bytes, bytes], place: str = "") -> None:
        self.is_json = headers.get(b"content-type") == b"application/json" and b"content-encoding" not in headers
        """Whether it says that its body is JSON as it stands; there are other ways to say so."""
        self.is_silent = not any(name.startswith(b"handrail-") or name == b"baggage" for name in headers)
        """Whether it has none of the headers that speak to Handrail: `handrail-…` and `baggage`."""
        self.place = place
        """Of a request, see `place`."""


class Message:
    """One HTTP message: its head, and a bounded copy of its body as it was on the wire.

    Not a msgspec Struct, like Exchange: every exchange reads their fields a hundred times, which compiled code does
    without asking the interpreter.
    """

    __slots__ = ("_read", "at", "body", "cut", "end", "headers", "known", "size")

    def __init__(
        self,
        *,
        headers: dict[bytes, bytes],
        at: float = 0.0,
        end: float = 0.0,
        body: bytes = b"",
        size: int = 0,
        cut: str | None = None,
    ) -> None:
        self.headers = headers
        """Lower-case names; the values of a repeated name joined by `, `."""
        self.at = at
        """When its first byte was seen, seconds since the epoch."""
        self.end = end
        """When its last byte was seen."""
        self.body = body
        self.size = size
        """Bytes of the body on the wire; more than len(body) where the copy was cut."""
        self.cut = cut
        """Why the copy is not the whole body (`too_large`, `incomplete`), None where it is."""
        self.known: Known | None = None
        """What is known of its head, None where the headers say it."""
        self._read: Body | None = None

    def header(self, name: str) -> str | None:
        """The value of a header by its lower-case name, decoded as Latin-1."""
        value = self.headers.get(name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    def json(self, limits: BodyLimits) -> Body:
        """The body as a JSON value, or the reason why it cannot be read. Parsed once."""
        read = self._read
        if read is None:
            is_json = self.known is not None and self.known.is_json
            read = self._read = read_body(self.headers, self.body, self.cut, limits, is_json)
        return read

    def said(self) -> tuple[object, ...]:
        """All of it as a tuple: equal for equal messages."""
        return self.headers, self.at, self.end, self.body, self.size, self.cut

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self.said() == other.said()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.said()!r}"


PLACE_LENGTH: Final = 512
"""Paths are cut to this many characters: they become keys that are kept."""


def place(method: str, target: str) -> str:
    """Method and path, as the operation of a request that names none. Queries stay out: they carry secrets."""
    return f"{method} {target.partition('?')[0][:PLACE_LENGTH]}"


TRACE_BYTES: Final = 55
_SHAPE: Final = bytes(48 if chr(byte) in "0123456789abcdef" else 45 if byte == 45 else 0 for byte in range(256))
_TRACED: Final = b"0" * 2 + b"-" + b"0" * 32 + b"-" + b"0" * 16 + b"-" + b"0" * 2


def is_trace(value: bytes) -> bool:
    """Whether this has the shape of a W3C `traceparent` of version 00, whatever its version and ids are."""
    return value.translate(_SHAPE) == _TRACED


class Request(Message):
    __slots__ = ("method", "target", "trace")

    def __init__(
        self,
        *,
        headers: dict[bytes, bytes],
        method: str,
        target: str,
        at: float = 0.0,
        end: float = 0.0,
        body: bytes = b"",
        size: int = 0,
        cut: str | None = None,
        known: Known | None = None,
        trace: bytes | None = None,
    ) -> None:
        self.headers, self.at, self.end, self.body, self.size, self.cut = headers, at, end, body, size, cut
        self._read = None
        self.method = method
        self.target = target
        """The request target without scheme and authority: path and query as sent."""
        self.known = known
        self.trace = trace
        """Its traceparent, which `is_trace`; None where the headers say it, or it has none."""

    def said(self) -> tuple[object, ...]:
        return self.method, self.target, self.headers, self.at, self.end, self.body, self.size, self.cut


class Reply(Message):
    __slots__ = ("status",)

    def __init__(
        self,
        *,
        headers: dict[bytes, bytes],
        status: int,
        at: float = 0.0,
        end: float = 0.0,
        body: bytes = b"",
        size: int = 0,
        cut: str | None = None,
        known: Known | None = None,
    ) -> None:
        self.headers, self.at, self.end, self.body, self.size, self.cut = headers, at, end, body, size, cut
        self._read = None
        self.known = known
        self.status = status

    def said(self) -> tuple[object, ...]:
        return self.status, self.headers, self.at, self.end, self.body, self.size, self.cut


class Exchange:
    """A request and, once it is there, its reply."""

    __slots__ = ("end", "ended", "id", "overhead_ms", "reply", "request", "route")

    def __init__(
        self,
        *,
        id: str,
        route: Route,
        request: Request,
        reply: Reply | None = None,
        end: End = "replied",
        ended: float = 0.0,
        overhead_ms: float | None = None,
    ) -> None:
        self.id = id
        """Unique; becomes the id of the event."""
        self.route = route
        self.request = request
        self.reply = reply
        self.end: End = end
        self.ended = ended
        """When the exchange was over, seconds since the epoch; 0 while it is open."""
        self.overhead_ms = overhead_ms
