"""Findings become alerts in Alertmanager and CloudEvents at webhooks at once, without waiting for a scrape.

    Decision ─▶ Firing (what goes on, by fingerprint) ─▶ Notice ─▶ a queue for each receiver ─▶ POST
    (event loop)   opened, still on, resolved               bounded, tried again, counted

A thousand occurrences of a finding are one alert. Most are over when they were not seen again for `resolve_seconds`;
`HELD` names those that are told once and stand until somebody acts. An alert carries the instant at which it ends if
nothing more is heard of it, so that it does not outlive a sidecar that was killed. What is sent is the finding, which
holds paths, names, ages and versions, and never a payload.

Formats: Alertmanager's API v2 (`POST /api/v2/alerts`), CloudEvents 1.0 in structured mode over HTTP.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import ssl
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
import orjson

from handrail.config import AlertsConfig, WebhookConfig
from handrail.detectors.silent import is_away
from handrail.edge.metrics import Metrics
from handrail.edge.registry import configured_tokens
from handrail.edge.tls import trusting
from handrail.event import SEVERITIES, Decision, Event, Fault, Finding, fingerprint_of, rfc3339

log = logging.getLogger(__name__)

News = Literal["opened", "still", "resolved"]

ADVANCE_SECONDS = 0.25
CLOSE_SECONDS = 3.0
BATCH = 100
"""Alerts in one request to Alertmanager."""
LABEL_CHARACTERS, TEXT_CHARACTERS, EVIDENCE_BYTES = 256, 2_000, 32_768
OLD_SECONDS = 7 * 86_400.0
"""A finding of something older, or of a time to come, is told as of now: Alertmanager refuses what ends before it
begins."""
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


class Notice(msgspec.Struct, frozen=True):
    """What receivers are told of one alert: the latest finding, since when, until when, how often, and what is new."""

    finding: Finding
    starts_at: float
    ends_at: float
    """Where it goes on: when it is over if nothing more is heard of it."""
    count: int
    news: News


class _Alert(msgspec.Struct):
    finding: Finding
    starts_at: float
    seen_at: float
    sent_at: float
    count: int


# ---- when what is told only once is over


def _deadlock_is_over(finding: Finding, event: Event) -> bool:
    """Whether one of those who wait got on: its wait ended, or it handed over, wrote, published, answered or resumed.

    The detector tells such a ring again if it closes again, so this is what it takes for an end too.
    """
    if event.outcome != "asked" and event.id in finding.events:
        # A poll of an empty queue, and another try at a lock that is taken, are still the same wait.
        return event.kind != "read" or (event.outcome == "completed" and event.status != "missing")
    if finding.workflow is not None and event.workflow != finding.workflow:
        return False
    knot = finding.evidence.get("knot") or finding.evidence.get("cycle") or ()
    if event.source in knot and event.at > finding.at:
        return event.kind in ("handoff", "publish", "resume") or (
            event.kind == "write" and event.outcome in ("completed", "accepted")
        )
    is_answer = event.kind == "handoff" and event.outcome in ("completed", "accepted")
    return is_answer and event.target in knot and event.at + (event.duration_ms or 0.0) / 1000 > finding.at


def _is_back(finding: Finding, event: Event) -> bool:
    """Whether an agent that did not answer answers now, or does something of its own."""
    if event.source == finding.target:
        return event.at > finding.at
    is_answer = event.outcome in ("completed", "accepted", "rejected", "failed") and not is_away(event)
    return is_answer and event.kind == "handoff" and event.target == finding.target


HELD: Mapping[str, Callable[[Finding, Event], bool]] = {
    "wait.deadlock": _deadlock_is_over,
    "agent.unavailable": _is_back,
}
"""Kinds that are told once for as long as they last, and which event shows that one is over."""


def _concerned(finding: Finding) -> Iterable[str]:
    """The agents whose events may show that a held finding is over."""
    if finding.kind == "wait.deadlock":
        return (*finding.evidence.get("knot", ()), *finding.evidence.get("cycle", ()))
    return () if finding.target is None else (finding.target,)


class Firing:
    """Decisions to notices: what goes on, by fingerprint. Knows no socket and no clock; holds at most `firing`."""

    def __init__(self, config: AlertsConfig, forgotten: Callable[[], None] = lambda: None) -> None:
        """`forgotten` is called for each alert that had to make room."""
        self._config, self._forgotten = config, forgotten
        self._least = SEVERITIES.index(config.severity)
        self._alerts: OrderedDict[str, _Alert] = OrderedDict()
        """The one that was quiet for longest comes first."""
        self._of_agent: dict[str, set[str]] = {}
        """An agent to the fingerprints of what is held until it acts."""
        # Often enough that a repeat always reaches the receivers before the end that they were told.
        self._resend = min(config.resend_seconds, config.resolve_seconds / 3)

    def observe(self, decision: Decision, now: float) -> Iterator[Notice]:
        event = decision.event
        if event is not None and self._of_agent:
            yield from self._ended_by(event, now)
        for finding in decision.findings:
            if SEVERITIES.index(finding.severity) >= self._least:
                yield from self._found(finding, now)

    def advance(self, now: float) -> Iterator[Notice]:
        """What is over, and what is to be told again because it goes on."""
        for key, alert in list(self._alerts.items()):
            if now >= self._end(alert, now):
                yield self._close(key, alert, now)
            elif now - alert.sent_at >= self._resend:
                alert.sent_at = now
                yield self._notice(alert, now, "still")

    def _found(self, finding: Finding, now: float) -> Iterator[Notice]:
        if not finding.fingerprint:
            own = fingerprint_of(finding.rule, finding.source, finding.target)
            finding = msgspec.structs.replace(finding, fingerprint=own)
        key = finding.fingerprint
        alert = self._alerts.get(key)
        if alert is not None:
            self._watch(key, alert.finding, on=False)
            self._watch(key, finding, on=True)
            alert.finding, alert.seen_at = finding, now
            alert.count += finding.count
            self._alerts.move_to_end(key)
            return
        if len(self._alerts) >= self._config.firing:
            quiet, known = next(iter(self._alerts.items()))
            self._forgotten()
            yield self._close(quiet, known, now)
        starts_at = finding.at if now - OLD_SECONDS <= finding.at <= now else now
        alert = self._alerts[key] = _Alert(finding, starts_at, now, now, finding.count)
        self._watch(key, finding, on=True)
        yield self._notice(alert, now, "opened")

    def _watch(self, key: str, finding: Finding, *, on: bool) -> None:
        """Begins or ends to look out for the agents that show that a held finding is over."""
        if finding.kind not in HELD:
            return
        for agent in _concerned(finding):
            keys = self._of_agent.setdefault(agent, set())
            if on:
                keys.add(key)
            else:
                keys.discard(key)
            if not keys:
                del self._of_agent[agent]

    def _ended_by(self, event: Event, now: float) -> Iterator[Notice]:
        keys: set[str] = set()
        for agent in (event.source, event.target):
            if agent is not None:
                keys |= self._of_agent.get(agent, set())
        for key in sorted(keys):
            alert = self._alerts[key]
            if HELD[alert.finding.kind](alert.finding, event):
                yield self._close(key, alert, now)

    def _close(self, key: str, alert: _Alert, now: float) -> Notice:
        del self._alerts[key]
        self._watch(key, alert.finding, on=False)
        return self._notice(alert, now, "resolved")

    def _end(self, alert: _Alert, now: float) -> float:
        """When an alert is over if nothing more is heard of it, as far as is known now."""
        if alert.finding.kind not in HELD:
            return alert.seen_at + self._config.resolve_seconds
        last = alert.seen_at + max(self._config.hold_seconds, self._config.resolve_seconds)
        return min(now + self._config.resolve_seconds, last)

    def _notice(self, alert: _Alert, now: float, news: News) -> Notice:
        ends_at = now if news == "resolved" else self._end(alert, now)
        return Notice(alert.finding, alert.starts_at, max(ends_at, alert.starts_at + 0.001), alert.count, news)

    def __len__(self) -> int:
        return len(self._alerts)


# ---- what is sent


def alert_name(kind: str) -> str:
    """`wait.deadlock` to `HandrailFindingWaitDeadlock`."""
    return "HandrailFinding" + "".join(part.capitalize() for part in kind.replace("_", ".").split("."))


def _clean(text: str | None, characters: int) -> str:
    """Text that any receiver takes: UTF-8, and not longer than it should be."""
    return (text or "").encode("utf-8", "replace").decode()[:characters]


def labels_of(finding: Finding, config: AlertsConfig) -> dict[str, str]:
    """What makes two alerts the same alert. Absent is absent, because an empty label is none."""
    said = {
        "alertname": alert_name(finding.kind),
        "rule": finding.rule,
        "kind": finding.kind,
        "severity": finding.severity,
        "source": finding.source,
        "target": finding.target,
        "fingerprint": finding.fingerprint,
    }
    return config.labels | {name: _clean(value, LABEL_CHARACTERS) for name, value in said.items() if value}


def runbook_of(kind: str, config: AlertsConfig) -> str:
    """The heading of a kind in the runbook, as Markdown makes anchors: `wait.deadlock` is at `#waitdeadlock`."""
    return f"{config.runbook_url}#{kind.replace('.', '')}"


def dashboard_of(finding: Finding, config: AlertsConfig) -> str | None:
    """Where an alert leads to, with what the URL names in braces filled in."""
    url = config.dashboard_url
    if url is None:
        return None
    for name in ("workflow", "source", "target", "rule", "kind", "fingerprint"):
        url = url.replace(f"{{{name}}}", quote(_clean(getattr(finding, name), LABEL_CHARACTERS), safe=""))
    return url


def alert_of(notice: Notice, config: AlertsConfig) -> dict[str, Any]:
    """A notice as Alertmanager's API v2 takes it."""
    finding = notice.finding
    said = {
        "summary": finding.message or finding.rule,
        "description": _described(notice),
        "workflow": finding.workflow,
        "task": finding.task,
        "subject": finding.subject,
        "version": finding.version,
        "side": finding.side,
        "count": str(notice.count),
        "runbook_url": runbook_of(finding.kind, config),
        "dashboard_url": dashboard_of(finding, config),
    }
    alert = {
        "labels": labels_of(finding, config),
        "annotations": {name: _clean(value, TEXT_CHARACTERS) for name, value in said.items() if value},
        "startsAt": rfc3339(notice.starts_at),
        "endsAt": rfc3339(notice.ends_at),
    }
    if said["dashboard_url"] is not None:
        alert["generatorURL"] = said["dashboard_url"]
    return alert


def _described(notice: Notice) -> str:
    finding = notice.finding
    parts = [f"{finding.rule}, {finding.severity}"]
    if finding.source or finding.target:
        parts.append(f"from {finding.source or 'an unknown agent'} to {finding.target or 'an unknown agent'}")
    about = ((name, getattr(finding, name)) for name in ("workflow", "task", "subject", "version"))
    parts.extend(f"{name} {value}" for name, value in about if value is not None)
    times = "once" if notice.count == 1 else f"{notice.count} times"
    return f"{'; '.join(parts)}; seen {times}; at fault: {finding.side}."


def cloud_event(notice: Notice, config: AlertsConfig, agent: str | None) -> dict[str, Any]:
    """A notice as a CloudEvent: `io.handrail.finding.KIND` where one began, `io.handrail.resolved.KIND` where it ended.

    `data` is the finding as the JSON output has it, with `status`, `count` of all occurrences, `starts_at`, `ends_at`
    (null while it goes on), `runbook_url` and `dashboard_url`.
    """
    finding, is_over = notice.finding, notice.news == "resolved"
    data: dict[str, Any] = {"type": "finding"}
    for name in Finding.__struct_fields__:
        value = getattr(finding, name)
        data[name] = _clean(value, TEXT_CHARACTERS) if type(value) is str else value
    data |= {
        "at": rfc3339(finding.at) if abs(finding.at - notice.starts_at) < OLD_SECONDS else rfc3339(notice.starts_at),
        "events": [_clean(each, LABEL_CHARACTERS) for each in finding.events],
        "evidence": _evidence(finding),
        "status": "resolved" if is_over else "firing",
        "count": notice.count,
        "starts_at": rfc3339(notice.starts_at),
        "ends_at": rfc3339(notice.ends_at) if is_over else None,
        "runbook_url": runbook_of(finding.kind, config),
        "dashboard_url": dashboard_of(finding, config),
        "labels": config.labels,
    }
    return {
        "specversion": "1.0",
        "id": notice_id(notice),
        "source": "/handrail" + (f"/{quote(_clean(agent, LABEL_CHARACTERS), safe='')}" if agent else ""),
        "type": f"io.handrail.{'resolved' if is_over else 'finding'}.{finding.kind}",
        "subject": _clean(finding.workflow or finding.rule, LABEL_CHARACTERS),
        "time": rfc3339(notice.ends_at if is_over else notice.starts_at),
        "datacontenttype": "application/json",
        "data": data,
    }


def _evidence(finding: Finding) -> Any:
    """The evidence as any JSON parser reads it, or why it is not there."""
    try:
        evidence = orjson.dumps(finding.evidence, default=str)
    except TypeError:  # half a surrogate pair, or an integer past 64 bits
        return {"omitted": "is not JSON"}
    if len(evidence) > EVIDENCE_BYTES:
        return {"omitted": f"longer than {EVIDENCE_BYTES} bytes"}
    return orjson.loads(evidence)


def notice_id(notice: Notice) -> str:
    """The same for every attempt to send it: fingerprint, and the instant at which it began."""
    ended = "/resolved" if notice.news == "resolved" else ""
    return f"{notice.finding.fingerprint}@{rfc3339(notice.starts_at)}{ended}"


# ---- receivers


class Receiver(Protocol):
    """One place that alerts go to, and what it is told: takes at once, sends in a task of its own, tries again."""

    name: str
    """The kind of receiver, the label in the metrics."""
    url: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None

    @abstractmethod
    def key(self, notice: Notice) -> str | None:
        """What a newer notice replaces while both wait; None where this receiver is not told."""

    @abstractmethod
    def batch(self, waiting: Mapping[str, Notice]) -> dict[str, Notice]:
        """Those of the waiting that go into the next request."""

    @abstractmethod
    def body(self, notices: Sequence[Notice]) -> bytes: ...


class Alertmanager(Receiver):
    """Every notice, many in a request; of one alert only the latest, because that is its whole state."""

    name = "alertmanager"

    def __init__(self, url: str, config: AlertsConfig) -> None:
        """Raises ConfigError where the token or the certificates cannot be read."""
        self._config = config
        self.url = f"{url.rstrip('/')}/api/v2/alerts"
        self.headers = {"Content-Type": "application/json"} | _bearer(
            config.token_file, "alerts.token_file", "HANDRAIL_ALERTS_TOKEN"
        )
        self.tls = _trust(url, config.ca_file, "alerts.ca_file")

    def key(self, notice: Notice) -> str | None:
        return notice.finding.fingerprint

    def batch(self, waiting: Mapping[str, Notice]) -> dict[str, Notice]:
        return dict(itertools.islice(waiting.items(), BATCH))

    def body(self, notices: Sequence[Notice]) -> bytes:
        return orjson.dumps([alert_of(notice, self._config) for notice in notices])


class Webhook(Receiver):
    """One CloudEvent where an alert begins and one where it ends, in their order."""

    name = "webhook"

    def __init__(self, webhook: WebhookConfig, config: AlertsConfig, agent: str | None, key: str) -> None:
        """Raises ConfigError where the token or the certificates cannot be read."""
        self._config, self._agent = config, agent
        self.url = webhook.url
        self.headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"} | _bearer(
            webhook.token_file, f"{key}.token_file", None
        )
        self.tls = _trust(webhook.url, webhook.ca_file, f"{key}.ca_file")

    def key(self, notice: Notice) -> str | None:
        return None if notice.news == "still" else notice_id(notice)

    def batch(self, waiting: Mapping[str, Notice]) -> dict[str, Notice]:
        key = next(iter(waiting))
        return {key: waiting[key]}

    def body(self, notices: Sequence[Notice]) -> bytes:
        return orjson.dumps(cloud_event(notices[0], self._config, self._agent))


def _bearer(file: str | None, key: str, variable: str | None) -> dict[str, str]:
    if file is None and variable is None:
        return {}
    tokens = configured_tokens(file, key, variable or "")
    return {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}


def _trust(url: str, ca_file: str | None, key: str) -> ssl.SSLContext | None:
    return trusting(ca_file, key) if url.startswith("https:") else None


class Sending:
    """What waits for one receiver, and the task that sends it. Waits and memory have limits in the configuration."""

    def __init__(
        self, receiver: Receiver, config: AlertsConfig, metrics: Metrics, fault: Callable[[Fault], None]
    ) -> None:
        self._receiver, self._config, self._metrics, self._fault = receiver, config, metrics, fault
        self.waiting: OrderedDict[str, Notice] = OrderedDict()
        self.is_up = True
        self._came = asyncio.Event()
        self._pause = config.retry_seconds
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    def put(self, notice: Notice) -> None:
        key = self._receiver.key(notice)
        if key is None:
            return
        self.waiting.pop(key, None)
        self.waiting[key] = notice
        if len(self.waiting) > self._config.queue_alerts:
            self.waiting.popitem(last=False)
            self._metrics.dropped("alert_queue_full", False)
        self._came.set()

    async def start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self._config.request_seconds)
        self._session = aiohttp.ClientSession(timeout=timeout)
        self._task = asyncio.create_task(self._run())

    async def stop(self, seconds: float) -> None:
        """One more attempt at what waits; what is left then is dropped and counted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while self.waiting and await self._send() is None:
                        pass
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self.waiting:
            self._metrics.dropped("closed", False, len(self.waiting))
            self.waiting.clear()

    async def _run(self) -> None:
        while True:
            await self._came.wait()
            while self.waiting:
                again = await self._send()
                if again is not None:
                    await asyncio.sleep(again)
            self._came.clear()

    async def _send(self) -> float | None:
        """None where a request is done with, taken or refused for good; else after how many seconds to try again."""
        assert self._session is not None
        receiver = self._receiver
        batch = receiver.batch(self.waiting)
        body = receiver.body(list(batch.values()))
        try:
            async with self._session.post(
                receiver.url, data=body, headers=receiver.headers, ssl=receiver.tls or True, allow_redirects=False
            ) as reply:
                status, after = reply.status, reply.headers.get("Retry-After", "")
                said = (await reply.content.read(500)).decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return self._later("unreachable", f"{type(error).__name__}: {error}")
        if status in RETRYABLE:
            wanted = float(after) if after.isascii() and after.isdigit() and len(after) < 4 else 0.0
            return max(wanted, self._later("busy", f"answers {status}: {said}"))
        for key, notice in batch.items():
            # A newer notice may have come meanwhile; that one still has to go.
            if self.waiting.get(key) is notice:
                del self.waiting[key]
        self._pause = self._config.retry_seconds
        self.is_up = status < 300
        result = "sent" if self.is_up else "refused"
        self._metrics.count("handrail_alerts_sent_total", receiver.name, result, n=len(batch))
        if not self.is_up:
            self._metrics.dropped("alert_refused", False, len(batch))
            self._tell("refused", f"answers {status}: {said}")
        return None

    def _later(self, result: str, problem: str) -> float:
        self.is_up = False
        self._metrics.count("handrail_alerts_sent_total", self._receiver.name, result)
        self._tell(result, problem)
        pause = self._pause * random.uniform(0.8, 1.2)
        self._pause = min(2 * self._pause, self._config.retry_limit_seconds)
        return pause

    def _tell(self, reason: str, problem: str) -> None:
        # Of the URL only the host: a webhook's path may be its secret.
        where = f"{self._receiver.name} {urlsplit(self._receiver.url).netloc}"
        self._fault(Fault(component="alerts", reason=reason, message=f"{where}: {problem}"))


class Alerts:
    """Takes Decisions on the event loop and tells the receivers. Never blocks there and never raises."""

    def __init__(
        self,
        config: AlertsConfig,
        metrics: Metrics,
        *,
        agent: str | None,
        now: Callable[[], float],
        fault: Callable[[Fault], None],
    ) -> None:
        """Raises ConfigError where tokens or certificates cannot be read."""
        self._now = now
        self._firing = Firing(config, lambda: metrics.dropped("alert_limit", False))
        receivers: list[Receiver] = [Alertmanager(url, config) for url in config.alertmanagers]
        for index, webhook in enumerate(config.webhooks):
            receivers.append(Webhook(webhook, config, agent, f"alerts.webhooks[{index}]"))
        self._sending = tuple(Sending(receiver, config, metrics, fault) for receiver in receivers)
        self._task: asyncio.Task[None] | None = None
        metrics.watch("handrail_alerts_firing", lambda: len(self._firing))
        metrics.watch("handrail_alerts_waiting", lambda: sum(len(sending.waiting) for sending in self._sending))
        metrics.watch("handrail_alerts_up", lambda: all(sending.is_up for sending in self._sending))

    def take(self, decision: Decision) -> None:
        if not decision.findings and not len(self._firing):
            return
        self._put(self._firing.observe(decision, self._now()))

    def _put(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            for sending in self._sending:
                sending.put(notice)

    async def start(self) -> None:
        for sending in self._sending:
            await sending.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self, seconds: float = CLOSE_SECONDS) -> None:
        """Sends what waits. What goes on is left to end by itself: that we end says nothing about it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await asyncio.gather(*(sending.stop(seconds) for sending in self._sending))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(ADVANCE_SECONDS)
            self._put(self._firing.advance(self._now()))
