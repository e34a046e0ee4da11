"""One process: listeners, inspector, sinks, admin port; started, reloaded and ended as a whole."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import resource
import signal
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
import uvloop

import handrail
from handrail import rules
from handrail.config import Config, ConfigError, FallbackConfig, RouteConfig
from handrail.edge.admin import Admin
from handrail.edge.alerts import Alerts
from handrail.edge.clickhouse import ClickHouseSink
from handrail.edge.files import Unreadable, load_packs, load_registry, read_schemas, schema_stamp
from handrail.edge.graph import configured_plans
from handrail.edge.learn import Learner
from handrail.edge.metrics import Metrics
from handrail.edge.otlp import Otlp
from handrail.edge.plans import PlanApi
from handrail.edge.proxy import Proxy
from handrail.edge.record import Recorder, Rows
from handrail.edge.registry import RegistryApi, RegistryBook
from handrail.edge.route import Fallback, Listener, Target
from handrail.edge.schemas import Schemas
from handrail.edge.state import bus_of, places_of, store_of
from handrail.edge.tls import trusting
from handrail.edge.worker import vetted
from handrail.event import Decision, Event, Fault, Outcome
from handrail.pipeline import Inspector, build
from handrail.schema.store import Store
from handrail.wire import Route

if TYPE_CHECKING:
    from handrail.edge.traces import Traces

log = logging.getLogger("handrail")

FLUSH_SECONDS = 5.0


def address_of(text: str, key: str) -> tuple[str, int]:
    """`host:port`, `:port` (loopback) or `[::1]:port` to host and port. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError("configuration", key, f"{text!r} is not host:port; write 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def _tls(route: RouteConfig | FallbackConfig, key: str) -> ssl.SSLContext | None:
    if not route.upstream.startswith("https:"):
        return None
    context = trusting(route.tls.ca_file, f"{key}.tls.ca_file")
    context.set_alpn_protocols(["http/1.1"])
    return context


def _fallback(route: RouteConfig, own: Route, key: str) -> Fallback | None:
    fallback = route.fallback
    if fallback is None:
        return None
    try:
        target = Target.parse(fallback.upstream, _tls(fallback, key), fallback.tls.server_name)
    except ValueError as error:
        raise ConfigError("configuration", f"{key}.upstream", str(error)) from None
    to = msgspec.structs.replace(own, instead=fallback.agent, upstream=f"{target.host}:{target.port}")
    return Fallback(target=target, route=to, seconds=fallback.seconds)


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what is compared, not what is listened on


def _refuse_loops(routes: list[Listener]) -> None:
    """A request that its own sidecar gets again would go round until every connection is in use."""

    def behind(route: Listener) -> int | None:
        target = route.target
        for index, other in enumerate(routes):
            if target is not None and other.port and other.port == target.port:
                is_here = target.host in _LOOPBACK and other.host in _LOOPBACK | _ANY
                if is_here or other.host == target.host:
                    return index
        return None

    for start in range(len(routes)):
        at, steps = behind(routes[start]), 1
        while at is not None and at != start and steps < len(routes):
            at, steps = behind(routes[at]), steps + 1
        if at == start:
            problem = "is the route's own listen address: a loop" if steps == 1 else "leads back to this route: a loop"
            raise ConfigError("configuration", f"routes[{start}].upstream", problem)


def listeners_of(config: Config) -> list[Listener]:
    """The routes of a configuration, and its forward proxy. Raises ConfigError naming the key."""
    listeners = []
    for index, route in enumerate(config.routes):
        key = f"routes[{index}]"
        host, port = address_of(route.listen, f"{key}.listen")
        try:
            target = Target.parse(route.upstream, _tls(route, key), route.tls.server_name)
        except ValueError as error:
            raise ConfigError("configuration", f"{key}.upstream", str(error)) from None
        own = Route(
            agent=route.agent or config.agent,
            peer=route.peer,
            side=route.side,
            upstream=f"{target.host}:{target.port}",
            dialects=route.dialects,
            limits=config.inspection,
        )
        listeners.append(
            Listener(
                host=host,
                port=port,
                target=target,
                own_host=route.host == "client",
                stamp=route.stamp,
                rewrite_cards=route.rewrite_cards,
                fallback=_fallback(route, own, f"{key}.fallback"),
                route=own,
            )
        )
    _refuse_loops(listeners)
    forward = config.forward
    if forward is not None:
        host, port = address_of(forward.listen, "forward.listen")
        agent = forward.agent or config.agent
        listeners.append(
            Listener(
                host=host,
                port=port,
                allow=forward.allow,
                stamp=forward.stamp,
                route=Route(agent=agent, side="egress", limits=config.inspection),
            )
        )
    if not config.listeners():
        raise ConfigError(
            "configuration", "routes", "there is nothing to listen on; name a route, or use --listen and --upstream"
        )
    return listeners


def problems_of(config: Config, inspector: Inspector | None) -> list[ConfigError | Unreadable]:
    """Why a sidecar of this configuration would not start, as far as that is known without a socket: each part is made
    that reads its addresses, tokens and certificates as it is made. Nothing is written.

    Without an inspector, because the rules have problems of their own, stores, buses and OTLP are not looked at.
    """
    metrics = Metrics(config.admin.label_sets)
    recorder = Recorder(metrics, (), ())

    def http() -> object:
        return listeners_of(config) if config.routes or config.forward is not None else None

    def registry() -> object:
        settings = config.registry
        if settings is None or settings.listen is None:
            return None
        return RegistryApi(settings, RegistryBook(Store(settings.compatibility)), metrics)

    def exporter() -> object:
        if config.traces is None:
            return None
        from handrail.edge import traces

        exporter = traces.exporter_of(config.traces)
        exporter.shutdown()
        return exporter

    def alerts() -> object:
        if config.alerts is None:
            return None
        return Alerts(config.alerts, metrics, agent=config.agent, now=time.time, fault=lambda _: None)

    def sink() -> object:
        return ClickHouseSink(config.clickhouse, metrics, payloads=False) if config.clickhouse.dsn else None

    parts: list[Callable[[], object]] = [http, registry, exporter, alerts, sink, lambda: configured_plans(config, 0.0)]
    if inspector is not None:
        seen_by = (config.agent, inspector.pipeline, recorder, time.time)
        parts += [partial(store_of, store, *seen_by) for store in config.stores]
        parts += [partial(bus_of, bus, *seen_by) for bus in config.buses]
        if config.otlp is not None:
            parts.append(partial(Otlp, config.otlp, inspector, recorder, time.time))
    problems: list[ConfigError | Unreadable] = []
    for part in parts:
        try:
            part()
        except (ConfigError, Unreadable) as error:
            problems.append(error)
    return problems


class Service(Protocol):
    """A part that listens or runs beside the HTTP proxy: a store's listeners, a bus's, a receiver, a publisher."""

    async def start(self) -> None:
        """Raises OSError where an address is taken, ConfigError where it cannot be what it was told to be."""
        ...

    async def stop(self) -> None: ...


class Sidecar:
    """The parts of one sidecar. `start` returns when it forwards; `stop` when nothing is left to write.

    `also` are further places where its records go.
    """

    def __init__(self, config: Config, also: tuple[Rows, ...] = ()) -> None:
        self.config = config
        self.listeners = listeners_of(config)
        self.registry = load_registry(config)
        self.inspector: Inspector = build(config, self.registry, rules.watches(load_packs(config), self.registry))
        self.metrics = Metrics(config.admin.label_sets)
        self.sink = (
            ClickHouseSink(config.clickhouse, self.metrics, payloads=config.payloads) if config.clickhouse.dsn else None
        )
        sinks: tuple[Rows, ...] = (self.sink,) if self.sink is not None else ()
        self.learner = Learner(self.registry, config.schemas.learn_subjects) if config.schemas.learn else None
        if self.learner is not None:
            sinks = (*sinks, self.learner)
        self.traces: Traces | None = None
        if config.traces is not None:
            from handrail.edge import traces  # only here: what it imports is 30 MB

            self.traces = traces.Traces(config.traces, self.metrics, agent=config.agent, fault=self._fault)
        self.alerts: Alerts | None = None
        if config.alerts is not None:
            self.alerts = Alerts(config.alerts, self.metrics, agent=config.agent, now=self._now, fault=self._fault)
        whole = tuple(place for place in (self.alerts, self.traces) if place is not None)
        self.recorder = Recorder(self.metrics, sinks + also, whole)
        self.proxy = Proxy(self.listeners, config.limits, self.inspector, self.recorder)
        self.admin = Admin(config.admin, self.metrics, ready=self.unready)
        PlanApi(self._told, self.proxy.now).add_to(self.admin.app)
        self._plans = configured_plans(config, self.proxy.now())
        if self.learner is not None:
            self.learner.add_to(self.admin.app)
        self.admin_address: tuple[str, int] | None = None
        self.services: list[Service] = []
        self.schemas: Schemas | None = None
        if config.registry is not None:
            self.schemas = Schemas(config, self.registry, self.metrics, self._fault)
            self.services.append(self.schemas)
        self.places = tuple(places_of(config, self.inspector.pipeline, self.recorder, self.proxy.now))
        self.services += self.places
        if config.otlp is not None:
            self.otlp = Otlp(config.otlp, self.inspector, self.recorder, self.proxy.now)
            self.services.append(self.otlp)
        self.silent: Outcome = "unknown"
        """What becomes, when the sidecar ends, of a handoff that nobody has answered by then."""
        self._ready = False
        self._watcher: asyncio.Task[None] | None = None

    def _told(self, event: Event) -> Decision:
        """An event that somebody told us about, through the pipeline to the sinks."""
        decision = self.inspector.pipeline.observe(event)
        self.recorder.record(decision, self.proxy.now())
        return decision

    def unready(self) -> dict[str, str]:
        """Why traffic should not come here: component to reason, empty when it should.

        A ClickHouse that is away is no reason: traffic passes and rows wait.
        """
        if self.proxy.draining:
            return {"proxy": "draining"}
        return {} if self._ready else {"proxy": "starting"}

    def _now(self) -> float:
        return self.proxy.now()  # the proxy is made after those that ask

    async def start(self) -> None:
        """Raises OSError where an address is taken."""
        metrics, proxy = self.metrics, self.proxy
        addresses = await proxy.start()
        if self.sink is not None:
            await self.sink.start()
        if self.traces is not None:
            await self.traces.start()
        if self.alerts is not None:
            await self.alerts.start()
        for service in self.services:
            await service.start()
        self.admin_address = await self.admin.start()
        metrics.watch("handrail_connections", lambda: len(proxy.clients))
        metrics.watch("handrail_in_flight", lambda: proxy.in_flight)
        metrics.gauge("handrail_rules", len(self.inspector.pipeline.watches))
        metrics.watch("handrail_rules_off", lambda: sum(watch.off for watch in self.inspector.pipeline.watches))
        metrics.watch("handrail_ready", lambda: not self.unready())
        self._count_schemas(valid=True)
        if self.config.schemas.directory is not None:
            self._watcher = asyncio.create_task(self._watch(self.config.schemas.directory))
        for plan in self._plans:
            self._told(plan)
        self._ready = True
        for listener, (host, port) in zip(self.listeners, addresses, strict=True):
            where = f"{listener.target.authority}" if listener.target is not None else "the hosts of forward.allow"
            log.info("listening on http://%s:%d for %s", host, port, where)
        log.info("metrics on http://%s:%d/metrics", *self.admin_address)

    async def stop(self, drain_seconds: float) -> None:
        self._ready = False
        if self._watcher is not None:
            self._watcher.cancel()
        await self.proxy.stop(drain_seconds)
        for service in reversed(self.services):
            await service.stop()
        now = self.proxy.now()
        self.recorder.record(self.inspector.pipeline.close(now), now)
        self.recorder.record_all(self.inspector.end(self.silent), self.proxy.now())
        self.recorder.flush(float("inf"))
        if self.sink is not None:
            await self.sink.close(FLUSH_SECONDS)
        if self.traces is not None:
            await self.traces.stop()
        if self.alerts is not None:
            await self.alerts.stop()
        await self.admin.stop()

    def _fault(self, fault: Fault) -> None:
        self.recorder.fault(fault, self.proxy.now())

    async def _watch(self, directory: str) -> None:
        """Puts changed schema files in force as a whole; wrong ones are reported and change nothing."""
        loop = asyncio.get_running_loop()
        stamp = await loop.run_in_executor(None, schema_stamp, directory)
        while True:
            await asyncio.sleep(self.config.schemas.poll_seconds)
            fresh = await loop.run_in_executor(None, schema_stamp, directory)
            if fresh == stamp:
                continue
            stamp = fresh
            try:
                files = await loop.run_in_executor(None, read_schemas, directory)
                costly = await loop.run_in_executor(None, vetted, files)
                problems = [f"{file}: {why}" for file, why in costly.items()]
                if not problems:
                    subjects, found = await loop.run_in_executor(None, self.registry.compiled, files)
                    problems = [str(problem) for problem in found]
                if not problems:
                    self.registry.replace(subjects)
                    if self.schemas is not None:
                        self.schemas.directory_changed(files)
            except Unreadable as error:
                problems = list(error.problems)
            for problem in problems:
                self.recorder.fault(Fault(component="registry", reason="invalid", message=problem), self.proxy.now())
            if not problems:
                log.info("schemas reloaded from %s", directory)
            self._count_schemas(valid=not problems)

    def _count_schemas(self, *, valid: bool) -> None:
        subjects = self.registry.subjects()
        self.metrics.gauge("handrail_registry_subjects", len(subjects))
        self.metrics.gauge("handrail_registry_versions", sum(map(len, subjects.values())))
        self.metrics.gauge("handrail_registry_valid", valid)


class Beside(Protocol):
    """What a sidecar lives for: it ends when this does. Returns the exit status; takes the signals that are its own."""

    async def __call__(self, sidecar: Sidecar) -> int: ...


def run(config: Config, beside: Beside | None = None, also: tuple[Rows, ...] = ()) -> int:
    """`handrail run`: until a signal, or until what it runs beside has ended. That one's exit status, or 0."""
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    _tune()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, beside, also))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


def _tune() -> None:
    """Limits of the process: no core files (they would hold payloads), as many files as allowed, a calm collector.

    And memory that is given back: glibc takes the size of what was once freed in one piece, as a batch of rows is, for
    what its heap should hold from then on, 2.4 MB under load. Another C library knows no `mallopt` and does not do so.
    """
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 262_144)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _serve(config: Config, beside: Beside | None, also: tuple[Rows, ...]) -> int:
    sidecar = Sidecar(config, also)
    try:
        await sidecar.start()
    except OSError as error:
        raise ConfigError("configuration", "listen", f"{error.strerror or error}; choose a free address") from None
    log.info("handrail %s is ready", handrail.__version__)
    stopping = asyncio.Event()
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    status = 0
    refused: ConfigError | None = None
    if beside is None:
        await stopping.wait()
    else:
        try:
            status = await beside(sidecar)
        except ConfigError as error:
            refused = error
        stopping.set()  # a signal from now on is ours, and means that it should hurry
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
    log.info("ending: finishing what is under way, for at most %g s", config.limits.drain_seconds)
    ending = asyncio.create_task(sidecar.stop(config.limits.drain_seconds))
    impatient = asyncio.create_task(hurry.wait())
    await asyncio.wait((ending, impatient), return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        await sidecar.stop(0.0)
    impatient.cancel()
    if refused is not None:
        raise refused
    return status
