"""OpenAI's APIs, and what speaks like them: chat completions and responses, plain and streamed, become turns.

Known deviations of other servers are read too: parts of a streamed call without `index` or with always the same, an
`id` that is repeated in each part or missing, a last chunk that repeats the whole call.
"""

from typing import Any

import orjson

from handrail.dialects import text, whole
from handrail.dialects.turns import Call, Item, Result, Said, Tool, Turn, reply_values, words
from handrail.wire import Exchange

_CHAT, _RESPONSES = "/chat/completions", "/responses"
"""How a path ends, whatever stands before it: `/v1`, or Azure's `/openai/deployments/<name>`."""


_ASIDES = {
    "/chat/completions": "chat.completions",
    "/v1/responses": "responses",
    "/openai/responses": "responses",
    "/v1/completions": "completions",
    "/embeddings": "embeddings",
    "/moderations": "moderations",
    "/images/generations": "images.generations",
    "/audio/speech": "audio.speech",
    "/audio/transcriptions": "audio.transcriptions",
    "/rerank": "rerank",
}
"""How the paths of the API's other operations end."""


class OpenAi:
    """Reads chat completions and responses."""

    name = "openai"

    def turn(self, exchange: Exchange) -> Turn | None:
        """The request, where path and body are of one of the two APIs."""
        path = exchange.request.target.partition("?")[0].rstrip("/")
        if not path.endswith((_CHAT, _RESPONSES)):
            return None
        body = exchange.request.json(exchange.route.limits).value
        if type(body) is not dict:
            return None
        if path.endswith(_CHAT):
            return _chat(body) if type(body.get("messages")) is list else None
        return _responses(body) if "input" in body or "prompt" in body else None

    def aside(self, exchange: Exchange) -> str | None:
        """Completions of the first generation, embeddings, the SDK's export of traces; and a turn that is none."""
        request = exchange.request
        path = request.target.partition("?")[0].rstrip("/")
        if path.endswith("/traces/ingest"):
            return "traces.ingest"
        body = request.json(exchange.route.limits).value
        for end, operation in _ASIDES.items():
            if path.endswith(end) and (type(body) is not dict or "model" in body or end == _CHAT):
                return operation
        return None

    def said(self, exchange: Exchange, turn: Turn) -> Said:
        """The reply; of a stream that was cut, as much as there is."""
        return _said_in_chat(exchange) if turn.operation == "chat.completions" else _said_in_response(exchange)


def _chat(body: dict[str, Any]) -> Turn:
    system: list[str] = []
    items: list[Item] = []
    speaker: str | None = None
    for message in body["messages"]:
        if type(message) is not dict:
            continue
        role, said = message.get("role"), words(message.get("content"))
        if role in ("system", "developer"):
            if not system and not items and "name" in message:
                speaker = text(message["name"])
            system.append(said)
        elif role in ("tool", "function"):
            result = Result(text(message.get("tool_call_id")), text(message.get("name")), said)
            items.append(Item("tool", results=(result,)))
        else:
            calls: tuple[Call, ...] = ()
            if (asked := message.get("tool_calls")) or message.get("function_call"):
                calls = tuple(_calls_in(asked, message.get("function_call")))
            items.append(Item("assistant" if role == "assistant" else "user", said, text(message.get("name")), calls))
    model = text(body.get("model"))
    return Turn("chat.completions", items, "\n".join(system), _tools(body), model, speaker=speaker)


def _calls_in(asked: object, function: object = None) -> list[Call]:
    calls = []
    for each in asked if type(asked) is list else ():
        if type(each) is dict:
            called = each.get("function") if type(each.get("function")) is dict else each.get("custom")
            if type(called) is dict and (name := text(called.get("name"))) is not None:
                calls.append(Call(text(each.get("id")), name, called.get("arguments", called.get("input"))))
    if type(function) is dict and (name := text(function.get("name"))) is not None:
        calls.append(Call(None, name, function.get("arguments")))
    return calls


def _tools(body: dict[str, Any]) -> dict[str, Tool]:
    """Of both APIs: the definition stands in `function`, or flat; `functions` is what came before `tools`."""
    tools = {}
    for key in ("tools", "functions"):
        offered = body.get(key)
        for each in offered if type(offered) is list else ():
            if type(each) is not dict:
                continue
            tool: Any = each.get("function")
            if type(tool) is not dict:
                tool = each
            if (name := text(tool.get("name"))) is not None:
                described = tool.get("description")
                description = described if type(described) is str else ""
                tools[name] = Tool(name, description, tool.get("parameters"))
    return tools


def _responses(body: dict[str, Any]) -> Turn:
    given = body.get("input")
    items: list[Item] = []
    system = [said] if (said := words(body.get("instructions"))) else []
    if type(given) is str:
        items.append(Item("user", given))
    for each in given if type(given) is list else ():
        if type(each) is not dict:
            continue
        kind, role = each.get("type", "message"), each.get("role")
        if kind == "message":
            said = words(each.get("content"))
            if role in ("system", "developer"):
                system.append(said)
            else:
                items.append(Item("assistant" if role == "assistant" else "user", said, text(each.get("name"))))
        elif kind in ("function_call", "custom_tool_call"):
            if (name := text(each.get("name"))) is not None:
                call = Call(text(each.get("call_id")), name, each.get("arguments", each.get("input")))
                items.append(Item("assistant", calls=(call,)))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            items.append(Item("tool", results=(Result(text(each.get("call_id")), None, words(each.get("output"))),)))
    conversation = body.get("conversation")
    return Turn(
        "responses",
        items,
        "\n".join(system),
        _tools(body),
        text(body.get("model")),
        text(body.get("previous_response_id")),
        text(conversation.get("id") if type(conversation) is dict else conversation),
    )


class _Part:
    """A call that is put together from the parts of a stream."""

    __slots__ = ("arguments", "id", "index", "name")

    def __init__(self, index: object, id: str | None) -> None:
        self.index, self.id, self.name = index, id, ""
        self.arguments: list[str] = []


def _said_in_chat(exchange: Exchange) -> Said:
    said = Said(calls=[])
    texts: list[str] = []
    parts: list[_Part] = []
    for value in reply_values(exchange, said):
        if type(value) is not dict:
            continue
        if said.id is None and "id" in value:
            said.id, said.model = text(value["id"]), text(value.get("model"))
        if (error := value.get("error")) is not None:
            said.error = _error(error)
        if (usage := value.get("usage")) is not None:
            _count(said, usage, "prompt_tokens", "completion_tokens")
        choices = value.get("choices")
        if type(choices) is not list:
            if error is None and value.get("object") is None:
                said.is_unread, said.is_over = True, False
            continue
        for choice in choices:
            if type(choice) is not dict:
                continue
            if choice.get("finish_reason"):
                said.is_over = True
            delta = choice.get("delta")
            if type(delta) is not dict:
                message = choice.get("message")
                if type(message) is dict:
                    texts.append(words(message.get("content")))
                    said.calls += _calls_in(message.get("tool_calls"), message.get("function_call"))
                continue
            if type(content := delta.get("content")) is str and content and not choice.get("index"):
                texts.append(content)
            if (asked := delta.get("tool_calls")) or delta.get("function_call"):
                _put_together(parts, choice.get("index") or 0, asked, delta.get("function_call"))
    said.text = "".join(texts)
    said.calls += [Call(part.id, part.name, "".join(part.arguments)) for part in parts if part.name]
    return said


def _put_together(parts: list[_Part], choice: object, asked: object, function: object) -> None:
    if type(function) is dict:
        asked = [*(asked if type(asked) is list else ()), {"index": "function_call", "function": function}]
    for each in asked if type(asked) is list else ():
        if type(each) is not dict:
            continue
        index, id = (choice, each.get("index")), text(each.get("id"))
        called = each.get("function")
        called = called if type(called) is dict else {}
        name, more = text(called.get("name")), called.get("arguments")
        if type(more) is dict:  # some servers send the value in place of its text
            more = orjson.dumps(more).decode()
        part = _part(parts, index, id, name)
        if part is None:
            part = _Part(index, id)
            parts.append(part)
        elif name is not None and part.name == name and part.arguments and more == "".join(part.arguments):
            continue  # the whole call once more, at the end
        part.id = part.id or id
        part.name = part.name or name or ""
        if type(more) is str and more:
            part.arguments.append(more)


def _part(parts: list[_Part], index: tuple[object, object], id: str | None, name: str | None) -> _Part | None:
    """The call that a part belongs to: by its id where it has one, else by index; a new name begins a new call."""
    if id is not None:
        for part in parts:
            if part.id == id:
                return part
        for part in parts:
            if part.id is None and part.index == index and name is None:
                return part
        return None
    for part in reversed(parts):
        if part.index[0] == index[0] and (index[1] is None or part.index[1] == index[1]):  # type: ignore[index]
            return None if name is not None and part.name and (index[1] is None or part.name != name) else part
    return None


def _said_in_response(exchange: Exchange) -> Said:
    said = Said(calls=[])
    texts: list[str] = []
    done: dict[object, Call] = {}
    for value in reply_values(exchange, said):
        if type(value) is not dict:
            continue
        kind = value.get("type")
        if kind == "response.output_text.delta":
            continue
        response = value.get("response") if type(value.get("response")) is dict else None
        if response is None and value.get("object") == "response":
            response, kind = value, f"response.{value.get('status')}"
        if response is not None:
            said.id = text(response.get("id")) or said.id
            said.model = text(response.get("model")) or said.model
            if (usage := response.get("usage")) is not None:
                _count(said, usage, "input_tokens", "output_tokens")
            if (error := response.get("error")) is not None:
                said.error = _error(error)
        elif kind is None:
            if (error := value.get("error")) is not None:
                said.error = _error(error)
            else:
                said.is_unread, said.is_over = True, False
        if kind == "error":
            said.error = text(value.get("code")) or _error(value.get("error")) or "error"
        elif kind == "response.failed":
            said.error, said.is_over = said.error or "failed", True
        elif kind == "response.output_item.done":
            _put_item(value.get("item"), done, texts)
        elif kind in ("response.completed", "response.incomplete"):
            said.is_over = True
        output = response.get("output") if response is not None else None
        if kind != "response.created" and type(output) is list and output:
            texts.clear()
            for item in output:
                _put_item(item, done, texts)
    said.text = "".join(texts)
    said.calls = list(done.values())
    return said


def _put_item(item: object, done: dict[object, Call], texts: list[str]) -> None:
    if type(item) is not dict:
        return
    if item.get("type") in ("function_call", "custom_tool_call"):
        if (name := text(item.get("name"))) is not None:
            id = text(item.get("call_id"))
            key = id or text(item.get("id")) or len(done)
            done[key] = Call(id, name, item.get("arguments", item.get("input")))
    elif item.get("type") == "message":
        texts.append(words(item.get("content")))


def _error(error: object) -> str:
    if type(error) is dict:
        return text(error.get("code")) or text(error.get("type")) or "error"
    return text(error) or "error"


def _count(said: Said, usage: object, given: str, made: str) -> None:
    if type(usage) is dict:
        said.input_tokens = whole(usage.get(given, usage.get("input_tokens")))
        said.output_tokens = whole(usage.get(made, usage.get("output_tokens")))
        said.total_tokens = whole(usage.get("total_tokens"))
