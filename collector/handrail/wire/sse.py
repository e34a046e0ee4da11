"""The bytes of a server-sent event stream become its events (WHATWG HTML, section 9.2).

A chunk is not an event: lines may end in CR, LF or CRLF, and any of them may fall between two chunks.
"""

from collections.abc import Iterator

import msgspec

from handrail.event import Fault

__all__ = ["ServerSentEvent", "SseDecoder"]


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One dispatched event. `data` stays bytes, so that whoever parses it judges its encoding."""

    data: bytes
    event: str = "message"
    id: str | None = None
    """The last event id in force, which an earlier event may have set."""
    retry: int | None = None
    """Milliseconds, where this event set it."""
    at: float = 0.0


class SseDecoder:
    """Feeds on one stream. Holds at most `limit` bytes: an event past it is skipped to its end and is one Fault."""

    def __init__(self, limit: int = 1_048_576) -> None:
        self._limit = limit
        self._line = bytearray()
        self._data: list[bytes] = []
        self._held = 0
        self._event = ""
        self._id: str | None = None
        self._retry: int | None = None
        self._first = True
        self._after_cr = False
        self._skipping = False
        self._line_skipped = False

    def feed(self, data: bytes, at: float) -> Iterator[ServerSentEvent | Fault]:
        """The events that these bytes complete, in order."""
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if data.endswith(b"\r"):
            self._after_cr = True  # the LF of a CRLF may open the next chunk
        for piece in data.splitlines(keepends=True):
            line = piece.rstrip(b"\r\n")
            is_complete = len(line) < len(piece)
            if self._skipping:
                self._line_skipped = self._line_skipped or bool(line)
                if is_complete:
                    if not self._line_skipped:
                        self._reset()
                    self._line_skipped = False
                continue
            if self._held + len(self._line) + len(line) > self._limit:
                self._reset()
                self._skipping = True
                self._line_skipped = not is_complete
                yield Fault(component="wire.sse", reason="too_large", at=at)
                continue
            if not is_complete:
                self._line += line
                continue
            if self._line:
                line = bytes(self._line) + line
                self._line.clear()
            if self._first:
                self._first = False
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line:
                self._field(line)
            else:
                if self._data:
                    yield ServerSentEvent(b"\n".join(self._data), self._event or "message", self._id, self._retry, at)
                self._reset()

    def close(self, at: float) -> Iterator[ServerSentEvent | Fault]:
        """The stream is over. What has not seen its blank line is not an event (9.2.6), and is said to be missing."""
        if self._data or self._line:
            yield Fault(component="wire.sse", reason="incomplete", at=at)
        self._reset()

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._held += len(line)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) < 10:
            self._retry = int(value)

    def _reset(self) -> None:
        self._line.clear()
        self._data.clear()
        self._held = 0
        self._event = ""
        self._retry = None
        self._skipping = False
        self._line_skipped = False
