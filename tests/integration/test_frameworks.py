"""Released frameworks, without a change to their code: every handoff that the model asked for is seen, none invented.

What is expected is what the scripted model really answered, so a run that took another way cannot pass by chance.
"""

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.servers import valkey
from handrail.dialects.conventions import stem
from integration.frameworks import Seen, run

TWICE = "I was charged twice for my order"
WRONG = "There is a wrong name on my invoice"
GOOD = {"customer_id": "C-1", "amount": 42.5, "reason": "charged twice"}
BAD = {"customer_id": "C-1", "amount": "a lot", "reason": "charged twice"}

Script = list[dict[str, Any]]

THREE: Script = [
    {"system": "You are the triage agent", "call": {"transfer_to_billing_agent": GOOD}},
    {"system": "You are the billing agent", "call": {"transfer_to_refund_agent": {}}},
    {"system": "You are the refund agent", "say": "It is refunded."},
]
TWO: Script = [THREE[0], {"system": "You are the billing agent", "say": "You were billed once."}]
SUPERVISED: Script = [
    {"system": "You are the supervisor", "unseen": "billed twice", "call": {"transfer_to_billing_agent": {}}},
    {"system": "You are the supervisor", "unseen": "is refunded", "call": {"transfer_to_refund_agent": {}}},
    {"system": "You are the supervisor", "say": "All done."},
    {"system": "You are the billing agent", "say": "It was billed twice."},
    {"system": "You are the refund agent", "say": "It is refunded."},
]

AGENTS = ("openai-agents", "openai_agents/support.py")
SWARM = ("langgraph", "langgraph/swarm.py")
SUPERVISOR = ("langgraph", "langgraph/supervisor.py")
AUTOGEN = ("autogen", "autogen/swarm.py")

Run = Callable[..., Seen]


@pytest.fixture
def seen(tmp_path: Path) -> Run:
    def call(
        framework: tuple[str, str],
        script: Script,
        *flags: str,
        questions: tuple[str, ...] = (TWICE,),
        seconds: int = 45,
    ) -> Seen:
        found = run(*framework, script, questions, tmp_path, *flags, seconds=seconds)
        assert found.answers, found.process.stderr
        return found

    return call


def asked(found: Seen) -> Counter[tuple[str, str, str]]:
    """From, to, tool of what the model asked for."""
    return Counter(
        (stem(line["system"].removeprefix("You are the ")), stem(tool.removeprefix("transfer_to_")), tool)
        for line in found.answers
        for tool in line.get("call", {})
    )


def told(found: Seen) -> Counter[tuple[str, str, str]]:
    """The same of what was seen."""
    return Counter(
        (stem(event.source or ""), stem(event.target or ""), event.operation or "") for event in found.handoffs
    )


def complete(found: Seen) -> None:
    """Everything that was asked for was seen, nothing else was, and every call of the model is there."""
    assert told(found) == asked(found), found.process.stderr
    assert len(found.usages) == len(found.answers)
    assert {event.outcome for event in found.usages} == {"completed"}


RUNS = [
    pytest.param(AGENTS, THREE, (), id="openai-agents-responses"),
    pytest.param(AGENTS, THREE, ("--stream",), id="openai-agents-responses-stream"),
    pytest.param(AGENTS, THREE, ("--chat",), id="openai-agents-chat"),
    pytest.param(AGENTS, THREE, ("--chat", "--stream"), id="openai-agents-chat-stream"),
    pytest.param(AGENTS, TWO, (), id="openai-agents-two"),
    pytest.param(SWARM, THREE, (), id="langgraph-swarm-chat"),
    pytest.param(SWARM, THREE, ("--stream",), id="langgraph-swarm-chat-stream"),
    pytest.param(SWARM, THREE, ("--responses",), id="langgraph-swarm-responses"),
    pytest.param(SWARM, THREE, ("--responses", "--stream"), id="langgraph-swarm-responses-stream"),
    pytest.param(SWARM, TWO, (), id="langgraph-swarm-two"),
    pytest.param(SUPERVISOR, SUPERVISED, (), id="langgraph-supervisor-chat"),
    pytest.param(SUPERVISOR, SUPERVISED, ("--stream",), id="langgraph-supervisor-chat-stream"),
    pytest.param(AUTOGEN, THREE, (), id="autogen-chat"),
    pytest.param(AUTOGEN, THREE, ("--stream",), id="autogen-chat-stream"),
    pytest.param(AUTOGEN, TWO, (), id="autogen-two"),
]


@pytest.mark.parametrize(("framework", "script", "flags"), RUNS)
def test_every_handoff_is_seen_and_done(
    seen: Run, framework: tuple[str, str], script: Script, flags: tuple[str, ...]
) -> None:
    """Two and three agents, plain and streamed: all are accepted, in one workflow, and nothing is wrong."""
    found = seen(framework, script, *flags)

    assert found.process.returncode == 0, found.process.stderr
    complete(found)
    assert {event.outcome for event in found.handoffs} == {"accepted"}
    assert len({event.workflow for event in found.events}) == 1
    assert {finding["rule"] for finding in found.findings} <= {"schema.unknown.type"}
    assert "accepted" in found.process.stderr
    assert "handrail" not in found.process.stdout


@pytest.mark.parametrize(
    ("framework", "seconds", "outcomes", "status"),
    [
        pytest.param(AGENTS, 45, ["rejected"], 1, id="openai-agents"),  # raises ModelBehaviorError
        pytest.param(SWARM, 45, ["rejected", "accepted"], 0, id="langgraph-swarm"),  # lets the model try again
        pytest.param(AUTOGEN, 8, ["rejected"], 128 + signal.SIGKILL, id="autogen"),  # says nothing, and never ends
    ],
)
def test_bad_arguments_of_a_typed_handoff_are_found(
    seen: Run, framework: tuple[str, str], seconds: int, outcomes: list[str], status: int
) -> None:
    """Against the schema that the framework sent itself; a second attempt with good ones is none of it."""
    bad = {"system": "You are the triage agent", "unseen": "a lot", "call": {"transfer_to_billing_agent": BAD}}
    found = seen(framework, [bad, *TWO], seconds=seconds)

    assert found.process.returncode == status, found.process.stderr
    complete(found)
    assert [event.outcome for event in found.handoffs] == outcomes
    [violation] = [finding for finding in found.findings if finding["kind"] == "schema.violation"]
    assert "/amount" in {each["path"] for each in violation["evidence"]["violations"]}
    assert violation["event"] == found.handoffs[0].id


def test_of_two_handoffs_at_once_one_comes_to_nothing(seen: Run) -> None:
    """LangGraph's supervisor gives the work to one agent; the other never speaks, and nothing but this says so.

    On some releases of Python its client is kept waiting, or it gives the work out a second time: then what was said is
    more, and of that too as much is done as agents spoke.
    """
    both: dict[str, Any] = {"transfer_to_billing_agent": {}, "transfer_to_refund_agent": {}}
    found = seen(SUPERVISOR, [{**SUPERVISED[0], "call": both}, *SUPERVISED[2:]])

    times = sum("call" in line for line in found.answers)
    spoke = sum(line["system"] != SUPERVISED[0]["system"] for line in found.answers)
    if times == 1:
        complete(found)
    else:
        assert told(found) == asked(found), found.process.stderr
    assert 1 <= spoke <= times
    outcomes = ["accepted"] * spoke + ["dropped"] * (2 * times - spoke)
    assert sorted(event.outcome for event in found.handoffs) == outcomes
    assert 1 <= len({event.workflow for event in found.events}) <= times


@pytest.mark.parametrize("flags", [(), ("--stream",)], ids=["plain", "stream"])
@pytest.mark.parametrize("framework", [AGENTS, SWARM, AUTOGEN], ids=["openai-agents", "langgraph-swarm", "autogen"])
def test_conversations_at_once_are_kept_apart(seen: Run, framework: tuple[str, str], flags: tuple[str, ...]) -> None:
    """Two customers at the same time: two workflows, with every handoff in its own."""
    found = seen(framework, THREE, *flags, questions=(TWICE, WRONG))

    complete(found)
    chains: dict[str | None, list[str | None]] = {}
    for event in found.handoffs:
        chains.setdefault(event.workflow, []).append(event.operation)
    assert sorted(chains.values(), key=str) == [["transfer_to_billing_agent", "transfer_to_refund_agent"]] * 2
    assert {event.outcome for event in found.handoffs} == {"accepted"}
    assert "ambiguous" not in {event.confidence for event in found.handoffs}


GRAPH = """
import contextlib, operator, os
from typing import Annotated, TypedDict
from langgraph.checkpoint.redis import RedisSaver
from langgraph.graph import END, START, StateGraph

class State(TypedDict):
    notes: Annotated[list, operator.add]

graph = StateGraph(State)
graph.add_node("researcher", lambda state: {"notes": ["found"]})
graph.add_node("writer", lambda state: {"notes": ["written"]})
graph.add_edge(START, "researcher")
graph.add_edge("researcher", "writer")
graph.add_edge("writer", END)
saver = RedisSaver(redis_url=os.environ["REDIS_URL"])
with contextlib.suppress(Exception):  # a server without search has no index
    saver.setup()
graph.compile(checkpointer=saver).invoke({"notes": []}, {"configurable": {"thread_id": "thread-7"}})
"""

PLACES = """
stores:
  - name: checkpoints
    listeners: [{listen: "127.0.0.1:0", upstream: "redis://127.0.0.1:%d"}]
    state:
      - key: "checkpoint_write:{workflow}:*"
      - key: "checkpoint:{workflow}:*"
"""


def test_a_checkpointer_shows_the_state_between_nodes(tmp_path: Path) -> None:
    """Every checkpoint is a write of its thread. Valkey has no JSON.SET, so here each fails, and is told to have."""
    program, config = tmp_path / "graph.py", tmp_path / "handrail.yaml"
    program.write_text(GRAPH)
    with valkey() as store:
        config.write_text(PLACES % store.port)
        found = run("langgraph", str(program), [], [], tmp_path, handrail=("-c", str(config)))

    writes = [event for event in found.events if event.kind == "write" and event.operation == "JSON.SET"]
    assert {event.workflow for event in writes} == {"thread-7"}, found.process.stderr
    assert {(event.key or "").partition(":")[0] for event in writes} == {"checkpoint", "checkpoint_write"}
    assert all(event.payload_bytes for event in writes)
    assert {event.outcome for event in writes} == {"failed"}
    assert found.handoffs == []


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


@pytest.mark.parametrize("flags", [("--chat", "--stream"), ("--stream",)], ids=["chat-stream", "responses-stream"])
def test_a_refused_handoff_is_an_error_that_the_framework_understands(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """In enforce mode: good ones go through and the run ends well; a bad one never reaches the SDK, and says why."""
    rules, config = tmp_path / "rules.yaml", tmp_path / "handrail.yaml"
    rules.write_text(ENFORCED)
    config.write_text(f"rules: {{builtin: false, files: [{rules}]}}\n")
    bad = [{"system": "You are the triage agent", "call": {"transfer_to_billing_agent": BAD}}]

    good = run(*AGENTS, THREE, [TWICE], tmp_path, *flags, handrail=("-c", str(config)))
    assert good.process.returncode == 0, good.process.stderr
    assert [event.outcome for event in good.handoffs] == ["accepted", "accepted"]
    assert "Refund Agent: It is refunded." in good.process.stdout

    refused = run(*AGENTS, bad, [TWICE], tmp_path, *flags, handrail=("-c", str(config)))
    assert refused.process.returncode == 1
    assert "violates" in refused.process.stderr
    assert "ModelBehaviorError" not in refused.process.stderr
    assert {event.outcome for event in refused.handoffs} == {"rejected"}
