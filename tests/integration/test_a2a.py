"""a2a-sdk's own client and server talk through the sidecar and notice nothing; the sidecar knows who gave whom what."""

import asyncio
import contextlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

import httpx
import pytest
import uvicorn
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import get_data_parts, new_data_message, new_data_part, new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    GetTaskRequest,
    Role,
    SendMessageRequest,
)
from a2a.utils.constants import TransportProtocol
from a2a.utils.errors import A2AError
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette

from handrail.config import AdminConfig, Config, RouteConfig
from handrail.edge.demo import SidecarThread
from handrail.event import Event, Finding

ENVELOPE: dict[str, Any] = {
    "task_id": "refund-7",
    "source_agent": "triage",
    "target_agent": "billing",
    "status": "completed",
    "output": {"summary": "a double charge", "artifacts": [{"amount": 42.5, "state_version": 3}], "confidence": 0.9},
    "context": {"original_goal": "refund order 7 – naïve ünïcode", "constraints": ["today"], "decisions_made": []},
    "metadata": {
        "started_at": "2026-01-01T00:00:00Z",
        "completed_at": "2026-01-01T00:00:01Z",
        "token_count": 12,
        "model": None,
    },
}
BINDINGS = (TransportProtocol.JSONRPC, TransportProtocol.HTTP_JSON)
WAYS = [
    pytest.param(version, binding, streaming, id=f"{version}-{binding.value}-{'stream' if streaming else 'send'}")
    for version, binding, streaming in itertools.product(("1.0", "0.3"), BINDINGS, (False, True))
]


class Billing(AgentExecutor):
    """Does what the summary says: an answer in two artifacts, or a failure."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        message = context.message
        assert message is not None
        [envelope] = get_data_parts(message.parts)
        await event_queue.enqueue_event(new_task_from_user_message(message))
        updater = TaskUpdater(event_queue, message.task_id, message.context_id)
        await updater.start_work()
        if envelope["output"]["summary"] == "fail":
            await updater.failed()
            return
        for number, artifact in enumerate((envelope["output"], {"refunded": True})):
            await updater.add_artifact([new_data_part(artifact)], artifact_id=f"artifact-{number}", name="answer")
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


class Server:
    """A billing agent on a port of its own, in a thread of its own. `callers` are the client ports that it saw."""

    def __init__(self, port: int, version: str, binding: TransportProtocol) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.callers: set[int] = set()
        card = AgentCard(
            name="billing",
            description="refunds",
            version="2.1",
            supported_interfaces=[
                AgentInterface(url=self.url + "/", protocol_binding=binding, protocol_version=version)
            ],
            capabilities=AgentCapabilities(streaming=True),
            default_input_modes=["application/json"],
            default_output_modes=["application/json"],
            skills=[AgentSkill(id="refund", name="refund", description="refunds", tags=["money"])],
        )
        handler = DefaultRequestHandler(agent_executor=Billing(), task_store=InMemoryTaskStore(), agent_card=card)
        routes = [
            *create_agent_card_routes(card),
            *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True),
            *create_rest_routes(handler, enable_v0_3_compat=True),
        ]
        application = Starlette(routes=routes)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.callers.add(scope["client"][1])
            await application(scope, receive, send)

        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            threading.Event().wait(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


class Seen:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Event | Finding] = []

    def put(self, record: Event | Finding) -> None:
        self.records.append(record)


Place = tuple[Server, str, Seen]


@pytest.fixture
def behind(free_port: Callable[[], int]) -> Iterator[Callable[[str, TransportProtocol], Place]]:
    """`behind("1.0", binding)`: a server, the URL of the sidecar in front of it, and what the sidecar saw."""
    with contextlib.ExitStack() as stack:

        def start(version: str, binding: TransportProtocol) -> Place:
            server = stack.enter_context(Server(free_port(), version, binding))
            door = f"127.0.0.1:{free_port()}"
            seen = Seen()
            config = Config(
                routes=(RouteConfig(agent="billing", listen=door, upstream=server.url, rewrite_cards=True),),
                admin=AdminConfig(listen="127.0.0.1:0"),
            )
            sidecar = SidecarThread(config, seen)
            stack.callback(sidecar.stop)
            sidecar.start()
            return server, f"http://{door}", seen

        yield start


Call = Callable[[Client], Coroutine[Any, Any, Any]]


def over(url: str, call: Call, *, streaming: bool = False, binding: TransportProtocol = BINDINGS[0]) -> Any:
    """What a call gives on a client that is made from the card at `url`; an A2A error is a result like any other.

    Every URL that the client asks for must begin with `url`.
    """

    async def run() -> Any:
        async def stays(request: httpx.Request) -> None:
            assert str(request.url).startswith(url + "/")

        async with httpx.AsyncClient(trust_env=False, event_hooks={"request": [stays]}) as http:
            config = ClientConfig(httpx_client=http, streaming=streaming, supported_protocol_bindings=[binding])
            client = await ClientFactory(config).create_from_url(url)
            try:
                return await call(client)
            except A2AError as error:
                return type(error).__name__, str(error)

    return asyncio.run(run())


def sending(envelope: Mapping[str, Any], context: str | None = "order-7", message_id: str = "message-7") -> Call:
    """Sends an envelope in a data part and gives every response."""

    async def call(client: Client) -> list[Any]:
        message = new_data_message(envelope, context_id=context, role=Role.ROLE_USER)
        message.message_id = message_id
        return [MessageToDict(item) async for item in client.send_message(SendMessageRequest(message=message))]

    return call


def settled(result: Any) -> Any:
    """A result without what no two runs have in common: instants, and the ids that the server makes."""
    text = json.dumps(result, sort_keys=True)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<instant>", text)
    ids: dict[str, str] = {}
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    return json.loads(re.sub(uuid, lambda match: ids.setdefault(match[0], f"<id {len(ids)}>"), text))


def events_in(seen: Seen, count: int) -> list[Event]:
    """The events that were seen, `count` of them; the last may come a moment after the client has its answer."""
    for _ in range(200):
        if len(seen.records) >= count:
            break
        threading.Event().wait(0.01)
    return [record for record in seen.records if isinstance(record, Event)]


@pytest.mark.parametrize(("version", "binding", "streaming"), WAYS)
def test_a_client_gets_through_the_sidecar_what_it_gets_without(
    behind: Callable[[str, TransportProtocol], Place], version: str, binding: TransportProtocol, streaming: bool
) -> None:
    """Both protocol versions, both bindings, streamed and not: equal results, and one event that says what happened."""
    server, door, seen = behind(version, binding)
    call = sending(ENVELOPE)
    direct = over(server.url, call, streaming=streaming, binding=binding)
    assert len(direct) > 1 if streaming else len(direct) == 1
    assert "refunded" in json.dumps(direct)
    through = over(door, call, streaming=streaming, binding=binding)
    assert settled(through) == settled(direct)

    card, handoff = events_in(seen, 2)
    assert (card.kind, card.operation, card.target, card.agent_version) == ("read", "agent-card", "billing", "2.1")
    assert (handoff.kind, handoff.protocol, handoff.channel) == ("handoff", "a2a", "call")
    assert (handoff.source, handoff.target, handoff.side) == ("triage", "billing", "ingress")
    assert (handoff.workflow, handoff.task, handoff.outcome) == ("order-7", "refund-7", "completed")
    assert (handoff.agent_version, handoff.status, handoff.uninspected) == ("2.1", 200, None)
    assert handoff.payload == ENVELOPE
    assert handoff.operation == {
        ("1.0", "JSONRPC", False): "SendMessage",
        ("1.0", "JSONRPC", True): "SendStreamingMessage",
        ("0.3", "JSONRPC", False): "message/send",
        ("0.3", "JSONRPC", True): "message/stream",
    }.get((version, binding.value, streaming), "message:stream" if streaming else "message:send")
    assert handoff.duration_ms is not None
    assert handoff.ttfb_ms is not None
    assert 0 < handoff.ttfb_ms <= handoff.duration_ms


@pytest.mark.parametrize(("version", "binding", "streaming"), WAYS)
def test_a_task_that_failed_is_a_handoff_that_failed(
    behind: Callable[[str, TransportProtocol], Place], version: str, binding: TransportProtocol, streaming: bool
) -> None:
    """HTTP says 200 either way; the outcome is the task's."""
    server, door, seen = behind(version, binding)
    call = sending(ENVELOPE | {"output": ENVELOPE["output"] | {"summary": "fail"}})
    direct = over(server.url, call, streaming=streaming, binding=binding)
    assert settled(over(door, call, streaming=streaming, binding=binding)) == settled(direct)
    assert events_in(seen, 2)[-1].outcome == "failed"


@pytest.mark.parametrize("binding", BINDINGS)
def test_an_error_of_the_protocol_reaches_the_client_as_it_was(
    behind: Callable[[str, TransportProtocol], Place], binding: TransportProtocol
) -> None:
    """A task that nobody knows: the client raises the same error with and without the sidecar."""
    server, door, seen = behind("1.0", binding)

    async def call(client: Client) -> Any:
        return await client.get_task(GetTaskRequest(id="nobody-knows"))

    direct = over(server.url, call, binding=binding)
    assert direct[0] == "TaskNotFoundError"
    assert over(door, call, binding=binding) == direct
    read = events_in(seen, 2)[-1]
    assert (read.kind, read.target, read.outcome) == ("read", "billing", "rejected")


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_context_that_the_server_makes_is_the_workflow(
    behind: Callable[[str, TransportProtocol], Place], binding: TransportProtocol
) -> None:
    """The first message of a conversation has no contextId; the reply's becomes the workflow."""
    _, door, seen = behind("1.0", binding)
    [result] = over(door, sending(ENVELOPE, context=None), binding=binding)
    assert events_in(seen, 2)[-1].workflow == result["task"]["contextId"]


def test_a_rewritten_card_leads_every_interface_to_the_sidecar(
    behind: Callable[[str, TransportProtocol], Place],
) -> None:
    """And changes nothing else of the card."""
    server, door, _ = behind("1.0", TransportProtocol.JSONRPC)
    path = "/.well-known/agent-card.json"
    direct, through = (httpx.get(url + path, trust_env=False).json() for url in (server.url, door))
    assert direct != through
    assert json.loads(json.dumps(direct).replace(server.url, door)) == through
