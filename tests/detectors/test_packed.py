"""Packed texts: what comes out is what went in, and what is found does not hang on how a workflow is remembered."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.detectors.packed import pushed, quoted, unpacked, unquoted, value_of, without
from handrail.event import Event, Finding, digest_of
from handrail.pipeline import Pipeline

Build = Callable[..., Pipeline]

names = st.text(st.sampled_from("ab \0\1\2é\ud800"), max_size=4)
"""With both separators, and what quotes them."""


@given(one=names, other=names)
def test_quoted_names_are_told_apart_and_come_back(one: str, other: str) -> None:
    """No separator is left in a quoted name, no two names are quoted alike, and the way back is exact."""
    assert not {"\0", "\1"} & set(quoted(one))
    assert unquoted(quoted(one)) == one
    assert (quoted(one) == quoted(other)) == (one == other)


@given(items=st.lists(names, max_size=12), most=st.integers(1, 9), last=names)
def test_the_last_items_are_kept_as_a_list_would(items: list[str], most: int, last: str) -> None:
    """Pushing and unpacking is a list that keeps its end."""
    packed = ""
    for number, item in enumerate(items):
        packed = pushed(packed, "\0" + quoted(item), is_full=number >= most)
    assert unpacked(packed) == items[-most:]
    assert packed.endswith("\0" + quoted(last)) == (items[-1:] == [last])


@given(steps=st.lists(st.tuples(names, names | st.none()), max_size=12), key=names)
def test_pairs_are_a_dict(steps: list[tuple[str, str | None]], key: str) -> None:
    """Adding, looking up and taking out are those of a dict. None takes a pair out."""
    pairs, known = "\0", dict[str, str]()
    for name, value in steps:
        if name in known:
            pairs = without(pairs, quoted(name), quoted(known.pop(name)))
        if value is not None:
            pairs += f"{quoted(name)}\1{quoted(value)}\0"
            known[name] = value
    found = value_of(pairs, quoted(key))
    assert (None if found is None else unquoted(found)) == known.get(key)


KINDS: dict[str, dict[str, Any]] = {
    "handoff.loop": {"rounds": 1},
    "context.growth": {"window": 1_000},
    "context.lost": {},
}

AGENTS = ("a", "b", "c")
ODD = {"a": "a\0b", "b": "a", "c": "\0", "e": "\1\2e\0"}
"""Other names for agents, and the beginning of other ids: each holds a separator or another one's name."""


def stories() -> st.SearchStrategy[list[Event]]:
    """Handoffs of one workflow between three agents."""

    def story(steps: list[tuple[int, int, int, int]]) -> list[Event]:
        events = []
        for number, (source, target, said, tokens) in enumerate(steps):
            payload = {
                "output": {"summary": f"said {said}", "artifacts": [f"doc-{said}"]},
                "context": {"constraints": [f"keep rule {said} in mind"], "decisions_made": ["x"] * (said % 3)},
            }
            events.append(
                Event(
                    kind="handoff",
                    id=f"e{number}",
                    at=float(number),
                    workflow="w",
                    source=AGENTS[source],
                    target=AGENTS[target],
                    outcome="completed",
                    payload=payload,
                    digest=digest_of(payload),
                    tokens=tokens,
                )
            )
        return events

    agent, small = st.integers(0, 2), st.integers(0, 4)
    return st.lists(st.tuples(agent, agent, small, st.integers(100, 1_500)), max_size=30).map(story)


def found(pipeline: Pipeline, events: Sequence[Event]) -> list[Finding]:
    decisions = [pipeline.observe(event) for event in events]
    assert not any(each.faults for each in decisions)
    return [each for decision in decisions for each in decision.findings]


def renamed(event: Event) -> Event:
    return event.but(
        id=ODD["e"] + event.id[1:],
        source=ODD[event.source or ""],
        target=ODD[event.target or ""],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_names_do_not_change_what_is_found(build: Build, kind: str) -> None:
    """The same story with separators in its names and ids has the same findings, under those names."""

    @settings(max_examples=60)
    @given(story=stories())
    def law(story: list[Event]) -> None:
        plain = found(build(kind, KINDS[kind]), story)
        odd = found(build(kind, KINDS[kind]), [renamed(event) for event in story])
        numbers = [(each.at, each.events, each.evidence.get("last_hops"), each.evidence.get("rounds")) for each in odd]
        assert numbers == [
            (
                each.at,
                tuple(ODD["e"] + name[1:] for name in each.events),
                each.evidence.get("last_hops"),
                each.evidence.get("rounds"),
            )
            for each in plain
        ]

    law()


@pytest.mark.parametrize("before", [0, 1, 13, 14, 15, 16, 29, 30, 31, 32, 60])
def test_a_loop_is_found_whatever_the_workflow_did_before(build: Build, before: int) -> None:
    """What was there before is remembered in two forms, few and many; a ring is found in both and in between."""
    events = [handed(number, f"x{number}", f"x{number + 1}", f"new {number}") for number in range(before)]
    ring = [("p", "q"), ("q", "p")] * 3
    events += [handed(before + n, *way, f"{way[0]} has nothing to add") for n, way in enumerate(ring)]
    findings = found(build("handoff.loop"), events)
    assert [each.event for each in findings] == [events[-1].id]
    assert findings[0].evidence["without_progress"] == 2


@pytest.mark.parametrize("before", [1, 14, 15, 16, 17, 31, 32, 33, 60])
def test_a_handoff_seen_again_is_no_round(build: Build, before: int) -> None:
    """The first event of all, delivered again after few or many others, is known and closes nothing."""
    events = [handed(number, f"x{number}", f"x{number + 1}", f"new {number}") for number in range(before)]
    pipeline = build("handoff.loop", {"edges": [{"at_most": 1}]})
    assert found(pipeline, events + [events[0].but(at=99.0)] * 3) == []


def handed(number: int, source: str, target: str, say: str, workflow: str = "w", **fields: Any) -> Event:
    payload = {"say": say}
    return Event(
        kind="handoff",
        id=f"e-{workflow}-{number}",
        at=float(number),
        workflow=workflow,
        source=source,
        target=target,
        outcome="completed",
        payload=payload,
        digest=digest_of(payload),
        **fields,
    )


def test_the_workflow_that_was_quiet_for_longest_is_forgotten(build: Build) -> None:
    """With room for two, a third one takes the place of the one that did nothing lately, in every rule."""
    lap = [("a", "b"), ("b", "a")] * 3

    def looping(number: int) -> Event:
        return handed(number, *lap[number], f"{lap[number][0]} says nothing", "old")

    def growing(number: int) -> Event:
        return handed(number, "a", "b", "x", "old", tokens=(number + 1) * 300)

    def losing(number: int) -> Event:
        decisions = {"decisions_made": ["use EUR"]} if number < 2 else {}
        return handed(number, "a", "b", "x", "old").but(payload={"context": decisions})

    stories: dict[str, tuple[dict[str, Any], Callable[[int], Event], int]] = {
        "handoff.loop": ({}, looping, 6),
        "context.growth": ({"window": 1_000}, growing, 3),
        "context.lost": ({}, losing, 3),
    }
    for kind, (params, event, count) in stories.items():
        pipeline = build(kind, params | {"keys": 2})
        events = []
        for number in range(count):
            other = handed(number, "p", "q", "y", f"other-{number}")
            events += [event(number), other.but(payload={"context": {}})]
        assert [each.event for each in found(pipeline, events)] == [f"e-old-{count - 1}"], kind
