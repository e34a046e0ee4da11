"""`python tests/bench/waits.py`: what wait.deadlock costs, against rebuilding the wait-for graph for each event.

Waits and resumes of random agents, half of them in one workflow with many agents, half spread over many workflows; the
memory of 100,000 workflows with one live wait each; and `graph check` on 100,000 edges. Processor time of one core.
"""

import argparse
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx
import orjson
import rustworkx

from handrail.detectors import Rule
from handrail.detectors.deadlock import WaitDeadlock
from handrail.detectors.params import DeadlockParams
from handrail.event import Event
from handrail.graph import declared, report
from handrail.schema.registry import Registry

AGENTS = 10_000
REBUILT_BAR, MILLION_BAR_SECONDS, MEMORY_BAR_MB = 10.0, 60.0, 100.0


def history(count: int, workflows: int, most: int = 500, seed: int = 1) -> Iterator[Event]:
    """Waits that mostly lead one way, as delegation does, with one in fifty back; each ends after a while."""
    chance = random.Random(seed)
    live: list[tuple[str, str, str]] = []
    for number in range(count):
        at = number * 0.001
        if live and chance.random() < (0.5 if len(live) > most else 0.3):
            workflow, source, task = live.pop(chance.randrange(len(live)))
            yield Event(kind="resume", id=f"r{number}", at=at, workflow=workflow, source=source, task=task)
        else:
            first, second = sorted(chance.sample(range(AGENTS), 2), reverse=chance.random() < 0.02)
            workflow, source, task = f"w{chance.randrange(workflows)}", f"a{first}", f"t{number}"
            live.append((workflow, source, task))
            yield Event(
                kind="wait", id=f"e{number}", at=at, workflow=workflow, source=source, task=task, target=f"a{second}"
            )


def detector() -> WaitDeadlock:
    return WaitDeadlock(Rule(id="wait.deadlock", kind="wait.deadlock"), DeadlockParams(), Registry())


def incremental(events: list[Event]) -> int:
    found, watch = 0, detector()
    for event in events:
        found += len(list(watch.advance(event.at))) + len(list(watch.observe(event)))
    return found


def rebuilding(events: list[Event], has_cycle: Callable[[list[tuple[int, int]]], bool]) -> int:
    """The same question asked by building the graph of a workflow again for each wait."""
    live: dict[str, dict[tuple[str, str], tuple[int, int]]] = {}
    found = 0
    for event in events:
        edges = live.setdefault(event.workflow or "", {})
        key = event.source or "", event.task or ""
        if event.kind == "resume":
            edges.pop(key, None)
            continue
        edges[key] = int((event.source or "a0")[1:]), int((event.target or "a0")[1:])
        found += has_cycle(list(edges.values()))
    return found


def by_networkx(edges: list[tuple[int, int]]) -> bool:
    return not networkx.is_directed_acyclic_graph(networkx.DiGraph(edges))


def by_rustworkx(edges: list[tuple[int, int]]) -> bool:
    graph, number = rustworkx.PyDiGraph(), dict[int, int]()
    graph.extend_from_edge_list(
        [(number.setdefault(tail, len(number)), number.setdefault(head, len(number))) for tail, head in edges]
    )
    return not rustworkx.is_directed_acyclic_graph(graph)


def timed(what: str, count: int, run: Callable[[], object]) -> float:
    """Events a second, which are told."""
    begun = time.process_time()
    run()
    spent = time.process_time() - begun
    sys.stdout.write(f"{what:<60} {count:>9} {spent:>8.2f} s {count / spent:>12,.0f}/s\n")
    sys.stdout.flush()
    return count / spent


def target(title: str, limit: float, reached: float, *, is_at_least: bool = True) -> dict[str, Any]:
    """As `suite.Figure` takes it."""
    return {"title": title, "limit": limit, "is_at_least": is_at_least, "reached": reached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000, help="events (default 1,000,000)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write what was measured as JSON")
    options = parser.parse_args()
    count = options.count
    many = list(history(10_000, 1, most=5_000))
    ours = timed("wait.deadlock, 5,000 live waits in 1 workflow", 10_000, lambda: incremental(many))
    theirs = timed("rustworkx rebuilt, 5,000 live waits in 1 workflow", 10_000, lambda: rebuilding(many, by_rustworkx))
    targets = [target("5,000 live waits, times as fast as rustworkx rebuilt", REBUILT_BAR, ours / theirs)]
    for workflows in (1, 10_000):
        events = list(history(count, workflows))
        found = timed(f"wait.deadlock, {workflows} workflow(s)", count, lambda: incremental(events))  # noqa: B023
        title = f"a million waits and resumes, {workflows:,} workflow{'s' if workflows > 1 else ''}, s"
        targets.append(target(title, MILLION_BAR_SECONDS, 1e6 / found, is_at_least=False))
        few = events[:5_000]
        timed(f"rustworkx rebuilt, {workflows} workflow(s)", len(few), lambda: rebuilding(few, by_rustworkx))  # noqa: B023
        timed(f"networkx rebuilt, {workflows} workflow(s)", len(few), lambda: rebuilding(few, by_networkx))  # noqa: B023
    calls = [
        Event(kind="handoff", id=f"c{n}", at=0.0, workflow=f"w{n}", source="a", target="b", outcome="asked", task="t")
        for n in range(100_000)
    ]
    watch = detector()
    tracemalloc.start()
    for call in calls:
        watch.observe(call)
    megabytes = tracemalloc.get_traced_memory()[0] / 1e6
    sys.stdout.write(f"memory of 100,000 live workflows: {megabytes:.0f} MB\n")
    targets.append(target("waits of 100,000 live workflows, MB", MEMORY_BAR_MB, megabytes, is_at_least=False))
    tracemalloc.stop()
    chance = random.Random(1)
    edges = [[f"a{n}", f"a{chance.randrange(n + 1, 20_001)}"] for n in range(20_000) for _ in range(5)]
    text = orjson.dumps({"edges": edges}).decode()
    found = timed("graph check, JSON, edges", len(edges), lambda: report.check(declared.read(text)))
    targets.append(target("graph check of 100,000 edges, s", 1.0, len(edges) / found, is_at_least=False))
    if options.results is not None:
        options.results.write_text(orjson.dumps({"targets": targets}).decode() + "\n")


if __name__ == "__main__":
    main()
