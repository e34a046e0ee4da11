"""The pipeline: who is shown what and when, what is filled in, what is refused, and what a failure inside may cost."""

from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec
import orjson
import pytest

from handrail.detectors import Rule, finding
from handrail.event import Event, Finding, digest_of
from handrail.pipeline import REFUSAL_STATUS, Pipeline, refusal_in
from handrail.rules import KINDS, Watch
from handrail.schema.registry import Registry


class Recorder:
    """A detector that keeps what it is shown and finds or raises what it is told to."""

    kind: ClassVar[str] = "schema.violation"
    Params: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(self, *sees: str, finds: int = 0, raises: Iterable[int] = ()) -> None:
        self.sees: Any = frozenset(sees)
        self.shown: list[tuple[str, str]] = []
        self.rule = Rule(id="schema.violation", kind="schema.violation")
        self._finds, self._raises = finds, frozenset(raises)

    def observe(self, event: Event) -> Iterable[Finding]:
        self.shown.append((event.id, event.outcome))
        if len(self.shown) in self._raises:
            raise RuntimeError("broken")
        return [finding(self.rule, event, f"{n}", evidence={}) for n in range(self._finds)]

    def advance(self, now: float) -> Iterable[Finding]:
        if self._raises and 0 in self._raises:
            raise RuntimeError("broken")
        return ()

    def __len__(self) -> int:
        return 0


def watch_of(detector: Any, **fields: Any) -> Watch:
    rule = {"id": "schema.violation", "kind": "schema.violation", "severity": "warning"} | fields
    return Watch(rule=Rule(**rule), detector=detector)


def pipeline_of(*detectors: Any, **settings: Any) -> Pipeline:
    return Pipeline([watch_of(detector) for detector in detectors], Registry(), **settings)


def event(number: int = 1, outcome: str = "completed", **fields: Any) -> Event:
    return Event(kind="handoff", id=f"e{number}", at=float(number), outcome=outcome, **fields)


# --- who is shown what


def test_a_call_is_shown_at_each_sight_once() -> None:
    """Asked and final: `first` and `asked` see the request, `final` the reply."""
    first, asked, final = (Recorder(sight) for sight in ("first", "asked", "final"))
    pipeline = pipeline_of(first, asked, final)
    pipeline.observe(event(1, "asked"))
    pipeline.observe(event(1, "failed"))
    assert (first.shown, asked.shown, final.shown) == ([("e1", "asked")], [("e1", "asked")], [("e1", "failed")])


def test_a_whole_event_is_first_and_final_at_once() -> None:
    """An event that was never asked, as recordings have them, is shown once to each but not to `asked`."""
    first, asked, final, both = Recorder("first"), Recorder("asked"), Recorder("final"), Recorder("first", "final")
    pipeline_of(first, asked, final, both).observe(event(1))
    assert (first.shown, asked.shown, final.shown, both.shown) == (
        [("e1", "completed")],
        [],
        *[[("e1", "completed")]] * 2,
    )


def test_calls_that_overlap_are_told_apart() -> None:
    """Sights go by id, not by order."""
    first, final = Recorder("first"), Recorder("final")
    pipeline = pipeline_of(first, final)
    for number, outcome in [(1, "asked"), (2, "asked"), (2, "completed"), (3, "completed"), (1, "completed")]:
        pipeline.observe(event(number, outcome))
    assert [name for name, _ in first.shown] == ["e1", "e2", "e3"]
    assert [name for name, _ in final.shown] == ["e2", "e3", "e1"]


def test_open_calls_are_bounded_and_what_is_given_up_is_counted() -> None:
    """Past the limit the oldest open call is forgotten with a fault."""
    pipeline = pipeline_of(open_limit=2)
    faults = [fault for n in range(3) for fault in pipeline.observe(event(n, "asked")).faults]
    assert [(fault.component, fault.reason) for fault in faults] == [("pipeline", "open_limit")]
    assert len(pipeline._open) == 2


def test_where_decides_who_is_shown() -> None:
    """A rule's `where` is asked before its detector."""
    recorder = Recorder("final")
    watch = watch_of(recorder)
    watch.where = lambda event: event.source == "a"
    pipeline = Pipeline([watch], Registry())
    pipeline.observe(event(1, source="a"))
    pipeline.observe(event(2, source="b"))
    assert [name for name, _ in recorder.shown] == ["e1"]


# --- what is filled in


def test_subject_version_and_digest_are_filled_in() -> None:
    """From the registry and the payload, where the wire did not say them."""
    registry = Registry()
    assert registry.load({"a.b/3.json": b"{}"}) == []
    payload = {"n": 1}
    seen = Pipeline((), registry).observe(event(source="a", target="b", payload=payload)).event
    assert seen is not None
    assert (seen.subject, seen.version, seen.digest) == ("a.b", "3", digest_of(payload))
    given = event(subject="s", version="1", digest="d", payload=payload)
    assert Pipeline((), registry).observe(given).event is given


def test_a_payload_that_could_not_be_read_has_a_subject() -> None:
    """Which schema it failed to be is worth knowing; an event without any payload has none."""
    seen = pipeline_of().observe(event(source="a", target="b", uninspected="invalid_json")).event
    assert seen is not None
    assert (seen.subject, seen.digest) == ("a.b", None)
    none = event(source="a", target="b")
    assert pipeline_of().observe(none).event is none


def test_integers_past_64_bits_are_digested_and_validated() -> None:
    """What orjson does not write is no reason to skip validation."""
    registry = Registry()
    assert registry.load({"s/1.json": b'{"properties":{"n":{"maximum":5}}}'}) == []
    rule = Rule(id="schema.violation", kind="schema.violation")
    kind = KINDS["schema.violation"]
    pipeline = Pipeline([Watch(rule=rule, detector=kind(rule, kind.Params(), registry))], registry)
    decision = pipeline.observe(event(subject="s", payload={"n": 10**30}))
    assert decision.event is not None
    assert decision.event.digest
    assert len(decision.findings) == 1
    assert not decision.faults


# --- refusal


@pytest.mark.parametrize(("kind", "status"), REFUSAL_STATUS.items())
def test_an_enforced_finding_refuses_with_its_status(kind: str, status: int) -> None:
    """The status of each kind, and the finding that says why."""
    pipeline = Pipeline([watch_of(Recorder("first", finds=2), id=kind, kind=kind, action="enforce")], Registry())
    decision = pipeline.observe(event(1, "asked"))
    assert decision.verdict == "refuse"
    assert decision.refusal is not None
    assert (decision.refusal.status, decision.refusal.finding) == (status, decision.findings[0])


def test_the_first_rule_that_refuses_names_the_status() -> None:
    """Every finding is kept, one refusal is made."""
    watches = [
        watch_of(Recorder("first", finds=1)),
        watch_of(Recorder("first", finds=1), kind="output.duplicate", action="enforce"),
        watch_of(Recorder("first", finds=1), kind="budget.exceeded", action="enforce"),
    ]
    decision = Pipeline(watches, Registry()).observe(event(1, "asked"))
    assert len(decision.findings) == 3
    assert decision.refusal is not None
    assert decision.refusal.status == 409
    assert refusal_in([Pipeline((), Registry()).observe(event()), decision]) is decision.refusal


def test_only_what_is_still_asked_can_be_refused() -> None:
    """In observe mode nothing is; nor is a reply, which is on its way already; nor a request without finding."""
    enforced = {"action": "enforce"}
    cases = [
        (Recorder("first", finds=1), {}, "asked"),
        (Recorder("first", finds=1), enforced, "completed"),
        (Recorder("first"), enforced, "asked"),
    ]
    for detector, fields, outcome in cases:
        decision = Pipeline([watch_of(detector, **fields)], Registry()).observe(event(1, outcome))
        assert (decision.refusal, decision.verdict) == (None, "pass")


# --- our own failures


def test_a_detector_that_raises_costs_only_its_own_findings() -> None:
    """The event passes, the others speak, and the fault says who failed and how."""
    broken, sound = Recorder("final", raises=range(1, 99)), Recorder("final", finds=1)
    decision = pipeline_of(broken, sound).observe(event())
    assert decision.verdict == "pass"
    assert len(decision.findings) == 1
    (fault,) = decision.faults
    assert (fault.component, fault.reason, fault.message) == (
        "detector.schema.violation",
        "error",
        "RuntimeError: broken",
    )


def test_a_detector_that_raises_halfway_is_contained_too() -> None:
    """A generator that breaks after its first finding."""

    class Halfway(Recorder):
        def observe(self, event: Event) -> Iterable[Finding]:
            yield finding(self.rule, event, "first", evidence={})
            raise RuntimeError("broken")

    decision = pipeline_of(Halfway("final")).observe(event())
    assert (len(decision.findings), len(decision.faults)) == (0, 1)


def test_a_detector_is_switched_off_after_failures_in_a_row() -> None:
    """At the limit it is not called again, and that is said once; `advance` is quiet about it too."""
    broken = Recorder("final", raises=range(99))
    pipeline = pipeline_of(broken, failures=3)
    reasons = [[fault.reason for fault in pipeline.observe(event(n)).faults] for n in range(5)]
    assert reasons == [["error"], ["error"], ["error", "disabled"], [], []]
    assert len(broken.shown) == 3
    assert pipeline.advance(1.0).faults == ()


def test_a_success_starts_the_count_again() -> None:
    """Failures that are not in a row do not add up."""
    flaky = Recorder("final", raises=[1, 2, 4, 5, 7, 8])
    pipeline = pipeline_of(flaky, failures=3)
    faults = [fault.reason for n in range(12) for fault in pipeline.observe(event(n)).faults]
    assert faults == ["error"] * 6
    assert len(flaky.shown) == 12


def test_a_detector_that_raises_as_time_passes_is_contained() -> None:
    """`advance` gives the others' findings, and a fault at its instant."""
    decision = pipeline_of(Recorder("final", raises=[0]), Recorder("final")).advance(7.0)
    assert [(fault.reason, fault.at) for fault in decision.faults] == [("error", 7.0)]


def test_a_where_that_raises_is_contained() -> None:
    """A predicate is part of the rule, so its failure is the rule's."""
    watch = watch_of(Recorder("final"))
    watch.where = lambda event: 1 / 0 > 0
    assert [fault.reason for fault in Pipeline([watch], Registry()).observe(event()).faults] == ["error"]


def test_a_registry_that_raises_costs_the_subject_and_not_the_event() -> None:
    """The event goes on as the wire had it, with its digest, and the fault is counted."""
    registry = Registry()
    registry._edges = (None,)  # type: ignore[assignment]  # cannot be asked whom it covers
    recorder = Recorder("final")
    decision = Pipeline([watch_of(recorder)], registry).observe(event(payload={"n": 1}))
    assert [fault.component for fault in decision.faults] == ["registry"]
    assert decision.event is not None
    assert decision.event.digest == digest_of({"n": 1})
    assert recorder.shown == [("e1", "completed")]


def test_a_payload_that_cannot_be_digested_still_passes() -> None:
    """What is not JSON costs its digest, with a fault."""
    decision = pipeline_of().observe(event(payload={"n": object()}))
    assert [fault.component for fault in decision.faults] == ["digest"]
    assert orjson.dumps(decision.event.subject if decision.event else 0) == b"null"
