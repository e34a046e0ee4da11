"""Laws of alerts: one finding is one alert, it ends once, receivers are tried again, and nothing grows for ever."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.config import AlertsConfig, ConfigError, WebhookConfig, check, load
from handrail.edge.alerts import Alerts, Firing, Notice, alert_of, cloud_event, labels_of, notice_id
from handrail.edge.metrics import Metrics
from handrail.event import Decision, Event, Fault, Finding

AT = 1_800_000_000.0


def finding(fingerprint: str = "f", at: float = AT, **fields: Any) -> Finding:
    given: dict[str, Any] = {"rule": "schema.violation", "kind": "schema.violation", "severity": "critical"}
    return Finding(fingerprint=fingerprint, at=at, message="bad", **{**given, "source": "a", "target": "b", **fields})


def deadlock(**fields: Any) -> Finding:
    given = {"rule": "wait.deadlock", "kind": "wait.deadlock", "workflow": "w", "events": ("e1", "e2")}
    return finding("d", **{**given, "evidence": {"cycle": ["a", "b"], "knot": ["a", "b"]}, **fields})


def seen(id: str = "x", at: float = AT + 1, **fields: Any) -> Decision:
    given = {"kind": "handoff", "workflow": "w", "source": "u", "target": "v", "outcome": "completed"}
    return Decision(event=Event(id=id, at=at, **{**given, **fields}))


def firing(**config: Any) -> Firing:
    return Firing(AlertsConfig(alertmanagers=("http://127.0.0.1:1",), **config))


def news(notices: Iterator[Notice]) -> list[tuple[str, str, int]]:
    return [(notice.news, notice.finding.fingerprint, notice.count) for notice in notices]


# What goes on


def test_repeats_are_one_alert_and_silence_ends_it() -> None:
    """Opened with the first, told again while it goes on, resolved with the number of all."""
    state = firing(resolve_seconds=90.0, resend_seconds=60.0)
    assert news(state.observe(Decision(findings=(finding(),)), AT)) == [("opened", "f", 1)]
    assert news(state.observe(Decision(findings=(finding(at=AT + 5, count=3),)), AT + 5)) == []
    assert news(state.advance(AT + 29)) == []
    assert news(state.advance(AT + 31)) == [("still", "f", 4)]
    assert news(state.advance(AT + 94)) == [("still", "f", 4)]
    assert news(state.advance(AT + 95)) == [("resolved", "f", 4)]
    assert len(state) == 0
    assert news(state.advance(AT + 96)) == []


def test_less_severe_findings_are_left_to_the_scrape() -> None:
    state = firing(severity="warning")
    told = Decision(findings=(finding("i", severity="info"), finding("w", severity="warning"), finding("c")))
    assert [fingerprint for _, fingerprint, _ in news(state.observe(told, AT))] == ["w", "c"]


def test_an_end_that_was_told_is_never_before_a_repeat_is_told() -> None:
    """Else an alert that goes on would be over and back again between two notices."""
    state, ends_at = firing(resolve_seconds=3.0, resend_seconds=60.0), 0.0
    for step in range(100):
        now = AT + step / 4
        notices = [*state.observe(Decision(findings=(finding(at=now),)), now), *state.advance(now)]
        assert not ends_at or now < ends_at
        for notice in notices:
            assert notice.news == ("opened" if step == 0 else "still")
            ends_at = notice.ends_at


@pytest.mark.parametrize(
    ("event", "is_over"),
    [
        (seen("e1", at=AT - 9, source="a", target="b", outcome="failed"), True),
        (seen(source="a", outcome="asked"), True),
        (seen(kind="resume", source="b", target=None), True),
        (seen(kind="write", source="a", store="s", key="k"), True),
        (seen(at=AT - 5, target="b", duration_ms=9_000.0), True),
        (seen(kind="write", source="a", store="s", key="lock", outcome="rejected"), False),
        (seen("e2", kind="read", source="b", store="s", key="q", outcome="timeout"), False),
        (seen("e1", source="a", target="b", outcome="asked", at=AT), False),
        (seen(source="a", workflow="another"), False),
        (seen(source="c", target="a", outcome="timeout"), False),
        (seen(source="c", target="d"), False),
        (seen(at=AT - 5, source="a", target="c"), False),
    ],
)
def test_a_deadlock_stands_until_one_of_those_who_wait_gets_on(event: Decision, is_over: bool) -> None:
    """However long nothing else is heard of it; polls, refused locks and other workflows are no progress."""
    state = firing(resolve_seconds=10.0, resend_seconds=10.0)
    list(state.observe(Decision(findings=(deadlock(),)), AT))
    assert news(state.advance(AT + 1_000)) == [("still", "d", 1)]
    told = news(state.observe(event, AT + 1_001))
    assert told == ([("resolved", "d", 1)] if is_over else [])


def test_what_is_held_ends_some_time() -> None:
    """Where nothing shows that it is over, not even the end of the agents."""
    state = firing(hold_seconds=100.0, resolve_seconds=10.0, resend_seconds=5.0)
    (opened,) = state.observe(Decision(findings=(deadlock(),)), AT)
    assert opened.ends_at == AT + 10  # a sidecar that is killed leaves nothing behind
    assert news(state.advance(AT + 99)) == [("still", "d", 1)]
    assert news(state.advance(AT + 100)) == [("resolved", "d", 1)]


def test_an_agent_that_was_away_is_back_when_it_answers() -> None:
    """An error of its own is an answer; a gateway's is none."""
    away = finding("u", rule="agent.unavailable", kind="agent.unavailable")
    state = firing()
    list(state.observe(Decision(findings=(away,)), AT))
    assert news(state.observe(seen(target="b", outcome="failed", status=503), AT + 1)) == []
    assert news(state.observe(seen(target="b", outcome="timeout"), AT + 1)) == []
    assert news(state.observe(seen(target="b", outcome="failed", status=500), AT + 2)) == [("resolved", "u", 1)]


def test_past_the_limit_the_quietest_makes_room() -> None:
    """And is told to be over, for nothing more will be said of it."""
    forgotten: list[int] = []
    state = Firing(AlertsConfig(alertmanagers=("http://x",), firing=2), lambda: forgotten.append(1))
    for at, name in enumerate(("a", "b", "a", "c")):
        told = news(state.observe(Decision(findings=(finding(name, at=AT + at),)), AT + at))
    assert told == [("resolved", "b", 1), ("opened", "c", 1)]
    assert (len(state), len(forgotten)) == (2, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.booleans(), st.sampled_from("uvab"), st.floats(0, 500)), max_size=40
    )
)
@settings(deadline=None, max_examples=50)
def test_alerts_open_and_end_in_turns_and_nothing_is_left_behind(steps: Sequence[tuple[str, bool, str, float]]) -> None:
    """Of any history: no alert opens twice or ends unopened, all end in silence, and what was held is forgotten."""
    state, on, now = firing(firing=3, hold_seconds=1_000.0), set(), AT
    notices: list[Notice] = []
    for name, is_held, source, pause in steps:
        now += pause
        notices += state.advance(now)
        if is_held:
            notices += state.observe(Decision(findings=(deadlock(at=now), finding(name, at=now))), now)
        else:
            notices += state.observe(seen(source=source, at=now), now)
        assert len(state) <= 3
    notices += state.advance(now + 10_000)
    for notice in notices:
        name = notice.finding.fingerprint
        assert (name in on) == (notice.news != "opened")
        assert notice.starts_at < notice.ends_at
        on = on | {name} if notice.news != "resolved" else on - {name}
    assert not on
    assert not state._of_agent


# What is sent


def notice(of: Finding, **fields: Any) -> Notice:
    return Notice(**{"finding": of, "starts_at": AT, "ends_at": AT + 300, "count": 2, "news": "opened", **fields})


def test_labels_are_bounded_and_say_what_an_alert_is_about() -> None:
    """The workflow is no label: there are as many as there is work."""
    config = AlertsConfig(labels={"cluster": "eu"}, dashboard_url="http://g/d/x?var-workflow={workflow}&s={source}")
    sent = alert_of(notice(finding(workflow="w 1", task="t", source="a" * 9_999, target=None)), config)
    assert set(sent["labels"]) == {"alertname", "rule", "kind", "severity", "source", "fingerprint", "cluster"}
    assert len(sent["labels"]["source"]) == 256
    assert sent["annotations"]["workflow"] == "w 1"
    assert sent["generatorURL"].startswith("http://g/d/x?var-workflow=w%201&s=aaa")
    assert (sent["startsAt"], sent["endsAt"]) == ("2027-01-15T08:00:00.000000Z", "2027-01-15T08:05:00.000000Z")


def test_a_cloud_event_is_what_cloudevents_1_0_says() -> None:
    """Required attributes, an id that is the same for every attempt, the finding as data."""
    opened, over = notice(deadlock()), notice(deadlock(), news="resolved")
    sent, end = (cloud_event(each, AlertsConfig(), "an agent") for each in (opened, over))
    assert (sent["specversion"], sent["type"]) == ("1.0", "io.handrail.finding.wait.deadlock")
    assert (sent["id"], sent["source"]) == ("d@2027-01-15T08:00:00.000000Z", "/handrail/an%20agent")
    assert end["type"] == "io.handrail.resolved.wait.deadlock"
    assert end["id"] == f"{sent['id']}/resolved"
    assert (sent["data"]["status"], sent["data"]["count"], sent["data"]["ends_at"]) == ("firing", 2, None)
    assert sent["data"]["evidence"]["cycle"] == ["a", "b"]
    assert notice_id(opened) == notice_id(notice(deadlock(at=AT + 9), count=7))


@given(st.text(), st.text(), st.floats())
@settings(max_examples=60)
def test_any_finding_can_be_sent(name: str, text: str, at: float) -> None:
    """Half a surrogate pair, evidence that is no JSON or without end, a time that no calendar holds."""
    odd = finding(at=at, source=name + "\ud800", target=text, workflow=text, evidence={name: "\ud800", "n": 2**80})
    long = finding(evidence={"long": "x" * 100_000})
    for each in (odd, long):
        (told,) = firing().observe(Decision(findings=(each,)), AT)
        assert len(orjson.dumps(alert_of(told, AlertsConfig()))) < 20_000
        assert len(orjson.dumps(cloud_event(told, AlertsConfig(), name))) < 60_000
        assert labels_of(told.finding, AlertsConfig())["alertname"] == "HandrailFindingSchemaViolation"


# Receivers


class Receiver:
    """A webhook, or an Alertmanager, that answers what it is told to and keeps what it took."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.path, headers, json.loads(body)))
                self.send_response(outer.answers.pop(0) if outer.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    there = Receiver()
    yield there
    there.stop()


def played(config: AlertsConfig, told: Sequence[Decision], until: Callable[[], bool]) -> tuple[Metrics, list[Fault]]:
    """What Alerts do with Decisions until something is true; then they are stopped."""
    metrics, faults = Metrics(), []

    async def scenario() -> None:
        alerts = Alerts(config, metrics, agent="me", now=time.time, fault=faults.append)
        await alerts.start()
        for decision in told:
            alerts.take(decision)
        for _ in range(1_000):
            if until():
                break
            await asyncio.sleep(0.01)
        await alerts.stop(0.5)

    asyncio.run(scenario())
    return metrics, faults


def text(metrics: Metrics) -> str:
    return metrics.render().decode()


def test_a_webhook_is_told_once_with_its_token_however_often_it_is_busy(receiver: Receiver, tmp_path) -> None:
    """A thousand occurrences are one CloudEvent; the id is the same for each attempt; busy is counted."""
    token = tmp_path / "token"
    token.write_text("s3cret\n", "utf-8")
    receiver.answers = [503, 429]
    hook = WebhookConfig(url=f"{receiver.url}/hook", token_file=str(token))
    many = [Decision(findings=(finding(at=time.time()),))] * 1_000
    metrics, faults = played(
        AlertsConfig(webhooks=(hook,), retry_seconds=0.02), many, lambda: len(receiver.requests) >= 3
    )
    assert len(receiver.requests) == 3
    assert len({body["id"] for _, _, body in receiver.requests}) == 1
    path, headers, body = receiver.requests[-1]
    assert (path, headers["authorization"]) == ("/hook", "Bearer s3cret")
    assert headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert body["data"]["kind"] == "schema.violation"
    assert 'handrail_alerts_sent_total{receiver="webhook",result="busy"} 2.0' in text(metrics)
    assert 'handrail_alerts_sent_total{receiver="webhook",result="sent"} 1.0' in text(metrics)
    assert [fault.reason for fault in faults] == ["busy", "busy"]
    assert "/hook" not in "".join(fault.message for fault in faults)


def test_what_is_refused_is_not_sent_again(receiver: Receiver) -> None:
    """A redirect is a refusal too: alerts go where they were told to go."""
    receiver.answers = [400, 302]
    told = [Decision(findings=(finding(name),)) for name in "abc"]
    hook = WebhookConfig(url=receiver.url)
    metrics, _ = played(AlertsConfig(webhooks=(hook,)), told, lambda: len(receiver.requests) >= 3)
    assert [body["data"]["fingerprint"] for _, _, body in receiver.requests] == ["a", "b", "c"]
    assert 'handrail_alerts_sent_total{receiver="webhook",result="refused"} 2.0' in text(metrics)
    assert 'handrail_dropped_total{reason="alert_refused",intentional="false"} 2.0' in text(metrics)


def test_alertmanagers_get_many_alerts_in_a_request_and_one_that_is_away_holds_up_no_other(
    receiver: Receiver, free_port: Callable[[], int]
) -> None:
    """Each receiver has a queue of its own, with a limit; what does not fit, or is left at the end, is counted."""
    away = f"http://127.0.0.1:{free_port()}"
    config = AlertsConfig(alertmanagers=(away, f"{receiver.url}/am"), queue_alerts=150, retry_seconds=0.02)
    told = [Decision(findings=(finding(str(index)),)) for index in range(150)]
    metrics, faults = played(config, told, lambda: sum(len(body) for _, _, body in receiver.requests) >= 150)
    assert [(path, len(body)) for path, _, body in receiver.requests] == [
        ("/am/api/v2/alerts", 100),
        ("/am/api/v2/alerts", 50),
    ]
    assert {fault.reason for fault in faults} == {"unreachable"}
    assert 'handrail_dropped_total{reason="closed",intentional="false"} 150.0' in text(metrics)
    more = [Decision(findings=(finding(str(index)),)) for index in range(200)]
    metrics, _ = played(AlertsConfig(alertmanagers=(away,), queue_alerts=150), more, lambda: True)
    assert 'handrail_dropped_total{reason="alert_queue_full",intentional="false"} 50.0' in text(metrics)


# Configuration


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("{}", "alerts", "goes nowhere"),
        ("{alertmanagers: [alertmanager:9093]}", "alerts.alertmanagers[0]", "write http://host:9093"),
        ("{alertmanagers: ['http://me:pw@host:9093']}", "alerts.alertmanagers[0]", "token_file"),
        ("{webhooks: [{url: 'ftp://host'}]}", "alerts.webhooks[0].url", "http"),
        ("{alertmanagers: ['http://h'], labels: {kind: x}}", "alerts.labels.kind", "choose another name"),
        ("{alertmanagers: ['http://h'], labels: {a-b: x}}", "alerts.labels.a-b", "letters, digits"),
        ("{alertmanagers: ['http://h'], dashboard_url: 'http://g/{flow}'}", "alerts.dashboard_url", "workflow"),
        ("{alertmanagers: ['http://h'], severity: fatal}", "alerts.severity", "critical"),
        ("{alertmanagers: ['http://h'], resolve_seconds: 0}", "alerts.resolve_seconds", "more than 0"),
    ],
)
def test_a_wrong_section_is_refused_with_its_key(section: str, key: str, words: str) -> None:
    (error,) = check(f"alerts: {section}", "f")
    assert error.key == key
    assert words in error.problem


def test_a_token_that_is_not_there_is_refused_before_anything_starts(tmp_path) -> None:
    config = load(f"alerts: {{alertmanagers: ['http://h'], token_file: {tmp_path / 'none'}}}", "f").alerts
    assert config is not None
    with pytest.raises(ConfigError, match=r"alerts\.token_file"):
        Alerts(config, Metrics(), agent=None, now=time.time, fault=lambda fault: None)


# What the rules in rules/alerts read


def test_findings_are_counted_by_edge_within_a_bound_and_rules_are_told_apart_past_it() -> None:
    """An alert says between whom; where there are too many edges, at least which rule."""
    metrics = Metrics(20)
    for index in range(100):
        metrics.finding(finding(rule=f"schema.violation.{index % 3}", source=f"agent {index}", count=2))
    lines = [line for line in text(metrics).splitlines() if line.startswith("handrail_edge_findings_total{")]
    assert len(lines) <= 19
    assert sum(float(line.rpartition(" ")[2]) for line in lines) == 200
    for rule in range(3):
        assert any(f'"schema.violation.{rule}"' in line and 'source="other",target="other"' in line for line in lines)
    assert metrics.render().count(b"\nhandrail_findings_total{") == 3
