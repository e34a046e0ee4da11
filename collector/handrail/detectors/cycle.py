"""A handoff that the declared graph does not allow becomes a finding, as does a declared graph that can never start.

The declaration is a `plan` event: its payload is any of the forms of `graph.declared`, its workflow whose plan it is,
or none for every workflow without one of its own. Where nothing was declared, nothing is found: agents that answer each
other are normal.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import ClassVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding
from handrail.detectors.params import CycleParams
from handrail.event import Event, Finding
from handrail.graph import report
from handrail.graph.declared import PlanError, of
from handrail.schema.registry import Registry


class _Declared:
    __slots__ = ("agents", "event", "successors")

    def __init__(self, event: str, agents: frozenset[str], successors: Mapping[str, frozenset[str]]) -> None:
        self.event, self.agents, self.successors = event, agents, successors

    def allows(self, source: str, target: str) -> bool:
        return target in self.successors.get(source, ())

    def path(self, start: str, goal: str) -> list[str]:
        """A shortest declared path; empty where there is none."""
        before: dict[str, str | None] = {start: None}
        waiting = deque([start])
        while waiting:
            agent = waiting.popleft()
            if agent == goal:
                path = [agent]
                while (previous := before[path[-1]]) is not None:
                    path.append(previous)
                return path[::-1]
            for successor in sorted(self.successors.get(agent, ())):
                if successor not in before:
                    before[successor] = agent
                    waiting.append(successor)
        return []


class GraphCycle:
    """An observed handoff is no edge of the declared graph: one that leads back, or one that nobody declared.

    Told once for each edge of a workflow; in enforce mode each time, because each is refused.
    """

    kind: ClassVar[str] = "graph.cycle"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first"})
    kinds: ClassVar[frozenset[str]] = frozenset({"plan", "handoff"})
    Params: ClassVar[type[msgspec.Struct]] = CycleParams

    def __init__(self, rule: Rule, params: CycleParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._enforced = rule.action == "enforce"
        self._plans: OrderedDict[str | None, _Declared] = OrderedDict()
        self._told: OrderedDict[str | None, set[tuple[str, str]]] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        if event.kind == "plan":
            return self._declare(event)
        if not self._plans or event.kind != "handoff":
            return NOTHING
        source, target = event.source, event.target
        if source is None or target is None or source == target:
            return NOTHING
        plan = self._plans.get(event.workflow) or self._plans.get(None)
        if plan is None or plan.allows(source, target):
            return NOTHING
        if source not in plan.agents and not (target in plan.agents and self._was_drawn_in(event.workflow, source)):
            return NOTHING
        if target not in plan.agents and event.protocol in self._params.except_protocols:
            return NOTHING
        return self._undeclared(event, plan, source, target)

    def _declare(self, event: Event) -> Iterable[Finding]:
        try:
            plan = of(event.payload)
        except PlanError:
            return NOTHING
        if len(plan.edges) > self._params.edges:
            return NOTHING
        successors: dict[str, set[str]] = {}
        for tail, head in plan.agent_edges():
            successors.setdefault(tail, set()).add(head)
        agents = {*plan.agents, *plan.does.values(), *plan.labels.values()}
        self._plans[event.workflow] = _Declared(
            event.id, frozenset(agents), {tail: frozenset(heads) for tail, heads in successors.items()}
        )
        self._plans.move_to_end(event.workflow)
        self._told.pop(event.workflow, None)
        self._bound()
        return tuple(
            finding(
                self._rule,
                event.but(payload=None, source=part.cycle[0], target=part.cycle[-1]),
                f"the declared graph has a cycle in which nobody can start: {_ring(part.cycle)}",
                evidence={
                    "what": "declared_cycle",
                    "cycle": list(part.cycle),
                    "component": list(part.agents[:100]),
                    "declared_by": event.id,
                },
                side="graph",
                same=part.cycle,
            )
            for part in report.check(plan).components
            if part.deadlock
        )

    def _was_drawn_in(self, workflow: str | None, agent: str) -> bool:
        """Whether one whom the plan does not know got work over an edge that was told: it is no caller from outside."""
        return any(target == agent for _, target in self._told.get(workflow, ()))

    def _undeclared(self, event: Event, plan: _Declared, source: str, target: str) -> Iterable[Finding]:
        told = self._told.get(event.workflow)
        if told is None:
            told = self._told[event.workflow] = set()
            self._bound()
        if (source, target) in told and not self._enforced:
            return NOTHING
        path = plan.path(target, source) if target in plan.agents else []
        if not path and not self._params.undeclared:
            return NOTHING
        if len(told) < 1_000:
            told.add((source, target))
        if path:
            what, cycle = "back_edge", [source, *path[:-1]]
            message = f"{source} handed over to {target}, which the declared graph puts before it: {_ring(cycle)}"
        else:
            what, cycle = ("undeclared_edge" if target in plan.agents else "undeclared_agent"), []
            message = f"{source} handed over to {target}, which the declared graph does not provide for"
        return (
            finding(
                self._rule,
                event,
                message,
                evidence={
                    "what": what,
                    "edge": [source, target],
                    "cycle": cycle,
                    "declared_by": plan.event,
                    "declared_targets": sorted(plan.successors.get(source, ()))[:50],
                },
                side="graph",
                events=(plan.event, event.id) if plan is self._plans.get(event.workflow) else (event.id,),
                same=(what,),
            ),
        )

    def _bound(self) -> None:
        while len(self) > self._params.keys:
            (self._told if len(self._told) > len(self._plans) else self._plans).popitem(last=False)

    def advance(self, now: float) -> Iterable[Finding]:
        return NOTHING

    def __len__(self) -> int:
        return len(self._plans) + len(self._told)


def _ring(cycle: Iterable[str]) -> str:
    names = list(cycle)
    return " → ".join((*names, names[0]))
