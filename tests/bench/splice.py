"""The floor for a validating proxy in Python: two uvloop protocols that pass bytes on and read a copy.

It parses both directions, validates, counts and keeps a record of each exchange, and does nothing else that a proxy
has to do: no limits, no time-outs, no refusals, no pipelining, no backpressure, no second try.

uvloop sends what was written once the callbacks of a poll are over, so the copy is parsed by `call_soon`: parsed in
the same callback, it would be read before its bytes have left.

Usage: splice.py PORT UPSTREAM_PORT COUNT_PORT
"""

import asyncio
import sys
from collections import deque
from time import monotonic
from typing import Any

import httptools
import uvloop
from job import Job

PORT, UPSTREAM, COUNTS = (int(argument) for argument in sys.argv[1:4])

job = Job()
records: deque[tuple[float, float, str, str, str, int]] = deque(maxlen=10_000)
handoffs: dict[tuple[str, str, int], int] = {}
loop = uvloop.new_event_loop()


class Client(asyncio.Protocol):
    """The caller's side: the request."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.upstream, self.early = transport, None, []
        self.parser, self.parts, self.headers = httptools.HttpRequestParser(self), [], {}
        self.began, self.value = 0.0, {}
        self.dial = loop.create_task(loop.create_connection(lambda: Upstream(self), "127.0.0.1", UPSTREAM))

    def data_received(self, data: bytes) -> None:
        if self.upstream is None:
            self.early.append(data)
        else:
            self.upstream.write(data)
        loop.call_soon(self.parser.feed_data, data)

    def on_message_begin(self) -> None:
        self.began, self.parts, self.headers = monotonic(), [], {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.value = job.check(self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)) or {}

    def connection_lost(self, error: Exception | None) -> None:
        if self.upstream is not None:
            self.upstream.close()


class Upstream(asyncio.Protocol):
    """The other side: the reply, and the record when it is complete."""

    def __init__(self, client: Client) -> None:
        self.client, self.parser, self.size = client, httptools.HttpResponseParser(self), 0

    def connection_made(self, transport: Any) -> None:
        self.client.upstream = transport
        transport.writelines(self.client.early)

    def data_received(self, data: bytes) -> None:
        self.client.transport.write(data)
        loop.call_soon(self.parser.feed_data, data)

    def on_body(self, part: bytes) -> None:
        self.size += len(part)

    def on_message_complete(self) -> None:
        value = self.client.value
        source, target, task = value.get("source_agent", ""), value.get("target_agent", ""), value.get("task_id", "")
        edge = source, target, self.parser.get_status_code()
        handoffs[edge] = handoffs.get(edge, 0) + 1
        records.append((self.client.began, monotonic(), source, target, task, self.size))
        self.size = 0

    def connection_lost(self, error: Exception | None) -> None:
        self.client.transport.close()


async def main() -> None:
    counts = await job.serve(COUNTS)
    server = await loop.create_server(Client, "127.0.0.1", PORT, backlog=1024)
    async with counts, server:
        await server.serve_forever()


if __name__ == "__main__":
    loop.run_until_complete(main())
