"""A payload that no registered schema can judge becomes a finding, once in a while for each workflow."""

from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, between, finding
from handrail.detectors.params import UnknownParams
from handrail.event import Event, Finding
from handrail.schema.registry import Registry, is_untyped

_QUIET: Final = 10_000


class SchemaUnknown:
    """A handoff carries a payload, and the registry has no schema for its subject or its version."""

    kind: ClassVar[str] = "schema.unknown"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first"})
    kinds: ClassVar[frozenset[str]] = frozenset({"handoff"})
    Params: ClassVar[type[msgspec.Struct]] = UnknownParams

    def __init__(self, rule: Rule, params: UnknownParams, registry: Registry) -> None:
        self._rule, self._params, self._registry = rule, params, registry
        self._said: dict[tuple[str | None, ...], float] = {}
        self._quiet: set[tuple[str | None, str | None]] = set()
        """Subjects and versions of which there is nothing to say while the registry stays as it is."""
        self._subject: str | None = None
        self._version: str | None = None
        self._is_quiet = False
        """Whether this subject and version were the last ones and are quiet: 400 instructions less for each rule."""
        self._generation = registry.generation

    def observe(self, event: Event) -> Iterable[Finding]:
        registry, subject, version = self._registry, event.subject, event.version
        if self._generation != registry.generation:
            self._generation = registry.generation
            self._quiet.clear()
            self._is_quiet = False
        if self._is_quiet and subject is self._subject and version is self._version:
            return NOTHING
        if (subject, version) in self._quiet:
            self._subject, self._version, self._is_quiet = subject, version, True
            return NOTHING
        if event.payload is None or event.kind != "handoff":
            return NOTHING
        known = self._missing(subject, version)
        if known is None:
            if len(self._quiet) >= _QUIET:
                self._quiet.clear()
            self._quiet.add((subject, version))
            return NOTHING
        return self._say(event, known)

    def _missing(self, subject: str | None, version: str | None) -> tuple[str, ...] | None:
        """The versions that there are in place of the one that is named; None where this rule has nothing to say."""
        registry, params = self._registry, self._params
        schema = registry.schema(subject, version)
        if params.of == "type":
            is_bare = schema is not None and registry.is_learned(subject, version) and is_untyped(schema.document)
            return () if is_bare else None
        if schema is not None or (not len(registry) and not params.even_if_empty):
            return None
        known = registry.versions(subject)
        return known if bool(known) == (params.of == "version") else None

    def _say(self, event: Event, known: tuple[str, ...]) -> Iterable[Finding]:
        params, subject = self._params, event.subject
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
