"""Declared graphs: every form gives the same plan, and what is wrong is told with its place."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.graph.declared import PlanError, of, read

EDGES = {("a", "b"), ("b", "c"), ("a", "c")}

FORMS = {
    "pairs": "edges: [[a, b], [b, c], [a, c]]",
    "objects": "agents: [a, b, c]\nedges:\n- {from: a, to: b}\n- {source: b, target: c}\n- {src: a, dst: c}",
    "chains": "edges: [a -> b -> c, a --> c]",
    "several at once": "edges: [{from: a, to: [b, c]}, {from: b, to: c}]",
    "adjacency": "a: [b, c]\nb: [c]\nc: []",
    "adjacency of single names": "a: [b, c]\nb: c",
    "edges as adjacency": "nodes: [a, b, c]\nedges: {a: [b, c], b: [c]}",
    "needs": "agents: {a: , b: {depends_on: [a]}, c: {needs: [a, b]}}",
    "tasks": "tasks: [{id: a}, {id: b, depends_on: a}, {id: c, depends_on: [a, b]}]",
    "a bare list of tasks": '[{"id": "a", "next": ["b", "c"]}, {"id": "b", "next": "c"}, {"id": "c"}]',
    "a bare list of pairs": '[["a", "b"], ["b", "c"], ["a", "c"]]',
    "wrapped": '{"graph": {"nodes": [{"id":"a"},{"id":"b"},{"id":"c"}], "links": [["a","b"],["b","c"],["a","c"]]}}',
    "compose": "services:\n  a: {}\n  b: {depends_on: {a: {condition: healthy}}}\n  c: {depends_on: [a, b]}",
    "an event": '{"type": "event", "kind": "plan", "id": "p", "payload": {"edges": [["a","b"],["b","c"],["a","c"]]}}',
    "mermaid": "flowchart LR\n  a --> b --> c\n  a --> c",
    "mermaid on one line": "graph TD; a-->b; b-->c; a-->c;",
    "mermaid with everything": (
        "---\ntitle: x\n---\n%% a comment\nflowchart TB\n a[The first] -->|yes| b(Second):::x & c{{Third}}\n"
        ' b -- "hands; over" --> c\n classDef x fill:#fff\n linkStyle 0 stroke:red'
    ),
    "mermaid arrows": "graph LR\n a ==> b\n b -. maybe .-> c\n a --o c",
    "mermaid backwards": "graph LR\n b <-- a\n c <--- b\n a ---> c",
    "mermaid edge ids": "graph LR\n a e1@--> b\n b e-2@== then ==> c\n a f@-.-> c\n e1@{ animate: true }\n class f x",
    "mermaid in markdown": "# Plan\n\n```mermaid\nflowchart LR\n a-->b & c\n b-->c\n```\n",
    "mermaid subgraphs": "flowchart LR\n subgraph one\n a\n end\n subgraph two [Two]\n b --> c\n end\n one --> two",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_edges(form: str) -> None:
    """What was meant is what is read."""
    plan = read(FORMS[form])
    assert set(plan.edges) == EDGES
    assert set(plan.agents) == {"a", "b", "c"}


LANGGRAPH = {
    "nodes": [
        {"id": "__start__", "type": "schema", "data": "__start__"},
        {"id": "agent", "type": "runnable", "data": {"id": ["langgraph", "RunnableCallable"], "name": "agent"}},
        {"id": "tools", "type": "runnable", "data": {"id": ["langgraph", "ToolNode"], "name": "tools"}},
        {"id": "__end__", "type": "schema", "data": "__end__"},
    ],
    "edges": [
        {"source": "__start__", "target": "agent"},
        {"source": "agent", "target": "tools", "conditional": True},
        {"source": "agent", "target": "__end__", "conditional": True},
        {"source": "tools", "target": "agent"},
    ],
}


def test_langgraph_knows_its_entry_and_that_any_is_enough() -> None:
    """`get_graph().to_json()` as it is, and what its `draw_mermaid()` gives."""
    plan = read(orjson.dumps(LANGGRAPH).decode())
    assert (plan.format, plan.entries, plan.exits) == ("langgraph", ("__start__",), ("__end__",))
    assert "agent" in plan.any_join
    drawn = read(
        "---\nconfig:\n  flowchart:\n    curve: linear\n---\ngraph TD;\n\t__start__([<p>__start__</p>]):::first\n"
        "\tagent(agent)\n\ttools(tools)\n\t__end__([<p>__end__</p>]):::last\n\t__start__ --> agent;\n"
        "\tagent -.-> __end__;\n\tagent -.-> tools;\n\ttools --> agent;\n\tclassDef default fill:#f2f0ff\n"
    )
    assert set(drawn.edges) == set(plan.edges)
    assert (drawn.entries, drawn.any_join >= {"agent"}) == (("__start__",), True)


def test_langgraphs_drawing_is_read_with_its_entities_and_escapes() -> None:
    """`&nbsp;` around a condition ends no statement, and `\\3a` in an id is the colon of a node of a subgraph."""
    drawn = (
        "graph TD;\n\t__start__([<p>__start__</p>]):::first\n\t__start__ --> sub\\3ainner;\n"
        "\tsub\\3ainner -. &nbsp;redo&nbsp; .-> sub\\3aoddly\\2enamed;\n\tsubgraph sub\n\tsub\\3ainner(inner)\n\tend\n"
        "\tA -- it&#39;s #quot;so#quot; --> B;B --> C&D;\n"
    )
    plan = read(drawn)
    assert plan.edges == (
        ("__start__", "sub:inner"),
        ("sub:inner", "sub:oddly.named"),
        ("A", "B"),
        ("B", "C"),
        ("B", "D"),
    )
    assert plan.labels["sub:inner"] == "inner"


GOOD = LANGGRAPH["edges"][0]


def test_older_langgraph_numbers_its_nodes() -> None:
    """Numbers are replaced by names."""
    nodes = [{"id": 0, "type": "schema", "data": "Start"}, {"id": 1, "type": "runnable", "data": {"name": "x"}}]
    plan = of({"nodes": nodes, "edges": [{"source": 0, "target": 1}]})
    assert plan.edges == (("Start", "x"),)


def test_joins_durations_labels_and_tasks_are_kept() -> None:
    """Each where it stands in the form."""
    plan = read(
        "agents: [a, {name: b, join: any, seconds: 3}]\n"
        "edges: [{from: a, to: b, seconds: 2}, {from: a, to: c, join: or}]"
    )
    assert (plan.any_join, plan.seconds, plan.edge_seconds) == ({"b", "c"}, {"b": 3.0}, {("a", "b"): 2.0})
    assert plan.declared == {"a", "b"}
    assert read("flowchart LR\na[Writer] --> b").labels == {"a": "Writer"}
    assert read('flowchart LR\na@{ shape: cyl, label: "The store" } --> b').labels == {"a": "The store"}
    tasks = read("tasks: [{id: t1, agent: x}, {id: t2, agent: y, depends_on: [t1]}]")
    assert ("x", "y") in tasks.agent_edges()


def test_words_stay_words() -> None:
    """`on`, `no` and dates are names, not values."""
    assert set(read("edges: [[on, no], [2026-01-01, 7]]").agents) == {"on", "no", "2026-01-01", "7"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("foo", "is a text, not a graph"),
        ('"foo"', "is a text, not a graph"),
        ("edges: [{from: a}]", "edges[0]: has no to"),
        ("edges:\n- [a, b]\n- 7", "edges[1]: is a number, not an edge"),
        ("edges: [[a, {}]]", "edges[0][1]"),
        ("agents: [a, a]", "agents[1]: a is there twice"),
        ("agents: [{name: a, join: some}]\nedges: [[a, b]]", "agents[0].join: is 'some'; write all or any"),
        ("agents: [{name: a, seconds: -1}]", "agents[0].seconds: is -1"),
        ("a: [b", "line 2: is neither YAML nor JSON nor Mermaid"),
        ('{"edges": [}', "is not JSON"),
        ("7", "is a number, not a graph"),
        ("[]", "names no agent"),
        ("{}", "names no agent"),
        ("x: &x [a]\ny: *x", "has YAML aliases"),
        ("flowchart LR\n a -->", "line 2: "),
        ("flowchart LR\n a[open --> b", "line 2: '[open --> b' is not closed"),
        ("flowchart LR\n subgraph x\n a --> b", "subgraph x is not closed"),
        ("flowchart LR\n", "without nodes"),
        *(
            (orjson.dumps(LANGGRAPH | {"edges": [GOOD | {end: odd}]}).decode(), f"edges[0].{end}")
            for end in ("source", "target")
            for odd in ([], {"x": 1})
        ),
        (orjson.dumps(LANGGRAPH | {"nodes": [{"id": ["a"]}, *LANGGRAPH["nodes"]]}).decode(), "nodes[0]"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, told: str) -> None:
    """The place, the problem, the fix."""
    with pytest.raises(PlanError) as caught:
        read(text)
    assert told in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "edges", "from", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["agents", "edges", "from", "to", "nodes", "id", "graph", "join"]), inner)
    ),
    max_leaves=12,
)


@given(value=json_values)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_plan_or_is_refused(value: object) -> None:
    """Nothing else is raised."""
    try:
        plan = of(value)
    except PlanError:
        return
    assert {name for edge in plan.edges for name in edge} <= set(plan.agents)


@given(text=st.text('ab[](){}-=.>&|" \n;:~<x%', max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_mermaid_is_a_plan_or_is_refused(text: str) -> None:
    """Nothing else is raised."""
    try:
        read(f"flowchart LR\n{text}")
    except PlanError:
        pass


names = st.from_regex(r"\A[a-z][a-z0-9_]{0,5}\Z").filter(lambda name: name not in ("end", "null", "graph"))


@given(edges=st.lists(st.tuples(names, names), min_size=1, max_size=8, unique=True))
@settings(max_examples=150, deadline=None)
def test_a_graph_survives_being_written(edges: list[tuple[str, str]]) -> None:
    """In every form that can hold it."""
    written = {
        "json": orjson.dumps({"edges": edges}).decode(),
        "yaml": "edges:\n" + "".join(f"- {{from: {a}, to: {b}}}\n" for a, b in edges),
        "long yaml": "edges:\n" + "".join(f"- [{a}, {b}]\n" for a, b in edges) * 1_200,
        "long quoted yaml": "edges:\n" + "".join(f"- {{source: \"{a}\", target: '{b}'}}\n" for a, b in edges) * 1_200,
        "long block yaml": "edges:\n" + "".join(f"  - from: {a}\n    to: {b}\n" for a, b in edges) * 1_200,
        "mermaid": "flowchart LR\n" + "".join(f"  {a} --> {b}\n" for a, b in edges),
    }
    for form, text in written.items():
        assert set(read(text).edges) == set(edges), form


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(
            [
                "a --> b",
                "  b-->c-d;",
                "c --> |says| a",
                "b[Bee] --> c",
                "d(Dee):::x",
                'e["E e"] --> a',
                "end1 --> a",
                "subgraph s",
                "end",
                "s --> a",
                "%% note",
                "classDef x fill:#fff",
                "class --> b",
                "a --> b --> c",
                "e --> s",
                "a & b --> c; c --> d",
                "",
                "graph",
                "e --> d %% x",
                "a -- yes --> b",
                "ü --> a",
                "a -->",
                "style a fill:#f",
            ]
        )
    )
)
def test_lines_read_at_once_are_read_as_one_by_one(lines: list[str]) -> None:
    """Two semicolons mean the same and take the slow way; what is refused is refused on the same line."""
    fast = "flowchart LR\n" + "\n".join(lines)

    def outcome(text: str) -> object:
        try:
            plan = read(text)
        except PlanError as error:
            return error.place
        return plan.agents, plan.edges, plan.labels

    assert outcome(fast) == outcome(fast.replace("\n", ";;\n") + ";;")
