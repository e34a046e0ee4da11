"""`handrail run -- CMD`: a command whose calls of models, stores and buses go through a sidecar of its own.

The sidecar listens on free ports in front of what the command's environment names; the command gets the same variables
with the sidecar's addresses, its own terminal and its own signals. When it has ended, a report on standard error tells
what was handed over.

The command stays in the process group of the terminal, as under `time` or `env`: pipes and job control work as without
us, and Ctrl-C reaches it from the terminal itself. So a signal that the terminal gave is not given again; one that was
sent to this process alone is passed on.
"""

import asyncio
import contextlib
import os
import resource
import shlex
import signal
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from handrail.config import AdminConfig, Config, ConfigError, ForwardConfig, listen_address
from handrail.edge import sidecar as sidecars
from handrail.edge.environment import FREE, OTLP, Address, Lead, Led, configured_address, led, reachable
from handrail.edge.record import Rows
from handrail.edge.replay import SEVERITY_STYLES, quantile, shown
from handrail.edge.sidecar import Sidecar
from handrail.event import SEVERITIES, Event, Finding, to_json

EDGES = 1_000
"""Edges that a report tells apart; what comes on further ones is counted as others."""

LATEST = 10_000
"""Durations of one edge that its quantiles are taken from, the latest."""

FINDINGS = 200
"""Different findings that are listed."""

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that the command gets, and that do not end its sidecar."""

PROXY = ("HTTP_PROXY", "http_proxy")

FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT})
"""Those that a terminal gives to the whole foreground process group."""

_GOOD = frozenset({"completed", "accepted"})


def run(config: Config, command: Sequence[str], environ: Mapping[str, str], record: str | None = None) -> int:
    """The command's exit status; 128 and the signal's number where a signal ended it.

    `record` is a file that every event and finding is written to as JSON lines. Raises ConfigError.
    """
    # A proxy that the command has already may be the only way out; ours takes its place where it is asked for.
    is_proxied = config.forward is not None or not any(environ.get(name) for name in PROXY)
    found = _prepared(config, environ)
    config = found.config
    if config.admin == AdminConfig():
        config = replace(config, admin=AdminConfig(listen=FREE))
    if config.log_level == "info":  # the terminal is the command's
        config = replace(config, log_level="warning")
    _tell(f"goes around the sidecar: {line}" for line in found.left)
    limits = {name: resource.getrlimit(name) for name in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)}
    report = Report()
    sinks: tuple[Rows, ...] = (report,)
    with contextlib.ExitStack() as files:
        if record is not None:
            sinks = (report, Lines(files.enter_context(_created(record)), payloads=config.payloads))

        async def beside(sidecar: Sidecar) -> int:
            given = _environment(sidecar, found.leads, environ, is_proxied=is_proxied)
            return await _beside(sidecar, command, given, limits)

        status = sidecars.run(config, beside, sinks)
    report.show(Console(stderr=True, markup=False, highlight=False, width=None if sys.stderr.isatty() else 160))
    return status


def print_environment(config: Config, environ: Mapping[str, str]) -> int:
    """What a command would get, as lines for a shell. Listeners without a port of their own get one that is free now.

    Raises ConfigError.
    """
    found = led(config, environ)
    taken: dict[tuple[str, tuple[int, int]], Address] = {}
    variables = _variables(found.leads, environ, lambda lead: configured_address(found.config, lead, taken))
    if config.forward is not None and (address := listen_address(config.forward.listen))[1]:
        variables |= dict.fromkeys(PROXY, f"http://{reachable(address)}")
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    _tell(f"goes around the sidecar: {line}" for line in found.left)
    if taken:
        _tell(["these ports are free now, and `handrail run -- COMMAND` takes others; fixed ones come from -c FILE"])
    elif not found.leads:
        _tell(["nothing leads through a sidecar; set OPENAI_API_KEY or OPENAI_BASE_URL, or name stores in -c FILE"])
    return 0


def _tell(lines: Iterable[str]) -> None:
    sys.stderr.writelines(f"handrail: {line}\n" for line in lines)


def _prepared(config: Config, environ: Mapping[str, str]) -> Led:
    found = led(config, environ)
    if found.config.forward is None:
        # On loopback, for one command of the person who started it: it may go where that person may go.
        forward = ForwardConfig(listen=FREE, allow=("*",))
        found = Led(replace(found.config, forward=forward), found.leads, found.left)
    return found


def _created(path: str) -> BinaryIO:
    try:
        return Path(path).open("wb")
    except OSError as error:
        raise ConfigError("command line", "--record", f"{path} cannot be written: {error.strerror}") from None


def _variables(leads: Sequence[Lead], environ: Mapping[str, str], address: Callable[[Lead], Address]) -> dict[str, str]:
    variables = {lead.name: lead.value(address(lead)) for lead in leads}
    for lead in leads:
        if lead.name == OTLP and not environ.get("OTEL_EXPORTER_OTLP_PROTOCOL"):
            variables["OTEL_EXPORTER_OTLP_PROTOCOL"] = "grpc" if lead.at[0] else "http/protobuf"
    return variables


def _environment(
    sidecar: Sidecar, leads: Sequence[Lead], environ: Mapping[str, str], *, is_proxied: bool
) -> dict[str, str]:
    """The command's environment: its own, with the sidecar's addresses in place of what they stand in front of."""
    places: dict[tuple[str, int], tuple[Address, ...]] = {}
    stores = len(sidecar.config.stores)
    for number, place in enumerate(sidecar.places):
        kind, at = ("store", number) if number < stores else ("bus", number - stores)
        places[kind, at] = place.addresses

    def address(lead: Lead) -> Address:
        if lead.kind == "route":
            listener = sidecar.listeners[lead.at[0]]
            return listener.host, listener.port
        if lead.kind == "otlp":
            assert sidecar.otlp is not None
            where = sidecar.otlp.grpc_address if lead.at[0] else sidecar.otlp.http_address
            assert where is not None
            return where
        return places[lead.kind, lead.at[0]][lead.at[1]]

    environment = {**environ, **_variables(leads, environ, address)}
    for listener in sidecar.listeners:
        if listener.target is None and is_proxied:
            proxy = f"http://{reachable((listener.host, listener.port))}"
            environment |= dict.fromkeys(PROXY, proxy)
    spans = [urlsplit(lead.value(address(lead))) for lead in leads if lead.kind == "otlp"]
    if spans:  # spans are no traffic between agents, so they do not pass the forward proxy
        direct = [given for name in ("no_proxy", "NO_PROXY") if (given := environ.get(name))][:1]
        environment["NO_PROXY"] = environment["no_proxy"] = ",".join([*direct, *(each.netloc for each in spans)])
        environment["no_grpc_proxy"] = ",".join([*direct, *(each.hostname or "" for each in spans)])
    return environment


async def _beside(
    sidecar: Sidecar, command: Sequence[str], environment: Mapping[str, str], limits: Mapping[int, tuple[int, int]]
) -> int:
    """Runs the command to its end, with the signals that are meant for it."""
    sidecar.silent = "dropped"  # whoever has not spoken when the program is over will not
    waiting: list[int] = []
    process: asyncio.subprocess.Process | None = None

    def pass_on(number: int) -> None:
        if number in FROM_TERMINAL and _has_terminal():
            return
        if process is None:
            waiting.append(number)
        elif process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    loop = asyncio.get_running_loop()
    for number in PASSED_ON:
        loop.add_signal_handler(number, pass_on, number)
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environment)
    except OSError as error:
        raise ConfigError("command", command[0], f"cannot be started: {error.strerror}") from None
    except ValueError as error:  # an embedded null byte
        raise ConfigError("command", command[0], f"cannot be started: {error}") from None
    _give_back(limits, process.pid)
    for early in waiting:
        pass_on(early)
    code = await process.wait()
    return code if code >= 0 else 128 - code


def _give_back(limits: Mapping[int, tuple[int, int]], process: int) -> None:
    """The limits that this process had before it set its own, to a process that it started."""
    if sys.platform == "linux":
        for name, both in limits.items():
            with contextlib.suppress(OSError, ValueError):
                resource.prlimit(process, name, both)


def _has_terminal() -> bool:
    """Whether this process group is in the foreground of a terminal, which gives its signals to all of the group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


class Lines:
    """Events and findings to a file as JSON lines, which `handrail replay` reads."""

    def __init__(self, file: BinaryIO, *, payloads: bool) -> None:
        self._file = file
        self._payloads = payloads

    def put(self, record: Event | Finding) -> None:
        self._file.write(to_json(record, payloads=self._payloads) + b"\n")


class _Edge(msgspec.Struct):
    """What went one way."""

    count: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    tokens: int = 0
    durations: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=LATEST))
    overheads: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=LATEST))

    def add(self, event: Event) -> None:
        self.count += 1
        self.outcomes[event.outcome] += 1
        self.tokens += event.tokens or 0
        if event.duration_ms is not None:
            self.durations.append(event.duration_ms)
        if event.overhead_ms is not None:
            self.overheads.append(event.overhead_ms)

    @property
    def bad(self) -> str:
        """How many came to no good end, and to which: `1 dropped, 2 rejected`."""
        return ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()) if name not in _GOOD)


class Report:
    """Where the records of one run go, and what they come to: handoffs, latencies, findings. Its size is bounded."""

    def __init__(self) -> None:
        self._handoffs: dict[tuple[str, ...], _Edge] = {}
        self._calls: dict[tuple[str, ...], _Edge] = {}
        self._others: dict[tuple[str, ...], _Edge] = {}
        self._findings: OrderedDict[str, tuple[Finding, int]] = OrderedDict()
        self._severities: Counter[str] = Counter()

    def put(self, record: Event | Finding) -> None:
        if isinstance(record, Finding):
            self._severities[record.severity] += record.count
            known = self._findings.get(record.fingerprint)
            if known is not None:
                self._findings[record.fingerprint] = known[0], known[1] + record.count
            elif len(self._findings) < FINDINGS:
                self._findings[record.fingerprint] = record, record.count
            return
        protocol = record.protocol or "?"
        key: tuple[str, ...]
        if record.kind == "handoff":
            edges, key = self._handoffs, (record.source or "?", record.target or "?", protocol)
        elif record.kind == "usage":
            edges, key = self._calls, (record.source or "?", record.operation or "?", protocol)
        else:
            where = record.store or record.target or record.subject or "?"
            edges, key = self._others, (record.source or record.target or "?", record.kind, where)
        edge = edges.get(key)
        if edge is None:
            if len(edges) >= EDGES:
                key = ("others",) * len(key)
            edge = edges.setdefault(key, _Edge())
        edge.add(record)

    def show(self, out: Console) -> None:
        """Prints it."""
        out.print(Text("handrail: what was handed over", style="bold"))
        if self._handoffs:
            out.print(_table(("from", "to", "protocol"), "handoffs", self._handoffs), "")
        if self._calls:
            out.print(_table(("agent", "operation", "protocol"), "model calls", self._calls, tokens=True), "")
        if self._others:
            out.print(_table(("agent", "did", "where"), "times", self._others), "")
        for finding, count in self._findings.values():
            line = Text(f"{finding.severity:<8} ", style=SEVERITY_STYLES[finding.severity])
            line.append(f"{finding.rule}  ", style="bold not dim")
            line.append(shown(finding.message), style="default not bold")
            if count > 1:
                line.append(f"  ({count} times)", style="dim")
            out.print(line, soft_wrap=True)
        out.print(self._summary(), soft_wrap=True)

    def _summary(self) -> str:
        handoffs = _Edge()
        for edge in self._handoffs.values():
            handoffs.count += edge.count
            handoffs.outcomes.update(edge.outcomes)
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(handoffs.outcomes.items()))
        calls = sum(edge.count for edge in self._calls.values())
        others = sum(edge.count for edge in self._others.values())
        findings = self._severities.total()
        said = ", ".join(f"{self._severities[name]} {name}" for name in reversed(SEVERITIES) if self._severities[name])
        parts = [
            f"{_many(handoffs.count, 'handoff')}" + (f" ({outcomes})" if outcomes else ""),
            _many(calls, "model call"),
            *([_many(others, "other event")] if others else []),
            _many(findings, "finding") + (f": {said}" if said else ""),
        ]
        return ", ".join(parts)


def _table(keys: Sequence[str], count: str, edges: Mapping[tuple[str, ...], _Edge], *, tokens: bool = False) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in keys:
        table.add_column(name)
    for name in (count, *(("tokens",) if tokens else ()), "p50 ms", "p95 ms", "overhead p95 ms"):
        table.add_column(name, justify="right")
    table.add_column("not done")
    for key, edge in sorted(edges.items()):
        cells: list[Any] = [Text(shown(part)) for part in key]
        cells.append(str(edge.count))
        if tokens:
            cells.append(str(edge.tokens) if edge.tokens else "")
        cells += [quantile(edge.durations, 0.5), quantile(edge.durations, 0.95), _fine(edge.overheads)]
        table.add_row(*cells, edge.bad)
    return table


def _fine(values: Sequence[float]) -> str:
    """The 95th percentile of what is counted in microseconds."""
    ordered = sorted(values)
    return f"{ordered[max(0, -int(-len(ordered) * 0.95 // 1) - 1)]:.3f}" if ordered else ""


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
