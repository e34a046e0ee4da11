"""Gemini's generateContent and streamGenerateContent become turns. Field names are read in camel and in snake case."""

from typing import Any

import orjson

from handrail.dialects import text, whole
from handrail.dialects.turns import Call, Item, Reading, Result, Said, Tool, Turn
from handrail.wire import Exchange

_METHODS = (":generateContent", ":streamGenerateContent")


_ASIDES = frozenset({"generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents"})


class Gemini:
    """Reads generateContent."""

    name = "gemini"

    def turn(self, exchange: Exchange) -> Turn | None:
        """The request, where path and body are of this API."""
        path = exchange.request.target.partition("?")[0]
        if not path.endswith(_METHODS):
            return None
        body = exchange.request.json(exchange.route.limits).value
        if type(body) is not dict or type(contents := body.get("contents")) not in (list, dict, str):
            return None
        contents = contents if type(contents) is list else [contents]
        items = [item for content in contents if (item := _item(content)) is not None]
        model = path.rpartition("/")[2].rpartition(":")[0]
        system = _item(_of(body, "systemInstruction"))
        return Turn("generateContent", items, "" if system is None else system.text, _tools(body), text(model))

    def aside(self, exchange: Exchange) -> str | None:
        """Counting tokens, embeddings; and a turn that is none."""
        method = exchange.request.target.partition("?")[0].rpartition(":")[2]
        return method if method in _ASIDES else None

    def reading(self, turn: Turn) -> Reading:
        """What reads the reply. Each event of a stream is one of its own; without `alt=sse` they stand in one array."""
        return _Reply()


class _Reply:
    """What generateContent answers."""

    __slots__ = ("_texts", "said")

    is_calling = False
    """A call comes whole."""

    def __init__(self) -> None:
        self.said = Said(calls=[])
        self._texts: list[str] = []

    def add(self, value: Any) -> None:
        for each in value if type(value) is list else [value]:
            if type(each) is dict:
                self._add(each)

    def calls(self) -> dict[int, Call]:
        return dict(enumerate(self.said.calls, 1))

    def end(self) -> Said:
        self.said.text = "".join(self._texts)
        return self.said

    def refused(self, code: str, message: str) -> bytes:
        error = {"code": 422, "message": message, "status": "FAILED_PRECONDITION", "details": [{"reason": code}]}
        return b"data: %s\n\n" % orjson.dumps({"error": error})

    def _add(self, value: dict[str, Any]) -> None:
        said = self.said
        if (error := value.get("error")) is not None:
            said.error = (text(error.get("status")) if type(error) is dict else None) or "error"
        said.id = text(_of(value, "responseId")) or said.id
        said.model = text(_of(value, "modelVersion")) or said.model
        usage = _of(value, "usageMetadata")
        if type(usage) is dict:
            said.input_tokens = whole(_of(usage, "promptTokenCount"))
            said.output_tokens = whole(_of(usage, "candidatesTokenCount"))
            said.total_tokens = whole(_of(usage, "totalTokenCount"))
        candidates = value.get("candidates")
        if type(candidates) is not list:
            if error is None and usage is None and _of(value, "promptFeedback") is None:
                said.is_unread, said.is_over = True, False
            elif _of(value, "promptFeedback") is not None:
                said.is_over = True
            return
        for candidate in candidates:
            if type(candidate) is not dict:
                continue
            if _of(candidate, "finishReason") is not None:
                said.is_over = True
            item = _item(candidate.get("content"))
            if item is not None:
                self._texts.append(item.text)
                said.calls += item.calls


def _of(value: dict[str, Any], name: str) -> Any:
    """A field by its camel-case name, or as snake case."""
    found = value.get(name)
    return found if found is not None else value.get(_SNAKE[name])


_SNAKE = {
    name: "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
    for name in (
        "candidatesTokenCount",
        "finishReason",
        "functionCall",
        "functionDeclarations",
        "functionResponse",
        "modelVersion",
        "parametersJsonSchema",
        "promptFeedback",
        "promptTokenCount",
        "responseId",
        "systemInstruction",
        "totalTokenCount",
        "usageMetadata",
    )
}


def _item(content: object) -> Item | None:
    if type(content) is str:
        return Item("user", content)
    if type(content) is not dict:
        return None
    texts: list[str] = []
    calls: list[Call] = []
    results: list[Result] = []
    parts = content.get("parts")
    for part in parts if type(parts) is list else [parts]:
        if type(part) is str:
            texts.append(part)
        if type(part) is not dict:
            continue
        if type(said := part.get("text")) is str and part.get("thought") is not True:
            texts.append(said)
        call, result = _of(part, "functionCall"), _of(part, "functionResponse")
        if type(call) is dict and (name := text(call.get("name"))) is not None:
            calls.append(Call(text(call.get("id")), name, call.get("args")))
        if type(result) is dict:
            results.append(_result(result))
    role = "assistant" if content.get("role") == "model" else "tool" if results and not texts else "user"
    return Item(role, "\n".join(texts), None, tuple(calls), tuple(results))


def _result(result: dict[str, Any]) -> Result:
    response = result.get("response")
    is_error = type(response) is dict and bool(response.get("error"))
    if type(response) is dict and len(response) == 1:
        response = next(iter(response.values()))
    if type(response) is not str:
        try:
            response = orjson.dumps(response).decode()
        except TypeError:
            response = ""
    return Result(text(result.get("id")), text(result.get("name")), response, is_error)


def _tools(body: dict[str, Any]) -> dict[str, Tool]:
    tools = {}
    offered = body.get("tools")
    for group in offered if type(offered) is list else [offered]:
        declared = _of(group, "functionDeclarations") if type(group) is dict else None
        for each in declared if type(declared) is list else ():
            if type(each) is dict and (name := text(each.get("name"))) is not None:
                described = each.get("description")
                schema = _of(each, "parametersJsonSchema")
                if schema is None:
                    schema = _lower(each.get("parameters"))
                tools[name] = Tool(name, described if type(described) is str else "", schema)
    return tools


def _lower(schema: Any) -> Any:
    """Gemini's own schema dialect as JSON Schema: type names in lower case, `nullable` as a type."""
    if type(schema) is list:
        return [_lower(each) for each in schema]
    if type(schema) is not dict:
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and type(value) is dict:
            out[key] = {name: _lower(each) for name, each in value.items()}
        elif key == "type" and type(value) is str:
            out[key] = [value.lower(), "null"] if schema.get("nullable") is True else value.lower()
        elif key in ("anyOf", "any_of"):
            out["anyOf"] = _lower(value)
        elif key in ("items", "not"):
            out[key] = _lower(value)
        elif key in ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"):
            out[key] = int(value) if type(value) is str and value.isdigit() else value
        elif key in _GEMINI_ONLY:
            continue
        else:
            out[key] = value
    return out


_GEMINI_ONLY = frozenset({"nullable", "propertyOrdering", "property_ordering", "example", "format"})
"""Not JSON Schema, or not in its sense."""
