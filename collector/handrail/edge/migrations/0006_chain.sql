-- The agents that the work came through before this handoff.
ALTER TABLE {database}.event ADD COLUMN IF NOT EXISTS chain Nullable(String) AFTER uninspected;
