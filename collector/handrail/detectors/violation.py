"""A payload that its schema does not allow becomes one finding that lists where."""

from collections.abc import Iterable
from typing import ClassVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, between, finding
from handrail.detectors.params import ViolationParams
from handrail.event import Event, Finding
from handrail.schema.registry import Registry, Violation
from handrail.wire.body import MALFORMED, REASONS

_TAKEN = frozenset({"read", "deliver"})
"""Kinds of what an agent takes; such a payload is the reader's to refuse."""


class SchemaViolation:
    """The payload is not what the schema of its subject and version says, or is not JSON at all.

    Judges with the version that the sender named; a version that is not registered is `schema.unknown`'s.
    """

    kind: ClassVar[str] = "schema.violation"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first"})
    Params: ClassVar[type[msgspec.Struct]] = ViolationParams

    def __init__(self, rule: Rule, params: ViolationParams, registry: Registry) -> None:
        self._rule, self._limit, self._registry = rule, params.violations, registry

    def observe(self, event: Event) -> Iterable[Finding]:
        reason = event.uninspected
        if reason is None or reason not in MALFORMED or event.kind != "handoff":
            if event.payload is None:
                return NOTHING
            schema = self._registry.schema(event.subject, event.version)
            if schema is None or schema.is_valid(event.payload):
                return NOTHING
            return self._found(event, schema.check(event.payload, self._limit))
        violations = [Violation("", "json", REASONS[reason], "")]
        if event.payload is not None:
            schema = self._registry.schema(event.subject, event.version)
            if schema is not None:
                violations += schema.check(event.payload, self._limit - 1)
        return self._found(event, violations)

    def _found(self, event: Event, violations: list[Violation]) -> Iterable[Finding]:
        if not violations:
            return NOTHING
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        what = f"{event.subject}@{event.version}" if event.subject and event.version else event.subject or "JSON"
        return (
            finding(
                self._rule,
                event,
                f"payload from {between(event)} violates {what} at {first.path or '/'}: {first.message}{more}",
                evidence={"path": first.path, "violations": [msgspec.structs.asdict(each) for each in violations]},
                side="receiver" if event.kind in _TAKEN else "sender",
                same=(first.path, first.keyword),
            ),
        )

    def advance(self, now: float) -> Iterable[Finding]:
        return NOTHING

    def __len__(self) -> int:
        return 0
