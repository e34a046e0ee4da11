"""OpenAI's APIs: chat completions and responses, plain and streamed, and how other servers deviate."""

import json
import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialects.talk import EMPTY, answered, at, called, chat, choice, events, handoffs, tool, user
from handrail.config import Config
from handrail.event import Event
from handrail.pipeline import build
from handrail.schema.registry import Registry

TO = tool("transfer_to_billing", "Handoff to the Billing agent to handle the request.")
ASK = chat("You are the triage agent.", user("refund"), tools=[TO])
TYPED = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}


def sse(*values: Any, done: bool = True, event: bool = False, end: str = "\n\n") -> bytes:
    lines = [(f"event: {value['type']}\n" if event else "") + "data: " + json.dumps(value) + end for value in values]
    return "".join([*lines, "data: [DONE]" + end] if done else lines).encode()


def delta(fields: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choices = [{"index": index, "delta": fields, "finish_reason": finish}]
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices}


def part(
    arguments: Any = "", *, index: int | None = 0, id: str | None = None, name: str | None = None
) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"arguments": arguments} | ({"name": name} if name else {})}
    if index is not None:
        call["index"] = index
    if id is not None:
        call["id"] = id
    return {"tool_calls": [call]}


def both(exchange: Any) -> tuple[Event, list[Event]]:
    """The one usage and the handoffs of one exchange."""
    found = events([exchange])
    [usage] = [event for event in found if event.kind == "usage"]
    return usage, [event for event in found if event.kind == "handoff"]


NAME = "transfer_to_billing"
STREAMS = {
    "as documented": [
        delta({"role": "assistant", "content": None}),
        delta(part(id="k1", name=NAME)),
        delta(part('{"amo')),
        delta(part('unt": 4}')),
        delta({}, "tool_calls"),
    ],
    "no index": [delta(part('{"amount": 4}', index=None, id="k1", name=NAME)), delta({}, "stop")],
    "id and name in every part": [
        delta(part('{"amo', id="k1", name=NAME)),
        delta(part('unt": 4}', id="k1", name=NAME)),
        delta({}, "tool_calls"),
    ],
    "the whole call once more at the end": [
        delta(part("", id="k1", name=NAME)),
        delta(part('{"amount": 4}')),
        delta(part('{"amount": 4}', id="k1", name=NAME), "tool_calls"),
    ],
    "no id": [delta(part('{"amo', name=NAME)), delta(part('unt": 4}')), delta({}, "tool_calls")],
    "arguments as a value": [delta(part({"amount": 4}, id="k1", name=NAME), "tool_calls")],
    "the id comes later": [delta(part("", name=NAME)), delta(part('{"amount": 4}', id="k1")), delta({}, "stop")],
}


@pytest.mark.parametrize("values", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_a_streamed_call_is_put_together(values: list[Any], end: str) -> None:
    """However a server cuts and labels the parts."""
    usage, [found] = both(at(0, ASK, sse(*values, end=end)))
    assert (found.operation, found.payload, found.target) == (NAME, {"amount": 4}, "Billing")
    assert usage.outcome == "completed"


@pytest.mark.parametrize("indices", [(0, 1), (0, 0), (None, None)])
def test_parallel_calls_stay_apart(indices: tuple[Any, Any]) -> None:
    """By index, and where a server gives each call the same or none, by id."""
    one, two = indices
    values = [
        delta(part('{"amount": 1}', index=one, id="k1", name=NAME)),
        delta(part('{"amount": 2}', index=two, id="k2", name=NAME), "tool_calls"),
    ]
    _, found = both(at(0, ASK, sse(*values)))
    assert [(event.task, event.payload) for event in found] == [("k1", {"amount": 1}), ("k2", {"amount": 2})]


def test_calls_of_several_choices() -> None:
    """Each choice is read; in a stream the indices of two choices are not each other's."""
    first, second = called("k1", NAME, {"amount": 1}), called("k2", NAME, {"amount": 2})
    assert [event.task for event in both(at(0, ASK, choice(first, second)))[1]] == ["k1", "k2"]
    values = [
        delta(part('{"a', name=NAME, id="k1"), index=0),
        delta(part('{"b', name=NAME, id="k2"), index=1),
        delta(part('": 1}'), index=0),
        delta(part('": 2}'), index=1),
        delta({}, "tool_calls"),
    ]
    assert [event.payload for event in both(at(0, ASK, sse(*values)))[1]] == [{"a": 1}, {"b": 2}]


def test_usage_is_exact() -> None:
    """Also from the last chunk, which has no choices."""
    counts = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    last = {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": counts}
    usage, _ = both(at(0, ASK, sse(delta({"content": "hi"}, "stop"), last)))
    assert (usage.tokens, usage.reply["input_tokens"], usage.reply["output_tokens"]) == (16, 11, 5)
    assert both(at(0, ASK, choice(answered("hi"))))[0].tokens == 70
    assert both(at(0, ASK, sse(delta({"content": "hi"}, "stop"))))[0].tokens is None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        "/api/v1/chat/completions",
        "/chat/completions",
    ],
)
def test_paths_of_other_hosts(path: str) -> None:
    """Azure's deployments, gateways with a prefix."""
    assert [event.target for event in handoffs([at(0, ASK, choice(called("k1", NAME)), path=path)])] == ["Billing"]


FLAT = {"type": "function", "name": NAME, "description": "", "parameters": TYPED}


def response(*output: Any, status: str = "completed", **fields: Any) -> dict[str, Any]:
    usage = {"input_tokens": 50, "output_tokens": 20, "total_tokens": 70}
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "model": "m",
        "output": list(output),
        "usage": usage,
    } | fields


def test_responses_plain_and_streamed_are_the_same() -> None:
    """`call_id` is the link, not `id`; the text of a message is read as well."""
    body = {"model": "m", "instructions": "You are the triage agent.", "input": "refund", "tools": [FLAT]}
    call = {"type": "function_call", "id": "fc_1", "call_id": "k1", "name": NAME, "arguments": '{"amount": 4}'}
    values = [
        {"type": "response.created", "response": response(status="in_progress", usage=None)},
        {"type": "response.output_item.added", "output_index": 0, "item": call | {"arguments": ""}},
        {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": '{"amount": 4}'},
        {"type": "response.output_item.done", "output_index": 0, "item": call},
        {"type": "response.completed", "response": response(call)},
    ]
    for reply in (response(call), sse(*values, done=False, event=True)):
        usage, [found] = both(at(0, body, reply, path="/v1/responses"))
        assert (found.task, found.payload, found.source, found.target) == (
            "k1",
            {"amount": 4},
            "triage agent",
            "billing",
        )
        assert (usage.outcome, usage.tokens) == ("completed", 70)
    cut = sse(*values[:-1], done=False, event=True)
    usage, [found] = both(at(0, body, cut, path="/v1/responses", end="upstream_reset", cut="incomplete"))
    assert (usage.outcome, found.payload) == ("interrupted", {"amount": 4})


def test_a_client_that_hangs_up_at_the_end_is_no_error() -> None:
    """After `[DONE]` or the finish it has what it wanted; before, it has not."""
    whole = sse(delta({"content": "hi"}), delta({}, "stop"))
    assert both(at(0, ASK, whole, end="client_abort", cut="incomplete"))[0].outcome == "completed"
    half = sse(delta({"content": "hi"}), done=False)
    assert both(at(0, ASK, half, end="client_abort", cut="incomplete"))[0].outcome == "interrupted"


def test_half_a_stream() -> None:
    """What came is read, what is cut off is no call, and the outcome says it."""
    values = sse(delta(part("", id="k1", name=NAME)), delta(part('{"amount": 4')), done=False)
    usage, found = both(at(0, ASK, values + b'data: {"choi', end="upstream_reset", cut="incomplete"))
    assert (usage.outcome, found) == ("interrupted", [])


@pytest.mark.parametrize(("end", "cut"), [("upstream_reset", "incomplete"), ("client_abort", "incomplete")])
@pytest.mark.parametrize("arguments", ["", '{"amo'])
def test_a_call_that_was_cut_off_is_no_handoff(end: str, cut: str, arguments: str) -> None:
    """Nobody was asked for anything yet; the call before it was whole."""
    values = [delta(part('{"amount": 4}', id="k1", name=NAME)), delta(part(arguments, index=1, id="k2", name=NAME))]
    usage, found = both(at(0, ASK, sse(*values, done=False), end=end, cut=cut))
    assert usage.outcome == "interrupted"
    assert [event.payload for event in found] == [{"amount": 4}]


def test_a_call_that_an_error_cut_off_is_no_handoff() -> None:
    """A provider that fails in the midst of a stream has asked for nothing."""
    values = [delta(part("", id="k1", name=NAME)), {"error": {"message": "overloaded", "code": "overloaded"}}]
    usage, found = both(at(0, ASK, sse(*values, done=False)))
    assert (usage.outcome, found) == ("failed", [])


def test_an_error_in_a_200() -> None:
    """Providers and gateways answer 200 and put the error into the body or the stream."""
    error = {"error": {"message": "overloaded", "type": "server_error", "code": "overloaded"}}
    for reply in (error, sse(delta({"content": "hi"}), error, done=False)):
        usage, found = both(at(0, ASK, reply))
        assert (usage.outcome, usage.reply["error"], found) == ("failed", "overloaded", [])
    failed = {"type": "response.failed", "response": response(status="failed", error={"code": "rate_limit"})}
    body = {"model": "m", "input": "hi"}
    assert both(at(0, body, sse(failed, done=False), path="/v1/responses"))[0].outcome == "failed"


def test_arguments_that_are_no_json() -> None:
    """The handoff is there, its arguments could not be read, and it was rejected."""
    _, [found] = both(at(0, ASK, choice(called("k1", NAME, '{"amount": '))))
    assert (found.payload, found.uninspected, found.outcome) == (None, "invalid_json", "rejected")


@pytest.mark.parametrize("body", [b"{", b"[1]", b"", {"messages": "hi"}, {"prompt": "x"}])
def test_a_body_that_is_not_what_its_path_says(body: Any) -> None:
    """One event with a clear outcome, and no handoff."""
    [found] = events([at(0, body, {"error": {"type": "invalid_request"}}, status=400)])
    assert (found.kind, found.outcome, found.protocol) == ("usage", "rejected", "openai")


@pytest.mark.parametrize("reply", [[], {"object": "list"}, {}, "text", 7, {"choices": 3}, b"nonsense\n\n", b""])
def test_a_reply_that_is_none(reply: Any) -> None:
    """Never completed on trust where nothing was said."""
    usage, found = both(at(0, ASK, reply))
    assert found == []
    assert usage.outcome in ("unknown", "interrupted", "completed")


def test_what_is_not_a_model_is_left_alone() -> None:
    """Paths and bodies of other protocols stay theirs; the API's other operations are no handoffs."""
    kinds = {
        "/v1/embeddings": {"model": "e", "input": ["x"]},
        "/v1/traces/ingest": {"data": []},
        "/v1/moderations": {"model": "m", "input": "x"},
    }
    for path, body in kinds.items():
        [found] = events([at(0, body, {"ok": True}, path=path)])
        assert (found.kind, found.protocol) == ("usage", "openai")
    for path in ("/responses", "/tasks", "/v1/messages"):
        [found] = events([at(0, {"task_id": "1", "source_agent": "a", "target_agent": "b"}, {}, path=path)])
        assert found.protocol == "envelope"


def test_each_form_of_a_schema_is_a_version() -> None:
    """Arguments are judged by the schema of their own exchange; a changed form is another version of the subject."""
    registry = Registry()
    inspector = build(Config(), registry, ())
    for number, kind in enumerate(("number", "string", "number")):
        schema = {"type": "object", "properties": {"amount": {"type": kind}}}
        body = chat("You are the triage agent.", user(f"refund {number}"), tools=[tool(NAME, "", schema)])
        list(inspector.whole(at(number, body, choice(called(f"k{number}", NAME, {"amount": 4})))))
    found = [decision.event for decision in inspector.end() if decision.event]
    assert [(event.subject, event.version, event.outcome) for event in found] == [
        ("triage_agent.billing", "1", "dropped"),
        ("triage_agent.billing", "2", "rejected"),
        ("triage_agent.billing", "1", "dropped"),
    ]
    assert registry.versions("triage_agent.billing") == ("1", "2")


def test_an_operators_schema_stands_for_a_tool_that_has_none() -> None:
    """An untyped handoff is judged by what is registered for it; a tool's own schema is a version beside it."""
    registry = Registry()
    registry.load({"triage agent.Billing/7.json": orjson.dumps(TYPED)})
    inspector = build(Config(), registry, ())
    for number, schema in enumerate((EMPTY, TYPED, {"type": "object", "properties": {"sum": {}}})):
        tools = [tool(NAME, "Handoff to the Billing agent to handle the request.", schema)]
        body = chat("You are the triage agent.", user(f"refund {number}"), tools=tools)
        list(inspector.whole(at(number, body, choice(called(f"k{number}", NAME)))))
    found = [decision.event for decision in inspector.end() if decision.event]
    assert [(event.subject, event.version) for event in found] == [
        ("triage agent.Billing", "7"),
        ("triage agent.Billing", "7"),
        ("triage agent.Billing", "8"),
    ]


def test_a_long_stream_costs_less_than_a_millisecond() -> None:
    """Two hundred chunks, the whole way; the best of fifty runs, for others use the machine too."""
    raw = sse(*[delta({"content": f"word {number} "}) for number in range(199)], delta({}, "stop"))
    inspector = build(Config(), Registry(), ())
    costs = []
    for _ in range(50):
        exchange = at(0, ASK, raw)
        begun = time.process_time_ns()
        [usage] = [decision.event for decision in inspector.whole(exchange)]
        costs.append(time.process_time_ns() - begun)
        assert usage is not None
        assert usage.outcome == "completed"
    assert min(costs) < 1_000_000


def test_a_long_history_is_parsed_once() -> None:
    """A megabyte of it. Once it was read its bytes may be gone: everything else works on what was kept."""
    history = [user("x" * 1_000), answered("y" * 1_000)] * 500
    body = chat("You are the triage agent.", *history, user("go"), tools=[TO])

    def told(*, is_there: bool) -> list[Any]:
        exchange = at(0, body, choice(called("k1", NAME)))
        exchange.request.json(exchange.route.limits)
        if not is_there:
            exchange.request.body = b""
        inspector = build(Config(), Registry(), ())
        found = [each.event for each in (*inspector.whole(exchange), *inspector.end()) if each.event is not None]
        return [(event.kind, event.target, event.outcome, event.uninspected, event.payload_bytes) for event in found]

    assert told(is_there=False) == told(is_there=True)
    assert [each[0] for each in told(is_there=False)] == ["usage", "handoff", "handoff"]


KEYS = re.findall(
    r"\S+",
    "messages role content tool_calls function name arguments id tools parameters choices delta index "
    "usage input output type item response call_id error contents parts functionCall args candidates "
    "message content_block system text",
)
"""What the four APIs call their fields."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1beta/models/m:generateContent"]),
    body=json_values,
    shape=st.sampled_from([{}, {"messages": []}, {"input": []}, {"contents": []}]),
    replies=st.lists(json_values, max_size=3),
    stream=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_no_exchange_breaks_the_reader(path: str, body: Any, shape: Any, replies: list[Any], stream: bool) -> None:
    """Any JSON at any of the paths gives its event, and no fault."""
    whole = {**shape, **body} if isinstance(body, dict) else body
    reply: Any = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in replies)
    exchange = at(0, whole, reply if stream else (replies or [None])[0], path=path)
    assert exchange.id in {event.id for event in events([exchange])}


def trace(*data: dict[str, Any]) -> dict[str, Any]:
    """An export of the Agents SDK: a trace and spans of 1 s from the instants that they name as `at`."""
    head = {"object": "trace", "id": "trace_" + "ab" * 16, "workflow_name": "w", "group_id": "thread-7"}
    spans = []
    for number, each in enumerate(data):
        begun = each.pop("at")
        times = {"started_at": f"1970-01-01T00:00:{begun:04.1f}Z", "ended_at": f"1970-01-01T00:00:{begun + 1:04.1f}Z"}
        place = {"id": f"span_{number}", "trace_id": head["id"], "parent_id": None}
        spans.append({"object": "trace.span", **place, **times, "span_data": each, "error": None})
    return {"data": [head, *spans]}


def exported() -> Any:
    """Triage, who hands over to billing two seconds later."""
    data = trace(
        {"at": 0, "type": "agent", "name": "triage"},
        {"at": 2.0, "type": "handoff", "from_agent": "triage", "to_agent": "Billing"},
        {"at": 2.1, "type": "agent", "name": "Billing"},
    )
    return at(30, data, {}, path="/v1/traces/ingest", headers={b"openai-beta": b"traces=v1"})


def test_the_sdks_own_traces_tell_handoffs_that_the_wire_does_not() -> None:
    """As where the model is spoken to over a web socket: source, target, outcome and the name of the conversation."""
    found = events([exported()])
    assert [(event.kind, event.operation) for event in found] == [("usage", "traces.ingest"), ("handoff", "handoff")]
    handoff = found[1]
    assert (handoff.source, handoff.target, handoff.outcome) == ("triage", "Billing", "accepted")
    assert (handoff.protocol, handoff.workflow, handoff.trace_id) == ("otlp", "thread-7", "ab" * 16)


@pytest.mark.parametrize("system", ["You are the triage agent.", "Route."])
def test_what_the_wire_has_told_the_sdks_traces_do_not_tell_again(system: str) -> None:
    """Whether the wire knew who speaks or not; and a second such handoff without one on the wire is told."""
    ask = chat(system, user("refund"), tools=[TO])
    first = at(2, ask, choice(called("k1", "transfer_to_billing")))
    second = at(3, chat("You bill.", user("refund"), called("k1", "transfer_to_billing")), choice(answered("done")))
    assert [event.protocol for event in handoffs([first, second, exported()])] == ["openai"]

    later = at(
        60,
        trace({"at": 50.0, "type": "handoff", "from_agent": "triage", "to_agent": "Billing"}),
        {},
        path="/v1/traces/ingest",
    )
    assert [event.protocol for event in handoffs([first, second, later])] == ["openai", "otlp"]


def test_a_trace_that_is_none_is_one_event() -> None:
    """Whatever its body says."""
    for body in ({}, {"data": 4}, {"data": [4, {}]}, []):
        [event] = events([at(0, body, {}, path="/v1/traces/ingest")])
        assert (event.kind, event.operation, event.outcome) == ("usage", "traces.ingest", "completed")
