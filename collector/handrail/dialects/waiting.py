"""What a store's clients wait for becomes events: blocking reads, who writes to the queues they read, and locks.

Beside what `dialects.redis` says about state. A blocking read is a `wait` that is seen open and when it is over. A push
to a list or stream is a `publish`, told the first time that an agent writes there and while that agent itself reads:
that is what tells who can end a wait, and who is not blocked by its own. SET NX and SETNX are `write`s with the
operation `SET NX`, `completed` for who got the lock and `rejected` for who did not; DEL, UNLINK, GETDEL and scripts on
the key of a known lock are its release.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeVar

from handrail.dialects import NAME_LENGTH, text
from handrail.event import Event, Kind, Outcome
from handrail.wire.operation import Connection, Cut, ErrorReply, Operation, Pending

Args = tuple[bytes | Cut, ...]

_ONE_KEY = frozenset({b"BLMOVE", b"BRPOPLPUSH"})
_MANY_KEYS = frozenset({b"BLPOP", b"BRPOP", b"BZPOPMIN", b"BZPOPMAX"})
_STREAMS = frozenset({b"XREAD", b"XREADGROUP"})
_PUSHES = frozenset({b"LPUSH", b"RPUSH", b"LPUSHX", b"RPUSHX", b"ZADD", b"XADD"})
_MOVES = frozenset({b"LMOVE", b"RPOPLPUSH", b"BLMOVE", b"BRPOPLPUSH"})
_RELEASES = frozenset({b"DEL", b"UNLINK", b"GETDEL", b"EVAL", b"EVALSHA"})
_REMEMBERED = 10_000
_T = TypeVar("_T")


class Waiting:
    """Reads what the connections of one store wait for."""

    def __init__(self, store: str, agents: Sequence[str | None] = ()) -> None:
        """`agents` says who connects to each listener, where the configuration does."""
        self._store, self._agents = store, tuple(agents)
        self._pushed: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._locks: OrderedDict[bytes, None] = OrderedDict()
        self._reading: dict[str, int] = {}
        """Agents with blocking reads that are open."""

    def wants(self, args: Args) -> bool:
        """Whether a command says something about waiting."""
        name = args[0]
        if name in _PUSHES or name in _MANY_KEYS or name in _MOVES or name in _STREAMS or name == b"SETNX":
            return True
        if name == b"SET":
            return _is_lock(args)
        if name in _RELEASES and self._locks:
            for at in range(1, len(args)):
                if args[at] in self._locks:
                    return True
        return False

    def asked(self, pending: Pending) -> Iterator[Event]:
        """A blocking read that is open now."""
        if pending.is_blocking:
            agent = self._agent(pending.connection)
            if agent is not None:
                self._reading[agent] = self._reading.get(agent, 0) + 1
            for number, key in enumerate(_read_keys(pending.args)):
                yield self._event(pending, number, "wait", _operation(pending.args), key, "asked")

    def read(self, operation: Operation) -> Iterator[Event]:
        """What a command that is over says."""
        args, name = operation.args, operation.args[0]
        if operation.is_blocking:
            agent = self._agent(operation.connection)
            if agent is not None and agent in self._reading:
                self._reading[agent] -= 1
                if not self._reading[agent]:
                    del self._reading[agent]
            outcome: Outcome = "completed" if operation.reply is not None else "timeout"
            if operation.outcome != "answered" or isinstance(operation.reply, ErrorReply):
                outcome = "interrupted"
            for number, key in enumerate(_read_keys(args)):
                yield self._event(operation, number, "wait", _operation(args), key, outcome, operation.ended)
        if operation.outcome != "answered" or isinstance(operation.reply, ErrorReply):
            return
        if name in _PUSHES and len(args) > 2 and isinstance(args[1], bytes):
            yield from self._push(operation, args[1])
        elif name in _MOVES and len(args) > 2 and isinstance(args[2], bytes) and operation.reply is not None:
            yield from self._push(operation, args[2])
        elif name in (b"SET", b"SETNX") and len(args) > 2 and isinstance(args[1], bytes):
            if name == b"SETNX" or _is_lock(args):
                got = operation.reply not in (None, 0)
                _keep(self._locks, args[1])
                yield self._event(
                    operation, 90, "write", "SET NX", args[1], "completed" if got else "rejected", operation.ended
                )
        elif name in _RELEASES and operation.reply not in (0, None):
            for number, arg in enumerate(args[1:]):
                if isinstance(arg, bytes) and arg in self._locks:
                    yield self._event(operation, 91 + number, "write", "RELEASE", arg, "completed", operation.ended)

    def _push(self, operation: Operation, key: bytes) -> Iterator[Event]:
        agent = self._agent(operation.connection)
        if agent is None or ((agent, key) in self._pushed and agent not in self._reading):
            return
        _keep(self._pushed, (agent, key))
        yield self._event(operation, 90, "publish", _operation(operation.args), key, "completed", operation.ended)

    def _event(
        self,
        seen: Pending | Operation,
        number: int,
        kind: Kind,
        operation: str,
        key: bytes,
        outcome: Outcome,
        ended: float | None = None,
    ) -> Event:
        return Event(
            kind=kind,
            id=f"{seen.id}/wait.{number}",
            at=seen.at,
            source=self._agent(seen.connection),
            channel="store",
            protocol="redis",
            operation=operation,
            outcome=outcome,
            store=self._store,
            key=key.decode("utf-8", "replace")[:NAME_LENGTH],
            duration_ms=None if ended is None else max(0.0, ended - seen.at) * 1000,
        )

    def _agent(self, connection: Connection) -> str | None:
        at = connection.listener
        configured = self._agents[at] if at < len(self._agents) else None
        return configured or text(connection.name)


def _is_lock(args: Args) -> bool:
    """Whether a SET sets only where nothing is."""
    for at in range(3, len(args)):
        word = args[at]
        if isinstance(word, bytes) and len(word) == 2 and word.upper() == b"NX":
            return True
    return False


def _operation(args: Args) -> str:
    return args[0].decode("ascii", "replace") if isinstance(args[0], bytes) else ""


def _read_keys(args: Args) -> list[bytes]:
    """The key that a blocking command waits for. A read of several is left out: it waits for any of them, and what is
    not known to be a deadlock is none."""
    name = args[0]
    keys: Sequence[bytes | Cut] = ()
    if name in _STREAMS:
        words = [arg.upper() if isinstance(arg, bytes) else arg for arg in args]
        if b"STREAMS" in words:
            keys = args[words.index(b"STREAMS") + 1 :]
            keys = keys[: len(keys) // 2]
    elif name in _MANY_KEYS:
        keys = args[1:-1]
    elif name in _ONE_KEY:
        keys = args[1:2]
    elif name in (b"BLMPOP", b"BZMPOP"):
        keys = args[3:4]
    return [key for key in keys[:1] if isinstance(key, bytes)] if len(keys) == 1 else []


def _keep(known: OrderedDict[_T, None], key: _T) -> None:
    known[key] = None
    known.move_to_end(key)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
