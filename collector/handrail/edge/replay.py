"""Recordings become findings: HAR 1.2, OTLP and Handrail's own event JSON lines through the pipeline that runs live.

The files go through one pipeline in the order in which they are given, so what one file began (a task that was handed
over, a schema that was in use) is known when the next is read. Give them in order of time.

What spans say is told when all files were read, because spans come in any order; a handoff that a file has shown on the
wire is not told again.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import msgspec
import orjson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from handrail.config import Config, OtlpConfig
from handrail.dialects.spans import Sightings
from handrail.edge.files import Unreadable, decoded, load_packs, registry_in_force
from handrail.edge.graph import configured_plans
from handrail.event import SEVERITIES, Decision, Event, Fault, Finding, Severity, event_from, rfc3339, to_json
from handrail.pipeline import Inspector, build, replay_events, replay_exchanges
from handrail.rules import watches
from handrail.wire import BodyLimits, har
from handrail.wire.body import has_long_number
from handrail.wire.otlp import logs_of, spans_of

MAX_HAR_BYTES = 536_870_912
"""A HAR is one JSON document and is read as a whole, at several times its size in memory; JSON lines have no limit."""

MAX_LINE_BYTES = 67_108_864

SIGHTINGS = 1_000_000
"""Handoffs of recordings that are remembered, to tell none of them twice."""

MAX_DEPTH = BodyLimits().depth

YEAR_1, YEAR_10000 = -62_135_596_800, 253_402_300_800
"""In seconds since the epoch; what lies outside cannot be written in RFC 3339."""

Output = Literal["text", "json"]


class Summary(msgspec.Struct, kw_only=True, tag_field="type", tag="summary"):
    """The last line of a replay."""

    files: int = 0
    events: int = 0
    handoffs: int = 0
    findings: int = 0
    faults: int = 0
    by_rule: Counter[str] = msgspec.field(default_factory=Counter)
    by_severity: Counter[str] = msgspec.field(default_factory=Counter)
    worst: Severity | None = None

    def add(self, record: Event | Finding | Fault) -> None:
        """Count one record."""
        if isinstance(record, Event):
            self.events += 1
            self.handoffs += record.kind == "handoff"
        elif isinstance(record, Finding):
            self.findings += 1
            self.by_rule[record.rule] += 1
            self.by_severity[record.severity] += 1
            if self.worst is None or SEVERITIES.index(record.severity) > SEVERITIES.index(self.worst):
                self.worst = record.severity
        else:
            self.faults += 1

    def reaches(self, severity: Severity | None) -> bool:
        """Whether there was a finding of this severity or a worse one."""
        if severity is None or self.worst is None:
            return False
        return SEVERITIES.index(self.worst) >= SEVERITIES.index(severity)


def run(
    files: Sequence[str],
    config: Config,
    *,
    output: Output = "text",
    fail_on: Severity | None = None,
    payloads: bool = False,
) -> int:
    """Replay recordings (`-` is standard input) and print what was seen and found.

    Returns 0, or 1 where a finding reaches `fail_on`. Raises Unreadable for bad input, ConfigError for bad rules.
    """
    astray: list[Fault] = []
    registry = registry_in_force(config, astray.append)
    inspector = build(config, registry, watches(load_packs(config), registry))
    if inspector.spans is not None:
        inspector.pipeline.sightings = inspector.spans.sightings = Sightings(OtlpConfig().join_seconds, limit=SIGHTINGS)
    summary = Summary()
    printer: _Printer = _Lines(payloads) if output == "json" else _Tables()
    with _progress(files, output) as progress:
        declared = [inspector.pipeline.observe(plan) for plan in configured_plans(config, 0.0)]
        told = (found for decision in declared for found in decision.findings)
        for record in chain(astray, told, records(files, inspector, progress)):
            summary.add(record)
            printer.add(record)
    summary.files = len(files)
    printer.end(summary)
    return 1 if summary.reaches(fail_on) else 0


def records(files: Sequence[str], inspector: Inspector, progress: "_Advance") -> Iterator[Event | Finding | Fault]:
    """The final events of recordings and what was found, in the order in which it became known. Raises Unreadable.

    What is wrong with a request is known before its reply, so that finding stands before its event. A call is observed
    twice; the half that is still open is left out, unless the recording ends before the reply.
    """
    open_: dict[str, Event] = {}
    for file in files:
        for decision in _decisions(file, inspector, progress):
            event = decision.event
            if event is not None:
                if event.outcome == "asked":
                    open_[event.id] = event
                else:
                    open_.pop(event.id, None)
                    yield event
            yield from decision.findings
            yield from decision.faults
    for decision in chain(inspector.end(spans=False), _of_spans(inspector)):
        if decision.event is not None:
            open_.pop(decision.event.id, None)
            yield decision.event
        yield from decision.findings
        yield from decision.faults
    yield from open_.values()
    settled = inspector.pipeline.settle()
    yield from settled.findings
    yield from settled.faults


def _decisions(file: str, inspector: Inspector, progress: "_Advance") -> Iterator[Decision]:
    name = "standard input" if file == "-" else file
    try:
        with _opened(file) as stream:
            first = stream.readline(MAX_LINE_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
            if _is_otlp(first):
                yield from replay_events(_otlp(first, stream, progress, inspector), inspector)
            elif _is_event_line(first, file):
                yield from replay_events(_events(first, stream, progress), inspector)
            else:
                yield from replay_exchanges(har.load(_whole(first, stream, name), name), inspector)
                progress(stream.tell() if file != "-" else 0)
    except OSError as error:
        raise Unreadable([f"{name}: cannot be read: {(error.strerror or str(error)).lower()}"]) from None
    except Unreadable:
        raise
    except ValueError as error:
        told = str(error)
        hint = "; a recording is HAR 1.2, OTLP JSON lines or event JSON lines" if told.startswith("is not") else ""
        raise Unreadable([f"{name}: {told}{hint}"]) from None


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
    else:
        with open(file, "rb") as stream:
            yield stream


def _is_event_line(line: bytes, file: str) -> bool:
    """Whether a recording that begins with this line is JSON lines; a HAR is one document, on one line or many."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return file.endswith((".jsonl", ".ndjson"))
    return isinstance(value, dict) and "log" not in value


def _whole(first: bytes, stream: BinaryIO, name: str) -> str:
    rest = stream.read(MAX_HAR_BYTES + 1)
    if len(first) + len(rest) > MAX_HAR_BYTES:
        raise ValueError(f"is longer than {MAX_HAR_BYTES} bytes; split the recording")
    if not (first + rest).strip():
        raise ValueError("is empty; a recording is HAR 1.2, OTLP JSON lines or event JSON lines")
    return decoded(first + rest, name)


_OUR_OTHER_LINES = frozenset({"finding", "fault", "summary"})
"""What `replay --output json` prints beside events; a recording made that way is replayed from its events."""


def _events(first: bytes, stream: BinaryIO, progress: "_Advance") -> Iterator[Event]:
    """JSON lines to events. Raises ValueError naming the line."""
    number, line, read = 1, first, 0
    while line:
        if line.strip():
            event = _event(line, number)
            if event is not None:
                yield event
        read += len(line)
        if read > 1_000_000:
            progress(read)
            read = 0
        number += 1
        line = stream.readline(MAX_LINE_BYTES + 1)
    progress(read)


def _event(line: bytes, number: int) -> Event | None:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"line {number}: is longer than {MAX_LINE_BYTES} bytes")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"line {number}: is not JSON: {error.msg}") from None
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise ValueError(f"line {number}: is nested deeper than {MAX_DEPTH} levels")
    if has_long_number(line):
        value = json.loads(line)  # exact, where orjson makes a float of what does not fit into 64 bits
    if not isinstance(value, dict):
        raise ValueError(f"line {number}: is not an object; each line is one event")
    if "resourceLogs" in value or "resourceSpans" in value:
        raise ValueError(f"line {number}: is OTLP among events; keep it in a file of its own")
    kind = value.get("type")
    if isinstance(kind, str) and kind in _OUR_OTHER_LINES:
        return None
    try:
        event = event_from(value)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    for name, at in (("at", event.at), ("deadline", event.deadline)):
        if at is not None and not YEAR_1 <= at < YEAR_10000:
            raise ValueError(f"line {number}: {name}: {at:g} seconds is no time between the years 1 and 9999")
    return event


_OTLP = ("resourceSpans", "resourceLogs", "resourceMetrics")


def _is_otlp(line: bytes) -> bool:
    """Whether a recording that begins with this line is OTLP JSON lines, as the Collector writes them to files."""
    if b'"resource' not in line:
        return False
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and any(key in value for key in _OTLP)


def _otlp(first: bytes, stream: BinaryIO, progress: "_Advance", inspector: Inspector) -> Iterator[Event]:
    """OTLP JSON lines: spans are remembered; the events among the log records are given back. Raises ValueError."""
    spans = inspector.spans
    assert spans is not None
    number, line = 1, first
    while line:
        if line.strip():
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"line {number}: is longer than {MAX_LINE_BYTES} bytes")
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"line {number}: is not JSON: {error.msg}") from None
            if not isinstance(value, dict) or not any(key in value for key in _OTLP):
                raise ValueError(f"line {number}: is no OTLP; it has none of {', '.join(_OTLP)}")
            for read in (spans_of(value), logs_of(value)):
                if read.rejected:
                    raise ValueError(f"line {number}: {read.reason}")
                latest = max((span.end for span in read.spans), default=0.0)
                spans.add(spans.read(read.spans), latest)
                yield from spans.add_logs(read.logs, latest)
        progress(len(line))
        number += 1
        line = stream.readline(MAX_LINE_BYTES + 1)


def _of_spans(inspector: Inspector) -> Iterator[Decision]:
    """The handoffs that spans alone have told, each at its instant."""
    told = [] if inspector.spans is None else inspector.spans.end()
    sightings = inspector.pipeline.sightings
    events = [each for each in told if isinstance(each, Event) and (sightings is None or sightings.in_spans(each))]
    yield from (Decision(faults=(each,)) for each in told if isinstance(each, Fault))
    yield from replay_events(events, inspector)


def _is_deep(value: object) -> bool:
    """Whether a JSON value is nested deeper than can be written again; without recursion, which is the point."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, dict | list) for item in level)


class _Advance(Protocol):
    """Told how many bytes of the recordings have been read since the last call."""

    def __call__(self, read: int) -> None: ...


def _silent(read: int) -> None:
    """Nobody looks."""


@contextmanager
def _progress(files: Sequence[str], output: Output) -> Iterator[_Advance]:
    """A progress bar on standard error where a person looks at it and nothing else is printed there meanwhile."""
    if not sys.stderr.isatty() or (output == "json" and sys.stdout.isatty()):
        yield _silent
        return
    columns = (TextColumn("replay"), BarColumn(), TaskProgressColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        sizes = [Path(file).stat().st_size for file in files if Path(file).is_file()]
        task = bar.add_task("replay", total=sum(sizes) if len(sizes) == len(files) else None)
        yield lambda read: bar.advance(task, read)


class _Printer(Protocol):
    def add(self, record: Event | Finding | Fault) -> None: ...

    def end(self, summary: Summary) -> None: ...


class _Lines:
    """One JSON object a line, as soon as it is known."""

    def __init__(self, payloads: bool) -> None:
        self._payloads = payloads
        self._write = sys.stdout.buffer.write

    def add(self, record: Event | Finding | Fault) -> None:
        self._write(to_json(record, payloads=self._payloads) + b"\n")

    def end(self, summary: Summary) -> None:
        self._write(orjson.dumps(msgspec.to_builtins(summary)) + b"\n")
        sys.stdout.buffer.flush()


def console() -> Console:
    """Standard output for a person; as wide as need be where it is a file or a pipe, so that nothing is cut off."""
    return Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False)


SEVERITY_STYLES: Mapping[str, str] = {"info": "blue", "warning": "yellow", "critical": "bold red"}

_GOOD = frozenset({"completed", "accepted", "asked"})


class _Tables:
    """For a person: the edges with their handoffs, then the findings."""

    def __init__(self) -> None:
        self._edges: dict[tuple[str, str, str], _Edge] = {}
        self._findings: dict[tuple[str, str], Counter[str]] = {}
        self._list: list[Finding] = []
        self._faults: list[Fault] = []

    def add(self, record: Event | Finding | Fault) -> None:
        if isinstance(record, Event):
            edge = self._edges.setdefault(
                (record.source or "?", record.target or record.store or "?", record.protocol or "?"), _Edge()
            )
            edge.events += 1
            edge.failed += record.outcome not in _GOOD
            if record.duration_ms is not None:
                edge.durations.append(record.duration_ms)
        elif isinstance(record, Finding):
            self._list.append(record)
            counts = self._findings.setdefault((record.source or "?", record.target or "?"), Counter())
            counts[record.severity] += 1
        else:
            self._faults.append(record)

    def end(self, summary: Summary) -> None:
        out = console()
        if self._edges:
            out.print(self._edge_table())
        for finding in self._list:
            line = Text(f"{finding.severity:<8} ", style=SEVERITY_STYLES[finding.severity])
            line.append(f"{rfc3339(finding.at)}  ", style="dim")
            line.append(f"{finding.rule}  ", style="bold")
            line.append(shown(finding.message), style="default not bold")
            out.print(line, soft_wrap=True)
        for fault in self._faults:
            out.print(
                Text(f"fault    {fault.component}: {fault.reason}: {shown(fault.message)}", style="red"), soft_wrap=True
            )
        said = ", ".join(
            f"{summary.by_severity[name]} {name}" for name in reversed(SEVERITIES) if summary.by_severity[name]
        )
        out.print(
            f"{summary.files} file{_s(summary.files)}, {summary.events} event{_s(summary.events)}"
            f" ({summary.handoffs} handoff{_s(summary.handoffs)}), {summary.findings} finding{_s(summary.findings)}"
            + (f": {said}" if said else "")
            + (f"; {summary.faults} fault{_s(summary.faults)}" if summary.faults else "")
        )

    def _edge_table(self) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("source", "target", "protocol"):
            table.add_column(name)
        for name in ("events", "failed", "p50 ms", "p95 ms", "findings"):
            table.add_column(name, justify="right")
        for (source, target, protocol), edge in sorted(self._edges.items()):
            counts = self._findings.get((source, target), Counter())
            table.add_row(
                Text(shown(source)),
                Text(shown(target)),
                Text(shown(protocol)),
                str(edge.events),
                str(edge.failed) if edge.failed else "",
                quantile(edge.durations, 0.5),
                quantile(edge.durations, 0.95),
                str(counts.total()) if counts else "",
            )
        return table


def shown(text: str) -> str:
    """Text from the traffic for a terminal: what is not printable is escaped, so that no name moves the cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Edge:
    def __init__(self) -> None:
        self.events = 0
        self.failed = 0
        self.durations: list[float] = []


def quantile(values: Iterable[float], share: float) -> str:
    """The value that this share of the values does not exceed (nearest rank), for a table; empty for none."""
    ordered = sorted(values)
    if not ordered:
        return ""
    value = ordered[max(0, -int(-len(ordered) * share // 1) - 1)]
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
