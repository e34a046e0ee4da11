"""What an event of a store or a bus says to detectors, and the window in which it may come late.

Observations of one fact arrive in any order: two connections, two sidecars, a reply that took its time. A detector that
compares facts holds each for `lateness_seconds` and takes them up in the order of their instants, so that within that
window neither order nor repetition of the observations changes what is found. A finding comes when the window of the
last fact it needs is over; `close` ends all windows, because after the end of a recording nothing comes late.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

from handrail.event import Event, Outcome

T = TypeVar("T")

ACKNOWLEDGED: frozenset[Outcome] = frozenset({"completed", "accepted", "unknown"})
"""Outcomes of what took effect. An event without outcome says `unknown`: it was seen, and nobody says it failed."""

MAYBE: frozenset[Outcome] = frozenset({"timeout", "interrupted"})
"""Outcomes of what was asked for and may have taken effect."""

MISSING_STATUSES = frozenset({"missing", "nil", "null", "not_found", "absent", 404})
"""How a read says in `status` that the key was not there."""

REMOVALS = frozenset({"DEL", "UNLINK", "GETDEL", "HDEL", "DELETE", "FLUSHDB", "FLUSHALL", "JSON.DEL", "PURGE"})

_KEEPS = frozenset({"EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "PERSIST", "TOUCH"})
"""Writes that change when a key goes away, and not what it holds."""

STATE_WORDS = frozenset(
    [
        "state",
        "status",
        "context",
        "ctx",
        "config",
        "configuration",
        "lock",
        "lease",
        "heartbeat",
        "progress",
        "plan",
        "memory",
        "history",
        "log",
        "cursor",
        "counter",
        "queue",
        "inbox",
        "members",
        "registry",
        "scratch",
        "draft",
        "checkpoint",
        "session",
    ]
)
"""Words in a key that make it working state, which is written again and again, and not a task's output."""

UNDERWAY_WORDS = frozenset(
    [
        "start",
        "started",
        "starting",
        "assign",
        "assigned",
        "accepted",
        "progress",
        "working",
        "running",
        "pending",
        "queued",
        "created",
        "requested",
        "request",
        "delegate",
        "delegated",
        "heartbeat",
        "in_progress",
        "submitted",
        "claimed",
        "received",
        "todo",
        "cancelled",
        "canceled",
    ]
)
"""Words in a subject or a status that say that a task is under way, and not that it is complete."""

_WORD = re.compile(r"[a-z0-9_]+")
_NUMBERS = re.compile(r"[vV]?(\d{1,30})(?:[.\-](\d{1,30}))?(?:[.\-](\d{1,30}))?")
_EPOCH = re.compile(r"(?:e|epoch)?(\d{1,30})[.:/]v?(\d{1,30})")


class Hold(Generic[T]):
    """Keeps facts until their lateness is over and gives them back in the order of their instants.

    At most `limit` are held; past that the oldest is let go early, so that nothing is lost and memory is bounded. A
    fact seen twice under one id is one fact.
    """

    def __init__(self, lateness: float, limit: int) -> None:
        self.lateness = lateness
        self.seen_until = -math.inf
        """The latest instant that was heard of, in a fact or from `advance`."""
        self._limit = limit
        self._heap: list[tuple[float, int, str, int, T]] = []
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._count = 0

    def add(self, instant: float, id: str, fact: T, rank: int = 0) -> bool:
        """Hold a fact; False where it is known already, or has no instant. At equal instants the lower rank is first,
        then the lower id, so that no order of arrival counts."""
        if not math.isfinite(instant):
            return False
        ids = self._ids
        if id in ids:
            return False
        ids[id] = None
        if len(ids) > 2 * self._limit:
            ids.popitem(last=False)
        self._count += 1
        if instant > self.seen_until:
            self.seen_until = instant
        heappush(self._heap, (instant, rank, id, self._count, fact))
        return True

    def due(self, now: float) -> Iterator[tuple[float, T]]:
        """Facts whose window is over at `now`, and those past the limit, each with its instant."""
        if now > self.seen_until:
            self.seen_until = now
        heap, until = self._heap, now - self.lateness
        while heap and (heap[0][0] <= until or len(heap) > self._limit):
            instant, _, _, _, fact = heappop(heap)
            yield instant, fact

    def excess(self) -> Iterator[tuple[float, T]]:
        """Facts past the limit."""
        while len(self._heap) > self._limit:
            instant, _, _, _, fact = heappop(self._heap)
            yield instant, fact

    def rest(self) -> Iterator[tuple[float, T]]:
        """Every fact that is left: nothing comes late any more."""
        while self._heap:
            instant, _, _, _, fact = heappop(self._heap)
            yield instant, fact

    def held(self) -> Iterator[T]:
        """What is held now, in no order."""
        return (fact for _, _, _, _, fact in self._heap)


Handed = tuple[str, float, str | None, str | None, str | None, str | None, int | None, Outcome, str | None, str | None]
"""id, at, workflow, task, source, target, attempt, outcome, subject, version."""


def handed(event: Event) -> Handed:
    """What a detector of stores keeps of a handoff while it has seen no store and no bus: a fifth of the cost."""
    return (
        event.id,
        event.at,
        event.workflow,
        event.task,
        event.source,
        event.target,
        event.attempt,
        event.outcome,
        event.subject,
        event.version,
    )


def handoff_of(kept: Handed) -> Event:
    """The handoff again, now that there is a store."""
    id, at, workflow, task, source, target, attempt, outcome, subject, version = kept
    return Event(
        kind="handoff",
        id=id,
        at=at,
        workflow=workflow,
        task=task,
        source=source,
        target=target,
        attempt=attempt,
        outcome=outcome,
        subject=subject,
        version=version,
    )


def ended(event: Event) -> float:
    """When it was over: a write acknowledged, a read answered."""
    duration = event.duration_ms
    if duration is None or not 0 < duration < math.inf:
        return event.at
    return event.at + duration / 1000


def order_of(version: int | str | None) -> tuple[float, ...] | None:
    """A state's version to what orders it among others: numbers, `v7`, `3.14` (epoch and version), a stream's
    `1700-3`, an RFC 3339 instant. None where it has no order, as an ETag has none.

    >>> order_of("v7") < order_of("10")
    True
    """
    if version is None:
        return None
    if isinstance(version, int):
        return (float(version),) if abs(version) < 1 << 53 else (version,)
    known = _NUMBERS.fullmatch(version)
    if known is not None:
        return tuple(int(part) for part in known.groups() if part is not None)
    epoch = _EPOCH.fullmatch(version)
    if epoch is not None:
        return int(epoch[1]), int(epoch[2])
    if len(version) >= 10 and version[4:5] == "-":
        try:
            return (datetime.fromisoformat(version).timestamp(),)
        except (ValueError, OverflowError):
            return None
    return None


def comparable(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    """Whether two orders are of the same kind: a version beside an epoch and a version says nothing."""
    return one is not None and other is not None and len(one) == len(other)


def epoch_of(version: int | str | None) -> int | None:
    """The epoch in `epoch.version` (also `3:7`, `3/7`, `e3.v7`), None where the version has none."""
    if not isinstance(version, str):
        return None
    known = _EPOCH.fullmatch(version)
    return int(known[1]) if known else None


def is_missing(event: Event) -> bool:
    """Whether a read found nothing under its key."""
    return event.status in MISSING_STATUSES


def removes(event: Event) -> bool:
    """Whether a write took the key away."""
    return event.kind == "write" and (event.operation or "").partition(" ")[0].upper() in REMOVALS


def keeps(event: Event) -> bool:
    """Whether a write left the content as it was."""
    return event.kind == "write" and event.operation in _KEEPS


def reader_of(event: Event) -> str | None:
    """Who reads: the target, to whom the content goes; the source where the target is not said, or is the store."""
    return event.source if event.target is None or event.target == event.store else event.target


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower().replace("-", "_")))


def is_output(event: Event) -> bool:
    """Whether a write is a task's output by its key: no part of the key names working state."""
    if removes(event) or keeps(event) or event.status in ("in_progress", "working", "partial", "pending"):
        return False
    return event.key is None or not _words(event.key) & STATE_WORDS


def says_complete(event: Event) -> bool:
    """Whether an event on a bus may announce that its task is complete: nothing in it says that it is under way."""
    said = [event.key, event.operation, event.subject, event.status if isinstance(event.status, str) else None]
    payload = event.payload
    if type(payload) is dict:
        said += [payload.get(name) for name in ("status", "event", "type", "state")]
    return not any(_words(each) & UNDERWAY_WORDS for each in said if isinstance(each, str))


def same_content(one: str | None, other: str | None) -> bool | None:
    """Whether two digests say the same; None where one is not known."""
    return None if one is None or other is None else one == other


def told(version: int | str | None, digest: str | None) -> str:
    """How a sentence names what was read or written."""
    if version is not None:
        return f"version {version}"
    return f"content {digest[:8]}" if digest else "content that is not known"


def shown(value: Any) -> str:
    """A name in a sentence."""
    return "an unknown agent" if value is None else str(value)
