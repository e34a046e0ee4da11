-- An agent that hands its caller's traceparent on as it came gives its own calls the same span: there the target tells
-- which two ends belong together.
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
        h.trace_id IS NOT NULL AND h.span_id IS NOT NULL, concat(
            's', ifNull(h.trace_id, ''), '-', ifNull(h.span_id, ''),
            if((ifNull(h.trace_id, ''), ifNull(h.span_id, '')) IN
            (
                SELECT ifNull(p.trace_id, ''), ifNull(p.span_id, '')
                FROM {database}.handoff AS p
                WHERE p.kind = 'handoff' AND p.duration_ms IS NOT NULL AND p.trace_id IS NOT NULL AND p.span_id IS NOT NULL
                GROUP BY p.trace_id, p.span_id
                HAVING hasAny(groupUniqArray(p.source), groupUniqArray(p.target))
            ), concat('-', ifNull(h.target, '')), '')),
        h.workflow IS NOT NULL AND h.task IS NOT NULL AND h.target IS NOT NULL,
        concat('t', toString(sipHash64(ifNull(h.workflow, ''), ifNull(h.task, ''), ifNull(h.attempt, -1), ifNull(h.source, ''), ifNull(h.target, '')))),
        concat('e', h.id))
);
