"""Agents that really deadlock, each a process of its own, seen through a running sidecar."""

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handrail.config import AdminConfig, Config, RouteConfig, RulesConfig
from handrail.edge.demo import SidecarThread
from handrail.event import Event, Finding

RULES = Path(__file__).parents[2] / "rules" / "detection" / "wait.yaml"
AGENT = Path(__file__).with_name("waiting_agent.py")
RING = {"a": "b", "b": "c", "c": "a"}
TASK = {
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


def begin(door: str) -> threading.Thread:
    """Hands the first agent its task, and does not wait for the answer."""

    def call() -> None:
        headers = {"Content-Type": "application/json", "handrail-workflow": "round"}
        request = urllib.request.Request(door, json.dumps(TASK).encode(), headers)
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
