"""What a store's clients wait for: blocking reads, writers of queues, locks."""

from typing import Any

import pytest

from handrail.dialects.waiting import Waiting
from handrail.wire.operation import Connection, ErrorReply, Operation, Pending

A, B = Connection(id="1", listener=0), Connection(id="2", listener=1)


def did(who: Connection, *args: str, reply: Any = 1, lasts: float = 0.0, **more: Any) -> Operation:
    words = tuple(arg.encode() for arg in args)
    return Operation(
        id=f"{who.id}.{args[0]}", at=1.0, ended=1.0 + lasts, args=words, reply=reply, connection=who, **more
    )


def said(waiting: Waiting, *seen: Pending | Operation) -> list[tuple[Any, ...]]:
    return [
        (event.kind, event.source, event.operation, event.key, event.outcome)
        for each in seen
        for event in (waiting.asked(each) if isinstance(each, Pending) else waiting.read(each))
    ]


def blocked(who: Connection, *args: str) -> Pending:
    words = tuple(arg.encode() for arg in args)
    return Pending(id=f"{who.id}.{args[0]}", at=1.0, args=words, connection=who, is_blocking=True)


def test_a_blocking_read_is_seen_open_and_over() -> None:
    """Under one id, with how it ended."""
    waiting = Waiting("s", ("a", "b"))
    (opened,) = waiting.asked(blocked(A, "BLPOP", "q", "5"))
    (closed,) = waiting.read(did(A, "BLPOP", "q", "5", reply=None, lasts=5.0, is_blocking=True))
    assert (opened.id, opened.outcome, opened.store, opened.key) == (closed.id, "asked", "s", "q")
    assert (closed.kind, closed.outcome, closed.duration_ms) == ("wait", "timeout", 5000.0)
    lost = did(A, "BLPOP", "q", "0", reply=None, is_blocking=True, outcome="lost")
    assert said(waiting, lost) == [("wait", "a", "BLPOP", "q", "interrupted")]


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (("XREAD", "BLOCK", "0", "STREAMS", "s1", "$"), "s1"),
        (("XREADGROUP", "GROUP", "g", "c", "BLOCK", "0", "STREAMS", "s1", ">"), "s1"),
        (("BLMOVE", "q", "other", "LEFT", "LEFT", "0"), "q"),
        (("BLMPOP", "0", "1", "q", "LEFT"), "q"),
        (("BLPOP", "q", "r", "0"), None),
        (("XREAD", "BLOCK", "0", "STREAMS", "s1", "s2", "$", "$"), None),
    ],
)
def test_which_queue_is_waited_for(args: tuple[str, ...], key: str | None) -> None:
    """A read of several is left out."""
    assert [event.key for event in Waiting("s", ("a",)).asked(blocked(A, *args))] == ([] if key is None else [key])


def test_writers_are_told_the_first_time_and_while_they_read() -> None:
    """That is all that a deadlock needs to know of them."""
    waiting, push = Waiting("s", ("a", "b")), did(A, "RPUSH", "q", "x")
    assert said(waiting, push, push) == [("publish", "a", "RPUSH", "q", "completed")]
    assert len(said(waiting, blocked(A, "BLPOP", "r", "0"), push, push)) == 3
    assert said(waiting, did(A, "BLPOP", "r", "0", reply=[b"r", b"x"], is_blocking=True), push)[1:] == []
    assert said(waiting, did(A, "RPUSH", "q2", "x", reply=ErrorReply(message=b"WRONGTYPE no"))) == []


def test_locks_are_held_refused_and_released() -> None:
    """SET NX, SETNX; DEL of a lock, also by a script; DEL of anything else says nothing."""
    waiting = Waiting("s", ("a", "b"))
    assert said(waiting, did(A, "SET", "l", "t", "NX", "PX", "1000", reply=b"OK")) == [
        ("write", "a", "SET NX", "l", "completed")
    ]
    assert said(waiting, did(B, "SETNX", "l", "t", reply=0)) == [("write", "b", "SET NX", "l", "rejected")]
    for release in (("DEL", "l"), ("EVALSHA", "abc", "1", "l", "t")):
        assert said(waiting, did(A, *release)) == [("write", "a", "RELEASE", "l", "completed")]
    assert said(waiting, did(A, "DEL", "l", reply=0), did(A, "DEL", "k")) == []


def test_only_what_says_something_is_wanted() -> None:
    """Most commands are not built at all."""
    waiting = Waiting("s", ())
    words = ["RPUSH q x", "BLPOP q 0", "SET l t NX", "SETNX l t", "SET k v", "GET k", "DEL l", "EVAL x 0"]
    wanted = [text for text in words if waiting.wants(tuple(word.encode() for word in text.split()))]
    assert wanted == words[:4]
    list(waiting.read(did(A, "SETNX", "l", "t")))
    assert waiting.wants((b"DEL", b"l"))
