"""Conversations of agents with a model, exchange by exchange, in the shapes that frameworks give them."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from handrail.config import Config
from handrail.event import Event
from handrail.pipeline import Inspector, build, replay_exchanges
from handrail.schema.registry import Registry
from handrail.wire import Exchange, Reply, Request, Route

JSON = {b"content-type": b"application/json"}
SSE = {b"content-type": b"text/event-stream; charset=utf-8"}
EMPTY = {"type": "object", "properties": {}}

_ids = itertools.count(1)


def at(
    start: float,
    body: Any,
    reply: Any,
    *,
    path: str = "/v1/chat/completions",
    headers: dict[bytes, bytes] | None = None,
    took: float = 0.01,
    status: int = 200,
    end: Any = "replied",
    cut: str | None = None,
    route: Route | None = None,
) -> Exchange:
    """One exchange that begins at `start` seconds. A reply of bytes is a stream, any other is JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    stream = isinstance(reply, bytes)
    answer = reply if stream else json.dumps(reply).encode()
    return Exchange(
        id=f"x{next(_ids)}",
        route=route or Route(side="egress", upstream="model.test"),
        request=Request(
            method="POST",
            target=path,
            headers=JSON | (headers or {}),
            at=start,
            end=start,
            body=raw,
            size=len(raw),
        ),
        reply=Reply(
            status=status,
            headers=SSE if stream else JSON,
            at=start + took / 2,
            end=start + took,
            body=answer,
            size=len(answer),
            cut=cut,
        ),
        end=end,
        ended=start + took,
    )


def tool(name: str, description: str = "", schema: Any = EMPTY) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def chat(system: str, *messages: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "system", "content": system}, *messages], "tools": list(tools)}


def user(text: str, name: str | None = None) -> dict[str, Any]:
    return {"role": "user", "content": text} | ({"name": name} if name else {})


def called(id: str, name: str, arguments: Any = None, agent: str | None = None) -> dict[str, Any]:
    """An assistant's message with one call, as the reply has it and as a history repeats it."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    call = {"id": id, "type": "function", "function": {"name": name, "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]} | ({"name": agent} if agent else {})


def result(id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


def answered(text: str, agent: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | ({"name": agent} if agent else {})


def choice(*messages: dict[str, Any]) -> dict[str, Any]:
    """A reply with one choice for each message."""
    choices = [{"index": index, "message": message, "finish_reason": "stop"} for index, message in enumerate(messages)]
    usage = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}
    return {"id": f"c{next(_ids)}", "object": "chat.completion", "model": "m", "choices": choices, "usage": usage}


def events(exchanges: Sequence[Exchange], inspector: Inspector | None = None) -> list[Event]:
    """All final events of a recording that ends, in the order in which they became known."""
    inspector = inspector or build(Config(), Registry(), ())
    decisions = [*replay_exchanges(exchanges, inspector), *inspector.end()]
    assert [fault for decision in decisions for fault in decision.faults] == []
    return [decision.event for decision in decisions if decision.event and decision.event.outcome != "asked"]


def handoffs(exchanges: Sequence[Exchange], inspector: Inspector | None = None) -> list[Event]:
    """The handoffs among them, in the order in which they were asked for."""
    found = [event for event in events(exchanges, inspector) if event.kind == "handoff"]
    return sorted(found, key=lambda event: (event.at, event.id))


def told(exchanges: Sequence[Exchange], inspector: Inspector | None = None) -> list[tuple[Any, ...]]:
    """Source, target, outcome and confidence of each handoff."""
    return [(event.source, event.target, event.outcome, event.confidence) for event in handoffs(exchanges, inspector)]
