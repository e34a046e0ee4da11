"""An exchange becomes events: who hands what to whom, in one protocol.

A dialect reads an exchange in two steps, because a call must be seen while it is open: `ask` reads the request half (a
deadline starts to run, an enforced rule decides), `answer` completes the same events with the reply. The first dialect
that claims a request reads its reply; `http` claims what nobody else does, so one exchange is always at least one event.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from handrail.event import Event, Fault, Outcome
from handrail.wire import Exchange

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


class Reader:
    """Runs the dialects of a route over an exchange, and contains what they raise."""

    def __init__(self, dialects: Sequence[Dialect], fallback: Dialect) -> None:
        self._fallback = fallback
        self._by_name = {dialect.name: dialect for dialect in dialects}
        self._all = tuple(dialects)
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

    def answer(self, exchange: Exchange, asked: Asked) -> Iterator[Event | Fault]:
        """The events of the whole exchange; never none for an id that was asked."""
        dialect, events = asked
        try:
            yield from tuple(dialect.answer(exchange, events))
        except Exception as error:
            yield _broken(dialect, error, exchange.ended)
            for event in events:
                yield complete(event, exchange)


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


def complete(event: Event, exchange: Exchange, **fields: object) -> Event:
    """The asked event with the reply's half: outcome, status, times and sizes; `fields` override what HTTP says."""
    request, reply = exchange.request, exchange.reply
    known: dict[str, object] = {
        "outcome": outcome_of(exchange),
        "overhead_ms": exchange.overhead_ms,
        "duration_ms": max(0.0, exchange.ended - request.at) * 1000,
    }
    if reply is not None:
        known["status"] = reply.status
        known["ttfb_ms"] = max(0.0, reply.at - request.end) * 1000
        known["reply_bytes"] = reply.size
    return msgspec.structs.replace(event, **(known | fields))
