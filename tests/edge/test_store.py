"""Real clients of a real Valkey server, through the splice: they notice nothing, and their operations are seen."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import trustme
import valkey as valkey_client

from conftest import missing
from edge.servers import Server, free_port, valkey
from edge.splicing import Joined, Seer, store
from handrail.wire.operation import Message, Operation, Pending


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as running:
        yield running


@pytest.fixture
def joined(server: Server) -> Iterator[Joined]:
    with redis.Redis(port=server.port) as direct:
        direct.flushall()
    with store(f"redis://127.0.0.1:{server.port}") as running:
        yield running


def use(client: Any) -> None:
    """What applications do with a store; every answer is what the server gives without us."""
    assert client.set("k", "v" * 2000)
    assert client.get("k") == b"v" * 2000
    assert client.hset("h", mapping={"a": "1", "b": "2"}) == 2
    assert client.hgetall("h") == {b"a": b"1", b"b": b"2"}
    with client.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.set(f"n:{number}", number)
        assert all(pipe.execute())
    with client.pipeline(transaction=True) as pipe:
        pipe.watch("k")
        pipe.multi()
        pipe.incr("count").get("k").lrange("none", 0, -1)
        assert pipe.execute() == [1, b"v" * 2000, []]
    assert sorted(client.scan_iter("n:*", count=50)) == sorted(b"n:%d" % number for number in range(200))
    assert client.zadd("z", {"m": 1.5}) == 1
    assert client.zscore("z", "m") == 1.5
    client.xadd("s", {"f": "v"}, id="1-1")
    client.xgroup_create("s", "g", id="0")
    assert client.xreadgroup("g", "me", {"s": ">"}, count=1)
    assert client.xack("s", "g", "1-1") == 1
    assert client.eval("return redis.call('get', KEYS[1])", 1, "count") == b"1"
    with pytest.raises(Exception, match="wrong kind"):
        client.incr("h")
    big = b"x" * 3_000_000
    assert client.set("big", big)
    assert client.get("big") == big


def check(joined: Joined) -> None:
    """What was seen of `use`."""
    seer = joined.seer
    seer.until(lambda: [each for each in seer.named(b"GET") if each.args[1] == b"big"])
    assert [each.cut for each in seer.named(b"GET", b"SET") if each.args[1] == b"big"] == ["too_large"] * 2
    assert len([each for each in seer.named(b"SET") if each.args[1].startswith(b"n:")]) == 200
    (incr,) = [each for each in seer.named(b"INCRBY") if each.args[1] == b"count"]
    assert (incr.reply, incr.transaction) == (1, 1)
    (wrong,) = [each for each in seer.named(b"INCRBY") if each.args[1] == b"h"]
    assert wrong.is_error
    assert wrong.reply.code == b"WRONGTYPE"
    assert all(each.outcome == "answered" and each.ended >= each.at > 1e9 for each in seer.of(Operation))
    assert joined.counted("handrail_uninspected_total") == {("script",): 1.0}
    assert joined.counted("handrail_faults_total") == {}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("package", [redis, valkey_client], ids=["redis-py", "valkey-py"])
def test_a_synchronous_client_notices_nothing(joined: Joined, package: Any, protocol: int) -> None:
    """Plain commands, pipelines, transactions, scans, streams, scripts, errors, large values."""
    kind = package.Redis if package is redis else package.Valkey
    with kind(port=joined.port, protocol=protocol) as client:
        use(client)
    check(joined)


def test_an_asynchronous_client_notices_nothing(joined: Joined) -> None:
    """A hundred tasks on a pool of connections."""

    async def go() -> None:
        async with redis.asyncio.Redis(port=joined.port, max_connections=20) as client:

            async def work(number: int) -> None:
                async with gate:
                    await client.set(f"a:{number}", "v")
                    assert await client.get(f"a:{number}") == b"v"

            gate = asyncio.Semaphore(20)
            await asyncio.gather(*(work(number) for number in range(100)))

    asyncio.run(go())
    joined.seer.until(lambda: len(joined.seer.named(b"GET")) == 100)
    assert all(each.reply == b"v" for each in joined.seer.named(b"GET"))


@pytest.mark.parametrize("protocol", [2, 3])
def test_messages_reach_their_subscriber_and_are_seen(joined: Joined, protocol: int) -> None:
    """Publish and subscribe, by channel and by pattern."""
    with redis.Redis(port=joined.port, protocol=protocol) as client, client.pubsub() as listening:
        listening.subscribe("done")
        listening.psubscribe("task:*")
        for _ in range(2):
            listening.get_message(timeout=5)
        assert client.publish("done", "one") == 1
        assert client.publish("task:1", "two") == 1
        assert [listening.get_message(timeout=5)["data"] for _ in range(2)] == [b"one", b"two"]
        listening.unsubscribe()
        listening.punsubscribe()
        listening.get_message(timeout=5)
        listening.get_message(timeout=5)
    seer = joined.seer
    seer.until(lambda: len(seer.of(Message)) == 2)
    assert [(each.channel, each.pattern, each.payload) for each in seer.of(Message)] == [
        (b"done", None, b"one"),
        (b"task:1", b"task:*", b"two"),
    ]


def test_client_tracking_works(joined: Joined) -> None:
    """The push comes in between and is no reply."""
    with (
        redis.Redis(port=joined.port, protocol=3) as writer,
        socket.create_connection(("127.0.0.1", joined.port)) as raw,
    ):
        raw.sendall(b"HELLO 3\r\nCLIENT TRACKING ON\r\nGET k\r\n")
        receive(raw, b"+OK\r\n_\r\n")
        writer.set("k", "1")
        receive(raw, b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n")
        raw.sendall(b"GET k\r\n")
        receive(raw, b"$1\r\n1\r\n")
    joined.seer.until(lambda: len(joined.seer.named(b"GET")) == 2)
    assert [each.reply for each in joined.seer.named(b"GET")] == [None, b"1"]


def receive(raw: socket.socket, end: bytes) -> bytes:
    """Everything up to and with `end`."""
    raw.settimeout(5)
    seen = b""
    while not seen.endswith(end):
        data = raw.recv(65_536)
        assert data, seen
        seen += data
    return seen


def test_a_blocking_command_is_seen_while_it_waits(joined: Joined) -> None:
    """And when it is answered, under the same id."""
    with redis.Redis(port=joined.port) as client:
        got: list[Any] = []
        waiting = threading.Thread(target=lambda: got.append(redis.Redis(port=joined.port).blpop("q", 5)))
        waiting.start()
        (pending,) = joined.seer.until(lambda: joined.seer.of(Pending))
        client.rpush("q", "v")
        waiting.join(5)
    assert got == [(b"q", b"v")]
    (answered,) = joined.seer.until(lambda: joined.seer.named(b"BLPOP"))
    assert (answered.id, answered.reply) == (pending.id, [b"q", b"v"])


def test_the_replica_has_a_listener_of_its_own(server: Server) -> None:
    """Records say which listener they came from."""
    with valkey("--replicaof", f"127.0.0.1 {server.port}") as replica:  # noqa: SIM117  # the second names the first
        with store(f"redis://127.0.0.1:{server.port}", f"redis://127.0.0.1:{replica.port}") as joined:
            primary, second = (redis.Redis(port=port) for port in joined.ports)
            joined.seer.until(lambda: second.info("replication")["master_link_status"] == "up", 10)
            primary.set("r", "1")
            assert primary.wait(1, 5000) == 1
            assert second.get("r") == b"1"
            with pytest.raises(redis.exceptions.ReadOnlyError):
                second.set("r", "2")
            primary.close()
            second.close()
            (read,) = joined.seer.until(lambda: joined.seer.named(b"GET"))
            assert read.connection.listener == 1
            assert joined.seer.named(b"SET")[0].connection.listener == 0


@contextlib.contextmanager
def behind_tls(port: int, certificate: trustme.LeafCert) -> Iterator[int]:
    """A port that speaks TLS and has the server behind it; the wheel's Valkey is built without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    stopping: list[Any] = []
    found: list[int] = []
    ready = threading.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async def serve() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # handshakes that a client breaks off
        stopping.append(lambda: loop.call_soon_threadsafe(ended.set))
        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        found.append(server.sockets[0].getsockname()[1])
        ready.set()
        await ended.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield found[0]
    finally:
        stopping[0]()
        thread.join(5)


def test_an_upstream_with_tls_is_verified(server: Server, tmp_path: Path) -> None:
    """The client speaks plainly, the splice does not; a certificate that nobody vouches for is refused."""
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    with behind_tls(server.port, authority.issue_cert("127.0.0.1")) as port:
        with store(f"rediss://127.0.0.1:{port}", ca_file=str(ca)) as joined:
            with redis.Redis(port=joined.port) as client:
                client.flushall()
                use(client)
            check(joined)
        with store(f"rediss://127.0.0.1:{port}") as joined:
            with redis.Redis(port=joined.port) as client, pytest.raises(redis.exceptions.ConnectionError):
                client.ping()
            assert ("store", "upstream_refused") in joined.counted("handrail_faults_total")


def test_a_store_that_is_away_closes_the_connection_and_is_counted() -> None:
    """As a client sees it that connects directly: a connection error, which it may retry."""
    with store(f"redis://127.0.0.1:{free_port()}") as joined:
        with redis.Redis(port=joined.port) as client, pytest.raises(redis.exceptions.ConnectionError):
            client.ping()
        assert joined.counted("handrail_faults_total")[("store", "upstream_refused")] >= 1


def test_connections_past_the_limit_hear_what_the_server_would_say(server: Server) -> None:
    """And those that are there go on."""
    with store(f"redis://127.0.0.1:{server.port}", connections=1) as joined:
        with socket.create_connection(("127.0.0.1", joined.port)) as first:
            first.sendall(b"PING\r\n")
            receive(first, b"+PONG\r\n")
            with socket.create_connection(("127.0.0.1", joined.port)) as second:
                assert receive(second, b"reached\r\n").startswith(b"-ERR max number of clients")
                assert second.recv(10) == b""
            first.sendall(b"PING\r\n")
            receive(first, b"+PONG\r\n")
        assert joined.counted("handrail_refused_total") == {("connections",): 1.0}


def test_a_monitor_passes_and_is_counted(joined: Joined) -> None:
    """Its stream has no frames of its own."""
    with redis.Redis(port=joined.port) as client, client.monitor() as monitor:
        client.set("seen", "1")
        assert any("seen" in monitor.next_command()["command"] for _ in range(10))
    joined.seer.until(lambda: joined.counted("handrail_uninspected_total"))  # copies are read after the bytes went on
    assert joined.counted("handrail_uninspected_total") == {("takeover",): 1.0}


def test_a_server_that_ends_is_seen_by_its_clients() -> None:
    """What was asked and not answered is lost."""
    with valkey() as server, store(f"redis://127.0.0.1:{server.port}") as joined:
        with socket.create_connection(("127.0.0.1", joined.port)) as client:
            client.sendall(b"PING\r\n")
            receive(client, b"+PONG\r\n")
            server.pause()
            client.sendall(b"SET a 1\r\n")
            time.sleep(0.05)
            server.stop()
            client.settimeout(5)
            try:
                assert client.recv(10) == b""
            except ConnectionError:
                pass
        (lost,) = joined.seer.until(lambda: joined.seer.named(b"SET"))
        assert lost.outcome == "lost"


def test_a_client_that_does_not_read_stops_the_server_and_no_memory_grows(joined: Joined) -> None:
    """Backpressure: what nobody takes stays with the server, and comes when it is taken."""
    with redis.Redis(port=joined.port) as client:
        client.set("big", b"x" * 1_000_000)
    with socket.create_connection(("127.0.0.1", joined.port)) as slow:
        slow.sendall(b"GET big\r\n" * 50)
        time.sleep(0.3)
        (lone,) = joined.service.splice.clients
        assert lone.transport.get_write_buffer_size() < 2_000_000
        slow.settimeout(10)
        left = 50 * 1_000_012
        while left:
            left -= len(slow.recv(1_000_000))
    joined.seer.until(lambda: len(joined.seer.named(b"GET")) == 50)


IOREDIS = """
const Redis = require('ioredis');
(async () => {
  const client = new Redis(+process.argv[2]);
  const wanted = (got, want) => {
    if (JSON.stringify(got) !== JSON.stringify(want)) throw new Error(JSON.stringify(got));
  };
  wanted(await client.set('io', 'v'), 'OK');
  wanted(await client.get('io'), 'v');
  wanted(await client.multi().incr('ion').get('io').exec(), [[null, 1], [null, 'v']]);
  const many = await Promise.all(Array.from({length: 100}, (_, i) => client.set('io:' + i, i)));
  wanted(many.length, 100);
  const sub = client.duplicate();
  await sub.subscribe('news');
  const heard = new Promise(resolve => sub.on('message', (channel, text) => resolve([channel, text])));
  await client.publish('news', 'hello');
  wanted(await heard, ['news', 'hello']);
  const blocked = client.duplicate().blpop('ioq', 5);
  await client.rpush('ioq', 'x');
  wanted(await blocked, ['ioq', 'x']);
  console.log('done');
  process.exit(0);
})().catch(error => { console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="module")
def ioredis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where `require('ioredis')` works."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing("node and npm are not installed (apt-get install nodejs npm)")
    directory = tmp_path_factory.mktemp("ioredis")
    command = [str(npm), "install", "--no-audit", "--no-fund", "--ignore-scripts", "ioredis@5"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=50, check=False)
    if done.returncode:
        missing(f"npm cannot install ioredis: {done.stderr[-300:]}")
    return directory


def test_a_client_of_another_language_notices_nothing(joined: Joined, ioredis: Path) -> None:
    """ioredis on Node: pipelined by itself, transactions, subscriptions, blocking."""
    Path(ioredis, "client.js").write_text(IOREDIS)
    command = ["node", "client.js", str(joined.port)]
    done = subprocess.run(command, cwd=ioredis, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "done\n", done.stderr
    seer = joined.seer
    seer.until(lambda: seer.named(b"BLPOP") and seer.of(Message))
    assert [each.reply for each in seer.named(b"INCR")] == [1]
    assert len([each for each in seer.named(b"SET") if each.args[1].startswith(b"io:")]) == 100
    assert joined.counted("handrail_faults_total") == {}


# Enforce mode.


def refusing(asked: Pending | Operation) -> bytes | None:
    if asked.args[1] == b"forbidden" and isinstance(asked, Pending):
        return b"HANDRAIL not allowed"
    if asked.args[1] == b"stale" and isinstance(asked, Operation):
        return b"HANDRAIL stale read"
    return None


@pytest.fixture
def enforced(server: Server) -> Iterator[Joined]:
    with store(f"redis://127.0.0.1:{server.port}", seer=Seer(refusing)) as running:
        yield running


def test_a_refused_command_never_reaches_the_store(server: Server, enforced: Joined) -> None:
    """Its place in the pipeline is answered with the error; the others are as ever."""
    with redis.Redis(port=enforced.port) as client, redis.Redis(port=server.port) as direct:
        direct.delete("forbidden")
        with client.pipeline(transaction=False) as pipe:
            pipe.set("allowed", "1").set("forbidden", "1").get("allowed").get("stale")
            allowed, forbidden, got, stale = pipe.execute(raise_on_error=False)
        assert (allowed, got) == (True, b"1")
        assert str(forbidden) == "HANDRAIL not allowed"
        assert str(stale) == "HANDRAIL stale read"
        assert direct.get("forbidden") is None
    outcomes = {each.args[1]: each.outcome for each in enforced.seer.named(b"SET")}
    assert outcomes == {b"allowed": "answered", b"forbidden": "refused"}
    assert enforced.counted("handrail_refused_total") == {("rule",): 2.0}


def test_a_refused_command_spoils_its_transaction(server: Server, enforced: Joined) -> None:
    """Nothing of it runs."""
    with socket.create_connection(("127.0.0.1", enforced.port)) as raw, redis.Redis(port=server.port) as direct:
        direct.delete("allowed")
        raw.sendall(b"MULTI\r\nSET allowed 1\r\nSET forbidden 1\r\nEXEC\r\n")
        got = receive(raw, b"previous errors.\r\n")
        assert got.startswith(b"+OK\r\n+QUEUED\r\n-HANDRAIL not allowed\r\n-EXECABORT")
        assert direct.get("allowed") is None


def test_a_held_connection_notices_nothing_else(enforced: Joined) -> None:
    """Everything that is not refused is as without us."""
    with redis.Redis(port=enforced.port) as client:
        client.flushall()
        use(client)
        with client.pubsub() as listening:
            listening.subscribe("done")
            listening.get_message(timeout=5)
            client.publish("done", "one")
            assert listening.get_message(timeout=5)["data"] == b"one"
