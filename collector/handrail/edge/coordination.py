"""What ClickHouse holds becomes what coordination cost: edges of which both ends were seen, the longest workflows."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from handrail.event import Event, event_from
from handrail.graph.overhead import Step, Workflow, workflows

WORKFLOWS = 20
ROWS = 50_000
"""Handoffs that are read for them."""
STEPS = 6
"""Stretches of a critical path that a sentence names, the longest."""

OVERHEADS = """
SELECT
    o.source AS source,
    o.target AS target,
    sum(o.handoffs) AS handoffs,
    countIf(o.joined) AS joined_count,
    quantileExactIf(0.5)(o.total_ms, o.joined) AS total_p50_ms,
    quantileExactIf(0.5)(o.own_ms, o.joined) AS own_p50_ms,
    quantileExactIf(0.5)(o.between_ms, o.joined) AS between_p50_ms,
    quantileExactIf(0.99)(o.between_ms, o.joined) AS between_p99_ms,
    quantileExactIf(0.5)(o.transfer_ms, o.joined) AS transfer_p50_ms,
    quantileExactIf(0.5)(o.inspection_ms, o.joined) AS inspection_p50_ms
FROM {database}.handoff_overhead AS o
WHERE o.at > now64(6) - INTERVAL {seconds} SECOND
GROUP BY o.source, o.target
HAVING joined_count > 0
ORDER BY sum(o.between_ms) DESC, source, target
LIMIT {rows}
"""

HOPS = """
SELECT
    h.id AS id, toString(h.at) AS at, h.workflow AS workflow, h.task AS task, h.attempt AS attempt, h.source AS source,
    h.target AS target, h.side AS side, h.outcome AS outcome, h.duration_ms AS duration_ms,
    h.overhead_ms AS overhead_ms, h.inspection_ms AS inspection_ms, h.transfer_ms AS transfer_ms,
    h.trace_id AS trace_id, h.span_id AS span_id
FROM {database}.handoff AS h
WHERE h.kind = 'handoff' AND h.at > now64(6) - INTERVAL {seconds} SECOND AND h.duration_ms IS NOT NULL AND h.workflow IN
(
    SELECT i.workflow
    FROM {database}.handoff AS i
    WHERE i.kind = 'handoff' AND i.at > now64(6) - INTERVAL {seconds} SECOND AND i.workflow IS NOT NULL
        AND i.source IS NOT NULL AND i.target IS NOT NULL
    GROUP BY i.workflow
    ORDER BY
        max(toUnixTimestamp64Micro(i.at) + ifNull(i.duration_ms, 0) * 1000) - min(toUnixTimestamp64Micro(i.at)) DESC
    LIMIT {longest}
)
ORDER BY h.at, h.id
LIMIT {hops}
""".replace("{longest}", str(WORKFLOWS)).replace("{hops}", str(ROWS))


class Overhead(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="overhead"):
    """What one edge costs where both of its ends were seen: the target's own time, and network and queueing."""

    source: str | None
    target: str | None
    handoffs: int
    joined_count: int
    total_p50_ms: float | None
    own_p50_ms: float | None
    between_p50_ms: float | None
    between_p99_ms: float | None
    transfer_p50_ms: float | None = None
    """Of `own`: what the bytes of request and reply took at the target."""
    inspection_p50_ms: float | None = None
    """What Handrail took to read and judge it, both sidecars together."""


def overheads_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Overhead, ...]:
    """The answer to `OVERHEADS`."""
    return tuple(msgspec.convert({**row, "type": "overhead"}, Overhead, strict=False) for row in rows)


def workflows_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Workflow, ...]:
    """The answer to `HOPS`: the longest workflows with their critical path."""
    return tuple(workflows(map(_handoff, rows)))


def _handoff(row: Mapping[str, Any]) -> Event:
    attempt = row["attempt"]
    return event_from({**row, "kind": "handoff", "attempt": None if attempt is None else int(attempt)})


def path_of(flow: Workflow) -> str:
    """A critical path as a sentence: its longest stretches in the order of time, in milliseconds."""
    path: Sequence[Step] = flow.path
    longest = set(sorted(range(len(path)), key=lambda index: -path[index].self_ms)[:STEPS])
    said = [
        f"{step.source or '?'} → {step.target or '?'} {step.self_ms:,.0f}"
        for index, step in enumerate(path)
        if index in longest
    ]
    if len(path) > STEPS:
        said.append(f"{len(path) - STEPS} shorter")
    if flow.idle_ms >= 1:
        said.append(f"no handoff open {flow.idle_ms:,.0f}")
    return ", ".join(said)
