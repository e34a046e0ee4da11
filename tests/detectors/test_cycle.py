"""graph.cycle: handoffs that the declared graph does not allow."""

import pytest

from handrail.event import Event

CHAIN = {"edges": [["a", "b"], ["b", "c"]]}


def plan(payload: object = CHAIN, workflow: str | None = "w") -> Event:
    return Event(kind="plan", id="plan", at=0.0, workflow=workflow, payload=payload)


def call(source: str, target: str, number: int = 1, workflow: str | None = "w", **fields: object) -> Event:
    return Event(
        kind="handoff", id=f"e{number}", at=float(number), workflow=workflow, source=source, target=target, **fields
    )  # type: ignore[arg-type]


def test_a_back_edge_names_the_cycle_that_it_closes(build) -> None:
    """Once for each edge of a workflow."""
    pipeline = build("graph.cycle")
    assert not pipeline.observe(plan()).findings
    (found,) = pipeline.observe(call("c", "a")).findings
    assert (found.event, found.events, found.side) == ("e1", ("plan", "e1"), "graph")
    assert found.message == "c handed over to a, which the declared graph puts before it: c → a → b → c"
    assert found.evidence == {
        "what": "back_edge",
        "edge": ["c", "a"],
        "cycle": ["c", "a", "b"],
        "declared_by": "plan",
        "declared_targets": [],
    }
    assert not pipeline.observe(call("c", "a", 2)).findings


@pytest.mark.parametrize(
    ("source", "target", "what"),
    [
        ("a", "c", "undeclared_edge"),
        ("b", "x", "undeclared_agent"),
        ("b", "a", "back_edge"),
        ("a", "b", None),
        ("b", "c", None),
        ("user", "a", None),
        ("x", "y", None),
        ("a", "a", None),
    ],
)
def test_what_was_not_declared_is_told(build, source: str, target: str, what: str | None) -> None:
    """Whoever the plan does not know may call; whom it knows may call whom it says."""
    pipeline = build("graph.cycle")
    pipeline.observe(plan())
    assert [found.evidence["what"] for found in pipeline.observe(call(source, target)).findings] == [what] * bool(what)


def test_an_agent_that_was_drawn_in_is_not_outside(build) -> None:
    """Nobody declared x, yet it got work from b: that it hands on to an agent of the plan is told as well."""
    pipeline = build("graph.cycle")
    pipeline.observe(plan())
    assert not pipeline.observe(call("x", "c", 1)).findings
    assert pipeline.observe(call("b", "x", 2)).findings
    assert not pipeline.observe(call("x", "y", 3)).findings
    (found,) = pipeline.observe(call("x", "c", 4)).findings
    assert (found.evidence["what"], found.evidence["edge"]) == ("undeclared_edge", ["x", "c"])


def test_models_and_tools_are_not_agents(build) -> None:
    """Unless the plan names them."""
    pipeline = build("graph.cycle")
    pipeline.observe(plan())
    assert not pipeline.observe(call("a", "gpt", protocol="openai")).findings
    assert pipeline.observe(call("c", "b", protocol="openai")).findings


def test_without_a_declaration_nothing_is_told(build) -> None:
    """Agents that answer each other are normal; so is another workflow's plan."""
    pipeline = build("graph.cycle")
    assert not pipeline.observe(call("a", "b")).findings
    assert not pipeline.observe(call("b", "a", 2)).findings
    pipeline.observe(plan(workflow="other"))
    assert not pipeline.observe(call("b", "a", 3)).findings


def test_a_plan_without_workflow_holds_for_those_without_their_own(build) -> None:
    """A workflow's own plan comes first."""
    pipeline = build("graph.cycle")
    pipeline.observe(plan(workflow=None))
    assert pipeline.observe(call("b", "a")).findings
    pipeline.observe(plan({"edges": [["b", "a"]]}, workflow="v"))
    assert not pipeline.observe(call("b", "a", 2, workflow="v")).findings


def test_a_plan_in_which_nobody_can_start_is_told(build) -> None:
    """One that can be entered through an agent that waits for any is a loop that somebody meant."""
    (found,) = build("graph.cycle").observe(plan({"a": ["b"], "b": ["a"]})).findings
    assert (found.evidence["what"], found.evidence["cycle"]) == ("declared_cycle", ["a", "b"])
    loop = {"agents": ["s", {"name": "a", "join": "any"}, "b"], "edges": [["s", "a"], ["a", "b"], ["b", "a"]]}
    assert not build("graph.cycle").observe(plan(loop)).findings


def test_a_plan_that_cannot_be_read_changes_nothing(build) -> None:
    """The one in force stays in force."""
    pipeline = build("graph.cycle")
    pipeline.observe(plan())
    decision = pipeline.observe(plan({"edges": 7}))
    assert not decision.findings
    assert not decision.faults
    assert pipeline.observe(call("b", "a")).findings


def test_enforced_it_refuses_each_time(build) -> None:
    """508 before the request leaves."""
    pipeline = build("graph.cycle", action="enforce")
    pipeline.observe(plan())
    for number in (1, 2):
        refusal = pipeline.observe(call("b", "a", number, outcome="asked")).refusal
        assert refusal is not None
        assert refusal.status == 508


def test_only_edges_that_lead_back(build) -> None:
    """`undeclared: false`."""
    pipeline = build("graph.cycle", {"undeclared": False})
    pipeline.observe(plan())
    assert not pipeline.observe(call("a", "c")).findings
    assert pipeline.observe(call("b", "a", 2)).findings
