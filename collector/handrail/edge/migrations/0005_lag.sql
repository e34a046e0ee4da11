-- How long what was written took to be read, and what was published to arrive.
ALTER TABLE {database}.event ADD COLUMN IF NOT EXISTS lag_ms Nullable(Float64) COMMENT 'a first read since the write was acknowledged, a delivery since its publish' AFTER overhead_ms;

-- The last hour, store by store and subject by subject: what was written, read, published and delivered, and how long it
-- took. duration_ms is until the acknowledgement.
CREATE VIEW IF NOT EXISTS {database}.state_latency AS
SELECT
    store,
    kind,
    source,
    target,
    count() AS events,
    quantileExact(0.5)(duration_ms) AS acknowledged_p50_ms,
    quantileExact(0.99)(duration_ms) AS acknowledged_p99_ms,
    quantileExact(0.5)(lag_ms) AS lag_p50_ms,
    quantileExact(0.99)(lag_ms) AS lag_p99_ms
FROM {database}.event FINAL
WHERE kind IN ('write', 'read', 'publish', 'deliver') AND at > now64(6) - INTERVAL 1 HOUR
GROUP BY store, kind, source, target;
