"""YAML text becomes one typed configuration; what is wrong is refused with its path and the nearest right key.

Keys carry their units. Every limit has a default that is safe, and every queue, cache and window has a limit here.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, TypeVar, cast, get_args, get_origin
from urllib.parse import unquote, urlsplit

import jmespath
import msgspec
import yaml
from msgspec.structs import replace

from handrail.wire import BodyLimits


class ConfigError(Exception):
    """Wrong configuration: the file, the key, what is wrong and how to fix it. Ends a command with exit status 2."""

    def __init__(self, file: str, key: str, problem: str) -> None:
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}")
        self.file, self.key, self.problem = file, key, problem


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TlsConfig(_Config, frozen=True):
    """How an https upstream is verified; there is no switch to turn verification off."""

    ca_file: str | None = None
    """PEM bundle to trust instead of the system's."""
    server_name: str | None = None


class FallbackConfig(_Config, frozen=True):
    """Who gets a task that the route's own upstream did not answer in time, or could not be reached with: once."""

    upstream: str
    agent: str | None = None
    """The agent behind it; the target of the second attempt."""
    seconds: float | None = None
    """What the second attempt may take where the caller's deadline is over; as long as the first where absent."""
    tls: TlsConfig = TlsConfig()


class RouteConfig(_Config, frozen=True):
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
    """Add a missing traceparent and handrail-workflow header, the sender to `handrail-chain` in baggage, and the time
    that is left as handrail-deadline, where it is less than the caller says."""
    rewrite_cards: bool = False
    """Rewrite the interface URLs of A2A agent cards to this listener, so that callers stay on it."""
    tls: TlsConfig = TlsConfig()
    fallback: FallbackConfig | None = None
    """Its requests are held as those of a rule in enforce mode are, because only what is held can be sent again."""


class ForwardConfig(_Config, frozen=True):
    """A forward proxy (HTTP_PROXY). Destinations come from `allow`, never from the request alone."""

    listen: str
    allow: tuple[str, ...] = ()
    """`host:port` or `host`, `*` for any run of characters. The named routes' upstreams are always allowed."""
    agent: str | None = None
    stamp: bool = False


class LimitsConfig(_Config, frozen=True):
    header_bytes: int = 65_536
    header_field_bytes: int = 16_384
    header_lines: int = 256
    header_seconds: float = 10.0
    body_idle_seconds: float = 30.0
    keepalive_seconds: float = 75.0
    connect_seconds: float = 1.0
    reply_seconds: float = 300.0
    """Silence of the upstream before the first byte of a reply; one that has begun may pause as long as it likes."""
    connections: int = 2048
    in_flight: int = 1024
    hold_bytes: int = 1_048_576
    """A request that an enforced rule holds may be this long; a longer one passes unheld and is counted."""
    hold_seconds: float = 5.0
    drain_seconds: float = 25.0


class StoreListenerConfig(_Config, frozen=True):
    """One listen address in front of one server of a store."""

    listen: str
    upstream: str
    """`redis://host:port`, or `rediss://host:port` for TLS."""
    role: Literal["primary", "replica"] = "primary"
    agent: str | None = None
    """Who connects here; overrides the sidecar's agent."""
    tls: TlsConfig = TlsConfig()


class StateConfig(_Config, frozen=True):
    """Keys of a store that are state of agents, and what they say."""

    key: str
    """`agents:{workflow}:{task}:output`: `*` is any run of characters; a placeholder (`workflow`, `task`, `source`,
    `target`, `attempt`, `version`, `epoch`) is one without the character that follows it. The first match wins."""
    version: str | None = None
    """JMESPath of the version in a JSON value."""
    version_field: str | None = None
    """The field of a hash that holds the version."""
    version_score: bool = False
    """Whether the highest score of a sorted set is the version."""
    epoch: str | None = None
    """JMESPath of the task's epoch in a JSON value, or in the fields of a hash."""
    schema: str | None = None
    """`subject` or `subject@version` that values are checked against."""
    owner: str | None = None
    """Who writes here: the source of what others read."""


class EventsConfig(_Config, frozen=True):
    """Subjects of a bus, or channels and streams of a store, that carry events of agents, and what they say."""

    subject: str
    """`agents.{workflow}.{task}.complete`, as `state.key`."""
    version: str | None = None
    """JMESPath of the sequence or version in a JSON payload; without it JetStream's own sequence counts."""
    epoch: str | None = None
    schema: str | None = None
    """`subject` or `subject@version` that payloads are checked against."""


class StoreConfig(_Config, frozen=True):
    """A store that agents share: one primary and its replicas, each behind a listener of its own."""

    name: str
    protocol: Literal["redis"] = "redis"
    listeners: tuple[StoreListenerConfig, ...] = ()
    state: tuple[StateConfig, ...] = ()
    """Which keys are state. Without any: the usual ones, and every value that is JSON."""
    events: tuple[EventsConfig, ...] = ()
    """Which channels and streams carry events; `subject` matches their name."""
    value_bytes: int = 1_048_576
    """A longer argument or reply passes, and only its size is looked at."""
    copy_bytes: int = 16_777_216
    """How many bytes of all connections may wait to be looked at; past it they pass unread and are counted."""
    connections: int = 2048
    connect_seconds: float = 1.0


class BusConfig(_Config, frozen=True):
    """A message bus in front of which the agents' clients connect here."""

    name: str
    listen: str
    upstream: str
    """`nats://host:port`. A client that upgrades to TLS does so with the server itself, and passes unread."""
    protocol: Literal["nats"] = "nats"
    agent: str | None = None
    """Who connects here; overrides the sidecar's agent."""
    events: tuple[EventsConfig, ...] = ()
    """Which subjects carry events. Without any: the usual ones, and every payload that is an envelope."""
    payload_bytes: int = 1_048_576
    """A longer payload passes, and only its size is looked at."""
    copy_bytes: int = 16_777_216
    connections: int = 2048
    connect_seconds: float = 1.0


class EnvelopeConfig(_Config, frozen=True):
    path: str | None = None
    """JMESPath to the envelope inside the body, where it is not the body itself."""


class CustomConfig(_Config, frozen=True):
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


class HandoffToolConfig(_Config, frozen=True):
    """A tool by which agents hand off under a name of its own."""

    tool: str
    """Name of the tool, `*` for any run of characters; without `target` and `argument`, the `*` names the target."""
    target: str | None = None
    argument: str | None = None
    """The argument of the call that names the target."""
    kind: Literal["transfer", "delegate"] = "transfer"
    """transfer: the target goes on in place of the source. delegate: the target answers, and the source goes on."""


class SpeakerConfig(_Config, frozen=True):
    """How an agent is told apart where its traffic does not name it; all that is given must match."""

    agent: str
    system: str | None = None
    """Text that its system prompt holds, `*` for any run of characters."""
    tool: str | None = None
    """Name of a tool that it has."""


class HandoffsConfig(_Config, frozen=True):
    """How handoffs are read from calls of models, beside the conventions that are built in."""

    tools: tuple[HandoffToolConfig, ...] = ()
    agents: tuple[SpeakerConfig, ...] = ()
    ignore: tuple[str, ...] = ()
    """Tools that look like handoffs and are none; `*` for any run of characters."""
    silence_seconds: float = 60.0
    """A target that has not spoken for so long after it was handed a task has dropped it."""
    conversations: int = 4_096
    """How many are remembered; the one that was quiet for longest goes first."""


class McpAgentConfig(_Config, frozen=True):
    """Tools of MCP servers behind which an agent works; `*` for any run of characters, the first line wins."""

    server: str = "*"
    """The name that the server gives itself (`serverInfo.name`)."""
    tool: str = "*"
    agent: str | None = None
    """The agent; `*` in it is what the first `*` of `tool` stood for. Without it that text, or the server's name where
    `tool` is `*` alone."""


class McpConfig(_Config, frozen=True):
    """Which calls of MCP tools are handoffs; every other call is recorded, and is none."""

    agents: tuple[McpAgentConfig, ...] = (
        McpAgentConfig(tool="ask_*_agent", agent="*_agent"),
        McpAgentConfig(tool="transfer_to_*"),
        McpAgentConfig(tool="handoff_to_*"),
        McpAgentConfig(tool="delegate_to_*"),
    )
    servers: int = 1_024
    """How many servers, clients and open calls are remembered; the one that was quiet for longest goes first."""
    tools: int = 512
    """How many tools of one server."""
    silence_seconds: float = 60.0
    """How long a call waits for its result in a stream that was opened before it."""


class OtlpConfig(_Config, frozen=True):
    """Where spans and logs of agents come in, and where they go on to."""

    http: str | None = None
    """host:port of the OTLP/HTTP receiver, `/v1/traces` and `/v1/logs`; the usual port is 4318."""
    grpc: str | None = None
    """host:port of the OTLP/gRPC receiver; the usual port is 4317."""
    forward: str | None = None
    """http(s)://host:port of an OTLP/HTTP endpoint that gets every request as it came."""
    forward_token_file: str | None = None
    """What is sent to it as `Authorization: Bearer`."""
    forward_queue_bytes: int = 33_554_432
    """How much may wait for it; what would pass that is dropped and counted."""
    forward_seconds: float = 10.0
    """How long it may take to answer."""
    forward_retry_seconds: float = 300.0
    """A request that it did not take for so long is dropped and counted."""
    token_file: str | None = None
    """Tokens of which senders must show one, a line each. Without it HANDRAIL_OTLP_TOKEN; without both, anybody."""
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    request_bytes: int = 4_194_304
    decoded_bytes: int = 16_777_216
    """The same after decompression."""
    in_flight: int = 16
    """Requests that are read at once; more are told to come again."""
    retry_after_seconds: float = 1.0
    hold_seconds: float = 10.0
    """A trace is read when nothing was added to it for so long: batches come in any order."""
    wait_seconds: float = 60.0
    """How long a handoff that lacks its target or its outcome waits for a span that says it."""
    join_seconds: float = 5.0
    """How far apart the same handoff may be on the wire and in a span that share neither call id nor trace."""
    traces: int = 2_048
    spans: int = 100_000
    """How many are remembered; the traces that were quiet for longest go first."""


class EdgeConfig(_Config, frozen=True):
    """Which schema applies between whom; `*` for any run of characters, the first match wins."""

    source: str = "*"
    target: str = "*"
    task: str = "*"
    subject: str = ""
    version: str | None = None
    """Pinned version; the latest where absent."""
    reads: str | None = None
    """The version that the target reads, where it does not say so itself in `handrail-accept`; the pinned one where
    absent."""


class SchemasConfig(_Config, frozen=True):
    directory: str | None = None
    """`<directory>/<subject>/<version>.json`"""
    edges: tuple[EdgeConfig, ...] = ()
    poll_seconds: float = 1.0
    learn: bool = False
    """Infer a schema for each subject that has none; it is proposed on the admin port, and registered by nobody but
    `handrail schema accept`."""
    learn_subjects: int = 200
    """How many subjects are learned at once."""


class RegistryConfig(_Config, frozen=True):
    """The schema registry: where schemas come from, and whether this process serves them to others.

    Schemas come from one of `schemas.directory`, `sqlite` and `remote`; a service without any of them keeps its own in
    SQLite.
    """

    listen: str | None = None
    """host:port of the REST API; none: this process serves no registry."""
    sqlite: str | None = None
    """The file that registered schemas are kept in."""
    remote: str | None = None
    """URL of a registry that is followed: Handrail's or one that speaks Confluent's REST API."""
    remote_token_file: str | None = None
    """What is sent to it: a token, or user:password. Without it HANDRAIL_REGISTRY_REMOTE_TOKEN, where that is set."""
    remote_ca_file: str | None = None
    """PEM bundle to trust for it instead of the system's."""
    cache: str = "handrail-registry-cache"
    """Directory where the last good answer of `remote` is kept."""
    poll_seconds: float = 5.0
    request_seconds: float = 5.0
    remote_bytes: int = 67_108_864
    """What `remote` may answer with."""
    token_file: str | None = None
    """Tokens that may write, a line each. Without it HANDRAIL_REGISTRY_TOKEN; without both, whoever reaches it."""
    protect_reads: bool = False
    """Ask for a token to read too."""
    read_only: bool = False
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    compatibility: Literal[
        "NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"
    ] = "BACKWARD"
    """Where neither the subject nor the whole registry has a level of its own."""
    policy: Literal["semantic", "confluent"] = "semantic"
    """confluent: its strict model of open and closed content, for those who migrate."""
    accept_undecided: bool = False
    """Take a schema for compatible where neither a proof nor a counterexample was found in time."""
    request_bytes: int = 1_048_576
    compile_seconds: float = 1.0
    compare_seconds: float = 2.0
    waiting: int = 32
    """Requests that may wait for a schema to be compiled or compared; more are told to come again."""


class GraphConfig(_Config, frozen=True):
    """Who may hand over to whom, where somebody declared it."""

    file: str | None = None
    """A graph as `handrail graph check` reads it; the plan of every workflow that has none of its own."""


class RulesConfig(_Config, frozen=True):
    builtin: bool = True
    files: tuple[str, ...] = ()


class ClickHouseConfig(_Config, frozen=True):
    dsn: str | None = None
    """`chdb:///dir` (embedded), `clickhouse://user@host:8123/db` or `http(s)://…`; none: nothing is recorded."""
    database: str = "handrail"
    batch_rows: int = 5_000
    batch_bytes: int = 1_048_576
    """A batch is sent when it has so many rows or bytes, or is so old. About 1,500 events; four times as many would be
    fewer inserts for ClickHouse and 7 MB more memory here."""
    batch_seconds: float = 5.0
    queue_rows: int = 100_000
    queue_bytes: int = 33_554_432
    """Rows wait in memory; what would pass either limit is dropped and counted."""
    retry_seconds: float = 0.5
    retry_limit_seconds: float = 30.0
    ttl_days: int = 30


class TracesConfig(_Config, frozen=True):
    """Where handoffs and findings go as OpenTelemetry spans."""

    endpoint: str
    """`http://host:4318`, or `http://host:4317` for grpc; https for TLS. `/v1/traces` is added where no path is."""
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    headers_file: str | None = None
    """Headers that are sent along, such as a token: `name: value`, a line each."""
    ca_file: str | None = None
    """PEM bundle to trust instead of the system's."""
    sample_ratio: float = 1.0
    """The share of traces that is kept, by trace id; what has a finding is kept whatever this says."""
    queue_events: int = 8_192
    """How many may wait; past four fifths of it only what has findings is taken, and what is not is counted."""
    batch_spans: int = 512
    batch_seconds: float = 1.0
    export_seconds: float = 10.0
    """How long one batch is tried again before it is given up and counted."""
    contexts: int = 10_000
    """How many events are remembered for links and for findings that come later."""


class WebhookConfig(_Config, frozen=True):
    """Where findings go as CloudEvents 1.0, one a request, in structured mode."""

    url: str
    token_file: str | None = None
    """What is sent to it as `Authorization: Bearer`."""
    ca_file: str | None = None
    """PEM bundle to trust instead of the system's."""


class AlertsConfig(_Config, frozen=True):
    """Where findings go at once, beside the metrics that are scraped: Alertmanager, and webhooks."""

    alertmanagers: tuple[str, ...] = ()
    """`http(s)://host:9093`, with a prefix where it has one; each of them gets every alert."""
    webhooks: tuple[WebhookConfig, ...] = ()
    severity: Literal["info", "warning", "critical"] = "critical"
    """Findings that are less severe are not sent; the rules in rules/alerts tell of them by their rate."""
    token_file: str | None = None
    """What is sent to every Alertmanager as `Authorization: Bearer`. Without it HANDRAIL_ALERTS_TOKEN, where set."""
    ca_file: str | None = None
    """PEM bundle to trust for Alertmanagers instead of the system's."""
    resolve_seconds: float = 300.0
    """An alert is over when its finding was not seen again for so long."""
    hold_seconds: float = 14_400.0
    """A deadlock, or an agent that is away, is told once and stands until somebody acts; but no longer than this."""
    resend_seconds: float = 60.0
    """An alert that goes on is sent again after so long, so that an Alertmanager that began anew knows it too."""
    firing: int = 1_000
    """How many alerts go on at once; past it the one that was quiet for longest is forgotten and counted."""
    queue_alerts: int = 2_000
    """How many notices may wait for each receiver; past it the oldest is dropped and counted."""
    request_seconds: float = 5.0
    retry_seconds: float = 0.5
    retry_limit_seconds: float = 5.0
    labels: dict[str, str] = {}
    """Labels that every alert carries, such as `cluster`."""
    runbook_url: str = "rules/runbook.md"
    """Where the runbook is; the heading of the finding's kind is added."""
    dashboard_url: str | None = None
    """Where an alert leads to; `{workflow}`, `{source}`, `{target}`, `{rule}`, `{kind}` and `{fingerprint}` in it are
    filled in."""


class AdminConfig(_Config, frozen=True):
    listen: str = "127.0.0.1:9464"
    label_sets: int = 200
    """Distinct label sets for each metric; past it the labels become `other` and that is counted."""


class Config(_Config, frozen=True):
    """Everything that `handrail run` can be told."""

    agent: str | None = None
    """The name of the agent that this sidecar belongs to."""
    agent_version: str | None = None
    routes: tuple[RouteConfig, ...] = ()
    forward: ForwardConfig | None = None
    stores: tuple[StoreConfig, ...] = ()
    buses: tuple[BusConfig, ...] = ()
    limits: LimitsConfig = LimitsConfig()
    inspection: BodyLimits = BodyLimits()
    envelope: EnvelopeConfig = EnvelopeConfig()
    custom: tuple[CustomConfig, ...] = ()
    handoffs: HandoffsConfig = HandoffsConfig()
    mcp: McpConfig = McpConfig()
    otlp: OtlpConfig | None = None
    schemas: SchemasConfig = SchemasConfig()
    registry: RegistryConfig | None = None
    rules: RulesConfig = RulesConfig()
    graph: GraphConfig = GraphConfig()
    clickhouse: ClickHouseConfig = ClickHouseConfig()
    traces: TracesConfig | None = None
    alerts: AlertsConfig | None = None
    admin: AdminConfig = AdminConfig()
    payloads: bool = False
    """Store payload bodies. Off: sizes, digests and verdicts only."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def listeners(self) -> int:
        """How many addresses traffic, schemas or spans can come to; the admin port is not one of them."""
        served = [self.registry.listen] if self.registry is not None else []
        served += [self.otlp.http, self.otlp.grpc] if self.otlp is not None else []
        count = len(self.routes) + (self.forward is not None) + sum(address is not None for address in served)
        return count + sum(len(store.listeners) for store in self.stores) + len(self.buses)


T = TypeVar("T")

MAX_BYTES = 1_048_576
MAX_DEPTH = 64


def load(text: str, file: str) -> Config:
    """YAML text to Config. Raises ConfigError, the first of those that `check` lists."""
    for error in check(text, file):
        raise error
    return convert(parse_yaml(text, file), Config, file)


def resolved(config: Config, beside: str) -> Config:
    """A Config whose files and directories are named from the directory of the file that it was read from."""
    return cast(Config, _resolved(config, beside))


_PATHS = frozenset({"directory", "file", "files", "sqlite", "cache"})
"""Keys that hold paths, beside all that end in `_file`."""


def _resolved(struct: msgspec.Struct, beside: str) -> msgspec.Struct:
    changes: dict[str, Any] = {}
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, msgspec.Struct):
            changes[name] = _resolved(value, beside)
        elif name in _PATHS or name.endswith("_file"):
            if isinstance(value, str):
                changes[name] = str(PurePath(beside, value))
            elif value is not None:
                changes[name] = tuple(str(PurePath(beside, each)) for each in value)
        elif isinstance(value, tuple):
            changes[name] = tuple(
                _resolved(each, beside) if isinstance(each, msgspec.Struct) else each for each in value
            )
    return replace(struct, **changes)


def check(text: str, file: str) -> list[ConfigError]:
    """YAML text to everything that is wrong with it as a Config; empty where it can be loaded."""
    try:
        value = parse_yaml(text, file)
    except ConfigError as error:
        return [error]
    errors: dict[str, ConfigError] = {}

    def add(error: ConfigError) -> None:
        if not any(error.key == known or error.key.startswith(f"{known}.") for known in errors):
            errors[error.key] = error

    for _ in range(100):
        try:
            config = convert(value, Config, file)
        except ConfigError as error:
            # The conversion stops at the first wrong key: take that one out and see what else there is.
            add(error)
            if not _repair(value, error):
                break
        else:
            for key, problem in problems(config):
                add(ConfigError(file, key, problem))
            break
    for key in _with_nul(value, ""):
        add(ConfigError(file, key, "holds the character U+0000, which no name or address has"))
    return list(errors.values())


def _with_nul(value: Any, at: str) -> Iterator[str]:
    """The keys whose text holds U+0000: no file can be called so, and each part that opens one would say it its way."""
    if isinstance(value, str):
        if "\0" in value:
            yield at
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _with_nul(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _with_nul(item, f"{at}[{index}]")


def with_flags(
    config: Config,
    *,
    listen: str | None = None,
    upstream: str | None = None,
    agent: str | None = None,
    schemas: str | None = None,
    rules: Sequence[str] = (),
    clickhouse: str | None = None,
    admin: str | None = None,
) -> Config:
    """A Config with what the command line says put over what the file says. Raises ConfigError naming the flag.

    `listen` and `upstream` make the one route where there is none, and override it where there is one.
    """
    flags = "command line"
    if listen is not None or upstream is not None:
        if len(config.routes) > 1:
            key = "--listen" if listen is not None else "--upstream"
            raise ConfigError(
                flags, key, f"the file has {len(config.routes)} routes; change the one that is meant there"
            )
        if config.routes:
            route = config.routes[0]
            route = replace(route, listen=listen or route.listen, upstream=upstream or route.upstream)
        elif upstream is None:
            raise ConfigError(flags, "--upstream", "is missing; it is where requests to --listen go, http://host:port")
        elif listen is None:
            raise ConfigError(flags, "--listen", "is missing; it is where requests to --upstream come in, host:port")
        else:
            route = RouteConfig(listen=listen, upstream=upstream)
        config = replace(config, routes=(route,))
    if agent is not None:
        config = replace(config, agent=agent)
    if schemas is not None:
        config = replace(config, schemas=replace(config.schemas, directory=schemas))
    if rules:
        config = replace(config, rules=replace(config.rules, files=tuple(rules)))
    if clickhouse is not None:
        config = replace(config, clickhouse=replace(config.clickhouse, dsn=clickhouse))
    if admin is not None:
        config = replace(config, admin=replace(config.admin, listen=admin))
    for key, problem in problems(config):
        raise ConfigError(flags, _FLAGS.get(key, key), problem)
    return config


_FLAGS: Mapping[str, str] = {
    "routes[0].listen": "--listen",
    "routes[0].upstream": "--upstream",
    "clickhouse.dsn": "--clickhouse",
    "admin.listen": "--admin",
}


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """What the types alone do not say, as (key, problem): addresses, URLs, expressions, limits."""
    yield from _not_positive(config, "")
    listeners: dict[str, str] = {}
    for index, route in enumerate(config.routes):
        key = f"routes[{index}]"
        yield from _bad_listen(f"{key}.listen", route.listen, listeners)
        if problem := bad_url(route.upstream):
            yield f"{key}.upstream", problem
        if route.fallback is not None and (problem := bad_url(route.fallback.upstream)):
            yield f"{key}.fallback.upstream", problem
        yield from _not_positive(route, f"{key}.")
    if config.forward is not None:
        yield from _bad_listen("forward.listen", config.forward.listen, listeners)
        for index, pattern in enumerate(config.forward.allow):
            if not re.fullmatch(r"(\[[0-9A-Fa-f:.*]+\]|[A-Za-z0-9._~*-]+)(:[0-9*]+)?", pattern):
                yield (
                    f"forward.allow[{index}]",
                    f"{pattern!r} is no host; write host or host:port, * for any characters",
                )
    yield from _bad_listen("admin.listen", config.admin.listen, listeners)
    yield from _bad_places(config, listeners)
    if config.registry is not None:
        yield from _bad_registry(config.registry, config.schemas, listeners)
    if config.otlp is not None:
        yield from _bad_otlp(config.otlp, listeners)
    if config.clickhouse.dsn is not None and (problem := bad_dsn(config.clickhouse.dsn)):
        yield "clickhouse.dsn", problem
    if config.traces is not None:
        yield from _bad_traces(config.traces)
    if config.alerts is not None:
        yield from _bad_alerts(config.alerts)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", config.clickhouse.database):
        yield "clickhouse.database", "must be a plain name: letters, digits and _"
    yield from _bad_expressions("envelope", config.envelope, ("path",))
    for index, line in enumerate(config.handoffs.agents):
        if line.system is None and line.tool is None:
            yield f"handoffs.agents[{index}]", "must say how the agent is told apart: system, tool or both"
    names: set[str] = set()
    for index, custom in enumerate(config.custom):
        key = f"custom[{index}]"
        if not custom.name:
            yield f"{key}.name", "must not be empty"
        elif custom.name in DIALECTS:
            yield f"{key}.name", f"{custom.name} is a built-in dialect; choose another name"
        elif custom.name in names:
            yield f"{key}.name", f"{custom.name} is there twice; names are how routes choose dialects"
        names.add(custom.name)
        yield from _bad_expressions(key, custom, EXPRESSIONS)
    for index, route in enumerate(config.routes):
        for at, name in enumerate(route.dialects):
            if name not in names and name not in DIALECTS:
                yield f"routes[{index}].dialects[{at}]", f"{name!r} is not known{_near(name, (*DIALECTS, *names))}"
    for index, edge in enumerate(config.schemas.edges):
        if not edge.subject:
            yield f"schemas.edges[{index}].subject", "must say which schema applies; schemas are found by subject"


DIALECTS = ("cloudevents", "mcp", "a2a", "envelope", "openai", "anthropic", "gemini", "http")
"""The built-in dialects, by the names that routes choose them by."""

EXPRESSIONS = (
    "when",
    "workflow",
    "task",
    "attempt",
    "source",
    "target",
    "subject",
    "version",
    "payload",
    "state_version",
    "tokens",
    "outcome",
)
"""The keys of a CustomConfig that hold JMESPath."""

_MAY_BE_ZERO = frozenset({"drain_seconds", "sample_ratio"})


def _not_positive(struct: msgspec.Struct, path: str) -> Iterator[tuple[str, str]]:
    """Every number in the configuration is a limit, a size or a time, so none may be zero, negative or endless."""
    for name in struct.__struct_fields__:
        value, key = getattr(struct, name), f"{path}{name}"
        if isinstance(value, msgspec.Struct):
            yield from _not_positive(value, f"{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                yield key, "must be a finite number; every limit has an end"
            elif value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                yield key, "must be more than 0" if name not in _MAY_BE_ZERO else "must not be negative"


def listen_address(text: str) -> tuple[str, int]:
    """`host:port`, `[::1]:port` or `:port` (loopback) to host and port. Raises ValueError that says how."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535 or (":" in bare and host == bare):
        raise ValueError(f"{text!r} is not an address; write host:port, such as 127.0.0.1:8080")
    return bare or "127.0.0.1", int(port)


def _bad_listen(key: str, text: str, taken: dict[str, str]) -> Iterator[tuple[str, str]]:
    try:
        _, port = listen_address(text)
    except ValueError as error:
        yield key, str(error)
        return
    if port and text in taken:
        yield key, f"{text} is already taken by {taken[text]}"
    taken[text] = key


def _bad_places(config: Config, taken: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the addresses and names of stores and buses."""
    names: dict[str, str] = {}
    for index, store in enumerate(config.stores):
        key = f"stores[{index}]"
        yield from _bad_name(key, store.name, names)
        yield from _not_positive(store, f"{key}.")
        if not store.listeners:
            yield f"{key}.listeners", "is empty; name a listen address and the upstream behind it"
        for at, listener in enumerate(store.listeners):
            yield from _bad_listen(f"{key}.listeners[{at}].listen", listener.listen, taken)
            if problem := bad_place(listener.upstream, ("redis", "rediss")):
                yield f"{key}.listeners[{at}].upstream", problem
    for index, bus in enumerate(config.buses):
        key = f"buses[{index}]"
        yield from _bad_name(key, bus.name, names)
        yield from _not_positive(bus, f"{key}.")
        yield from _bad_listen(f"{key}.listen", bus.listen, taken)
        if problem := bad_place(bus.upstream, ("nats",)):
            yield f"{key}.upstream", problem


def _bad_name(key: str, name: str, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    if not name:
        yield f"{key}.name", "must not be empty"
    elif name in names:
        yield f"{key}.name", f"{name} is already the name of {names[name]}"
    names[name] = key


def bad_place(text: str, schemes: Sequence[str]) -> str | None:
    """Why a text is no address of a server of one of these schemes, or None."""
    wanted = f"write {schemes[0]}://host:port" + (f", or {schemes[1]}://host:port for TLS" if schemes[1:] else "")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return f"{text!r} is not a URL; {wanted}"
    if parts.username or parts.password:
        return "must not hold a user or a password; clients carry their own"
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        return f"{text!r} is not an address; {wanted}"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return f"{text!r} has a path; {wanted}"
    return None


def _bad_registry(
    registry: RegistryConfig, schemas: SchemasConfig, listeners: dict[str, str]
) -> Iterator[tuple[str, str]]:
    if registry.listen is not None:
        yield from _bad_listen("registry.listen", registry.listen, listeners)
    sources = {
        "schemas.directory": schemas.directory,
        "registry.sqlite": registry.sqlite,
        "registry.remote": registry.remote,
    }
    named = [key for key, value in sources.items() if value is not None]
    for key in named[1:]:
        yield key, f"schemas come from {named[0]} already; keep one of them"
    if not named and registry.listen is None:
        yield "registry", "neither serves nor follows one; name listen, sqlite or remote"
    if registry.remote is not None:
        try:
            parts = urlsplit(registry.remote)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            yield "registry.remote", f"{registry.remote!r} is not an http or https URL; write http://host:port"
        elif parts.username or parts.password:
            yield "registry.remote", "must not hold a user or a password; put them into registry.remote_token_file"
    if (registry.tls_cert_file is None) != (registry.tls_key_file is None):
        yield "registry.tls_cert_file", "a certificate and its key go together; name both or none"


def _bad_otlp(otlp: OtlpConfig, listeners: dict[str, str]) -> Iterator[tuple[str, str]]:
    if otlp.http is None and otlp.grpc is None:
        yield "otlp", "listens nowhere; name http (usually 127.0.0.1:4318), grpc (127.0.0.1:4317) or both"
    for key, address in (("otlp.http", otlp.http), ("otlp.grpc", otlp.grpc)):
        if address is not None:
            yield from _bad_listen(key, address, listeners)
    if (otlp.tls_cert_file is None) != (otlp.tls_key_file is None):
        yield "otlp.tls_cert_file", "a certificate and its key go together; name both or none"
    if otlp.forward is not None and (problem := bad_url(otlp.forward)):
        yield "otlp.forward", problem.replace("the path of each request is passed on as it is", "/v1/traces is added")


def _bad_traces(traces: TracesConfig) -> Iterator[tuple[str, str]]:
    try:
        parts = urlsplit(traces.endpoint)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        yield "traces.endpoint", f"{traces.endpoint!r} is not an http or https URL; write http://host:4318"
    elif parts.username or parts.password:
        yield "traces.endpoint", "must not hold a user or a password; put them into traces.headers_file"
    elif traces.protocol == "grpc" and parts.path not in ("", "/"):
        yield "traces.endpoint", "has a path, which grpc does not know; write http://host:4317"
    if traces.sample_ratio > 1:
        yield "traces.sample_ratio", "must not be more than 1, which keeps everything"
    if traces.ca_file is not None and parts.scheme == "http":
        yield "traces.ca_file", "is for an https endpoint; this one is http"


ALERT_LABELS = ("alertname", "rule", "kind", "severity", "source", "target", "fingerprint")
"""What Handrail says of a finding in the labels of its alert."""
ALERT_PLACES = ("workflow", "source", "target", "rule", "kind", "fingerprint")
"""What `alerts.dashboard_url` may name in braces."""


def _bad_alerts(alerts: AlertsConfig) -> Iterator[tuple[str, str]]:
    if not alerts.alertmanagers and not alerts.webhooks:
        yield "alerts", "goes nowhere; name alertmanagers (usually http://127.0.0.1:9093), webhooks or both"
    receivers = [
        *((f"alerts.alertmanagers[{index}]", url) for index, url in enumerate(alerts.alertmanagers)),
        *((f"alerts.webhooks[{index}].url", webhook.url) for index, webhook in enumerate(alerts.webhooks)),
    ]
    for key, url in receivers:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            yield key, f"{url!r} is not an http or https URL; write http://host:9093"
        elif parts.username or parts.password:
            yield key, "must not hold a user or a password; put a token into token_file"
    for name in alerts.labels:
        if name in ALERT_LABELS:
            yield f"alerts.labels.{name}", "is what the finding says; choose another name"
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"alerts.labels.{name}", "is no name of a label: letters, digits and _"
    for place in re.findall(r"\{([^{}]*)\}", alerts.dashboard_url or ""):
        if place not in ALERT_PLACES:
            yield "alerts.dashboard_url", f"{{{place}}} is not known{_near(place, ALERT_PLACES)}"
    if alerts.dashboard_url is not None and not re.match(r"https?://[^/{}]", alerts.dashboard_url):
        yield "alerts.dashboard_url", "is not an http or https URL; write http://host:3000/d/handrail-overview"


def bad_url(text: str) -> str | None:
    """Why a text is no upstream, or None."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return f"{text!r} is not a URL; write http://host:port"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return f"{text!r} is not an http or https URL; write http://host:port"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return f"{text!r} has a path; the path of each request is passed on as it is, so write http://host:port"
    if parts.username or parts.password:
        return "must not hold a user or a password; requests carry their own"
    return None


def bad_dsn(text: str) -> str | None:
    """Why a text is no ClickHouse address, or None. The text is not repeated: it may hold a password."""
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in ("chdb", "clickhouse", "clickhouses", "http", "https"):
        return "is not a ClickHouse address; write chdb:///directory or clickhouse://user@host:8123/database"
    if scheme == "chdb":
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "is not a URL with a port from 1 to 65535; write clickhouse://user@host:8123/database"
    if not parts.hostname:
        return "names no host; write clickhouse://user@host:8123/database"
    if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", unquote(parts.path.strip("/"))):
        return "names a database that is no plain name: letters, digits and _"
    return None


def _bad_expressions(key: str, struct: msgspec.Struct, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        text = getattr(struct, name)
        if text is not None:
            try:
                jmespath.compile(text)
            except (ValueError, RecursionError) as error:  # every JMESPath error is a ValueError
                said = str(error).splitlines()[0].removesuffix(" for expression:").rstrip(",:")
                yield f"{key}.{name}", f"is not JMESPath: {said}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml where it is built in
    """Refuses a key that is there twice, where YAML's own loader keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        built: dict[Any, Any] = super().construct_mapping(node, deep)
        return built


_OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def parse_yaml(text: str, file: str) -> Any:
    """YAML text to plain values: safe loader, no aliases (a dozen of them can name a billion nodes), bounded size and
    depth, no key twice. Raises ConfigError with the line."""
    if len(text) > MAX_BYTES:
        raise ConfigError(file, "", f"is larger than {MAX_BYTES} bytes")
    depth = 0
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(file, _line(token.start_mark), "YAML aliases are not accepted; write it out")
            if isinstance(token, _OPENS):
                depth += 1
                if depth > MAX_DEPTH:
                    raise ConfigError(file, _line(token.start_mark), f"is nested deeper than {MAX_DEPTH} levels")
            elif isinstance(token, _CLOSES):
                depth -= 1
        return yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is the safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        if mark is not None and "nesting depth" in (error.problem or ""):  # libyaml looks ahead, and has its own limit
            raise ConfigError(file, _line(mark), f"is nested deeper than {MAX_DEPTH} levels") from None
        where = "" if mark is None else f"{_line(mark)}, column {mark.column + 1}"
        raise ConfigError(file, where, f"is not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise ConfigError(file, "", f"is not YAML: {str(error).splitlines()[0]}") from None


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}"


def convert(value: Any, into: type[T], file: str, at: str = "") -> T:
    """Plain values to a typed structure. Raises ConfigError with the path of the wrong key and how to fix it.

    `at` is the path of `value` itself where it is a part of a larger document.
    """
    try:
        return msgspec.convert({} if value is None else value, into)
    except msgspec.ValidationError as error:
        if " - at `key` in " in str(error):
            raise ConfigError(file, at, "has a key that is not text; put it in quotation marks") from None
        problem, _, where = str(error).rpartition(" - at ")
        problem, where = (problem, where.strip("`")) if problem else (where, "$")
        key, problem = _explain(problem, where.removeprefix("$").removeprefix("."), value, into)
        path = f"{at}{key}" if key.startswith("[") or not at or not key else f"{at}.{key}"
        raise ConfigError(file, path or at, problem) from None


_TYPES: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "a mapping of keys",
    "array": "a list",
    "null": "nothing",
}


def _explain(problem: str, key: str, value: Any, into: Any) -> tuple[str, str]:
    """The converter's words about a key to (key, problem) in ours."""
    steps = _steps(key)
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", problem):
        name, known = unknown.group(1), [field.encode_name for field in _fields(_type_at(into, steps))]
        return (f"{key}.{name}" if key else name), f"unknown key{_near(name, known)}"
    if absent := re.fullmatch(r"Object missing required field `(.+)`", problem):
        return (f"{key}.{absent.group(1)}" if key else absent.group(1)), "is missing"
    if problem.startswith("Invalid enum value"):
        allowed = [str(choice) for choice in _choices(_type_at(into, steps))]
        found = _value_at(value, steps)
        return key, f"{found!r} is not known{_near(str(found), allowed)}"
    if wrong := re.fullmatch(r"Expected `(.+)`, got `(.+)`", problem):
        wanted = [_TYPES.get(name, name) for name in wrong.group(1).split(" | ") if name != "null"]
        return key, f"must be {' or '.join(wanted)}, not {_TYPES.get(wrong.group(2), wrong.group(2))}"
    return key, problem[:1].lower() + problem[1:]


def _near(name: str, known: Sequence[str]) -> str:
    """The way out of a name that is not known: the nearest one that is, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _steps(key: str) -> list[str | int]:
    return [int(step[1:-1]) if step.startswith("[") else step for step in re.findall(r"\[\d+\]|[^.\[\]]+", key)]


def _type_at(into: Any, steps: Sequence[str | int]) -> Any:
    """The annotated type at a path below a structure; None where the path leaves what is typed."""
    for step in steps:
        candidates = [into, *get_args(into)]
        if isinstance(step, int):
            lists = [part for part in candidates if get_origin(part) in (tuple, list)]
            into = get_args(lists[0])[0] if lists else None
        else:
            types = [field.type for part in candidates for field in _fields(part) if field.encode_name == step]
            into = types[0] if types else None
    return into


def _fields(into: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a structure, or of the structure in a union with None."""
    for part in (into, *get_args(into)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return msgspec.structs.fields(part)
    return ()


def _choices(into: Any) -> tuple[Any, ...]:
    for part in (into, *get_args(into)):
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


def _value_at(value: Any, steps: Sequence[str | int]) -> Any:
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _repair(value: Any, error: ConfigError) -> bool:
    """Take the wrong key out of the plain values, so that the next one can be seen. Whether that could be done."""
    steps = _steps(error.key)
    parent = _value_at(value, steps[:-1]) if steps else None
    if isinstance(parent, dict):
        if error.problem == "is missing":
            parent[steps[-1]] = ""  # every required key holds text
            return True
        if steps[-1] in parent:
            del parent[steps[-1]]
            return True
    elif isinstance(parent, list) and isinstance(steps[-1], int):
        stand_in: Any = "" if "must be text" in error.problem else {}
        if parent[steps[-1]] != stand_in:
            parent[steps[-1]] = stand_in
            return True
    return False
