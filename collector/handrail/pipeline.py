"""The order of things: one event in, one Decision out, and never any I/O.

Event ─▶ subject, version, digest ─▶ rules that match ─▶ detectors ─▶ Decision
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast, get_args

from handrail.config import Config, OtlpConfig
from handrail.dialects import Asked, Dialect, Reader
from handrail.dialects.a2a import A2a
from handrail.dialects.anthropic import Anthropic
from handrail.dialects.cloudevents import CloudEvents
from handrail.dialects.conventions import Conventions
from handrail.dialects.custom import Custom
from handrail.dialects.envelope import Envelope
from handrail.dialects.gemini import Gemini
from handrail.dialects.http import Http
from handrail.dialects.llm import Conversations, ModelDialect
from handrail.dialects.mcp import Mcp
from handrail.dialects.openai import OpenAi
from handrail.dialects.spans import Sightings, Spans, Told
from handrail.event import Decision, Event, Fault, Finding, Kind, Outcome, Refusal, digest_of
from handrail.rules import Watch
from handrail.schema.registry import Registry
from handrail.wire import Exchange
from handrail.wire.otlp import Log

KINDS_OF_EVENT: tuple[str, ...] = get_args(Kind)

REFUSAL_STATUS = {
    "schema.violation": 422,
    "schema.unknown": 422,
    "schema.drift": 422,
    "schema.mismatch": 422,
    "output.duplicate": 409,
    "state.stale_read": 409,
    "handoff.partial": 409,
    "handoff.loop": 508,
    "graph.cycle": 508,
    "wait.deadlock": 508,
    "budget.exceeded": 504,
}


class Pipeline:
    """Turns each Event into a Decision.

    A call is observed twice under one id, asked and final; a detector is shown each at the sights it asked for. A
    detector that raises is contained and counted, and switched off after `failures` times in a row: our own failure
    never becomes the traffic's. Cost per event: one dictionary operation and one call for each detector in force.
    """

    def __init__(
        self, watches: Sequence[Watch], registry: Registry, *, open_limit: int = 100_000, failures: int = 10
    ) -> None:
        self.registry = registry
        self.watches = tuple(watches)
        self._limit = failures
        self._open: OrderedDict[str, None] = OrderedDict()
        self._open_limit = open_limit
        self._budgets = tuple(watch for watch in self.watches if hasattr(watch.detector, "due"))
        self._asked = self._seeing("first", "asked")
        self._final_of_asked = self._seeing("final")
        self._whole = self._seeing("first", "final")
        self.sightings: Sightings | None = None
        """Where spans come in too: what keeps a handoff from being told twice."""

    def _seeing(self, *sights: str) -> Mapping[str, tuple[Watch, ...]]:
        """The detectors to show an event of each kind to, at these sights."""
        return {
            kind: tuple(
                watch
                for watch in self.watches
                if watch.detector.sees & set(sights) and kind in getattr(watch.detector, "kinds", KINDS_OF_EVENT)
            )
            for kind in KINDS_OF_EVENT
        }

    def observe(self, event: Event) -> Decision:
        """What this event means. Raises nothing; what went wrong inside is in `faults`.

        A handoff that a span has told already means nothing more: the Decision is empty.
        """
        faults: list[Fault] = []
        if (
            self.sightings is not None
            and event.kind == "handoff"
            and event.protocol != "otlp"
            and not self.sightings.on_wire(event)
        ):
            return Decision()
        if event.outcome == "asked":
            event = self._identify(event, faults)
            opened = self._open
            opened[event.id] = None
            if len(opened) > self._open_limit:
                opened.popitem(last=False)
                faults.append(Fault(component="pipeline", reason="open_limit", at=event.at))
            watches = self._asked.get(event.kind, ())
        elif self._open.pop(event.id, _ABSENT) is None:
            watches = self._final_of_asked.get(event.kind, ())
        else:
            event = self._identify(event, faults)
            watches = self._whole.get(event.kind, ())
        findings: list[Finding] = []
        refusal: Refusal | None = None
        for watch in watches:
            if watch.off:
                continue
            where = watch.where
            try:
                if where is not None and not where(event):
                    continue
                found = watch.detector.observe(event)
                fresh = tuple(found) if found else ()
            except Exception as error:  # containment: our own failure must not become the traffic's
                self._failed(watch, error, event.at, faults)
                continue
            if watch.failures:
                watch.failures = 0
            if not fresh:
                continue
            findings += fresh
            if refusal is None and watch.rule.action == "enforce" and event.outcome == "asked":
                status = REFUSAL_STATUS.get(watch.rule.kind)
                if status is not None:
                    refusal = Refusal(status=status, finding=fresh[0])
        return Decision(event=event, findings=tuple(findings), faults=tuple(faults), refusal=refusal)

    def observe_together(self, events: Sequence[Event]) -> list[Decision]:
        """What `observe` makes of each, in their order; one detector after another where the events are of one kind and
        over, because a detector's code and tables stay in the processor's caches for all of them."""
        kind = events[0].kind if events else "handoff"
        is_alike = self.sightings is None
        for event in events:
            if event.kind != kind or event.outcome == "asked" or event.id in self._open:
                is_alike = False
                break
        if not is_alike:
            return [self.observe(event) for event in events]
        known: list[Event] = []
        # What few events have is not made for all: the place of an event to what there is of it.
        findings: dict[int, list[Finding]] = {}
        faults: dict[int, list[Fault]] = {}
        failed: list[Fault] = []
        for event in events:
            known.append(self._identify(event, failed))
            if failed:
                faults[len(known) - 1] = failed
                failed = []
        for watch in self._whole.get(kind, ()):
            if watch.off:
                continue
            where, observe, failures = watch.where, watch.detector.observe, watch.failures
            for index, event in enumerate(known):
                try:
                    if where is not None and not where(event):
                        continue
                    found = observe(event)
                    if found:
                        findings.setdefault(index, []).extend(found)
                except Exception as error:  # containment, as in `observe`
                    failures = self._failed(watch, error, event.at, faults.setdefault(index, []))
                    if failures >= self._limit:
                        break
                    continue
                if failures:
                    watch.failures = failures = 0
        if not findings and not faults:
            return [Decision(event=event) for event in known]
        return [
            Decision(event=event, findings=tuple(findings.get(index, ())), faults=tuple(faults.get(index, ())))
            for index, event in enumerate(known)
        ]

    def due(self, event: Event, *, enforced: bool = False) -> float | None:
        """Until when a call that is open has time, in seconds since the epoch; None where no budget says so.

        `enforced`: only the budgets of rules in enforce mode count.
        """
        dues = [
            due
            for watch in self._budgets
            if not watch.off and (watch.rule.action == "enforce" or not enforced)
            if (due := watch.detector.due(event)) is not None  # type: ignore[attr-defined]
        ]
        return min(dues, default=None)

    def advance(self, now: float) -> Decision:
        """Time passed, to `now` in seconds since the epoch."""
        findings: list[Finding] = []
        faults: list[Fault] = []
        for watch in self.watches:
            if not watch.off:
                try:
                    found = watch.detector.advance(now)
                    if found:
                        findings += tuple(found)
                except Exception as error:
                    self._failed(watch, error, now, faults)
        return Decision(findings=tuple(findings), faults=tuple(faults))

    def recorded(self) -> None:
        """What comes is a recording: nobody waits, so a finding may wait for all that it can say."""
        for watch in self.watches:
            if hasattr(watch.detector, "is_recorded"):
                watch.detector.is_recorded = True

    def close(self, now: float) -> Decision:
        """Nothing comes any more: detectors that hold facts in case others come late take up what they hold.

        `now` is the last instant that was seen; a deadline after it was not missed.
        """
        findings: list[Finding] = []
        faults: list[Fault] = []
        for watch in self.watches:
            close: Callable[[], Iterable[Finding]] | None = getattr(watch.detector, "close", None)
            if watch.off or close is None:
                continue
            try:
                findings += close()
            except Exception as error:
                self._failed(watch, error, now, faults)
        return Decision(findings=tuple(findings), faults=tuple(faults))

    def settle(self) -> Decision:
        """Nothing more will be seen, as at the end of a recording: what waits for late news is decided without it."""
        findings: list[Finding] = []
        faults: list[Fault] = []
        for watch in self.watches:
            settle = getattr(watch.detector, "settle", None)
            if settle is not None and not watch.off:
                try:
                    findings += tuple(settle())
                except Exception as error:
                    faults.append(_fault(f"detector.{watch.rule.id}", error, 0.0))
        return Decision(findings=tuple(findings), faults=tuple(faults))

    def _identify(self, event: Event, faults: list[Fault]) -> Event:
        """Subject, version and digest where the wire did not say them.

        A payload that could not be read has a subject all the same: which schema it failed to be is worth knowing.
        """
        subject, version, digest = event.subject, event.version, event.digest
        if event.payload is None and event.uninspected is None:
            return event
        try:
            subject, version = self.registry.select(event)
        except Exception as error:
            faults.append(_fault("registry", error, event.at))
        if digest is None and event.payload is not None:
            try:
                digest = digest_of(event.payload)
            except Exception as error:
                faults.append(_fault("digest", error, event.at))
        if subject == event.subject and version == event.version and digest == event.digest:
            return event
        return event.identified(subject, version, digest)

    def _failed(self, watch: Watch, error: Exception, at: float, faults: list[Fault]) -> int:
        """Counts a failure; how many there were in a row. The rule is off from the last one that is allowed."""
        watch.failures += 1  # only `observe` resets it: a tick with nothing due proves nothing
        faults.append(_fault(f"detector.{watch.rule.id}", error, at))
        if watch.failures >= self._limit:
            watch.off = True
            faults.append(Fault(component=f"detector.{watch.rule.id}", reason="disabled", at=at))
        failures: int = watch.failures
        return failures


def _fault(component: str, error: Exception, at: float) -> Fault:
    return Fault(component=component, reason="error", message=f"{type(error).__name__}: {error}", at=at)


_ABSENT: Final = object()


OPEN_SECONDS: Final = 0.05
"""A call that is open for longer is observed while it is; a shorter one only when it is over."""


def is_long(exchange: Exchange) -> bool:
    """Whether an exchange that is over was open for long enough to be observed while it was."""
    request = exchange.request
    return exchange.ended - (request.end or request.at) >= OPEN_SECONDS


class Inspector:
    """Exchanges through the dialects into the pipeline: the same steps for the live proxy and for replay."""

    def __init__(self, reader: Reader, pipeline: Pipeline, spans: Spans | None = None) -> None:
        self.reader = reader
        self.pipeline = pipeline
        self.spans = spans

    def open(self, exchange: Exchange) -> tuple[Asked, list[Decision]]:
        """The request is complete. The Decisions carry the refusal where a rule in enforce mode made one."""
        (dialect, events), faults = self.reader.ask(exchange)
        decisions = [self.pipeline.observe(event) for event in events]
        known = tuple(decision.event or event for decision, event in zip(decisions, events, strict=True))
        if faults:
            decisions.append(Decision(faults=tuple(faults)))
        return (dialect, known), decisions

    def called(self, exchange: Exchange, asked: Asked, calls: Any, at: float) -> list[Decision]:
        """Calls of tools are complete while the reply of a model still comes, see `ModelDialect.called`."""
        return [self.pipeline.observe(event) for event in cast(ModelDialect, asked[0]).called(exchange, calls, at)]

    def refuse(self, exchange: Exchange, asked: Asked) -> None:
        """A rule has kept the reply of a model from its agent."""
        cast(ModelDialect, asked[0]).refuse(exchange)

    def close(self, exchange: Exchange, asked: Asked) -> Iterator[Decision]:
        """The exchange is over, with or without a reply."""
        for read in self.reader.answer(exchange, asked):
            if isinstance(read, Fault):
                yield Decision(faults=(read,))
            else:
                yield self.pipeline.observe(read)

    def whole(self, exchange: Exchange) -> Iterator[Decision]:
        """An exchange that is over and was never opened.

        A short one is observed once, with its final outcome; a long one as if it had been opened in time, so that what
        is found does not hang on when somebody looked.
        """
        if is_long(exchange):
            asked, decisions = self.open(exchange)
            yield from decisions
        else:
            asked, faults = self.reader.ask(exchange)
            if faults:
                yield Decision(faults=tuple(faults))
        yield from self.close(exchange, asked)

    def together(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        """Short exchanges that are over and were never opened, in their order: what `whole` makes of each.

        Every body is parsed before any is read, and every event is there before any is observed. Nothing depends on the
        difference but time: code and tables stay in the processor's caches, 33 µs an exchange in eights where one after
        another takes 51.
        """
        for exchange in exchanges:
            exchange.request.json(exchange.route.limits)
        read: list[Event | Fault] = []
        for exchange in exchanges:
            try:
                asked, faults = self.reader.ask(exchange)
                read += faults
                read += self.reader.answer(exchange, asked)
            except Exception as error:  # one exchange that we fail at must not cost the others
                read.append(_fault("inspector", error, exchange.ended))
        decisions: list[Decision] = []
        seen: list[Event] = []
        for each in read:
            if isinstance(each, Event):
                seen.append(each)
            else:
                decisions.append(Decision(faults=(each,)))
        try:
            decisions += self.pipeline.observe_together(seen)
        except Exception as error:
            decisions += [Decision(faults=(_fault("inspector", error, each.at),)) for each in seen]
        return decisions

    def advance(self, now: float) -> Decision:
        return self.pipeline.advance(now)

    def due(self, now: float) -> list[Decision]:
        """Time passed: events that were left open and are over by now. To be called before `advance`."""
        decisions = [self._observed(read) for read in self.reader.advance(now)]
        if self.spans is not None:
            decisions += self._in_spans(self.spans.advance(now))
        return decisions

    def end(self, silent: Outcome = "dropped", *, spans: bool = True) -> list[Decision]:
        """Nothing more comes: every event that was left open, with what is known of it, `silent` where nothing is.

        `spans` says whether what spans have told is wanted too.
        """
        decisions = [self._observed(read) for read in self.reader.end(silent)]
        if spans and self.spans is not None:
            decisions += self._in_spans(self.spans.end())
        return decisions

    def told(self, spans: Iterable[Told], logs: Iterable[Log], now: float) -> list[Decision]:
        """Spans and log records arrived. What spans say becomes known by `due` and `end`; events in logs do at once."""
        if self.spans is None:
            return []
        self.spans.add(spans, now)
        return [self.pipeline.observe(event) for event in self.spans.add_logs(logs, now)]

    def _in_spans(self, read: list[Event | Fault]) -> Iterator[Decision]:
        """Handoffs that spans told and the wire did not."""
        for each in read:
            if isinstance(each, Fault) or self.spans is None or self.spans.sightings.in_spans(each):
                yield self._observed(each)

    def _observed(self, read: Event | Fault) -> Decision:
        return Decision(faults=(read,)) if isinstance(read, Fault) else self.pipeline.observe(read)


def refusal_in(decisions: Iterable[Decision]) -> Refusal | None:
    """The first refusal among Decisions."""
    for decision in decisions:
        if decision.refusal is not None:
            return decision.refusal
    return None


def build(config: Config, registry: Registry, watches: Sequence[Watch], file: str = "configuration") -> Inspector:
    """The reader of every dialect in front of a pipeline. `file` names the configuration in errors.

    The operator's own dialects come first, then those that headers or a method give away, then what any JSON may be.
    Raises ConfigError naming the key of a JMESPath that is wrong.
    """
    own = [Custom(entry, f"custom[{index}]", file) for index, entry in enumerate(config.custom)]
    envelope = Envelope(config.envelope, file)
    # An envelope is told apart by keys of its body, which no message of MCP or A2A has, so that it is asked first; one
    # that is looked for somewhere inside the body could be found in such a message.
    mcp = Mcp(config.mcp, registry)
    known: list[Dialect] = [envelope, mcp, A2a()] if config.envelope.path is None else [mcp, A2a(), envelope]
    spans = Spans(config.otlp or OtlpConfig(), Conventions(config.handoffs), mcp.agent)
    conversations = Conversations(config.handoffs, registry, spans)
    models = [ModelDialect(api, conversations, spans) for api in (OpenAi(), Anthropic(), Gemini())]
    reader = Reader([*own, CloudEvents(), *known, *models], Http())
    inspector = Inspector(reader, Pipeline(watches, registry), spans)
    if config.otlp is not None:
        inspector.pipeline.sightings = spans.sightings
    return inspector


def replay_exchanges(exchanges: Iterable[Exchange], inspector: Inspector) -> Iterator[Decision]:
    """Recorded exchanges through the steps of live traffic: a long one opens and closes at its own instants.

    Time passes up to each instant before it is looked at, and no further than the last one: a deadline that was still
    open when the recording ended was not missed in it.
    """
    steps: list[tuple[float, Exchange, bool]] = []
    for exchange in exchanges:
        opened = exchange.request.end or exchange.request.at
        if is_long(exchange):
            steps.append((opened, exchange, True))
        steps.append((max(opened, exchange.ended), exchange, False))
    steps.sort(key=lambda step: step[0])  # stable: equal instants keep the order of the recording
    asked: dict[int, Asked] = {}
    now: float | None = None
    inspector.pipeline.recorded()
    for at, exchange, is_open in steps:
        if at != now:
            now = at
            yield from inspector.due(now)
            yield from _told(inspector.advance(now))
        if is_open:
            asked[id(exchange)], decisions = inspector.open(exchange)
            yield from decisions
        elif (known := asked.pop(id(exchange), None)) is not None:
            yield from inspector.close(exchange, known)
        else:
            yield from inspector.whole(exchange)
    if now is not None:
        yield from _told(inspector.pipeline.close(now))


def replay_events(events: Iterable[Event], inspector: Inspector) -> Iterator[Decision]:
    """Recorded events in the order of their instants, each observed whole; time passes as in `replay_exchanges`."""
    now: float | None = None
    inspector.pipeline.recorded()
    for event in sorted(events, key=lambda event: event.at):
        if event.at != now:
            now = event.at
            yield from _told(inspector.advance(now))
        yield inspector.pipeline.observe(event)
    if now is not None:
        yield from _told(inspector.pipeline.close(now))


def _told(decision: Decision) -> tuple[Decision, ...]:
    return (decision,) if decision.findings or decision.faults else ()
