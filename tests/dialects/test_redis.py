"""Operations of a store become writes, reads, publishes and deliveries."""

from typing import Any

import orjson
import pytest

from handrail.config import EventsConfig, StateConfig
from handrail.dialects.patterns import default_keys, default_subjects, patterns_of
from handrail.dialects.redis import Redis
from handrail.event import Event
from handrail.wire.operation import Connection, Cut, ErrorReply, Message, Operation

ENVELOPE = {
    "task_id": "t7",
    "source_agent": "writer",
    "target_agent": "reviewer",
    "status": "completed",
    "output": {"summary": "done"},
    "metadata": {"workflow_id": "w7", "attempt": 2},
}


def dialect(*state: StateConfig, events: tuple[EventsConfig, ...] = ()) -> Redis:
    keys = patterns_of(state, "state") if state else default_keys()
    subjects = patterns_of(events, "events") if events else default_subjects()
    return Redis("s", keys, subjects, ("me",))


def did(redis: Redis, *args: bytes | Cut, reply: Any = b"OK", **fields: Any) -> list[Event]:
    known = {"id": "o1", "at": 10.0, "ended": 10.25, "connection": Connection(id="c1")}
    if not redis.wants(args):
        return []
    return list(redis.read(Operation(args=args, reply=reply, **known | fields)))


KEY = b"agents:w1:t1:output"


def test_a_write_and_its_read_say_the_same() -> None:
    """The writer is the source, the reader the target; content, time and place are those of the wire."""
    redis = dialect()
    value = orjson.dumps({"b": 1, "a": "x", "version": 3})
    (write,) = did(redis, b"SET", KEY, value)
    (read,) = did(redis, b"GET", KEY, reply=b' {"a": "x",  "b": 1, "version": 3}'.strip(), id="o2")
    assert (write.kind, write.workflow, write.task, write.source, write.target) == ("write", "w1", "t1", "me", None)
    assert (read.kind, read.workflow, read.task, read.source, read.target) == ("read", "w1", "t1", None, "me")
    assert write.digest == read.digest is not None
    assert write.state_version == read.state_version == 3
    assert (write.at, write.duration_ms, write.outcome) == (10.0, 250.0, "completed")
    assert (write.store, write.key) == ("s", KEY.decode())
    assert (write.channel, write.protocol, write.operation) == ("store", "redis", "SET")


def test_the_envelope_says_what_it_is_under_any_key() -> None:
    """Out of the box: workflow, task, agents and attempt are its own."""
    redis = dialect()
    (write,) = did(redis, b"SET", b"anything", orjson.dumps(ENVELOPE))
    assert (write.workflow, write.task, write.attempt, write.target) == ("w7", "t7", 2, "reviewer")
    (read,) = did(redis, b"GET", b"anything", reply=orjson.dumps(ENVELOPE), id="o2")
    assert (read.source, read.target, read.task) == ("writer", "me", "t7")
    assert not did(redis, b"SET", b"plain", b"text")


VERSIONED = [
    (StateConfig(key="k", version="meta.v"), (b"SET", b"k", b'{"meta": {"v": 4}}'), 4),
    (StateConfig(key="k", version="v", epoch="e"), (b"SET", b"k", b'{"v": 4, "e": 2}'), "2.4"),
    (StateConfig(key="k", version_field="ver"), (b"HSET", b"k", b"ver", b"7", b"x", b"y"), "7"),
    (StateConfig(key="k", version_score=True), (b"ZADD", b"k", b"5", b"old", b"12", b"new"), 12),
    (StateConfig(key="k:{version}"), (b"SET", b"k:9", b"text"), "9"),
    (StateConfig(key="k"), (b"SET", b"k", b"text"), None),
]


@pytest.mark.parametrize(("config", "args", "version"), VERSIONED)
def test_where_the_version_is(config: StateConfig, args: tuple[bytes, ...], version: int | str | None) -> None:
    """A JSON path, a hash's field, a sorted set's score, the key, or none."""
    (write,) = did(dialect(config), *args)
    assert write.state_version == version


@pytest.mark.parametrize(
    ("args", "reply", "kinds"),
    [
        ((b"MSET", KEY, b"{}", b"agents:w1:t2:output", b"{}"), b"OK", ["write", "write"]),
        ((b"MGET", KEY, b"other", b"agents:w1:t2:output"), [b"{}", b"x", None], ["read", "read", "read"]),
        ((b"HGETALL", KEY), [b"a", b"1"], ["read"]),
        ((b"GETDEL", KEY), b"{}", ["read", "write"]),
        ((b"DEL", KEY, b"agents:w1:t2:output"), 2, ["write", "write"]),
        ((b"PUBLISH", b"task:complete", b'{"task_id": "t", "source_agent": "a"}'), 1, ["publish"]),
        ((b"XADD", b"task:complete", b"MAXLEN", b"~", b"10", b"*", b"data", b'{"task_id": "t"}'), b"1-1", ["publish"]),
        (
            (b"XREADGROUP", b"GROUP", b"g", b"c", b"STREAMS", b"tasks:done", b">"),
            [[b"tasks:done", [[b"1-1", [b"f", b"v"]]]]],
            ["deliver"],
        ),
        ((b"XREAD", b"STREAMS", b"tasks:done", b"0"), [b"tasks:done", [[b"1-1", [b"f", b"v"]]]], ["deliver"]),
        ((b"PING", b"x"), b"x", []),
        ((b"SET",), ErrorReply(b"ERR wrong number"), []),
    ],
)
def test_what_commands_do(args: tuple[bytes, ...], reply: Any, kinds: list[str]) -> None:
    """One event for each key; what says nothing of agents gives none. RESP2 and RESP3 shapes alike."""
    events = did(dialect(), *args, reply=reply)
    assert [event.kind for event in events] == kinds
    assert len({event.id for event in events}) == len(events)


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"reply": ErrorReply(b"READONLY You can't write")}, "failed"),
        ({"reply": None, "outcome": "lost"}, "interrupted"),
        ({"reply": None, "outcome": "discarded"}, "rejected"),
        ({"reply": ErrorReply(b"HANDRAIL no"), "outcome": "refused"}, "failed"),
    ],
)
def test_what_became_of_it(fields: dict[str, Any], outcome: str) -> None:
    """Only an answer acknowledges."""
    (write,) = did(dialect(), b"SET", KEY, b"{}", **fields)
    assert write.outcome == outcome


def test_a_write_that_the_store_did_not_make() -> None:
    """SET NX on a key that is there changed nothing."""
    (write,) = did(dialect(), b"SET", KEY, b"{}", b"NX", reply=None)
    assert write.outcome == "rejected"


def test_nothing_there_and_too_much_there() -> None:
    """Nil is a fact; what was too long to keep is not known, and counted."""
    (missing,) = did(dialect(), b"GET", KEY, reply=None)
    assert (missing.status, missing.digest, missing.outcome) == ("missing", None, "completed")
    (cut,) = did(dialect(), b"GET", KEY, reply=Cut(9_000_000))
    assert (cut.status, cut.uninspected, cut.payload_bytes) == (None, "too_large", 9_000_000)


def test_how_long_it_took_to_be_read() -> None:
    """From the acknowledgement to the end of another agent's first read of that content; not of the second."""
    redis = Redis("s", default_keys(), default_subjects(), ("writer", "reader"))
    did(redis, b"SET", KEY, b'{"a": 1}')
    reader = Connection(id="c2", listener=1)
    lags = [
        did(redis, b"GET", KEY, reply=b'{"a": 1}', id=f"r{n}", at=at, ended=at + 0.5, connection=connection)[0].lag_ms
        for n, (at, connection) in enumerate([(11.0, Connection(id="c1")), (12.0, reader), (13.0, reader)])
    ]
    assert lags == [None, 2250.0, None]


def test_a_message_is_delivered() -> None:
    """With the time since its publish."""
    redis = dialect()
    said = b'{"task_id": "t", "source_agent": "a"}'
    did(redis, b"PUBLISH", b"task:complete", said, reply=1)
    event = redis.message(
        Message(
            id="m", at=10.5, kind=b"message", channel=b"task:complete", payload=said, connection=Connection(id="c3")
        )
    )
    assert event is not None
    assert (event.kind, event.task, event.source, event.target, event.lag_ms) == ("deliver", "t", "a", "me", 500.0)
    assert event.channel == "event"


@pytest.mark.parametrize(
    ("command", "reply", "outcome", "keys"),
    [
        (b"RENAME", b"OK", "completed", [(KEY.decode(), "RENAME"), ("tmp", "DEL")]),
        (b"RENAMENX", 0, "rejected", [(KEY.decode(), "RENAMENX"), ("tmp", "DEL")]),
        (b"COPY", 1, "completed", [(KEY.decode(), "COPY")]),
    ],
)
def test_a_value_that_is_put_in_place_whole(command: bytes, reply: Any, outcome: str, keys: list[Any]) -> None:
    """Written beside and then renamed: the key has a new value, which these bytes do not say."""
    got = did(dialect(), command, b"tmp", KEY, reply=reply)
    assert [(each.key, each.operation) for each in got] == keys
    assert {(each.kind, each.outcome, each.digest, each.payload) for each in got} == {("write", outcome, None, None)}


@pytest.mark.parametrize(
    ("fields", "version"),
    [((b"version", b"7"), 7), ((b"epoch", b"2", b"rev", b"5"), "2.5"), ((b"version", b"1.0"), None)],
)
def test_a_hash_says_its_version_in_a_text(fields: tuple[bytes, ...], version: Any) -> None:
    """All that a hash holds is text; a whole number in a field of that name is its version, as it is in JSON."""
    (written,) = did(dialect(), b"HSET", KEY, *fields, reply=1)
    (read,) = did(dialect(), b"HGETALL", KEY, reply=list(fields))
    assert (written.state_version, read.state_version) == (version, version)
    assert written.digest == read.digest
