"""Laws of the dashboards: each question has an answer on a real run, each name exists, and a person can read them."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from conftest import missing
from handrail.edge.database import Database
from handrail.edge.metrics import Metrics
from handrail.rules import KINDS
from ops import grafana
from ops.scraped import CHAIN, Run, scraped

BOARDS = grafana.boards()
UIDS = {f"handrail-{name}" for name in ["overview", "edge", "schemas", "state", "waits", "context", "workflow", "self"]}
PROVISIONING = grafana.DASHBOARDS / "provisioning"

every_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    program = shutil.which("prometheus")
    if program is None:
        missing("prometheus is not installed (apt-get install prometheus)")
    probes = [socket.socket() for _ in range(5)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    with scraped(tmp_path_factory.mktemp("run"), program or "", ports) as running:
        yield running


def chosen(board: Mapping[str, Any], values: Mapping[str, str] = {}) -> dict[str, list[str]]:
    """A value for every variable of a board: those given, else All."""
    named = {variable["name"]: [grafana.ALL] for variable in board["templating"]["list"]}
    if board["uid"] == "handrail-workflow":
        named["workflow"] = [CHAIN]
    return named | {"price": ["2.5"]} | {name: [value] for name, value in values.items() if name in named}


def texts(board: Mapping[str, Any]) -> list[str]:
    """Every query of a board, those of its variables too."""
    asked = [target for panel in grafana.panels(board) for target in panel["targets"]]
    asked += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    return [query.get("expr") or query.get("rawSql") or query["query"] for query in asked]


# What was committed.


def test_json_is_what_the_source_makes() -> None:
    """Nobody edits the JSON, and nobody forgets to build it."""
    command = [sys.executable, grafana.DASHBOARDS / "build.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_check_says_what_is_out_of_step(tmp_path: Path) -> None:
    """A file that was edited by hand, and one that nothing makes, are named."""
    shutil.copytree(grafana.DASHBOARDS, tmp_path / "dashboards")
    edited = tmp_path / "dashboards" / "handrail-edge.json"
    edited.write_text(edited.read_text("utf-8").replace("Edge", "Other", 1), "utf-8")
    (tmp_path / "dashboards" / "mine.json").write_text("{}", "utf-8")
    command = [sys.executable, tmp_path / "dashboards" / "build.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["handrail-edge.json", "mine.json"]


def test_there_are_eight_dashboards_under_fixed_uids() -> None:
    """Alerts and runbooks link to these."""
    assert BOARDS.keys() == UIDS
    assert all(board["schemaVersion"] and "handrail" in board["tags"] for board in BOARDS.values())
    assert len({board["title"] for board in BOARDS.values()}) == len(BOARDS)


@every_board
def test_panels_do_not_overlap_and_fit_a_laptop(board: Mapping[str, Any]) -> None:
    """24 columns without gaps or overlaps, nothing too narrow to read, about three screens of 20 units high."""
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert place["x"] + place["w"] <= 24
        assert place["w"] >= (4 if panel["type"] == "stat" else 6)
        assert not taken & cells, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert height <= 60
    assert len(taken) == 24 * height


@every_board
def test_ids_and_names_are_unique(board: Mapping[str, Any]) -> None:
    """Links to a panel, and a person who speaks of one, mean one."""
    for key in ("id", "title"):
        said = [panel[key] for panel in grafana.panels(board)]
        assert len(said) == len(set(said))
    for panel in grafana.panels(board):
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) >= 1


@every_board
def test_every_panel_says_what_it_shows(board: Mapping[str, Any]) -> None:
    """A description in sentences, words for when there is nothing, and a unit where there are numbers."""
    for panel in grafana.panels(board):
        assert re.match(r"[A-Z0-9].*\.$", panel["description"], re.DOTALL), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["noValue"], panel["title"]
        if panel["type"] in ("stat", "timeseries"):
            assert defaults["unit"], panel["title"]
        if panel["type"] == "stat":
            assert defaults["thresholds"]["steps"], panel["title"]


def provisioned() -> dict[str, dict[str, Any]]:
    read = yaml.safe_load((PROVISIONING / "datasources" / "handrail.yaml").read_text("utf-8"))
    return {source["uid"]: source for source in read["datasources"]}


@every_board
def test_data_sources_resolve(board: Mapping[str, Any]) -> None:
    """Each query asks a variable of its type, whose value is a data source that is provisioned."""
    variables = {each["name"]: each for each in board["templating"]["list"] if each["type"] == "datasource"}
    for panel in grafana.panels(board):
        for asked in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            variable = variables[asked["uid"].strip("${}")]
            assert variable["query"] == asked["type"]
            assert provisioned()[variable["current"]["value"]]["type"] == asked["type"]


@every_board
def test_variables_are_defined_and_used(board: Mapping[str, Any]) -> None:
    """Nothing refers to a variable that is not there, and no variable is without effect."""
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)([a-z]+)", json.dumps([texts(board), board["panels"]])))
    assert used == defined


@every_board
def test_all_matches_series_without_the_label(board: Mapping[str, Any]) -> None:
    """A Prometheus that knows no cluster or namespace still shows everything."""
    for variable in board["templating"]["list"]:
        if variable["name"] in ("cluster", "namespace", "source", "target"):
            assert variable["allValue"] == ".*"
            assert variable["current"]["value"] == [grafana.ALL]
    assert not re.search(r"(cluster|namespace|source|target)=\"", "".join(texts(board)))


def urls(value: Any) -> Iterator[str]:
    """Every `url` in a dashboard's JSON."""
    if isinstance(value, dict):
        if value.get("url"):
            yield value["url"]
        for item in value.values():
            yield from urls(item)
    elif isinstance(value, list):
        for item in value:
            yield from urls(item)


@every_board
def test_links_resolve(board: Mapping[str, Any]) -> None:
    """Each leads to a dashboard that is here, and sets variables which that one has."""
    mine = {variable["name"] for variable in board["templating"]["list"]}
    for url in urls(board):
        parts = urlsplit(url)
        uid = parts.path.removeprefix("/d/")
        theirs = {variable["name"] for variable in BOARDS[uid]["templating"]["list"]}
        assert {key.removeprefix("var-") for key in parse_qs(parts.query)} <= theirs, url
        assert set(re.findall(r"\$\{(\w+):queryparam\}", url)) <= mine, url
    assert any(link["tags"] == ["handrail"] and link["type"] == "dashboards" for link in board["links"])
    # A column that a link takes its value from is one of the query's.
    for panel in grafana.panels(board):
        fields = set(re.findall(r"__data\.fields\.(\w+)", json.dumps(panel)))
        asked = " ".join(target.get("rawSql", "") for target in panel["targets"])
        for override in panel["fieldConfig"].get("overrides", []):
            if any(each["id"] == "links" for each in override["properties"]):
                assert re.search(rf"\b{override['matcher']['options']}\b", asked), panel["title"]
        if panel["type"] == "table" and "workflow" in fields:
            assert "workflow" in asked, panel["title"]


def test_links_from_alerts_resolve() -> None:
    """What an alert leads to is a dashboard that is here, with variables that it has."""
    for path in sorted((grafana.DASHBOARDS.parent / "rules" / "alerts").glob("*.yaml")):
        for url in re.findall(r"/d/[^\s\"']+", re.sub(r"\{\{[^}]*\}\}", "x", path.read_text("utf-8"))):
            parts = urlsplit(url)
            uid = parts.path.removeprefix("/d/").split("/")[0]
            theirs = {variable["name"] for variable in BOARDS[uid]["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", parts.query)) <= theirs, (path.name, url)


# Colours.

DEFICIENCIES = {
    "none": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
"""Linear RGB as it is seen: Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color
vision deficiency, IEEE Transactions on Visualization and Computer Graphics 15 (2009), severity 1.0."""


def lab(colour: str, matrix: tuple[tuple[float, ...], ...]) -> tuple[float, float, float]:
    """`#rrggbb` as it is seen, in CIELAB (D65)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5))
    ]
    red, green, blue = (min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in matrix)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    fx, fy, fz = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def difference(one: str, other: str, seen_by: str) -> float:
    matrix = DEFICIENCIES[seen_by]
    return sum((a - b) ** 2 for a, b in zip(lab(one, matrix), lab(other, matrix), strict=True)) ** 0.5


@pytest.mark.parametrize("seen_by", DEFICIENCIES)
@every_board
def test_colours_of_a_panel_are_told_apart(board: Mapping[str, Any], seen_by: str) -> None:
    """Whatever deficiency a person has, no two colours of one panel look the same."""
    for panel in grafana.panels(board):
        colours = sorted(set(re.findall(r"#[0-9A-Fa-f]{6}", json.dumps(panel))))
        for one, other in itertools.combinations(colours, 2):
            assert difference(one, other, seen_by) > 12, (panel["title"], one, other)
        named = re.findall(r'"(?:color|fixedColor)": "([a-z-]+)"', json.dumps(panel))
        assert set(named) <= {"transparent"}, "Grafana's own red and green"


def test_red_and_green_would_be_told() -> None:
    """The measure above sees what it is for."""
    assert difference("#F2495C", "#73BF69", "none") > 60
    assert difference("#C44E52", "#55A868", "deuteranopia") < 30


# What is asked exists.


def test_every_kind_of_finding_has_its_place() -> None:
    """Each is asked for by name, or by its family, on a dashboard beside the overview, which shows all."""
    asked = " ".join(text for uid, board in BOARDS.items() if uid != "handrail-overview" for text in texts(board))
    for kind in KINDS:
        assert f"'{kind}'" in asked or f"'{kind.split('.')[0]}.%'" in asked, kind


def test_every_metric_is_shown() -> None:
    """A number that nobody can see need not be counted; a new metric wants a panel."""
    asked = " ".join(text for board in BOARDS.values() for text in texts(board))
    shown = set(re.findall(r"# TYPE (handrail_\w+) ", Metrics().render().decode()))
    assert {name for name in shown if name not in asked} == set()


@every_board
def test_every_metric_and_label_exists(board: Mapping[str, Any], run: Run) -> None:
    """As Prometheus has them of a real run; labels of grouping and legends too."""
    for panel, target in grafana.queries(board, "prometheus"):
        metrics = set(re.findall(r"\b((?:handrail|process)_\w+)", target["expr"]))
        assert metrics, panel["title"]
        labels = {"le"} if panel["type"] == "heatmap" else set()
        for metric in metrics:
            series = run.prometheus.ask("series", **{"match[]": metric})
            assert series, f"{panel['title']}: there is no {metric}"
            labels |= set().union(*series)
        used = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", target["expr"]))
        for group in re.findall(r"\b(?:by|on) ?\(([^)]*)\)", target["expr"]):
            used |= {label.strip() for label in group.split(",")}
        used |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert used <= labels, (panel["title"], used - labels)


@every_board
def test_every_query_of_prometheus_has_an_answer(board: Mapping[str, Any], run: Run) -> None:
    """Rows, and numbers among them, for All and without the labels of a place."""
    now = time.time()
    for panel, target in grafana.queries(board, "prometheus"):
        expr = grafana.promql(target["expr"], chosen(board))
        try:
            rows = run.prometheus.ask("query_range", query=expr, start=str(run.began), end=str(now), step="1")["result"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{panel['title']}: {error.read().decode()}")
        values = {value for row in rows for _, value in row["values"]}
        assert values - {"NaN"}, f"{panel['title']}: {expr}"


@every_board
def test_every_query_of_clickhouse_has_an_answer(board: Mapping[str, Any], run: Run) -> None:
    """Rows, and in each column a value in some row: so every column, and every path in the evidence, exists."""
    run.clickhouse.command("USE handrail")
    for panel, target in grafana.queries(board, "grafana-clickhouse-datasource"):
        rows = ask(run, target, board, panel)
        assert rows, panel["title"]
        empty = [name for name in rows[0] if all(row[name] in (None, "", []) for row in rows)]
        assert not empty, (panel["title"], empty)
        if target["queryType"] == "timeseries":
            assert next(iter(rows[0])) == "time"
            assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


def ask(
    run: Run,
    target: Mapping[str, Any],
    board: Mapping[str, Any],
    panel: Mapping[str, Any],
    values: Mapping[str, str] = {},
) -> Any:
    """The rows of a query. `values` for variables."""
    query = grafana.sql(target["rawSql"], chosen(board, values), run.began - 600, time.time() + 1)
    try:
        return run.clickhouse.rows(query)
    except urllib.error.HTTPError as error:
        pytest.fail(f"{panel['title']}: {error.read().decode()[:500]}\n{query}")


@every_board
def test_queries_hold_with_one_value_of_each_variable(board: Mapping[str, Any], run: Run) -> None:
    """Filters are valid, and leave nothing in that they should leave out."""
    run.clickhouse.command("USE handrail")
    now = time.time()
    values = {"source": "writer", "target": "reviewer", "cluster": "c1", "namespace": "n1", "workflow": CHAIN}
    for panel, target in grafana.queries(board, "grafana-clickhouse-datasource"):
        for row in ask(run, target, board, panel, values):
            if target["refId"] == "A" and "source" in row and "$source" in target["rawSql"]:
                assert row["source"] == "writer", panel["title"]
    for _, target in grafana.queries(board, "prometheus"):
        expr = grafana.promql(target["expr"], chosen(board, values))
        for row in run.prometheus.ask("query", query=expr, time=str(now))["result"]:
            assert row["metric"].get("source", "writer") == "writer"
    elsewhere = {"cluster": "elsewhere"}
    for panel, target in grafana.queries(board, "prometheus"):
        expr = grafana.promql(target["expr"], chosen(board, elsewhere))
        if "vector(" not in expr:
            assert run.prometheus.ask("query", query=expr, time=str(now))["result"] == [], panel["title"]


@every_board
def test_an_empty_database_is_no_error(board: Mapping[str, Any], run: Run) -> None:
    """Before the first handoff panels say what they say when there is nothing, not what is wrong with a query."""
    database = Database(run.clickhouse.dsn("nothing"), "nothing")
    database.prepare(30)
    database.close()
    run.clickhouse.command("USE nothing")
    for panel, target in grafana.queries(board, "grafana-clickhouse-datasource"):
        rows = ask(run, target, board, panel)
        if panel["type"] != "stat":
            assert rows == [], panel["title"]


@every_board
def test_queries_of_variables_give_their_values(board: Mapping[str, Any], run: Run) -> None:
    """Labels through Prometheus' own way, workflows from ClickHouse, the latest first."""
    run.clickhouse.command("USE handrail")
    for variable in board["templating"]["list"]:
        if variable["type"] != "query":
            continue
        if variable["name"] == "workflow":
            query = grafana.sql(variable["query"]["rawSql"], {}, run.began, time.time() + 1)
            assert {"workflow": CHAIN} in run.clickhouse.rows(query)
            continue
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert found is not None
        selector = grafana.promql(found[1], chosen(board))
        values = {series.get(found[2]) for series in run.prometheus.ask("series", **{"match[]": selector})}
        assert values - {None}, variable["name"]


# Panels whose rows have a shape.


def graphs() -> Iterator[Any]:
    for uid, board in BOARDS.items():
        for panel in grafana.panels(board):
            if panel["type"] == "nodeGraph":
                yield pytest.param(board, panel, id=uid)


@pytest.mark.parametrize(("board", "panel"), list(graphs()))
def test_node_graphs_have_nodes_and_edges(board: Mapping[str, Any], panel: Mapping[str, Any], run: Run) -> None:
    """The columns that the panel knows, no edge without its nodes, arcs that add up to one, health twice."""
    run.clickhouse.command("USE handrail")
    frames = {target["refId"]: ask(run, target, board, panel) for target in panel["targets"]}
    known = {"id", "title", "subtitle", "mainstat", "secondarystat", "source", "target", "color", "thickness"}
    nodes = {row["id"]: row for row in frames["nodes"]}
    assert len(nodes) == len(frames["nodes"]) > 2
    for row in (*frames["nodes"], *frames["edges"]):
        assert {name for name in row if not name.startswith(("arc__", "detail__"))} <= known
    for node in nodes.values():
        assert node["arc__done"] + node["arc__failed"] == pytest.approx(1)
        assert 0 <= node["arc__failed"] <= 1
    identities = [edge["id"] for edge in frames["edges"]]
    assert len(identities) == len(set(identities)) > 1
    for edge in frames["edges"]:
        assert edge["source"] in nodes
        assert edge["target"] in nodes
        healthy = edge["secondarystat"] == "healthy"
        assert (edge["color"] == "#0072B2") == healthy


def test_edges_of_the_graph_are_counted_right(run: Run) -> None:
    """What an edge says is what a count over the events says."""
    run.clickhouse.command("USE handrail")
    board = BOARDS["handrail-overview"]
    (panel,) = (panel for panel in grafana.panels(board) if panel["type"] == "nodeGraph")
    edges = {edge["id"]: edge for edge in ask(run, panel["targets"][1], board, panel)}
    counted = run.clickhouse.rows(
        "SELECT source, target, count() AS handoffs, countIf(outcome = 'failed') AS failed FROM handoff "
        f"WHERE source != '' AND target != '' AND toStartOfMinute(at) >= toDateTime({run.began - 600:.0f}) "
        "GROUP BY source, target"
    )
    assert {f"{row['source']} → {row['target']}" for row in counted} == edges.keys()
    for row in counted:
        assert edges[f"{row['source']} → {row['target']}"]["mainstat"].startswith(f"{row['handoffs']} handoffs")
    assert any(int(row["failed"]) for row in counted)


def panel_of(uid: str, kind: str) -> dict[str, Any]:
    (panel,) = (panel for panel in grafana.panels(BOARDS[uid]) if panel["type"] == kind)
    return panel


def test_a_timeline_ends_what_it_begins(run: Run) -> None:
    """Every value has a word, and each lane is idle at the end."""
    run.clickhouse.command("USE handrail")
    board, panel = BOARDS["handrail-workflow"], panel_of("handrail-workflow", "state-timeline")
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    rows = ask(run, panel["targets"][0], board, panel)
    lanes: dict[str, list[int]] = {}
    for row in rows:
        lanes.setdefault(row["lane"], []).append(int(row["outcome"]))
    assert lanes.keys() == {"a → b", "b → c", "c → a"}
    assert {str(code) for codes in lanes.values() for code in codes} <= mapping["options"].keys()
    assert all(codes[-1] == 0 for codes in lanes.values())


def test_a_waterfall_is_one_trace(run: Run) -> None:
    """The columns that the panel knows; parents are spans of it, and began before their children."""
    run.clickhouse.command("USE handrail")
    board, panel = BOARDS["handrail-workflow"], panel_of("handrail-workflow", "traces")
    spans = {row["spanID"]: row for row in ask(run, panel["targets"][0], board, panel)}
    assert {row["traceID"] for row in spans.values()} == {CHAIN}
    children = [row for row in spans.values() if row["parentSpanID"]]
    assert len(children) >= 2 * len(spans) // 3
    for row in children:
        parent = spans[row["parentSpanID"]]
        assert parent["startTime"] <= row["startTime"]
        assert parent["operationName"].endswith(f"→ {row['serviceName']}")


def test_a_change_is_told_once(run: Run) -> None:
    """What is new is in the list with its first sight, and again only under another name."""
    rows = run.clickhouse.rows(
        "SELECT change, detail, source, target, at FROM handrail.change WHERE change != 'new finding'"
    )
    where = [(row["change"], row["detail"], row["source"], row["target"]) for row in rows]
    assert len(where) == len(set(where))
    said = {each[:2] for each in where}
    assert {("new edge", "a → b"), ("new schema version", "b.c@2"), ("new agent version", "a 1.0")} <= said
    first = run.clickhouse.one(
        "SELECT min(at) FROM handrail.event WHERE source = 'a' AND target = 'b' AND kind = 'handoff'"
    )
    (seen,) = (row["at"] for row in rows if row["detail"] == "a → b")
    assert seen == first
