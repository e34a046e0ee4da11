"""How much context is carried around, what of it is needless, and what got lost on the way?"""

from frame import FLOW, QUANTILES, WARN, Board, E, Row, Sql, above, number, prom, quantiles, rows, steps, trend

from boards import counted, findings, over_time, real, text

KINDS = "kind LIKE 'context.%'"
PRICED = "sum(e.tokens) * toFloat64OrNull(${price:singlequote}) / 1000000"
CALLS = f"(SELECT * FROM event FINAL WHERE $__timeFilter(at) AND kind = 'usage' AND {FLOW}) AS e"

BOARD = Board(
    "context",
    "Tokens and bytes that handoffs carry, what models were asked, and context that grows, repeats or is lost.",
    [
        Row(
            4,
            [
                (
                    4,
                    number(
                        "Tokens handed over",
                        "Tokens of context in this range, where payloads say how many.",
                        Sql(
                            "SELECT sum(tokens) AS total FROM handoff "
                            f"WHERE $__timeFilter(at) AND {FLOW} AND tokens IS NOT NULL"
                        ),
                    ),
                ),
                (
                    4,
                    number(
                        "Cost of calls of models",
                        "Tokens of the calls of models in this range, times the price that was given above.",
                        Sql(f"SELECT {PRICED} AS cost FROM {CALLS}"),
                        empty="give a price",
                        decimals=2,
                    ),
                ),
                (
                    4,
                    number(
                        "Bytes per second",
                        "Size of what is handed over now.",
                        prom(f"sum(rate(handrail_payload_bytes_sum{{{E}}}[$__rate_interval])) or vector(0)"),
                        unit="Bps",
                    ),
                ),
                (
                    4,
                    number(
                        "Context that grows",
                        "Findings in this range that a workflow's context will not fit its model's window for long.",
                        counted("kind = 'context.growth'", FLOW),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Context that is repeated",
                        "Handoffs in this range that mostly forward what was forwarded before.",
                        counted("kind = 'context.forwarded'", FLOW),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Context that was lost",
                        "Goals, constraints and decisions that did not arrive any more in this range.",
                        counted("kind = 'context.lost'", FLOW),
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
                        "Tokens per handoff",
                        "Quantiles of what one handoff carries; the line is at 100,000, near the end of many models' "
                        "windows.",
                        *quantiles("handrail_context_tokens", E),
                        colours=QUANTILES,
                        thresholds=steps((None, "transparent"), (100_000, WARN)),
                        empty="No payload says its tokens.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Tokens per second by sender",
                        "The ten agents that hand over most.",
                        prom(
                            f"topk(10, sum by (source) (rate(handrail_context_tokens_sum{{{E}}}[$__rate_interval])))",
                            "{{source}}",
                        ),
                        stacked=True,
                        empty="No payload says its tokens.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Findings about context",
                        "Occurrences in each interval, by kind.",
                        over_time(KINDS, where=FLOW),
                        bars=True,
                        stacked=True,
                        empty="Nothing was found.",
                    ),
                ),
            ],
        ),
        Row(
            9,
            [
                (
                    12,
                    rows(
                        "Workflows that carry most",
                        "Tokens and bytes of the workflows of this range, the heaviest first.",
                        Sql(
                            f"""
                            SELECT workflow, count() AS handoffs, sum(h.tokens) AS tokens, max(h.tokens) AS most,
                                sum(payload_bytes) AS bytes, min(at) AS first, max(at) AS latest
                            FROM handoff AS h WHERE $__timeFilter(at) AND workflow IS NOT NULL AND {FLOW}
                            GROUP BY workflow ORDER BY tokens DESC NULLS LAST, bytes DESC LIMIT 100
                            """
                        ),
                        empty="No workflow in this range.",
                    ),
                ),
                (
                    12,
                    rows(
                        "Calls of models",
                        "Who asked which model interface how often, and for how many tokens.",
                        Sql(
                            f"""
                            SELECT e.source AS source, e.target AS target, e.protocol AS protocol,
                                e.operation AS operation, count() AS calls, sum(e.tokens) AS tokens, {PRICED} AS cost,
                                quantileExact(0.95)(e.duration_ms) AS p95
                            FROM {CALLS} GROUP BY e.source, e.target, e.protocol, e.operation
                            ORDER BY calls DESC LIMIT 100
                            """
                        ),
                        empty="No call of a model was seen.",
                    ),
                ),
            ],
        ),
        Row(
            9,
            [
                (
                    12,
                    rows(
                        "Each growing context",
                        "How many tokens it is, by how many it grows with each hop, and how many hops are left.",
                        findings(
                            f"{real('tokens')} AS tokens",
                            f"{real('growth_per_hop')} AS per_hop",
                            f"{real('hops_left')} AS hops_left",
                            f"{text('model')} AS model",
                            f"{real('window')} AS window",
                            "source",
                            "target",
                            "workflow",
                            "message",
                            kinds="kind = 'context.growth'",
                            where=FLOW,
                        ),
                        empty="No context grows towards its window.",
                    ),
                ),
                (
                    12,
                    rows(
                        "Each repetition",
                        "Handoffs that mostly repeat an earlier one, and by what share.",
                        findings(
                            f"{real('share')} AS share",
                            f"{real('words')} AS words",
                            "source",
                            "target",
                            "workflow",
                            "message",
                            kinds="kind = 'context.forwarded'",
                            where=FLOW,
                        ),
                        empty="Nothing was repeated.",
                    ),
                ),
            ],
        ),
        Row(
            8,
            [
                (
                    24,
                    rows(
                        "Each loss of context",
                        "Which goal, constraint or decision did not arrive, and between whom it was lost.",
                        findings(
                            f"{text('path')} AS path",
                            "source",
                            "target",
                            "workflow",
                            "message",
                            kinds="kind = 'context.lost'",
                            where=FLOW,
                        ),
                        empty="Nothing got lost.",
                    ),
                )
            ],
        ),
    ],
    variables=("cluster", "namespace", "workflow", "source", "target", "price"),
)
