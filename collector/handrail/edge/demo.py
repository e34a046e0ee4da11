"""Five real agents, four real failures, one sidecar: what `handrail demo` shows, and how it proves what it shows.

The agents of examples/pipeline are started as processes of their own. They count every exchange that they make; the
sidecar, which runs here with a listener in front of each agent and ClickHouse embedded, records what it sees. At the
end the two are laid side by side, and the demo fails where they differ.

Nobody is left behind: each agent ends when its standard input does, and that is a pipe that this process holds.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
import signal
import socket
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


SHORTEST_SECONDS = 10.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is made to happen, and what must be found because of it."""

    at: float
    """When, as a share of the run."""
    agent: str
    version: str | None = None
    """The agent is replaced by this version of itself."""
    stall_seconds: float = 0.0
    """Its next piece of work waits this long. The analyst's patience and the researcher's deadline are two seconds."""
    happens: str
    finds: str | None = None
    """Kind of the finding."""
    edge: Edge | None = None


PLAN = (
    Step(
        at=0.2,
        agent="analyst",
        version="2.0",
        happens="analyst 2.0 hands over another payload",
        finds="schema.violation",
        edge=("analyst", "writer"),
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
        stall_seconds=4.5,
        happens="the writer stalls, is asked again, writes twice",
        finds="output.duplicate",
        edge=("writer", "reviewer"),
    ),
    Step(
        at=0.8,
        agent="researcher",
        stall_seconds=3.0,
        happens="the researcher stalls and misses a deadline",
        finds="budget.exceeded",
        edge=("coordinator", "researcher"),
    ),
)


class DemoError(Exception):
    """The demo could not be run; the message says what to do."""


class Cast:
    """The agents: started, told what to do, listened to, ended."""

    def __init__(self, script: Path, ports: Mapping[str, int], doors: Mapping[str, str], log: Path) -> None:
        """`ports` is where the agents serve, `doors` the URL at which each is reached through the sidecar."""
        self._script = script
        self._ports = ports
        self._doors = doors
        self._log = log.open("ab")
        self._on_stage: dict[str, asyncio.subprocess.Process] = {}
        self._all: list[asyncio.subprocess.Process] = []
        self._listening: set[asyncio.Task[None]] = set()
        self._said: dict[tuple[int, str], asyncio.Event] = {}
        self._idle = asyncio.Event()
        self.tally: Counter[tuple[str, str, str]] = Counter()
        """Exchanges that the agents made, by source, target and what it was (`handoff` or `card`)."""
        self.problems: list[str] = []

    async def enter(self, name: str, version: str = "1.0", *, wait: bool = False) -> asyncio.subprocess.Process:
        """Start an agent. With `wait` it is ready to open its port, and does when it is told `{}`."""
        peers = [f"--peer={target}={self._doors[target]}" for source, target in EDGES if source == name]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-B",
            str(self._script / f"{name}.py"),
            f"--port={self._ports[name]}",
            f"--version={version}",
            "--supervised",
            *(["--wait"] if wait else []),
            *peers,
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
                self.tally[said["agent"], said["target"], said["exchange"]] += 1
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

    async def heard(self, process: asyncio.subprocess.Process, word: str, within: float = 30.0) -> None:
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

    async def pause(self, within: float = 20.0) -> None:
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

    async def leave(self) -> None:
        """End every agent. Safe to call twice, and while agents are still starting."""
        await self._end(self._all)
        self._log.close()

    async def _end(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in processes:
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except TimeoutError:
                process.kill()
                await process.wait()


class Figures:
    """What is known of one edge."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self.recent: deque[float] = deque()
        self.findings: Counter[str] = Counter()

    def quantile(self, level: float) -> float:
        """As ClickHouse's quantileExact takes it, so that both tables say the same."""
        return self.durations[int(level * len(self.durations))]


class Board:
    """A sink that holds what the live table shows. `put` may be called from any thread."""

    def __init__(self) -> None:
        self._came: deque[Event | Finding] = deque()
        self.edges: dict[Edge, Figures] = {edge: Figures() for edge in EDGES}
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
                insort(figures.durations, record.duration_ms or 0.0)
                figures.recent.append(record.at)
            else:
                self.other += 1

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
    return Text.assemble(edge[0], (" → ", "dim"), edge[1])


def live_view(board: Board, now: float, seconds: float, metrics: str) -> RenderableType:
    """The table while the agents run."""
    table = _table("per s")
    for edge, figures in board.edges.items():
        if figures.durations:
            half, most = _ms(figures.quantile(0.5)), _ms(figures.quantile(0.95))
            rate = f"{board.rate(figures, now):.1f}"
            table.add_row(_arrow(edge), f"{len(figures.durations):,}", rate, half, most, _found(figures.findings))
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

    @property
    def exchanges(self) -> int:
        return sum(row[0] for row in self.edges.values()) + sum(self.other.values())


_EDGES_SQL = """
SELECT source, target, count(), quantileExact(0.5)(duration_ms), quantileExact(0.95)(duration_ms),
       quantileExact(0.5)(overhead_ms)
FROM {database:Identifier}.event FINAL
WHERE (source, target) IN {edges:Array(Tuple(String, String))}
GROUP BY source, target
"""
_OTHER_SQL = """
SELECT coalesce(target, ''), count()
FROM {database:Identifier}.event FINAL
WHERE NOT ((coalesce(source, ''), coalesce(target, '')) IN {edges:Array(Tuple(String, String))})
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
        given = {"database": database, "edges": list(EDGES)}
        edges = {
            (source, target): (count, half, most, overhead)
            for source, target, count, half, most, overhead in client.query(_EDGES_SQL, given).result_rows
        }
        other = {str(name): int(count) for name, count in client.query(_OTHER_SQL, given).result_rows}
        findings: dict[Edge, dict[str, int]] = {}
        for source, target, kind, count in client.query(_FINDINGS_SQL, given).result_rows:
            findings.setdefault((source, target), {})[kind] = int(count)
        return Recorded(edges=edges, other=other, findings=findings)
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


def judge(tally: Mapping[tuple[str, str, str], int], recorded: Recorded) -> Verdict:
    """The agents' own count against the record, and the plan against the findings."""
    handed: Counter[Edge] = Counter()
    asked: Counter[str] = Counter()
    for (source, target, what), count in tally.items():
        if what == "handoff":
            handed[source, target] += count
        else:
            asked[target] += count
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
    planned = {step.finds for step in PLAN}
    return Verdict(
        made=sum(tally.values()),
        recorded=recorded.exchanges,
        differences=tuple(differences),
        missed=tuple(
            step
            for step in PLAN
            if step.finds is not None
            and step.edge is not None
            and not recorded.findings.get(step.edge, {}).get(step.finds)
        ),
        unplanned=tuple(sorted({kind for kinds in recorded.findings.values() for kind in kinds} - planned)),
    )


def closing_view(recorded: Recorded, verdict: Verdict, problems: Sequence[str]) -> RenderableType:
    """The table from ClickHouse, what was found of what was made to happen, and whether the counts are equal."""
    table = _table("added")
    for edge in EDGES:
        count, half, most, overhead = recorded.edges.get(edge, (0, 0.0, 0.0, 0.0))
        added = f"{1000 * (overhead or 0.0):,.0f} µs"
        table.add_row(_arrow(edge), f"{count:,}", added, _ms(half), _ms(most), _found(recorded.findings.get(edge, {})))
    done = Table.grid(padding=(0, 2, 0, 0))
    for step in PLAN:
        if step.finds is None or step.edge is None:
            continue
        count = recorded.findings.get(step.edge, {}).get(step.finds, 0)
        mark = Text("✓", style="green") if count else Text("✗ not found", style="bold red")
        done.add_row(mark, Text(step.happens), Text(f"{step.finds} × {count}", style="yellow"))
    caption = Text.assemble(("What ClickHouse holds", "bold"), ("   added: time inside Handrail, p50", "dim"))
    lines: list[RenderableType] = [Text(), caption, table, Text()]
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


def examples() -> Path:
    """Where the example's agents are: beside the package in a wheel, at the top of a clone."""
    package = Path(handrail.__file__).parent
    for place in (package / "examples" / "pipeline", package.parents[1] / "examples" / "pipeline"):
        if (place / "agent.py").is_file():
            return place
    raise DemoError("examples/pipeline is missing; install handrail[demo] from a wheel, or run from a clone")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _admin_port() -> int:
    """Handrail's usual port where it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 9464))
        except OSError:
            return _free_ports(1)[0]
        return 9464


def configuration(script: Path, directory: Path, agents: Mapping[str, int], doors: Mapping[str, int]) -> Config:
    """The example's handrail.yaml with this run's ports and places."""
    file = script / "handrail.yaml"
    written = parse_yaml(file.read_text("utf-8"), str(file))
    for route in written["routes"]:
        route["listen"] = f"127.0.0.1:{doors[route['agent']]}"
        route["upstream"] = f"http://127.0.0.1:{agents[route['agent']]}"
    written["schemas"]["directory"] = str(script / "schemas")
    written["clickhouse"]["dsn"] = f"chdb://{directory / 'clickhouse'}"
    written["admin"] = {"listen": f"127.0.0.1:{_admin_port()}"}
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

    def start(self, within: float = 30.0) -> None:
        """Returns when it forwards. Raises what building and starting a Sidecar raise."""
        self._thread.start()
        self._sidecar = Sidecar(self._config, self._also)
        self._call(self._sidecar.start(), within)
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
                    self._call(self._sidecar.stop(drain_seconds), drain_seconds + 20.0)
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
                handed = sum(len(figures.durations) for figures in self._board.edges.values())
                self._console.print(f"{now - self._board.started:5.1f} s  {handed:,} handoffs seen", style="dim")
            await asyncio.sleep(0.25)

    def __enter__(self) -> "_Show":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


async def _follow(plan: Sequence[Step], cast: Cast, board: Board, seconds: float) -> None:
    """The plan, step by step, until its time is over and what was stalled had time to have its effect."""
    over = board.started + seconds

    async def prepared(step: Step) -> asyncio.subprocess.Process | None:
        return None if step.version is None else await cast.enter(step.agent, step.version, wait=True)

    understudy = await prepared(plan[0])
    for index, step in enumerate(plan, 1):
        await asyncio.sleep(max(0.0, board.started + step.at * seconds - time.time()))
        if understudy is not None:
            await cast.replace(step.agent, understudy)
        else:
            cast.tell(step.agent, stall=step.stall_seconds)
            over = max(over, time.time() + step.stall_seconds + 2.0)
        board.say("bold", f"▸ {step.happens}")
        understudy = await prepared(plan[index]) if index < len(plan) else None
    await asyncio.sleep(max(0.0, over - time.time()))


async def _perform(
    cast: Cast, sidecar: SidecarThread, board: Board, console: Console, seconds: float, keep: bool
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
            await cast.ready()
        board.started = time.time()
        with _Show(console, board, seconds, sidecar.metrics) as show:
            showing = asyncio.ensure_future(show.go_on())
            try:
                board.say("bold", f"▸ five agents at work, each behind its own listener; {sidecar.metrics}")
                cast.tell("coordinator", go=True)
                await _follow(PLAN, cast, board, seconds)
                if keep:
                    board.say("bold", "▸ the plan is over; Ctrl-C ends the demo")
                    await _until_interrupted(loop)
                await cast.pause()
                await asyncio.sleep(0.3)  # the last hand-over is answered after the report is published
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
    ports = _free_ports(2 * len(AGENTS))
    agents, doors = dict(zip(AGENTS, ports, strict=False)), dict(zip(AGENTS, ports[len(AGENTS) :], strict=True))
    config = configuration(script, place, agents, doors)
    dsn = config.clickhouse.dsn or ""
    board = Board()
    cast = Cast(
        script, agents, {name: f"http://127.0.0.1:{port}" for name, port in doors.items()}, place / "agents.log"
    )
    sidecar = SidecarThread(config, board)
    log = logging.FileHandler(place / "handrail.log")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("handrail")
    logger.addHandler(log)
    logger.propagate = False  # what it says about findings is on the board already
    try:
        asyncio.run(_perform(cast, sidecar, board, console, seconds, keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("ended early; agents and sidecar are gone", style="yellow")
        return 130
    except DemoError as error:
        Console(stderr=True, soft_wrap=True).print(f"handrail demo: {error}", style="red", highlight=False)
        return 1
    finally:
        logger.removeHandler(log)
        logger.propagate = True
        log.close()
    recorded = read_back(dsn, config.clickhouse.database)
    verdict = judge(cast.tally, recorded)
    console.print(closing_view(recorded, verdict, cast.problems))
    console.print(next_view(dsn, sidecar.metrics, keep), soft_wrap=True)
    return 0 if verdict.good else 1


def _check_dependencies() -> None:
    for module in ("a2a", "chdb", "uvicorn", "httpx", "sse_starlette"):
        if importlib.util.find_spec(module) is None:
            raise DemoError(f"{module} is missing; pip install 'handrail[demo]'")
