"""Real stores and buses, really failing: a replica that lags, a writer that dies, a consumer that is redelivered.

Each fault gives the findings that it should and no other; the same run without it gives none.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats
import orjson
import pytest
import redis
import uvloop
import yaml
from nats.js.api import ConsumerConfig

from edge.servers import Server, nats_server, valkey
from handrail.config import Config
from handrail.edge.sidecar import Sidecar
from handrail.event import Event, Finding

PATIENCE = 10.0


class Stage:
    """A sidecar in a thread of its own, in front of stores and buses, and what it told when it was over."""

    def __init__(self, **config: Any) -> None:
        given = {"clickhouse": {"dsn": ""}, "admin": {"listen": "127.0.0.1:0"}} | config
        self._config = msgspec.convert(given, Config)
        self.records: list[Event | Finding] = []
        self._ready, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def put(self, record: Event | Finding) -> None:
        self.records.append(record)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:  # noqa: BLE001  # it is raised in the test's own thread
                self._error = error
                self._ready.set()

    async def _serve(self) -> None:
        self.sidecar = Sidecar(self._config, (self,))
        await self.sidecar.start()
        self.ports = [[port for _, port in place.addresses] for place in self.sidecar.places]
        self._ready.set()
        await asyncio.to_thread(self._over.wait)
        await self.sidecar.stop(0.1)

    def __enter__(self) -> "Stage":
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """What is held is told now: nothing comes any more."""
        self._over.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        assert self.events, "silence proves nothing where nothing was seen"
        assert b"handrail_faults_total{" not in self.sidecar.metrics.render()

    @contextlib.contextmanager
    def both(self) -> Iterator[tuple[redis.Redis, redis.Redis]]:
        """Clients of the first two listeners of the first store."""
        with client(self.ports[0][0]) as one, client(self.ports[0][1]) as other:
            yield one, other

    @property
    def findings(self) -> list[Finding]:
        return [record for record in self.records if isinstance(record, Finding) and record.kind[:7] != "schema."]

    @property
    def events(self) -> list[Event]:
        return [record for record in self.records if isinstance(record, Event)]

    def until(self, is_so: Callable[[], object], seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, self.records[-5:]
            time.sleep(0.01)


def listener(server: Server, agent: str, role: str = "primary") -> dict[str, Any]:
    upstream = f"redis://127.0.0.1:{server.port}"
    return {"listen": "127.0.0.1:0", "upstream": upstream, "role": role, "agent": agent}


def store(*listeners: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "state", "listeners": list(listeners), **more}


@contextlib.contextmanager
def client(port: int) -> Iterator[redis.Redis]:
    with redis.Redis(port=port, socket_timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    with valkey() as running:
        yield running


@pytest.fixture(scope="module")
def replica(primary: Server) -> Iterator[Server]:
    with valkey("--replicaof", f"127.0.0.1 {primary.port}") as running:
        yield running


@pytest.fixture
def empty(primary: Server) -> None:
    with client(primary.port) as direct:
        direct.flushall()


KEY = "agents:w1:t1:output"


def output(number: int, **more: Any) -> bytes:
    return orjson.dumps({"summary": f"finding number {number} " * 4, **more})


def in_step(primary: Server, replica: Server) -> None:
    """Wait until the replica follows the primary and has all that it has."""
    with client(primary.port) as one, client(replica.port) as other:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if other.info("replication").get("master_link_status") == "up" and one.wait(1, 500):
                return
            time.sleep(0.02)
    raise AssertionError("the replica does not follow")


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("lagging", [True, False])
def test_a_replica_that_lags(empty: None, primary: Server, replica: Server, versioned: bool, lagging: bool) -> None:
    """Replication is cut between two writes; the reader on the replica gets the old one. Resumed in time, it gets the
    new one. With versions, and by content alone."""
    in_step(primary, replica)
    first, second = (output(n, **({"version": n} if versioned else {})) for n in (1, 2))
    config = store(listener(primary, "writer"), listener(replica, "reader", "replica"), state=[{"key": STATE}])
    with Stage(stores=[config]) as stage, client(stage.ports[0][0]) as writer, client(stage.ports[0][1]) as reader:
        writer.set("agents:w1:t1:context", first)
        in_step(primary, replica)
        assert reader.get("agents:w1:t1:context") == first
        with client(replica.port) as direct:
            direct.replicaof("NO", "ONE")
            try:
                writer.set("agents:w1:t1:context", second)
                if not lagging:
                    direct.replicaof("127.0.0.1", str(primary.port))
                    in_step(primary, replica)
                time.sleep(0.05)  # longer than the grace
                assert reader.get("agents:w1:t1:context") == (first if lagging else second)
            finally:
                direct.replicaof("127.0.0.1", str(primary.port))
        with client(primary.port) as direct:
            direct.ping()
    if not lagging:
        assert stage.findings == []
        return
    (found,) = stage.findings
    assert (found.rule, found.workflow, found.task, found.side) == ("state.stale_read", "w1", "t1", "store")
    assert (found.evidence["written_by"], found.evidence["reader"]) == ("writer", "reader")
    assert found.evidence["judged_by"] == ("version" if versioned else "content")
    assert found.evidence["stale_seconds"] >= 0.05
    if versioned:
        assert (found.evidence["version_read"], found.evidence["version_existed"]) == (1, 2)


STATE = "agents:{workflow}:{task}:*"

WRITER = """
import os, signal, sys, redis
client = redis.Redis(port=int(sys.argv[1]))
client.set("agents:w1:t1:output", sys.argv[2])
if sys.argv[3] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
client.publish("task:complete", '{"task_id": "t1", "source_agent": "writer", "workflow_id": "w1"}')
"""


def rules(path: Path, kind: str, file: str, action: str = "observe", **params: Any) -> str:
    """The built-in rule with other times, so that nobody has to wait for half a minute, or enforced."""
    shipped = (Path(__file__).parents[2] / "rules" / "detection" / file).read_text()
    pack = yaml.safe_load(shipped)
    pack["rules"] = [rule for rule in pack["rules"] if rule["id"] == kind]
    (rule,) = pack["rules"]
    built = {name: value for name, value in rule.items() if name != "tests"}
    built |= {"action": action, "with": rule.get("with", {}) | params}
    built["tests"] = [{"name": "a", "events": [], "finds": 1}, {"name": "b", "events": [], "finds": 0}]
    target = path / file
    target.write_text(yaml.safe_dump({"language": 1, "rules": [built]}, sort_keys=False))
    return str(target)


@pytest.mark.parametrize("fate", ["dies", "lives"])
def test_a_writer_killed_between_write_and_publish(empty: None, primary: Server, tmp_path: Path, fate: str) -> None:
    """The output is there and nobody is told: it is noticed while the sidecar runs, without any further traffic."""
    pack = rules(tmp_path, "handoff.partial", "handoff.yaml", seconds=0.3, lateness_seconds=0.1)
    with Stage(stores=[store(listener(primary, "writer"))], rules={"files": [pack]}) as stage:
        command = [sys.executable, "-c", WRITER, str(stage.ports[0][0]), output(1).decode(), fate]
        died = subprocess.run(command, check=False, timeout=PATIENCE, env=os.environ | {"PYTHONPATH": ""}).returncode
        assert died == (-signal.SIGKILL if fate == "dies" else 0)
        if fate == "dies":
            stage.until(lambda: stage.findings)
        else:
            stage.until(lambda: [event for event in stage.events if event.kind == "publish"])
            time.sleep(1.0)
    if fate == "lives":
        assert stage.findings == []
        return
    (found,) = stage.findings
    assert (found.rule, found.event, found.task) == ("handoff.partial", None, "t1")
    assert (found.evidence["key"], found.evidence["reason"]) == (KEY, "not_announced")


@pytest.mark.parametrize("racing", [True, False])
def test_two_writers(empty: None, primary: Server, racing: bool) -> None:
    """Both read version 1 and both write version 2; or the second one reads what the first one wrote."""
    key = "agents:w1:t1:plan"
    with Stage(stores=[store(listener(primary, "a"), listener(primary, "b"))]) as stage, stage.both() as (one, other):
        one.set(key, output(1, version=1))
        one.get(key)
        if racing:
            other.get(key)
        one.set(key, output(2, version=2))
        if not racing:
            other.get(key)
        other.set(key, output(3, version=2 if racing else 3))
    if not racing:
        assert stage.findings == []
        return
    (found,) = stage.findings
    assert (found.rule, found.source, found.evidence["writers"]) == ("state.lost_update", "b", ["a", "b"])


@pytest.fixture(scope="module")
def bus() -> Iterator[Server]:
    with nats_server() as running:
        yield running


def bused(bus: Server) -> dict[str, Any]:
    return {"name": "bus", "listen": "127.0.0.1:0", "upstream": f"nats://127.0.0.1:{bus.port}"}


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), PATIENCE))


COMPLETE = orjson.dumps({"task_id": "t1", "workflow_id": "w1", "source_agent": "writer", "summary": "done " * 10})


@pytest.mark.parametrize("fault", ["redelivered", "published twice", "none"])
def test_a_redelivery_is_not_a_duplicate(bus: Server, fault: str) -> None:
    """The bus delivers again what was not acknowledged, which is its duty; the sender that publishes twice is found."""
    stream = f"S{abs(hash(fault)) % 10_000}"
    subject = f"agents.{stream}.t1.complete"

    with Stage(buses=[bused(bus)]) as stage:

        async def scene() -> None:
            connection = await nats.connect(f"nats://127.0.0.1:{stage.ports[0][0]}", name="writer")
            stream_api = connection.jetstream()
            await stream_api.add_stream(name=stream, subjects=[subject])
            config = ConsumerConfig(ack_wait=0.3)
            pulled = await stream_api.pull_subscribe(subject, "reader", config=config)
            await stream_api.publish(subject, COMPLETE)
            if fault == "published twice":
                await stream_api.publish(subject, COMPLETE)
                for message in await pulled.fetch(2, timeout=5):
                    await message.ack()
            else:
                (message,) = await pulled.fetch(1, timeout=5)
                if fault == "redelivered":
                    (message,) = await pulled.fetch(1, timeout=5)
                await message.ack()
            await connection.flush()
            await connection.close()

        play(scene)
    delivered = [event for event in stage.events if event.kind == "deliver"]
    assert [event.attempt for event in delivered if event.duration_ms is None] == (
        [1, 2] if fault == "redelivered" else [1, 1] if fault == "published twice" else [1]
    )
    assert any(event.duration_ms is not None for event in delivered), "the acknowledgement is told"
    assert all(event.lag_ms is not None for event in delivered)
    published = [event for event in stage.events if event.kind == "publish"]
    assert all(event.duration_ms is not None and event.state_version is not None for event in published)
    rules = [found.rule for found in stage.findings]
    assert rules == (["output.duplicate"] if fault == "published twice" else [])


@pytest.mark.parametrize("reads", ["old", "new"])
def test_a_read_below_the_epoch_is_refused(empty: None, primary: Server, tmp_path: Path, reads: str) -> None:
    """Enforced: a read below the epoch of its task never reaches the reader, who gets an error that says why."""
    pack = rules(tmp_path, "state.stale_read", "state.yaml", action="enforce")
    with (
        Stage(stores=[store(listener(primary, "a"), listener(primary, "b"))], rules={"files": [pack]}) as stage,
        stage.both() as (one, other),
    ):
        one.set("agents:w1:t1:input", output(1, epoch=1, version=1))
        one.set("agents:w1:t1:plan", output(2, epoch=2, version=1))
        if reads == "old":
            with pytest.raises(redis.ResponseError, match=r"HANDRAIL state\.stale_read: b read version 1\.1"):
                other.get("agents:w1:t1:input")
        else:
            assert other.get("agents:w1:t1:plan")
    assert [found.rule for found in stage.findings] == (["state.stale_read"] if reads == "old" else [])
