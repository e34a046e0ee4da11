"""Any HTTP exchange becomes one event: the fallback that claims what no other dialect does."""

from collections.abc import Iterable
from typing import Final

from handrail.dialects import Told, begin, complete, place_of
from handrail.event import Event, Fault
from handrail.wire import Exchange
from handrail.wire.body import EMPTY

_NOTHING: Final = Told()


class Http:
    """A request with a body is a handoff, its JSON the payload; one without is a read. The route says who it is for."""

    name = "http"

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """Exactly one event."""
        request = exchange.request
        if not request.size and request.cut is None:
            return (begin(exchange, "http", place_of(exchange), _NOTHING, EMPTY, kind="read"),)
        body = request.json(exchange.route.limits)
        return (begin(exchange, "http", place_of(exchange), _NOTHING, body, payload=body.value),)

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """The same event with the reply; its JSON where it is JSON and answers a handoff."""
        (event,) = asked
        if event.kind == "read" or exchange.reply is None:
            return (complete(event, exchange),)
        return (complete(event, exchange, reply=exchange.reply.json(exchange.route.limits).value),)
