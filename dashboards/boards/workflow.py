"""One workflow, from its first handoff to its last."""

from frame import (
    BLUE,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    YELLOW,
    Board,
    Row,
    Sql,
    above,
    graph,
    lanes,
    number,
    rows,
    waterfall,
)

from boards import IS_ERROR, graph_edges, graph_nodes

THIS = "workflow = ${workflow:singlequote} AND $__timeFilter(at)"
NONE = "This workflow has no handoffs in this range; choose another, or a longer range."

OUTCOMES = {
    0: ("idle", "transparent"),
    1: ("completed", BLUE),
    2: ("accepted", SKY),
    3: ("failed", RED),
    4: ("rejected", ORANGE),
    5: ("timeout", PINK),
    6: ("dropped or interrupted", YELLOW),
    7: ("ignored or unknown", GREY),
}
CODE = (
    "multiIf(outcome = 'completed', 1, outcome = 'accepted', 2, outcome = 'failed', 3, outcome = 'rejected', 4, "
    "outcome = 'timeout', 5, outcome IN ('dropped', 'interrupted'), 6, 7)"
)
BETWEEN = "concat(ifNull(source, '?'), ' → ', ifNull(target, '?'))"
MILLI = "fromUnixTimestamp64Milli(toUnixTimestamp64Milli({}), 'UTC')"
UNTIL = "at + toIntervalMicrosecond(toInt64(greatest(ifNull(duration_ms, 0), 1) * 1000))"

# A handoff of this length begins in its lane as its outcome and leaves it idle when it is over.
TIMELINE = f"""
    SELECT {MILLI.format("moment.1")} AS time, lane, max(moment.2) AS outcome
    FROM (
        SELECT {BETWEEN} AS lane, arrayJoin([(at, {CODE}), ({UNTIL}, 0)]) AS moment FROM handoff WHERE {THIS}
    )
    GROUP BY time, lane ORDER BY time
"""

# What made an agent hand over is what it was handed last: that handoff is its parent.
SPANS = f"""
    SELECT h.workflow AS traceID, h.id AS spanID, p.id AS parentSpanID, h.label AS operationName,
        h.agent AS serviceName,
        {MILLI.format("h.at")} AS startTime, greatest(ifNull(h.duration_ms, 0), 0.001) AS duration,
        arrayMap(pair -> map('key', pair.1, 'value', pair.2), [
            ('task', ifNull(h.task, '')), ('attempt', toString(ifNull(h.attempt, 1))), ('outcome', toString(h.outcome)),
            ('schema', concat(ifNull(h.subject, ''), '@', ifNull(h.version, ''))), ('protocol', ifNull(h.protocol, '')),
            ('tokens', toString(ifNull(h.tokens, 0)))]) AS tags,
        if(h.outcome IN ('failed', 'rejected', 'dropped', 'timeout', 'interrupted'), 2, 0) AS statusCode
    FROM (
        SELECT *, ifNull(source, '') AS agent, {BETWEEN} AS label FROM handoff WHERE {THIS}
    ) AS h
    ASOF LEFT JOIN (
        SELECT id, at, ifNull(target, '') AS agent FROM handoff WHERE {THIS}
    ) AS p ON h.agent = p.agent AND h.at > p.at
    ORDER BY startTime LIMIT 1000
"""

HANDOFFS = f"""
    SELECT ifNull(source, '?') AS source, ifNull(target, '?') AS target, count() AS handoffs,
        countIf({IS_ERROR}) AS errors, ifNull(quantileExact(0.95)(duration_ms), 0) AS p95
    FROM handoff WHERE {THIS} GROUP BY source, target
"""
FOUND = f"""
    SELECT ifNull(source, '?') AS source, ifNull(target, '?') AS target,
        sumIf(count, severity = 'critical') AS critical,
        sumIf(count, severity = 'warning') AS warnings
    FROM finding FINAL WHERE {THIS} GROUP BY source, target
"""


def _of_handoffs(expression: str) -> Sql:
    return Sql(f"SELECT {expression} AS value FROM handoff WHERE {THIS}")


BOARD = Board(
    "workflow",
    "The handoffs of one workflow as a timeline, with what was found in it.",
    [
        Row(
            4,
            [
                (4, number("Handoffs", "Handoffs of this workflow.", _of_handoffs("count()"))),
                (
                    4,
                    number(
                        "From first to last",
                        "Time between the first handoff and the end of the last.",
                        _of_handoffs(
                            f"if(count() = 0, NULL, dateDiff('millisecond', min(at), max({UNTIL})))",
                        ),
                        unit="ms",
                        empty="none",
                    ),
                ),
                (
                    4,
                    number(
                        "Errors",
                        "Handoffs that failed, were rejected or dropped, timed out or were interrupted.",
                        _of_handoffs(f"countIf({IS_ERROR})"),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Agents",
                        "Agents that handed over or were handed something.",
                        _of_handoffs(
                            "length(arrayFilter(a -> a != '', arrayDistinct(arrayConcat("
                            "groupUniqArray(ifNull(toString(source), '')), groupUniqArray(ifNull(toString(target), "
                            "''))))))"
                        ),
                    ),
                ),
                (4, number("Tokens", "Tokens of context that were handed over.", _of_handoffs("sum(tokens)"))),
                (
                    4,
                    number(
                        "Findings",
                        "Occurrences of findings in this workflow.",
                        Sql(f"SELECT sum(count) AS findings FROM finding FINAL WHERE {THIS}"),
                        thresholds=above(1, None),
                    ),
                ),
            ],
        ),
        Row(
            10,
            [
                (
                    24,
                    lanes(
                        "Timeline",
                        "A lane for each edge; a bar for each handoff, from its request to the end of its reply.",
                        Sql(TIMELINE, "timeseries"),
                        OUTCOMES,
                        empty=NONE,
                    ),
                )
            ],
        ),
        Row(
            12,
            [
                (
                    14,
                    waterfall(
                        "Which handoff led to which",
                        "Each handoff under the one that its sender was handed last.",
                        Sql(SPANS, "traces"),
                        empty=NONE,
                    ),
                ),
                (
                    10,
                    graph(
                        "Who handed over to whom",
                        "The agents of this workflow. Edges: blue is healthy, orange has warnings or errors, "
                        "vermilion critical "
                        "findings or more than 5% errors.",
                        graph_nodes(HANDOFFS),
                        graph_edges(HANDOFFS, FOUND),
                        empty=NONE,
                    ),
                ),
            ],
        ),
        Row(
            10,
            [
                (
                    24,
                    rows(
                        "Each handoff",
                        "Every handoff of this workflow, the first first.",
                        Sql(
                            f"""
                            SELECT at, source, target, task, attempt, protocol, operation, outcome, status,
                                duration_ms AS duration, overhead_ms AS added, payload_bytes AS bytes, tokens, subject,
                                version, confidence
                            FROM handoff WHERE {THIS} ORDER BY at LIMIT 1000
                            """
                        ),
                        empty=NONE,
                    ),
                )
            ],
        ),
        Row(
            8,
            [
                (
                    24,
                    rows(
                        "Each finding",
                        "What was found in this workflow, the first first.",
                        Sql(
                            "SELECT at, severity, rule, source, target, task, side, message, evidence FROM finding "
                            "FINAL "
                            f"WHERE {THIS} ORDER BY at LIMIT 200"
                        ),
                        empty="Nothing was found in this workflow.",
                    ),
                )
            ],
        ),
    ],
    variables=("one workflow",),
    since="now-24h",
)
