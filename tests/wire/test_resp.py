"""Transcripts of Redis connections: who said what, and what is made of it."""

import itertools
from collections.abc import Callable
from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.event import Fault
from handrail.wire.http1 import CopyBudget
from handrail.wire.operation import Connection, Cut, ErrorReply, Message, Operation, Pending, Unread
from handrail.wire.resp import REASONS, RespDecoder, Values, split_inline


def packed(*words: bytes | str) -> bytes:
    """A command as clients send it."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class Talk:
    """One connection: `>` what the client sends, `<` what the server sends, each at the next second."""

    def __init__(self, wants: Callable[[Any], bool] = lambda args: True, **settings: Any) -> None:
        self.decoder = RespDecoder(Connection(id="c"), wants, lambda channel: channel != b"dull", **settings)
        self.at = 0.0
        self.seen: list[Any] = []

    def __call__(self, *lines: tuple[str, bytes]) -> list[Any]:
        new: list[Any] = []
        for side, data in lines:
            self.at += 1
            new += self.decoder.commands(data, self.at) if side == ">" else self.decoder.replies(data, self.at)
        self.seen += new
        return new


def say(*words: str) -> tuple[str, bytes]:
    return ">", packed(*words)


def hear(data: bytes) -> tuple[str, bytes]:
    return "<", data


def told(operations: list[Any]) -> list[tuple[Any, ...]]:
    """Operations as (name, reply)."""
    return [(each.args[0], each.reply) for each in operations if isinstance(each, Operation)]


def test_a_command_and_its_reply_are_one_operation() -> None:
    """With the instants of both, the name in upper case."""
    (seen,) = Talk()(say("set", "k", "v"), hear(b"+OK\r\n"))
    assert (seen.id, seen.at, seen.ended, seen.args, seen.reply, seen.outcome) == (
        "c-1",
        1.0,
        2.0,
        (b"SET", b"k", b"v"),
        b"OK",
        "answered",
    )
    assert not seen.is_error


def test_pipelined_commands_get_their_replies_in_order() -> None:
    """Also where some of them are not wanted."""
    talk = Talk(wants=lambda args: args[0] != b"PING")
    commands = packed("GET", "a") + packed("PING") + packed("GET", "b") + b"PING\r\n" + packed("INCR", "n")
    seen = talk((">", commands), hear(b"$1\r\nA\r\n+PONG\r\n$-1\r\n+PONG\r\n:7\r\n"))
    assert told(seen) == [(b"GET", b"A"), (b"GET", None), (b"INCR", 7)]


REPLIES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (b"-ERR no\r\n", ErrorReply(b"ERR no")),
    (b":-12\r\n", -12),
    (b"$0\r\n\r\n", b""),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"_\r\n", None),
    (b"#t\r\n", True),
    (b",1.5\r\n", 1.5),
    (b",-inf\r\n", float("-inf")),
    (b"(12345678901234567890123\r\n", 12345678901234567890123),
    (b"=7\r\ntxt:abc\r\n", b"abc"),
    (b"!5\r\nERR x\r\n", ErrorReply(b"ERR x")),
    (b"*2\r\n:1\r\n*1\r\n+a\r\n", [1, [b"a"]]),
    (b"*0\r\n", []),
    (b"%1\r\n+a\r\n:1\r\n", [b"a", 1]),
    (b"~2\r\n:1\r\n:2\r\n", [1, 2]),
    (b"$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n", b"Hello"),
    (b"*?\r\n:1\r\n:2\r\n.\r\n", [1, 2]),
    (b"%?\r\n+a\r\n:1\r\n.\r\n", [b"a", 1]),
    (b"|1\r\n+ttl\r\n:3600\r\n$1\r\nv\r\n", b"v"),
    (b"*2\r\n|1\r\n+x\r\n*1\r\n$1\r\ny\r\n:1\r\n:2\r\n", [1, 2]),
]


@pytest.mark.parametrize(("wire", "value"), REPLIES, ids=lambda each: repr(each)[:30])
@pytest.mark.parametrize("is_wanted", [True, False])
def test_every_type_of_reply_is_read_to_its_last_byte(wire: bytes, value: Any, is_wanted: bool) -> None:
    """The reply that follows is found where it is, at one byte at a time too, wanted or not."""
    for pieces in ([wire + b"+OK\r\n"], [bytes([byte]) for byte in wire + b"+OK\r\n"]):
        talk = Talk(wants=lambda args: is_wanted or args[1] == b"next")
        seen = talk(say("GET", "a"), say("GET", "next"), *(hear(piece) for piece in pieces))
        assert told(seen) == [(b"GET", value)] * is_wanted + [(b"GET", b"OK")]


def test_a_transaction_gives_each_command_its_part() -> None:
    """With one number for all; MULTI and EXEC are no operations."""
    talk = Talk()
    seen = talk(
        say("MULTI"),
        say("SET", "a", "1"),
        say("SELECT", "3"),
        say("INCR", "a"),
        hear(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n"),
        say("EXEC"),
        hear(b"*3\r\n+OK\r\n+OK\r\n:2\r\n"),
    )
    assert told(seen) == [(b"SET", b"OK"), (b"INCR", 2)]
    assert [(each.transaction, each.database, each.ended) for each in seen] == [(1, 0, 7.0), (1, 3, 7.0)]
    (after,) = talk(say("GET", "a"), hear(b"$1\r\n2\r\n"))
    assert (after.transaction, after.database) == (None, 3)


@pytest.mark.parametrize(
    ("end", "reply", "value"),
    [
        ("EXEC", b"*-1\r\n", None),
        ("EXEC", b"_\r\n", None),
        ("DISCARD", b"+OK\r\n", None),
        ("RESET", b"+RESET\r\n", None),
        ("EXEC", b"-EXECABORT no\r\n", ErrorReply(b"EXECABORT no")),
    ],
)
def test_a_transaction_that_does_not_run_is_discarded(end: str, reply: bytes, value: Any) -> None:
    """A watched key changed, or it was given up, or a command in it was wrong."""
    talk = Talk()
    start = (say("MULTI"), say("SET", "a", "1"), hear(b"+OK\r\n+QUEUED\r\n"))
    (seen,) = talk(*start, say(end), hear(reply))
    assert (seen.outcome, seen.reply) == ("discarded", value)
    assert told(talk(say("GET", "a"), hear(b"$-1\r\n"))) == [(b"GET", None)]


def test_what_was_asked_when_the_connection_ends_is_lost() -> None:
    """Whether it took effect is unknown; a transaction that was never executed did not."""
    talk = Talk()
    talk(say("SET", "a", "1"))
    (seen,) = talk.decoder.close(9.0)
    assert (seen.outcome, seen.ended, seen.reply) == ("lost", 9.0, None)
    for is_executed, outcome in ((True, "lost"), (False, "discarded")):
        talk = Talk()
        talk(say("MULTI"), say("SET", "a", "1"), hear(b"+OK\r\n+QUEUED\r\n"))
        if is_executed:
            talk(say("EXEC"))
        (seen,) = talk.decoder.close(9.0)
        assert seen.outcome == outcome


def test_a_blocking_command_is_seen_when_it_is_asked_and_when_it_is_answered() -> None:
    """Under one id; XREAD without BLOCK and a blocking command inside a transaction do not block."""
    talk = Talk()
    (pending,) = talk(say("BLPOP", "q", "0"))
    assert isinstance(pending, Pending)
    assert (pending.id, pending.at, pending.is_blocking) == ("c-1", 1.0, True)
    (answered,) = talk(hear(b"*2\r\n$1\r\nq\r\n$1\r\nv\r\n"))
    assert (answered.id, answered.at, answered.ended, answered.is_blocking) == ("c-1", 1.0, 2.0, True)
    assert talk(say("XREAD", "STREAMS", "s", "0")) == []
    talk(hear(b"*-1\r\n"))
    (pending,) = talk(say("XREADGROUP", "GROUP", "g", "c", "block", "0", "STREAMS", "s", ">"))
    assert isinstance(pending, Pending)
    talk(hear(b"*-1\r\n"))
    assert talk(say("MULTI"), say("BLPOP", "q", "0")) == []


def test_no_secret_is_ever_recorded() -> None:
    """AUTH, HELLO, ACL, CONFIG and MIGRATE are no operations; who the user is, is known once the server agreed."""
    talk = Talk()
    seen = talk(say("AUTH", "eve", "hunter2"), hear(b"-WRONGPASS no\r\n"))
    assert talk.decoder.connection.user is None
    seen += talk(say("AUTH", "ada", "hunter2"), hear(b"+OK\r\n"))
    assert talk.decoder.connection.user == "ada"
    seen += talk(say("HELLO", "3", "AUTH", "bob", "hunter2", "SETNAME", "planner"), hear(b"%1\r\n+a\r\n+b\r\n"))
    assert (talk.decoder.connection.user, talk.decoder.connection.name) == ("bob", "planner")
    for words in (("CONFIG", "SET", "requirepass", "hunter2"), ("ACL", "SETUSER", "x", ">hunter2")):
        seen += talk(say(*words), hear(b"+OK\r\n"))
    seen += talk(say("MIGRATE", "h", "1", "k", "0", "1", "AUTH", "hunter2"), hear(b"+OK\r\n"))
    assert seen == []
    talk(say("RESET"), hear(b"+RESET\r\n"))
    assert talk.decoder.connection.user is None


def test_a_selected_database_counts_from_its_agreement_on() -> None:
    """A refused SELECT changes nothing."""
    seen = Talk()(
        say("SELECT", "2"),
        say("GET", "a"),
        say("SELECT", "99"),
        say("GET", "a"),
        hear(b"+OK\r\n$-1\r\n-ERR DB index is out of range\r\n$-1\r\n"),
    )
    assert [each.database for each in seen] == [2, 2]


@pytest.mark.parametrize("array", [b"*", b">"], ids=["RESP2", "RESP3"])
def test_messages_are_told_from_replies(array: bytes) -> None:
    """Subscriptions are confirmed one by one; what follows them is read as before."""
    talk = Talk()
    seen = talk(
        say("SUBSCRIBE", "a", "dull"),
        hear(array + b"3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"),
        hear(array + b"3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"),
        hear(array + b"3\r\n$9\r\nsubscribe\r\n$4\r\ndull\r\n:2\r\n"),
        hear(array + b"3\r\n$7\r\nmessage\r\n$4\r\ndull\r\n$2\r\nho\r\n"),
        say("PSUBSCRIBE", "a*"),
        hear(array + b"3\r\n$10\r\npsubscribe\r\n$2\r\na*\r\n:3\r\n"),
        hear(array + b"4\r\n$8\r\npmessage\r\n$2\r\na*\r\n$2\r\nab\r\n$3\r\nhey\r\n"),
        say("UNSUBSCRIBE"),
        hear(array + b"3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:2\r\n"),
        hear(array + b"3\r\n$11\r\nunsubscribe\r\n$4\r\ndull\r\n:1\r\n"),
        say("PUNSUBSCRIBE", "a*"),
        hear(array + b"3\r\n$12\r\npunsubscribe\r\n$2\r\na*\r\n:0\r\n"),
        say("LRANGE", "l", "0", "-1"),
        hear(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"),
    )
    messages = [each for each in seen if isinstance(each, Message)]
    assert [(each.kind, each.channel, each.pattern, each.payload) for each in messages] == [
        (b"message", b"a", None, b"hi"),
        (b"pmessage", b"ab", b"a*", b"hey"),
    ]
    assert told(seen) == [(b"LRANGE", [b"message", b"a", b"hi"])]


def test_a_refused_subscription_leaves_the_order_of_replies() -> None:
    """An error in place of a confirmation belongs to the SUBSCRIBE."""
    seen = Talk()(say("SUBSCRIBE", "a"), say("GET", "k"), hear(b"-NOPERM no\r\n$1\r\nv\r\n"))
    assert told(seen) == [(b"GET", b"v")]


def test_a_push_between_command_and_reply_is_no_reply() -> None:
    """Client tracking says that a key changed."""
    seen = Talk()(say("GET", "k"), hear(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"), hear(b"$1\r\nv\r\n"))
    push, operation = seen
    assert (push.kind, push.payload, operation.reply) == (b"invalidate", [b"k"], b"v")


def test_muted_replies_are_not_waited_for() -> None:
    """CLIENT REPLY SKIP mutes one command, OFF all until ON."""
    talk = Talk()
    seen = talk(
        say("CLIENT", "REPLY", "SKIP"),
        say("SET", "a", "1"),
        say("GET", "a"),
        hear(b"$1\r\n1\r\n"),
        say("CLIENT", "REPLY", "OFF"),
        say("SET", "a", "2"),
        say("SET", "a", "3"),
        say("CLIENT", "REPLY", "ON"),
        say("GET", "a"),
        hear(b"+OK\r\n$1\r\n3\r\n"),
    )
    assert [(each.args[0], each.outcome, each.reply) for each in seen] == [
        (b"SET", "silent", None),
        (b"GET", "answered", b"1"),
        (b"SET", "silent", None),
        (b"SET", "silent", None),
        (b"GET", "answered", b"3"),
    ]


@pytest.mark.parametrize("command", ["MONITOR", "SYNC", "PSYNC"])
def test_a_connection_that_becomes_another_is_not_read(command: str) -> None:
    """What was asked before is still paired."""
    talk = Talk()
    seen = talk(
        say("GET", "a"), say(command, "?", "-1"), hear(b"$1\r\nv\r\n+OK\r\n"), hear(b"+1.0 [0] \xff"), (">", b"\0")
    )
    assert told(seen) == [(b"GET", b"v")]
    assert [each.reason for each in seen if isinstance(each, Unread)] == ["takeover"]
    assert talk.decoder.is_over()


@pytest.mark.parametrize(
    ("name", "reason"), [("EVAL", "script"), ("FCALL", "script"), ("FUNCTION", "script"), ("JSON.SET", "module")]
)
def test_what_a_script_or_a_module_does_is_counted(name: str, reason: str) -> None:
    """It passes; a module's command may be asked for."""
    talk = Talk(wants=lambda args: args[0] == b"GET")
    seen = talk(say(name, "x", "1", "k"), say("GET", "k"), hear(b"*1\r\n:1\r\n$1\r\nv\r\n"))
    assert [type(each) for each in seen] == [Unread, Operation]
    assert seen[0].reason == reason


def test_a_long_value_is_skipped_by_its_length() -> None:
    """As an argument and in a reply; the next is read."""
    talk = Talk(value_bytes=1000)
    seen = talk(say("SET", "k", "x" * 5000), say("GET", "k"), hear(b"+OK\r\n$5000\r\n" + b"x" * 5000 + b"\r\n"))
    assert [(each.args, each.reply, each.cut) for each in seen] == [
        ((b"SET", b"k", Cut(5000)), b"OK", "too_large"),
        ((b"GET", b"k"), Cut(5000), "too_large"),
    ]
    assert told(talk(say("GET", "k"), hear(b"$1\r\nv\r\n"))) == [(b"GET", b"v")]


def test_copies_past_the_budget_are_counted_and_their_replies_still_paired() -> None:
    """And what was held is given back."""
    budget = CopyBudget(1000)
    talk = Talk(budget=budget)
    seen = talk(say("SET", "a", "x" * 500), say("SET", "b", "x" * 500), hear(b"+OK\r\n:1\r\n"))
    assert [type(each) for each in seen] == [Unread, Operation]
    assert seen[0].reason == "overload"
    assert budget.left == 1000


WRONG = [
    (">", b"*1\r\n+GET\r\n", "invalid_command"),
    (">", b"*x\r\n", "invalid_command"),
    (">", b"*2000000\r\n", "invalid_command"),
    (">", b"*1\r\n$-1\r\n", "invalid_command"),
    (">", b'SET a "b\r\n', "invalid_command"),
    (">", b"x" * 70_000, "line_too_long"),
    ("<", b"?\r\n", "invalid_reply"),
    ("<", b"$5\r\nhelloXX", "invalid_reply"),
    ("<", b":1\r\n:2\r\n", "unexpected_reply"),
    ("<", b"*1\r\n" * 100, "too_deep"),
    ("<", b":" + b"1" * 70_000, "line_too_long"),
]


@pytest.mark.parametrize(("side", "data", "reason"), WRONG, ids=lambda each: repr(each)[:24])
def test_what_is_wrong_ends_the_reading_with_one_fault(side: str, data: bytes, reason: str) -> None:
    """What was asked is lost from sight, and nothing more is said."""
    talk = Talk()
    seen = talk(say("GET", "a"), (side, data), say("GET", "b"), hear(b"+OK\r\n"))
    assert [each.reason for each in seen if isinstance(each, Fault)] == [reason]
    assert reason in REASONS
    assert talk.decoder.is_over()


def test_a_farewell_of_the_server_is_no_fault() -> None:
    """An error that nobody asked for, before the server closes."""
    assert Talk()(hear(b"-ERR max number of clients reached\r\n")) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"SET a b", [b"SET", b"a", b"b"]),
        (b"", []),
        (b"SET \"a b\" 'c d'", [b"SET", b"a b", b"c d"]),
        (b"SET \"\\x41\\n\\\"\" '\\''", [b"SET", b'A\n"', b"'"]),
        (b'SET "a"b', None),
        (b"SET 'a", None),
    ],
)
def test_inline_commands_are_split_as_the_servers_do(line: bytes, words: list[bytes] | None) -> None:
    """Quotes and escapes of sdssplitargs."""
    assert split_inline(line) == words


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.binary(max_size=20),
        st.floats(allow_nan=False),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


def encoded(value: Any) -> bytes:
    match value:
        case None:
            return b"_\r\n"
        case bool():
            return b"#t\r\n" if value else b"#f\r\n"
        case int():
            return b":%d\r\n" % value
        case float():
            return b",%b\r\n" % repr(value).encode()
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case _:
            return b"*%d\r\n" % len(value) + b"".join(map(encoded, value))


@settings(max_examples=150, deadline=None)
@given(value=values, cuts=st.lists(st.integers(0, 400), max_size=6))
def test_values_are_those_that_hiredis_reads(value: Any, cuts: list[int]) -> None:
    """At any chunking, and to the same last byte."""
    raw = encoded(value)
    reader = hiredis.Reader()
    reader.feed(raw)
    expected = reader.gets()
    parser = Values(1_000_000, CopyBudget())
    parser.begin(True)
    places = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    ends = [parser.feed(raw[a:b], 0) for a, b in itertools.pairwise(places)]
    assert ends[-1] == places[-1] - places[-2]
    assert all(end == -1 for end in ends[:-1])
    assert parser.value == expected


def test_with_frames_on_every_command_and_reply_has_its_place() -> None:
    """For an edge that holds them; a refused command's reply stands for the refusal."""
    talk = Talk(frames=True)
    first, second = packed("GET", "a"), packed("SET", "a", "1")
    talk((">", first + second[:5]))
    ((place, pending),) = talk.decoder.asked
    assert (place, pending is not None and pending.args) == (len(first), (b"GET", b"a"))
    talk((">", second[5:]))
    place, pending = talk.decoder.asked[1]
    assert place == len(first + second)
    assert pending is not None
    talk.decoder.refuse(pending, b"HANDRAIL no")
    talk(hear(b"$1\r\nx\r\n-ERR unknown\r\n"))
    (at, read, none), (then, refused, text) = talk.decoder.answered
    assert (at, then, none, text) == (7, 21, None, b"HANDRAIL no")
    assert read is not None
    assert refused is not None
    assert (read.outcome, read.reply, refused.outcome, refused.reply) == ("answered", b"x", "refused", None)
