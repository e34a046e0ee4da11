"""A schema that traffic itself carries, and that is no longer what it was, becomes one finding for each new form.

A tool call travels with the schema of its arguments. Each form of it is a version of its subject (`Registry.learn`), so
a changed form is known with the first call that has it, whether or not its payload shows it.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import orjson

from handrail.detectors import NOTHING, Rule, between, finding
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

_PAIRS = 64
"""Changes of one subject that are told; agents of two releases side by side change the form with every other call."""


class Forms:
    """The form in which each subject was last seen. What `schema.drift` does with `of: forms`."""

    def __init__(self, rule: Rule, keys: int, registry: Registry) -> None:
        self._rule, self._keys, self._registry = rule, keys, registry
        self._last: OrderedDict[str, str] = OrderedDict()
        self._told: OrderedDict[str, set[tuple[str, str]]] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        """At most one finding."""
        subject, version = event.subject, event.version
        if event.kind != "handoff" or subject is None or version is None:
            return NOTHING
        registry = self._registry
        last = self._last.get(subject)
        if last == version:
            return NOTHING
        is_learned = registry.is_learned(subject, version)
        if last is None and not is_learned:
            return NOTHING
        if last is None:
            known = [each for each in registry.versions(subject) if not registry.is_learned(subject, each)]
            last = known[-1] if known else None
        self._last[subject] = version
        self._last.move_to_end(subject)
        if len(self._last) > self._keys:
            gone, _ = self._last.popitem(last=False)
            self._told.pop(gone, None)
        if last is None or not (is_learned or registry.is_learned(subject, last)):
            return NOTHING
        told = self._told.setdefault(subject, set())
        if (last, version) in told or len(told) >= _PAIRS:
            return NOTHING
        told.add((last, version))
        old, new = registry.schema(subject, last), registry.schema(subject, version)
        changes = _changes(None if old is None else old.document, None if new is None else new.document)
        first = changes[0] if changes else {"path": "", "change": "changed"}
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        return (
            finding(
                self._rule,
                event,
                f"what {between(event)} hands over has a new form: {subject} is version {version} and was {last}: "
                f"{first['path'] or 'the schema'} {first['change']}{more}",
                evidence={"path": first["path"], "old_version": last, "new_version": version, "changes": changes},
                side="sender",
                same=(last, version),
            ),
        )

    def __len__(self) -> int:
        return len(self._last)


def _changes(old: Any, new: Any) -> list[dict[str, str]]:
    """Which properties were added, removed, changed, became required or optional; the first twenty."""
    before, after = _part(old, "properties"), _part(new, "properties")
    out = [{"path": f"/{name}", "change": "added"} for name in after if name not in before]
    out += [{"path": f"/{name}", "change": "removed"} for name in before if name not in after]
    out += [
        {"path": f"/{name}", "change": f"changed from {_shown(before[name])} to {_shown(after[name])}"}
        for name in after
        if name in before and before[name] != after[name]
    ]
    was, now = _names(old), _names(new)
    out += [{"path": f"/{name}", "change": "became required"} for name in after if name in now - was and name in before]
    out += [{"path": f"/{name}", "change": "became optional"} for name in after if name in was - now]
    return out[:20]


def _part(schema: Any, key: str) -> dict[str, Any]:
    part = schema.get(key) if isinstance(schema, dict) else None
    return part if isinstance(part, dict) else {}


def _names(schema: Any) -> set[str]:
    required = schema.get("required") if isinstance(schema, dict) else None
    return {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()


def _shown(schema: Any) -> str:
    if isinstance(schema, dict) and isinstance(schema.get("type"), str):
        return str(schema["type"])
    text = orjson.dumps(schema, default=str).decode()
    return text if len(text) <= 80 else text[:77] + "..."
