-- Two more parts of what a handoff takes: how long Handrail took to read and judge it, and how long its bytes took.
ALTER TABLE {database}.event ADD COLUMN IF NOT EXISTS inspection_ms Nullable(Float64) COMMENT 'share of what was looked at together; beside the exchange, in overhead_ms only where it was held' AFTER overhead_ms;
ALTER TABLE {database}.event ADD COLUMN IF NOT EXISTS transfer_ms Nullable(Float64) COMMENT 'first to last byte of the request and of the reply: serialisation and transfer' AFTER inspection_ms;

CREATE OR REPLACE VIEW {database}.handoff AS
SELECT
    at, id, workflow, task, attempt, source, target, channel, protocol, operation, outcome, status, duration_ms, ttfb_ms,
    overhead_ms, inspection_ms, transfer_ms, payload_bytes, reply_bytes, tokens, subject, version, agent_version,
    confidence, side, kind, trace_id, span_id, digest, uninspected
FROM {database}.event FINAL
WHERE kind IN ('handoff', 'publish', 'deliver');

-- Handoffs that two sidecars saw: what the caller waited less what the target took is network and queueing, by whatever
-- clocks. Joined by trace and span id, else by workflow, task, attempt and both agents; a key that stands for several
-- handoffs joins none of them. `own_ms` and `between_ms` are NULL where not both ends were seen. Where they were,
-- `transfer_ms` is what the bytes took at the target, and part of `own_ms`.
CREATE OR REPLACE VIEW {database}.handoff_overhead AS
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
    if(joined OR left_count = 0, all_handrail_ms, left_handrail_ms) AS handrail_ms,
    if(joined, arrived_transfer_ms, if(left_count > 0, left_transfer_ms, any_transfer_ms)) AS transfer_ms,
    if(joined OR left_count = 0, all_inspection_ms, left_inspection_ms) AS inspection_ms,
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
        sum(h.overhead_ms) AS all_handrail_ms,
        sumIf(h.overhead_ms, h.side = 'egress') AS left_handrail_ms,
        maxIf(h.transfer_ms, h.side = 'egress') AS left_transfer_ms,
        maxIf(h.transfer_ms, h.side = 'ingress') AS arrived_transfer_ms,
        max(h.transfer_ms) AS any_transfer_ms,
        sum(h.inspection_ms) AS all_inspection_ms,
        sumIf(h.inspection_ms, h.side = 'egress') AS left_inspection_ms
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
CREATE OR REPLACE VIEW {database}.edge_overhead AS
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
    sum(o.handrail_ms) AS handrail_total_ms,
    quantileExact(0.5)(o.transfer_ms) AS transfer_p50_ms,
    quantileExact(0.99)(o.transfer_ms) AS transfer_p99_ms,
    sum(o.transfer_ms) AS transfer_total_ms,
    quantileExact(0.5)(o.inspection_ms) AS inspection_p50_ms,
    quantileExact(0.99)(o.inspection_ms) AS inspection_p99_ms,
    sum(o.inspection_ms) AS inspection_total_ms
FROM {database}.handoff_overhead AS o
WHERE o.at > now64(6) - INTERVAL 1 HOUR
GROUP BY o.source, o.target;

-- The last hour, workflow by workflow: how long it took, what was spent between agents, and how many of the possible
-- ways of interaction it used. `handrail report` adds the critical path.
CREATE OR REPLACE VIEW {database}.workflow_overhead AS
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
    sum(o.transfer_ms) AS transfer_total_ms,
    sum(o.inspection_ms) AS inspection_total_ms,
    uniqExactIf((o.source, o.target), o.source IS NOT NULL AND o.target IS NOT NULL AND o.source != o.target) AS paths_used,
    uniqExactArray(arrayFilter(name -> name != '', [ifNull(o.source, ''), ifNull(o.target, '')])) AS agents,
    agents * (agents - 1) AS paths_possible
FROM {database}.handoff_overhead AS o
WHERE o.workflow IS NOT NULL AND o.at > now64(6) - INTERVAL 1 HOUR
GROUP BY o.workflow;
