"""Agents that wait for each other, so that none can go on, become a finding that names who waits for whom and why.

How events say that somebody waits:

- A call that is open (`handoff` or `resume` with outcome `asked`): the source waits for the target until the event is
  seen again under its id with its final outcome. An event that was never seen open waits from `at` for `duration_ms`.
- A blocking read of a queue or stream (`read` or `wait` with `operation` BLPOP, XREAD, …, `store` and `key`,
  outcome `asked` and later final under the same id): the source waits for any of those who were seen to write there.
- `wait`: the source waits for `target`, or for those that `payload` names: `{"for": [b, c], "join": "any" | "all"}`;
  `any_of` and `all_of` are short for both. Several `wait` events of one source and task with `join: any` (in the
  payload or as `operation`) are one wait for any of their targets. With `store` and `key` and no target it is a wait
  for who holds that lock, else for any of those who write there. It ends with `resume` of that source (and of that
  task, target or key where it names one), or with a final outcome under the id of the `wait`.
- A task that asks for input (A2A `input-required`: a handoff answered with outcome `interrupted`): the target waits for
  the source until the source hands it something again.
- A lock: `write` with an operation such as SET NX, SETNX, LOCK or ACQUIRE on a store and key. Completed, the source
  holds it, until DEL, UNLINK, UNLOCK or RELEASE on that key; refused (`rejected`, `ignored`, `failed`), the source
  waits for the holder, until it gets the lock, does something else, or has not tried again for `lock_retry_seconds`.
"""

import heapq
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding, instant, lasting
from handrail.detectors.params import DeadlockParams
from handrail.event import Event, Finding
from handrail.graph.waits import Wait, WaitGraph
from handrail.schema.registry import Matcher, Registry, matcher

_Workflow = tuple[str | None, str | None]
"""The workflow, or none and the task, where that is all that groups events; neither where nothing does."""
_Place = tuple[str, str]
"""Store and key."""


class _Deadlock:
    """A deadlock that is found and not told yet."""

    __slots__ = ("agents", "closed", "due", "order")

    def __init__(self, agents: frozenset[str], closed: float, due: float, order: int) -> None:
        self.agents, self.closed, self.due, self.order = agents, closed, due, order


class _Flow:
    """The waits of one workflow."""

    __slots__ = ("acted", "agenda", "graph", "key", "pending")

    def __init__(self, key: _Workflow) -> None:
        self.key = key
        self.graph = WaitGraph()
        self.agenda: list[tuple[float, int, str]] | None = None
        """Waits whose end is known in advance: (end, number, id)."""
        self.pending: list[_Deadlock] | None = None
        self.acted: dict[str, float] | None = None
        """When agents were last seen to do something, while a deadlock is pending."""


_BLOCKING = frozenset(
    {
        *("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "XREAD", "XREADGROUP"),
        *("RECEIVE", "CONSUME", "FETCH", "POLL"),
    }
)
_ACQUIRE = re.compile(r"SETNX|.*\bNX\b.*|(?:TRY[_ -]?)?LOCK\b.*|ACQUIRE\b.*", re.IGNORECASE)
_RELEASE = frozenset({"DEL", "UNLINK", "GETDEL", "UNLOCK", "RELEASE", "EXPIRED"})
_REFUSED = frozenset({"rejected", "ignored", "failed"})
_DONE = frozenset({"completed", "accepted"})
_ENDED = frozenset({"completed", "accepted", "failed", "rejected", "timeout", "interrupted", "dropped", "ignored"})
_OPEN = ("asked", "interrupted")
_INPUT = re.compile(r"(?:TASK_STATE_)?(?:input|auth)[-_]required", re.IGNORECASE)
_K = TypeVar("_K")
_V = TypeVar("_V")
_TOLD = 64
_WRITERS = 64

_VIA: Mapping[str, str] = {
    "call": "open call",
    "wait": "declared wait",
    "queue": "blocking read",
    "lock": "lock",
    "input": "input that a task asked for",
}


class WaitDeadlock:
    """A cycle among agents that wait for all, or a knot where some wait for any, that stands for `confirm_seconds`.

    It is judged by the instants of the events and not by when they arrive: an end that arrives late but happened before
    the confirmation was over takes the deadlock back before it is told. So does a member that is seen to hand over,
    write or publish: who acts is not blocked. A deadlock is told once, and again only after a member of it acted.

    Breaking the wait whose waiter holds the least (tasks that others wait for it to finish, locks), and of those the
    one that began last, throws the least work away: that one is proposed.
    """

    kind: ClassVar[str] = "wait.deadlock"
    sees: ClassVar[frozenset[Sight]] = frozenset({"asked", "final"})
    Params: ClassVar[type[msgspec.Struct]] = DeadlockParams

    def __init__(self, rule: Rule, params: DeadlockParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._enforced = rule.action == "enforce"
        self._retry = params.lock_retry_seconds
        self._confirm_ms = params.confirm_seconds * 1000
        self._reentrant: tuple[Matcher, ...] = tuple(matcher(each) for each in params.reentrant)
        self._streams: tuple[Matcher, ...] = tuple(matcher(each) for each in params.streams)
        self._flows: dict[_Workflow, _Flow] = {}
        self._live: OrderedDict[str, _Flow | list[_Flow]] = OrderedDict()
        """Live waits by id, oldest first, with the graphs that they are in."""
        self._ends: dict[str, float] = {}
        """Live waits whose end is known in advance, or that lapse."""
        self._due: list[tuple[float, int, _Workflow]] = []
        """When a workflow has to be looked at again."""
        self._count = 0
        self._writers: OrderedDict[_Place, dict[str, None]] = OrderedDict()
        self._reading: dict[_Place, dict[str, None]] = {}
        """Live waits for a place, by id."""
        self._reads: dict[str, set[str]] = {}
        """Agents to their live blocking reads."""
        self._acting: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        """Agent, store, key: it was seen to act while it read there, so that this read does not hold it."""
        self._told: OrderedDict[_Workflow, list[frozenset[str]]] = OrderedDict()
        """Deadlocks that were told and of which no member acted since."""
        self._holders: OrderedDict[tuple[_Workflow, str, str], tuple[str, float]] = OrderedDict()
        self._resumed: OrderedDict[tuple[_Workflow, str, str | None, str | None], float] = OrderedDict()
        """Latest declared resume of a workflow, source, task and target, for a wait that arrives after its end."""
        self._owing: dict[str, dict[_Workflow, int]] = {}
        """Who owes an answer in which workflows: blocking reads belong to these, where they name no workflow."""

    def observe(self, event: Event) -> Iterable[Finding]:
        kind, outcome = event.kind, event.outcome
        if kind == "handoff" and outcome not in _OPEN and not (self._live and event.id in self._live):
            # What most events are: a call that was over before anybody could have looked.
            duration = event.duration_ms
            if duration is None or duration <= self._confirm_ms:
                return self._acts(event) if self._flows and math.isfinite(event.at) else NOTHING
        if not math.isfinite(event.at):
            return NOTHING
        key = (event.workflow, None if event.workflow is not None else event.task)
        if kind == "handoff":
            return self._call(event, key)
        if kind == "wait":
            return self._declared(event, key)
        if kind == "resume":
            return self._resume(event, key)
        if kind == "read":
            if event.operation is not None and event.operation.partition(" ")[0].upper() in _BLOCKING:
                return self._read(event, key)
            return NOTHING
        if kind in ("write", "publish"):
            return self._write(event, key)
        return NOTHING

    # ---- the mechanisms

    def _call(self, event: Event, key: _Workflow) -> Iterable[Finding]:
        source, target, outcome = event.source, event.target, event.outcome
        found: list[Finding] = []
        end = event.at + (event.duration_ms or 0) / 1000
        if event.id in self._live:
            if outcome == "asked":
                return NOTHING
            found += self._until(key, end)
            self._end(event.id)
        elif source is not None and target is not None and source != target and self._is_call(event):
            found += self._until(key, event.at)
            if outcome == "asked" or (event.duration_ms is not None and math.isfinite(end)):
                wait = Wait(event.id, source, (target,), event.at, "call", task=event.task)
                found += self._begin(key, wait, event, None if outcome == "asked" else end)
                for read_id in tuple(self._reads.get(target, ())):
                    # A call is seen open a moment after it began: its target may read a queue by now.
                    (flow, *_) = self._flows_of(read_id)
                    read = flow.graph.waits[read_id]
                    if flow.key == (None, None) and read.since >= event.at:
                        found += self._also(key, read, event)
        found += self._acts(event)
        if source is not None and target is not None:
            self._end_inputs(key, source, target)
            if _asks_for_input(event):
                wait = Wait(f"{event.id}/input", target, (source,), end, "input", task=event.task, event=event.id)
                found += self._begin(key, wait, event)
        return found

    def _is_call(self, event: Event) -> bool:
        if event.channel not in (None, "call"):
            return False
        source, operation = event.source or "", event.operation
        if any(matches(source) for matches in self._reentrant):
            return False
        return operation is None or not any(matches(operation) for matches in self._streams)

    def _declared(self, event: Event, key: _Workflow) -> Iterable[Finding]:
        if event.operation is not None and event.operation.partition(" ")[0].upper() in _BLOCKING:
            return self._read(event, key)
        if event.id in self._live:
            if event.outcome in _ENDED:
                found = list(self._until(key, event.at + (event.duration_ms or 0) / 1000))
                self._end(event.id)
                return found
            return NOTHING
        source = event.source
        if source is None:
            return NOTHING
        targets, is_any = _waited_for(event)
        over = max(
            (
                self._resumed.get((key, source, task, target), -math.inf)
                for task in {event.task, None}
                for target in {event.target, None}
            ),
            default=-math.inf,
        )
        if event.at <= over:
            return NOTHING
        found = list(self._until(key, event.at))
        end = None if event.duration_ms is None else event.at + event.duration_ms / 1000
        if targets:
            flow = self._flows.get(key)
            if is_any and flow is not None:
                for known in list(flow.graph.of(source)):
                    if known.via == "wait" and known.is_any and known.task == event.task and not known.store:
                        self._end(known.id)
                        wait = known.on_others(_unique((*known.targets, *targets)))
                        return (*found, *self._begin(key, wait, event, end))
            wait = Wait(event.id, source, targets, event.at, "wait", is_any, event.task, event.store, event.key)
        elif event.store is not None and event.key is not None:
            holder = self._holders.get((key, event.store, event.key))
            if holder is not None and holder[0] != source:
                wait = Wait(event.id, source, (holder[0],), event.at, "lock", False, event.task, event.store, event.key)
            else:
                wait = self._queue_wait(event, source)
        else:
            return found
        return (*found, *self._begin(key, wait, event, end))

    def _resume(self, event: Event, key: _Workflow) -> Iterable[Finding]:
        """A declared end of a wait; or, in A2A, the message that gives a task the input that it asked for."""
        if event.outcome == "asked" or event.id in self._live or event.duration_ms is not None:
            return self._call(event, key)
        found = list(self._until(key, event.at))
        source, flow = event.source, self._flows.get(key)
        ended = False
        if source is not None:
            if flow is not None:
                for wait in list(flow.graph.of(source)):
                    if (
                        wait.via in ("wait", "queue", "lock", "input")
                        and wait.since <= event.at
                        and _is_meant(event, wait)
                    ):
                        self._end(wait.id)
                        ended = True
                if not ended and event.target is not None:
                    for wait in list(flow.graph.of(event.target)):
                        is_named = event.task is None or wait.task is None or event.task == wait.task
                        if source in wait.targets and wait.via != "call" and wait.since <= event.at and is_named:
                            self._end(wait.id)
                            ended = True
            _put(self._resumed, (key, source, event.task, event.target), event.at, min(self._params.keys, 10_000))
            self._saw_acting(key, source, event.at)
        return found

    def _read(self, event: Event, key: _Workflow) -> Iterable[Finding]:
        end = event.at + (event.duration_ms or 0) / 1000
        if event.id in self._live:
            if event.outcome == "asked":
                return NOTHING
            found = list(self._until(key, end))
            self._end(event.id)
            return found
        is_over = event.outcome != "asked" and (event.outcome in _ENDED or event.kind == "read")
        if is_over and (event.duration_ms is None or event.duration_ms <= self._confirm_ms):
            return NOTHING
        source, store, place = event.source, event.store, event.key
        if source is None or store is None or place is None or (source, store, place) in self._acting:
            return NOTHING
        found = list(self._until(key, event.at))
        wait = self._queue_wait(event, source)
        found += self._begin(key, wait, event, end if is_over else None)
        if wait.id in self._live:
            self._reads.setdefault(source, set()).add(wait.id)
            if event.workflow is None:
                for workflow in tuple(self._owing.get(source, ())):
                    if workflow != key:
                        found += self._also(workflow, wait, event)
        return found

    def _queue_wait(self, event: Event, source: str) -> Wait:
        store, place = event.store or "", event.key or ""
        writers = tuple(name for name in self._writers.get((store, place), ()) if name != source)
        return Wait(event.id, source, writers, event.at, "queue", True, event.task, store, place)

    def _write(self, event: Event, key: _Workflow) -> Iterable[Finding]:
        source, store, place = event.source, event.store, event.key
        if source is None or event.outcome == "asked":
            return NOTHING
        if store is None or place is None:
            return self._acts(event)
        operation = event.operation or ""
        if event.kind == "write" and _ACQUIRE.fullmatch(operation):
            return self._lock(event, key, source, (store, place))
        found = list(self._acts(event))
        if operation.partition(" ")[0].upper() in _RELEASE:
            self._release(key, (store, place))
        elif event.outcome not in _REFUSED:
            found += self._wrote(source, (store, place), event)
        return found

    def _wrote(self, source: str, place: _Place, event: Event) -> Iterable[Finding]:
        """Somebody else may end the waits for this place from now on."""
        writers = self._writers.get(place)
        if writers is None:
            writers = {}
            _put(self._writers, place, writers, self._params.queues)
        else:
            self._writers.move_to_end(place)
        if source in writers or len(writers) >= _WRITERS:
            return NOTHING
        writers[source] = None
        found: list[Finding] = []
        for wait_id in tuple(self._reading.get(place, ())):
            for flow in self._flows_of(wait_id):
                wait = flow.graph.waits[wait_id]
                if wait.source != source and wait.via == "queue":
                    flow.graph.remove(wait_id)
                    wait = wait.on_others(_unique((*wait.targets, source)))
                    found += self._judge(flow, flow.graph.add(wait), event)
        return found

    def _lock(self, event: Event, key: _Workflow, source: str, place: _Place) -> Iterable[Finding]:
        found = list(self._until(key, event.at))
        wait_id = "\x1f".join(("lock", source, *place, *(each or "" for each in key)))
        name = (key, *place)
        if event.outcome in _DONE:
            if wait_id in self._live:
                self._end(wait_id)
            _put(self._holders, name, (source, event.at), self._params.queues)
            for other in tuple(self._reading.get(place, ())):
                for flow in self._flows_of(other):
                    wait = flow.graph.waits[other]
                    if wait.via == "lock" and flow.key == key and wait.source != source:
                        flow.graph.remove(other)
                        wait = wait.on_others((source,))
                        found += self._judge(flow, flow.graph.add(wait), event)
            return found
        holder = self._holders.get(name)
        if event.outcome not in _REFUSED or holder is None or holder[0] == source:
            return found
        lapse = event.at + self._params.lock_retry_seconds
        if wait_id in self._live:  # it tries again: the wait goes on
            flow = self._flows[key]
            self._schedule(self._flows[key], wait_id, lapse)
            (flow,) = self._flows_of(wait_id)
            known = flow.graph.waits[wait_id]
            if known.targets != (holder[0],):
                flow.graph.remove(wait_id)
                found += self._judge(flow, flow.graph.add(known.on_others((holder[0],))), event)
            return found
        wait = Wait(wait_id, source, (holder[0],), event.at, "lock", False, event.task, *place, event.id)
        found += self._begin(key, wait, event, lapse)
        return found

    def _release(self, key: _Workflow, place: _Place) -> None:
        """Nobody holds it: who waits for it can have it."""
        self._holders.pop((key, *place), None)
        for wait_id in tuple(self._reading.get(place, ())):
            for flow in self._flows_of(wait_id):
                wait = flow.graph.waits[wait_id]
                if wait.via == "lock" and flow.key == key:
                    flow.graph.remove(wait_id)
                    flow.graph.add(wait.on_others(()))

    def _end_inputs(self, key: _Workflow, source: str, target: str) -> None:
        """The source speaks to the target: what the target asked it for is under way."""
        flow = self._flows.get(key)
        if flow is not None:
            for wait in list(flow.graph.of(target)):
                if wait.via == "input" and source in wait.targets:
                    self._end(wait.id)

    def _acts(self, event: Event) -> Iterable[Finding]:
        """Who hands over, writes, publishes or answers is not blocked."""
        key = (event.workflow, None if event.workflow is not None else event.task)
        at, source, target = event.at, event.source, event.target
        if source is not None:
            reads = self._reads.get(source)
            if reads:
                for wait_id in tuple(reads):
                    (flow, *_) = self._flows_of(wait_id)
                    wait = flow.graph.waits[wait_id]
                    if at > wait.since:
                        _put(self._acting, (source, wait.store or "", wait.key or ""), None, self._params.queues)
                        self._end(wait_id)
            self._saw_acting(key, source, at)
            flow_of = self._flows.get(key)
            if flow_of is not None:
                for wait in list(flow_of.graph.of(source)):
                    if wait.via == "lock" and wait.event is not None and at > self._ends.get(wait.id, at) - self._retry:
                        self._end(wait.id)
        if target is not None and event.outcome in _DONE and event.kind == "handoff":
            self._saw_acting(key, target, at + (event.duration_ms or 0) / 1000)
        return NOTHING

    def _saw_acting(self, key: _Workflow, agent: str, at: float) -> None:
        told = self._told.get(key)
        if told is not None:
            told[:] = [agents for agents in told if agent not in agents]
            if not told:
                del self._told[key]
        flow = self._flows.get(key)
        if flow is not None and flow.acted is not None:
            flow.acted[agent] = max(at, flow.acted.get(agent, -math.inf))

    # ---- the graph

    def _flows_of(self, wait_id: str) -> list[_Flow]:
        flows = self._live[wait_id]
        return flows if isinstance(flows, list) else [flows]

    def _begin(self, key: _Workflow, wait: Wait, event: Event, end: float | None = None) -> Iterable[Finding]:
        live = self._live
        if wait.id in live:
            self._end(wait.id)
        elif len(live) >= self._params.keys:
            self._end(next(iter(live)))
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(key)
        live[wait.id] = flow
        if wait.store is not None and wait.key is not None:
            self._reading.setdefault((wait.store, wait.key), {})[wait.id] = None
        elif wait.via == "call":
            owing = self._owing.setdefault(wait.targets[0], {})
            owing[key] = owing.get(key, 0) + 1
        if end is not None:
            self._schedule(flow, wait.id, end)
        return self._judge(flow, flow.graph.add(wait), event)

    def _also(self, key: _Workflow, wait: Wait, event: Event) -> Iterable[Finding]:
        """A wait that names no workflow holds up those in which its agent owes an answer."""
        flow = self._flows.get(key)
        if flow is None or wait.id in flow.graph.waits:
            return NOTHING
        self._live[wait.id] = [*self._flows_of(wait.id), flow]
        return self._judge(flow, flow.graph.add(wait), event)

    def _end(self, wait_id: str) -> None:
        if wait_id not in self._live:  # its own end came before what ends it
            return
        flows = self._flows_of(wait_id)
        del self._live[wait_id]
        self._ends.pop(wait_id, None)
        wait: Wait | None = None
        for flow in flows:
            wait = flow.graph.remove(wait_id) or wait
            if not flow.graph.waits:
                self._flows.pop(flow.key, None)
        if wait is None:
            return
        if wait.store is not None and wait.key is not None:
            place = wait.store, wait.key
            reading = self._reading.get(place)
            if reading is not None:
                reading.pop(wait_id, None)
                if not reading:
                    del self._reading[place]
            reads = self._reads.get(wait.source)
            if reads is not None:
                reads.discard(wait_id)
                if not reads:
                    del self._reads[wait.source]
        elif wait.via == "call":
            owing, key = self._owing[wait.targets[0]], flows[0].key
            owing[key] -= 1
            if not owing[key]:
                del owing[key]
                if not owing:
                    del self._owing[wait.targets[0]]

    def _schedule(self, flow: _Flow, wait_id: str, end: float) -> None:
        self._ends[wait_id] = end
        if flow.agenda is None:
            flow.agenda = []
        self._count += 1
        heapq.heappush(flow.agenda, (end, self._count, wait_id))
        if len(flow.agenda) > 2 * len(flow.graph) + 64:
            flow.agenda = [entry for entry in flow.agenda if self._ends.get(entry[2]) == entry[0]]
            heapq.heapify(flow.agenda)
        self._remind(flow, end)

    def _remind(self, flow: _Flow, at: float) -> None:
        self._count += 1
        heapq.heappush(self._due, (at, self._count, flow.key))
        if len(self._due) > 4 * len(self._live) + 256:  # waits that ended leave their entries behind
            self._due = [entry for entry in self._due if entry[2] in self._flows]
            if len(self._due) > 2 * len(self._live) + 128:
                self._due = [(at, 0, key) for at, key in {(entry[0], entry[2]) for entry in self._due}]
            heapq.heapify(self._due)

    def _judge(self, flow: _Flow, knots: list[list[str]], event: Event) -> list[Finding]:
        """New deadlocks wait for their confirmation, but in enforce mode the request that closes one cannot."""
        found: list[Finding] = []
        for knot in knots:
            agents = frozenset(knot)
            if self._is_told(flow, agents):
                continue
            pending = flow.pending or []
            if any(known.agents == agents for known in pending):
                continue
            if self._enforced and event.outcome == "asked":
                found.append(self._tell(flow, knot))
                continue
            closed = _closed(flow.graph, knot)
            wait = self._params.confirm_seconds
            if flow.key == (None, None) and all(each.via == "call" for each in flow.graph.cycle(knot)):
                wait = self._params.unlabelled_confirm_seconds
            self._count += 1
            flow.pending = [*pending, _Deadlock(agents, closed, closed + wait, self._count)]
            if flow.acted is None:
                flow.acted = {}
            self._remind(flow, closed + wait)
        return found

    def _is_told(self, flow: _Flow, agents: frozenset[str]) -> bool:
        """A deadlock that grew or shrank is the same one."""
        return any(known <= agents or agents <= known for known in self._told.get(flow.key, ()))

    def _until(self, key: _Workflow, now: float) -> list[Finding]:
        """What became true in a workflow up to an instant: ends known in advance, and deadlocks that stand."""
        flow = self._flows.get(key)
        found: list[Finding] = []
        while flow is not None and (flow.agenda or flow.pending):
            end = flow.agenda[0][0] if flow.agenda else math.inf
            deadlock = min(flow.pending or (), key=lambda each: (each.due, each.order), default=None)
            due = math.inf if deadlock is None else deadlock.due
            if flow.agenda and end <= now and end <= due:
                _, _, wait_id = heapq.heappop(flow.agenda)
                if self._ends.get(wait_id) == end:
                    self._end(wait_id)
            elif deadlock is not None and due < now:
                found += self._confirm(flow, deadlock)
            else:
                break
            flow = self._flows.get(key)
        return found

    def _confirm(self, flow: _Flow, deadlock: _Deadlock) -> Iterable[Finding]:
        """What is left of a deadlock that is due: itself, or the parts into which an end has split it."""
        pending = [each for each in flow.pending or () if each is not deadlock]
        found: list[Finding] = []
        for knot in flow.graph.knots():
            agents = frozenset(knot)
            if deadlock.agents.isdisjoint(agents) or self._is_told(flow, agents):
                continue
            acted = max(((flow.acted or {}).get(agent, -math.inf) for agent in knot), default=-math.inf)
            closed = _closed(flow.graph, knot)
            stood = max(acted, closed)
            if stood <= deadlock.closed:
                found.append(self._tell(flow, knot))
            elif not any(each.agents == agents for each in pending):
                due = stood + deadlock.due - deadlock.closed
                pending.append(_Deadlock(agents, stood, due, deadlock.order))
                self._remind(flow, due)
        flow.pending = pending or None
        if not pending:
            flow.acted = None
        return found

    def _tell(self, flow: _Flow, knot: list[str]) -> Finding:
        agents = frozenset(knot)
        told = self._told.get(flow.key)
        if told is None:
            told = []
            _put(self._told, flow.key, told, 10_000)
        told.append(agents)
        del told[:-_TOLD]
        graph = flow.graph
        cycle = graph.cycle(knot)
        closing = max(cycle, key=lambda wait: (wait.since, wait.id))
        at = _closed(graph, knot)
        shown = [self._shown(flow, wait, cycle[(index + 1) % len(cycle)].source) for index, wait in enumerate(cycle)]
        cheapest = min(range(len(cycle)), key=lambda index: (len(shown[index]["holds"]), -cycle[index].since))
        names = [wait.source for wait in cycle]
        said = ", ".join(
            f"{wait.source} for {'any of ' if wait.is_any and len(wait.targets) > 1 else ''}"
            f"{_listed(wait.targets if wait.is_any else (names[(index + 1) % len(names)],))} "
            f"({_VIA[wait.via]}, {lasting(max(0.0, at - wait.since))})"
            for index, wait in enumerate(cycle)
        )
        first = names[cheapest]
        others = sorted(agents - set(names))
        event = Event(
            kind="wait",
            id=closing.event or closing.id,
            at=at,
            workflow=flow.key[0],
            task=closing.task,
            source=closing.source,
            target=names[(names.index(closing.source) + 1) % len(names)],
        )
        freed = shown[cheapest]
        return finding(
            self._rule,
            event,
            f"{_listed(names)} wait for each other and none can go on: {said}; "
            f"cheapest to break is the wait of {first} for {freed['to']}",
            evidence={
                "cycle": names,
                "waits": shown,
                "break": {
                    **{key: freed[key] for key in ("from", "to", "via", "since", "task")},
                    "cost": {
                        "holds": len(freed["holds"]),
                        "waited_seconds": round(max(0.0, at - cycle[cheapest].since), 6),
                    },
                    "measure": "the waiter that holds the least, and of those the wait that began last",
                },
                "closed": instant(at),
                "knot": sorted(agents),
                "also_in_knot": others,
            },
            side="graph",
            events=tuple(dict.fromkeys(wait.event or wait.id for wait in cycle)),
            same=tuple(sorted(agents)),
        )

    def _shown(self, flow: _Flow, wait: Wait, following: str) -> dict[str, Any]:
        holds = [
            f"task {each.task} of {each.source}" if each.task else f"a task of {each.source}"
            for each in flow.graph.on(wait.source)
            if each.via in ("call", "wait")
        ]
        holds += [
            f"the next message of {each.store}/{each.key}, which {each.source} reads"
            for each in flow.graph.on(wait.source)
            if each.via == "queue"
        ]
        holds += [
            f"lock {store}/{key}"
            for (workflow, store, key), (holder, _) in self._holders.items()
            if holder == wait.source and workflow == flow.key
        ]
        shown: dict[str, Any] = {
            "from": wait.source,
            "to": following,
            "via": wait.via,
            "since": instant(wait.since),
            "task": wait.task,
            "holds": sorted(set(holds)),
        }
        if wait.is_any:
            shown["any_of"] = list(wait.targets)
        if wait.store is not None:
            shown |= {"store": wait.store, "key": wait.key}
        return shown

    # ---- time and memory

    def advance(self, now: float) -> Iterable[Finding]:
        due = self._due
        if not due or not due[0][0] < now:
            return NOTHING
        found: list[Finding] = []
        while self._due and self._due[0][0] < now:
            found += self._until(heapq.heappop(self._due)[2], now)
        return found

    def settle(self) -> Iterable[Finding]:
        """Nothing more will be seen: what waits for its confirmation is decided by what is known."""
        return [found for key in list(self._flows) for found in self._until(key, math.inf)]

    def __len__(self) -> int:
        return len(self._live)


def _closed(graph: WaitGraph, knot: Iterable[str]) -> float:
    """When a knot became one: with its latest wait."""
    cycle = graph.cycle(list(knot))
    if any(wait.is_any for wait in cycle):
        return max(wait.since for agent in knot for wait in graph.of(agent))
    return max(wait.since for wait in cycle)


def _waited_for(event: Event) -> tuple[tuple[str, ...], bool]:
    """Whom a `wait` event waits for, and whether any of them is enough."""
    payload = event.payload if isinstance(event.payload, Mapping) else {}
    operation = (event.operation or "").lower()
    join = payload.get("join") or payload.get("mode")
    is_any = operation in ("any", "or", "wait_any") or (isinstance(join, str) and join.lower() in ("any", "or", "one"))
    names: list[str] = [] if event.target is None else [event.target]
    for key in (
        "for",
        "on",
        "targets",
        "waits_for",
        "wait_for",
        "waiting_for",
        "agents",
        "all_of",
        "all",
        "any_of",
        "any",
    ):
        value = payload.get(key)
        given = [value] if isinstance(value, str) else value
        if isinstance(given, list):
            listed = [name for name in given if isinstance(name, str) and name]
            if listed:
                names += listed
                is_any = is_any or key in ("any_of", "any")
    return _unique(names[:1_000]), is_any


def _is_meant(event: Event, wait: Wait) -> bool:
    """Whether a resume ends a wait: what it names must be what the wait says, where that says anything."""
    return (
        (event.task is None or wait.task is None or event.task == wait.task)
        and (event.target is None or event.target in wait.targets)
        and (event.store is None or wait.store is None or event.store == wait.store)
        and (event.key is None or wait.key is None or event.key == wait.key)
    )


def _asks_for_input(event: Event) -> bool:
    """Whether the answer was that the task needs something from its caller first."""
    if isinstance(event.status, str) and _INPUT.fullmatch(event.status):
        return True
    if event.outcome != "interrupted" or event.protocol != "a2a":
        return False
    return isinstance(event.status, int) and 200 <= event.status < 300


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _put(known: OrderedDict[_K, _V], key: _K, value: _V, limit: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > limit:
        known.popitem(last=False)
