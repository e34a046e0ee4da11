-- What is wrong in the system that is watched. Columns are the fields of handrail.event.Finding under the same names.
--
-- A finding has no id of its own; its moment, rule and fingerprint are one, and message and evidence tell apart what one
-- rule found twice at the same instant.
CREATE TABLE IF NOT EXISTS {database}.finding
(
    rule LowCardinality(String),
    kind LowCardinality(String),
    severity LowCardinality(String),
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    event Nullable(String),
    events Array(String),
    workflow Nullable(String),
    task Nullable(String),
    source LowCardinality(Nullable(String)),
    target LowCardinality(Nullable(String)),
    subject LowCardinality(Nullable(String)),
    version LowCardinality(Nullable(String)),
    side LowCardinality(String) DEFAULT 'unknown',
    message String,
    evidence String DEFAULT '{}' CODEC(ZSTD(3)) COMMENT 'JSON',
    fingerprint String,
    count UInt64 DEFAULT 1,
    written_at DateTime64(3, 'UTC') DEFAULT now64(3),
    INDEX by_workflow workflow TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_fingerprint fingerprint TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toDate(at)
ORDER BY (at, rule, fingerprint, ifNull(event, ''), sipHash64(message, evidence))
TTL toDate(at) + INTERVAL {ttl_days} DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;
