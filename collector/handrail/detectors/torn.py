"""Related keys of one task, read in a mix of two versions, become a finding that names both halves.

A reader goes through the keys of a task; a writer replaces them one by one. A reader that comes between has half of the
old version and half of the new one, and no single read of it is stale.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding, instant, key_form
from handrail.detectors.params import TornReadParams
from handrail.detectors.sighting import ACKNOWLEDGED, Hold, comparable, ended, keeps, order_of, reader_of, shown, told
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_KEYS = 64
"""Keys of one task that are remembered."""

_WRITES = 8
"""Writes of one key that are remembered."""


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """A write or a read of one key."""

    asked: float
    ended: float
    id: str
    version: int | str | None
    digest: str | None
    agent: str | None


class _Look(msgspec.Struct):
    """What one reader read of one task in one go."""

    reads: dict[str, Event] = {}
    last: float = 0.0


_Task = tuple[str | None, str | None, str]


class TornRead:
    """Compares what one reader read of the keys of one task in one look.

    Two keys belong together where one writer replaces them together: the newer content of the one was written no more
    than `together_seconds` from the write that the other read should have shown, or with the very same version. Where
    that other write never came (its writer died between the two), they belong together if until then each had the
    versions of the other.
    """

    kind: ClassVar[str] = "state.torn_read"
    sees: ClassVar[frozenset[Sight]] = frozenset({"final"})
    kinds: ClassVar[frozenset[str]] = frozenset({"write", "read"})
    Params: ClassVar[type[msgspec.Struct]] = TornReadParams

    def __init__(self, rule: Rule, params: TornReadParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._hold: Hold[Event] = Hold(params.lateness_seconds, params.keys)
        self._tasks: OrderedDict[_Task, dict[str, list[_Seen]]] = OrderedDict()
        self._looks: OrderedDict[tuple[_Task, str | None], _Look] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        if event.kind not in ("write", "read") or event.key is None or event.task is None:
            return NOTHING
        if event.outcome not in ACKNOWLEDGED or keeps(event):
            return NOTHING
        if event.payload is not None or event.reply is not None:
            event = event.bare()
        self._hold.add(event.at, event.id, event, event.kind == "read")
        return [found for when, each in self._hold.excess() for found in self._see(when, each)]

    def _see(self, when: float, event: Event) -> Iterator[Finding]:
        yield from self._over(when)
        task = (event.store, event.workflow, event.task or "")
        if event.kind == "write":
            keys = self._tasks.setdefault(task, {})
            self._tasks.move_to_end(task)
            writes = keys.setdefault(event.key or "", [])
            writes.append(_seen(event))
            del writes[:-_WRITES]
            if len(keys) > _KEYS:
                del keys[next(iter(keys))]
            if len(self._tasks) > self._params.keys:
                self._tasks.popitem(last=False)
            return
        who = (task, reader_of(event))
        look = self._looks.get(who)
        if look is not None and event.key in look.reads:
            yield from self._judge(who, self._looks.pop(who))
            look = None
        if look is None:
            look = self._looks[who] = _Look()
        look.reads[event.key or ""] = event
        look.last = when
        self._looks.move_to_end(who)
        if len(look.reads) > _KEYS:
            del look.reads[next(iter(look.reads))]
        if len(self._looks) > self._params.keys:
            yield from self._judge(*self._looks.popitem(last=False))

    def _over(self, until: float) -> Iterator[Finding]:
        """Judge the looks that are over: nothing was added to them for `within_seconds`."""
        looks = self._looks
        while looks:
            who, look = next(iter(looks.items()))
            if not look.last + self._params.within_seconds < until:
                return
            del looks[who]
            yield from self._judge(who, look)

    def _judge(self, who: tuple[_Task, str | None], look: _Look) -> Iterator[Finding]:
        if len(look.reads) < 2:
            return
        written = self._tasks.get(who[0], {})
        reads = sorted(look.reads.values(), key=lambda read: (read.at, read.id))
        for index, one in enumerate(reads):
            for other in reads[:index]:
                for new, old in ((one, other), (other, one)):
                    torn = self._torn(new, old, written)
                    if torn is not None:
                        yield self._found(who[1], one, new, old, torn, reads)
                        return

    def _torn(self, new: Event, old: Event, written: dict[str, list[_Seen]]) -> dict[str, Any] | None:
        """What proves that the reads are of two versions, where they are."""
        ours, theirs = written.get(new.key or "", []), written.get(old.key or "", [])
        above, below = order_of(new.state_version), order_of(old.state_version)
        if comparable(above, below) and above is not None and below is not None:
            if not above > below:
                return None
            twin = next((write for write in theirs if order_of(write.version) == above), None)
            if twin is not None:
                return {"judged_by": "same_version", "write": twin.id, "written_at": instant(twin.ended)}
            known, behind = ({order_of(write.version) for write in writes} for writes in (ours, theirs))
            if below in behind and known - {above} == behind and above in known:
                return {"judged_by": "versions_so_far", "write": None, "written_at": None}
            return None
        source = _write_read(new, ours)
        shown_by = _write_read(old, theirs)
        if source is None or shown_by is None:
            return None
        for twin in theirs[theirs.index(shown_by) + 1 :]:
            near = abs(twin.asked - source.asked) <= self._params.together_seconds
            is_other = twin.digest is not None and twin.digest != shown_by.digest
            # Where the older content was written with the newer one's predecessor or with itself, nothing is torn.
            if near and is_other and twin.agent == source.agent and shown_by.asked < source.asked:
                if abs(shown_by.asked - source.asked) <= abs(twin.asked - source.asked):
                    return None
                return {"judged_by": "content", "write": twin.id, "written_at": instant(twin.ended)}
        return None

    def _found(
        self, reader: str | None, last: Event, new: Event, old: Event, proof: dict[str, Any], reads: list[Event]
    ) -> Finding:
        place = f" in {last.store}" if last.store else ""
        evidence: dict[str, Any] = {
            "store": last.store,
            "reader": reader,
            "keys": [old.key, new.key],
            "versions": [old.state_version, new.state_version],
            "digests": [old.digest, new.digest],
            "read": {read.key: read.state_version for read in reads},
            "read_at": [instant(old.at), instant(new.at)],
            **proof,
        }
        ids = [old.id, new.id] if old.at <= new.at else [new.id, old.id]
        if proof["write"] is not None:
            ids.insert(0, proof["write"])
        return finding(
            self._rule,
            last,
            f"{shown(reader)} read task {last.task}{place} in two versions at once: "
            f"{told(old.state_version, old.digest)} of {old.key}, {told(new.state_version, new.digest)} of {new.key}",
            evidence=evidence,
            side="store",
            events=tuple(dict.fromkeys(ids)),
            same=(key_form(old), key_form(new)),
        )

    def advance(self, now: float) -> Iterable[Finding]:
        found = [each for when, event in self._hold.due(now) for each in self._see(when, event)]
        found += self._over(now - self._hold.lateness)
        return found

    def close(self) -> Iterable[Finding]:
        """Nothing comes any more: every look is over."""
        found = [each for when, event in self._hold.rest() for each in self._see(when, event)]
        while self._looks:
            found += self._judge(*self._looks.popitem(last=False))
        return found

    def __len__(self) -> int:
        return max(len(self._tasks), len(self._looks))


def _seen(event: Event) -> _Seen:
    return _Seen(event.at, ended(event), event.id, event.state_version, event.digest, event.source)


def _write_read(read: Event, writes: list[_Seen]) -> _Seen | None:
    """The last write of the content that was read."""
    if read.digest is None:
        return None
    return next((write for write in reversed(writes) if write.digest == read.digest), None)
