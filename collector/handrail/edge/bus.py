"""Clients of a NATS bus pass through here; what they publish, receive and acknowledge goes to an observer.

The addresses of other servers that a server announces (`connect_urls`) are passed on as they are: a client that follows
one goes around this listener, which is counted (`connect_urls`). Switch it off at the server (`no_advertise`). A client
that upgrades to TLS passes unread, and is counted (`tls`).
"""

from typing import Any, Final

from handrail.config import BusConfig, TlsConfig, listen_address
from handrail.edge.record import Recorder
from handrail.edge.route import place_of
from handrail.edge.splice import Splice
from handrail.event import Fault
from handrail.wire.http1 import CopyBudget
from handrail.wire.nats import Deliveries, NatsDecoder
from handrail.wire.operation import BusObserver, Connection, Unread

FULL: Final = b"-ERR 'maximum connections exceeded'\r\n"


class BusListener:
    """The listener of one bus."""

    def __init__(self, config: BusConfig, agent: str | None, observer: BusObserver, recorder: Recorder) -> None:
        """`agent` is who connects where the configuration does not say. Raises ConfigError."""
        self.config = config
        self.agent = config.agent or agent
        self._observer = observer
        self._budget = CopyBudget(config.copy_bytes)
        self._deliveries = Deliveries()
        self._connections = 0
        key = f"buses.{config.name}"
        place = place_of(listen_address(config.listen), config.upstream, TlsConfig(), key, port=4222, secure=())
        self.splice = Splice(
            config.name,
            "bus",
            (place,),
            recorder,
            self._read,
            connections=config.connections,
            connect_seconds=config.connect_seconds,
            full=FULL,
        )

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where the listener is, once started."""
        return self.splice.addresses

    async def start(self) -> None:
        """Raises OSError where the address is taken."""
        await self.splice.start()

    async def stop(self) -> None:
        await self.splice.stop()

    def _read(self, listener: int) -> "_Reader":
        self._connections += 1
        connection = Connection(id=f"{self.config.name}-{self._connections}", listener=listener)
        decoder = NatsDecoder(
            connection, self._observer.wants, self.config.payload_bytes, self._deliveries, self._budget
        )
        return _Reader(self.splice, decoder, self._observer)


class _Reader:
    """One connection's bytes through the decoder to the observer."""

    is_holding = False

    def __init__(self, splice: Splice, decoder: NatsDecoder, observer: BusObserver) -> None:
        self._splice = splice
        self._observer = observer
        self.decoder = decoder

    def is_over(self) -> bool:
        return self.decoder.is_over()

    def client(self, data: bytes, at: float) -> None:
        seen = self.decoder.client(data, at)
        if seen:
            self._tell(seen)

    def server(self, data: bytes, at: float) -> None:
        seen = self.decoder.server(data, at)
        if seen:
            self._tell(seen)

    def close(self, at: float) -> None:
        self.decoder.close(at)

    def hold_client(self, data: bytes, at: float) -> bytes:
        return data

    def hold_server(self, data: bytes, at: float) -> bytes:
        return data

    def release_client(self) -> bytes:
        return b""

    def release_server(self) -> bytes:
        return b""

    def _tell(self, seen: list[Any]) -> None:
        recorder = self._splice.recorder
        for each in seen:
            if type(each) is Unread:
                recorder.uninspected(each.reason)
            elif type(each) is Fault:
                recorder.uninspected(each.reason)
                recorder.fault(each, each.at or self._splice.now())
            else:
                try:
                    self._observer.observe(each)
                except Exception as error:  # containment: one record that fails costs that record
                    self._splice.contain(error)
