"""OTLP comes in over HTTP and gRPC: spans and log records go to the pipeline, and on to another endpoint unchanged.

    request ─▶ token, size ─▶ decompressed, decoded ─▶ Inspector.told ─▶ answered
                                (a thread, if large)          └─▶ queue ─▶ the next endpoint, as it came

The answer is sent when the records were taken in, not when the next endpoint has them: what that one does not take is
tried again, and counted when it is given up. Metrics are passed on and not looked at.

The gRPC server is grpcio's own with threads, so that its work is not the event loop's; grpcio and opentelemetry-proto
are imported when a receiver starts. Both come with opentelemetry-exporter-otlp, which is a dependency anyway.
"""

import asyncio
import contextlib
import hmac
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
import orjson
from aiohttp import web

from handrail.config import OtlpConfig, listen_address
from handrail.dialects.spans import Told
from handrail.edge.record import Recorder
from handrail.edge.registry import configured_tokens
from handrail.edge.tls import serving
from handrail.event import Fault
from handrail.pipeline import Inspector
from handrail.wire import BodyLimits
from handrail.wire.body import decode
from handrail.wire.ingest import ingest_of
from handrail.wire.otlp import LONG_NS, Log, Read, Span, logs_of, spans_of

log = logging.getLogger("handrail.otlp")

Signal = Literal["traces", "logs", "metrics", "traces/ingest"]
SIGNALS: tuple[Signal, ...] = ("traces", "logs", "metrics")
INGEST: Signal = "traces/ingest"
"""Not OTLP: the OpenAI Agents SDK's own traces, for those who set its exporter's endpoint to this receiver."""

SERVICES: Mapping[Signal, str] = {
    "traces": "trace.v1.TraceService",
    "logs": "logs.v1.LogsService",
    "metrics": "metrics.v1.MetricsService",
}

INLINE_BYTES = 16_384
"""A longer request is decoded in a thread."""
SLICE = 500
"""Records that are taken in before the loop gets its turn: about 2 ms."""
BODY_SECONDS = 10.0
GRPC_THREADS = 2
RETRY_SECONDS = (0.5, 30.0)
"""How long the next endpoint is left alone after a failure: at first, and at most."""
RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})
NOT_PASSED_ON = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("proxy-authorization", "proxy-connection", "host", "accept-encoding", "user-agent"),
        *("content-length", "content-type", "content-encoding"),
    }
)
"""Headers that are of one hop, or are set anew."""


class Refused(Exception):
    """A request that is not taken: HTTP status, gRPC status by name, and why."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason


class Batch(msgspec.Struct):
    """What one request held, ready for the pipeline."""

    told: list[Told] = []
    logs: list[Log] = []
    rejected: int = 0
    reason: str = ""


class Passed(msgspec.Struct):
    """A request on its way to the next endpoint."""

    signal: Signal
    body: bytes
    headers: dict[str, str]
    until: float


class Otlp:
    """The receivers and the way on. A `Service` of the sidecar."""

    def __init__(self, config: OtlpConfig, inspector: Inspector, recorder: Recorder, now: Callable[[], float]) -> None:
        """Raises ConfigError where tokens or certificates cannot be read."""
        self._config, self._inspector, self._recorder, self._now = config, inspector, recorder, now
        self._tokens = _tokens(config.token_file, "otlp.token_file", "HANDRAIL_OTLP_TOKEN")
        self._tls = serving(config.tls_cert_file, config.tls_key_file, "otlp.tls_cert_file")
        self._onward = None
        if config.forward is not None:
            own = _tokens(config.forward_token_file, "otlp.forward_token_file", "HANDRAIL_OTLP_FORWARD_TOKEN")
            self._onward = Onward(config, own[0] if own else None, recorder)
        self._limits = BodyLimits(
            body_bytes=config.request_bytes, decoded_bytes=config.decoded_bytes, decode_ratio=2_000
        )
        self._in_flight = 0
        self._counting = threading.Lock()
        self._runner: web.AppRunner | None = None
        self._grpc: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.http_address: tuple[str, int] | None = None
        self.grpc_address: tuple[str, int] | None = None

    async def start(self) -> None:
        """Raises OSError where an address is taken."""
        self._loop = asyncio.get_running_loop()
        if self._onward is not None:
            await self._onward.start()
        try:
            if self._config.http is not None:
                await self._start_http(*listen_address(self._config.http))
            if self._config.grpc is not None:
                await asyncio.to_thread(self._start_grpc, *listen_address(self._config.grpc))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Takes nothing more, finishes what is under way, and tries once more to pass on what waits."""
        if self._grpc is not None:
            stopped, self._grpc = self._grpc.stop(1.0), None
            await asyncio.to_thread(stopped.wait)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._onward is not None:
            await self._onward.stop()

    # HTTP.

    async def _start_http(self, host: str, port: int) -> None:
        app = web.Application(client_max_size=self._config.request_bytes)
        for signal in (*SIGNALS, INGEST):
            app.router.add_post(f"/v1/{signal}", self._handler(signal))
        # What is compressed stays so until its size was looked at.
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()
        found = self._runner.addresses[0]
        self.http_address = str(found[0]), int(found[1])
        if not self._tokens and not host.startswith("127.") and host not in ("localhost", "::1"):
            log.warning("whoever reaches %s:%d can send spans; set otlp.token_file", *self.http_address)
        log.info("OTLP on %s://%s:%d", "https" if self._tls else "http", *self.http_address)

    def _handler(self, signal: Signal) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            is_json = request.content_type == "application/json"
            try:
                batch = await self._taken(signal, request, is_json)
            except Refused as refused:
                self._count(signal, refused.code)
                headers = {}
                if refused.status in (429, 503):
                    headers["Retry-After"] = str(max(1, round(self._config.retry_after_seconds)))
                elif refused.status == 401:
                    headers["WWW-Authenticate"] = "Bearer"
                return web.Response(
                    status=refused.status,
                    body=_status(refused, is_json),
                    content_type="application/json" if is_json else "application/x-protobuf",
                    headers=headers,
                )
            self._count(signal, "OK")
            return web.Response(
                body=_answer(signal, batch, is_json=is_json),
                content_type="application/json" if is_json else "application/x-protobuf",
            )

        return answer

    async def _taken(self, signal: Signal, request: web.Request, is_json: bool) -> Batch:
        self._admit(request.headers.get("Authorization"))
        if not is_json and request.content_type != "application/x-protobuf":
            raise Refused(415, "INVALID_ARGUMENT", "send application/x-protobuf or application/json")
        if (request.content_length or 0) > self._config.request_bytes:
            raise self._too_large()
        with self._turn():
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await request.read()
            except TimeoutError:
                raise Refused(408, "DEADLINE_EXCEEDED", f"the body did not come within {BODY_SECONDS:g} s") from None
            except web.HTTPRequestEntityTooLarge:
                raise self._too_large() from None
            encoding = request.headers.get("Content-Encoding", "")
            batch = await self._decoded(signal, body, encoding, is_json)
            await self._told(batch)
            if self._onward is not None:
                headers = {name: value for name, value in request.headers.items() if self._passes(name.lower())}
                headers["Content-Type"] = request.headers["Content-Type"]
                if encoding:
                    headers["Content-Encoding"] = encoding
                self._onward.put(signal, body, headers)
            return batch

    def _too_large(self) -> Refused:
        return Refused(413, "INVALID_ARGUMENT", f"longer than otlp.request_bytes, {self._config.request_bytes}")

    async def _decoded(self, signal: Signal, body: bytes, encoding: str, is_json: bool) -> Batch:
        if len(body) > INLINE_BYTES or encoding:
            return await asyncio.to_thread(self._decode, signal, body, encoding, is_json)
        return self._decode(signal, body, encoding, is_json)

    def _decode(self, signal: Signal, body: bytes, encoding: str, is_json: bool) -> Batch:
        """Raises Refused. Runs in any thread: it changes nothing."""
        if signal == "metrics":
            return Batch()
        if encoding:
            decoded = decode(encoding.encode("latin-1"), body, self._limits)
            if isinstance(decoded, str):
                status = {"bomb": 413, "unknown_encoding": 415}.get(decoded, 400)
                raise Refused(status, "INVALID_ARGUMENT", f"the body cannot be decompressed: {decoded}")
            body = decoded
        if len(body) > self._config.decoded_bytes:
            raise Refused(413, "RESOURCE_EXHAUSTED", f"longer than otlp.decoded_bytes, {self._config.decoded_bytes}")
        try:
            if is_json:
                value = orjson.loads(body or b"{}")
                if type(value) is not dict:
                    raise ValueError("it is no object")
                read = (ingest_of if signal == INGEST else spans_of if signal == "traces" else logs_of)(value)
            elif signal == INGEST:
                raise ValueError("it is no JSON")
            else:
                read = from_protobuf(signal, body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "INVALID_ARGUMENT", f"the body cannot be decoded: {str(error)[:200]}") from None
        spans = self._inspector.spans
        told = [] if spans is None else spans.read(read.spans)
        return Batch(told, read.logs, read.rejected, read.reason)

    async def _told(self, batch: Batch) -> None:
        """A containment point: what we make of spans is never their sender's trouble."""
        for start in range(0, max(len(batch.told), len(batch.logs)), SLICE):
            if start:
                await asyncio.sleep(0)
            now = self._now()
            part = slice(start, start + SLICE)
            try:
                self._recorder.record_all(self._inspector.told(batch.told[part], batch.logs[part], now), now)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                self._recorder.fault(Fault(component="otlp", reason="error", message=message, at=now), now)

    @contextlib.contextmanager
    def _turn(self) -> Any:
        """One of those that are read at once. Raises Refused where there are enough."""
        with self._counting:
            if self._in_flight >= self._config.in_flight:
                raise Refused(503, "UNAVAILABLE", "too many requests at once; come again")
            self._in_flight += 1
        try:
            yield
        finally:
            with self._counting:
                self._in_flight -= 1

    def _admit(self, given: str | None) -> None:
        if not self._tokens:
            return
        scheme, _, token = (given or "").partition(" ")
        raw = token.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        if not sum(hmac.compare_digest(raw, each) for each in self._tokens):
            raise Refused(401, "UNAUTHENTICATED", "a token is needed: Authorization: Bearer TOKEN")

    def _passes(self, name: str) -> bool:
        """Whether a header is for the next endpoint: the sender's, unless it is how we are spoken to."""
        return name not in NOT_PASSED_ON and not (name == "authorization" and self._tokens)

    def _count(self, signal: Signal, result: str) -> None:
        self._recorder.count("handrail_otlp_requests_total", signal, result)

    # gRPC.

    def _start_grpc(self, host: str, port: int) -> None:
        import grpc

        handlers = tuple(
            grpc.method_handlers_generic_handler(
                f"opentelemetry.proto.collector.{SERVICES[signal]}",
                {"Export": grpc.unary_unary_rpc_method_handler(self._export(signal))},
            )
            for signal in SIGNALS
        )
        server = grpc.server(
            ThreadPoolExecutor(GRPC_THREADS, thread_name_prefix="otlp-grpc"),
            handlers=handlers,
            options=(
                ("grpc.max_receive_message_length", min(self._config.decoded_bytes, 2**31 - 1)),
                ("grpc.so_reuseport", 0),
            ),
            maximum_concurrent_rpcs=2 * self._config.in_flight,
        )
        shown = f"[{host}]" if ":" in host else host
        try:
            if self._tls is None:
                bound = server.add_insecure_port(f"{shown}:{port}")
            else:
                files = (self._config.tls_key_file, self._config.tls_cert_file)
                pair = tuple(Path(file or "").read_bytes() for file in files)
                bound = server.add_secure_port(f"{shown}:{port}", grpc.ssl_server_credentials((pair,)))
        except RuntimeError as error:
            raise OSError(f"{shown}:{port} cannot be listened on: {error}") from None
        if not bound:
            raise OSError(f"{shown}:{port} cannot be listened on")
        server.start()
        self._grpc = server
        self.grpc_address = host, bound
        log.info("OTLP over gRPC on %s:%d", *self.grpc_address)

    def _export(self, signal: Signal) -> Callable[[bytes, Any], bytes]:
        """Runs in a thread of the server's. The request is the bytes of the message; so is the answer."""
        import grpc

        def export(body: bytes, context: Any) -> bytes:
            sent = {str(key): value for key, value in context.invocation_metadata() if type(value) is str}
            try:
                self._admit(sent.get("authorization"))
                with self._turn():
                    batch = self._decode(signal, body, "", False)
                    assert self._loop is not None
                    headers = {name: value for name, value in sent.items() if self._passes(name)}
                    asyncio.run_coroutine_threadsafe(self._took(signal, batch, body, headers), self._loop).result(30.0)
            except Refused as refused:
                context.abort(grpc.StatusCode[refused.code], refused.reason)
            except (TimeoutError, RuntimeError):  # the loop is ending
                context.abort(grpc.StatusCode.UNAVAILABLE, "the receiver is ending")
            return _answer(signal, batch, is_json=False)

        return export

    async def _took(self, signal: Signal, batch: Batch, body: bytes, headers: dict[str, str]) -> None:
        self._count(signal, "OK")
        await self._told(batch)
        if self._onward is not None:
            headers = {name: value for name, value in headers.items() if not name.startswith("grpc-")}
            self._onward.put(signal, body, {**headers, "Content-Type": "application/x-protobuf"})


class Onward:
    """Requests to the next endpoint, one after another; those that it cannot take wait, within a limit of bytes."""

    def __init__(self, config: OtlpConfig, token: bytes | None, recorder: Recorder) -> None:
        assert config.forward is not None
        self._config, self._recorder = config, recorder
        self._base = config.forward.rstrip("/")
        self._token = token
        self._queue: deque[Passed] = deque()
        self._bytes = 0
        self._came = asyncio.Event()
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._pause = RETRY_SECONDS[0]

    async def start(self) -> None:
        """Begins to send; raises nothing, for an endpoint may come up later."""
        timeout = aiohttp.ClientTimeout(total=self._config.forward_seconds)
        self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """One more attempt at all that waits, for as long as one request may take.

        What is on its way is waited for: broken off and tried again it would arrive twice.
        """
        if self._task is not None:
            self._ending.set()
            self._came.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.forward_seconds):
                    await asyncio.gather(self._task, return_exceptions=True)
                    while self._queue and await self._send(self._queue[0]) is None:
                        self._drop_first()
            for _ in range(len(self._queue)):
                self._given_up("ending")
        if self._session is not None:
            await self._session.close()

    def put(self, signal: Signal, body: bytes, headers: dict[str, str]) -> None:
        """Takes a request, or drops it and counts it where too much waits."""
        if self._bytes + len(body) > self._config.forward_queue_bytes:
            self._recorder.count("handrail_dropped_total", "otlp_queue_full", "false")
            return
        if self._token is not None:
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            headers["Authorization"] = f"Bearer {self._token.decode('utf-8', 'surrogateescape')}"
        until = asyncio.get_running_loop().time() + self._config.forward_retry_seconds
        self._queue.append(Passed(signal, body, headers, until))
        self._bytes += len(body)
        self._recorder.gauge("handrail_otlp_queue_bytes", self._bytes)
        self._came.set()

    async def _run(self) -> None:
        loop, ending = asyncio.get_running_loop(), self._ending
        while not ending.is_set():
            await self._came.wait()
            while self._queue and not ending.is_set():
                passed = self._queue[0]
                again = await self._send(passed)
                if again is None:
                    self._drop_first()
                    self._pause = RETRY_SECONDS[0]
                elif loop.time() + again >= passed.until:
                    self._given_up("otlp_not_taken")
                else:
                    self._pause = min(2 * self._pause, RETRY_SECONDS[1])
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ending.wait(), again)
            self._came.clear()

    async def _send(self, passed: Passed) -> float | None:
        """None where it is done with, taken or refused for good; else after how many seconds it may be tried again."""
        assert self._session is not None
        try:
            async with self._session.post(
                f"{self._base}/v1/{passed.signal}", data=passed.body, headers=passed.headers, allow_redirects=False
            ) as reply:
                status, after = reply.status, reply.headers.get("Retry-After", "")
                await reply.content.read(65_536)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._recorder.count("handrail_otlp_forwarded_total", "unreachable")
            log.debug("otlp.forward", exc_info=error)
            return self._pause * random.uniform(0.8, 1.2)
        if status in RETRYABLE:
            self._recorder.count("handrail_otlp_forwarded_total", "busy")
            wanted = float(after) if after.isascii() and after.isdigit() and len(after) < 5 else 0.0
            return max(wanted, self._pause * random.uniform(0.8, 1.2))
        if status >= 300:
            self._recorder.count("handrail_otlp_forwarded_total", "refused")
            self._recorder.count("handrail_dropped_total", "otlp_refused", "false")
            return None
        self._recorder.count("handrail_otlp_forwarded_total", "taken")
        return None

    def _drop_first(self) -> None:
        self._bytes -= len(self._queue.popleft().body)
        self._recorder.gauge("handrail_otlp_queue_bytes", self._bytes)

    def _given_up(self, reason: str) -> None:
        self._drop_first()
        self._recorder.count("handrail_dropped_total", reason, "false")


def _tokens(file: str | None, key: str, variable: str) -> list[bytes]:
    return [each.encode() for each in configured_tokens(file, key, variable)]


def _answer(signal: Signal, batch: Batch, *, is_json: bool) -> bytes:
    """Export…ServiceResponse, with a partial success where records were rejected."""
    noun = {"logs": "LogRecords", "metrics": "DataPoints"}.get(signal, "Spans")
    if is_json:
        if not batch.rejected:
            return b"{}"
        told = {f"rejected{noun}": str(batch.rejected), "errorMessage": batch.reason}
        return orjson.dumps({"partialSuccess": told})
    if not batch.rejected:
        return b""
    # All three responses have the same shape: field 1 is the partial success, of which field 1 is the count.
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTracePartialSuccess,
        ExportTraceServiceResponse,
    )

    partial = ExportTracePartialSuccess(rejected_spans=batch.rejected, error_message=batch.reason)
    return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())


_GRPC_CODES: Mapping[str, int] = {
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "RESOURCE_EXHAUSTED": 8,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}


def _status(refused: Refused, is_json: bool) -> bytes:
    """google.rpc.Status, which OTLP/HTTP answers errors with."""
    code = _GRPC_CODES[refused.code]
    if is_json:
        return orjson.dumps({"code": code, "message": refused.reason})
    from google.rpc.status_pb2 import Status

    return bytes(Status(code=code, message=refused.reason).SerializeToString())


def from_protobuf(signal: Signal, body: bytes) -> Read:
    """Export…ServiceRequest in protobuf to its records. Raises ValueError where it is none."""
    from google.protobuf.message import DecodeError

    read = Read([], [])
    try:
        if signal == "traces":
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _attributes(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    for item in of_scope.spans:
                        _add_span(read, item, resource, of_scope.scope.name)
        else:
            from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

            for of_resource_logs in ExportLogsServiceRequest.FromString(body).resource_logs:
                resource = _attributes(of_resource_logs.resource.attributes)
                for of_scope_logs in of_resource_logs.scope_logs:
                    for record in of_scope_logs.log_records:
                        _add_log(read, record, resource)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    return read


def _add_span(read: Read, item: Any, resource: Mapping[str, Any], scope: str) -> None:
    trace, span = item.trace_id, item.span_id
    if len(trace) != 16 or len(span) != 8 or not any(trace) or not any(span):
        read.reject("a span has no valid traceId and spanId")
        return
    start, end = item.start_time_unix_nano, item.end_time_unix_nano
    if start >= LONG_NS or end >= LONG_NS:
        read.reject("a span has no valid times")
        return
    parent = item.parent_span_id
    read.spans.append(
        Span(
            trace_id=trace.hex(),
            span_id=span.hex(),
            parent_id=parent.hex() if len(parent) == 8 and any(parent) else None,
            name=item.name,
            start=start / 1e9,
            end=max(start, end) / 1e9,
            attributes=_attributes(item.attributes),
            resource=resource,
            scope=scope,
            error=item.status.message if item.status.code == 2 else None,
            events=tuple((event.name, _attributes(event.attributes)) for event in item.events[:64]),
        )
    )


def _add_log(read: Read, record: Any, resource: Mapping[str, Any]) -> None:
    at = record.time_unix_nano or record.observed_time_unix_nano
    if at >= LONG_NS:
        read.reject("a log record has no valid time")
        return
    attributes = _attributes(record.attributes)
    named = attributes.get("event.name")
    read.logs.append(
        Log(
            at=at / 1e9,
            name=record.event_name or (named if type(named) is str else ""),
            body=_value(record.body),
            attributes=attributes,
            resource=resource,
            trace_id=record.trace_id.hex() if len(record.trace_id) == 16 and any(record.trace_id) else None,
            span_id=record.span_id.hex() if len(record.span_id) == 8 and any(record.span_id) else None,
        )
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs[:512]}


def _value(value: Any, depth: int = 0) -> Any:
    kind = value.WhichOneof("value")
    if kind is None or depth > 32:
        return None
    if kind == "array_value":
        return [_value(each, depth + 1) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value, depth + 1) for pair in value.kvlist_value.values}
    found = getattr(value, kind)
    if kind == "double_value" and found - found != 0.0:
        return None  # JSON has no infinity
    return found
