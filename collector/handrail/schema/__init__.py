"""Versioned JSON Schemas: which one applies to a payload, and whether the payload is valid. No file, no network."""

COMPATIBILITY_MODES = (
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
)
"""Who must be able to read whom: BACKWARD, a reader with the new version what was written with the old one."""

COMPATIBILITY_POLICIES = ("semantic", "confluent")
"""How that is decided: by what payloads there are, or by the list of changes that Confluent's registry allows."""
