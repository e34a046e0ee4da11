"""Keys and subjects become workflow, task and agents; values become payload, version and digest.

What is state and what is an event is said by patterns: `agents:{workflow}:{task}:output`. Where none is configured,
`KEYS` and `SUBJECTS` hold, and any value that is the canonical envelope says of itself what it is.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jmespath
import xxhash
from jmespath.exceptions import JMESPathError

from handrail.config import ConfigError, EventsConfig, StateConfig
from handrail.dialects import state, text, whole
from handrail.dialects.envelope import OUTCOME_OF_STATUS, is_envelope, said_by
from handrail.event import digest_of
from handrail.wire.body import parse

KEYS: tuple[StateConfig, ...] = tuple(
    StateConfig(key=key)
    for key in (
        "agents:{workflow}:{task}:*",
        "agent:{workflow}:{task}:*",
        "workflow:{workflow}:task:{task}:*",
        "workflow:{workflow}:{task}:*",
        "handoff:{workflow}:{task}:*",
        "handoff:{workflow}:{task}",
        "task:{task}:*",
        "tasks:{task}:*",
    )
)
"""Keys that are state where the configuration names none."""

SUBJECTS: tuple[EventsConfig, ...] = tuple(
    EventsConfig(subject=subject)
    for subject in (
        "agents.{workflow}.{task}.*",
        "agents:{workflow}:{task}:*",
        "workflow.{workflow}.{task}.*",
        "workflow:{workflow}:{task}:*",
        "handoff.{workflow}.{task}",
        "handoff:{workflow}:{task}",
        "task.*",
        "tasks.*",
        "task:*",
        "tasks:*",
    )
)
"""Subjects and channels that are events where the configuration names none."""

DEPTH = 128
_NAMES = frozenset({"workflow", "task", "source", "target", "attempt", "version", "epoch"})
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}|(\*)|([^{*]+)|([{}])")
_VERSION_KEYS = ("state_version", "version", "_version", "rev", "revision")
"""Where a version is looked for when no pattern says where. It must be a whole number, but for the first: `version:
"1.0"` is more often that of a format."""


class Named(NamedTuple):
    """What a key says, and the pattern that says it; the pattern is None where none matches."""

    pattern: "Pattern | None"
    said: Mapping[str, Any]


class Value(NamedTuple):
    """What a value says."""

    payload: Any
    said: dict[str, Any]
    """By the names of Event's fields; `envelope` names the envelope it was read from."""
    digest: str | None
    uninspected: str | None = None


class Pattern:
    """One pattern, compiled. Raises ConfigError naming the key of what is wrong."""

    def __init__(self, config: StateConfig | EventsConfig, key: str, file: str = "configuration") -> None:
        self.config = config
        is_state = isinstance(config, StateConfig)
        written = config.key if isinstance(config, StateConfig) else config.subject
        self.match = _compiled(written, f"{key}.{'key' if is_state else 'subject'}", file).fullmatch
        self.start = re.split(r"[{*]", written, maxsplit=1)[0].encode()
        """What every name that matches begins with."""
        self.version = _path(config.version, f"{key}.version", file)
        self.epoch = _path(config.epoch, f"{key}.epoch", file)
        self.subject, self.schema_version = _schema(config.schema)
        self.owner = config.owner if isinstance(config, StateConfig) else None
        self.version_field = config.version_field if isinstance(config, StateConfig) else None
        self.version_score = isinstance(config, StateConfig) and config.version_score
        self.is_plain = config.version is None and config.epoch is None and self.version_field is None


def _compiled(written: str, key: str, file: str) -> re.Pattern[str]:
    out, seen = [], set()
    for match in _PLACEHOLDER.finditer(written):
        name, star, literal, brace = match.groups()
        if brace:
            raise ConfigError(file, key, f"a placeholder is {{name}}; {written!r} has a brace of its own")
        if name is not None:
            if name not in _NAMES:
                raise ConfigError(file, key, f"unknown placeholder {name}; known are {', '.join(sorted(_NAMES))}")
            if name in seen:
                raise ConfigError(file, key, f"{{{name}}} is there twice")
            seen.add(name)
            after = written[match.end() : match.end() + 1]
            ends = re.escape(after) if after and after not in "{*" else ":"
            out.append(f"(?P<{name}>[^{ends}]+)")
        else:
            out.append(".*" if star else re.escape(literal))
    return re.compile("".join(out), re.DOTALL)


def _path(expression: str | None, key: str, file: str) -> Any:
    if expression is None:
        return None
    try:
        return jmespath.compile(expression)
    except JMESPathError as error:
        raise ConfigError(file, key, f"is not JMESPath: {error}") from None


def _schema(written: str | None) -> tuple[str | None, str | None]:
    if written is None:
        return None, None
    subject, at, version = written.partition("@")
    return subject, version if at else None


class Patterns:
    """Finds what a key or a subject says; the first pattern that matches, and the last 10,000 answers are kept."""

    def __init__(self, patterns: Sequence[Pattern], *, is_default: bool) -> None:
        self.patterns = tuple(patterns)
        self.is_default = is_default
        self._known: dict[str, Named] = {}
        self._starts = tuple({pattern.start for pattern in self.patterns})

    def has(self, name: bytes) -> bool:
        """Whether a pattern matches. Most names are told by how they begin, without being decoded or remembered."""
        return name.startswith(self._starts) and self.of(name.decode("utf-8", "replace")).pattern is not None

    def of(self, name: str) -> Named:
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= 10_000:
                self._known.clear()
            known = self._known[name] = self._find(name)
        return known

    def _find(self, name: str) -> Named:
        for pattern in self.patterns:
            match = pattern.match(name)
            if match is not None:
                said: dict[str, Any] = {field: text(value) for field, value in match.groupdict().items()}
                if "attempt" in said:
                    said["attempt"] = whole(said["attempt"])
                return Named(pattern, said)
        return Named(None, {})


def patterns_of(configured: Sequence[StateConfig | EventsConfig], key: str, file: str = "configuration") -> Patterns:
    """The configured patterns, or the defaults of that kind where `configured` is empty. Raises ConfigError."""
    made = [Pattern(each, f"{key}[{at}]", file) for at, each in enumerate(configured)]
    return Patterns(made, is_default=False)


def default_keys() -> Patterns:
    """The patterns of `KEYS`."""
    return Patterns([Pattern(each, "KEYS") for each in KEYS], is_default=True)


def default_subjects() -> Patterns:
    """The patterns of `SUBJECTS`."""
    return Patterns([Pattern(each, "SUBJECTS") for each in SUBJECTS], is_default=True)


def read_value(raw: bytes | Mapping[str, Any] | None, named: Named) -> Value:
    """A value as it lies in the store (bytes, or a hash as a mapping) to what it says."""
    if raw is None:
        return Value(None, {}, None)
    reason = None
    if isinstance(raw, bytes):
        body = parse(raw, DEPTH) if raw[:1] in _JSON else None
        if body is None or (body.reason is not None and body.value is None):
            digest = xxhash.xxh3_128_hexdigest(raw)
            return Value(None, {}, digest, None if body is None or body.reason == "not_json" else body.reason)
        payload, reason = body.value, body.reason
    else:
        payload = dict(raw)
    try:
        known: str | None = digest_of(payload)
    except TypeError:
        known = None
    said = _said(payload if isinstance(raw, bytes) else _numbered(payload), named)
    return Value(payload, said, known, reason)


_JSON = frozenset({b"{", b"["})


def _numbered(fields: dict[str, Any]) -> dict[str, Any]:
    """A hash's fields are texts: those that may be a version or an epoch as the numbers that they are."""
    found = fields
    for name in (*_VERSION_KEYS, "epoch"):
        value = fields.get(name)
        if type(value) is str and len(value) < 19 and value.isascii() and value.isdigit():
            found = {**found, name: int(value)}
    return found


def _said(payload: Any, named: Named) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if type(payload) is not dict:
        return said
    if is_envelope(payload):
        said = said_by(payload).fields()
    status = payload.get("status")
    if type(status) is str and OUTCOME_OF_STATUS.get(status.lower()) == "accepted":
        said["outcome"] = "accepted"
    pattern = named.pattern
    version = epoch = None
    if pattern is not None and not pattern.is_plain:
        version, epoch = _at(pattern.version, payload), _at(pattern.epoch, payload)
        if pattern.version_field is not None:
            version = state(payload.get(pattern.version_field))
    else:
        version = said.get("state_version") or state(payload.get("state_version")) or _counted(payload)
        epoch = payload.get("epoch") if type(payload.get("epoch")) is int else None
    if epoch is not None:
        said["state_version"] = f"{epoch}.{0 if version is None else version}"
    elif version is not None:
        said["state_version"] = version
    return said


def _at(path: Any, payload: Any) -> int | str | None:
    if path is None:
        return None
    try:
        return state(path.search(payload))
    except JMESPathError:
        return None


def _counted(payload: Mapping[str, Any]) -> int | str | None:
    return next((state(payload[name]) for name in _VERSION_KEYS if type(payload.get(name)) is int), None)
