"""A read that returns what was superseded before it was asked for becomes a finding that says how stale, and whose.

A read is stale where a newer write of its key was acknowledged `grace_seconds` or longer before the read was asked for.
Newer goes by the version where both have one that can be ordered, else by content digest and the order of the writes.
A read below the current epoch of its task is one whatever the time.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any, ClassVar, Final

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding, instant, key_form, lasting
from handrail.detectors.params import StaleReadParams
from handrail.detectors.sighting import (
    ACKNOWLEDGED,
    MAYBE,
    Handed,
    Hold,
    comparable,
    ended,
    epoch_of,
    handed,
    handoff_of,
    is_missing,
    order_of,
    reader_of,
    removes,
    same_content,
    shown,
    told,
)
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_ASLEEP: Final = 1_000
"""Handoffs remembered while there was no store: two seconds of 2,000 handoffs a second, and most never see one."""
_ACTS = frozenset({"write", "handoff", "publish"})
_WRITES = 16
"""Writes remembered of one key. A read of content older than that is not recognised without versions."""

_ACTS_SECONDS = 3600.0
"""How long a reader's stale read is remembered, to say that it acted on it."""

_EXPIRES = frozenset({"EX", "PX", "EXAT", "PXAT", "SETEX", "PSETEX", "EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT"})
"""Words of a write's operation that say that the key goes away by itself, so that not finding it is no wonder."""


class _Write:
    """A write of one key. `acked` is infinite where it was never acknowledged: it may have landed."""

    __slots__ = ("acked", "asked", "digest", "expires", "id", "order", "removed", "version", "writer")

    def __init__(self, event: Event) -> None:
        self.asked = event.at
        self.acked = ended(event) if event.outcome in ACKNOWLEDGED else math.inf
        self.id = event.id
        self.version: int | str | None = event.state_version
        self.order = order_of(event.state_version)
        self.digest: str | None = event.digest
        self.writer: str | None = event.source
        self.removed = removes(event)
        self.expires = not _EXPIRES.isdisjoint((event.operation or "").upper().split())


class _Epoch:
    """When a task reached an epoch, and by whom."""

    __slots__ = ("at", "epoch", "id", "version", "writer")

    def __init__(self, epoch: int, event: Event) -> None:
        self.epoch = epoch
        self.at = ended(event)
        self.id = event.id
        self.writer: str | None = event.source
        self.version: int | str | None = event.state_version


class _Stale:
    """A stale read that is being told, or was."""

    __slots__ = ("due", "evidence", "is_told", "message", "read", "reader", "write")

    def __init__(
        self, read: Event, reader: str | None, message: str, evidence: dict[str, Any], write: str, due: float
    ) -> None:
        self.read = read
        self.reader = reader
        self.message = message
        self.evidence = evidence
        self.write = write
        self.due = due
        self.is_told = False


class StaleRead:
    """Remembers the last writes of each key and judges each read by them.

    The reader's next write, publish or handoff in that workflow is what it made of the stale content: it is in the
    finding's evidence as `acted`. A write counts from when it was asked, because a read may see what is being written;
    so one that takes longer than `lateness_seconds` is known too late for the reads that it overlapped.
    """

    kind: ClassVar[str] = "state.stale_read"
    sees: ClassVar[frozenset[Sight]] = frozenset({"asked", "final"})
    Params: ClassVar[type[msgspec.Struct]] = StaleReadParams

    def __init__(self, rule: Rule, params: StaleReadParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._enforced = rule.action == "enforce"
        self.is_recorded = False
        """Whether nobody waits for the finding: then one can say all that its reader did."""
        self._hold: Hold[Event] = Hold(params.lateness_seconds, params.keys)
        self._writes: OrderedDict[tuple[str | None, str], list[_Write]] = OrderedDict()
        self._epochs: OrderedDict[tuple[str | None, str], dict[int, _Epoch]] = OrderedDict()
        self._told: OrderedDict[tuple[str | None, str | None], list[_Stale]] = OrderedDict()
        self._waiting: list[tuple[float, str, int, _Stale]] = []
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._asleep: deque[Handed] | None = deque(maxlen=min(params.keys, _ASLEEP))
        """Handoffs of the last moments, until there is a store; then None."""

    def observe(self, event: Event) -> Iterable[Finding]:
        kind = event.kind
        if event.outcome == "asked":
            return self._asked(event) if self._enforced and kind == "read" else NOTHING
        if kind == "handoff" and self._asleep is not None and event.state_version is None:
            if event.source is not None:
                self._asleep.append(handed(event))
            return NOTHING
        if kind == "read":
            if event.key is None or event.outcome not in ACKNOWLEDGED or event.id in self._refused:
                return NOTHING
            when = ended(event)
        elif kind == "write" or (kind in _ACTS and event.source is not None):
            when = event.at
        else:
            return NOTHING
        if self._asleep is not None:
            self._wake(self._asleep)
        if event.payload is not None or event.reply is not None:
            event = event.bare()
        self._hold.add(when, event.id, event, kind == "read")
        return list(self._taken_up(self._hold.excess()))

    def _wake(self, asleep: deque[Handed]) -> None:
        self._asleep = None
        for each in asleep:
            self._hold.add(each[1], each[0], handoff_of(each), False)

    def _see(self, event: Event) -> Iterator[Finding]:
        if event.kind == "read":
            self._judge(event)
            return
        if event.source is not None and self._told:
            yield from self._acted(event)
        if event.kind == "write" and event.key is not None:
            self._written(event)
        if event.state_version is not None:
            self._begun(event)

    def _written(self, event: Event) -> None:
        outcome = event.outcome
        if event.key is None or (outcome not in ACKNOWLEDGED and outcome not in MAYBE):
            return
        key = (event.store, event.key)
        write = _Write(event)
        writes = self._writes.get(key)
        if writes is None:
            writes = self._writes[key] = []
            if len(self._writes) > self._params.keys:
                self._writes.popitem(last=False)
        else:
            self._writes.move_to_end(key)
        writes.append(write)
        writes.sort(key=_rank)
        if len(writes) > _WRITES:
            del writes[0]

    def _begun(self, event: Event) -> None:
        """Whoever writes, publishes or hands over in an epoch says that the task has reached it."""
        epoch = epoch_of(event.state_version)
        if epoch is None or event.task is None or event.outcome not in ACKNOWLEDGED:
            return
        task = (event.workflow, event.task)
        epochs = self._epochs.setdefault(task, {})
        self._epochs.move_to_end(task)
        known = epochs.get(epoch)
        begun = _Epoch(epoch, event)
        if known is None or (begun.at, begun.id) < (known.at, known.id):
            epochs[epoch] = begun
            if len(epochs) > _WRITES:
                del epochs[min(epochs)]
        if len(self._epochs) > self._params.keys:
            self._epochs.popitem(last=False)

    def _judge(self, event: Event) -> None:
        stale = self._stale(event, self._writes.get((event.store, event.key or ""), []))
        if stale is not None:
            who = (event.workflow, stale.reader)
            self._told.setdefault(who, []).append(stale)
            self._told.move_to_end(who)
            heappush(self._waiting, (stale.due, event.id, id(stale), stale))
            del self._told[who][:-_WRITES]
            if len(self._told) > self._params.keys:
                self._told.popitem(last=False)

    def _stale(self, read: Event, writes: list[_Write], epochs: Iterable[_Epoch] | None = None) -> _Stale | None:
        found = superseded(read, writes, self._params.grace_seconds)
        below = self._below(read, epochs)
        if found is None and below is None:
            return None
        reader = reader_of(read)
        evidence: dict[str, Any] = {
            "store": read.store,
            "key": read.key,
            "version_read": read.state_version,
            "digest_read": read.digest,
            "reader": reader,
            "read_at": instant(read.at),
            "acted": None,
        }
        what = "nothing" if is_missing(read) else told(read.state_version, read.digest)
        place = f"{read.key}" + (f" in {read.store}" if read.store else "")
        if found is not None:
            newest, since, matched = found
            evidence |= {
                "version_existed": newest.version,
                "digest_existed": newest.digest,
                "written_by": newest.writer,
                "write": newest.id,
                "existed_since": instant(newest.acked),
                "existed_seconds": round(read.at - newest.acked, 6),
                "superseded_since": instant(since.acked),
                "stale_seconds": round(read.at - since.acked, 6),
                "write_read": None if matched is None else matched.id,
                "judged_by": "version" if read.state_version is not None and newest.version is not None else "content",
            }
            newer = "that it was removed" if newest.removed else told(newest.version, newest.digest)
            message = (
                f"{shown(reader)} read {what} of {place}, although {newer} by {shown(newest.writer)} "
                f"had been there for {lasting(read.at - newest.acked)}"
            )
            write = newest.id
        if below is not None:
            evidence |= {"epoch_read": epoch_of(read.state_version), "epoch_current": below.epoch}
            if found is None:
                evidence |= {
                    "version_existed": below.version,
                    "written_by": below.writer,
                    "write": below.id,
                    "existed_since": instant(below.at),
                    "existed_seconds": round(read.at - below.at, 6),
                    "judged_by": "epoch",
                }
                message = (
                    f"{shown(reader)} read {what} of {place}, which is of epoch {epoch_of(read.state_version)}; "
                    f"task {read.task} is in epoch {below.epoch}, begun by {shown(below.writer)}"
                )
                write = below.id
        due = ended(read) + (_ACTS_SECONDS if self.is_recorded else self._params.acts_seconds)
        return _Stale(read, reader, message, evidence, write, due)

    def _below(self, read: Event, epochs: Iterable[_Epoch] | None) -> _Epoch | None:
        """The task's current epoch, where the read is below it."""
        epoch = epoch_of(read.state_version)
        if epoch is None or read.task is None:
            return None
        if epochs is None:
            epochs = self._epochs.get((read.workflow, read.task), {}).values()
        known = [each for each in epochs if each.at <= read.at and each.epoch > epoch]
        return max(known, key=lambda each: (each.epoch, -each.at, each.id)) if known else None

    def _asked(self, event: Event) -> Iterable[Finding]:
        """The reply is known and held: judged by what is known now, because the reader waits."""
        if event.key is None:
            return NOTHING
        writes = list(self._writes.get((event.store, event.key), ()))
        epochs = list(self._epochs.get((event.workflow, event.task or ""), {}).values())
        for held in self._hold.held():
            if held.kind == "read" or held.outcome not in ACKNOWLEDGED:
                continue
            if held.kind == "write" and (held.store, held.key) == (event.store, event.key):
                writes.append(_Write(held))
            epoch = epoch_of(held.state_version)
            if epoch is not None and (held.workflow, held.task) == (event.workflow, event.task):
                epochs.append(_Epoch(epoch, held))
        writes.sort(key=_rank)
        stale = self._stale(event, writes, epochs)
        if stale is None or (self._params.refuse == "epoch" and "epoch_current" not in stale.evidence):
            return NOTHING
        self._refused[event.id] = None
        if len(self._refused) > self._params.keys:
            self._refused.popitem(last=False)
        return (self._tell(stale),)

    def _acted(self, event: Event) -> Iterator[Finding]:
        who = (event.workflow, event.source)
        stales = self._told.get(who)
        if stales is None:
            return
        kept: list[_Stale] = []
        last = None
        for stale in stales:
            if event.at < ended(stale.read) or event.id == stale.read.id:
                kept.append(stale)
            elif not stale.is_told:
                yield self._tell(stale, event)
            else:
                last = stale
        if last is not None:
            yield self._tell(last, event)
        if kept:
            self._told[who] = kept
        else:
            del self._told[who]

    def _tell(self, stale: _Stale, act: Event | None = None) -> Finding:
        evidence, message = stale.evidence, stale.message
        events: tuple[str, ...] = (stale.write, stale.read.id)
        if act is not None:
            after = act.at - ended(stale.read)
            evidence = evidence | {
                "acted": {
                    "event": act.id,
                    "kind": act.kind,
                    "at": instant(act.at),
                    "after_seconds": round(after, 6),
                    "task": act.task,
                    "key": act.key,
                    "target": act.target,
                }
            }
            message += f"; {lasting(after)} later it acted on it with a {act.kind}"
            if act.target is not None:
                message += f" to {act.target}"
            events = (*events, act.id)
        stale.is_told = True
        return finding(
            self._rule,
            stale.read,
            message,
            evidence=evidence,
            side="store",
            events=events,
            same=(key_form(stale.read),),
        )

    def _timed(self, until: float) -> Iterator[Finding]:
        """Tell what has waited long enough."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= until:
            stale = heappop(waiting)[3]
            if not stale.is_told:
                yield self._tell(stale)

    def _taken_up(self, facts: Iterator[tuple[float, Event]]) -> Iterator[Finding]:
        for when, event in facts:
            if self._waiting:
                yield from self._timed(when)
            yield from self._see(event)

    def advance(self, now: float) -> Iterable[Finding]:
        asleep = self._asleep
        if asleep is not None:
            while asleep and asleep[0][1] < now - self._hold.lateness:
                asleep.popleft()
        found = list(self._taken_up(self._hold.due(now)))
        if self._waiting:
            found += self._timed(now - self._hold.lateness)
        told = self._told
        while told and all(each.is_told and each.due + _ACTS_SECONDS < now for each in next(iter(told.values()))):
            told.popitem(last=False)
        return found

    def close(self) -> Iterable[Finding]:
        """Nothing comes any more: what is stale is told, whatever its reader may yet do."""
        return [*self._taken_up(self._hold.rest()), *self._timed(math.inf)]

    def __len__(self) -> int:
        return max(len(self._writes), len(self._epochs), len(self._told), len(self._asleep or ()))


def _rank(write: _Write) -> tuple[float, tuple[float, ...], float, str]:
    return write.acked, write.order or (), write.asked, write.id


def superseded(read: Event, writes: list[_Write], grace: float) -> tuple[_Write, _Write, _Write | None] | None:
    """The newest write that a read should have seen, the one since when it was superseded, and the one that it saw.

    None where the read is fresh, or nothing can be said: content that nobody was seen to write may be from before.
    `writes` are in the order of their acknowledgements.
    """
    there = [write for write in writes if write.acked <= read.at - grace]
    if not there:
        return None
    possible = [write for write in writes if write.asked <= ended(read)]
    if is_missing(read):
        newest = there[-1]
        if newest.removed or any(write.removed or write.expires for write in possible[possible.index(newest) :]):
            return None
        since = newest
        for write in reversed(there):
            if write.removed:
                break
            since = write
        return newest, since, None
    order = order_of(read.state_version)
    ordered = [write for write in there if comparable(write.order, order)]
    if ordered and order is not None:
        matched = next((write for write in reversed(possible) if write.order == order), None)
        newer = [write for write in ordered if write.order is not None and write.order > order]
        if not newer:
            return None
        newest = max(newer, key=lambda write: (write.order or (), -write.acked, write.id))
        if matched is not None and matched.acked > newest.acked:
            return None  # the older version was written again, and later
        return newest, min(newer, key=_rank), matched
    matched = next((write for write in reversed(possible) if _is_same(read, write)), None)
    if matched is None:
        return None
    after = [
        write
        for write in there
        if write.acked > matched.acked and write.asked >= matched.acked and _is_other(read, write)
    ]
    return (after[-1], after[0], matched) if after else None


def _is_same(read: Event, write: _Write) -> bool:
    if read.state_version is not None and write.version is not None:
        return read.state_version == write.version
    return same_content(read.digest, write.digest) is True


def _is_other(read: Event, write: _Write) -> bool:
    if write.removed:
        return True
    if read.state_version is not None and write.version is not None:
        return read.state_version != write.version
    return same_content(read.digest, write.digest) is False
