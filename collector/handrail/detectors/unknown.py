"""A payload that no registered schema can judge becomes a finding, once in a while for each workflow."""

from collections.abc import Iterable
from typing import ClassVar

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, between, finding
from handrail.detectors.params import UnknownParams
from handrail.event import Event, Finding
from handrail.schema.registry import Registry, is_untyped


class SchemaUnknown:
    """A handoff carries a payload, and the registry has no schema for its subject or its version."""

    kind: ClassVar[str] = "schema.unknown"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first"})
    Params: ClassVar[type[msgspec.Struct]] = UnknownParams

    def __init__(self, rule: Rule, params: UnknownParams, registry: Registry) -> None:
        self._rule, self._params, self._registry = rule, params, registry
        self._said: dict[tuple[str | None, ...], float] = {}

    def observe(self, event: Event) -> Iterable[Finding]:
        if event.payload is None or event.kind != "handoff":
            return NOTHING
        registry, subject = self._registry, event.subject
        params = self._params
        schema = registry.schema(subject, event.version)
        if params.of == "type":
            if schema is None or not registry.is_learned(subject, event.version) or not is_untyped(schema.document):
                return NOTHING
            known: tuple[str, ...] = ()
        elif schema is not None:
            return NOTHING
        else:
            known = registry.versions(subject)
        if params.of == "type":
            pass
        elif bool(known) != (params.of == "version") or (not len(registry) and not params.even_if_empty):
            return NOTHING
        # The workflow is part of the key: one workflow must not silence what another would be told.
        key = (event.workflow, subject, event.version, *((event.source, event.target) if subject is None else ()))
        said = self._said.pop(key, None)
        if said is not None and abs(event.at - said) < params.again_seconds:
            self._said[key] = said
            return NOTHING
        self._said[key] = event.at
        if len(self._said) > params.keys:
            del self._said[next(iter(self._said))]
        if params.of == "type":
            return (
                finding(
                    self._rule,
                    event,
                    f"the handoff from {between(event)} is untyped: {event.operation or subject} declares no arguments",
                    evidence={"missing": "type", "operation": event.operation},
                    side="sender",
                ),
            )
        what = (
            f"{subject}@{event.version}"
            if known
            else f"subject {subject}"
            if subject
            else "it: the subject is not known"
        )
        return (
            finding(
                self._rule,
                event,
                f"payload from {between(event)} was not checked: the registry has no schema for {what}",
                evidence={"missing": params.of, "known_versions": list(known)},
                side="sender" if known else "unknown",
                same=(event.version,) if known else (),
            ),
        )

    def advance(self, now: float) -> Iterable[Finding]:
        """Forget what may be said again anyway."""
        said, oldest = self._said, now - self._params.again_seconds
        while said:
            key = next(iter(said))
            if said[key] > oldest:
                break
            del said[key]
        return NOTHING

    def __len__(self) -> int:
        return len(self._said)
