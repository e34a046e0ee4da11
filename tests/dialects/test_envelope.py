"""Transcripts of the canonical envelope, and of what only looks like one."""

import gzip
import json
from typing import Any

import pytest

from dialects.exchanges import exchange, final, halves, reader
from handrail.config import Config, ConfigError, EnvelopeConfig
from handrail.dialects.envelope import Envelope
from handrail.wire import Exchange, HeadLimits, Reply, Request, Route
from handrail.wire.http1 import ReplyDecoder, RequestDecoder

ENVELOPE: dict[str, Any] = {
    "task_id": "t-7",
    "source_agent": "researcher",
    "target_agent": "analyst",
    "status": "completed",
    "output": {"summary": "s", "artifacts": [], "confidence": 0.9},
    "context": {"original_goal": "g", "constraints": [], "decisions_made": []},
    "metadata": {
        "token_count": 812,
        "attempt": 2,
        "agent_version": "1.4.0",
        "workflow_id": "w-1",
        "deadline": "2026-11-22T06:00:00Z",
    },
}


def test_an_envelope_says_everything_itself() -> None:
    """Names, task, workflow, attempt, tokens, version and deadline come from the envelope; the payload is all of it."""
    first, last = halves(exchange(ENVELOPE, target="/handoff?token=secret", reply={"ok": True}))
    assert (first.protocol, first.kind, first.channel, first.confidence) == ("envelope", "handoff", "call", "exact")
    assert (first.source, first.target, first.task, first.workflow) == ("researcher", "analyst", "t-7", "w-1")
    assert (first.attempt, first.tokens, first.agent_version, first.deadline) == (2, 812, "1.4.0", 1795327200.0)
    assert (first.payload, first.operation, first.at) == (ENVELOPE, "POST /handoff", 10.5)
    assert (last.outcome, last.status, last.reply) == ("completed", 200, {"ok": True})
    assert (last.duration_ms, last.ttfb_ms, last.reply_bytes) == (2000.0, 500.0, 12)


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": TRACE},
        {"traceparent": TRACE.replace("00-", "cc-")},
        {"traceparent": TRACE.replace("00-", "ff-")},
        {"traceparent": TRACE.replace("b7ad6b7169203331", "0" * 16)},
        {"traceparent": "00-short-01"},
        {"baggage": "workflow=w-2,handrail-chain=a|b"},
        {"baggage": "workflow=w-2", "handrail-workflow": ""},
        {"handrail-workflow": "w-3"},
        {"handrail-task": "t-3", "traceparent": TRACE},
        {"handrail-attempt": "3"},
        {"handrail-deadline": "2026-11-22T06:00:00Z"},
        {"handrail-schema": "order@2"},
        {"handrail-accept": "order@2"},
    ],
)
def test_a_head_that_is_known_says_what_its_headers_say(headers: dict[str, str]) -> None:
    """What a decoder remembers of a head gives the same event as looking for each header."""
    body = json.dumps({**ENVELOPE, "metadata": {}}).encode()
    lines = {"host": "a", "content-type": "application/json", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    raw = f"POST /handoff/{len(head)}?token=secret HTTP/1.1\r\n{head}\r\n".encode() + body
    decoder = RequestDecoder(HeadLimits(), 100_000)
    dialect = Envelope(EnvelopeConfig())
    for _ in range(3):
        request = decoder.feed(raw, 1.0)
        assert isinstance(request, Request)
        plain = Request(
            method="POST", target=request.target, headers=request.headers, at=1.0, end=1.0, body=body, size=len(body)
        )
        known, looked = (dialect.ask(Exchange(id="x", route=Route(), request=each)) for each in (request, plain))
        assert known == looked
        assert known[0].operation == f"POST /handoff/{len(head)}"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {"content-type": "text/event-stream"},
        {"content-type": "text/csv"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json", "handrail-accept": "order@2"},
    ],
)
def test_the_head_of_a_reply_that_is_known_says_what_its_headers_say(headers: dict[str, str]) -> None:
    """Its body is read, timed and versioned as by looking for each header."""
    body = json.dumps({"task_id": "t-7", "status": "failed"}).encode()
    body = gzip.compress(body) if "content-encoding" in headers else body
    lines = {**headers, "x-of": "replies", "content-length": str(len(body))}
    raw = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()
    raw = b"HTTP/1.1 200 OK\r\n" + raw + b"\r\n" + body
    decoder = ReplyDecoder(HeadLimits(), 100_000)
    for _ in range(3):
        decoder.expect("POST")
        assert decoder.feed(raw[:-1], 11.0) is None
        reply = decoder.feed(raw[-1:], 12.0)
        assert isinstance(reply, Reply)
        plain = Reply(
            status=200, headers=reply.headers, at=11.0, end=12.0, body=reply.body, size=reply.size, cut=reply.cut
        )
        seen = []
        for each in (reply, plain):
            whole = exchange(ENVELOPE)
            whole.reply = each
            seen.append(final(whole))
        assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("asking", "replying", "status", "outcome"),
    [
        ("completed", None, 200, "completed"),
        ("completed", None, 202, "accepted"),
        ("completed", None, 422, "rejected"),
        ("completed", None, 503, "failed"),
        ("failed", None, 200, "failed"),
        ("ERROR", None, 200, "failed"),
        ("in_progress", None, 200, "accepted"),
        ("partial", None, 200, "accepted"),
        ("pending", {"task_id": "t-7", "status": "completed"}, 200, "completed"),
        ("completed", {"task_id": "t-7", "status": "working"}, 200, "accepted"),
        ("completed", {"task_id": "t-7", "status": "failed"}, 200, "failed"),
        ("completed", {"status": "failed"}, 200, "completed"),
        ("completed", {"task_id": "t-7", "status": "completed"}, 500, "failed"),
        (17, None, 200, "completed"),
    ],
)
def test_http_decides_first_then_the_reply_then_the_envelope(
    asking: object, replying: object, status: int, outcome: str
) -> None:
    """What did not arrive was not done, whatever the envelope says."""
    assert final(exchange(ENVELOPE | {"status": asking}, reply=replying, status=status)).outcome == outcome


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ("client_abort", "interrupted"),
        ("upstream_refused", "failed"),
        ("timeout", "timeout"),
        ("refused", "rejected"),
    ],
)
def test_a_transport_that_fails_decides(end: Any, outcome: str) -> None:
    """No reply: the end of the exchange is the outcome."""
    assert final(exchange(ENVELOPE, status=0, end=end)).outcome == outcome


def test_the_workflow_is_found_where_people_put_it() -> None:
    """Header, baggage, metadata, context, envelope, then the trace: the first that is there."""
    places: list[tuple[dict[str, str], dict[str, Any], str]] = [
        ({"handrail-workflow": "h", "baggage": "workflow=b"}, {"metadata": {"workflow_id": "m"}}, "h"),
        ({"baggage": "a=1, workflow=b%201;p=2"}, {"metadata": {"workflow_id": "m"}}, "b 1"),
        ({"baggage": "workflow=b,handrail-workflow=hb"}, {"metadata": {"workflow_id": "m"}}, "hb"),
        ({"baggage": "other=1"}, {"metadata": {"workflow": "m2"}}, "m2"),
        ({}, {"metadata": {}, "context": {"workflow_id": "c"}}, "c"),
        ({}, {"metadata": None, "workflow_id": "e"}, "e"),
        ({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}, {"metadata": {"trace_id": "mt"}}, "mt"),
        ({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}, {"metadata": {}}, "a" * 32),
    ]
    for headers, change, workflow in places:
        assert final(exchange(ENVELOPE | change, headers=headers)).workflow == workflow
    assert final(exchange(ENVELOPE | {"metadata": {}})).workflow is None


@pytest.mark.parametrize(
    "body",
    [
        {"task_id": "t"},
        {"source_agent": "a", "target_agent": "b"},
        [ENVELOPE],
        {"envelope": ENVELOPE},
        "task_id source_agent",
        None,
    ],
)
def test_near_misses_are_plain_http(body: object) -> None:
    """An object without a task or without any agent, or an envelope elsewhere, is not an envelope."""
    assert final(exchange(body)).protocol == "http"


def test_an_envelope_under_a_path() -> None:
    """The configured JMESPath finds it in request and reply; the payload is the envelope, not what is around it."""
    by = reader(Config(envelope=EnvelopeConfig(path="message.body")))
    reply = {"message": {"body": {"task_id": "t-7", "target_agent": "analyst", "status": "failed"}}}
    event = final(exchange({"message": {"body": ENVELOPE}}, reply=reply), by)
    assert (event.protocol, event.payload, event.outcome) == ("envelope", ENVELOPE, "failed")
    assert final(exchange({"message": "elsewhere"}), by).protocol == "http"


def test_a_wrong_path_names_its_key() -> None:
    """Loading fails with the key that is wrong."""
    with pytest.raises(ConfigError, match=r"envelope\.path") as caught:
        Envelope(EnvelopeConfig(path="a["), "handrail.yaml")
    assert caught.value.file == "handrail.yaml"


def test_names_of_another_type_are_absent() -> None:
    """Objects and lists are no names, whole numbers are; the route fills what is missing, and that is inferred."""
    body = ENVELOPE | {"task_id": 17, "source_agent": {"name": "x"}, "target_agent": [], "metadata": {"attempt": -1}}
    event = final(exchange(body, route=Route(agent="me", peer="you", side="egress")))
    assert (event.task, event.source, event.target, event.attempt) == ("17", "me", "you", None)
    assert (event.confidence, event.side) == ("inferred", "egress")


def test_a_repeated_key_keeps_the_payload_and_says_so() -> None:
    """Two readers may see two payloads: the last one is kept, and the event says why it is doubtful."""
    event = final(exchange(b'{"task_id": "a", "task_id": "b", "source_agent": "s"}'))
    assert (event.task, event.uninspected) == ("b", "duplicate_key")
    assert event.payload == {"task_id": "b", "source_agent": "s"}
