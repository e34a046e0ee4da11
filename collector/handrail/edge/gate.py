"""A model's reply passes up to where it calls a tool; the rest waits until the whole call was judged.

Only where a rule is in enforce mode. Text of a stream passes at once. A reply that is no stream waits as a whole, for
it can still be answered with another status then. Bytes are cut, never changed: what is released is what came.
"""

import re

_MARK = re.compile(rb'tool_calls"\s*:\s*\[|tool_use|function_?[cC]all')
"""How a call of a tool begins in a stream: chat completions, messages, responses, generateContent."""
_CHUNK = re.compile(rb"(?:\A|\r\n)[0-9a-fA-F]{1,8}(?:;[^\r\n]*)?\r\n")
_STRADDLES = 32


class ReplyGate:
    """Feeds on the bytes of one reply, head and framing included."""

    __slots__ = ("_held", "_stream", "_tail", "is_aligned", "is_chunked", "is_holding", "is_whole", "size", "until")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._tail = b""
        self._stream: bool | None = None
        self.is_holding = False
        self.is_whole = True
        """Nothing has passed yet."""
        self.is_chunked = False
        self.is_aligned = False
        """What has passed ends where a chunk ended, so that another may follow."""
        self.size = 0
        self.until = 0.0
        """When it is released unjudged."""

    def feed(self, data: bytes) -> bytes:
        """What of these bytes may pass now."""
        if self._stream is None:
            return self._head(data)
        if self.is_holding:
            return self._hold(data)
        return self._body(data)

    def release(self) -> bytes:
        """Everything that waits."""
        held, self._held = b"".join(self._held), []
        self.is_holding = False
        self.size = 0
        return held

    def _hold(self, data: bytes) -> bytes:
        if data:
            self._held.append(data)
            self.size += len(data)
        return b""

    def _head(self, data: bytes) -> bytes:
        data = self._tail + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._tail = data
            return b""
        self._tail = b""
        head = data[: end + 4].lower()
        self._stream = b"text/event-stream" in head and b"\r\ncontent-encoding:" not in head
        self.is_chunked = b"\r\ntransfer-encoding: chunked" in head
        if not self._stream:
            self.is_holding = True
            return self._hold(data)
        self.is_whole = False
        self._tail = b"\r\n"
        return data[: end + 4] + self._body(data[end + 4 :])

    def _body(self, data: bytes) -> bytes:
        look = self._tail + data
        mark = _MARK.search(look)
        if mark is None:
            self._tail = look[-_STRADDLES:]
            return data
        self.is_holding = True
        before = look[len(self._tail) : mark.start()] if mark.start() > len(self._tail) else b""
        starts = [match.start() + 2 if match[0][:1] == b"\r" else 0 for match in _CHUNK.finditer(before)]
        if starts and starts[0] == 0 and not self._tail.endswith(b"\r\n"):
            del starts[0]
        if starts:
            self.is_aligned = self.is_chunked
            cut = starts[-1]
        else:
            cut = before.rfind(b"\n\n") + 2 if b"\n\n" in before else 0
        self._hold(data[cut:])
        return data[:cut]
