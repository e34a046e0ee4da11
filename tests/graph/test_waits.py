"""The AND-OR wait-for graph, against a brute-force oracle."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.graph.waits import Wait, WaitGraph

AGENTS = "abcde"


@st.composite
def histories(draw: st.DrawFn) -> list[Wait | str]:
    """Waits that begin, and ids of waits that end."""
    steps: list[Wait | str] = []
    live: list[str] = []
    for number in range(draw(st.integers(1, 14))):
        if live and draw(st.integers(0, 3)) == 0:
            steps.append(live.pop(draw(st.integers(0, len(live) - 1))))
            continue
        targets = draw(st.lists(st.sampled_from(AGENTS), min_size=1, max_size=3, unique=True))
        wait = Wait(
            f"w{number}", draw(st.sampled_from(AGENTS)), tuple(targets), float(number), "wait", draw(st.booleans())
        )
        steps.append(wait)
        live.append(wait.id)
    return steps


def stuck_by_force(waits: list[Wait]) -> set[str]:
    """The largest set of agents of which each has a wait that only the set could end: by trying every set."""

    def holds(agents: frozenset[str]) -> bool:
        return all(
            any(
                wait.source == agent and (all if wait.is_any else any)(target in agents for target in wait.targets)
                for wait in waits
            )
            for agent in agents
        )

    for size in range(len(AGENTS), 0, -1):
        for agents in itertools.combinations(AGENTS, size):
            if holds(frozenset(agents)):
                return set(agents)
    return set()


@given(steps=histories())
@settings(max_examples=400, deadline=None)
def test_the_stuck_are_those_of_the_oracle(steps: list[Wait | str]) -> None:
    """After every wait that begins or ends; what is left of the graph in the end is its live waits."""
    graph, live = WaitGraph(), dict[str, Wait]()
    for step in steps:
        if isinstance(step, Wait):
            live[step.id] = step
            before = stuck_by_force([wait for wait in live.values() if wait is not step])
            knots = graph.add(step)
            after = stuck_by_force(list(live.values()))
            assert {agent for knot in graph.knots() for agent in knot} <= after
            if after != before:  # somebody became stuck: then the knots are told
                assert knots
        else:
            graph.remove(step)
            del live[step]
        assert graph.stuck() == stuck_by_force(list(live.values()))
        assert graph.waits == live


@given(steps=histories())
@settings(max_examples=300, deadline=None)
def test_a_named_cycle_is_one(steps: list[Wait | str]) -> None:
    """Each wait's targets hold the next one's source, all are in the knot, and each wait is one that cannot end."""
    graph = WaitGraph()
    for step in steps:
        if isinstance(step, Wait):
            graph.add(step)
        else:
            graph.remove(step)
        stuck = graph.stuck()
        assert bool(stuck) == bool(graph.knots())
        for knot in graph.knots():
            cycle = graph.cycle(knot)
            for wait, following in itertools.pairwise([*cycle, cycle[0]]):
                assert following.source in wait.targets
                assert wait.source in knot
                assert (all if wait.is_any else any)(target in stuck for target in wait.targets)


def test_a_cycle_is_not_sufficient() -> None:
    """a waits for b or c, b for a: c is free, so that nobody is stuck; until c waits for a too."""
    graph = WaitGraph()
    assert graph.add(Wait("1", "a", ("b", "c"), 0.0, "wait", True)) == []
    assert graph.add(Wait("2", "b", ("a",), 1.0, "wait")) == []
    assert graph.add(Wait("3", "c", ("a",), 2.0, "wait")) == [["a", "b", "c"]]
    graph.remove("3")
    assert graph.stuck() == set()


def test_who_waits_behind_a_knot_is_stuck_but_not_part_of_it() -> None:
    """d waits for a, which waits for b, which waits for a."""
    graph = WaitGraph()
    for wait in (Wait("1", "d", ("a",), 0.0, "wait"), Wait("2", "a", ("b",), 1.0, "wait")):
        graph.add(wait)
    assert graph.add(Wait("3", "b", ("a",), 2.0, "wait")) == [["a", "b"]]
    assert graph.stuck() == {"a", "b", "d"}
    assert [wait.id for wait in graph.cycle(["a", "b"])] == ["2", "3"]
