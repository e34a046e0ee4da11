"""Events and findings become rows in ClickHouse: a bounded queue, sealed batches, and attempts until one is confirmed.

    put ─▶ line ─▶ open batch ─▶ sealed batch ─▶ one attempt at a time ─▶ stored
           (at once)  rows, bytes, age            busy: again later; refused: bisected, or kept

A batch is sealed (bytes frozen, token taken from them) before its first attempt, and every attempt sends the same bytes
under the same token: clickhouse-connect repeats an insert by itself when the connection is lost, so do we, and the
server tells the copies by the token. Rows wait in memory only; what does not fit is dropped, newest first, and counted.
"""

import asyncio
import contextlib
import logging
import queue
import random
import re
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import orjson
import xxhash

from handrail.config import ClickHouseConfig
from handrail.edge.metrics import Metrics
from handrail.edge.tls import trusting
from handrail.event import FIELDS, Event, Fault, Finding

if TYPE_CHECKING:
    from handrail.edge.database import Database

log = logging.getLogger(__name__)

T = TypeVar("T")

_INT64_MAX: Final = 2**63 - 1
_INT_SHORT: Final = 2**62 - 1
_dumps: Final = orjson.dumps
_WITH_NEWLINE: Final = orjson.OPT_APPEND_NEWLINE
_AT: Final = FIELDS.index("at")
_PAYLOAD: Final = FIELDS.index("payload")
_REPLY: Final = FIELDS.index("reply")
_DEADLINE: Final = FIELDS.index("deadline")

Reason = Literal["data", "schema", "auth", "client"]


class Busy(Exception):
    """Not now: send the same batch again, after `retry_after` seconds where the server said so."""

    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class Refused(Exception):
    """Not like this. `data`: a row is at fault. `schema`, `auth`, `client`: the rows are good, the rest is not."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(problem)
        self.reason: Reason = reason


class Batch:
    """JSON lines for one table; nothing changes it once it is there. Equal bytes have equal tokens, and only they.

    A row is an object, or an array where `names` is the array of the columns' names. `block` is what is sent: those
    names and the rows in one piece, as it was filled. A copy of a megabyte is 256 pages that the kernel has to find:
    two of them less are 0.6 µs for each row, of 1.9 to fill, seal and compress it.
    """

    __slots__ = ("block", "names", "rows", "table", "token")

    def __init__(self, table: str, block: bytes | bytearray, rows: int, token: str, names: bytes = b"") -> None:
        self.table, self.block, self.rows, self.token, self.names = table, block, rows, token, names

    @classmethod
    def seal(cls, table: str, block: bytes | bytearray, rows: int, names: bytes = b"") -> "Batch":
        """Takes the block as it is, which begins with the names: it is the batch's alone from here on."""
        return cls(table, block, rows, f"{table}-{xxhash.xxh3_128_hexdigest(block)}", names)

    @property
    def size(self) -> int:
        """Bytes of the rows."""
        return len(self.block) - len(self.names)

    @property
    def body(self) -> bytes:
        """The rows alone, as a copy."""
        return bytes(self.block[len(self.names) :])

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two batches that are this one; it has two rows at least."""
        lines = self.body.splitlines(keepends=True)
        middle = len(lines) // 2
        first, second = lines[:middle], lines[middle:]
        return (
            Batch.seal(self.table, self.names + b"".join(first), len(first), self.names),
            Batch.seal(self.table, self.names + b"".join(second), len(second), self.names),
        )


class Target:
    """Where a DSN points. `parameters` are those of its query: `ca_file`, and settings of ClickHouse."""

    __slots__ = ("database", "host", "parameters", "password", "port", "scheme", "username")

    def __init__(
        self,
        scheme: Literal["chdb", "http", "https"],
        host: str,
        port: int,
        username: str,
        password: str,
        database: str,
        parameters: dict[str, str],
    ) -> None:
        self.scheme, self.host, self.port = scheme, host, port
        self.username, self.password = username, password
        self.database, self.parameters = database, parameters

    def __repr__(self) -> str:
        return f"Target({self.scheme}://{self.host})"


_SCHEMES: dict[str, tuple[Literal["chdb", "http", "https"], int]] = {
    "chdb": ("chdb", 0),
    "clickhouse": ("http", 8123),
    "http": ("http", 8123),
    "clickhouses": ("https", 8443),
    "https": ("https", 8443),
}


def target_of(dsn: str, database: str) -> Target:
    """A DSN to its parts; a database in its path goes before `database`. Raises ValueError, never with the password."""
    try:
        parts = urlsplit(dsn)
        port = parts.port
    except ValueError:
        raise ValueError("clickhouse.dsn: is not a URL") from None
    if parts.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ValueError(f"clickhouse.dsn: must begin with one of {known}")
    scheme, usual_port = _SCHEMES[parts.scheme]
    if scheme != "chdb":
        if not parts.hostname:
            raise ValueError("clickhouse.dsn: names no host")
        database = unquote(parts.path.strip("/")) or database
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", database):
        raise ValueError(f"clickhouse.database: {database!r} is not a plain name (letters, digits, _)")
    return Target(
        scheme,
        parts.hostname or "",
        port or usual_port,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        database,
        dict(parse_qsl(parts.query)),
    )


class _Open:
    """Lines that are not sealed yet, in one buffer: orjson's lines are cut from kilobytes, and kept would hold them."""

    __slots__ = ("full", "lines", "names", "rows", "table")

    def __init__(self, table: str, batch_bytes: int, names: bytes = b"") -> None:
        self.table, self.names = table, names
        self.full = batch_bytes + len(names)
        self.lines = bytearray(names)
        self.rows = 0


class ClickHouseSink:
    """Takes records on the event loop and writes them from one background thread, with the blocking client."""

    def __init__(self, config: ClickHouseConfig, metrics: Metrics, *, payloads: bool) -> None:
        """Raises ValueError where the DSN or the database name cannot be one, ConfigError where its certificates cannot
        be read; the message never holds the password."""
        target = target_of(config.dsn or "", config.database)
        if target.scheme == "https" and (ca_file := target.parameters.get("ca_file")) is not None:
            trusting(ca_file, "clickhouse.dsn")  # a server that is away may come, a file that is not there will not
        self._config = config
        self._metrics = metrics
        self._payloads = payloads
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._events = _Open("event", config.batch_bytes, orjson.dumps(FIELDS) + b"\n")
        self._findings = _Open("finding", config.batch_bytes)
        self._sealed: deque[Batch] = deque()
        self._rows = 0
        self._bytes = 0
        self._max_rows, self._max_bytes = config.queue_rows, config.queue_bytes
        self._batch_rows = config.batch_rows
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._worker: _Thread | None = None
        self._database: Database | None = None
        self.state = "starting"
        """For people: `writing`, `busy: …` or `refused (reason): …`."""
        metrics.watch("handrail_sink_queue_rows", lambda: self._rows)
        metrics.watch("handrail_sink_queue_bytes", lambda: self._bytes)
        metrics.gauge("handrail_sink_queue_limit_rows", config.queue_rows)
        metrics.gauge("handrail_sink_up", 0)

    @property
    def queued(self) -> int:
        """Rows that are not confirmed yet."""
        return self._rows

    def put(self, record: Event | Finding) -> None:
        """Takes a record: on the event loop, at once, and without raising.

        It becomes its row here, so that no parsed payload stays in memory behind the queue.
        """
        if self._rows >= self._max_rows or self._closed:
            self._metrics.dropped("closed" if self._closed else "queue_full", False)
            return
        try:
            line = self._line(record)
        except (TypeError, ValueError, OverflowError, RecursionError):
            cleaned = self._cleaned(record)
            if cleaned is None:
                return
            line = cleaned
        size = len(line)
        if self._bytes + size > self._max_bytes:
            self._metrics.dropped("queue_full", False)
            return
        self._rows += 1
        self._bytes += size
        rows = self._events if isinstance(record, Event) else self._findings
        rows.lines += line
        rows.rows += 1
        if rows.rows >= self._batch_rows or len(rows.lines) >= rows.full:
            self._seal(rows)
            self._wake.set()
        elif rows.rows == 1:
            self._wake.set()

    def _line(self, record: Event | Finding) -> bytes:
        # ClickHouse cuts a number of seconds off after the microsecond where everything else here rounds, so it is
        # rounded first; a float of this size holds microseconds exactly as far as its shortest text shows. `round` does
        # the same in three times the time, and without splitting off the seconds the product would round by itself.
        at = record.at
        second = int(at)
        at = second + int((at - second) * 1e6 + 0.5) / 1e6
        if not isinstance(record, Event):
            return self._encode(msgspec.structs.replace(record, at=at)) + b"\n"
        # ClickHouse would take a longer integer modulo 2^64 without a word; these two come from the wire. The first
        # comparison is one of machine numbers, the second of objects.
        tokens, attempt = record.tokens or 0, record.attempt or 0
        if (tokens > _INT_SHORT and tokens > _INT64_MAX) or (attempt > _INT_SHORT and attempt > _INT64_MAX):
            raise OverflowError
        # An array: with every column's name beside its value a row takes 1.6 times the bytes and three times the time.
        row = record.values()
        row[_AT] = at
        if not self._payloads:
            row[_PAYLOAD] = row[_REPLY] = None
        if record.deadline is not None:
            row[_DEADLINE] = round(record.deadline, 6)
        try:
            return _dumps(row, option=_WITH_NEWLINE)
        except TypeError:  # a payload's integer past 64 bits
            return self._encode(row) + b"\n"

    def _cleaned(self, record: Event | Finding) -> bytes | None:
        """A record that is not JSON (a lone surrogate, a number past 64 bits), without what cannot be written."""
        changes: dict[str, Any] = {"payload": None, "reply": None} if isinstance(record, Event) else {"evidence": {}}
        for name, value in (record.fields() if isinstance(record, Event) else msgspec.structs.asdict(record)).items():
            if isinstance(value, str):
                changes[name] = value.encode("utf-8", "replace").decode()
            elif name == "events":
                changes[name] = tuple(item.encode("utf-8", "replace").decode() for item in value)
            elif isinstance(value, int) and abs(value) > _INT64_MAX:
                changes[name] = str(value) if name in ("status", "state_version") else None
        try:
            if isinstance(record, Event):
                line = self._line(record.but(**changes))
            else:
                line = self._line(msgspec.structs.replace(record, **changes))
        except (TypeError, ValueError, OverflowError, RecursionError):
            self._metrics.dropped("unencodable", False)
            return None
        self._metrics.fault(Fault(component="clickhouse", reason="cleaned"))
        return line

    def _seal(self, rows: _Open) -> None:
        if rows.rows:
            self._sealed.append(Batch.seal(rows.table, rows.lines, rows.rows, rows.names))
            rows.lines, rows.rows = bytearray(rows.names), 0

    def _seal_all(self) -> None:
        self._seal(self._events)
        self._seal(self._findings)

    async def start(self) -> None:
        """Begins to connect and write in the background; returns at once, whether or not there is a server."""
        self._worker = _Thread()
        self._task = asyncio.create_task(self._run(), name="clickhouse")

    async def close(self, flush_seconds: float = 5.0) -> None:
        """Writes what waits, for so long at most; the rest is counted as dropped. A batch in flight then counts too."""
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=flush_seconds)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._rows:
            self._metrics.dropped("shutdown", False, self._rows)
            log.warning("%d rows for ClickHouse were given up at shutdown", self._rows)
        if self._worker is not None:
            embedded = target_of(self._config.dsn or "", self._config.database).scheme == "chdb"
            with contextlib.suppress(TimeoutError):
                limit = EMBEDDED_CLOSE_SECONDS if embedded else CLOSE_SECONDS
                await asyncio.wait_for(self._worker.call(self._disconnect), limit)
            self._worker.stop()
        self.state = "closed"

    async def write(self, batch: Batch) -> None:
        """One attempt. Raises Busy or Refused."""
        await self._ask(lambda: self._connect().insert(batch))

    async def _ask(self, order: Callable[[], object]) -> None:
        if self._worker is None:
            raise RuntimeError("write before start")
        await self._worker.call(order)

    def _connect(self) -> "Database":
        """In the thread: the client is imported here, because that takes longer than being ready may."""
        if self._database is None:
            from handrail.edge import database

            database.quiet()
            self._database = database.Database(self._config.dsn or "", self._config.database)
        self._database.prepare(self._config.ttl_days)
        return self._database

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()

    async def _run(self) -> None:
        failures = 0
        connected = False
        while True:
            batch = None
            if connected or self._closing.is_set():
                batch = await self._next()
                if batch is None:
                    return
            began = perf_counter()
            try:
                if batch is None:
                    await self._ask(self._connect)
                else:
                    await self.write(batch)
            except Busy as busy:
                self._failed("busy", f"busy: {busy}", batch, began)
                ceiling = min(self._config.retry_limit_seconds, self._config.retry_seconds * 2.0 ** min(failures, 30))
                failures += 1
                await self._pause(max(random.uniform(0, ceiling), busy.retry_after or 0.0))
                continue
            except Refused as refused:
                self._failed("refused", f"refused ({refused.reason}): {refused}", batch, began, refused.reason)
                if refused.reason == "data" and batch is not None:
                    self._divide(batch)
                else:
                    limit = self._config.retry_limit_seconds
                    await self._pause(random.uniform(limit / 2, limit))
                continue
            failures, connected = 0, True
            self._settled("writing", 1)
            if batch is not None:
                self._sealed.popleft()
                self._rows -= batch.rows
                self._bytes -= batch.size
                self._metrics.wrote(batch.table, "stored", perf_counter() - began, batch.rows)

    async def _next(self) -> Batch | None:
        """The oldest sealed batch, which stays in the queue; seals by age. None once `close` began and all is out."""
        while not self._sealed:
            if self._closing.is_set():
                self._seal_all()
                if not self._sealed:
                    return None
                break
            self._wake.clear()
            waiting = self._events.rows > 0 or self._findings.rows > 0
            try:
                # Jitter, so that the sidecars of a fleet that started together do not all write together.
                age = self._config.batch_seconds * random.uniform(0.8, 1.2) if waiting else None
                async with asyncio.timeout(age):
                    while not (self._sealed or self._closing.is_set()):
                        await self._wake.wait()
                        self._wake.clear()
                        if not waiting:
                            break
            except TimeoutError:
                self._seal_all()
        return self._sealed[0]

    def _divide(self, batch: Batch) -> None:
        """A refused batch becomes its halves, until the row at fault is alone; that one is given up and counted."""
        self._sealed.popleft()
        if batch.rows > 1:
            first, second = batch.halves()
            self._sealed.appendleft(second)
            self._sealed.appendleft(first)
            return
        self._rows -= 1
        self._bytes -= batch.size
        self._metrics.dropped("refused", False)

    def _failed(
        self, result: Literal["busy", "refused"], state: str, batch: Batch | None, began: float, why: str = ""
    ) -> None:
        self._metrics.fault(Fault(component="clickhouse", reason=why or result))
        if batch is not None:
            self._metrics.wrote(batch.table, result, perf_counter() - began)
        # A row at fault says nothing about the server.
        self._settled(state, 1 if why == "data" else 0)

    def _settled(self, state: str, up: int) -> None:
        """Notes the state; a line in the log for each change, not for each attempt."""
        self._metrics.gauge("handrail_sink_up", up)
        if state != self.state:
            if state == "writing":
                log.info("ClickHouse takes rows; %d are waiting", self._rows)
            else:
                log.warning("ClickHouse: %s; %d rows are waiting", state, self._rows)
            self.state = state

    async def _pause(self, seconds: float) -> None:
        """Waits; `close` ends the wait, and makes the ones after it short, because its own limit counts then."""
        if self._closing.is_set():
            await asyncio.sleep(min(seconds, 0.2))
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


CLOSE_SECONDS = 1.0
EMBEDDED_CLOSE_SECONDS = 60.0
"""A process that exits while its embedded engine is open, or still opens, can die of SIGSEGV (chdb-core issue 177).
That engine is waited for, however busy the machine is. It cannot hang as a server can."""


class _Thread:
    """One thread that carries out blocking calls in order. A daemon: a hung server must not hold the exit."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="clickhouse", daemon=True).start()

    async def call(self, order: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def carry_out() -> None:
            settle: Callable[[], None]
            try:
                result = order()
            except Exception as error:  # noqa: BLE001 - handed to the caller, who knows what to do with it
                settle = partial(_settle, future.set_exception, future, error)
            else:
                settle = partial(_settle, future.set_result, future, result)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle)

        self._orders.put(carry_out)
        return await future

    def stop(self) -> None:
        self._orders.put(None)

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()


def _settle(settle: Callable[[Any], None], future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        settle(value)
