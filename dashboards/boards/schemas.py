"""Do payloads say what was agreed, and since when not?"""

from frame import BAD, EDGE, GOOD, Board, C, Row, Sql, above, below, number, prom, rows, trend

from boards import counted, findings, over_time, text

KINDS = "kind LIKE 'schema.%'"

BOARD = Board(
    "schemas",
    "Violations, drift and mismatches, the versions in use, and the registry.",
    [
        Row(
            4,
            [
                (
                    4,
                    number(
                        "Violations",
                        "Payloads in this range that their schema does not admit.",
                        counted("kind = 'schema.violation'"),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Drift",
                        "Payloads in this range that hold what this sender never sent before, though valid.",
                        counted("kind = 'schema.drift'"),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Unknown",
                        "Handoffs in this range that name a subject or a version that is not registered.",
                        counted("kind = 'schema.unknown'"),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Mismatches",
                        "Handoffs in this range whose target reads a version that does not admit what is written.",
                        counted("kind = 'schema.mismatch'"),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Schema versions in force",
                        "Versions that the sidecar with most of them validates against.",
                        prom(f"max(handrail_registry_versions{{{C}}}) or vector(0)"),
                        thresholds=below(1),
                    ),
                ),
                (
                    4,
                    number(
                        "Schema directory",
                        "Whether the last change of a schema directory could be put in force everywhere.",
                        prom(f"min(handrail_registry_valid{{{C}}})"),
                        thresholds=below(1),
                        empty="none",
                        words={0: ("a file is wrong", BAD), 1: ("in force", GOOD)},
                    ),
                ),
            ],
        ),
        Row(
            7,
            [
                (
                    12,
                    trend(
                        "Findings about schemas",
                        "Occurrences in each interval, by kind.",
                        over_time(KINDS),
                        bars=True,
                        stacked=True,
                        empty="Every payload was as agreed.",
                    ),
                ),
                (
                    12,
                    trend(
                        "Versions in use",
                        "Handoffs in each interval by schema version: a roll-out is one line that takes over from "
                        "another.",
                        Sql(
                            f"""
                            SELECT $__timeInterval(at) AS time,
                                concat(ifNull(subject, ''), '@', ifNull(version, '?')) AS schema,
                                count() AS handoffs
                            FROM handoff WHERE $__timeFilter(at) AND {EDGE} AND subject IS NOT NULL
                            GROUP BY time, schema ORDER BY time
                            """,
                            "timeseries",
                        ),
                        stacked=True,
                        empty="No handoff named a schema.",
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
                        "What drifted",
                        "Which place in a payload changed how, from what to what, since when, and with which version "
                        "of the "
                        "sender.",
                        findings(
                            "source",
                            "target",
                            "subject",
                            f"{text('path')} AS path",
                            f"{text('change')} AS change",
                            f"{text('old')} AS old",
                            f"{text('new')} AS new",
                            f"{text('agent_version')} AS agent_version",
                            "workflow",
                            "message",
                            kinds="kind = 'schema.drift'",
                        ),
                        empty="Nothing drifted in this range.",
                    ),
                )
            ],
        ),
        Row(
            9,
            [
                (
                    14,
                    rows(
                        "What violates its schema",
                        "Places in payloads that their schema does not admit, the most frequent first.",
                        Sql(
                            f"""
                            SELECT max(f.at) AS latest, argMax(f.severity, f.at) AS severity, f.subject AS subject,
                                f.version AS version, {text("path").replace("evidence", "f.evidence")} AS path,
                                sum(f.count) AS occurrences, f.source AS source, f.target AS target,
                                argMax(f.message, f.at) AS message
                            FROM (SELECT * FROM finding FINAL
                                  WHERE $__timeFilter(at) AND kind = 'schema.violation' AND {EDGE}) AS f
                            GROUP BY f.subject, f.version, path, f.source, f.target ORDER BY occurrences DESC LIMIT 100
                            """
                        ),
                        empty="Every payload was valid.",
                    ),
                ),
                (
                    10,
                    rows(
                        "Unknown and mismatched",
                        "Versions that nobody registered, and versions that the target does not read.",
                        findings(
                            "kind",
                            "subject",
                            "version",
                            f"{text('reads')} AS reads",
                            "source",
                            "target",
                            "message",
                            kinds="kind IN ('schema.unknown', 'schema.mismatch')",
                        ),
                        empty="Every version is known and read.",
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
                        "Since when each version is in use",
                        "Schema versions that were seen in this range, with the first sight of each at all.",
                        Sql(
                            f"""
                            SELECT subject, version, source, target, min(s.first) AS first, max(s.latest) AS latest
                            FROM first_seen AS s WHERE what = 'schema' AND {EDGE}
                            GROUP BY subject, version, source, target
                            HAVING latest >= $__fromTime ORDER BY first DESC LIMIT 100
                            """
                        ),
                        empty="No handoff named a schema.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Requests to the registry",
                        "What clients ask of the schema registry that a sidecar serves, by status.",
                        prom(
                            f"sum by (status) (rate(handrail_registry_requests_total{{{C}}}[$__rate_interval]))",
                            "{{status}}",
                        ),
                        unit="reqps",
                        empty="No registry is served here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Age of schemas",
                        "Time since the schemas in force were known to be those of the registry that is followed.",
                        prom(f"max(handrail_registry_age_seconds{{{C}}})", "age"),
                        unit="s",
                        empty="No registry is followed here.",
                    ),
                ),
            ],
        ),
    ],
)
