"""handoff.loop: rounds of any length that repeat, and the rounds that are progress."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.event import Event, Finding
from handrail.pipeline import Pipeline

Build = Callable[..., Pipeline]


def laps(agents: Sequence[str], times: int, body: Callable[[int, str], Any], **fields: Any) -> list[Event]:
    """The work goes round these agents; `body` says what is handed over, from the lap and the sender."""
    events: list[Event] = []
    for lap in range(times):
        for source, target in zip(agents, [*agents[1:], agents[0]], strict=True):
            number = len(events)
            events.append(
                Event(
                    kind="handoff",
                    id=f"e{number}",
                    at=float(number),
                    workflow="w",
                    source=source,
                    target=target,
                    outcome="completed",
                    payload=body(lap, source),
                    **fields,
                )
            )
    return events


def found(pipeline: Pipeline, events: Sequence[Event]) -> list[Finding]:
    return [each for event in events for each in pipeline.observe(event).findings]


def same(lap: int, source: str) -> Any:
    return {"say": f"{source} has nothing to add"}


@pytest.mark.parametrize("agents", [["a"], ["a", "b"], ["a", "b", "c"], [f"agent-{n}" for n in range(9)]], ids=len)
def test_a_ring_of_any_length_is_found_where_its_third_lap_closes(build: Build, agents: list[str]) -> None:
    """Twice round with what was said before, and the message that closes the lap is the finding."""
    events = laps(agents, 3, same)
    findings = found(build("handoff.loop"), events)
    assert [each.event for each in findings] == [events[-1].id]
    assert findings[0].evidence["cycle"] == agents
    assert findings[0].side == "graph"
    assert found(build("handoff.loop"), events[:-1]) == []


def test_each_workflow_goes_round_by_itself(build: Build) -> None:
    """Three that take turns and go round once each: three laps of the same agents, and no loop."""
    lap = laps(["a", "b", "c"], 1, same)
    turns = [event.but(id=f"{name}{event.id}", workflow=name) for name in "uvw" for event in lap]
    assert found(build("handoff.loop"), turns) == []
    assert len(found(build("handoff.loop"), laps(["a", "b", "c"], 3, same))) == 1


def test_every_further_lap_is_told_under_one_fingerprint(build: Build) -> None:
    """A loop that goes on stays a finding, and remains one."""
    findings = found(build("handoff.loop"), laps(["a", "b", "c"], 12, same))
    assert len(findings) == 10
    assert len({each.fingerprint for each in findings}) == 1
    assert findings[-1].evidence["without_progress"] == 11


def test_what_differs_in_every_message_is_no_progress(build: Build) -> None:
    """Instants, attempts and ids of messages do not make a repetition new."""
    events = laps(["a", "b"], 4, lambda lap, source: same(lap, source) | {"attempt": lap, "sent_at": f"{lap} o'clock"})
    assert len(found(build("handoff.loop"), events)) == 1


def long_text(seed: int) -> str:
    return " ".join(f"word{(seed * 37 + n * n * 11) % 400}" for n in range(120))


@pytest.mark.parametrize(
    "draft",
    [
        lambda lap: {"draft": long_text(lap)},
        lambda lap: {"draft": " ".join(long_text(part) for part in range(lap + 1))},
        lambda lap: {"draft": long_text(0), "revision": lap},
        lambda lap: (
            f"This is draft {lap} of the quarterly report on sales in all regions of the country, please review it"
        ),
        lambda lap: {"draft": f"v{lap}"},
        lambda lap: {"n": lap},
    ],
    ids=["rewritten", "growing", "revision", "draft n of a text", "short", "a number"],
)
def test_a_review_with_progress_is_no_loop(build: Build, draft: Callable[[int], Any]) -> None:
    """Drafts that change under comments that do not: the work moves on."""
    events = laps(["writer", "reviewer"], 12, lambda lap, source: draft(lap) if source == "writer" else "not yet")
    assert found(build("handoff.loop"), events) == []


def test_a_state_version_that_rises_is_progress(build: Build) -> None:
    """The messages repeat, the state does not; standing still or going back is no progress."""
    rising = [event.but(state_version=n) for n, event in enumerate(laps(["a", "b"], 8, same), start=1)]
    assert found(build("handoff.loop"), rising) == []
    standing = [event.but(state_version=7) for event in rising]
    assert len(found(build("handoff.loop"), standing)) == 6


def test_a_write_of_the_workflow_is_progress(build: Build) -> None:
    """What is written between the rounds counts, by its version."""
    events: list[Event] = []
    for number, event in enumerate(laps(["a", "b"], 8, same)):
        write = Event(
            kind="write", id=f"s{number}", at=event.at, workflow="w", store="s", key="k", state_version=number
        )
        events += [event, write]
    assert found(build("handoff.loop"), events) == []


def test_a_loop_in_other_words_takes_a_round_longer(build: Build) -> None:
    """Texts that hardly differ repeat each other; the round with which comparing begins is not judged by it."""
    words = long_text(0).split()

    def body(lap: int, source: str) -> Any:
        return " ".join([*words[:60], f"{source}{lap}", *words[60:]])

    findings = found(build("handoff.loop"), laps(["a", "b"], 4, body))
    assert [each.event for each in findings] == ["e7"]
    assert "phrases" in findings[0].message
    assert found(build("handoff.loop", {"new_phrases": 0}), laps(["a", "b"], 4, body)) == []


def test_without_content_only_many_rounds_are_a_loop(build: Build) -> None:
    """Where nothing but the agents is known, the tenth round is; a task that changes is something known."""
    blind = laps(["a", "b", "c"], 12, lambda lap, source: None)
    assert [each.event for each in found(build("handoff.loop"), blind)] == ["e29", "e32", "e35"]
    tasks = [event.but(task=f"t{n // 3}") for n, event in enumerate(blind)]
    assert found(build("handoff.loop"), tasks) == []
    assert len(found(build("handoff.loop", {"unseen_rounds": 3}), blind)) == 10


def test_an_edge_has_limits_of_its_own(build: Build) -> None:
    """The first edge that a round goes over overrides the rule, both ways; `at_most` holds with progress too."""
    events = laps(["a", "b"], 6, same)
    assert len(found(build("handoff.loop", {"edges": [{"source": "b", "target": "a", "rounds": 5}]}), events)) == 1
    assert len(found(build("handoff.loop", {"edges": [{"source": "b", "rounds": 1}]}), events)) == 5
    assert len(found(build("handoff.loop", {"edges": [{"source": "x", "rounds": 1}]}), events)) == 4
    drafts = laps(["a", "b"], 6, lambda lap, source: lap)
    [last] = found(build("handoff.loop", {"edges": [{"at_most": 5}]}), drafts)
    assert (last.event, last.evidence["rounds"]) == ("e11", 6)


def test_a_round_inside_a_round_is_counted_by_itself(build: Build) -> None:
    """b and c go round while a waits: the loop names them, and a has no part in it."""
    inner = laps(["b", "c"], 4, same)
    events = [inner[0].but(id="begin", source="a", target="b", payload="go"), *inner]
    findings = found(build("handoff.loop"), events)
    assert {tuple(each.evidence["cycle"]) for each in findings} == {("b", "c")}


def test_asking_again_without_an_answer_closes_a_round(build: Build) -> None:
    """An agent known to answer by messages of its own says nothing, and is asked the same again."""
    first = laps(["a", "b"], 1, same)
    again = [first[0].but(id=f"again{n}", at=10.0 + n) for n in range(4)]
    findings = found(build("handoff.loop"), [*first, *again])
    assert [each.event for each in findings] == ["again2", "again3"]
    assert "no answer" in findings[0].message


def test_a_retry_after_a_failure_is_no_round(build: Build) -> None:
    """What never arrived did not hand the work over."""
    first = laps(["a", "b"], 1, same)
    failed = [first[0].but(id=f"f{n}", outcome="failed", at=9.0 + n) for n in range(6)]
    assert found(build("handoff.loop"), [*first, *failed]) == []


def test_replies_hand_the_work_back_where_the_rule_says_so(build: Build) -> None:
    """Calls that are answered on their own connection: a round each, for the sensitive setting."""
    calls = [
        Event(
            kind="handoff",
            id=f"c{n}",
            at=float(n),
            workflow="w",
            source="a",
            target="b",
            outcome="completed",
            payload="check",
            reply="no",
        )
        for n in range(4)
    ]
    assert found(build("handoff.loop"), calls) == []
    assert [each.event for each in found(build("handoff.loop", {"replies": True}), calls)] == ["c2", "c3"]
    assert [each.event for each in found(build("handoff.loop", {"setting": "sensitive"}), calls)] == ["c3"]


def test_in_enforce_mode_the_message_that_closes_the_round_is_refused(build: Build) -> None:
    """At the sight of the request, with 508; the message before it passes."""
    asked = [event.but(outcome="asked") for event in laps(["a", "b", "c"], 4, same)]
    pipeline = build("handoff.loop", action="enforce")
    refused = [(event.id, decision.refusal) for event in asked if (decision := pipeline.observe(event)).refusal]
    assert [(name, refusal.status) for name, refusal in refused if refusal] == [("e8", 508), ("e11", 508)]


def test_a_fan_out_is_no_loop(build: Build) -> None:
    """A lead hands the same words to many, and each answers once."""
    events: list[Event] = []
    for n in range(20):
        events += laps(["lead", f"worker-{n}"], 1, lambda lap, source: same(lap, "somebody"))
    events = [event.but(id=f"e{n}", at=float(n)) for n, event in enumerate(events)]
    assert found(build("handoff.loop"), events) == []


@given(agents=st.integers(1, 6), times=st.integers(3, 8), rounds=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_each_lap_past_the_limit_is_one_finding(build: Build, agents: int, times: int, rounds: int) -> None:
    """The first lap is new, `rounds` repeats are a loop: of n laps the last n - rounds are found."""
    events = laps([f"a{n}" for n in range(agents)], times, same)
    assert len(found(build("handoff.loop", {"rounds": rounds}), events)) == max(0, times - rounds)


def test_a_sidecar_that_sees_one_hop_of_the_ring_goes_by_the_chain(build: Build) -> None:
    """Only c to a passes here; where the work was before stands in its baggage."""
    whole = laps(["a", "b", "c"], 3, same)
    seen = [event.but(chain="a|b|c") for event in whole if event.source == "c"]
    [only] = found(build("handoff.loop"), seen)
    assert (only.event, only.evidence["cycle"]) == ("e8", ["a", "b", "c"])
    assert found(build("handoff.loop"), [event.but(chain=None) for event in seen]) == []
