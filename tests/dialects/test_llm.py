"""Conversations: what becomes of a handoff is told by later exchanges, whichever framework sends them."""

from typing import Any

from dialects.talk import EMPTY, answered, at, called, chat, choice, events, handoffs, result, told, tool, user
from handrail.config import Config, HandoffsConfig, HandoffToolConfig, SpeakerConfig
from handrail.pipeline import build
from handrail.schema.registry import Registry
from handrail.wire import Exchange

ASK = user("I was charged twice on invoice INV-7, please refund.")
TRIAGE, BILLING, REFUND = (f"You are the {name}. Do your work." for name in ("triage agent", "specialist", "expert"))
TO_BILLING = tool("transfer_to_billing_agent", "Handoff to billing_agent.")
TO_REFUND = tool("transfer_to_refund_agent", "Handoff to refund_agent.")
LOOK = tool("lookup_invoice", "Look up an invoice.")


def autogen(start: float, asked: dict[str, Any] = ASK, id: str = "c") -> list[Exchange]:
    """Calls are taken out of the target's history; a message by name says who transferred."""
    moved = user("Transferred to billing_agent, adopting the role of billing_agent immediately.", "triage_agent")
    on = user("Transferred to refund_agent, adopting the role of refund_agent immediately.", "billing_agent")
    looked = called(f"{id}2", "lookup_invoice", {"id": "INV-7"})
    paid = result(f"{id}2", "paid")
    billing = [LOOK, TO_REFUND]
    return [
        at(start, chat(TRIAGE, asked, tools=[TO_BILLING]), choice(called(f"{id}1", "transfer_to_billing_agent"))),
        at(start + 1, chat(BILLING, asked, moved, tools=billing), choice(looked)),
        at(
            start + 2,
            chat(BILLING, asked, moved, looked, paid, tools=billing),
            choice(called(f"{id}3", "transfer_to_refund_agent")),
        ),
        at(start + 3, chat(REFUND, asked, moved, on), choice(answered("Refunded."))),
    ]


def test_a_target_without_the_call_is_known_by_first_words_and_name() -> None:
    """The message that announces the handoff names the source; ids are gone, so it is inferred."""
    assert told(autogen(0.0)) == [
        ("triage_agent", "billing_agent", "accepted", "inferred"),
        ("billing_agent", "refund_agent", "accepted", "inferred"),
    ]


def test_identical_conversations_are_ambiguous_and_both_are_counted() -> None:
    """Two conversations whose requests cannot be told apart: each handoff once, none with a guessed certainty."""
    one, two = autogen(0.0, id="a"), autogen(0.1, id="b")
    found = told(sorted([*one, *two], key=lambda exchange: exchange.request.at))
    assert [each[:3] for each in found] == [
        ("triage_agent", "billing_agent", "accepted"),
        ("triage_agent", "billing_agent", "accepted"),
        ("billing_agent", "refund_agent", "accepted"),
        ("billing_agent", "refund_agent", "accepted"),
    ]
    assert {each[3] for each in found} == {"ambiguous"}


def test_different_conversations_do_not_mix() -> None:
    """Interleaved exchange by exchange, each handoff is in the workflow of its own conversation."""
    one, two = autogen(0.0, user("[A] refund me"), id="a"), autogen(0.1, user("[B] refund me"), id="b")
    found = handoffs(sorted([*one, *two], key=lambda exchange: exchange.request.at))
    assert [(event.target, event.outcome, event.confidence) for event in found] == [
        ("billing_agent", "accepted", "inferred"),
        ("billing_agent", "accepted", "inferred"),
        ("refund_agent", "accepted", "inferred"),
        ("refund_agent", "accepted", "inferred"),
    ]
    assert [event.workflow for event in found] == [one[0].id, two[0].id, one[0].id, two[0].id]


def test_a_target_with_nothing_but_the_first_words() -> None:
    """Agent Framework strips the call, and gives the tool an id with its case kept."""
    to_billing = tool("handoff_to_Billing-Agent", "Knows invoices.", EMPTY | {"title": "handoff_to_input"})
    exchanges = [
        at(0, chat(TRIAGE, ASK, tools=[to_billing]), choice(called("c1", "handoff_to_Billing-Agent"))),
        at(1, chat(BILLING, ASK, tools=[LOOK]), choice(answered("Done."))),
    ]
    assert told(exchanges) == [("triage agent", "Billing-Agent", "accepted", "inferred")]


def adk(start: float, to: str = "billing_agent") -> list[Exchange]:
    """One tool for all targets; the target reads of the call in a user's text."""
    schema = {"type": "object", "properties": {"agent_name": {"type": "string", "enum": ["billing_agent", "legal"]}}}
    transfer = tool(
        "transfer_to_agent", "Transfer the question to another agent.", schema | {"required": ["agent_name"]}
    )
    quoted = user(
        "For context:\n<<<BEGIN_QUOTED_AGENT_CONTENT>>>\n[triage_agent] called tool `transfer_to_agent` with"
        f" parameters: {{'agent_name': '{to}'}}"
    )
    triage = 'Route.\nYour internal name is "triage_agent". Transfer to billing_agent or legal.'
    return [
        at(start, chat(triage, ASK, tools=[transfer]), choice(called("c1", "transfer_to_agent", {"agent_name": to}))),
        at(start + 1, chat('Bill.\nYour internal name is "billing_agent".', ASK, quoted), choice(answered("ok"))),
    ]


def test_an_argument_names_the_target() -> None:
    """ADK's `agent_name`; source and target say their names in their prompts."""
    assert told(adk(0.0)) == [("triage_agent", "billing_agent", "accepted", "inferred")]


def test_a_target_that_is_not_allowed_is_rejected() -> None:
    """The enumeration in the tool's schema lists the targets; the framework raises and sends nothing more."""
    assert told(adk(0.0, "marketing")[:1]) == [("triage_agent", "marketing", "rejected", "exact")]


def crewai(start: float, first: str = "Work to refund") -> list[Exchange]:
    """A coworker starts afresh with the caller's words, and its answer is the result of the caller's call."""
    delegate = tool("delegate_work_to_coworker", "Delegate to one of the following coworkers: Billing Specialist")
    arguments = {"task": "Check invoice INV-7", "context": "Charged twice, C-1001", "coworker": "Billing Specialist"}
    asked = user(f"\nCurrent Task: {first}")
    work = user("\nCurrent Task: Check invoice INV-7\nThis is the context you're working with:\nCharged twice, C-1001")
    caller = "You are Triage Lead. Routes.\nYour personal goal is: route"
    call = called("c1", "delegate_work_to_coworker", arguments)
    return [
        at(start, chat(caller, asked, tools=[delegate]), choice(call)),
        at(
            start + 1,
            chat("You are Billing Specialist. Knows.\nYour personal goal is: bill", work),
            choice(answered("INV-7 paid twice")),
        ),
        at(
            start + 2,
            chat(caller, asked, call, result("c1", "INV-7 paid twice"), tools=[delegate]),
            choice(answered("ok")),
        ),
    ]


def test_work_that_is_delegated_comes_back() -> None:
    """CrewAI: the coworker is named in the arguments and in its own prompt; one workflow for both."""
    [found] = handoffs(crewai(0.0))
    assert (found.source, found.target, found.outcome) == ("Triage Lead", "Billing Specialist", "accepted")
    assert found.operation == "delegate_work_to_coworker"


def test_a_coworker_that_does_not_exist_is_rejected() -> None:
    """The tool says so to the caller."""
    first, _, last = crewai(0.0)
    error = result("c1", "Error executing tool. coworker mentioned not found, it must be one of the following options")
    body = chat(
        "You are Triage Lead. Routes.\nYour personal goal is: route",
        user("\nCurrent Task: Work to refund"),
        called("c1", "delegate_work_to_coworker", {}),
        error,
    )
    again = at(2, body, choice(answered("sorry")))
    assert [each[2] for each in told([first, again])] == ["rejected"]
    del last


def test_an_agent_as_a_tool_is_known_by_nesting() -> None:
    """Any tool name: another agent is asked the argument's words while the call is open, and its answer comes back."""
    ask = tool("ask_billing", "Ask billing", {"type": "object", "properties": {"input": {"type": "string"}}})
    call = called("c1", "ask_billing", {"input": "check INV-7 for C-1001"})
    manager = "You are the manager."

    def run(inner: str, back: str) -> list[tuple[Any, ...]]:
        return told(
            [
                at(0, chat(manager, ASK, tools=[ask]), choice(call)),
                at(1, chat(BILLING, user(inner)), choice(answered("paid twice"))),
                at(2, chat(manager, ASK, call, result("c1", back), tools=[ask]), choice(answered("ok"))),
            ]
        )

    assert run("check INV-7 for C-1001", "paid twice") == [("manager", "billing", "accepted", "inferred")]
    assert run("something else", "paid twice") == []
    assert run("check INV-7 for C-1001", "no such invoice") == []


def test_an_agent_as_a_tool_under_its_own_name() -> None:
    """ADK's task mode: the tool is called as the agent that it is, and the user's message is the arguments."""
    arguments = {"customer_id": "C-1001", "amount": 42.5}
    ask = tool("billing_agent", "Delegates execution to a specialized agent.", {"type": "object"})
    exchanges = [
        at(
            0,
            chat('Your internal name is "triage"', ASK, tools=[ask]),
            choice(called("c1", "billing_agent", arguments)),
        ),
        at(1, chat("Do the task.", user('{"amount": 42.5, "customer_id": "C-1001"}')), choice(answered("42"))),
    ]
    assert told(exchanges) == [("triage", "billing_agent", "accepted", "inferred")]


def supervisor(parallel: bool) -> list[Exchange]:
    """LangGraph's supervisor: transfers back are written into the history by the framework, with ids of its own."""
    tools = [
        tool("transfer_to_billing_agent", "Ask agent 'billing_agent' for help"),
        tool("transfer_to_refund_agent", "Ask agent 'refund_agent' for help"),
    ]
    calls = called("c1", "transfer_to_billing_agent", agent=None)
    done = [result("c1", "Successfully transferred to billing_agent")]
    if parallel:
        calls["tool_calls"] += called("c2", "transfer_to_refund_agent")["tool_calls"]
        done.append(result("c2", "Successfully transferred to refund_agent"))
    history = [ASK, calls | {"name": "supervisor"}, *done]
    back = [
        answered("INV-7 paid twice", "billing_agent"),
        called("5e1f4e-uuid", "transfer_back_to_supervisor", agent="billing_agent"),
        result("5e1f4e-uuid", "Successfully transferred back to supervisor"),
    ]
    boss = "You manage a team."
    return [
        at(0, chat(boss, ASK, tools=tools), choice(calls)),
        at(1, chat("You know billing.", *history, tools=[LOOK]), choice(answered("INV-7 paid twice"))),
        at(2, chat(boss, *history, *back, tools=tools), choice(answered("All done."))),
    ]


def test_a_leader_gives_a_member_its_task() -> None:
    """As Agno's teams do: one tool for all members, and the task is all that the member is told."""
    give = tool("delegate_task_to_member", "Use this function to delegate a task to the selected team member.")
    leader, member = "Route the customer.\n\n<team>", "<your_role>\nHandles bills\n</your_role>"
    task = {"member_id": "billing-agent", "task": "Check whether INV-7 was charged twice"}
    call = called("k1", "delegate_task_to_member", task)
    exchanges = [
        at(0, chat(leader, ASK, tools=[give]), choice(call)),
        at(1, chat(member, user(task["task"])), choice(answered("It was."))),
        at(2, chat(leader, ASK, call, result("k1", "It was."), tools=[give]), choice(answered("Yes, it was."))),
    ]
    [found] = handoffs(exchanges)
    assert (found.target, found.outcome, found.manner, found.payload) == ("billing-agent", "accepted", "delegate", task)
    assert len({event.workflow for event in events(exchanges)}) == 1


def test_an_agent_that_is_named_in_its_first_words() -> None:
    """As smolagents does: all agents have one prompt, and a history shows calls and results as text."""
    prompt = "You are an expert assistant who can solve any task using tool calls."
    answer, manage = tool("final_answer"), tool("billing_agent", "Handles bills")
    task = {"task": "Check INV-7"}
    told_to = (
        "New task:\nYou're a helpful agent named 'billing_agent'.\nYou have been submitted this task by your manager."
    )
    quoted = "Calling tools:\n[{'id': 'k1', 'type': 'function', 'function': {'name': 'billing_agent'}}]"
    history = [ASK, answered(quoted), user("Observation:\nHere is the final answer from your managed agent.")]
    exchanges = [
        at(0, chat(prompt, ASK, tools=[answer, manage]), choice(called("k1", "billing_agent", task))),
        at(1, chat(prompt, user(f"{told_to}\n---\nTask:\nCheck INV-7"), tools=[answer]), choice(answered("Twice."))),
        at(2, chat(prompt, *history, tools=[answer, manage]), choice(answered("Yes."))),
    ]
    [found] = handoffs(exchanges)
    assert (found.target, found.outcome, found.manner, found.payload) == ("billing_agent", "accepted", "delegate", task)
    assert len({event.workflow for event in events(exchanges)}) == 1


def test_a_synthetic_transfer_back_is_no_handoff() -> None:
    """A call in a history that no model made is neither reported nor missed; the source is named by the history."""
    assert told(supervisor(parallel=False)) == [("supervisor", "billing_agent", "accepted", "exact")]


def test_a_way_back_without_the_calls_goes_on_with_its_conversation() -> None:
    """A framework that leaves its parallel calls out of the history and puts a way back behind the worker's words."""
    both = called("c1", "transfer_to_billing_agent", agent="supervisor")
    both["tool_calls"] += called("c2", "transfer_to_refund_agent")["tool_calls"]
    tools = [tool("transfer_to_billing_agent"), tool("transfer_to_refund_agent")]
    mine = called("c1", "transfer_to_billing_agent", agent="supervisor")
    done = result("c1", "Successfully transferred to billing_agent")
    back = called("synthetic", "transfer_back_to_supervisor", agent="billing_agent")
    home = result("synthetic", "Successfully transferred back to supervisor")
    said = answered("It was billed twice.", "billing_agent")
    exchanges = [
        at(0, chat("You are the supervisor.", ASK, tools=tools), choice(both)),
        at(1, chat("You are billing.", ASK, mine, done), choice(answered("It was billed twice."))),
        at(2, chat("You are the supervisor.", ASK, said, back, home, tools=tools), choice(answered("All done."))),
    ]
    assert len({event.workflow for event in events(exchanges)}) == 1
    assert [each[1:3] for each in told(exchanges)] == [("billing_agent", "accepted"), ("refund_agent", "dropped")]


def test_a_target_that_never_speaks_has_dropped_its_task() -> None:
    """Two asked for, both confirmed by the tool, one spoke."""
    assert [each[:3] for each in told(supervisor(parallel=True))] == [
        ("supervisor", "billing_agent", "accepted"),
        ("supervisor", "refund_agent", "dropped"),
    ]


def test_a_second_parallel_handoff_that_nobody_answers_is_ignored() -> None:
    """No result, no target: the framework took the first."""
    both = called("c1", "transfer_to_billing_agent")
    both["tool_calls"] += called("c2", "transfer_to_refund_agent")["tool_calls"]
    moved = user("Transferred to billing_agent, adopting the role.", "triage_agent")
    exchanges = [
        at(0, chat(TRIAGE, ASK, tools=[TO_BILLING, TO_REFUND]), choice(both)),
        at(1, chat("You are the billing specialist.", ASK, moved, tools=[LOOK]), choice(answered("ok"))),
    ]
    assert [each[1:3] for each in told(exchanges)] == [("billing_agent", "accepted"), ("refund_agent", "ignored")]


def test_a_target_that_begins_anew_is_known_by_what_the_call_said() -> None:
    """Strands gives the target one message of its own; the source speaks once more, and the target hands on."""
    swarm = [tool("handoff_to_agent", "Hand off to another agent.")]
    bill = {"agent_name": "billing_agent", "message": "Check the bill please"}
    pay = {"agent_name": "refund_agent", "message": "Refund it please"}
    worked = "Context:\nHandoff Message: {}\n\nUser Request: refund me\n\nPrevious agents who worked on this: {}\n\n"
    first, second = user("Context:\nUser Request: refund me\n"), user(worked.format(bill["message"], "triage_agent"))
    third = user(worked.format(pay["message"], "triage_agent → billing_agent"))
    asked = called("s1", "handoff_to_agent", bill)
    over = result("s1", "Handing off to billing_agent: Check the bill please")
    found = events(
        [
            at(0, chat("Route.", first, tools=swarm), choice(asked)),
            at(1, chat("Route.", first, asked, over, tools=swarm), choice(answered("Handed over."))),
            at(2, chat("Bills.", second, tools=swarm), choice(called("s2", "handoff_to_agent", pay))),
            at(3, chat("Refunds.", third, tools=swarm), choice(answered("Refunded."))),
        ]
    )
    done = [(e.source, e.target, e.outcome) for e in found if e.kind == "handoff" and e.outcome != "asked"]
    assert done == [("triage_agent", "billing_agent", "accepted"), ("billing_agent", "refund_agent", "accepted")]
    assert len({event.workflow for event in found}) == 1


def test_the_way_back_names_who_speaks_again() -> None:
    """Where messages carry no names, the framework's own way back says whose turn it is."""
    boss = [tool("transfer_to_bill", "Ask agent 'bill' for help"), tool("transfer_to_sum", "Ask agent 'sum' for help")]
    first, done = called("b1", "transfer_to_bill"), result("b1", "Successfully transferred to bill")
    home = result("made-up", "Successfully transferred back to supervisor")
    seen = [ASK, first, done, answered("Fine."), called("made-up", "transfer_back_to_supervisor"), home]
    again = called("b2", "transfer_to_sum")
    found = told(
        [
            at(0, chat("Manage.", ASK, tools=boss), choice(first)),
            at(1, chat("Bills.", ASK, first, done), choice(answered("Fine."))),
            at(2, chat("Manage.", *seen, tools=boss), choice(again)),
            at(3, chat("Sums.", *seen, again, result("b2", "Successfully transferred to sum")), choice(answered("7"))),
        ]
    )
    assert [each[:3] for each in found] == [(None, "bill", "accepted"), ("supervisor", "sum", "accepted")]


def test_a_plugin_before_the_tool_and_a_name_beside_the_prompt() -> None:
    """Semantic Kernel's handoffs: tools carry their plugin's name, prompts stand under the agent's."""
    tools = [tool("Handoff-transfer_to_BillingAgent", "bills"), tool("Handoff-complete_task", "over")]
    triage, billing = chat("Route.", ASK, tools=tools), chat("Bills.", ASK)
    triage["messages"][0]["name"], billing["messages"][0]["name"] = "TriageAgent", "BillingAgent"
    asked = choice(called("k1", "Handoff-transfer_to_BillingAgent"))
    found = told([at(0, triage, asked), at(1, billing, choice(answered("Fine.")))])
    assert [each[:3] for each in found] == [("TriageAgent", "BillingAgent", "accepted")]


def test_who_spoke_before_is_no_source() -> None:
    """A supervisor that leaves no call in the history: the expert's words in it do not make the expert its source."""
    boss = [tool("transfer_to_bill", "Ask agent 'bill' for help"), tool("transfer_to_sum", "Ask agent 'sum' for help")]
    fine = {**answered("The bill is fine."), "name": "bill"}
    assert [
        each[:3]
        for each in told(
            [
                at(0, chat("Manage.", ASK, tools=boss), choice(called("n1", "transfer_to_bill"))),
                at(1, chat("Bills.", ASK), choice(answered("The bill is fine."))),
                at(2, chat("Manage.", ASK, fine, tools=boss), choice(called("n2", "transfer_to_sum"))),
                at(3, chat("Sums.", ASK, fine), choice(answered("Seven."))),
            ]
        )
    ] == [(None, "bill", "accepted"), (None, "sum", "accepted")]


def test_silence_ends_a_handoff() -> None:
    """After `silence_seconds` the target has dropped it; a target that speaks within them has not."""
    inspector = build(Config(handoffs=HandoffsConfig(silence_seconds=5)), Registry(), ())
    first = autogen(0.0)[0]
    list(inspector.whole(first))
    assert inspector.due(5.0) == []
    [decision] = inspector.due(5.02)
    assert decision.event is not None
    assert (decision.event.outcome, decision.event.target) == ("dropped", "billing_agent")
    assert inspector.due(99.0) == [] == inspector.end()


def test_a_person_is_no_target() -> None:
    """Giving control back to the user is not a handoff between agents."""
    back = tool("transfer_to_user", "Handoff to user.")
    assert told([at(0, chat(TRIAGE, ASK, tools=[back]), choice(called("c1", "transfer_to_user")))]) == []


def test_an_ordinary_tool_is_no_handoff() -> None:
    """Whatever it is called with, and whoever speaks next."""
    assert told([at(0, chat(TRIAGE, ASK, tools=[LOOK]), choice(called("c1", "lookup_invoice", {"id": "INV-7"})))]) == []


def test_an_operator_names_tools_and_speakers() -> None:
    """`handoffs.tools`, `handoffs.agents` and `handoffs.ignore` come before what is built in."""
    config = HandoffsConfig(
        tools=(HandoffToolConfig(tool="escalate_*"), HandoffToolConfig(tool="pass_on", argument="who")),
        agents=(SpeakerConfig(agent="front desk", system="triage*work", tool="pass_on"),),
        ignore=("transfer_to_savings",),
    )
    call = called("c1", "escalate_legal")
    call["tool_calls"] += called("c2", "pass_on", {"who": "Ombudsman"})["tool_calls"]
    call["tool_calls"] += called("c3", "transfer_to_savings")["tool_calls"]
    tools = [tool("escalate_legal"), tool("pass_on"), tool("transfer_to_savings")]
    inspector = build(Config(handoffs=config), Registry(), ())
    found = told([at(0, chat(TRIAGE, ASK, tools=tools), choice(call))], inspector)
    assert found == [("front desk", "legal", "dropped", "exact"), ("front desk", "Ombudsman", "dropped", "exact")]


def test_memory_is_bounded() -> None:
    """Ten thousand conversations that never end leave no more than the limit behind."""
    inspector = build(Config(handoffs=HandoffsConfig(conversations=50)), Registry(), ())
    for number in range(500):
        list(inspector.whole(autogen(0.0, user(f"case {number}"), id=f"i{number}.")[0]))
    assert len(inspector.end()) == 50
