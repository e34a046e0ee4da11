"""CloudEvents over HTTP: binary, structured, batch, and what only looks like them."""

import base64
from typing import Any

import pytest

from dialects.exchanges import everything, exchange, final
from handrail.dialects.cloudevents import BATCH_LIMIT
from handrail.event import Event, Fault
from handrail.wire import Route

STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"content-type": "application/cloudevents-batch+json"}
ATTRIBUTES: dict[str, Any] = {
    "specversion": "1.0",
    "type": "report.ready",
    "source": "/agents/researcher",
    "id": "e-1",
    "subject": "task-9",
    "dataschema": "https://reg.test/analyst.report/2.json",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
}
BINARY = {f"ce-{name}": str(value) for name, value in ATTRIBUTES.items()}


@pytest.mark.parametrize("mode", ["binary", "structured", "base64"])
def test_every_mode_says_the_same(mode: str) -> None:
    """One handoff on the channel `event`, with the attributes' names and the data as payload."""
    data = {"rows": 3}
    if mode == "binary":
        seen = exchange(data, headers=BINARY, status=202, route=Route(peer="analyst", side="egress"))
    else:
        raw = base64.b64encode(b'{"rows": 3}').decode()
        body = ATTRIBUTES | ({"data": data} if mode == "structured" else {"data_base64": raw})
        seen = exchange(body, headers=STRUCTURED, status=202, route=Route(peer="analyst", side="egress"))
    event = final(seen)
    assert (event.protocol, event.kind, event.channel, event.operation) == (
        "cloudevents",
        "handoff",
        "event",
        "report.ready",
    )
    assert (event.source, event.target, event.confidence) == ("researcher", "analyst", "inferred")
    assert (event.task, event.subject, event.version) == ("task-9", "analyst.report", "2")
    assert (event.trace_id, event.span_id, event.workflow) == ("a" * 32, "b" * 16, "a" * 32)
    assert (event.payload, event.outcome) == (data, "accepted")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/agents/researcher", "researcher"),
        ("https://bus.test/agents/researcher/?x=1", "researcher"),
        ("urn:agent:researcher", "researcher"),
        ("researcher", "researcher"),
        ("/agents/data%20agent", "data agent"),
        ("", None),
        (7, None),
    ],
)
def test_the_last_segment_of_the_source_is_the_agent(source: object, name: str | None) -> None:
    """Split at `/` and `:`, without the query."""
    assert final(exchange(ATTRIBUTES | {"source": source}, headers=STRUCTURED)).source == name


@pytest.mark.parametrize("kind", ["Application/CloudEvents+JSON", "application/CLOUDEVENTS-batch+json; charset=UTF-8"])
def test_a_media_type_may_be_written_in_any_case(kind: str) -> None:
    """Structured and batch."""
    body = [ATTRIBUTES] if "batch" in kind else ATTRIBUTES
    event = final(exchange(body, headers={"content-type": kind}))
    assert (event.protocol, event.task) == ("cloudevents", "task-9")


def test_an_envelope_inside_wins() -> None:
    """Data that is a canonical envelope names task and agents itself."""
    envelope = {"task_id": "t", "source_agent": "a", "target_agent": "b"}
    event = final(exchange(ATTRIBUTES | {"data": envelope}, headers=STRUCTURED))
    assert (event.task, event.source, event.target, event.confidence) == ("t", "a", "b", "exact")
    assert event.subject == "analyst.report"


def test_a_batch_is_one_event_for_each_entry() -> None:
    """Ids count from 0; an entry that is no CloudEvent is an event too."""
    batch = [ATTRIBUTES | {"data": 1}, {"type": "x", "id": "e-2"}, 17]
    asked, answered = everything(exchange(batch, headers=BATCH))
    assert [event.id for event in asked] == ["x1.0", "x1.1", "x1.2"]
    events = [event for event in answered if isinstance(event, Event)]
    assert [(event.task, event.payload, event.outcome) for event in events] == [
        ("task-9", 1, "completed"),
        ("e-2", None, "completed"),
        (None, 17, "completed"),
    ]


def test_a_batch_is_read_up_to_its_limit_and_the_rest_is_counted() -> None:
    """Past the limit there is one Fault."""
    asked, answered = everything(exchange([{}] * (BATCH_LIMIT + 1), headers=BATCH))
    assert len(asked) == BATCH_LIMIT
    assert [fault.reason for fault in answered if isinstance(fault, Fault)] == ["batch_limit"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"data_base64": "!"}, "decode_error"),
        ({"data_base64": base64.b64encode(b"{").decode()}, "invalid_json"),
        ({"data_base64": "AAAA", "datacontenttype": "image/png"}, "not_json"),
        ({"data_base64": ""}, None),
    ],
)
def test_data_that_cannot_be_read_says_why(entry: dict[str, Any], reason: str | None) -> None:
    """No payload, and the reason."""
    event = final(exchange(ATTRIBUTES | entry, headers=STRUCTURED))
    assert (event.payload, event.uninspected) == (None, reason)


def test_broken_events_are_still_events() -> None:
    """The content type says what it was meant to be; binary data may be anything."""
    event = final(exchange(b"{", headers=STRUCTURED))
    assert (event.protocol, event.uninspected) == ("cloudevents", "invalid_json")
    event = final(exchange(b"\x89PNG", headers=BINARY | {"content-type": "image/png"}))
    assert (event.protocol, event.uninspected, event.task) == ("cloudevents", "not_json", "task-9")


def test_near_misses_are_plain_http() -> None:
    """Attributes in a body of another type, half the headers, an empty batch, a structured list."""
    for seen in (
        exchange(ATTRIBUTES),
        exchange({}, headers={"ce-type": "x"}),
        exchange([], headers=BATCH),
        exchange([ATTRIBUTES], headers=STRUCTURED),
    ):
        assert final(seen).protocol == "http"
