"""A report becomes one HTML page that needs nothing else: style and charts are in it, and no script.

Charts are SVG by pygal, which is pure Python: a page is 100 KB or so, where a library that draws in the browser brings
megabytes of script that mail programs refuse. What is left of pygal's own script and references is
taken out, and a policy in the page forbids to load or run anything, whatever a name from the traffic holds.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from handrail.edge.coordination import path_of
from handrail.edge.report import (
    Edge,
    ReportData,
    clock,
    examples,
    milliseconds,
    shown,
    since_text,
    slowest_first,
    took,
    worst_first,
)

BARS = 12
"""Edges that one chart shows; the table has all."""

# Okabe and Ito's colours, which people tell apart however they see colour: what was handed over, what went wrong.
BLUE, ORANGE, GREEN, RED, YELLOW, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#F0E442", "#999999"

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 1120px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem } p { margin: .3rem 0 }
.said { color: #57606a } .none { color: #57606a; font-style: italic }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0 }
.facts div { border: 1px solid #d0d7de; border-radius: 6px; padding: .5rem .9rem; min-width: 7rem }
.facts b { display: block; font-size: 1.35rem } .facts .bad b { color: #b03a00 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem }
figure { margin: 0 } figure svg { width: 100%; height: auto; display: block }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .87rem }
th { text-align: left; border-bottom: 2px solid #d0d7de; white-space: nowrap } th, td { padding: .3rem .6rem }
td { border-bottom: 1px solid #eaeef2; vertical-align: top; overflow-wrap: anywhere }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.critical { color: #b03a00; font-weight: 600 } .warning { color: #7a5200 } .at { color: #57606a; white-space: nowrap }
@media print { body { margin: 0 } figure, tr { break-inside: avoid } }
"""


def page(data: ReportData) -> str:
    """The whole page. Every name and message from the traffic is text in it and nothing else."""
    since = since_text(data.since_seconds)
    until = datetime.fromtimestamp(data.until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    body = [
        "<h1>Handrail report</h1>",
        f'<p class="said">The last {since}, until {until}.</p>',
        _facts(data),
        f'<div class="charts">{"".join(_charts(data))}</div>' if data.handoffs or data.found else "",
        _table("Edges, slowest first", EDGES, slowest_first(data.edges), f"No handoffs in the last {since}."),
        _table("Worst workflows", WORKFLOWS, data.workflows, "No handoff named a workflow."),
        _table("Findings", FINDINGS, worst_first(data.findings), f"No findings in the last {since}."),
        _table("Schema versions in use", SCHEMAS, data.schemas, "No handoff named a schema."),
    ]
    if data.overheads:
        body.append(_table("Between agents, where both ends were seen", BETWEEN, data.overheads, ""))
    if data.longest:
        body.append(_table("Longest workflows", LONGEST, data.longest, ""))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Handrail report, last {since} until {until}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _facts(data: ReportData) -> str:
    share = data.errors / data.handoffs if data.handoffs else 0.0
    slow = [edge.overhead_p99_ms for edge in data.edges if edge.overhead_p99_ms is not None]
    facts: list[tuple[str, str, bool]] = [
        (f"{data.handoffs:,}", "handoffs", False),
        (f"{data.errors:,}", f"failed ({share:.1%})", data.errors > 0),
    ]
    for severity in ("critical", "warning", "info"):
        count = data.occurrences(severity)
        facts.append((f"{count:,}", f"{severity} findings", severity == "critical" and count > 0))
    if slow:
        facts.append((f"{milliseconds(max(slow))} ms", "overhead, p99 of the worst edge", False))
    shown_facts = (
        f"<div{' class=bad' if bad else ''}><b>{escape(value)}</b>{escape(what)}</div>" for value, what, bad in facts
    )
    return f'<div class="facts">{"".join(shown_facts)}</div>'


# Charts


def _charts(data: ReportData) -> Iterable[str]:
    stretches = _stretches(data)
    labels = [_label(at, data.since_seconds) for at in stretches]
    traffic = {each.at: each for each in data.traffic}
    found = {each.at: each for each in data.found}

    def over_time(rows: Any, name: str, absent: int | None) -> list[float | None]:
        return [getattr(rows[at], name) if at in rows else absent for at in stretches]

    yield _chart(
        "StackedBar",
        f"Handoffs, each {since_text(data.step)}",
        labels,
        [
            (
                "completed",
                BLUE,
                [traffic[at].handoffs - traffic[at].errors if at in traffic else 0 for at in stretches],
            ),
            ("failed", RED, over_time(traffic, "errors", 0)),
        ],
        whole=True,
    )
    yield _chart(
        "Line",
        "Latency, ms",
        labels,
        [
            ("median", BLUE, over_time(traffic, "p50_ms", None)),
            ("95th percentile", ORANGE, over_time(traffic, "p95_ms", None)),
        ],
    )
    yield _chart(
        "StackedBar",
        f"Findings, each {since_text(data.step)}",
        labels,
        [
            ("critical", RED, over_time(found, "critical", 0)),
            ("warning", ORANGE, over_time(found, "warning", 0)),
            ("info", GREY, over_time(found, "info", 0)),
        ],
        whole=True,
    )
    # The longest bar on top, as in the table: a horizontal chart counts from below.
    edges = slowest_first(data.edges)[:BARS][::-1]
    yield _chart(
        "HorizontalBar",
        "Edges by 95th percentile, ms",
        [_edge(edge) for edge in edges],
        [
            ("95th percentile", ORANGE, [edge.p95_ms for edge in edges]),
            ("median", BLUE, [edge.p50_ms for edge in edges]),
        ],
    )
    edges = sorted(
        (edge for edge in data.edges if edge.overhead_p99_ms is not None), key=lambda e: e.overhead_p99_ms or 0
    )
    edges = edges[-BARS:]
    yield _chart(
        "HorizontalBar",
        "What Handrail added, 99th percentile, ms",
        [_edge(edge) for edge in edges],
        [("overhead", GREEN, [edge.overhead_p99_ms for edge in edges])],
    )


def _stretches(data: ReportData) -> list[int]:
    """The beginnings of all stretches of time, those in which nothing happened too."""
    step = data.step
    known = [*(each.at for each in data.traffic), *(each.at for each in data.found)]
    last = data.until // step * step
    first = min((data.until - data.since_seconds) // step * step, *known) if known else last
    return list(range(first, max(last, *known) + step, step))[-200:] if known else []


def _label(at: int, seconds: int) -> str:
    when = datetime.fromtimestamp(at, UTC)
    return when.strftime("%m-%d" if seconds > 2 * 86_400 else "%H:%M" if seconds > 600 else "%H:%M:%S")


def _edge(edge: Edge) -> str:
    return f"{shown(edge.source)[:24]} → {shown(edge.target)[:24]}"


_Series = tuple[str, str, Sequence[float | None]]


def _chart(kind: str, title: str, labels: Sequence[str], series: Sequence[_Series], *, whole: bool = False) -> str:
    """One chart as a figure; `whole` where values are counts."""
    import pygal  # only here: the terminal's report needs none of it
    from pygal.style import Style

    # It leaves a finder behind that has no find_spec, of which every later import would warn.
    sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]

    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="#57606a",
        foreground_strong="#1b1f24",
        foreground_subtle="#d0d7de",
        guide_stroke_color="#e4e8ec",
        major_guide_stroke_color="#d0d7de",
        colors=[colour for _, colour, _ in series],
        font_family="system-ui, sans-serif",
        opacity="0.9",
        title_font_size=18,
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=14,
        no_data_font_size=20,
    )
    is_across = kind == "HorizontalBar"
    chart = getattr(pygal, kind)(
        style=style,
        width=640,
        height=max(200, 70 + 26 * len(labels)) if is_across else 300,
        js=(),
        disable_xml_declaration=True,
        title=title,
        show_legend=len(series) > 1,
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        legend_box_size=12,
        x_labels_major_count=None if is_across else 6,
        show_minor_x_labels=is_across,
        show_dots=kind != "Line" or len(labels) <= 90,
        dots_size=2,
        stroke_style={"width": 2},
        min_scale=1,
        range=None,
        include_x_axis=True,
        truncate_label=60,
        truncate_legend=-1,
        no_data_text="nothing was measured",
        value_formatter=_count if whole else _axis,
        formatter=_count if whole else _milliseconds,
    )
    chart.uuid = re.sub(r"\W+", "-", title.lower())  # the same report is the same page
    chart.x_labels = list(labels)
    for name, _, values in series:
        chart.add(name, list(values))
    chart.add_xml_filter(_quiet)
    return f"<figure>{_inline(chart.render(is_unicode=True))}</figure>"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _milliseconds(value: float | None) -> str:
    return f"{milliseconds(value)} ms"


def _axis(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _quiet(root: Any) -> Any:
    """Takes pygal's script out, and makes the value of each bar and dot a tooltip that needs none."""
    for parent in list(root.iter()):
        for child in list(parent):
            name = str(child.tag).rpartition("}")[2]
            if name == "script":
                parent.remove(child)
            elif name == "desc" and child.get("class") == "value":
                child.tag = "title"
                label = next((each.text for each in parent if each.get("class") == "x_label"), None)
                child.text = f"{label}: {child.text}" if label else child.text
            elif name == "desc":
                parent.remove(child)
    return root


def _inline(svg: str) -> str:
    """SVG inside HTML needs no namespaces and no comments, which is where its only addresses are."""
    return re.sub(r"<!--.*?-->|\sxmlns(?::\w+)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)


# Tables: each column is its heading, its class, and how a line fills it.

_Column = tuple[str, str, Callable[[Any], str]]


def _text(value: str | None) -> str:
    return escape(shown(value))


def _n(value: int) -> str:
    return f"{value:,}"


def _marked(count: int, style: str) -> str:
    return f'<span class="{style}">{count:,}</span>' if count else "0"


EDGES: tuple[_Column, ...] = (
    ("source", "", lambda edge: _text(edge.source)),
    ("target", "", lambda edge: _text(edge.target)),
    ("protocol", "", lambda edge: _text(edge.protocol)),
    ("handoffs", "n", lambda edge: _n(edge.handoffs)),
    ("/s", "n", lambda edge: f"{edge.per_second:.2f}"),
    ("errors", "n", lambda edge: _marked(edge.errors, "critical")),
    ("p50 ms", "n", lambda edge: milliseconds(edge.p50_ms)),
    ("p95 ms", "n", lambda edge: milliseconds(edge.p95_ms)),
    ("p99 ms", "n", lambda edge: milliseconds(edge.p99_ms)),
    ("overhead p50 ms", "n", lambda edge: milliseconds(edge.overhead_p50_ms)),
    ("overhead p99 ms", "n", lambda edge: milliseconds(edge.overhead_p99_ms)),
    ("transfer p50 ms", "n", lambda edge: milliseconds(edge.transfer_p50_ms)),
    ("checks p50 ms", "n", lambda edge: milliseconds(edge.inspection_p50_ms)),
    ("checks p99 ms", "n", lambda edge: milliseconds(edge.inspection_p99_ms)),
)

WORKFLOWS: tuple[_Column, ...] = (
    ("workflow", "", lambda line: _text(line.workflow)),
    ("critical", "n", lambda line: _marked(line.critical, "critical")),
    ("warning", "n", lambda line: _marked(line.warnings, "warning")),
    ("errors", "n", lambda line: _marked(line.errors, "critical")),
    ("handoffs", "n", lambda line: _n(line.handoffs)),
    ("took", "n", lambda line: took(line.elapsed_ms)),
    ("what was found", "", lambda line: _text(", ".join(line.rules) or None)),
    ("the latest of the worst", "", lambda line: _text(line.message or None)),
)

FINDINGS: tuple[_Column, ...] = (
    ("rule", "", lambda line: _text(line.rule)),
    ("severity", "", lambda line: f'<span class="{_class(line.severity)}">{_text(line.severity)}</span>'),
    ("count", "n", lambda line: _n(line.occurrences)),
    ("places", "n", lambda line: _n(line.places)),
    ("first and latest example", "", lambda line: "".join(
        f'<p><span class="at">{_text(clock(at))}</span> {_text(message)}</p>' for at, message in examples(line)
    )),
)  # fmt: skip

SCHEMAS: tuple[_Column, ...] = (
    ("subject", "", lambda line: _text(line.subject)),
    ("version", "", lambda line: _text(line.version)),
    ("handoffs", "n", lambda line: _n(line.handoffs)),
    ("sent by", "", lambda line: _text(", ".join(line.sources))),
    ("first", "at", lambda line: _text(clock(line.first))),
    ("latest", "at", lambda line: _text(clock(line.latest))),
)


BETWEEN: tuple[_Column, ...] = (
    ("source", "", lambda line: _text(line.source)),
    ("target", "", lambda line: _text(line.target)),
    ("handoffs", "n", lambda line: _n(line.joined_count)),
    ("total p50 ms", "n", lambda line: milliseconds(line.total_p50_ms)),
    ("own p50 ms", "n", lambda line: milliseconds(line.own_p50_ms)),
    ("of it transfer", "n", lambda line: milliseconds(line.transfer_p50_ms)),
    ("between p50 ms", "n", lambda line: milliseconds(line.between_p50_ms)),
    ("between p99 ms", "n", lambda line: milliseconds(line.between_p99_ms)),
    ("checks p50 ms", "n", lambda line: milliseconds(line.inspection_p50_ms)),
)

LONGEST: tuple[_Column, ...] = (
    ("workflow", "", lambda flow: _text(flow.workflow)),
    ("took", "n", lambda flow: took(flow.span_ms)),
    ("between agents", "n", lambda flow: "-" if flow.between_share is None else f"{flow.between_share:.1%}"),
    ("paths used", "n", lambda flow: f"{flow.paths_used} of {flow.paths_possible}"),
    ("critical path, ms", "", lambda flow: _text(path_of(flow))),
)


def _class(severity: str) -> str:
    return severity if severity in ("critical", "warning") else "info"


def _table(title: str, columns: Sequence[_Column], lines: Sequence[Any], empty: str) -> str:
    if not lines:
        return f'<h2>{title}</h2><p class="none">{empty}</p>'
    head = "".join(f'<th class="{style}">{escape(name)}</th>' for name, style, _ in columns)
    rows = "".join(
        f"<tr>{''.join(f'<td class={style!r}>{fill(line)}</td>' for _, style, fill in columns)}</tr>" for line in lines
    )
    return f'<h2>{title}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
