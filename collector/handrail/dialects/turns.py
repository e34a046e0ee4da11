"""A request to a model and its reply, whoever the provider is: what the dialects read them into.

A `Turn` is a request: system text, history, tools. `Said` is a reply, whole or put together from its stream.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import orjson

from handrail.wire import Exchange
from handrail.wire.body import decode
from handrail.wire.sse import ServerSentEvent, SseDecoder


class Tool(msgspec.Struct, frozen=True):
    """A tool as a request offers it."""

    name: str
    description: str = ""
    schema: Any = None
    """JSON Schema of its arguments; None where it has none."""


class Call(msgspec.Struct, frozen=True):
    """A call of a tool as a model asks for it, or as a history repeats it."""

    id: str | None
    name: str
    arguments: Any = None
    """JSON text, or the value itself."""


class Result(msgspec.Struct, frozen=True):
    """What a call came to, as the next request tells the model."""

    id: str | None
    name: str | None
    text: str
    is_error: bool = False


class Item(msgspec.Struct, frozen=True):
    """One message of a history. `role` is `user`, `assistant` or `tool`; system texts are the Turn's."""

    role: str
    text: str = ""
    name: str | None = None
    calls: tuple[Call, ...] = ()
    results: tuple[Result, ...] = ()


class Turn(msgspec.Struct):
    """A request to a model."""

    operation: str
    items: list[Item]
    system: str = ""
    tools: dict[str, Tool] = {}
    model: str | None = None
    previous: str | None = None
    """Id of the response that it goes on with."""
    conversation: str | None = None
    """Id of the conversation at the provider."""
    speaker: str | None = None
    """Name of the agent that its prompt is given under."""


class Said(msgspec.Struct):
    """A reply of a model, whole or put together from its stream."""

    id: str | None = None
    model: str | None = None
    text: str = ""
    calls: list[Call] = []
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    error: str | None = None
    """The type or code of an error that came in place of an answer, or in its midst."""
    is_over: bool = False
    """The reply says itself that it is complete."""
    is_unread: bool = False

    @property
    def tokens(self) -> int | None:
        if self.total_tokens is not None:
            return self.total_tokens
        if self.input_tokens is None and self.output_tokens is None:
            return None
        return (self.input_tokens or 0) + (self.output_tokens or 0)


class Reading(Protocol):
    """One reply, which is read value by value as it comes."""

    said: Said
    """What is known of it, without its text."""

    @property
    def is_calling(self) -> bool:
        """A call has begun that is not complete."""
        ...

    def add(self, value: Any) -> None:
        """A reply that is whole, or what one event of a stream says. Anything may come."""
        ...

    def calls(self) -> dict[int, Call]:
        """The calls that are complete, by their place among all calls of the reply, from 1."""
        ...

    def end(self) -> Said:
        """Nothing more comes."""
        ...

    def refused(self, code: str, message: str) -> bytes:
        """The event that ends a stream which a rule has refused, as the provider's clients know an error."""
        ...


class Format(Protocol):
    """The wire format of one provider's API."""

    name: str

    def turn(self, exchange: Exchange) -> Turn | None:
        """The request; None where it is not of this format."""
        ...

    def aside(self, exchange: Exchange) -> str | None:
        """The operation of a request to the same API that is no turn; None where it is of another protocol."""
        ...

    def reading(self, turn: Turn) -> Reading:
        """What reads the reply to this request."""
        ...


def read_reply(format: Format, exchange: Exchange, turn: Turn) -> Said:
    """The reply, as much of it as there is."""
    reading = format.reading(turn)
    for value in reply_values(exchange, reading.said):
        reading.add(value)
    return reading.end()


def reply_values(exchange: Exchange, said: Said) -> Iterator[Any]:
    """The JSON values of a reply: one, or one for each event of a stream; `[DONE]` is the end of the reply."""
    reply = exchange.reply
    if reply is None:
        return
    limits = exchange.route.limits
    if b"text/event-stream" not in reply.headers.get(b"content-type", b"").lower():
        body = reply.json(limits)
        if body.value is None:
            said.is_unread = bool(reply.size)
            return
        said.is_over = True
        yield body.value
        return
    raw: bytes | str = reply.body
    if (encoding := reply.headers.get(b"content-encoding")) is not None:
        raw = decode(encoding, reply.body, limits)
    if isinstance(raw, str) or reply.cut not in (None, "incomplete"):
        said.is_unread = True
        if isinstance(raw, str):
            return
    pieces = _stream(raw, limits.body_bytes, exchange.ended)
    if pieces and pieces[-1] == b"[DONE]":
        said.is_over = True
        del pieces[-1]
    try:
        values = orjson.loads(b"[" + b",".join(pieces) + b"]")
    except orjson.JSONDecodeError:
        values = []
    if len(values) != len(pieces):  # one of them is no JSON
        values = []
        for piece in pieces:
            try:
                values.append(orjson.loads(piece))
            except orjson.JSONDecodeError:
                if piece == b"[DONE]":
                    said.is_over = True
                else:
                    said.is_unread = True
    yield from values


def _stream(raw: bytes, limit: int, at: float) -> list[bytes]:
    """The data of a stream's events. Where every event is one line of `data:`, as most are, one cut does it."""
    if raw.startswith(b"data: "):
        plain = raw.replace(b"\r\n", b"\n") if b"\r" in raw else raw
        lines = plain.rstrip(b"\n")
        pieces = lines[6:].split(b"\n\ndata: ")
        if b"\r" not in lines and lines.count(b"\n") == 2 * (len(pieces) - 1):
            if len(plain) < len(lines) + 2:
                del pieces[-1]  # its blank line is missing: it is no event
            return pieces
    return [event.data for event in SseDecoder(limit).feed(raw, at) if isinstance(event, ServerSentEvent)]


def words(content: object) -> str:
    """The text of a message: a string, or the `text` of its parts."""
    if type(content) is str:
        return content
    if type(content) is list:
        parts = []
        for part in content:
            if type(part) is str:
                parts.append(part)
            elif type(part) is dict and type(said := part.get("text")) is str:
                parts.append(said)
        return parts[0] if len(parts) == 1 else "\n".join(parts)
    return ""
