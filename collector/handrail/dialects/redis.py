"""Operations of a Redis or Valkey store become writes, reads, publishes and deliveries of agents.

Each command of `READERS` says which keys it touches and with which values. A command of several keys gives an event for
each. `at` is when it was asked for, `at + duration_ms` when it was answered: acknowledged, where it wrote.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from handrail.dialects import state, text
from handrail.dialects.patterns import Named, Patterns, Value, read_value
from handrail.event import Event, Kind, Outcome
from handrail.wire.operation import Cut, Ended, ErrorReply, Message, Operation, Pending

_OUTCOMES: Mapping[Ended, Outcome] = {
    "answered": "completed",
    "silent": "interrupted",
    "lost": "interrupted",
    "discarded": "rejected",
    "refused": "rejected",
}
"""What became of a command. One that asked for no reply, or whose connection ended, may have landed."""

Raw = bytes | Mapping[str, Any] | None


class Touched(NamedTuple):
    """What one command does with one key."""

    kind: Kind
    key: bytes
    value: Raw = None
    is_known: bool = True
    """Whether `value` is all there is under the key; None then means that nothing is."""
    cut: int | None = None
    """Size of a value that was not kept."""
    version: int | str | None = None
    outcome: Outcome | None = None
    attempt: int | None = None
    operation: str | None = None


Args = tuple[bytes | Cut, ...]


def _one(value: Any) -> tuple[Raw, bool, int | None]:
    """An argument or a reply to value, whether it is known, and its size where it was cut."""
    if isinstance(value, Cut):
        return None, False, value.size
    if isinstance(value, bytes):
        return value, True, None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value).encode(), True, None
    return None, value is None, None


def _touch(kind: Kind, key: bytes | Cut, value: Any = None, **also: Any) -> Iterator[Touched]:
    if isinstance(key, bytes):
        raw, known, cut = _one(value)
        yield Touched(kind, key, raw, known, cut, **also)


def _set(args: Args, reply: Any) -> Iterator[Touched]:
    words = [arg.upper() for arg in args[3:] if isinstance(arg, bytes)]
    expires = next((word.decode() for word in words if word in (b"EX", b"PX", b"EXAT", b"PXAT")), None)
    refused = reply is None and b"GET" not in words and (b"NX" in words or b"XX" in words)
    operation = f"SET {expires}" if expires else None
    yield from _touch("write", args[1], args[2], outcome="rejected" if refused else None, operation=operation)


def _third(args: Args, reply: Any) -> Iterator[Touched]:
    yield from _touch("write", args[1], args[3])


def _second(args: Args, reply: Any) -> Iterator[Touched]:
    yield from _touch("write", args[1], args[2], outcome="rejected" if args[0] == b"SETNX" and reply == 0 else None)


def _mset(args: Args, reply: Any) -> Iterator[Touched]:
    outcome = "rejected" if args[0] == b"MSETNX" and reply == 0 else None
    for at in range(1, len(args) - 1, 2):
        yield from _touch("write", args[at], args[at + 1], outcome=outcome)


def _changed(args: Args, reply: Any) -> Iterator[Touched]:
    if isinstance(args[1], bytes):
        yield Touched("write", args[1], None, False)


def _removed(args: Args, reply: Any) -> Iterator[Touched]:
    for key in args[1:]:
        if isinstance(key, bytes):
            yield Touched("write", key, None, False)


def _moved(args: Args, reply: Any) -> Iterator[Touched]:
    """RENAME, RENAMENX and COPY: what lies under the second key now is not in the bytes."""
    outcome: Outcome | None = "rejected" if reply == 0 else None
    if isinstance(args[2], bytes):
        yield Touched("write", args[2], None, False, outcome=outcome)
    if isinstance(args[1], bytes) and args[0] != b"COPY":
        yield Touched("write", args[1], None, False, outcome=outcome, operation="DEL")


def _get(args: Args, reply: Any) -> Iterator[Touched]:
    yield from _touch("read", args[1], reply)
    if args[0] == b"GETDEL" and isinstance(args[1], bytes):
        yield Touched("write", args[1], None, False)


def _mget(args: Args, reply: Any) -> Iterator[Touched]:
    keys = args[1:-1] if args[0] == b"JSON.MGET" else args[1:]
    values: Sequence[Any] = reply if isinstance(reply, list) else [Cut(0)] * len(keys)
    for key, value in zip(keys, values, strict=False):
        yield from _touch("read", key, value)


def _json_set(args: Args, reply: Any) -> Iterator[Touched]:
    whole = args[2] in (b"$", b".")
    if isinstance(args[1], bytes):
        raw, known, cut = _one(args[3])
        yield Touched("write", args[1], raw if whole else None, known and whole, cut)


def _json_get(args: Args, reply: Any) -> Iterator[Touched]:
    if isinstance(reply, bytes) and args[2:] == (b"$",) and reply[:1] == b"[" and reply[-1:] == b"]":
        reply = reply[1:-1]
    elif len(args) > 3 or (len(args) == 3 and args[2] not in (b"$", b".")):
        reply = Cut(0)
    yield from _touch("read", args[1], reply)


def _fields(pairs: Sequence[Any]) -> dict[str, Any] | None:
    """`field, value, …` to a mapping; None where a part was cut."""
    found: dict[str, Any] = {}
    for at in range(0, len(pairs) - 1, 2):
        field, value = pairs[at], pairs[at + 1]
        if not isinstance(field, bytes) or isinstance(value, Cut):
            return None
        found[field.decode("utf-8", "replace")] = (
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        )
    return found


def _hset(args: Args, reply: Any) -> Iterator[Touched]:
    if isinstance(args[1], bytes):
        fields = _fields(args[2:])
        yield Touched("write", args[1], fields, fields is not None)


def _hgetall(args: Args, reply: Any) -> Iterator[Touched]:
    if isinstance(args[1], bytes):
        fields = _fields(reply) if isinstance(reply, list) else None
        yield Touched("read", args[1], fields or None, fields is not None)


def _hget(args: Args, reply: Any) -> Iterator[Touched]:
    names = args[2:]
    values = reply if isinstance(reply, list) else [reply]
    if isinstance(args[1], bytes):
        fields = _fields([part for pair in zip(names, values, strict=False) for part in pair if pair[1] is not None])
        yield Touched("read", args[1], fields or None, False)


def _zadd(args: Args, reply: Any) -> Iterator[Touched]:
    rest = [arg for arg in args[2:] if not (isinstance(arg, bytes) and arg.upper() in _ZADD_WORDS)]
    scores = [(_score(score), member) for score, member in zip(rest[::2], rest[1::2], strict=False)]
    yield from _best("write", args[1], scores)


def _zrange(args: Args, reply: Any) -> Iterator[Touched]:
    scores: list[tuple[float | None, Any]] = []
    if isinstance(reply, list) and any(isinstance(arg, bytes) and arg.upper() == b"WITHSCORES" for arg in args):
        pairs = reply if reply and isinstance(reply[0], list) else zip(reply[::2], reply[1::2], strict=False)
        scores = [(_score(pair[1]), pair[0]) for pair in map(tuple, pairs) if len(pair) == 2]
    yield from _best("read", args[1], scores, is_empty=reply == [])


def _best(
    kind: Kind, key: bytes | Cut, scores: Sequence[tuple[float | None, Any]], *, is_empty: bool = False
) -> Iterator[Touched]:
    if not isinstance(key, bytes):
        return
    known = [(score, member) for score, member in scores if score is not None]
    if not known:
        yield Touched(kind, key, None, is_empty)
        return
    score, member = max(known, key=lambda pair: pair[0])
    raw, is_known, cut = _one(member)
    yield Touched(kind, key, raw, is_known, cut, version=state(score))


def _score(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


_ZADD_WORDS = frozenset({b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"})


def _publish(args: Args, reply: Any) -> Iterator[Touched]:
    yield from _touch("publish", args[1], args[2])


def _xadd(args: Args, reply: Any) -> Iterator[Touched]:
    if not isinstance(args[1], bytes):
        return
    for at in range(2, len(args)):
        arg = args[at]
        if arg == b"*" or (isinstance(arg, bytes) and _is_stream_id(arg) and (len(args) - at - 1) % 2 == 0):
            before = args[at - 1]
            if isinstance(before, bytes) and before.upper() in _XADD_WORDS:
                continue
            fields = _fields(args[at + 1 :])
            version = reply.decode("ascii", "replace") if isinstance(reply, bytes) else None
            yield Touched("publish", args[1], _unwrapped(fields), fields is not None, version=version)
            return


_XADD_WORDS = frozenset({b"MAXLEN", b"MINID", b"LIMIT", b"=", b"~"})


def _is_stream_id(value: bytes) -> bool:
    return value.replace(b"-", b"", 1).replace(b"*", b"", 1).isdigit()


def _unwrapped(fields: dict[str, Any] | None) -> Raw:
    """A stream entry that holds one JSON document in one field is that document."""
    if fields is not None and len(fields) == 1:
        (only,) = fields.values()
        if isinstance(only, str) and only[:1] == "{":
            return only.encode()
    return fields


def _xread(args: Args, reply: Any) -> Iterator[Touched]:
    if not isinstance(reply, list) or not reply:
        return
    pairs = reply if isinstance(reply[0], list) else zip(reply[::2], reply[1::2], strict=False)
    # With an id in place of `>` a group's consumer reads again what it was given and did not acknowledge.
    again = 2 if args[0] == b"XREADGROUP" and b">" not in args else None
    for stream, entries in map(tuple, pairs):
        yield from _entries(stream, entries, again)


def _xclaim(args: Args, reply: Any) -> Iterator[Touched]:
    entries = reply[1] if args[0] == b"XAUTOCLAIM" and isinstance(reply, list) and len(reply) > 1 else reply
    if isinstance(args[1], bytes):
        yield from _entries(args[1], entries, 2)


def _entries(stream: Any, entries: Any, attempt: int | None) -> Iterator[Touched]:
    if not isinstance(stream, bytes) or not isinstance(entries, list):
        return
    for entry in entries:
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], bytes) and isinstance(entry[1], list):
            fields = _fields(entry[1])
            version = entry[0].decode("ascii", "replace")
            yield Touched("deliver", stream, _unwrapped(fields), fields is not None, version=version, attempt=attempt)


READERS: Mapping[bytes, tuple[Callable[[Args, Any], Iterator[Touched]], int]] = {
    **dict.fromkeys((b"SETEX", b"PSETEX"), (_third, 4)),
    **dict.fromkeys((b"SETNX", b"GETSET"), (_second, 3)),
    **dict.fromkeys((b"MSET", b"MSETNX"), (_mset, 3)),
    **dict.fromkeys(
        (
            *(b"APPEND", b"INCR", b"INCRBY", b"INCRBYFLOAT", b"DECR", b"DECRBY", b"SETRANGE", b"HINCRBY", b"HDEL"),
            *(b"HINCRBYFLOAT", b"JSON.MERGE", b"JSON.NUMINCRBY", b"JSON.ARRAPPEND", b"ZINCRBY", b"EXPIRE", b"PEXPIRE"),
            *(b"EXPIREAT", b"PEXPIREAT"),
        ),
        (_changed, 2),
    ),
    **dict.fromkeys((b"DEL", b"UNLINK"), (_removed, 2)),
    **dict.fromkeys((b"RENAME", b"RENAMENX", b"COPY"), (_moved, 3)),
    **dict.fromkeys((b"GET", b"GETEX", b"GETDEL"), (_get, 2)),
    **dict.fromkeys((b"HSET", b"HMSET", b"HSETNX"), (_hset, 4)),
    **dict.fromkeys((b"HGET", b"HMGET"), (_hget, 3)),
    **dict.fromkeys((b"ZRANGE", b"ZREVRANGE", b"ZRANGEBYSCORE", b"ZREVRANGEBYSCORE"), (_zrange, 4)),
    **dict.fromkeys((b"PUBLISH", b"SPUBLISH"), (_publish, 3)),
    **dict.fromkeys((b"XREAD", b"XREADGROUP"), (_xread, 4)),
    **dict.fromkeys((b"XCLAIM", b"XAUTOCLAIM"), (_xclaim, 5)),
    b"SET": (_set, 3),
    b"MGET": (_mget, 2),
    b"JSON.SET": (_json_set, 4),
    b"JSON.GET": (_json_get, 2),
    b"JSON.DEL": (_removed, 2),
    b"HGETALL": (_hgetall, 2),
    b"ZADD": (_zadd, 4),
    b"XADD": (_xadd, 5),
}
"""Command → what it touches, and how many words it has at least."""

_LEAST: Mapping[bytes, int] = {name: least for name, (_, least) in READERS.items()}
_BUS = frozenset({b"PUBLISH", b"SPUBLISH", b"XADD", b"XREAD", b"XREADGROUP", b"XCLAIM", b"XAUTOCLAIM"})
_MANY = frozenset({b"XREAD", b"XREADGROUP"})
_SEEN = 10_000


class _Written:
    """Who wrote a key last, and who has read that since."""

    __slots__ = ("acked", "digest", "readers", "writer")

    def __init__(self, acked: float, writer: str | None, digest: str | None) -> None:
        self.acked = acked
        self.writer = writer
        self.digest = digest
        self.readers: tuple[str | None, ...] = ()


class Redis:
    """Reads what the connections of one store do. It remembers who wrote a key last, for the lag of the first reads."""

    protocol = "redis"

    def __init__(self, store: str, keys: Patterns, subjects: Patterns, agents: Sequence[str | None] = ()) -> None:
        """`agents` says who connects to each listener, where the configuration does."""
        self._store, self._keys, self._subjects, self._agents = store, keys, subjects, tuple(agents)
        self._json: OrderedDict[bytes, None] = OrderedDict()
        self._written: OrderedDict[str, _Written] = OrderedDict()
        self._published: OrderedDict[tuple[str, str | None], float] = OrderedDict()

    def wants(self, args: Args) -> bool:
        """Whether a command touches state or an event. Without configured keys, a JSON value is state anywhere."""
        name = args[0]
        if not isinstance(name, bytes):
            return False
        least = _LEAST.get(name)
        if least is None or len(args) < least:
            return False
        if name in _MANY:
            return True
        first = args[1]
        if not isinstance(first, bytes):
            return False
        if name in _BUS:
            return self.wants_channel(first) or _has_json(args)
        if self._is_state(first):
            return True
        if name in _SEVERAL:
            for key in args:
                if isinstance(key, bytes) and self._is_state(key):
                    return True
        if self._keys.is_default and _has_json(args):
            self._json[first] = None
            if len(self._json) > _SEEN:
                self._json.popitem(last=False)
            return True
        return False

    def _is_state(self, key: bytes) -> bool:
        return self._keys.has(key) or key in self._json

    def wants_channel(self, channel: bytes) -> bool:
        return self._subjects.is_default or self._subjects.has(channel)

    def read(self, operation: Operation) -> Iterator[Event]:
        """The events of a command that is over. Nothing for one that found nothing to say."""
        name = operation.args[0]
        known = READERS.get(name) if isinstance(name, bytes) else None
        if known is None or len(operation.args) < known[1]:
            return
        reply = operation.reply
        failed = isinstance(reply, ErrorReply)
        outcome: Outcome = "failed" if failed else _OUTCOMES[operation.outcome]
        if failed or operation.outcome != "answered":
            reply = Cut(0)
        for number, touched in enumerate(known[0](operation.args, reply)):
            event = self._event(operation, touched, number, outcome)
            if event is not None:
                if isinstance(operation.reply, ErrorReply):
                    code = operation.reply.code.decode("ascii", "replace")
                    event = event.but(status=code)
                yield event

    def asked(self, pending: Pending) -> Iterator[Event]:
        """What a command that a rule may refuse is about to do; reads say nothing before their reply."""
        name = pending.args[0]
        known = READERS.get(name) if isinstance(name, bytes) else None
        if known is None or len(pending.args) < known[1]:
            return
        operation = Operation(
            id=pending.id,
            at=pending.at,
            ended=pending.at,
            args=pending.args,
            reply=Cut(0),
            database=pending.database,
            connection=pending.connection,
        )
        for number, touched in enumerate(known[0](operation.args, operation.reply)):
            event = self._event(operation, touched, number, "asked") if touched.kind in ("write", "publish") else None
            if event is not None:
                yield event

    def answered(self, operation: Operation) -> Iterator[Event]:
        """What a read is about to return, as events that are still open; a write is over by now."""
        known = READERS.get(operation.args[0]) if isinstance(operation.args[0], bytes) else None
        if known is None or isinstance(operation.reply, ErrorReply) or len(operation.args) < known[1]:
            return
        for number, touched in enumerate(known[0](operation.args, operation.reply)):
            event = self._event(operation, touched, number, "asked") if touched.kind == "read" else None
            if event is not None:
                yield event

    def message(self, message: Message) -> Event | None:
        """A pub/sub message to a delivery; None for one that says nothing of agents."""
        if message.kind not in (b"message", b"pmessage", b"smessage"):
            return None
        raw, known, cut = _one(message.payload)
        operation = Operation(
            id=message.id, at=message.at, ended=message.at, args=(message.kind,), connection=message.connection
        )
        return self._event(operation, Touched("deliver", message.channel, raw, known, cut), 0, "completed")

    def _event(self, operation: Operation, touched: Touched, number: int, outcome: Outcome) -> Event | None:
        key = touched.key.decode("utf-8", "replace")
        kind = touched.kind
        is_state = kind in ("write", "read")
        patterns = self._keys if is_state else self._subjects
        named = patterns.of(key)
        value = read_value(touched.value, named) if touched.value is not None else Value(None, {}, None)
        if named.pattern is None and not (patterns.is_default and (is_state or value.said.get("task") is not None)):
            return None
        said = {**value.said, **{name: item for name, item in named.said.items() if item is not None}}
        if touched.outcome is not None and outcome == "completed":
            outcome = touched.outcome
        elif outcome == "completed" and said.get("outcome") == "accepted":
            outcome = "accepted"
        missing = kind == "read" and touched.is_known and touched.value is None and outcome == "completed"
        version = self._version(touched, named, said)
        listener = operation.connection.listener
        agent = self._agents[listener] if listener < len(self._agents) else None
        agent = agent or text(operation.connection.name) or _user(operation.connection.user)
        owner = named.pattern.owner if named.pattern is not None else None
        if kind in ("write", "publish"):
            source, target = agent or said.get("source"), said.get("target")
        else:
            source, target = owner or said.get("source"), agent or said.get("target")
        is_known = touched.is_known and touched.value is not None
        digest = value.digest if is_known else None
        size = touched.cut if touched.cut is not None else _size(touched.value)
        name = operation.args[0]
        event = Event(
            kind=kind,
            id=f"{operation.id}.{number}" if number else operation.id,
            at=operation.at,
            workflow=said.get("workflow"),
            task=said.get("task"),
            attempt=touched.attempt if kind == "deliver" else said.get("attempt"),
            source=source,
            target=target,
            channel="store" if is_state else "event",
            protocol=self.protocol,
            operation=touched.operation or (name.decode("ascii", "replace") if isinstance(name, bytes) else None),
            outcome=outcome,
            confidence="exact" if named.pattern is not None else "inferred",
            side="egress" if kind in ("write", "publish") else "ingress",
            subject=named.pattern.subject if named.pattern is not None else None,
            version=named.pattern.schema_version if named.pattern is not None else None,
            payload=value.payload if touched.is_known else None,
            payload_bytes=size,
            digest=digest,
            status="missing" if missing else None,
            duration_ms=None if outcome == "asked" else max(0.0, round((operation.ended - operation.at) * 1000, 3)),
            store=self._store,
            key=key,
            state_version=version,
            agent_version=said.get("agent_version"),
            trace_id=said.get("trace_id"),
            uninspected="too_large" if touched.cut is not None and touched.cut > 0 else value.uninspected,
        )
        lag = None if outcome == "asked" else self._lag(event)
        return event if lag is None else event.but(lag_ms=lag)

    def _version(self, touched: Touched, named: Named, said: Mapping[str, Any]) -> int | str | None:
        if touched.version is None:
            return said.get("state_version") or state(said.get("version"))
        if touched.kind in ("publish", "deliver"):
            pattern = named.pattern
            return said.get("state_version", touched.version) if pattern and pattern.version else touched.version
        return touched.version if named.pattern is not None and named.pattern.version_score else None

    def _lag(self, event: Event) -> float | None:
        """Milliseconds from the acknowledgement to an agent's first read of it, from the publish to its delivery."""
        key = event.key or ""
        if event.kind == "write":
            if event.outcome in ("completed", "accepted"):
                acked = event.at + (event.duration_ms or 0.0) / 1000
                self._written[key] = _Written(acked, event.source, event.digest)
                _bound(self._written)
            return None
        if event.kind == "read":
            written = self._written.get(key)
            if written is None or event.target == written.writer or event.target in written.readers:
                return None
            if event.digest is None or event.digest != written.digest:
                return None
            written.readers = (*written.readers[-15:], event.target)
            return max(0.0, round((event.at + (event.duration_ms or 0.0) / 1000 - written.acked) * 1000, 3))
        if event.kind == "publish":
            self._published[key, event.digest] = event.at
            _bound(self._published)
            return None
        published = self._published.get((key, event.digest))
        return None if published is None else max(0.0, round((event.at - published) * 1000, 3))


_SEVERAL = frozenset({b"RENAME", b"RENAMENX", b"COPY", b"MGET", b"JSON.MGET", b"MSET", b"MSETNX", b"DEL", b"UNLINK"})


def _has_json(args: Args) -> bool:
    for at in range(2, len(args)):
        arg = args[at]
        if isinstance(arg, bytes) and arg.startswith(b"{"):
            return True
    return False


def _user(name: str | None) -> str | None:
    return None if name in (None, "default") else text(name)


def _size(value: Raw) -> int | None:
    if isinstance(value, bytes):
        return len(value)
    return None if value is None else sum(len(name) + len(str(item)) for name, item in value.items())


def _bound(known: OrderedDict[Any, Any]) -> None:
    if len(known) > _SEEN:
        known.popitem(last=False)
