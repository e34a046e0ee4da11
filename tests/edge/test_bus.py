"""nats-py and a real NATS server with JetStream, through the splice: nothing changes, and what happens is seen."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import nats
import nats.errors
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from edge.servers import Server, free_port, nats_server
from edge.splicing import Joined, Seer, bus
from handrail.wire.operation import Acknowledged, Delivered, Published, Stored


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with nats_server() as running:
        yield running


class Subjects(Seer):
    """Wants the agents' subjects alone."""

    def wants(self, subject: Any) -> bool:
        return str(subject).startswith("agents.")


@pytest.fixture
def joined(server: Server) -> Iterator[Joined]:
    with bus(f"nats://127.0.0.1:{server.port}", seer=Subjects()) as running:
        yield running


def talk(port: int, script: Callable[[Any], Awaitable[None]]) -> None:
    async def go() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port}", name="planner", allow_reconnect=False)
        try:
            await asyncio.wait_for(script(client), 15)
        finally:
            await client.close()

    asyncio.run(go())


def test_publish_subscribe_and_requests(joined: Joined) -> None:
    """Headers, queues, requests, nobody there, a thousand messages."""

    async def script(client: Any) -> None:
        async def answer(message: Any) -> None:
            await message.respond(b"re: " + message.data)

        subscription = await client.subscribe("agents.*.done")
        await client.subscribe("service", queue="workers", cb=answer)
        await client.publish("agents.a.done", b"hello", headers={"Handrail-Task": "t1"})
        message = await subscription.next_msg(5)
        assert (message.subject, message.data, message.headers) == ("agents.a.done", b"hello", {"Handrail-Task": "t1"})
        assert (await client.request("service", b"x", timeout=5)).data == b"re: x"
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request("agents.nobody", b"x", timeout=5)
        for number in range(1000):
            await client.publish("agents.b.done", b"%d" % number)
        for number in range(1000):
            assert (await subscription.next_msg(5)).data == b"%d" % number

    talk(joined.port, script)
    seer = joined.seer
    seer.until(lambda: len(seer.of(Delivered)) == 1001)
    published = [each for each in seer.of(Published) if each.subject == "agents.a.done"]
    (first, *_) = seer.of(Delivered)
    assert [(each.payload, each.headers, each.connection.name) for each in published] == [
        (b"hello", {"Handrail-Task": "t1"}, "planner")
    ]
    assert (first.payload, first.subscription, first.jetstream) == (b"hello", "agents.*.done", None)
    assert [each.error for each in seer.of(Stored)] == ["no responders"]
    assert joined.counted("handrail_faults_total") == {}


def test_jetstream_from_publish_to_acknowledgement(joined: Joined) -> None:
    """Stored, delivered, refused, delivered again, acknowledged; a duplicate of the sender is told apart."""

    async def script(client: Any) -> None:
        js = client.jetstream()
        await js.add_stream(name="AGENTS", subjects=["agents.>"])
        try:
            await js.publish("agents.a.done", b"one", headers={"Nats-Msg-Id": "1"})
            again = await js.publish("agents.a.done", b"one", headers={"Nats-Msg-Id": "1"})
            assert again.duplicate
            config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=30)
            subscription = await js.pull_subscribe("agents.>", durable="C", config=config)
            (message,) = await subscription.fetch(1, timeout=5)
            await message.in_progress()
            await message.nak()
            (message,) = await subscription.fetch(1, timeout=5)
            assert message.metadata.num_delivered == 2
            await message.ack_sync(5)
        finally:
            await js.delete_stream("AGENTS")

    talk(joined.port, script)
    seer = joined.seer
    seer.until(lambda: len(seer.of(Acknowledged)) == 3)
    first, second = seer.of(Published)
    stored, duplicate = seer.of(Stored)
    assert (stored.id, stored.stream, stored.sequence, stored.is_duplicate) == (first.id, "AGENTS", 1, False)
    assert (duplicate.id, duplicate.is_duplicate) == (second.id, True)
    delivered, again = seer.of(Delivered)
    assert [each.jetstream.deliveries for each in (delivered, again)] == [1, 2]
    assert abs(delivered.jetstream.stored_at - first.at) < 5
    working, refused, done = seer.of(Acknowledged)
    assert [each.kind for each in (working, refused, done)] == ["progress", "nak", "ack"]
    assert [each.id for each in (working, refused, done)] == [delivered.id, delivered.id, again.id]
    assert first.at <= stored.at <= delivered.at <= done.at


def test_a_bus_that_is_away_closes_the_connection_and_is_counted() -> None:
    """As a client sees it that connects directly."""
    with bus(f"nats://127.0.0.1:{free_port()}") as joined:
        with contextlib.closing(socket.create_connection(("127.0.0.1", joined.port))) as client:
            client.settimeout(5)
            assert client.recv(10) == b""
        assert joined.counted("handrail_faults_total") == {("bus", "upstream_refused"): 1.0}
