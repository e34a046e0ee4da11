-- One row for each minute and edge, kept for 400 days, for ranges in which reading every event is too slow.
--
-- A materialized view adds up what is inserted, so a batch that is sent twice must not reach it twice: every insert
-- carries a token of its content and asks for deduplication in dependent views, and the window below is the last 10,000
-- inserts. Past that window `event FINAL` is still right and these sums are not; ask `handoff` where it must be exact.
CREATE TABLE IF NOT EXISTS {database}.edge_minute
(
    minute DateTime('UTC'),
    source LowCardinality(String),
    target LowCardinality(String),
    channel LowCardinality(String),
    protocol LowCardinality(String),
    outcome LowCardinality(String),
    handoffs SimpleAggregateFunction(sum, UInt64),
    payload_bytes SimpleAggregateFunction(sum, Int64),
    tokens SimpleAggregateFunction(sum, Int64),
    duration_ms AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), Float64),
    overhead_ms AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), Float64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (minute, source, target, channel, protocol, outcome)
TTL toDate(minute) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.edge_minute_feed TO {database}.edge_minute AS
SELECT
    toStartOfMinute(at) AS minute,
    ifNull(source, '') AS source,
    ifNull(target, '') AS target,
    ifNull(channel, '') AS channel,
    ifNull(protocol, '') AS protocol,
    outcome,
    count() AS handoffs,
    sum(ifNull(event.payload_bytes, 0)) AS payload_bytes,
    sum(ifNull(event.tokens, 0)) AS tokens,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(assumeNotNull(event.duration_ms), isNotNull(event.duration_ms)) AS duration_ms,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(assumeNotNull(event.overhead_ms), isNotNull(event.overhead_ms)) AS overhead_ms
FROM {database}.event AS event
WHERE kind IN ('handoff', 'publish', 'deliver')
GROUP BY minute, source, target, channel, protocol, outcome;

CREATE TABLE IF NOT EXISTS {database}.finding_minute
(
    minute DateTime('UTC'),
    rule LowCardinality(String),
    severity LowCardinality(String),
    source LowCardinality(String),
    target LowCardinality(String),
    findings SimpleAggregateFunction(sum, UInt64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (minute, rule, severity, source, target)
TTL toDate(minute) + INTERVAL 400 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.finding_minute_feed TO {database}.finding_minute AS
SELECT
    toStartOfMinute(at) AS minute,
    rule,
    severity,
    ifNull(source, '') AS source,
    ifNull(target, '') AS target,
    sum(count) AS findings
FROM {database}.finding
GROUP BY minute, rule, severity, source, target;
