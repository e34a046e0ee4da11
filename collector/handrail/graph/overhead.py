"""Handoffs seen from both ends become what coordination costs: hop by hop, and for each workflow its critical path.

No two hosts' clocks are compared. A handoff that two sidecars saw has two durations, each by one clock: what the
caller waited (egress) and what the target took (ingress). Their difference is network and queueing, whatever either
clock says. To order what several hosts saw, a target's clock is moved so that the middle of what it took lies in the
middle of what the caller waited, as NTP does (RFC 5905, section 8): wrong by half the difference at most.
"""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import msgspec

from handrail.event import Event

HANDOFFS = 100_000
"""No more handoffs of one workflow are looked at; the latest are left out."""
_ROUNDING_MS = 0.05
"""Instants that are no further apart are the same: a caller waits at least as long as its target takes, and what begins
where something ended comes after it."""


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One handoff, from one end or from both. Times are milliseconds; None where only one end was seen."""

    id: str
    """Of the caller's event, else of the target's."""
    ingress: str | None = None
    """Id of the target's event where both ends were seen."""
    workflow: str | None
    source: str | None
    target: str | None
    at: float
    """Seconds since the epoch by the clock of whoever saw `id`."""
    total_ms: float
    """What the caller waited, or what the target took where nothing else is known."""
    own_ms: float | None = None
    """What the target took, the bytes of request and reply there included."""
    between_ms: float | None = None
    """Network and queueing: what the caller waited and the target did not take."""
    overhead_ms: float | None = None
    """What Handrail took of it, both sidecars together."""
    transfer_ms: float | None = None
    """First to last byte of the request and of the reply, at the target where both ends were seen: part of `own_ms`."""
    inspection_ms: float | None = None
    """What Handrail took to read, validate and judge it, both sidecars together; beside it unless it was held."""
    skew: float = 0.0
    """Seconds that the target's clock is behind the caller's."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a critical path: a handoff, and the milliseconds in which nothing nested in it was waited for."""

    id: str
    source: str | None
    target: str | None
    self_ms: float
    between_ms: float | None = None


class Workflow(msgspec.Struct, frozen=True, kw_only=True):
    """What coordination cost in one workflow. `path` and `idle_ms` together are `span_ms`."""

    workflow: str | None
    handoffs: int
    joined: int
    """How many of them were seen from both ends."""
    agents: tuple[str, ...]
    span_ms: float
    """From the first handoff's beginning to the last one's end."""
    path: tuple[Step, ...]
    """The critical path in the order of time; a handoff is there once for each stretch."""
    idle_ms: float
    """While no handoff was open: the time of whoever coordinates."""
    between_ms: float | None
    """Network and queueing of all handoffs that were seen from both ends; None where there is none."""
    between_share: float | None
    """Which part of the critical path was spent between agents; of handoffs that were seen from both ends."""
    overhead_ms: float | None
    """What Handrail took, all handoffs together."""
    transfer_ms: float | None = None
    """What the bytes of requests and replies took, all handoffs together."""
    inspection_ms: float | None = None
    """What reading, validating and judging took Handrail, all handoffs together."""
    paths_used: int
    """Distinct pairs of agents that handed something over, in one direction."""
    paths_possible: int
    """n·(n-1) for n agents."""


def hops(events: Iterable[Event]) -> list[Hop]:
    """Events to handoffs, two ends joined where they can be told to be the same handoff.

    Joined by trace and span id, which every request has on its own where a client or a route stamps `traceparent`, and
    by target too where an agent handed its caller's on as it came; else by workflow, task, attempt and both agents.
    Where a key stands for several, they are joined in their order if as many left as arrived, and not at all if not.
    Linear in the events, but for sorting.
    """
    ends: dict[Hashable, tuple[list[Event], list[Event]]] = defaultdict(lambda: ([], []))
    found: list[Hop] = []
    for event in events:
        if event.kind != "handoff" or event.outcome == "asked" or event.duration_ms is None:
            continue
        key = _key(event) if event.side is not None else None
        if key is None:
            found.append(_alone(event))
        else:
            ends[key][event.side == "ingress"].append(event)
    for left, arrived in itertools.chain.from_iterable(map(_apart, ends.values())):
        left.sort(key=_order)
        arrived.sort(key=_order)
        if len(left) == len(arrived) and all(map(_fits, left, arrived)):
            found += map(_both, left, arrived)
        else:
            found += map(_alone, left or arrived)
    found.sort(key=lambda hop: (hop.at, hop.id))
    return found


def _apart(ends: tuple[list[Event], list[Event]]) -> Iterable[tuple[list[Event], list[Event]]]:
    """The ends under one key, target by target where one of them was the sender of another."""
    events = [*ends[0], *ends[1]]
    targets = {event.target for event in events}
    if len(targets) == 1 or not any(event.source is not None and event.source in targets for event in events):
        return (ends,)
    by_target: dict[str | None, tuple[list[Event], list[Event]]] = defaultdict(lambda: ([], []))
    for event in events:
        by_target[event.target][event.side == "ingress"].append(event)
    return by_target.values()


def _order(event: Event) -> tuple[float, str]:
    return event.at, event.id


def _key(event: Event) -> Hashable:
    if event.trace_id is not None and event.span_id is not None:
        return event.trace_id, event.span_id
    if event.workflow is None or event.task is None or event.target is None:
        return None
    return event.workflow, event.task, event.attempt, event.source, event.target


def _fits(left: Event, arrived: Event) -> bool:
    return (left.duration_ms or 0.0) >= (arrived.duration_ms or 0.0) - _ROUNDING_MS


def _alone(event: Event) -> Hop:
    return Hop(
        id=event.id,
        workflow=event.workflow,
        source=event.source,
        target=event.target,
        at=event.at,
        total_ms=event.duration_ms or 0.0,
        overhead_ms=event.overhead_ms,
        transfer_ms=event.transfer_ms,
        inspection_ms=event.inspection_ms,
    )


def _both(left: Event, arrived: Event) -> Hop:
    total, own = left.duration_ms or 0.0, arrived.duration_ms or 0.0
    return Hop(
        id=left.id,
        ingress=arrived.id,
        workflow=left.workflow or arrived.workflow,
        source=left.source or arrived.source,
        target=left.target or arrived.target,
        at=left.at,
        total_ms=total,
        own_ms=own,
        between_ms=max(0.0, total - own),
        overhead_ms=_sum([left.overhead_ms, arrived.overhead_ms]),
        transfer_ms=arrived.transfer_ms,
        inspection_ms=_sum([left.inspection_ms, arrived.inspection_ms]),
        skew=left.at + total / 2000 - arrived.at - own / 2000,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def workflows(events: Iterable[Event]) -> list[Workflow]:
    """Events to what coordination cost in each workflow, the longest first."""
    found: dict[str | None, list[Hop]] = defaultdict(list)
    for hop in hops(events):
        if hop.workflow is not None:
            found[hop.workflow].append(hop)
    return sorted(map(cost, found.values()), key=lambda each: (-each.span_ms, each.workflow or ""))


def cost(found: Sequence[Hop]) -> Workflow:
    """The handoffs of one workflow, at least one, to what coordination cost in it. n log n."""
    found = found[:HANDOFFS]
    agents = sorted({name for hop in found for name in (hop.source, hop.target) if name is not None})
    used = {(hop.source, hop.target) for hop in found if None not in (hop.source, hop.target)}
    path, idle_ms, span_ms = critical_path(found)
    joined = [hop.between_ms for hop in found if hop.between_ms is not None]
    on_path = {step.id: step for step in path if step.between_ms is not None}
    stretches: dict[str, float] = defaultdict(float)
    for step in path:
        stretches[step.id] += step.self_ms
    between = sum(min(step.between_ms or 0.0, stretches[name]) for name, step in on_path.items())
    return Workflow(
        workflow=found[0].workflow,
        handoffs=len(found),
        joined=len(joined),
        agents=tuple(agents),
        span_ms=span_ms,
        path=path,
        idle_ms=idle_ms,
        between_ms=sum(joined) if joined else None,
        between_share=min(1.0, between / span_ms) if on_path and span_ms > 0 else None,
        overhead_ms=_sum(hop.overhead_ms for hop in found),
        transfer_ms=_sum(hop.transfer_ms for hop in found),
        inspection_ms=_sum(hop.inspection_ms for hop in found),
        paths_used=sum(source != target for source, target in used),
        paths_possible=len(agents) * (len(agents) - 1),
    )


class _Span:
    """A handoff in the time of the workflow, in milliseconds since its beginning."""

    __slots__ = ("children", "end", "hop", "start")

    def __init__(self, hop: Hop | None, start: float, end: float) -> None:
        self.hop, self.start, self.end = hop, start, end
        self.children: list[_Span] = []


def critical_path(found: Sequence[Hop]) -> tuple[tuple[Step, ...], float, float]:
    """The handoffs of a workflow to its critical path, the time between them, and the whole, in milliseconds.

    A handoff is nested in the shortest one that its source serves meanwhile. From the end backwards, the wait is always
    for what ended last; what ran beside it was waited for by nobody. As distributed tracing does it (Zhang et al.,
    CRISP, USENIX ATC 2022).
    """
    clocks = _clocks(found)
    spans = []
    for hop in found:
        start = round((hop.at - found[0].at + clocks.get(hop.source, 0.0)) * 1000, 3)
        spans.append(_Span(hop, start, round(start + max(0.0, hop.total_ms), 3)))
    first, last = min(span.start for span in spans), max(span.end for span in spans)
    root = _Span(None, first, last)
    _nest(root, spans)
    steps: list[Step] = []
    idle = 0.0
    # What is left to walk, last first: a handoff and until when, or a stretch of one.
    walk: list[tuple[_Span, float, bool]] = [(root, last, True)]
    while walk:
        span, until, is_whole = walk.pop()
        if not is_whole:
            if span.hop is None:
                idle += until
            elif until > 0:
                hop = span.hop
                steps.append(
                    Step(id=hop.id, source=hop.source, target=hop.target, self_ms=until, between_ms=hop.between_ms)
                )
            continue
        parts: list[tuple[_Span, float, bool]] = []
        at = until
        for child in sorted(span.children, key=lambda each: (each.end, each.start), reverse=True):
            if child.end > at + _ROUNDING_MS or child.end <= span.start:
                continue
            end = min(child.end, at)
            parts.append((span, at - end, False))
            parts.append((child, end, True))
            at = min(end, max(span.start, child.start))
        parts.append((span, max(0.0, at - span.start), False))
        walk += parts  # the latest is first, and taken last: steps come in the order of time
    return tuple(steps), idle, last - first


def _clocks(found: Sequence[Hop]) -> dict[str | None, float]:
    """Agent to the seconds by which its clock must be moved to agree with the others that handoffs connect it to."""
    near: dict[str | None, list[tuple[str | None, float]]] = defaultdict(list)
    for hop in found:
        if hop.ingress is not None and hop.source != hop.target:
            near[hop.source].append((hop.target, hop.skew))
            near[hop.target].append((hop.source, -hop.skew))
    clocks: dict[str | None, float] = {}
    for agent in list(near):
        if agent in clocks:
            continue
        clocks[agent] = 0.0
        reached = [agent]
        for name in reached:
            for other, skew in near[name]:
                if other not in clocks:
                    clocks[other] = clocks[name] + skew
                    reached.append(other)
    return clocks


def _nest(root: _Span, spans: list[_Span]) -> None:
    """Puts each span under the shortest one that its source serves while it runs, else under the root."""
    serving: dict[str | None, list[_Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda each: (each.start, -each.end)):
        hop = span.hop
        assert hop is not None
        parent = root
        if hop.source is not None:
            live = serving[hop.source] = [each for each in serving[hop.source] if each.end >= span.start]
            around = [each for each in live if each.end >= span.end - _ROUNDING_MS]
            parent = min(around, key=lambda each: (each.end - each.start, each.start), default=root)
        parent.children.append(span)
        serving[hop.target].append(span)
