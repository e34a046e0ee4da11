"""A Plan becomes what is wrong with it as a directed acyclic graph, and its critical path."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from handrail.graph.declared import Plan
from handrail.graph.order import (
    components,
    heaviest_path,
    reachable,
    reversed_graph,
    shortest_cycle,
    sorted_by_edges,
    startable,
)


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """Agents that each lead to each other."""

    agents: tuple[str, ...]
    cycle: tuple[str, ...]
    """A shortest cycle among them; the last leads back to the first."""
    edges: int
    deadlock: bool
    """Whether none of them can ever start: each needs another that has not."""
    entered_through: tuple[str, ...] = ()
    """Those that an agent outside can start, because they wait for any: a loop, but no deadlock."""


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="graph"):
    """What a declared graph is as a DAG."""

    file: str | None = None
    format: str
    acyclic: bool
    agents: int
    edges: int
    components: tuple[Component, ...] = ()
    """Those with a cycle, a self-loop among them; all others hold one agent."""
    self_loops: tuple[str, ...] = ()
    deadlocked: tuple[str, ...] = ()
    """Agents that can never start: those of the deadlocks and those that need them."""
    unreachable: tuple[str, ...] = ()
    """Agents that no entry leads to, and declared ones that no edge touches."""
    undeclared: tuple[str, ...] = ()
    """Agents that an edge or an entry names and the declaration does not."""
    entries: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    critical_path: tuple[str, ...] | None = None
    """The longest chain: by seconds where any are given, else by agents. None where there is a cycle."""
    critical_seconds: float | None = None


def check(plan: Plan, file: str | None = None) -> Report:
    """Linear in agents and edges, but for the shortest cycles, which are looked for inside each component."""
    names = plan.agents
    number = {name: index for index, name in enumerate(names)}
    following: dict[str, list[int]] = {name: [] for name in names}
    for tail, head in plan.edges:
        following[tail].append(number[head])
    graph = list(following.values())
    order = sorted_by_edges(graph)
    has_edges = bool(plan.edges)
    heads = set(itertools.chain.from_iterable(graph))
    entries = [number[name] for name in plan.entries]
    if not entries:
        entries = [node for node in range(len(names)) if node not in heads and (graph[node] or not has_edges)]
    found: list[Component] = []
    path: tuple[str, ...] | None = None
    total: float | None = None
    if len(order) == len(names):  # acyclic, so that all can start, however they wait
        started = set(order)
        path, total = _critical(plan, graph, number, order)
    else:
        found, started = _cyclic(plan, graph, entries)
    if not entries and has_edges:
        # Everybody is on a cycle or behind one, and nothing says where it begins.
        reached = {node for node in range(len(names)) if graph[node] or node in heads}
    elif found or plan.entries:
        reached = reachable(graph, entries)
    else:  # every path of an acyclic graph begins at an entry
        reached = heads.union(entries)
    return Report(
        file=file,
        format=plan.format,
        acyclic=not found,
        agents=len(names),
        edges=len(plan.edges),
        components=tuple(found),
        self_loops=tuple(name for index, name in enumerate(names) if index in graph[index]) if found else (),
        deadlocked=tuple(name for index, name in enumerate(names) if index not in started),
        unreachable=tuple(name for index, name in enumerate(names) if index not in reached),
        undeclared=() if plan.declared is None else tuple(name for name in names if name not in plan.declared),
        entries=tuple(names[node] for node in entries),
        exits=plan.exits or tuple(names[node] for node in range(len(names)) if not graph[node] and node in reached),
        labels=plan.labels or plan.does,
        critical_path=path,
        critical_seconds=total,
    )


def _cyclic(plan: Plan, graph: list[list[int]], entries: list[int]) -> tuple[list[Component], set[int]]:
    """The components with a cycle, in order of name, and the nodes that can start."""
    names, reverse = plan.agents, reversed_graph(graph)
    waits_for_any = [name in plan.any_join for name in names]
    started = startable(graph, waits_for_any, entries)
    found = [
        _component(component, graph, reverse, names, started, waits_for_any, set(entries))
        for component in components(graph)
        if len(component) > 1 or component[0] in graph[component[0]]
    ]
    found.sort(key=lambda each: each.agents)
    return found, started


def _component(
    component: list[int],
    graph: list[list[int]],
    reverse: list[list[int]],
    names: tuple[str, ...],
    started: set[int],
    waits_for_any: list[bool],
    entries: set[int],
) -> Component:
    inside = set(component)
    through = tuple(
        names[node]
        for node in sorted(component)
        if node in entries
        or (waits_for_any[node] and any(before in started and before not in inside for before in reverse[node]))
    )
    return Component(
        agents=tuple(sorted(names[node] for node in component)),
        cycle=tuple(names[node] for node in shortest_cycle(graph, component)),
        edges=sum(1 for node in component for successor in graph[node] if successor in inside),
        deadlock=not any(node in started for node in component),
        entered_through=through,
    )


def _critical(
    plan: Plan, graph: list[list[int]], number: Mapping[str, int], order: list[int]
) -> tuple[tuple[str, ...], float | None]:
    is_timed = bool(plan.seconds or plan.edge_seconds)
    marks = {"__start__", "__end__"} if plan.format == "langgraph" else set()
    nodes = [plan.seconds.get(name, 0.0) if is_timed else float(name not in marks) for name in plan.agents]
    edges = {(number[tail], number[head]): value for (tail, head), value in plan.edge_seconds.items()}
    path, total = heaviest_path(graph, nodes, edges, order)
    return tuple(plan.agents[node] for node in path), total if is_timed else None


def as_json(report: Report) -> dict[str, Any]:
    """Every key, also those without a value, so that whoever reads it need not ask whether it is there."""
    return {"type": "graph", **{key: _plain(value) for key, value in msgspec.structs.asdict(report).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return msgspec.structs.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def lines(report: Report) -> list[str]:
    """The report for a person; an agent that a diagram labels is shown with its label."""

    def shown(names: Iterable[str]) -> list[str]:
        return [f"{name} ({report.labels[name]})" if name in report.labels else name for name in names]

    file = f"{report.file}: " if report.file else ""
    said = [f"{file}{_many(report.agents, 'agent')}, {_many(report.edges, 'edge')}: "]
    said[0] += "acyclic" if report.acyclic else f"{_many(len(report.components), 'cycle component')}, not a DAG"
    for component in report.components:
        said.append(f"  component of {_many(len(component.agents), 'agent')}: {', '.join(shown(component.agents))}")
        said.append(f"    shortest cycle: {' -> '.join(shown((*component.cycle, component.cycle[0])))}")
        if component.deadlock:
            said.append("    deadlock: each waits for another of them, so that none can start")
        else:
            through = ", ".join(shown(component.entered_through))
            said.append(
                f"    a loop, not a deadlock: it can be entered through {through}, where any predecessor is enough"
            )
    in_deadlock = {name for component in report.components if component.deadlock for name in component.agents}
    behind = [name for name in report.deadlocked if name not in in_deadlock]
    for label, names in (
        ("self-loops", report.self_loops),
        ("can never start, because they need one that cannot", behind),
        ("unreachable", report.unreachable),
        ("undeclared", report.undeclared),
    ):
        if names:
            said.append(f"  {label}: {', '.join(shown(names))}")
    if report.critical_path:
        lasting = "" if report.critical_seconds is None else f" ({report.critical_seconds:g} s)"
        said.append(f"  critical path{lasting}: {' -> '.join(shown(report.critical_path))}")
    return said


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
