"""Laws of the report: it says what a count by hand over the same events says."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edge.chshim import Server
from handrail.edge.clickhouse import Batch
from handrail.edge.database import Database
from handrail.edge.report import ReportData, json_lines, render, report, run, since_seconds, since_text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    shim = Server(tmp_path_factory.mktemp("clickhouse"))
    yield shim
    shim.stop()


NOW = time.time()

EVENTS: list[dict[str, Any]] = [
    {
        "kind": "usage" if number % 17 == 0 else "handoff",
        "id": f"e{number}",
        "at": round(NOW - number * 10.0, 6),
        "source": f"[red]s{number % 2}[/]",
        "target": "t\u001b[31m",
        "outcome": "failed" if number % 5 == 0 else "completed",
        "duration_ms": float(number * 31 % 97),
        "overhead_ms": 0.05,
        "subject": "a.b" if number % 3 else None,
        "version": "2" if number % 4 else "1",
    }
    for number in range(500)
]
FINDINGS: list[dict[str, Any]] = [
    {
        "rule": f"r{number % 2}",
        "kind": "k",
        "severity": "critical",
        "at": round(NOW - 1000.0 + number, 6),
        "fingerprint": f"f{number % 4}",
        "message": f"m{number}",
        "count": number % 3 + 1,
    }
    for number in range(20)
]


@pytest.fixture(scope="module")
def filled(server: Server) -> Iterator[Database]:
    source = Database(server.dsn("handrail"), "handrail")
    source.prepare(30)
    for table, rows in (("event", EVENTS), ("finding", FINDINGS)):
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        for trailer in (b"", b"\n"):  # the copy has another token; a report counts a row once
            source.insert(Batch.seal(table, body + trailer, len(rows)))
    yield source
    source.close()


@pytest.fixture(scope="module")
def data(filled: Database) -> ReportData:
    return report(filled, 3600)


def recent(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The edge of the hour lies between two events, five seconds from each.
    return [row for row in rows if row["at"] > NOW - 3600 + 5]


def test_edges_are_those_of_the_events(data: ReportData) -> None:
    """Counts, errors and percentiles, of handoffs only."""
    handoffs = [row for row in recent(EVENTS) if row["kind"] == "handoff"]
    assert abs(data.handoffs - len(handoffs)) <= 1 + (time.time() - NOW) // 10
    for edge in data.edges:
        mine = [row for row in handoffs if row["source"] == edge.source][: edge.handoffs]
        assert edge.handoffs == len(mine)
        times = sorted(row["duration_ms"] for row in mine)
        assert (edge.p50_ms, edge.p95_ms) == (times[int(0.5 * len(times))], times[int(0.95 * len(times))])
        assert edge.errors == sum(row["outcome"] == "failed" for row in mine)
        assert edge.overhead_p99_ms == 0.05
        assert edge.per_second == pytest.approx(edge.handoffs / 3600)


def test_findings_are_by_rule_with_first_and_latest(data: ReportData) -> None:
    """Occurrences are the sum of the counts, places the fingerprints."""
    for line in data.findings:
        mine = [row for row in FINDINGS if row["rule"] == line.rule]
        assert line.occurrences == sum(row["count"] for row in mine)
        assert line.places == len({row["fingerprint"] for row in mine})
        assert line.message == mine[-1]["message"]
        assert line.first < line.latest
    assert {line.rule for line in data.findings} == {"r0", "r1"}


def test_schema_versions_in_use(data: ReportData) -> None:
    """And who sends them."""
    assert {(line.subject, line.version) for line in data.schemas} == {("a.b", "1"), ("a.b", "2")}
    assert all(line.sources for line in data.schemas)


def test_an_event_that_is_older_is_left_out(filled: Database) -> None:
    """A minute holds six or seven of them."""
    edges = report(filled, max(time.time() - NOW, 0) + 60).edges
    assert 5 <= sum(edge.handoffs for edge in edges) <= 7


def test_json_is_one_object_a_line_and_the_summary_last(data: ReportData) -> None:
    """Each says its type."""
    found = [json.loads(line) for line in json_lines(data)]
    assert [row["type"] for row in found] == ["edge"] * 2 + ["findings"] * 2 + ["schema"] * 2 + ["summary"]
    assert found[-1]["handoffs"] == sum(row["handoffs"] for row in found[:2])
    assert found[-1]["findings"] == sum(row["count"] for row in FINDINGS)


def test_names_from_the_traffic_are_shown_and_not_obeyed(data: ReportData) -> None:
    """Neither markup nor escape sequences."""
    console = Console(file=io.StringIO(), width=200)
    console.print(render(data))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]s0[/]" in text
    assert "\x1b" not in text
    assert "t\\x1b[31m" in text


def test_nothing_is_said_to_be_nothing() -> None:
    """Three sentences in place of three empty tables."""
    console = Console(file=io.StringIO(), width=100)
    console.print(render(ReportData(since_seconds=3600, edges=(), findings=(), schemas=())))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "No handoffs in the last 1h." in text
    assert "No findings" in text


@given(st.integers(1, 10**6), st.sampled_from(["", "s", "m", "h", "d"]))
def test_a_span_reads_as_it_was_written(number: int, unit: str) -> None:
    """Seconds to text and back."""
    seconds = since_seconds(f"{number}{unit}")
    assert since_seconds(since_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1w", "0", "1.5h", "1h; DROP TABLE event"])
def test_what_is_no_span_is_refused(text: str) -> None:
    """With an example of what is one."""
    with pytest.raises(ValueError, match="1h"):
        since_seconds(text)


def test_the_command_prints_and_says_how_it_went(
    server: Server, filled: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 with the report on standard output, 2 with one sentence on standard error and nothing else."""
    assert run(server.dsn("handrail", "u:canary@"), "handrail", "1h", "json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["type"] == "summary"
    assert run(server.dsn("handrail"), "handrail", "1h", "text") == 0
    assert "Edges, last 1h" in capsys.readouterr().out
    for dsn, since, said in (
        (server.dsn("nowhere", "u:canary@"), "1h", "nothing was recorded"),
        ("http://u:canary@127.0.0.1:1", "1h", "is the server up"),
        ("ftp://u:canary@h", "1h", "must begin with"),
        (server.dsn("handrail", "u:canary@"), "soon", "write 90s"),
    ):
        assert run(dsn, "handrail", since, "text") == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
        assert "canary" not in printed.err
    assert filled.name == "handrail"
