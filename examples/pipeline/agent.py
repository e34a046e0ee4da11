"""What the five agents share: an A2A server, an A2A client, and the envelope that they hand to each other.

An agent subclasses `Agent` and does its work in `work`, which takes an envelope and returns the hand-overs that follow
from it. A handoff is one A2A message with the envelope in a data part; the call returns when the target has done its
part, and the target then hands its own output on.

Nothing here knows of Handrail. The agent is told where its peers are (`--peer writer=http://…`), and those addresses
may be a sidecar's. The one thing beyond plain A2A is the header `handrail-deadline`, which the coordinator sends.

With `--supervised` an agent reports on standard output, takes orders on standard input, both as JSON lines, and ends
when its standard input does: whoever started it cannot leave it behind, however that one ends.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from a2a.client import ClientCallContext, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError, A2AClientTimeoutError
from a2a.helpers.proto_helpers import get_data_parts, new_data_message, new_data_part, new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Role, SendMessageRequest
from a2a.utils.constants import TransportProtocol
from a2a.utils.errors import InvalidParamsError
from starlette.applications import Starlette

HERE = Path(__file__).parent
LIBRARY = HERE / "library"

ENDING_SECONDS = 2.0
"""How long an agent that ends waits for its peers' last answers."""

LONGEST_STALL_SECONDS = 60.0
"""A caller that has not called again by then does not."""

Envelope = dict[str, Any]


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Handover:
    """One envelope on its way to one peer."""

    target: str
    envelope: Envelope
    headers: Mapping[str, str] = field(default_factory=dict)


class Agent(AgentExecutor):
    """One agent: serves A2A on a port, does its work, hands on what follows from it."""

    name: str
    description: str
    binding: TransportProtocol = TransportProtocol.JSONRPC
    """What its card offers first, and so how its peers call it."""
    streaming = False
    patience_seconds = 30.0
    """How long it waits for a peer before it calls again."""
    calls = 2
    """How often it calls in all when the peer does not answer in time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.version: str = options.version
        self.port: int = options.port
        self.supervised: bool = options.supervised
        self.waits: bool = options.wait
        self.peers = dict(peer.split("=", 1) for peer in options.peer)
        self._clients: dict[str, asyncio.Task[Any]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._stall: Mapping[str, Any] | None = None
        self._stalled: tuple[Any, ...] | None = None
        self._asked_again = asyncio.Event()
        self._handing: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(transport=Counted(self), timeout=self.patience_seconds, trust_env=False)
        self._factory = ClientFactory(
            ClientConfig(
                httpx_client=self._http,
                supported_protocol_bindings=[TransportProtocol.JSONRPC, TransportProtocol.HTTP_JSON],
            )
        )

    # What an agent is made of.

    def work(self, envelope: Envelope) -> list[Handover]:
        """An envelope to the hand-overs that follow from it. Raises ValueError for what it cannot work with."""
        raise NotImplementedError

    def envelope(
        self,
        target: str,
        task: str,
        *,
        status: str,
        summary: str,
        artifacts: list[Any],
        confidence: Any,
        context: Mapping[str, Any],
        decided: str | None = None,
        started: float | None = None,
        **extra: Any,
    ) -> Envelope:
        """The canonical envelope. `decided` is added to the decisions that came in with the context."""
        now = time.time()
        return {
            "task_id": task,
            "source_agent": self.name,
            "target_agent": target,
            "status": status,
            "output": {"summary": summary, "artifacts": artifacts, "confidence": confidence},
            "context": {
                "original_goal": context["original_goal"],
                "constraints": list(context["constraints"]),
                "decisions_made": [*context["decisions_made"], *([decided] if decided else [])],
            },
            "metadata": {
                "started_at": rfc3339(now if started is None else started),
                "completed_at": rfc3339(now),
                "token_count": len(json.dumps(artifacts)) // 4,
                "model": None,
            },
            **extra,
        }

    # A2A, the server's side.

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        message = context.message
        envelopes = get_data_parts(message.parts) if message is not None else []
        if message is None or not envelopes:
            raise InvalidParamsError(message="a data part with an envelope is missing")
        await event_queue.enqueue_event(new_task_from_user_message(message))
        updater = TaskUpdater(event_queue, message.task_id, message.context_id)
        await updater.start_work()
        try:
            await self._perhaps_stall(message.context_id, envelopes[0])
            follow = self.work(envelopes[0])
        except (KeyError, TypeError, ValueError) as error:
            self.report(problem=f"{type(error).__name__}: {error}")
            await updater.failed()
            return
        receipt = {"task_id": envelopes[0]["task_id"], "handled_by": f"{self.name} {self.version}"}
        await updater.add_artifact([new_data_part(receipt)], name="receipt")
        await updater.complete()
        for handover in follow:
            self.spawn(self.hand_over(handover, message.context_id))

    async def _perhaps_stall(self, workflow: str, envelope: Envelope) -> None:
        """Wait over the work that the agent was told to stall over; with `again`, until it is asked for once more."""
        piece = workflow, envelope["source_agent"], envelope["task_id"]
        if piece == self._stalled:
            self._asked_again.set()
        elif self._stall is not None and self._stall["of"] == envelope["source_agent"]:
            order, self._stall, self._stalled = self._stall, None, piece
            if order.get("again"):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._asked_again.wait(), LONGEST_STALL_SECONDS)
            await asyncio.sleep(float(order["stall"]))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise InvalidParamsError(message="this agent's work is too short to be cancelled")

    def card(self) -> AgentCard:
        url = f"http://127.0.0.1:{self.port}/"
        bindings = sorted((TransportProtocol.JSONRPC, TransportProtocol.HTTP_JSON), key=lambda b: b != self.binding)
        return AgentCard(
            name=self.name,
            description=self.description,
            version=self.version,
            supported_interfaces=[
                AgentInterface(url=url, protocol_binding=binding, protocol_version="1.0") for binding in bindings
            ],
            capabilities=AgentCapabilities(streaming=self.streaming),
            default_input_modes=["application/json"],
            default_output_modes=["application/json"],
            skills=[AgentSkill(id=self.name, name=self.name, description=self.description, tags=["report"])],
        )

    def app(self) -> Starlette:
        card = self.card()
        handler = DefaultRequestHandler(agent_executor=self, task_store=InMemoryTaskStore(), agent_card=card)
        return Starlette(
            routes=[
                *create_agent_card_routes(card),
                *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True),
                *create_rest_routes(handler),
            ]
        )

    # A2A, the client's side.

    async def hand_over(self, handover: Handover, workflow: str) -> None:
        """Send one envelope; call again where the peer does not answer in time."""
        task = asyncio.ensure_future(self._hand_over(handover, workflow))
        self._handing.add(task)
        task.add_done_callback(self._handing.discard)
        await task

    async def _hand_over(self, handover: Handover, workflow: str) -> None:
        for call in range(1, self.calls + 1):
            try:
                async for _ in self._send(handover, workflow):
                    pass
                return
            except A2AClientTimeoutError:
                self.report(timeout=handover.target, workflow=workflow, call=call)
            except A2AClientError as error:
                self.report(problem=f"{handover.target}: {error}")
                return

    async def _send(self, handover: Handover, workflow: str) -> AsyncIterator[Any]:
        client = await self._client(handover.target)
        message = new_data_message(handover.envelope, context_id=workflow, role=Role.ROLE_USER)
        context = ClientCallContext(service_parameters=dict(handover.headers), timeout=self.patience_seconds)
        async for response in client.send_message(SendMessageRequest(message=message), context=context):
            yield response

    async def _client(self, peer: str) -> Any:
        """A client for the peer, made from its card, which is read once."""
        if peer not in self._clients:
            self._clients[peer] = asyncio.ensure_future(self._factory.create_from_url(self.peers[peer]))
        try:
            return await self._clients[peer]
        except A2AClientError:
            self._clients.pop(peer, None)  # it may be there the next time
            raise

    # Life.

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def report(self, **what: Any) -> None:
        """One JSON line on standard output; every exchange only for a supervisor, who counts them."""
        if self.supervised or "exchange" not in what:
            os.write(1, json.dumps({"agent": self.name} | what).encode() + b"\n")

    def obey(self, order: Mapping[str, Any]) -> None:
        """One order from standard input."""
        if "stall" in order:
            self._stall = order
            self._asked_again.clear()

    async def begin(self) -> None:
        """Called once the port is open; cancelled when the agent ends."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        server = Server(
            uvicorn.Config(self.app(), host="127.0.0.1", port=self.port, log_level="error", timeout_graceful_shutdown=1)
        )
        reader: asyncio.StreamReader | None = None
        if self.supervised:
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        if self.waits and reader is not None:
            self.report(waiting=True)
            if not await reader.readline():
                return
        serving = asyncio.ensure_future(server.serve())
        await asyncio.wait((serving, asyncio.ensure_future(server.opened.wait())), return_when=asyncio.FIRST_COMPLETED)
        self.report(ready=True, version=self.version)
        beginning = asyncio.ensure_future(self.begin())
        if reader is not None:
            while line := await reader.readline():
                self.obey(json.loads(line))
            server.should_exit = True
        await serving
        beginning.cancel()
        if self._handing:
            await asyncio.wait(self._handing, timeout=ENDING_SECONDS)
        await self._http.aclose()


class Server(uvicorn.Server):
    """Says when its port is open."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.opened = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.opened.set()


class Counted(httpx.AsyncHTTPTransport):
    """Reports every HTTP exchange that the agent makes: what the sidecars' records are held against.

    Each has a connection of its own. One that is kept may be closed by the peer, which is replaced now and then, just
    as the next request leaves, and then nobody can say whether that was an exchange.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__(limits=httpx.Limits(max_keepalive_connections=0))
        self._agent = agent
        self._names = {urlsplit(url).port: name for name, url in agent.peers.items()}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        kind = "card" if request.method == "GET" else "handoff"
        self._agent.report(exchange=kind, target=self._names.get(request.url.port))
        return await super().handle_async_request(request)


def main(agent: type[Agent]) -> None:
    """The command line of every agent."""
    parser = argparse.ArgumentParser(description=agent.description)
    parser.add_argument("--port", type=int, required=True, help="where to serve A2A")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL", help="where a peer is (repeatable)")
    parser.add_argument("--version", default="1.0", help="which version of itself this agent is")
    parser.add_argument("--supervised", action="store_true", help="JSON lines on standard input and output")
    parser.add_argument("--wait", action="store_true", help="with --supervised: open the port when a line comes in")
    options = parser.parse_args()
    if not options.supervised:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(agent(options).run())
    except KeyboardInterrupt:
        pass
