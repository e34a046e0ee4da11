"""context.lost: decisions, constraints and artifacts that must survive, and the contracts that say which."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from handrail.event import Event, Finding
from handrail.pipeline import Pipeline

Build = Callable[..., Pipeline]
LIMIT = "Never spend more than 100 euro on a single order."


def chain(*payloads: Any) -> list[Event]:
    """a hands to b, b to c, and so on."""
    return [
        Event(
            kind="handoff",
            id=f"e{n}",
            at=float(n),
            workflow="w",
            source="abcdefgh"[n],
            target="abcdefgh"[n + 1],
            outcome="completed",
            payload=payload,
        )
        for n, payload in enumerate(payloads)
    ]


def written(key: str, at: float = 0.0) -> Event:
    return Event(kind="write", id=f"w-{key}", at=at, workflow="w", store="s", key=key, outcome="completed")


def found(pipeline: Pipeline, events: Sequence[Event]) -> list[Finding]:
    return [each for event in events for each in pipeline.observe(event).findings]


def context(**fields: Any) -> dict[str, Any]:
    return {"task_id": "t", "context": fields, "output": {"summary": "done"}}


@pytest.mark.parametrize("made", [[], None, "absent"], ids=str)
def test_decisions_that_were_made_must_not_be_gone(build: Build, made: Any) -> None:
    """Empty, null or absent, and the hop that still had them is named."""
    later = context() if made == "absent" else context(decisions_made=made)
    [only] = found(build("context.lost"), chain(context(decisions_made=["a", "b"]), later))
    assert (only.event, only.events) == ("e1", ("e0", "e1"))
    assert only.evidence["path"] == "/context/decisions_made"
    assert only.evidence["before"] == 2


def test_each_workflow_is_held_to_what_it_decided_itself(build: Build) -> None:
    """Two whose hand-overs take turns: one loses its decisions, the other never had any."""
    decided = chain(context(decisions_made=["a"]), context(), context())
    never = [event.but(id=f"n{event.id}", workflow="n") for event in chain(context(), context(), context())]
    turns = [event for pair in zip(decided, never, strict=True) for event in pair]
    assert [each.event for each in found(build("context.lost"), turns)] == ["e1", "e2"]


def test_decisions_that_nobody_made_are_not_lost(build: Build) -> None:
    """Unless the contract wants some always."""
    events = chain(context(decisions_made=[]), context())
    assert found(build("context.lost"), events) == []
    assert len(found(build("context.lost", {"decisions": "always"}), events)) == 2


def test_a_constraint_must_be_there_two_hops_later(build: Build) -> None:
    """One hop may leave it out; at the second it is told once, with where it was set."""
    gone = [context(constraints=[LIMIT])] + [context(constraints=[])] * 4
    findings = found(build("context.lost"), chain(*gone))
    assert [(each.event, each.evidence["set_in"], each.evidence["hops"]) for each in findings] == [("e2", "e0", 2)]
    assert LIMIT not in repr(findings)


@pytest.mark.parametrize(
    "still",
    [
        context(constraints=["something else", LIMIT]),
        context(constraints=["on a single order, spend never more than EUR 100 (euro)"]),
        context(original_goal=f"Order the crates. {LIMIT}"),
        {"task_id": "t", "context": {}, "output": {"summary": LIMIT.lower()}},
    ],
    ids=["moved", "reworded", "in the goal", "in the summary"],
)
def test_a_constraint_in_other_words_or_another_place_is_there(build: Build, still: Any) -> None:
    """Three in four of its words, anywhere in the payload."""
    assert found(build("context.lost"), chain(context(constraints=[LIMIT]), context(), still)) == []


def test_who_set_a_constraint_need_not_be_told_it(build: Build) -> None:
    """The result comes back to a without a's own constraints."""
    events = chain(context(constraints=[LIMIT]), context(constraints=[LIMIT]), context())
    back = [*events[:2], events[2].but(target="a")]
    assert found(build("context.lost"), back) == []


@pytest.mark.parametrize(
    ("artifact", "is_lost"),
    [
        ("report.md", False),
        ("reports/report.md", False),
        ({"uri": "redis://cache/w1:report.md"}, False),
        ({"name": "inline", "content": "text"}, False),
        ("https://example.test/page", False),
        ("chart.png", True),
        ({"uri": "s3://bucket/chart.png"}, True),
        ("my-report.md", True),
        (17, False),
    ],
    ids=str,
)
def test_an_artifact_that_is_pointed_to_must_have_been_written(build: Build, artifact: Any, is_lost: bool) -> None:
    """By the name of a write of this workflow; what is inside the payload or on the web is not judged."""
    events = [written("w1:report.md"), *chain({"output": {"artifacts": [artifact]}})]
    assert len(found(build("context.lost"), events)) == is_lost


def test_without_a_write_nothing_is_known_of_artifacts(build: Build) -> None:
    """A store that is not watched is not empty; a contract may say that it is."""
    events = chain({"output": {"artifacts": ["chart.png"]}})
    assert found(build("context.lost"), events) == []
    assert len(found(build("context.lost", {"artifacts": "always"}), events)) == 1


def test_what_an_agent_is_sent_to_must_be_on_somebodys_list(build: Build) -> None:
    """An artifact of an earlier hop may be referred to; one that nobody listed or wrote may not."""
    events = chain(
        {"output": {"artifacts": [{"name": "table.csv", "content": "1,2"}]}},
        {"context": {"artifacts": ["table.csv", "figure.svg"]}},
    )
    [only] = found(build("context.lost"), events)
    assert (only.event, only.evidence["path"], only.evidence["index"]) == ("e1", "/context/artifacts/*", 1)


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"input_artifacts": ["figure.svg"]}, "/input_artifacts/*"),
        ({"context": {"artifacts": ["figure.svg"]}}, "/context/artifacts/*"),
        ({"input": {"Artifact": "figure.svg"}}, "/input/Artifact"),
        ({"inputs": {"artifacts": ["figure.svg"]}}, "/inputs/artifacts/*"),
    ],
    ids=str,
)
def test_a_place_for_artifacts_is_seen_after_many_objects_without_one(
    build: Build, part: dict[str, Any], path: str
) -> None:
    """What is remembered of other objects' keys, few or more than are kept, hides no key that speaks of artifacts."""
    output = {"summary": "done", "artifacts": ["table.csv"]}
    plain: dict[str, Any] = {"context": {"goal": "g", "input": "i"}, "output": output}
    for others in ([], [{f"key{n}-{m}": 0 for m in range(20)} for n in range(60)], [{"k" * 100: 0}]):
        pipeline = build("context.lost")
        for other in others:
            assert not found(pipeline, chain(plain | other))
        told = found(pipeline, chain(plain, plain, plain | part)[1:])
        assert [each.evidence["path"] for each in told] == [path]


def test_a_contract_for_a_way_overrides_the_rule(build: Build) -> None:
    """Clearing the context is wanted towards c, and there only."""
    events = chain(context(decisions_made=["x"], constraints=[LIMIT]), context(decisions_made=["x"]), context())
    assert len(found(build("context.lost"), events)) == 2
    free = {"edges": [{"target": "d", "decisions": "never", "constraints": "never"}]}
    assert found(build("context.lost", free), events) == []
    half = {"edges": [{"target": "d", "decisions": "never"}]}
    assert [each.evidence["lost"] for each in found(build("context.lost", half), events)] == ["constraint"]


def test_what_is_no_envelope_is_not_judged(build: Build) -> None:
    """Other protocols have no contract of this form."""
    assert found(build("context.lost", {"decisions": "always"}), chain({"text": "hello"}, "plain", 3)) == []
