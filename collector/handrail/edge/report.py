"""What ClickHouse holds becomes a report: edges with their latency, workflows, findings, schema versions in use.

`report` asks, `render` draws one screen of it for a terminal, `json_lines` writes all of it, and `report_html` makes a
page of it.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import orjson
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from handrail.edge.clickhouse import Busy, Refused
from handrail.edge.coordination import HOPS, OVERHEADS, Overhead, overheads_of, path_of, workflows_of
from handrail.event import SEVERITIES
from handrail.graph.overhead import Workflow

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

# The limits keep a report readable and its answer bounded; the tables say where they cut.
ROWS = 200
WORKFLOWS = 20
SCREEN = {"edges": 6, "workflows": 4, "findings": 4, "schemas": 4, "overheads": 3, "longest": 3}
"""How many of each fit on one screen; the rest is in the JSON and on the page."""
POINTS = 60
"""How many stretches of time a chart shows."""

EDGES = """
SELECT
    source, target, channel, protocol,
    count() AS handoffs,
    handoffs / greatest({seconds}, 1) AS per_second,
    countIf(outcome IN ('failed', 'rejected', 'dropped', 'timeout', 'interrupted')) AS errors,
    quantileExact(0.5)(duration_ms) AS p50_ms,
    quantileExact(0.95)(duration_ms) AS p95_ms,
    quantileExact(0.99)(duration_ms) AS p99_ms,
    quantileExact(0.5)(overhead_ms) AS overhead_p50_ms,
    quantileExact(0.99)(overhead_ms) AS overhead_p99_ms
FROM {database}.handoff
WHERE at > now64(6) - INTERVAL {seconds} SECOND
GROUP BY source, target, channel, protocol
ORDER BY handoffs DESC, source, target, channel, protocol
LIMIT {rows}
"""

# Beside `EDGES`, because a database that an older version prepared has no such columns.
PARTS = """
SELECT
    source, target, channel, protocol,
    quantileExact(0.5)(transfer_ms) AS transfer_p50_ms,
    quantileExact(0.99)(transfer_ms) AS transfer_p99_ms,
    quantileExact(0.5)(inspection_ms) AS inspection_p50_ms,
    quantileExact(0.99)(inspection_ms) AS inspection_p99_ms
FROM {database}.handoff
WHERE at > now64(6) - INTERVAL {seconds} SECOND
GROUP BY source, target, channel, protocol
ORDER BY count() DESC, source, target, channel, protocol
LIMIT {rows}
"""

FINDINGS = """
SELECT
    rule, severity,
    sum(f.count) AS occurrences,
    uniqExact(f.fingerprint) AS places,
    formatDateTime(min(f.at), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS first,
    formatDateTime(max(f.at), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS latest,
    argMax(f.message, f.at) AS message,
    argMin(f.message, f.at) AS first_message,
    nullIf(argMin(ifNull(f.event, ''), f.at), '') AS first_event,
    nullIf(argMax(ifNull(f.event, ''), f.at), '') AS latest_event,
    nullIf(argMin(ifNull(f.workflow, ''), f.at), '') AS first_workflow,
    nullIf(argMax(ifNull(f.workflow, ''), f.at), '') AS latest_workflow
FROM {database}.finding AS f FINAL
WHERE f.at > now64(6) - INTERVAL {seconds} SECOND
GROUP BY rule, severity
ORDER BY occurrences DESC, rule, severity
LIMIT {rows}
"""

SCHEMAS = """
SELECT
    subject, version,
    count() AS handoffs,
    arraySort(groupUniqArray(20)(ifNull(source, ''))) AS sources,
    formatDateTime(min(h.at), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS first,
    formatDateTime(max(h.at), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS latest
FROM {database}.handoff AS h
WHERE h.at > now64(6) - INTERVAL {seconds} SECOND AND subject IS NOT NULL
GROUP BY subject, version
ORDER BY subject, version
LIMIT {rows}
"""


# Worst first: what was found in them, then what failed in them, then how long they took. Findings are counted by
# fingerprint, because the repeats of ten seconds are one row, which names the workflow of the last of them.
WORST = """
SELECT
    workflow,
    sum(handoff) AS handoffs,
    sum(error) AS errors,
    uniqExactIf(fingerprint, severity != '') AS findings,
    uniqExactIf(fingerprint, severity = 'critical') AS critical,
    uniqExactIf(fingerprint, severity = 'warning') AS warnings,
    toFloat64(dateDiff('microsecond', min(began), max(ended))) / 1000 AS elapsed_ms,
    arraySort(groupUniqArrayIf(8)(rule, rule != '')) AS rules,
    argMax(message, (message != '', multiIf(severity = 'critical', 2, severity = 'warning', 1, 0), began)) AS message,
    formatDateTime(min(began), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS first,
    formatDateTime(max(began), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS latest
FROM
(
    SELECT
        assumeNotNull(h.workflow) AS workflow, 1 AS handoff,
        toUInt64(outcome IN ('failed', 'rejected', 'dropped', 'timeout', 'interrupted')) AS error,
        '' AS fingerprint, '' AS severity, '' AS rule, '' AS message, h.at AS began,
        h.at + toIntervalMicrosecond(toInt64(least(ifNull(duration_ms, 0), 1e9) * 1000)) AS ended
    FROM {database}.handoff AS h
    WHERE h.at > now64(6) - INTERVAL {seconds} SECOND AND h.workflow IS NOT NULL
    UNION ALL
    SELECT
        assumeNotNull(f.workflow), 0, toUInt64(0),
        f.fingerprint, toString(f.severity), toString(f.rule), f.message, f.at, f.at
    FROM {database}.finding AS f FINAL
    WHERE f.at > now64(6) - INTERVAL {seconds} SECOND AND f.workflow IS NOT NULL
)
GROUP BY workflow
ORDER BY critical DESC, warnings DESC, errors DESC, findings DESC, elapsed_ms DESC, workflow
LIMIT {workflows}
"""

TRAFFIC = """
SELECT
    toUnixTimestamp(toStartOfInterval(h.at, INTERVAL {step} SECOND, 'UTC')) AS at,
    count() AS handoffs,
    countIf(outcome IN ('failed', 'rejected', 'dropped', 'timeout', 'interrupted')) AS errors,
    quantileExact(0.5)(duration_ms) AS p50_ms,
    quantileExact(0.95)(duration_ms) AS p95_ms,
    quantileExact(0.99)(overhead_ms) AS overhead_p99_ms
FROM {database}.handoff AS h
WHERE h.at > now64(6) - INTERVAL {seconds} SECOND
GROUP BY at
ORDER BY at
"""

FOUND = """
SELECT
    toUnixTimestamp(toStartOfInterval(f.at, INTERVAL {step} SECOND, 'UTC')) AS at,
    sumIf(f.count, severity = 'critical') AS critical,
    sumIf(f.count, severity = 'warning') AS warning,
    sumIf(f.count, severity = 'info') AS info
FROM {database}.finding AS f FINAL
WHERE f.at > now64(6) - INTERVAL {seconds} SECOND
GROUP BY at
ORDER BY at
"""

NOW = "SELECT toString(now64(6, 'UTC')) AS text, toUnixTimestamp(now('UTC')) AS seconds"


class Asked(Protocol):
    """What a report needs of `database.Database`."""

    name: str

    def rows(self, sql: str) -> list[dict[str, Any]]: ...


class Edge(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="edge"):
    """One edge: who hands to whom, how often, and how long it takes."""

    source: str | None
    target: str | None
    channel: str | None
    protocol: str | None
    handoffs: int
    per_second: float
    errors: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    overhead_p50_ms: float | None
    overhead_p99_ms: float | None
    transfer_p50_ms: float | None = None
    """First to last byte of the request and of the reply: serialisation and transfer."""
    transfer_p99_ms: float | None = None
    inspection_p50_ms: float | None = None
    """What reading, validating and judging took Handrail, beside the handoff."""
    inspection_p99_ms: float | None = None


class FindingLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="findings"):
    """Every finding of one rule: how often, in how many places (fingerprints), when first and latest."""

    rule: str
    severity: str
    occurrences: int
    places: int
    first: str
    latest: str
    message: str
    """Of the latest."""
    first_message: str = ""
    first_event: str | None = None
    latest_event: str | None = None
    first_workflow: str | None = None
    latest_workflow: str | None = None


class WorkflowLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="workflow"):
    """One workflow, and what went wrong in it."""

    workflow: str
    handoffs: int
    errors: int
    findings: int
    """Different ones: a finding that comes again is one."""
    critical: int
    warnings: int
    elapsed_ms: float
    """From its first handoff or finding of this span of time to the end of its last."""
    rules: tuple[str, ...]
    message: str
    """The latest of the worst."""
    first: str
    latest: str


class Traffic(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="traffic"):
    """What was handed over in one stretch of time that begins at `at`, in seconds since the epoch."""

    at: int
    handoffs: int
    errors: int
    p50_ms: float | None
    p95_ms: float | None
    overhead_p99_ms: float | None


class Found(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="found"):
    """What was found in one stretch of time."""

    at: int
    critical: int
    warning: int
    info: int


class SchemaLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="schema"):
    """One schema version that was seen in use, and who sent it."""

    subject: str
    version: str | None
    handoffs: int
    sources: tuple[str, ...]
    first: str
    latest: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """What the tables hold about the last `since_seconds`."""

    since_seconds: int
    edges: tuple[Edge, ...]
    findings: tuple[FindingLine, ...]
    schemas: tuple[SchemaLine, ...]
    workflows: tuple[WorkflowLine, ...] = ()
    """The worst ones, worst first."""
    traffic: tuple[Traffic, ...] = ()
    found: tuple[Found, ...] = ()
    overheads: tuple[Overhead, ...] = ()
    """Edges of which both ends were seen; those first that spent most between agents."""
    longest: tuple[Workflow, ...] = ()
    """What coordination cost in the longest workflows."""
    until: int = 0
    """When it was asked, by the clock of ClickHouse."""

    @property
    def handoffs(self) -> int:
        return sum(edge.handoffs for edge in self.edges)

    @property
    def errors(self) -> int:
        return sum(edge.errors for edge in self.edges)

    @property
    def step(self) -> int:
        """Seconds of one stretch of time in `traffic` and `found`."""
        return step_of(self.since_seconds)

    def occurrences(self, severity: str) -> int:
        return sum(line.occurrences for line in self.findings if line.severity == severity)


def step_of(seconds: int) -> int:
    return max(seconds // POINTS, 1)


def report(client: Asked, since_seconds: float) -> ReportData:
    """Asks ClickHouse. Raises Busy or Refused."""
    seconds = max(int(since_seconds), 1)
    now = client.rows(NOW)[0]
    instant = f"toDateTime64('{now['text']}', 6, 'UTC')"  # one for all questions, so that their answers add up

    def ask(sql: str) -> list[dict[str, Any]]:
        sql = sql.replace("{database}", client.name).replace("{seconds}", str(seconds))
        sql = sql.replace("now64(6)", instant)
        sql = sql.replace("{step}", str(step_of(seconds))).replace("{workflows}", str(WORKFLOWS))
        return client.rows(sql.replace("{rows}", str(ROWS)))

    def ask_newer(sql: str) -> list[dict[str, Any]]:
        """What a database that an older version prepared has no view for is left out."""
        try:
            return ask(sql)
        except Refused as error:
            if error.reason != "schema":
                raise
            return []

    parts = {tuple(row[name] for name in _EDGE): row for row in ask_newer(PARTS)}
    edges = [{**parts.get(tuple(row[name] for name in _EDGE), {}), **row} for row in ask(EDGES)]
    return ReportData(
        since_seconds=seconds,
        edges=tuple(_record(row, Edge) for row in edges),
        findings=tuple(_record(row, FindingLine) for row in ask(FINDINGS)),
        schemas=tuple(_record(row, SchemaLine) for row in ask(SCHEMAS)),
        workflows=tuple(_record(row, WorkflowLine) for row in ask(WORST)),
        traffic=tuple(_record(row, Traffic) for row in ask(TRAFFIC)),
        found=tuple(_record(row, Found) for row in ask(FOUND)),
        overheads=overheads_of(ask_newer(OVERHEADS)),
        longest=workflows_of(ask_newer(HOPS)),
        until=int(now["seconds"]),
    )


_EDGE = ("source", "target", "channel", "protocol")


def _record(row: Mapping[str, Any], into: type[Any]) -> Any:
    # ClickHouse writes 64-bit integers as strings where a setting says so; lax mode takes both.
    return msgspec.convert({**row, "type": into.__struct_config__.tag}, into, strict=False)


def render(data: ReportData) -> RenderableType:
    """A report as one screen: what stands out, then edges and workflows and findings, the worst of each first."""
    since = since_text(data.since_seconds)
    shown: tuple[tuple[str, Table, int, str], ...] = (
        ("edges", _edges(data), len(data.edges), f"No handoffs in the last {since}."),
        ("workflows", _workflows(data), len(data.workflows), "No handoff named a workflow."),
        ("findings", _findings(data), len(data.findings), f"No findings in the last {since}."),
        ("schemas", _schemas(data), len(data.schemas), "No handoff named a schema."),
    )
    if data.overheads:
        shown = (*shown, ("overheads", _overheads(data), len(data.overheads), ""))
    if data.longest:
        shown = (*shown, ("longest", _longest(data), len(data.longest), ""))
    parts: list[RenderableType] = [_headline(data)]
    for name, table, rows, empty in shown:
        if rows > SCREEN[name]:
            table.title = f"{table.title} ({SCREEN[name]} of {rows}{' at least' if rows >= ROWS else ''})"
        parts += [Text(), table if rows else Text(empty)]
    cut = any(rows > SCREEN[name] for name, _, rows, _ in shown)
    if cut:
        parts += [Text(), Text("--output json or --html FILE shows the rest", style="dim")]
    return Group(*parts)


def _headline(data: ReportData) -> Text:
    """How much, how well, and what was found, in one line."""
    line = Text(f"Last {since_text(data.since_seconds)}: ", style="bold")
    line.append(f"{data.handoffs:,} handoffs", style="not bold")
    share = data.errors / data.handoffs if data.handoffs else 0.0
    line.append(f", {data.errors:,} failed ({share:.1%})", style="red" if data.errors else "not bold")
    for severity, style in _STYLES.items():
        count = data.occurrences(severity)
        line.append(f", {count:,} {severity}", style=style if count else "not bold")
    return line


_STYLES = {"critical": "bold red", "warning": "yellow", "info": "not bold"}


def slowest_first(edges: tuple[Edge, ...]) -> list[Edge]:
    """Edges in the order in which a person looks at them: by their 95th percentile, those without one last."""
    return sorted(edges, key=lambda edge: -1.0 if edge.p95_ms is None else edge.p95_ms, reverse=True)


def worst_first(findings: tuple[FindingLine, ...]) -> list[FindingLine]:
    """Rules by severity, then by how often."""
    rank: Mapping[str, int] = {severity: number for number, severity in enumerate(SEVERITIES)}
    return sorted(findings, key=lambda line: (-rank.get(line.severity, -1), -line.occurrences, line.rule))


def _table(title: str) -> Table:
    plain = box.SIMPLE_HEAD
    return Table(title=title, title_justify="left", title_style="bold", box=plain, pad_edge=False, show_edge=False)


def _edges(data: ReportData) -> Table:
    title = f"Edges, last {since_text(data.since_seconds)}, slowest first"
    edges = _table(title)
    is_known = any(edge.inspection_p50_ms is not None for edge in data.edges)
    parts = ("transfer p50 ms", "checks p50 ms") if is_known else ()
    for name in ("source", "target", "protocol"):
        edges.add_column(name)
    for name in ("handoffs", "/s", "errors", "p50 ms", "p95 ms", "p99 ms", "overhead p50 ms", "p99 ms", *parts):
        edges.add_column(name, justify="right")
    for edge in slowest_first(data.edges)[: SCREEN["edges"]]:
        times = [edge.p50_ms, edge.p95_ms, edge.p99_ms, edge.overhead_p50_ms, edge.overhead_p99_ms]
        if parts:
            times += [edge.transfer_p50_ms, edge.inspection_p50_ms]
        edges.add_row(
            _plain(edge.source),
            _plain(edge.target),
            _plain(edge.protocol),
            f"{edge.handoffs:,}",
            f"{edge.per_second:.2f}",
            Text(f"{edge.errors:,}", style="red" if edge.errors else ""),
            *map(milliseconds, times),
        )
    return edges


def _workflows(data: ReportData) -> Table:
    workflows = _table("Worst workflows")
    workflows.add_column("workflow", max_width=40)
    for name in ("critical", "warning", "errors", "handoffs", "took"):
        workflows.add_column(name, justify="right")
    workflows.add_column("what was found")
    for line in data.workflows[: SCREEN["workflows"]]:
        workflows.add_row(
            _plain(line.workflow),
            Text(f"{line.critical:,}", style="bold red" if line.critical else ""),
            Text(f"{line.warnings:,}", style="yellow" if line.warnings else ""),
            Text(f"{line.errors:,}", style="red" if line.errors else ""),
            f"{line.handoffs:,}",
            took(line.elapsed_ms),
            _plain(", ".join(line.rules) or None),
        )
    return workflows


def _overheads(data: ReportData) -> Table:
    table = _table("Between agents, where both ends were seen")
    for name in ("source", "target"):
        table.add_column(name)
    for name in ("handoffs", "total p50 ms", "own p50 ms", "of it transfer", "between p50 ms", "p99 ms", "checks"):
        table.add_column(name, justify="right")
    for line in data.overheads[: SCREEN["overheads"]]:
        times = (
            line.total_p50_ms,
            line.own_p50_ms,
            line.transfer_p50_ms,
            line.between_p50_ms,
            line.between_p99_ms,
            line.inspection_p50_ms,
        )
        table.add_row(_plain(line.source), _plain(line.target), f"{line.joined_count:,}", *map(milliseconds, times))
    return table


def _longest(data: ReportData) -> Table:
    table = _table("Longest workflows")
    table.add_column("workflow", max_width=40)
    for name in ("took", "between agents", "paths used"):
        table.add_column(name, justify="right")
    table.add_column("critical path, ms")
    for flow in data.longest[: SCREEN["longest"]]:
        table.add_row(
            _plain(flow.workflow),
            took(flow.span_ms),
            "-" if flow.between_share is None else f"{flow.between_share:.1%}",
            f"{flow.paths_used} of {flow.paths_possible}",
            _plain(path_of(flow)),
        )
    return table


def _findings(data: ReportData) -> Table:
    findings = _table(f"Findings, last {since_text(data.since_seconds)}")
    for name in ("rule", "severity"):
        findings.add_column(name, no_wrap=True)
    for name in ("count", "places"):
        findings.add_column(name, justify="right", no_wrap=True)
    findings.add_column("first and latest example")
    for line in worst_first(data.findings)[: SCREEN["findings"]]:
        said = (Text.assemble((f"{clock(at)} ", "dim"), _plain(message)) for at, message in examples(line))
        findings.add_row(
            _plain(line.rule),
            Text(line.severity, style=_STYLES.get(line.severity, "")),
            f"{line.occurrences:,}",
            f"{line.places:,}",
            Text("\n", no_wrap=True, overflow="ellipsis").join(said),  # a line each; the whole is on the page
        )
    return findings


def examples(line: FindingLine) -> tuple[tuple[str, str], ...]:
    """The first and the latest of a rule's findings, as (when, message); one where they are the same."""
    latest = (line.latest, line.message)
    first = (line.first, line.first_message or line.message)
    return (latest,) if first == latest else (first, latest)


def clock(at: str) -> str:
    """`2026-08-01T12:30:00Z` to `08-01 12:30:00`."""
    return f"{at[5:10]} {at[11:19]}"


def _schemas(data: ReportData) -> Table:
    schemas = _table("Schema versions in use")
    for name in ("subject", "version"):
        schemas.add_column(name)
    schemas.add_column("handoffs", justify="right")
    for name in ("sent by", "first", "latest"):
        schemas.add_column(name)
    for line in data.schemas[: SCREEN["schemas"]]:
        schemas.add_row(
            _plain(line.subject),
            _plain(line.version),
            f"{line.handoffs:,}",
            _plain(", ".join(line.sources)),
            clock(line.first),
            clock(line.latest),
        )
    return schemas


def json_lines(data: ReportData) -> Iterator[bytes]:
    """A report as JSON objects, one a line, the summary last."""
    encoder = msgspec.json.Encoder()
    for line in (*data.edges, *data.workflows, *data.findings, *data.schemas, *data.overheads):
        yield encoder.encode(line)
    for flow in data.longest:
        yield orjson.dumps({"type": "coordination", **msgspec.to_builtins(flow)})
    yield orjson.dumps(
        {
            "type": "summary",
            "since_seconds": data.since_seconds,
            "handoffs": data.handoffs,
            "errors": data.errors,
            "findings": sum(line.occurrences for line in data.findings),
        }
    )


def since_seconds(text: str) -> int:
    """`90s`, `15m`, `1h`, `7d` or a number of seconds. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if found is None or int(found[1]) == 0:
        raise ValueError(f"--since: {text!r} is no span of time; write 90s, 15m, 1h or 7d")
    return int(found[1]) * _UNITS[found[2] or "s"]


def since_text(seconds: int) -> str:
    """Seconds to the largest unit that divides them: 3600 is `1h`."""
    for unit, size in reversed(_UNITS.items()):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def run(dsn: str, database: str, since: str, output: str, html: str | None = None) -> int:
    """`handrail report`: prints, and returns the exit status: 0, or 2 where there is nothing to read from.

    With `html` the report goes to that file in place of the terminal (`-` is standard output); JSON is printed all the
    same where it is asked for.
    """
    try:
        seconds = since_seconds(since)
        from handrail.edge.database import Database, quiet

        quiet()
        source = Database(dsn, database)
    except ValueError as error:
        return _complain(str(error))
    try:
        data = report(source, seconds)
    except (Busy, Refused) as error:
        return _complain(f"{source.target.scheme}: {error}{_advice(error, source.target.scheme)}")
    finally:
        source.close()
    if html is not None:
        from handrail.edge.report_html import page

        text = page(data)
        if html == "-":
            sys.stdout.write(text)
        else:
            try:
                Path(html).write_text(text, "utf-8")
            except OSError as error:
                return _complain(f"--html: {html}: {error.strerror or error}")
            sys.stderr.write(f"handrail report: wrote {html}\n")
    if output == "json":
        sys.stdout.write("".join(line.decode() + "\n" for line in json_lines(data)))
    elif html is None:
        # As wide as need be where it is a file or a pipe: 13 columns within the 80 of a pipe cut every name and number.
        Console(width=None if sys.stdout.isatty() else 240).print(render(data))
    sys.stdout.flush()
    return 0


def _complain(problem: str) -> int:
    sys.stderr.write(f"handrail report: {problem}\n")
    return 2


def _advice(error: Busy | Refused, scheme: str) -> str:
    if isinstance(error, Refused):
        return {
            "schema": "; nothing was recorded there yet, or --database is another",
            "auth": "; look at the user and password of the DSN",
        }.get(error.reason, "")
    if scheme == "chdb":
        return "; one process at a time can open an embedded ClickHouse: is `handrail run` using this directory?"
    return "; is the server up, and the DSN right?"


def shown(text: str | None) -> str:
    """Names and messages come from the traffic: their control characters are shown, not obeyed."""
    if text is None:
        return "-"
    return "".join(part if part.isprintable() else repr(part)[1:-1] for part in text)[:300]


def _plain(text: str | None) -> Text:
    """As `shown`, and nothing of it is markup."""
    return Text(shown(text), overflow="fold")


def milliseconds(value: float | None) -> str:
    """Three digits that count, without a unit; `-` where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.3f}"


def took(value: float) -> str:
    """Milliseconds as a person reads them: `350 ms`, `12.0 s`, `5.1 min`."""
    if value < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.1f} s" if value < 120_000 else f"{value / 60_000:.1f} min"
