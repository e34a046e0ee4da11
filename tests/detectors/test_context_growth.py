"""context.growth: tokens per hop, the forecast, the windows, and where the numbers come from."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from handrail.detectors.growth import Windows, shipped_windows, tokens_of
from handrail.event import Event, Finding
from handrail.pipeline import Pipeline

Build = Callable[..., Pipeline]


def chain(*tokens: int | None, model: str | None = "gpt-4o", **fields: Any) -> list[Event]:
    """a hands to b, b to c, and so on, with so many tokens each."""
    names = "abcdefghijkl"
    return [
        Event(
            kind="handoff",
            id=f"e{n}",
            at=float(n),
            workflow="w",
            source=names[n],
            target=names[n + 1],
            outcome="completed",
            tokens=count,
            payload={"metadata": {"model": model}} if model else {"n": n},
            **fields,
        )
        for n, count in enumerate(tokens)
    ]


def found(pipeline: Pipeline, events: Sequence[Event]) -> list[Finding]:
    return [each for event in events for each in pipeline.observe(event).findings]


def test_growth_that_meets_the_window_is_told_before_it_does(build: Build) -> None:
    """Three hops that grow by 20,000 each, 28,000 below the window: two hops are left."""
    [only] = found(build("context.growth"), chain(60_000, 80_000, 100_000))
    assert only.event == "e2"
    assert only.evidence["hops_left"] == 2
    assert only.evidence["workflow_tokens"] == 240_000
    assert only.evidence["tokens_are"] == "reported"
    assert only.events == ("e0", "e1", "e2")


def test_each_workflow_grows_by_itself(build: Build) -> None:
    """Two whose hand-overs take turns: one grows towards its window, the other stays as it is."""
    grows = chain(60_000, 80_000, 100_000)
    stays = [event.but(id=f"s{event.id}", workflow="s") for event in chain(1_000, 1_000, 1_000)]
    turns = [event for pair in zip(stays, grows, strict=True) for event in pair]
    [only] = found(build("context.growth"), turns)
    assert (only.event, only.evidence["workflow_tokens"]) == ("e2", 240_000)


@pytest.mark.parametrize(
    ("fields", "finds"),
    [
        ({"agent_version": "gpt-4o"}, 1),
        ({"kind": "usage", "target": "gpt-4o"}, 1),
        ({"agent_version": "1.4.0"}, 0),
        ({"kind": "usage", "target": "openai"}, 0),
    ],
)
def test_an_event_without_payload_may_name_the_model(build: Build, fields: dict[str, str], finds: int) -> None:
    """As the agent's version, or as whom a model call went to; other names there are no models."""
    said = {"kind": "handoff", "source": "a", "target": "b"} | fields
    events = [
        Event(id=f"e{n}", at=float(n), workflow="w", outcome="completed", tokens=count, **said)  # type: ignore[arg-type]
        for n, count in enumerate((60_000, 80_000, 100_000))
    ]
    assert [each.evidence["model"] for each in found(build("context.growth"), events)] == ["gpt-4o"] * finds


def test_near_and_reached_are_told_once_each(build: Build) -> None:
    """A chain that goes on growing is not told at every hop."""
    findings = found(build("context.growth"), chain(60_000, 80_000, 100_000, 120_000, 140_000, 160_000))
    assert [each.evidence["hops_left"] for each in findings] == [2, 0]


@pytest.mark.parametrize(
    "tokens",
    [(100_000, 100_000, 100_000), (60_000, 90_000, 80_000), (1_000, 20_000, 39_000), (100_000, 120_000), (127_999,)],
    ids=["level", "up and down", "far away", "two hops", "just below"],
)
def test_what_does_not_grow_steadily_towards_the_window_is_not_told(build: Build, tokens: tuple[int, ...]) -> None:
    """Level, uneven, far from it or too short to say."""
    assert found(build("context.growth"), chain(*tokens)) == []


def test_an_orchestrator_that_hears_more_each_time_is_a_series_of_its_own(build: Build) -> None:
    """Between the hops to one agent others may be small."""
    events: list[Event] = []
    for n in range(4):
        for source, target, tokens in (("lead", "web", 50), ("web", "lead", 30_000 * (n + 1))):
            events.append(
                Event(
                    kind="handoff",
                    id=f"{source}{n}",
                    at=float(n),
                    workflow="w",
                    source=source,
                    target=target,
                    tokens=tokens,
                    payload={"metadata": {"model": "claude-3-opus" if source == "web" else "gpt-4o"}},
                )
            )
    first = found(build("context.growth"), events)[0]
    assert (first.event, first.target, first.evidence["model"]) == ("web2", "lead", "gpt-4o")


def test_calls_of_a_model_are_counted_by_their_usage(build: Build) -> None:
    """What an agent gives its model grows from call to call."""
    events = [
        Event(
            kind="usage",
            id=f"u{n}",
            at=float(n),
            workflow="w",
            source="lead",
            reply={"model": "gpt-4", "input_tokens": 3_000 + 2_000 * n, "output_tokens": 9_999},
            outcome="completed",
        )
        for n in range(3)
    ]
    [only] = found(build("context.growth"), events)
    assert (only.event, only.evidence["window"], only.evidence["hops_left"]) == ("u2", 8_192, 1)


def test_a_count_is_what_was_reported_and_else_an_estimate() -> None:
    """The event's own count, the envelope's, four bytes to a token; nothing where nothing is known."""
    event = Event(kind="handoff", id="e", at=0.0, payload_bytes=400, payload={"metadata": {"token_count": 7}})
    assert tokens_of(event) == (7, "reported")
    assert tokens_of(Event(kind="handoff", id="e", at=0.0, tokens=5, payload_bytes=400)) == (5, "reported")
    assert tokens_of(Event(kind="handoff", id="e", at=0.0, payload_bytes=400)) == (100, "estimated")
    assert tokens_of(Event(kind="handoff", id="e", at=0.0, payload="x" * 38)) == (10, "estimated")
    assert tokens_of(Event(kind="handoff", id="e", at=0.0)) is None


def test_an_estimate_is_labelled_as_one(build: Build) -> None:
    """In the sentence and in the evidence."""
    [only] = found(build("context.growth"), chain(None, model="gpt-4", payload_bytes=40_000))
    assert "about 10,000 tokens" in only.message
    assert (only.evidence["tokens_are"], only.evidence["estimated_hops"]) == ("estimated", 1)


def test_windows_go_by_the_models_name_and_can_be_overridden(build: Build) -> None:
    """The longer name first, whatever the provider's prefix; a rule's own table before the shipped one."""
    windows = Windows({"mine*": 100, "gpt-4o-mini": 7})
    assert windows.of("gpt-4o-2024-08-06") == 128_000
    assert windows.of("openai/gpt-4") == 8_192
    assert windows.of("us.anthropic.claude-sonnet-4") == 200_000
    assert windows.of("GPT-4o-mini") == 7
    assert windows.of("mine-2") == 100
    assert windows.of("unheard of") is None
    assert found(build("context.growth"), chain(10**9, model="unheard of")) == []
    assert found(build("context.growth", {"window": 10**9}), chain(10**9, model="unheard of")) != []
    assert found(build("context.growth", {"models": [{"agent": "b", "model": "gpt-4"}]}), chain(9_000)) != []


def test_every_line_of_the_shipped_table_can_be_met() -> None:
    """No pattern stands behind one that takes its names away, and every window is a positive number."""
    windows = Windows({})
    for pattern, tokens in shipped_windows().items():
        assert tokens > 0
        assert windows.of(pattern.replace("*", "")) == tokens, pattern
