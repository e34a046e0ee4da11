"""The load: wrk in a closed loop for throughput and latency, our own generator in an open loop for cost at a rate."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job
from contestants import HERE, Broken, Missing

_runs = itertools.count(1)
"""A number for each run of a generator: it is part of every task_id, so that no two requests repeat one."""


def need_wrk() -> None:
    if shutil.which("wrk") is None:
        raise Missing("the load generator is wrk: apt-get install wrk")


def closed(port: int, connections: int, seconds: float, directory: Path) -> dict[str, Any]:
    """wrk with as many requests in flight as connections: requests, seconds, p50_us, p99_us, errors."""
    body = directory / "bodies"
    if not body.exists():
        body.write_text("\n".join(job.templates()))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", str(HERE / "wrk.lua")]
    command += [f"http://127.0.0.1:{port}", "--", str(body), str(next(_runs))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise Broken(f"wrk gave no result: {done.stdout[-500:]}{done.stderr[-500:]}") from None
    return result


def opened(port: int, rate: int, seconds: float, connections: int, cpu: Callable[[], float]) -> dict[str, Any]:
    """The open loop, with the CPU seconds that `cpu` tells before and after it: also `cpu_seconds`."""
    command = [sys.executable, str(HERE / "open_loop.py"), str(port), str(rate), f"{seconds:.0f}", str(connections)]
    with subprocess.Popen(
        [*command, str(next(_runs))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as generator:
        assert generator.stdin is not None
        assert generator.stdout is not None
        try:
            if generator.stdout.readline() != "ready\n":
                raise Broken("the open loop did not start")
            before = cpu()
            generator.stdin.write("\n")
            generator.stdin.flush()
            told = generator.stdout.readline()
            after = cpu()
        finally:
            generator.kill()
    try:
        result: dict[str, Any] = json.loads(told)
    except ValueError:
        raise Broken("the open loop gave no result") from None
    return result | {"cpu_seconds": after - before}
