-- Facts, one row each. Columns are the fields of handrail.event.Event under the same names; absent is NULL.
--
-- ORDER BY (at, id): `at` first keeps the batches of one moment apart from those of every other, so that FINAL has to
-- merge only what was written in the same seconds; `id` makes a row that was sent twice the same row. A workflow is
-- found by its Bloom filter: its events lie close together in time, so nearly every granule is skipped.
CREATE TABLE IF NOT EXISTS {database}.event
(
    kind LowCardinality(String),
    id String,
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    workflow Nullable(String),
    task Nullable(String),
    attempt Nullable(Int64),
    source LowCardinality(Nullable(String)),
    target LowCardinality(Nullable(String)),
    channel LowCardinality(Nullable(String)),
    protocol LowCardinality(Nullable(String)),
    operation LowCardinality(Nullable(String)),
    outcome LowCardinality(String) DEFAULT 'unknown',
    confidence LowCardinality(Nullable(String)),
    side LowCardinality(Nullable(String)),
    subject LowCardinality(Nullable(String)),
    version LowCardinality(Nullable(String)),
    payload Nullable(String) CODEC(ZSTD(3)) COMMENT 'JSON; only where payloads are stored',
    payload_bytes Nullable(Int64),
    digest Nullable(String),
    tokens Nullable(Int64),
    status LowCardinality(Nullable(String)) COMMENT 'as text: an HTTP status, or a code of the protocol',
    duration_ms Nullable(Float64),
    ttfb_ms Nullable(Float64),
    overhead_ms Nullable(Float64),
    reply Nullable(String) CODEC(ZSTD(3)) COMMENT 'JSON; only where payloads are stored',
    reply_bytes Nullable(Int64),
    store LowCardinality(Nullable(String)),
    key Nullable(String),
    state_version Nullable(String) COMMENT 'as text: a number or an ETag',
    agent_version LowCardinality(Nullable(String)),
    trace_id Nullable(String),
    span_id Nullable(String),
    deadline Nullable(DateTime64(6, 'UTC')),
    uninspected LowCardinality(Nullable(String)),
    written_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'by the clock of ClickHouse, where `at` is by the sidecar''s',
    INDEX by_workflow workflow TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toDate(at)
ORDER BY (at, id)
TTL toDate(at) + INTERVAL {ttl_days} DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;
