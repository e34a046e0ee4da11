"""An exchange becomes events: who hands what to whom, in one protocol.

A dialect reads an exchange in two steps, because a call must be seen while it is open: `ask` reads the request half (a
deadline starts to run, an enforced rule decides), `answer` completes the same events with the reply. The first dialect
that claims a request reads its reply; `http` claims what nobody else does: an exchange is always at least one event.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, cast
from urllib.parse import quote, unquote

from handrail.event import Channel, Confidence, Event, Fault, Kind, Outcome, seconds
from handrail.wire import PLACE_LENGTH, Body, Exchange, is_trace, place

Asked = tuple["Dialect", tuple[Event, ...]]


class Dialect(Protocol):
    """A reader that knows who hands what to whom in one protocol."""

    name: str

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """The request half as events with outcome `asked`; empty where the request is not of this protocol."""
        ...

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """The events of the whole exchange; those that `ask` gave keep their ids."""
        ...


class Remembering(Protocol):
    """A dialect that knows of some events only later what came of them."""

    def advance(self, now: float) -> Iterable[Event]:
        """Time passed: the final events of what is over by now."""
        ...

    def end(self, silent: Outcome) -> Iterable[Event]:
        """Nothing more comes: the final events of everything that is open; `silent` where nothing else is known."""
        ...


class Reader:
    """Runs the dialects of a route over an exchange, and contains what they raise."""

    def __init__(self, dialects: Sequence[Dialect], fallback: Dialect) -> None:
        self._fallback = fallback
        self._by_name = {dialect.name: dialect for dialect in dialects}
        self._all = tuple(dialects)
        # By name: mypyc cannot compile a protocol that is looked for when the program runs.
        self._remembering: tuple[Remembering, ...] = tuple(
            cast(Any, dialect) for dialect in dialects if hasattr(dialect, "advance") and hasattr(dialect, "end")
        )
        self._chosen: dict[tuple[str, ...], tuple[Dialect, ...]] = {(): self._all}

    def ask(self, exchange: Exchange) -> tuple[Asked, list[Fault]]:
        """Which dialect reads this exchange, and the events of the request half."""
        names = exchange.route.dialects
        chosen = self._chosen.get(names)
        if chosen is None:
            chosen = self._chosen[names] = tuple(self._by_name[name] for name in names if name in self._by_name)
        faults: list[Fault] = []
        for dialect in chosen:
            try:
                events = dialect.ask(exchange)
            except Exception as error:  # our own failure must not cost the event: the fallback still gives one
                faults.append(_broken(dialect, error, exchange.request.at))
                continue
            if events:
                return (dialect, events), faults
        return (self._fallback, self._fallback.ask(exchange)), faults

    def answer(self, exchange: Exchange, asked: Asked) -> tuple[Event | Fault, ...]:
        """The events of the whole exchange; never none for an id that was asked."""
        dialect, events = asked
        try:
            return tuple(dialect.answer(exchange, events))
        except Exception as error:
            return (_broken(dialect, error, exchange.ended), *(complete(event, exchange) for event in events))

    def advance(self, now: float) -> list[Event | Fault]:
        """Time passed: what dialects know by now of events that they left open."""
        read: list[Event | Fault] = []
        for dialect in self._remembering:
            try:
                read += dialect.advance(now)
            except Exception as error:
                read.append(_broken(cast(Dialect, dialect), error, now))
        return read

    def end(self, silent: Outcome) -> list[Event | Fault]:
        """Nothing more comes: the final events of what dialects left open."""
        read: list[Event | Fault] = []
        for dialect in self._remembering:
            try:
                read += dialect.end(silent)
            except Exception as error:
                read.append(_broken(cast(Dialect, dialect), error, 0.0))
        return read


def _broken(dialect: Dialect, error: Exception, at: float) -> Fault:
    return Fault(component=f"dialect.{dialect.name}", reason="error", message=f"{type(error).__name__}: {error}", at=at)


_OUTCOME_OF_END: Mapping[str, Outcome] = {
    "client_abort": "interrupted",
    "upstream_refused": "failed",
    "upstream_reset": "interrupted",
    "upstream_invalid": "failed",
    "timeout": "timeout",
    "refused": "rejected",
    "shutdown": "interrupted",
}


def outcome_of(exchange: Exchange) -> Outcome:
    """What HTTP alone says of an exchange: 202 accepted, other 2xx and 3xx completed, 4xx rejected, 5xx failed."""
    reply = exchange.reply
    if exchange.end != "replied":
        return _OUTCOME_OF_END[exchange.end]
    if reply is None:
        return "unknown"
    status = reply.status
    if status < 400:
        return "accepted" if status == 202 else "completed"
    if status < 500:
        return "timeout" if status == 408 else "rejected"
    return "timeout" if status == 504 else "failed"


NAME_LENGTH: Final = PLACE_LENGTH
"""Names and ids are cut to this many characters: they become keys that are kept."""

_INT64: Final = range(-(2**63), 2**63)


def text(value: object) -> str | None:
    """What may stand for a name or an id: a string that is not empty, or a whole number. None for anything else."""
    if type(value) is str:
        return value[:NAME_LENGTH] or None
    if type(value) is int:
        return str(value) if value in _INT64 else None
    if type(value) is float and value.is_integer():
        return str(int(value))
    return None


def whole(value: object) -> int | None:
    """A count: a whole number from 0 to 2⁶³-1, also written as a float (protobuf does) or in digits."""
    if value is None:
        return None
    is_digits = type(value) is str and value.isascii() and value.isdigit() and len(value) < 20
    if is_digits or (type(value) is float and value.is_integer()):
        value = int(value)  # type: ignore[call-overload]
    return value if type(value) is int and 0 <= value < 2**63 else None


def state(value: object) -> int | str | None:
    """A state version: a whole number where it is one, else its text."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int:
        return value if value in _INT64 else str(value)
    return text(value)


def instant(value: object) -> float | None:
    """RFC 3339, or seconds since the epoch; None for anything else."""
    if value is None:
        return None
    if type(value) not in (str, int, float):
        return None
    try:
        return seconds(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return None


def schema_named(value: object) -> tuple[str | None, str | None]:
    """`subject@version`, or a URI that ends in `<subject>/<version>` or `<subject>/<version>.json`, to both.

    A version in a URI begins with a digit, or `v` and a digit: a dialect's `…/draft/2020-12/schema` names none.
    """
    if type(value) is not str:
        return None, None
    if "/" in value:
        named = _SCHEMA_URI.search(value)
        return (unquote(named[1])[:NAME_LENGTH], named[2][:NAME_LENGTH]) if named else (None, None)
    subject, _, version = value.rpartition("@")
    return (text(subject), text(version)) if subject else (None, None)


_SCHEMA_URI = re.compile(r"(?:^|/)([^/?#]+)/(v?[0-9][\w.+-]*?)(?:\.json)?#?\Z")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-|\Z)")
_NO_TRACE: Final = "0" * 32
_NO_PARENT: Final = "0" * 16
_BAGGAGE_KEYS: Final = (b"handrail-workflow", b"workflow")


def trace_of(traceparent: bytes) -> tuple[str | None, str | None]:
    """W3C `traceparent` to trace id and parent id; (None, None) where it is not one."""
    if is_trace(traceparent):
        # What every sender of today writes; a third of what the expression costs, which knows those of tomorrow too.
        return _ids_of(traceparent)
    match = _TRACEPARENT.match(traceparent)
    return (match[1].decode(), match[2].decode()) if match else (None, None)


def _ids_of(trace: bytes) -> tuple[str | None, str | None]:
    """The ids in a traceparent that `is_trace`; (None, None) where one is nought, or the version ff, which is none."""
    written = trace.decode()
    trace_id, parent = written[3:35], written[36:52]
    if trace_id == _NO_TRACE or parent == _NO_PARENT or written.startswith("ff"):
        return None, None
    return trace_id, parent


def workflow_in_baggage(baggage: bytes) -> str | None:
    """The workflow that a W3C `baggage` header names, None where it names none."""
    if b"workflow" not in baggage:
        return None
    members: dict[bytes, bytes] = {}
    for member in baggage.split(b","):
        key, _, value = member.partition(b";")[0].partition(b"=")
        members.setdefault(key.strip(), value.strip())
    for key in _BAGGAGE_KEYS:
        if members.get(key):
            return text(unquote(members[key].decode("latin-1")))
    return None


CHAIN_KEY = b"handrail-chain"
CHAIN_AGENTS = 16
CHAIN_BYTES = 512
"""What the chain may take of a `baggage` header, which has 8,192 bytes for everybody; the oldest agents go first."""


def chain_in(baggage: bytes) -> str | None:
    """W3C `baggage` to the agents that the work came through, `a|b|c`; None where it names none."""
    if CHAIN_KEY not in baggage:
        return None
    for member in baggage.split(b","):
        key, _, value = member.partition(b";")[0].partition(b"=")
        if key.strip() == CHAIN_KEY:
            names = [name for name in value.strip()[:CHAIN_BYTES].decode("latin-1").split("|") if name]
            return "|".join(unquote(name) for name in names[-CHAIN_AGENTS:]) or None
    return None


def with_chain(baggage: bytes | None, source: str) -> bytes:
    """A `baggage` header's value with the sender at the end of the chain; other members stay as they are."""
    members = [member for member in (baggage or b"").split(b",") if member.strip()]
    others = [member for member in members if member.partition(b"=")[0].strip() != CHAIN_KEY]
    names = (chain_in(baggage) or "").split("|") if baggage else []
    source = source.replace("|", "/")
    if names[-1:] != [source]:
        names.append(source)
    coded = [quote(name, safe="", errors="replace")[:CHAIN_BYTES] for name in names if name][-CHAIN_AGENTS:]
    while len(coded) > 1 and sum(map(len, coded)) + len(coded) > CHAIN_BYTES:
        del coded[0]
    return b",".join([*others, CHAIN_KEY + b"=" + "|".join(coded).encode()])


def _header(value: bytes) -> str | None:
    return text(value.decode("utf-8", "replace").strip())


def place_of(exchange: Exchange) -> str:
    """Method and path, as the operation of a request that names none. Queries stay out: they carry secrets."""
    request = exchange.request
    return place(request.method, request.target) if request.known is None else request.known.place


_TOLD: Final = (
    "workflow",
    "task",
    "attempt",
    "source",
    "target",
    "subject",
    "version",
    "digest",
    "tokens",
    "state_version",
    "agent_version",
    "trace_id",
    "span_id",
    "deadline",
)


class Told:
    """What a body says of its handoff, by the names of Event's fields; filled in by its dialect.

    A class, which costs `begin` and the envelope 2,000 instructions less than a dictionary of the same.
    """

    __slots__ = _TOLD

    def __init__(
        self,
        *,
        workflow: str | None = None,
        task: str | None = None,
        attempt: int | None = None,
        source: str | None = None,
        target: str | None = None,
        subject: str | None = None,
        version: str | None = None,
        digest: str | None = None,
        tokens: int | None = None,
        state_version: int | str | None = None,
        agent_version: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        deadline: float | None = None,
    ) -> None:
        self.workflow = workflow
        self.task = task
        self.attempt = attempt
        self.source = source
        self.target = target
        self.subject = subject
        self.version = version
        self.digest = digest
        self.tokens = tokens
        self.state_version = state_version
        self.agent_version = agent_version
        self.trace_id = trace_id
        self.span_id = span_id
        self.deadline = deadline

    def fields(self) -> dict[str, Any]:
        """What there is of it, by name."""
        return {name: value for name in _TOLD if (value := getattr(self, name)) is not None}


def begin(
    exchange: Exchange,
    protocol: str,
    operation: str | None,
    said: Told,
    body: Body,
    *,
    payload: Any = None,
    kind: Kind = "handoff",
    channel: Channel = "call",
    number: int | None = None,
) -> Event:
    """The asked event of a request. `said` is what the body says.

    Headers win over the body, the body over the route. `handrail-workflow`, `-task`, `-attempt`, `-deadline` and
    `-schema` are the caller's own words to us; then baggage; then the body; a trace id stands for a workflow where
    nothing better does. `number` tells apart the events of one exchange.
    """
    request, route = exchange.request, exchange.route
    workflow, task, attempt, deadline = said.workflow, said.task, said.attempt, said.deadline
    subject, version = said.subject, said.version
    trace_id, span_id = said.trace_id, said.span_id
    if request.trace is None:
        value = request.headers.get(b"traceparent")
        traced = (None, None) if value is None else trace_of(value)
    else:
        traced = _ids_of(request.trace)
    if traced[0] is not None:
        trace_id, span_id = traced
    chain: str | None = None
    named: str | None = None
    reads: str | None = None
    if request.known is None or not request.known.is_silent:
        headers = request.headers
        baggage = headers.get(b"baggage")
        if baggage is not None:
            chain = chain_in(baggage)
        if (value := headers.get(b"handrail-workflow")) is not None:
            workflow = _header(value) or workflow
        elif baggage is not None:
            workflow = workflow_in_baggage(baggage) or workflow
        if (value := headers.get(b"handrail-task")) is not None:
            task = _header(value) or task
        if (value := headers.get(b"handrail-attempt")) is not None:
            tried = whole(_header(value))
            attempt = attempt if tried is None else tried
        if (value := headers.get(b"handrail-deadline")) is not None:
            due = instant(_header(value))
            deadline = deadline if due is None else due
        if (value := headers.get(b"handrail-schema")) is not None:
            named = _header(value)
        if (value := headers.get(b"handrail-accept")) is not None:
            reads = _header(value)
    if workflow is None:
        workflow = trace_id
    if body.reason is not None and body.reason != "duplicate_key":
        payload = None
    if named is not None:
        subject, version = schema_named(named) if "@" in named else (named, None)
    elif type(payload) is dict:
        if subject is None and "$schema" in payload:
            subject, version = schema_named(payload["$schema"])
        if version is None and "schema_version" in payload:
            version = text(payload["schema_version"])
    source, target = said.source, route.instead or said.target
    confidence: Confidence | None = "exact"
    if source is None or target is None:
        source, target = source or route.source, target or route.target
        confidence = None if source is None or target is None else "inferred"
    return Event(
        kind=kind,
        id=exchange.id if number is None else f"{exchange.id}.{number}",
        at=request.end or request.at,
        workflow=workflow,
        task=task,
        attempt=attempt,
        source=source,
        target=target,
        channel=channel,
        protocol=protocol,
        operation=operation,
        outcome="asked",
        confidence=confidence,
        side=route.side,
        subject=subject,
        version=version,
        payload=payload,
        payload_bytes=request.size if number is None else None,
        digest=said.digest,
        tokens=said.tokens,
        state_version=said.state_version,
        agent_version=said.agent_version,
        trace_id=trace_id,
        span_id=span_id,
        deadline=deadline,
        uninspected=body.reason if request.size or request.cut is not None else None,
        reads=reads,
        chain=chain,
    )


def complete(
    event: Event,
    exchange: Exchange,
    *,
    outcome: Outcome | None = None,
    status: int | str | None = None,
    reply: Any = None,
    **others: object,
) -> Event:
    """The asked event with the reply's half: times, sizes, what is given, and by default HTTP's outcome and status."""
    request, answer = exchange.request, exchange.reply
    if others:
        event = event.but(**others)
    transfer = request.end - request.at
    ttfb_ms: float | None = None
    reply_bytes: int | None = None
    reads = event.reads
    if answer is not None:
        is_plain = answer.known is not None and answer.known.is_json and answer.known.is_silent
        if is_plain or b"event-stream" not in answer.headers.get(b"content-type", b""):
            transfer += answer.end - answer.at
        if status is None:
            status = answer.status
        ttfb_ms = max(0.0, answer.at - request.end) * 1000
        reply_bytes = answer.size
        if not is_plain and (value := answer.headers.get(b"handrail-accept")) is not None:
            reads = _header(value)
    return event.answered(
        outcome=outcome_of(exchange) if outcome is None else outcome,
        status=event.status if status is None else status,
        duration_ms=max(0.0, exchange.ended - request.at) * 1000,
        ttfb_ms=ttfb_ms,
        overhead_ms=exchange.overhead_ms,
        transfer_ms=max(0.0, transfer) * 1000,
        reply=event.reply if reply is None else reply,
        reply_bytes=reply_bytes,
        reads=reads,
    )
