"""An event that overtakes the write it announces, or an earlier event, becomes a finding.

The event says "complete" and the other side wakes and reads, while the write is still under way: it finds nothing, or
what was there before.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding, instant, key_form, lasting
from handrail.detectors.params import HandoffEarlyParams
from handrail.detectors.sighting import (
    ACKNOWLEDGED,
    Hold,
    comparable,
    ended,
    is_output,
    order_of,
    reader_of,
    says_complete,
    shown,
)
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_ANNOUNCED = 16
"""Announcements of one task that are remembered while their write is awaited."""

_NUMBERS = 64
"""Sequence numbers remembered of one stream of events, so that a redelivery is not taken for disorder."""

Order = tuple[float, ...]


class _Task(msgspec.Struct):
    announced: list[Event] = []
    acked: float | None = None
    """Acknowledgement of the last write, None while there is none."""


class _Stream(msgspec.Struct):
    highest: Order
    event: str
    at: float
    version: int | str | None
    known: OrderedDict[Order, None]


class HandoffEarly:
    """Compares the events that announce a task with the acknowledgement of its output, and events with their sequence.

    An event announces a write that was under way when it came, or, where the task had no output yet, the first one that
    follows. It must name the writer as its source, or nobody. The write tells it: one finding for each write, with what
    was published and delivered too early. A publication counts from when it was asked, which is the order of its
    stream; so one that takes longer than `lateness_seconds` to be acknowledged is known too late for a write before it.
    """

    kind: ClassVar[str] = "handoff.early"
    sees: ClassVar[frozenset[Sight]] = frozenset({"final"})
    kinds: ClassVar[frozenset[str]] = frozenset({"write", "read", "publish", "deliver"})
    Params: ClassVar[type[msgspec.Struct]] = HandoffEarlyParams

    def __init__(self, rule: Rule, params: HandoffEarlyParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._hold: Hold[Event] = Hold(params.lateness_seconds, params.keys)
        self._tasks: OrderedDict[tuple[str | None, str], _Task] = OrderedDict()
        self._streams: OrderedDict[tuple[str | None, ...], _Stream] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        kind = event.kind
        if event.outcome not in ACKNOWLEDGED:
            return NOTHING
        if kind == "write":
            if event.task is None or not is_output(event):
                return NOTHING
            when = ended(event)
        elif kind in ("publish", "deliver"):
            when = event.at
            if event.payload is not None and not says_complete(event):
                event = event.but(status="in_progress")
        elif kind == "read":
            if event.task is None:
                return NOTHING
            when = event.at
        else:
            return NOTHING
        if event.payload is not None or event.reply is not None:
            event = event.bare()
        self._hold.add(when, event.id, event, kind == "write")
        return [found for _, each in self._hold.excess() for found in self._see(each)]

    def _see(self, event: Event) -> Iterator[Finding]:
        kind = event.kind
        if kind in ("publish", "deliver") and event.state_version is not None:
            yield from self._in_order(event)
        if event.task is None:
            return
        name = (event.workflow, event.task)
        task = self._tasks.get(name)
        if task is None:
            if kind == "read" or (kind != "write" and not says_complete(event)):
                return
            task = self._tasks[name] = _Task()
            if len(self._tasks) > self._params.keys:
                self._tasks.popitem(last=False)
        else:
            self._tasks.move_to_end(name)
        if kind == "write":
            yield from self._written(event, task)
        elif kind == "read" or says_complete(event):
            task.announced.append(event)
            del task.announced[:-_ANNOUNCED]

    def _written(self, event: Event, task: _Task) -> Iterator[Finding]:
        acked, first = ended(event), task.acked is None
        early: list[Event] = []
        acted: list[Event] = []
        for said in task.announced:
            is_before = ended(said) < acked - self._params.grace_seconds
            if not is_before or acked - said.at > self._params.within_seconds:
                continue
            if said.at < event.at and not first:
                continue  # it announced the output that was there
            if said.kind == "read":
                if said.key == event.key and reader_of(said) != event.source:
                    acted.append(said)
            elif said.kind == "deliver" or said.source is None or said.source == event.source or event.source is None:
                early.append(said)
        task.acked = acked
        task.announced = []
        if early:
            yield self._found(event, acked, early, [read for read in acted if read.at >= early[0].at])

    def _found(self, write: Event, acked: float, early: list[Event], acted: list[Event]) -> Finding:
        said = early[0]
        ahead = acked - ended(said)
        delivered = [each for each in early if each.kind == "deliver"]
        evidence: dict[str, Any] = {
            "store": write.store,
            "key": write.key,
            "version": write.state_version,
            "write": write.id,
            "write_asked_at": instant(write.at),
            "write_acknowledged_at": instant(acked),
            "announced_by": said.source,
            "announced_at": instant(said.at),
            "ahead_seconds": round(ahead, 6),
            "delivered_to": sorted({each.target for each in delivered if each.target is not None}),
            "acted": [{"event": each.id, "by": reader_of(each), "at": instant(each.at)} for each in acted],
            "reason": "before_acknowledgement",
        }
        verb = "was delivered" if said.kind == "deliver" else "went out"
        reads = " and was acted on" if acted else ""
        return finding(
            self._rule,
            said,
            f"the event that task {write.task} is complete {verb}{reads} {lasting(ahead)} before the write of "
            f"{shown(write.source)} to {write.key} was acknowledged",
            evidence=evidence,
            side="sender",
            events=tuple(dict.fromkeys([*(each.id for each in early), *(each.id for each in acted), write.id])),
            same=("before_acknowledgement",),
        )

    def _in_order(self, event: Event) -> Iterator[Finding]:
        number = order_of(event.state_version)
        if number is None:
            return
        agent = event.target if event.kind == "deliver" else event.source
        name = (event.kind, event.store, event.key, event.workflow, agent)
        stream = self._streams.get(name)
        if stream is None or not comparable(stream.highest, number):
            self._streams[name] = _Stream(number, event.id, event.at, event.state_version, OrderedDict({number: None}))
            if len(self._streams) > self._params.keys:
                self._streams.popitem(last=False)
            return
        self._streams.move_to_end(name)
        is_known = number in stream.known
        stream.known[number] = None
        if len(stream.known) > _NUMBERS:
            stream.known.popitem(last=False)
        if number > stream.highest:
            stream.highest, stream.event, stream.at = number, event.id, event.at
            stream.version = event.state_version
            return
        if is_known or (event.attempt or 1) > 1:
            return  # delivered again: the bus repeats, and repeats out of order
        if event.kind == "deliver" and self._was_sent_so(event, number):
            return
        yield finding(
            self._rule,
            event,
            f"event {event.state_version} of {event.key or event.store or 'a stream'} came after {stream.version}",
            evidence={
                "store": event.store,
                "key": event.key,
                "sequence": event.state_version,
                "after_sequence": stream.version,
                "after": stream.event,
                "after_at": instant(stream.at),
                "behind_seconds": round(event.at - stream.at, 6),
                "reason": "out_of_order",
            },
            side="store" if event.kind == "deliver" else "sender",
            events=(stream.event, event.id),
            same=("out_of_order", key_form(event)),
        )

    def _was_sent_so(self, event: Event, number: Order) -> bool:
        """Whether it was published out of order already, which was told then."""
        sent = self._streams.get(("publish", event.store, event.key, event.workflow, event.source))
        return (
            sent is not None
            and number in sent.known
            and list(sent.known).index(number) > 0
            and any(other > number for other in list(sent.known)[: list(sent.known).index(number)])
        )

    def advance(self, now: float) -> Iterable[Finding]:
        return [found for _, event in self._hold.due(now) for found in self._see(event)]

    def close(self) -> Iterable[Finding]:
        """Nothing comes any more: take up what is held."""
        return [found for _, event in self._hold.rest() for found in self._see(event)]

    def __len__(self) -> int:
        return max(len(self._tasks), len(self._streams))
