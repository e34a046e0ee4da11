"""A large body past a slow reader, through a proxy in this process; prints how far its memory grew, as JSON.

    python flood.py up|down MIB

The two ends run in a child process, so that what is measured is the proxy alone.
"""

import asyncio
import contextlib
import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import orjson
import uvloop

from edge.recorder import OK, Upstream, Wire, staged

PIECE = b"x" * 65_536


async def pour(wire: Wire, size: int) -> None:
    for _ in range(size // len(PIECE)):
        await wire.send(PIECE)


async def drain(wire: Wire, size: int) -> int:
    """Reads slowly at first, so that every buffer on the way fills; then as fast as it comes."""
    taken, reads = 0, 0
    while taken < size:
        data = await wire._reader.read(65_536)
        if not data:
            break
        taken += len(data)
        reads += 1
        if reads % 8 == 0 and reads < 200:
            await asyncio.sleep(0.02)
    return taken


def ends(direction: str, size: int, pipe: Connection) -> None:
    """The upstream and the client."""

    async def serve(wire: Wire) -> None:
        head = await wire.until()
        if direction == "up":
            await drain(wire, size - len(wire._buffer))
            await wire.send(OK)
        else:
            assert head
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size)
            await pour(wire, size)
        await wire.rest(60)

    async def run() -> None:
        upstream = Upstream(serve)
        await upstream.start()
        pipe.send(upstream.port)
        client = await Wire.connect(pipe.recv())
        length = size if direction == "up" else 0
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
        )
        if direction == "up":
            await pour(client, size)
            await client.message()
            taken = size
        else:
            await client.until()
            taken = len(client._buffer) + await drain(client, size - len(client._buffer))
        client.close()
        pipe.send(taken)
        pipe.recv()
        await upstream.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def main(direction: str, size: int) -> None:
    context = get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=ends, args=(direction, size, there), daemon=True)
    child.start()
    loop = asyncio.get_running_loop()
    port = await loop.run_in_executor(None, here.recv)
    async with staged(upstream_port=port) as stage:
        before = resident()
        highest = before
        here.send(stage.port)
        while not here.poll():
            highest = max(highest, resident())
            await asyncio.sleep(0.02)
        taken = here.recv()
        (event,) = await stage.settled(1)
        here.send(None)
    with contextlib.suppress(Exception):
        child.join(5)
    reason = event.uninspected
    if direction == "down" and stage.counted("handrail_uninspected_total", "too_large"):
        reason = "too_large"
    report = {"bytes": taken, "growth_mib": highest - before, "outcome": event.outcome, "uninspected": reason}
    print(orjson.dumps(report).decode())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2]) << 20))
