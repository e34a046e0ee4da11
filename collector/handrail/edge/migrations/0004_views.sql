-- What a person asks. FINAL, so that a row that was sent twice is one row.
CREATE VIEW IF NOT EXISTS {database}.handoff AS
SELECT
    at, id, workflow, task, attempt, source, target, channel, protocol, operation, outcome, status, duration_ms, ttfb_ms,
    overhead_ms, payload_bytes, reply_bytes, tokens, subject, version, agent_version, confidence, side, kind, trace_id,
    span_id, digest, uninspected
FROM {database}.event FINAL
WHERE kind IN ('handoff', 'publish', 'deliver');

-- The last hour, edge by edge. An error is a handoff that did not do what was asked; `rejected` is one of them.
CREATE VIEW IF NOT EXISTS {database}.edge_latency AS
SELECT
    source,
    target,
    channel,
    protocol,
    count() AS handoffs,
    countIf(outcome IN ('failed', 'rejected', 'dropped', 'timeout', 'interrupted')) AS errors,
    quantileExact(0.5)(duration_ms) AS p50_ms,
    quantileExact(0.95)(duration_ms) AS p95_ms,
    quantileExact(0.99)(duration_ms) AS p99_ms,
    quantileExact(0.5)(overhead_ms) AS overhead_p50_ms,
    quantileExact(0.99)(overhead_ms) AS overhead_p99_ms,
    min(at) AS first,
    max(at) AS latest
FROM {database}.handoff
WHERE at > now64(6) - INTERVAL 1 HOUR
GROUP BY source, target, channel, protocol;

-- A thousand repeats are one line.
CREATE VIEW IF NOT EXISTS {database}.finding_group AS
SELECT
    fingerprint,
    rule,
    any(kind) AS kind,
    argMax(finding.severity, finding.at) AS severity,
    argMax(finding.source, finding.at) AS source,
    argMax(finding.target, finding.at) AS target,
    argMax(finding.subject, finding.at) AS subject,
    argMax(finding.version, finding.at) AS version,
    argMax(finding.side, finding.at) AS side,
    argMax(finding.message, finding.at) AS message,
    sum(finding.count) AS occurrences,
    min(finding.at) AS first,
    max(finding.at) AS latest
FROM {database}.finding AS finding FINAL
GROUP BY fingerprint, rule;
