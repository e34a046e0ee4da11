"""A task's output that was written and never announced becomes a finding when its time is up, and so does its retry.

The writer died, or its bus did, between the write and the event: the output lies there, and nobody is woken. A
coordinator that then hands the task out again makes a second output of it.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, ClassVar, Final

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding, instant, lasting
from handrail.detectors.params import HandoffPartialParams
from handrail.detectors.sighting import (
    ACKNOWLEDGED,
    Handed,
    Hold,
    ended,
    handed,
    handoff_of,
    is_output,
    reader_of,
    says_complete,
    shown,
    told,
)
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_BUS = frozenset({"publish", "deliver"})
_ASLEEP: Final = 1_000
"""Handoffs remembered while there was no store: two seconds of 2,000 handoffs a second, and most never see one."""
_EARLIER = 16
"""Announcements remembered of one task that came before the output they announce."""


class _Output:
    """The output of a task, and whether it was announced."""

    __slots__ = ("acked", "announced", "is_told", "write")

    def __init__(self, write: Event, acked: float) -> None:
        self.write = write
        self.acked = acked
        self.announced = False
        self.is_told = False
        """Of the missed announcement, or of a retry before it."""


class _Task:
    """What is known of a task.

    `announced`: when, and by whom, before an output was seen. `handed`: who handed it to whom, and when first.
    """

    __slots__ = ("announced", "handed", "output")

    def __init__(self) -> None:
        self.output: _Output | None = None
        self.announced: list[tuple[float, str | None]] = []
        self.handed: dict[tuple[str | None, str | None], float] = {}


class HandoffPartial:
    """Waits for the event after the write.

    A publish (or a delivery, where the publisher is out of sight), a direct handoff by the writer, and another agent's
    read of the output all mean that it was handed on. A write of working state is no output, and each further write of
    the output starts the wait again. It is noticed when time passes; a wait that was still open when a recording ended
    was not in vain.

    A retry is a handoff of the task, by somebody else than the writer, whose output is there: to the writer, or by who
    had handed it out before. Once the output was announced, only a further attempt is one: handing a task back for
    another round is how reviews work.
    """

    kind: ClassVar[str] = "handoff.partial"
    sees: ClassVar[frozenset[Sight]] = frozenset({"asked", "final"})
    Params: ClassVar[type[msgspec.Struct]] = HandoffPartialParams

    def __init__(self, rule: Rule, params: HandoffPartialParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._enforced = rule.action == "enforce"
        self._hold: Hold[tuple[Event, bool]] = Hold(params.lateness_seconds, params.keys)
        self._tasks: OrderedDict[tuple[str | None, str], _Task] = OrderedDict()
        self._waits: list[tuple[float, str, int, _Output]] = []
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._asleep: deque[Handed] | None = deque(maxlen=min(params.keys, _ASLEEP))
        """Handoffs that came before there was any store; then None."""

    def observe(self, event: Event) -> Iterable[Finding]:
        kind = event.kind
        if event.task is None:
            return NOTHING
        if event.outcome == "asked":
            return self._asked(event) if self._enforced and kind in ("handoff", "publish") else NOTHING
        if kind == "write":
            if event.outcome not in ACKNOWLEDGED or event.outcome == "accepted":
                return NOTHING
            when, told = ended(event), is_output(event)
            if not told:
                return NOTHING
        elif kind == "handoff":
            if self._asleep is not None:
                self._asleep.append(handed(event))
                return NOTHING
            when, told = event.at, False
        elif kind in _BUS or (kind == "read" and self._params.until_read):
            if event.outcome not in ACKNOWLEDGED:
                return NOTHING
            # What took long is known only when it is over.
            when = event.at if kind == "deliver" else ended(event)
            told = kind == "read" or says_complete(event)
            if not told and kind != "publish":
                return NOTHING
        else:
            return NOTHING
        if self._asleep is not None:
            self._wake(self._asleep)
        if event.payload is not None or event.reply is not None:
            event = event.bare()
        self._hold.add(when, event.id, (event, told), kind != "write")
        return list(self._taken_up(self._hold.excess()))

    def _wake(self, asleep: deque[Handed]) -> None:
        self._asleep = None
        for each in asleep:
            self._hold.add(each[1], each[0], (handoff_of(each), False), True)

    def _task(self, event: Event) -> _Task:
        name = (event.workflow, event.task or "")
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = _Task()
            if len(self._tasks) > self._params.keys:
                _, gone = self._tasks.popitem(last=False)
                if gone.output is not None:
                    gone.output.is_told = True
        else:
            self._tasks.move_to_end(name)
        return task

    def _see(self, when: float, event: Event, is_announcement: bool) -> Iterator[Finding]:
        kind = event.kind
        if kind == "read":
            known = self._tasks.get((event.workflow, event.task or ""))
            if known is not None and known.output is not None:
                write = known.output.write
                is_after = event.at >= known.output.acked
                if (
                    is_after
                    and event.key == write.key
                    and event.store == write.store
                    and reader_of(event) != write.source
                ):
                    known.output.announced = True
            return
        task = self._task(event)
        if kind == "write":
            self._written(event, task, when)
            return
        output = task.output
        if output is not None and (event.target is None or event.target != event.source):
            retry = self._retry(event, task, output)
            if retry is not None:
                output.is_told = True
                if event.id not in self._refused:
                    yield retry
                return
        if kind in _BUS:
            if is_announcement:
                self._announced(event, task)
        elif output is not None and event.source == output.write.source:
            output.announced = True
        if kind in ("handoff", "publish"):
            task.handed.setdefault((event.source, event.target), event.at)
            if len(task.handed) > _EARLIER:
                del task.handed[next(iter(task.handed))]

    def _written(self, event: Event, task: _Task, acked: float) -> None:
        before = task.output
        if before is not None and before.acked <= acked:
            before.is_told = True  # the later write is the one to be announced
        output = task.output = _Output(event, acked)
        # Sent before the acknowledgement, it announced this all the same; that it was early is another finding.
        output.announced = any(event.at - self._params.seconds <= at for at, _ in task.announced)
        task.announced = []
        heappush(self._waits, (acked + self._params.seconds, event.id, id(output), output))
        if len(self._waits) > 2 * self._params.keys:
            self._waits = [each for each in self._waits if not (each[3].is_told or each[3].announced)]
            heapify(self._waits)

    def _announced(self, event: Event, task: _Task) -> None:
        if task.output is not None:
            task.output.announced = True
            if event.at < task.output.acked:
                return
        # It may announce a further write that is under way.
        task.announced.append((event.at, event.source))
        del task.announced[:-_EARLIER]

    def _retry(self, event: Event, task: _Task, output: _Output) -> Finding | None:
        write = output.write
        if event.kind != "handoff" and event.kind != "publish":
            return None
        if event.source is not None and event.source == write.source:
            return None
        if not 0 <= event.at - output.acked <= self._params.retry_within_seconds:
            return None
        is_further = event.attempt is not None and event.attempt > max(1, write.attempt or 1)
        to_writer = event.target is not None and event.target == write.source
        handed = [source for (source, _), at in task.handed.items() if at <= output.acked]
        handed_before = event.source is not None and event.source in handed
        if is_further:
            if not (to_writer or handed_before or not handed):
                return None
        elif event.kind == "publish" or output.announced or not (to_writer or handed_before):
            return None
        after = event.at - output.acked
        place = f"{write.key}" + (f" in {write.store}" if write.store else "")
        return finding(
            self._rule,
            event,
            f"{shown(event.source)} handed out task {event.task} again, although its output "
            f"({told(write.state_version, write.digest)}, by {shown(write.source)}) had been in {place} for "
            f"{lasting(after)}",
            evidence=self._evidence(output)
            | {"retried_by": event.source, "retried_to": event.target, "attempt": event.attempt}
            | {"after_seconds": round(after, 6), "reason": "retried"},
            side="sender",
            events=(write.id, event.id),
            same=("retried",),
        )

    def _evidence(self, output: _Output) -> dict[str, Any]:
        write = output.write
        return {
            "store": write.store,
            "key": write.key,
            "version": write.state_version,
            "digest": write.digest,
            "write": write.id,
            "written_by": write.source,
            "written_at": instant(output.acked),
            "announced": output.announced,
        }

    def _asked(self, event: Event) -> Iterable[Finding]:
        """A handoff that is held: judged by the outputs that are known now, because its sender waits."""
        known = self._tasks.get((event.workflow, event.task or ""))
        task = _Task()
        if known is not None:
            task.output, task.handed = known.output, dict(known.handed)
        about = [each for each in self._hold.held() if (each[0].workflow, each[0].task) == (event.workflow, event.task)]
        about.sort(
            key=lambda each: (
                ended(each[0]) if each[0].kind in ("write", "publish", "read") else each[0].at,
                each[0].id,
            )
        )
        for held, is_announcement in about:
            if held.kind == "write":
                task.output = _Output(held, ended(held))
            elif held.kind == "handoff":
                task.handed.setdefault((held.source, held.target), held.at)
            elif is_announcement and task.output is not None:
                task.output = _Output(task.output.write, task.output.acked)
                task.output.announced = True
        if task.output is None:
            return NOTHING
        found = self._retry(event, task, task.output)
        if found is None:
            return NOTHING
        self._refused[event.id] = None
        if len(self._refused) > self._params.keys:
            self._refused.popitem(last=False)
        return (found,)

    def _timed(self, until: float) -> Iterator[Finding]:
        waits = self._waits
        while waits and waits[0][0] < until:
            deadline, _, _, output = heappop(waits)
            if output.announced or output.is_told:
                continue
            output.is_told = True
            write = output.write
            place = f"{write.key}" + (f" in {write.store}" if write.store else "")
            yield finding(
                self._rule,
                write,
                f"the output of task {write.task} by {shown(write.source)} has been in {place} for "
                f"{lasting(self._params.seconds)}, and no event said that it is complete",
                evidence=self._evidence(output) | {"budget_seconds": self._params.seconds, "reason": "not_announced"},
                side="sender",
                at=deadline,
                same=("not_announced",),
                fired_by_time=True,
            )

    def _taken_up(self, facts: Iterator[tuple[float, tuple[Event, bool]]]) -> Iterator[Finding]:
        for when, (event, is_announcement) in facts:
            if self._waits:
                yield from self._timed(when)
            yield from self._see(when, event, is_announcement)

    def advance(self, now: float) -> Iterable[Finding]:
        found = list(self._taken_up(self._hold.due(now)))
        if self._waits:
            found += self._timed(now - self._hold.lateness)
        return found

    def close(self) -> Iterable[Finding]:
        """Nothing comes late any more; what was still awaited at the last instant was not missed."""
        return [*self._taken_up(self._hold.rest()), *self._timed(self._hold.seen_until)]

    def __len__(self) -> int:
        return max(len(self._tasks), len(self._asleep or ()))
