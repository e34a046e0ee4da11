"""One task handed over, written or announced twice becomes a finding that says whether the content was the same."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding, instant, key_form, lasting
from handrail.detectors.copies import Copies, Copy
from handrail.detectors.params import DuplicateParams
from handrail.detectors.sighting import ended, same_content, shown
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_LANDED: Final = frozenset({"completed", "accepted"})
_IDS: Final = 32
"""Event ids remembered for each key, so that an event delivered again is not taken for a second output."""

_Landing = tuple[float, str, str | None, int | None, str | None, str | None]
"""at, id, digest, attempt, subject, version. A plain tuple, because there is one for every task that is remembered."""


class _Task:
    """A task that was completed more than once."""

    __slots__ = ("first", "ids", "last")

    def __init__(self, first: _Landing, last: float, ids: list[str]) -> None:
        self.first = first
        self.last = last
        self.ids = ids


class OutputDuplicate:
    """What `Copies` finds in stores and on buses, which comes once nothing can come late; and handoffs, at once:

    The same sender completed the same task of the same workflow towards the same target under two event ids.

    Completed twice is a duplicate whatever the content. Accepted twice (a 202, a task still working) is one only with
    the same content, because a conversation about a running task is accepted turn by turn; accepted and then
    completed is one output. A task named like its workflow is a conversation too: only the same content is a repeat.
    Attempts that failed, were refused, timed out or broke off are no outputs: trying again is
    what a sender should do. An event without task says nothing, and one with neither workflow nor source could be
    anybody's.
    """

    kind: ClassVar[str] = "output.duplicate"
    sees: ClassVar[frozenset[Sight]] = frozenset({"asked", "final"})
    Params: ClassVar[type[msgspec.Struct]] = DuplicateParams

    def __init__(self, rule: Rule, params: DuplicateParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._within: float = params.within_seconds
        self._keys: int = params.keys
        self._enforced = rule.action == "enforce"
        self._tasks: OrderedDict[int, _Landing | _Task] = OrderedDict()
        """By one number in place of five strings of the wire: a hash of workflow, source, task, target and digest."""
        self._compares = params.similarity is not None
        self._copies = Copies(params.within_seconds, params.lateness_seconds, params.keys, params.similarity)

    def observe(self, event: Event) -> Iterable[Finding]:
        outcome, task = event.outcome, event.task
        if task is None:
            return NOTHING
        if event.kind != "handoff":
            return [self._copied(copy) for copy in self._copies.add(event)]
        if self._compares and outcome != "asked":
            return [*self._handed(event), *[self._copied(copy) for copy in self._copies.add(event)]]
        return self._handed(event)

    def _handed(self, event: Event) -> Iterable[Finding]:
        outcome, task = event.outcome, event.task
        if outcome == "asked":
            return self._asked(event) if self._enforced else NOTHING
        workflow, source = event.workflow, event.source
        if outcome == "completed" and task != workflow:
            key = hash((workflow, source, task, event.target, None))
        elif outcome in _LANDED and event.digest is not None:
            key = hash((workflow, source, task, event.target, event.digest))
        else:
            return NOTHING
        known = self._tasks.get(key)
        if known is not None:
            return self._again(event, self._task(key, known))
        if workflow is None and source is None:
            return NOTHING
        tasks = self._tasks
        tasks[key] = _landing(event)
        if len(tasks) > self._keys:
            tasks.popitem(last=False)
        return NOTHING

    def _task(self, key: int, known: _Landing | _Task) -> _Task:
        if isinstance(known, _Task):
            return known
        task = self._tasks[key] = _Task(known, known[0], [known[1]])
        return task

    def _asked(self, event: Event) -> Iterable[Finding]:
        """Enforced, so judged before it lands: what landed before is known, what is under way is not."""
        names = (event.workflow, event.source, event.task, event.target)
        keys = [hash((*names, event.digest))] if event.digest is not None else []
        if event.task != event.workflow:
            keys.append(hash((*names, None)))
        for key in keys:
            landed = self._tasks.get(key)
            if landed is not None:
                known = self._task(key, landed)
                if event.id in known.ids or abs(event.at - known.last) > self._within:
                    return NOTHING
                _remember(known, event.id)
                return (self._found(known.first, _landing(event), event),)
        return NOTHING

    def _again(self, event: Event, known: _Task) -> Iterable[Finding]:
        if event.id in known.ids:
            return NOTHING
        landing = _landing(event)
        if event.at - known.last > self._within:
            known.first, known.last, known.ids = landing, event.at, [event.id]
            return NOTHING
        if known.first[0] - event.at > self._within:
            return NOTHING
        _remember(known, event.id)
        first = known.first
        if landing[:2] < first[:2]:  # it arrived late: the one that we knew is the repeat
            known.first = landing
            return (self._found(landing, first, event),)
        known.last = max(known.last, event.at)
        return (self._found(first, landing, event),)

    def _found(self, first: _Landing, second: _Landing, event: Event) -> Finding:
        first_at, first_id, first_digest, first_attempt, _, _ = first
        at, event_id, digest, attempt, subject, version = second
        same = None if first_digest is None or digest is None else first_digest == digest
        content = "content unknown" if same is None else "the same content" if same else "different content"
        gap = abs(at - first_at)
        repeat = event.but(id=event_id, at=at, subject=subject, version=version, payload=None)
        return finding(
            self._rule,
            repeat,
            f"{event.source or 'an unknown agent'} handed task {event.task} to {event.target or 'an unknown agent'} "
            f"again after {lasting(gap)}, with {content}",
            evidence={
                "first": first_id,
                "first_at": instant(first_at),
                "gap_seconds": round(gap, 6),
                "same_content": same,
                "attempts": [first_attempt, attempt],
            },
            side="sender",
            events=(first_id, event_id),
            same=(content,),
        )

    def _copied(self, copy: Copy) -> Finding:
        first, second = copy.first, copy.second
        same = copy.reason == "same_content" or same_content(first.digest, second.digest)
        content = "content unknown" if same is None else "the same content" if same else "different content"
        gap = ended(second) - ended(first)
        verb = {"write": "wrote", "publish": "published", "deliver": "sent"}.get(second.kind, "handed over")
        where = second.key or second.store or "its place"
        if copy.reason == "same_task":
            message = f"{shown(second.source)} {verb} task {second.task} to {where} again after {lasting(gap)}, "
            message += f"with {content}"
        else:
            how = "the same content" if copy.reason == "same_content" else f"{copy.similarity:.0%} of the text"
            message = f"{shown(second.source)} {verb} for task {second.task} {how} that {shown(first.source)} had "
            message += f"for task {first.task}, {lasting(gap)} before"
        return finding(
            self._rule,
            second,
            message,
            evidence={
                "first": first.id,
                "first_at": instant(first.at),
                "gap_seconds": round(gap, 6),
                "same_content": same,
                "attempts": [first.attempt, second.attempt],
                "reason": copy.reason,
                "similarity": copy.similarity,
                "threshold": self._params.similarity,
                "kind": second.kind,
                "store": second.store,
                "key": second.key,
                "tasks": [first.task, second.task],
                "sources": [first.source, second.source],
                "versions": [first.state_version, second.state_version],
                "digests": [first.digest, second.digest],
            },
            side="sender",
            events=(first.id, second.id),
            same=(copy.reason, key_form(second), content),
        )

    def close(self) -> Iterable[Finding]:
        """Nothing comes any more: take up what is held."""
        return [self._copied(copy) for copy in self._copies.close()]

    def advance(self, now: float) -> Iterable[Finding]:
        """Take up what can come no later, and forget tasks whose window is over."""
        tasks, oldest = self._tasks, now - self._within
        while tasks:
            key = next(iter(tasks))
            known = tasks[key]
            if not (known.last if isinstance(known, _Task) else known[0]) < oldest:
                break
            del tasks[key]
        return [self._copied(copy) for copy in self._copies.advance(now)]

    def __len__(self) -> int:
        return max(len(self._tasks), len(self._copies))


def _landing(event: Event) -> _Landing:
    return event.at, event.id, event.digest, event.attempt, event.subject, event.version


def _remember(known: _Task, event_id: str) -> None:
    known.ids.append(event_id)
    if len(known.ids) > _IDS:
        del known.ids[0]
