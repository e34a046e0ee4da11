"""Do agents work on what is true, and does what they made arrive once and whole?"""

from frame import FLOW, Board, C, Row, Sql, above, number, prom, rows, trend

from boards import counted, findings, list_of, over_time, real, text

KINDS = "(kind LIKE 'state.%' OR kind LIKE 'output.%' OR kind IN ('handoff.partial', 'handoff.early'))"

BOARD = Board(
    "state",
    "Stale and torn reads, lost updates, duplicates, and handoffs that were announced too early or not at all.",
    [
        Row(
            4,
            [
                (
                    4,
                    number(
                        "Stale reads",
                        "Reads in this range that returned what had been superseded before.",
                        counted("kind = 'state.stale_read'", FLOW),
                        thresholds=above(None, 1),
                    ),
                ),
                (
                    4,
                    number(
                        "Oldest stale read",
                        "How long ago the value that was read had been superseded, at worst.",
                        Sql(
                            f"SELECT max({real('stale_seconds')}) AS age FROM finding FINAL "
                            f"WHERE $__timeFilter(at) AND kind = 'state.stale_read' AND {FLOW}"
                        ),
                        unit="s",
                        thresholds=above(1, 10),
                        empty="none",
                    ),
                ),
                (
                    4,
                    number(
                        "Lost updates",
                        "Writes in this range that replaced another agent's write without having seen it.",
                        counted("kind = 'state.lost_update'", FLOW),
                        thresholds=above(None, 1),
                    ),
                ),
                (
                    4,
                    number(
                        "Torn reads",
                        "Reads in this range of several keys that never were true together.",
                        counted("kind = 'state.torn_read'", FLOW),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Duplicates",
                        "Outputs in this range that were handed over, written or announced twice.",
                        counted("kind = 'output.duplicate'", FLOW),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Partial and early handoffs",
                        "Outputs in this range that were written and never announced, or announced before they were "
                        "there.",
                        counted("kind IN ('handoff.partial', 'handoff.early')", FLOW),
                        thresholds=above(None, 1),
                    ),
                ),
            ],
        ),
        Row(
            7,
            [
                (
                    8,
                    trend(
                        "Findings about state",
                        "Occurrences in each interval, by kind.",
                        over_time(KINDS, where=FLOW),
                        bars=True,
                        stacked=True,
                        empty="Nothing was found.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Age of stale reads",
                        "How long ago what was read had been superseded: the worst of each interval and store.",
                        Sql(
                            f"""
                            SELECT $__timeInterval(at) AS time, {text("store")} AS store,
                                max({real("stale_seconds")}) AS age
                            FROM finding FINAL WHERE $__timeFilter(at) AND kind = 'state.stale_read' AND {FLOW}
                            GROUP BY time, store ORDER BY time
                            """,
                            "timeseries",
                        ),
                        unit="s",
                        bars=True,
                        empty="No read was stale.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Latency of shared state (p95)",
                        "Until a write or a publish is acknowledged, until what was written is first read, until "
                        "what was "
                        "published is delivered and acknowledged.",
                        prom(
                            "histogram_quantile(0.95, sum by (le, store, step) "
                            f"(rate(handrail_state_latency_seconds_bucket{{{C}}}[$__rate_interval])))",
                            "{{store}} {{step}}",
                        ),
                        unit="s",
                        logarithmic=True,
                        empty="No store or bus is watched here.",
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
                        "Each stale read",
                        "Who read what how late, which version was there, who had written it, and what the reader "
                        "did next.",
                        findings(
                            f"{real('stale_seconds')} AS age",
                            f"{text('reader')} AS reader",
                            f"{text('store')} AS store",
                            f"{text('key')} AS key",
                            f"{text('version_read')} AS version_read",
                            f"{text('version_existed')} AS version_existed",
                            f"{text('written_by')} AS written_by",
                            f"{text('acted.target')} AS then_handed_to",
                            "workflow",
                            "message",
                            kinds="kind = 'state.stale_read'",
                            where=FLOW,
                        ),
                        empty="No read was stale in this range.",
                    ),
                )
            ],
        ),
        Row(
            9,
            [
                (
                    12,
                    rows(
                        "Each duplicate",
                        "The same output twice: how long after the first, and whether it still says the same.",
                        findings(
                            "task",
                            f"{real('gap_seconds')} AS gap",
                            f"{text('same_content')} AS same_content",
                            f"{list_of('attempts', ', ')} AS attempts",
                            "source",
                            "target",
                            "workflow",
                            "message",
                            kinds="kind = 'output.duplicate'",
                            where=FLOW,
                        ),
                        empty="Nothing was handed over twice.",
                    ),
                ),
                (
                    12,
                    rows(
                        "Each partial or early handoff",
                        "Outputs that nobody was told of, and announcements of what was not there yet.",
                        findings(
                            "kind",
                            "task",
                            f"{text('store')} AS store",
                            f"{text('key')} AS key",
                            f"{text('reason')} AS reason",
                            f"coalesce({real('after_seconds')}, {real('budget_seconds')}) AS waited",
                            f"coalesce({real('ahead_seconds')}, {real('behind_seconds')}) AS ahead",
                            "workflow",
                            "message",
                            kinds="kind IN ('handoff.partial', 'handoff.early')",
                            where=FLOW,
                        ),
                        empty="Every output was announced, and none too early.",
                    ),
                ),
            ],
        ),
        Row(
            9,
            [
                (
                    14,
                    rows(
                        "Each lost update and torn read",
                        "Writes that undid another agent's, and values that never were true together.",
                        findings(
                            "kind",
                            f"{text('store')} AS store",
                            f"coalesce(nullIf({text('key')}, ''), {list_of('keys', ', ')}) AS key",
                            f"{list_of('writers', ', ')} AS writers",
                            f"{real('gap_seconds')} AS gap",
                            "workflow",
                            "message",
                            kinds="kind IN ('state.lost_update', 'state.torn_read')",
                            where=FLOW,
                        ),
                        empty="No update was lost, no read was torn.",
                    ),
                ),
                (
                    10,
                    rows(
                        "Stores and buses",
                        "What was written, read, published and delivered in this range, and how late.",
                        Sql(
                            f"""
                            SELECT store, kind, count() AS events, quantileExact(0.5)(duration_ms) AS p50,
                                quantileExact(0.99)(duration_ms) AS p99, quantileExact(0.99)(lag_ms) AS "lag p99"
                            FROM event FINAL WHERE $__timeFilter(at) AND store IS NOT NULL AND {FLOW}
                                AND kind IN ('write', 'read', 'publish', 'deliver')
                            GROUP BY store, kind ORDER BY events DESC LIMIT 100
                            """
                        ),
                        empty="No store or bus is watched here.",
                    ),
                ),
            ],
        ),
    ],
    variables=("cluster", "namespace", "workflow", "source", "target"),
)
