"""Is Handrail itself well, and what does it cost?"""

from frame import (
    BAD,
    BLUE,
    GOOD,
    PROMETHEUS,
    QUANTILES,
    RED,
    RESULTS,
    WARN,
    Board,
    C,
    Row,
    above,
    below,
    number,
    prom,
    quantiles,
    steps,
    trend,
)

SIDECAR = "{{instance}}"

BOARD = Board(
    "self",
    "What Handrail adds to handoffs, what it could not do, and whether what it sees arrives in ClickHouse.",
    [
        Row(
            4,
            [
                (
                    4,
                    number(
                        "Added to a handoff (p99)",
                        "Time that 99% of handoffs spend inside Handrail at most, both directions together.",
                        prom(
                            "histogram_quantile(0.99, sum by (le) "
                            f"(rate(handrail_handoff_overhead_seconds_bucket{{{C}}}[$__rate_interval])))"
                        ),
                        unit="s",
                        thresholds=above(0.002, 0.01),
                        empty="no handoffs",
                    ),
                ),
                (
                    4,
                    number(
                        "Ready",
                        "Share of the sidecars whose readiness check passes.",
                        prom(f"avg(handrail_ready{{{C}}})"),
                        unit="percentunit",
                        thresholds=below(1),
                        empty="no sidecar reports",
                    ),
                ),
                (
                    4,
                    number(
                        "ClickHouse",
                        "Whether every sidecar that records reached ClickHouse at its last attempt.",
                        prom(f"min(handrail_sink_up{{{C}}})"),
                        thresholds=below(1),
                        empty="not recorded",
                        words={0: ("away", BAD), 1: ("reached", GOOD)},
                    ),
                ),
                (
                    4,
                    number(
                        "Fullest queue",
                        "Rows that wait for ClickHouse, as a share of what may wait before rows are dropped.",
                        prom(f"max(handrail_sink_queue_rows{{{C}}} / handrail_sink_queue_limit_rows{{{C}}})"),
                        unit="percentunit",
                        thresholds=above(0.5, 0.8),
                        empty="not recorded",
                    ),
                ),
                (
                    4,
                    number(
                        "Rows given up",
                        "Records in this range that were dropped against the configuration's will.",
                        prom(
                            f'sum(increase(handrail_dropped_total{{{C}, intentional="false"}}[$__range])) or vector(0)'
                        ),
                        thresholds=above(None, 1),
                    ),
                ),
                (
                    4,
                    number(
                        "Rules switched off",
                        "Rules whose detector failed repeatedly.",
                        prom(f"sum(handrail_rules_off{{{C}}}) or vector(0)"),
                        thresholds=above(None, 1),
                    ),
                ),
            ],
        ),
        Row(
            7,
            [
                (
                    6,
                    trend(
                        "Added latency",
                        "What Handrail adds to half, 95% and 99% of handoffs at most.",
                        *quantiles("handrail_handoff_overhead_seconds", C),
                        colours=QUANTILES,
                        unit="s",
                        logarithmic=True,
                        empty="No handoffs here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Added latency by protocol (p99)",
                        "What costs time is what is read: each protocol and channel by itself.",
                        prom(
                            "histogram_quantile(0.99, sum by (le, channel, protocol) "
                            f"(rate(handrail_handoff_overhead_seconds_bucket{{{C}}}[$__rate_interval])))",
                            "{{protocol}} {{channel}}",
                        ),
                        unit="s",
                        logarithmic=True,
                        empty="No handoffs here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Time to inspect",
                        "What reading, validating and judging take for half, 95% and 99% of handoffs at most: beside "
                        "them, and part of what is added only where they are held.",
                        *quantiles("handrail_handoff_inspection_seconds", C),
                        colours=QUANTILES,
                        unit="s",
                        logarithmic=True,
                        empty="No handoffs here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Lag of the event loop",
                        "How late timers run. Much above 50 ms, a sidecar has more to do than one core can.",
                        prom(f"max by (instance) (handrail_loop_lag_seconds{{{C}}})", SIDECAR),
                        unit="s",
                        thresholds=steps((None, "transparent"), (0.05, WARN)),
                        empty="No sidecar reports.",
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
                        "Rows that wait for ClickHouse",
                        "The queue of all sidecars together, and the limit past which rows are dropped.",
                        prom(f"sum(handrail_sink_queue_rows{{{C}}})", "waiting"),
                        prom(f"sum(handrail_sink_queue_limit_rows{{{C}}})", "limit", ref="B"),
                        colours={"waiting": BLUE, "limit": RED},
                        empty="Nothing is recorded in ClickHouse.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Attempts to write",
                        "Batches by what became of the attempt: stored, busy (again later) or refused (something "
                        "must change).",
                        prom(
                            f"sum by (result) (rate(handrail_sink_batches_total{{{C}}}[$__rate_interval]))",
                            "{{result}}",
                        ),
                        colours=RESULTS,
                        unit="cps",
                        stacked=True,
                        empty="Nothing is recorded in ClickHouse.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Time to write a batch",
                        "Half, 95% and 99% of attempts are at least as quick.",
                        *quantiles("handrail_sink_write_seconds", C),
                        colours=QUANTILES,
                        unit="s",
                        empty="Nothing is recorded in ClickHouse.",
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
                        "What Handrail could not do",
                        "Faults by component and reason: each is a failure of Handrail's own that no exchange "
                        "suffered from.",
                        prom(
                            f"sum by (component, reason) (rate(handrail_faults_total{{{C}}}[$__rate_interval]))",
                            "{{component}}: {{reason}}",
                        ),
                        unit="cps",
                        stacked=True,
                        empty="No faults.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Not inspected",
                        "Messages that passed without being read, by reason: too large, compressed in an unknown "
                        "way, not JSON.",
                        prom(
                            f"sum by (reason) (rate(handrail_uninspected_total{{{C}}}[$__rate_interval]))", "{{reason}}"
                        ),
                        unit="cps",
                        stacked=True,
                        empty="Everything was inspected.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Records given up",
                        "Records that were dropped, by reason, and whether the configuration asked for it.",
                        prom(
                            f"sum by (reason, intentional) (rate(handrail_dropped_total{{{C}}}[$__rate_interval]))",
                            "{{reason}} (intended: {{intentional}})",
                        ),
                        unit="cps",
                        stacked=True,
                        empty="Nothing was given up.",
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
                        "Rows stored per second",
                        "Rows that ClickHouse confirmed, by table.",
                        prom(f"sum by (table) (rate(handrail_sink_rows_total{{{C}}}[$__rate_interval]))", "{{table}}"),
                        unit="rowsps",
                        empty="Nothing is recorded in ClickHouse.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Connections",
                        "Open client connections by sidecar.",
                        prom(f"sum by (instance) (handrail_connections{{{C}}})", SIDECAR),
                        empty="No sidecar reports.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Answered by Handrail",
                        "Requests that Handrail answered in place of the upstream, by reason: framing that is "
                        "ambiguous, "
                        "limits, rules in enforce mode.",
                        prom(f"sum by (reason) (rate(handrail_refused_total{{{C}}}[$__rate_interval]))", "{{reason}}"),
                        prom(
                            f"sum by (result) (rate(handrail_fallbacks_total{{{C}}}[$__rate_interval]))",
                            "fallback {{result}}",
                            ref="B",
                        ),
                        unit="reqps",
                        stacked=True,
                        empty="None.",
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
                        "Memory",
                        "Resident memory by sidecar.",
                        prom(
                            f"process_resident_memory_bytes{{{C}}} and on (instance) handrail_build_info{{{C}}}",
                            SIDECAR,
                        ),
                        unit="bytes",
                        empty="No sidecar reports.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Processor",
                        "Cores in use by sidecar; the data path uses one at most.",
                        prom(
                            f"rate(process_cpu_seconds_total{{{C}}}[$__rate_interval]) "
                            f"and on (instance) handrail_build_info{{{C}}}",
                            SIDECAR,
                        ),
                        unit="short",
                        thresholds=steps((None, "transparent"), (0.8, WARN)),
                        empty="No sidecar reports.",
                    ),
                ),
                (
                    8,
                    trend(
                        "Labels past their bound",
                        "Observations whose labels became `other`, by metric: raise `admin.label_sets`, or name "
                        "fewer agents.",
                        prom(
                            f"sum by (metric) (rate(handrail_metrics_label_overflow_total{{{C}}}[$__rate_interval]))",
                            "{{metric}}",
                        ),
                        unit="cps",
                        empty="Every label fits.",
                    ),
                ),
            ],
        ),
        Row(
            7,
            [
                (
                    6,
                    trend(
                        "Schemas",
                        "Subjects and versions in force, and versions of a followed registry that cannot be.",
                        prom(f"max(handrail_registry_subjects{{{C}}})", "subjects"),
                        prom(f"max(handrail_registry_versions{{{C}}})", "versions", ref="B"),
                        prom(f"max(handrail_registry_refused{{{C}}})", "refused", ref="C"),
                        empty="No schemas.",
                    ),
                ),
                (
                    6,
                    number(
                        "Registry that is followed",
                        "Whether the last attempt to reach the schema registry that is followed succeeded everywhere.",
                        prom(f"min(handrail_registry_up{{{C}}})"),
                        thresholds=below(1),
                        empty="none",
                        words={0: ("away", BAD), 1: ("reached", GOOD)},
                    ),
                ),
                (
                    6,
                    trend(
                        "Rules in force",
                        "Rules by sidecar, and how often a minute any of them fires.",
                        prom(f"max by (instance) (handrail_rules{{{C}}})", SIDECAR),
                        prom(
                            f"60 * sum(rate(handrail_findings_total{{{C}}}[$__rate_interval]))",
                            "findings a minute",
                            ref="B",
                        ),
                        empty="No sidecar reports.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Other events",
                        "Events that are not handoffs, by kind and protocol, and connections accepted.",
                        prom(
                            f"sum by (kind, protocol) (rate(handrail_events_total{{{C}}}[$__rate_interval]))",
                            "{{kind}} {{protocol}}",
                        ),
                        prom(
                            f"sum by (side) (rate(handrail_connections_total{{{C}}}[$__rate_interval]))",
                            "connections {{side}}",
                            ref="B",
                        ),
                        unit="cps",
                        empty="None.",
                    ),
                ),
            ],
        ),
        Row(
            7,
            [
                (
                    6,
                    trend(
                        "Traces that are sent",
                        "Spans by what became of them, and decisions that wait to become spans.",
                        prom(
                            f"sum by (result) (rate(handrail_trace_spans_total{{{C}}}[$__rate_interval]))", "{{result}}"
                        ),
                        prom(
                            f"max(handrail_trace_queue_events{{{C}}} / handrail_trace_queue_limit_events{{{C}}})",
                            "share of the queue",
                            ref="B",
                        ),
                        prom(f"1 - min(handrail_trace_up{{{C}}})", "receiver away", ref="C"),
                        empty="No traces are sent from here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "OTLP received and passed on",
                        "What agents send as OTLP, by signal and how it was answered, and what became of it.",
                        prom(
                            f"sum by (signal, result) (rate(handrail_otlp_requests_total{{{C}}}[$__rate_interval]))",
                            "{{signal}}: {{result}}",
                        ),
                        prom(
                            f"sum by (result) (rate(handrail_otlp_forwarded_total{{{C}}}[$__rate_interval]))",
                            "passed on: {{result}}",
                            ref="B",
                        ),
                        unit="reqps",
                        empty="No OTLP is received here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Alerts sent at once",
                        "Findings that go straight to Alertmanager or a webhook: how many are firing, how many "
                        "notices wait, and how many a minute were sent, by result.",
                        prom(
                            "60 * sum by (receiver, result) "
                            f"(rate(handrail_alerts_sent_total{{{C}}}[$__rate_interval]))",
                            "{{receiver}}: {{result}}",
                        ),
                        prom(f"sum(handrail_alerts_firing{{{C}}})", "firing", ref="B"),
                        prom(f"sum(handrail_alerts_waiting{{{C}}})", "waiting", ref="C"),
                        prom(f"1 - min(handrail_alerts_up{{{C}}})", "receiver away", ref="D"),
                        empty="No alerts are sent from here.",
                    ),
                ),
                (
                    6,
                    trend(
                        "Bytes that wait",
                        "Rows for ClickHouse and OTLP requests to pass on, in memory.",
                        prom(f"sum(handrail_sink_queue_bytes{{{C}}})", "for ClickHouse"),
                        prom(f"sum(handrail_otlp_queue_bytes{{{C}}})", "to pass on", ref="B"),
                        unit="bytes",
                        empty="Nothing waits.",
                    ),
                ),
            ],
        ),
    ],
    variables=("cluster", "namespace"),
    sources=(PROMETHEUS,),
)
