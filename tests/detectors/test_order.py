"""Order freedom: within the lateness window, permuting and repeating observations changes nothing that is found."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.detectors import Detector, Rule
from handrail.detectors.sighting import ended
from handrail.event import Event, Finding, to_json
from handrail.rules import KINDS
from handrail.schema.registry import Registry

LATENESS = 5.0
PARAMS: dict[str, dict[str, Any]] = {
    "state.stale_read": {"grace_seconds": 1, "acts_seconds": 4},
    "state.lost_update": {},
    "state.torn_read": {"within_seconds": 6, "together_seconds": 3},
    "output.duplicate": {},
    "handoff.partial": {"seconds": 8},
    "handoff.early": {"within_seconds": 10},
}
each_kind = pytest.mark.parametrize("kind", PARAMS)


def fresh(kind: str) -> Detector:
    params = msgspec.convert(PARAMS[kind] | {"lateness_seconds": LATENESS}, KINDS[kind].Params)
    return KINDS[kind](Rule(id=kind, kind=kind), params, Registry())


@st.composite
def systems(draw: st.DrawFn) -> list[Event]:
    """What agents do with two keys of a store and a bus: few names, so that things go wrong in every way."""
    events = []
    for number in range(draw(st.integers(2, 14))):
        kind = draw(st.sampled_from(["write", "write", "read", "read", "publish", "deliver", "handoff"]))
        agent = draw(st.sampled_from(["a", "b", None]))
        other = draw(st.sampled_from(["a", "b", "c"]))
        events.append(
            Event(
                kind=kind,
                id=f"e{number}",
                at=float(draw(st.integers(0, 20))),
                workflow="w",
                task=draw(st.sampled_from(["t", "t", "u"])),
                attempt=draw(st.sampled_from([None, None, 1, 2])),
                source=agent,
                target=other if kind in ("deliver", "handoff") else None,
                outcome=draw(st.sampled_from(["completed", "completed", "completed", "failed", "interrupted"])),
                store="s" if kind in ("write", "read") else "bus",
                key=draw(st.sampled_from(["k", "l"])),
                state_version=draw(st.sampled_from([None, 1, 2, 3, "1.1", "2.1"])),
                digest=draw(st.sampled_from([None, "d1", "d2"])),
                duration_ms=float(draw(st.sampled_from([0, 0, 1_000, 2_000]))),
                status=draw(st.sampled_from([None, None, "missing"])) if kind == "read" else None,
            )
        )
    return events


def told(found: Iterable[Finding]) -> Counter[bytes]:
    """Findings to the last byte, without the order in which they came."""
    return Counter(map(to_json, found))


def arriving(detector: Detector, arrivals: Sequence[tuple[float, Event]], until: float = 60.0) -> Counter[bytes]:
    """What is found when each event is observed at its own time, with time passing by the second."""
    found: list[Finding] = []
    now = -1.0
    for at, event in sorted(arrivals, key=lambda arrival: arrival[0]):
        while now + 1.0 <= at:
            now += 1.0
            found += detector.advance(now)
        found += detector.observe(event)
    while now < until:
        now += 1.0
        found += detector.advance(now)
    return told(found)


def known(event: Event) -> float:
    """When it is seen first: a delivery and a handoff when they begin, all else when it is over."""
    return event.at if event.kind in ("deliver", "handoff") else ended(event)


COUNT_FROM_THEIR_START = {
    "state.stale_read": ("write", "publish"),  # a reader may see what is being written
    "handoff.early": ("publish", "read"),  # their order is the order in which they were asked
}


def patience(kind: str, event: Event) -> float:
    """For how long after it is seen first its news is in time: the lateness, less what it took where it counts from
    when it was asked."""
    is_early = event.kind in COUNT_FROM_THEIR_START.get(kind, ())
    return LATENESS - (known(event) - event.at if is_early else 0.0)


@each_kind
@given(events=systems(), seed=st.integers(0, 1_000_000))
@settings(max_examples=60, deadline=None)
def test_late_repeated_and_out_of_order(kind: str, events: list[Event], seed: int) -> None:
    """Each observation comes up to the lateness after its instant, some twice: the findings are those of good order.

    Handoffs between agents are judged by output.duplicate the moment they are over, and so are left out there.
    """
    if kind == "output.duplicate":
        events = [event for event in events if event.kind != "handoff"]
    chance = random.Random(seed)
    in_order = [(known(event), event) for event in events]
    late = [(at, event) for event in events for at in [known(event) + chance.random() * (patience(kind, event) - 0.01)]]
    late += [(at + chance.random() * 3, event) for at, event in late if chance.random() < 0.3]
    chance.shuffle(late)
    assert arriving(fresh(kind), in_order) == arriving(fresh(kind), late)


@each_kind
@given(events=systems(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_recording_in_any_order(kind: str, events: list[Event], data: st.DataObject) -> None:
    """Observed all at once in any order and then closed, they give the same findings."""
    if kind == "output.duplicate":
        events = [event for event in events if event.kind != "handoff"]
    found = []
    for order in (events, data.draw(st.permutations(events))):
        detector = fresh(kind)
        early = [each for event in order for each in detector.observe(event)]
        found.append(told([*early, *detector.close()]))  # type: ignore[attr-defined]
    assert found[0] == found[1]


@each_kind
@given(events=systems())
@settings(max_examples=40, deadline=None)
def test_a_replay_finds_what_was_found_live(kind: str, events: list[Event]) -> None:
    """Replay goes by when things were asked, the wire by when they were answered: one result, and nothing is held back
    at the end of a recording that goes on for long enough."""
    if kind == "output.duplicate":
        events = [event for event in events if event.kind != "handoff"]
    detector = fresh(kind)
    found: list[Finding] = []
    for event in sorted(events, key=lambda event: event.at):
        found += detector.advance(event.at)
        found += detector.observe(event)
    found += detector.advance(60.0)
    found += detector.close()  # type: ignore[attr-defined]
    assert told(found) == arriving(fresh(kind), [(ended(event), event) for event in events])
