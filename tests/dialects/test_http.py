"""The fallback, and the laws of every dialect through the reader: one event at least, and never an exception."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialects.exchanges import everything, exchange, final, reader
from handrail.config import Config, CustomConfig, EnvelopeConfig
from handrail.dialects import Reader
from handrail.dialects.http import Http
from handrail.event import Event
from handrail.wire import Exchange, Route


def test_a_json_body_is_a_handoff() -> None:
    """The whole body is the payload; the route names both ends."""
    event = final(exchange({"a": 1}, target="/x?y=1", reply=[1], route=Route(agent="a", peer="b", side="ingress")))
    assert (event.protocol, event.kind, event.payload, event.reply) == ("http", "handoff", {"a": 1}, [1])
    assert (event.source, event.target, event.confidence, event.operation) == ("b", "a", "inferred", "POST /x")
    assert (event.payload_bytes, event.uninspected) == (8, None)


def test_no_body_is_a_read() -> None:
    """Nothing was handed over, so nothing is missing either."""
    event = final(exchange(method="GET", reply={"big": "reply"}))
    assert (event.kind, event.payload, event.uninspected, event.reply) == ("read", None, None, None)


@pytest.mark.parametrize(
    ("body", "headers", "cut", "reason"),
    [
        (b"a=1", {"content-type": "application/x-www-form-urlencoded"}, None, "not_json"),
        (b"{", {}, None, "invalid_json"),
        (b"{}", {"content-encoding": "gzip, br"}, None, "unknown_encoding"),
        (b"{", {}, "too_large", "too_large"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_handoff_that_says_why(
    body: bytes, headers: dict[str, str], cut: str | None, reason: str
) -> None:
    """Counted, never skipped in silence."""
    event = final(exchange(body, headers=headers, cut=cut))
    assert (event.kind, event.payload, event.uninspected) == ("handoff", None, reason)


def test_a_route_chooses_its_dialects() -> None:
    """Only those it names, in its order; a name that nobody has is passed over."""
    envelope = {"task_id": "t", "source_agent": "a"}
    for names, protocol in (((), "envelope"), (("a2a",), "http"), (("nobody", "envelope"), "envelope")):
        assert final(exchange(envelope, route=Route(dialects=names))).protocol == protocol


class _Broken:
    name = "broken"

    def __init__(self, *, at_ask: bool) -> None:
        self._at_ask = at_ask

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        if self._at_ask:
            raise ValueError("ask")
        return Http().ask(exchange)

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Any:
        raise ValueError("answer")


def test_a_dialect_that_raises_costs_a_fault_and_no_event() -> None:
    """The event is there all the same, with what HTTP says of it."""
    by = Reader([_Broken(at_ask=True)], Http())
    asked, faults = by.ask(exchange({}))
    assert [fault.component for fault in faults] == ["dialect.broken"]
    assert len(asked[1]) == 1
    by = Reader([_Broken(at_ask=False)], Http())
    _, answered = everything(exchange({}), by)
    assert [getattr(one, "outcome", "fault") for one in answered] == ["fault", "completed"]


WORDS = st.sampled_from(
    [
        "jsonrpc", "2.0", "method", "SendMessage", "message/send", "GetTask", "params", "message", "parts",
        "data", "text", "metadata", "source_agent", "target_agent", "task_id", "context", "status", "state",
        "result", "task", "kind", "artifacts", "error", "code", "id", "contextId", "taskId", "name", "url",
        "supportedInterfaces", "$schema", "specversion", "type", "source", "subject", "data_base64", "completed",
        "-32602", "a@1", "http://h/a/1", "statusUpdate", "artifactUpdate", "artifact", "append",
        "referenceTaskIds", "messageId",
    ]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip
BODIES = st.binary(max_size=60) | JSON
HEADERS = st.dictionaries(
    st.sampled_from(
        ["content-type", "content-encoding", "ce-type", "ce-specversion", "ce-source", "a2a-version", "traceparent",
         "baggage", "handrail-schema", "handrail-deadline", "handrail-attempt", "handrail-workflow", "host"]
    ),
    st.sampled_from(["application/json", "application/cloudevents+json", "application/cloudevents-batch+json",
                     "text/event-stream", "gzip", "zstd", "1.0", "a@1", "workflow=%ff", "="])
    | st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=9),
    max_size=5,
)  # fmt: skip
TARGETS = st.sampled_from(
    [
        "/",
        "/message:send",
        "/v1/message:stream",
        "/tasks/t:cancel",
        "/tasks",
        "/.well-known/agent-card.json",
        "/v1/card",
    ]
)
EVERYONE = Config(
    envelope=EnvelopeConfig(path="params.message || data"),
    custom=(CustomConfig(name="own", task="task_id", source="length(@)", payload="sort(@)", outcome="max(@)"),),
)


@given(
    BODIES,
    BODIES,
    HEADERS,
    HEADERS,
    TARGETS,
    st.sampled_from(["GET", "POST", "DELETE", "BREW"]),
    st.sampled_from([0, 200, 202, 404, 503]),
    st.sampled_from(["replied", "client_abort", "upstream_reset"]),
)
def test_any_exchange_gives_its_events_and_no_exception(
    body: Any,
    reply: Any,
    headers: dict[str, str],
    reply_headers: dict[str, str],
    target: str,
    method: str,
    status: int,
    end: Any,
) -> None:
    """Through every dialect: at least one event, each asked and then final under the same id, and no Fault."""
    by = reader(EVERYONE)
    for id in ("x1", "x2"):  # twice, so that what was remembered of the first is used
        asked, answered = everything(
            exchange(body, method=method, target=target, headers=headers, status=status, reply=reply,
                     reply_headers=reply_headers, end=end, id=id), by,
        )  # fmt: skip
        assert asked
        finals = [one for one in answered if isinstance(one, Event)]
        assert finals == answered
        assert [event.id for event in asked] == [event.id for event in finals]
        assert {event.outcome for event in asked} == {"asked"}
        assert "asked" not in {event.outcome for event in finals}


@given(st.binary(max_size=200))
def test_any_stream_is_a_reply(raw: bytes) -> None:
    """Garbage in a stream is no state, and no exception."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": {"message": {"messageId": "m"}}}
    seen = exchange(request, reply=b"data: " + raw + b"\n\n", reply_headers={"content-type": "text/event-stream"})
    assert final(seen).protocol == "a2a"


def test_a_payload_survives_to_the_event_as_it_was() -> None:
    """No copy, no change: the same value that the body was parsed to."""
    value = orjson.loads(b'{"a": {"b": [1, 2.5, null, "\\u00e9"]}}')
    assert final(exchange(orjson.dumps(value))).payload == value
