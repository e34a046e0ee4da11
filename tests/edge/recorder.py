"""Both ends of a proxied connection as raw bytes, scripted, and a stage that puts a real proxy between them.

A `Wire` is one end of a TCP connection that records what it reads and does to the connection what a script says: delay,
trickle, cut, FIN, RST. `play` runs one scenario on uvloop with a real inspector, real metrics and a sink that is a
list, and asserts after every one of them what must hold whatever happened: nothing in flight, no connection left over,
no part of the copy budget missing, no error that the loop had to report, ids unique.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import msgspec
import orjson
import uvloop

from handrail import rules
from handrail.config import Config, LimitsConfig
from handrail.edge.metrics import Metrics
from handrail.edge.proxy import Proxy
from handrail.edge.record import Recorder
from handrail.edge.route import Listener, Target
from handrail.event import Event, Finding
from handrail.pipeline import Inspector, build
from handrail.schema.registry import Registry
from handrail.wire import BodyLimits, Route

PATIENCE = 5.0
"""Seconds after which a step of a script is a hang."""


class Wire:
    """One end of a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = b""
        self.seen = bytearray()
        self.end: str | None = None
        """How the other side ended it: `fin`, `rst`, or None while it has not."""

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> "Wire":
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    async def more(self, patience: float = PATIENCE) -> bytes:
        """What comes next, empty at the end of the connection."""
        try:
            async with asyncio.timeout(patience):
                data = await self._reader.read(65_536)
        except ConnectionError:
            self.end = "rst"
            return b""
        if not data:
            self.end = self.end or "fin"
        self.seen += data
        return data

    async def until(self, mark: bytes = b"\r\n\r\n", patience: float = PATIENCE) -> bytes:
        """Bytes up to and with the mark; raises EOFError where they do not come."""
        while mark not in self._buffer:
            data = await self.more(patience)
            if not data:
                raise EOFError(f"no {mark!r} in {self._buffer!r}")
            self._buffer += data
        taken, _, self._buffer = self._buffer.partition(mark)
        return taken + mark

    async def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self.more()
            if not data:
                raise EOFError(f"{len(self._buffer)} of {size} bytes")
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    async def message(self, *, bodiless: bool = False) -> bytes:
        """One HTTP message, framed by Content-Length or chunks; a reply that has neither runs to the end."""
        head = await self.until()
        lower = head.lower()
        if bodiless or lower.startswith((b"http/1.1 1", b"http/1.1 204", b"http/1.1 304")):
            return head
        if b"transfer-encoding: chunked" in lower:
            whole = head
            while True:
                line = await self.until(b"\r\n")
                whole += line
                size = int(line.partition(b";")[0], 16)
                if not size:
                    break
                whole += await self.exactly(size + 2)
            while (line := await self.until(b"\r\n")) != b"\r\n":
                whole += line
            return whole + line
        if b"content-length:" in lower:
            return head + await self.exactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
        if not head.startswith(b"HTTP/"):
            return head
        return head + await self.rest()

    async def rest(self, patience: float = PATIENCE) -> bytes:
        """Everything to the end of the connection."""
        while data := await self.more(patience):
            self._buffer += data
        taken, self._buffer = self._buffer, b""
        return taken

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Each piece as a segment of its own as far as TCP allows, with a pause between them."""
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(pause)
            if self._writer.transport.is_closing():
                self.end = self.end or "rst"
                return
            try:
                self._writer.write(piece)
                await self._writer.drain()
            except ConnectionError:
                self.end = "rst"
                return

    def fin(self) -> None:
        """No more from this side."""
        self._writer.write_eof()

    def shut(self) -> None:
        """No more from this side, said at once and not when the loop turns."""
        held = self._writer.get_extra_info("socket")
        with socket.fromfd(held.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
            same.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        held = self._writer.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()

    def read_slowly(self, limit: int = 4096) -> None:
        """Shrinks what this side takes in advance."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limit)


Script = Callable[[Wire], Awaitable[None]]

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'


async def answer_all(wire: Wire) -> None:
    """An upstream that answers every request with `OK` until the connection ends."""
    with contextlib.suppress(EOFError):
        while True:
            await wire.message()
            await wire.send(OK)


def replying(*pieces: bytes, then: str = "wait", pause: float = 0.0) -> Script:
    """An upstream that reads one request, sends these pieces, and ends with `fin`, `rst`, or `wait`s for the client."""

    async def script(wire: Wire) -> None:
        await wire.message()
        await wire.send(*pieces, pause=pause)
        if then == "fin":
            wire.close()
        elif then == "rst":
            await asyncio.sleep(0.05)  # what was sent is on its way before the reset discards it
            wire.rst()
        else:
            await wire.rest()

    return script


class Upstream:
    """A server that plays one script for each connection and keeps what it saw."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self.wires: list[Wire] = []
        self.port = 0
        self.problems: list[BaseException] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        wire = Wire(reader, writer)
        self.wires.append(wire)
        try:
            await self._script(wire)
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass  # the other side went away, which the scenario asserts where it matters
        except Exception as error:  # noqa: BLE001 - shown by play, which runs in another task
            self.problems.append(error)
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(ConnectionError, RuntimeError):
                writer.close()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def seen(self) -> bytes:
        """What the first connection saw."""
        return bytes(self.wires[0].seen) if self.wires else b""


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.findings: list[Finding] = []

    def put(self, record: Event | Finding) -> None:
        if isinstance(record, Event):
            self.events.append(record)
        else:
            self.findings.append(record)


few_at_once = 4
"""Requests in flight up to which a stage's proxy makes each write at once; -1 makes it write as it does under load."""


class Stage:
    """A proxy in front of an upstream, and what it recorded."""

    def __init__(self, proxy: Proxy, upstream: Upstream, kept: Kept, metrics: Metrics, registry: Registry) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.kept = kept
        self.metrics = metrics
        self.registry = registry
        self.port = 0
        self.clients: list[Wire] = []
        self.reported: list[dict[str, Any]] = []
        """What the loop had to report: exceptions that nobody caught."""

    async def client(self) -> Wire:
        wire = await Wire.connect(self.port)
        self.clients.append(wire)
        return wire

    async def ask(self, request: bytes, *, bodiless: bool = False) -> bytes:
        """One request on a connection of its own, to its reply."""
        client = await self.client()
        await client.send(request)
        reply = await client.message(bodiless=bodiless)
        client.close()
        return reply

    async def settled(self, events: int | None = None) -> list[Event]:
        """The events once the proxy is quiet: nothing in flight, nothing to look at, so many events."""

        def busy() -> bool:
            return bool(self.proxy.in_flight) or (events is not None and len(self.kept.events) < events)

        await eventually(lambda: bool(self.reported) or not busy())
        await asyncio.sleep(0)
        assert not self.reported, self.reported
        if events is not None:
            assert len(self.kept.events) == events, self.kept.events
        return self.kept.events

    def counted(self, name: str, *labels: str) -> float:
        """The value of a counter; without labels the sum over all of them."""
        text = self.metrics.render().decode()
        total = 0.0
        for line in text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'"{label}"' in line for label in labels):
                total += float(line.rpartition(" ")[2])
        return total


async def eventually(true: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Waits for something that another task brings about."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + patience
    while not true():
        if loop.time() > ends:
            raise AssertionError("it did not come true")
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def staged(
    script: Script = answer_all,
    *,
    limits: LimitsConfig | None = None,
    config: Config | None = None,
    rules_text: str = "",
    schemas: dict[str, dict[str, Any]] | None = None,
    bodies: BodyLimits | None = None,
    stamp: bool = False,
    own_host: bool = False,
    rewrite_cards: bool = False,
    dialects: tuple[str, ...] = (),
    allow: tuple[str, ...] | None = None,
    tls: ssl.SSLContext | None = None,
    trust: ssl.SSLContext | None = None,
    wrap: Callable[[Inspector], Inspector] | None = None,
    sinks: Iterable[Any] = (),
    metrics: Metrics | None = None,
    upstream_port: int | None = None,
) -> AsyncIterator[Stage]:
    """A stage for as long as the block lasts. `allow` makes the listener a forward proxy."""
    bodies = bodies or BodyLimits()
    config = config or Config()
    registry = Registry(config.schemas.edges)
    if schemas:
        files = {
            f"{subject}/{version}.json": orjson.dumps(schema)
            for subject, versions in schemas.items()
            for version, schema in versions.items()
        }
        problems = registry.load(files)
        assert not problems, problems
    watches = rules.watches([rules.load(rules_text, "test.yaml")], registry) if rules_text else []
    inspector = build(config, registry, watches)
    if wrap is not None:
        inspector = wrap(inspector)
    upstream = Upstream(script, tls)
    await upstream.start()
    kept = Kept()
    metrics = metrics or Metrics()
    port = upstream.port if upstream_port is None else upstream_port
    url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    listener = Listener(
        host="127.0.0.1",
        port=0,
        target=None if allow is not None else Target.parse(url, trust),
        own_host=own_host,
        stamp=stamp,
        rewrite_cards=rewrite_cards,
        allow=tuple(pattern.replace("UPSTREAM", str(port)) for pattern in allow or ()),
        route=Route(agent="agent", peer="peer", dialects=dialects, limits=bodies),
    )
    proxy = Proxy([listener], limits or LimitsConfig(), inspector, Recorder(metrics, (*sinks, kept)))
    proxy.few = few_at_once
    stage = Stage(proxy, upstream, kept, metrics, registry)
    reported = stage.reported
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    budget = proxy.budget.left
    ((_, stage.port),) = await proxy.start()
    try:
        yield stage
        for client in stage.clients:
            client.close()
        await eventually(lambda: not proxy.clients)
        await proxy.stop(1.0)
        assert proxy.in_flight == 0
        assert proxy.budget.left == budget, "part of the copy budget is missing"
        assert not upstream.problems, upstream.problems
        ids = [event.id for event in kept.events]
        assert len(set(ids)) == len(ids)
        for event in kept.events:
            assert event.duration_ms is None or 0 <= event.duration_ms < 60_000
            assert event.ttfb_ms is None or 0 <= event.ttfb_ms < 60_000
        assert not reported, reported
    finally:
        for wire in (*stage.clients, *upstream.wires):
            wire.abort()
        await proxy.stop(0.0)
        await upstream.stop()
        await asyncio.sleep(0.01)  # uvloop closes its handles in the next turns


def play(scenario: Callable[[Stage], Awaitable[None]], script: Script = answer_all, **options: Any) -> None:
    """Runs one scenario on a stage of its own, on the loop that the product runs on."""

    async def run() -> None:
        async with asyncio.timeout(30):
            async with staged(script, **options) as stage:
                await scenario(stage)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def limits(**changes: Any) -> LimitsConfig:
    return msgspec.structs.replace(LimitsConfig(), **changes)
