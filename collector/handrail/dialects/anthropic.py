"""Anthropic's Messages API, plain and streamed, becomes turns; also behind Bedrock's and Vertex' HTTP paths."""

from typing import Any

import orjson

from handrail.dialects import text, whole
from handrail.dialects.turns import Call, Item, Reading, Result, Said, Tool, Turn, words
from handrail.wire import Exchange

_PATHS = ("/messages", ":rawPredict", ":streamRawPredict", "/invoke", "/invoke-with-response-stream")


class Anthropic:
    """Reads Messages."""

    name = "anthropic"

    def turn(self, exchange: Exchange) -> Turn | None:
        """The request, where path and body are of this API."""
        request = exchange.request
        path = request.target.partition("?")[0].rstrip("/")
        if not path.endswith(_PATHS):
            return None
        body = request.json(exchange.route.limits).value
        if type(body) is not dict or type(body.get("messages")) is not list:
            return None
        is_sure = path.endswith("/v1/messages") or b"anthropic-version" in request.headers
        if not is_sure and "anthropic_version" not in body and "max_tokens" not in body:
            return None
        items = [item for message in body["messages"] if (item := _item(message)) is not None]
        return Turn("messages", items, words(body.get("system")), _tools(body), text(body.get("model")))

    def aside(self, exchange: Exchange) -> str | None:
        """Counting tokens, batches; and a turn that is none."""
        path = exchange.request.target.partition("?")[0].rstrip("/")
        if path.endswith("/messages/count_tokens"):
            return "count_tokens"
        if b"anthropic-version" not in exchange.request.headers:
            return None
        return "messages" if path.endswith("/messages") else "messages.batches" if "/batches" in path else None

    def reading(self, turn: Turn) -> Reading:
        """What reads the reply; of a stream that is cut, it gives as much as there is."""
        return _Message()


class _Message:
    """A message."""

    __slots__ = ("_open", "_texts", "said")

    def __init__(self) -> None:
        self.said = Said(calls=[])
        self._texts: list[str] = []
        self._open: dict[str | None, tuple[str | None, str, list[str], Any]] = {}
        """Blocks that are calls and not complete, by index: id, name, parts of the input, the input as it began."""

    @property
    def is_calling(self) -> bool:
        return bool(self._open)

    def add(self, value: Any) -> None:
        if type(value) is not dict:
            return
        said = self.said
        kind = value.get("type")
        if kind == "content_block_delta":
            delta = value.get("delta")
            if type(delta) is dict:
                if type(more := delta.get("text")) is str:
                    self._texts.append(more)
                elif type(more := delta.get("partial_json")) is str:
                    block = self._open.get(text(value.get("index")))
                    if block is not None:
                        block[2].append(more)
        elif kind == "content_block_start":
            block = value.get("content_block")
            if type(block) is dict and block.get("type") == "tool_use" and (name := text(block.get("name"))):
                self._open[text(value.get("index"))] = (text(block.get("id")), name, [], block.get("input"))
        elif kind == "content_block_stop":
            self._close(text(value.get("index")))
        elif kind == "message_start":
            _message(said, value.get("message"))
        elif kind == "message_delta":
            _count(said, value.get("usage"))
        elif kind == "message_stop":
            said.is_over = True
            for index in list(self._open):
                self._close(index)
        elif kind == "error":
            error = value.get("error")
            said.error = (text(error.get("type")) if type(error) is dict else None) or "error"
        elif kind == "message":
            _message(said, value)
            item = _item(value)
            if item is not None:
                self._texts.append(item.text)
                said.calls += item.calls
        elif kind != "ping" and "content" not in value:
            said.is_unread, said.is_over = True, False

    def calls(self) -> dict[int, Call]:
        return dict(enumerate(self.said.calls, 1))

    def end(self) -> Said:
        for index in list(self._open):
            self._close(index)
        self.said.text = "".join(self._texts)
        return self.said

    def refused(self, code: str, message: str) -> bytes:
        error = {"type": "handrail_refused", "message": message, "code": code}
        return b"event: error\ndata: %s\n\n" % orjson.dumps({"type": "error", "error": error})

    def _close(self, index: str | None) -> None:
        if (block := self._open.pop(index, None)) is not None:
            id, name, parts, given = block
            self.said.calls.append(Call(id, name, "".join(parts) or given))


def _message(said: Said, message: object) -> None:
    if type(message) is dict:
        said.id, said.model = text(message.get("id")), text(message.get("model"))
        _count(said, message.get("usage"))


def _count(said: Said, usage: object) -> None:
    """What was read from a cache or written to it is input too; `message_delta` counts on from `message_start`."""
    if type(usage) is not dict:
        return
    given = [whole(usage.get(name)) for name in _INPUT]
    if any(given):
        said.input_tokens = sum(count or 0 for count in given)
    made = whole(usage.get("output_tokens"))
    said.output_tokens = said.output_tokens if made is None else made


_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _item(message: object) -> Item | None:
    if type(message) is not dict:
        return None
    content = message.get("content")
    calls: list[Call] = []
    results: list[Result] = []
    for block in content if type(content) is list else ():
        if type(block) is not dict:
            continue
        if block.get("type") == "tool_use" and (name := text(block.get("name"))) is not None:
            calls.append(Call(text(block.get("id")), name, block.get("input")))
        elif block.get("type") == "tool_result":
            said = words(block.get("content"))
            results.append(Result(text(block.get("tool_use_id")), None, said, block.get("is_error") is True))
    role = "assistant" if message.get("role") == "assistant" else "user"
    said = words(content)
    if results and not said:
        role = "tool"
    return Item(role, said, text(message.get("name")), tuple(calls), tuple(results))


def _tools(body: dict[str, Any]) -> dict[str, Tool]:
    tools = {}
    offered = body.get("tools")
    for each in offered if type(offered) is list else ():
        if type(each) is dict and (name := text(each.get("name"))) is not None:
            described = each.get("description")
            description = described if type(described) is str else ""
            tools[name] = Tool(name, description, each.get("input_schema"))
    return tools
