"""The bytes of one Redis or Valkey connection, both directions, become Operations, Pendings and Messages.

Commands are arrays of bulk strings or inline lines; replies are RESP2 or RESP3 (github.com/redis/redis-specifications,
protocol/RESP3.md), told apart by their first byte alone. The two directions are paired here, because only both tell
what a reply belongs to: pipelines, transactions, subscriptions, muted replies. Feed them in the order in which they
were seen.

What cannot be read ends the reading of that connection with one Fault; its bytes are somebody else's to forward. A
value past `value_bytes` is skipped by its length and stands as a Cut.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from handrail.event import Fault
from handrail.wire.http1 import CopyBudget
from handrail.wire.operation import Connection, Cut, Ended, ErrorReply, Message, Operation, Pending, Unread

REASONS = (
    "invalid_command",
    "invalid_reply",
    "line_too_long",
    "too_deep",
    "unexpected_reply",
    "pipeline_too_long",
)
"""Why reading may end: the reasons of a Fault of component `wire.resp`."""

LINE_BYTES: Final = 65_536
"""As the servers bound an inline command; no reply's line is longer but that of an error."""
COUNTED_BYTES: Final = 16_384
"""A longer string counts against the one budget of all copies while it comes in."""
DEPTH: Final = 64
ITEM_BYTES: Final = 64
"""What an item of a list costs besides its bytes, so that a million empty ones meet the limit too."""
PIPELINE: Final = 100_000
"""Commands of one connection that may wait for their replies."""
QUEUED: Final = 10_000
"""Commands of one transaction that are remembered."""
ARGUMENTS: Final = 1_048_576
"""More the servers refuse."""

Seen = Pending | Operation | Message | Unread | Fault

# What is particular about a command.
_PLAIN: Final = 0
_SCRIPT: Final = 1
_SECRET: Final = 2
_AUTH: Final = 3
_HELLO: Final = 4
_CLIENT: Final = 5
_SELECT: Final = 6
_MULTI: Final = 7
_EXEC: Final = 8
_DISCARD: Final = 9
_SUBSCRIBE: Final = 10
_UNSUBSCRIBE: Final = 11
_TAKEOVER: Final = 12
_RESET: Final = 13
_BLOCKING: Final = 14
_MAY_BLOCK: Final = 15

KINDS: Final[dict[bytes, int]] = {
    **dict.fromkeys((b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO", b"FCALL", b"FCALL_RO"), _SCRIPT),
    **dict.fromkeys((b"FUNCTION", b"SCRIPT", b"MODULE"), _SCRIPT),
    **dict.fromkeys((b"ACL", b"CONFIG", b"MIGRATE"), _SECRET),
    b"AUTH": _AUTH,
    b"HELLO": _HELLO,
    b"CLIENT": _CLIENT,
    b"SELECT": _SELECT,
    b"MULTI": _MULTI,
    b"EXEC": _EXEC,
    b"DISCARD": _DISCARD,
    **dict.fromkeys((b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"), _SUBSCRIBE),
    **dict.fromkeys((b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"), _UNSUBSCRIBE),
    **dict.fromkeys((b"MONITOR", b"SYNC", b"PSYNC", b"REPLCONF"), _TAKEOVER),
    b"RESET": _RESET,
    **dict.fromkeys((b"BLPOP", b"BRPOP", b"BLMOVE", b"BRPOPLPUSH", b"BLMPOP"), _BLOCKING),
    **dict.fromkeys((b"BZPOPMIN", b"BZPOPMAX", b"BZMPOP", b"WAIT", b"WAITAOF"), _BLOCKING),
    **dict.fromkeys((b"XREAD", b"XREADGROUP"), _MAY_BLOCK),
}

_MESSAGES: Final = frozenset((b"message", b"pmessage", b"smessage"))
_CONFIRMED: Final = {
    b"subscribe": 0,
    b"unsubscribe": 0,
    b"psubscribe": 1,
    b"punsubscribe": 1,
    b"ssubscribe": 2,
    b"sunsubscribe": 2,
}

_MORE: Final = -1
"""More bytes are needed."""
_WRONG: Final = -2
"""The bytes are not RESP; `problem` says why."""

_CRLF: Final = b"\r\n"


class _Asked:
    """A command that waits for its reply and is more than one to be counted off."""

    __slots__ = ("args", "at", "is_refused", "is_wanted", "kind", "number", "size", "transaction")

    def __init__(self, number: int, at: float, kind: int, args: tuple[bytes | Cut, ...], is_wanted: bool) -> None:
        self.number = number
        self.at = at
        self.kind = kind
        self.args = args
        self.is_wanted = is_wanted
        self.size = 0
        self.is_refused = False
        self.transaction = 0


class _Aggregate:
    """A value inside which the parser is: how many items are to come, and those that did."""

    __slots__ = ("items", "kind", "left")

    def __init__(self, kind: int, left: int, items: list[Any] | None) -> None:
        self.kind = kind
        self.left = left
        self.items = items


class Values:
    """One RESP value after the other, at any chunking. What is not `build` is skipped by its framing alone.

    `feed` returns the place behind the value that is complete, or -1 when all of `data` was taken and more is needed,
    or -2 where the bytes are wrong. It resumes inside a value by token, so no byte is looked at many times.
    """

    def __init__(self, limit: int, budget: CopyBudget, of_commands: bool = False) -> None:
        self.value: Any = None
        self.first = 0
        """The type byte of the value, attributes aside; 0 before it is known."""
        self.is_cut = False
        self.problem = ""
        self._of_commands = of_commands
        self._budget = budget
        self._taken = 0
        self._limit = limit
        self._room = limit
        self._build = True
        self._line = b""
        self._stack: list[_Aggregate] = []
        self._bulk_kind = 0
        self._bulk_size = 0
        self._bulk_left = 0
        self._bulk: list[bytes] | None = None

    def begin(self, build: bool) -> None:
        self.value = None
        self.first = 0
        self.is_cut = False
        self._build = build
        self._room = self._limit
        if self._taken:
            self.drop()

    def drop(self) -> None:
        """Gives back what the copies of long strings took from the budget."""
        self._budget.left += self._taken
        self._taken = 0
        self._bulk = None

    def feed(self, data: bytes, pos: int) -> int:
        end = len(data)
        while True:
            if self._bulk_left:
                taken = end - pos
                if taken > self._bulk_left:
                    taken = self._bulk_left
                bulk = self._bulk
                if bulk is not None:
                    bulk.append(data[pos : pos + taken])
                pos += taken
                self._bulk_left -= taken
                if self._bulk_left:
                    return _MORE
                if not self._end_of_bulk():
                    return _WRONG
                if not self._stack and self.first:
                    return pos
                continue
            if pos >= end:
                return _MORE
            eol = data.find(_CRLF, pos)
            line = self._line
            if line:
                # The line end itself may be cut in two.
                if line[-1] == 13 and data[pos] == 10:
                    text = line[:-1]
                    pos += 1
                elif eol < 0:
                    self._line = line + data[pos:]
                    if len(self._line) > LINE_BYTES + 1:
                        return self._fail("line_too_long")
                    return _MORE
                else:
                    text = line + data[pos:eol]
                    pos = eol + 2
                self._line = b""
            elif eol < 0:
                self._line = data[pos:]
                if len(self._line) > LINE_BYTES + 1:
                    return self._fail("line_too_long")
                return _MORE
            else:
                text = data[pos:eol]
                pos = eol + 2
            if len(text) > LINE_BYTES:
                return self._fail("line_too_long")
            if not text:
                return self._fail("invalid_reply")
            if not self._token(text):
                return _WRONG
            if not self._stack and not self._bulk_left and self.first:
                return pos

    def _fail(self, problem: str) -> int:
        self.problem = problem
        return _WRONG

    def _token(self, line: bytes) -> bool:
        """A line, CR LF taken off. False where it is wrong."""
        kind = line[0]
        stack = self._stack
        if self._of_commands and not _may_command(kind, line, bool(stack)):
            self.problem = "invalid_command"
            return False
        if stack:
            above = stack[-1].kind
            if (above == 36) != (kind == 59):  # the parts `;` of a streamed string, and nothing else inside it
                self.problem = "invalid_reply"
                return False
        elif kind != 124 and not self.first:
            self.first = kind
        if kind == 36 or kind == 61 or kind == 33:  # $ = !
            if line == b"$-1":
                return self._put(None, 0)
            if line == b"$?":
                return self._push(36, -1)
            size = _length(line)
            if size < 0:
                self.problem = "invalid_reply"
                return False
            self._begin_bulk(kind, size)
            return True
        if kind == 43:  # +
            return self._put(line[1:] if self._build else None, len(line))
        if kind == 58 or kind == 40:  # : (
            return self._number(line)
        if kind == 45:  # -
            return self._put(ErrorReply(line[1:]), len(line))
        if kind == 42 or kind == 126 or kind == 62 or kind == 37 or kind == 124:  # * ~ > % |
            if line == b"*-1":
                return self._put(None, 0)
            if kind == 62 and stack:
                self.problem = "invalid_reply"
                return False
            if line[1:] == b"?" and kind != 62:
                return self._push(kind, -1)
            size = _length(line)
            if size < 0:
                self.problem = "invalid_reply"
                return False
            return self._push(kind, size * 2 if kind == 37 or kind == 124 else size)
        if kind == 95 and len(line) == 1:  # _
            return self._put(None, 0)
        if kind == 35 and (line == b"#t" or line == b"#f"):
            return self._put(line == b"#t", 0)
        if kind == 44:  # ,
            return self._double(line)
        if kind == 59 and stack:  # ;
            size = _length(line)
            if size > 0:
                self._begin_bulk(59, size)
                return True
            if size == 0:
                parts = stack.pop().items
                return self._put(None if parts is None else Cut(0) if self.is_cut else b"".join(parts), 0)
        if kind == 46 and len(line) == 1 and stack and stack[-1].left < 0:  # .
            return self._pop()
        self.problem = "invalid_reply"
        return False

    def _number(self, line: bytes) -> bool:
        digits = line[1:]
        bare = digits[1:] if digits[:1] == b"-" or digits[:1] == b"+" else digits
        if not bare.isdigit():
            self.problem = "invalid_reply"
            return False
        if len(bare) > 4000:  # int() itself refuses a text of more than 4,300 digits
            self.is_cut = True
            return self._put(Cut(len(bare)), 0)
        return self._put(int(digits), len(line))

    def _double(self, line: bytes) -> bool:
        try:
            return self._put(float(line[1:]), 0)
        except ValueError:
            self.problem = "invalid_reply"
            return False

    def _begin_bulk(self, kind: int, size: int) -> None:
        self._bulk_kind = kind
        self._bulk_size = size
        self._bulk_left = size + 2
        is_long = size > COUNTED_BYTES
        if self._build and size + ITEM_BYTES <= self._room and not (is_long and size > self._budget.left):
            self._room -= size + ITEM_BYTES
            self._bulk = []
            if is_long:
                self._budget.left -= size
                self._taken += size
        else:
            self._bulk = None
            if self._build:
                self.is_cut = True

    def _end_of_bulk(self) -> bool:
        parts = self._bulk
        self._bulk = None
        kind = self._bulk_kind
        if parts is None:
            # What is skipped may be wrong behind its length; the next token will tell.
            return self._put(Cut(self._bulk_size) if self._build else None, 0)
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        if whole[-2:] != _CRLF:
            self.problem = "invalid_reply"
            return False
        whole = whole[:-2]
        if kind == 61:  # a verbatim string says its format first: `txt:`
            whole = whole[4:]
        elif kind == 33:
            return self._put(ErrorReply(whole), 0)
        return self._put(whole, 0)

    def _push(self, kind: int, left: int) -> bool:
        if len(self._stack) >= DEPTH:
            self.problem = "too_deep"
            return False
        items: list[Any] | None = None
        if self._build and kind != 124 and self._room > 0 and not (self._stack and self._stack[-1].items is None):
            items = []
            self._room -= ITEM_BYTES
        elif self._build and kind != 124 and not self._in_attribute():
            self.is_cut = True
        self._stack.append(_Aggregate(kind, left, items))
        return self._pop() if left == 0 else True

    def _in_attribute(self) -> bool:
        return any(each.kind == 124 for each in self._stack)

    def _pop(self) -> bool:
        done = self._stack.pop()
        if done.kind == 124:  # an attribute belongs to what follows, and is not looked at
            return True
        return self._put(done.items, 0)

    def _put(self, value: Any, size: int) -> bool:
        """A value is complete: where it belongs to, and whatever is complete with it."""
        while True:
            if not self._stack:
                self.value = value
                return True
            above = self._stack[-1]
            items = above.items
            if items is not None:
                if self._room > 0:
                    items.append(value)
                    self._room -= size + ITEM_BYTES if size else ITEM_BYTES >> 1
                else:
                    self.is_cut = True
            if above.left < 0:
                return True
            above.left -= 1
            if above.left:
                return True
            self._stack.pop()
            if above.kind == 124:
                return True
            value = items
            size = 0


def _length(line: bytes) -> int:
    """The number behind a type byte; -1 where it is none, negative or absurd."""
    digits = line[1:]
    if digits.isdigit() and len(digits) < 11:
        return int(digits)
    return -1


def _may_command(kind: int, line: bytes, inside: bool) -> bool:
    """Whether a client may send this line: an array of strings, of a sane count."""
    if inside:
        return kind == 36 and _length(line) >= 0
    return kind == 42 and (line == b"*-1" or 0 <= _length(line) <= ARGUMENTS)


def split_inline(line: bytes) -> list[bytes] | None:
    """An inline command's line to its words, quotes and escapes as the servers read them; None where they are wrong."""
    if b'"' not in line and b"'" not in line:
        return line.split()
    words: list[bytes] = []
    at, end = 0, len(line)
    while True:
        while at < end and line[at] in b" \t\r\n\v\f\0":
            at += 1
        if at >= end:
            return words
        word = bytearray()
        while at < end and line[at] not in b" \t\r\n\0":
            byte = line[at]
            if byte != 34 and byte != 39:
                word.append(byte)
                at += 1
                continue
            quote = byte
            at += 1
            while True:
                if at >= end:
                    return None
                byte = line[at]
                if byte == quote:
                    at += 1
                    if at < end and line[at] not in b" \t\r\n\v\f":
                        return None
                    break
                if byte == 92 and at + 1 < end and (quote == 34 or line[at + 1] == 39):
                    escaped = line[at + 1]
                    digits = line[at + 2 : at + 4]
                    if escaped == 120 and len(digits) == 2 and all(digit in _HEX for digit in digits):
                        word.append(int(digits, 16))
                        at += 4
                        continue
                    word.append(_ESCAPES.get(escaped, escaped))
                    at += 2
                    continue
                word.append(byte)
                at += 1
        words.append(bytes(word))


_HEX: Final = b"0123456789abcdefABCDEF"
_ESCAPES: Final = {110: 10, 114: 13, 116: 9, 98: 8, 97: 7}


class RespDecoder:
    """Both directions of one client connection, paired.

    `commands` takes what the client sent, `replies` what the server sent; both return what became known. Once `fault`
    is set nothing more is read. With `frames` on, `asked` and `answered` list where each command and reply ended, for
    an edge that holds them; it empties the lists.
    """

    def __init__(
        self,
        connection: Connection,
        wants: Callable[[tuple[bytes | Cut, ...]], bool],
        wants_channel: Callable[[bytes], bool],
        value_bytes: int = 1_048_576,
        budget: CopyBudget | None = None,
        frames: bool = False,
    ) -> None:
        self.connection = connection
        self._over = False
        self.frames = frames
        self.asked: list[tuple[int, Pending | None]] = []
        """Place in the client's stream behind each command, with the command where it is wanted."""
        self.answered: list[tuple[int, Operation | None, bytes | None]] = []
        """Place in the server's stream behind each reply, the operation, and the text of the refusal it stands for."""
        self._wants = wants
        self._wants_channel = wants_channel
        self._value_bytes = value_bytes
        self._budget = budget = budget or CopyBudget()
        self._held = 0
        self._number = 0
        self._out: list[Seen] = []

        self._client_values = Values(value_bytes, budget, of_commands=True)
        self._client_inside = False
        self._bare = b""
        self._client_place = 0
        self._muted = False
        self._mute_next = 0
        self._asked_multi = False
        self._asked_database = 0
        self._taking_over = False

        self._server_values = Values(value_bytes, budget)
        self._server_inside = False
        self._server_place = 0
        self._waiting: deque[_Asked | None] = deque()
        self._multi: list[_Asked | None] | None = None
        self._transactions = 0
        self._database = 0
        self._subscribed = [0, 0, 0]
        self._refused: dict[str, bytes] = {}

    def is_over(self) -> bool:
        """Nothing more is read: after a fault, or once the connection became something else (MONITOR, PSYNC)."""
        return self._over

    # What the client sends.

    def is_deaf(self) -> bool:
        """No further command is read."""
        return self._over or self._taking_over

    def commands(self, data: bytes, at: float) -> list[Seen]:
        """Bytes of the client, and when they were seen, to what they say."""
        out = self._out = []
        if self.is_deaf():
            self._client_place += len(data)
            return out
        pos = 0
        end = len(data)
        values = self._client_values
        while pos < end:
            if self._client_inside:
                pos = values.feed(data, pos)
                if pos < 0:
                    if pos == _WRONG:
                        self._fail("invalid_command" if values.problem == "invalid_reply" else values.problem, at)
                    break
                self._client_inside = False
                args = values.value
                if args:
                    if values.is_cut and _cut_in(tuple(args)) is None:
                        args.append(Cut(0))
                    self._command(args, at, self._client_place + pos)
            elif self._bare or data[pos] != 42:
                pos = self._inline_command(data, pos, at)
                if pos < 0:
                    break
            else:
                # The common case: a whole command in one piece, read without the state that a cut one needs.
                args = []
                here = _whole_command(data, pos, args, self._value_bytes)
                if here > 0:
                    pos = here
                    if args:
                        self._command(args, at, self._client_place + pos)
                else:
                    self._client_inside = True
                    values.begin(True)
            if self.is_deaf():
                break
        self._client_place += end
        return out

    def _inline_command(self, data: bytes, pos: int, at: float) -> int:
        eol = data.find(b"\n", pos)
        if eol < 0:
            self._bare += data[pos:]
            if len(self._bare) > LINE_BYTES:
                self._fail("line_too_long", at)
            return _MORE
        line = self._bare + data[pos:eol]
        self._bare = b""
        if len(line) > LINE_BYTES:
            self._fail("line_too_long", at)
            return _WRONG
        words = split_inline(line)
        if words is None:
            self._fail("invalid_command", at)
            return _WRONG
        if words:
            self._command(words, at, self._client_place + eol + 1)
        return eol + 1

    def _command(self, words: list[Any], at: float, place: int) -> None:
        name = words[0].upper() if type(words[0]) is bytes else b""
        words[0] = name
        kind = KINDS.get(name, _PLAIN)
        args = tuple(words)
        self._number += 1
        if self._muted or self._mute_next:
            self._unanswered(kind, args, at)
            if self.frames:
                self.asked.append((place, None))
            return
        asked: _Asked | None = None
        pending: Pending | None = None
        if kind == _PLAIN or kind >= _BLOCKING:
            if self._wants(args):
                asked = self._keep(args, at, kind)
                if asked is not None:
                    blocks = not self._asked_multi and (
                        kind == _BLOCKING or (kind == _MAY_BLOCK and b"BLOCK" in [_upper(each) for each in args[1:7]])
                    )
                    if not blocks:
                        asked.kind = _PLAIN
                    if blocks or self.frames:
                        pending = Pending(
                            id=self._id(asked),
                            at=at,
                            args=args,
                            connection=self.connection,
                            database=self._asked_database,
                            is_blocking=blocks,
                        )
                        if blocks:
                            self._out.append(pending)
            elif kind == _PLAIN and b"." in name:
                self._out.append(Unread(reason="module"))
        else:
            asked = self._particular(kind, args, at)
            if asked is None and kind == _CLIENT:
                if self.frames:
                    self.asked.append((place, None))
                return
        waiting = self._waiting
        waiting.append(asked)
        if len(waiting) > PIPELINE:
            self._fail("pipeline_too_long", at)
        if self.frames:
            self.asked.append((place, pending))

    def _keep(self, args: tuple[bytes | Cut, ...], at: float, kind: int) -> _Asked | None:
        """A command to remember until its reply; None where too much is remembered already."""
        size = ITEM_BYTES
        for each in args:
            size += (len(each) if type(each) is bytes else 0) + ITEM_BYTES
        if size > self._budget.left:
            self._out.append(Unread(reason="overload"))
            return None
        self._hold(size)
        asked = _Asked(self._number, at, kind, args, True)
        asked.size = size
        return asked

    def _hold(self, size: int) -> None:
        self._held += size
        self._budget.left -= size

    def _particular(self, kind: int, args: tuple[bytes | Cut, ...], at: float) -> _Asked | None:
        """A command that says something about the connection. None where no reply will come that needs telling."""
        if kind == _SCRIPT:
            self._out.append(Unread(reason="script"))
            return None
        if kind == _SECRET:
            return None
        kept: tuple[bytes | Cut, ...] = ()
        if kind == _CLIENT:
            return self._client_command(args, at)
        if kind == _AUTH:
            kept = (args[1],) if len(args) == 3 else (b"default",)
        elif kind == _HELLO:
            kept = _hello(args)
        elif kind == _SELECT:
            kept = args[1:2]
            self._asked_database = _database(kept, self._asked_database)
        elif kind == _MULTI:
            self._asked_multi = True
        elif kind in (_EXEC, _DISCARD):
            self._asked_multi = False
        elif kind in (_SUBSCRIBE, _UNSUBSCRIBE):
            if self._asked_multi:
                kind = _TAKEOVER  # its confirmations would stand in EXEC's reply, more than EXEC counts
            kept = (_upper(args[0]), b"%d" % (len(args) - 1))
        elif kind == _RESET:
            self._asked_multi = False
            self._asked_database = 0
        asked = _Asked(self._number, at, kind, kept, False)
        if kind == _TAKEOVER:
            self._taking_over = True
            self._out.append(Unread(reason="takeover"))
        return asked

    def _client_command(self, args: tuple[bytes | Cut, ...], at: float) -> _Asked | None:
        """CLIENT. Only REPLY and SETNAME matter here; None where nothing will be answered."""
        word = _upper(args[1]) if len(args) > 1 else b""
        if word == b"REPLY" and len(args) == 3:
            mode = _upper(args[2])
            if mode == b"OFF":
                self._muted = True
                return None
            if mode == b"SKIP":
                self._mute_next = 1
                return None
        kept = args[2:3] if word == b"SETNAME" and len(args) == 3 else ()
        return _Asked(self._number, at, _CLIENT, kept, False)

    def _unanswered(self, kind: int, args: tuple[bytes | Cut, ...], at: float) -> None:
        """A command whose reply the client does not want; what it changes is taken to have worked."""
        if kind == _CLIENT and len(args) == 3 and _upper(args[1]) == b"REPLY":
            mode = _upper(args[2])
            if mode == b"ON":
                self._muted = False
                self._mute_next = 0
                self._waiting.append(_Asked(self._number, at, _CLIENT, (), False))
                return
            if mode == b"OFF":
                self._muted = True
            return
        if self._mute_next and not self._muted:
            self._mute_next = 0
        if kind == _PLAIN or kind >= _BLOCKING:
            if self._wants(args):
                self._out.append(
                    Operation(
                        id=f"{self.connection.id}-{self._number}",
                        at=at,
                        ended=at,
                        args=args,
                        outcome="silent",
                        database=self._asked_database,
                        connection=self.connection,
                        cut=_cut_in(args),
                    )
                )
        elif kind == _SCRIPT:
            self._out.append(Unread(reason="script"))
        elif kind == _SELECT:
            self._asked_database = self._database = _database(args[1:2], self._asked_database)
        elif kind == _RESET:
            self._muted = False
            self._waiting.append(_Asked(self._number, at, _RESET, (), False))
        elif kind in (_SUBSCRIBE, _UNSUBSCRIBE):
            # Confirmations come all the same.
            self._waiting.append(_Asked(self._number, at, kind, (_upper(args[0]), b"%d" % (len(args) - 1)), False))
        elif kind in (_MULTI, _TAKEOVER):
            # What a transaction in the dark did cannot be told; a takeover has no frames.
            self._out.append(Unread(reason="takeover" if kind == _TAKEOVER else "muted_transaction"))
            self._over = True

    def _fail(self, reason: str, at: float) -> None:
        self._over = True
        self._out.append(Fault(component="wire.resp", reason=reason, at=at))
        self._drop(at)

    # What the server sends.

    def replies(self, data: bytes, at: float) -> list[Seen]:
        """Bytes of the server, and when they were seen, to what they say."""
        out = self._out = []
        if self.is_over():
            self._server_place += len(data)
            return out
        pos = 0
        end = len(data)
        values = self._server_values
        waiting = self._waiting
        while pos < end:
            if not self._server_inside:
                first = data[pos]
                asked = waiting[0] if waiting else None
                if waiting and asked is None and self._multi is None and not self.frames:
                    # The common case: the reply of a command that nobody wants, whole in this piece.
                    here = _past(data, pos, end)
                    if here > 0:
                        waiting.popleft()
                        pos = here
                        continue
                build = first == 62 or (asked is not None) or self._subscribed != _NO_SUBSCRIPTIONS
                if first == 43 and asked is not None and asked.is_wanted and data.startswith(b"+OK\r\n", pos):
                    pos += 5
                    self._answer(b"OK", 43, False, at, self._server_place + pos)
                    continue
                if asked is not None and asked.is_wanted and first == 36:
                    # As common: one string that somebody wants.
                    size, start = _counted(data, pos + 1, end)
                    stop = start + size
                    here = stop + 2
                    if start > 0 and size <= self._value_bytes - ITEM_BYTES and here <= end:
                        if data[stop] == 13 and data[stop + 1] == 10:
                            self._answer(data[start:stop], 36, False, at, self._server_place + here)
                            pos = here
                            if self.is_over():
                                break
                            continue
                values.begin(build)
                self._server_inside = True
            pos = values.feed(data, pos)
            if pos < 0:
                if pos == _WRONG:
                    self._fail(values.problem, at)
                break
            self._server_inside = False
            self._answer(values.value, values.first, values.is_cut, at, self._server_place + pos)
            if self.is_over():
                break
        self._server_place += end
        return out

    def _answer(self, value: Any, first: int, is_cut: bool, at: float, place: int) -> None:
        """A reply or a push is complete."""
        if first == 62 or (first == 42 and self._is_message(value)):
            self._pushed(value, is_cut, at, place)
            return
        waiting = self._waiting
        if not waiting:
            if first == 45:  # a farewell, such as `-ERR max number of clients reached`
                self._frame(place, None, None)
                return
            self._fail("unexpected_reply", at)
            return
        asked = waiting.popleft()
        text: bytes | None = None
        if asked is not None and asked.is_refused:
            text = self._refused.pop(self._id(asked), b"HANDRAIL refused")
            self._hold(-asked.size)
            self._frame(place, self._operation(asked, None, at, "refused", False), text)
            return
        multi = self._multi
        if multi is not None and first == 43 and (asked is None or asked.kind not in _ENDS_MULTI):  # +QUEUED
            if asked is not None:
                asked.transaction = self._transactions
            if len(multi) < QUEUED:
                multi.append(asked)
            elif asked is not None:
                self._hold(-asked.size)
                self._out.append(Unread(reason="overload"))
            self._frame(place, None, None)
            return
        if asked is None:
            self._frame(place, None, None)
        elif asked.is_wanted:
            self._hold(-asked.size)
            operation = self._operation(asked, value, at, "answered", is_cut)
            if self.frames:
                self._frame(place, operation, None)
            else:
                self._out.append(operation)
        else:
            self._became(asked, value, is_cut, at)
            self._frame(place, None, None)

    def _frame(self, place: int, operation: Operation | None, text: bytes | None) -> None:
        if self.frames:
            self.answered.append((place, operation, text))
        elif operation is not None:
            self._out.append(operation)

    def _operation(
        self, asked: _Asked, value: Any, at: float, outcome: Ended, is_cut: bool, transaction: int | None = None
    ) -> Operation:
        return Operation(
            id=self._id(asked),
            at=asked.at,
            ended=at,
            args=asked.args,
            reply=value,
            outcome=outcome,
            database=self._database,
            connection=self.connection,
            transaction=transaction,
            is_blocking=asked.kind == _BLOCKING or asked.kind == _MAY_BLOCK,
            cut="too_large" if is_cut else _cut_in(asked.args),
        )

    def _id(self, asked: _Asked) -> str:
        return f"{self.connection.id}-{asked.number}"

    def _became(self, asked: _Asked, value: Any, is_cut: bool, at: float) -> None:
        """What a particular command changed, now that the server has agreed or not."""
        kind = asked.kind
        is_error = type(value) is ErrorReply
        connection = self.connection
        if kind == _EXEC:
            self._executed(value, is_cut, at)
        elif kind == _DISCARD:
            if not is_error:
                self._ran_not(value, at)
        elif kind == _TAKEOVER:
            self._over = True
            self._drop(at)
        elif kind in (_SUBSCRIBE, _UNSUBSCRIBE) or is_error:
            return  # refused; a confirmation comes as a push
        elif kind == _AUTH:
            connection.user = _text(asked.args[0])
        elif kind == _HELLO:
            if asked.args and asked.args[0]:
                connection.user = _text(asked.args[0])
            if len(asked.args) > 1 and asked.args[1]:
                connection.name = _text(asked.args[1])
        elif kind == _CLIENT:
            if asked.args:
                connection.name = _text(asked.args[0]) or None
        elif kind == _SELECT:
            self._database = _database(asked.args, self._database)
        elif kind == _MULTI:
            self._transactions += 1
            self._multi = []
        elif kind == _RESET:
            self._ran_not(None, at)
            self._database = 0
            self._subscribed = [0, 0, 0]
            connection.user = connection.name = None

    def _executed(self, value: Any, is_cut: bool, at: float) -> None:
        """EXEC: each command that was queued gets its part."""
        queued, self._multi = self._multi or [], None
        if type(value) is not list:
            self._end_all(queued, value, at)
            return
        for place, asked in enumerate(queued):
            if asked is None:
                continue
            has_part = place < len(value)
            part = value[place] if has_part else None
            if asked.is_wanted:
                self._hold(-asked.size)
                gone = is_cut and not has_part
                self._out.append(
                    self._operation(
                        asked,
                        Cut(0) if gone else part,
                        at,
                        "answered",
                        gone or (is_cut and _has_cut(part)),
                        asked.transaction,
                    )
                )
            else:
                self._became(asked, part, is_cut, at)

    def _ran_not(self, value: Any, at: float) -> None:
        queued, self._multi = self._multi, None
        if queued:
            self._end_all(queued, value, at)

    def _end_all(self, queued: list[_Asked | None], value: Any, at: float, outcome: Ended = "discarded") -> None:
        reply = value if type(value) is ErrorReply else None
        for asked in queued:
            if asked is not None and asked.is_wanted:
                self._hold(-asked.size)
                self._out.append(self._operation(asked, reply, at, outcome, False, asked.transaction or None))

    # Pushes.

    def _is_message(self, value: Any) -> bool:
        """Whether an array is out of band in RESP2: a message, or the confirmation of a subscription."""
        if type(value) is not list or not value or type(value[0]) is not bytes:
            return False
        word = value[0]
        if word in _CONFIRMED and len(value) == 3:
            waiting = self._waiting
            head = waiting[0] if waiting else None
            if head is not None and (head.kind == _SUBSCRIBE or head.kind == _UNSUBSCRIBE):
                return True
            return word == b"sunsubscribe" and self._subscribed[2] > 0
        return word in _MESSAGES and self._subscribed != _NO_SUBSCRIPTIONS

    def _pushed(self, value: Any, is_cut: bool, at: float, place: int) -> None:
        self._frame(place, None, None)
        if type(value) is not list or not value or type(value[0]) is not bytes:
            if is_cut:
                self._out.append(Unread(reason="too_large"))
            return
        word = value[0]
        which = _CONFIRMED.get(word, -1)
        if which >= 0:
            if len(value) == 3:
                self._confirmed(word, which, value[2])
            return
        pattern: bytes | None = None
        payload: Any = None
        channel = b""
        if word == b"pmessage" and len(value) >= 3:
            pattern = value[1] if type(value[1]) is bytes else None
            channel = value[2]
            payload = value[3] if len(value) > 3 else None
        elif len(value) >= 2:
            channel = value[1] if word in _MESSAGES else b""
            payload = value[2] if len(value) > 2 else (value[1] if word not in _MESSAGES else None)
        if type(channel) is not bytes or not self._wants_channel(channel):
            return
        self._number += 1
        self._out.append(
            Message(
                id=f"{self.connection.id}-{self._number}",
                at=at,
                kind=word,
                channel=channel,
                pattern=pattern,
                payload=payload,
                connection=self.connection,
                cut="too_large" if is_cut else None,
            )
        )

    def _confirmed(self, word: bytes, which: int, count: Any) -> None:
        """The server confirms one channel, and says how many there are of its sort."""
        counts = self._subscribed
        if type(count) is int:
            if which == 2:
                counts[2] = count
            else:
                counts[which] = max(0, count - counts[1 - which])
        waiting = self._waiting
        head = waiting[0] if waiting else None
        if head is None or (head.kind != _SUBSCRIBE and head.kind != _UNSUBSCRIBE):
            return
        if _lower(head.args[0]) != word:
            return
        named = head.args[1]
        left = int(named) if type(named) is bytes else 0
        if left > 1:
            head.args = (head.args[0], b"%d" % (left - 1))
        elif left == 1 or counts[which] == 0:  # without names: all of this sort, one confirmation each
            waiting.popleft()

    # The end, and refusals.

    def refuse(self, pending: Pending, text: bytes) -> None:
        """The edge sends another command in place of this one; its reply becomes `text`."""
        for asked in reversed(self._waiting):
            if asked is not None and self._id(asked) == pending.id:
                asked.is_refused = True
                self._refused[pending.id] = text
                return

    def passes(self) -> bool:
        """Whether nobody can want the reply that is coming."""
        asked = self._waiting[0] if self._waiting else None
        return asked is None or not (asked.is_wanted or asked.is_refused)

    def close(self, at: float) -> list[Seen]:
        """The connection ended: what was asked and not answered is lost."""
        out = self._out = []
        if not self.is_over():
            self._over = True
            self._drop(at)
        return out

    def _drop(self, at: float) -> None:
        queued, self._multi = self._multi or [], None
        is_asked = any(asked is not None and asked.kind == _EXEC for asked in self._waiting)
        self._end_all(queued, None, at, "lost" if is_asked else "discarded")
        self._end_all(list(self._waiting), None, at, "lost")
        self._waiting.clear()
        self._refused.clear()
        self._hold(-self._held)
        self._client_values.drop()
        self._server_values.drop()
        self._bare = b""


_NO_SUBSCRIPTIONS: Final = [0, 0, 0]
_ENDS_MULTI: Final = frozenset((_EXEC, _DISCARD, _RESET))


def _counted(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """The decimal number at `pos` and the place behind its CR LF; that place is -1 where it is not whole or not right.

    Byte by byte: compiled, that is a tenth of what finding, cutting and converting a text cost.
    """
    count = 0
    first = pos
    while pos < end:
        byte = data[pos]
        if byte == 13:
            if pos == first or pos - first > 10 or pos + 1 >= end or data[pos + 1] != 10:
                return 0, -1
            return count, pos + 2
        if byte < 48 or byte > 57:
            return 0, -1
        count = count * 10 + byte - 48
        pos += 1
        if pos - first > 10:
            return 0, -1
    return 0, -1


def _whole_command(data: bytes, pos: int, args: list[Any], limit: int) -> int:
    """Reads the command that begins at `pos` into `args`: the place behind it.

    -1 where it is not whole, not right, or too long to be built; then `Values` reads it, which tells what it is.
    """
    end = len(data)
    count, pos = _counted(data, pos + 1, end)
    if pos < 0 or count > 999_999:
        return _MORE
    room = limit - ITEM_BYTES
    while count:
        if pos >= end or data[pos] != 36:
            return _MORE
        size, start = _counted(data, pos + 1, end)
        if start < 0:
            return _MORE
        stop = start + size
        pos = stop + 2
        room -= size + ITEM_BYTES
        if pos > end or room <= 0 or data[stop] != 13 or data[stop + 1] != 10:
            return _MORE
        room -= ITEM_BYTES >> 1
        args.append(data[start:stop])
        count -= 1
    return pos


def _past(data: bytes, pos: int, end: int) -> int:
    """The place behind a simple reply that is whole; -1 where it is not simple, not whole, or not right."""
    first = data[pos]
    if first == 36:
        if data.startswith(b"$-1\r\n", pos):
            return pos + 5
        size, start = _counted(data, pos + 1, end)
        pos = start + size + 2
        if start < 0 or pos > end or data[pos - 2] != 13 or data[pos - 1] != 10:
            return _MORE
        return pos
    if first == 43 or first == 45:
        eol = data.find(_CRLF, pos)
        return _MORE if eol < 0 or eol - pos > LINE_BYTES else eol + 2
    if first == 58:
        return _counted(data, pos + 1, end)[1]
    return _MORE


def _upper(word: bytes | Cut) -> bytes:
    return word.upper() if type(word) is bytes and len(word) < 64 else b""


def _lower(word: bytes | Cut) -> bytes:
    return word.lower() if type(word) is bytes else b""


def _text(word: bytes | Cut) -> str:
    return word.decode("utf-8", "replace") if type(word) is bytes else ""


def _database(args: tuple[bytes | Cut, ...], known: int) -> int:
    word = args[0] if args else b""
    return int(word) if type(word) is bytes and word.isdigit() and len(word) < 9 else known


def _hello(args: tuple[bytes | Cut, ...]) -> tuple[bytes | Cut, ...]:
    """User and name of a HELLO, each empty where it is not said."""
    user: bytes | Cut = b""
    name: bytes | Cut = b""
    at = 2
    while at < len(args):
        word = _upper(args[at])
        if word == b"AUTH" and at + 2 < len(args):
            user = args[at + 1]
            at += 3
        elif word == b"SETNAME" and at + 1 < len(args):
            name = args[at + 1]
            at += 2
        else:
            break
    return (user, name)


def _cut_in(args: tuple[bytes | Cut, ...]) -> str | None:
    for each in args:
        if type(each) is Cut:
            return "too_large"
    return None


def _has_cut(value: Any) -> bool:
    """Whether a part of a reply is a Cut, at any depth that a reply may have."""
    if type(value) is list:
        return any(_has_cut(each) for each in value)
    return type(value) is Cut
