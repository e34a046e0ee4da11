"""Clients of a Redis or Valkey store pass through here; their operations go to an observer.

Each server of a store, the primary and its replicas, has a listener of its own. In enforce mode a command or a reply
that the observer asks for is held until it is decided, and answered with an error where it is refused: the server gets
a command that it rejects in its place, so that replies keep their order and an open transaction is spoiled as by any
other wrong command.
"""

from typing import Any, Final

from msgspec.structs import replace

from handrail.config import StoreConfig, listen_address
from handrail.edge.record import Recorder
from handrail.edge.route import Place, place_of
from handrail.edge.splice import Splice
from handrail.event import Fault
from handrail.wire.http1 import CopyBudget
from handrail.wire.operation import Connection, Message, Operation, Pending, StoreObserver, Unread
from handrail.wire.resp import RespDecoder

REJECTED: Final = b"*1\r\n$16\r\nHANDRAIL.REFUSED\r\n"
"""No server knows this command; its error is replaced by ours."""
FULL: Final = b"-ERR max number of clients reached\r\n"


class StoreListeners:
    """The listeners of one store."""

    def __init__(self, config: StoreConfig, agent: str | None, observer: StoreObserver, recorder: Recorder) -> None:
        """`agent` is who connects where a listener does not say. Raises ConfigError."""
        self.config = config
        self.agents = tuple(listener.agent or agent for listener in config.listeners)
        self._observer = observer
        self._recorder = recorder
        self._budget = CopyBudget(config.copy_bytes)
        self._connections = 0
        places: list[Place] = []
        for at, listener in enumerate(config.listeners):
            key = f"stores.{config.name}.listeners[{at}]"
            address = listen_address(listener.listen)
            places.append(place_of(address, listener.upstream, listener.tls, key, port=6379, secure=("rediss",)))
        self.splice = Splice(
            config.name,
            "store",
            places,
            recorder,
            self._read,
            connections=config.connections,
            connect_seconds=config.connect_seconds,
            full=FULL,
            told=observer.told,
        )

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where the listeners are, once started, in the order of the configuration."""
        return self.splice.addresses

    async def start(self) -> None:
        """Raises OSError where an address is taken."""
        await self.splice.start()

    async def stop(self) -> None:
        await self.splice.stop()

    def _read(self, listener: int) -> "_Reader":
        self._connections += 1
        connection = Connection(id=f"{self.config.name}-{self._connections}", listener=listener)
        return _Reader(self.splice, connection, self._observer, self.config.value_bytes, self._budget)


class _Reader:
    """One connection's bytes through the decoder to the observer."""

    def __init__(
        self, splice: Splice, connection: Connection, observer: StoreObserver, value_bytes: int, budget: CopyBudget
    ) -> None:
        self.is_holding = observer.is_enforcing
        self._splice = splice
        self._observer = observer
        self._limit = value_bytes + 65_536
        self.decoder = RespDecoder(
            connection, observer.wants, observer.wants_channel, value_bytes, budget, frames=self.is_holding
        )
        self._from_client = _Held()
        self._from_server = _Held()

    def is_over(self) -> bool:
        return self.decoder.is_over()

    def client(self, data: bytes, at: float) -> None:
        seen = self.decoder.commands(data, at)
        if seen:
            self._tell(seen)

    def server(self, data: bytes, at: float) -> None:
        seen = self.decoder.replies(data, at)
        if seen:
            self._tell(seen)

    def close(self, at: float) -> None:
        self._tell(self.decoder.close(at))

    def _tell(self, seen: list[Any]) -> None:
        observer = self._observer
        recorder = self._splice.recorder
        for each in seen:
            kind = type(each)
            if kind is Operation or kind is Pending or kind is Message:
                try:
                    observer.observe(each)
                except Exception as error:  # containment: one record that fails costs that record
                    self._splice.contain(error)
            elif kind is Unread:
                recorder.uninspected(each.reason)
            elif kind is Fault:
                recorder.uninspected(each.reason)
                recorder.fault(each, each.at or self._splice.now())
        if self.is_holding:
            observer.told()

    # Held: what goes on is what was decided.

    def hold_client(self, data: bytes, at: float) -> bytes:
        held = self._from_client
        held.add(data)
        decoder = self.decoder
        seen = decoder.commands(data, at)
        asked, decoder.asked = decoder.asked, []
        out: list[bytes] = []
        for place, pending in asked:
            frame = held.take(place)
            text = None if pending is None else self._refused(pending)
            if text is not None and pending is not None and not held.is_passing:
                decoder.refuse(pending, text)
                self._splice.recorder.count("handrail_refused_total", "rule")
                out.append(REJECTED)
            else:
                out.append(frame)
            held.is_passing = False
        if decoder.is_deaf():
            out.append(held.rest())
        elif held.size > self._limit:  # goes on unjudged; so does the rest of this command
            if not held.is_passing:
                self._splice.recorder.uninspected("too_large_to_hold")
            held.is_passing = True
            out.append(held.rest())
        self._tell(seen)
        return b"".join(out)

    def hold_server(self, data: bytes, at: float) -> bytes:
        held = self._from_server
        held.add(data)
        decoder = self.decoder
        seen = decoder.replies(data, at)
        answered, decoder.answered = decoder.answered, []
        out: list[bytes] = []
        told: list[Any] = []
        for place, operation, text in answered:
            frame = held.take(place)
            if text is None and operation is not None and not held.is_passing and operation.outcome == "answered":
                text = self._refused(operation)
                if text is not None:
                    self._splice.recorder.count("handrail_refused_total", "rule")
                    operation = replace(operation, outcome="refused")
            out.append(frame if text is None else b"-" + text.replace(b"\r", b" ").replace(b"\n", b" ") + b"\r\n")
            if operation is not None:
                told.append(operation)
            held.is_passing = False
        if held.size and (held.is_passing or decoder.passes() or held.size > self._limit):
            held.is_passing = True
            out.append(held.rest())
        self._tell(told + seen)
        return b"".join(out)

    def _refused(self, asked: Pending | Operation) -> bytes | None:
        try:
            return self._observer.refuse(asked)
        except Exception as error:  # containment: where we fail, nothing is refused
            self._splice.contain(error)
            return None

    def release_client(self) -> bytes:
        return self._from_client.rest()

    def release_server(self) -> bytes:
        return self._from_server.rest()


class _Held:
    """Bytes of one direction that did not go on yet, cut off by their place in the stream."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._place = 0
        self.is_passing = False
        """The command or reply under way began to go on before it was whole: it cannot be refused any more."""

    @property
    def size(self) -> int:
        return len(self._bytes)

    def add(self, data: bytes) -> None:
        self._bytes += data

    def take(self, place: int) -> bytes:
        """The bytes up to a place."""
        count = max(0, place - self._place)
        taken = bytes(self._bytes[:count])
        del self._bytes[:count]
        self._place += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(self._place + len(self._bytes))
