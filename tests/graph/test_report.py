"""A declared graph as a DAG: components, joins, reachability, critical path."""

import networkx
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.graph.declared import read
from handrail.graph.report import Report, as_json, check, lines


def checked(text: str) -> Report:
    return check(read(text))


def test_a_ring_is_named_agent_by_agent() -> None:
    """With a shortest cycle, and that nobody can start."""
    (part,) = checked("edges: [[a, b], [b, c], [c, d], [d, a], [c, a]]").components
    assert part.agents == ("a", "b", "c", "d")
    assert part.cycle == ("a", "b", "c")
    assert part.deadlock


def test_every_component_is_named() -> None:
    """Two rings and a self-loop are three."""
    report = checked("edges: [[a, b], [b, a], [c, d], [d, c], [e, e], [x, y]]")
    assert [part.agents for part in report.components] == [("a", "b"), ("c", "d"), ("e",)]
    assert report.self_loops == ("e",)
    assert not report.acyclic


def test_a_cycle_through_an_or_join_can_be_entered() -> None:
    """It is a loop and no DAG, but no deadlock; with an AND join it is one."""
    text = "agents: [start, {name: j, join: %s}, a]\nedges: [[start, j], [j, a], [a, j]]"
    (loop,) = checked(text % "any").components
    assert (loop.deadlock, loop.entered_through) == (False, ("j",))
    (dead,) = checked(text % "all").components
    assert (dead.deadlock, dead.entered_through) == (True, ())
    assert not checked(text % "any").acyclic


def test_an_or_join_inside_a_ring_does_not_help_without_a_way_in() -> None:
    """Nobody outside can start it; and who needs it never starts either."""
    report = checked("agents: [{name: a, join: any}, b, c]\nedges: [[a, b], [b, a], [b, c]]")
    assert report.components[0].deadlock
    assert report.deadlocked == ("a", "b", "c")


def test_unreachable_and_undeclared_agents_are_named() -> None:
    """From declared entries; a declared agent without an edge; an agent that only an edge names."""
    report = checked("agents: [a, b, c, d, alone]\nentry: a\nedges: [[a, b], [c, d], [b, e]]")
    assert report.unreachable == ("c", "d", "alone")
    assert report.undeclared == ("e",)
    assert checked("edges: [[a, b], [c, b]]").unreachable == ()


def test_the_critical_path_goes_by_seconds_where_there_are_any() -> None:
    """Else by the number of agents; a graph with a cycle has none."""
    timed = checked("agents: [{name: a, seconds: 1}, {name: b, seconds: 9}, c]\nedges: [[a, b], [a, c], [c, d]]")
    assert (timed.critical_path, timed.critical_seconds) == (("a", "b"), 10.0)
    plain = checked("edges: [[a, b], [a, c], [c, d]]")
    assert (plain.critical_path, plain.critical_seconds) == (("a", "c", "d"), None)
    assert checked("edges: [[a, a]]").critical_path is None


def test_a_person_can_read_it() -> None:
    """Every fact is in the text."""
    told = "\n".join(lines(checked("agents: [a, b, d]\nedges: [[a, b], [b, a], [b, c]]")))
    for part in ("a -> b -> a", "deadlock", "undeclared: c", "unreachable: d", "not a DAG"):
        assert part in told


def test_json_has_every_key() -> None:
    """Also where there is nothing to say."""
    assert as_json(checked("edges: [[a, b]]")) == {
        "type": "graph",
        "file": None,
        "format": "handrail",
        "acyclic": True,
        "agents": 2,
        "edges": 1,
        "components": [],
        "self_loops": [],
        "deadlocked": [],
        "unreachable": [],
        "undeclared": [],
        "entries": ["a"],
        "exits": ["b"],
        "labels": {},
        "critical_path": ["a", "b"],
        "critical_seconds": None,
    }


@given(edges=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), min_size=1, max_size=14))
@settings(max_examples=200, deadline=None)
def test_acyclic_is_what_networkx_says(edges: list[tuple[str, str]]) -> None:
    """And the components with a cycle are its own."""
    report = checked(str({"edges": [list(edge) for edge in edges]}).replace("'", '"'))
    known = networkx.DiGraph(edges)
    assert report.acyclic == networkx.is_directed_acyclic_graph(known)
    assert {frozenset(part.agents) for part in report.components} == {
        frozenset(each)
        for each in networkx.strongly_connected_components(known)
        if len(each) > 1 or known.has_edge(*each, *each)
    }
