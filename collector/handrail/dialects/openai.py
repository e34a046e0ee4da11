"""OpenAI's APIs, and what speaks like them: chat completions and responses, plain and streamed, become turns.

Known deviations of other servers are read too: parts of a streamed call without `index` or with always the same, an
`id` that is repeated in each part or missing, a last chunk that repeats the whole call.
"""

from typing import Any

import orjson

from handrail.dialects import text, whole
from handrail.dialects.turns import Call, Item, Reading, Result, Said, Tool, Turn, words
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

    def reading(self, turn: Turn) -> Reading:
        """What reads the reply; of a stream that is cut, it gives as much as there is."""
        return _Chat() if turn.operation == "chat.completions" else _Response()


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

    __slots__ = ("arguments", "id", "index", "is_over", "name")

    def __init__(self, index: tuple[object, object], id: str | None) -> None:
        self.index, self.id, self.name = index, id, ""
        self.arguments: list[str] = []
        self.is_over = False
        """Its choice is over, or another call began behind arguments that are whole."""


class _Chat:
    """A chat completion."""

    __slots__ = ("_parts", "_texts", "said")

    def __init__(self) -> None:
        self.said = Said(calls=[])
        self._texts: list[str] = []
        self._parts: list[_Part] = []

    @property
    def is_calling(self) -> bool:
        return any(not part.is_over for part in self._parts)

    def add(self, value: Any) -> None:
        if type(value) is not dict:
            return
        said = self.said
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
            return
        for choice in choices:
            if type(choice) is not dict:
                continue
            delta = choice.get("delta")
            if type(delta) is not dict:
                message = choice.get("message")
                if type(message) is dict:
                    self._texts.append(words(message.get("content")))
                    said.calls += _calls_in(message.get("tool_calls"), message.get("function_call"))
            else:
                if type(content := delta.get("content")) is str and content and not choice.get("index"):
                    self._texts.append(content)
                if (asked := delta.get("tool_calls")) or delta.get("function_call"):
                    _put_together(self._parts, choice.get("index") or 0, asked, delta.get("function_call"))
            if choice.get("finish_reason"):
                said.is_over = True
                for part in self._parts:
                    if part.index[0] == (choice.get("index") or 0):
                        part.is_over = True

    def calls(self) -> dict[int, Call]:
        calls = dict(enumerate(self.said.calls, 1))
        named = [part for part in self._parts if part.name]
        return calls | {at: _call_of(part) for at, part in enumerate(named, len(calls) + 1) if part.is_over}

    def end(self) -> Said:
        self.said.text = "".join(self._texts)
        self.said.calls += [_call_of(part) for part in self._parts if part.name]
        return self.said

    def refused(self, code: str, message: str) -> bytes:
        return _refused(code, message)


def _refused(code: str, message: str) -> bytes:
    """`error` is what clients of both APIs raise; `code` and `message` beside it are the event of responses."""
    error = {"message": message, "type": "handrail_refused", "param": None, "code": code}
    said = {"type": "error", "code": code, "message": message, "param": None, "error": error}
    return b"data: %s\n\n" % orjson.dumps(said)


def _call_of(part: _Part) -> Call:
    return Call(part.id, part.name, "".join(part.arguments))


def _is_whole(arguments: str) -> bool:
    """Whether nothing can follow them: an object that is closed."""
    try:
        return arguments.rstrip().endswith("}") and type(orjson.loads(arguments)) is dict
    except orjson.JSONDecodeError:
        return False


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
            for other in parts:
                if other.index[0] == choice and not other.is_over:
                    other.is_over = _is_whole("".join(other.arguments))
            part = _Part(index, id)
            parts.append(part)
        elif name is not None and part.name == name and part.arguments and more == "".join(part.arguments):
            continue  # the whole call once more, at the end
        part.id = part.id or id
        part.name = part.name or name or ""
        if type(more) is str and more:
            part.arguments.append(more)
            part.is_over = False


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
        if part.index[0] == index[0] and (index[1] is None or part.index[1] == index[1]):
            return None if name is not None and part.name and (index[1] is None or part.name != name) else part
    return None


class _Response:
    """A response."""

    __slots__ = ("_done", "_open", "_texts", "said")

    def __init__(self) -> None:
        self.said = Said(calls=[])
        self._texts: list[str] = []
        self._done: dict[object, Call] = {}
        self._open: dict[str | None, dict[str, Any]] = {}
        """Items that are calls and not complete, by their place in the output."""

    @property
    def is_calling(self) -> bool:
        return bool(self._open)

    def add(self, value: Any) -> None:
        if type(value) is not dict:
            return
        said, texts, done = self.said, self._texts, self._done
        kind = value.get("type")
        if kind == "response.output_text.delta":
            return
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
        elif kind == "response.output_item.added":
            item = value.get("item")
            if type(item) is dict and item.get("type") in _CALLS:
                self._open[text(value.get("output_index"))] = item
        elif kind in ("response.function_call_arguments.done", "response.custom_tool_call_input.done"):
            item = self._open.pop(text(value.get("output_index")), None)
            if item is not None:
                _put_item({**item, "arguments": value.get("arguments", value.get("input"))}, done, texts)
        elif kind == "response.output_item.done":
            self._open.pop(text(value.get("output_index")), None)
            _put_item(value.get("item"), done, texts)
        elif kind in ("response.completed", "response.incomplete"):
            said.is_over = True
            self._open.clear()
        output = response.get("output") if response is not None else None
        if kind != "response.created" and type(output) is list and output:
            texts.clear()
            for item in output:
                _put_item(item, done, texts)

    def calls(self) -> dict[int, Call]:
        return dict(enumerate(self._done.values(), 1))

    def end(self) -> Said:
        self.said.text = "".join(self._texts)
        self.said.calls = list(self._done.values())
        return self.said

    def refused(self, code: str, message: str) -> bytes:
        return b"event: error\n" + _refused(code, message)


_CALLS = ("function_call", "custom_tool_call")


def _put_item(item: object, done: dict[object, Call], texts: list[str]) -> None:
    if type(item) is not dict:
        return
    if item.get("type") in _CALLS:
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
