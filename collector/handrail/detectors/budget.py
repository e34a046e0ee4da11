"""A handoff that is not over when its time is becomes a finding at that instant, not when the reply comes.

Time comes from four places, and the earliest instant counts: the deadline that the caller declared, the budget of the
edge, what is left of an agent's or a workflow's budget, and the deadline of the call that the sender itself serves.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, between, finding, instant, lasting
from handrail.detectors.params import BudgetParams, EdgeBudget
from handrail.event import Event, Finding, FindingSide
from handrail.schema.registry import Matcher, Registry, matcher


class Due(NamedTuple):
    """Until when a handoff has time, who says so, and the id of the call that it is part of where that says so."""

    at: float
    by: str
    outer: str | None = None


class _Call:
    """A call that is open; its event is without its payload."""

    __slots__ = ("due", "event")

    def __init__(self, due: Due, event: Event) -> None:
        self.due, self.event = due, event


class _Served:
    """A call that an agent serves or served until `end`, infinite while it is open; an infinite deadline is none."""

    __slots__ = ("at", "deadline", "end", "id")

    def __init__(self, id: str, at: float, end: float, deadline: float) -> None:
        self.id, self.at, self.end, self.deadline = id, at, end, deadline


class _Spent:
    """What an agent has taken in a workflow: seconds that are counted, and the latest calls as (end, seconds)."""

    __slots__ = ("recent", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.recent: list[tuple[float, float]] = []


class _Least:
    """What an edge has taken: how many handoffs were over, and the seconds of the shortest."""

    __slots__ = ("count", "seconds")

    def __init__(self, seconds: float) -> None:
        self.count = 1
        self.seconds = seconds


_TOGETHER = 16
"""So many calls of one agent in one workflow are told apart; more are taken for calls without a deadline."""
_ROUNDING = 0.001
"""Deadlines travel as text: what differs by less is the same instant."""
_INSTANT = 1e-6
"""Seconds since the epoch are exact to a quarter of this; a reply at the very deadline must not come out late."""


class BudgetExceeded:
    """A handoff took longer than it had, or cannot be over in time.

    Exceeded means that it ended after the deadline, so that a reply at that very instant is in time, and so that a
    recording gives the finding that the live system gave. Told before the call: its deadline is past; it is later than
    that of the call which it is part of, so that nobody will be there for the answer; less time is left than the edge
    has ever taken. The last is a forecast: a call that ended in time is none.

    An agent's call is taken for part of a call that it serves in the same workflow. Where it serves several, the latest
    deadline counts, and none where one of them has none. Known are the calls since the workflow's first deadline.
    """

    kind: ClassVar[str] = "budget.exceeded"
    sees: ClassVar[frozenset[Sight]] = frozenset({"asked", "final"})
    kinds: ClassVar[frozenset[str]] = frozenset({"handoff"})
    Params: ClassVar[type[msgspec.Struct]] = BudgetParams

    def __init__(self, rule: Rule, params: BudgetParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        for edge in params.edges:
            if edge.seconds is not None and edge.at_least_seconds is not None and edge.at_least_seconds > edge.seconds:
                raise ValueError(f"edge {edge.source} to {edge.target}: at_least_seconds is more than seconds")
        self._edges: tuple[tuple[Matcher, Matcher, EdgeBudget], ...] = tuple(
            (matcher(edge.source), matcher(edge.target), edge) for edge in params.edges
        )
        self._agents = tuple((matcher(budget.agent), budget.seconds) for budget in params.agents)
        self._bounded = bool(
            any(edge.seconds for edge in params.edges)
            or params.agents
            or params.seconds is not None
            or params.workflow_seconds is not None
        )
        self._calls: dict[str, _Call | None] = {}
        """Open calls by event id; None once the finding is out, until the call ends."""
        self._heap: list[tuple[float, str]] = []
        self._timed: OrderedDict[str, None] = OrderedDict()
        """Workflows in which somebody had a deadline."""
        self._serving: OrderedDict[tuple[str, str], list[_Served]] = OrderedDict()
        self._spent: OrderedDict[tuple[str | None, str], _Spent] = OrderedDict()
        self._flows: OrderedDict[str, list[float]] = OrderedDict()
        """Workflow to its first instant, and 1.0 once its finding is out."""
        self._learned: int | None = params.learn
        self._least: OrderedDict[tuple[str | None, str | None], _Least] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        if event.kind != "handoff":
            return NOTHING
        outcome = event.outcome
        if outcome == "completed" and self._learned is not None:
            self._learn(event)
        if not self._bounded and event.deadline is None and not (self._timed and event.workflow in self._timed):
            # What most events are: nobody said how long it may take.
            is_open = outcome != "asked" and bool(self._calls) and event.id in self._calls
            return self._close(event) if is_open else NOTHING
        return self._asked(event) if outcome == "asked" else self._close(event)

    # Until when.

    def due(self, event: Event) -> float | None:
        """Until when a call that was asked has time; None where nobody says so, or it is over."""
        call = self._calls.get(event.id)
        return None if call is None else call.due.at

    def _due(self, event: Event, edge: EdgeBudget | None) -> Due | None:
        params, at = self._params, event.at
        dues = [] if event.deadline is None or not params.declared else [Due(event.deadline, "handrail-deadline")]
        seconds = params.seconds if edge is None else edge.seconds
        if seconds is not None:
            dues.append(Due(at + seconds, "rule"))
        if self._agents and event.target is not None:
            for matches, allowed in self._agents:
                if matches(event.target):
                    dues.append(Due(at + allowed - self._taken(event, event.target), "agent"))
                    break
        if params.workflow_seconds is not None and event.workflow is not None:
            dues.append(Due(self._flow(event.workflow, at)[0] + params.workflow_seconds, "workflow"))
        if params.inherited and (outer := self._outer(event)) is not None:
            dues.append(outer)
        dues = [due for due in dues if math.isfinite(due.at)]
        return min(dues, key=lambda due: due.at) if dues and math.isfinite(at) else None

    def _edge(self, event: Event) -> EdgeBudget | None:
        for source, target, edge in self._edges:
            if source(event.source or "") and target(event.target or ""):
                return edge
        return None

    def _flow(self, workflow: str, at: float) -> list[float]:
        flow = self._flows.get(workflow)
        if flow is None:
            flow = self._flows[workflow] = [at, 0.0]
            if len(self._flows) > self._params.keys:
                self._flows.popitem(last=False)
        return flow

    def _taken(self, event: Event, agent: str) -> float:
        """What an agent had taken in a workflow by the time of an event."""
        spent = self._spent.get((event.workflow, agent))
        if spent is None:
            return 0.0
        return spent.seconds + math.fsum(seconds for end, seconds in spent.recent if end <= event.at)

    def _spend(self, event: Event) -> None:
        if not self._agents or event.target is None or event.duration_ms is None or not math.isfinite(event.at):
            return
        key = (event.workflow, event.target)
        spent = self._spent.get(key)
        if spent is None:
            spent = self._spent[key] = _Spent()
            if len(self._spent) > self._params.keys:
                self._spent.popitem(last=False)
        spent.recent.append((event.at + event.duration_ms / 1000, event.duration_ms / 1000))
        if len(spent.recent) > _TOGETHER:
            spent.recent.sort()
            spent.seconds += spent.recent.pop(0)[1]

    def _outer(self, event: Event) -> Due | None:
        """The call that the sender serves while it makes this one."""
        if event.workflow is None or event.source is None:
            return None
        latest: _Served | None = None
        for call in self._serving.get((event.workflow, event.source), ()):
            if call.at <= event.at <= call.end and call.id != event.id:
                if not math.isfinite(call.deadline):
                    return None
                if latest is None or call.deadline > latest.deadline:
                    latest = call
        return None if latest is None else Due(latest.deadline, "outer", latest.id)

    def _serve(self, event: Event, due: Due | None, end: float) -> None:
        """The target serves this call from now on, or did until `end`."""
        workflow, agent = event.workflow, event.target
        if workflow is None or agent is None or not self._params.inherited:
            return
        if workflow not in self._timed:
            if due is None:
                return
            self._timed[workflow] = None
            if len(self._timed) > self._params.keys:
                self._timed.popitem(last=False)
        key = (workflow, agent)
        calls = self._serving.get(key)
        if calls is None:
            calls = self._serving[key] = []
            if len(self._serving) > self._params.keys:
                self._serving.popitem(last=False)
        for call in calls:
            if call.id == event.id:
                call.end = end
                return
        calls.append(_Served(event.id, event.at, end, math.inf if due is None else due.at))
        if len(calls) > _TOGETHER:
            over = min(range(_TOGETHER), key=lambda index: calls[index].end)
            if math.isinf(calls[over].end):
                calls[over].deadline = math.inf
                calls.pop()
            else:
                del calls[over]

    # A call begins.

    def _asked(self, event: Event) -> Iterable[Finding]:
        edge = self._edge(event) if self._edges else None
        due = self._due(event, edge)
        self._serve(event, due, math.inf)
        if due is None or event.id in self._calls:
            return NOTHING
        calls = self._calls
        if len(calls) >= self._params.keys:
            del calls[next(iter(calls))]
        if due.at <= event.at:
            calls[event.id] = None
            return self._too_late(event, due)
        if (least := self._lacking(event, due, edge)) is not None:
            calls[event.id] = None
            return (self._too_short(event, due, least),)
        calls[event.id] = _Call(due, event.bare())
        heapq.heappush(self._heap, (due.at, event.id))
        if len(self._heap) > 2 * len(calls) + 64:  # replies leave their entries behind
            self._heap = [(call.due.at, name) for name, call in calls.items() if call is not None]
            heapq.heapify(self._heap)
        return self._beyond(event, due)

    def _beyond(self, event: Event, due: Due) -> tuple[Finding, ...]:
        """It may take longer than the call that it is part of."""
        declared = event.deadline
        if due.outer is None or declared is None or not self._params.declared or declared <= due.at + _ROUNDING:
            return ()
        after = lasting(declared - due.at) if math.isfinite(declared) else "long"
        return (
            finding(
                self._rule,
                event,
                f"handoff from {between(event)} may take until {after} after the deadline of the call that "
                f"{event.source} serves: nobody will be there for the answer",
                evidence=self._evidence(event, due) | {"declared": instant(declared)},
                side="sender",
                events=(due.outer, event.id),
                same=("beyond",),
            ),
        )

    def _lacking(self, event: Event, due: Due, edge: EdgeBudget | None) -> float | None:
        """The seconds that it takes at the least, where less is left."""
        least = None if edge is None else edge.at_least_seconds
        if least is None:
            known = self._least.get((event.source, event.target))
            if known is None or self._learned is None or known.count < self._learned:
                return None
            least = known.seconds
        return least if due.at - event.at < least else None

    def _learn(self, event: Event) -> None:
        duration, target = event.duration_ms, event.target
        if duration is None or target is None or not duration >= 0:
            return
        edge = (event.source, target)
        known = self._least.get(edge)
        if known is None:
            self._least[edge] = _Least(duration / 1000)
            if len(self._least) > self._params.keys:
                self._least.popitem(last=False)
            return
        known.count += 1
        if duration < known.seconds * 1000:
            known.seconds = duration / 1000

    # A call ends.

    def _close(self, event: Event) -> Iterable[Finding]:
        end = event.at + (event.duration_ms or 0.0) / 1000
        call = self._calls.pop(event.id, _NOT_ASKED)
        if call is not _NOT_ASKED:
            self._serve(event, None if call is None else call.due, end)
            self._spend(event)
            return NOTHING if call is None else self._ended(event, call.due)
        edge = self._edge(event) if self._edges else None
        due = self._due(event, edge)
        self._serve(event, due, end)
        self._spend(event)
        if due is None:
            return NOTHING
        if event.at < due.at < end and (least := self._lacking(event, due, edge)) is not None:
            return (self._too_short(event, due, least),)
        beyond = self._beyond(event, due) if event.at < due.at else ()
        return (*beyond, *self._ended(event, due))

    def _ended(self, event: Event, due: Due) -> Iterable[Finding]:
        if due.at <= event.at:
            return self._too_late(event, due)
        if event.duration_ms is not None and event.at + event.duration_ms / 1000 > due.at + _INSTANT:
            return self._too_slow(event, due)
        return NOTHING

    def advance(self, now: float) -> Iterable[Finding]:
        heap = self._heap
        if not heap or not heap[0][0] < now - _INSTANT:
            return NOTHING
        found: list[Finding] = []
        while heap and heap[0][0] < now - _INSTANT:
            deadline, name = heapq.heappop(heap)
            call = self._calls.get(name)
            if call is not None and call.due.at == deadline:
                self._calls[name] = None
                found += self._too_slow(call.event, call.due)
        return tuple(found)

    # What is said.

    def _told_before(self, event: Event, due: Due) -> bool:
        """Whether a workflow's finding is out. One that is enforced is told for each call that it refuses."""
        if due.by != "workflow" or event.workflow is None:
            return False
        flow = self._flow(event.workflow, event.at)
        if flow[1] and self._rule.action != "enforce":
            return True
        flow[1] = 1.0
        return False

    def _too_late(self, event: Event, due: Due) -> Iterable[Finding]:
        if self._told_before(event, due):
            return NOTHING
        late = lasting(event.at - due.at)
        side: FindingSide = "sender"
        if due.by == "outer":
            what = f"began {late} after the deadline of the call that {event.source} serves"
        elif due.by == "agent":
            what, side = f"began when {event.target} had used up its time in this workflow", "receiver"
        elif due.by == "workflow":
            what, side = f"began {late} after the workflow's time was over", "graph"
        else:
            what = f"began {late} after its own deadline"
        return (
            finding(
                self._rule,
                event,
                f"handoff from {between(event)} {what}",
                evidence=self._evidence(event, due),
                side=side,
                events=self._events(event, due),
                same=("late",) if due.by in _PLAIN else ("late", due.by),
            ),
        )

    def _too_slow(self, event: Event, due: Due) -> Iterable[Finding]:
        if self._told_before(event, due):
            return NOTHING
        span = lasting(due.at - event.at)
        message = f"handoff from {between(event)} was not over after the {span} that it had"
        side: FindingSide = "receiver"
        if due.by == "workflow":
            side = "graph"
            message = f"{message} when the workflow's {lasting(self._params.workflow_seconds or 0.0)} were over"
        elif due.by == "outer":
            message = f"{message} until the deadline of the call that {event.source} serves"
        elif due.by == "agent":
            message = f"{message} of the time of {event.target} in this workflow"
        return (
            finding(
                self._rule,
                event,
                message,
                evidence=self._evidence(event, due),
                side=side,
                at=due.at,
                events=self._events(event, due),
                same=("slow",) if due.by in _PLAIN else ("slow", due.by),
                fired_by_time=True,
            ),
        )

    def _too_short(self, event: Event, due: Due, least: float) -> Finding:
        return finding(
            self._rule,
            event,
            f"handoff from {between(event)} has {lasting(due.at - event.at)} left and never took less than "
            f"{lasting(least)}: it cannot be over in time",
            evidence=self._evidence(event, due) | {"least_seconds": round(least, 6)},
            side="sender",
            events=self._events(event, due),
            same=("short",),
        )

    def _events(self, event: Event, due: Due) -> tuple[str, ...]:
        return (event.id,) if due.outer is None else (due.outer, event.id)

    def _evidence(self, event: Event, due: Due) -> dict[str, object]:
        return {
            "deadline": instant(due.at),
            "budget_seconds": round(due.at - event.at, 6),
            "declared_by": due.by,
        }

    def __len__(self) -> int:
        held = len(self._timed), len(self._serving), len(self._spent), len(self._flows), len(self._least)
        return max(len(self._calls), *held)


_PLAIN = ("handrail-deadline", "rule")
_NOT_ASKED = _Call(Due(math.inf, ""), Event(kind="handoff", id="", at=0.0))
