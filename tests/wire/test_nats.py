"""Transcripts of NATS connections: who said what, and what is made of it."""

from typing import Any

import pytest

from handrail.event import Fault
from handrail.wire.http1 import CopyBudget
from handrail.wire.nats import REASONS, Deliveries, NatsDecoder, jetstream_of
from handrail.wire.operation import Acknowledged, Connection, Delivered, Published, Stored, Unread


class Talk:
    """One connection: `>` what the client sends, `<` what the server sends, each at the next second."""

    def __init__(self, deliveries: Deliveries | None = None, **settings: Any) -> None:
        self.decoder = NatsDecoder(
            Connection(id="c"), lambda subject: subject.startswith("agents."), deliveries=deliveries, **settings
        )
        self.at = 0.0

    def __call__(self, *lines: tuple[str, bytes]) -> list[Any]:
        seen: list[Any] = []
        for side, data in lines:
            self.at += 1
            seen += self.decoder.client(data, self.at) if side == ">" else self.decoder.server(data, self.at)
        return seen


def test_a_publish_is_seen_with_headers_and_payload() -> None:
    """PUB and HPUB, with and without a reply subject; what nobody wants is not."""
    seen = Talk()(
        (">", b"PUB agents.a 5\r\nhello\r\nPUB other 2\r\nno\r\npub agents.b\tinbox 0\r\n\r\n"),
        (">", b"HPUB agents.c 24 26\r\nNATS/1.0\r\nA: 1\r\nA: 2\r\n\r\nhi\r\n"),
    )
    assert [(each.subject, each.reply_to, each.headers, each.payload) for each in seen] == [
        ("agents.a", None, {}, b"hello"),
        ("agents.b", "inbox", {}, b""),
        ("agents.c", None, {"A": "1, 2"}, b"hi"),
    ]
    assert all(isinstance(each, Published) for each in seen)


def test_what_jetstream_stored_is_said_of_its_publish() -> None:
    """Stored, a duplicate, an error, nobody there; an answer to a plain request says nothing."""
    talk = Talk()
    answers = {
        b'{"stream":"S","seq":7}': ("S", 7, False, None),
        b'{"stream":"S","seq":7,"duplicate":true}': ("S", 7, True, None),
        b'{"error":{"code":400,"description":"wrong last sequence"}}': (None, None, False, "wrong last sequence"),
    }
    for number, (body, expected) in enumerate(answers.items()):
        inbox = b"_INBOX.%d" % number
        (published,) = talk((">", b"PUB agents.a %b 1\r\nx\r\n" % inbox))
        (stored,) = talk(("<", b"MSG %b 1 %d\r\n%b\r\n" % (inbox, len(body), body)))
        assert isinstance(stored, Stored)
        assert (stored.id, stored.published_at, stored.subject) == (published.id, published.at, "agents.a")
        assert (stored.stream, stored.sequence, stored.is_duplicate, stored.error) == expected
    talk((">", b"PUB agents.a r1 1\r\nx\r\nPUB agents.a r2 1\r\nx\r\n"))
    (nobody,) = talk(("<", b"HMSG r1 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\nMSG r2 1 2\r\nok\r\n"))
    assert nobody.error == "no responders"


def test_a_delivery_and_its_acknowledgement_belong_together() -> None:
    """With the time between, and how often it was delivered; the last word takes it off the books."""
    deliveries = Deliveries()
    talk = Talk(deliveries)
    reply = b"$JS.ACK.S.C.2.10.11.1700000000000000000.3"
    talk((">", b"SUB agents.> workers 9\r\n"))
    (delivered,) = talk(("<", b"MSG agents.a 9 %b 2\r\nhi\r\n" % reply))
    assert isinstance(delivered, Delivered)
    assert (delivered.subscription, delivered.queue, delivered.sid) == ("agents.>", "workers", "9")
    assert delivered.jetstream is not None
    told = delivered.jetstream
    assert (told.stream, told.consumer, told.deliveries) == ("S", "C", 2)
    assert (told.stream_sequence, told.consumer_sequence, told.stored_at, told.pending) == (10, 11, 1.7e9, 3)
    (working,) = talk((">", b"PUB %b 4\r\n+WPI\r\n" % reply))
    other = Talk(deliveries)
    other.at = 100.0
    (done,) = other((">", b"PUB %b 4\r\n+ACK\r\n" % reply))
    assert [(each.kind, each.id, each.subject) for each in (working, done)] == [
        ("progress", delivered.id, "agents.a"),
        ("ack", delivered.id, "agents.a"),
    ]
    assert (done.at, done.delivered_at) == (101.0, delivered.at)
    assert isinstance(done, Acknowledged)
    assert other((">", b"PUB %b 4\r\n+ACK\r\n" % reply)) == []
    assert len(deliveries) == 0


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"", "ack"), (b"-NAK {}", "nak"), (b"+TERM why", "term"), (b"+NXT 1", "next")],
)
def test_every_word_of_an_acknowledgement(body: bytes, kind: str) -> None:
    """With whatever follows it."""
    talk = Talk()
    talk(("<", b"MSG agents.a 9 $JS.ACK.S.C.1.1.1.1.0 0\r\n\r\n"))
    (seen,) = talk((">", b"PUB $JS.ACK.S.C.1.1.1.1.0 %d\r\n%b\r\n" % (len(body), body)))
    assert seen.kind == kind


def test_reply_subjects_with_a_domain() -> None:
    """Of servers since 2.2 with domains, and what is no reply subject."""
    told = jetstream_of(b"$JS.ACK.hub.ACC.S.C.1.2.3.4.5.tail")
    assert told is not None
    assert (told.domain, told.stream, told.consumer, told.pending) == ("hub", "S", "C", 5)
    told = jetstream_of(b"$JS.ACK._.ACC.S.C.1.2.3.4.5")
    assert told is not None
    assert told.domain is None
    for wrong in (b"_INBOX.a", b"$JS.ACK.S.C", b"$JS.ACK.S.C.x.2.3.4.5"):
        assert jetstream_of(wrong) is None


def test_who_connects_is_known_and_no_secret_kept() -> None:
    """Name and user alone."""
    talk = Talk()
    seen = talk((">", b'CONNECT {"user":"ada","pass":"hunter2","name":"planner","jwt":"secret"}\r\nPING\r\n'))
    assert seen == []
    assert (talk.decoder.connection.user, talk.decoder.connection.name) == ("ada", "planner")


def test_tls_and_other_servers_are_counted() -> None:
    """A client that encrypts is not read; one that is told of other servers may go around."""
    talk = Talk()
    seen = talk(
        ("<", b'INFO {"connect_urls":["a:4222"],"tls_available":true}\r\n'), (">", b"\x16\x03\x01"), ("<", b"\xff")
    )
    assert [each.reason for each in seen if isinstance(each, Unread)] == ["connect_urls", "tls"]
    assert talk.decoder.is_over()


def test_a_long_payload_is_skipped_by_its_length() -> None:
    """Past the limit or the budget; the next is read."""
    for talk in (Talk(payload_bytes=1000), Talk(budget=CopyBudget(1000))):
        seen = talk((">", b"PUB agents.a 20000\r\n" + b"x" * 20_000 + b"\r\nPUB agents.a 1\r\ny\r\n"))
        assert [(each.size, each.payload, each.cut) for each in seen] == [(20_000, b"", "too_large"), (1, b"y", None)]


@pytest.mark.parametrize(
    ("side", "data", "reason"),
    [
        (">", b"NONSENSE\r\n", "invalid_line"),
        (">", b"PUB agents.a x\r\n", "invalid_line"),
        (">", b"HPUB agents.a 9 2\r\n", "invalid_line"),
        (">", b"PUB agents.a 1\r\nxyz\r\n", "invalid_payload"),
        ("<", b"\xff\xfe\r\n", "invalid_line"),
        ("<", b"x" * 70_000, "line_too_long"),
    ],
)
def test_what_is_wrong_ends_the_reading_with_one_fault(side: str, data: bytes, reason: str) -> None:
    """And nothing more is said."""
    seen = Talk()((side, data), (">", b"PUB agents.a 0\r\n\r\n"))
    assert [each.reason for each in seen if isinstance(each, Fault)] == [reason]
    assert reason in REASONS
    assert len(seen) == 1


def test_deliveries_are_bounded() -> None:
    """The oldest goes first."""
    deliveries = Deliveries(limit=2)
    talk = Talk(deliveries)
    for number in range(5):
        talk(("<", b"MSG agents.a 9 $JS.ACK.S.C.1.%d.1.1.0 0\r\n\r\n" % number))
    assert len(deliveries) == 2
