-- Whether the target of a handoff goes on in place of its source, or answers it.
ALTER TABLE {database}.event ADD COLUMN IF NOT EXISTS manner LowCardinality(Nullable(String)) AFTER chain;
