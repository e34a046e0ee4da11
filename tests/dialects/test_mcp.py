"""MCP of both generations: who is an agent, what a call came to, and whether it was what the server had declared."""

import json
from typing import Any

import pytest

from dialects.exchanges import exchange
from handrail.config import Config, EdgeConfig, McpAgentConfig, McpConfig
from handrail.edge.files import builtin_packs
from handrail.event import Event, Finding
from handrail.pipeline import Inspector, build, refusal_in
from handrail.rules import load, watches
from handrail.schema.registry import Registry
from handrail.wire import Exchange, Route

ROUTE = Route(agent="desk", side="egress", upstream="mcp.test:80")
INPUT = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}
OUTPUT = {"type": "object", "properties": {"paid": {"type": "boolean"}}, "required": ["paid"]}
ASK = {"name": "ask_refund_agent", "description": "Asks", "inputSchema": INPUT, "outputSchema": OUTPUT}
ADD = {"name": "add", "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}}}}
NEW = {"mcp-protocol-version": "2026-07-28"}


def inspector(config: Config | None = None, *, enforce: bool = False) -> Inspector:
    registry = Registry(config.schemas.edges if config is not None else ())
    packs = [load(text, name) for name, text in builtin_packs()] if not enforce else []
    if enforce:
        packs = [load(ENFORCED, "own")]
    return build(config or Config(), registry, watches(packs, registry))


def call(method: str, params: Any = None, id: Any = 1) -> dict[str, Any]:
    said = {"jsonrpc": "2.0", "method": method}
    return said | ({"id": id} if id is not None else {}) | ({"params": params} if params is not None else {})


def tool(name: str, arguments: Any = None, id: Any = 1, **meta: Any) -> dict[str, Any]:
    return call("tools/call", {"name": name, "arguments": arguments or {}} | ({"_meta": meta} if meta else {}), id)


def result(of: Any, id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": of}


def sse(*messages: Any) -> bytes:
    return b"".join(b"event: message\r\ndata: " + json.dumps(each).encode() + b"\r\n\r\n" for each in messages)


STREAM = {"content-type": "text/event-stream"}
INFO = {"io.modelcontextprotocol/serverInfo": {"name": "refunds", "version": "2.1"}}
ENFORCED = """
language: 1
rules:
  - id: schema.violation
    title: t
    why: w
    maturity: stable
    severity: critical
    kind: schema.violation
    action: enforce
    tests:
      - {name: a repeated key, events: [{at: 0, uninspected: duplicate_key}], finds: 1}
      - {name: nothing wrong, events: [{at: 0}], finds: 0}
"""
_ids = iter(range(1, 1_000_000))


def seen(by: Inspector, body: Any, reply: Any = b"", **fields: Any) -> list[Event | Finding]:
    """What one exchange comes to: its final events, and the findings."""
    named = {"route": ROUTE, "target": "/mcp", "id": f"x{next(_ids)}"} | fields
    found: list[Event | Finding] = []
    for decision in by.whole(exchange(body, reply=reply, **named)):
        assert decision.faults == ()
        if decision.event is not None and decision.event.outcome != "asked":
            found.append(decision.event)
        found += decision.findings
    return found


def events(found: list[Event | Finding]) -> list[Event]:
    return [each for each in found if isinstance(each, Event)]


def findings(found: list[Event | Finding], kind: str = "schema.violation") -> list[Finding]:
    return [each for each in found if isinstance(each, Finding) and each.kind == kind]


def listed(by: Inspector, *tools: Any, **fields: Any) -> None:
    reply = result({"tools": list(tools), "_meta": INFO})
    (event,) = events(seen(by, call("tools/list"), reply, headers=NEW, **fields))
    assert (event.kind, event.operation, event.target) == ("read", "tools/list", "refunds")


def test_a_tool_that_stands_for_an_agent_is_a_handoff() -> None:
    """Its target by the configuration, its source as the client says, its schema as the server lists it."""
    by = inspector()
    listed(by, ASK, ADD)
    meta = {
        "io.modelcontextprotocol/clientInfo": {"name": "triage", "version": "1"},
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    reply = result({"content": [], "structuredContent": {"paid": True}, "_meta": INFO})
    event, answer = events(seen(by, tool("ask_refund_agent", {"order": 7}, **meta), reply, headers=NEW))
    assert (event.kind, event.source, event.target, event.outcome) == ("handoff", "triage", "refund_agent", "completed")
    assert (event.protocol, event.operation, event.payload) == ("mcp", "ask_refund_agent", {"order": 7})
    assert (event.subject, event.version, event.agent_version) == ("refunds.ask_refund_agent", "1", "2.1")
    assert (event.trace_id, event.span_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert event.reply == {"paid": True}
    assert (answer.kind, answer.subject, answer.payload) == ("read", "refunds.ask_refund_agent.result", {"paid": True})


def test_another_tool_is_recorded_and_no_handoff() -> None:
    """Of kind usage, its target the server; the default name of a client library is nobody's."""
    by = inspector()
    listed(by, ADD)
    meta = {"io.modelcontextprotocol/clientInfo": {"name": "mcp", "version": "0.1.0"}}
    (event,) = events(seen(by, tool("add", {"a": 1}, **meta), result({"content": []}), headers=NEW))
    assert (event.kind, event.source, event.target, event.operation) == ("usage", "desk", "refunds", "add")


def test_a_client_may_call_before_it_lists() -> None:
    """The first call is not judged, and names its server by the reply; those after the list are."""
    by = inspector()
    reply = result({"content": [], "_meta": INFO})
    (event,) = events(seen(by, tool("add", {"a": "x"}), reply, headers=NEW))
    assert (event.version, event.target) == (None, "refunds")
    listed(by, ADD)
    assert len(findings(seen(by, tool("add", {"a": "x"}), reply, headers=NEW))) == 1


def test_arguments_and_results_are_judged_each_on_its_side() -> None:
    """Arguments that the inputSchema does not allow are the sender's; a result that the outputSchema does not allow is
    the receiver's."""
    by = inspector()
    listed(by, ASK)
    reply = result({"structuredContent": {"paid": True}})
    (bad,) = findings(seen(by, tool("ask_refund_agent", {"order": "seven"}), reply, headers=NEW))
    assert (bad.side, bad.target, bad.evidence["path"]) == ("sender", "refund_agent", "/order")
    reply = result({"structuredContent": {"paid": "yes"}})
    (bad,) = findings(seen(by, tool("ask_refund_agent", {"order": 7}), reply, headers=NEW))
    assert (bad.side, bad.target, bad.evidence["path"]) == ("receiver", "refund_agent", "/paid")
    assert findings(seen(by, tool("ask_refund_agent", {"order": 7}), sse(reply), reply_headers=STREAM)) != []


def test_a_changed_schema_is_a_new_version() -> None:
    """What the server lists now is what counts now."""
    by = inspector()
    listed(by, ASK)
    (event,) = events(seen(by, tool("ask_refund_agent", {"order": 1}), result({"content": []}), headers=NEW))
    assert event.version == "1"
    other = ASK | {"inputSchema": INPUT | {"required": []}}
    listed(by, other)
    (event,) = events(seen(by, tool("ask_refund_agent", {}), result({"content": []}), headers=NEW))
    assert event.version == "2"


@pytest.mark.parametrize(
    ("answer", "outcome", "status"),
    [
        (result({"content": [], "isError": True}), "failed", 200),
        (result({"content": [], "isError": False}), "completed", 200),
        (result({"resultType": "input_required"}), "interrupted", 200),
        (result({"task": {"taskId": "t", "status": "working"}}), "accepted", 200),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "x"}}, "rejected", -32602),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "x"}}, "failed", -32603),
        (result({"content": []}, id=2), "unknown", 200),
        (result({"content": []}, id="1"), "unknown", 200),
        (result({"content": []}, id=1.0), "completed", 200),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_outcomes(answer: Any, outcome: str, status: int, streamed: bool) -> None:
    """The result with the call's own id says it, as JSON or as the last of a stream."""
    note = call("notifications/progress", {"progress": 1}, None)
    reply, headers = (sse(note, answer), STREAM) if streamed else (answer, {})
    (event,) = events(seen(inspector(), tool("add"), reply, reply_headers=headers))
    assert (event.outcome, event.status) == (outcome, status)


def test_a_session_keeps_its_clients_name() -> None:
    """With the handshake of 2025: names in initialize, calls by session alone."""
    by = inspector()
    hello = call("initialize", {"clientInfo": {"name": "triage", "version": "1"}, "protocolVersion": "2025-11-25"})
    reply = result({"serverInfo": {"name": "refunds", "version": "1"}, "capabilities": {}})
    (event,) = events(seen(by, hello, reply, reply_headers={"mcp-session-id": "s1"}))
    assert (event.kind, event.operation, event.source, event.target) == ("read", "initialize", "triage", "refunds")
    (event,) = events(
        seen(by, call("notifications/initialized", id=None), status=202, headers={"mcp-session-id": "s1"})
    )
    assert (event.kind, event.outcome) == ("read", "accepted")
    (event,) = events(seen(by, tool("transfer_to_billing"), result({}), headers={"mcp-session-id": "s1"}))
    assert (event.kind, event.source, event.target) == ("handoff", "triage", "billing")
    (event,) = events(seen(by, method="DELETE", body=b"", headers={"mcp-session-id": "s1"}))
    assert (event.kind, event.operation) == ("read", "session/end")


def test_a_batch_is_an_event_for_each_call() -> None:
    """Answers are found by their ids, in any order."""
    batch = [tool("add", {"a": 1}, 1), call("notifications/progress", {}, None), tool("ask_x_agent", {}, 2)]
    answers = [result({"isError": True}, 2), result({"content": []}, 1)]
    found = events(seen(inspector(), batch, answers))
    assert [(event.operation, event.kind, event.outcome) for event in found] == [
        ("add", "usage", "completed"),
        ("notifications/progress", "read", "completed"),
        ("ask_x_agent", "handoff", "failed"),
    ]
    assert len({event.id for event in found}) == 3


def older(by: Inspector, *answers: Any, endpoint: str = "/messages/?session_id=s9") -> list[Event]:
    stream = b"event: endpoint\ndata: " + endpoint.encode() + b"\n\n" + sse(*answers)
    route = {"method": "GET", "target": "/sse", "reply_headers": STREAM, "headers": {"accept": "text/event-stream"}}
    return events(seen(by, b"", stream, **route))


def test_older_calls_are_answered_in_their_stream() -> None:
    """Posted with 202; told with what the stream said when that is over, and judged by what it listed."""
    by = inspector()
    post = {"target": "/messages/?session_id=s9", "status": 202}
    hello = call("initialize", {"clientInfo": {"name": "triage"}}, 0)
    for body in (hello, call("tools/list", id=1), tool("ask_refund_agent", {"order": "x"}, 2), tool("add", {}, 3)):
        assert seen(by, body, b"Accepted", **post) == []
    tools = result({"tools": [ASK]}, 1)
    found = older(by, result({"serverInfo": {"name": "refunds"}}, 0), tools, result({"isError": True}, 2))
    told = {(event.operation, event.kind, event.source, event.target, event.outcome) for event in found}
    assert ("ask_refund_agent", "handoff", "triage", "refund_agent", "failed") in told
    assert ("initialize", "read", "triage", "refunds", "completed") in told
    assert {event.subject for event in found if event.kind == "handoff"} == {"refunds.ask_refund_agent"}
    (left,) = (decision.event for decision in by.end())
    assert left is not None
    assert (left.operation, left.outcome) == ("add", "accepted")


def test_somebody_elses_stream_is_plain_http() -> None:
    """A path that ends in /sse is no MCP by itself."""
    headers = {"accept": "text/event-stream"}
    (event,) = events(
        seen(inspector(), b"", b"data: 1\n\n", method="GET", target="/sse", reply_headers=STREAM, headers=headers)
    )
    assert (event.protocol, event.kind, event.operation) == ("http", "read", "GET /sse")


def test_an_older_call_does_not_wait_for_ever() -> None:
    """Told as accepted after `mcp.silence_seconds`, while its stream is still open."""
    by = inspector()
    assert seen(by, tool("add"), b"", target="/messages/?session_id=s9", status=202) == []
    assert by.due(60.0) == []
    (decision,) = by.due(75.0)
    assert decision.event is not None
    assert decision.event.outcome == "accepted"


@pytest.mark.parametrize(
    ("lines", "name", "expected"),
    [
        ((McpAgentConfig(server="ref*"),), "anything", ("handoff", "refunds")),
        ((McpAgentConfig(server="other"),), "anything", ("usage", "refunds")),
        ((McpAgentConfig(tool="ask_*"),), "ask_anna", ("handoff", "anna")),
        ((McpAgentConfig(tool="ask_*", agent="the *"),), "ask_anna", ("handoff", "the anna")),
        ((McpAgentConfig(tool="ask", agent="anna"),), "ask", ("handoff", "anna")),
        ((McpAgentConfig(tool="a.c", agent="x"),), "abc", ("usage", "refunds")),
        ((), "ask_refund_agent", ("usage", "refunds")),
    ],
)
def test_the_configuration_says_who_is_an_agent(lines: Any, name: str, expected: Any) -> None:
    """By the server's name, the tool's, or both; the default lines go where others are written."""
    by = inspector(Config(mcp=McpConfig(agents=lines)))
    listed(by, ADD)
    (event,) = events(seen(by, tool(name), result({}), headers=NEW))
    assert (event.kind, event.target) == expected


def test_an_operators_schema_stands_before_the_tools_own() -> None:
    """Where an edge between the two names a subject that is registered."""
    edges = (EdgeConfig(source="desk", target="refund_agent", subject="refund.request"),)
    registry = Registry(edges)
    subjects, problems = registry.compiled({"refund.request/3.json": b'{"type": "object"}'})
    assert problems == []
    registry.replace(subjects)
    by = build(Config(), registry, ())
    listed(by, ASK)
    (event,) = events(seen(by, tool("ask_refund_agent", {"order": "x"}), result({}), headers=NEW))
    assert (event.subject, event.version) == ("refund.request", "3")


def test_a_bad_call_can_be_refused() -> None:
    """In enforce mode, before the server gets it."""
    by = inspector(enforce=True)
    listed(by, ASK)
    bad = exchange(tool("ask_refund_agent", {"order": "x"}), route=ROUTE, target="/mcp", headers=NEW, id="bad")
    asked, decisions = by.open(bad)
    assert asked[0].name == "mcp"
    refusal = refusal_in(decisions)
    assert refusal is not None
    assert refusal.status == 422


@pytest.mark.parametrize(
    "other",
    [
        exchange({"jsonrpc": "2.0", "method": "eth_call", "id": 1}),
        exchange({"method": "tools/call"}),
        exchange([]),
        exchange(b"tools/call"),
        exchange({"jsonrpc": "2.0", "id": 1, "result": {}}),
        exchange(method="GET", target="/mcp"),
    ],
)
def test_near_misses_are_not_mcp(other: Exchange) -> None:
    """Other JSON-RPC, other JSON, and requests that say nothing."""
    found = [decision.event for decision in inspector().whole(other)]
    assert {event.protocol for event in found if event is not None} == {"http"}


@pytest.mark.parametrize("body", [b"{", b"[1, 2]", b'{"jsonrpc": "2.0", "id": 1, "result": {}}', b"null", b""])
def test_a_header_claims_what_cannot_be_read(body: bytes) -> None:
    """One event all the same."""
    headers = NEW | {"content-type": "application/json"}
    (event,) = events(seen(inspector(), body, headers=headers))
    assert (event.protocol, event.kind) == ("mcp", "read")


@pytest.mark.parametrize(
    "reply", [b"", b"{", b"[]", b"null", b'{"result": 3}', b'[{"id": 1, "result": {"tools": [1, {"name": 3}]}}]']
)
def test_replies_that_make_no_sense_are_survived(reply: bytes) -> None:
    """An event, and no fault."""
    for method in ("tools/list", "initialize", "tools/call"):
        found = events(
            seen(inspector(), call(method, {"name": "x"}), reply, reply_headers={"content-type": "application/json"})
        )
        assert len(found) == 1


def test_what_is_remembered_is_bounded() -> None:
    """Servers, tools and open calls."""
    by = inspector(Config(mcp=McpConfig(servers=5, tools=3)))
    tools = [ADD | {"name": f"t{number}"} for number in range(50)]
    told = 0
    for number in range(50):
        listed(by, *tools, target=f"/mcp{number}")
        told += len(events(seen(by, tool("t1"), b"", target=f"/mcp{number}", status=202)))
    (mcp,) = [dialect for dialect in by.reader._all if dialect.name == "mcp"]
    assert len(mcp._servers) == 5  # type: ignore[attr-defined]
    assert all(len(server.tools) == 3 for server in mcp._servers.values())  # type: ignore[attr-defined]
    assert told + len(by.end()) == 50
