"""A handoff that is not over when its time is becomes a finding at that instant, not when the reply comes."""

import heapq
import math
from collections.abc import Iterable
from typing import ClassVar

import msgspec

from handrail.detectors import NOTHING, Count, Rule, Seconds, Sight, between, finding, instant, lasting
from handrail.event import Event, Finding
from handrail.schema.registry import Matcher, Registry, matcher


class EdgeBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that a handoff between these agents may take; `*` for any run of characters."""

    seconds: Seconds
    source: str = "*"
    target: str = "*"


class BudgetParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seconds: Seconds | None = None
    """What any handoff may take; none where absent."""
    edges: tuple[EdgeBudget, ...] = ()
    """The first edge that matches overrides `seconds`."""
    declared: bool = True
    """Hold senders to the deadline that they declare in `handrail-deadline`; of two deadlines the earlier counts."""
    keys: Count = 100_000


class _Call(msgspec.Struct, frozen=True):
    deadline: float
    event: Event
    """Without its payload."""


class BudgetExceeded:
    """A handoff took longer than its edge allows, or than its sender declared.

    Exceeded means that it ended after the deadline, so that a reply at that very instant is in time, and so that a
    recording gives the finding that the live system gave.
    """

    kind: ClassVar[str] = "budget.exceeded"
    sees: ClassVar[frozenset[Sight]] = frozenset({"asked", "final"})
    Params: ClassVar[type[msgspec.Struct]] = BudgetParams

    def __init__(self, rule: Rule, params: BudgetParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._edges: tuple[tuple[Matcher, Matcher, float], ...] = tuple(
            (matcher(edge.source), matcher(edge.target), edge.seconds) for edge in params.edges
        )
        self._bounded = bool(params.edges) or params.seconds is not None
        self._calls: dict[str, _Call | None] = {}
        """Open calls by event id; None once the finding is out, until the call ends."""
        self._heap: list[tuple[float, str]] = []

    def observe(self, event: Event) -> Iterable[Finding]:
        if event.outcome == "asked":
            if event.deadline is None and not self._bounded:
                return NOTHING
            return self._asked(event)
        if self._calls:
            call = self._calls.pop(event.id, _NOT_ASKED)
            if call is None:
                return NOTHING
            if call is not _NOT_ASKED:
                return self._ended(event, call.deadline)
        if event.deadline is None and not self._bounded:
            return NOTHING
        deadline = self._deadline(event)
        return NOTHING if deadline is None else self._ended(event, deadline)

    def _deadline(self, event: Event) -> float | None:
        if event.kind != "handoff":
            return None
        declared = event.deadline if self._params.declared else None
        allowed = self._params.seconds
        for source, target, seconds in self._edges:
            if source(event.source or "") and target(event.target or ""):
                allowed = seconds
                break
        deadlines = [each for each in (declared, None if allowed is None else event.at + allowed) if each is not None]
        deadline = min(deadlines, default=math.inf)
        return deadline if math.isfinite(deadline) and math.isfinite(event.at) else None

    def _asked(self, event: Event) -> Iterable[Finding]:
        deadline = self._deadline(event)
        if deadline is None or event.id in self._calls:
            return NOTHING
        calls = self._calls
        if len(calls) >= self._params.keys:
            del calls[next(iter(calls))]
        if deadline <= event.at:
            calls[event.id] = None
            return (self._too_late(event, deadline),)
        calls[event.id] = _Call(deadline, msgspec.structs.replace(event, payload=None))
        heapq.heappush(self._heap, (deadline, event.id))
        if len(self._heap) > 2 * len(calls) + 64:  # replies leave their entries behind
            self._heap = [(call.deadline, name) for name, call in calls.items() if call is not None]
            heapq.heapify(self._heap)
        return NOTHING

    def _ended(self, event: Event, deadline: float) -> Iterable[Finding]:
        if deadline <= event.at:
            return (self._too_late(event, deadline),)
        if event.duration_ms is not None and event.at + event.duration_ms / 1000 > deadline:
            return (self._too_slow(event, deadline),)
        return NOTHING

    def _too_late(self, event: Event, deadline: float) -> Finding:
        return finding(
            self._rule,
            event,
            f"handoff from {between(event)} began {lasting(event.at - deadline)} after its own deadline",
            evidence=self._evidence(event, deadline),
            side="sender",
            same=("late",),
        )

    def _too_slow(self, event: Event, deadline: float) -> Finding:
        return finding(
            self._rule,
            event,
            f"handoff from {between(event)} was not over after the {lasting(deadline - event.at)} that it had",
            evidence=self._evidence(event, deadline),
            side="receiver",
            at=deadline,
            same=("slow",),
            fired_by_time=True,
        )

    def _evidence(self, event: Event, deadline: float) -> dict[str, object]:
        return {
            "deadline": instant(deadline),
            "budget_seconds": round(deadline - event.at, 6),
            "declared_by": "handrail-deadline" if self._params.declared and deadline == event.deadline else "rule",
        }

    def advance(self, now: float) -> Iterable[Finding]:
        heap = self._heap
        if not heap or not heap[0][0] < now:
            return NOTHING
        found = []
        while heap and heap[0][0] < now:
            deadline, name = heapq.heappop(heap)
            call = self._calls.get(name)
            if call is not None and call.deadline == deadline:
                self._calls[name] = None
                found.append(self._too_slow(call.event, deadline))
        return tuple(found)

    def __len__(self) -> int:
        return len(self._calls)


_NOT_ASKED = _Call(math.inf, Event(kind="handoff", id="", at=0.0))
