"""Events, findings and faults become Prometheus metrics.

A handoff costs one dictionary look-up and a few additions; everything that takes time happens in `render`, which is
meant to be called off the event loop. Which events count: `handoff`, `publish` and `deliver` are handoffs, each one hop
that was seen; events of every other kind are in `handrail_events_total`.

Every metric has at most `label_sets` label sets. Past that, source and target become `other`, then every label does,
and `handrail_metrics_label_overflow_total` says for which metric. So a scrape has a bound too. The text is
written here, and not by prometheus_client from its sample objects, because that costs 20 µs a line and holds the
interpreter meanwhile: 0.14 s for 200 label sets, where this takes a few milliseconds. The tests compare the two.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.utils import floatToGoString

from handrail import __version__
from handrail.event import Event, Fault, Finding

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

HANDOFF_KINDS: Final = frozenset(("handoff", "publish", "deliver"))

# Agents answer in milliseconds when they are tools and in minutes when a model thinks.
DURATION_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
# What Handrail adds is counted in microseconds: the first bucket is a third of what the data path is allowed.
OVERHEAD_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0)
PAYLOAD_BYTES: Final[tuple[float, ...]] = (256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 8_388_608)
CONTEXT_TOKENS: Final[tuple[float, ...]] = (256, 1_024, 4_096, 16_384, 32_768, 65_536, 131_072, 262_144, 1_048_576)
_DURATION_MS: Final[tuple[float, ...]] = tuple(bound * 1000 for bound in DURATION_SECONDS)
_OVERHEAD_MS: Final[tuple[float, ...]] = tuple(bound * 1000 for bound in OVERHEAD_SECONDS)
# A payload that fits one segment takes no time at all; one that is written piece by piece takes as long as its writer.
TRANSFER_SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0)
_TRANSFER_MS: Final[tuple[float, ...]] = tuple(bound * 1000 for bound in TRANSFER_SECONDS)
# A store answers in a tenth of a millisecond; an agent that polls reads after seconds.
STATE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)
_STATE_MS: Final[tuple[float, ...]] = tuple(bound * 1000 for bound in STATE_SECONDS)
_STEPS = {"write": ("duration_ms", "written"), "read": ("lag_ms", "read"), "publish": ("duration_ms", "published")}
WRITE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_EDGE = ("source", "target", "channel", "protocol")
_HANDOFFS = "handrail_handoffs_total"

COUNTERS: dict[str, tuple[tuple[str, ...], str]] = {
    "handrail_events_total": (("kind", "protocol"), "Events seen that are not handoffs."),
    "handrail_findings_total": (("rule", "severity"), "Occurrences of something wrong in the system that is watched."),
    "handrail_edge_findings_total": (
        ("rule", "severity", "source", "target"),
        "The same by edge; past the limit of label sets source and target are `other`.",
    ),
    "handrail_faults_total": (("component", "reason"), "What Handrail itself could not do."),
    "handrail_dropped_total": (("reason", "intentional"), "Records given up."),
    "handrail_uninspected_total": (("reason",), "Messages that passed without being read."),
    "handrail_sink_rows_total": (("table",), "Rows that ClickHouse confirmed."),
    "handrail_sink_batches_total": (("table", "result"), "Attempts to write a batch: stored, busy or refused."),
    "handrail_connections_total": (("side",), "Connections accepted."),
    "handrail_refused_total": (("reason",), "Requests answered by Handrail in place of the upstream."),
    "handrail_fallbacks_total": (("result",), "Tasks for a route's fallback: taken, or not_kept where too large."),
    "handrail_registry_requests_total": (("method", "status"), "Requests to the schema registry that is served."),
    "handrail_trace_spans_total": (("result",), "Spans: sent, failed, or unsampled and so never made."),
    "handrail_alerts_sent_total": (
        ("receiver", "result"),
        "Notices of alerts, by receiver (alertmanager, webhook): sent, unreachable, busy or refused.",
    ),
    "handrail_otlp_requests_total": (("signal", "result"), "OTLP requests, by how they were answered."),
    "handrail_otlp_forwarded_total": (("result",), "Attempts to pass an OTLP request on."),
    "handrail_metrics_label_overflow_total": (("metric",), "Observations whose labels became `other`."),
}
"""Every counter that is not derived from handoffs: name to labels and help."""

GAUGES: dict[str, str] = {
    "handrail_sink_up": "1 while the last attempt to reach ClickHouse succeeded.",
    "handrail_sink_queue_rows": "Rows waiting for ClickHouse.",
    "handrail_sink_queue_bytes": "Bytes waiting for ClickHouse.",
    "handrail_sink_queue_limit_rows": "Rows that may wait before new ones are dropped.",
    "handrail_connections": "Open client connections.",
    "handrail_in_flight": "Requests waiting for their reply.",
    "handrail_loop_lag_seconds": "How late the event loop ran a timer, at the last look.",
    "handrail_registry_subjects": "Schema subjects in force.",
    "handrail_registry_versions": "Schema versions in force.",
    "handrail_registry_valid": "0 while files in the schema directory are wrong and the last good set stays in force.",
    "handrail_registry_up": "1 while the last attempt to reach the schema registry that is followed succeeded.",
    "handrail_registry_age_seconds": "Time since the schemas in force were known to be those of the registry.",
    "handrail_registry_refused": "Schema versions of the registry that cannot be enforced, and are not in force.",
    "handrail_otlp_queue_bytes": "Bytes of OTLP requests waiting to be passed on.",
    "handrail_rules": "Rules in force.",
    "handrail_rules_off": "Rules switched off because their detector failed repeatedly.",
    "handrail_trace_up": "1 while the last batch of spans was taken by the receiver of traces.",
    "handrail_trace_queue_events": "Decisions waiting to become spans.",
    "handrail_trace_queue_limit_events": "Decisions that may wait before new ones are dropped.",
    "handrail_alerts_up": "1 while the last attempt at each receiver of alerts succeeded.",
    "handrail_alerts_firing": "Findings that were told to the receivers of alerts and are not over.",
    "handrail_alerts_waiting": "Notices waiting for a receiver of alerts.",
    "handrail_ready": "1 while the readiness check passes.",
}
"""Every gauge: name to help. Set by `gauge`, or read at render by `watch`."""


def _bucket(bounds: tuple[float, ...], value: float) -> int:
    """The place of the first bound that is not below the value: `bisect_left`, whose call alone takes longer."""
    place = 0
    for bound in bounds:
        if value <= bound:
            return place
        place += 1
    return place


class _Row:
    """The observations of one label set: how many in each bucket, and their sum.

    One mostly falls into the bucket of the one before: it costs two comparisons and two additions of machine numbers,
    and no object: 3,500 instructions less for a handoff than a search and a list. Nothing between two of the
    assignments to what `copy` reads lets another thread run.
    """

    __slots__ = ("_above", "_bounds", "_counts", "_place", "_run", "_sum", "_upto")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._place = 0
        self._run = 0  # those of bucket `_place` that `_counts` does not have yet
        self._above, self._upto = math.inf, -math.inf

    def add(self, value: float) -> None:
        """One observation."""
        if not self._above < value <= self._upto:
            self._turn_to(_bucket(self._bounds, value))
        self._run += 1
        self._sum += value

    def _turn_to(self, place: int) -> None:
        bounds = self._bounds
        self._above = bounds[place - 1] if place else -math.inf
        self._upto = bounds[place] if place < len(bounds) else math.inf
        self._counts[self._place] += self._run
        self._run = 0
        self._place = place

    def copy(self) -> tuple[list[int], float]:
        """How many in each bucket, the one without a bound last, and their sum."""
        counts, place, run, total = self._counts[:], self._place, self._run, self._sum
        counts[place] += run
        return counts, total


class _Histogram:
    """Label sets to their rows.

    `unit` turns what is observed into what is shown (milliseconds to seconds), at render and not for each observation.
    """

    def __init__(
        self,
        name: str,
        labels: tuple[str, ...],
        bounds: Sequence[float],
        help: str,
        unit: float = 1.0,
        observed: tuple[float, ...] | None = None,
    ) -> None:
        self.name, self.labels, self.bounds, self.help, self.unit = name, labels, bounds, help, unit
        self._observed = tuple(bounds) if observed is None else observed
        """The bounds in the unit of what is observed."""
        self.rows: dict[tuple[str, ...], _Row] = {}
        self.exemplars: dict[tuple[str, ...], dict[int, str]] = {}
        """Of a label set, the latest exemplar of each bucket as OpenMetrics writes it; only where traces are sent."""
        self._heads: dict[tuple[str, ...], tuple[list[str], str, str]] = {}

    def row(self, labels: tuple[str, ...]) -> _Row:
        """The row of a label set; a new one begins at nought."""
        row = self.rows.get(labels)
        if row is None:
            pairs = _pairs(self.labels, labels)
            comma = f"{pairs}," if pairs else ""
            heads = [f'{self.name}_bucket{{{comma}le="{_bound(bound)}"}} ' for bound in self.bounds]
            heads.append(f'{self.name}_bucket{{{comma}le="+Inf"}} ')
            self._heads[labels] = (heads, f"{self.name}_sum{{{pairs}}} ", f"{self.name}_count{{{pairs}}} ")
            row = self.rows[labels] = _Row(self._observed)
        return row

    def exemplar(self, labels: tuple[str, ...], value: float, trace: str, at: float) -> None:
        """Remembers which trace an observation belongs to; nothing where those labels were never counted."""
        if labels in self.rows:
            text = f" # {{{trace}}} {value * self.unit} {at:.3f}"
            self.exemplars.setdefault(labels, {})[_bucket(self._observed, value)] = text

    def lines(self, openmetrics: bool = False) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}\n# TYPE {self.name} histogram\n"
        for labels, row in list(self.rows.items()):
            counts, total = row.copy()
            if not any(counts):
                continue
            heads, sum_head, count_head = self._heads[labels]
            running = 0.0
            examples = dict(self.exemplars.get(labels, ())) if openmetrics else {}
            for at, (head, count) in enumerate(zip(heads, counts, strict=True)):
                running += count
                yield f"{head}{running}{examples.get(at, '')}\n"
            yield f"{sum_head}{total * self.unit}\n{count_head}{running}\n"


def _bound(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _pairs(names: Iterable[str], values: Iterable[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class _Edge:
    """What one label set of handoffs adds up to: how many, and its rows in the histograms, which others share."""

    __slots__ = ("contexts", "count", "durations", "inspections", "overheads", "sizes", "transfers")

    def __init__(
        self, durations: _Row, overheads: _Row, inspections: _Row, transfers: _Row, sizes: _Row, contexts: _Row
    ) -> None:
        self.count = 0
        self.durations, self.overheads, self.inspections = durations, overheads, inspections
        self.transfers, self.sizes, self.contexts = transfers, sizes, contexts


class Metrics:
    """Counts what happens, on the event loop; `render` may run in any thread meanwhile."""

    def __init__(self, label_sets: int = 200) -> None:
        self.label_sets = max(label_sets, 2)
        self._edges: dict[tuple[str | None, ...], _Edge] = {}
        self._named: dict[tuple[str, ...], _Edge] = {}
        self._counters: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in COUNTERS}
        self._gauges: dict[str, float] = {}
        self._watched: dict[str, Callable[[], float]] = {}
        self._duration = _Histogram(
            "handrail_handoff_duration_seconds",
            _EDGE,
            DURATION_SECONDS,
            "First byte of the request to the last byte of the reply.",
            unit=0.001,
            observed=_DURATION_MS,
        )
        # Not by edge: what Handrail adds depends on the protocol it reads, not on who talks.
        self._overhead = _Histogram(
            "handrail_handoff_overhead_seconds",
            ("channel", "protocol"),
            OVERHEAD_SECONDS,
            "Time that handoffs spent inside Handrail, both directions together.",
            unit=0.001,
            observed=_OVERHEAD_MS,
        )
        self._inspection = _Histogram(
            "handrail_handoff_inspection_seconds",
            ("channel", "protocol"),
            OVERHEAD_SECONDS,
            "Time to read, validate and judge a handoff, beside it; in its overhead only where it was held.",
            unit=0.001,
            observed=_OVERHEAD_MS,
        )
        self._transfer = _Histogram(
            "handrail_handoff_transfer_seconds",
            ("source", "target"),
            TRANSFER_SECONDS,
            "First to last byte of the request and of the reply: serialisation and transfer.",
            unit=0.001,
            observed=_TRANSFER_MS,
        )
        self._payload = _Histogram(
            "handrail_payload_bytes", ("source", "target"), PAYLOAD_BYTES, "Size of what was handed over."
        )
        self._tokens = _Histogram(
            "handrail_context_tokens", ("source", "target"), CONTEXT_TOKENS, "Tokens of context that were handed over."
        )
        self._state = _Histogram(
            "handrail_state_latency_seconds",
            ("store", "step"),
            STATE_SECONDS,
            "What is shared through stores and buses: `written` and `published` until acknowledged, `read` for the "
            "first time by another agent since then, `delivered` since the publish, `acknowledged` since the delivery.",
            unit=0.001,
            observed=_STATE_MS,
        )
        self._writes = _Histogram(
            "handrail_sink_write_seconds", ("table",), WRITE_SECONDS, "Time of one attempt to write a batch."
        )
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def handoff(self, event: Event) -> None:
        """One final event of any kind."""
        if event.store is not None:
            self._shared(event)
        if event.kind not in HANDOFF_KINDS:
            self.count("handrail_events_total", event.kind, event.protocol or "")
            return
        key = (event.source, event.target, event.channel, event.protocol, event.outcome)
        edge = self._edges.get(key)
        if edge is None:
            edge = self._edge(key)
        edge.count += 1
        if event.duration_ms is not None:
            edge.durations.add(event.duration_ms)
        if event.overhead_ms is not None:
            edge.overheads.add(event.overhead_ms)
        if event.inspection_ms is not None:
            edge.inspections.add(event.inspection_ms)
        if event.transfer_ms is not None:
            edge.transfers.add(event.transfer_ms)
        if event.payload_bytes is not None:
            edge.sizes.add(event.payload_bytes)
        if event.tokens is not None:
            edge.contexts.add(event.tokens)

    def latency(self, event: Event) -> None:
        """A delivery that was counted before and is acknowledged now."""
        self._observe_state(event.store, "acknowledged", event.duration_ms)

    def _shared(self, event: Event) -> None:
        if event.kind == "deliver":
            self._observe_state(event.store, "delivered", event.lag_ms)
        elif event.kind in _STEPS:
            field, step = _STEPS[event.kind]
            self._observe_state(event.store, step, getattr(event, field))

    def exemplar(self, event: Event, trace_id: str, span_id: str) -> None:
        """A handoff that was counted, and the span that was sent of it: what `render` shows beside its buckets."""
        trace = f'trace_id="{trace_id}",span_id="{span_id}"'
        edge = tuple(map(_label, (event.source, event.target, event.channel, event.protocol)))
        if edge not in self._duration.rows:
            edge = ("other", "other", *edge[2:])
        for histogram, labels, value in (
            (self._duration, edge, event.duration_ms),
            (self._overhead, edge[2:], event.overhead_ms),
            (self._payload, edge[:2], event.payload_bytes),
            (self._tokens, edge[:2], event.tokens),
        ):
            if value is not None:
                histogram.exemplar(labels, float(value), trace, event.at)
        if event.kind == "deliver" and event.lag_ms is not None and event.store is not None:
            labels = (event.store, "delivered")
            self._state.exemplar(labels, float(event.lag_ms), trace, event.at)

    def _observe_state(self, store: str | None, step: str, value: float | None) -> None:
        if value is None or store is None:
            return
        labels = (store, step)
        if labels not in self._state.rows and len(self._state.rows) >= self.label_sets - 1:
            self._overflow(self._state.name)
            labels = ("other", "other")
        self._state.row(labels).add(value)

    def finding(self, finding: Finding) -> None:
        self.count("handrail_findings_total", finding.rule, finding.severity, n=finding.count)
        name = "handrail_edge_findings_total"
        labels: tuple[str, ...] = (finding.rule, finding.severity, _label(finding.source), _label(finding.target))
        rows = self._counters[name]
        # A fifth is kept back, so that past the bound rules are still told apart.
        if labels not in rows and len(rows) >= self.label_sets - max(self.label_sets // 5, 1):
            self._overflow(name)
            labels = (finding.rule, finding.severity, "other", "other")
        self.count(name, *labels, n=finding.count)

    def fault(self, fault: Fault) -> None:
        self.count("handrail_faults_total", fault.component, fault.reason)

    def dropped(self, reason: str, intentional: bool, n: int = 1) -> None:
        """`n` records given up; `intentional` where the configuration asked for it."""
        self.count("handrail_dropped_total", reason, "true" if intentional else "false", n=n)

    def uninspected(self, reason: str) -> None:
        self.count("handrail_uninspected_total", reason)

    def count(self, name: str, *labels: str, n: float = 1) -> None:
        """Adds `n` to a counter of `COUNTERS`, its labels in their order. Raises KeyError on an unknown name."""
        rows = self._counters[name]
        if labels in rows:
            rows[labels] += n
            return
        labels = tuple(map(_label, labels))
        if labels not in rows and len(rows) >= self.label_sets - 1:
            self._overflow(name)
            labels = ("other",) * len(labels)
        rows[labels] = rows.get(labels, 0) + n

    def _overflow(self, name: str) -> None:
        # Without a bound: its labels are the metrics' own names.
        rows = self._counters["handrail_metrics_label_overflow_total"]
        rows[(name,)] = rows.get((name,), 0) + 1

    def gauge(self, name: str, value: float) -> None:
        """Sets a gauge of `GAUGES`. Raises KeyError on a name that is not there."""
        if name not in GAUGES:
            raise KeyError(name)
        self._gauges[name] = value

    def watch(self, name: str, read: Callable[[], float]) -> None:
        """A gauge of `GAUGES` that is read at render, in the renderer's thread: `read` only looks at a number."""
        if name not in GAUGES:
            raise KeyError(name)
        self._watched[name] = read

    def wrote(self, table: str, result: Literal["stored", "busy", "refused"], seconds: float, rows: int = 0) -> None:
        """One attempt of the sink to write a batch; `rows` confirmed."""
        self._writes.row((table,)).add(seconds)
        self.count("handrail_sink_batches_total", table, result)
        if rows:
            self.count("handrail_sink_rows_total", table, n=rows)

    def render(self) -> bytes:
        """Every metric in the Prometheus text format. Milliseconds of pure Python: call it off the event loop."""
        return "".join(self._lines()).encode() + generate_latest(self._process)

    def render_openmetrics(self) -> bytes:
        """The same as OpenMetrics 1.0 text, with exemplars where traces are sent."""
        process: bytes = generate_openmetrics(self._process)  # type: ignore[no-untyped-call]
        return "".join(self._lines(openmetrics=True)).encode() + process

    def _lines(self, openmetrics: bool = False) -> Iterator[str]:
        handoffs = ((labels, edge.count) for labels, edge in list(self._named.items()))
        yield from _family(_HANDOFFS, "counter", "Handoffs seen.", (*_EDGE, "outcome"), handoffs, openmetrics)
        for histogram in (
            self._duration,
            self._overhead,
            self._inspection,
            self._transfer,
            self._payload,
            self._tokens,
            self._state,
            self._writes,
        ):
            yield from histogram.lines(openmetrics)
        for name, (labels, help) in COUNTERS.items():
            yield from _family(name, "counter", help, labels, list(self._counters[name].items()), openmetrics)
        gauges = dict(self._gauges)
        gauges |= {name: float(read()) for name, read in list(self._watched.items())}
        for name, value in gauges.items():
            yield from _family(name, "gauge", GAUGES[name], (), [((), value)])
        build = [((__version__,), 1.0)]
        yield from _family("handrail_build_info", "gauge", "Always 1; the version is a label.", ("version",), build)

    # The slow path of `handoff`: once for each new label set, and for each event past the bound.

    def _edge(self, key: tuple[str | None, ...]) -> _Edge:
        labels = tuple(map(_label, key))
        edge = self._named.get(labels)
        # A fifth is kept back, so that past the bound the outcome is still told apart from the others.
        if edge is None and len(self._named) >= self.label_sets - max(self.label_sets // 5, 1):
            self._overflow(_HANDOFFS)
            labels = ("other", "other", *labels[2:])
            edge = self._named.get(labels)
            if edge is None and len(self._named) >= self.label_sets - 1:
                labels = ("other",) * 5
                edge = self._named.get(labels)
        elif len(self._edges) < 2 * self.label_sets:
            edge = edge or self._new(labels)
            self._edges[key] = edge
        return edge or self._new(labels)

    def _new(self, labels: tuple[str, ...]) -> _Edge:
        source, target, channel, protocol, _ = labels
        edge = self._named[labels] = _Edge(
            self._duration.row((source, target, channel, protocol)),
            self._overhead.row((channel, protocol)),
            self._inspection.row((channel, protocol)),
            self._transfer.row((source, target)),
            self._payload.row((source, target)),
            self._tokens.row((source, target)),
        )
        return edge


def _family(
    name: str,
    kind: str,
    help: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float]],
    openmetrics: bool = False,
) -> Iterator[str]:
    family = name
    if openmetrics and kind == "counter":
        # A counter's family has no `_total` there, only its samples have; where that is a gauge's name it can be none.
        bare = name.removesuffix("_total")
        family, kind = (name, "unknown") if bare in GAUGES else (bare, kind)
    yield f"# HELP {family} {help}\n# TYPE {family} {kind}\n"
    for values, value in rows:
        pairs = _pairs(labels, values)
        yield f"{name}{{{pairs}}} {float(value)}\n" if pairs else f"{name} {float(value)}\n"


def _label(value: str | None) -> str:
    """A label value that renders: absent is empty, what is not UTF-8 is replaced, and the length is bounded."""
    return "" if value is None else str(value)[:128].encode("utf-8", "replace").decode()
