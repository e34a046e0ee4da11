"""The splices of stores and buses on a loop of their own thread, so that tests may use clients of every kind."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvloop

from handrail.config import BusConfig, StoreConfig, StoreListenerConfig, TlsConfig
from handrail.edge.bus import BusListener
from handrail.edge.metrics import Metrics
from handrail.edge.record import Recorder
from handrail.edge.store import StoreListeners
from handrail.wire.operation import Operation


class Seer:
    """Keeps what it is shown; refuses what `refusing` says."""

    def __init__(self, refusing: Callable[[Any], bytes | None] | None = None, wanted: bool = True) -> None:
        self.is_enforcing = refusing is not None
        self.seen: list[Any] = []
        self._refusing = refusing
        self._wanted = wanted

    def wants(self, _: Any) -> bool:
        return self._wanted

    def wants_channel(self, _: bytes) -> bool:
        return self._wanted

    def observe(self, seen: Any) -> None:
        self.seen.append(seen)

    def told(self) -> None:
        pass

    def refuse(self, asked: Any) -> bytes | None:
        return self._refusing(asked) if self._refusing is not None else None

    def of(self, *kinds: type) -> list[Any]:
        return [each for each in list(self.seen) if isinstance(each, kinds)]

    def named(self, *names: bytes) -> list[Operation]:
        return [each for each in self.of(Operation) if each.args[0] in names]

    def until(self, is_there: Callable[[], Any], patience: float = 5.0) -> Any:
        """What `is_there` gives once it gives something."""
        deadline = time.monotonic() + patience
        while not (found := is_there()):
            assert time.monotonic() < deadline, [type(each).__name__ for each in self.seen[-20:]]
            time.sleep(0.005)
        return found


class Joined:
    """A running splice."""

    def __init__(self, service: StoreListeners | BusListener, recorder: Recorder, seer: Seer) -> None:
        self.service = service
        self.recorder = recorder
        self.seer = seer

    @property
    def port(self) -> int:
        return self.service.addresses[0][1]

    @property
    def ports(self) -> list[int]:
        return [port for _, port in self.service.addresses]

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        return dict(self.recorder.metrics._counters[name])


@contextlib.contextmanager
def running(service: StoreListeners | BusListener, recorder: Recorder, seer: Seer) -> Iterator[Joined]:
    ready = threading.Event()
    problems: list[Any] = []
    stopping: list[Callable[[], object]] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        ended = asyncio.Event()
        stopping.append(lambda: loop.call_soon_threadsafe(ended.set))
        await service.start()
        ready.set()
        await ended.wait()
        await service.stop()

    def work() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield Joined(service, recorder, seer)
    finally:
        stopping[0]()
        thread.join(10)
    assert not thread.is_alive()
    assert problems == []
    assert not service.splice.clients
    assert service._budget.left == service.config.copy_bytes, "a part of the budget is missing"


@contextlib.contextmanager
def store(*upstreams: str, seer: Seer | None = None, ca_file: str | None = None, **settings: Any) -> Iterator[Joined]:
    """Listeners in front of these servers, the first the primary."""
    seer = seer or Seer()
    recorder = Recorder(Metrics(), ())
    listeners = tuple(
        StoreListenerConfig(
            listen="127.0.0.1:0",
            upstream=upstream,
            role="replica" if number else "primary",
            tls=TlsConfig(ca_file=ca_file),
        )
        for number, upstream in enumerate(upstreams)
    )
    config = StoreConfig(name="shared", listeners=listeners, **settings)
    with running(StoreListeners(config, "agent", seer, recorder), recorder, seer) as joined:
        yield joined


@contextlib.contextmanager
def bus(upstream: str, seer: Seer | None = None, **settings: Any) -> Iterator[Joined]:
    seer = seer or Seer()
    recorder = Recorder(Metrics(), ())
    config = BusConfig(name="events", listen="127.0.0.1:0", upstream=upstream, **settings)
    with running(BusListener(config, "agent", seer, recorder), recorder, seer) as joined:
        yield joined
