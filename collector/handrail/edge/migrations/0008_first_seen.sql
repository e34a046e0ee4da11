-- When each edge, each schema version on it, and each version of an agent was seen for the first time and last.
--
-- Least and greatest are the same however often a row comes, so neither a batch that is sent twice nor this file run
-- twice changes them.
CREATE TABLE IF NOT EXISTS {database}.first_seen
(
    what LowCardinality(String) COMMENT 'edge, schema or agent',
    source LowCardinality(String),
    target LowCardinality(String),
    subject LowCardinality(String),
    version LowCardinality(String),
    first SimpleAggregateFunction(min, DateTime64(6, 'UTC')),
    latest SimpleAggregateFunction(max, DateTime64(6, 'UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY (what, source, target, subject, version)
TTL toDate(latest) + INTERVAL 400 DAY DELETE;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.first_seen_feed TO {database}.first_seen AS
SELECT
    seen.1 AS what,
    seen.2 AS source,
    seen.3 AS target,
    seen.4 AS subject,
    seen.5 AS version,
    min(at) AS first,
    max(at) AS latest
FROM
(
    SELECT at, arrayJoin([
        ('edge', ifNull(event.source, ''), ifNull(event.target, ''), '', ''),
        ('schema', ifNull(event.source, ''), ifNull(event.target, ''), ifNull(event.subject, ''), ifNull(event.version, '')),
        ('agent', ifNull(event.source, ''), '', '', ifNull(event.agent_version, ''))]) AS seen
    FROM {database}.event AS event
    WHERE event.kind IN ('handoff', 'publish', 'deliver')
)
WHERE (seen.1 = 'edge' AND (seen.2 != '' OR seen.3 != '')) OR (seen.1 = 'schema' AND seen.4 != '') OR (seen.1 = 'agent' AND seen.5 != '')
GROUP BY what, source, target, subject, version;

-- What was recorded before this table was there.
INSERT INTO {database}.first_seen
SELECT
    seen.1 AS what,
    seen.2 AS source,
    seen.3 AS target,
    seen.4 AS subject,
    seen.5 AS version,
    min(at) AS first,
    max(at) AS latest
FROM
(
    SELECT at, arrayJoin([
        ('edge', ifNull(event.source, ''), ifNull(event.target, ''), '', ''),
        ('schema', ifNull(event.source, ''), ifNull(event.target, ''), ifNull(event.subject, ''), ifNull(event.version, '')),
        ('agent', ifNull(event.source, ''), '', '', ifNull(event.agent_version, ''))]) AS seen
    FROM {database}.event AS event
    WHERE event.kind IN ('handoff', 'publish', 'deliver')
)
WHERE (seen.1 = 'edge' AND (seen.2 != '' OR seen.3 != '')) OR (seen.1 = 'schema' AND seen.4 != '') OR (seen.1 = 'agent' AND seen.5 != '')
GROUP BY what, source, target, subject, version;

-- What is new: edges, schema versions, versions of agents, and findings that were not there before.
CREATE VIEW IF NOT EXISTS {database}.change AS
SELECT
    min(first) AS at,
    multiIf(what = 'edge', 'new edge', what = 'schema', 'new schema version', 'new agent version') AS change,
    '' AS severity,
    source,
    target,
    multiIf(what = 'edge', concat(source, ' → ', target), what = 'schema', concat(subject, '@', version), concat(source, ' ', version)) AS detail
FROM {database}.first_seen
GROUP BY what, source, target, subject, version
UNION ALL
SELECT
    min(finding.at) AS at,
    'new finding' AS change,
    argMax(finding.severity, finding.at) AS severity,
    ifNull(argMax(finding.source, finding.at), '') AS source,
    ifNull(argMax(finding.target, finding.at), '') AS target,
    concat(rule, ': ', argMax(finding.message, finding.at)) AS detail
FROM {database}.finding AS finding
GROUP BY fingerprint, rule;
