"""Numbered nodes and their successors become components, cycles, paths and orders.

A graph is a list: the successors of node n are `graph[n]`, numbers below `len(graph)`. Everything is iterative, so
depth is no limit, and linear in nodes and edges where not said otherwise.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

Graph = Sequence[Sequence[int]]


def components(graph: Graph) -> list[list[int]]:
    """The strongly connected components, each after those that it leads to (reverse topological order).

    Tarjan, Depth-first search and linear graph algorithms, SIAM Journal on Computing 1 (1972), without recursion.
    """
    size = len(graph)
    index, low = [0] * size, [0] * size
    on_stack = bytearray(size)
    stack: list[int] = []
    found: list[list[int]] = []
    count = 0
    for root in range(size):
        if index[root]:
            continue
        count += 1
        index[root] = low[root] = count
        stack.append(root)
        on_stack[root] = 1
        path: list[tuple[int, Iterator[int]]] = [(root, iter(graph[root]))]
        while path:
            node, successors = path[-1]
            for successor in successors:
                if not index[successor]:
                    count += 1
                    index[successor] = low[successor] = count
                    stack.append(successor)
                    on_stack[successor] = 1
                    path.append((successor, iter(graph[successor])))
                    break
                if on_stack[successor] and index[successor] < low[node]:
                    low[node] = index[successor]
            else:
                path.pop()
                if path and low[node] < low[path[-1][0]]:
                    low[path[-1][0]] = low[node]
                if low[node] == index[node]:
                    at = len(stack) - 1
                    while stack[at] != node:
                        at -= 1
                    component = stack[at:]
                    del stack[at:]
                    for each in component:
                        on_stack[each] = 0
                    found.append(component)
    return found


def shortest_cycle(graph: Graph, component: Sequence[int], *, tries: int = 1_000_000) -> list[int]:
    """A shortest cycle inside a strongly connected component, from its smallest node on; empty where there is none.

    A breadth-first search from every node: nodes times edges. Past `tries` edges the shortest found so far is given,
    which is then a shortest cycle through some of the nodes.
    """
    inside = set(component)
    best: list[int] = []
    for start in sorted(component):
        if start in graph[start]:
            return [start]
    for start in sorted(component):
        before = {start: -1}
        waiting = deque([(start, 1)])
        closed = -1
        while waiting and closed < 0:
            node, length = waiting.popleft()
            if best and length >= len(best):
                break
            for successor in graph[node]:
                tries -= 1
                if successor == start:
                    closed = node
                    break
                if successor in inside and successor not in before:
                    before[successor] = node
                    waiting.append((successor, length + 1))
        if closed >= 0:
            cycle = [closed]
            while before[cycle[-1]] >= 0:
                cycle.append(before[cycle[-1]])
            best = cycle[::-1]
            if len(best) == 2:
                break
        if tries < 0 and best:
            break
    if not best:
        return best
    at = best.index(min(best))
    return best[at:] + best[:at]


def reachable(graph: Graph, roots: Iterable[int]) -> set[int]:
    """The roots and everything that they lead to."""
    seen = set(roots)
    waiting = list(seen)
    while waiting:
        for successor in graph[waiting.pop()]:
            if successor not in seen:
                seen.add(successor)
                waiting.append(successor)
    return seen


def reversed_graph(graph: Graph) -> list[list[int]]:
    """The same edges the other way round."""
    out: list[list[int]] = [[] for _ in graph]
    for node, successors in enumerate(graph):
        for successor in successors:
            out[successor].append(node)
    return out


def startable(graph: Graph, waits_for_any: Sequence[bool], entries: Iterable[int]) -> set[int]:
    """The nodes that can ever start: entries and nodes without predecessors; those that wait for all of their
    predecessors once all can, those that wait for any once one can. The least fixpoint, linear.
    """
    missing = [0] * len(graph)
    for successors in graph:
        for successor in successors:
            missing[successor] += 1
    started = set(entries) | {node for node, count in enumerate(missing) if not count}
    waiting = list(started)
    while waiting:
        for successor in graph[waiting.pop()]:
            missing[successor] -= 1
            if successor not in started and (waits_for_any[successor] or not missing[successor]):
                started.add(successor)
                waiting.append(successor)
    return started


def sorted_by_edges(graph: Graph) -> list[int]:
    """The nodes that no cycle leads to, each after all that lead to it: every node where there is no cycle.

    Kahn, Topological sorting of large networks, Communications of the ACM 5 (1962).
    """
    missing = [0] * len(graph)
    for successors in graph:
        for successor in successors:
            missing[successor] += 1
    found = [node for node, count in enumerate(missing) if not count]
    for node in found:
        for successor in graph[node]:
            missing[successor] -= 1
            if not missing[successor]:
                found.append(successor)
    return found


def heaviest_path(
    graph: Graph, nodes: Sequence[float], edges: Mapping[tuple[int, int], float], order: Sequence[int] | None = None
) -> tuple[list[int], float]:
    """The path with the largest sum of node and edge weights in an acyclic graph, and that sum.

    `order` is what `sorted_by_edges` gives, where it is known.
    """
    if not graph:
        return [], 0.0
    best, following = list(nodes), [-1] * len(graph)
    for node in reversed(sorted_by_edges(graph) if order is None else order):
        heaviest, then = 0.0, -1
        for successor in graph[node]:
            weight = best[successor]
            if edges:
                weight += edges.get((node, successor), 0.0)
            if then < 0 or weight > heaviest:
                heaviest, then = weight, successor
        best[node], following[node] = nodes[node] + heaviest, then
    at = max(range(len(graph)), key=lambda node: (best[node], -node))
    total, path = best[at], [at]
    while following[path[-1]] >= 0:
        path.append(following[path[-1]])
    return path, total


Node = TypeVar("Node", bound=Hashable)


class Order(Generic[Node]):
    """A topological order that is kept while edges come and go.

    Pearce and Kelly, A dynamic topological sort algorithm for directed acyclic graphs, ACM Journal of Experimental
    Algorithmics 11 (2007): adding an edge that agrees with the order costs nothing; one that does not costs
    O(δ log δ), where δ is the number of nodes and edges between its ends in the order; removing an edge is free,
    because an order of the larger graph is one of the smaller. Edges are counted, so that two waits for one agent are
    one edge until both are over; a node is forgotten with its last edge.
    """

    __slots__ = ("_at", "_high", "_in", "_low", "_out")

    def __init__(self) -> None:
        self._at: dict[Node, int] = {}
        """Places in the order: distinct, with gaps."""
        self._low = self._high = 0
        self._out: dict[Node, dict[Node, int]] = {}
        self._in: dict[Node, dict[Node, int]] = {}

    def add(self, tail: Node, head: Node) -> bool:
        """Adds an edge. False, and nothing is changed, where it would close a cycle."""
        out = self._out.get(tail)
        if out is not None and head in out:
            out[head] += 1
            self._in[head][tail] += 1
            return True
        if tail == head:
            return False
        at = self._at
        if tail not in at:  # nothing leads to it, so that it may stand before everything
            self._low -= 1
            at[tail] = self._low
        if head not in at:  # it leads nowhere
            self._high += 1
            at[head] = self._high
        if at[head] < at[tail] and not self._reorder(tail, head):
            return False
        self._out.setdefault(tail, {})[head] = 1
        self._in.setdefault(head, {})[tail] = 1
        return True

    def remove(self, tail: Node, head: Node) -> None:
        """Takes away an edge that was added as often as it is taken away."""
        out, into = self._out[tail], self._in[head]
        if out[head] > 1:
            out[head] -= 1
            into[tail] -= 1
            return
        del out[head], into[tail]
        if not out:
            del self._out[tail]
        if not into:
            del self._in[head]
        for node in (tail, head):
            if node not in self._out and node not in self._in:
                del self._at[node]

    def _reorder(self, tail: Node, head: Node) -> bool:
        """Moves what leads to `tail` before what `head` leads to, within the places between the two."""
        at, low, high = self._at, self._at[head], self._at[tail]
        ahead, waiting = {head}, [head]
        while waiting:
            for node in self._out.get(waiting.pop(), ()):
                if node == tail:
                    return False
                if node not in ahead and at[node] < high:
                    ahead.add(node)
                    waiting.append(node)
        behind, waiting = {tail}, [tail]
        while waiting:
            for node in self._in.get(waiting.pop(), ()):
                if node not in behind and at[node] > low:
                    behind.add(node)
                    waiting.append(node)
        moved = sorted(behind, key=at.__getitem__) + sorted(ahead, key=at.__getitem__)
        for node, place in zip(moved, sorted(at[node] for node in moved), strict=True):
            at[node] = place
        return True

    def __len__(self) -> int:
        """How many nodes have an edge."""
        return len(self._at)
