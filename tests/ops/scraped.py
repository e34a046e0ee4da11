"""A real run to ask dashboards and rules about: sidecars, traffic, a Prometheus that scrapes them, and ClickHouse.

Handoffs go through a real proxy, a schema registry is served by one sidecar and followed by the other, and every kind
of finding is there with the events it came of: those are the transcripts that the built-in rules carry, run through
their detectors and recorded as if they had been seen just now. What no traffic can bring about in seconds (a full
queue) is counted where it would be.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import orjson
import uvloop
import yaml

from edge.chshim import Server as ClickHouse
from handrail.config import Config
from handrail.edge.files import load_packs
from handrail.edge.metrics import COUNTERS, GAUGES
from handrail.edge.sidecar import Sidecar
from handrail.event import Decision, Event, Fault, Finding, event_from
from handrail.pipeline import Pipeline
from handrail.rules import Pack, RuleConfig, TestConfig, event_of, in_force, watch
from handrail.schema.registry import Registry

SCRAPE_SECONDS = 1
PATIENCE = 30.0


CHAIN = "w-chain"
"""A workflow whose handoffs lead from one agent to the next."""


class _Agent(BaseHTTPRequestHandler):
    """An upstream that does its work at once, and fails where it is told to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = 500 if b'"fail"' in body else 200
        said = json.dumps({"status": "completed", "output": {"summary": "done"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


class _Thread:
    """Sidecars with a loop in a thread of its own."""

    def __init__(self, *configs: dict[str, Any]) -> None:
        self.sidecars: list[Sidecar] = []
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        for config in configs:
            sidecar = Sidecar(msgspec.convert(config, Config))
            self.call(sidecar.start())
            self.sidecars.append(sidecar)

    def call(self, order: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(order, self.loop).result(PATIENCE)

    def stop(self) -> None:
        for sidecar in self.sidecars:
            self.call(sidecar.stop(0.1))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


class Prometheus:
    """The Debian package's server, scraping every second."""

    def __init__(self, program: str, config: dict[str, Any], directory: Path, port: int) -> None:
        directory.mkdir(parents=True)
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(config), "utf-8")
        self.url = f"http://127.0.0.1:{port}"
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def ask(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its API. Raises where Prometheus says that the question is wrong."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
            return json.load(reply)["data"]

    def until(self, expr: str) -> None:
        """Waits until an expression has a value."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.ask("query", query=expr)["result"]:
                    return
            time.sleep(0.2)
        raise AssertionError(f"Prometheus has nothing for {expr}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._log.close()


def _transcript(pack: Pack, rule: RuleConfig, test: TestConfig, ago: float) -> tuple[list[Event], list[Finding]]:
    """The events of a rule's test, and what its detector finds in them, as of `ago` seconds before now."""
    registry = Registry(test.edges)
    files = {
        f"{subject}/{version}.json": orjson.dumps(schema)
        for subject, versions in test.schemas.items()
        for version, schema in versions.items()
    }
    assert not registry.load(files)
    for subject, documents in test.learned.items():
        for document in documents:
            registry.learn(subject, document)
    pipeline = Pipeline((watch(pack, rule, registry),), registry)
    pipeline.recorded()
    events = [event_of(fields, index) for index, fields in enumerate(test.events)]
    decisions: list[Decision] = []
    now = float("-inf")
    for event in events:
        now = max(now, event.at)
        decisions += (pipeline.advance(now), pipeline.observe(event))
    now = max(now, test.advance or now)
    decisions += (pipeline.advance(now), pipeline.close(now))
    shift = time.time() - ago - now
    prefix = f"{rule.id}/{test.name}/"
    shown = [decision.event for decision in decisions if decision.event is not None]
    seen = {prefix + event.id: event.but(id=prefix + event.id, at=event.at + shift) for event in shown}
    found = [
        msgspec.structs.replace(finding, at=finding.at + shift, fingerprint=f"{prefix}{index}")
        for index, finding in enumerate(finding for decision in decisions for finding in decision.findings)
    ]
    return [event for event in seen.values() if event.outcome != "asked"], found


def transcripts() -> tuple[list[Event], list[Finding]]:
    """Of every test of every built-in rule that finds something."""
    events: list[Event] = []
    findings: list[Finding] = []
    ago = itertools.count(20)
    for pack, rule in in_force(load_packs(Config())):
        for test in rule.tests:
            if test.finds:
                more, found = _transcript(pack, rule, test, next(ago) % 240 + 10.0)
                events += more
                findings += found
    return events, findings


ENVELOPE = {
    "task_id": "t",
    "source_agent": "writer",
    "target_agent": "reviewer",
    "status": "completed",
    "output": {"summary": "a report", "artifacts": [], "confidence": 0.9},
    "context": {"original_goal": "a report", "constraints": [], "decisions_made": []},
    "metadata": {"token_count": 900, "model": None},
}


class Run:
    """What is asked: `prometheus`, `clickhouse`, and `began`, before which there is nothing."""

    def __init__(self, directory: Path, program: str, ports: Sequence[int]) -> None:
        self.began = time.time()
        self._shared = 0
        self._end = contextlib.ExitStack()
        try:
            self._start(directory, program, ports)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._end.close()

    def _start(self, directory: Path, program: str, ports: Sequence[int]) -> None:
        upstream = ThreadingHTTPServer(("127.0.0.1", 0), _Agent)
        upstream.daemon_threads = True
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        self._end.callback(upstream.server_close)
        self._end.callback(upstream.shutdown)
        self.clickhouse = ClickHouse(directory / "clickhouse")
        self._end.callback(self.clickhouse.stop)
        schemas = directory / "schemas" / "writer.reviewer"
        schemas.mkdir(parents=True)
        (schemas / "1.json").write_text('{"type": "object", "required": ["task_id"]}', "utf-8")
        at = f"http://127.0.0.1:{upstream.server_address[1]}"
        recorded = {"clickhouse": {"dsn": self.clickhouse.dsn("handrail"), "batch_seconds": 0.2}}
        proxy, registry, admin, other, prometheus = ports
        self._thread = _Thread(
            {
                "agent": "reviewer",
                "routes": [{"listen": f"127.0.0.1:{proxy}", "upstream": at}],
                "admin": {"listen": f"127.0.0.1:{admin}"},
                "schemas": {"directory": str(directory / "schemas")},
                "registry": {"listen": f"127.0.0.1:{registry}"},
                **recorded,
            },
            {
                "agent": "editor",
                "routes": [{"listen": "127.0.0.1:0", "upstream": at}],
                "admin": {"listen": f"127.0.0.1:{other}", "label_sets": 200},
                "registry": {
                    "remote": f"http://127.0.0.1:{registry}",
                    "cache": str(directory / "cache"),
                    "poll_seconds": 1.0,
                },
                **recorded,
            },
        )
        self._end.callback(self._thread.stop)
        self.sidecar = self._thread.sidecars[0]
        targets = [
            {"targets": [f"127.0.0.1:{admin}", f"127.0.0.1:{other}"], "labels": {"cluster": "c1", "namespace": "n1"}}
        ]
        self.prometheus = Prometheus(
            program,
            {
                "global": {"scrape_interval": f"{SCRAPE_SECONDS}s"},
                "scrape_configs": [{"job_name": "handrail", "static_configs": targets}],
            },
            directory / "prometheus",
            prometheus,
        )
        self._end.callback(self.prometheus.stop)
        self.events, self.findings = transcripts()
        self._thread.call(self._record())
        over = threading.Event()
        traffic = threading.Thread(target=self._traffic, args=(proxy, over), daemon=True)
        traffic.start()
        try:
            self.prometheus.until("count(count_over_time(handrail_ready[1m]) >= 8) == 2")
            self.prometheus.until('rate(handrail_handoffs_total{outcome="failed"}[5s]) > 0')
        finally:
            over.set()
            traffic.join(PATIENCE)
        self._stored()

    async def _record(self) -> None:
        """On the sidecar's loop: what no traffic would bring about in seconds."""
        sidecar, now = self.sidecar, time.time()
        for event in self.events:
            sidecar.recorder.record(Decision(event=event), now)
        for finding in self.findings:
            sidecar.recorder.record(Decision(findings=(finding,)), now)
        sidecar.recorder.fault(Fault(component="registry", reason="invalid", message="as in a run that has one"), now)
        for reason, intentional in (("queue_full", False), ("unencodable", False)):
            sidecar.metrics.dropped(reason, intentional)
        for index in range(sidecar.metrics.label_sets + 1):
            sidecar.metrics.count("handrail_events_total", "usage", f"protocol {index}")
        # Parts that are not configured here: their metrics as they are where they are.
        shown = sidecar.metrics.render().decode()
        for name, (labels, _) in COUNTERS.items():
            if f"{name}{{" not in shown:
                sidecar.metrics.count(name, *(f"some {label}" for label in labels))
        for name in GAUGES:
            if f"\n{name} " not in shown:
                sidecar.metrics.gauge(name, 1)

    async def _share(self) -> None:
        """What agents share, and what models are asked; a workflow of three agents."""
        sidecar, now = self.sidecar, time.time()
        self._shared += 1
        step = {
            "kind": "handoff",
            "task": "t",
            "attempt": 1,
            "workflow": CHAIN,
            "operation": "send",
            "confidence": "exact",
        }
        step |= {"protocol": "a2a", "channel": "call", "outcome": "completed"}
        asked = {"kind": "usage", "protocol": "openai", "operation": "chat", "tokens": 900, "duration_ms": 5.0}
        store = {"store": "state", "key": "agents:chain:t:output", "channel": "store", "outcome": "completed"}
        for index, fields in enumerate(
            (
                {"source": "a", "target": "b", "agent_version": "1.0", "tokens": 700, **step},
                {"source": "b", "target": "c", "subject": "b.c", "version": "2", "status": 200, **step},
                {"source": "c", "target": "a", "duration_ms": 40.0, **step},
                {"source": "a", "target": "some model", **asked},
                {"kind": "write", "source": "a", "duration_ms": 0.4, **store},
                {"kind": "read", "source": "b", "lag_ms": 12.0, **store},
                {"kind": "publish", "source": "a", "duration_ms": 0.6, **store},
                {"kind": "deliver", "source": "a", "target": "b", "lag_ms": 3.0, **store},
            )
        ):
            given = {"payload_bytes": 500, "duration_ms": 100.0, "ttfb_ms": 90.0, "overhead_ms": 0.1} | fields
            event = event_from({"id": f"s{self._shared}.{index}", "at": now - 1 + index / 100, **given})
            sidecar.recorder.record(Decision(event=event), now)
        found = msgspec.structs.replace(self.findings[0], at=now, workflow=CHAIN, task="t", source="a", target="b")
        sidecar.recorder.record(Decision(findings=(found,)), now)

    def _traffic(self, port: int, over: threading.Event) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            source = ("writer", "analyst")[number % 2]
            body = ENVELOPE | {"task_id": f"t{number}", "source_agent": source}
            if number % 7 == 0:
                body["status"] = "fail"
            if number % 5 == 0:
                del body["task_id"]
            headers = {
                "Content-Type": "application/json",
                "handrail-workflow": f"w{number // 20}",
                "handrail-schema": "writer.reviewer@1",
            }
            if number % 11 == 0:
                headers["Content-Encoding"] = "x-unknown"
            self._post(port, json.dumps(body).encode(), headers)
            if number % 13 == 0:
                # Two lengths: Handrail answers this itself.
                self._post(port, b"{}", {"Transfer-Encoding": "chunked", "Content-Length": "2"})
            if number % 10 == 0:
                self._thread.call(self._share())
            over.wait(0.02)

    @staticmethod
    def _post(port: int, body: bytes, headers: dict[str, str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/tasks", body, headers)
            connection.getresponse().read()
        connection.close()

    def _stored(self) -> None:
        """Waits until ClickHouse has what the sidecars recorded."""
        deadline = time.monotonic() + PATIENCE
        time.sleep(0.5)  # what the proxy shows to its inspector last
        while any(sidecar.sink is not None and sidecar.sink.queued for sidecar in self._thread.sidecars):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextlib.contextmanager
def scraped(directory: Path, program: str, ports: Sequence[int]) -> Iterator[Run]:
    run = Run(directory, program, ports)
    try:
        yield run
    finally:
        run.stop()
