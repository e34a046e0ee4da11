"""YAML text becomes one typed configuration; unknown keys are refused with their path.

Keys carry their units. Every limit has a default that is safe, and every queue, cache and window has a limit here.
"""

import difflib
import re
from typing import Any, Literal, TypeVar

import msgspec
import yaml

from handrail.wire.body import BodyLimits


class ConfigError(Exception):
    """Wrong configuration: the file, the key, what is wrong and how to fix it. Ends a command with exit status 2."""

    def __init__(self, file: str, key: str, problem: str) -> None:
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}")
        self.file, self.key, self.problem = file, key, problem


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TlsConfig(_Config):
    """How an https upstream is verified; there is no switch to turn verification off."""

    ca_file: str | None = None
    """PEM bundle to trust instead of the system's."""
    server_name: str | None = None


class RouteConfig(_Config):
    """One listen address in front of one upstream."""

    listen: str
    upstream: str
    side: Literal["ingress", "egress"] = "ingress"
    """ingress: the agent is behind this listener. egress: a peer is, and the agent calls it."""
    agent: str | None = None
    """Overrides the sidecar's agent for this route."""
    peer: str | None = None
    """The agent at the other end, where the traffic does not say."""
    dialects: tuple[str, ...] = ()
    """In order; empty means all."""
    host: Literal["upstream", "client"] = "upstream"
    """Which Host header the upstream sees."""
    stamp: bool = False
    """Add a missing traceparent and the handrail-workflow header."""
    rewrite_cards: bool = False
    """Rewrite the interface URLs of A2A agent cards to this listener, so that callers stay on it."""
    tls: TlsConfig = TlsConfig()


class ForwardConfig(_Config):
    """A forward proxy (HTTP_PROXY). Destinations come from `allow`, never from the request alone."""

    listen: str
    allow: tuple[str, ...] = ()
    """`host:port` or `host`, with `*` in place of any run of characters. The named routes' upstreams are always allowed."""
    agent: str | None = None
    stamp: bool = False


class LimitsConfig(_Config):
    header_bytes: int = 65_536
    header_field_bytes: int = 16_384
    header_lines: int = 256
    header_seconds: float = 10.0
    body_idle_seconds: float = 30.0
    keepalive_seconds: float = 75.0
    connect_seconds: float = 1.0
    reply_seconds: float = 300.0
    """Silence of the upstream before the first byte of a reply; a reply that has begun may pause as long as it likes."""
    connections: int = 2048
    in_flight: int = 1024
    hold_bytes: int = 1_048_576
    """A request that an enforced rule holds may be this long; a longer one passes unheld and is counted."""
    hold_seconds: float = 5.0
    drain_seconds: float = 25.0


class EnvelopeConfig(_Config):
    path: str | None = None
    """JMESPath to the envelope inside the body, where it is not the body itself."""


class CustomConfig(_Config):
    """Where a protocol of one's own keeps what a handoff is made of; each value is a JMESPath expression."""

    name: str
    path: str | None = None
    """Only requests whose path matches this pattern (`*` for any run of characters)."""
    when: str | None = None
    """JMESPath that must be truthy on the request body."""
    workflow: str | None = None
    task: str | None = None
    attempt: str | None = None
    source: str | None = None
    target: str | None = None
    subject: str | None = None
    version: str | None = None
    payload: str | None = None
    state_version: str | None = None
    tokens: str | None = None
    outcome: str | None = None
    """JMESPath on the reply body to one of the outcomes."""


class EdgeConfig(_Config):
    """Which schema applies between whom; `*` for any run of characters, the first match wins."""

    source: str = "*"
    target: str = "*"
    task: str = "*"
    subject: str = ""
    version: str | None = None
    """Pinned version; the latest where absent."""


class SchemasConfig(_Config):
    directory: str | None = None
    """`<directory>/<subject>/<version>.json`"""
    edges: tuple[EdgeConfig, ...] = ()
    poll_seconds: float = 1.0


class RulesConfig(_Config):
    builtin: bool = True
    files: tuple[str, ...] = ()


class ClickHouseConfig(_Config):
    dsn: str | None = None
    """`chdb:///dir` (embedded), `clickhouse://user@host:8123/db` or `http(s)://…`; none: nothing is recorded."""
    database: str = "handrail"
    batch_rows: int = 5_000
    batch_bytes: int = 4_194_304
    batch_seconds: float = 5.0
    queue_rows: int = 100_000
    retry_seconds: float = 0.5
    retry_limit_seconds: float = 30.0
    ttl_days: int = 30


class AdminConfig(_Config):
    listen: str = "127.0.0.1:9464"
    label_sets: int = 200
    """Distinct label sets for each metric; past it the labels become `other` and that is counted."""


class Config(_Config):
    """Everything that `handrail run` can be told."""

    agent: str | None = None
    """The name of the agent that this sidecar belongs to."""
    agent_version: str | None = None
    routes: tuple[RouteConfig, ...] = ()
    forward: ForwardConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    inspection: BodyLimits = BodyLimits()
    envelope: EnvelopeConfig = EnvelopeConfig()
    custom: tuple[CustomConfig, ...] = ()
    schemas: SchemasConfig = SchemasConfig()
    rules: RulesConfig = RulesConfig()
    clickhouse: ClickHouseConfig = ClickHouseConfig()
    admin: AdminConfig = AdminConfig()
    payloads: bool = False
    """Store payload bodies. Off: sizes, digests and verdicts only."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


T = TypeVar("T")

MAX_BYTES = 1_048_576


def load(text: str, file: str) -> Config:
    """YAML text to Config. Raises ConfigError with the path of the wrong key."""
    return convert(parse_yaml(text, file), Config, file)


def parse_yaml(text: str, file: str) -> Any:
    """YAML text to plain values: safe loader, no aliases (a dozen of them can name a billion nodes), bounded size."""
    if len(text) > MAX_BYTES:
        raise ConfigError(file, "", f"is larger than {MAX_BYTES} bytes")
    try:
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(file, f"line {token.start_mark.line + 1}", "YAML aliases are not accepted; write it out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(file, where, f"is not YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError(file, "", "is nested too deeply") from None


def convert(value: Any, into: type[T], file: str) -> T:
    """Plain values to a typed structure. Raises ConfigError with the path of the wrong key and the nearest right one."""
    try:
        return msgspec.convert({} if value is None else value, into)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$").removeprefix(".")
        if unknown := re.search(r"unknown field `(.+?)`", problem):
            name = unknown.group(1)
            key = f"{key}.{name}" if key else name
            near = difflib.get_close_matches(name, _keys(into), n=1, cutoff=0.6)
            problem = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
        raise ConfigError(file, key, problem[0].lower() + problem[1:]) from None


def _keys(into: Any, seen: frozenset[Any] = frozenset()) -> set[str]:
    """Every key that may stand anywhere below a structure."""
    keys: set[str] = set()
    if isinstance(into, type) and issubclass(into, msgspec.Struct) and into not in seen:
        for field in msgspec.structs.fields(into):
            keys.add(field.encode_name)
            for part in (field.type, *getattr(field.type, "__args__", ())):
                keys |= _keys(part, seen | {into})
    return keys
