"""What coordination costs, from two sidecars' events in ClickHouse to the report: views and pure code say the same."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from edge.chshim import Server
from handrail.edge.clickhouse import Batch
from handrail.edge.database import Database
from handrail.edge.report import ReportData, json_lines, render, report

BEGUN = time.time() - 100
HOUR = 3600.0


def seen(number: int, side: str, at: float, ms: float, source: str, target: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": "handoff",
        "id": f"e{number}",
        "at": round(BEGUN + at, 6),
        "workflow": "w1",
        "source": source,
        "target": target,
        "side": side,
        "outcome": "completed",
        "duration_ms": ms,
        "overhead_ms": 0.25,
        "inspection_ms": 0.125,
        "transfer_ms": 8.0 if side == "egress" else 5.0,
        **more,
    }


EVENTS = [
    seen(1, "egress", 0.0, 1000.0, "a", "b", trace_id="t", span_id="1"),
    seen(2, "ingress", -600.0, 800.0, "a", "b", trace_id="t", span_id="1"),
    seen(3, "egress", -599.8, 300.0, "b", "c", task="x", attempt=1),
    seen(4, "ingress", 7.0, 250.0, "b", "c", task="x", attempt=1),
    seen(5, "egress", 2.0, 500.0, "a", "c"),
    seen(6, "egress", 3.0, 10.0, "a", "b", workflow="w2", trace_id="t", span_id="2"),
    seen(7, "ingress", 4.0, 90.0, "a", "b", workflow="w2", trace_id="t", span_id="2"),  # longer than its caller waited
    seen(8, "ingress", 10.0, 500.0, "d", "e", workflow="w3", trace_id="t", span_id="3"),
    seen(9, "egress", 10.1, 20.0, "e", "f", workflow="w3", trace_id="t", span_id="3"),  # e handed its caller's span on
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    server = Server(tmp_path_factory.mktemp("clickhouse"))
    source = Database(server.dsn("handrail"), "handrail")
    source.prepare(30)
    body = "".join(json.dumps(row) + "\n" for row in EVENTS).encode()
    source.insert(Batch.seal("event", body, len(EVENTS)))
    yield source
    source.close()
    server.stop()


@pytest.fixture(scope="module")
def data(filled: Database) -> ReportData:
    return report(filled, HOUR)


def test_a_workflow_has_its_critical_path_in_the_report(data: ReportData) -> None:
    """Nested by what the clocks of two hosts have in common, ten minutes apart as they are."""
    flow = data.longest[0]
    assert (flow.workflow, flow.handoffs, flow.joined) == ("w1", 3, 2)
    assert [(step.target, round(step.self_ms)) for step in flow.path] == [
        ("b", 300),
        ("c", 300),
        ("b", 400),
        ("c", 500),
    ]
    assert flow.idle_ms == pytest.approx(1000.0, abs=0.01)
    assert flow.span_ms == pytest.approx(2500.0, abs=0.01)
    assert flow.between_ms == 250.0
    assert flow.between_share == pytest.approx(0.1, abs=1e-4)
    assert (flow.paths_used, flow.paths_possible) == (3, 6)
    assert flow.overhead_ms == 1.25
    assert flow.inspection_ms == 0.625
    assert flow.transfer_ms == 18.0  # of two that both ends saw what it took at the target, and of one what is known


def test_edges_say_what_lies_between_two_agents(data: ReportData) -> None:
    """Only where both ends were seen, and a target never takes longer than its caller waits."""
    told = {(line.source, line.target): line for line in data.overheads}
    assert set(told) == {("a", "b"), ("b", "c")}
    line = told["a", "b"]
    assert (line.handoffs, line.joined_count, line.total_p50_ms, line.own_p50_ms, line.between_p50_ms) == (
        2,
        1,
        1000.0,
        800.0,
        200.0,
    )
    assert (line.transfer_p50_ms, line.inspection_p50_ms) == (5.0, 0.25)
    edge = next(edge for edge in data.edges if (edge.source, edge.target) == ("b", "c"))
    assert (edge.inspection_p50_ms, edge.inspection_p99_ms) == (0.125, 0.125)
    assert edge.transfer_p99_ms == 8.0


def test_the_views_say_what_the_report_says(filled: Database, data: ReportData) -> None:
    """Edge by edge and workflow by workflow, the one included in which a span was handed on."""
    assert {flow.workflow: flow.handoffs for flow in data.longest} == {"w1": 3, "w2": 1, "w3": 2}
    edges = filled.rows("SELECT * FROM handrail.edge_overhead WHERE joined_count > 0")
    assert {(row["source"], row["target"], float(row["between_p50_ms"])) for row in edges} == {
        (line.source, line.target, line.between_p50_ms) for line in data.overheads
    }
    rows = filled.rows("SELECT * FROM handrail.workflow_overhead")
    for flow in data.longest:
        (row,) = [row for row in rows if row["workflow"] == flow.workflow]
        assert int(row["handoff_count"]) == flow.handoffs
        assert int(row["joined_count"]) == flow.joined
        assert (int(row["paths_used"]), int(row["paths_possible"])) == (flow.paths_used, flow.paths_possible)
        assert row["between_total_ms"] == flow.between_ms
        assert (row["transfer_total_ms"], row["inspection_total_ms"]) == (flow.transfer_ms, flow.inspection_ms)
        assert row["handrail_total_ms"] == flow.overhead_ms


def test_the_report_prints_both(data: ReportData) -> None:
    """As tables and as JSON lines with their type."""
    lines = [json.loads(line) for line in json_lines(data)]
    assert [line["type"] for line in lines].count("coordination") == 3
    assert [line["type"] for line in lines].count("overhead") == 2
    flow = next(line for line in lines if line["type"] == "coordination")
    assert flow["path"][1]["target"] == "c"
    console = Console(file=io.StringIO(), width=200)
    console.print(render(data))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Between agents, where both ends were seen" in text
    assert "3 of 6" in text
    assert "no handoff open 1,000" in text
