"""A registry service in a process of its own, and requests to it as any HTTP client makes them."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

PATIENCE = 20.0
MEDIA = "application/vnd.schemaregistry.v1+json"


class Reply:
    """What came back: the status, the headers in lower case, and the body as JSON where it is any."""

    def __init__(self, status: int, headers: dict[str, str], raw: bytes) -> None:
        self.status, self.headers, self.raw = status, headers, raw

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> int:
        """The error code in it."""
        found: int = self.body["error_code"]
        return found


class Caller:
    """Requests to one registry, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent.setdefault("Content-Type", MEDIA)
            if not isinstance(body, bytes):
                body = json.dumps(body).encode()
        try:
            connection.request(method, path, body=body, headers=sent)
            reply = connection.getresponse()
            named = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, named, reply.read())
        finally:
            connection.close()

    def register(self, subject: str, schema: Any, **more: Any) -> Reply:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        path = f"/subjects/{quote(subject, safe='')}/versions"
        return self("POST", path, {"schema": text, "schemaType": "JSON", **more})


class Running:
    """`handrail run` with a registry."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, port: int, admin: int) -> None:
        self.process, self.log = process, log
        self.call, self.admin = Caller(port), Caller(admin)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def metric(self, name: str) -> float:
        """What the admin port shows: the page is the same for a second, so what changed since then takes an `until`."""
        for line in self.admin("GET", "/metrics").raw.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")


@contextlib.contextmanager
def running(directory: Path, registry: str, port: int, admin: int, rules: str = "", **more: str) -> Iterator[Running]:
    """Runs a process whose configuration holds the keys of `registry`, and what `more` says, until the block ends."""
    file, log = directory / f"handrail-{port}.yaml", directory / f"handrail-{port}.log"
    sections = "".join(f"{key}: {value}\n" for key, value in more.items() if key.islower())
    listen = f"listen: 127.0.0.1:{port}" + (", " if registry else "")
    file.write_text(
        f"registry: {{{listen}{registry}}}\nadmin: {{listen: 127.0.0.1:{admin}}}\n"
        f"rules: {{builtin: false, files: [{rules}]}}\n{sections}"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HANDRAIL_")}
    environment |= {key: value for key, value in more.items() if key.isupper()}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "handrail", "run", "-c", str(file)], stdout=out, stderr=out, env=environment
        )
    found = Running(process, log, port, admin)
    try:
        until(lambda: found.process.poll() is not None or answers(found.admin))
        assert process.poll() is None, log.read_text()
        yield found
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(call: Caller) -> bool:
    try:
        return call("GET", "/readyz").status == 200
    except OSError:
        return False


def until(holds: Any, patience: float = PATIENCE) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
