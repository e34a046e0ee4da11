"""A model's reply passes but for calls of tools: each waits until it is whole and was judged.

Only where a rule is in enforce mode. Events of a stream that belong to no call pass at once; from the event in which a
call begins, bytes wait until all calls that have begun are complete, so that their order stays. A reply that is no
stream waits as a whole, for it can still be answered with another status then. Bytes are cut, never changed: what is
released is what came.
"""

import re
from collections.abc import Callable

import orjson

from handrail.dialects.turns import Call, Reading
from handrail.event import Refusal
from handrail.wire.sse import ServerSentEvent, SseDecoder

_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
"""A line ends and so does the next, which is empty: however lines end."""
_LONGEST_BLANK = 4
_SIZE, _LAST = -1, -2


class ReplyGate:
    """Feeds on the bytes of one reply, head and framing included, of which the decoder of the reply has no complaint.

    `judge` is asked about calls that are complete, by their place in the reply; a Refusal ends what may pass.
    """

    __slots__ = (
        "_calling",
        "_chunk",
        "_content",
        "_cut",
        "_event",
        "_held",
        "_is_begun",
        "_judge",
        "_judged",
        "_left",
        "_line",
        "_reading",
        "_stream",
        "is_whole",
        "refusal",
        "size",
        "until",
    )

    def __init__(self, reading: Reading, judge: Callable[[dict[int, Call]], Refusal | None]) -> None:
        self._reading = reading
        self._judge = judge
        self._judged: dict[int, Call] = {}
        self._calling = False
        """A call has begun that is not complete."""
        self._held: list[bytes] = []
        self._is_begun = False
        """The head is over."""
        self._stream = False
        self._event = b""
        """Of an event that is not complete, what is there."""
        self._line = b""
        """Of a line of the framing, what is there."""
        self._chunk = _SIZE
        """Bytes of a chunk that are to come; `_SIZE` where a line with its size is, `_LAST` behind the last."""
        self._left = -1
        """Bytes that are to come where the length is known and there are no chunks."""
        self._content = "connection"
        """What frames the body: `chunks`, `length`, or the end of the `connection`."""
        self._cut = -1
        """`_chunk` or `_left` where the bytes that may pass end."""
        self.is_whole = True
        """Nothing has passed yet."""
        self.refusal: Refusal | None = None
        self.size = 0
        """Bytes that wait."""
        self.until = 0.0
        """When they are released unjudged."""

    @property
    def is_holding(self) -> bool:
        return self.size > 0

    @property
    def is_due(self) -> bool:
        """What waits is to be judged where it ends: a reply that is no stream, or a call that it leaves open."""
        return self.is_whole or self._calling

    def feed(self, data: bytes) -> bytes:
        """What may pass now."""
        if self.refusal is not None:
            return b""
        head = b""
        if not self._is_begun:
            data = self.release() + data
            end = self._head(data)
            if self._stream:
                self.is_whole = False
                head, data = data[:end], data[end:]
        passes = self._scan(data) if self._stream else -1
        if passes >= 0:
            head += self.release() + data[:passes]
            data = data[passes:]
        if data:
            self._held.append(data)
            self.size += len(data)
        return head

    def release(self) -> bytes:
        """Everything that waits."""
        held = b"".join(self._held)
        self._held.clear()
        self.size = 0
        return held

    def ending(self, code: str, message: str) -> bytes | None:
        """What ends a stream of which a call was refused, with an event that says so; None where only a reset can."""
        said = self._reading.refused(code, message)
        if self._content == "connection":
            return said
        if self._content == "length":
            return said + b"\n" * (self._cut - len(said)) if self._cut >= len(said) else None
        rest = b"" if self._cut < 0 else b"\n" * self._cut + b"\r\n"  # blank lines are no events
        return rest + b"%x\r\n%s\r\n0\r\n\r\n" % (len(said), said)

    @property
    def ends_connection(self) -> bool:
        """The reply ends with its connection."""
        return self._content == "connection"

    def _head(self, data: bytes) -> int:
        """Where the head of the final reply ends; 0 where more of it is to come."""
        end = 0
        while True:
            start, end = end, data.find(b"\r\n\r\n", end) + 4
            if end < 4:
                return 0
            head = data[start:end].lower()
            if head[9:10] != b"1" or head[9:12] == b"101":
                break
        self._is_begun = True
        self._stream = b"text/event-stream" in head and b"\r\ncontent-encoding:" not in head
        if (length := _LENGTH.search(head)) is not None:
            self._content, self._left = "length", int(length[1])
        elif b"\r\ntransfer-encoding: chunked" in head:
            self._content = "chunks"
        self._cut = self._left
        return end

    def _scan(self, data: bytes) -> int:
        """How many of these bytes may pass, with all that waits before them; -1 where none may."""
        if self._content != "chunks":
            return self._events(data, 0, len(data), self._left)
        at, passes, size, chunk = 0, -1, len(data), self._chunk
        while at < size and self.refusal is None:
            if chunk > 0:
                upto = at + chunk
                if upto > size:
                    upto = size
                end = self._events(data, at, upto, chunk)
                if end >= 0:
                    passes = end
                chunk -= upto - at
                at = upto
                continue
            feed = data.find(b"\n", at) + 1
            if chunk == _LAST:
                at = size
            elif not feed:
                self._line += data[at:]
                break
            elif chunk == _SIZE:
                chunk = int((self._line + data[at:feed]).partition(b";")[0], 16) or _LAST
                self._line = b""
                at = feed
                continue
            else:  # behind a chunk
                chunk = _SIZE
                self._line = b""
                at = feed
            if not self._calling and not self._event.strip(b"\r\n"):
                passes, self._cut = at, -1
        self._chunk = chunk
        return passes

    def _events(self, data: bytes, start: int, end: int, left: int) -> int:
        """Content: where the last event ends up to which everything may pass, -1 where there is none.

        `left` bytes of its chunk or body are to come from `start` on.
        """
        passes = -1
        seen = len(self._event)
        content = self._event + data[start:end]
        begin = 0
        look = seen - _LONGEST_BLANK if seen > _LONGEST_BLANK else 0
        is_plain = b"\r" not in content
        while True:
            if is_plain:
                look = content.find(b"\n\n", look) + 2
                if look < 2:
                    break
            elif (blank := _BLANK.search(content, look)) is not None:
                look = blank.end()
            else:
                break
            event = content[begin:look]
            if (self._calling or b"tool_" in event or b"function" in event) and not self._passed(event):
                return passes
            begin = look
            if not self._calling:
                passes = start + look - seen
                self._cut = left - (look - seen) if left >= 0 else -1
        self._event = content[begin:]
        if self._content == "length":
            self._left -= end - start
        return passes

    def _passed(self, event: bytes) -> bool:
        """Takes an event in that may be of a call. False where a call that it completes was refused.

        A call begins with `tool_calls`, `tool_use`, `custom_tool_call`, `function_call` or a name like these.
        """
        reading = self._reading
        for said in _data(event):
            try:
                reading.add(orjson.loads(said))
            except orjson.JSONDecodeError:
                continue  # its clients cannot read it either
        was_calling, self._calling = self._calling, reading.is_calling
        if was_calling and self._calling and b'"name"' not in event:
            return True  # more of a call: none is complete before all are, or another begins
        calls = {number: call for number, call in reading.calls().items() if self._judged.get(number) != call}
        if not calls:
            return True
        self._judged |= calls
        self.refusal = self._judge(calls)
        return self.refusal is None


def _data(event: bytes) -> list[bytes]:
    """The data of an event: of one line, as most have, or as the decoder reads it."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return [event[6:-2]]
    return [said.data for said in SseDecoder(len(event)).feed(event, 0.0) if isinstance(said, ServerSentEvent)]


_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n")
