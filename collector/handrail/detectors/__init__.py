"""Events become findings: one module for each kind of failure, named after the failure.

A detector is a state machine that knows no clock: time comes in with the event, and `advance` tells it that time
passed. Laws that one shared test runs over all of them: same events, same findings; no exception on any event; memory
bounded by `keys`; `advance` twice at the same instant changes nothing; evidence names only events it has seen;
workflow A never changes the findings of workflow B. A detector never keeps a payload.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Literal, Protocol

import msgspec

from handrail.detectors.params import Action as Action
from handrail.detectors.params import Count as Count
from handrail.detectors.params import Rule as Rule
from handrail.detectors.params import Scope as Scope
from handrail.detectors.params import Seconds as Seconds
from handrail.event import Event, Finding, FindingSide, fingerprint_of, rfc3339
from handrail.schema.registry import Registry

Sight = Literal["first", "asked", "final"]


class Detector(Protocol):
    """One kind of failure. `sees` says at which sight of an event the pipeline calls `observe`:

    `first`: once for each event id, as soon as the request is known: what judges the payload.
    `asked`: when a call is open: what starts a clock or a wait.
    `final`: when the outcome is known: what judges outcomes.

    A class may also say `kinds`, the kinds of event that it reads; it is not called for others.
    """

    kind: ClassVar[str]
    sees: ClassVar[frozenset[Sight]]
    Params: ClassVar[type[msgspec.Struct]]

    def __init__(self, rule: Rule, params: Any, registry: Registry) -> None: ...

    def observe(self, event: Event) -> Iterable[Finding]: ...

    def advance(self, now: float) -> Iterable[Finding]:
        """Time passed: deadlines, windows, silence. A finding's `at` is when it became true, not when noticed."""
        ...

    def __len__(self) -> int:
        """How many keys it holds; never more than its `keys` parameter."""
        ...


def finding(
    rule: Rule,
    event: Event,
    message: str,
    *,
    evidence: Mapping[str, Any],
    side: FindingSide = "unknown",
    at: float | None = None,
    events: tuple[str, ...] = (),
    same: tuple[object, ...] = (),
    fired_by_time: bool = False,
) -> Finding:
    """A finding of a rule about an event.

    `same` is what, beside rule, source, target and subject, makes two findings the same one: a path and a keyword,
    never an id or a time. `events` is the evidence; the event itself is added where it is not named.
    """
    return Finding(
        rule=rule.id,
        kind=rule.kind,
        severity=rule.severity,
        at=event.at if at is None else at,
        event=None if fired_by_time else event.id,
        events=events or (event.id,),
        workflow=event.workflow,
        task=event.task,
        source=event.source,
        target=event.target,
        subject=event.subject,
        version=event.version,
        side=side,
        message=message,
        evidence=evidence,
        fingerprint=fingerprint_of(rule.id, event.source, event.target, event.subject, *same),
    )


def key_form(event: Event) -> str | None:
    """The key of an event with `*` for the ids of its workflow and its task: what repeats of a finding share."""
    key = event.key
    if key is not None:
        for name in (event.workflow, event.task):
            if name:
                key = key.replace(name, "*")
    return key


def instant(at: float) -> str:
    """An instant as evidence shows it: RFC 3339, or the bare number where no calendar holds it."""
    try:
        return rfc3339(at)
    except (ValueError, OverflowError, OSError):
        return str(at)


def lasting(span: float) -> str:
    """Seconds as a person reads them: `350 ms`, `12 s`, `5 min`, `2.5 h`, `30 days`."""
    if span < 1:
        return f"{span * 1000:.3g} ms"
    if span < 120:
        return f"{span:.3g} s"
    if span < 172_800:
        return f"{span / 60:.3g} min" if span < 7200 else f"{span / 3600:.3g} h"
    return f"{span / 86_400:,.0f} days"


def between(event: Event) -> str:
    """Who hands to whom, for a sentence."""
    return f"{event.source or 'an unknown agent'} to {event.target or 'an unknown agent'}"


NOTHING: Final[tuple[Finding, ...]] = ()
"""What `observe` and `advance` return where nothing is wrong; one object, so that silence costs nothing."""
