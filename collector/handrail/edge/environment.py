"""An environment's variables become listeners, and the listeners become the variables of a command.

A client library takes its server's address from a variable, or from its own default. What a variable names becomes an
upstream of the sidecar; the command gets the same variable with the sidecar's address in the place of host and port, so
that users, passwords, paths and queries stay as they are. Where a variable leads nowhere it is not set: nothing goes to
a server that would not have been asked without us.
"""

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # missing in typeshed

import msgspec
from msgspec.structs import replace

from handrail.config import (
    BusConfig,
    Config,
    OtlpConfig,
    RouteConfig,
    StoreConfig,
    StoreListenerConfig,
    TlsConfig,
    bad_place,
    bad_url,
    listen_address,
)

FREE = "127.0.0.1:0"


class Api(msgspec.Struct, frozen=True):
    """Variables that name the base URL of one API. The first is the one that its clients read first."""

    variables: tuple[str, ...]
    usual: str | None = None
    """Where its clients go when no variable says so."""
    keys: tuple[str, ...] = ()
    """Variables that hold its credentials: with one of them set, it is called."""
    dialect: str | None = None
    """A configured route of this dialect is in front of it."""
    unless: str | None = None
    """Where this variable is set, only those variables are set that were set before: a client would take them for its
    own."""


APIS: tuple[Api, ...] = (
    Api(
        ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        "openai",
        unless="AZURE_OPENAI_ENDPOINT",  # LangChain's Azure client refuses to start with OPENAI_API_BASE
    ),
    Api(
        ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_URL", "ANTHROPIC_API_BASE"),
        "https://api.anthropic.com",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        "anthropic",
    ),
    Api(
        ("GOOGLE_GEMINI_BASE_URL",),
        "https://generativelanguage.googleapis.com",
        ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
        "gemini",
    ),
    *(
        Api((name,))
        for name in (
            "AZURE_OPENAI_ENDPOINT",
            "AZURE_API_BASE",
            "GOOGLE_VERTEX_BASE_URL",
            "GEMINI_API_BASE",
            "MISTRAL_API_BASE",
            "GROQ_BASE_URL",
            "DEEPSEEK_API_BASE",
            "OPENROUTER_API_BASE",
            "OLLAMA_HOST",
            "OLLAMA_API_BASE",
            "HOSTED_VLLM_API_BASE",
            "LITELLM_PROXY_API_BASE",
        )
    ),
)
"""Which variable leads to which API. Only the first three have a default that is worth to be led."""

STORES = ("REDIS_URL", "VALKEY_URL")
BUSES = ("NATS_URL",)
OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"
OTLP_SIGNALS = {
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "/v1/traces",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "/v1/logs",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "/v1/metrics",
}
"""Endpoints of one signal, and the path that they end with over HTTP."""

_TLS_ONLY = ("ssl_", "tls_")
"""Parameters of a rediss:// URL that its client takes with TLS only; here the sidecar speaks TLS."""

Address = tuple[str, int]


class Lead(msgspec.Struct, frozen=True, kw_only=True):
    """A variable that leads to a listener of the sidecar: `before` host:port `after`."""

    name: str
    kind: Literal["route", "store", "bus", "otlp"]
    at: tuple[int, int]
    """Which route, (store, listener), or bus of the configuration; of the receivers, 0 is HTTP and 1 is gRPC."""
    before: str
    after: str
    upstream: str
    """host:port behind the listener, for people."""

    def value(self, address: Address) -> str:
        """The variable's value where the listener is at `address`."""
        where = reachable(address)
        if self.kind == "otlp":  # a name and not an address: `requests` finds no port beside an address in NO_PROXY
            where = where.replace("127.0.0.1:", "localhost:")
        return f"{self.before}{where}{self.after}"


class Led(msgspec.Struct, frozen=True):
    """A configuration with a listener for all that an environment names, and the variables that lead there."""

    config: Config
    leads: tuple[Lead, ...]
    left: tuple[str, ...] = ()
    """What is named and goes around the sidecar, and why: a line each."""


def reachable(address: Address) -> str:
    """host:port by which a listener is reached from the same machine."""
    host, port = address
    if host in ("0.0.0.0", ""):  # noqa: S104  compared, not bound
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def led(config: Config, environ: Mapping[str, str]) -> Led:
    """A listener on a free port for each upstream that `environ` names and `config` has no listener for."""
    plan = _Plan(config, environ)
    for api in APIS:
        plan.add_api(api)
    for name in STORES:
        plan.add_store(name)
    for name in BUSES:
        plan.add_bus(name)
    plan.add_otlp()
    return Led(plan.config, tuple(plan.leads), tuple(plan.left))


class _Plan:
    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self.config = config
        self.leads: list[Lead] = []
        self.left: list[str] = []
        self._environ = environ
        self._given = len(config.routes)
        lower = {name.lower(): value for name, value in environ.items() if name.lower().endswith("_proxy")}
        self._is_proxied = bool(lower.get("https_proxy") or lower.get("all_proxy"))
        self._direct = {"no": lower.get("no_proxy", "")}

    def add_api(self, api: Api) -> None:
        named = {name: value for name in api.variables if (value := self._environ.get(name, "").strip())}
        first = named.get(api.variables[0])
        known: tuple[str, ...] = ()
        if not named and api.usual is not None:
            route = self._route_for(api)
            if route is not None:
                self._lead(api.variables, route, "http://", urlsplit(api.usual).path)
                return
            if not any(self._environ.get(key) for key in api.keys):
                return
            first, known = api.usual, api.variables
        elif first is not None:
            known = api.variables
        if api.unless is not None and self._environ.get(api.unless):
            known = known[:1]
        # A variable that is not set stands beside one that is only where the client's first choice is known: set beside
        # a second choice it would send a client elsewhere than before.
        left: set[str] = set()
        for name, url in {**dict.fromkeys(known, first or ""), **named}.items():
            if url not in left and not self._add_url(name, url):
                left.add(url)

    def _route_for(self, api: Api) -> int | None:
        """The configured route in front of an API that no variable names."""
        for index, route in enumerate(self.config.routes[: self._given]):
            if api.dialect in route.dialects or _origin(route.upstream) == _origin(api.usual or ""):
                return index
        return None

    def _add_url(self, name: str, url: str) -> bool:
        """False where it is left alone, for a reason that is told."""
        parts = urlsplit(url)
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if (problem := bad_url(bare)) is not None:
            self.left.append(f"{name}: {problem}")
            return False
        if any(_same_place(parts.netloc.rpartition("@")[2], route.listen) for route in self.config.routes):
            return True
        host = parts.hostname or ""
        if parts.scheme == "https" and self._is_proxied and not proxy_bypass_environment(host, self._direct):
            self.left.append(f"{name}: {host} is reached through HTTPS_PROXY, which a route does not use")
            return False
        user = parts.netloc.rpartition("@")[0]
        rest = parts.path + (f"?{parts.query}" if parts.query else "")
        origins = [_origin(route.upstream) for route in self.config.routes]
        if _origin(bare) not in origins:
            fresh = RouteConfig(listen=FREE, upstream=bare, side="egress")
            self.config = replace(self.config, routes=(*self.config.routes, fresh))
            origins.append(_origin(bare))
        self._lead((name,), origins.index(_origin(bare)), f"http://{user}@" if user else "http://", rest)
        return True

    def _lead(self, names: Sequence[str], index: int, before: str, after: str) -> None:
        upstream = self.config.routes[index].upstream
        for name in names:
            lead = Lead(name=name, kind="route", at=(index, 0), before=before, after=after, upstream=upstream)
            self.leads.append(lead)

    def add_store(self, name: str) -> None:
        url = self._environ.get(name, "").strip()
        if not url:
            configured = [(index, at) for index, at in self._primaries() if not self._is_led("store", (index, at))]
            if configured and name == STORES[0]:
                self._add_place(name, "store", configured[0], "redis://", "/0")
            return
        parts = urlsplit(url)
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if (problem := bad_place(bare, ("redis", "rediss"))) is not None:
            self.left.append(f"{name}: {problem}")
            return
        user = parts.netloc.rpartition("@")[0]
        before = f"redis://{user}@" if user else "redis://"
        given = parse_qsl(parts.query, keep_blank_values=True)
        after = parts.path
        tls = TlsConfig()
        if parts.scheme == "rediss":
            tls = TlsConfig(ca_file=dict(given).get("ssl_ca_certs"))
            given = [pair for pair in given if not pair[0].startswith(_TLS_ONLY)]
            after += f"?{urlencode(given)}" if given else ""
        elif parts.query:
            after += f"?{parts.query}"
        for index, store in enumerate(self.config.stores):
            for at, listener in enumerate(store.listeners):
                if _same_server(listener.upstream, bare, 6379):
                    self._add_place(name, "store", (index, at), before, after)
                    return
                if _same_place(parts.netloc.rpartition("@")[2], listener.listen):
                    return
        fresh = StoreConfig(
            name=self._free_name(name.removesuffix("_URL").lower()),
            listeners=(StoreListenerConfig(listen=FREE, upstream=bare, tls=tls),),
        )
        self.config = replace(self.config, stores=(*self.config.stores, fresh))
        self._add_place(name, "store", (len(self.config.stores) - 1, 0), before, after)

    def _primaries(self) -> list[tuple[int, int]]:
        return [
            (index, at)
            for index, store in enumerate(self.config.stores)
            for at, listener in enumerate(store.listeners)
            if listener.role == "primary"
        ]

    def _is_led(self, kind: str, at: tuple[int, int]) -> bool:
        return any(lead.kind == kind and lead.at == at for lead in self.leads)

    def add_bus(self, name: str) -> None:
        url = self._environ.get(name, "").strip()
        if not url:
            if self.config.buses:
                self._add_place(name, "bus", (0, 0), "nats://", "")
            return
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        problem = "names several servers; a listener is in front of one" if "," in url else bad_place(bare, ("nats",))
        if problem is not None:
            self.left.append(f"{name}: {problem}")
            return
        user = parts.netloc.rpartition("@")[0]
        before = f"nats://{user}@" if user else "nats://"
        for index, bus in enumerate(self.config.buses):
            if _same_server(bus.upstream, bare, 4222):
                self._add_place(name, "bus", (index, 0), before, "")
                return
            if _same_place(parts.netloc.rpartition("@")[2], bus.listen):
                return
        fresh = BusConfig(name=self._free_name("nats"), listen=FREE, upstream=bare)
        self.config = replace(self.config, buses=(*self.config.buses, fresh))
        self._add_place(name, "bus", (len(self.config.buses) - 1, 0), before, "")

    def add_otlp(self) -> None:
        """Spans that go to an endpoint over HTTP come in here and are passed on; so do those of a configured one."""
        otlp = self.config.otlp
        for name, path in ((OTLP, ""), *OTLP_SIGNALS.items()):
            url = self._environ.get(name, "").strip()
            if not url:
                continue
            parts = urlsplit(url)
            bare = f"{parts.scheme}://{parts.netloc}"
            signal = name.removesuffix("_ENDPOINT") + "_PROTOCOL"
            protocol = self._environ.get(signal) or self._environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
            problem = bad_url(bare)
            if protocol == "grpc" or (not protocol and parts.port == 4317):
                problem = "is a gRPC endpoint; spans are passed on over HTTP, so name its port for that, usually 4318"
            elif problem is None and (parts.path.rstrip("/") != path or parts.query):
                problem = f"{url!r} has a path of its own, which spans are not passed on to"
            elif otlp is not None and _same_place(parts.netloc, otlp.http or FREE):
                continue
            elif problem is None and otlp is not None and otlp.forward and _origin(otlp.forward) != _origin(bare):
                problem = f"spans are passed on to {otlp.forward} already"
            if problem is not None:
                self.left.append(f"{name}: {problem}")
                continue
            otlp = OtlpConfig(http=FREE) if otlp is None else otlp
            otlp = replace(otlp, http=otlp.http or FREE, forward=bare)
            self.config = replace(self.config, otlp=otlp)
            self._lead_otlp(name, 0, path)
        if otlp is not None and not self._environ.get(OTLP):
            self._lead_otlp(OTLP, 0 if otlp.http is not None else 1, "")

    def _lead_otlp(self, name: str, at: int, path: str) -> None:
        otlp = self.config.otlp
        assert otlp is not None
        scheme = "http://" if otlp.tls_cert_file is None else "https://"
        upstream = otlp.forward or "the sidecar itself"
        self.leads.append(Lead(name=name, kind="otlp", at=(at, 0), before=scheme, after=path, upstream=upstream))

    def _free_name(self, name: str) -> str:
        """What is not yet the name of a store or a bus."""
        taken = {store.name for store in self.config.stores} | {bus.name for bus in self.config.buses}
        return next(each for each in (name, *(f"{name}-{number}" for number in range(2, 99))) if each not in taken)

    def _add_place(
        self, name: str, kind: Literal["store", "bus"], at: tuple[int, int], before: str, after: str
    ) -> None:
        config = self.config
        upstream = config.stores[at[0]].listeners[at[1]].upstream if kind == "store" else config.buses[at[0]].upstream
        self.leads.append(Lead(name=name, kind=kind, at=at, before=before, after=after, upstream=upstream))


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _same_server(one: str, other: str, port: int) -> bool:
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.hostname, first.port or port) == (second.scheme, second.hostname, second.port or port)


def _same_place(authority: str, listen: str) -> bool:
    """Whether an authority that a variable names is a listen address of ours already."""
    host, _, port = listen.rpartition(":")
    if port == "0":
        return False
    named = authority.rpartition(":")
    return named[2] == port and (named[0] == host or (_is_loopback(named[0]) and _is_loopback(host)))


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def configured_address(config: Config, lead: Lead, taken: dict[tuple[str, tuple[int, int]], Address]) -> Address:
    """The address that a listener will have; one without a port of its own gets one that is free now, in `taken`."""
    if lead.kind == "route":
        text = config.routes[lead.at[0]].listen
    elif lead.kind == "otlp":
        assert config.otlp is not None
        text = (config.otlp.grpc if lead.at[0] else config.otlp.http) or FREE
    elif lead.kind == "store":
        text = config.stores[lead.at[0]].listeners[lead.at[1]].listen
    else:
        text = config.buses[lead.at[0]].listen
    host, port = listen_address(text)
    if port:
        return host, port
    key = (lead.kind, lead.at)
    if key not in taken:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            taken[key] = host, probe.getsockname()[1]
    return taken[key]
