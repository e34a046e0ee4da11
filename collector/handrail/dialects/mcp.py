"""MCP exchanges become handoffs and calls of tools: streamable HTTP with and without sessions, and HTTP+SSE before it.

- A call of a tool is an event: of kind `handoff` where `mcp.agents` says that the tool, or its server, is an agent; of
  kind `usage` otherwise. Everything else that is asked is of kind `read`. A batch gives an event for each call.
- target: the agent that the line names, or the server's own name (`serverInfo`); source: `clientInfo`, unless it is the
  library's own default, then the route's agent.
- subject and version: what an operator registered between these two; else `<server>.<tool>` and the form of the
  `inputSchema` that `tools/list` gave last. A `structuredContent` of a tool that declares an `outputSchema` is one more
  event, of kind `read` with the subject `<server>.<tool>.result`: what the caller takes, and the server answers for.
- outcome: `failed` for a result that says `isError`, `rejected` for a request that the server finds wrong,
  `interrupted` where it asks for input, `accepted` for a task that goes on.

Up to 2024-11-05 a call is answered with 202, and its result comes in a stream that was opened before. Such a call stays
open until that stream is over, or for `mcp.silence_seconds`.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import orjson

from handrail.config import McpConfig
from handrail.dialects import NAME_LENGTH, Told, begin, complete, outcome_of, place_of, state, text, trace_of
from handrail.dialects.conventions import slug
from handrail.event import Event, Fault, Outcome
from handrail.schema.registry import Registry, SchemaError, is_untyped
from handrail.wire import Body, Exchange
from handrail.wire.body import decode, parse
from handrail.wire.sse import ServerSentEvent, SseDecoder

METHODS = frozenset(
    {
        "initialize",
        "server/discover",
        "ping",
        "tools/list",
        "tools/call",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "prompts/list",
        "prompts/get",
        "completion/complete",
        "logging/setLevel",
        "subscriptions/listen",
        "sampling/createMessage",
        "elicitation/create",
        "roots/list",
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/message",
        "notifications/roots/list_changed",
    }
)
"""Methods that are MCP's alone, or with `"jsonrpc"` beside them as good as."""

HEADERS = (b"mcp-protocol-version", b"mcp-method", b"mcp-session-id")

NOBODY = frozenset({"mcp", "mcp-client", "fastmcp", "mcp-python-client", "example-client", "client"})
"""Names of clients that are a library's default and say nothing of the agent."""

_CALLERS_FAULT = frozenset({-32600, -32601, -32602, -32700})
_TASK_OUTCOMES: Mapping[str, Outcome] = {
    "working": "accepted",
    "input_required": "interrupted",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
}
_META = "io.modelcontextprotocol/"
BATCH = 256
"""Calls of one batch that are looked at."""
SCHEMA_BYTES = 262_144


class _Tool(msgspec.Struct, frozen=True):
    name: str
    input: Any = None
    output: Any = None


class _Server(msgspec.Struct):
    """What is known of the server behind one address."""

    name: str | None = None
    version: str | None = None
    tools: OrderedDict[str, _Tool] = msgspec.field(default_factory=OrderedDict)


class _Open(msgspec.Struct):
    """A call whose result comes in another exchange."""

    event: Event
    call: "_Call"
    server: _Server


class _Call(msgspec.Struct, frozen=True):
    """One message of a request."""

    method: str
    id: Any = None
    params: Mapping[str, Any] = {}

    @property
    def tool(self) -> str | None:
        return text(self.params.get("name")) if self.method == "tools/call" else None


class Mcp:
    """Reads MCP. Remembers `mcp.servers` servers and as many clients, and of each server `mcp.tools` tools."""

    name = "mcp"

    def __init__(self, config: McpConfig, registry: Registry) -> None:
        self._config, self._registry = config, registry
        self._agents = tuple((_glob(line.server), _glob(line.tool), line.tool, line.agent) for line in config.agents)
        self._servers: OrderedDict[tuple[str, str], _Server] = OrderedDict()
        self._clients: OrderedDict[str, str] = OrderedDict()
        self._asked: OrderedDict[str, tuple[list[_Call], _Server]] = OrderedDict()
        self._open: OrderedDict[str, tuple[tuple[str, str], _Open]] = OrderedDict()

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """An event for each message, where the request is MCP."""
        request = exchange.request
        has_header = any(header in request.headers for header in HEADERS)
        if request.method != "POST":
            return self._other(exchange) if has_header or _may_be_stream(exchange) else ()
        body = request.json(exchange.route.limits)
        calls = _calls(body.value, has_header)
        if calls is None:
            if not has_header or (body.reason is None and request.size):
                return () if not has_header else (begin(exchange, self.name, "answer", Told(), body, kind="read"),)
            method = request.header("mcp-method")
            name = request.header("mcp-name")
            calls = [_Call(method or "unknown", None, {"name": name} if name else {})]
        server = self._server(exchange)
        if len(calls) == 1 and type(body.value) is not list:
            events = [self._event(exchange, calls[0], server, body, None)]
        else:
            events = [self._event(exchange, call, server, body, number) for number, call in enumerate(calls[:BATCH], 1)]
        self._asked[exchange.id] = calls[:BATCH], server
        if len(self._asked) > 4_096:
            self._asked.popitem(last=False)
        return tuple(events)

    def _other(self, exchange: Exchange) -> tuple[Event, ...]:
        operation = {"GET": "stream", "DELETE": "session/end"}.get(exchange.request.method)
        if operation is None:
            return ()
        return (begin(exchange, self.name, operation, Told(), Body(), kind="read"),)

    def _event(self, exchange: Exchange, call: _Call, server: _Server, body: Body, number: int | None) -> Event:
        params = call.params
        meta = params.get("_meta")
        meta = meta if type(meta) is dict else {}
        said = Told(source=self._client(exchange, call, meta))
        parent = meta.get("traceparent")
        if type(parent) is str:
            said.trace_id, said.span_id = trace_of(parent.encode("latin-1", "replace"))
        said.workflow = text(meta.get("handrail/workflow")) or text(meta.get("handrail-workflow"))
        said.task = text(meta.get("handrail/task")) or text(meta.get("handrail-task"))
        tool = call.tool
        if tool is None:
            said.target = server.name
            read = Body(reason=body.reason)
            return begin(exchange, self.name, text(call.method), said, read, kind="read", number=number)
        arguments = params.get("arguments")
        agent, is_agent = self.agent(server.name, tool)
        said.target = agent
        if type(arguments) is dict:
            said.state_version = state(arguments.get("state_version"))
        if said.state_version is None:
            said.state_version = state(meta.get("state_version"))
        said.agent_version = server.version
        kind = "handoff" if is_agent else "usage"
        payload = {} if arguments is None and body.reason is None else arguments
        event = begin(exchange, self.name, tool, said, body, payload=payload, kind=kind, number=number)  # type: ignore[arg-type]
        return self._typed(event, server, tool)

    def _client(self, exchange: Exchange, call: _Call, meta: Mapping[str, Any]) -> str | None:
        info = meta.get(f"{_META}clientInfo")
        if call.method == "initialize":
            info = call.params.get("clientInfo")
        name = text(info.get("name")) if type(info) is dict else None
        if name is None:
            session = exchange.request.header("mcp-session-id") or _session_in(exchange.request.target)
            return self._clients.get(session) if session is not None else None
        return None if name.lower() in NOBODY else name

    def agent(self, server: str | None, tool: str) -> tuple[str | None, bool]:
        """Who a tool of a server stands for, and whether that is an agent."""
        for of_server, of_tool, pattern, agent in self._agents:
            match = of_tool.fullmatch(tool)
            if match is None or not of_server.fullmatch(server or ""):
                continue
            found = match[1] if match.groups() else ""
            if agent is not None:
                return agent.replace("*", found), True
            return (found if found and pattern != "*" else server), True
        return server, False

    def _typed(self, event: Event, server: _Server, tool: str) -> Event:
        """The event with the schema that applies: an operator's between the two, else the tool's own."""
        registry = self._registry
        if event.subject is None:
            subject, version = registry.select(event)
            if version is not None and not registry.is_learned(subject, version):
                return event.but(subject=subject, version=version)
        subject = event.subject or _subject(event, server, tool)
        known = server.tools.get(tool)
        version = event.version
        if version is None and known is not None:
            version = self._learned(subject, known.input)
        return event.but(subject=subject, version=version)

    def _learned(self, subject: str, document: Any) -> str | None:
        if type(document) is not dict or not document:
            return None
        try:
            return self._registry.learn(subject, document)
        except SchemaError:
            return None

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """The calls with what they came to, and the results that declare a schema."""
        calls, server = self._asked.pop(exchange.id, ([], _Server()))
        messages = list(_messages(exchange))
        answers = {_key(each["id"]): each for each in messages if "id" in each and "method" not in each}
        read: list[Event | Fault] = []
        if not calls:
            if exchange.request.method == "GET":
                if not any("endpoint" in each for each in messages) and _may_be_stream(exchange):
                    return tuple(  # it was somebody else's
                        complete(event, exchange).but(protocol="http", operation=place_of(exchange)) for event in asked
                    )
                read += self._stream(exchange, messages, answers)
            return (*read, *(complete(event, exchange) for event in asked))
        is_late = exchange.reply is not None and exchange.reply.status == 202 and not answers
        for call, event in zip(calls, asked, strict=False):
            if is_late and call.method in ("tools/call", "tools/list", "initialize") and call.id is not None:
                if call.method == "initialize":
                    self._introduce(exchange, call, server, {})
                done = complete(event, exchange, outcome="accepted")
                self._leave_open(exchange, _Open(done, call, server), read)
                continue
            answer = answers.get(_key(call.id)) if call.id is not None else None
            if answer is not None:
                self._introduce(exchange, call, server, answer)
            read += self._over(event, call, server, answer, exchange)
        return read

    def _over(
        self, event: Event, call: _Call, server: _Server, answer: Mapping[str, Any] | None, exchange: Exchange | None
    ) -> Iterator[Event]:
        fields: dict[str, Any] = {}
        tool, result = call.tool, None
        if answer is not None:
            fields["outcome"], code = _outcome(answer)
            if code is not None:
                fields["status"] = code
            result = answer.get("result")
            if exchange is not None and exchange.end not in ("replied", "client_abort"):
                fields["outcome"] = outcome_of(exchange)
        elif exchange is not None and call.id is not None and outcome_of(exchange) == "completed":
            fields["outcome"] = "unknown"  # a reply that does not answer
        if event.target is None and server.name is not None:
            fields["target"] = self.agent(server.name, tool)[0] if tool is not None else server.name
        if tool is not None and event.version is None and event.subject == _subject(event, _Server(), tool):
            fields["subject"] = _subject(event, server, tool)  # the reply has named the server
        if tool is not None and type(result) is dict:
            fields["reply"] = result.get("structuredContent", result.get("content"))
        done = complete(event, exchange, **fields) if exchange is not None else event.but(**fields)
        yield done
        if tool is None or type(result) is not dict or result.get("isError") is True:
            return
        content, known = result.get("structuredContent"), server.tools.get(tool)
        if content is None or known is None or known.output is None or is_untyped(known.output):
            return
        subject = f"{_subject(event, server, tool)}.result"
        version = self._learned(subject, known.output)
        if version is not None:
            yield done.but(
                kind="read",
                id=f"{done.id}.result",
                at=done.at + (done.duration_ms or 0.0) / 1000,
                subject=subject,
                version=version,
                digest=None,
                payload=content,
                payload_bytes=done.reply_bytes,
                operation=f"{tool} result",
                outcome="completed",
                uninspected=None,
                reply=None,
                state_version=None,
                deadline=None,
            )

    # What servers and clients say of themselves.

    def _server(self, exchange: Exchange) -> _Server:
        request = exchange.request
        host = exchange.route.upstream or request.header("host") or ""
        key = (host.lower()[:NAME_LENGTH], request.target.partition("?")[0].rstrip("/")[:NAME_LENGTH])
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = _Server()
            if len(self._servers) > self._config.servers:
                self._servers.popitem(last=False)
        else:
            self._servers.move_to_end(key)
        return server

    def _introduce(self, exchange: Exchange, call: _Call, server: _Server, answer: Mapping[str, Any]) -> None:
        """Names, versions and tools that an answer tells; the client's name for its session."""
        if call.method == "initialize":
            info = call.params.get("clientInfo")
            name = text(info.get("name")) if type(info) is dict else None
            session = exchange.reply.header("mcp-session-id") if exchange.reply is not None else None
            session = session or _session_in(exchange.request.target)
            if session is not None and name is not None and name.lower() not in NOBODY:
                self._clients[session[:NAME_LENGTH]] = name
                if len(self._clients) > self._config.servers:
                    self._clients.popitem(last=False)
        self._learn(call, server, answer.get("result"))

    def _learn(self, call: _Call, server: _Server, result: object) -> None:
        if type(result) is not dict:
            return
        meta = result.get("_meta")
        info = result.get("serverInfo")
        if type(info) is not dict and type(meta) is dict:
            info = meta.get(f"{_META}serverInfo", meta.get("serverInfo"))
        if type(info) is dict and (name := text(info.get("name"))) is not None:
            server.name, server.version = name, text(info.get("version"))
        tools = result.get("tools")
        if call.method != "tools/list" or type(tools) is not list:
            return
        for tool in tools[: self._config.tools]:
            if type(tool) is not dict or (name := text(tool.get("name"))) is None:
                continue
            server.tools[name] = _Tool(name, _schema(tool.get("inputSchema")), _schema(tool.get("outputSchema")))
            server.tools.move_to_end(name)
        while len(server.tools) > self._config.tools:
            server.tools.popitem(last=False)

    # Calls that are answered in another exchange.

    def _leave_open(self, exchange: Exchange, open_: _Open, read: list[Event | Fault]) -> None:
        host = exchange.route.upstream or exchange.request.header("host") or ""
        self._open[open_.event.id] = (host.lower(), exchange.request.target), open_
        if len(self._open) > self._config.servers:
            _, (_, oldest) = self._open.popitem(last=False)
            read.append(oldest.event)

    def _stream(
        self, exchange: Exchange, messages: list[dict[str, Any]], answers: Mapping[str, dict[str, Any]]
    ) -> Iterator[Event]:
        """The stream of a session is over: its answers belong to the calls that were sent to its endpoint."""
        endpoint = next((each["endpoint"] for each in messages if "endpoint" in each), None)
        host = (exchange.route.upstream or exchange.request.header("host") or "").lower()
        waiting = [
            (id, open_)
            for id, ((at, target), open_) in self._open.items()
            if at == host and (endpoint is None or _same_place(endpoint, target)) and _key(open_.call.id) in answers
        ]
        for id, open_ in waiting:  # a list of tools teaches what the calls after it are judged by
            self._learn(open_.call, open_.server, answers[_key(open_.call.id)].get("result"))
            del self._open[id]
        for _, open_ in waiting:
            event = open_.event
            tool = open_.call.tool
            if tool is not None and event.version is None:
                if event.subject == _subject(event, _Server(), tool):
                    event = event.but(subject=None)
                event = self._typed(event, open_.server, tool)
            yield from self._over(event, open_.call, open_.server, answers[_key(open_.call.id)], None)

    def advance(self, now: float) -> Iterable[Event]:
        """Time passed: calls whose stream is still open are told as they stand."""
        over = []
        while self._open:
            id, (_, oldest) = next(iter(self._open.items()))
            if now - oldest.event.at < self._config.silence_seconds:
                break
            del self._open[id]
            over.append(oldest.event)
        return over

    def end(self, silent: Outcome) -> Iterable[Event]:
        """Nothing more comes."""
        over = [open_.event for _, open_ in self._open.values()]
        self._open.clear()
        return over


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def _subject(event: Event, server: _Server, tool: str) -> str:
    return f"{slug(server.name or event.target or 'mcp')}.{tool}"


def _schema(document: object) -> Any:
    """A tool's schema where it is one that may be kept."""
    if type(document) is not dict:
        return None
    try:
        return document if len(orjson.dumps(document)) <= SCHEMA_BYTES else None
    except TypeError:
        return None


def _calls(value: object, has_header: bool) -> list[_Call] | None:
    """The messages of a body that have a method; None where it is not MCP."""
    items = value if type(value) is list else [value]
    calls = []
    for item in items:
        if type(item) is not dict or item.get("jsonrpc") != "2.0":
            continue
        method = item.get("method")
        if type(method) is not str or not (has_header or method in METHODS):
            continue
        params = item.get("params")
        id = item.get("id")
        calls.append(
            _Call(method, id if type(id) in (str, int, float) else None, params if type(params) is dict else {})
        )
    return calls or None


def _key(id: object) -> str:
    """Ids that are equal in JSON are equal: 1 and 1.0, but not 1 and "1"."""
    if type(id) is float and id.is_integer():
        id = int(id)
    return f"{type(id).__name__} {id}"


def _session_in(target: str) -> str | None:
    """The session that the endpoint of the older transport carries in its query."""
    query = target.partition("?")[2]
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key.lower().replace("_", "") == "sessionid" and value:
            return value[:NAME_LENGTH]
    return None


def _may_be_stream(exchange: Exchange) -> bool:
    """Whether a request may open the stream of the older transport, which has no header of its own."""
    request = exchange.request
    if request.method != "GET" or any(header in request.headers for header in HEADERS):
        return False
    path = request.target.partition("?")[0].rstrip("/")
    return path.endswith("/sse") and b"text/event-stream" in request.headers.get(b"accept", b"")


def _same_place(endpoint: str, target: str) -> bool:
    parts = urlsplit(endpoint)
    return (parts.path or "/", parts.query) == ((target.partition("?")[0] or "/"), target.partition("?")[2])


def _messages(exchange: Exchange) -> Iterator[dict[str, Any]]:
    """The JSON-RPC messages of a reply: one, a batch, or those of a stream; `endpoint` is the older transport's."""
    reply, limits = exchange.reply, exchange.route.limits
    if reply is None:
        return
    if b"text/event-stream" not in reply.headers.get(b"content-type", b"").lower():
        if reply.size:
            yield from _objects(reply.json(limits).value)
        return
    raw: bytes | str = reply.body
    if (encoding := reply.headers.get(b"content-encoding")) is not None:
        raw = decode(encoding, reply.body, limits)
    if isinstance(raw, str):
        return
    for event in SseDecoder(limits.body_bytes).feed(raw, exchange.ended):
        if isinstance(event, ServerSentEvent):
            if event.event == "endpoint":
                yield {"endpoint": event.data.decode("utf-8", "replace").strip()}
            else:
                yield from _objects(parse(event.data, limits.depth).value)


def _objects(value: object) -> Iterator[dict[str, Any]]:
    for item in value if type(value) is list else [value]:
        if type(item) is dict and ("result" in item or "error" in item or "method" in item):
            yield item


def _outcome(answer: Mapping[str, Any]) -> tuple[Outcome, int | None]:
    error = answer.get("error")
    if type(error) is dict:
        code = error.get("code")
        code = code if type(code) is int else None
        return ("rejected" if code in _CALLERS_FAULT else "failed"), code
    result = answer.get("result")
    if type(result) is not dict:
        return "unknown", None
    if result.get("isError") is True:
        return "failed", None
    if result.get("resultType") == "input_required":
        return "interrupted", None
    task = result.get("task")
    if type(task) is dict and type(status := task.get("status")) is str:
        return _TASK_OUTCOMES.get(status, "unknown"), None
    return "completed", None
