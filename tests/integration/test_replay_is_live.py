"""Recorded A2A traffic, once through the live proxy and once through replay: the same events and the same findings."""

import asyncio
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from handrail.config import Config, LimitsConfig
from handrail.edge.files import builtin_packs
from handrail.edge.metrics import Metrics
from handrail.edge.proxy import Proxy
from handrail.edge.record import Recorder
from handrail.edge.route import Listener, Target
from handrail.event import Event, Finding, seconds
from handrail.pipeline import Inspector, build, replay_exchanges
from handrail.rules import load, watches
from handrail.schema.registry import Registry
from handrail.wire import Route, har

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "fixtures" / "wire" / "a2a"
SCHEMAS = {
    # What billing is handed breaks this contract, what refund is handed keeps its own.
    "triage_agent.billing_agent/1.json": b'{"type": "object", "properties": {"amount": {"type": "string"}}}',
    "billing_agent.refund_agent/1.json": b'{"type": "object", "required": ["customer_id"]}',
}

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not beside this checkout")


def inspector() -> Inspector:
    registry = Registry()
    assert registry.load(SCHEMAS) == []
    packs = [load(text, name, builtin=True) for name, text in builtin_packs()]
    return build(Config(), registry, watches(packs, registry))


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.findings: list[Finding] = []

    def put(self, record: Event | Finding) -> None:
        (self.events if isinstance(record, Event) else self.findings).append(record)  # type: ignore[arg-type]


def of_events(events: Iterable[Event]) -> Counter[tuple[Any, ...]]:
    return Counter(
        (
            e.kind,
            e.operation,
            e.outcome,
            e.workflow,
            e.task,
            e.source,
            e.target,
            e.subject,
            e.version,
            e.digest,
            e.status,
        )
        for e in events
        if e.outcome != "asked"
    )


def of_findings(findings: Iterable[Finding]) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for f in findings:
        found[(f.rule, f.workflow, f.source, f.target, f.subject, f.version, f.side, f.message, f.fingerprint)] += (
            f.count
        )
    return found


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head, await reader.readexactly(length)


async def live(entries: list[dict[str, Any]]) -> Kept:
    """Every recorded request through the proxy to a server that gives the recorded answers, at the recorded pace."""
    answers: defaultdict[bytes, deque[dict[str, Any]]] = defaultdict(deque)
    for entry in entries:
        answers[entry["request"].get("postData", {}).get("text", "").encode()].append(entry)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                _, body = await _message(reader)
            except asyncio.IncompleteReadError:
                break
            entry = answers[body].popleft()
            await asyncio.sleep(entry["time"] / 1000)
            response = entry["response"]
            content = response["content"].get("text", "").encode()
            kind = response["content"]["mimeType"]
            head = f"HTTP/1.1 {response['status']} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    authorities = list(dict.fromkeys(urlsplit(entry["request"]["url"]).netloc for entry in entries))
    kept, target = Kept(), Target.parse(f"http://127.0.0.1:{port}")
    listeners = [
        Listener(host="127.0.0.1", port=0, target=target, own_host=True, route=Route(upstream=authority, side="egress"))
        for authority in authorities
    ]
    proxy = Proxy(listeners, LimitsConfig(), inspector(), Recorder(Metrics(), (kept,)))
    bound = dict(zip(authorities, await proxy.start(), strict=True))
    begin = min(entry["startedDateTime"] for entry in entries)
    since = {entry["startedDateTime"]: seconds(entry["startedDateTime"]) - seconds(begin) for entry in entries}

    async def ask(entry: dict[str, Any]) -> None:
        await asyncio.sleep(since[entry["startedDateTime"]])
        request, url = entry["request"], urlsplit(entry["request"]["url"])
        body = request.get("postData", {}).get("text", "").encode()
        reader, writer = await asyncio.open_connection(*bound[url.netloc])
        fields = "".join(
            f"{h['name']}: {h['value']}\r\n" for h in request["headers"] if h["name"].lower() != "content-length"
        )
        path = url.path or "/"
        head = f"{request['method']} {path} HTTP/1.1\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await _message(reader)
        writer.close()

    await asyncio.gather(*map(ask, entries))
    await proxy.stop(1.0)
    proxy.recorder.flush(float("inf"))
    server.close()
    return kept


@pytest.mark.parametrize("file", sorted(RECORDINGS.glob("*.har")), ids=lambda file: file.stem)
def test_a_recording_replays_to_what_the_live_proxy_found(file: Path) -> None:
    """Events and findings are equal, and the contract that is broken is found in both."""
    decisions = list(replay_exchanges(har.load(file.read_text(), file.name), inspector()))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        kept = runner.run(live(json.loads(file.read_text())["log"]["entries"]))

    assert of_events(kept.events) == of_events(d.event for d in decisions if d.event is not None)
    findings = of_findings(f for d in decisions for f in d.findings)
    assert of_findings(kept.findings) == findings
    handed = [e for e in kept.events if (e.source, e.target, e.channel) == ("triage_agent", "billing_agent", "call")]
    handed = [e for e in handed if e.kind in ("handoff", "resume")]
    broken = sum(count for key, count in findings.items() if key[0] == "schema.violation")
    assert broken == len(handed)
