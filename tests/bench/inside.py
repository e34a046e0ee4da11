"""What one exchange costs Handrail without its sockets, step by step: where to look when the throughput falls.

Runs the sidecar's own decoders, inspector and recorder over exchanges in memory, as many together as the sidecar takes
under load, and prints the first decile and the median of each step in microseconds for one exchange, with
`orjson.loads` of the same body as the yardstick of how fast the machine is at this moment.

Usage: inside.py [EXCHANGES]
"""

import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter

import job
import orjson
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[2] / "collector"))  # an installed build goes before the source

from handrail.config import load
from handrail.edge.proxy import LOOK_TOGETHER
from handrail.edge.sidecar import Sidecar
from handrail.wire import Exchange, Reply, Request
from handrail.wire.http1 import ReplyDecoder, RequestDecoder

STEPS = ("request decoded", "reply decoded", "inspected", "recorded", "(orjson.loads)")
COPY_BYTES = 4_194_304
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 01 Jan 2026 10:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n" % len(job.REPLY)
) + job.REPLY


def sidecar(directory: Path) -> Sidecar:
    """Everything on, nothing started: rows stay in the queue and no socket is opened."""
    schema = directory / job.SUBJECT / "1.json"
    schema.parent.mkdir()
    schema.write_text(json.dumps(job.SCHEMA))
    config = {
        "agent": "writer",
        "routes": [{"listen": "127.0.0.1:1", "upstream": "http://127.0.0.1:2", "peer": "researcher"}],
        "schemas": {
            "directory": str(directory),
            "edges": [{"source": "researcher", "target": "writer", "subject": job.SUBJECT}],
        },
        "clickhouse": {"dsn": "http://default@127.0.0.1:3"},
    }
    return Sidecar(load(json.dumps(config), "bench"))


def requests(count: int) -> Iterator[bytes]:
    """The requests that wrk.lua sends."""
    bodies = [body.encode().split(job.TASK_PLACE.encode()) for body in job.templates()]
    head = (
        "POST /handoff HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\nAccept: */*\r\n"
        f"User-Agent: bench\r\nContent-Length: {job.BODY_BYTES}\r\ntraceparent: 00-"
    ).encode()
    for number in range(1, count + 1):
        workflow = number // 8 + 1
        trace = b"%032x-%016x-01\r\n\r\n" % (workflow, number)
        before, after = bodies[workflow % len(bodies)]
        yield head + trace + before + b"task-000000-%012d" % number + after


def measure(count: int) -> list[list[float]]:
    """Seconds of each step for one exchange, as the mean of those that were looked at together."""
    spent: list[list[float]] = [[] for _ in STEPS]
    with tempfile.TemporaryDirectory() as directory:
        whole = sidecar(Path(directory))
    limits, route = whole.proxy.head_limits, whole.listeners[0].route
    asking, answering = RequestDecoder(limits, COPY_BYTES), ReplyDecoder(limits, COPY_BYTES)
    inspector, recorder = whole.inspector, whole.recorder
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as the sidecar sets it
    coming = enumerate(requests(count))
    while len(part := list(islice(coming, LOOK_TOGETHER))) == LOOK_TOGETHER:
        exchanges, decoded, answered = [], 0.0, 0.0
        for number, data in part:
            at = 1_767_261_600.0 + number / 1000
            t0 = perf_counter()
            request = asking.feed(data, at)
            t1 = perf_counter()
            assert isinstance(request, Request)
            exchange = Exchange(id=f"{number:032x}", route=route, request=request)
            answering.expect("POST")
            t2 = perf_counter()
            reply = answering.feed(ANSWER, at)
            t3 = perf_counter()
            assert isinstance(reply, Reply)
            exchange.reply, exchange.ended, exchange.overhead_ms = reply, at + 0.001, 0.1
            exchanges.append(exchange)
            decoded, answered = decoded + t1 - t0, answered + t3 - t2
        t4 = perf_counter()
        decisions = inspector.together(exchanges)
        t5 = perf_counter()
        recorder.record_all(decisions, at)
        t6 = perf_counter()
        for exchange in exchanges:
            orjson.loads(exchange.request.body)
        t7 = perf_counter()
        for step, seconds in zip(spent, (decoded, answered, t5 - t4, t6 - t5, t7 - t6), strict=True):
            step.append(seconds / LOOK_TOGETHER)
    return spent


def main() -> None:
    spent = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
    table = Table(title="One exchange without sockets, µs")
    for column in ("step", "first decile", "median"):
        table.add_column(column, justify="left" if column == "step" else "right")
    sums = [0.0, 0.0]
    for name, step in zip(STEPS, spent, strict=True):
        figures = statistics.quantiles(step, n=10)[0] * 1e6, statistics.median(step) * 1e6
        if name is not STEPS[-1]:
            sums = [total + figure for total, figure in zip(sums, figures, strict=True)]
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    table.add_section()
    table.add_row("all but the yardstick", *(f"{total:.1f}" for total in sums))
    Console().print(table)


if __name__ == "__main__":
    main()
