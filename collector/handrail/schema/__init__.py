"""Versioned JSON Schemas: which one applies to a payload, and whether the payload is valid. No file, no network."""
