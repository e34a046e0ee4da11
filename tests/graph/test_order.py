"""Algorithms on numbered graphs, against networkx and brute force."""

import itertools

import networkx
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.graph.order import Order, components, heaviest_path, reachable, shortest_cycle, startable

SIZE = 7
pairs = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1))
edge_lists = st.lists(pairs, max_size=16, unique=True)


def graph_of(edges: list[tuple[int, int]]) -> list[list[int]]:
    graph: list[list[int]] = [[] for _ in range(SIZE)]
    for tail, head in edges:
        graph[tail].append(head)
    return graph


def reference(edges: list[tuple[int, int]]) -> networkx.DiGraph:
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(SIZE))
    graph.add_edges_from(edges)
    return graph


@given(edges=edge_lists)
@settings(max_examples=200, deadline=None)
def test_components_are_those_of_networkx(edges: list[tuple[int, int]]) -> None:
    """The same sets, and each after those that it leads to."""
    found = components(graph_of(edges))
    assert {frozenset(each) for each in found} == {
        frozenset(each) for each in networkx.strongly_connected_components(reference(edges))
    }
    place = {node: at for at, component in enumerate(found) for node in component}
    assert all(place[head] <= place[tail] for tail, head in edges)


def test_depth_is_no_limit() -> None:
    """A ring of 50,000 is one component, and a chain is 50,000."""
    ring = [[(node + 1) % 50_000] for node in range(50_000)]
    assert len(components(ring)) == 1
    assert len(shortest_cycle(ring, components(ring)[0])) == 50_000
    ring[-1] = []
    assert len(components(ring)) == 50_000


@given(edges=edge_lists)
@settings(max_examples=200, deadline=None)
def test_a_shortest_cycle_is_one_and_none_is_shorter(edges: list[tuple[int, int]]) -> None:
    """Its edges exist, and its length is the least of all simple cycles in the component."""
    graph, known = graph_of(edges), reference(edges)
    for component in components(graph):
        cycle = shortest_cycle(graph, component)
        lengths = [len(each) for each in networkx.simple_cycles(known.subgraph(component))]
        assert len(cycle) == min(lengths, default=0)
        assert all(known.has_edge(a, b) for a, b in itertools.pairwise([*cycle, *cycle[:1]]))


@given(edges=edge_lists, roots=st.sets(st.integers(0, SIZE - 1)))
@settings(max_examples=100, deadline=None)
def test_reachable_is_that_of_networkx(edges: list[tuple[int, int]], roots: set[int]) -> None:
    """The roots and their descendants."""
    known = reference(edges)
    assert reachable(graph_of(edges), roots) == roots.union(*(networkx.descendants(known, root) for root in roots))


@given(edges=edge_lists, joins=st.lists(st.booleans(), min_size=SIZE, max_size=SIZE))
@settings(max_examples=200, deadline=None)
def test_startable_is_the_least_fixpoint(edges: list[tuple[int, int]], joins: list[bool]) -> None:
    """What brute force gives, one round after another."""
    before = {node: [tail for tail, head in edges if head == node] for node in range(SIZE)}
    started = {node for node in range(SIZE) if not before[node]}
    for _ in range(SIZE):
        for node in range(SIZE):
            enough = any if joins[node] else all
            if before[node] and enough(each in started for each in before[node]):
                started.add(node)
    assert startable(graph_of(edges), joins, ()) == started


@given(edges=edge_lists, weights=st.lists(st.integers(0, 9).map(float), min_size=SIZE, max_size=SIZE))
@settings(max_examples=100, deadline=None)
def test_the_heaviest_path_is_heaviest(edges: list[tuple[int, int]], weights: list[float]) -> None:
    """Of all paths of an acyclic graph."""
    edges = [(tail, head) for tail, head in edges if tail < head]
    known = reference(edges)
    path, total = heaviest_path(graph_of(edges), weights, {})
    assert sum(weights[node] for node in path) == total
    assert all(known.has_edge(a, b) for a, b in itertools.pairwise(path))
    every = [
        sum(weights[node] for node in each)
        for start in range(SIZE)
        for each in networkx.all_simple_paths(known, start, [node for node in range(SIZE) if node != start])
    ]
    assert total == max([*every, *weights])


@given(steps=st.lists(st.tuples(st.booleans(), pairs), max_size=60))
@settings(max_examples=300, deadline=None)
def test_an_order_refuses_exactly_what_closes_a_cycle(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    """Whatever was added and taken away before; nodes without edges are forgotten."""
    order: Order[int] = Order()
    known: list[tuple[int, int]] = []
    for is_added, edge in steps:
        if is_added:
            closes = edge[0] == edge[1] or networkx.has_path(reference(known), edge[1], edge[0])
            assert order.add(*edge) == (not closes)
            known += [] if closes else [edge]
        elif edge in known:
            order.remove(*edge)
            known.remove(edge)
        assert len(order) == len({node for pair in known for node in pair})
