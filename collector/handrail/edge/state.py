"""What stores' and buses' connections do goes through the dialects and the pipeline to the recorder."""

from collections.abc import Callable, Iterator
from time import perf_counter

from handrail.config import BusConfig, Config, StoreConfig
from handrail.dialects.nats import Nats
from handrail.dialects.patterns import default_keys, default_subjects, patterns_of
from handrail.dialects.redis import Redis
from handrail.dialects.waiting import Waiting
from handrail.edge.bus import BusListener
from handrail.edge.record import Recorder
from handrail.edge.store import StoreListeners
from handrail.event import Decision, Event
from handrail.pipeline import Pipeline
from handrail.wire.operation import Acknowledged, Cut, Delivered, Message, Operation, Pending, Published, Stored

Now = Callable[[], float]


class StoreEvents:
    """The observer of one store."""

    def __init__(
        self, dialect: Redis, waiting: Waiting | None, pipeline: Pipeline, recorder: Recorder, now: Now
    ) -> None:
        """`waiting` says who waits for what, where a rule in force asks for it."""
        self._dialect, self._pipeline, self._recorder, self._now = dialect, pipeline, recorder, now
        self._waiting = waiting
        self._events: list[Event] = []
        self.is_enforcing = any(watch.rule.action == "enforce" for watch in pipeline.watches)
        self.wants = dialect.wants if waiting is None else self._wants
        self.wants_channel = dialect.wants_channel

    def _wants(self, args: tuple[bytes | Cut, ...]) -> bool:
        return self._dialect.wants(args) or (self._waiting is not None and self._waiting.wants(args))

    def observe(self, seen: Pending | Operation | Message) -> None:
        """Gathers what it means, for `told`."""
        waiting = self._waiting
        if isinstance(seen, Pending):
            if waiting is not None:
                self._events += waiting.asked(seen)
        elif isinstance(seen, Operation):
            if waiting is None:
                self._events += self._dialect.read(seen)
                return
            told = list(self._dialect.read(seen)) if self._dialect.wants(seen.args) else []
            self._events += told
            for event in waiting.read(seen):
                if any(event.kind == each.kind and event.key == each.key for each in told):
                    self.told()
                    decision = self._pipeline.observe(event)  # one operation is one row
                    if decision.findings or decision.faults:
                        self._recorder.record(
                            Decision(findings=decision.findings, faults=decision.faults, refusal=decision.refusal),
                            self._now(),
                        )
                else:
                    self._events.append(event)
        elif isinstance(seen, Message):
            message = self._dialect.message(seen)
            if message is not None:
                self._events.append(message)

    def told(self) -> None:
        """What was gathered goes through the pipeline: neighbours of one kind together, which costs less than each."""
        events, self._events = self._events, []
        first = 0
        for at in range(1, len(events) + 1):
            if at < len(events) and events[at].kind == events[first].kind:
                continue
            began = perf_counter()
            decisions = self._pipeline.observe_together(events[first:at])
            self._recorder.inspected(decisions, perf_counter() - began)
            self._recorder.record_all(decisions, self._now())
            first = at

    def refuse(self, asked: Pending | Operation) -> bytes | None:
        """The text of the error where a rule refuses a write before it leaves, or a read before its reply arrives."""
        for event in self._asked(asked):
            decision = self._pipeline.observe(event)
            if decision.findings or decision.faults:
                self._recorder.record(Decision(findings=decision.findings, faults=decision.faults), self._now())
            if decision.refusal is not None:
                finding = decision.refusal.finding
                return f"HANDRAIL {finding.rule}: {finding.message}".encode()
        return None

    def _asked(self, asked: Pending | Operation) -> Iterator[Event]:
        if isinstance(asked, Pending):
            yield from self._dialect.asked(asked)
        else:
            yield from self._dialect.answered(asked)


class BusEvents:
    """The observer of one bus."""

    def __init__(self, dialect: Nats, pipeline: Pipeline, recorder: Recorder, now: Now) -> None:
        self._dialect, self._pipeline, self._recorder, self._now = dialect, pipeline, recorder, now
        self.wants = dialect.wants

    def observe(self, seen: Published | Stored | Delivered | Acknowledged) -> None:
        if isinstance(seen, Acknowledged):
            again = self._dialect.acknowledged(seen)
            if again is not None:
                self._recorder.amend(again)
            return
        for event in self._dialect.read(seen):
            _observed(self._pipeline, self._recorder, event, self._now())


def _observed(pipeline: Pipeline, recorder: Recorder, event: Event, now: float) -> None:
    began = perf_counter()
    decision = pipeline.observe(event)
    recorder.inspected((decision,), perf_counter() - began)
    recorder.record(decision, now)


def store_of(
    config: StoreConfig, agent: str | None, pipeline: Pipeline, recorder: Recorder, now: Now
) -> StoreListeners:
    """The listeners of one store with what reads them. Raises ConfigError."""
    key = f"stores.{config.name}"
    keys = patterns_of(config.state, f"{key}.state") if config.state else default_keys()
    subjects = patterns_of(config.events, f"{key}.events") if config.events else default_subjects()
    agents = tuple(listener.agent or agent for listener in config.listeners)
    dialect = Redis(config.name, keys, subjects, agents)
    is_asked_for = any(watch.rule.kind == "wait.deadlock" for watch in pipeline.watches)
    waiting = Waiting(config.name, agents) if is_asked_for else None
    return StoreListeners(config, agent, StoreEvents(dialect, waiting, pipeline, recorder, now), recorder)


def bus_of(config: BusConfig, agent: str | None, pipeline: Pipeline, recorder: Recorder, now: Now) -> BusListener:
    """The listener of one bus with what reads it. Raises ConfigError."""
    subjects = patterns_of(config.events, f"buses.{config.name}.events") if config.events else default_subjects()
    dialect = Nats(config.name, subjects, config.agent or agent)
    return BusListener(config, agent, BusEvents(dialect, pipeline, recorder, now), recorder)


def places_of(
    config: Config, pipeline: Pipeline, recorder: Recorder, now: Now
) -> Iterator[StoreListeners | BusListener]:
    """Every store and bus of a configuration. Raises ConfigError."""
    for store in config.stores:
        yield store_of(store, config.agent, pipeline, recorder, now)
    for bus in config.buses:
        yield bus_of(bus, config.agent, pipeline, recorder, now)
