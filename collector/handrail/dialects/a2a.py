"""A2A exchanges become handoffs: protocol 1.0 and 0.3, JSON-RPC and REST, streamed and not.

- A message that is sent is a handoff. One sent to a task that asked for input goes on with a handoff that was seen
  already, so it is of kind `resume`, as subscribing to a task is. Reading, listing and cancelling tasks, push
  configuration and agent cards are of kind `read`.
- target and agent_version: the agent card that was fetched from this upstream earlier; source: `metadata`.
- workflow: what the message says, else what its contextId or referenceTaskIds were joined to before, else the
  contextId, else the trace; with none of them in the request, the contextId that the reply gives.
- task: what the message says, else its taskId, else the task that the reply names; the messageId until then. The same
  message sent again (same messageId, same content, same context) is the same task, whatever new task the server
  makes of it.
- payload: the data of the only data part; else `{"text": …}`, or `{"parts": […]}`.

The JSON of the 0.3 REST binding is snake_case with `request`, `content` and `data.data`, as released clients send it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from handrail.dialects import NAME_LENGTH, Told, begin, complete, outcome_of, state, text
from handrail.dialects.bounded import Bounded
from handrail.dialects.envelope import add_metadata, is_envelope, said_by
from handrail.event import Event, Fault, Kind, Outcome, digest_of
from handrail.wire import Body, Exchange
from handrail.wire.body import EMPTY, decode, parse
from handrail.wire.sse import ServerSentEvent, SseDecoder

AGENT_CARD = "agent-card"

KIND_OF_METHOD: Mapping[str, Kind] = {
    "SendMessage": "handoff",
    "SendStreamingMessage": "handoff",
    "GetTask": "read",
    "ListTasks": "read",
    "CancelTask": "read",
    "SubscribeToTask": "resume",
    "CreateTaskPushNotificationConfig": "read",
    "GetTaskPushNotificationConfig": "read",
    "ListTaskPushNotificationConfigs": "read",
    "DeleteTaskPushNotificationConfig": "read",
    "GetExtendedAgentCard": "read",
    "message/send": "handoff",
    "message/stream": "handoff",
    "tasks/get": "read",
    "tasks/list": "read",
    "tasks/cancel": "read",
    "tasks/resubscribe": "resume",
    "tasks/pushNotificationConfig/set": "read",
    "tasks/pushNotificationConfig/get": "read",
    "tasks/pushNotificationConfig/list": "read",
    "tasks/pushNotificationConfig/delete": "read",
    "agent/getAuthenticatedExtendedCard": "read",
}
_CARD_METHODS = frozenset({"GetExtendedAgentCard", "agent/getAuthenticatedExtendedCard"})

OUTCOME_OF_STATE: Mapping[str, Outcome] = {
    "completed": "completed",
    "failed": "failed",
    "canceled": "failed",
    "cancelled": "failed",
    "rejected": "rejected",
    "submitted": "accepted",
    "working": "accepted",
    "input-required": "interrupted",
    "auth-required": "interrupted",
}
_LAST_STATES = frozenset(OUTCOME_OF_STATE) - {"submitted", "working"}
"""After these a client may hang up: the stream has said what it had to say."""

_CALLERS_FAULT = frozenset({-32600, -32601, -32602, *range(-32009, -32000)})
_A2A_HEADERS = (b"a2a-version", b"a2a-extensions", b"x-a2a-extensions")
_MCP_HEADERS = (b"mcp-protocol-version", b"mcp-method", b"mcp-session-id")
_SEND_PATHS = ("/message:send", "/message:stream")
_CARD_PATHS = ("/.well-known/agent-card.json", "/.well-known/agent.json", "/extendedAgentCard", "/v1/card")
_SOURCE_KEYS = ("source_agent", "sourceAgent", "sender", "from")
_TARGET_KEYS = ("target_agent", "targetAgent", "recipient", "to")

_TASK_PATH = re.compile(
    r"/tasks(?:/(?P<task>[^/:]+)(?:(?P<verb>:cancel|:subscribe)|(?P<push>/pushNotificationConfigs)(?:/[^/]*)?)?)?\Z"
)


class _Card:
    __slots__ = ("name", "version")

    def __init__(self, name: str, version: str | None) -> None:
        self.name, self.version = name, version


class _Place:
    """The agents behind one authority, by the path of their interface."""

    __slots__ = ("agents", "is_direct")

    def __init__(self, agents: Bounded[str, _Card], is_direct: bool) -> None:
        self.agents = agents
        self.is_direct = is_direct
        """Fetched from there, not only claimed by a card that was fetched elsewhere."""

    def agent(self, path: str) -> _Card | None:
        """The agent whose interface has the longest path that leads to `path`."""
        best: _Card | None = None
        length = -1
        for prefix, card in self.agents.items():
            if len(prefix) > length and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                best, length = card, len(prefix)
        return best


class A2a:
    """Reads A2A. What it remembers is bounded: `limit` contexts, tasks, messages and authorities."""

    name = "a2a"

    def __init__(self, limit: int = 4_096) -> None:
        self._places: Bounded[str, _Place] = Bounded(limit)
        self._contexts: Bounded[str, str] = Bounded(limit)
        self._tasks: Bounded[str, str] = Bounded(limit)
        self._waiting: Bounded[str, None] = Bounded(limit)
        # With the context, because some clients count their messages from 1 in every conversation.
        self._sent: Bounded[tuple[str, str, str | None], tuple[str | None, str | None]] = Bounded(limit)

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """One event, where the request is A2A."""
        request = exchange.request
        path = request.target.partition("?")[0]
        if request.method == "POST":
            if path.endswith(_SEND_PATHS):
                body = request.json(exchange.route.limits)
                return (self._message(exchange, path, path.rpartition("/")[2], body, body.value),)
            body = request.json(exchange.route.limits)
            value = body.value
            if type(value) is dict and type(method := value.get("method")) is str:
                kind = KIND_OF_METHOD.get(method)
                if kind is None:
                    return (self._read(exchange, path, method, "read", Told()),) if _has_header(exchange) else ()
                if any(header in request.headers for header in _MCP_HEADERS):
                    return ()  # MCP has tasks/get and its kin too
                if "jsonrpc" not in value and not _has_header(exchange):
                    return ()
                params = value.get("params")
                if kind == "handoff":
                    return (self._message(exchange, path, method, body, params),)
                operation = AGENT_CARD if method in _CARD_METHODS else method
                return (self._read(exchange, path, operation, kind, _task_said(params)),)
        if request.method in ("GET", "POST", "DELETE"):
            is_card = request.method == "GET" and is_card_path(path)
            if is_card and (not path.endswith("/v1/card") or _has_header(exchange)):
                return (self._read(exchange, path, AGENT_CARD, "read", Told()),)
            if "/tasks" in path and (events := self._rest(exchange, path)):
                return events
            if request.method == "POST" and request.size and _has_header(exchange):
                return (self._message(exchange, path, None, request.json(exchange.route.limits), None),)
        return ()

    def _rest(self, exchange: Exchange, path: str) -> tuple[Event, ...]:
        """The REST binding's requests about tasks. Only a verb or `pushNotificationConfigs` says A2A by itself."""
        match = _TASK_PATH.search(path)
        if match is None:
            return ()
        verb, push = match["verb"], match["push"]
        if not (verb or push or (exchange.request.method == "GET" and _has_header(exchange))):
            return ()
        if verb:
            operation = f"tasks{verb}"
        elif push:
            operation = "pushNotificationConfigs"
        else:
            operation = "tasks" if match["task"] is None else "tasks/{id}"
        said = Told(task=text(match["task"]))
        return (self._read(exchange, path, operation, "resume" if verb == ":subscribe" else "read", said),)

    def _read(self, exchange: Exchange, path: str, operation: str, kind: Kind, said: Told) -> Event:
        task = said.task
        if task is not None and said.workflow is None:
            said.workflow = self._tasks.get(task)
        self._add_card(exchange, path, said)
        body = exchange.request.json(exchange.route.limits) if exchange.request.size else EMPTY
        return begin(exchange, "a2a", text(operation), said, body, kind=kind)

    def _message(self, exchange: Exchange, path: str, operation: str | None, body: Body, params: object) -> Event:
        message, parameters = _message_in(params)
        payload = content_of(message.get("parts") or message.get("content"))
        said = said_by(payload) if is_envelope(payload) else Told()
        for metadata in (message.get("metadata"), parameters.get("metadata")):
            if type(metadata) is dict:
                said.source = _first(metadata, _SOURCE_KEYS) or said.source
                said.target = _first(metadata, _TARGET_KEYS) or said.target
                add_metadata(said, metadata)
        if said.state_version is None and type(payload) is dict and "state_version" in payload:
            said.state_version = state(payload["state_version"])
        context = text(message.get("contextId") or message.get("context_id"))
        task = text(message.get("taskId") or message.get("task_id"))
        message_id = text(message.get("messageId") or message.get("message_id"))
        sent: tuple[str | None, str | None] = (None, None)
        if payload is not None and message_id is not None:
            said.digest = digest = digest_of(payload)
            if task is None:
                sent = self._sent.get((message_id, digest, context), sent)
        if said.task is None:
            said.task = task or sent[1] or message_id
        if said.workflow is None:
            said.workflow = self._joined(context, task, message) or sent[0]
        self._add_card(exchange, path, said)
        kind: Kind = "resume" if task is not None and task in self._waiting else "handoff"
        return begin(exchange, "a2a", text(operation), said, body, payload=payload, kind=kind)

    def _joined(self, context: str | None, task: str | None, message: Mapping[str, Any]) -> str | None:
        """The workflow that earlier hops gave to this context or to a task that the message refers to."""
        if context is not None and (workflow := self._contexts.get(context)) is not None:
            return workflow
        if task is not None and (workflow := self._tasks.get(task)) is not None:
            return workflow
        references = message.get("referenceTaskIds") or message.get("reference_task_ids")
        if type(references) is list:
            for reference in references[:32]:
                if type(reference) is str and (workflow := self._tasks.get(reference)) is not None:
                    return workflow
        return context

    def _add_card(self, exchange: Exchange, path: str, said: Told) -> None:
        place = self._places.get(exchange.route.upstream)
        if place is None:
            host = exchange.request.headers.get(b"host")
            place = None if host is None else self._places.get(host.decode("latin-1").lower())
        card = None if place is None else place.agent(path)
        if card is not None:
            if said.target is None:
                said.target = card.name
            if said.agent_version is None:
                said.agent_version = card.version

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """The task's state decides the outcome where the reply tells one; the last one where it is a stream."""
        (event,) = asked
        reply = exchange.reply
        message = _message_of(exchange) if event.kind == "handoff" else {}
        message_id = text(message.get("messageId") or message.get("message_id"))
        if reply is None:
            self._remember(event, message, message_id, None)
            return (complete(event, exchange),)
        seen = _Seen()
        for value in _values(exchange, seen):
            seen.add(value)
        fields: dict[str, Any] = {"outcome": _outcome(exchange, event, seen)}
        if seen.code is not None:
            fields["status"] = seen.code
        if event.operation == AGENT_CARD:
            card = self._learn(exchange, seen.last)
            if card is not None:
                fields["target"], fields["agent_version"] = card.name, card.version
                if event.source is not None and event.target is None:
                    fields["confidence"] = "inferred"
            return (complete(event, exchange, **fields),)
        if event.kind != "read":
            fields["reply"] = seen.content()
        if event.workflow is None and seen.context is not None:
            fields["workflow"] = self._contexts.get(seen.context, seen.context)
        if seen.task is not None and (event.task is None or event.task == message_id):
            fields["task"] = seen.task
        if seen.is_cut and event.uninspected is None:
            fields["uninspected"] = "stream_too_long"
        done = complete(event, exchange, **fields)
        self._remember(done, message, message_id, seen)
        return (done,)

    def _remember(self, event: Event, message: Mapping[str, Any], message_id: str | None, seen: "_Seen | None") -> None:
        """Join the context, the task and the message to the workflow, for the hops to come."""
        if event.kind == "read" and event.operation not in ("GetTask", "tasks/get", "tasks/{id}"):
            return
        workflow = event.workflow
        if seen is not None:
            if workflow is not None and seen.context is not None:
                self._contexts.put(seen.context, workflow)
            if seen.task is not None:
                if workflow is not None:
                    self._tasks.put(seen.task, workflow)
                if OUTCOME_OF_STATE.get(seen.state or "") == "interrupted":
                    self._waiting.put(seen.task, None)
                elif seen.state is not None:
                    self._waiting.pop(seen.task, None)
        context = text(message.get("contextId") or message.get("context_id"))
        if workflow is not None and context is not None:
            self._contexts.put(context, workflow)
        if message_id is not None and event.digest is not None and event.kind == "handoff":
            self._sent.put((message_id, event.digest, context), (workflow, event.task))

    def _learn(self, exchange: Exchange, value: object) -> _Card | None:
        """Remember an agent card under the upstream, the host it was asked from, and its interfaces' authorities."""
        if type(value) is not dict or (name := text(value.get("name"))) is None:
            return None
        if exchange.reply is None or exchange.reply.status != 200:
            return None
        card = _Card(name, text(value.get("version")))
        interfaces = [split for face in _interfaces(value)[:64] if (split := _split(face.get("url"))) is not None]
        paths = {split.path.rstrip("/") for split in interfaces} or {""}
        here = {exchange.route.upstream.lower(), (exchange.request.header("host") or "").lower()} - {""}
        for authority in here:
            for path in paths:
                self._place(authority, path, card, is_direct=True)
        for split in interfaces:
            authority = split.netloc.rpartition("@")[2].lower()
            if authority not in here:
                self._place(authority, split.path.rstrip("/"), card, is_direct=False)
        return card

    def _place(self, authority: str, path: str, card: _Card, *, is_direct: bool) -> None:
        if len(authority) > NAME_LENGTH or len(path) > NAME_LENGTH:
            return  # not cut, as names are: a shortened address would be another address
        place = self._places.get(authority)
        if place is None:
            place = _Place(Bounded(64), is_direct)
        elif place.is_direct and not is_direct:
            return  # a card may say anything of another authority; what was fetched there knows better
        elif is_direct and not place.is_direct:
            place = _Place(Bounded(64), True)
        self._places.put(authority, place)
        place.agents.put(path, card)


class _Seen:
    """What a reply, or the events of a stream one after the other, have told."""

    def __init__(self) -> None:
        self.state: str | None = None
        self.context: str | None = None
        self.task: str | None = None
        self.code: int | None = None
        self.last: object = None
        self.is_message = False
        self.is_cut = False
        self.is_unread = False
        self._message: Any = None
        self._artifacts: dict[str, list[Any]] = {}

    def add(self, value: object) -> None:
        """One JSON-RPC response, or one result of the REST binding."""
        if type(value) is not dict:
            return
        error = value.get("error")
        if type(error) is dict and type(code := error.get("code")) is int and -32768 <= code < 0:
            self.code = code
            return
        result = value.get("result") if "jsonrpc" in value else value
        if type(result) is not dict:
            return
        self.last = result
        kind = result.get("kind")
        if kind is None:
            for key, kind_of_key in _KIND_OF_KEY.items():
                if type(inner := result.get(key)) is dict:
                    kind, result = kind_of_key, inner
                    break
            else:
                kind = "task" if "status" in result and "id" in result else None
        if kind == "message":
            self.is_message = True
            self._message = result
            self.task = text(result.get("taskId") or result.get("task_id")) or self.task
        elif kind == "task":
            self.task = text(result.get("id")) or self.task
            if type(artifacts := result.get("artifacts")) is list:
                self._artifacts.clear()
                for artifact in artifacts:
                    self._add_artifact(artifact, append=False)
        elif kind in ("status-update", "artifact-update"):
            self.task = text(result.get("taskId") or result.get("task_id")) or self.task
            if kind == "artifact-update":
                self._add_artifact(result.get("artifact"), append=result.get("append") is True)
        else:
            return
        self.context = text(result.get("contextId") or result.get("context_id")) or self.context
        status = result.get("status")
        if type(status) is dict:
            if type(named := status.get("state")) is str:
                self.state = named.removeprefix("TASK_STATE_").lower().replace("_", "-")
            self._message = status.get("message") or status.get("update") or self._message

    def _add_artifact(self, artifact: object, *, append: bool) -> None:
        if type(artifact) is not dict or type(parts := artifact.get("parts")) is not list:
            return
        key = text(artifact.get("artifactId") or artifact.get("artifact_id")) or ""
        if append or key == "":
            self._artifacts.setdefault(key, []).extend(parts)
        else:
            self._artifacts[key] = list(parts)

    def content(self) -> Any:
        """The data of the artifacts, else what the message says."""
        if self._artifacts:
            return content_of([part for parts in self._artifacts.values() for part in parts])
        if type(self._message) is dict:
            return content_of(self._message.get("parts") or self._message.get("content"))
        return None


_KIND_OF_KEY = {
    "task": "task",
    "message": "message",
    "msg": "message",
    "statusUpdate": "status-update",
    "artifactUpdate": "artifact-update",
    "status_update": "status-update",
    "artifact_update": "artifact-update",
}


def content_of(parts: object) -> Any:
    """The parts of a message or of artifacts to a payload; None where there are none."""
    if type(parts) is not list or not parts:
        return None
    data: list[Any] = []
    texts: list[str] = []
    others = 0
    for part in parts:
        if type(part) is not dict:
            others += 1
        elif "data" in part and part.get("kind") in (None, "data"):
            data.append(part["data"])
        elif type(part.get("text")) is str:
            texts.append(part["text"])
        else:
            others += 1
    if len(data) == 1:
        (only,) = data
        if type(only) is dict and len(only) == 1 and type(inner := only.get("data")) is dict:
            return inner  # the REST binding of 0.3 wraps it once more
        return only
    if texts and not data and not others:
        return {"text": "\n".join(texts)}
    return {"parts": parts}


def _has_header(exchange: Exchange) -> bool:
    headers = exchange.request.headers
    return any(name in headers for name in _A2A_HEADERS) or b"application/a2a" in headers.get(b"content-type", b"")


def _first(metadata: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first name under these keys."""
    return next((name for key in keys if (name := text(metadata.get(key))) is not None), None)


def _message_in(params: object) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The message and the parameters around it, empty where they are not objects."""
    if type(params) is not dict:
        return {}, {}
    message = params.get("message")
    if message is None:
        message = params.get("request")
    return (message if type(message) is dict else {}), params


def _message_of(exchange: Exchange) -> Mapping[str, Any]:
    value = exchange.request.json(exchange.route.limits).value
    if type(value) is dict and "method" in value:
        value = value.get("params")
    return _message_in(value)[0]


def _task_said(params: object) -> Told:
    if type(params) is not dict:
        return Told()
    return Told(task=text(params.get("id") or params.get("taskId")), workflow=text(params.get("contextId")))


def _values(exchange: Exchange, seen: _Seen) -> Iterator[object]:
    """The JSON values of a reply: one, or one for each event of a stream."""
    reply, limits = exchange.reply, exchange.route.limits
    if reply is None:
        return
    if b"text/event-stream" not in reply.headers.get(b"content-type", b""):
        body = reply.json(limits)
        seen.is_unread = body.reason is not None and body.reason != "duplicate_key"
        yield body.value
        return
    seen.is_cut = reply.cut is not None and reply.cut != "incomplete"
    raw: bytes | str = reply.body
    if (encoding := reply.headers.get(b"content-encoding")) is not None:
        raw = decode(encoding, reply.body, limits)
    if isinstance(raw, str):
        seen.is_unread = True
        return
    for event in SseDecoder(limits.body_bytes).feed(raw, exchange.ended):
        if isinstance(event, ServerSentEvent):
            yield parse(event.data, limits.depth).value


def _outcome(exchange: Exchange, event: Event, seen: _Seen) -> Outcome:
    reported = None if seen.state is None else OUTCOME_OF_STATE.get(seen.state, "unknown")
    if exchange.end != "replied":
        is_told = reported is not None and seen.state in _LAST_STATES and event.kind != "read"
        return reported if is_told and reported is not None else outcome_of(exchange)
    if seen.code is not None:
        return "rejected" if seen.code in _CALLERS_FAULT else "failed"
    by_http = outcome_of(exchange)
    if event.kind == "read" or by_http not in ("completed", "accepted"):
        return by_http
    if seen.is_cut and seen.state not in _LAST_STATES:
        return "unknown"
    if reported is not None:
        return reported
    if seen.is_message:
        return "completed"
    return "unknown" if seen.is_unread else by_http


def is_card_path(path: str) -> bool:
    """Whether an agent card is asked for: the well-known paths of 1.0 and 0.3, and the extended card's."""
    return path.partition("?")[0].endswith(_CARD_PATHS)


def rewrite_card(card: bytes, own_base_url: str) -> bytes | None:
    """An agent card with its HTTP interfaces moved to `own_base_url`; None where it is no card, or nothing moves.

    Path and query are kept; gRPC interfaces stay where they are, for this listener does not speak gRPC. `signatures`
    are dropped: they sign the card as it was. The caller must also drop the ETag and set the Content-Length anew.
    """
    value = parse(card, 64).value
    own = _split(own_base_url)
    if type(value) is not dict or type(value.get("name")) is not str or own is None:
        return None
    moved = False
    for holder in _interfaces(value):
        split = _split(holder.get("url"))
        if split is not None:
            holder["url"] = urlunsplit(split._replace(scheme=own.scheme, netloc=own.netloc))
            moved = True
    if not moved:
        return None
    value.pop("signatures", None)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _interfaces(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a card that hold the `url` of an HTTP interface; the card itself is one in 0.3."""
    found = [card] if card.get("preferredTransport") != "GRPC" else []
    for key in ("supportedInterfaces", "additionalInterfaces"):
        if type(faces := card.get(key)) is list:
            found += [
                face
                for face in faces
                if type(face) is dict and "GRPC" not in (face.get("protocolBinding"), face.get("transport"))
            ]
    return found


def _split(url: object) -> Any:
    """An http or https URL split; None for anything else."""
    if type(url) is not str:
        return None
    try:
        split = urlsplit(url)
    except ValueError:
        return None
    return split if split.scheme in ("http", "https") and split.netloc else None
