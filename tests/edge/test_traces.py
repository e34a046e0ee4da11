"""Laws of traces: an event is one span wherever it is seen, a finding is never sampled out, and nobody waits for it."""

import asyncio
import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edge.receivers import GrpcReceiver, HttpReceiver, attributes
from handrail.config import AdminConfig, Config, ConfigError, RouteConfig, SchemasConfig, TracesConfig, load
from handrail.edge.demo import SidecarThread
from handrail.edge.metrics import Metrics
from handrail.edge.traces import Spans, Traces, headers_of, sampled, signal_url
from handrail.event import Decision, Event, Fault, Finding

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
AT = 1_800_000_000.25


def event(id: str = "e1", **fields: Any) -> Event:
    given = {"kind": "handoff", "at": AT, "source": "writer", "target": "critic", "outcome": "completed"}
    return Event(id=id, **{**given, **fields})


def finding(of: str | None = "e1", **fields: Any) -> Finding:
    given = {"rule": "schema.violation", "kind": "schema.violation", "severity": "warning", "at": AT, "message": "bad"}
    events = () if of is None else (of,)
    return Finding(event=of, events=events, fingerprint="f", **{**given, **fields})


def spans(*decisions: tuple[Event | None, Sequence[Finding]], of: Spans | None = None, **config: Any) -> list[Span]:
    """The spans of Decisions as OTLP carries them."""
    maker = Spans(TracesConfig(endpoint="http://127.0.0.1:1", **config)) if of is None else of
    made = [span for span, _ in maker.of(decisions)]
    return [span for r in encode_spans(made).resource_spans for s in r.scope_spans for span in s.spans]


# What a span says


def test_a_handoff_continues_its_callers_trace() -> None:
    """Trace and parent are the caller's, times are the event's, and every field has its name."""
    one = event(
        trace_id=TRACE, span_id=CALLER, duration_ms=1500.0, workflow="w", task="t", subject="a.b", version="2",
        protocol="a2a", side="ingress", status=200, tokens=12,
    )  # fmt: skip
    (span,) = spans((one, ()))
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (
        1_800_000_000_250_000_000,
        1_800_000_001_750_000_000,
    )
    assert span.name == "invoke_agent critic"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.status.code == Status.STATUS_CODE_UNSET
    said = attributes(span)
    assert said["gen_ai.operation.name"] == "invoke_agent"
    assert said["gen_ai.agent.name"] == "critic"
    assert said["gen_ai.conversation.id"] == "w"
    assert said["handrail.source"] == "writer"
    assert (said["handrail.subject"], said["handrail.version"], said["handrail.status"]) == ("a.b", "2", 200)
    assert not {"handrail.payload", "handrail.reply"} & set(said)


def test_without_a_callers_trace_the_workflow_is_the_trace() -> None:
    """And where the workflow is a trace id itself, it is that one; without either, each event is alone."""
    alone, again, same, other = spans(
        (event("a"), ()), (event("b"), ()), (event("c", workflow="w"), ()), (event("d", workflow="w"), ())
    )
    assert alone.trace_id != again.trace_id
    assert same.trace_id == other.trace_id
    assert not same.parent_span_id
    (named,) = spans((event(workflow=TRACE), ()))
    assert named.trace_id.hex() == TRACE


def test_the_same_event_is_the_same_span() -> None:
    """Sent twice, or seen by another process; another instant under the same id is another span."""
    once, twice = spans((event(), ()), (event(), ()))
    (elsewhere,) = spans((event(), ()))
    (later,) = spans((event(at=AT + 1), ()))
    assert once.span_id == twice.span_id == elsewhere.span_id
    assert later.span_id != once.span_id


@pytest.mark.parametrize("outcome", ["failed", "rejected", "dropped", "timeout", "interrupted"])
def test_what_did_not_do_what_was_asked_is_an_error(outcome: str) -> None:
    """With the outcome and what the protocol said."""
    (span,) = spans((event(outcome=outcome, status=503), ()))
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == f"{outcome} (503)"
    assert attributes(span)["error.type"] == outcome


@pytest.mark.parametrize(
    ("fields", "name", "kind", "said"),
    [
        (
            {"kind": "usage", "protocol": "openai", "operation": "responses"},
            "chat writer", "CLIENT", {"gen_ai.provider.name": "openai", "gen_ai.agent.name": "writer"},
        ),
        (
            {"kind": "publish", "protocol": "nats", "store": "bus", "key": "agents.t.complete"},
            "publish agents.t.complete", "PRODUCER",
            {"messaging.system": "nats", "messaging.destination.name": "agents.t.complete"},
        ),
        (
            {"kind": "deliver", "protocol": "nats", "store": "bus", "key": "agents.t.complete"},
            "deliver agents.t.complete", "CONSUMER", {"gen_ai.agent.name": "critic"},
        ),
        (
            {"kind": "write", "protocol": "redis", "store": "cache", "key": "k", "operation": "SET"},
            "write k", "CLIENT", {"db.system.name": "redis", "db.operation.name": "SET"},
        ),
    ],
)  # fmt: skip
def test_each_kind_follows_its_conventions(fields: dict[str, Any], name: str, kind: str, said: dict[str, Any]) -> None:
    """Models, queues and stores have conventions of their own."""
    (span,) = spans((event(**fields), ()))
    assert span.name == name
    assert Span.SpanKind.Name(span.kind) == f"SPAN_KIND_{kind}"
    assert said.items() <= attributes(span).items()


# Findings


def test_a_finding_is_an_event_of_its_exchange() -> None:
    """With rule, severity, message and evidence; the span names the worst."""
    bad = finding(severity="critical", message="wrong type", evidence={"path": "/a/*"})
    (span,) = spans((event(), (finding(), bad)))
    assert [each.name for each in span.events] == ["handrail.finding"] * 2
    said = attributes(span.events[1])
    assert said["handrail.finding.rule"] == "schema.violation"
    assert said["handrail.finding.severity"] == "critical"
    assert said["handrail.finding.message"] == "wrong type"
    assert json.loads(said["handrail.finding.evidence"]) == {"path": "/a/*"}
    assert attributes(span)["handrail.severity"] == "critical"
    assert attributes(span)["handrail.findings"] == ["schema.violation"]


def test_time_alone_finds_something_too() -> None:
    """A span of its own in the workflow's trace, beside its handoffs."""
    handed, alone = spans((event(workflow="w"), ()), (None, (finding(None, workflow="w", rule="budget.exceeded"),)))
    assert alone.name == "finding budget.exceeded"
    assert alone.trace_id == handed.trace_id
    assert alone.status.code == Status.STATUS_CODE_ERROR
    assert attributes(alone)["handrail.finding.message"] == "bad"


def test_what_is_found_in_an_open_call_is_told_at_once_and_again_when_it_ends() -> None:
    """A deadlocked call may never end."""
    made = Spans(TracesConfig(endpoint="http://127.0.0.1:1", sample_ratio=0.0))
    (early,) = spans((event(outcome="asked"), (finding(rule="wait.deadlock"),)), of=made)
    assert early.name == "finding wait.deadlock"
    (ended,) = spans((event(outcome="timeout"), ()), of=made)
    assert early.parent_span_id == ended.span_id
    assert [attributes(each)["handrail.finding.rule"] for each in ended.events] == ["wait.deadlock"]


def test_what_is_found_later_links_to_its_exchange() -> None:
    """Under its span where that was sent, under its caller's where sampling dropped it."""
    of = event(trace_id=TRACE, span_id=CALLER)
    for ratio, parent in ((1.0, None), (0.0, CALLER)):
        made = Spans(TracesConfig(endpoint="http://127.0.0.1:1", sample_ratio=ratio))
        first = spans((of, ()), of=made)
        assert len(first) == ratio
        (late,) = spans((None, (finding(),)), of=made)
        assert late.trace_id.hex() == TRACE
        assert late.parent_span_id.hex() == (parent or first[0].span_id.hex())
        (link,) = late.links
        assert link.span_id == spans((of, ()))[0].span_id


# Sampling


@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_a_trace_is_sampled_as_the_sdk_samples_it(trace: int, ratio: float) -> None:
    """So that all who see parts of a trace keep the same ones."""
    assert sampled(trace, ratio) == (trace & (2**64 - 1) < TraceIdRatioBased(ratio).bound)


@given(st.lists(st.booleans(), max_size=30), st.sampled_from([0.0, 0.25, 1.0]))
@settings(deadline=None)
def test_what_has_a_finding_is_never_sampled_out(found: list[bool], ratio: float) -> None:
    """Every exchange with a finding is there, and the rest by its trace; what is not there is counted."""
    made = Spans(TracesConfig(endpoint="http://127.0.0.1:1", sample_ratio=ratio))
    decisions = [(event(f"e{n}", workflow=f"w{n}"), (finding(f"e{n}"),) if bad else ()) for n, bad in enumerate(found)]
    ids = {attributes(span)["handrail.event"] for span in spans(*decisions, of=made)}
    assert ids >= {f"e{n}" for n, bad in enumerate(found) if bad}
    assert len(ids) + made.unsampled == len(found)


# Links


def links(*events: Event) -> dict[str, list[str]]:
    """Event id to the ids of the events that its span links to."""
    made = spans(*((each, ()) for each in events))
    ids = {span.span_id: attributes(span)["handrail.event"] for span in made}
    return {ids[span.span_id]: [ids.get(link.span_id, "?") for link in span.links] for span in made}


def stored(id: str, kind: str, at: float, **fields: Any) -> Event:
    return event(id, kind=kind, at=AT + at, **{"store": "s", "key": "k", **fields})


def test_a_read_links_to_the_write_that_it_sees() -> None:
    """By version, by content, or the last write where neither is known; never across keys or stores."""
    found = links(
        stored("w1", "write", 0, digest="d1", state_version=1),
        stored("w2", "write", 1, digest="d2", state_version=2),
        stored("stale", "read", 2, digest="d1"),
        stored("fresh", "read", 2, state_version=2),
        stored("unknown", "read", 2),
        stored("strange", "read", 2, digest="d9"),
        stored("elsewhere", "read", 2, key="other"),
        stored("another", "read", 2, store="other", digest="d1"),
        stored("missing", "read", 2, status="missing"),
    )
    assert {id: to for id, to in found.items() if to} == {"stale": ["w1"], "fresh": ["w2"], "unknown": ["w2"]}


def test_a_delivery_links_to_its_publish_even_if_that_is_acknowledged_later() -> None:
    """Each to its own, though the queue holds several."""
    found = links(
        stored("p1", "publish", 0, digest="a"),
        stored("p2", "publish", 0, digest="b"),
        stored("d1", "deliver", 1, digest="a"),
        stored("d3", "deliver", 1, state_version=3),
        stored("p3", "publish", 0.5, state_version=3),
    )
    assert (found["d1"], found["d3"]) == (["p1"], ["p3"])


def test_an_acknowledgement_is_a_span_under_its_delivery() -> None:
    """From the delivery to the acknowledgement."""
    delivered = stored("d", "deliver", 0)
    first, settled = spans((delivered, ()), (delivered.but(duration_ms=2000.0), ()))
    assert settled.name == "settle k"
    assert settled.parent_span_id == first.span_id
    assert settled.end_time_unix_nano - settled.start_time_unix_nano == 2_000_000_000


# Any event

texts = st.text(max_size=8)
strange = st.builds(
    Event,
    kind=st.sampled_from(["handoff", "write", "read", "publish", "deliver", "wait", "resume", "plan", "usage"]),
    id=texts,
    at=st.floats() | st.integers(0, 2**40).map(float),
    workflow=st.none() | texts,
    source=st.none() | texts,
    key=st.none() | texts,
    outcome=st.sampled_from(["asked", "completed", "failed", "unknown"]),
    status=st.none() | st.integers() | texts,
    state_version=st.none() | st.integers() | texts,
    duration_ms=st.none() | st.floats(),
    trace_id=st.none() | texts | st.just(TRACE) | st.just("0" * 32),
    span_id=st.none() | texts | st.just(CALLER),
    chain=st.none() | st.text(st.characters(), max_size=4),
)


@example([(event(at=1e308, duration_ms=1e308), ["x"])], 1)
@given(st.lists(st.tuples(st.none() | strange, st.lists(texts, max_size=2)), max_size=8), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_any_event_becomes_a_span_that_can_be_sent(stream: list[tuple[Event | None, list[str]]], keys: int) -> None:
    """Whatever a field holds; and what is remembered stays within its limit."""
    made = Spans(TracesConfig(endpoint="http://127.0.0.1:1", contexts=keys))
    for each, messages in stream:
        id = each.id if each is not None else None
        for span in spans((each, [finding(id, message=text, evidence={"a": {1: b"x"}}) for text in messages]), of=made):
            assert span.end_time_unix_nano >= span.start_time_unix_nano
    assert len(made) <= 3 * keys


# Sending


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    class Agent(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


ENVELOPE: dict[str, Any] = {
    "task_id": "t1",
    "source_agent": "writer",
    "target_agent": "critic",
    "status": "completed",
    "output": {"summary": "done", "artifacts": [], "confidence": 0.9},
    "context": {"original_goal": "g", "constraints": [], "decisions_made": []},
    "metadata": {},
}


def hand_over(url: str, **headers: str) -> None:
    body = json.dumps(ENVELOPE).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.status == 200


@pytest.mark.parametrize(("protocol", "receiver"), [("http/protobuf", HttpReceiver), ("grpc", GrpcReceiver)])
def test_a_real_receiver_gets_what_a_real_sidecar_saw(
    protocol: str,
    receiver: type[HttpReceiver | GrpcReceiver],
    tmp_path: Path,
    free_port: Callable[[], int],
    needs: Callable[[str, str], str],
) -> None:
    """The span under its caller's, its finding on it, the headers of the file; and a bucket that names the trace."""
    schema = tmp_path / "schemas" / "writer.critic"
    schema.mkdir(parents=True)
    (schema / "1.json").write_text('{"type": "object", "required": ["verdict"]}')
    (tmp_path / "headers").write_text("# who we are\nAuthorization: Bearer letmein\n")
    received = receiver()
    listen = free_port()
    with contextlib.ExitStack() as stack:
        stack.callback(received.stop)
        port = stack.enter_context(upstream())
        config = Config(
            agent="critic",
            routes=(RouteConfig(listen=f"127.0.0.1:{listen}", upstream=f"http://127.0.0.1:{port}"),),
            schemas=SchemasConfig(directory=str(tmp_path / "schemas")),
            admin=AdminConfig(listen="127.0.0.1:0"),
            traces=TracesConfig(
                endpoint=received.endpoint,
                protocol=protocol,  # type: ignore[arg-type]
                headers_file=str(tmp_path / "headers"),
                sample_ratio=0.0,  # what is found is kept all the same
                batch_seconds=0.05,
            ),
        )
        sidecar = SidecarThread(config)
        sidecar.start()
        stack.callback(sidecar.stop)
        hand_over(f"http://127.0.0.1:{listen}/tasks", traceparent=f"00-{TRACE}-{CALLER}-01")
        (span,) = received.wait(1)
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
        assert attributes(span)["gen_ai.agent.name"] == "critic"
        assert "schema.violation" in attributes(span)["handrail.findings"]
        assert received.headers[0]["authorization"] == "Bearer letmein"
        assert received.resources[0]["service.name"] == "handrail"
        assert received.resources[0]["handrail.agent"] == "critic"

        # Written once the batch was confirmed, which the receiver sees first.
        deadline = time.monotonic() + 5
        while True:
            request = urllib.request.Request(sidecar.metrics, headers={"accept": "application/openmetrics-text"})
            with urllib.request.urlopen(request) as reply:
                assert reply.headers["content-type"].startswith("application/openmetrics-text")
                text = reply.read().decode()
            if " # {" in text or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        families = {family.name: family for family in text_string_to_metric_families(text)}
        buckets = families["handrail_handoff_duration_seconds"].samples
        examples = [sample.exemplar for sample in buckets if sample.exemplar]
        assert [each.labels for each in examples] == [{"trace_id": TRACE, "span_id": span.span_id.hex()}]
        sent = families["handrail_trace_spans"].samples
        assert {sample.labels["result"]: sample.value for sample in sent} == {"sent": 1.0}
        with urllib.request.urlopen(sidecar.metrics) as reply:
            assert reply.headers["content-type"].startswith("text/plain")
            assert " # {" not in reply.read().decode()

        if protocol == "grpc":
            return  # once is enough for Prometheus
        program = needs("prometheus", "prometheus")
        target = urllib.parse.urlsplit(sidecar.metrics).netloc
        stored_at, admin = tmp_path / "prometheus", free_port()
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 250ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: handrail, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        command = [
            program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={stored_at}",
            f"--web.listen-address=127.0.0.1:{admin}", "--enable-feature=exemplar-storage", "--log.level=error",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        query = "query=handrail_handoff_duration_seconds_bucket&start=0&end=4102444800"
        found: list[Any] = []
        deadline = time.monotonic() + 20
        while not found and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{admin}/api/v1/query_exemplars?{query}"
                found = json.load(urllib.request.urlopen(url, timeout=2))["data"]
            time.sleep(0.1)
        assert found, "Prometheus kept no exemplar"
        assert found[0]["exemplars"][0]["labels"] == {"trace_id": TRACE, "span_id": span.span_id.hex()}


def run(config: TracesConfig, act: Callable[[Traces, Metrics, list[Fault]], Any]) -> tuple[str, list[Fault]]:
    """Starts Traces around `act`, stops them, and gives the metrics and faults."""
    metrics, faults = Metrics(), []  # type: tuple[Metrics, list[Fault]]

    async def main() -> None:
        traces = Traces(config, metrics, fault=faults.append)
        await traces.start()
        try:
            found = act(traces, metrics, faults)
            if found is not None:
                await found
        finally:
            await traces.stop(0.5)

    asyncio.run(main())
    return metrics.render().decode(), faults


def test_a_receiver_that_is_away_costs_spans_and_nothing_else(free_port: Callable[[], int]) -> None:
    """What could not be sent is counted, told once with where to, and ending takes no longer than it may."""
    where = f"http://127.0.0.1:{free_port()}"

    async def act(traces: Traces, metrics: Metrics, faults: list[Fault]) -> None:
        for number in range(100):
            traces.take(Decision(event=event(f"e{number}")))
        for _ in range(100):
            if faults:
                return
            await asyncio.sleep(0.05)

    started = time.monotonic()
    text, faults = run(
        TracesConfig(endpoint=where, batch_spans=50, batch_seconds=0.05, export_seconds=0.2),
        act,
    )
    assert time.monotonic() - started < 10
    assert faults[0].component == "traces"
    assert where in faults[0].message
    assert 'handrail_trace_spans_total{result="failed"} 100.0' in text
    assert "handrail_trace_up 0.0" in text


def test_past_its_limit_only_what_has_findings_is_taken(free_port: Callable[[], int]) -> None:
    """The last fifth of the queue; what is not taken is counted, and nothing that waits holds a payload."""
    config = TracesConfig(
        endpoint=f"http://127.0.0.1:{free_port()}", queue_events=100, batch_spans=10_000, batch_seconds=30.0,
        export_seconds=0.1,
    )  # fmt: skip

    def act(traces: Traces, metrics: Metrics, faults: list[Fault]) -> None:
        for number in range(120):
            traces.take(Decision(event=event(f"e{number}", payload={"secret": number}, reply={"secret": number})))
        for number in range(30):
            traces.take(Decision(event=event(f"f{number}"), findings=(finding(f"f{number}"),)))
        text = metrics.render().decode()
        assert 'handrail_dropped_total{reason="trace_queue_full",intentional="false"} 50.0' in text
        assert "handrail_trace_queue_events 100.0" in text
        assert sum(bool(findings) for _, findings in traces._waiting) == 20
        assert all(each is None or each.payload is each.reply is None for each, _ in traces._waiting)

    run(config, act)


def test_a_resent_or_open_event_without_findings_is_not_queued() -> None:
    """Only what is over, or was found, becomes a span."""

    def act(traces: Traces, metrics: Metrics, faults: list[Fault]) -> None:
        traces.take(Decision(event=event(outcome="asked")))
        traces.take(Decision())
        assert "handrail_trace_queue_events 0.0" in metrics.render().decode()

    run(TracesConfig(endpoint="http://127.0.0.1:1"), act)


def test_over_tls_the_receiver_is_verified(tmp_path: Path) -> None:
    """By the bundle that the configuration names; a file that is not there is refused."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for protocol in ("http/protobuf", "grpc"):
        good = TracesConfig(endpoint="https://127.0.0.1:1", protocol=protocol, ca_file=str(tmp_path / "ca.pem"))  # type: ignore[arg-type]
        run(good, lambda *given: None)
        bad = msgspec.structs.replace(good, ca_file=str(tmp_path / "none.pem"))
        with pytest.raises(ConfigError, match=r"traces\.ca_file"):
            run(bad, lambda *given: None)


# Configuration


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "traces.endpoint: is missing"),
        ("{endpoint: 'collector:4317'}", "traces.endpoint: .*write http://host:4318"),
        ("{endpoint: 'http://u:canary@h:1'}", "traces.endpoint: must not hold a user"),
        ("{endpoint: 'http://h:1/x', protocol: grpc}", "traces.endpoint: has a path"),
        ("{endpoint: 'http://h:1', protocol: thrift}", "traces.protocol: 'thrift' is not known"),
        ("{endpoint: 'http://h:1', sample_ratio: 2}", "traces.sample_ratio: must not be more than 1"),
        ("{endpoint: 'http://h:1', sample_ratio: -1}", "traces.sample_ratio: must not be negative"),
        ("{endpoint: 'http://h:1', queue_events: 0}", "traces.queue_events: must be more than 0"),
        ("{endpoint: 'http://h:1', ca_file: x}", "traces.ca_file: is for an https endpoint"),
    ],
)
def test_a_wrong_section_is_refused_with_its_key(text: str, said: str) -> None:
    """And how to put it right, without repeating a password."""
    with pytest.raises(ConfigError, match=said) as refused:
        load(f"traces: {text}", "handrail.yaml")
    assert "canary" not in str(refused.value)


def test_headers_are_a_line_each(tmp_path: Path) -> None:
    """Comments and empty lines are passed over; a wrong line is named by its number and never shown."""
    file = tmp_path / "headers"
    file.write_text("# token\n\nX-Scope: a: b\n")
    assert headers_of(str(file)) == {"x-scope": "a: b"}
    file.write_text("a: b\ncanary\n")
    with pytest.raises(ConfigError, match="line 2") as refused:
        headers_of(str(file))
    assert "canary" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        headers_of(str(tmp_path / "none"))


def test_the_path_of_the_signal_is_added_where_there_is_none() -> None:
    """As the protocol has it for a base URL; a path of one's own stays."""
    assert signal_url("http://h:4318") == signal_url("http://h:4318/") == "http://h:4318/v1/traces"
    assert signal_url("https://h/otlp/v1/traces") == "https://h/otlp/v1/traces"


def test_nothing_is_imported_that_is_not_asked_for() -> None:
    """A sidecar without the section carries neither the SDK nor gRPC."""
    program = """
import sys
from handrail.config import Config, RouteConfig
from handrail.edge.sidecar import Sidecar
Sidecar(Config(routes=(RouteConfig(listen="127.0.0.1:0", upstream="http://127.0.0.1:1"),)))
print([name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "grpc", "requests", "pygal")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"
