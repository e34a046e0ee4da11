"""What frameworks call their handoff tools, what the tools answer, and how prompts name who speaks."""

import pytest

from handrail.config import Config, HandoffsConfig, SpeakerConfig, problems
from handrail.dialects.conventions import IGNORED, REJECTED, Conventions, name_in_result, slug, speaker, stem

TOOLS = [
    ("transfer_to_billing_agent", "Handoff to the Billing Agent agent to handle the request. ", "Billing Agent"),
    ("transfer_to_billing_agent", "Ask agent 'billing_agent' for help", "billing_agent"),
    ("transfer_to_refund_agent", "Move the case to refunds", "refund_agent"),
    ("transfer_to_refund_agent", "Handoff to Refund_Agent.", "Refund_Agent"),
    ("delegate_tobilling_agent", "Ask agent 'billing_agent' for help", "billing_agent"),
    ("escalate", "Handoff to the Legal Agent agent to handle the request. Knows law.", "Legal Agent"),
    ("handoff_to_Billing-Agent", "Knows invoices.", "Billing-Agent"),
    ("hand_off_to_legal", "", "legal"),
    ("transferToBilling", "", "Billing"),
    ("transfer_back_to_supervisor", "", "supervisor"),
]


@pytest.mark.parametrize(("name", "description", "target"), TOOLS)
def test_the_target_is_in_the_name_or_the_description(name: str, description: str, target: str) -> None:
    """The description keeps the agent's name; the tool's name has lost case and spaces."""
    meant = Conventions(HandoffsConfig()).meant(name, description)
    assert meant is not None
    assert (meant.kind, meant.target) == ("transfer", target)


@pytest.mark.parametrize(
    ("name", "arguments", "target"),
    [
        ("transfer_to_agent", {"agent_name": "billing"}, "billing"),
        ("delegate_work_to_coworker", {"task": "t", "coworker": "Billing Specialist"}, "Billing Specialist"),
        ("Delegate work to coworker", {"coworker": ' "Billing Specialist"\n'}, "Billing Specialist"),
        ("ask_question_to_coworker", {}, None),
        ("transfer_to_agent", ["billing"], None),
        ("delegate_task_to_member", {"member_id": "billing-agent", "task": "t"}, "billing-agent"),
        ("transfer_task_to_team_member", {"member": "billing", "task": "t"}, "billing"),
        ("handoff_to_specialist", {"name": "billing"}, "billing"),
        ("assign_work_to_an_agent", {"agent_name": "billing"}, "billing"),
        ("delegate_to_expert", {"question": "q"}, None),
    ],
)
def test_an_argument_names_the_target(name: str, arguments: object, target: str | None) -> None:
    """One tool for all targets."""
    conventions = Conventions(HandoffsConfig())
    meant = conventions.meant(name, "")
    assert meant is not None
    assert conventions.target(meant, arguments) == target


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("delegate_task_to_member", "delegate"),
        ("transfer_task_to_member", "delegate"),
        ("transfer_to_specialist", "transfer"),
        ("delegate_to_expert", "delegate"),
    ],
)
def test_who_gets_a_task_answers(name: str, kind: str) -> None:
    """Where a tool says only what its target is, what it gives says whether the source goes on."""
    meant = Conventions(HandoffsConfig()).meant(name, "")
    assert meant is not None
    assert (meant.kind, meant.target) == (kind, None)


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("lookup_invoice", "Look up an invoice."),
        ("transfer_to_user", "Handoff to user."),
        ("transfer_to_human", ""),
        ("transfer", "Transfer money."),
        ("wire_transfer_to", ""),
        ("ask_billing", "Ask billing"),
        ("tell", "Tell the user about a handoff to the next agent."),
    ],
)
def test_other_tools_are_none(name: str, description: str) -> None:
    """Ordinary tools, people, and names that only remind of a handoff."""
    assert Conventions(HandoffsConfig()).meant(name, description) is None


@pytest.mark.parametrize(
    ("system", "found"),
    [
        ('Route.\nYour internal name is "triage_agent". Transfer to others.', ("triage_agent", None)),
        ("You are Billing Specialist. Knows all.\nYour personal goal is: bill", ("Billing Specialist", None)),
        ("You are the triage agent. Route the customer.", (None, "triage agent")),
        ("You are the manager.", (None, "manager")),
        ("You are a helpful assistant.", (None, None)),
        ("You are an expert in everything that there is to know, and more.", (None, None)),
        ("", (None, None)),
    ],
)
def test_prompts_say_who_speaks(system: str, found: tuple[str | None, str | None]) -> None:
    """A framework's own words are sure, a person's are likely, and what is said of everybody names nobody."""
    assert speaker(system) == found


def test_results_of_tools() -> None:
    """A refusal, a second handoff that is passed over, and the true name of who was handed to."""
    assert name_in_result('{"assistant": "Billing Agent"}') == "Billing Agent"
    assert name_in_result("Successfully transferred to Refund Agent") == "Refund Agent"
    assert (
        name_in_result("Transferred to billing_agent, adopting the role of billing_agent immediately.")
        == "billing_agent"
    )
    assert name_in_result("invoice INV-7 was transferred") is None
    assert IGNORED.search("Multiple handoffs detected, ignoring this one.")
    for text in (
        "Error invoking tool 'transfer_to_billing_agent' with kwargs {}",
        "Error executing tool. coworker mentioned not found, it must be one of the following options",
        "Error: transfer_to_x is not a valid tool, try one of [y].",
        "transfer_to_x is not a valid tool",
    ):
        assert REJECTED.match(text), text
    assert not REJECTED.match("The customer reported an error in invoice INV-7.")


def test_names_are_compared_as_tools_spell_them() -> None:
    """Case, spaces and the word agent make no difference between two spellings of one name."""
    assert slug("Refund Agent") == slug("refund_agent") == slug("Refund-Agent")
    assert stem("Refund Agent") == stem("refund") == stem("agent refund")
    assert stem("agent") == "agent"


def test_a_speaker_without_a_mark_is_refused() -> None:
    """Otherwise every turn would be that agent's."""
    config = Config(handoffs=HandoffsConfig(agents=(SpeakerConfig(agent="a"),)))
    assert [key for key, _ in problems(config)] == ["handoffs.agents[0]"]
