"""A2A: recorded traffic of released clients, and transcripts of what the recordings do not hold."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from dialects.exchanges import everything, exchange, final, halves, reader
from handrail.config import Config
from handrail.dialects import Reader
from handrail.dialects.a2a import KIND_OF_METHOD, A2a, content_of, is_card_path, rewrite_card
from handrail.event import Event
from handrail.pipeline import build, replay_exchanges
from handrail.schema.registry import Registry
from handrail.wire import Exchange, Route, har

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "fixtures" / "wire" / "a2a"
EXPECTED = RECORDINGS / "expected.json"
AGENT_OF_PORT = {"9101": "billing_agent", "9102": "refund_agent", "9103": "billing_agent", "9104": "billing_agent"}
OUTCOMES = {"accepted": {"completed", "accepted", "interrupted"}, "rejected": {"rejected"}}


def recorded(run: str) -> list[Exchange]:
    path = RECORDINGS / f"{run.replace('+', '_')}.har"
    return list(har.load(path.read_text(), path.name))


def handoffs(exchanges: list[Exchange]) -> list[Event]:
    """The handoffs in a recording, as `replay` finds them, in the order in which they were asked."""
    inspector = build(Config(), Registry(), ())
    events = [decision.event for decision in replay_exchanges(exchanges, inspector) if decision.event is not None]
    found = [event for event in events if event.outcome != "asked" and event.kind == "handoff"]
    return sorted(found, key=lambda event: event.at)


@pytest.mark.skipif(not EXPECTED.exists(), reason="the recorded traffic is not beside this checkout")
@pytest.mark.parametrize("run", list(json.loads(EXPECTED.read_text())) if EXPECTED.exists() else [])
def test_recorded_handoffs_are_found_and_none_is_invented(run: str) -> None:
    """From, to, content and outcome of every handoff that was provoked, in order, and no other."""
    exchanges = recorded(run)
    upstream = {exchange.id: exchange.route.upstream for exchange in exchanges}
    names = {
        exchange.route.upstream: orjson.loads(exchange.reply.body)["name"]
        for exchange in exchanges
        if exchange.reply is not None and is_card_path(exchange.request.target)
    }
    found = handoffs(exchanges)
    expected = json.loads(EXPECTED.read_text())[run]
    told = [(event.source, AGENT_OF_PORT[upstream[event.id].rpartition(":")[2]]) for event in found]
    assert told == [(label["from"], label["to"]) for label in expected]
    for event, label in zip(found, expected, strict=True):
        assert event.target == names.get(upstream[event.id])  # the card's name; none was fetched, none is made up
        assert event.agent_version == ("1.2.3" if event.target else None)
        assert event.outcome in OUTCOMES[label["outcome"].partition(":")[0]]
        if label["args"]:
            assert (event.payload, event.state_version) == (label["args"], 3)
        else:
            assert event.payload == {"text": "hi"}


@pytest.mark.skipif(not EXPECTED.exists(), reason="the recorded traffic is not beside this checkout")
def test_hops_that_share_a_context_share_a_workflow() -> None:
    """The reply's contextId names the workflow of a first hop; a later hop that carries it joins."""
    first, second = handoffs(recorded("v1-jsonrpc-same-context-reference"))
    assert second.workflow is not None
    assert first.workflow == second.workflow
    assert (second.reply, second.task) == (
        {"state_version": 4, "refund_id": "R-1"},
        "73ee1d27-439a-4a1e-85a8-cb8aab2eea77",
    )


@pytest.mark.skipif(not EXPECTED.exists(), reason="the recorded traffic is not beside this checkout")
def test_reading_a_task_is_no_handoff() -> None:
    """GetTask, ListTasks and card fetches are reads, one event each; going on after a question is `resume`."""
    inspector = build(Config(), Registry(), ())
    exchanges = recorded("v1-jsonrpc-return-immediately-GetTask") + recorded("v1-jsonrpc-input-required")
    decisions = list(replay_exchanges(exchanges, inspector))
    last = [decision.event for decision in decisions if decision.event and decision.event.outcome != "asked"]
    assert len(last) == len(exchanges)
    assert {event.operation for event in last if event.kind == "read"} == {"agent-card", "GetTask", "ListTasks"}
    assert [event.operation for event in last if event.kind == "resume"] == ["SendMessage"]


def message(**fields: Any) -> dict[str, Any]:
    return {"messageId": "m1", "role": "ROLE_USER", "parts": [{"data": {"n": 1}}]} | fields


def send(method: str = "SendMessage", /, **fields: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"message": message(**fields)}}


def task(state: str, /, **fields: Any) -> dict[str, Any]:
    return {"id": "t1", "contextId": "c1", "status": {"state": state}} | fields


def result(value: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": value}


def stream(*values: Any) -> bytes:
    return b"".join(b"data: " + orjson.dumps(value) + b"\r\n\r\n" for value in values)


SSE = {"content-type": "text/event-stream; charset=utf-8"}


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("completed", "completed"),
        ("failed", "failed"),
        ("canceled", "failed"),
        ("rejected", "rejected"),
        ("submitted", "accepted"),
        ("working", "accepted"),
        ("input-required", "interrupted"),
        ("auth-required", "interrupted"),
        ("unspecified", "unknown"),
    ],
)
def test_the_tasks_state_decides_in_both_versions_and_bindings(state: str, outcome: str) -> None:
    """1.0 and 0.3, JSON-RPC and REST, at once and as the last event of a stream."""
    new = task("TASK_STATE_" + state.upper().replace("-", "_"))
    old = task(state) | {"kind": "task"}
    update = {"statusUpdate": {"taskId": "t1", "contextId": "c1", "status": new["status"]}}
    working = {"task": task("TASK_STATE_WORKING")}
    for event in (
        final(exchange(send(), reply=result({"task": new}))),
        final(exchange(send("message/send"), reply=result(old))),
        final(exchange({"message": message()}, target="/t/message:send", reply={"task": new})),
        final(exchange(send("SendStreamingMessage"), reply=stream(result(working), result(update)), reply_headers=SSE)),
        final(
            exchange({"message": message()}, target="/message:stream", reply=stream(working, update), reply_headers=SSE)
        ),
    ):
        assert (event.outcome, event.task, event.workflow, event.protocol) == (outcome, "t1", "c1", "a2a")


@pytest.mark.parametrize("code", [-32600, -32601, -32602, -32001, -32005, -32009])
def test_errors_of_the_caller_are_rejections(code: int) -> None:
    """HTTP says 200, the error says whose fault: the code is the status."""
    event = final(exchange(send(), reply={"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": "no"}}))
    assert (event.outcome, event.status) == ("rejected", code)


@pytest.mark.parametrize("code", [-32603, -32700, -32050, -32010])
def test_other_errors_are_failures(code: int) -> None:
    """Also inside a stream, after work had begun."""
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": code}}
    assert final(exchange(send(), reply=error)).outcome == "failed"
    replies = stream(result({"task": task("TASK_STATE_WORKING")}), error)
    assert final(exchange(send("SendStreamingMessage"), reply=replies, reply_headers=SSE)).outcome == "failed"


def test_errors_of_the_rest_binding() -> None:
    """There HTTP says it; a google.rpc code in the body is not JSON-RPC's."""
    error = {"error": {"code": 404, "status": "NOT_FOUND"}}
    event = final(exchange({"message": message()}, target="/message:send", status=404, reply=error))
    assert (event.outcome, event.status) == ("rejected", 404)
    assert final(exchange(send(), status=502, reply=b"bad gateway")).outcome == "failed"


def test_a_message_for_an_answer_is_complete() -> None:
    """An agent may answer at once, without a task; the messageId is then all there is to name it by."""
    reply = {"message": {"messageId": "r1", "contextId": "c9", "parts": [{"text": "hello"}, {"text": "there"}]}}
    event = final(exchange(send(), reply=result(reply)))
    assert (event.outcome, event.task, event.workflow) == ("completed", "m1", "c9")
    assert event.reply == {"text": "hello\nthere"}
    event = final(exchange(send("message/send"), reply=result(reply["message"] | {"kind": "message"})))
    assert (event.outcome, event.reply) == ("completed", {"text": "hello\nthere"})


def test_a_stream_is_judged_by_its_last_state() -> None:
    """A client may hang up once that was said; before that the hang-up is the outcome."""
    told = [result({"task": task("TASK_STATE_WORKING")}), result({"statusUpdate": task("TASK_STATE_COMPLETED")})]
    request = send("SendStreamingMessage")
    ended = final(exchange(request, reply=stream(*told), reply_headers=SSE, end="client_abort", reply_cut="incomplete"))
    assert ended.outcome == "completed"
    cut = final(
        exchange(request, reply=stream(told[0]), reply_headers=SSE, end="upstream_reset", reply_cut="incomplete")
    )
    assert cut.outcome == "interrupted"
    long = final(exchange(request, reply=stream(told[0]), reply_headers=SSE, reply_cut="too_large"))
    assert (long.outcome, long.uninspected) == ("unknown", "stream_too_long")


def test_artifacts_of_a_stream_are_put_together() -> None:
    """Chunks of one artifact are appended where they say so, replaced where they do not."""

    def update(append: bool, text: str) -> Any:
        artifact = {"artifactId": "a", "parts": [{"text": text}]}
        return result({"artifactUpdate": {"taskId": "t1", "append": append, "artifact": artifact}})

    replies = stream(update(False, "old"), update(False, "new"), update(True, "er"))
    event = final(exchange(send("SendStreamingMessage"), reply=replies, reply_headers=SSE))
    assert event.reply == {"text": "new\ner"}


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        ([{"data": {"a": 1}}, {"text": "x"}], {"a": 1}),
        ([{"kind": "data", "data": {"a": 1}}, {"kind": "text", "text": "x"}], {"a": 1}),
        ([{"data": {"data": {"a": 1}}}], {"a": 1}),
        ([{"data": [1]}], [1]),
        ([{"text": "x"}], {"text": "x"}),
        ([{"data": {}}, {"data": {}}], {"parts": [{"data": {}}, {"data": {}}]}),
        ([{"text": "x"}, {"url": "u"}], {"parts": [{"text": "x"}, {"url": "u"}]}),
        ([17], {"parts": [17]}),
        ([], None),
        ("parts", None),
    ],
)
def test_content_of_parts(parts: object, content: object) -> None:
    """The only data part's data, else the text, else all parts."""
    assert content_of(parts) == content


def test_the_rest_binding_of_03_as_clients_send_it() -> None:
    """snake_case, `request`, `content` and `data.data`: MessageToDict with preserving_proto_field_name."""
    body = {
        "request": {
            "message_id": "m1",
            "context_id": "c1",
            "task_id": "t1",
            "role": "ROLE_USER",
            "content": [{"data": {"data": {"state_version": 3.0}}}],
            "metadata": {"source_agent": "triage"},
        }
    }
    event = final(exchange(body, target="/v1/message:send"))
    assert (event.payload, event.state_version, event.source) == ({"state_version": 3}, 3, "triage")
    assert (event.task, event.workflow) == ("t1", "c1")
    assert isinstance(event.state_version, int)


def test_metadata_names_the_source() -> None:
    """The message's metadata, else the parameters', else the route's agent, which is an inference."""
    assert final(exchange(send(metadata={"sender": "a"}))).source == "a"
    body = send()
    body["params"]["metadata"] = {"from": "b", "attempt": 2, "state_version": "v7"}
    event = final(exchange(body))
    assert (event.source, event.attempt, event.state_version) == ("b", 2, "v7")
    event = final(exchange(send(), route=Route(agent="me", peer="you", side="egress")))
    assert (event.source, event.target, event.confidence) == ("me", "you", "inferred")


def test_an_envelope_in_a_data_part_names_everything() -> None:
    """An application that speaks in envelopes over A2A is understood through A2A."""
    envelope = {"task_id": "e7", "source_agent": "a", "target_agent": "b", "metadata": {"workflow_id": "w"}}
    event = final(exchange(send(parts=[{"data": envelope}]), reply=result({"task": task("TASK_STATE_COMPLETED")})))
    assert (event.protocol, event.task, event.workflow) == ("a2a", "e7", "w")
    assert (event.source, event.target, event.confidence, event.payload) == ("a", "b", "exact", envelope)


def test_the_same_message_again_is_the_same_task() -> None:
    """A retry gets a new task and context from the server; its messageId and content say that it is the old one."""
    by = reader()
    first = final(exchange(send(), reply=result({"task": task("TASK_STATE_COMPLETED")})), by)
    reply = result({"task": task("TASK_STATE_COMPLETED", id="t2", contextId="c2")})
    again = final(exchange(send(), reply=reply, id="x2"), by)
    assert (again.workflow, again.task) == (first.workflow, first.task) == ("c1", "t1")
    other = final(exchange(send(parts=[{"data": {"n": 2}}]), reply=reply, id="x3"), by)
    assert other.task == "t2"  # a client that gives every message the same id


def test_the_same_message_in_another_context_is_another_task() -> None:
    """Some clients count their messages from 1 in every conversation."""
    by = reader()
    seen = []
    for id, context, made in (("x1", "c-1", "t-1"), ("x2", "c-2", "t-2"), ("x3", "c-1", "t-3")):
        reply = result({"task": task("TASK_STATE_COMPLETED", id=made, contextId=context)})
        event = final(exchange(send(messageId="1", contextId=context), reply=reply, id=id), by)
        seen.append((event.workflow, event.task))
    assert seen == [("c-1", "t-1"), ("c-2", "t-2"), ("c-1", "t-1")]


def test_a_reference_to_a_task_joins_its_workflow() -> None:
    """referenceTaskIds of a later hop point to a task whose workflow is known."""
    by = reader()
    final(
        exchange(send(), reply=result({"task": task("TASK_STATE_COMPLETED")}), headers={"handrail-workflow": "w"}), by
    )
    later = final(exchange(send(messageId="m2", referenceTaskIds=["t0", "t1"])), by)
    same = final(exchange(send(messageId="m3", contextId="c1")), by)
    assert (later.workflow, same.workflow) == ("w", "w")


CARD = {
    "name": "billing",
    "version": "1.2.3",
    "url": "http://10.0.0.5:9101/a2a?x=1",
    "preferredTransport": "JSONRPC",
    "additionalInterfaces": [{"url": "http://10.0.0.5:9102/rest", "transport": "HTTP+JSON"}],
    "supportedInterfaces": [
        {"url": "https://billing.test/a2a", "protocolBinding": "JSONRPC"},
        {"url": "billing.test:50051", "protocolBinding": "GRPC"},
        {"url": "http://billing.test:50052", "protocolBinding": "GRPC"},
    ],
    "signatures": [{"protected": "e30", "signature": "x"}],
}


def fetched(card: Any, route: Route, host: str = "sidecar:8000", by: Reader | None = None) -> tuple[Event, Reader]:
    by = by or reader()
    seen = exchange(
        method="GET", target="/.well-known/agent-card.json", headers={"host": host}, reply=card, route=route
    )
    return final(seen, by), by


def test_a_card_names_the_agent_of_later_handoffs() -> None:
    """Under the upstream, the host asked for, and each interface's authority, at the interfaces' paths."""
    event, by = fetched(CARD, Route(upstream="10.0.0.5:9101"))
    assert (event.kind, event.operation, event.target, event.agent_version) == (
        "read",
        "agent-card",
        "billing",
        "1.2.3",
    )
    for upstream, host in (
        ("10.0.0.5:9101", "any"),
        ("", "sidecar:8000"),
        ("10.0.0.5:9102", "any"),
        ("billing.test", "any"),
    ):
        target = "/rest" if upstream == "10.0.0.5:9102" else "/a2a"
        later = final(exchange(send(), headers={"host": host}, route=Route(upstream=upstream), target=target), by)
        assert (later.target, later.agent_version) == ("billing", "1.2.3")
    assert final(exchange(send(), route=Route(upstream="other:1")), by).target is None
    assert final(exchange(send(), target="/b", route=Route(upstream="10.0.0.5:9101")), by).target is None


def test_agents_that_share_an_authority_are_told_apart_by_path() -> None:
    """A gateway in front of two agents: the longest path that leads there."""
    by = reader()
    for name in ("", "a", "ab"):
        card = {"name": name or "root", "supportedInterfaces": [{"url": f"http://gw.test/{name}"}]}
        fetched(card, Route(upstream="gw.test"), by=by)
    targets = {
        path: final(exchange(send(), target=path, route=Route(upstream="gw.test")), by).target
        for path in ("/", "/a", "/a/message:send", "/ab", "/abc")
    }
    assert targets == {"/": "root", "/a": "a", "/a/message:send": "a", "/ab": "ab", "/abc": "root"}


def test_a_card_cannot_take_over_another_authority() -> None:
    """What an agent's own card says of itself is believed over what another's card says of it."""
    _, by = fetched({"name": "good", "url": "http://good.test/"}, Route(upstream="good.test"), "good.test")
    fetched({"name": "evil", "url": "http://good.test/"}, Route(upstream="evil.test"), "evil.test", by=by)
    assert final(exchange(send(), route=Route(upstream="good.test")), by).target == "good"


def test_what_is_remembered_is_bounded() -> None:
    """A dialect with room for two forgets the oldest, and holds no more."""
    dialect = A2a(limit=2)
    by = Reader([dialect], reader()._fallback)
    for n in range(9):
        fetched({"name": f"a{n}", "url": f"http://u{n}.test/"}, Route(upstream=f"u{n}.test"), by=by)
        reply = result({"task": task("TASK_STATE_INPUT_REQUIRED", id=f"t{n}", contextId=f"c{n}")})
        final(exchange(send(messageId=f"m{n}"), reply=reply), by)
    kept = (dialect._places, dialect._contexts, dialect._tasks, dialect._waiting, dialect._sent)
    assert [len(memory) for memory in kept] == [2] * 5


def test_a_card_that_was_not_served_teaches_nothing() -> None:
    """An error that happens to have a name, and an address that is longer than any."""
    by = reader()
    route = Route(upstream="u.test")
    final(exchange(method="GET", target="/.well-known/agent.json", status=404, reply={"name": "x"}, route=route), by)
    fetched({"name": "long", "url": "http://u.test/" + "x" * 600}, route, by=by)
    assert final(exchange(send(), route=route), by).target is None


def test_rewriting_a_card_moves_its_http_interfaces() -> None:
    """Path and query stay, gRPC stays, signatures go, everything else is as it was."""
    written = rewrite_card(orjson.dumps(CARD), "http://127.0.0.1:8000")
    assert written is not None
    card = orjson.loads(written)
    assert card["url"] == "http://127.0.0.1:8000/a2a?x=1"
    assert card["additionalInterfaces"][0]["url"] == "http://127.0.0.1:8000/rest"
    urls = [interface["url"] for interface in card["supportedInterfaces"]]
    assert urls == ["http://127.0.0.1:8000/a2a", "billing.test:50051", "http://billing.test:50052"]
    assert "signatures" not in card
    assert {key: card[key] for key in ("name", "version", "preferredTransport")} == {
        key: CARD[key] for key in ("name", "version", "preferredTransport")
    }
    assert rewrite_card(written, "http://127.0.0.1:8000") == written


@pytest.mark.parametrize(
    "card", [b"", b"[]", b"{", b'{"name": 1, "url": "http://x/"}', b'{"name": "a", "url": "ftp://x"}']
)
def test_what_is_no_card_is_not_rewritten(card: bytes) -> None:
    """None: the caller sends what came."""
    assert rewrite_card(card, "http://127.0.0.1:8000") is None


def test_card_paths() -> None:
    """The well-known paths of both versions, below any prefix, and the extended card's."""
    for path in ("/.well-known/agent-card.json", "/x/.well-known/agent.json?y", "/extendedAgentCard", "/v1/card"):
        assert is_card_path(path)
    for path in ("/", "/.well-known/agent-card", "/discard", "/.well-known/agent-card.json/x"):
        assert not is_card_path(path)


@pytest.mark.parametrize("method", [name for name, kind in KIND_OF_METHOD.items() if kind != "handoff"])
def test_every_other_method_is_one_event(method: str) -> None:
    """Reads and subscriptions carry the task they are about and no payload."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"id": "t1"}}
    first, last = halves(exchange(body, reply=result(task("TASK_STATE_WORKING"))))
    assert (first.kind, first.task, first.payload) == (KIND_OF_METHOD[method], "t1", None)
    assert last.outcome == ("accepted" if first.kind == "resume" else "completed")


@pytest.mark.parametrize(
    ("method", "target", "headers", "operation"),
    [
        ("GET", "/v1/tasks/t1", {"a2a-version": "0.3"}, "tasks/{id}"),
        ("GET", "/tasks", {"a2a-version": "1.0"}, "tasks"),
        ("POST", "/tenant/tasks/t1:cancel", {}, "tasks:cancel"),
        ("GET", "/tasks/t1:subscribe", {}, "tasks:subscribe"),
        ("POST", "/tasks/t1/pushNotificationConfigs", {}, "pushNotificationConfigs"),
        ("DELETE", "/tasks/t1/pushNotificationConfigs/p1", {}, "pushNotificationConfigs"),
        ("GET", "/extendedAgentCard", {}, "agent-card"),
        ("GET", "/v1/card", {"a2a-version": "0.3"}, "agent-card"),
    ],
)
def test_the_rest_bindings_other_requests(method: str, target: str, headers: dict[str, str], operation: str) -> None:
    """They are read or resumed, never handed off."""
    event = final(exchange(method=method, target=target, headers=headers))
    assert (event.protocol, event.operation) == ("a2a", operation)
    assert event.kind == ("resume" if "subscribe" in target else "read")


@pytest.mark.parametrize(
    "near",
    [
        exchange({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}),
        exchange(
            {"jsonrpc": "2.0", "method": "tasks/get", "params": {}}, headers={"mcp-protocol-version": "2025-11-25"}
        ),
        exchange({"method": "SendMessage"}),
        exchange([send()]),
        exchange(send(), method="PUT"),
        exchange(method="GET", target="/tasks/17"),
        exchange({"title": "x"}, target="/tasks"),
        exchange(method="GET", target="/v1/card"),
        exchange(b"SendMessage", headers={"content-type": "text/plain"}),
    ],
)
def test_near_misses_are_not_a2a(near: Exchange) -> None:
    """MCP, other JSON-RPC, batches, and other people's /tasks."""
    assert final(near).protocol in ("http", "mcp")


def test_an_a2a_header_claims_what_cannot_be_read() -> None:
    """A body that is cut, broken or of an unknown method is A2A's all the same, and says why it was not read."""
    headers = {"a2a-version": "1.0"}
    event = final(exchange(b'{"jsonrpc":', headers=headers))
    assert (event.protocol, event.kind, event.uninspected, event.payload) == ("a2a", "handoff", "invalid_json", None)
    event = final(exchange(headers=headers, cut="too_large"))
    assert (event.protocol, event.kind, event.uninspected) == ("a2a", "handoff", "too_large")
    event = final(exchange({"jsonrpc": "2.0", "method": "NewThing"}, headers=headers))
    assert (event.protocol, event.kind, event.operation) == ("a2a", "read", "NewThing")


@pytest.mark.parametrize(
    "value", [None, 1, "x", [], {}, {"parts": 1}, {"metadata": 1}, {"parts": [None, {"data": None}]}]
)
def test_garbage_in_the_right_places_raises_nothing(value: Any) -> None:
    """Whatever stands where an object is expected, in request and reply, is one event and no Fault."""
    for request in (
        {"jsonrpc": "2.0", "method": "SendMessage", "params": value},
        {"jsonrpc": "2.0", "method": "SendMessage", "params": {"message": value, "metadata": value}},
        {"jsonrpc": "2.0", "method": "GetTask", "params": value},
    ):
        for reply in (
            value,
            result(value),
            result({"task": value}),
            result({"kind": "task", "status": value}),
            result({"artifactUpdate": {"artifact": value}}),
            {"jsonrpc": "2.0", "error": value},
        ):
            for headers in ({}, SSE):
                body = stream(reply) if headers else reply
                asked, answered = everything(exchange(request, reply=body, reply_headers=headers))
                assert len(asked) == len(answered) == 1
                assert isinstance(answered[0], Event)
