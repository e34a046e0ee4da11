"""OTLP over HTTP and gRPC into a sidecar: what senders are told, what is found, and what goes on unchanged."""

import asyncio
import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from handrail.config import AdminConfig, Config, OtlpConfig
from handrail.edge.sidecar import Sidecar
from handrail.event import Event, Finding

ANY = "127.0.0.1:0"


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, record: Event | Finding) -> None:
        if isinstance(record, Event):
            self.events.append(record)


class Running:
    """A sidecar on a loop in a thread of its own."""

    def __init__(self, config: OtlpConfig) -> None:
        self.kept = Kept()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.sidecar = self.run(self._made(config))

    async def _made(self, config: OtlpConfig) -> Sidecar:
        sidecar = Sidecar(Config(admin=AdminConfig(listen=ANY), otlp=config), (self.kept,))
        await sidecar.start()
        return sidecar

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    @property
    def http(self) -> str:
        address = self.sidecar.otlp.http_address
        assert address is not None
        return f"http://{address[0]}:{address[1]}"

    @property
    def grpc(self) -> str:
        address = self.sidecar.otlp.grpc_address
        assert address is not None
        return f"{address[0]}:{address[1]}"

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
        async def go() -> tuple[int, dict[str, str], bytes]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            async with (
                aiohttp.ClientSession(auto_decompress=False) as session,
                session.post(self.http + path, data=body, headers=named) as reply,
            ):
                return reply.status, dict(reply.headers), await reply.read()

        result: tuple[int, dict[str, str], bytes] = self.run(go())
        return result

    def until(self, is_so: Callable[[], bool]) -> None:
        over = time.monotonic() + 20
        while not is_so():
            assert time.monotonic() < over
            time.sleep(0.02)

    def counted(self, name: str) -> dict[str, float]:
        text = self.sidecar.metrics.render().decode()
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return {line.rpartition(" ")[0].removeprefix(name): float(line.rpartition(" ")[2]) for line in lines}

    def end(self) -> list[Event]:
        """Stops it; the events that it has told."""
        if self.thread.is_alive():
            self.run(self.sidecar.stop(0.1))
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)
            self.loop.close()
        return self.kept.events


@contextlib.contextmanager
def running(**fields: Any) -> Iterator[Running]:
    one = Running(OtlpConfig(**({"http": ANY} | fields)))
    try:
        yield one
    finally:
        one.end()


def traces(name: str = "handoff to Billing Agent", trace: str = "ab" * 16, **more: Any) -> dict[str, Any]:
    """A request with one span, by default one that tells of a handoff."""
    said = {"input.value": "Triage Agent", "output.value": "Billing Agent"}
    span = {
        "traceId": trace,
        "spanId": "cd" * 8,
        "name": name,
        "startTimeUnixNano": "1700000000000000000",
        "endTimeUnixNano": "1700000001000000000",
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in said.items()],
    } | more
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "test"}, "spans": [span]}]}]}


JSON = "application/json"
PROTOBUF = "application/x-protobuf"


def protobuf(spans: int = 1, id: bytes = b"\xab" * 16) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(1, spans + 1):
        span = scope.spans.add(trace_id=id, span_id=number.to_bytes(8, "big"), name="handoff to Billing Agent")
        span.attributes.add(key="input.value").value.string_value = "Triage Agent"
    return bytes(request.SerializeToString())


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("kind", [JSON, PROTOBUF])
def test_a_span_becomes_a_handoff(kind: str, encoding: str) -> None:
    """In either encoding, compressed or not, answered in the same encoding."""
    body = json.dumps(traces()).encode() if kind == JSON else protobuf()
    headers = {"Content_Type": kind}
    if encoding:
        body, headers["Content_Encoding"] = gzip.compress(body), encoding
    with running() as one:
        status, said, answer = one.post("/v1/traces", body, **headers)
        (event,) = one.end()
    assert (status, said["Content-Type"], answer) == (200, kind, b"{}" if kind == JSON else b"")
    assert (event.kind, event.source, event.target) == ("handoff", "Triage Agent", "Billing Agent")
    assert (event.protocol, event.outcome, event.trace_id) == ("otlp", "accepted", "ab" * 16)


def test_what_cannot_be_read_is_a_partial_success() -> None:
    """The good spans count; the sender is told how many were not, and why, and that it must not send them again."""
    request = traces()
    request["resourceSpans"][0]["scopeSpans"][0]["spans"].append({"traceId": "0" * 32, "spanId": "1" * 16})
    mixed = ExportTraceServiceRequest.FromString(protobuf())
    mixed.resource_spans[0].scope_spans[0].spans.add(trace_id=b"short", span_id=b"x")
    with running() as one:
        status, _, answer = one.post("/v1/traces", json.dumps(request).encode(), Content_Type=JSON)
        told = json.loads(answer)["partialSuccess"]
        assert (status, told["rejectedSpans"]) == (200, "1")
        assert "traceId" in told["errorMessage"]
        status, _, answer = one.post("/v1/traces", mixed.SerializeToString(), Content_Type=PROTOBUF)
        partial = ExportTraceServiceResponse.FromString(answer).partial_success
        assert (status, partial.rejected_spans) == (200, 1)
        assert one.end() != []


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {"Content_Type": JSON}, 400),
        (b"[]", {"Content_Type": JSON}, 400),
        (b"\xff\xff\xff", {"Content_Type": PROTOBUF}, 400),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"not gzip", {"Content_Type": JSON, "Content_Encoding": "gzip"}, 400),
        (b"{}", {"Content_Type": JSON, "Content_Encoding": "lzma"}, 415),
        (b" " * 20_000 + b"{}", {"Content_Type": JSON}, 413),
        (gzip.compress(b" " * 200_000 + b"{}", mtime=0), {"Content_Type": JSON, "Content_Encoding": "gzip"}, 413),
        (b"[" * 5_000, {"Content_Type": JSON}, 400),
    ],
)
def test_bad_requests_are_refused_for_good(body: bytes, headers: dict[str, str], status: int) -> None:
    """With a status that no sender tries again, and a google.rpc.Status that says why."""
    with running(request_bytes=10_000, decoded_bytes=100_000) as one:
        got, said, answer = one.post("/v1/traces", body, **headers)
        assert got == status
        if said["Content-Type"] == JSON:
            assert json.loads(answer)["message"]
        assert one.end() == []


def test_too_many_at_once_are_told_to_come_again() -> None:
    """503 with Retry-After, and the same over gRPC."""
    with running(grpc=ANY) as one:
        one.sidecar.otlp._in_flight = 16
        status, said, _ = one.post("/v1/traces", b"{}", Content_Type=JSON)
        assert (status, said["Retry-After"]) == (503, "1")
        with pytest.raises(grpc.RpcError) as refused:
            export(one.grpc, protobuf())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def export(address: str, body: bytes, **options: Any) -> bytes:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        answer: bytes = call(body, timeout=10, **options)
        return answer


def test_grpc_takes_the_same() -> None:
    """Plain and gzip; a request that is none is refused for good."""
    with running(grpc=ANY) as one:
        assert export(one.grpc, protobuf()) == b""
        assert export(one.grpc, protobuf(id=b"\x01" * 16), compression=grpc.Compression.Gzip) == b""
        with pytest.raises(grpc.RpcError) as refused:
            export(one.grpc, b"\xff\xff\xff")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(one.end()) == 2


def test_grpc_bombs_are_refused() -> None:
    """What decompresses to more than the limit is not decompressed."""
    with running(grpc=ANY, decoded_bytes=1_000_000) as one:
        with pytest.raises(grpc.RpcError) as refused:
            export(one.grpc, bytes(50_000_000), compression=grpc.Compression.Gzip)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_token_is_asked_for(tmp_path: Any) -> None:
    """Over HTTP and gRPC; a wrong one is no better than none."""
    (tmp_path / "tokens").write_text("secret\nother\n")
    with running(grpc=ANY, token_file=str(tmp_path / "tokens")) as one:
        assert one.post("/v1/traces", b"{}", Content_Type=JSON)[0] == 401
        assert one.post("/v1/traces", b"{}", Content_Type=JSON, Authorization="Bearer wrong")[0] == 401
        assert one.post("/v1/traces", b"{}", Content_Type=JSON, Authorization="Bearer other")[0] == 200
        with pytest.raises(grpc.RpcError) as refused:
            export(one.grpc, b"")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert export(one.grpc, b"", metadata=(("authorization", "Bearer secret"),)) == b""


class Next:
    """An endpoint behind the receiver, which answers as it is told."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.seconds = 0.0
        """How long it takes to answer what it has got."""
        self.got: list[tuple[str, bytes, dict[str, str]]] = []

    async def start(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/{signal:.+}", self._answer)
        self.runner = web.AppRunner(app, auto_decompress=False)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _answer(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.got.append((request.path, await request.read(), dict(request.headers)))
            await asyncio.sleep(self.seconds)
        return web.Response(status=status)


@contextlib.contextmanager
def passing_on(statuses: list[int], **fields: Any) -> Iterator[tuple[Running, Next]]:
    further = Next()
    further.statuses = statuses
    ready: list[str] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    ready.append(asyncio.run_coroutine_threadsafe(further.start(), loop).result(10))
    try:
        with running(forward=ready[0], **fields) as one:
            yield one, further
    finally:
        asyncio.run_coroutine_threadsafe(further.runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_requests_go_on_as_they_came() -> None:
    """The same bytes, still compressed, with the sender's own headers; when an endpoint that was busy has recovered."""
    body = gzip.compress(json.dumps(traces()).encode())
    with passing_on([503, 429], grpc=ANY) as (one, further):
        headers = {"Content_Type": JSON, "Content_Encoding": "gzip", "x_team": "agents", "Authorization": "Bearer its"}
        assert one.post("/v1/traces", body, **headers)[0] == 200
        assert one.post("/v1/metrics", b"\x0a\x00", Content_Type=PROTOBUF)[0] == 200
        export(one.grpc, protobuf(), metadata=(("x-team", "agents"),))
        one.until(lambda: len(further.got) == 3)
    (path, got, said), (other, metrics, _), (_, by_grpc, also) = further.got
    assert (path, got, said["Content-Encoding"], said["x-team"]) == ("/v1/traces", body, "gzip", "agents")
    assert said["Authorization"] == "Bearer its"
    assert (other, metrics) == ("/v1/metrics", b"\x0a\x00")
    assert (by_grpc, also["x-team"], also["Content-Type"]) == (protobuf(), "agents", PROTOBUF)


def test_the_sdks_own_traces_come_in_and_go_on() -> None:
    """To the same path: the OpenAI Agents SDK's exporter, whose endpoint was set to the receiver."""
    times = {"started_at": "2026-01-01T00:00:01Z", "ended_at": "2026-01-01T00:00:02Z"}
    said = {"type": "handoff", "from_agent": "Triage Agent", "to_agent": "Billing Agent"}
    span = {"object": "trace.span", "id": "span_1", "trace_id": "trace_" + "ab" * 16, **times, "span_data": said}
    body = json.dumps({"data": [span]}).encode()
    with passing_on([]) as (one, further):
        headers = {"Content_Type": JSON, "OpenAI_Beta": "traces=v1", "Authorization": "Bearer its"}
        assert one.post("/v1/traces/ingest", body, **headers)[::2] == (200, b"{}")
        assert one.post("/v1/traces/ingest", body, Content_Type=PROTOBUF)[0] == 400
        one.until(lambda: len(further.got) == 1)
        (event,) = one.end()
    ((path, got, sent),) = further.got
    assert (path, got, sent["OpenAI-Beta"], sent["Authorization"]) == (
        "/v1/traces/ingest",
        body,
        "traces=v1",
        "Bearer its",
    )
    assert (event.source, event.target, event.outcome) == ("Triage Agent", "Billing Agent", "accepted")


def test_our_token_stays_here(tmp_path: Any) -> None:
    """The next endpoint gets its own, not the one that senders show to us."""
    (tmp_path / "in").write_text("ours")
    (tmp_path / "out").write_text("theirs")
    files = {"token_file": str(tmp_path / "in"), "forward_token_file": str(tmp_path / "out")}
    with passing_on([], **files) as (one, further):
        one.post("/v1/logs", b"{}", Content_Type=JSON, Authorization="Bearer ours")
        one.end()
    assert [said["Authorization"] for _, _, said in further.got] == ["Bearer theirs"]


def test_what_is_on_its_way_at_the_end_is_not_sent_twice() -> None:
    """The end waits for its answer; what waited behind it goes on too."""
    with passing_on([]) as (one, further):
        further.seconds = 0.3
        one.post("/v1/logs", b'{"resourceLogs":[]}', Content_Type=JSON)
        one.until(lambda: len(further.got) == 1)
        one.post("/v1/logs", b"{}", Content_Type=JSON)
        one.end()
    assert [body for _, body, _ in further.got] == [b'{"resourceLogs":[]}', b"{}"]
    assert one.counted("handrail_otlp_forwarded_total") == {'{result="taken"}': 2}


def test_what_the_next_endpoint_does_not_take_is_counted() -> None:
    """Refused for good, and past the queue's limit."""
    with passing_on([400], forward_queue_bytes=100) as (one, _):
        one.post("/v1/logs", b"{}", Content_Type=JSON)
        one.post("/v1/logs", b'{"x": "' + b"y" * 100 + b'"}', Content_Type=JSON)
        one.end()
        dropped = one.counted("handrail_dropped_total")
    assert dropped == {
        '{reason="otlp_refused",intentional="false"}': 1.0,
        '{reason="otlp_queue_full",intentional="false"}': 1.0,
    }
