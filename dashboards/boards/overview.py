"""Is all well, and if not: where?"""

from frame import (
    BAD,
    EDGE,
    ERRORS,
    GOOD,
    OUTCOMES,
    QUANTILES,
    SEVERITIES,
    WARN,
    Board,
    C,
    E,
    Row,
    Sql,
    above,
    graph,
    heat,
    number,
    prom,
    quantiles,
    rows,
    steps,
    trend,
)

from boards import IS_ERROR, counted, graph_edges, graph_nodes

# The rollups: a graph over a month costs no more than one over an hour, for they hold a row for each minute and edge.
HANDOFFS = f"""
    SELECT source, target, sum(edge_minute.handoffs) AS handoffs, sumIf(edge_minute.handoffs, {IS_ERROR}) AS errors,
        ifNotFinite(quantilesTDigestMerge(0.5, 0.95, 0.99)(duration_ms)[2], 0) AS p95
    FROM edge_minute WHERE $__timeFilter(minute) AND source != '' AND target != '' AND {EDGE} GROUP BY source, target
"""
FOUND = f"""
    SELECT source, target, sumIf(findings, severity = 'critical') AS critical,
        sumIf(findings, severity = 'warning') AS warnings
    FROM finding_minute WHERE $__timeFilter(minute) AND {EDGE} GROUP BY source, target
"""

BOARD = Board(
    "overview",
    "All handoffs at once: how many, how well, how fast, between whom, and what changed lately.",
    [
        Row(
            4,
            [
                (
                    4,
                    number(
                        "Handoffs per second",
                        "Handoffs that sidecars see now, over all edges chosen above.",
                        prom(f"sum(rate(handrail_handoffs_total{{{E}}}[$__rate_interval])) or vector(0)"),
                        unit="reqps",
                        link="edge",
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
                        link="edge",
                    ),
                ),
                (
                    4,
                    number(
                        "Slowest twentieth (p95)",
                        "95% of handoffs take no longer, from the first byte of the request to the last of the reply.",
                        prom(
                            "histogram_quantile(0.95, sum by (le) "
                            f"(rate(handrail_handoff_duration_seconds_bucket{{{E}}}[$__rate_interval])))"
                        ),
                        unit="s",
                        thresholds=above(10, 60),
                        empty="no handoffs",
                        link="edge",
                    ),
                ),
                (
                    4,
                    number(
                        "Critical findings",
                        "Occurrences in this range of findings with severity critical.",
                        counted("severity = 'critical'"),
                        thresholds=above(None, 1),
                        link="state",
                    ),
                ),
                (
                    4,
                    number(
                        "Warnings",
                        "Occurrences in this range of findings with severity warning.",
                        counted("severity = 'warning'"),
                        thresholds=above(1, None),
                        link="schemas",
                    ),
                ),
                (
                    4,
                    number(
                        "Sidecars that report",
                        "Sidecars whose metrics Prometheus scraped last time.",
                        prom(f"count(handrail_build_info{{{C}}}) or vector(0)"),
                        thresholds=steps((None, BAD), (1, GOOD)),
                        link="self",
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
                        "Handoffs per second by outcome",
                        "What became of the handoffs. Rejected ones were answered with a refusal by the target or by "
                        "a rule.",
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
                    8,
                    trend(
                        "Findings per second by severity",
                        "How often rules fire on the edges chosen above, by how bad it is.",
                        prom(
                            f"sum by (severity) (rate(handrail_edge_findings_total{{{E}}}[$__rate_interval]))",
                            "{{severity}}",
                        ),
                        colours=SEVERITIES,
                        unit="cps",
                        stacked=True,
                        empty="No findings: no rule has fired.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Edges with most errors",
                        "Share of handoffs that went wrong, the five worst edges; the line is at 5%.",
                        prom(
                            f"topk(5, sum by (source, target) "
                            f"(rate(handrail_handoffs_total{{{E}, {ERRORS}}}[$__rate_interval])) "
                            f"/ sum by (source, target) (rate(handrail_handoffs_total{{{E}}}[$__rate_interval])))",
                            "{{source}} → {{target}}",
                        ),
                        unit="percentunit",
                        thresholds=steps((None, "transparent"), (0.05, WARN)),
                        empty="No errors on any edge.",
                    ),
                ),
            ],
        ),
        Row(
            8,
            [
                (
                    12,
                    heat(
                        "Latency of handoffs",
                        "How many handoffs took how long. Two bands are two kinds of work, or one that sometimes "
                        "waits.",
                        prom(
                            f"sum by (le) "
                            f"(increase(handrail_handoff_duration_seconds_bucket{{{E}}}[$__rate_interval]))",
                            "{{le}}",
                            heat=True,
                        ),
                    ),
                ),
                (
                    12,
                    trend(
                        "Latency quantiles",
                        "The same as lines: half, 95% and 99% of handoffs are at least as quick.",
                        *quantiles("handrail_handoff_duration_seconds", E),
                        colours=QUANTILES,
                        unit="s",
                        empty="No handoffs here.",
                    ),
                ),
            ],
        ),
        Row(
            14,
            [
                (
                    12,
                    graph(
                        "Who hands over to whom",
                        "Agents and their edges. An edge is blue and healthy, orange with warnings or some errors, "
                        "vermilion "
                        "with critical findings or more than 5% errors; it says which when pointed at. Click for the "
                        "details.",
                        graph_nodes(HANDOFFS),
                        graph_edges(HANDOFFS, FOUND),
                        empty="No handoffs between named agents in this range.",
                    ),
                ),
                (
                    12,
                    rows(
                        "What changed lately",
                        "First sights in this range: edges, schema versions, versions of agents, findings.",
                        Sql(
                            "SELECT at, change, severity, detail, source, target FROM change "
                            f"WHERE $__timeFilter(at) AND {EDGE} ORDER BY at DESC LIMIT 100"
                        ),
                        empty="Nothing new in this range.",
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
                        "Findings",
                        "A line for each finding, however often it occurred; the latest first.",
                        Sql(
                            "SELECT max(f.at) AS latest, argMax(f.severity, f.at) AS severity, f.rule AS rule, "
                            "argMax(f.source, f.at) AS source, argMax(f.target, f.at) AS target, sum(f.count) AS "
                            "occurrences, "
                            "argMax(f.workflow, f.at) AS workflow, argMax(f.message, f.at) AS message "
                            f"FROM (SELECT * FROM finding FINAL WHERE $__timeFilter(at) AND {EDGE}) AS f "
                            "GROUP BY f.fingerprint, f.rule ORDER BY latest DESC LIMIT 200"
                        ),
                        empty="No findings in this range.",
                    ),
                )
            ],
        ),
    ],
)
