"""What stores and buses were asked and what they answered: the records between a decoder and its dialect.

A store's command with its reply is an `Operation`. A bus message is `Published` by the client and `Delivered` to it;
JetStream's answers to both are `Stored` and `Acknowledged`. Every record says which connection it was seen on, and is
yielded in the order in which that connection's facts became known.
"""

from typing import Any, Literal, Protocol

import msgspec


class Cut(msgspec.Struct, frozen=True, gc=False):
    """Stands for bytes that were not kept: they were longer than the limit, or the record was full."""

    size: int
    """Bytes on the wire."""


class ErrorReply(msgspec.Struct, frozen=True, gc=False):
    """A store's error: `-WRONGTYPE Operation against…` without its dash. Its first word is the code."""

    message: bytes

    @property
    def code(self) -> bytes:
        return self.message.partition(b" ")[0]


class Connection(msgspec.Struct, kw_only=True):
    """What is known of one client connection; the fields change as the client says more about itself."""

    id: str
    """Unique in this process: the first part of the ids of its records."""
    listener: int = 0
    """Which listener of the store, by its place in the configuration."""
    user: str | None = None
    """Who it authenticated as, once the server agreed. Never a password."""
    name: str | None = None
    """CLIENT SETNAME, HELLO … SETNAME, or the `name` of a NATS client."""


Ended = Literal[
    "answered",  # the reply is there
    "silent",  # the client asked for none (CLIENT REPLY OFF or SKIP)
    "lost",  # the connection ended first: whether it took effect is unknown
    "discarded",  # part of a transaction that did not run
    "refused",  # by a rule in enforce mode: it did not reach the store, or its reply (then there is one) not the client
]


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A command that has no reply yet: a blocking one as soon as it is seen, or any that a rule may refuse."""

    id: str
    """That of the Operation that follows."""
    at: float
    args: tuple[bytes | Cut, ...]
    connection: Connection
    database: int = 0
    is_blocking: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One command of a store and its reply.

    Commands of a transaction come one by one, after EXEC, each with its part of EXEC's reply and the same
    `transaction`; EXEC and MULTI themselves are not yielded. `ended` of those is when EXEC was answered.
    """

    id: str
    at: float
    """When the last byte of the command was seen, seconds since the epoch."""
    ended: float
    """When the last byte of the reply was seen, or when it became clear that none would come."""
    args: tuple[bytes | Cut, ...]
    """The command and its arguments as sent; the name in upper case."""
    reply: Any = None
    """bytes (also of simple and verbatim strings), int (also big numbers), float, bool, None, ErrorReply, Cut, or a
    list of these. A RESP3 map is the flat list `[key, value, …]` that RESP2 has; a set is a list. Attributes are left
    out. Beware of what RESP3 shapes otherwise: XREAD gives `[[stream, entries], …]` in RESP2 and the flat
    `[stream, entries, …]` of a map here in RESP3, and scores are pairs `[member, 1.0]` in place of alternating."""
    outcome: Ended = "answered"
    database: int = 0
    connection: Connection
    transaction: int | None = None
    """Number of the transaction on this connection, None outside one."""
    is_blocking: bool = False
    cut: str | None = None
    """`too_large` where an argument or a part of the reply is a Cut."""

    @property
    def is_error(self) -> bool:
        return isinstance(self.reply, ErrorReply)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A pub/sub message or another push of a store to one connection."""

    id: str
    at: float
    kind: bytes
    """`message`, `pmessage`, `smessage`, `invalidate`; confirmations of subscriptions are not yielded."""
    channel: bytes
    pattern: bytes | None = None
    payload: Any = None
    connection: Connection
    cut: str | None = None


class Unread(msgspec.Struct, frozen=True, gc=False):
    """Something passed without being read; counted under its reason, and no fault of anybody."""

    reason: str
    """`too_large`, `overload`, `script`, `module`, `takeover`, `muted_transaction`, `tls`."""


class StoreObserver(Protocol):
    """Takes what a store's connections did. Called on the event loop, after the bytes went on; must be quick.

    What it raises is contained and counted.
    """

    is_enforcing: bool
    """Whether `refuse` may ever refuse: then commands and replies that `wants` asks for are held for it."""

    def wants(self, args: tuple[bytes | Cut, ...]) -> bool:
        """Whether this command (name in upper case) is worth an Operation. What is not wanted is not built.

        Asked for each command but those about the connection or its secrets; must not keep `args`.
        """
        ...

    def wants_channel(self, channel: bytes) -> bool:
        """Whether messages of this pub/sub channel are worth a Message."""
        ...

    def observe(self, seen: "Pending | Operation | Message") -> None: ...

    def told(self) -> None:
        """That was all for now: what the observer gathered must be looked at."""
        ...

    def refuse(self, asked: Pending | Operation) -> bytes | None:
        """Only while `is_enforcing`. With a Pending: should the command not reach the store? With an Operation: should
        its reply not reach the client (a stale read)? The text of the error without dash and line end
        (`HANDRAIL stale read: …`), or None. An Operation that was let pass is still shown to `observe`; one that was
        refused is shown there with outcome `refused`."""
        ...


class JetStream(msgspec.Struct, frozen=True, kw_only=True):
    """What the reply subject of a delivered message says (`$JS.ACK.…`)."""

    stream: str
    consumer: str
    deliveries: int
    """1 at first, more where it is delivered again."""
    stream_sequence: int
    consumer_sequence: int
    stored_at: float
    """When the server stored it, by its own clock, seconds since the epoch."""
    pending: int | None = None
    domain: str | None = None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A client published (PUB, HPUB)."""

    id: str
    at: float
    subject: str
    reply_to: str | None = None
    headers: dict[str, str] = {}
    """Names as sent; the values of a repeated name joined by `, `."""
    payload: bytes = b""
    size: int = 0
    """Bytes of the payload on the wire."""
    cut: str | None = None
    """`too_large` where `payload` is not the whole (it is empty then)."""
    connection: Connection


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """JetStream answered a publish: it is stored, was a duplicate, or could not be stored."""

    id: str
    """Of the Published."""
    published_at: float
    at: float
    subject: str
    stream: str | None = None
    sequence: int | None = None
    is_duplicate: bool = False
    error: str | None = None
    connection: Connection


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """The server delivered to a client (MSG, HMSG). Answers to requests are not yielded, see `Stored`."""

    id: str
    at: float
    subject: str
    sid: str
    subscription: str | None = None
    """The subject that was subscribed to, wildcards and all, where the SUB was seen."""
    queue: str | None = None
    reply_to: str | None = None
    headers: dict[str, str] = {}
    payload: bytes = b""
    size: int = 0
    cut: str | None = None
    jetstream: JetStream | None = None
    connection: Connection


class Acknowledged(msgspec.Struct, frozen=True, kw_only=True):
    """A client acknowledged a delivery of JetStream, or said what else is to happen with it."""

    id: str
    """Of the Delivered where that was seen on this connection, or an id of its own."""
    at: float
    kind: Literal["ack", "nak", "progress", "term", "next"]
    subject: str | None = None
    """That of the message, where its delivery was seen."""
    delivered_at: float | None = None
    jetstream: JetStream
    connection: Connection


class BusObserver(Protocol):
    """Takes what a bus's connections did. Called on the event loop, after the bytes went on; must be quick."""

    def wants(self, subject: str) -> bool:
        """Whether messages of this subject are worth a record. Asked for each PUB and MSG."""
        ...

    def observe(self, seen: Published | Stored | Delivered | Acknowledged) -> None: ...
