"""Sends requests at a fixed rate whatever the answers do, so that a stall is seen in full and load is equal for all.

Usage: open_loop.py PORT RATE SECONDS CONNECTIONS RUN

Warms its connections, prints `ready`, starts on a line from standard input, and prints one JSON object: `requests`
answered, `sent` (the warm-up's too), `seconds` from the first to the last planned request, `p50_us` and `p99_us` from
the planned instant to the end of the reply, `errors`.
"""

import asyncio
import contextlib
import json
import sys
from collections import deque
from time import perf_counter
from typing import Any

import httptools
import uvloop
from job import BODY_BYTES, TASK_PLACE, templates

GRACE_SECONDS = 2.0


class Connection(asyncio.Protocol):
    def __init__(self, load: "Load") -> None:
        self.load, self.planned, self.done = load, 0.0, None

    def connection_made(self, transport: Any) -> None:
        self.transport, self.parser = transport, httptools.HttpResponseParser(self)

    def send(self, planned: float, request: bytes) -> None:
        self.planned = planned
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.load.answered(self, self.parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        self.load.errors += 1


class Load:
    def __init__(self, port: int, run: int) -> None:
        self._run, self.sent = run, 0
        self._expected, self._all = 0, asyncio.Event()
        self._bodies = [body.split(TASK_PLACE) for body in templates()]
        self._head = (
            f"POST /handoff HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nAccept: */*\r\n"
            f"User-Agent: bench\r\nContent-Length: {BODY_BYTES}\r\ntraceparent: 00-"
        )
        self.idle: deque[Connection] = deque()
        self.waiting: deque[float] = deque()
        self.latencies: list[float] = []
        self.errors = 0

    def request(self) -> bytes:
        self.sent += 1
        workflow = self.sent // 8 + 1
        trace = f"{self._run:016x}{workflow:016x}-{self.sent:016x}-01"
        before, after = self._bodies[workflow % len(self._bodies)]
        return f"{self._head}{trace}\r\n\r\n{before}task-{self._run:06d}-{self.sent:012d}{after}".encode()

    def answered(self, connection: Connection, status: int) -> None:
        self.latencies.append(perf_counter() - connection.planned)
        self.errors += status != 200
        if len(self.latencies) >= self._expected:
            self._all.set()
        if self.waiting:
            connection.send(self.waiting.popleft(), self.request())
        else:
            self.idle.append(connection)

    def plan(self, planned: float) -> None:
        if self.idle:
            self.idle.popleft().send(planned, self.request())
        else:
            self.waiting.append(planned)

    async def run(self, rate: float, seconds: float) -> float:
        """Plans every request on time, then waits a little for the last answers; seconds that the plan took."""
        self.latencies, self.errors, self._expected = [], 0, int(rate * seconds)
        self.waiting.clear()
        self._all.clear()
        began = perf_counter()
        for number in range(self._expected):
            planned = began + number / rate
            if (wait := planned - perf_counter()) > 0.0002:
                await asyncio.sleep(wait)
            self.plan(planned)
        took = perf_counter() - began
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all.wait(), GRACE_SECONDS)
        self.waiting.clear()  # else an answer that comes while the loop closes sends one more, which nobody counts
        return took


async def main() -> None:
    port, rate, seconds, connections, run = (int(argument) for argument in sys.argv[1:6])
    loop, load = asyncio.get_running_loop(), Load(port, run)
    for _ in range(connections):
        _, connection = await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
        load.idle.append(connection)
    await load.run(rate, 0.5)
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    took = await load.run(rate, seconds)
    ordered = sorted(load.latencies) or [0.0]
    result = {
        "requests": len(load.latencies),
        "sent": load.sent,
        "seconds": took,
        "p50_us": ordered[len(ordered) // 2] * 1e6,
        "p99_us": ordered[len(ordered) * 99 // 100] * 1e6,
        "errors": load.errors,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
