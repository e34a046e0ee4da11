"""One edge: from one agent to another."""

from frame import (
    BLUE,
    EDGE,
    ERRORS,
    ORANGE,
    OUTCOMES,
    QUANTILES,
    RED,
    SKY,
    WARN,
    Board,
    E,
    Row,
    Sql,
    above,
    number,
    prom,
    quantiles,
    rows,
    steps,
    trend,
)

from boards import IS_ERROR, findings

BOARD = Board(
    "edge",
    "One source and one target: how fast, where the time goes, how large, in which versions, and what was found.",
    [
        Row(
            4,
            [
                (
                    4,
                    number(
                        "Handoffs per second",
                        "Handoffs on the edges chosen above, now.",
                        prom(f"sum(rate(handrail_handoffs_total{{{E}}}[$__rate_interval])) or vector(0)"),
                        unit="reqps",
                        link="overview",
                    ),
                ),
                (
                    4,
                    number(
                        "Errors",
                        "Share of handoffs that failed, were rejected or dropped, timed out or were interrupted.",
                        prom(
                            f"(sum(rate(handrail_handoffs_total{{{E}, {ERRORS}}}[$__rate_interval])) or vector(0)) "
                            f"/ (sum(rate(handrail_handoffs_total{{{E}}}[$__rate_interval])) > 0 or vector(1))"
                        ),
                        unit="percentunit",
                        thresholds=above(0.01, 0.05),
                    ),
                ),
                (
                    4,
                    number(
                        "Half are as quick as (p50)",
                        "The median handoff of this range, exact, from ClickHouse.",
                        Sql(
                            f"SELECT quantileExact(0.5)(duration_ms) AS p50 FROM handoff WHERE $__timeFilter(at) AND "
                            f"{EDGE}"
                        ),
                        unit="ms",
                        empty="no handoffs",
                    ),
                ),
                (
                    4,
                    number(
                        "All but 1% (p99)",
                        "99% of the handoffs of this range take no longer; exact, from ClickHouse.",
                        Sql(
                            f"SELECT quantileExact(0.99)(duration_ms) AS p99 FROM handoff WHERE $__timeFilter(at) "
                            f"AND {EDGE}"
                        ),
                        unit="ms",
                        empty="no handoffs",
                    ),
                ),
                (
                    4,
                    number(
                        "Added by Handrail (p99)",
                        "Time that 99% of these handoffs spent inside Handrail at most, both directions together.",
                        Sql(
                            f"SELECT quantileExact(0.99)(overhead_ms) AS p99 FROM handoff WHERE $__timeFilter(at) "
                            f"AND {EDGE}"
                        ),
                        unit="ms",
                        thresholds=above(2, 10),
                        empty="no handoffs",
                        link="self",
                    ),
                ),
                (
                    4,
                    number(
                        "Findings",
                        "Occurrences in this range of findings on these edges, of any severity.",
                        Sql(f"SELECT sum(count) AS findings FROM finding FINAL WHERE $__timeFilter(at) AND {EDGE}"),
                        thresholds=above(1, None),
                    ),
                ),
            ],
        ),
        Row(
            8,
            [
                (
                    8,
                    trend(
                        "Latency quantiles",
                        "Half, 95% and 99% of handoffs are at least as quick, from first byte to last.",
                        *quantiles("handrail_handoff_duration_seconds", E),
                        colours=QUANTILES,
                        unit="s",
                        empty="No handoffs here.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Where the time goes",
                        "The mean handoff in its parts: inside Handrail, the bytes of request and reply (serialisation "
                        "and transfer), until the target's first byte, and the pauses of a reply that is a stream.",
                        Sql(
                            f"""
                            SELECT $__timeInterval(at) AS time,
                                avg(overhead_ms) AS "in Handrail",
                                avg(greatest(ttfb_ms - ifNull(overhead_ms, 0), 0)) AS "until the first byte",
                                avg(transfer_ms) AS "serialisation and transfer",
                                avg(greatest(duration_ms - ttfb_ms - ifNull(transfer_ms, 0), 0)) AS "rest of a stream"
                            FROM handoff WHERE $__timeFilter(at) AND {EDGE} GROUP BY time ORDER BY time
                            """,
                            "timeseries",
                        ),
                        colours={
                            "in Handrail": RED,
                            "until the first byte": BLUE,
                            "serialisation and transfer": ORANGE,
                            "rest of a stream": SKY,
                        },
                        unit="ms",
                        stacked=True,
                        empty="No handoffs here.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Serialisation and transfer",
                        "From the first to the last byte of request and reply, for half, 95% and 99% of handoffs.",
                        *quantiles("handrail_handoff_transfer_seconds", E),
                        colours=QUANTILES,
                        unit="s",
                        empty="No handoffs here.",
                    ),
                ),
            ],
        ),
        Row(
            8,
            [
                (
                    6,
                    trend(
                        "Size of payloads",
                        "Quantiles of the bytes that were handed over.",
                        *quantiles("handrail_payload_bytes", E),
                        colours=QUANTILES,
                        unit="bytes",
                        empty="No payloads here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Tokens of context",
                        "Quantiles of the tokens that were handed over, where the payload says how many; the line is "
                        "at "
                        "100,000, near the end of many models' windows.",
                        *quantiles("handrail_context_tokens", E),
                        colours=QUANTILES,
                        unit="short",
                        thresholds=steps((None, "transparent"), (100_000, WARN)),
                        empty="No payload says its tokens.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Outcomes",
                        "What became of the handoffs on these edges.",
                        prom(
                            f"sum by (outcome) (rate(handrail_handoffs_total{{{E}}}[$__rate_interval]))", "{{outcome}}"
                        ),
                        colours=OUTCOMES,
                        unit="reqps",
                        stacked=True,
                        empty="No handoffs here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Findings by rule",
                        "How often each rule fires on these edges, per minute.",
                        prom(
                            f"60 * sum by (rule) (rate(handrail_edge_findings_total{{{E}}}[$__rate_interval]))",
                            "{{rule}}",
                        ),
                        stacked=True,
                        empty="No rule fires here.",
                    ),
                ),
            ],
        ),
        Row(
            8,
            [
                (
                    12,
                    rows(
                        "Versions in use",
                        "Schema versions and versions of the sending agent in this range, and how many handoffs went "
                        "wrong "
                        "with each.",
                        Sql(
                            f"""
                            SELECT subject, version, agent_version, source, target, count() AS handoffs,
                                countIf({IS_ERROR}) / count() AS failed, min(at) AS first, max(at) AS latest
                            FROM handoff WHERE $__timeFilter(at) AND {EDGE}
                            GROUP BY subject, version, agent_version, source, target ORDER BY latest DESC LIMIT 100
                            """
                        ),
                        empty="No handoffs in this range.",
                    ),
                ),
                (
                    12,
                    rows(
                        "Findings on this edge",
                        "The latest findings whose source and target are those above.",
                        findings("rule", "workflow", "message", "source", "target", kinds="1 = 1"),
                        empty="Nothing was found on this edge.",
                    ),
                ),
            ],
        ),
        Row(
            9,
            [
                (
                    24,
                    rows(
                        "Slowest handoffs",
                        "The fifty that took longest in this range; a workflow leads to its timeline.",
                        Sql(
                            f"""
                            SELECT at, workflow, task, attempt, source, target, protocol, operation, outcome, status,
                                duration_ms AS duration, overhead_ms AS added, payload_bytes AS bytes, tokens
                            FROM handoff WHERE $__timeFilter(at) AND {EDGE} AND duration_ms IS NOT NULL
                            ORDER BY duration_ms DESC LIMIT 50
                            """
                        ),
                        empty="No handoffs in this range.",
                    ),
                )
            ],
        ),
    ],
)
