"""CloudEvents over HTTP become handoffs on the channel `event`: binary (`ce-*` headers), structured and batch.

- source: the last segment of the `source` attribute, split at `/` and `:` (`/agents/researcher`, `urn:agent:researcher`
  and `researcher` are all `researcher`); target: the route's, for an event does not say who will read it.
- operation: `type`; task: `subject`, else `id`; workflow: the extension `workflow`, else `correlationid`.
- subject and version: `dataschema`, read as `$schema` is.
- data that is a canonical envelope says all of this itself, and wins.

A batch gives one event for each entry, `<exchange>.<n>` from 0.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from handrail.dialects import Told, begin, complete, schema_named, text, trace_of, whole
from handrail.dialects.envelope import is_envelope, said_by
from handrail.event import Event, Fault
from handrail.wire import Body, Exchange
from handrail.wire.body import EMPTY, parse

BATCH_LIMIT = 1_000
"""Entries of one batch that are read; those past it are one Fault."""


class CloudEvents:
    """Reads the three content modes of the HTTP protocol binding."""

    name = "cloudevents"

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """One event for each CloudEvent; none where the request carries none."""
        request = exchange.request
        headers = request.headers
        kind = headers.get(b"content-type", b"")
        # One byte says no for nearly every request; media types may be written in any case (RFC 9110 8.3.1).
        if kind[12:13] in (b"c", b"C") and (kind := kind.lower()).startswith(b"application/cloudevents"):
            body = request.json(exchange.route.limits)
            if type(body.value) is list and kind.startswith(b"application/cloudevents-batch"):
                return tuple(
                    self._event(exchange, entry, body, number) for number, entry in enumerate(body.value[:BATCH_LIMIT])
                )
            if type(body.value) is dict or body.reason is not None:
                return (self._event(exchange, body.value, body, None),)
            return ()
        if b"ce-specversion" not in headers or b"ce-type" not in headers:
            return ()
        attributes = {
            name[3:].decode("latin-1"): unquote(value.decode("utf-8", "replace"))
            for name, value in headers.items()
            if name.startswith(b"ce-")
        }
        body = request.json(exchange.route.limits)
        return (self._named(exchange, attributes, body.value, body, None),)

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """What HTTP says of the delivery is the outcome of every event in it."""
        for event in asked:
            yield complete(event, exchange)
        batch = exchange.request.json(exchange.route.limits).value
        if type(batch) is list and len(batch) > BATCH_LIMIT:
            yield Fault(
                component="dialect.cloudevents",
                reason="batch_limit",
                message=f"{len(batch) - BATCH_LIMIT} entries of a batch were not read",
                at=exchange.ended,
            )

    def _event(self, exchange: Exchange, entry: Any, body: Body, number: int | None) -> Event:
        if type(entry) is not dict:
            return self._named(exchange, {}, entry, body, number)
        data = entry.get("data")
        if data is None and type(encoded := entry.get("data_base64")) is str:
            body = _decoded(encoded, entry.get("datacontenttype"), exchange.route.limits.depth)
            data = body.value
        return self._named(exchange, entry, data, body, number)

    def _named(
        self, exchange: Exchange, attributes: Mapping[str, Any], data: Any, body: Body, number: int | None
    ) -> Event:
        get = attributes.get
        subject, version = schema_named(get("dataschema"))
        trace_id, span_id = None, None
        if type(traceparent := get("traceparent")) is str:
            trace_id, span_id = trace_of(traceparent.encode("utf-8", "replace"))
        said: dict[str, Any] = {
            "source": _last_segment(get("source")),
            "task": text(get("subject")) or text(get("id")),
            "workflow": text(get("workflow")) or text(get("correlationid")),
            "attempt": whole(get("attempt")),
            "subject": subject,
            "version": version,
            "trace_id": trace_id,
            "span_id": span_id,
        }
        if is_envelope(data):
            said |= said_by(data).fields()
        return begin(
            exchange, "cloudevents", text(get("type")), Told(**said), body, payload=data, channel="event", number=number
        )


def _last_segment(source: object) -> str | None:
    if type(source) is not str:
        return None
    return text(unquote(source.partition("?")[0].rstrip("/:").replace(":", "/").rpartition("/")[2]))


def _decoded(encoded: str, kind: object, depth: int) -> Body:
    if type(kind) is str and "json" not in kind:
        return Body(reason="not_json")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return Body(reason="decode_error")
    return parse(raw, depth) if raw else EMPTY
