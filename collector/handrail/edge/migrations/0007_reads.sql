-- The versions that the target of a handoff says it reads.
ALTER TABLE {database}.event ADD COLUMN IF NOT EXISTS reads LowCardinality(Nullable(String)) AFTER uninspected;
