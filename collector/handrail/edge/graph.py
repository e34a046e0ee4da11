"""`handrail graph`: declared graphs checked from files, the observed one drawn from recordings or ClickHouse."""

import gc
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import orjson

from handrail.config import Config
from handrail.edge.text import Unreadable, decoded
from handrail.event import Event
from handrail.graph import declared, report
from handrail.graph.declared import Plan, PlanError

MAX_FILE_BYTES = 67_108_864

Form = Literal["mermaid", "dot", "json"]


def read_plans(file: str) -> list[tuple[str, Plan]]:
    """A file (`-` is standard input) to its plans, each with the name to report it under.

    One plan, or one for each `plan` event of a recording. Raises Unreadable naming file and place.
    """
    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with open(file, "rb") as stream:
                content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"is longer than {MAX_FILE_BYTES} bytes; split the graph")
        text = decoded(content, name)
    except OSError as error:
        raise Unreadable([f"{name}: cannot be read: {(error.strerror or str(error)).lower()}"]) from None
    except ValueError as error:
        raise Unreadable([str(error) if str(error).startswith(name) else f"{name}: {error}"]) from None
    try:
        events = list(_plan_events(text))
        if events:
            return [(f"{name}:{line}", declared.of(payload, f"line {line}")) for line, payload in events]
        return [(name, declared.read(text, name))]
    except PlanError as error:
        raise Unreadable([f"{name}: {error}"]) from None


def configured_plans(config: Config, at: float) -> list[Event]:
    """The graph that a configuration names as `plan` events of that instant. Raises Unreadable where it is none."""
    if config.graph.file is None:
        return []
    return [
        Event(
            kind="plan",
            id=f"plan-{name}",
            at=at,
            operation="graph.file",
            outcome="completed",
            payload={
                "agents": [
                    {"name": each, "join": "any" if each in plan.any_join else "all"}
                    | ({"agent": called} if (called := plan.does.get(each) or plan.labels.get(each)) else {})
                    for each in plan.agents
                ],
                "edges": [list(edge) for edge in plan.edges],
            },
        )
        for name, plan in read_plans(config.graph.file)
    ]


def _plan_events(text: str) -> Iterator[tuple[int, Any]]:
    """The payloads of the `plan` events of event JSON lines, with their lines; none where it is anything else."""
    lines = text.splitlines()
    is_recording = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not is_recording and not re.match(r'\s*\{.*"kind"', line):
            return
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            return
        if not isinstance(value, dict) or "kind" not in value:
            return
        is_recording = True
        if value["kind"] == "plan":
            yield number, value.get("payload")
    if is_recording and not any('"plan"' in line for line in lines):
        raise PlanError("", "is a recording without plan events; `handrail graph show` draws what it shows")


def check(files: Sequence[str], output: str = "text") -> int:
    """Prints what each declared graph is as a DAG. Returns 0 where all are acyclic, else 1. Raises Unreadable."""
    was_on = gc.isenabled()
    gc.disable()  # a graph is many small tuples, all of which stay until the end
    try:
        found = [report.check(plan, name) for file in files for name, plan in read_plans(file)]
    finally:
        if was_on:
            gc.enable()
    for each in found:
        if output == "json":
            sys.stdout.write(orjson.dumps(report.as_json(each)).decode() + "\n")
        else:
            sys.stdout.write("\n".join(report.lines(each)) + "\n")
    sys.stdout.flush()
    return 0 if all(each.acyclic for each in found) else 1


EDGES = """
SELECT
    source, target,
    count() AS handoffs,
    countIf(outcome IN ('failed', 'rejected', 'dropped', 'timeout', 'interrupted')) AS failed,
    arraySort(groupUniqArray(20)(ifNull(protocol, ''))) AS protocols
FROM {database}.handoff
WHERE at > now64(6) - INTERVAL {seconds} SECOND AND source IS NOT NULL AND target IS NOT NULL
    AND kind = 'handoff'{where}
GROUP BY source, target
ORDER BY source, target
LIMIT 100000
"""


def recorded_edges(files: Sequence[str], workflow: str | None = None) -> "list[ObservedEdge]":
    """The observed graph of recordings, as `handrail replay` reads them. Raises Unreadable."""
    from handrail.edge.replay import records
    from handrail.pipeline import build
    from handrail.schema.registry import Registry

    found = records(files, build(Config(), Registry(), ()), _unwatched)
    return observed(
        each for each in found if isinstance(each, Event) and (workflow is None or each.workflow == workflow)
    )


def _unwatched(read: int) -> None:
    """Nobody looks at the progress."""


def stored_edges(dsn: str, database: str, since: str, workflow: str | None = None) -> "list[ObservedEdge]":
    """The observed graph of the last `since` in ClickHouse. Raises Unreadable where it cannot be read."""
    from handrail.edge.clickhouse import Busy, Refused
    from handrail.edge.database import Database, quiet
    from handrail.edge.report import since_seconds

    quiet()
    where = "" if workflow is None else f" AND workflow = {_literal(workflow)}"
    try:
        seconds = since_seconds(since)
        source = Database(dsn, database)
    except ValueError as error:
        raise Unreadable([f"command line: {error}"]) from None
    try:
        rows = source.rows(EDGES.format(database=source.name, seconds=seconds, where=where))
    except (Busy, Refused) as error:
        raise Unreadable([f"{source.target.scheme}: {error}"]) from None
    finally:
        source.close()
    return [
        ObservedEdge(
            source=row["source"],
            target=row["target"],
            handoffs=int(row["handoffs"]),
            failed=int(row["failed"]),
            protocols={name for name in row["protocols"] if name},
        )
        for row in rows
    ]


def _literal(text: str) -> str:
    """Text as a string of ClickHouse's SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class ObservedEdge(msgspec.Struct, kw_only=True):
    """What passed from one agent to another."""

    source: str
    target: str
    handoffs: int = 0
    failed: int = 0
    protocols: set[str] = msgspec.field(default_factory=set)


_BAD = frozenset({"failed", "rejected", "timeout", "interrupted", "dropped"})


def observed(events: Iterable[Event]) -> list[ObservedEdge]:
    """Events to the edges between agents, in order of name. One sight of a call that was opened is not counted."""
    edges: dict[tuple[str, str], ObservedEdge] = {}
    for event in events:
        if event.kind != "handoff" or event.source is None or event.target is None or event.outcome == "asked":
            continue
        pair = event.source, event.target
        edge = edges.get(pair)
        if edge is None:
            edge = edges[pair] = ObservedEdge(source=pair[0], target=pair[1])
        edge.handoffs += 1
        edge.failed += event.outcome in _BAD
        if event.protocol is not None:
            edge.protocols.add(event.protocol)
    return [edges[pair] for pair in sorted(edges)]


def show(edges: Sequence[ObservedEdge], form: Form) -> int:
    """Prints an observed graph. Returns 0, or 1 where it has a cycle, which is no fault in itself."""
    sys.stdout.write(_FORMS[form](edges) + "\n")
    sys.stdout.flush()
    graph = plan_of(edges)
    return 0 if not edges or report.check(graph).acyclic else 1


def plan_of(edges: Sequence[ObservedEdge]) -> Plan:
    """An observed graph as if somebody had declared it: the form that `graph check` reads."""
    pairs = tuple((edge.source, edge.target) for edge in edges)
    return Plan(agents=tuple(dict.fromkeys(name for pair in pairs for name in pair)), edges=pairs, format="observed")


def _numbered(edges: Sequence[ObservedEdge]) -> dict[str, str]:
    names = sorted({name for edge in edges for name in (edge.source, edge.target)})
    return {name: f"n{index}" for index, name in enumerate(names)}


def _mermaid(edges: Sequence[ObservedEdge]) -> str:
    plain = all(re.fullmatch(r"[A-Za-z_]\w*", name) and name != "end" for name in _numbered(edges))
    ids = {name: name for name in _numbered(edges)} if plain else _numbered(edges)
    lines = ["flowchart LR"]
    if not plain:
        lines += [f'    {ids[name]}["{_quoted(name)}"]' for name in ids]
    lines += [f"    {ids[edge.source]} -->|{_said(edge)}| {ids[edge.target]}" for edge in edges]
    return "\n".join(lines)


def _dot(edges: Sequence[ObservedEdge]) -> str:
    def name(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'

    lines = [f"    {name(edge.source)} -> {name(edge.target)} [label={name(_said(edge))}];" for edge in edges]
    return "\n".join(["digraph handoffs {", "    rankdir=LR;", *lines, "}"])


def _json(edges: Sequence[ObservedEdge]) -> str:
    """One object that `graph check` reads."""
    value = {
        "type": "graph",
        "agents": sorted(_numbered(edges)),
        "edges": [
            {
                "from": edge.source,
                "to": edge.target,
                "handoffs": edge.handoffs,
                "failed": edge.failed,
                "protocols": sorted(edge.protocols),
            }
            for edge in edges
        ],
    }
    return orjson.dumps(value).decode()


def _said(edge: ObservedEdge) -> str:
    return f"{edge.handoffs}" + (f", {edge.failed} failed" if edge.failed else "")


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;").replace("\n", " ")


_FORMS: Mapping[Form, Callable[[Sequence[ObservedEdge]], str]] = {"mermaid": _mermaid, "dot": _dot, "json": _json}
