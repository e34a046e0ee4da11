"""What the records hold, as files and rules know it: EventFields, Finding, Fault, Refusal.

They are flat and frozen, and live apart from `event` because a module that defines a msgspec Struct is not compiled.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Kind = Literal["handoff", "write", "read", "publish", "deliver", "wait", "resume", "plan", "usage"]
Channel = Literal["call", "store", "event"]
Outcome = Literal[
    "asked",
    "accepted",
    "completed",
    "failed",
    "rejected",
    "ignored",
    "dropped",
    "timeout",
    "interrupted",
    "unknown",
]
Confidence = Literal["exact", "inferred", "ambiguous"]
Manner = Literal["transfer", "delegate"]
Side = Literal["egress", "ingress"]
FindingSide = Literal["sender", "receiver", "store", "graph", "unknown"]
Severity = Literal["info", "warning", "critical"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


class EventFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an Event with their types: the columns in ClickHouse, and the names that rules match on.

    Files are read into it. What travels through the sidecar is `event.Event`, which has the same fields.
    """

    kind: Kind
    id: str
    at: float
    """Seconds since the epoch, UTC: when the request was complete, or when the fact was seen."""
    workflow: str | None = None
    task: str | None = None
    attempt: int | None = None
    source: str | None = None
    target: str | None = None
    channel: Channel | None = None
    protocol: str | None = None
    operation: str | None = None
    outcome: Outcome = "unknown"
    confidence: Confidence | None = None
    side: Side | None = None
    subject: str | None = None
    version: str | None = None
    payload: Any = None
    payload_bytes: int | None = None
    digest: str | None = None
    """Of the payload in canonical form, see `digest_of`."""
    tokens: int | None = None
    status: int | str | None = None
    """What the protocol answered, in its own terms: an HTTP status, a JSON-RPC error code."""
    duration_ms: float | None = None
    """First byte of the request to the last byte of the reply."""
    ttfb_ms: float | None = None
    """Last byte of the request to the first byte of the reply."""
    overhead_ms: float | None = None
    """Time the message spent inside Handrail, both directions together."""
    inspection_ms: float | None = None
    """Time that Handrail took to read and judge it, its share of what was looked at together: beside the exchange, and
    in `overhead_ms` only where the message was held."""
    transfer_ms: float | None = None
    """First to last byte of the request, and of the reply: serialisation and transfer. Of a reply that is a stream of
    events only the request, because its pauses are the target's own time."""
    lag_ms: float | None = None
    """Since the fact that it follows: an agent's first read of what another wrote since the write was acknowledged, a
    delivery since its publish."""
    reply: Any = None
    reply_bytes: int | None = None
    store: str | None = None
    key: str | None = None
    state_version: int | str | None = None
    agent_version: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    deadline: float | None = None
    """Absolute, seconds since the epoch, where the caller declared one."""
    uninspected: str | None = None
    """Why the payload could not be read, where it could not; one of the reasons of `wire.body`."""
    reads: str | None = None
    """The versions that the target says it reads, as `handrail-accept` carries them: `subject@version, …`."""
    chain: str | None = None
    """The agents that the work came through, the sender last, as `baggage` carries them: `a|b|c`; the last sixteen."""
    manner: Manner | None = None
    """Of a handoff that a model asks for: the target goes on in place of the source, or answers the source."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="finding"):
    """Something wrong in the system that is watched: which rule fired, where, how bad, the evidence, whose side."""

    rule: str
    kind: str
    severity: Severity
    at: float
    event: str | None = None
    """Id of the event it fired on; None when time alone fired it."""
    events: tuple[str, ...] = ()
    workflow: str | None = None
    task: str | None = None
    source: str | None = None
    target: str | None = None
    subject: str | None = None
    version: str | None = None
    side: FindingSide = "unknown"
    message: str = ""
    evidence: Mapping[str, Any] = msgspec.field(default_factory=dict)
    fingerprint: str = ""
    count: int = 1


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="fault"):
    """Something that Handrail could not do itself: `reason` is a short word of a closed list, `message` for people."""

    component: str
    reason: str
    message: str = ""
    at: float | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """How a held request is answered when a rule refuses it: the HTTP status and the finding that says why."""

    status: int
    finding: Finding
