"""What each framework's spans say, put together: every handoff once, whatever the order, and none that was not."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.config import Config, HandoffsConfig, HandoffToolConfig, OtlpConfig
from handrail.dialects.spans import event_of, log_of
from handrail.event import Event
from handrail.pipeline import Inspector, build
from handrail.schema.registry import Registry
from handrail.wire.otlp import logs_of, spans_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
START = 1_700_000_000


def value(of: Any) -> dict[str, Any]:
    if isinstance(of, bool):
        return {"boolValue": of}
    if isinstance(of, int):
        return {"intValue": str(of)}
    return {"stringValue": of if isinstance(of, str) else json.dumps(of)}


class Story:
    """Spans as OTLP JSON, one second after another in the order in which they begin."""

    def __init__(self, scope: str = "test", trace: str = TRACE) -> None:
        self.scope, self.trace = scope, trace
        self.spans: list[tuple[str, dict[str, Any]]] = []

    def span(
        self, name: str, parent: str | None = None, lasts: float = 1.0, scope: str | None = None, **said: Any
    ) -> str:
        """One span; `__` in the name of an attribute stands for a dot. Its id."""
        number = len(self.spans) + 1
        id = f"{number:016x}"
        error = said.pop("error", None)
        span = {
            "traceId": self.trace,
            "spanId": id,
            "name": name,
            "startTimeUnixNano": str(int((START + number) * 1e9)),
            "endTimeUnixNano": str(int((START + number + lasts) * 1e9)),
            "attributes": [{"key": key.replace("__", "."), "value": value(of)} for key, of in said.items()],
        }
        if parent is not None:
            span["parentSpanId"] = parent
        if error is not None:
            span["status"] = {"code": 2, "message": error}
        self.spans.append((scope or self.scope, span))
        return id

    def request(self, spans: Sequence[tuple[str, dict[str, Any]]] | None = None) -> dict[str, Any]:
        scoped = [
            {"scope": {"name": scope}, "spans": [span]} for scope, span in (self.spans if spans is None else spans)
        ]
        return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": scoped}]}


def inspector(config: Config | None = None) -> Inspector:
    return build(config or Config(otlp=OtlpConfig(http="127.0.0.1:4318")), Registry(), ())


def add(inspector: Inspector, request: dict[str, Any], now: float = 0.0) -> None:
    assert inspector.spans is not None
    read = spans_of(request)
    assert read.rejected == 0
    inspector.told(inspector.spans.read(read.spans), (), now)


def events(*stories: Story, config: Config | None = None) -> list[Event]:
    by = inspector(config)
    for story in stories:
        add(by, story.request())
    decisions = by.end()
    assert [fault for decision in decisions for fault in decision.faults] == []
    return [decision.event for decision in decisions if decision.event is not None]


def told(*stories: Story, config: Config | None = None) -> list[tuple[str | None, str | None, str]]:
    return [(event.source, event.target, event.outcome) for event in events(*stories, config=config)]


# One story for each row of what the frameworks' instrumentations were measured to send.


def openai_agents_openinference() -> Story:
    story = Story("openinference.instrumentation.openai_agents")
    root = story.span("Agent workflow", lasts=60, openinference__span__kind="AGENT")
    triage = story.span("Triage Agent", root, 4, openinference__span__kind="AGENT", graph__node__id="Triage Agent")
    story.span(
        "generation",
        triage,
        1,
        openinference__span__kind="LLM",
        **{
            "llm.output_messages.0.message.tool_calls.0.tool_call.id": "call_1",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "transfer_to_billing_agent",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"reason": "refund"}',
        },
    )
    story.span(
        "handoff to Billing Agent",
        triage,
        0.1,
        openinference__span__kind="TOOL",
        **{"input.value": "Triage Agent", "output.value": "Billing Agent"},
    )
    billing = story.span("Billing Agent", root, 3, openinference__span__kind="AGENT", graph__node__id="Billing Agent")
    story.span("generation", billing, 1, openinference__span__kind="LLM")
    return story


def openai_agents_openllmetry() -> Story:
    story = Story("opentelemetry.instrumentation.openai_agents")
    root = story.span("Agent Workflow", lasts=60, traceloop__span__kind="workflow")
    triage = story.span("Triage Agent.agent", root, 4, traceloop__span__kind="agent")
    story.span(
        "Triage Agent → unknown.handoff",
        triage,
        0.1,
        traceloop__span__kind="handoff",
        **{"gen_ai.handoff.from_agent": "Triage Agent"},
    )
    story.span("Billing Agent.agent", root, 3, traceloop__span__kind="agent")
    return story


def langgraph_openinference() -> Story:
    story = Story("openinference.instrumentation.langchain")
    root = story.span("LangGraph", lasts=60, openinference__span__kind="CHAIN", **{"session.id": "thread-7"})
    triage = story.span(
        "triage_agent",
        root,
        6,
        openinference__span__kind="AGENT",
        metadata={"langgraph_node": "triage_agent"},
    )
    tools = story.span("tools", triage, 2, openinference__span__kind="CHAIN", metadata={"langgraph_node": "tools"})
    story.span(
        "transfer_to_billing_agent",
        tools,
        1,
        openinference__span__kind="TOOL",
        **{"tool.name": "transfer_to_billing_agent", "input.value": '{"order": 7}'},
    )
    story.span(
        "billing_agent", root, 6, openinference__span__kind="AGENT", metadata={"langgraph_node": "billing_agent"}
    )
    return story


def langgraph_openllmetry() -> Story:
    story = Story("opentelemetry.instrumentation.langchain")
    root = story.span("LangGraph.workflow", lasts=60, traceloop__span__kind="workflow")
    triage = story.span(
        "invoke_agent triage_agent",
        root,
        6,
        **{
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "triage_agent",
            "gen_ai.conversation.id": "thread-7",
        },
    )
    story.span(
        "transfer_to_billing_agent.tool",
        triage,
        1,
        traceloop__span__kind="tool",
        **{
            "traceloop.entity.name": "transfer_to_billing_agent",
            "lc_agent_name": "triage_agent",
            "__handoff_destination": "billing_agent",
        },
    )
    story.span(
        "goto billing_agent",
        triage,
        0.1,
        **{"langgraph.command.goto_node": "billing_agent", "langgraph.command.source_node": "tools"},
    )
    story.span(
        "invoke_agent billing_agent",
        root,
        3,
        **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "billing_agent"},
    )
    return story


def autogen() -> Story:
    """Its own spans and OpenInference's at once; the message goes to everybody in the group."""
    story = Story("autogen-core")
    root = story.span("autogen create group", lasts=60)
    triage = story.span(
        "invoke_agent triage_agent",
        root,
        5,
        **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "triage_agent", "gen_ai.agent.id": "x"},
    )
    story.span(
        "execute_tool transfer_to_billing_agent",
        triage,
        1,
        **{"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "transfer_to_billing_agent"},
    )
    story.span(
        "triage_agent.transfer_to_billing_agent",
        triage,
        1,
        scope="openinference.instrumentation.autogen_agentchat",
        openinference__span__kind="TOOL",
        **{"input.value": "{}"},
    )
    message = {
        "agent_response": {
            "chat_message": {
                "id": "m1",
                "source": "triage_agent",
                "target": "billing_agent",
                "content": "Transferred",
                "type": "HandoffMessage",
            }
        }
    }
    for recipient in ("manager", "triage_agent", "billing_agent"):
        story.span(
            f"autogen process {recipient}",
            root,
            1,
            sender_agent_type="triage_agent",
            recipient_agent_type=recipient,
            message=message,
        )
    story.span(
        "invoke_agent billing_agent",
        root,
        3,
        **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "billing_agent"},
    )
    story.span("autogen process output", root, 1, sender_agent_type="x", recipient_agent_type="y", message=message)
    return story


def crewai_openinference() -> Story:
    story = Story("openinference.instrumentation.crewai")
    root = story.span("Crew.kickoff", lasts=60, openinference__span__kind="CHAIN")
    manager = story.span("Manager._execute_core", root, 8, openinference__span__kind="AGENT", agent_name="Manager")
    story.span(
        "Delegate work to coworker.run",
        manager,
        2,
        openinference__span__kind="TOOL",
        **{"input.value": '{"task": "t", "context": "c", "coworker": "Refund specialist"}'},
    )
    return story


def crewai_openllmetry() -> Story:
    story = Story("opentelemetry.instrumentation.crewai")
    root = story.span("crewai.workflow", lasts=60, traceloop__span__kind="workflow")
    manager = story.span("Manager.agent", root, 20, traceloop__span__kind="agent", **{"gen_ai.agent.name": "Manager"})
    story.span("gpt-4o.llm", manager, 1, **{"gen_ai.operation.name": "chat"})
    story.span(
        "Refund specialist.agent",
        manager,
        5,
        traceloop__span__kind="agent",
        **{"gen_ai.agent.name": "Refund specialist"},
    )
    return story


def adk() -> Story:
    """Its own spans and OpenInference's, which alone knows the target."""
    story = Story("gcp.vertex.agent")
    root = story.span("invocation", lasts=60)
    triage = story.span(
        "invoke_agent triage_agent",
        root,
        20,
        **{
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "triage_agent",
            "gen_ai.conversation.id": "session-1",
        },
    )
    story.span("call_llm", triage, 1)
    story.span(
        "execute_tool transfer_to_agent",
        triage,
        1,
        **{
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "transfer_to_agent",
            "gen_ai.agent.name": "triage_agent",
            "gen_ai.tool.call.id": "adk-1",
        },
    )
    story.span(
        "invoke_agent billing_agent",
        triage,
        5,
        **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "billing_agent"},
    )
    return story


def adk_openinference() -> Story:
    story = adk()
    _, tool = story.spans[3]
    tool["attributes"].append({"key": "tool.parameters", "value": value({"agent_name": "billing_agent"})})
    return story


def agent_framework() -> Story:
    story = Story("agent_framework")
    root = story.span("workflow.run", lasts=60)
    one = story.span("executor.process triage", root, 4)
    story.span(
        "invoke_agent triage",
        one,
        3,
        **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "triage"},
    )
    story.span("edge_group.process", root, 0.1, **{"message.source_id": "triage", "message.target_id": "billing"})
    story.span("message.send", one, 0.1, **{"message.destination_executor_id": "billing"})
    two = story.span("executor.process billing", root, 4)
    story.span(
        "invoke_agent billing", two, 3, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "billing"}
    )
    return story


def mcp() -> Story:
    """The client's span and the server's, and a tool that is no agent."""
    story = Story("mcp")
    root = story.span("conversation", lasts=60)
    triage = story.span(
        "invoke_agent triage", root, 20, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "triage"}
    )
    for tool in ("ask_refund_agent", "add"):
        client = story.span(
            f"tools/call {tool}", triage, 3, **{"mcp.method.name": "tools/call", "gen_ai.tool.name": tool}
        )
        story.span(
            f"tools/call {tool}",
            client,
            2,
            scope="fastmcp",
            **{"fastmcp.server.name": "refunds", "gen_ai.tool.name": tool},
        )
    return story


T = ("Triage Agent", "Billing Agent", "accepted")
SNAKE = ("triage_agent", "billing_agent", "accepted")
STORIES = [
    (openai_agents_openinference, [T]),
    (openai_agents_openllmetry, [T]),
    (langgraph_openinference, [SNAKE]),
    (langgraph_openllmetry, [SNAKE]),
    (autogen, [SNAKE]),
    (crewai_openinference, [("Manager", "Refund specialist", "completed")]),
    (crewai_openllmetry, [("Manager", "Refund specialist", "completed")]),
    (adk, [SNAKE]),
    (adk_openinference, [SNAKE]),
    (agent_framework, [("triage", "billing", "accepted")]),
    (mcp, [("triage", "refund_agent", "completed")]),
]
ALL = [pytest.param(make, expected, id=make.__name__) for make, expected in STORIES]


@pytest.mark.parametrize(("make", "expected"), ALL)
def test_each_frameworks_handoff_is_one_event(make: Any, expected: list[Any]) -> None:
    """However many of its spans tell of it."""
    assert told(make()) == expected


def test_what_an_event_of_spans_holds() -> None:
    """Call id, arguments, conversation, trace; how sure it is."""
    (event,) = events(openai_agents_openinference())
    assert (event.task, event.payload, event.operation) == (
        "call_1",
        {"reason": "refund"},
        "transfer_to_billing_agent",
    )
    assert (event.trace_id, event.protocol, event.confidence, event.kind) == (TRACE, "otlp", "exact", "handoff")
    assert events(langgraph_openinference())[0].workflow == "thread-7"
    assert events(langgraph_openinference())[0].payload == {"order": 7}
    assert events(adk())[0].confidence == "inferred"
    assert events(adk_openinference())[0].confidence == "exact"


@pytest.mark.parametrize(("make", "expected"), ALL)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), pieces=st.integers(1, 6), doubled=st.integers(0, 4))
def test_batches_do_not_matter(make: Any, expected: list[Any], seed: int, pieces: int, doubled: int) -> None:
    """Any order, any split, any of them twice: the same handoffs under the same ids."""
    story, chance = make(), random.Random(seed)
    whole = events(story)
    spans = [*story.spans, *chance.sample(story.spans, min(doubled, len(story.spans)))]
    chance.shuffle(spans)
    by = inspector()
    for piece in range(pieces):
        add(by, story.request(spans[piece::pieces]), now=float(piece))
    found = [decision.event for decision in by.end() if decision.event is not None]
    assert found == whole


def test_a_trace_is_read_when_it_was_quiet_and_told_once() -> None:
    """Not before `hold_seconds`; what comes later changes nothing that was told."""
    story, by = adk_openinference(), inspector()
    add(by, story.request(story.spans[2:]), now=100.0)
    assert by.due(105.0) == []
    add(by, story.request(story.spans[:2]), now=106.0)
    assert by.due(115.0) == []
    (decision,) = by.due(116.5)
    assert decision.event is not None
    add(by, story.request(), now=117.0)
    assert by.due(130.0) == []
    assert by.due(1_000.0) == []
    assert by.end() == []


def test_what_is_incomplete_waits_for_its_target() -> None:
    """A target that works for longer than `hold_seconds` sends its span when it is done."""
    story, by = adk(), inspector()
    add(by, story.request(story.spans[:4]), now=100.0)
    assert by.due(115.0) == []
    add(by, story.request(story.spans[4:]), now=140.0)
    (decision,) = by.due(151.0)
    assert decision.event is not None
    assert (decision.event.target, decision.event.outcome) == ("billing_agent", "accepted")
    late = inspector()
    add(late, story.request(story.spans[:4]), now=100.0)
    (decision,) = late.due(161.0)
    assert decision.event is not None
    assert decision.event.target is None


def test_handoffs_there_and_back_and_there_again_are_three() -> None:
    """The same two agents hand over more than once in a trace; each time its source was at work again."""
    story = Story()
    root = story.span("conversation", lasts=60)
    for agent, to in (("a", "b"), ("b", "a"), ("a", "b"), ("b", None)):
        said = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
        work = story.span(f"invoke_agent {agent}", root, 3, **said)
        if to is not None:
            story.span(f"transfer_to_{to}", work, 1, openinference__span__kind="TOOL")
            story.span(f"handoff to {to}", work, 1, **{"input.value": agent, "output.value": to})
    assert told(story) == [("a", "b", "accepted"), ("b", "a", "accepted"), ("a", "b", "accepted")]


def test_clues_of_two_turns_are_two_handoffs() -> None:
    """A tool that was seen in one turn and a handoff in a later one are not the same."""
    story = Story()
    said = {"gen_ai.operation.name": "invoke_agent"}
    work = story.span("invoke_agent a", None, 3, **said, **{"gen_ai.agent.name": "a"})
    story.span("transfer_to_b", work, 1, openinference__span__kind="TOOL")
    story.span("invoke_agent b", None, 3, **said, **{"gen_ai.agent.name": "b"})
    again = story.span("invoke_agent a", None, 3, **said, **{"gen_ai.agent.name": "a"})
    story.span("handoff to b", again, 1, **{"input.value": "a", "output.value": "b"})
    story.span("invoke_agent b", None, 3, **said, **{"gen_ai.agent.name": "b"})
    assert told(story) == [("a", "b", "accepted")] * 2


def test_parallel_calls_are_told_apart_by_their_ids() -> None:
    """Two calls to the same coworker are two handoffs, with their own arguments."""
    story = Story()
    work = story.span(
        "invoke_agent boss", None, 9, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "boss"}
    )
    calls = [
        {
            "type": "tool_call",
            "id": f"c{n}",
            "name": "delegate_work_to_coworker",
            "arguments": {"coworker": "x", "task": n},
        }
        for n in (1, 2)
    ]
    story.span("chat m", work, 1, **{"gen_ai.output.messages": [{"role": "assistant", "parts": calls}]})
    for n in (1, 2):
        story.span(
            "Delegate work to coworker.run",
            work,
            1,
            openinference__span__kind="TOOL",
            **{"input.value": {"coworker": "x", "task": n}},
        )
    assert [(event.task, event.payload["task"]) for event in events(story)] == [("c1", 1), ("c2", 2)]


def test_agents_as_tools_are_known_by_nesting() -> None:
    """A tool of any name inside which another agent works; with its arguments."""
    story = Story()
    boss = story.span(
        "invoke_agent boss", None, 9, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "boss"}
    )
    tool = story.span(
        "execute_tool look_up",
        boss,
        4,
        **{"gen_ai.tool.name": "look_up", "gen_ai.tool.call.id": "c9", "gen_ai.tool.call.arguments": {"q": "x"}},
    )
    story.span(
        "invoke_agent finder", tool, 2, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "finder"}
    )
    (event,) = events(story)
    assert (event.source, event.target, event.outcome, event.task) == ("boss", "finder", "completed", "c9")
    assert event.payload == {"q": "x"}


def test_a_failed_tool_is_no_accepted_handoff() -> None:
    """A transfer whose tool failed is rejected; one that the framework ends by an exception of its own is not."""
    for error, outcome in (("ValueError: unknown agent", "rejected"), ("ParentCommand(goto)", "accepted")):
        story = langgraph_openinference()
        story.spans[3][1]["status"] = {"code": 2, "message": error}
        assert told(story) == [("triage_agent", "billing_agent", outcome)]


def test_a_target_that_never_works_was_dropped() -> None:
    """Other agents' work is visible, the target's is not."""
    story = langgraph_openinference()
    del story.spans[4]
    assert told(story) == [("triage_agent", "billing_agent", "dropped")]


@pytest.mark.parametrize("name", ["transfer_to_user", "search", "transfer_money"])
def test_other_tools_are_no_handoffs(name: str) -> None:
    """Tools that are no agents, and people."""
    story = Story()
    work = story.span("invoke_agent a", None, 5, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"})
    story.span(f"execute_tool {name}", work, 1, **{"gen_ai.tool.name": name})
    assert told(story) == []


def test_a_plain_order_of_agents_is_no_handoff() -> None:
    """An orchestrator that only runs its parts, and agents one after the other."""
    story = Story()
    root = story.span(
        "invoke_agent pipe", None, 9, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "pipe"}
    )
    for agent in ("a", "b"):
        story.span(
            f"invoke_agent {agent}", root, 2, **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
        )
    assert told(story) == []


def test_an_operators_tools_count() -> None:
    """`handoffs.tools` means the same in spans as on the wire."""
    story = Story()
    story.span("execute_tool ask_anna", None, 2, **{"gen_ai.tool.name": "ask_anna", "gen_ai.agent.name": "boss"})
    config = Config(
        otlp=OtlpConfig(http="127.0.0.1:4318"), handoffs=HandoffsConfig(tools=(HandoffToolConfig(tool="ask_*"),))
    )
    assert told(story) == []
    assert told(story, config=config) == [("boss", "anna", "accepted")]


def test_our_own_spans_say_nothing_new() -> None:
    """What Handrail sent itself comes back through a Collector: it was counted before."""
    story = openai_agents_openinference()
    story.spans = [("handrail", span) for _, span in story.spans]
    assert told(story) == []


# Joined with the wire.


def seen_on_wire(**fields: Any) -> Event:
    said: dict[str, Any] = {
        "kind": "handoff",
        "id": "w1",
        "at": START + 3.5,
        "source": "triage",
        "target": "Billing Agent",
        "protocol": "openai",
        "outcome": "asked",
    }
    return Event(**(said | fields))


@pytest.mark.parametrize(
    ("fields", "is_same"),
    [
        ({"task": "call_1", "source": None, "target": None}, True),
        ({"task": "call_1", "at": START + 500.0}, True),
        ({"task": "call_2"}, False),
        ({"trace_id": TRACE, "protocol": "a2a", "source": None, "at": START + 100.0}, True),
        ({"trace_id": "1" * 32, "protocol": "a2a"}, False),
        ({"protocol": "a2a", "source": "Triage Agent"}, True),
        ({"protocol": "a2a", "source": "Triage Agent", "at": START + 60.0}, False),
        ({"protocol": "a2a", "source": "Triage Agent", "target": "refund_agent"}, False),
        ({"protocol": "a2a", "trace_id": TRACE, "target": "refund_agent"}, False),
    ],
)
@pytest.mark.parametrize("first", ["wire", "span"])
def test_a_handoff_on_the_wire_and_in_spans_is_one_event(fields: dict[str, Any], is_same: bool, first: str) -> None:
    """By call id, else by trace and target, else by names and time; whichever comes first."""
    by, found = inspector(), []
    wire = seen_on_wire(**fields)

    def on_wire() -> None:
        for event in (
            wire,
            wire.but(outcome="accepted"),
        ):
            told = by.pipeline.observe(event).event
            if told is not None and told.outcome != "asked":
                found.append(told)

    if first == "wire":
        on_wire()
    add(by, openai_agents_openinference().request())
    found += [decision.event for decision in by.due(1_000.0) if decision.event is not None]
    if first == "span":
        on_wire()
    assert len(found) == (1 if is_same else 2)


def test_two_on_the_wire_and_two_in_spans_are_two() -> None:
    """Each is joined with one other, not all with the first."""
    by = inspector()
    found = 0
    for number in (1, 2):
        event = seen_on_wire(
            id=f"w{number}", protocol="a2a", source="a", target="b", trace_id=TRACE, outcome="completed"
        )
        found += by.pipeline.observe(event).event is not None
    story = Story()
    for agent in ("a", "b", "a", "b"):
        said = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
        work = story.span(f"invoke_agent {agent}", None, 2, **said)
        if agent == "a":
            story.span("handoff to b", work, 1, **{"input.value": "a", "output.value": "b"})
    add(by, story.request())
    found += len([decision for decision in by.end() if decision.event is not None])
    assert found == 2
    story.trace = "2" * 32
    for _, span in story.spans:
        span["traceId"] = story.trace
    add(by, story.request())
    assert len(by.end()) == 2


def test_a_span_stands_for_one_handoff_on_the_wire() -> None:
    """A second one between the same two is told, though the first was not."""
    by = inspector()
    add(by, openai_agents_openinference().request())
    assert len(by.due(1_000.0)) == 1
    found = [
        by.pipeline.observe(seen_on_wire(id=id, protocol="a2a", source="Triage Agent", outcome="completed")).event
        for id in ("w1", "w2")
    ]
    assert [event is not None for event in found] == [False, True]


# Bounds and bad input.


def test_what_is_remembered_is_bounded() -> None:
    """A trace that must go says what it has to say first."""
    by = build(Config(otlp=OtlpConfig(http="127.0.0.1:4318", traces=10, spans=40)), Registry(), ())
    assert by.spans is not None
    for number in range(1, 101):
        add(by, Story(trace=f"{number:032x}").request())
        story = adk_openinference()
        for _, span in story.spans:
            span["traceId"] = f"{number:032x}"
        add(by, story.request(), now=float(number))
        assert len(by.spans) <= 45
    assert len(by.end()) == 100


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.lists(st.none(), max_size=2))
KEYS = st.sampled_from(
    [
        *("message", "metadata", "input.value", "output.value", "tool.name", "gen_ai.tool.name", "gen_ai.agent.name"),
        *("gen_ai.operation.name", "openinference.span.kind", "traceloop.span.kind", "gen_ai.output.messages"),
        *("sender_agent_type", "langgraph.command.goto_node", "tool.parameters", "gen_ai.handoff.from_agent"),
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["invoke_agent x", "handoff to y", "execute_tool transfer_to_z", "tools/call q", ".", ""]),
            st.integers(1, 5),
            st.integers(0, 5),
            st.dictionaries(KEYS, ODD | st.sampled_from(["AGENT", "TOOL", '{"a": 1}', "[1", "HandoffMessage"])),
        ),
        max_size=6,
    )
)
def test_no_span_breaks_it(spans: list[tuple[str, int, int, dict[str, Any]]]) -> None:
    """Odd values, parents that are not there or go in circles: events or none, never an exception."""
    story = Story()
    for name, id, parent, said in spans:
        story.span(name, f"{parent:016x}" if parent else None, **said)
        story.spans[-1][1]["spanId"] = f"{id:016x}"
    events(story)


# Log records.


def test_models_words_in_logs_join_their_span() -> None:
    """`gen_ai.choice` as an event of its own: the call that it holds is the tool's that ran."""
    story, by = adk_openinference(), inspector()
    assert by.spans is not None
    body = {"message": {"tool_calls": [{"id": "adk-1", "function": {"name": "transfer_to_agent", "arguments": "{}"}}]}}
    record = {
        "timeUnixNano": str(int((START + 3) * 1e9)),
        "eventName": "gen_ai.choice",
        "traceId": TRACE,
        "spanId": story.spans[2][1]["spanId"],
        "body": as_any(body),
    }
    read = logs_of({"resourceLogs": [{"scopeLogs": [{"logRecords": [record, record]}]}]})
    assert by.told((), read.logs, 0.0) == []
    add(by, story.request())
    assert len(by.end()) == 1


def as_any(of: Any) -> dict[str, Any]:
    if isinstance(of, dict):
        return {"kvlistValue": {"values": [{"key": key, "value": as_any(each)} for key, each in of.items()]}}
    if isinstance(of, list):
        return {"arrayValue": {"values": [as_any(each) for each in of]}}
    return value(of)


def test_an_event_survives_its_way_as_a_log_record() -> None:
    """Every field comes back; the payload only where it may travel."""
    event = Event(
        kind="handoff",
        id="e1",
        at=1_700_000_000.25,
        workflow="w",
        source="a",
        target="b",
        attempt=2,
        outcome="completed",
        duration_ms=1.5,
        payload={"x": [1, 2]},
        trace_id=TRACE,
        span_id="ab" * 8,
    )
    assert event_of(log_of(event, payload=True)) == event
    without = event_of(log_of(event))
    assert without is not None
    assert without.payload is None
    by = inspector()
    (decision,) = by.told((), [log_of(event, payload=True)], 0.0)
    assert decision.event is not None
    assert (decision.event.id, decision.event.source) == ("e1", "a")
