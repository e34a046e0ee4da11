"""An agent that does not answer becomes a finding: a handoff whose target never spoke, or one failure after another."""

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from typing import ClassVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, between, finding, lasting
from handrail.detectors.params import SilentParams
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_AWAY = frozenset({"429", "502", "503", "504", "529"})
"""Statuses by which a server, or what stands before it, says that it takes no work now."""


class _Streak:
    """Calls in a row that a target did not take, the first and the latest of which ended then."""

    __slots__ = ("first", "ids", "is_told", "latest")

    def __init__(self, at: float) -> None:
        self.ids: list[str] = []
        self.first = self.latest = at
        self.is_told = False


class AgentUnavailable:
    """A target that was asked and did not speak.

    Silence: the handoff ended as `dropped`, which is what a dialect says of a target that never spoke; or it was open
    for `silence_seconds`, live or by its duration, and ended as a timeout if at all, and its target was the source of
    nothing in that workflow meanwhile. An agent that is at work is not silent.

    Failures in a row: timeouts, connections that were refused, and statuses that say "not now". What an agent answers,
    even with a refusal of the task or an error of its own, shows that it is there and ends the row. Whether an agent is
    there does not hang on the workflow that asks, so the row goes over all of them.
    """

    kind: ClassVar[str] = "agent.unavailable"
    sees: ClassVar[frozenset[Sight]] = frozenset({"asked", "final"})
    Params: ClassVar[type[msgspec.Struct]] = SilentParams

    def __init__(self, rule: Rule, params: SilentParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._open: OrderedDict[str, Event | None] = OrderedDict()
        """Calls that are open, without their payload; None once their finding is out."""
        self._heap: list[tuple[float, str]] = []
        self._spoke: OrderedDict[tuple[str | None, str], float] = OrderedDict()
        """Workflow and agent that was asked there, to the instant at which the agent was last seen to act."""
        self._streaks: OrderedDict[str, _Streak] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        if self._spoke and event.source is not None:
            key = (event.workflow, event.source)
            known = self._spoke.get(key)
            if known is not None and event.at > known:
                self._spoke[key] = event.at
        if event.kind != "handoff":
            return NOTHING
        outcome = event.outcome
        if outcome == "completed":
            if self._open:
                self._open.pop(event.id, None)
            if self._streaks and event.target is not None:
                self._streaks.pop(event.target, None)
            return NOTHING
        if outcome == "asked":
            self._asked(event)
            return NOTHING
        return self._ended(event)

    def _asked(self, event: Event) -> None:
        if event.target is None or event.id in self._open or not abs(event.at) < 1e15:
            return
        self._open[event.id] = event.bare()
        heapq.heappush(self._heap, (event.at + self._params.silence_seconds, event.id))
        if len(self._open) > self._params.keys:
            self._open.popitem(last=False)
        if len(self._heap) > 2 * len(self._open) + 64:
            self._heap = [
                (call.at + self._params.silence_seconds, name)
                for name, call in self._open.items()
                if call is not None and call.at + self._params.silence_seconds >= self._heap[0][0]
            ]
            heapq.heapify(self._heap)
        key = (event.workflow, event.target)
        if key not in self._spoke:
            self._spoke[key] = float("-inf")
            if len(self._spoke) > self._params.keys:
                self._spoke.popitem(last=False)

    def _ended(self, event: Event) -> Iterable[Finding]:
        was_told = event.id in self._open and self._open[event.id] is None
        self._open.pop(event.id, None)
        target = event.target
        if target is None:
            return NOTHING
        found: list[Finding] = []
        if not was_told and self._is_silence(event):
            found.append(self._silent(event, event.at, fired_by_time=False))
        if not is_away(event):
            if event.outcome in ("accepted", "rejected", "failed"):
                self._streaks.pop(target, None)
            return found
        end = event.at + (event.duration_ms or 0.0) / 1000
        streak = self._streaks.get(target)
        if streak is None or not abs(end - streak.latest) <= self._params.within_seconds:
            streak = self._streaks[target] = _Streak(end)
            if len(self._streaks) > self._params.keys:
                self._streaks.popitem(last=False)
        if event.id in streak.ids:
            return found
        streak.latest = max(streak.latest, end)
        if len(streak.ids) < self._params.failures:
            streak.ids.append(event.id)
        if len(streak.ids) >= self._params.failures and not streak.is_told:
            streak.is_told = True
            found.append(self._away(event, streak))
        return found

    def _is_silence(self, event: Event) -> bool:
        if event.outcome == "dropped":
            return True
        if event.outcome != "timeout" or (event.duration_ms or 0.0) < self._params.silence_seconds * 1000:
            return False
        return not self._spoke.get((event.workflow, event.target or ""), float("-inf")) >= event.at

    def _silent(self, event: Event, at: float, *, fired_by_time: bool) -> Finding:
        span = None if event.duration_ms is None else event.duration_ms / 1000
        if fired_by_time:
            span = at - event.at
        waited = "" if span is None else f" in {lasting(span)}"
        return finding(
            self._rule,
            event,
            f"handoff from {between(event)} was asked for, and {event.target} never spoke{waited}",
            evidence={"target": event.target, "silence_seconds": None if span is None else round(span, 6)},
            side="receiver",
            at=at,
            same=("silent",),
            fired_by_time=fired_by_time,
        )

    def _away(self, event: Event, streak: _Streak) -> Finding:
        count = len(streak.ids)
        span = streak.latest - streak.first
        return finding(
            self._rule,
            event,
            f"{event.target} did not take {count} handoffs in a row"
            + (f", within {lasting(span)}" if span else "")
            + f"; the latest from {event.source or 'an unknown agent'}",
            evidence={
                "target": event.target,
                "failures": count,
                "span_seconds": round(span, 6),
                "outcome": event.outcome,
                "status": event.status,
            },
            side="receiver",
            events=tuple(streak.ids),
            same=("away",),
        )

    def advance(self, now: float) -> Iterable[Finding]:
        heap = self._heap
        if not heap or not heap[0][0] < now:
            return NOTHING
        found = []
        while heap and heap[0][0] < now:
            due, name = heapq.heappop(heap)
            call = self._open.get(name)
            if call is None:
                continue
            spoke = self._spoke.get((call.workflow, call.target or ""), float("-inf"))
            if spoke >= call.at and spoke + self._params.silence_seconds > due:
                heapq.heappush(heap, (spoke + self._params.silence_seconds, name))
                continue
            self._open[name] = None
            found.append(self._silent(call, due, fired_by_time=True))
        return tuple(found)

    def __len__(self) -> int:
        return max(len(self._open), len(self._spoke), len(self._streaks))


def is_away(event: Event) -> bool:
    """Whether the target did not take the call, as far as the outcome says."""
    if event.outcome in ("timeout", "dropped"):
        return True
    if event.outcome not in ("failed", "rejected"):
        return False
    if event.status is None:
        return event.outcome == "failed" and event.ttfb_ms is None
    return str(event.status) in _AWAY
