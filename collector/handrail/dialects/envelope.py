"""The canonical envelope in an HTTP body becomes a handoff.

`task_id, source_agent, target_agent, status, output{…}, context{…}, metadata{…}`; the body itself, or what a configured
JMESPath finds in it. Other dialects use `said_by` for an envelope that travels inside their own protocol.
"""

from collections.abc import Iterable
from typing import Any, Final

import jmespath
from jmespath.exceptions import JMESPathError

from handrail.config import ConfigError, EnvelopeConfig
from handrail.dialects import Told, begin, complete, instant, outcome_of, place_of, state, text, whole
from handrail.event import Event, Fault, Outcome
from handrail.wire import Exchange

OUTCOME_OF_STATUS: Final[dict[str, Outcome]] = {
    "failed": "failed",
    "error": "failed",
    "partial": "accepted",
    "in_progress": "accepted",
    "working": "accepted",
    "pending": "accepted",
}
"""Any other status is `completed`, as the exchange was."""


def is_envelope(value: object) -> bool:
    """An object with `task_id`, and `source_agent` or `target_agent`."""
    return type(value) is dict and "task_id" in value and ("source_agent" in value or "target_agent" in value)


def said_by(envelope: dict[str, Any]) -> Told:
    """What an envelope says."""
    said = Told()
    metadata = envelope.get("metadata")
    if type(metadata) is dict:
        add_metadata(said, metadata)
    if said.workflow is None:
        context = envelope.get("context")
        workflow = envelope.get("workflow_id") or (context.get("workflow_id") if type(context) is dict else None)
        said.workflow = text(workflow) or said.trace_id
    said.task = text(envelope.get("task_id"))
    said.source = text(envelope.get("source_agent"))
    said.target = text(envelope.get("target_agent"))
    if "state_version" in envelope:
        said.state_version = state(envelope["state_version"])
    return said


def add_metadata(said: Told, metadata: dict[str, Any]) -> None:
    """Add what a metadata object says and nothing has said yet."""
    if said.workflow is None:
        said.workflow = text(metadata.get("workflow_id")) or text(metadata.get("workflow"))
    if said.attempt is None:
        said.attempt = whole(metadata.get("attempt"))
    if said.tokens is None:
        said.tokens = whole(metadata.get("token_count"))
    if said.agent_version is None:
        said.agent_version = text(metadata.get("agent_version"))
    if said.deadline is None:
        said.deadline = instant(metadata.get("deadline"))
    if said.state_version is None:
        said.state_version = state(metadata.get("state_version"))
    if said.trace_id is None:
        said.trace_id = text(metadata.get("trace_id"))


class Envelope:
    """Reads the canonical envelope. `file` names the configuration in errors."""

    name = "envelope"

    def __init__(self, config: EnvelopeConfig, file: str = "configuration") -> None:
        self._path = None
        if config.path is not None:
            try:
                self._path = jmespath.compile(config.path)
            except JMESPathError as error:
                raise ConfigError(file, "envelope.path", f"is not JMESPath: {error}") from None

    def _find(self, value: Any) -> dict[str, Any] | None:
        if self._path is not None:
            try:
                found = self._path.search(value)
            except JMESPathError:  # a function was given a value of another type: not there
                found = None
            if is_envelope(found):
                envelope: dict[str, Any] = found
                return envelope
        return value if is_envelope(value) else None

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """One handoff, where the body holds an envelope."""
        body = exchange.request.json(exchange.route.limits)
        if type(body.value) is not dict and self._path is None:
            return ()
        envelope = self._find(body.value)
        if envelope is None:
            return ()
        return (begin(exchange, "envelope", place_of(exchange), said_by(envelope), body, payload=envelope),)

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """HTTP first: what did not arrive was not done. Then the status of the reply's envelope, else the request's."""
        (event,) = asked
        reply = None if exchange.reply is None else exchange.reply.json(exchange.route.limits).value
        outcome = outcome_of(exchange)
        if outcome == "completed":
            status = None
            if type(reply) is dict:
                status = self._status(reply)
            if status is None:
                asking: dict[str, Any] = event.payload
                status = asking.get("status")
            if type(status) is str:
                outcome = OUTCOME_OF_STATUS.get(status.lower(), "completed")
        return (complete(event, exchange, outcome=outcome, reply=reply),)

    def _status(self, reply: dict[str, Any]) -> object:
        if self._path is not None:
            reply = self._find(reply) or reply
        return reply.get("status") if "task_id" in reply else None
