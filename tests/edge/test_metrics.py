"""Laws of the metrics: the text that is written here is what prometheus_client writes for the same observations."""

import threading
import time
from typing import Any

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from handrail import __version__
from handrail.edge import metrics as names
from handrail.edge.metrics import Metrics
from handrail.event import Event, Fault, Finding

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def event(**changes: Any) -> Event:
    return Event(**{"kind": "handoff", "id": "e", "at": 1.0, "outcome": "completed"} | changes)


def samples(text: bytes) -> Samples:
    """Every sample of a page but those of the process, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.startswith(("process_", "python_")) and not sample.name.endswith("_created")
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics.render()).get((name, frozenset(labels.items())), 0.0)


words = st.sampled_from(["", "a", "b", 'q"uote', "back\\slash", "new\nline", "\\n", "ünï"])
observations = st.builds(
    event,
    source=st.none() | words,
    target=words,
    channel=st.sampled_from([None, "call", "event"]),
    protocol=words,
    outcome=st.sampled_from(["completed", "failed"]),
    duration_ms=st.none() | st.floats(0, 1e6),
    overhead_ms=st.none() | st.floats(0, 1e4),
    inspection_ms=st.none() | st.floats(0, 1e3),
    transfer_ms=st.none() | st.floats(0, 1e5),
    payload_bytes=st.none() | st.integers(0, 2**24),
    tokens=st.none() | st.sampled_from([0, 256, 257, 1_048_576, 1_048_577]),
)


def reference(events: list[Event]) -> Samples:
    """The same observations through prometheus_client's own types."""
    registry = prometheus_client.CollectorRegistry()
    edge = ("source", "target", "channel", "protocol")
    total = prometheus_client.Counter(names._HANDOFFS, "x", (*edge, "outcome"), registry=registry)

    def histogram(name: str, labels: tuple[str, ...], buckets: Any) -> prometheus_client.Histogram:
        return prometheus_client.Histogram(name, "x", labels, buckets=buckets, registry=registry)

    duration = histogram("handrail_handoff_duration_seconds", edge, names.DURATION_SECONDS)
    overhead = histogram("handrail_handoff_overhead_seconds", edge[2:], names.OVERHEAD_SECONDS)
    inspection = histogram("handrail_handoff_inspection_seconds", edge[2:], names.OVERHEAD_SECONDS)
    transfer = histogram("handrail_handoff_transfer_seconds", edge[:2], names.TRANSFER_SECONDS)
    size = histogram("handrail_payload_bytes", edge[:2], names.PAYLOAD_BYTES)
    tokens = histogram("handrail_context_tokens", edge[:2], names.CONTEXT_TOKENS)
    for one in events:
        labels = tuple(text or "" for text in (one.source, one.target, one.channel, one.protocol))
        total.labels(*labels, one.outcome).inc()
        if one.duration_ms is not None:
            duration.labels(*labels).observe(one.duration_ms / 1000)
        if one.overhead_ms is not None:
            overhead.labels(*labels[2:]).observe(one.overhead_ms / 1000)
        if one.inspection_ms is not None:
            inspection.labels(*labels[2:]).observe(one.inspection_ms / 1000)
        if one.transfer_ms is not None:
            transfer.labels(*labels[:2]).observe(one.transfer_ms / 1000)
        if one.payload_bytes is not None:
            size.labels(*labels[:2]).observe(one.payload_bytes)
        if one.tokens is not None:
            tokens.labels(*labels[:2]).observe(one.tokens)
    return samples(prometheus_client.generate_latest(registry))


@given(st.lists(observations, max_size=30))
@settings(deadline=None)
def test_the_page_is_what_prometheus_client_would_write(events: list[Event]) -> None:
    """Sample for sample, escapes and buckets included; sums to the precision of a float."""
    metrics = Metrics()
    for one in events:
        metrics.handoff(one)
    expected = reference(events)
    seen = {
        key: number
        for key, number in samples(metrics.render()).items()
        if key[0].startswith(("handrail_handoff", "handrail_payload", "handrail_context"))
    }
    assert seen.keys() == expected.keys()
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("bound", names.DURATION_SECONDS)
def test_a_bucket_holds_its_own_bound(bound: float) -> None:
    """`le` means less than or equal, after the change of unit too."""
    metrics = Metrics()
    metrics.handoff(event(duration_ms=bound * 1000))
    labels = dict.fromkeys(("source", "target", "channel", "protocol"), "")
    assert value(metrics, "handrail_handoff_duration_seconds_bucket", **labels, le=str(bound)) == 1


@pytest.mark.parametrize("kind", ["write", "read", "wait", "resume", "plan", "usage"])
def test_what_is_no_handoff_is_counted_as_an_event(kind: str) -> None:
    """And not as a handoff."""
    metrics = Metrics()
    metrics.handoff(event(kind=kind, protocol="redis"))
    page = samples(metrics.render())
    assert page[("handrail_events_total", frozenset({("kind", kind), ("protocol", "redis")}))] == 1
    assert not [key for key in page if key[0] == "handrail_handoffs_total"]


def test_every_counter_counts() -> None:
    """Under the names and labels of the design."""
    metrics = Metrics()
    metrics.finding(Finding(rule="r", kind="k", severity="warning", at=1.0, count=3))
    metrics.fault(Fault(component="registry", reason="error"))
    metrics.dropped("queue_full", False, 5)
    metrics.dropped("sampled", True)
    metrics.uninspected("too_large")
    metrics.wrote("event", "stored", 0.02, 7)
    metrics.gauge("handrail_in_flight", 4)
    metrics.watch("handrail_sink_queue_rows", lambda: 9)
    assert value(metrics, "handrail_findings_total", rule="r", severity="warning") == 3
    assert value(metrics, "handrail_faults_total", component="registry", reason="error") == 1
    assert value(metrics, "handrail_dropped_total", reason="queue_full", intentional="false") == 5
    assert value(metrics, "handrail_dropped_total", reason="sampled", intentional="true") == 1
    assert value(metrics, "handrail_uninspected_total", reason="too_large") == 1
    assert value(metrics, "handrail_sink_rows_total", table="event") == 7
    assert value(metrics, "handrail_sink_write_seconds_count", table="event") == 1
    assert value(metrics, "handrail_in_flight") == 4
    assert value(metrics, "handrail_sink_queue_rows") == 9
    assert value(metrics, "handrail_build_info", version=__version__) == 1


def test_a_name_that_is_not_listed_is_refused() -> None:
    """Dashboards and alerts rely on a closed list."""
    metrics = Metrics()
    for order in (
        lambda: metrics.gauge("handrail_nonsense", 1),
        lambda: metrics.watch("handrail_nonsense", lambda: 1),
        lambda: metrics.count("handrail_nonsense", "x"),
    ):
        with pytest.raises(KeyError):
            order()


@pytest.mark.parametrize("limit", [2, 10, 200])
def test_no_metric_has_more_label_sets_than_its_bound(limit: int) -> None:
    """Whatever the traffic calls itself; nothing is lost from the totals, and the overflow is counted."""
    metrics = Metrics(limit)
    for number in range(1000):
        outcome = ("completed", "failed")[number % 2]
        metrics.handoff(event(source=f"s{number}", target="t", protocol=f"p{number % 9}", outcome=outcome, tokens=1))
        metrics.fault(Fault(component=f"c{number}", reason="error"))
    sets: dict[str, set[frozenset[tuple[str, str]]]] = {}
    for name, labels in samples(metrics.render()):
        sets.setdefault(name, set()).add(frozenset(pair for pair in labels if pair[0] != "le"))
    assert max(map(len, sets.values())) <= limit
    page = samples(metrics.render())
    assert sum(number for key, number in page.items() if key[0] == "handrail_handoffs_total") == 1000
    assert sum(number for key, number in page.items() if key[0] == "handrail_context_tokens_count") == 1000
    assert sum(number for key, number in page.items() if key[0] == "handrail_faults_total") == 1000
    overflow = "handrail_metrics_label_overflow_total"
    assert value(metrics, overflow, metric="handrail_handoffs_total") >= 1000 - limit
    assert value(metrics, overflow, metric="handrail_faults_total") == 1000 - (limit - 1)


def test_past_the_bound_the_outcome_is_still_told() -> None:
    """Source and target become `other` first."""
    metrics = Metrics(50)
    for number in range(500):
        metrics.handoff(event(source=f"s{number}", target="t", outcome=("completed", "failed")[number % 2]))
    labels = {"source": "other", "target": "other", "channel": "", "protocol": ""}
    assert value(metrics, "handrail_handoffs_total", **labels, outcome="failed") > 200


def test_names_that_cannot_be_written_do_not_break_the_page() -> None:
    """Lone surrogates and long names come from payloads."""
    metrics = Metrics()
    metrics.handoff(event(source="\ud800", target="x" * 10_000))
    assert value(
        metrics, "handrail_handoffs_total", source="?", target="x" * 128, channel="", protocol="", outcome="completed"
    )


def test_a_page_at_the_bound_renders_quickly() -> None:
    """10,000 agents came by; the page is bounded, and so is the time that it holds the interpreter."""
    metrics = Metrics()
    for number in range(10_000):
        metrics.handoff(event(source=f"s{number}", target=f"t{number}", duration_ms=1.0, payload_bytes=1, tokens=1))
    took = []
    for _ in range(5):
        began = time.perf_counter()
        metrics.render()
        took.append(time.perf_counter() - began)
    assert min(took) < 0.05


def test_a_page_may_be_rendered_while_things_happen() -> None:
    """In another thread, with new label sets appearing: every page parses, and counters never go back."""
    metrics = Metrics()
    stop = threading.Event()

    def happen() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            metrics.handoff(event(source=f"s{number // 100}", duration_ms=float(number % 100)))

    thread = threading.Thread(target=happen)
    thread.start()
    try:
        last = 0.0
        for _ in range(6):
            page = samples(metrics.render())
            total = sum(number for key, number in page.items() if key[0] == "handrail_handoffs_total")
            assert total >= last
            last = total
    finally:
        stop.set()
        thread.join()
    assert last > 0
