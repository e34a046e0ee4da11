"""What a NATS connection publishes and receives becomes publishes and deliveries of agents.

A publish to JetStream is over when it is stored: then its sequence is known, or that it was a duplicate the server left
out. A delivery is an event at once, and is told again under its id once it is acknowledged, with how long that took.
"""

from collections import OrderedDict
from collections.abc import Iterator

from handrail.dialects import text, trace_of, whole
from handrail.dialects.patterns import Patterns, Value, read_value
from handrail.event import Event, Outcome
from handrail.wire.operation import Acknowledged, Delivered, Published, Stored

STORED_SECONDS = 5.0
"""A publish that asks for an answer and gets none for so long was a request, and not one to JetStream."""

_OPEN = 10_000
_HEADERS = {
    "handrail-workflow": "workflow",
    "handrail-task": "task",
    "handrail-attempt": "attempt",
}


class Nats:
    """Reads what the connections of one bus do."""

    protocol = "nats"

    def __init__(self, bus: str, subjects: Patterns, agent: str | None = None) -> None:
        self._bus, self._subjects, self._agent = bus, subjects, agent
        self._storing: OrderedDict[str, Event] = OrderedDict()
        self._delivered: OrderedDict[str, Event] = OrderedDict()
        self._published: OrderedDict[tuple[str, str | None], float] = OrderedDict()

    def wants(self, subject: str) -> bool:
        """Whether a subject may carry events. Without configured subjects any may, but for the server's own."""
        if subject[:1] in "$_" and subject.startswith(("$JS.", "$SYS.", "_INBOX.")):
            return False
        return self._subjects.is_default or self._subjects.of(subject).pattern is not None

    def read(self, seen: Published | Stored | Delivered | Acknowledged) -> Iterator[Event]:
        """The final events that are known now."""
        if isinstance(seen, Published):
            yield from self.advance(seen.at)
            event = self._event(seen)
            if event is None:
                return
            self._published[seen.subject, event.digest] = seen.at
            _bound(self._published)
            if seen.reply_to is None:
                yield event
                return
            self._storing[seen.id] = event
            if len(self._storing) > _OPEN:
                yield self._storing.popitem(last=False)[1]
        elif isinstance(seen, Stored):
            published = self._storing.pop(seen.id, None)
            if published is not None:
                yield self._stored(published, seen)
        elif isinstance(seen, Delivered):
            event = self._event(seen)
            if event is not None:
                self._delivered[seen.id] = event
                _bound(self._delivered)
                yield event

    def acknowledged(self, seen: Acknowledged) -> Event | None:
        """The delivery again, now that it is acknowledged; None where it was not seen, or something else was said."""
        if seen.kind != "ack":
            return None
        event = self._delivered.pop(seen.id, None)
        if event is None:
            return None
        took = round(max(0.0, seen.at - event.at) * 1000, 3)
        return event.but(duration_ms=took, payload=None)

    def advance(self, now: float) -> Iterator[Event]:
        """Publishes that were requests after all."""
        while self._storing:
            name, event = next(iter(self._storing.items()))
            if event.at + STORED_SECONDS > now:
                return
            del self._storing[name]
            yield event

    def _stored(self, event: Event, seen: Stored) -> Event:
        outcome: Outcome = "completed" if seen.error is None else "failed"
        if seen.is_duplicate:
            outcome = "ignored"
        elif event.outcome != "completed" and outcome == "completed":
            outcome = event.outcome
        return event.but(
            outcome=outcome,
            status=seen.error,
            duration_ms=round(max(0.0, seen.at - event.at) * 1000, 3),
            state_version=event.state_version if event.state_version is not None else seen.sequence,
        )

    def _event(self, seen: Published | Delivered) -> Event | None:
        named = self._subjects.of(seen.subject)
        value = Value(None, {}, None) if seen.cut else read_value(seen.payload, named)
        headers = {name.lower(): item for name, item in seen.headers.items()}
        said = {**value.said, **{name: item for name, item in named.said.items() if item is not None}}
        for header, field in _HEADERS.items():
            if headers.get(header):
                said[field] = whole(headers[header]) if field == "attempt" else text(headers[header])
        pattern = named.pattern
        if (pattern is None and said.get("task") is None) or (self._subjects.is_default and not said):
            return None
        is_publish = isinstance(seen, Published)
        agent = self._agent or text(seen.connection.name) or text(seen.connection.user)
        version = said.get("state_version") if pattern is not None and pattern.version is not None else None
        attempt, lag = said.get("attempt"), None
        if isinstance(seen, Delivered):
            published = self._published.get((seen.subject, value.digest))
            if seen.jetstream is not None:
                attempt = seen.jetstream.deliveries
                version = seen.jetstream.stream_sequence if version is None else version
                published = seen.jetstream.stored_at if published is None else published
            else:
                attempt = None
            lag = None if published is None else max(0.0, round((seen.at - published) * 1000, 3))
        trace_id, span_id = trace_of(headers.get("traceparent", "").encode("ascii", "replace"))
        return Event(
            kind="publish" if is_publish else "deliver",
            id=seen.id,
            at=seen.at,
            workflow=said.get("workflow") or trace_id,
            task=said.get("task"),
            attempt=attempt,
            source=(agent or said.get("source")) if is_publish else said.get("source"),
            target=said.get("target") if is_publish else (agent or said.get("target")),
            channel="event",
            protocol=self.protocol,
            operation="publish" if is_publish else "deliver",
            outcome="accepted" if said.get("outcome") == "accepted" else "completed",
            confidence="exact" if pattern is not None else "inferred",
            side="egress" if is_publish else "ingress",
            subject=pattern.subject if pattern is not None else None,
            version=pattern.schema_version if pattern is not None else None,
            payload=value.payload,
            payload_bytes=seen.size,
            digest=value.digest,
            store=self._bus,
            key=seen.subject,
            lag_ms=lag,
            state_version=version,
            trace_id=said.get("trace_id") or trace_id,
            span_id=span_id,
            uninspected=seen.cut or value.uninspected,
        )


def _bound(known: "OrderedDict[str, Event] | OrderedDict[tuple[str, str | None], float]") -> None:
    if len(known) > _OPEN:
        known.popitem(last=False)
