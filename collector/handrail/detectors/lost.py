"""A write based on what another writer had replaced meanwhile becomes a finding: one of two updates is lost.

What a writer bases its write on is what it last read of the key (or wrote, since it read). A write of the very version
that another has written, or of an older one, was based on the one before, whether its read was seen or not.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding, instant, key_form, lasting
from handrail.detectors.params import LostUpdateParams
from handrail.detectors.sighting import (
    ACKNOWLEDGED,
    Hold,
    comparable,
    ended,
    is_missing,
    keeps,
    order_of,
    reader_of,
    removes,
    same_content,
    shown,
    told,
)
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_WRITERS = 32
"""Writers of one key whose base is remembered."""


class _Started(msgspec.Struct, frozen=True, gc=False):
    """What a writer knows of a key, and since when."""

    at: float
    id: str
    version: int | str | None
    digest: str | None
    missing: bool


class _Write(msgspec.Struct, frozen=True, gc=False):
    asked: float
    acked: float
    id: str
    version: int | str | None
    digest: str | None
    writer: str | None
    base: _Started | None
    removed: bool


class _Key(msgspec.Struct):
    last: _Write | None = None
    bases: dict[str, _Started] = {}


class LostUpdate:
    """Two writers started from the same version of a key, and the second overwrote what the first had made of it.

    A writer that never reads the key and whose versions go on is not one: blind writes are its way of working. The same
    content written twice loses nothing.
    """

    kind: ClassVar[str] = "state.lost_update"
    sees: ClassVar[frozenset[Sight]] = frozenset({"final"})
    kinds: ClassVar[frozenset[str]] = frozenset({"write", "read"})
    Params: ClassVar[type[msgspec.Struct]] = LostUpdateParams

    def __init__(self, rule: Rule, params: LostUpdateParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._hold: Hold[Event] = Hold(params.lateness_seconds, params.keys)
        self._keys: OrderedDict[tuple[str | None, str], _Key] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        if event.kind not in ("write", "read") or event.key is None or event.outcome not in ACKNOWLEDGED:
            return NOTHING
        if keeps(event):
            return NOTHING
        if event.payload is not None or event.reply is not None:
            event = event.bare()
        # Writes count when they are acknowledged, reads when they are answered: of two writes the later one stays.
        self._hold.add(ended(event), event.id, event, event.kind == "write")
        return [found for _, each in self._hold.excess() for found in self._see(each)]

    def _see(self, event: Event) -> Iterator[Finding]:
        place = (event.store, event.key or "")
        key = self._keys.get(place)
        if key is None:
            key = self._keys[place] = _Key()
            if len(self._keys) > self._params.keys:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(place)
        if event.kind == "read":
            reader = reader_of(event)
            if reader is not None:
                _remember(key.bases, reader, _base(event))
                if event.source is not None and event.source != reader:
                    _remember(key.bases, event.source, _base(event), only_new=True)
            return
        yield from self._written(event, key)

    def _written(self, event: Event, key: _Key) -> Iterator[Finding]:
        writer = event.source
        base = None if writer is None else key.bases.get(writer)
        if base is not None and event.at - base.at > self._params.within_seconds:
            base = None
        write = _Write(
            event.at, ended(event), event.id, event.state_version, event.digest, writer, base, removes(event)
        )
        first = key.last
        if first is not None and writer is not None and first.writer not in (None, writer):
            why = self._why(write, first)
            if why is not None:
                yield self._found(event, write, first, why)
        key.last = write
        if writer is not None and writer in key.bases:
            _remember(key.bases, writer, _Started(write.acked, write.id, write.version, write.digest, write.removed))

    def _why(self, second: _Write, first: _Write) -> str | None:
        """How it is known that the second writer did not know of the first one's write; None where it may have."""
        if second.removed or first.removed or same_content(first.digest, second.digest):
            return None
        if second.asked - first.acked > self._params.within_seconds:
            return None
        one, two = order_of(first.version), order_of(second.version)
        is_ordered = comparable(one, two)
        if is_ordered and one is not None and two is not None and two <= one:
            return "same_version" if one == two else "older_version"
        base = second.base
        if base is None or base.at > second.asked or _knows(base, first):
            return None
        return "same_base"

    def _found(self, event: Event, second: _Write, first: _Write, why: str) -> Finding:
        base, other = second.base, first.base
        place = f"{event.key}" + (f" in {event.store}" if event.store else "")
        gap = second.acked - first.acked
        if why == "same_base" and base is not None:
            from_what = "an empty key" if base.missing else told(base.version, base.digest)
            how = f"had read {from_what}, and overwrote what {shown(first.writer)} wrote {lasting(gap)} before"
        else:
            how = f"wrote {told(second.version, second.digest)} over {told(first.version, first.digest)} of "
            how += f"{shown(first.writer)}, {lasting(gap)} later"
        evidence: dict[str, Any] = {
            "store": event.store,
            "key": event.key,
            "judged_by": why,
            "writers": [first.writer, second.writer],
            "versions": [first.version, second.version],
            "digests": [first.digest, second.digest],
            "bases": [None if each is None else each.version for each in (other, base)],
            "base_digests": [None if each is None else each.digest for each in (other, base)],
            "lost": first.id,
            "lost_at": instant(first.acked),
            "overwritten_by": second.id,
            "gap_seconds": round(gap, 6),
        }
        seen = [each.id for each in (other, base) if each is not None]
        return finding(
            self._rule,
            event,
            f"{shown(second.writer)} {how}: the update of {place} is lost",
            evidence=evidence,
            side="sender",
            events=tuple(dict.fromkeys((*seen, first.id, second.id))),
            same=(key_form(event), first.writer),
        )

    def advance(self, now: float) -> Iterable[Finding]:
        return [found for _, event in self._hold.due(now) for found in self._see(event)]

    def close(self) -> Iterable[Finding]:
        """Nothing comes any more: take up what is held."""
        return [found for _, event in self._hold.rest() for found in self._see(event)]

    def __len__(self) -> int:
        return len(self._keys)


def _base(event: Event) -> _Started:
    return _Started(event.at, event.id, event.state_version, event.digest, is_missing(event))


def _remember(bases: dict[str, _Started], agent: str, base: _Started, *, only_new: bool = False) -> None:
    if only_new and agent in bases:
        return
    bases.pop(agent, None)
    bases[agent] = base
    if len(bases) > _WRITERS:
        del bases[next(iter(bases))]


def _knows(base: _Started, write: _Write) -> bool:
    """Whether who read this had seen that write, or something newer, or it cannot be said."""
    if base.id == write.id:
        return True
    one, two = order_of(base.version), order_of(write.version)
    if comparable(one, two) and one is not None and two is not None:
        return one >= two
    if base.version is not None and write.version is not None:
        return base.version == write.version or base.at >= write.acked
    same = same_content(base.digest, write.digest)
    if same is True:
        return True
    if base.missing or same is False:
        return base.at >= write.acked
    return base.at >= write.asked
