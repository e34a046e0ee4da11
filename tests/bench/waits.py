"""`python tests/bench/waits.py`: what wait.deadlock costs, against rebuilding the wait-for graph for each event.

Waits and resumes of random agents, half of them in one workflow with many agents, half spread over many workflows; the
memory of 100,000 workflows with one live wait each; and `graph check` on 100,000 edges.
"""

import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

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


def timed(what: str, count: int, run: Callable[[], object]) -> None:
    begun = time.perf_counter()
    run()
    spent = time.perf_counter() - begun
    sys.stdout.write(f"{what:<60} {count:>9} {spent:>8.2f} s {count / spent:>12,.0f}/s\n")
    sys.stdout.flush()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    many = list(history(10_000, 1, most=5_000))
    timed("wait.deadlock, 5,000 live waits in 1 workflow", 10_000, lambda: incremental(many))
    timed("rustworkx rebuilt, 5,000 live waits in 1 workflow", 10_000, lambda: rebuilding(many, by_rustworkx))
    for workflows in (1, 10_000):
        events = list(history(count, workflows))
        timed(f"wait.deadlock, {workflows} workflow(s)", count, lambda: incremental(events))  # noqa: B023
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
    sys.stdout.write(f"memory of 100,000 live workflows: {tracemalloc.get_traced_memory()[0] / 1e6:.0f} MB\n")
    tracemalloc.stop()
    chance = random.Random(1)
    edges = [[f"a{n}", f"a{chance.randrange(n + 1, 20_001)}"] for n in range(20_000) for _ in range(5)]
    text = orjson.dumps({"edges": edges}).decode()
    timed("graph check, JSON, edges", len(edges), lambda: report.check(declared.read(text)))


if __name__ == "__main__":
    main()
