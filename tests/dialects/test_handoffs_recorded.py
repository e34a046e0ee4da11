"""Recorded traffic of released frameworks: every handoff that was provoked is found, and none is invented."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialects.talk import events, handoffs
from handrail.cli import main
from handrail.config import Config
from handrail.dialects.conventions import stem
from handrail.edge.files import builtin_packs
from handrail.event import Event
from handrail.pipeline import build, replay_exchanges
from handrail.rules import load, watches
from handrail.schema.registry import Registry
from handrail.wire import Exchange, har

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "fixtures" / "wire"
FRAMEWORKS = [
    path.parent.name for path in sorted(RECORDINGS.glob("*/expected.json")) if path.parent.name not in ("a2a", "mcp")
]
RUNS = [
    pytest.param(framework, run, id=f"{framework}/{run}")
    for framework in FRAMEWORKS
    for run in json.loads((RECORDINGS / framework / "expected.json").read_text())
]
pytestmark = pytest.mark.skipif(not RUNS, reason="the recorded traffic is not beside this checkout")


def recorded(framework: str, run: str) -> list[Exchange]:
    path = RECORDINGS / framework / f"{run}.har"
    return list(har.load(path.read_text(), path.name))


def told(event: Event) -> tuple[Any, ...]:
    """Names are compared without the word agent, which a prompt leaves out where nothing else names the speaker."""
    assert event.source is not None
    assert event.target is not None
    return stem(event.source), stem(event.target), event.operation, event.payload, event.manner, event.outcome


@pytest.mark.parametrize(("framework", "run"), RUNS)
def test_handoffs_are_found_and_none_is_invented(framework: str, run: str) -> None:
    """From, to, tool, arguments, manner and outcome of each."""
    labels = json.loads((RECORDINGS / framework / "expected.json").read_text())[run]
    expected = [
        (
            stem(label["from"]),
            stem(label["to"]),
            label["tool"],
            label["args"],
            label["kind"],
            label["outcome"].partition(":")[0],
        )
        for label in labels
    ]
    found = [told(event) for event in handoffs(recorded(framework, run))]
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(("framework", "run"), RUNS)
def test_every_exchange_is_one_event_beside_its_handoffs(framework: str, run: str) -> None:
    """Nothing is lost: each call of a model is one `usage` with its exact tokens."""
    exchanges = recorded(framework, run)
    found = [event for event in events(exchanges) if event.kind != "handoff"]
    assert sorted(event.id for event in found) == sorted(exchange.id for exchange in exchanges)
    assert {event.tokens for event in found if event.operation != "traces.ingest"} <= {70, None}
    assert {event.outcome for event in found} == {"completed"}


def test_concurrent_conversations_are_two_workflows() -> None:
    """Interleaved on shared connections; each handoff is in the workflow of its own first words."""
    found = handoffs(recorded("openai-agents", "chat-plain-two-concurrent"))
    workflows = [event.workflow for event in found]
    assert len(found) == 4
    assert len(set(workflows)) == 2
    assert sorted(workflows[:2]) == sorted(workflows[2:])
    assert [event.confidence for event in found[2:]] == ["exact", "exact"]


@pytest.mark.parametrize(
    ("framework", "run"),
    [("openai-agents", "chat-plain-bad-args"), ("langgraph-swarm", "chat-plain-typed-bad-args")],
)
def test_bad_arguments_violate_the_schema_of_the_same_exchange(framework: str, run: str) -> None:
    """One finding where the arguments are wrong, with the place; none in a run where they are right."""

    def violations(run: str) -> list[Any]:
        registry = Registry()
        packs = [load(text, name, builtin=True) for name, text in builtin_packs()]
        inspector = build(Config(), registry, watches(packs, registry))
        decisions = [*replay_exchanges(recorded(framework, run), inspector), *inspector.end()]
        return [each for decision in decisions for each in decision.findings if each.kind == "schema.violation"]

    [found] = violations(run)
    assert (found.subject, found.version, found.side) == ("triage_agent.billing_agent", "1", "sender")
    assert "/amount" in {each["path"] for each in found.evidence["violations"]}
    assert violations("chat-stream") == []


def test_two_files_are_one_conversation() -> None:
    """The second turn of a session is recorded in a file of its own."""
    first, second = (recorded("openai-agents", f"chat-session-two-turns-{turn}") for turn in (1, 2))
    assert len({event.workflow for event in events([*first, *second])}) == 1


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_replay_shows_what_was_handed_over(framework: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """`handrail replay --payloads --output json`: all that a recording's labels say stands in the handoff's event."""
    labels = json.loads((RECORDINGS / framework / "expected.json").read_text())
    run = max(labels, key=lambda name: len(labels[name]))
    path = str(RECORDINGS / framework / f"{run}.har")
    assert main(["replay", path, "--payloads", "--output", "json"]) == 0
    told = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    found = [each for each in told if each["type"] == "event" and each["kind"] == "handoff"]
    assert sorted((each["operation"], each["payload"], each["manner"]) for each in found) == sorted(
        (label["tool"], label["args"], label["kind"]) for label in labels[run]
    )
