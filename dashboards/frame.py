"""Queries and words become panels, and rows of panels a dashboard: what all eight dashboards have in common.

Two sources, and what each is for: Prometheus for now and for trends, ClickHouse for detail and history. A panel of
Prometheus follows `$cluster` and `$namespace`, which are labels that a scrape configuration or a federation puts on the
series; where there are none, `All` matches their absence. A panel of ClickHouse reads the database of its data source,
one for each place where sidecars write, so the data source is the choice of a cluster there.

Colours are those of Okabe and Ito, which people with any of the usual colour deficiencies can tell apart; a series
whose name is known has a colour of its own, and the others are shades of one. Never does colour say what no word or
number says too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, nodegraph, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, RED, PINK, GREY = "#E69F00", "#D55E00", "#CC79A7", "#BBBBBB"

GOOD, WARN, BAD = BLUE, ORANGE, RED
"""Blue, orange and vermilion: the three of that palette which differ most for everybody."""

SEVERITIES = {"info": SKY, "warning": ORANGE, "critical": RED}
OUTCOMES = {
    "completed": BLUE,
    "accepted": SKY,
    "failed": RED,
    "rejected": ORANGE,
    "timeout": PINK,
    "interrupted": YELLOW,
}
QUANTILES = {"p50": SKY, "p95": ORANGE, "p99": RED}
RESULTS = {"stored": BLUE, "busy": ORANGE, "refused": RED}
"""Series whose names are known, and their colours."""

UID = "handrail-{}"
PROMETHEUS, CLICKHOUSE = "prometheus", "grafana-clickhouse-datasource"
SOURCES = {PROMETHEUS: "handrail-prometheus", CLICKHOUSE: "handrail-clickhouse"}
"""Types of data sources, and the uids under which they are provisioned."""

PROM = dashboard.DataSourceRef(type_val=PROMETHEUS, uid="${prometheus}")
CLICK = dashboard.DataSourceRef(type_val=CLICKHOUSE, uid="${clickhouse}")
CLICKHOUSE_PLUGIN = "4.10.2"
"""Version of the data source's query format."""

# Selectors. `C` is what every series may have; `E` is what the series of handoffs have besides.
C = 'cluster=~"$cluster", namespace=~"$namespace"'
E = f'{C}, source=~"$source", target=~"$target"'
ERRORS = 'outcome=~"failed|rejected|dropped|timeout|interrupted"'
ERRORS_SQL = "('failed', 'rejected', 'dropped', 'timeout', 'interrupted')"


def only(*names: str) -> str:
    """A condition in SQL: the columns of these names are what the variables of the same names say."""
    return " AND ".join(f"$__conditionalAll({name} IN (${{{name}:singlequote}}), ${name})" for name in names)


EDGE = only("source", "target")
FLOW = only("workflow", "source", "target")


class Sql(variants.Dataquery):
    """A query of the official ClickHouse data source, as its editor saves one. `kind`: table, timeseries or traces."""

    FORMATS = {"timeseries": 0, "table": 1, "traces": 3}

    def __init__(self, sql: str, kind: str = "table", ref: str = "A") -> None:
        self.sql, self.kind, self.ref = " ".join(sql.split()), kind, ref

    def build(self) -> "Sql":
        return self

    def to_json(self) -> dict[str, object]:
        return {
            "datasource": CLICK,
            "editorType": "sql",
            "format": self.FORMATS[self.kind],
            "pluginVersion": CLICKHOUSE_PLUGIN,
            "queryType": self.kind,
            "rawSql": self.sql,
            "refId": self.ref,
        }


def prom(
    expr: str, legend: str = "", *, instant: bool = False, ref: str = "A", heat: bool = False
) -> prometheus.Dataquery:
    """A query of Prometheus: a range, or one instant."""
    query = prometheus.Dataquery().expr(" ".join(expr.split())).ref_id(ref).datasource(PROM)
    query = query.legend_format(legend or "__auto")
    if heat:
        query = query.format(PromQueryFormat.HEATMAP)
    return query.instant() if instant else query.range()


def quantiles(metric: str, selector: str, by: str = "") -> list[prometheus.Dataquery]:
    """p50, p95 and p99 of a histogram."""
    group = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return [
        prom(
            f"histogram_quantile({q}, sum by ({group}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))",
            f"{name}{legend}",
            ref=ref,
        )
        for q, name, ref in ((0.5, "p50", "A"), (0.95, "p95", "B"), (0.99, "p99", "C"))
    ]


Query = Any
Panel = Any


def steps(*bounds: tuple[float | None, str]) -> builders.ThresholdsConfig:
    made = [dashboard.Threshold(value=value, color=colour) for value, colour in bounds]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


def above(warn: float | None, bad: float | None) -> builders.ThresholdsConfig:
    """Good from the start, worth a look from `warn`, bad from `bad`."""
    bounds: list[tuple[float | None, str]] = [(None, GOOD)]
    bounds += [(warn, WARN)] if warn is not None else []
    bounds += [(bad, BAD)] if bad is not None else []
    return steps(*bounds)


def below(bad: float) -> builders.ThresholdsConfig:
    """Bad until `bad`, good from there on."""
    return steps((None, BAD), (bad, GOOD))


NEUTRAL = steps((None, GOOD))


def _colour(mode: str, fixed: str | None = None) -> builders.FieldColor:
    made = builders.FieldColor().mode(dashboard.FieldColorModeId(mode))
    return made.fixed_color(fixed) if fixed else made


def _fixed(colour: str) -> list[dashboard.DynamicConfigValue]:
    return [dashboard.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})]


def number(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = "short",
    thresholds: builders.ThresholdsConfig = NEUTRAL,
    empty: str = "0",
    link: str | None = None,
    decimals: int | None = None,
    words: Mapping[int, tuple[str, str]] | None = None,
) -> Panel:
    """One number with its colour by thresholds; `words` are shown in place of values."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(CLICK if isinstance(query, Sql) else PROM)
        .with_target(query)
        .unit(unit)
        .no_value(empty)
        .thresholds(thresholds)
        .color_scheme(_colour("thresholds"))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE if isinstance(query, Sql) else common.BigValueGraphMode.AREA)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    if words:
        options = {
            str(value): dashboard.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(words.items())
        }
        panel = panel.mappings([dashboard.ValueMap(options=options)])
    if link:
        panel = panel.links([board_link(link)])
    return panel


def trend(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    empty: str = "Nothing in this range.",
    thresholds: builders.ThresholdsConfig | None = None,
    stacked: bool = False,
    bars: bool = False,
    colours: Mapping[str, str] | None = None,
    logarithmic: bool = False,
) -> Panel:
    """Lines over time. `colours` are those of series with known names; the others are shades of blue."""
    click = isinstance(queries[0], Sql)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(CLICK if click else PROM)
        .unit(unit)
        .no_value(empty)
        .min(0)
        .color_scheme(_colour("shades", BLUE))
        .line_width(1 if stacked or bars else 2)
        .fill_opacity(60 if stacked or bars else 8)
        .show_points(common.VisibilityMode.AUTO)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )
    if bars:
        panel = panel.draw_style(common.GraphDrawStyle.BARS)
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if logarithmic:
        scale = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    if thresholds is not None:
        line = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(thresholds).thresholds_style(line)
    for query in queries:
        panel = panel.with_target(query)
    for name, colour in (colours or {}).items():
        panel = panel.override_by_name(name, _fixed(colour))
    return panel


def heat(title: str, description: str, query: Query, *, unit: str = "s", empty: str = "No handoffs here.") -> Panel:
    """A histogram over time; cividis is even in lightness and reads the same for everybody."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(PROM)
        .with_target(query)
        .no_value(empty)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme("Cividis")
            .scale(heatmap_model.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .fill(BLUE)
            .reverse(False)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
        .cell_gap(1)
        .show_legend()
        .mode(common.TooltipDisplayMode.SINGLE)
    )


UNITS = {
    "at": "dateTimeAsIso",
    "first": "dateTimeAsIso",
    "latest": "dateTimeAsIso",
    "began": "dateTimeAsIso",
    "deadline": "dateTimeAsIso",
    "p50": "ms",
    "p95": "ms",
    "p99": "ms",
    "duration": "ms",
    "overhead": "ms",
    "added": "ms",
    "age": "s",
    "gap": "s",
    "waited": "s",
    "after": "s",
    "ahead": "s",
    "over": "s",
    "budget": "s",
    "share": "percentunit",
    "failed": "percentunit",
    "bytes": "bytes",
    "cost": "short",
}
"""Columns of tables whose name is their unit."""

WIDTHS = {"at": 175, "first": 175, "latest": 175, "began": 175, "severity": 85, "occurrences": 110, "rule": 170}


def rows(
    title: str,
    description: str,
    query: Sql,
    *,
    empty: str,
) -> Panel:
    """A table from ClickHouse. A column's name gives its unit; `workflow`, `source` and `target` lead somewhere."""
    columns = sorted(name for name in UNITS | WIDTHS | LINKS if re.search(rf"\b{name}\b", query.sql))
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(CLICK)
        .with_target(query)
        .no_value(empty)
        .cell_height(common.TableCellHeight.SM)
        .show_header(True)
        .filterable(True)
    )
    for name in columns:
        properties = []
        if name in UNITS:
            properties.append(dashboard.DynamicConfigValue(id_val="unit", value=UNITS[name]))
        if name in WIDTHS:
            properties.append(dashboard.DynamicConfigValue(id_val="custom.width", value=WIDTHS[name]))
        if name == "severity":
            words = {
                word: {"text": word, "color": colour, "index": index}
                for index, (word, colour) in enumerate(SEVERITIES.items())
            }
            properties.append(
                dashboard.DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": words}])
            )
            properties.append(dashboard.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
        if name in LINKS:
            properties.append(_link(name, LINKS[name]))
        if properties:
            panel = panel.override_by_name(name, properties)
    return panel


def _link(name: str, url: str) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(
        id_val="links", value=[{"title": f"Show this {name}", "url": url, "targetBlank": False}]
    )


PLACE = "&${cluster:queryparam}&${namespace:queryparam}"


def to(board: str, **variables: str) -> str:
    """The URL of a dashboard with the time range, the data sources and the place of this one."""
    said = "".join(f"&var-{name}={value}" for name, value in variables.items())
    sources = "&${prometheus:queryparam}&${clickhouse:queryparam}"
    return f"/d/{UID.format(board)}?${{__url_time_range}}{sources}{PLACE}{said}"


ROW_EDGE = to("edge", source="${__data.fields.source}", target="${__data.fields.target}")
LINKS = {
    "workflow": to("workflow", workflow="${__data.fields.workflow}"),
    "source": ROW_EDGE,
    "target": ROW_EDGE,
}

TITLES = {
    "overview": "Overview",
    "edge": "Edge",
    "schemas": "Schemas and drift",
    "state": "State integrity",
    "waits": "Waits and loops",
    "context": "Context and cost",
    "workflow": "Workflow",
    "self": "Handrail itself",
}
"""Every dashboard: what its uid ends in, and its title."""


def board_link(board: str) -> builders.DashboardLink:
    """A link from a panel's head."""
    return builders.DashboardLink(TITLES[board]).type(dashboard.DashboardLinkType.LINK).url(to(board))


def graph(title: str, description: str, nodes: str, edges: str, *, empty: str) -> Panel:
    """A node graph: `nodes` and `edges` are SQL that names its columns as the panel wants them."""
    return (
        nodegraph.Panel()
        .title(title)
        .description(description)
        .datasource(CLICK)
        .with_target(Sql(nodes, ref="nodes"))
        .with_target(Sql(edges, ref="edges"))
        .no_value(empty)
        .nodes(
            nodegraph.NodeOptions().arcs(
                [
                    nodegraph.ArcOption().field("arc__done").color(BLUE),
                    nodegraph.ArcOption().field("arc__failed").color(RED),
                ]
            )
        )
        .edges(nodegraph.EdgeOptions())
        .override_by_name("source", [_link("edge", ROW_EDGE)])
        .override_by_name(
            "title",
            [
                dashboard.DynamicConfigValue(
                    id_val="links",
                    value=[
                        {"title": "What it hands over", "url": to("edge", source="${__data.fields.id}")},
                        {"title": "What it is handed", "url": to("edge", target="${__data.fields.id}")},
                    ],
                )
            ],
        )
    )


def lanes(title: str, description: str, query: Sql, words: Mapping[int, tuple[str, str]], *, empty: str) -> Panel:
    """A state timeline: a lane for each series, whose values are codes for `words`."""
    options = {
        str(code): dashboard.ValueMappingResult(text=text, color=colour, index=index)
        for index, (code, (text, colour)) in enumerate(words.items())
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(CLICK)
        .with_target(query)
        .no_value(empty)
        .mappings([dashboard.ValueMap(options=options)])
        .color_scheme(_colour("fixed", GREY))
        .merge_values(False)
        .show_value(common.VisibilityMode.AUTO)
        .row_height(0.7)
        .line_width(1)
        .fill_opacity(90)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
    )


def waterfall(title: str, description: str, query: Sql, *, empty: str) -> Panel:
    """The bars of a trace, which the panel of that name draws."""
    return (
        builders.Panel()
        .type("traces")
        .title(title)
        .description(description)
        .datasource(CLICK)
        .with_target(query)
        .no_value(empty)
        .options({})
    )


# Variables.


def _source(name: str, kind: str) -> builders.DatasourceVariable:
    return (
        builders.DatasourceVariable(name)
        .label({PROMETHEUS: "Prometheus", CLICKHOUSE: "ClickHouse"}[kind])
        .type(kind)
        .current(dashboard.VariableOption(selected=True, text=SOURCES[kind], value=SOURCES[kind]))
    )


def _label(name: str, metric: str) -> builders.QueryVariable:
    """Values of a label; `All` is `.*`, which a series without the label has too."""
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(PROM)
        .query({"query": f"label_values({metric}, {name})", "refId": name})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


RECENT = """
    SELECT assumeNotNull(workflow) AS workflow FROM event
    WHERE $__timeFilter(at) AND workflow IS NOT NULL GROUP BY workflow ORDER BY max(at) DESC LIMIT 500
"""


def _workflow(single: bool) -> builders.QueryVariable:
    """The workflows that were seen last; a name that is not among them may be typed."""
    made = (
        builders.QueryVariable("workflow")
        .label("Workflow")
        .description("The 500 seen last in this range; any other may be typed.")
        .datasource(CLICK)
        .query({"rawSql": " ".join(RECENT.split()), "queryType": "sql", "editorType": "sql", "refId": "workflow"})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.DISABLED)
        .multi(not single)
    )
    if single:
        return made
    return made.include_all(True).current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))


def variable(name: str) -> Any:
    """A template variable by its name."""
    if name == "one workflow":
        return _workflow(single=True)
    if name == "workflow":
        return _workflow(single=False)
    if name == "price":
        return (
            builders.TextBoxVariable("price")
            .label("Price per million tokens")
            .description("In the currency you pay in. Handrail knows no prices; empty leaves the cost out.")
            .default_value("")
        )
    metric = {
        "cluster": "handrail_build_info",
        "namespace": 'handrail_build_info{cluster=~"$cluster"}',
        "source": f"handrail_handoffs_total{{{C}}}",
        "target": f'handrail_handoffs_total{{{C}, source=~"$source"}}',
    }[name]
    return _label(name, metric)


@dataclass(frozen=True)
class Row:
    """Panels side by side: each with its width of 24, all of one height. A title makes a heading above them."""

    height: int
    panels: Sequence[tuple[int, Panel]]
    title: str = ""


@dataclass(frozen=True)
class Board:
    """A dashboard: what it is for, its variables, its rows from top to bottom."""

    name: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[str] = ("cluster", "namespace", "source", "target")
    sources: Sequence[str] = (PROMETHEUS, CLICKHOUSE)
    since: str = "now-1h"

    def text(self) -> str:
        """The dashboard as the JSON that Grafana imports and provisions; the same bytes for the same source."""
        text = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(self.build())
        # A link carries on only what there is here.
        return (text if "cluster" in self.variables else text.replace(PLACE, "")) + "\n"

    def build(self) -> dashboard.Dashboard:
        """Panels in their places, with ids from the top down."""
        made = (
            builders.Dashboard(f"Handrail / {TITLES[self.name]}")
            .uid(UID.format(self.name))
            .description(self.description)
            .tags(["handrail"])
            .editable()
            .refresh("30s")
            .time(self.since, "now")
            .timezone("browser")
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
            .link(
                builders.DashboardLink("Handrail")
                .type(dashboard.DashboardLinkType.DASHBOARDS)
                .tags(["handrail"])
                .include_vars(True)
                .keep_time(True)
            )
        )
        for name, kind in (("prometheus", PROMETHEUS), ("clickhouse", CLICKHOUSE)):
            if kind in self.sources:
                made = made.with_variable(_source(name, kind))
        for name in self.variables:
            made = made.with_variable(variable(name))
        identity, top = 1, 0
        for row in self.rows:
            if row.title:
                heading = builders.Row(row.title).id(identity).grid_pos(dashboard.GridPos(h=1, w=24, x=0, y=top))
                made = made.with_row(heading)
                identity, top = identity + 1, top + 1
            left = 0
            for width, panel in row.panels:
                place = dashboard.GridPos(h=row.height, w=width, x=left, y=top)
                made = made.with_panel(panel.id(identity).grid_pos(place))
                identity, left = identity + 1, left + width
            if left != 24:
                raise ValueError(f"{self.name}: a row is {left} wide")
            top += row.height
        return made.build()
