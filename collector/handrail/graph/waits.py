"""Waits and their ends become the deadlocks among them: the AND-OR wait-for graph of one workflow.

An agent goes on when all of its waits are over. A wait for `all` of its targets is over when each of them goes on, one
for `any` when one does. So an agent is stuck where no order of going on reaches it: the greatest set of agents of which
each has a wait that only agents of the set could end. A plain cycle is neither necessary (somebody may be stuck behind
a knot) nor sufficient (one of several may be free) once anybody waits for any.

Whether there can be a stuck agent at all is answered by an incremental topological order (`order.Order`): a stuck agent
waits for a stuck agent, so that a graph without a cycle has none. Adding a wait that agrees with the order costs a
dictionary entry for each target, ending one is free in the order; only while some edge closes a cycle is the graph
reduced, and only the part of it that the new waiter can reach.
"""

from collections.abc import Iterable, Iterator, Mapping, Set

from handrail.graph.order import Order, components, shortest_cycle


class Wait:
    """One agent waits for others. Nothing changes it once it is there."""

    __slots__ = ("event", "id", "is_any", "key", "since", "source", "store", "targets", "task", "via")

    def __init__(
        self,
        id: str,
        source: str,
        targets: tuple[str, ...],
        since: float,
        via: str,
        is_any: bool = False,
        task: str | None = None,
        store: str | None = None,
        key: str | None = None,
        event: str | None = None,
    ) -> None:
        self.id, self.source, self.targets, self.since = id, source, targets, since
        self.via = via
        """The mechanism: `call`, `wait`, `queue`, `lock`, `input`."""
        self.is_any = is_any
        """Whether one of the targets is enough."""
        self.task, self.store, self.key = task, store, key
        self.event = event
        """The event that began it, where `id` is not that event's."""

    def on_others(self, targets: tuple[str, ...]) -> "Wait":
        """The same wait for these."""
        return Wait(
            self.id,
            self.source,
            targets,
            self.since,
            self.via,
            self.is_any,
            self.task,
            self.store,
            self.key,
            self.event,
        )


class WaitGraph:
    """The live waits of one workflow. Memory is that of its live waits; the order exists from the second one on."""

    __slots__ = ("_by_source", "_closing", "_order", "waits")

    def __init__(self) -> None:
        self.waits: dict[str, Wait] = {}
        self._by_source: dict[str, dict[str, Wait]] | None = None
        self._order: Order[str] | None = None
        self._closing: dict[tuple[str, str], int] = {}
        """Edges that close a cycle, and so are not in the order."""

    def add(self, wait: Wait) -> list[list[str]]:
        """Adds a wait under an id that is not there. The knots that there are if it made its source stuck."""
        self.waits[wait.id] = wait
        if self._order is None:
            if len(self.waits) == 1 and wait.source not in wait.targets:
                return []
            self._order, self._by_source = Order(), {}
            for known in self.waits.values():
                self._put(known)
        else:
            self._put(wait)
        if not self._closing or not self._is_stuck(wait.source):
            return []
        return self.knots()

    def remove(self, wait_id: str) -> Wait | None:
        """Ends a wait; None where there is no such."""
        wait = self.waits.pop(wait_id, None)
        order = self._order
        if wait is None or order is None or self._by_source is None:
            return wait
        own = self._by_source[wait.source]
        del own[wait_id]
        if not own:
            del self._by_source[wait.source]
        closing = self._closing
        for target in wait.targets:
            edge = wait.source, target
            if edge in closing:
                closing[edge] -= 1
                if not closing[edge]:
                    del closing[edge]
            else:
                order.remove(wait.source, target)
        if not self.waits:
            self._order = self._by_source = None
            self._closing = {}
        elif closing:
            self._retry()
        return wait

    def of(self, source: str) -> Iterable[Wait]:
        """What an agent waits for."""
        if self._by_source is None:
            return [wait for wait in self.waits.values() if wait.source == source]
        return self._by_source.get(source, {}).values()

    def on(self, target: str) -> Iterator[Wait]:
        """Who waits for an agent."""
        return (wait for wait in self.waits.values() if target in wait.targets)

    def _put(self, wait: Wait) -> None:
        order, by_source = self._order, self._by_source
        if order is None or by_source is None:
            return
        by_source.setdefault(wait.source, {})[wait.id] = wait
        for target in wait.targets:
            edge = wait.source, target
            if edge in self._closing or not order.add(*edge):
                self._closing[edge] = self._closing.get(edge, 0) + 1

    def _retry(self) -> None:
        """An edge less: others may close no cycle any more."""
        order = self._order
        if order is None:
            return
        for edge, count in list(self._closing.items()):
            if order.add(*edge):
                for _ in range(count - 1):
                    order.add(*edge)
                del self._closing[edge]

    def _is_stuck(self, agent: str) -> bool:
        return agent in self._stuck(self._reach(agent))

    def _reach(self, agent: str) -> set[str]:
        by_source = self._by_source or {}
        seen, waiting = {agent}, [agent]
        while waiting:
            for wait in by_source.get(waiting.pop(), {}).values():
                for target in wait.targets:
                    if target not in seen:
                        seen.add(target)
                        waiting.append(target)
        return seen

    def _stuck(self, agents: Iterable[str]) -> set[str]:
        """The stuck ones among agents of which each leads only to others of them. Linear in their waits."""
        by_source = self._by_source or {}
        missing: dict[str, int] = {}  # waits of an agent that are not over
        needs: dict[str, int] = {}  # targets of a wait that must go on before it is over
        holding: dict[str, list[Wait]] = {}
        free: list[str] = []
        for agent in agents:
            own = [wait for wait in by_source.get(agent, {}).values() if wait.targets]
            if not own:
                free.append(agent)
                continue
            missing[agent] = len(own)
            for wait in own:
                needs[wait.id] = 1 if wait.is_any else len(wait.targets)
                for target in wait.targets:
                    holding.setdefault(target, []).append(wait)
        while free:
            for wait in holding.get(free.pop(), ()):
                needs[wait.id] -= 1
                if needs[wait.id] == 0:
                    missing[wait.source] -= 1
                    if not missing[wait.source]:
                        del missing[wait.source]
                        free.append(wait.source)
        return set(missing)

    def stuck(self) -> set[str]:
        """Every agent that can never go on unless a wait is broken off."""
        if not self._closing:
            return set()
        return self._stuck({*(self._by_source or {}), *(each for wait in self.waits.values() for each in wait.targets)})

    def knots(self) -> list[list[str]]:
        """The stuck agents that hold each other: the strongly connected components among them, each in order of name.

        Agents that are only stuck behind a knot are not part of it.
        """
        stuck = sorted(self.stuck())
        if not stuck:
            return []
        number = {agent: index for index, agent in enumerate(stuck)}
        graph = self._numbered(number, number.keys())
        return sorted(
            sorted(stuck[node] for node in component)
            for component in components(graph)
            if len(component) > 1 or component[0] in graph[component[0]]
        )

    def cycle(self, knot: list[str]) -> list[Wait]:
        """A shortest cycle inside a knot, as the waits that make it; it begins with the oldest of them."""
        stuck = self.stuck()
        number = {agent: index for index, agent in enumerate(knot)}
        graph = self._numbered(number, stuck)
        found = [knot[node] for node in shortest_cycle(graph, range(len(knot)), tries=100_000)]
        waits = []
        for index, agent in enumerate(found):
            following = found[(index + 1) % len(found)]
            among = [wait for wait in self.of(agent) if following in wait.targets and _blocks(wait, stuck)]
            waits.append(min(among, key=lambda wait: (wait.since, wait.id)))
        at = min(range(len(waits)), key=lambda index: (waits[index].since, waits[index].id), default=0)
        return waits[at:] + waits[:at]

    def _numbered(self, number: Mapping[str, int], stuck: Set[str]) -> list[list[int]]:
        """The numbered agents with the edges of the waits that hold them."""
        return [
            sorted(
                {
                    number[target]
                    for wait in self.of(agent)
                    if _blocks(wait, stuck)
                    for target in wait.targets
                    if target in number
                }
            )
            for agent in number
        ]

    def __len__(self) -> int:
        return len(self.waits)


def _blocks(wait: Wait, stuck: Set[str]) -> bool:
    """Whether a wait cannot end while these are stuck."""
    if wait.is_any:
        return all(each in stuck for each in wait.targets)
    return any(each in stuck for each in wait.targets)
