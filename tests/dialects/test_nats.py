"""What a bus connection does becomes publishes and deliveries."""

from typing import Any

import orjson

from handrail.config import EventsConfig
from handrail.dialects.nats import STORED_SECONDS, Nats
from handrail.dialects.patterns import default_subjects, patterns_of
from handrail.event import Event
from handrail.wire.operation import Acknowledged, Connection, Delivered, JetStream, Published, Stored

SUBJECT = "agents.w1.t1.complete"
BODY = orjson.dumps({"status": "complete"})
WHO = Connection(id="c", name="writer")


def published(id: str = "p", at: float = 1.0, **fields: Any) -> Published:
    known: dict[str, Any] = {"subject": SUBJECT, "payload": BODY, "size": len(BODY), "connection": WHO}
    return Published(id=id, at=at, **known | fields)


def read(nats: Nats, *seen: Any) -> list[Event]:
    return [event for each in seen for event in nats.read(each)]


def nats(*events: EventsConfig) -> Nats:
    return Nats("bus", patterns_of(events, "events") if events else default_subjects())


def test_a_publish_that_nobody_answers_is_over_at_once() -> None:
    """Core NATS has no acknowledgement."""
    (event,) = read(nats(), published())
    assert (event.kind, event.workflow, event.task, event.source) == ("publish", "w1", "t1", "writer")
    assert (event.store, event.key, event.duration_ms, event.outcome) == ("bus", SUBJECT, None, "completed")


def test_a_publish_to_a_stream_is_over_when_it_is_stored() -> None:
    """With its sequence; a duplicate that the server left out never counted, an error failed."""
    asked = {"reply_to": "_INBOX.1"}
    stored: dict[str, Any] = {"published_at": 1.0, "at": 1.25, "subject": SUBJECT, "stream": "S", "connection": WHO}
    for fields, outcome, version in (
        ({"sequence": 8}, "completed", 8),
        ({"sequence": 8, "is_duplicate": True}, "ignored", 8),
        ({"error": "no space"}, "failed", None),
    ):
        bus = nats()
        assert read(bus, published(**asked)) == []
        (event,) = read(bus, Stored(id="p", **stored | fields))
        assert (event.outcome, event.state_version, event.duration_ms) == (outcome, version, 250.0)


def test_a_request_is_no_publish_to_a_stream() -> None:
    """It is told once nobody stored it in time."""
    bus = nats()
    assert read(bus, published(reply_to="_INBOX.1")) == []
    assert list(bus.advance(1.0 + STORED_SECONDS - 0.1)) == []
    assert [event.id for event in bus.advance(1.0 + STORED_SECONDS)] == ["p"]


def test_a_delivery_is_told_again_when_it_is_acknowledged() -> None:
    """With its attempt and sequence, the time since its publish, and how long the consumer took."""
    bus = nats()
    read(bus, published())
    jetstream = JetStream(stream="S", consumer="c", deliveries=2, stream_sequence=8, consumer_sequence=9, stored_at=1.1)
    delivery = Delivered(
        id="d", at=1.5, subject=SUBJECT, sid="1", payload=BODY, size=len(BODY), jetstream=jetstream, connection=WHO
    )
    (event,) = read(bus, delivery)
    assert (event.kind, event.target, event.attempt) == ("deliver", "writer", 2)
    assert (event.state_version, event.lag_ms) == (8, 500.0)
    said = Acknowledged(id="d", at=3.5, kind="ack", jetstream=jetstream, connection=WHO)
    again = bus.acknowledged(said)
    assert again is not None
    assert (again.id, again.at, again.duration_ms) == ("d", 1.5, 2000.0)
    assert bus.acknowledged(said) is None


def test_headers_say_more_than_subjects() -> None:
    """Workflow, task and attempt as on HTTP."""
    headers = {"Handrail-Workflow": "w9", "handrail-task": "t9", "Handrail-Attempt": "3"}
    (event,) = read(nats(), published(headers=headers))
    assert (event.workflow, event.task, event.attempt) == ("w9", "t9", 3)


def test_what_is_not_of_agents_is_left_alone() -> None:
    """The server's own subjects, and any that were not configured."""
    bus = nats(EventsConfig(subject="jobs.{task}.done", version="seq"))
    assert not bus.wants("$JS.API.INFO")
    assert not bus.wants("_INBOX.x.y")
    assert not bus.wants(SUBJECT)
    (event,) = read(bus, published(subject="jobs.5.done", payload=b'{"seq": 12}'))
    assert (event.task, event.state_version) == ("5", 12)
    assert read(nats(), published(subject="other", payload=b"{}")) == []
