"""The records that cross every boundary: Event, Finding, Fault, Decision.

They are flat and frozen. Their field names are the columns in ClickHouse, the names that rules match on, and the names
in the docs. Absent is None, never an invented value.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec
import orjson
import xxhash

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


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="event"):
    """One fact that was seen, with the instant at which it was seen.

    A call that stays open, or is held, is seen twice under one `id`: with outcome `asked` while it is open, and with
    its final outcome when it is over. Only the second goes to the sinks. `gc=False` is safe because a frozen record
    whose payload was parsed before it cannot be part of a reference cycle; it keeps records out of the collector's
    sight.
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


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the pipeline makes of one event. `event` is the event with subject, version and digest filled in."""

    event: Event | None = None
    findings: tuple[Finding, ...] = ()
    faults: tuple[Fault, ...] = ()
    refusal: Refusal | None = None

    @property
    def verdict(self) -> Literal["pass", "refuse"]:
        return "pass" if self.refusal is None else "refuse"


def canonical(payload: Any) -> bytes:
    """JSON value to bytes that do not depend on key order or white space. Raises TypeError for what is not JSON."""
    try:
        return orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return _slowly(payload)


def _slowly(value: Any) -> bytes:
    """For integers past 64 bits, which orjson does not write and exact numbers need."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise TypeError(f"is not JSON: {type(error).__name__}") from None


def digest_of(payload: Any) -> str:
    """JSON value to 32 hex digits, equal for equal content (XXH3-128 of the canonical form).

    Not cryptographic: it answers "the same again?" between honest agents, at 0.3 µs for 4 KB where SHA-256 takes 3 µs.
    """
    return xxhash.xxh3_128_hexdigest(canonical(payload))


def fingerprint_of(*parts: object) -> str:
    """What makes two findings the same finding, to 16 hex digits."""
    text = "\x1f".join("" if part is None else str(part) for part in parts)
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def rfc3339(at: float) -> str:
    """Seconds since the epoch to RFC 3339 in UTC with microseconds, as the JSON output carries it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds(at: str | float) -> float:
    """RFC 3339 (or a number of seconds) to seconds since the epoch. Raises ValueError; a time without zone is UTC."""
    if isinstance(at, int | float):
        return float(at)
    instant = datetime.fromisoformat(at)
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


_EVENT_FIELDS = tuple(field.encode_name for field in msgspec.structs.fields(Event))
_WORDS: dict[str, Any] = {
    "kind": Kind,
    "channel": Channel,
    "outcome": Outcome,
    "confidence": Confidence,
    "side": Side,
    "manner": Manner,
}
_FINDING_FIELDS = tuple(field.encode_name for field in msgspec.structs.fields(Finding))


def to_json(record: Event | Finding | Fault, *, payloads: bool = False) -> bytes:
    """A record to one JSON object, every field present (absent is null), times as RFC 3339.

    Payloads are left out unless asked for: they may hold what nobody agreed to store.
    """
    built: dict[str, Any] = msgspec.to_builtins(record)
    out: dict[str, Any] = {"type": built["type"]}
    if isinstance(record, Fault):
        out |= {"component": record.component, "reason": record.reason, "message": record.message}
        out["at"] = None if record.at is None else rfc3339(record.at)
        return orjson.dumps(out)
    for name in _EVENT_FIELDS if isinstance(record, Event) else _FINDING_FIELDS:
        out[name] = getattr(record, name)
    out["at"] = rfc3339(record.at)
    if isinstance(record, Event):
        if record.deadline is not None:
            out["deadline"] = rfc3339(record.deadline)
        if not payloads:
            out["payload"] = out["reply"] = None
    try:
        return orjson.dumps(out, default=str)
    except TypeError:
        return json.dumps(out, default=str, separators=(",", ":")).encode()


def event_from(value: Mapping[str, Any]) -> Event:
    """A JSON object as `to_json` writes it to an Event.

    Unknown keys are ignored so that newer recordings stay readable. Raises ValueError naming the field that is wrong.
    """
    fields = {key: item for key, item in value.items() if item is not None}
    for name in ("at", "deadline"):
        if name in fields:
            try:
                fields[name] = seconds(fields[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from None
    fields.setdefault("type", "event")
    try:
        return msgspec.convert(fields, Event)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        known = ", ".join(get_args(_WORDS.get(name)))
        raise ValueError(f"{name}: {problem}{known and f'; one of {known}'}" if name else problem) from None
