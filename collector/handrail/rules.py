"""Rule packs: YAML becomes detectors with their parameters, scope, severity and action.

    language: 1
    disable: [schema.unknown.subject]      # built-in rules to switch off
    rules:
      - id: output.duplicate               # `kind` or `kind.suffix`: the metric label, the anchor in the runbook
        title: A task is handed over twice
        why: What it means, when it is harmless, which knob to turn.
        maturity: stable                   # sandbox | incubating | stable
        severity: warning
        kind: output.duplicate             # a key of KINDS
        where: {target|startswith: billing}
        with: {within_seconds: 3600}
        tests:
          - {name: the same task twice, events: [{at: 0}, {at: 5}], finds: 1}
          - {name: two tasks, events: [{at: 0, task: a}, {at: 5, task: b}], finds: 0}

Built-in rules have their keys in this order, and ids that begin with their kind; rules of one's own may have any order,
and any id that claims no other kind. A user's rule with the id of a built-in one replaces it, which is how a built-in
is tuned.
"""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from handrail.config import ConfigError, EdgeConfig, convert, parse_yaml
from handrail.detectors import Action, Detector, Rule, Scope
from handrail.detectors.budget import BudgetExceeded
from handrail.detectors.cycle import GraphCycle
from handrail.detectors.deadlock import WaitDeadlock
from handrail.detectors.drift import SchemaDrift
from handrail.detectors.duplicate import OutputDuplicate
from handrail.detectors.early import HandoffEarly
from handrail.detectors.forgotten import ContextLost
from handrail.detectors.forwarded import ContextForwarded
from handrail.detectors.growth import ContextGrowth
from handrail.detectors.loop import HandoffLoop
from handrail.detectors.lost import LostUpdate
from handrail.detectors.mismatch import SchemaMismatch
from handrail.detectors.partial import HandoffPartial
from handrail.detectors.silent import AgentUnavailable
from handrail.detectors.stale import StaleRead
from handrail.detectors.torn import TornRead
from handrail.detectors.unknown import SchemaUnknown
from handrail.detectors.violation import SchemaViolation
from handrail.event import Event, EventFields, Severity, event_with
from handrail.schema.registry import Registry, matcher

KINDS: Mapping[str, type[Detector]] = {
    detector.kind: detector
    for detector in (
        SchemaViolation,
        SchemaUnknown,
        SchemaDrift,
        SchemaMismatch,
        OutputDuplicate,
        BudgetExceeded,
        AgentUnavailable,
        StaleRead,
        LostUpdate,
        TornRead,
        HandoffPartial,
        HandoffEarly,
        HandoffLoop,
        ContextGrowth,
        ContextForwarded,
        ContextLost,
        GraphCycle,
        WaitDeadlock,
    )
}

Where = Callable[[Event], bool]


class TestConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transcript that a rule carries: these events, and how many findings they must give."""

    __test__ = False  # the name is the language's; pytest must not collect it

    name: str
    schemas: dict[str, dict[str | int, Any]] = {}
    """subject → version → schema, registered before the first event."""
    learned: dict[str, tuple[Any, ...]] = {}
    """subject → schemas, learned from traffic before the first event; their versions are 1, 2, …"""
    edges: tuple[EdgeConfig, ...] = ()
    events: tuple[dict[str, Any], ...]
    """Event fields; `body` is short for `payload`, and what is left out is filled in by `event_of`."""
    advance: float | None = None
    """Time at which the transcript ends."""
    finds: int
    finding: dict[str, Any] = {}
    """What the first finding must say; `evidence.path` reaches inside."""


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule as it is written."""

    id: str
    title: str
    why: str
    maturity: Literal["sandbox", "incubating", "stable"]
    severity: Severity
    kind: str
    scope: Scope = "hop"
    action: Action = "observe"
    where: dict[str, Any] = {}
    with_: dict[str, Any] = msgspec.field(default_factory=dict, name="with")
    tests: tuple[TestConfig, ...]

    @property
    def rule(self) -> Rule:
        return Rule(id=self.id, kind=self.kind, severity=self.severity, scope=self.scope, action=self.action)


class _PackConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    language: Literal[1]
    disable: tuple[str, ...] = ()
    rules: tuple[RuleConfig, ...] = ()


class Pack(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of one file, checked."""

    file: str
    builtin: bool = False
    disable: tuple[str, ...] = ()
    rules: tuple[RuleConfig, ...] = ()


class Watch(msgspec.Struct, kw_only=True):
    """One rule in force: its detector, which events it looks at, and how often the detector failed."""

    rule: Rule
    detector: Detector
    where: Where | None = None
    failures: int = 0
    """In a row; a call that succeeds starts the count again."""
    off: bool = False


_ORDER = tuple(field.encode_name for field in msgspec.structs.fields(RuleConfig))


def load(text: str, file: str, *, builtin: bool = False) -> Pack:
    """YAML text to a Pack. Raises ConfigError with the path of the wrong key."""
    value = parse_yaml(text, file)
    written = convert(value, _PackConfig, file)
    ids: set[str] = set()
    for index, config in enumerate(written.rules):
        path = f"rules[{index}]"
        keys = list(value["rules"][index])
        if builtin and keys != sorted(keys, key=_ORDER.index):
            raise ConfigError(file, path, f"keys must stand in this order: {', '.join(_ORDER)}")
        if config.id in ids:
            raise ConfigError(file, f"{path}.id", f"{config.id} is there twice")
        ids.add(config.id)
        _check(config, file, path, builtin=builtin)
    return Pack(file=file, builtin=builtin, disable=written.disable, rules=written.rules)


def _check(config: RuleConfig, file: str, path: str, *, builtin: bool) -> None:
    kind = KINDS.get(config.kind)
    if kind is None:
        raise ConfigError(file, f"{path}.kind", f"unknown kind {config.kind}{_near(config.kind, KINDS)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", config.id):
        raise ConfigError(file, f"{path}.id", "must be letters, digits, _, . and -, no more than 100: it is a label")
    claimed = next((name for name in KINDS if config.id == name or config.id.startswith(name + ".")), None)
    if claimed != config.kind and (builtin or claimed is not None):
        raise ConfigError(file, f"{path}.id", f"must be {config.kind} or {config.kind}.<suffix>")
    if config.action == "enforce" and not kind.sees & {"first", "asked"}:
        raise ConfigError(file, f"{path}.action", f"{config.kind} is known only when the reply is; it cannot enforce")
    _params(config, kind, file, path)
    _where(config.where, file, f"{path}.where")
    for index, test in enumerate(config.tests):
        for at, fields in enumerate(test.events):
            event_of(fields, at, file, f"{path}.tests[{index}].events[{at}]")
    if not any(test.finds for test in config.tests) or all(test.finds for test in config.tests):
        raise ConfigError(file, f"{path}.tests", "a rule needs a test that finds something and one that finds nothing")


def _params(config: RuleConfig, kind: type[Detector], file: str, path: str) -> msgspec.Struct:
    try:
        return convert(config.with_, kind.Params, file)
    except ConfigError as error:
        raise ConfigError(file, f"{path}.with" + (f".{error.key}" if error.key else ""), error.problem) from None


def in_force(packs: Sequence[Pack]) -> Iterator[tuple[Pack, RuleConfig]]:
    """The rules of several packs that count: a user's in place of a built-in one of the same id, less the disabled.

    Raises ConfigError where two packs claim one id, or a disabled id is no rule.
    """
    chosen: dict[str, tuple[Pack, RuleConfig]] = {}
    for pack in sorted(packs, key=lambda pack: not pack.builtin):
        for index, config in enumerate(pack.rules):
            known = chosen.get(config.id)
            if known is not None and known[0].builtin == pack.builtin:
                raise ConfigError(pack.file, f"rules[{index}].id", f"{config.id} is also in {known[0].file}")
            chosen[config.id] = pack, config
    disabled: set[str] = set()
    for pack in packs:
        for index, name in enumerate(pack.disable):
            if name not in chosen:
                raise ConfigError(pack.file, f"disable[{index}]", f"no rule {name}{_near(name, chosen)}")
            disabled.add(name)
    for name, found in chosen.items():
        if name not in disabled:
            yield found


def watches(packs: Sequence[Pack], registry: Registry) -> tuple[Watch, ...]:
    """Packs to the rules in force, each with a fresh detector. Raises ConfigError, see `in_force`."""
    return tuple(watch(pack, config, registry) for pack, config in in_force(packs))


def watch(pack: Pack, config: RuleConfig, registry: Registry) -> Watch:
    """One rule to a Watch with a fresh detector."""
    kind, path = KINDS[config.kind], f"rules[{pack.rules.index(config)}]"
    params = _params(config, kind, pack.file, path)
    try:
        detector = kind(config.rule, params, registry)
    except ValueError as error:
        raise ConfigError(pack.file, f"{path}.with", str(error)) from None
    return Watch(
        rule=config.rule,
        detector=detector,
        where=_where(config.where, pack.file, f"{path}.where"),
    )


# Event fields that `where` may name, with their types. Payloads are not matched on: that is what schemas are for.
_FIELDS: Mapping[str, Any] = {
    name: hint for name, hint in typing.get_type_hints(EventFields).items() if name not in ("payload", "reply")
}


def _number(operator: Callable[[Any, Any], bool]) -> Callable[[Any], Callable[[Any], bool]]:
    return lambda limit: lambda value: isinstance(value, int | float) and operator(value, limit)


def _text(test: Callable[[str, str], bool]) -> Callable[[Any], Callable[[Any], bool]]:
    return lambda wanted: lambda value: value is not None and test(str(value), wanted)


def _glob(pattern: str) -> Callable[[Any], bool]:
    matches = matcher(pattern)
    return lambda value: value is not None and matches(str(value))


_MODIFIERS: Mapping[str, tuple[type, Callable[[Any], Callable[[Any], bool]]]] = {
    "startswith": (str, _text(str.startswith)),
    "endswith": (str, _text(str.endswith)),
    "contains": (str, _text(lambda value, wanted: wanted in value)),
    "matches": (str, _glob),
    "gt": (float, _number(lambda value, limit: value > limit)),
    "lt": (float, _number(lambda value, limit: value < limit)),
}
"""Modifier → type of the value it compares with, and the test it makes of it. Several values: any of them."""


def _where(where: Mapping[str, Any], file: str, path: str) -> Where | None:
    """`field: value | [values]` and `field|modifier: …` to one predicate, true where every line is."""
    tests = tuple(_line(key, wanted, file, f"{path}.{key}") for key, wanted in where.items())
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    return lambda event: all(test(event) for test in tests)


def _line(key: str, wanted: Any, file: str, path: str) -> Where:
    field, _, modifier = key.partition("|")
    if field not in _FIELDS:
        raise ConfigError(file, path, f"unknown field {field}{_near(field, _FIELDS)}")
    values = wanted if isinstance(wanted, list) else [wanted]
    read = Event.__dict__[field].__get__
    if modifier in ("", "not"):
        known = frozenset(_typed(value, _FIELDS[field], file, path) for value in values)
        if modifier:
            return lambda event: read(event) not in known
        return lambda event: read(event) in known
    if modifier not in _MODIFIERS:
        raise ConfigError(file, path, f"unknown modifier {modifier}{_near(modifier, (*_MODIFIERS, 'not'))}")
    into, test = _MODIFIERS[modifier]
    if into is float and not set(_members(_FIELDS[field])) & {int, float}:
        raise ConfigError(file, path, f"{field} is not a number")
    tests = tuple(test(_typed(value, into, file, path)) for value in values)
    if len(tests) == 1:
        only = tests[0]
        return lambda event: only(read(event))
    return lambda event: any(each(read(event)) for each in tests)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _typed(value: Any, into: Any, file: str, path: str) -> Any:
    try:
        return convert([value], list[into], file)[0]
    except ConfigError as error:
        raise ConfigError(file, path, error.problem) from None


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


_EVENT_DEFAULTS: Mapping[str, Any] = {
    "kind": "handoff",
    "outcome": "completed",
    "workflow": "w1",
    "task": "t1",
    "source": "writer",
    "target": "reviewer",
}


def event_of(fields: Mapping[str, Any], index: int, file: str = "", path: str = "") -> Event:
    """The short form of an event in a rule's test to an Event; the n-th is called `e<n>`. Raises ConfigError."""
    full = {**_EVENT_DEFAULTS, "id": f"e{index + 1}", "at": 0.0, **fields}
    if "body" in full:
        full["payload"] = full.pop("body")
    for name in full:
        if name not in _FIELDS and name not in ("payload", "reply"):
            raise ConfigError(file, f"{path}.{name}", f"unknown key{_near(name, (*_FIELDS, 'body', 'reply'))}")
    try:
        return event_with(convert(full, EventFields, file))
    except ConfigError as error:
        raise ConfigError(file, f"{path}.{error.key}", error.problem) from None
