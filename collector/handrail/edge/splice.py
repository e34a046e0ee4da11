"""Two connections joined: bytes go on first, unchanged, and a copy is read afterwards.

For protocols in which both sides speak at any time, over one connection to the server for each connection of a client:
stores and buses. What either side does to its connection (close, half-close, reset) the other gets to see, and neither
is read faster than the other takes it. Where a reader holds (a rule is enforced), it says itself which bytes go on.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from handrail.edge.record import Recorder
from handrail.edge.route import Place
from handrail.event import Fault

log = logging.getLogger("handrail.splice")

LOOK_SECONDS: Final = 0.005
"""How long a copy waits for a better moment to be read."""
LOOK_TOGETHER: Final = 16
"""So many pieces are read in one go: the client of one in sixteen waits for reading, and the median for none."""
LOOK_BYTES: Final = 262_144
QUEUE_BYTES: Final = 65_536
"""How much may wait for a server that is being connected to before the client is no longer read."""
HALF_CLOSE_SECONDS: Final = 1.0
"""TLS has no half-close: so long the answers to a client's last bytes may take."""

_CLIENT: Final = 0
_SERVER: Final = 1
_CLOSE: Final = 2

_perf = time.perf_counter


class Reader(Protocol):
    """Reads the copy of one connection. What it raises is contained, counted, and ends the reading."""

    is_holding: bool
    """It decides what goes on: `hold_client` and `hold_server` are called at once, and not `client` and `server`."""

    def is_over(self) -> bool:
        """Nothing is read any more; bytes pass."""
        ...

    def client(self, data: bytes, at: float) -> None: ...

    def server(self, data: bytes, at: float) -> None: ...

    def hold_client(self, data: bytes, at: float) -> bytes:
        """What goes on to the server, now that these bytes came."""
        ...

    def hold_server(self, data: bytes, at: float) -> bytes: ...

    def release_client(self) -> bytes:
        """What of the client's bytes is still held and has to go on as it is."""
        ...

    def release_server(self) -> bytes: ...

    def close(self, at: float) -> None: ...


class _Client:
    """The connection of a client; it owns the one to the server.

    An asyncio.Protocol but for the name: below a class that is not compiled, every attribute would be looked up.
    """

    def __init__(self, splice: "Splice", place: int) -> None:
        self._splice = splice
        self._place = place
        self._queue: list[bytes] = []
        self._queued = 0
        self.transport = cast(asyncio.Transport, None)
        self.server: _Server | None = None
        self.upstream: asyncio.Transport | None = None
        self.reader: Reader | None = None
        self.is_holding = False
        self.is_eof = False
        self.is_closed = False
        self.connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        splice = self._splice
        if len(splice.clients) >= splice.connections:
            splice.recorder.count("handrail_refused_total", "connections")
            self.is_closed = True
            self.transport.write(splice.full)
            self.transport.close()
            return
        splice.clients.add(self)
        splice.recorder.count("handrail_connections_total", splice.kind)
        self.reader = splice.read(self._place)
        self.is_holding = self.reader.is_holding
        self.connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        splice = self._splice
        place = splice.places[self._place]
        try:
            async with asyncio.timeout(splice.connect_seconds):
                await asyncio.get_running_loop().create_connection(
                    lambda: cast(asyncio.Protocol, _Server(self, splice)),
                    place.upstream_host,
                    place.upstream_port,
                    ssl=place.tls,
                    server_hostname=place.server_name,
                )
        except (OSError, TimeoutError, ssl.SSLError) as error:
            why = "no connection in time" if isinstance(error, TimeoutError) else (str(error) or type(error).__name__)
            message = f"{splice.name}: {place.upstream}: {why}"
            splice.recorder.fault(
                Fault(component=splice.kind, reason="upstream_refused", message=message, at=splice.now()), splice.now()
            )
            self.transport.close()

    def joined(self, server: "_Server", transport: asyncio.Transport) -> None:
        """The server is there: what the client sent meanwhile goes first."""
        if self.is_closed:
            transport.abort()
            return
        self.server, self.upstream = server, transport
        queued, self._queue = self._queue, []
        if queued:
            transport.write(b"".join(queued))
        if self.is_eof:
            server.end_writing()
        if self._queued > QUEUE_BYTES:
            self.transport.resume_reading()
        self._queued = 0

    def data_received(self, data: bytes) -> None:
        splice = self._splice
        at = _perf() + splice.offset
        reader = self.reader
        if self.is_holding:
            data = splice.hold(self, _CLIENT, data, at)
            if not data:
                return
            reader = None
        upstream = self.upstream
        if upstream is not None:
            upstream.write(data)
        elif not self.is_closed:
            self._queue.append(data)
            self._queued += len(data)
            if self._queued > QUEUE_BYTES:
                self.transport.pause_reading()
        if reader is not None:
            splice.look(reader, _CLIENT, data, at)

    def eof_received(self) -> bool:
        self.is_eof = True
        server = self.server
        rest = self.reader.release_client() if self.is_holding and self.reader is not None else b""
        if server is not None:
            if rest:
                server.transport.write(rest)
            server.end_writing()
            return not server.is_eof
        if rest:
            self._queue.append(rest)
        return not self.is_closed

    def connection_lost(self, error: Exception | None) -> None:
        splice = self._splice
        splice.clients.discard(self)
        if self.is_closed:
            return
        self.is_closed = True
        if self.connecting is not None:
            self.connecting.cancel()
        reader = self.reader
        if reader is not None:
            splice.look(reader, _CLOSE, b"", splice.now())
        server = self.server
        if server is not None:
            server.leave(error)

    def pause_writing(self) -> None:
        if self.upstream is not None:
            with contextlib.suppress(RuntimeError):
                self.upstream.pause_reading()

    def resume_writing(self) -> None:
        if self.upstream is not None:
            with contextlib.suppress(RuntimeError):
                self.upstream.resume_reading()


class _Server:
    """The connection to the server, on behalf of one client."""

    def __init__(self, client: _Client, splice: "Splice") -> None:
        self._client = client
        self._splice = splice
        self.transport = cast(asyncio.Transport, None)
        self.is_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._client.joined(self, self.transport)

    def data_received(self, data: bytes) -> None:
        client = self._client
        splice = self._splice
        at = _perf() + splice.offset
        reader = client.reader
        if client.is_holding:
            data = splice.hold(client, _SERVER, data, at)
            if not data:
                return
            reader = None
        client.transport.write(data)
        if reader is not None:
            splice.look(reader, _SERVER, data, at)

    def eof_received(self) -> bool:
        self.is_eof = True
        client = self._client
        rest = client.reader.release_server() if client.is_holding and client.reader is not None else b""
        if rest and not client.is_closed:
            client.transport.write(rest)
        if not client.is_closed and client.transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                client.transport.write_eof()
        if client.is_eof:
            client.transport.close()
            return False
        return self.transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        client = self._client
        if not client.is_closed:
            if error is not None:
                client.transport.abort()
            else:
                client.transport.close()

    def end_writing(self) -> None:
        """The client has sent its last byte."""
        transport = self.transport
        if transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                transport.write_eof()
        else:
            asyncio.get_running_loop().call_later(HALF_CLOSE_SECONDS, transport.close)

    def leave(self, error: Exception | None) -> None:
        """The client is gone."""
        if error is not None:
            self.transport.abort()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._client.transport.resume_reading()


class Splice:
    """Listeners in front of servers, and the copies that wait to be read.

    `read` makes the reader of a new connection, told the number of its place. `kind` is the component in faults and
    the side of `handrail_connections_total`; `full` is what a client hears past the limit on connections. `told` is
    called each time that copies were read.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        places: Sequence[Place],
        recorder: Recorder,
        read: Callable[[int], Reader],
        *,
        connections: int,
        connect_seconds: float,
        full: bytes,
        told: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.places = tuple(places)
        self.recorder = recorder
        self.read = read
        self.connections = connections
        self.connect_seconds = connect_seconds
        self.full = full
        self.clients: set[_Client] = set()
        self.offset = time.time() - _perf()
        self.addresses: tuple[tuple[str, int], ...] = ()
        self._servers: list[asyncio.Server] = []
        self._waiting: list[tuple[Reader, int, bytes, float]] = []
        self._told: Callable[[], None] | None = told
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = cast(asyncio.AbstractEventLoop, None)

    def now(self) -> float:
        """Seconds since the epoch, by a clock that does not jump while a connection is measured."""
        return _perf() + self.offset

    async def start(self) -> None:
        """Raises OSError where an address is taken."""
        self._loop = asyncio.get_running_loop()
        addresses = []
        for number, place in enumerate(self.places):
            server = await self._loop.create_server(self._accepting(number), place.host, place.port, backlog=1024)
            self._servers.append(server)
            host, port = cast(Any, server).sockets[0].getsockname()[:2]  # uvloop's is a list
            addresses.append((host, port))
            log.info("%s %s: listening on %s:%d for %s", self.kind, self.name, host, port, place.upstream)
        self.addresses = tuple(addresses)

    def _accepting(self, number: int) -> Callable[[], asyncio.Protocol]:
        return lambda: cast(asyncio.Protocol, _Client(self, number))

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for client in list(self.clients):
            client.transport.close()
        for _ in range(100):  # their last bytes
            if not self.clients:
                break
            await asyncio.sleep(0.01)
        for client in list(self.clients):
            client.transport.abort()
        await asyncio.sleep(0)
        self.drain()

    def look(self, reader: Reader, side: int, data: bytes, at: float) -> None:
        """A copy to be read soon, in the order in which it came."""
        waiting = self._waiting
        waiting.append((reader, side, data, at))
        self._bytes += len(data)
        if len(waiting) >= LOOK_TOGETHER or self._bytes >= LOOK_BYTES:
            self.drain()
        elif self._timer is None:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._late)

    def _late(self) -> None:
        self._timer = None
        self.drain()

    def drain(self) -> None:
        """Reads every copy that waits."""
        waiting, self._waiting = self._waiting, []
        self._bytes = 0
        for reader, side, data, at in waiting:
            try:
                if side == _SERVER:
                    reader.server(data, at)
                elif side == _CLIENT:
                    reader.client(data, at)
                else:
                    reader.close(at)
            except Exception as error:  # containment: our own failure must not become the traffic's
                self.contain(error)
                with contextlib.suppress(Exception):
                    reader.close(at)
        told = self._told
        if told is not None:
            try:
                told()
            except Exception as error:  # containment, as above
                self.contain(error)

    def hold(self, client: _Client, side: int, data: bytes, at: float) -> bytes:
        """What of a held connection goes on now. Where holding fails, everything does."""
        reader = client.reader
        assert reader is not None
        if self._waiting:
            self.drain()
        try:
            out = reader.hold_client(data, at) if side == _CLIENT else reader.hold_server(data, at)
            if not reader.is_over():
                return out
        except Exception as error:  # containment: where holding fails, everything passes
            out = b""
            self.contain(error)
            with contextlib.suppress(Exception):
                reader.close(at)
        client.is_holding = False
        client.reader = None
        to_server, to_client = reader.release_client(), reader.release_server()
        if side == _CLIENT:
            if to_client:
                client.transport.write(to_client)
            return out + to_server
        if to_server and client.upstream is not None:
            client.upstream.write(to_server)
        return out + to_client

    def contain(self, error: Exception) -> None:
        log.debug(self.kind, exc_info=error)
        now = self.now()
        message = f"{self.name}: {type(error).__name__}: {error}"
        self.recorder.fault(Fault(component=self.kind, reason="error", message=message, at=now), now)
