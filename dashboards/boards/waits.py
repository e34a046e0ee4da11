"""Who waits for whom, who goes round, and whose time is over?"""

from frame import FLOW, Board, C, Row, Sql, above, number, prom, rows, trend

from boards import counted, findings, list_of, over_time, real, text

KINDS = "(kind LIKE 'wait.%' OR kind LIKE 'budget.%' OR kind IN ('handoff.loop', 'graph.cycle', 'agent.unavailable'))"

# A wait that was declared and that no later fact of the same agent in the same workflow ended. A call that is open has
# no row until it is over: how many of those there are, Prometheus knows.
OPEN = f"""
    SELECT w.at AS began, dateDiff('second', w.at, now64(6)) AS waited, w.source AS source, w.target AS target,
        w.task AS task, w.workflow AS workflow
    FROM (SELECT * FROM event FINAL WHERE kind = 'wait' AND $__timeFilter(at) AND {FLOW}) AS w
    LEFT JOIN (
        SELECT ifNull(workflow, '') AS workflow, ifNull(source, '') AS source, max(event.at) AS ended
        FROM event FINAL WHERE kind = 'resume' AND $__timeFilter(event.at) GROUP BY workflow, source
    ) AS r ON ifNull(w.workflow, '') = r.workflow AND ifNull(w.source, '') = r.source
    WHERE r.ended < w.at
"""

BOARD = Board(
    "waits",
    "Deadlocks, waits that are open, loops without progress, deadlines that were missed.",
    [
        Row(
            4,
            [
                (
                    4,
                    number(
                        "Deadlocks",
                        "Rings of agents in this range that waited for each other.",
                        counted("kind = 'wait.deadlock'", FLOW),
                        thresholds=above(None, 1),
                    ),
                ),
                (
                    4,
                    number(
                        "Calls that wait now",
                        "Requests that passed a sidecar and have no reply yet.",
                        prom(f"sum(handrail_in_flight{{{C}}}) or vector(0)"),
                    ),
                ),
                (
                    4,
                    number(
                        "Declared waits without an end",
                        "Waits that agents declared in this range and that nothing has ended yet.",
                        Sql(f"SELECT count() AS waits FROM ({OPEN})"),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Loops",
                        "Times in this range that work went round among agents and nothing new came of it.",
                        counted("kind = 'handoff.loop'", FLOW),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Deadlines missed",
                        "Handoffs in this range that were not done within their deadline or budget.",
                        counted("kind = 'budget.exceeded'", FLOW),
                        thresholds=above(1, None),
                    ),
                ),
                (
                    4,
                    number(
                        "Against the declared graph",
                        "Handoffs in this range that close a cycle in a plan, or leave it.",
                        counted("kind = 'graph.cycle'", FLOW),
                        thresholds=above(1, None),
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
                        "Calls that wait",
                        "Requests without a reply yet, by sidecar. A line that rises and does not fall is something "
                        "stuck.",
                        prom(f"sum by (instance) (handrail_in_flight{{{C}}})", "{{instance}}"),
                        empty="No sidecar reports.",
                    ),
                ),
                (
                    12,
                    trend(
                        "Findings about waits, loops and budgets",
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
            8,
            [
                (
                    24,
                    rows(
                        "Each deadlock",
                        "The ring agent by agent, and the wait that is cheapest to break.",
                        findings(
                            f"{list_of('cycle')} AS ring",
                            f"concat({text('break.from')}, ' → ', {text('break.to')}) AS cheapest_to_break",
                            f"{real('break.cost.waited_seconds')} AS waited",
                            f"{list_of('also_in_knot', ', ')} AS also_stuck",
                            "workflow",
                            "message",
                            kinds="kind = 'wait.deadlock'",
                            where=FLOW,
                        ),
                        empty="No deadlock in this range.",
                    ),
                )
            ],
        ),
        Row(
            8,
            [
                (
                    12,
                    rows(
                        "Waits without an end",
                        "Declared waits that nothing has ended, the oldest first.",
                        Sql(f"{OPEN} ORDER BY began LIMIT 100"),
                        empty="Nobody has declared a wait that is still open.",
                    ),
                ),
                (
                    12,
                    rows(
                        "Handoffs that took longest",
                        "Waits that are over: the handoffs of this range by their duration.",
                        Sql(
                            f"""
                            SELECT at, source, target, task, outcome, duration_ms AS duration, workflow FROM handoff
                            WHERE $__timeFilter(at) AND {FLOW} AND duration_ms IS NOT NULL
                            ORDER BY duration_ms DESC LIMIT 50
                            """
                        ),
                        empty="No handoffs in this range.",
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
                        "Each loop",
                        "Who went round with whom, how often in all, and how often without anything new.",
                        findings(
                            f"{list_of('cycle')} AS ring",
                            f"{real('rounds')} AS rounds",
                            f"{real('without_progress')} AS without_progress",
                            f"{real('allowed')} AS allowed",
                            "workflow",
                            "message",
                            kinds="kind = 'handoff.loop'",
                            where=FLOW,
                        ),
                        empty="Nobody went round in this range.",
                    ),
                ),
                (
                    12,
                    rows(
                        "Each missed deadline",
                        "Whose time was over, how much they had, and who had said so.",
                        findings(
                            "source",
                            "target",
                            "task",
                            f"{real('budget_seconds')} AS budget",
                            f"{text('declared_by')} AS declared_by",
                            "workflow",
                            "message",
                            kinds="kind = 'budget.exceeded'",
                            where=FLOW,
                        ),
                        empty="Everything was done in time.",
                    ),
                ),
            ],
        ),
        Row(
            7,
            [
                (
                    24,
                    rows(
                        "Each step against the declared graph, and agents that do not answer",
                        "Cycles in a plan, handoffs that close one or that the plan does not know, targets that are "
                        "away.",
                        findings(
                            "kind",
                            f"{text('what')} AS what",
                            f"{list_of('cycle')} AS ring",
                            "source",
                            "target",
                            "workflow",
                            "message",
                            kinds="kind IN ('graph.cycle', 'agent.unavailable')",
                            where=FLOW,
                        ),
                        empty="Every handoff is in the plan, or there is none.",
                    ),
                )
            ],
        ),
    ],
    variables=("cluster", "namespace", "workflow", "source", "target"),
)
