"""Laws of the report: it says what a count by hand over the same events says."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edge.chshim import Server
from handrail.edge.clickhouse import Batch, Refused
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
        "workflow": f"w{number % 7}" if number % 3 else None,
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
        "event": f"e{number}",
        "workflow": "w3" if number % 2 else None,
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
        assert (line.first_message, line.message) == (mine[0]["message"], mine[-1]["message"])
        assert (line.first_event, line.latest_event) == (mine[0]["event"], mine[-1]["event"])
        assert line.first < line.latest
    assert {line.rule for line in data.findings} == {"r0", "r1"}


def test_schema_versions_in_use(data: ReportData) -> None:
    """And who sends them."""
    assert {(line.subject, line.version) for line in data.schemas} == {("a.b", "1"), ("a.b", "2")}
    assert all(line.sources for line in data.schemas)


def test_worst_workflows_come_first(data: ReportData) -> None:
    """What was found in them counts before what failed in them; a finding that repeats counts once."""
    assert data.workflows[0].workflow == "w3"
    assert data.workflows[0].critical == len({row["fingerprint"] for row in FINDINGS if row["workflow"] == "w3"})
    assert data.workflows[0].rules == ("r1",)
    assert data.workflows[0].message == "m19"
    others = data.workflows[1:]
    assert {line.workflow for line in others} == {f"w{number}" for number in range(7)} - {"w3"}
    assert [line.errors for line in others] == sorted((line.errors for line in others), reverse=True)
    for line in others:
        mine = [row for row in recent(EVENTS) if row["workflow"] == line.workflow and row["kind"] == "handoff"]
        assert len(mine) - 6 <= line.handoffs <= len(mine)  # the oldest leave the hour while the test waits its turn
        oldest = mine[line.handoffs - 1]
        assert line.elapsed_ms == pytest.approx((mine[0]["at"] - oldest["at"]) * 1000, abs=400_000)


def test_an_older_database_is_read_as_far_as_it_goes(server: Server, filled: Database) -> None:
    """A view that a later version brought is missing there; what is missing altogether is refused."""
    old = Database(server.dsn("old"), "old")
    old.prepare(30)
    old._connected().command("DROP VIEW old.handoff_overhead")
    assert report(old, 3600).overheads == ()
    body = b'{"kind":"handoff","id":"x","at":%d,"source":"a","target":"b","duration_ms":1}\n' % time.time()
    old.insert(Batch.seal("event", body, 1))
    assert report(old, 3600).edges[0].transfer_p50_ms is None
    old._connected().command(
        "CREATE OR REPLACE VIEW old.handoff AS SELECT * EXCEPT (inspection_ms, transfer_ms) FROM old.event"
    )
    (edge,) = report(old, 3600).edges
    assert (edge.p50_ms, edge.transfer_p50_ms) == (1.0, None)
    old._connected().command("DROP VIEW old.handoff")
    with pytest.raises(Refused):
        report(old, 3600)
    old.close()
    assert filled.name == "handrail"


def test_what_happened_over_time_adds_up(data: ReportData) -> None:
    """Every handoff and every finding is in one stretch of time, and they are a sixtieth of the whole."""
    assert data.step == 60
    assert sum(each.handoffs for each in data.traffic) == data.handoffs
    assert sum(each.errors for each in data.traffic) == data.errors
    assert sum(each.critical for each in data.found) == sum(row["count"] for row in FINDINGS)
    assert all(each.at % 60 == 0 for each in (*data.traffic, *data.found))
    assert abs(data.until - time.time()) < 60


def test_an_event_that_is_older_is_left_out(filled: Database) -> None:
    """A minute holds six or seven of them."""
    edges = report(filled, max(time.time() - NOW, 0) + 60).edges
    assert 5 <= sum(edge.handoffs for edge in edges) <= 7


def test_json_is_one_object_a_line_and_the_summary_last(data: ReportData) -> None:
    """Each says its type."""
    found = [json.loads(line) for line in json_lines(data)]
    types = [row["type"] for row in found]
    assert types[:13] == ["edge"] * 2 + ["workflow"] * 7 + ["findings"] * 2 + ["schema"] * 2
    assert types[-1] == "summary"
    assert types.count("summary") == 1
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


def test_it_fits_on_one_screen_whatever_there_is(data: ReportData) -> None:
    """The worst of each, how many there are, and where the rest is."""
    first, line = data.edges[0], data.findings[0]
    many = msgspec.structs.replace(
        data,
        edges=tuple(msgspec.structs.replace(first, target=f"t{n}", p95_ms=float(n)) for n in range(150)),
        findings=tuple(
            msgspec.structs.replace(line, rule=f"r{n}", severity="critical" if n == 149 else "info") for n in range(150)
        ),
    )
    console = Console(file=io.StringIO(), width=120)
    console.print(render(many))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("\n") <= 56
    assert "(6 of 150)" in text
    assert "t149" in text  # the slowest
    assert "t0 " not in text
    assert "r149" in text  # the only one that is critical
    assert "--html FILE shows the rest" in text


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
    printed = capsys.readouterr().out
    assert "Edges, last 1h" in printed
    assert {"source", "target", "protocol", "handoffs"} <= set(printed.split())  # nothing is cut off in a pipe
    assert "…" not in printed
    assert run(server.dsn("handrail"), "handrail", "1h", "text", "-") == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")
    for dsn, since, said in (
        (server.dsn("nowhere", "u:canary@"), "1h", "nothing was recorded"),
        ("http://u:canary@127.0.0.1:1", "1h", "is the server up"),
        ("ftp://u:canary@h", "1h", "must begin with"),
        (server.dsn("handrail", "u:canary@"), "soon", "write 90s"),
    ):
        assert run(dsn, "handrail", since, "text") == 2
        refused = capsys.readouterr()
        assert said in refused.err
        assert refused.err.count("\n") == 1
        assert refused.out == ""
        assert "canary" not in refused.err
    assert filled.name == "handrail"


TRAFFIC = """
import json, sys, urllib.request
envelope = {
    "task_id": "t", "source_agent": "writer", "target_agent": "critic", "status": "completed",
    "output": {"summary": "done", "artifacts": [], "confidence": 0.9},
    "context": {"original_goal": "g", "constraints": [], "decisions_made": []}, "metadata": {},
}
for number in range(12):
    headers = {"content-type": "application/json", "handrail-workflow": f"w{number // 4}"}
    body = json.dumps(envelope | {"task_id": f"t{number}", "verdict": number if number == 5 else "fine"}).encode()
    urllib.request.urlopen(urllib.request.Request(sys.argv[1], body, headers)).read()
"""

AGENT = """
import http.server
class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_a_recorded_run_is_reported(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """A sidecar records into embedded ClickHouse; the commands read it back, as JSON, as text and as a page."""
    schema = tmp_path / "schemas" / "writer.critic"
    schema.mkdir(parents=True)
    (schema / "1.json").write_text(json.dumps({"properties": {"verdict": {"type": "string"}}}))
    port, handrail = free_port(), [sys.executable, "-m", "handrail"]
    stored = ["--clickhouse", f"chdb://{tmp_path / 'db'}"]

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*handrail, *args], capture_output=True, text=True, timeout=50, check=True)

    with subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout is not None
            upstream = f"http://127.0.0.1:{int(agent.stdout.readline())}"
            command(
                "run", "--listen", f"127.0.0.1:{port}", "--upstream", upstream, "--agent", "critic",
                "--schemas", str(tmp_path / "schemas"), "--admin", "127.0.0.1:0", *stored,
                "--", sys.executable, "-c", TRAFFIC, f"http://127.0.0.1:{port}/tasks",
            )  # fmt: skip
        finally:
            agent.kill()
    page = tmp_path / "report.html"
    done = command("report", *stored, "--output", "json", "--html", str(page))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    edges = [line for line in lines if line["type"] == "edge"]
    assert [(edge["source"], edge["target"], edge["handoffs"]) for edge in edges] == [("writer", "critic", 12)]
    assert edges[0]["p95_ms"] > edges[0]["overhead_p50_ms"] > 0
    workflows = [line for line in lines if line["type"] == "workflow"]
    assert (workflows[0]["workflow"], workflows[0]["critical"] + workflows[0]["warnings"] > 0) == ("w1", True)
    assert {line["workflow"] for line in workflows} == {"w0", "w1", "w2"}
    assert "schema.violation" in {line["rule"] for line in lines if line["type"] == "findings"}
    assert [(line["subject"], line["version"]) for line in lines if line["type"] == "schema"] == [
        ("writer.critic", "1")
    ]
    assert lines[-1]["type"] == "summary"
    assert "critic" in page.read_text("utf-8")
    assert "schema.violation" in page.read_text("utf-8")
    assert "wrote" in done.stderr
    assert "schema.violation" in command("report", *stored).stdout


def test_a_page_that_cannot_be_written_is_said(server: Server, filled: Database, capsys: Any, tmp_path: Path) -> None:
    """With its name and why; 2."""
    target = str(tmp_path / "none" / "report.html")
    assert run(server.dsn("handrail"), "handrail", "1h", "text", target) == 2
    assert target in capsys.readouterr().err
    assert filled.name == "handrail"
