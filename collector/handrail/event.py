"""The records that cross every boundary: Event, Finding, Fault, Decision.

They are flat and frozen. Their field names are the columns in ClickHouse, the names that rules match on, and the names
in the docs. Absent is None, never an invented value.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

import msgspec
import orjson
import xxhash
from mypy_extensions import mypyc_attr

from handrail.records import SEVERITIES as SEVERITIES
from handrail.records import Channel as Channel
from handrail.records import Confidence as Confidence
from handrail.records import EventFields as EventFields
from handrail.records import Fault as Fault
from handrail.records import Finding as Finding
from handrail.records import FindingSide as FindingSide
from handrail.records import Kind as Kind
from handrail.records import Manner as Manner
from handrail.records import Outcome as Outcome
from handrail.records import Refusal as Refusal
from handrail.records import Severity as Severity
from handrail.records import Side as Side

_dumps: Final = orjson.dumps
_xxh3: Final = xxhash.xxh3_128_hexdigest
_SORTED: Final = orjson.OPT_SORT_KEYS
# Bound once: compiled, a look-up in another module costs 200 instructions each time.

FIELDS: Final = EventFields.__struct_fields__
"""The names of an Event's fields, in their order."""


@mypyc_attr(acyclic=True)
class Event:
    """One fact that was seen, with the instant at which it was seen. Its fields are those of `EventFields`.

    A call that stays open, or is held, is seen twice under one `id`: with outcome `asked` while it is open, and with
    its final outcome when it is over. Only the second goes to the sinks.

    Not a Struct: twenty detectors read its fields some two hundred times an exchange, which as a class that is compiled
    costs a twelfth. It is out of the cyclic collector's sight, which is safe because what is frozen and holds a payload
    that was parsed before cannot be part of a cycle. Frozen is what types say, and the compiled build enforces.
    """

    __slots__ = FIELDS

    def __init__(
        self,
        *,
        kind: Kind,
        id: str,
        at: float,
        workflow: str | None = None,
        task: str | None = None,
        attempt: int | None = None,
        source: str | None = None,
        target: str | None = None,
        channel: Channel | None = None,
        protocol: str | None = None,
        operation: str | None = None,
        outcome: Outcome = "unknown",
        confidence: Confidence | None = None,
        side: Side | None = None,
        subject: str | None = None,
        version: str | None = None,
        payload: Any = None,
        payload_bytes: int | None = None,
        digest: str | None = None,
        tokens: int | None = None,
        status: int | str | None = None,
        duration_ms: float | None = None,
        ttfb_ms: float | None = None,
        overhead_ms: float | None = None,
        inspection_ms: float | None = None,
        transfer_ms: float | None = None,
        lag_ms: float | None = None,
        reply: Any = None,
        reply_bytes: int | None = None,
        store: str | None = None,
        key: str | None = None,
        state_version: int | str | None = None,
        agent_version: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        deadline: float | None = None,
        uninspected: str | None = None,
        reads: str | None = None,
        chain: str | None = None,
        manner: Manner | None = None,
    ) -> None:
        self.kind: Final = kind
        self.id: Final = id
        self.at: Final = at
        self.workflow: Final = workflow
        self.task: Final = task
        self.attempt: Final = attempt
        self.source: Final = source
        self.target: Final = target
        self.channel: Final = channel
        self.protocol: Final = protocol
        self.operation: Final = operation
        self.outcome: Final = outcome
        self.confidence: Final = confidence
        self.side: Final = side
        self.subject: Final = subject
        self.version: Final = version
        self.payload: Final = payload
        self.payload_bytes: Final = payload_bytes
        self.digest: Final = digest
        self.tokens: Final = tokens
        self.status: Final = status
        self.duration_ms: Final = duration_ms
        self.ttfb_ms: Final = ttfb_ms
        self.overhead_ms: Final = overhead_ms
        self.inspection_ms = inspection_ms
        self.transfer_ms: Final = transfer_ms
        self.lag_ms: Final = lag_ms
        self.reply: Final = reply
        self.reply_bytes: Final = reply_bytes
        self.store: Final = store
        self.key: Final = key
        self.state_version: Final = state_version
        self.agent_version: Final = agent_version
        self.trace_id: Final = trace_id
        self.span_id: Final = span_id
        self.deadline: Final = deadline
        self.uninspected: Final = uninspected
        self.reads: Final = reads
        self.chain: Final = chain
        self.manner: Final = manner

    def but(self, **changes: Any) -> "Event":
        """The same fact with other values in the fields that are named."""
        return Event(**self.fields() | changes)

    def answered(
        self,
        *,
        outcome: Outcome,
        status: int | str | None,
        duration_ms: float,
        ttfb_ms: float | None,
        overhead_ms: float | None,
        transfer_ms: float,
        reply: Any,
        reply_bytes: int | None,
        reads: str | None,
    ) -> "Event":
        """An asked event with the other half of its exchange."""
        return self._copy(
            subject=self.subject,
            version=self.version,
            payload=self.payload,
            digest=self.digest,
            outcome=outcome,
            status=status,
            duration_ms=duration_ms,
            ttfb_ms=ttfb_ms,
            overhead_ms=overhead_ms,
            transfer_ms=transfer_ms,
            reply=reply,
            reply_bytes=reply_bytes,
            reads=reads,
        )

    def identified(self, subject: str | None, version: str | None, digest: str | None) -> "Event":
        """The same fact, of which it is known now what its payload is."""
        return self._copy(
            subject=subject,
            version=version,
            payload=self.payload,
            digest=digest,
            outcome=self.outcome,
            status=self.status,
            duration_ms=self.duration_ms,
            ttfb_ms=self.ttfb_ms,
            overhead_ms=self.overhead_ms,
            transfer_ms=self.transfer_ms,
            reply=self.reply,
            reply_bytes=self.reply_bytes,
            reads=self.reads,
        )

    def bare(self) -> "Event":
        """The same fact without payload and reply."""
        return self._copy(
            subject=self.subject,
            version=self.version,
            payload=None,
            digest=self.digest,
            outcome=self.outcome,
            status=self.status,
            duration_ms=self.duration_ms,
            ttfb_ms=self.ttfb_ms,
            overhead_ms=self.overhead_ms,
            transfer_ms=self.transfer_ms,
            reply=None,
            reply_bytes=self.reply_bytes,
            reads=self.reads,
        )

    def _copy(
        self,
        *,
        subject: str | None,
        version: str | None,
        payload: Any,
        digest: str | None,
        outcome: Outcome,
        status: int | str | None,
        duration_ms: float | None,
        ttfb_ms: float | None,
        overhead_ms: float | None,
        transfer_ms: float | None,
        reply: Any,
        reply_bytes: int | None,
        reads: str | None,
    ) -> "Event":
        # Named one by one: compiled, this is a call and some moves, where a dictionary of them costs 40 times as much.
        return Event(
            kind=self.kind,
            id=self.id,
            at=self.at,
            workflow=self.workflow,
            task=self.task,
            attempt=self.attempt,
            source=self.source,
            target=self.target,
            channel=self.channel,
            protocol=self.protocol,
            operation=self.operation,
            outcome=outcome,
            confidence=self.confidence,
            side=self.side,
            subject=subject,
            version=version,
            payload=payload,
            payload_bytes=self.payload_bytes,
            digest=digest,
            tokens=self.tokens,
            status=status,
            duration_ms=duration_ms,
            ttfb_ms=ttfb_ms,
            overhead_ms=overhead_ms,
            inspection_ms=self.inspection_ms,
            transfer_ms=transfer_ms,
            lag_ms=self.lag_ms,
            reply=reply,
            reply_bytes=reply_bytes,
            store=self.store,
            key=self.key,
            state_version=self.state_version,
            agent_version=self.agent_version,
            trace_id=self.trace_id,
            span_id=self.span_id,
            deadline=self.deadline,
            uninspected=self.uninspected,
            reads=reads,
            chain=self.chain,
            manner=self.manner,
        )

    def values(self) -> list[Any]:
        """Every field, in the order of `FIELDS`."""
        return [
            self.kind,
            self.id,
            self.at,
            self.workflow,
            self.task,
            self.attempt,
            self.source,
            self.target,
            self.channel,
            self.protocol,
            self.operation,
            self.outcome,
            self.confidence,
            self.side,
            self.subject,
            self.version,
            self.payload,
            self.payload_bytes,
            self.digest,
            self.tokens,
            self.status,
            self.duration_ms,
            self.ttfb_ms,
            self.overhead_ms,
            self.inspection_ms,
            self.transfer_ms,
            self.lag_ms,
            self.reply,
            self.reply_bytes,
            self.store,
            self.key,
            self.state_version,
            self.agent_version,
            self.trace_id,
            self.span_id,
            self.deadline,
            self.uninspected,
            self.reads,
            self.chain,
            self.manner,
        ]

    def fields(self) -> dict[str, Any]:
        """What there is of it, by name; what is absent, and an outcome that is unknown, is left out."""
        fields = {name: value for name, value in zip(FIELDS, self.values(), strict=True) if value is not None}
        if self.outcome == "unknown":
            del fields["outcome"]
        return fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self.values() == other.values()

    __hash__ = None  # type: ignore[assignment]  # its payload has none

    def __repr__(self) -> str:
        return f"Event({', '.join(f'{name}={value!r}' for name, value in self.fields().items())})"


@mypyc_attr(acyclic=True)
class Decision:
    """What the pipeline makes of one event. `event` is the event with subject, version and digest filled in."""

    __slots__ = ("event", "faults", "findings", "refusal")

    def __init__(
        self,
        *,
        event: Event | None = None,
        findings: tuple[Finding, ...] = (),
        faults: tuple[Fault, ...] = (),
        refusal: Refusal | None = None,
    ) -> None:
        self.event: Final = event
        self.findings: Final = findings
        self.faults: Final = faults
        self.refusal: Final = refusal

    @property
    def verdict(self) -> Literal["pass", "refuse"]:
        return "pass" if self.refusal is None else "refuse"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Decision)
            and self.event == other.event
            and self.findings == other.findings
            and self.faults == other.faults
            and self.refusal == other.refusal
        )

    __hash__ = None  # type: ignore[assignment]  # its event has none

    def __repr__(self) -> str:
        return f"Decision({self.event!r}, {self.findings!r}, {self.faults!r}, {self.refusal!r})"


def canonical(payload: Any) -> bytes:
    """JSON value to bytes that do not depend on key order or white space. Raises TypeError for what is not JSON."""
    try:
        return _dumps(payload, option=_SORTED)
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
    return _xxh3(canonical(payload))


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


_WORDS: dict[str, Any] = {
    "kind": Kind,
    "channel": Channel,
    "outcome": Outcome,
    "confidence": Confidence,
    "side": Side,
    "manner": Manner,
}


def to_json(record: Event | Finding | Fault, *, payloads: bool = False) -> bytes:
    """A record to one JSON object, every field present (absent is null), times as RFC 3339.

    Payloads are left out unless asked for: they may hold what nobody agreed to store.
    """
    out: dict[str, Any]
    if isinstance(record, Fault):
        out = {"type": "fault", "component": record.component, "reason": record.reason, "message": record.message}
        out["at"] = None if record.at is None else rfc3339(record.at)
        return orjson.dumps(out)
    if isinstance(record, Finding):
        out = {"type": "finding", **msgspec.structs.asdict(record)}
    else:
        out = {"type": "event", **dict.fromkeys(FIELDS), "outcome": "unknown", **record.fields()}
        if record.deadline is not None:
            out["deadline"] = rfc3339(record.deadline)
        if not payloads:
            out["payload"] = out["reply"] = None
    out["at"] = rfc3339(record.at)
    try:
        return orjson.dumps(out, default=str)
    except TypeError:
        return json.dumps(out, default=str, separators=(",", ":")).encode()


def event_from(value: Mapping[str, Any]) -> Event:
    """A JSON object as `to_json` writes it to an Event.

    Unknown keys are ignored so that newer recordings stay readable. Raises ValueError naming the field that is wrong.
    """
    fields = {key: item for key, item in value.items() if item is not None}
    if fields.pop("type", "event") != "event":
        raise ValueError(f"type: Invalid value {value['type']!r}")
    for name in ("at", "deadline"):
        if name in fields:
            try:
                fields[name] = seconds(fields[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: {error}") from None
    try:
        return event_with(msgspec.convert(fields, EventFields))
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        known = ", ".join(get_args(_WORDS.get(name)))
        raise ValueError(f"{name}: {problem}{known and f'; one of {known}'}" if name else problem) from None


def event_with(fields: EventFields) -> Event:
    """The event of which these are the fields."""
    return Event(**msgspec.structs.asdict(fields))
