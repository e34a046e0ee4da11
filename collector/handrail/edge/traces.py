"""Decisions become OpenTelemetry spans, sent over OTLP from a thread of their own.

    Decision ─▶ waiting ─▶ Spans (names, parents, links, sampling) ─▶ exporter ─▶ counted
    (event loop)  bounded    (thread)

A handoff continues its caller's trace; where nobody began one, its workflow is the trace. Ids are hashes of what was
seen, so an event that is sent twice is one span, and whoever sees the same event gives it the same span. A finding is
an event of the span of the exchange that it was found in, and keeps that span whatever the sampling; one that comes
later, or out of time alone, is a span of its own with links to the exchanges of its evidence.

`opentelemetry` is imported when a `Traces` is made, so a sidecar without the section carries none of it. The SDK's own
batch processor is not used because it cannot say how many spans it dropped, nor wait for what sampling needs to know.
"""

import asyncio
import contextlib
import logging
import math
import re
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson
import xxhash

import handrail
from handrail.config import ConfigError, TracesConfig
from handrail.edge.metrics import HANDOFF_KINDS, Metrics
from handrail.edge.tls import trusting
from handrail.event import FIELDS, SEVERITIES, Decision, Event, Fault, Finding

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

CLOSE_SECONDS = 5.0
SWITCH_SECONDS = 0.0005
"""For how long the thread may keep the interpreter from the event loop. A batch is 80 ms of encoding; with Python's own
5 ms the loop's timers were late by 9 ms (p99) while spans were sent, with this by 3, and by 2 without any spans."""
SCOPE = "handrail"
EVIDENCE_CHARACTERS = 4_096
ATTRIBUTE_CHARACTERS = 4_096
SPAN_EVENTS, SPAN_LINKS = 32, 16
"""What one span holds at most: past them the SDK counts what it drops on the span."""

FAILED = frozenset(("failed", "rejected", "dropped", "timeout", "interrupted"))
"""Outcomes of what did not do what was asked; the same as an error in `edge_latency`."""

OPERATIONS: Mapping[str, str] = {
    "handoff": "invoke_agent",
    "usage": "chat",
    "usage gemini": "generate_content",
    "handoff mcp": "execute_tool",
}
"""`gen_ai.operation.name` by kind, or by kind and protocol; a kind that is not here is its own operation."""

PROVIDERS: Mapping[str, str] = {"openai": "openai", "anthropic": "anthropic", "gemini": "gcp.gemini"}
"""`gen_ai.provider.name` of a call of a model, by protocol."""

SYSTEMS: Mapping[str, str] = {"redis": "redis", "valkey": "redis", "nats": "nats", "kafka": "kafka"}

STEPS: Mapping[str, tuple[str, str]] = {
    "publish": ("messaging", "send"),
    "deliver": ("messaging", "process"),
    "write": ("db", "write"),
    "read": ("db", "read"),
}
"""Events that a queue or a store carries: the conventions that name them, and their operation there."""

_NOT_SHOWN = frozenset(
    ("kind", "id", "at", "workflow", "payload", "reply", "trace_id", "span_id", "duration_ms", "deadline")
)
_SHOWN = tuple(name for name in FIELDS if name not in _NOT_SHOWN)

_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")
_INT64 = 2**63


class Seen(msgspec.Struct, frozen=True):
    """What is remembered of an event: its trace, its span, the caller's span, and whether its span was kept."""

    trace: int
    span: int
    parent: int | None
    is_kept: bool


class _Remembered(OrderedDict[K, V]):
    """A mapping of at most `limit` keys; the one that was not set for longest goes first."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)


class Spans:
    """Decisions to spans that ended. Knows no socket, no clock and no thread; memory is bounded by `contexts`."""

    def __init__(self, config: TracesConfig, agent: str | None = None) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        said = {SERVICE_NAME: "handrail", SERVICE_VERSION: handrail.__version__}
        if agent is not None:
            said["handrail.agent"] = _clean(agent)
        self._ids = _ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # whether a span is kept is known before it is made
            resource=Resource.create(said),
            id_generator=self._ids,
            span_limits=SpanLimits(
                max_events=SPAN_EVENTS, max_links=SPAN_LINKS, max_attribute_length=ATTRIBUTE_CHARACTERS
            ),
            shutdown_on_exit=False,
        )
        self._ended: list[ReadableSpan] = []
        self._provider.add_span_processor(_collecting(self._ended))
        self._tracer = self._provider.get_tracer(SCOPE, handrail.__version__)
        self._ratio = config.sample_ratio
        self._seen: _Remembered[str, Seen] = _Remembered(config.contexts)
        self._writers: _Remembered[tuple[str, ...], tuple[Seen, str | None]] = _Remembered(config.contexts)
        self._early: _Remembered[str, tuple[Finding, ...]] = _Remembered(min(config.contexts, 1_000))
        self.unsampled = 0
        """Spans that sampling left out."""

    def of(
        self, decisions: Iterable[tuple[Event | None, Sequence[Finding]]]
    ) -> list[tuple["ReadableSpan", Event | None]]:
        """The spans of events and their findings, in their order, each with the event that it is the span of.

        Several at once, so that a delivery whose publish was acknowledged after it still finds it.
        """
        taken = tuple(decisions)
        settled = [event is not None and event.outcome != "asked" and self._note(event) for event, _ in taken]
        made: list[tuple[ReadableSpan, Event | None]] = []
        for (event, findings), is_settled in zip(taken, settled, strict=True):
            for of_event in self._settled(event) if event and is_settled else self._span_of(event, findings):
                made += [(span, of_event) for span in self._ended]
                self._ended.clear()
        return made

    def _span_of(self, event: Event | None, findings: Sequence[Finding]) -> Iterator[Event | None]:
        """Ends the spans of one Decision, and yields after each what it is the span of."""
        if event is None:
            for finding in findings:
                self._finding(finding)
                yield None
            return
        mine = [finding for finding in findings if finding.event in (None, event.id)]
        if event.outcome == "asked":
            # What was found in a call that is open is told at once, for it may never end; its span is kept for that.
            self._early[event.id] = (*self._early.get(event.id, ()), *mine)
            trace, parent = trace_of(event), _span_id(event.span_id)
            if event.id not in self._seen:
                self._seen[event.id] = Seen(trace, span_id_of(trace, event), parent, True)
            for finding in findings:
                self._finding(finding)
                yield None
            return
        known = self._seen[event.id]
        early = self._early.pop(event.id, ())
        if mine or early or sampled(known.trace, self._ratio):
            self._seen[event.id] = known = Seen(known.trace, known.span, known.parent, True)
            self._handoff(event, known, (*early, *mine))
            yield event
        else:
            self.unsampled += 1
        for finding in findings:
            if finding.event not in (None, event.id):
                self._finding(finding)
                yield None

    def _settled(self, event: Event) -> Iterator[Event | None]:
        """A delivery that was told before and is acknowledged now: a span under its own, from the one to the other."""
        seen = self._seen[event.id]
        if not seen.is_kept:
            return
        start = nanoseconds(event.at)
        self._ids.next(seen.trace, _hashed_span(f"{seen.span:016x}/settle"))
        said = attributes_of(event) | {"messaging.operation.type": "settle", "messaging.operation.name": "ack"}
        span = self._tracer.start_span(
            f"settle {_clean(event.key or '')[:128]}".rstrip(),
            context=_under(seen.trace, seen.span),
            attributes=said,
            start_time=start,
        )
        span.end(start + nanoseconds((event.duration_ms or 0.0) / 1000))
        yield None

    def _note(self, event: Event) -> bool:
        """Remembers an event's context, and as a writer's where others will read or receive what it wrote.

        True for a delivery that was seen before and is acknowledged now.
        """
        trace = trace_of(event)
        known = self._seen.get(event.id)
        if known is not None and event.kind == "deliver" and event.duration_ms is not None:
            return True
        is_kept = sampled(trace, self._ratio) or (known is not None and known.is_kept)
        seen = Seen(trace, span_id_of(trace, event), _span_id(event.span_id), is_kept)
        self._seen[event.id] = seen
        if event.kind in ("write", "publish") and event.key is not None and event.outcome not in FAILED:
            place = (event.kind, event.store or "", event.key)
            if event.state_version is not None:
                self._writers[(*place, "version", str(event.state_version))] = (seen, event.digest)
            if event.digest is not None:
                self._writers[(*place, "digest", event.digest)] = (seen, event.digest)
        return False

    def _writer(self, event: Event) -> Seen | None:
        """Who wrote what is read or delivered here: by version, by content, else the last one who may have."""
        kind = {"read": "write", "deliver": "publish"}.get(event.kind)
        if kind is None or event.key is None or event.status == "missing":
            return None
        place = (kind, event.store or "", event.key)
        if event.state_version is not None:
            by_version = self._writers.get((*place, "version", str(event.state_version)))
            if by_version is not None:
                return by_version[0]
        if event.digest is not None:
            by_digest = self._writers.get((*place, "digest", event.digest))
            if by_digest is not None:
                return by_digest[0]
        last = self._writers.get(place)
        if last is None or (last[1] is not None and event.digest is not None):
            return None  # contents that differ were not written by that one
        return last[0]

    def _handoff(self, event: Event, seen: Seen, findings: Sequence[Finding]) -> None:
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode

        links: list[Link] = []
        if (writer := self._writer(event)) is not None:
            how = "published" if event.kind == "deliver" else "written"
            links.append(Link(_context(writer), {"handrail.link": how}))
        if event.kind in ("write", "publish") and event.key is not None and event.outcome not in FAILED:
            self._writers[(event.kind, event.store or "", event.key)] = (seen, event.digest)
        kind = {"publish": SpanKind.PRODUCER, "deliver": SpanKind.CONSUMER}.get(event.kind)
        if kind is None:
            kind = SpanKind.SERVER if event.side == "ingress" and event.kind == "handoff" else SpanKind.CLIENT
        start = nanoseconds(event.at)
        self._ids.next(seen.trace, seen.span)
        span = self._tracer.start_span(
            name_of(event),
            context=_under(seen.trace, seen.parent),
            kind=kind,
            attributes=attributes_of(event),
            links=links,
            start_time=start,
        )
        for finding in findings:
            span.add_event("handrail.finding", said_of(finding), timestamp=nanoseconds(finding.at))
        if findings:
            span.set_attribute("handrail.findings", sorted({_clean(finding.rule) for finding in findings}))
            span.set_attribute("handrail.severity", max((f.severity for f in findings), key=SEVERITIES.index))
        if event.outcome in FAILED:
            status = "" if event.status is None else f" ({_clean(str(event.status))})"
            span.set_status(Status(StatusCode.ERROR, f"{event.outcome}{status}"))
        span.end(start + nanoseconds((event.duration_ms or 0.0) / 1000))

    def _finding(self, finding: Finding) -> None:
        """A span for a finding that no span of an exchange can carry any more, or not yet."""
        from opentelemetry.trace import Link, Status, StatusCode

        ids = dict.fromkeys((*(() if finding.event is None else (finding.event,)), *finding.events))
        seen = [self._seen[each] for each in ids if each in self._seen][:SPAN_LINKS]
        about = seen[0] if seen else None
        trace = about.trace if about is not None else trace_from(None, finding.workflow, finding.fingerprint)
        text = f"{trace:032x}/finding/{finding.rule}/{finding.fingerprint}/{finding.event}/{finding.at:.6f}"
        at = nanoseconds(finding.at)
        self._ids.next(trace, _hashed_span(text))
        # Under the span of its exchange where that was sent, else where that span would have been.
        parent = None if about is None else about.span if about.is_kept else about.parent
        span = self._tracer.start_span(
            f"finding {_clean(finding.rule)}",
            context=_under(trace, parent),
            attributes=said_of(finding) | _whole({"gen_ai.conversation.id": finding.workflow}),
            links=[Link(_context(each), {"handrail.link": "evidence"}) for each in seen],
            start_time=at,
        )
        span.set_attribute("handrail.findings", [_clean(finding.rule)])
        span.set_attribute("handrail.severity", finding.severity)
        if finding.severity != "info":
            span.set_status(Status(StatusCode.ERROR, _clean(finding.message)))
        span.end(at)

    def __len__(self) -> int:
        """How many contexts are remembered."""
        return len(self._seen) + len(self._writers) + len(self._early)


def name_of(event: Event) -> str:
    """A span's name as the conventions have it: the operation, and what it is done to."""
    about = event.key if event.kind in STEPS else event.source if event.kind == "usage" else event.target
    operation = operation_of(event)
    return operation if about is None else f"{operation} {_clean(about)[:128]}"


def operation_of(event: Event) -> str:
    """`gen_ai.operation.name` of an event."""
    return OPERATIONS.get(f"{event.kind} {event.protocol}") or OPERATIONS.get(event.kind) or event.kind


def attributes_of(event: Event) -> dict[str, Any]:
    """What a span says of its event: the conventions where they have a name, `handrail.*` for every other field."""
    is_mine = event.kind in ("write", "publish", "usage", "wait", "resume", "plan")
    said: dict[str, Any] = {
        "gen_ai.operation.name": operation_of(event),
        "gen_ai.agent.name": (event.source or event.target) if is_mine else (event.target or event.source),
        "gen_ai.conversation.id": event.workflow,
        "handrail.kind": event.kind,
        "handrail.event": event.id,
    }
    if event.kind == "usage":
        said["gen_ai.provider.name"] = PROVIDERS.get(event.protocol or "")
    if (step := STEPS.get(event.kind)) is not None:
        what, operation = step
        system = SYSTEMS.get(event.protocol or "", event.protocol)
        if what == "messaging":
            said |= {"messaging.system": system, "messaging.destination.name": event.key}
            said |= {"messaging.operation.type": operation, "messaging.operation.name": event.operation or operation}
        else:
            said |= {"db.system.name": system, "db.operation.name": event.operation or operation}
    if event.outcome in FAILED:
        said["error.type"] = event.outcome
    for name in _SHOWN:
        said[f"handrail.{name}"] = getattr(event, name)
    return _whole(said)


def said_of(finding: Finding) -> dict[str, Any]:
    """A finding as attributes, its evidence as JSON."""
    try:
        evidence = orjson.dumps(finding.evidence, default=str).decode()
    except TypeError:
        evidence = str(finding.evidence)
    said = {f"handrail.finding.{name}": getattr(finding, name) for name in _FINDING_SHOWN}
    return _whole({**said, "handrail.finding.evidence": evidence[:EVIDENCE_CHARACTERS]})


_FINDING_SHOWN = (
    "rule", "kind", "severity", "message", "side", "event", "source", "target", "task", "subject", "version",
    "fingerprint", "count",
)  # fmt: skip


def trace_of(event: Event) -> int:
    """The trace of an event: its caller's, else its workflow's, else one of its own."""
    return trace_from(event.trace_id, event.workflow, f"{event.id}/{event.at:.6f}")


def trace_from(trace_id: str | None, workflow: str | None, other: str) -> int:
    """A trace id that is one, else one made of the workflow (which may be a trace id itself), else of `other`."""
    for text in (trace_id, workflow):
        if text is not None and _TRACE_ID.fullmatch(text):
            return int(text, 16)
    text = f"event/{other}" if workflow is None else f"workflow/{workflow}"
    return xxhash.xxh3_128_intdigest(text.encode("utf-8", "surrogatepass")) or 1


def span_id_of(trace: int, event: Event) -> int:
    """The span id of an event. Its instant is a part, for ids are only unique within one run of a listener."""
    return _hashed_span(f"{trace:032x}/{event.id}/{event.at:.6f}")


def _hashed_span(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) or 1


def _span_id(text: str | None) -> int | None:
    return int(text, 16) if text is not None and _SPAN_ID.fullmatch(text) else None


def sampled(trace: int, ratio: float) -> bool:
    """Whether a trace is in the sample: the SDK's TraceIdRatioBased, so that all who use it keep the same traces."""
    return trace & 0xFFFF_FFFF_FFFF_FFFF < round(ratio * 2**64)


def nanoseconds(at: float) -> int:
    """Seconds to nanoseconds as a span can hold them, twice: from nought to the year 2255."""
    return round(min(max(at, 0.0), 9e9) * 1e6) * 1000 if math.isfinite(at) else 0


def _clean(text: str) -> str:
    """Text that UTF-8 can carry; one that it cannot would cost its whole batch."""
    return text.encode("utf-8", "replace").decode()


def _whole(said: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that OTLP can carry: absent left out, integers past 64 bits as text."""
    out: dict[str, Any] = {}
    for name, value in said.items():
        if value is None:
            continue
        if isinstance(value, str):
            value = _clean(value)
        elif isinstance(value, int) and not -_INT64 <= value < _INT64:
            value = str(value)
        out[name] = value
    return out


def _context(seen: Seen) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED if seen.is_kept else TraceFlags.DEFAULT)
    return SpanContext(seen.trace, seen.span, is_remote=True, trace_flags=flags)


def _under(trace: int, parent: int | None) -> Any:
    """The context of a span in this trace; without a parent it is the root, and its id is the next one that is made."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    empty = Context()  # never what some other library has made current in this thread
    if parent is None:
        return empty
    return set_span_in_context(NonRecordingSpan(_context(Seen(trace, parent, None, True))), empty)


def _ids() -> Any:
    """A generator that gives out the ids it is told, for the SDK takes them from nowhere else."""
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Told(IdGenerator):
        def next(self, trace: int, span: int) -> None:
            self._trace, self._span = trace, span

        def generate_trace_id(self) -> int:
            return self._trace

        def generate_span_id(self) -> int:
            return self._span

    return Told()


def _collecting(into: "list[ReadableSpan]") -> Any:
    from opentelemetry.sdk.trace import SpanProcessor

    class Collecting(SpanProcessor):
        def on_end(self, span: "ReadableSpan") -> None:
            into.append(span)

    return Collecting()


def headers_of(path: str | None) -> dict[str, str]:
    """A file of `name: value` lines to headers; `#` begins a comment. Raises ConfigError, never with a value."""
    if path is None:
        return {}
    key = "traces.headers_file"
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("configuration", key, f"cannot be read: {error}") from None
    headers = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9_.\-]+", name.strip()) or not value.strip().isprintable():
            raise ConfigError("configuration", key, f"line {number} of {path} is not `name: value`")
        headers[name.strip().lower()] = value.strip()  # gRPC takes lower case only
    return headers


def exporter_of(config: TracesConfig) -> "SpanExporter":
    """The exporter that a configuration asks for. Raises ConfigError for files that cannot be used."""
    headers = headers_of(config.headers_file)
    if config.ca_file is not None:
        trusting(config.ca_file, "traces.ca_file")  # the exporters take the file's name, or its bytes as they are
    if config.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        credentials = None
        if config.ca_file is not None:
            import grpc

            credentials = grpc.ssl_channel_credentials(Path(config.ca_file).read_bytes())
        return Grpc(
            endpoint=config.endpoint, headers=headers or None, timeout=config.export_seconds, credentials=credentials
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(
        endpoint=signal_url(config.endpoint),
        headers=headers,
        timeout=config.export_seconds,
        certificate_file=config.ca_file,
    )


def signal_url(endpoint: str) -> str:
    """The URL that spans are posted to: `/v1/traces` is added to an endpoint without a path."""
    bare = endpoint.rstrip("/")
    return f"{bare}/v1/traces" if bare.count("/") == 2 else endpoint


class Traces:
    """Takes Decisions on the event loop, and sends their spans from a thread. Never blocks and never raises there."""

    def __init__(
        self,
        config: TracesConfig,
        metrics: Metrics,
        *,
        agent: str | None = None,
        fault: Callable[[Fault], None],
    ) -> None:
        """`fault` is told, on the event loop, of batches that nobody took. Raises ConfigError."""
        self._config, self._metrics, self._tell = config, metrics, fault
        self._exporter = exporter_of(config)
        self._spans = Spans(config, agent)
        self._waiting: deque[tuple[Event | None, Sequence[Finding]]] = deque()
        self._limit, self._batch = config.queue_events, config.batch_spans
        # A fifth is kept back for what has findings: when there is too much, that is what must not be missed.
        self._room = self._limit - self._limit // 5
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard = _LastWords()
        self._switched = sys.getswitchinterval()
        metrics.watch("handrail_trace_queue_events", lambda: len(self._waiting))
        metrics.gauge("handrail_trace_queue_limit_events", self._limit)
        metrics.gauge("handrail_trace_up", 0)

    def take(self, decision: Decision) -> None:
        """One Decision; no parsed payload stays in memory behind the queue."""
        event, findings = decision.event, decision.findings
        if not findings and (event is None or event.outcome == "asked"):
            return
        waiting = self._waiting
        size = len(waiting)
        if size >= self._room and (size >= self._limit or not findings):
            self._metrics.dropped("trace_queue_full", False)
            return
        if event is not None and (event.payload is not None or event.reply is not None):
            event = event.bare()
        waiting.append((event, findings))
        if size >= self._batch and not self._wake.is_set():
            self._wake.set()

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard.listen()
        self._switched = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switched, SWITCH_SECONDS))
        self._thread = threading.Thread(target=self._run, name="handrail-traces", daemon=True)
        self._thread.start()

    async def stop(self, flush_seconds: float = CLOSE_SECONDS) -> None:
        """Sends what waits, for at most `flush_seconds`; what is left then is dropped and counted."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, flush_seconds)
        # Ends an export that is being tried again; the thread then finds its queue and drops it.
        await asyncio.to_thread(self._exporter.shutdown)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 1.0)
            self._thread = None
        if self._waiting:
            self._metrics.dropped("closed", False, len(self._waiting))
            self._waiting.clear()
        await asyncio.sleep(0)  # what the thread told the loop is counted before the last scrape
        self._heard.stop()
        sys.setswitchinterval(self._switched)

    def _run(self) -> None:
        while True:
            self._wake.wait(self._config.batch_seconds)
            is_last = self._closing.is_set()
            self._wake.clear()
            while self._waiting and (not is_last or self._exporter_is_open()):
                self._send()
            if is_last:
                return

    def _exporter_is_open(self) -> bool:
        return not getattr(self._exporter, "_shutdown", False)

    def _send(self) -> None:
        """One batch: to spans, to the receiver, and its result to the metrics."""
        waiting = self._waiting
        taken = [waiting.popleft() for _ in range(min(len(waiting), self._batch))]
        before = self._spans.unsampled
        try:
            made = self._spans.of(taken)
        except Exception as error:  # containment: spans that cannot be made cost themselves, never the traffic
            self._told(self._failed, len(taken), f"{type(error).__name__}: {error}", "error")
            return
        left_out = self._spans.unsampled - before
        if left_out:
            self._told(self._count, "unsampled", left_out)
        for start in range(0, len(made), self._batch):
            part = made[start : start + self._batch]
            problem = self._export([span for span, _ in part])
            if problem is None:
                self._told(self._sent, part)
            else:
                self._told(self._failed, len(part), problem, "unsent")

    def _export(self, spans: "list[ReadableSpan]") -> str | None:
        """Why the receiver did not take a batch, or None where it did."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            if self._exporter.export(spans) is SpanExportResult.SUCCESS:
                return None
        except Exception as error:  # containment: a transport's own errors are many, and each costs its batch only
            return f"{type(error).__name__}: {error}"
        return self._heard.last or "the receiver did not take them"

    # On the event loop, where all counting is done.

    def _count(self, result: str, n: int) -> None:
        self._metrics.count("handrail_trace_spans_total", result, n=n)

    def _sent(self, part: "list[tuple[ReadableSpan, Event | None]]") -> None:
        self._count("sent", len(part))
        self._metrics.gauge("handrail_trace_up", 1)
        for span, event in part:
            context = span.context
            if event is not None and context is not None and event.kind in HANDOFF_KINDS:
                self._metrics.exemplar(event, f"{context.trace_id:032x}", f"{context.span_id:016x}")

    def _failed(self, n: int, problem: str, reason: str) -> None:
        self._count("failed", n)
        self._metrics.dropped("trace_" + reason, False, n)
        self._metrics.gauge("handrail_trace_up", 0)
        self._tell(Fault(component="traces", reason=reason, message=f"{self._config.endpoint}: {problem}"))

    def _told(self, tell: Callable[..., None], *words: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left who could read a metric
                self._loop.call_soon_threadsafe(tell, *words)


class _LastWords(logging.Handler):
    """What the exporter logs when it fails, for one fault in place of its own lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._logger = logging.getLogger("opentelemetry.exporter")

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()[:500]

    def listen(self) -> None:
        self._logger.addHandler(self)
        self._logger.propagate = False

    def stop(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True
