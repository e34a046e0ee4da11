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
from typing import Any, Literal, Protocol

import msgspec

from handrail.event import Fault, Side
from handrail.wire.body import Body, BodyLimits, read_body

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


class HeadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How large the head of a message may be, in bytes and lines."""

    head_bytes: int = 65_536
    field_bytes: int = 16_384
    lines: int = 256


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an exchange before a byte is read: whose sidecar, which side, who is at the other end."""

    agent: str | None = None
    """The agent that this sidecar belongs to."""
    peer: str | None = None
    """The agent at the other end where the configuration names it."""
    side: Side = "ingress"
    upstream: str = ""
    """Authority (`host:port`) of the upstream; the key under which agent cards are remembered."""
    dialects: tuple[str, ...] = ()
    limits: BodyLimits = BodyLimits()

    @property
    def source(self) -> str | None:
        return self.agent if self.side == "egress" else self.peer

    @property
    def target(self) -> str | None:
        return self.peer if self.side == "egress" else self.agent


class Message(msgspec.Struct, kw_only=True):
    """One HTTP message: its head, and a bounded copy of its body as it was on the wire."""

    headers: dict[bytes, bytes]
    """Lower-case names; the values of a repeated name joined by `, `."""
    at: float = 0.0
    """When its first byte was seen, seconds since the epoch."""
    end: float = 0.0
    """When its last byte was seen."""
    body: bytes = b""
    size: int = 0
    """Bytes of the body on the wire; more than len(body) where the copy was cut."""
    cut: str | None = None
    """Why the copy is not the whole body (`too_large`, `incomplete`), None where it is."""
    _read: Body | None = None

    def header(self, name: str) -> str | None:
        """The value of a header by its lower-case name, decoded as Latin-1."""
        value = self.headers.get(name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    def json(self, limits: BodyLimits) -> Body:
        """The body as a JSON value, or the reason why it cannot be read. Parsed once."""
        read = self._read
        if read is None:
            read = self._read = read_body(self.headers, self.body, self.cut, limits)
        return read


class Request(Message, kw_only=True):
    method: str
    target: str
    """The request target without scheme and authority: path and query as sent."""


class Reply(Message, kw_only=True):
    status: int


class Exchange(msgspec.Struct, kw_only=True):
    """A request and, once it is there, its reply."""

    id: str
    """Unique; becomes the id of the event."""
    route: Route
    request: Request
    reply: Reply | None = None
    end: End = "replied"
    ended: float = 0.0
    """When the exchange was over, seconds since the epoch; 0 while it is open."""
    overhead_ms: float | None = None
