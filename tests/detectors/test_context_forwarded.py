"""context.forwarded: what is passed on whole, however it is put, and what is not."""

import gc
import json
import random
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

import pytest

from handrail.detectors.similarity import phrases, sampled, text_of
from handrail.event import Event, Finding
from handrail.pipeline import Pipeline

Build = Callable[..., Pipeline]


def prose(seed: int, sentences: int) -> list[str]:
    """Sentences of made-up words, twelve to eighteen words each."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdefghijklmnoprstuvw", k=chance.randint(2, 9))) for _ in range(600)]
    return [" ".join(chance.choices(words, k=chance.randint(12, 18))).capitalize() + "." for _ in range(sentences)]


REPORT = prose(1, 40)
OWN = prose(2, 40)


def hop(name: str, source: str, target: str, payload: Any, at: float = 0.0) -> Event:
    return Event(
        kind="handoff",
        id=name,
        at=at,
        workflow="w",
        source=source,
        target=target,
        outcome="completed",
        payload=payload,
    )


def found(pipeline: Pipeline, events: Sequence[Event]) -> list[Finding]:
    return [each for event in events for each in pipeline.observe(event).findings]


@pytest.mark.parametrize(
    "again",
    [
        {"notes": "please see below", "report": " ".join(REPORT)},
        {"sections": sorted(REPORT)},
        "\n".join(f"* {sentence.upper()}" for sentence in REPORT),
        "\n".join(" ".join(REPORT).replace(".", " -")[n : n + 60] for n in range(60)) + " ".join(reversed(REPORT)),
        {"history": [{"role": "user", "content": " ".join(REPORT)}, {"role": "b", "content": " ".join(OWN)}]},
        json.dumps({"inner": REPORT}, indent=4),
    ],
    ids=[
        "with a note",
        "in another order",
        "as bullets in capitals",
        "backwards",
        "with as much of its own",
        "as JSON text",
    ],
)
def test_the_same_content_is_found_however_it_is_put(build: Build, again: Any) -> None:
    """Order, layout, case, punctuation, structure and what is added do not hide it."""
    events = [hop("e1", "a", "b", {"output": {"summary": " ".join(REPORT)}}), hop("e2", "b", "c", again, at=1.0)]
    [only] = found(build("context.forwarded"), events)
    assert (only.event, only.evidence["repeats"], only.side) == ("e2", "e1", "sender")
    assert only.evidence["share"] > 0.6


@pytest.mark.parametrize(
    "instead",
    [" ".join(OWN), " ".join(REPORT[:6]) + " the rest is in artifact 7 " + " ".join(OWN[:6]), "see artifact 7"],
    ids=["its own words", "a quotation and a pointer", "a pointer"],
)
def test_a_summary_and_a_pointer_are_not(build: Build, instead: str) -> None:
    """A part of what was said may be quoted."""
    events = [hop("e1", "a", "b", " ".join(REPORT)), hop("e2", "b", "c", instead, at=1.0)]
    assert found(build("context.forwarded"), events) == []


def test_it_is_found_over_several_hops(build: Build) -> None:
    """c passes on what a had said to b, and is told of the hop that it repeats most."""
    both = " ".join([*REPORT, *OWN[:5]])
    events = [hop("e1", "a", "b", " ".join(REPORT)), hop("e2", "b", "c", both, 1.0), hop("e3", "c", "d", both, 2.0)]
    assert [(each.event, each.evidence["repeats"]) for each in found(build("context.forwarded"), events)] == [
        ("e2", "e1"),
        ("e3", "e1"),
    ]


def test_ones_own_words_an_answer_and_a_review_are_not_forwarded(build: Build) -> None:
    """A broadcast to several agents, a draft that comes back with remarks, the next draft of it."""
    text = " ".join(REPORT)
    events = [
        hop("e1", "a", "b", text),
        hop("e2", "a", "c", text, 1.0),
        hop("e3", "b", "a", text + " this is good", 2.0),
        hop("e4", "a", "b", text + " thank you", 3.0),
    ]
    assert found(build("context.forwarded"), events) == []


def test_a_way_may_be_allowed_to_repeat(build: Build) -> None:
    """A translator needs the words themselves."""
    events = [hop("e1", "a", "b", " ".join(REPORT)), hop("e2", "b", "translator", " ".join(REPORT), 1.0)]
    assert len(found(build("context.forwarded"), events)) == 1
    assert found(build("context.forwarded", {"edges": [{"target": "trans*"}]}), events) == []


def test_past_its_rate_it_does_not_compare(build: Build) -> None:
    """So that a rush of traffic does not wait for it; the next second it does again."""
    events = [hop("e1", "a", "b", " ".join(REPORT)), hop("e2", "b", "c", " ".join(REPORT), 0.5)]
    assert found(build("context.forwarded", {"per_second": 1}), events) == []
    events[1] = hop("e2", "b", "c", " ".join(REPORT), 1.5)
    assert len(found(build("context.forwarded", {"per_second": 1}), events)) == 1


def test_a_sample_estimates_how_much_of_one_text_is_in_another() -> None:
    """Half of a long text in another: the sample says about half."""
    chance = random.Random(3)
    words = [f"w{chance.randrange(10**6)}" for _ in range(4_000)]
    whole, half = phrases(" ".join(words)), phrases(" ".join(words[:2_000]))
    mask, kept = sampled(whole, 128)
    other_mask, other = sampled(half, 128)
    coarse = mask | other_mask
    kept_there = [code for code in kept if not code & coarse]
    assert len(kept) <= 128
    assert sum(code in other for code in kept_there) / len(kept_there) == pytest.approx(0.5, abs=0.15)


def texts_in(thing: object) -> list[str]:
    """Every text that an object holds, however deep; compiled classes have no `__dict__` to look into."""
    texts: list[str] = []
    seen, left = set[int](), [thing]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(each))
        if isinstance(each, str):
            texts.append(each)
        left += gc.get_referents(each)
    return texts


def test_no_text_is_kept(build: Build) -> None:
    """Fingerprints only: what a detector holds does not have the payload's words in it."""
    pipeline = build("context.forwarded")
    pipeline.observe(hop("e1", "a", "b", " ".join(REPORT)))
    held = " ".join(texts_in(pipeline.watches[0].detector))
    assert "e1" in held
    assert not any(word in held for word in text_of(" ".join(REPORT)).split() if len(word) > 6)
