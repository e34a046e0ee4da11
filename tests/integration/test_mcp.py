"""The MCP package's client and server talk through the sidecar and notice nothing; the sidecar knows what was asked.

Streamable HTTP, answered with JSON and with event streams, in both generations of the protocol that the package speaks.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import CallToolResult, Implementation
from pydantic import BaseModel

from handrail.config import AdminConfig, Config, RouteConfig
from handrail.edge.demo import SidecarThread
from handrail.event import Event, Finding

WAYS = [
    pytest.param(mode, as_json, id=f"{mode}-{'json' if as_json else 'sse'}")
    for mode, as_json in itertools.product(("auto", "legacy"), (True, False))
]
"""The newest protocol, 2026-07-28, and the one with a handshake and a session, 2025-11-25."""


class Answer(BaseModel):
    paid: bool


class Refunds(MCPServer):
    """Gives, where it `is_faulty`, what its own `outputSchema` forbids."""

    is_faulty = False

    async def call_tool(self, *args: Any, **named: Any) -> Any:
        found = await super().call_tool(*args, **named)
        if self.is_faulty and isinstance(found, CallToolResult) and "paid" in (found.structured_content or {}):
            return found.model_copy(update={"structured_content": {"paid": "yes"}})
        return found


class Server:
    """An agent behind one tool, and another tool that is none, in a thread of their own."""

    def __init__(self, port: int, *, as_json: bool) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.refunds = Refunds("refunds", version="2.1")

        @self.refunds.tool()
        async def ask_refund_agent(order: int, ctx: Context[Any, Any]) -> Answer:
            await ctx.report_progress(1, 2)
            if order < 0:
                raise ValueError("no such order")
            return Answer(paid=True)

        @self.refunds.tool()
        def add(a: float, b: float) -> float:
            return a + b

        app = self.refunds.streamable_http_app(json_response=as_json)
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

    def events(self, kind: str) -> list[Event]:
        return [record for record in self.records if isinstance(record, Event) and record.kind == kind]

    @property
    def findings(self) -> list[Finding]:
        return [record for record in self.records if isinstance(record, Finding) and record.severity == "critical"]


Place = tuple[Server, str, Seen, SidecarThread]


@pytest.fixture
def behind(free_port: Callable[[], int]) -> Iterator[Callable[[bool], Place]]:
    """`behind(as_json)`: a server, the URL of the sidecar in front of it, what the sidecar saw, and the sidecar."""
    with contextlib.ExitStack() as stack:

        def start(as_json: bool) -> Place:
            server = stack.enter_context(Server(free_port(), as_json=as_json))
            door = f"127.0.0.1:{free_port()}"
            seen = Seen()
            route = RouteConfig(agent="desk", side="egress", listen=door, upstream=server.url)
            sidecar = SidecarThread(Config(routes=(route,), admin=AdminConfig(listen="127.0.0.1:0")), seen)
            stack.callback(sidecar.stop)
            sidecar.start()
            return server, f"http://{door}", seen, sidecar

        yield start


def talk(url: str, mode: Any, *orders: Any) -> list[Any]:
    """Lists the tools, calls one that is no agent, then the agent with each order: what the client was given."""

    async def run() -> list[Any]:
        given: list[Any] = []
        info = Implementation(name="triage", version="1")
        async with Client(f"{url}/mcp", client_info=info, mode=mode) as client:
            given.append(await client.list_tools())
            given.append(await client.call_tool("add", {"a": 1, "b": 2}))
            for order in orders:
                try:
                    given.append(await client.call_tool("ask_refund_agent", {"order": order}))
                except RuntimeError as error:  # the client's own check of what it got
                    given.append(str(error))
        return [each if type(each) is str else each.model_dump(mode="json") for each in given]

    return asyncio.run(run())


@pytest.mark.parametrize(("mode", "as_json"), WAYS)
def test_a_client_gets_through_the_sidecar_what_it_gets_without(
    behind: Callable[[bool], Place], mode: str, as_json: bool
) -> None:
    """And the sidecar knows who asked whom for what, what came of it, and that nothing is wrong."""
    server, url, seen, sidecar = behind(as_json)
    assert talk(url, mode, 7, -1) == talk(server.url, mode, 7, -1)
    sidecar.stop()

    found = seen.events("handoff")
    assert [(event.source, event.target, event.operation) for event in found] == [
        ("triage", "refund_agent", "ask_refund_agent")
    ] * 2
    assert [event.outcome for event in found] == ["completed", "failed"]
    assert [event.payload for event in found] == [{"order": 7}, {"order": -1}]
    assert {(event.protocol, event.subject, event.version) for event in found} == {
        ("mcp", "refunds.ask_refund_agent", "1"),
    }
    [tool] = seen.events("usage")
    assert (tool.operation, tool.target, tool.outcome) == ("add", "refunds", "completed")
    assert seen.findings == []


@pytest.mark.parametrize(("mode", "as_json"), WAYS)
def test_a_result_that_is_not_what_was_declared_is_the_servers_fault(
    behind: Callable[[bool], Place], mode: str, as_json: bool
) -> None:
    """One finding for each such result, with its place; none for those before."""
    server, url, seen, sidecar = behind(as_json)
    talk(url, mode, 7)
    server.refunds.is_faulty = True
    talk(url, mode, 8)
    sidecar.stop()

    found = [finding for finding in seen.findings if (finding.subject or "").endswith("ask_refund_agent.result")]
    assert [(finding.kind, finding.side) for finding in found] == [("schema.violation", "receiver")]
    assert [each["path"] for each in found[0].evidence["violations"]] == ["/paid"]
    result = next(event for event in seen.events("read") if event.id == found[0].event)
    assert result.payload == {"paid": "yes"}


@pytest.mark.parametrize(("mode", "as_json"), WAYS)
def test_arguments_that_the_tool_does_not_take_are_the_callers_fault(
    behind: Callable[[bool], Place], mode: str, as_json: bool
) -> None:
    """The server answers with `isError`, and the schema of `tools/list` says why."""
    _, url, seen, sidecar = behind(as_json)
    talk(url, mode, "seven")
    sidecar.stop()

    [event] = seen.events("handoff")
    assert event.outcome == "failed"
    [finding] = seen.findings
    assert (finding.kind, finding.side, finding.event) == ("schema.violation", "sender", event.id)
    assert [each["path"] for each in finding.evidence["violations"]] == ["/order"]
