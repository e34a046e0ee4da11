-- Handoffs that two sidecars saw: what the caller waited less what the target took is network and queueing, by whatever
-- clocks. Joined by trace and span id, else by workflow, task, attempt and both agents; a key that stands for several
-- handoffs joins none of them. `own_ms` and `between_ms` are NULL where not both ends were seen.
CREATE VIEW IF NOT EXISTS {database}.handoff_overhead AS
SELECT
    if(left_count > 0, left_at, any_at) AS at,
    if(left_count > 0, left_id, any_id) AS id,
    workflow,
    task,
    source,
    target,
    left_count = 1 AND arrived_count = 1 AND left_ms >= arrived_ms - 0.05 AS joined,
    multiIf(left_count = 1, left_ms, left_count > 1 OR arrived_count > 1, most_ms, any_ms) AS total_ms,
    if(joined, arrived_ms, NULL) AS own_ms,
    if(joined, greatest(left_ms - arrived_ms, 0), NULL) AS between_ms,
    handrail_ms,
    greatest(left_count, arrived_count, 1) AS handoffs
FROM
(
    SELECT
        any(h.workflow) AS workflow,
        any(h.task) AS task,
        any(h.source) AS source,
        any(h.target) AS target,
        countIf(h.side = 'egress') AS left_count,
        countIf(h.side = 'ingress') AS arrived_count,
        minIf(h.at, h.side = 'egress') AS left_at,
        min(h.at) AS any_at,
        argMinIf(h.id, h.at, h.side = 'egress') AS left_id,
        argMin(h.id, h.at) AS any_id,
        maxIf(h.duration_ms, h.side = 'egress') AS left_ms,
        maxIf(h.duration_ms, h.side = 'ingress') AS arrived_ms,
        max(h.duration_ms) AS most_ms,
        any(h.duration_ms) AS any_ms,
        sum(h.overhead_ms) AS handrail_ms
    FROM {database}.handoff AS h
    WHERE h.kind = 'handoff' AND h.duration_ms IS NOT NULL
    GROUP BY multiIf(
        h.side IS NULL, concat('e', h.id),
        h.trace_id IS NOT NULL AND h.span_id IS NOT NULL, concat('s', ifNull(h.trace_id, ''), '-', ifNull(h.span_id, '')),
        h.workflow IS NOT NULL AND h.task IS NOT NULL AND h.target IS NOT NULL,
        concat('t', toString(sipHash64(ifNull(h.workflow, ''), ifNull(h.task, ''), ifNull(h.attempt, -1), ifNull(h.source, ''), ifNull(h.target, '')))),
        concat('e', h.id))
);

-- The last hour, edge by edge: what was spent between two agents, and what the target took itself.
CREATE VIEW IF NOT EXISTS {database}.edge_overhead AS
SELECT
    o.source AS source,
    o.target AS target,
    sum(o.handoffs) AS handoff_count,
    countIf(o.joined) AS joined_count,
    quantileExactIf(0.5)(o.total_ms, o.joined) AS total_p50_ms,
    quantileExactIf(0.5)(o.own_ms, o.joined) AS own_p50_ms,
    quantileExactIf(0.5)(o.between_ms, o.joined) AS between_p50_ms,
    quantileExactIf(0.99)(o.between_ms, o.joined) AS between_p99_ms,
    sum(o.between_ms) AS between_total_ms,
    sum(o.handrail_ms) AS handrail_total_ms
FROM {database}.handoff_overhead AS o
WHERE o.at > now64(6) - INTERVAL 1 HOUR
GROUP BY o.source, o.target;

-- The last hour, workflow by workflow: how long it took, what was spent between agents, and how many of the possible
-- ways of interaction it used. `handrail report` adds the critical path.
CREATE VIEW IF NOT EXISTS {database}.workflow_overhead AS
SELECT
    o.workflow AS workflow,
    sum(o.handoffs) AS handoff_count,
    countIf(o.joined) AS joined_count,
    min(o.at) AS first,
    max(addMicroseconds(o.at, toInt64(ifNull(o.total_ms, 0) * 1000))) AS latest,
    dateDiff('microsecond', first, latest) / 1000 AS span_ms,
    sum(o.total_ms) AS handoff_ms,
    sum(o.between_ms) AS between_total_ms,
    sum(o.between_ms) / nullIf(sumIf(o.total_ms, o.joined), 0) AS between_share,
    sum(o.handrail_ms) AS handrail_total_ms,
    uniqExactIf((o.source, o.target), o.source IS NOT NULL AND o.target IS NOT NULL AND o.source != o.target) AS paths_used,
    uniqExactArray(arrayFilter(name -> name != '', [ifNull(o.source, ''), ifNull(o.target, '')])) AS agents,
    agents * (agents - 1) AS paths_possible
FROM {database}.handoff_overhead AS o
WHERE o.workflow IS NOT NULL AND o.at > now64(6) - INTERVAL 1 HOUR
GROUP BY o.workflow;
