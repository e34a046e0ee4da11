"""What ClickHouse holds becomes a report for a terminal: edges with their latency, findings, schema versions in use."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec
import orjson
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from handrail.edge.clickhouse import Busy, Refused

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

# The limits keep a report readable and its answer bounded; the tables say where they cut.
ROWS = 200

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

FINDINGS = """
SELECT
    rule, severity,
    sum(f.count) AS occurrences,
    uniqExact(f.fingerprint) AS places,
    formatDateTime(min(f.at), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS first,
    formatDateTime(max(f.at), '%Y-%m-%dT%H:%i:%SZ', 'UTC') AS latest,
    argMax(f.message, f.at) AS message
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


class FindingLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="findings"):
    """Every finding of one rule: how often, in how many places (fingerprints), when first and latest."""

    rule: str
    severity: str
    occurrences: int
    places: int
    first: str
    latest: str
    message: str


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

    @property
    def handoffs(self) -> int:
        return sum(edge.handoffs for edge in self.edges)


def report(client: Asked, since_seconds: float) -> ReportData:
    """Asks ClickHouse. Raises Busy or Refused."""
    seconds = max(int(since_seconds), 1)

    def ask(sql: str) -> list[dict[str, Any]]:
        sql = sql.replace("{database}", client.name).replace("{seconds}", str(seconds))
        return client.rows(sql.replace("{rows}", str(ROWS)))

    return ReportData(
        since_seconds=seconds,
        edges=tuple(_record(row, Edge) for row in ask(EDGES)),
        findings=tuple(_record(row, FindingLine) for row in ask(FINDINGS)),
        schemas=tuple(_record(row, SchemaLine) for row in ask(SCHEMAS)),
    )


def _record(row: Mapping[str, Any], into: type[Any]) -> Any:
    # ClickHouse writes 64-bit integers as strings where a setting says so; lax mode takes both.
    return msgspec.convert({**row, "type": into.__struct_config__.tag}, into, strict=False)


def render(data: ReportData) -> RenderableType:
    """A report as tables, busiest edges first."""
    since = since_text(data.since_seconds)
    edges = Table(title=f"Edges, last {since}", title_justify="left", expand=False)
    for name in ("source", "target", "protocol"):
        edges.add_column(name)
    for name in ("handoffs", "/s", "errors", "p50 ms", "p95 ms", "p99 ms", "overhead p50 ms", "p99 ms"):
        edges.add_column(name, justify="right")
    for edge in data.edges:
        times = (edge.p50_ms, edge.p95_ms, edge.p99_ms, edge.overhead_p50_ms, edge.overhead_p99_ms)
        edges.add_row(
            _plain(edge.source),
            _plain(edge.target),
            _plain(edge.protocol),
            f"{edge.handoffs:,}",
            f"{edge.per_second:.2f}",
            Text(f"{edge.errors:,}", style="red" if edge.errors else ""),
            *map(_milliseconds, times),
        )
    findings = Table(title=f"Findings, last {since}", title_justify="left", expand=False)
    for name in ("rule", "severity"):
        findings.add_column(name)
    for name in ("count", "places"):
        findings.add_column(name, justify="right")
    for name in ("first", "latest", "latest message"):
        findings.add_column(name)
    for line in data.findings:
        style = {"critical": "bold red", "warning": "yellow"}.get(line.severity, "")
        findings.add_row(
            _plain(line.rule),
            Text(line.severity, style=style),
            f"{line.occurrences:,}",
            f"{line.places:,}",
            line.first,
            line.latest,
            _plain(line.message),
        )
    schemas = Table(title="Schema versions in use", title_justify="left", expand=False)
    for name in ("subject", "version"):
        schemas.add_column(name)
    schemas.add_column("handoffs", justify="right")
    for name in ("sent by", "first", "latest"):
        schemas.add_column(name)
    for schema in data.schemas:
        sources = _plain(", ".join(schema.sources))
        version = _plain(schema.version)
        schemas.add_row(_plain(schema.subject), version, f"{schema.handoffs:,}", sources, schema.first, schema.latest)
    parts: list[RenderableType] = []
    for table, empty in (
        (edges, f"No handoffs in the last {since}."),
        (findings, f"No findings in the last {since}."),
        (schemas, "No handoff named a schema."),
    ):
        parts.append(table if table.row_count else Text(empty))
        if table.row_count >= ROWS:
            parts.append(Text(f"Only the first {ROWS} are shown."))
        parts.append(Text())
    return Group(*parts[:-1])


def json_lines(data: ReportData) -> Iterator[bytes]:
    """A report as JSON objects, one a line, the summary last."""
    encoder = msgspec.json.Encoder()
    for line in (*data.edges, *data.findings, *data.schemas):
        yield encoder.encode(line)
    yield orjson.dumps(
        {
            "type": "summary",
            "since_seconds": data.since_seconds,
            "handoffs": data.handoffs,
            "errors": sum(edge.errors for edge in data.edges),
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


def run(dsn: str, database: str, since: str, output: str) -> int:
    """`handrail report`: prints, and returns the exit status: 0, or 2 where there is nothing to read from."""
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
    if output == "json":
        sys.stdout.write("".join(line.decode() + "\n" for line in json_lines(data)))
        sys.stdout.flush()
    else:
        Console().print(render(data))
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


def _plain(text: str | None) -> Text:
    """Names and messages come from the traffic: control characters are shown, and nothing is markup."""
    shown = "-" if text is None else "".join(part if part.isprintable() else repr(part)[1:-1] for part in text)
    return Text(shown[:300], overflow="fold")


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.3f}"
