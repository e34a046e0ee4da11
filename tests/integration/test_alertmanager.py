"""Findings in a real Alertmanager: at once, one alert however often, resolved when over, and after it was away."""

import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from handrail.config import AdminConfig, AlertsConfig, Config, RouteConfig, RulesConfig, SchemasConfig
from handrail.edge.demo import SidecarThread
from integration.test_deadlock import AGENT, RING, RULES, begin

SAMPLE = Path(__file__).parents[2] / "rules" / "alertmanager.yml"
PATIENCE = 15.0


def until(true: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `true` returns, once that is true of anything."""
    deadline = time.monotonic() + patience
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found


class Alertmanager:
    """The Debian package's, with the sample configuration, on a port of its own and with nothing to notify."""

    def __init__(self, program: str, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._directory, self._process = directory, None
        self._command = [
            program,
            f"--config.file={SAMPLE}",
            f"--storage.path={directory}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ]

    def start(self) -> None:
        with (self._directory / "log").open("ab") as said:
            self._process = subprocess.Popen(self._command, stdout=said, stderr=said)
        until(self._is_ready)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                return True
        except OSError:
            return False

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that go on; Alertmanager leaves out those that are over."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=5) as reply:
            found: list[dict[str, Any]] = json.load(reply)
        return found


@pytest.fixture
def alertmanager(needs, free_port, tmp_path) -> Iterator[Alertmanager]:
    there = Alertmanager(needs("prometheus-alertmanager", "prometheus-alertmanager"), tmp_path, free_port())
    try:
        yield there
    finally:
        there.stop()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as ends:
        yield ends


def scraped(sidecar: SidecarThread) -> str:
    with urllib.request.urlopen(sidecar.metrics, timeout=5) as reply:
        text: str = reply.read().decode()
    return text


def ring(stack, free_port, alerts: AlertsConfig) -> tuple[str, dict[str, subprocess.Popen[bytes]], SidecarThread]:
    """Three agents that serve one request at a time, and a sidecar in front of each: its door, them, and it."""
    ports, doors = ({name: free_port() for name in RING} for _ in range(2))
    agents = {}
    for name, following in RING.items():
        url = f"http://127.0.0.1:{doors[following]}/"
        agents[name] = process = subprocess.Popen(
            [sys.executable, str(AGENT), str(ports[name]), name, following, url, "0"], stdout=subprocess.PIPE
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        assert process.stdout.readline() == b"listening\n"
    config = Config(
        routes=tuple(
            RouteConfig(agent=name, listen=f"127.0.0.1:{doors[name]}", upstream=f"http://127.0.0.1:{ports[name]}")
            for name in RING
        ),
        rules=RulesConfig(builtin=False, files=(str(RULES),)),
        admin=AdminConfig(listen="127.0.0.1:0"),
        alerts=alerts,
    )
    sidecar = SidecarThread(config)
    stack.callback(sidecar.stop, 0.1)
    sidecar.start()
    return f"http://127.0.0.1:{doors['a']}/", agents, sidecar


def test_a_deadlock_of_real_agents_is_an_alert_within_two_seconds_and_over_when_one_gets_on(
    alertmanager, stack, free_port
) -> None:
    """From the instant at which the ring closes; and it stands for as long as the ring does."""
    alertmanager.start()
    door, agents, sidecar = ring(
        stack, free_port, AlertsConfig(alertmanagers=(alertmanager.url,), resolve_seconds=4.0, labels={"cluster": "c1"})
    )
    begin(door)
    (alert,) = until(alertmanager.alerts)
    seen_at = time.time()
    labels, said = alert["labels"], alert["annotations"]
    closed = datetime.fromisoformat(alert["startsAt"]).timestamp()
    assert seen_at - closed < 2
    assert (labels["alertname"], labels["kind"]) == ("HandrailFindingWaitDeadlock", "wait.deadlock")
    assert (labels["rule"], labels["severity"], labels["cluster"]) == ("wait.deadlock", "critical", "c1")
    assert "wait for each other and none can go on" in said["summary"]
    assert (said["workflow"], said["runbook_url"]) == ("round", "rules/runbook.md#waitdeadlock")
    time.sleep(5)  # longer than it takes for another finding to be over
    (still,) = alertmanager.alerts()
    assert (still["fingerprint"], still["startsAt"]) == (alert["fingerprint"], alert["startsAt"])
    assert "\nhandrail_alerts_firing 1.0\n" in scraped(sidecar)
    agents["b"].kill()
    until(lambda: not alertmanager.alerts(), 3.5)  # sooner than it would end by itself
    until(lambda: "\nhandrail_alerts_firing 0.0\n" in scraped(sidecar), 5)  # /metrics may be a second old
    assert 'handrail_alerts_sent_total{receiver="alertmanager",result="sent"}' in scraped(sidecar)


class _Reviewer(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Violations:
    """A sidecar in front of an agent whose callers break a schema."""

    def __init__(
        self, stack: contextlib.ExitStack, free_port: Callable[[], int], directory: Path, **alerts: Any
    ) -> None:
        schemas = directory / "schemas" / "writer.reviewer"
        schemas.mkdir(parents=True)
        schema = {"type": "object", "properties": {"output": {"properties": {"summary": {"enum": ["fine"]}}}}}
        (schemas / "1.json").write_text(json.dumps(schema), "utf-8")
        agent = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Reviewer)
        threading.Thread(target=agent.serve_forever, daemon=True).start()
        stack.callback(agent.server_close)
        stack.callback(agent.shutdown)
        self.port = free_port()
        config = Config(
            routes=(RouteConfig(listen=f"127.0.0.1:{self.port}", upstream=f"http://127.0.0.1:{agent.server_port}"),),
            schemas=SchemasConfig(directory=str(directory / "schemas")),
            admin=AdminConfig(listen="127.0.0.1:0"),
            alerts=AlertsConfig(**alerts),
        )
        self.sidecar = SidecarThread(config)
        stack.callback(self.sidecar.stop, 0.1)
        self.sidecar.start()

    def say(self, summary: str) -> None:
        body = {
            "task_id": "t",
            "source_agent": "writer",
            "target_agent": "reviewer",
            "status": "completed",
            "output": {"summary": summary, "artifacts": [], "confidence": 0.9},
            "context": {"original_goal": "g", "constraints": [], "decisions_made": []},
            "metadata": {},
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=5).read()


def of_kind(alertmanager: Alertmanager, kind: str) -> list[dict[str, Any]]:
    return [alert for alert in alertmanager.alerts() if alert["labels"]["kind"] == kind]


def test_repeats_are_one_alert_that_ends_in_silence_and_no_payload_is_in_it(
    alertmanager, stack, free_port, tmp_path
) -> None:
    """Twenty handoffs break one schema in one way: one alert, which counts them and is over when they stop."""
    alertmanager.start()
    system = Violations(
        stack, free_port, tmp_path / "v", alertmanagers=(alertmanager.url,), resolve_seconds=1.5, severity="critical"
    )
    for _ in range(20):
        system.say("the secret number is 4711")
    (alert,) = until(lambda: of_kind(alertmanager, "schema.violation"))
    (alert,) = until(
        lambda: [a for a in of_kind(alertmanager, "schema.violation") if a["annotations"]["count"] == "20"]
    )
    assert "4711" not in json.dumps(alert)
    until(lambda: not of_kind(alertmanager, "schema.violation"), 6)


def test_an_alertmanager_that_was_away_is_told_when_it_is_back(alertmanager, stack, free_port, tmp_path) -> None:
    """Tried again and counted meanwhile; and one that forgot everything is told again what still goes on."""
    system = Violations(
        stack,
        free_port,
        tmp_path / "v",
        alertmanagers=(alertmanager.url,),
        retry_seconds=0.1,
        retry_limit_seconds=0.3,
        resend_seconds=0.5,
    )
    system.say("no")
    for shown in (  # each for itself: a page may be a second old, and is rendered while they are set
        'handrail_alerts_sent_total{receiver="alertmanager",result="unreachable"}',
        "\nhandrail_alerts_up 0.0\n",
        'handrail_faults_total{component="alerts",reason="unreachable"}',
    ):
        until(lambda shown=shown: shown in scraped(system.sidecar))
    alertmanager.start()
    until(lambda: of_kind(alertmanager, "schema.violation"))
    until(lambda: "\nhandrail_alerts_up 1.0\n" in scraped(system.sidecar))
    alertmanager.stop()
    alertmanager.start()
    until(lambda: of_kind(alertmanager, "schema.violation"))


def test_the_sample_configuration_pages_once_for_what_is_one(alertmanager) -> None:
    """The push inhibits the scrape's alert of the same edge, and a deadlock the warnings that follow from it."""
    alertmanager.start()
    edge = {"source": "a", "target": "b"}
    ring = {"kind": "wait.deadlock", "severity": "critical"}
    posted = {
        "pushed": {"alertname": "HandrailFindingWaitDeadlock", **ring, **edge},
        "scraped": {"alertname": "HandrailAgentsDeadlocked", **ring, **edge},
        "elsewhere": {"alertname": "HandrailAgentsDeadlocked", **ring, "source": "x", "target": "y"},
        "silent": {"alertname": "HandrailTargetSilent", "kind": "agent.unavailable", "severity": "warning"},
        "drift": {"alertname": "HandrailPayloadDrifted", "kind": "schema.drift", "severity": "warning", **edge},
    }
    body = json.dumps([{"labels": labels} for labels in posted.values()]).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(f"{alertmanager.url}/api/v2/alerts", body, headers), timeout=5
    ).close()
    by_labels = {json.dumps(labels, sort_keys=True): name for name, labels in posted.items()}

    def inhibited() -> set[str]:
        alerts = alertmanager.alerts()
        return {by_labels[json.dumps(a["labels"], sort_keys=True)] for a in alerts if a["status"]["inhibitedBy"]}

    until(lambda: inhibited() >= {"scraped", "silent"})
    assert inhibited() == {"scraped", "silent"}
