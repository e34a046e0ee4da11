"""Decisions become metrics, rows and log lines; a thousand repeats of a finding become one row with a count."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from handrail.edge.metrics import Metrics
from handrail.event import Decision, Event, Fault, Finding

log = logging.getLogger("handrail")


class Rows(Protocol):
    """Where records go: takes at once, never blocks, never raises."""

    def put(self, record: Event | Finding) -> None: ...


class Decisions(Protocol):
    """Where whole Decisions go, every one of them: takes at once, never blocks, never raises."""

    def take(self, decision: Decision) -> None: ...


class FindingGroups:
    """Findings to rows: the first of a fingerprint at once, its repeats as one row for each window.

    The sum of `count` over the rows of a fingerprint is the number of occurrences. Holds at most `limit` fingerprints;
    the one that was quiet for longest goes first, and its pending count with it to the sink.
    """

    def __init__(self, rows: Rows, *, window: float = 10.0, limit: int = 10_000) -> None:
        self._rows = rows
        self._window = window
        self._limit = limit
        self._groups: OrderedDict[str, tuple[float, Finding | None, int]] = OrderedDict()

    def add(self, finding: Finding, now: float) -> bool:
        """Takes one occurrence; True where it is the first of its window."""
        key = finding.fingerprint
        known = self._groups.get(key)
        if known is None or now - known[0] >= self._window:
            if known is not None:
                self._emit(known)
            self._groups[key] = (now, None, 0)
            self._groups.move_to_end(key)
            if len(self._groups) > self._limit:
                self._emit(self._groups.popitem(last=False)[1])
            self._rows.put(finding)
            return True
        self._groups[key] = (known[0], finding, known[2] + finding.count)
        return False

    def flush(self, now: float) -> None:
        """Writes the counts of windows that ended; with now = infinity, of all."""
        for key in [key for key, (since, _, _) in self._groups.items() if now - since >= self._window]:
            self._emit(self._groups.pop(key))

    def _emit(self, group: tuple[float, Finding | None, int]) -> None:
        _, latest, count = group
        if latest is not None and count:
            self._rows.put(msgspec.structs.replace(latest, count=count))

    def __len__(self) -> int:
        return len(self._groups)


class Recorder:
    """Writes down what Decisions say: final events and findings to the sinks, all of it to the metrics.

    A containment point: metrics or a sink that raises costs what it was told and nothing else. The other sinks get the
    record, and the failure is counted as a fault where counting still works, and logged.
    """

    def __init__(self, metrics: Metrics, rows: tuple[Rows, ...], whole: tuple[Decisions, ...] = ()) -> None:
        self.metrics = metrics
        self._rows = rows
        self._whole = whole
        self._groups = tuple(FindingGroups(sink) for sink in rows)
        self._logged: OrderedDict[tuple[str, str], float] = OrderedDict()

    def inspected(self, decisions: Sequence[Decision], seconds: float) -> None:
        """How long it took to make these Decisions: each event that is over has its share. Called before `record`.

        The events are ours alone until they were recorded, so they are filled in and not copied.
        """
        over = [each.event for each in decisions if each.event is not None and each.event.outcome != "asked"]
        if over:
            share = seconds * 1000 / len(over)
            for event in over:
                event.inspection_ms = share

    def record(self, decision: Decision, now: float) -> None:
        self.record_all((decision,), now)

    def _finding(self, finding: Finding, now: float) -> None:
        try:
            self.metrics.finding(finding)
        except Exception as error:
            self._broken("metrics", error, now)
        for groups in self._groups:
            try:
                groups.add(finding, now)
            except Exception as error:
                self._broken("sink", error, now)
        if finding.severity != "info":
            self._log(("finding", finding.fingerprint), now, "finding: %s: %s", finding.rule, finding.message)

    def record_all(self, decisions: Sequence[Decision], now: float) -> None:
        """Several at once: each part of the work over all of them, which the processor's caches repay."""
        over: list[Event] = []
        for decision in decisions:
            event = decision.event
            if event is not None and event.outcome != "asked":
                over.append(event)
        for event in over:
            try:
                self.metrics.handoff(event)
                if event.uninspected is not None:
                    self.metrics.uninspected(event.uninspected)
            except Exception as error:
                self._broken("metrics", error, now)
        for sink in self._rows:
            for event in over:
                try:
                    sink.put(event)
                except Exception as error:
                    self._broken("sink", error, now)
        for decision in decisions:
            if decision.findings:
                for finding in decision.findings:
                    self._finding(finding, now)
            if decision.faults:
                for fault in decision.faults:
                    self.fault(fault, now)
        for place in self._whole:
            for decision in decisions:
                try:
                    place.take(decision)
                except Exception as error:
                    self._broken(type(place).__name__.lower(), error, now)

    def amend(self, event: Event) -> None:
        """A row again under its id, now that more is known of it; it was counted before."""
        for sink in self._rows:
            self._told(sink.put, event)
        for place in self._whole:
            self._told(place.take, Decision(event=event))
        self._told(self.metrics.latency, event)

    def fault(self, fault: Fault, now: float) -> None:
        try:
            self.metrics.fault(fault)
        except Exception as error:
            self._log(("metrics", "error"), now, "fault: metrics: error: %s: %s", type(error).__name__, error)
        # What is wrong with a file is said once for each time it changes, and each problem is another one.
        key = (fault.component, fault.message if fault.component == "registry" else fault.reason)
        self._log(key, now, "fault: %s: %s: %s", fault.component, fault.reason, fault.message)

    def _broken(self, component: str, error: Exception, now: float) -> None:
        message = f"{type(error).__name__}: {error}"
        self.fault(Fault(component=component, reason="error", message=message, at=now), now)

    def count(self, name: str, *labels: str) -> None:
        """Adds one to a counter of the metrics; never raises."""
        self._told(self.metrics.count, name, *labels)

    def uninspected(self, reason: str) -> None:
        """One message that passed without being read; never raises."""
        self._told(self.metrics.uninspected, reason)

    def gauge(self, name: str, value: float) -> None:
        """Sets a gauge of the metrics; never raises."""
        self._told(self.metrics.gauge, name, value)

    def _told(self, tell: Callable[..., None], *words: object) -> None:
        try:
            tell(*words)
        except Exception as error:
            log.debug("metrics", exc_info=error)

    def flush(self, now: float) -> None:
        for groups in self._groups:
            try:
                groups.flush(now)
            except Exception as error:
                self._broken("sink", error, now)

    def _log(self, key: tuple[str, str], now: float, text: str, *words: object) -> None:
        """One line for each key every ten seconds: when everything fails, the counters tell the rest."""
        last = self._logged.get(key)
        if last is not None and now - last < 10.0:
            return
        self._logged[key] = now
        self._logged.move_to_end(key)
        if len(self._logged) > 1000:
            self._logged.popitem(last=False)
        log.warning(text, *words)
