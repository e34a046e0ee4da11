"""Recordings go through the pipeline as live traffic does: by their instants, and no further."""

from typing import Any, ClassVar

from dialects.exchanges import exchange
from handrail.config import Config
from handrail.detectors import Rule, Sight
from handrail.edge.files import builtin_packs
from handrail.event import Event, Finding
from handrail.pipeline import build, replay_events, replay_exchanges
from handrail.rules import Watch, load, watches
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
        Event(kind="handoff", id="", at=0, outcome="completed").but(id=id, at=at)
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


def test_together_is_one_after_another() -> None:
    """Looked at in one go: the decisions of each, in order, and one that we fail at costs no other."""

    def exchanges() -> list[Exchange]:
        bodies = [{"task_id": str(n % 3), "source_agent": "a", "target_agent": "b"} for n in range(6)]
        seen = [taking(f"e{n}", n, n + 0.01) for n in range(2)]
        for n, body in enumerate(bodies):
            seen.append(exchange(body, id=f"x{n}"))
            seen[-1].request.at = seen[-1].request.end = seen[-1].ended = 10.0 + n
        return seen

    packs = [load(text, name, builtin=True) for name, text in builtin_packs()]

    def inspector() -> Any:
        registry = Registry()
        return build(Config(), registry, watches(packs, registry))

    one = inspector()
    apart = [decision for each in exchanges() for decision in one.whole(each)]
    assert inspector().together(exchanges()) == apart
    assert sum(len(decision.findings) for decision in apart) >= 3

    broken = exchanges()
    broken[1].request.headers[b"traceparent"] = 7  # type: ignore[assignment]
    decisions = inspector().together(broken)
    assert [decision.event.id for decision in decisions if decision.event is not None] == [
        each.id for each in broken if each is not broken[1]
    ]
    assert [fault.component for decision in decisions for fault in decision.faults][-1:] == ["inspector"]
