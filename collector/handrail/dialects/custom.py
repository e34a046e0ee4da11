"""A protocol of the operator's own becomes handoffs: JMESPath expressions say where everything is.

Expressions see the request's body; `outcome` sees the reply's. They are compiled when the configuration is loaded.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult

from handrail.config import ConfigError, CustomConfig
from handrail.dialects import Told, begin, complete, outcome_of, place_of, state, text, whole
from handrail.event import Event, Fault, Outcome
from handrail.wire import Exchange

_READERS: Mapping[str, Callable[[object], object]] = {
    "workflow": text,
    "task": text,
    "attempt": whole,
    "source": text,
    "target": text,
    "subject": text,
    "version": text,
    "state_version": state,
    "tokens": whole,
}
_OUTCOMES = frozenset(get_args(Outcome)) - {"asked"}


class Custom:
    """One entry of `custom` in the configuration; its name is the protocol.

    A request is claimed where `path` matches and `when` holds. With neither, it is claimed where a task, source or
    target is found. Raises ConfigError naming the key of an expression that is wrong.
    """

    def __init__(self, config: CustomConfig, key: str = "custom", file: str = "configuration") -> None:
        self.name = config.name
        self._path = None
        if config.path is not None:
            self._path = re.compile(".*".join(map(re.escape, config.path.split("*"))), re.DOTALL)
        compiled: dict[str, ParsedResult] = {}
        for field in (*_READERS, "when", "payload", "outcome"):
            expression = getattr(config, field)
            if expression is not None:
                try:
                    compiled[field] = jmespath.compile(expression)
                except JMESPathError as error:
                    problem = " ".join(str(error).split())
                    raise ConfigError(file, f"{key}.{field}", f"is not JMESPath: {problem}") from None
        self._when = compiled.pop("when", None)
        self._payload = compiled.pop("payload", None)
        self._outcome = compiled.pop("outcome", None)
        self._fields = tuple((field, _READERS[field], expression) for field, expression in compiled.items())

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """One handoff, where the request is of this protocol."""
        request = exchange.request
        if self._path is not None and self._path.fullmatch(request.target.partition("?")[0]) is None:
            return ()
        if not request.size:
            return ()
        body = request.json(exchange.route.limits)
        if body.value is None:
            # A body that cannot be read cannot meet a condition either; a path alone still says whose it is.
            if body.reason is None or self._when is not None or self._path is None:
                return ()
            return (begin(exchange, self.name, place_of(exchange), Told(), body),)
        if self._when is not None and not _search(self._when, body.value):
            return ()
        said: dict[str, Any] = {
            field: read(_search(expression, body.value)) for field, read, expression in self._fields
        }
        if self._when is None and self._path is None and not any(map(said.get, ("task", "source", "target"))):
            return ()
        payload = body.value if self._payload is None else _search(self._payload, body.value)
        return (begin(exchange, self.name, place_of(exchange), Told(**said), body, payload=payload),)

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """HTTP first; where it says completed, the outcome that the reply's body names, if it is one."""
        (event,) = asked
        reply = None if exchange.reply is None else exchange.reply.json(exchange.route.limits).value
        outcome = outcome_of(exchange)
        if outcome == "completed" and self._outcome is not None and reply is not None:
            found = _search(self._outcome, reply)
            if type(found) is str and found in _OUTCOMES:
                outcome = found  # type: ignore[assignment]
        return (complete(event, exchange, outcome=outcome, reply=reply),)


def _search(expression: ParsedResult, value: Any) -> Any:
    try:
        return expression.search(value)
    except (JMESPathError, TypeError, AttributeError):  # a function met a value of another type: not there
        return None
