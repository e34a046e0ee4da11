"""Recordings go through the pipeline as live traffic does: by their instants, and no further."""

from typing import Any, ClassVar

import msgspec

from dialects.exchanges import exchange
from handrail.config import Config
from handrail.detectors import Rule, Sight
from handrail.event import Event, Finding
from handrail.pipeline import build, replay_events, replay_exchanges
from handrail.rules import Watch
from handrail.schema.registry import Registry
from handrail.wire import Exchange


class Witness:
    """A detector that writes down what it is shown, and tells of every advance."""

    kind: ClassVar[str] = "witness"
    sees: ClassVar[frozenset[Sight]] = frozenset(("asked", "final"))

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def observe(self, event: Event) -> list[Finding]:
        self.seen.append((event.id, event.outcome))
        return []

    def advance(self, now: float) -> list[Finding]:
        self.seen.append(now)
        return [Finding(rule="witness", kind="witness", severity="info", at=now)]

    def __len__(self) -> int:
        return 0


def witnessed() -> tuple[Witness, Any]:
    witness = Witness()
    watch = Watch(rule=Rule(id="witness", kind="witness"), detector=witness)  # type: ignore[arg-type]
    return witness, build(Config(), Registry(), (watch,))


def taking(id: str, start: float, end: float) -> Exchange:
    seen = exchange({"id": id}, id=id)
    seen.request.at = seen.request.end = start
    seen.ended = end
    return seen


def test_exchanges_open_and_close_by_their_instants() -> None:
    """Interleaved, equal instants in the order of the file; time passes to each instant once, and not past the last.

    An exchange too short to be seen open is observed once.
    """
    witness, inspector = witnessed()
    decisions = list(replay_exchanges([taking("b", 2, 3), taking("a", 1, 5), taking("c", 3, 3)], inspector))
    assert witness.seen == [
        1, ("a", "asked"),
        2, ("b", "asked"),
        3, ("b", "completed"), ("c", "completed"),
        5, ("a", "completed"),
    ]  # fmt: skip
    assert [decision.event.id for decision in decisions if decision.event] == ["a", "b", "b", "c", "a"]
    assert [finding.at for decision in decisions for finding in decision.findings] == [1, 2, 3, 5]


def test_an_exchange_that_ends_before_it_begins_is_observed_once() -> None:
    """Whatever a recording's clock says, and not before its request was there."""
    witness, inspector = witnessed()
    list(replay_exchanges([taking("a", 9, 1)], inspector))
    assert witness.seen == [9, ("a", "completed")]


def test_equal_exchanges_are_different_exchanges() -> None:
    """Recordings may be joined, and ids may come twice."""
    witness, inspector = witnessed()
    list(replay_exchanges([taking("a", 1, 4), taking("a", 2, 3)], inspector))
    assert witness.seen.count(("a", "asked")) == 2


def test_events_are_observed_whole_in_the_order_of_their_instants() -> None:
    """Each once, with its outcome, after time has passed up to it."""
    witness, inspector = witnessed()
    events = [
        msgspec.structs.replace(Event(kind="handoff", id="", at=0, outcome="completed"), id=id, at=at)
        for id, at in (("b", 2.0), ("a", 1.0), ("c", 2.0))
    ]
    decisions = list(replay_events(events, inspector))
    assert witness.seen == [1, ("a", "completed"), 2, ("b", "completed"), ("c", "completed")]
    assert [decision.event.id for decision in decisions if decision.event] == ["a", "b", "c"]


def test_nothing_recorded_is_nothing_seen() -> None:
    """An empty recording does not even let time pass."""
    witness, inspector = witnessed()
    assert list(replay_exchanges([], inspector)) == list(replay_events([], inspector)) == []
    assert witness.seen == []
