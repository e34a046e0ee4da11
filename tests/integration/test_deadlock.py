"""Agents that really deadlock, each a process of its own, seen through a running sidecar."""

import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from edge.servers import valkey
from handrail.config import AdminConfig, Config, RouteConfig, RulesConfig, StoreConfig, StoreListenerConfig
from handrail.edge.demo import SidecarThread
from handrail.event import Event, Finding

RULES = Path(__file__).parents[2] / "rules" / "detection" / "wait.yaml"
AGENT = Path(__file__).with_name("waiting_agent.py")
RING = {"a": "b", "b": "c", "c": "a"}
TASK: dict[str, Any] = {
    "task_id": "first",
    "source_agent": "user",
    "target_agent": "a",
    "status": "completed",
    "output": {"summary": "go round", "artifacts": [], "confidence": 1.0},
    "context": {"original_goal": "go round", "constraints": [], "decisions_made": []},
    "metadata": {},
}


class Deadlocks:
    """Keeps the deadlocks that a sidecar writes down, and when."""

    def __init__(self) -> None:
        self.found: list[tuple[float, Finding]] = []
        self.events: list[Event] = []
        self.there = threading.Event()

    def put(self, record: Event | Finding) -> None:
        if isinstance(record, Event):
            self.events.append(record)
        elif record.kind == "wait.deadlock":
            self.found.append((time.time(), record))
            self.there.set()


@pytest.fixture
def running(free_port: Callable[[], int]) -> Iterator[Callable[[int], tuple[str, Deadlocks]]]:
    """Starts three agents in a ring and a sidecar in front of each; gives the door of the first, and what is found."""
    with contextlib.ExitStack() as stack:

        def start(rounds: int) -> tuple[str, Deadlocks]:
            ports = {name: free_port() for name in RING}
            doors = {name: free_port() for name in RING}
            for name, following in RING.items():
                url = f"http://127.0.0.1:{doors[following]}/"
                process = subprocess.Popen(
                    [sys.executable, str(AGENT), str(ports[name]), name, following, url, str(rounds)],
                    stdout=subprocess.PIPE,
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
                assert process.stdout is not None
                stack.callback(process.stdout.close)
                assert process.stdout.readline() == b"listening\n"
            seen = Deadlocks()
            routes = tuple(
                RouteConfig(agent=name, listen=f"127.0.0.1:{doors[name]}", upstream=f"http://127.0.0.1:{ports[name]}")
                for name in RING
            )
            rules = RulesConfig(builtin=False, files=(str(RULES),))
            config = Config(routes=routes, rules=rules, admin=AdminConfig(listen="127.0.0.1:0"))
            sidecar = SidecarThread(config, seen)
            stack.callback(sidecar.stop, 0.1)
            sidecar.start()
            return f"http://127.0.0.1:{doors['a']}/", seen

        yield start


def begin(door: str, task: dict[str, Any] = TASK) -> threading.Thread:
    """Hands an agent its task, and does not wait for the answer."""

    def call() -> None:
        headers = {"Content-Type": "application/json", "handrail-workflow": "round"}
        request = urllib.request.Request(door, json.dumps(task).encode(), headers)
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=20).read()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_three_agents_that_call_in_a_ring_are_found_within_a_second(running) -> None:
    """Each serves one request at a time, so that none ever answers; long before a call times out."""
    door, seen = running(0)
    begun = time.time()
    begin(door)
    assert seen.there.wait(10)
    ((told, found),) = seen.found
    assert sorted(found.evidence["cycle"]) == ["a", "b", "c"]
    assert (found.workflow, found.side) == ("round", "graph")
    assert [wait["via"] for wait in found.evidence["waits"]] == ["call"] * 3
    assert told - found.at < 1.5  # a second where the machine does nothing else
    assert told - begun < 5


def test_the_same_ring_that_resolves_itself_is_not_reported(running) -> None:
    """The agents answer while they wait, and the task ends when it comes round again."""
    door, seen = running(1)
    begin(door).join(20)
    deadline = time.monotonic() + 5
    while len(seen.events) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(seen.events) == 4
    assert not seen.there.wait(0.8)


def _taking_from(port: int) -> type[http.server.BaseHTTPRequestHandler]:
    """Agent b: answers a task when something came in its queue."""

    class Agent(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with redis.Redis(port=port) as client:
                client.blpop(["to-b"], timeout=8)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Agent


@pytest.fixture
def queues(free_port: Callable[[], int]) -> Iterator[tuple[dict[str, int], Deadlocks]]:
    """A Valkey server behind one listener for each of two agents: their ports, and what is found."""
    ports = {name: free_port() for name in ("a", "b")}
    with valkey() as server, contextlib.ExitStack() as stack:
        listeners = tuple(
            StoreListenerConfig(listen=f"127.0.0.1:{port}", upstream=f"redis://127.0.0.1:{server.port}", agent=name)
            for name, port in ports.items()
        )
        behind = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _taking_from(ports["b"]))
        threading.Thread(target=behind.serve_forever, daemon=True).start()
        stack.callback(behind.server_close)
        stack.callback(behind.shutdown)
        ports["b over HTTP"] = free_port()
        config = Config(
            routes=(
                RouteConfig(
                    agent="b",
                    listen=f"127.0.0.1:{ports['b over HTTP']}",
                    upstream=f"http://127.0.0.1:{behind.server_port}",
                ),
            ),
            stores=(StoreConfig(name="queues", listeners=listeners),),
            rules=RulesConfig(builtin=False, files=(str(RULES),)),
            admin=AdminConfig(listen="127.0.0.1:0"),
        )
        seen = Deadlocks()
        sidecar = SidecarThread(config, seen)
        stack.callback(sidecar.stop, 0.1)
        sidecar.start()
        yield ports, seen


def work(port: int, own: str, other: str, rounds: int) -> None:
    """An agent on two queues: takes from its own and gives to the other, and takes once more."""
    with redis.Redis(port=port) as client, contextlib.suppress(redis.RedisError):
        for _ in range(rounds):
            if client.blpop([own], timeout=8) is None:
                return
            client.rpush(other, "a task")
        client.blpop([own], timeout=8)


def test_two_agents_on_queues_that_wait_for_each_other(queues) -> None:
    """They hand to and fro, then each takes from its queue before it gives: nobody ever gives again."""
    ports, seen = queues
    with redis.Redis(port=ports["a"]) as a, redis.Redis(port=ports["b"]) as b:
        a.rpush("to-b", "1")
        b.rpush("to-a", "2")
        assert a.blpop(["to-a"], timeout=8)
        assert b.blpop(["to-b"], timeout=8)
    readers = [threading.Thread(target=work, args=(ports[me], f"to-{me}", "", 0), daemon=True) for me in "ab"]
    for reader in readers:
        reader.start()
    assert seen.there.wait(5)
    ((told, found),) = seen.found
    assert sorted(found.evidence["cycle"]) == ["a", "b"]
    assert {wait["via"] for wait in found.evidence["waits"]} == {"queue"}
    assert sorted(wait["holds"][0].partition("/")[2] for wait in found.evidence["waits"]) == [
        "to-a, which a reads",
        "to-b, which b reads",
    ]
    assert told - found.at < 1.5
    with redis.Redis(port=ports["a"]) as client:
        client.rpush("to-b", "x")
        client.rpush("to-a", "x")
    for reader in readers:
        reader.join(10)


def test_agents_that_hand_to_and_fro_over_queues_are_not_reported(queues) -> None:
    """At every instant at most one of them waits for long."""
    ports, seen = queues
    with redis.Redis(port=ports["a"]) as client:
        client.rpush("to-b", "begin")
        ending = threading.Thread(target=work, args=(ports["b"], "to-b", "to-a", 50), daemon=True)
        ending.start()
        for _ in range(50):
            assert client.blpop(["to-a"], timeout=8)
            client.rpush("to-b", "a task")
        ending.join(10)
    assert not seen.there.wait(0.8)


def test_a_ring_over_http_and_a_queue(queues) -> None:
    """a waits for b's answer, and b for what only a puts into its queue; with that, there is no ring."""
    ports, seen = queues
    door = f"http://127.0.0.1:{ports['b over HTTP']}/"
    task = TASK | {"source_agent": "a", "target_agent": "b"}
    with redis.Redis(port=ports["a"]) as a:
        a.rpush("to-b", "what b needs")
        begin(door, task).join(10)
        assert not seen.there.wait(0.8)
        calling = begin(door, task)
        assert seen.there.wait(5)
        ((told, found),) = seen.found
        assert [wait["via"] for wait in found.evidence["waits"]] == ["call", "queue"]
        assert (found.evidence["cycle"], found.workflow) == (["a", "b"], "round")
        assert told - found.at < 1.5
        a.rpush("to-b", "what b needs")
        calling.join(10)


def test_two_locks_that_are_taken_in_the_other_order(queues) -> None:
    """SET NX on keys of locks: each holds one and tries for the other's."""
    ports, seen = queues
    with redis.Redis(port=ports["a"]) as a, redis.Redis(port=ports["b"]) as b:
        assert a.set("lock:1", "a", nx=True)
        assert b.set("lock:2", "b", nx=True)
        deadline = time.monotonic() + 5
        while not seen.there.is_set() and time.monotonic() < deadline:
            assert not a.set("lock:2", "a", nx=True)
            assert not b.set("lock:1", "b", nx=True)
            time.sleep(0.05)
    ((_, found),) = seen.found
    assert [wait["holds"] for wait in found.evidence["waits"]] in (
        [["lock queues/lock:1"], ["lock queues/lock:2"]],
        [["lock queues/lock:2"], ["lock queues/lock:1"]],
    )
