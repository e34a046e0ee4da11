"""What somebody declared about agents and their dependencies becomes a Plan, whichever way it was written.

Handrail's own form, as YAML or JSON:

    agents: [researcher, analyst, {name: writer, join: any, seconds: 40}]   # optional; names what may be used below
    edges:
      - {from: researcher, to: analyst, seconds: 12}     # the analyst needs what the researcher hands over
      - [analyst, writer]                                # the same, short
      - analyst -> reviewer -> writer                    # a chain
    entry: [researcher]                                  # optional; else whoever waits for nobody

`join` says whether an agent starts when all of its predecessors have handed over (`all`, the default) or when any has
(`any`). `seconds` is how long an agent works or an edge takes, for the critical path. `nodes`, `tasks` and `steps`
stand for `agents`; `links` and `transitions` for `edges`; `source`/`target` and more for `from`/`to`. An agent may name
what it needs (`depends_on`, `needs`, `after`) or what follows (`next`, `to`). Without any of those keys a mapping is an
adjacency list: `researcher: [analyst, writer]`.

Also read: what LangGraph's `get_graph().to_json()` gives (there an agent starts when any of its predecessors has
finished), Mermaid flowcharts, and `plan` events, whose payload is any of these.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import yaml

from handrail.config import ConfigError

MAX_EDGES = 1_000_000
MAX_NAME = 512

PATH_STEPS = 64


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A declared dependency graph."""

    agents: tuple[str, ...]
    """Everything that is named, declared or not, in the order in which it appears."""
    edges: tuple[tuple[str, str], ...]
    """(who hands over, who needs it), each once."""
    declared: frozenset[str] | None = None
    """None where nothing was declared apart from edges."""
    any_join: frozenset[str] = frozenset()
    entries: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    seconds: Mapping[str, float] = {}
    edge_seconds: Mapping[tuple[str, str], float] = {}
    does: Mapping[str, str] = {}
    """Task to the agent that does it, where the plan is one of tasks."""
    labels: Mapping[str, str] = {}
    """What a diagram calls its nodes, where that is not their id."""
    format: str = "handrail"

    def agent_edges(self) -> set[tuple[str, str]]:
        """The edges between agents by the names that traffic may use: ids, labels, or who does a task."""
        edges = set(self.edges)
        for names in (self.does, self.labels):
            if names:
                edges |= {(names.get(a, a), names.get(b, b)) for a, b in self.edges}
        return edges


class PlanError(ValueError):
    """Where in a plan something is wrong, what, and how to fix it."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place, self.problem = place, problem


def read(text: str, name: str = "") -> Plan:
    """Text in any of the forms to a Plan. `name` may give the form away (`.mmd`). Raises PlanError."""
    if name.endswith((".mmd", ".mermaid")) or _is_mermaid(text):
        return mermaid(text)
    value = _parsed(text)
    if isinstance(value, str):
        raise PlanError("", "is a text, not a graph; write agents and edges, see the documentation")
    return of(value)


def _parsed(text: str) -> Any:
    stripped = text.lstrip("\ufeff \t\r\n")
    if not stripped:
        raise PlanError("", "is empty; write agents and edges, see the documentation")
    if stripped[0] in "{[":
        try:
            return msgspec.json.decode(text.lstrip("\ufeff"))
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            if stripped[0] == "{" and '"' in stripped[:200]:
                raise PlanError("", f"is not JSON: {error}") from None  # YAML would only say it worse
    return _yaml(text)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML without the types that turn names into something else: `on`, `no` and dates stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml(text: str) -> Any:
    try:
        rest, edges = _plain_edges(text)
        if _ALIAS.search(rest) and any(isinstance(each, yaml.AliasEvent) for each in yaml.parse(rest, Loader=_Loader)):
            raise PlanError("", "has YAML aliases; write it out")
        value = yaml.load(rest, Loader=_Loader)  # noqa: S506 a safe loader, with fewer types
        if edges:
            value["edges"] = edges
        return value
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}"
        raise PlanError(place, f"is neither YAML nor JSON nor Mermaid: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise PlanError("", f"is neither YAML nor JSON nor Mermaid: {str(error).splitlines()[0]}") from None


_ALIAS = re.compile(r"(?:^|[\s\[{,:-])\*[^\s*]")
_WORD = r"(?:[A-Za-z_][\w./-]*+(?<!null)(?<!Null)(?<!NULL)|\"[\w ./:-]+\"|'[\w ./:-]+')"
_PAIR = rf"\[ *({_WORD}) *, *({_WORD}) *\]"
_FROM_TO = rf"\{{ *(?:from|source): +({_WORD}) *, *(?:to|target): +({_WORD}) *\}}"
_LINES = rf"(?:from|source): +({_WORD}) *\n%s  (?:to|target): +({_WORD})"
MANY_LINES = 1_000


def _plain_edges(text: str) -> tuple[str, list[list[str]]]:
    """Takes a long block of edges of plain words out of YAML; what is left goes through the YAML parser.

    The parser needs 40 µs for such an edge, which would make 100,000 of them take four seconds. A block with anything
    else in it is left alone.
    """
    if text.count("\n") < MANY_LINES:
        return text, []
    block = re.search(r"^edges:[ ]*\n(( *)-[ ](?:.*\n(?=[ -]))*.*(?:\n|\Z))", text, re.MULTILINE)
    if block is None:
        return text, []
    edge = re.compile(rf"^{block[2]}- (?: *{_PAIR}| *{_FROM_TO}|{_LINES % block[2]}) *(?:\n|\Z)", re.MULTILINE)
    if edge.sub("", block[1]):
        return text, []
    edges = [
        [(found[0] or found[2] or found[4]).strip("\"'"), (found[1] or found[3] or found[5]).strip("\"'")]
        for found in edge.findall(block[1])
    ]
    return f"{text[: block.start()]}edges: []\n{text[block.end() :]}", edges


_AGENTS = ("agents", "nodes", "tasks", "steps", "vertices")
_EDGES = ("edges", "links", "transitions", "dependencies", "handoffs")
_ENTRIES = ("entry", "entries", "start", "entry_point", "entrypoint", "entry_points", "roots", "root")
_EXITS = ("exit", "exits", "end", "finish", "finish_point")
_FROM = ("from", "source", "src", "tail", "upstream", "u", "source_agent")
_TO = ("to", "target", "dst", "dest", "destination", "head", "downstream", "v", "target_agent")
_NAMES = ("name", "id", "agent", "task", "key", "label", "task_id")
_NEEDS = ("depends_on", "dependsOn", "needs", "after", "requires", "dependencies", "upstream", "predecessors")
_NEXT = ("next", "to", "then", "successors", "hands_to", "handoffs", "downstream", "targets")
_SECONDS = ("seconds", "duration_seconds", "duration", "weight", "cost", "duration_s")
_JOINS: Mapping[str, bool] = {
    "any": True,
    "or": True,
    "one": True,
    "first": True,
    "xor": True,
    "all": False,
    "and": False,
}
_WRAPPERS = ("graph", "plan", "dag", "workflow", "flow")
_META = {"version", "language", "description", "title", "goal", "metadata", "type", "join", "format"}
_STEP = re.compile(r"\s*(?:-+>|=+>|→|⟶|,)\s*")


class _Draft:
    """A plan while it is read."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.agents: dict[str, None] = {}
        self.declared: set[str] | None = None
        self.edges: dict[tuple[str, str], None] = {}
        self.any_join: set[str] = set()
        self.seconds: dict[str, float] = {}
        self.edge_seconds: dict[tuple[str, str], float] = {}
        self.does: dict[str, str] = {}
        self.labels: Mapping[str, str] = {}
        self.entries: list[str] = []
        self.exits: list[str] = []

    def declare(self, name: str) -> None:
        if self.declared is None:
            self.declared = set()
        self.declared.add(name)
        self.agents[name] = None

    def edge(self, tail: str, head: str, place: str) -> None:
        self.agents[tail] = self.agents[head] = None
        self.edges[tail, head] = None
        if len(self.edges) > MAX_EDGES:
            self.bound(place)

    def bound(self, place: str) -> None:
        if len(self.edges) > MAX_EDGES:
            raise PlanError(place, f"there are more than {MAX_EDGES} edges; split the graph")

    def plan(self) -> Plan:
        return Plan(
            agents=tuple(self.agents),
            edges=tuple(self.edges),
            declared=None if self.declared is None else frozenset(self.declared),
            any_join=frozenset(self.any_join),
            entries=tuple(dict.fromkeys(self.entries)),
            exits=tuple(dict.fromkeys(self.exits)),
            seconds=self.seconds,
            edge_seconds=self.edge_seconds,
            does={task: agent for task, agent in self.does.items() if task != agent},
            labels=self.labels,
            format=self.form,
        )


def of(value: Any, place: str = "") -> Plan:
    """A value of JSON or YAML to a Plan. Raises PlanError naming the place in it."""
    if isinstance(value, str):
        return read(value)
    if isinstance(value, list):
        return _listed(value, place)
    if not isinstance(value, Mapping):
        raise PlanError(place, f"is {_kind(value)}, not a graph; write agents and edges, see the documentation")
    if not any(key in value for key in (*_AGENTS, *_EDGES)):
        if value.get("kind") == "plan" and value.get("payload") is not None:
            return of(value["payload"], _at(place, "payload"))
        for key in _WRAPPERS:
            if isinstance(value.get(key), Mapping | list) or (key != "workflow" and isinstance(value.get(key), str)):
                inner = value[key]
                if len(value.keys() - _META) == 1 or not isinstance(inner, list):
                    return of(inner, _at(place, key))
        if isinstance(value.get("mermaid"), str):
            return mermaid(value["mermaid"])
        return _adjacency(value, place)
    if _is_langgraph(value):
        return _langgraph(value, place)
    draft = _Draft("handrail")
    default_any = _join(value.get("join"), _at(place, "join"))
    for key in _AGENTS:
        if (given := value.get(key)) is not None:
            _read_agents(draft, given, _at(place, key))
    for key in _EDGES:
        if (given := value.get(key)) is not None:
            _read_edges(draft, given, _at(place, key))
    for keys, into in ((_ENTRIES, draft.entries), (_EXITS, draft.exits)):
        for key in keys:
            if (given := value.get(key)) is not None:
                for index, name in enumerate(given if isinstance(given, list) else [given]):
                    into.append(
                        _name(name, f"{_at(place, key)}[{index}]" if isinstance(given, list) else _at(place, key))
                    )
    draft.agents.update(dict.fromkeys((*draft.entries, *draft.exits)))
    if default_any:
        draft.any_join |= set(draft.agents)
    if not draft.agents:
        raise PlanError(place, "names no agent; write agents and edges, see the documentation")
    return draft.plan()


def _read_agents(draft: _Draft, given: Any, place: str) -> None:
    if isinstance(given, Mapping):
        items = [(f"{place}.{name}", name, about) for name, about in given.items()]
    elif isinstance(given, list):
        items = [(f"{place}[{index}]", None, about) for index, about in enumerate(given)]
    else:
        raise PlanError(place, f"is {_kind(given)}, not a list of agents")
    for where, name, about in items:
        if name is None and not isinstance(about, Mapping):
            _once(draft, _name(about, where), where)
            continue
        if isinstance(about, list):  # agents: {b: [a]} beside edges: what it depends on is the common reading
            about = {"depends_on": about}
        elif about is None:
            about = {}
        elif not isinstance(about, Mapping):
            if name is not None and isinstance(about, str):  # {"A": "researcher"}: an id and what to call it
                draft.declare(_name(name, where))
                continue
            raise PlanError(where, f"is {_kind(about)}, not what is known about an agent")
        if name is None:
            key = next((key for key in ("id", "name", "task", "task_id", "agent", "key") if key in about), None)
            if key is None:
                raise PlanError(where, "has no name; write name: …")
            name = about[key]
            if key != "agent" and isinstance(about.get("agent"), str):
                draft.does[_name(name, where)] = _name(about["agent"], f"{where}.agent")
        elif isinstance(about.get("agent"), str):
            draft.does[_name(name, where)] = _name(about["agent"], f"{where}.agent")
        name = _name(name, where)
        _once(draft, name, where)
        if _join(about.get("join"), f"{where}.join"):
            draft.any_join.add(name)
        if (seconds := _duration(about, where)) is not None:
            draft.seconds[name] = seconds
        for key in _NEEDS:
            for needed in _names(about.get(key), f"{where}.{key}"):
                draft.edge(needed, name, where)
        for key in _NEXT:
            for following in _names(about.get(key), f"{where}.{key}"):
                draft.edge(name, following, where)


def _once(draft: _Draft, name: str, place: str) -> None:
    if draft.declared is not None and name in draft.declared:
        raise PlanError(place, f"{name} is there twice; names are how edges mean them")
    draft.declare(name)


def _read_edges(draft: _Draft, given: Any, place: str) -> None:
    if isinstance(given, Mapping):
        for tail, heads in given.items():
            for head in _names(heads, f"{place}.{tail}"):
                draft.edge(_name(tail, place), head, place)
        return
    if not isinstance(given, list):
        raise PlanError(place, f"is {_kind(given)}, not a list of edges")
    for index, edge in enumerate(given):
        a: Any = None
        b: Any = None
        if type(edge) is list and len(edge) == 2:
            a, b = edge
        elif type(edge) is dict and len(edge) == 2:
            a, b = edge.get("from") or edge.get("source"), edge.get("to") or edge.get("target")
        if type(a) is str and type(b) is str and (a := a.strip()) and (b := b.strip()):
            draft.edge(a[:MAX_NAME], b[:MAX_NAME], place)  # what most edges are, in a third of the time
        else:
            _read_edge(draft, edge, f"{place}[{index}]")


def _read_edge(draft: _Draft, edge: Any, where: str) -> None:
    if isinstance(edge, str):
        steps = [step for step in _STEP.split(edge.strip()) if step]
        if len(steps) < 2:
            raise PlanError(where, f"{edge!r} is no edge; write a -> b")
        for tail, head in itertools.pairwise(steps):
            draft.edge(tail, head, where)
        return
    if isinstance(edge, list):
        if len(edge) < 2:
            raise PlanError(where, "names fewer than two agents; write [from, to]")
        tails, heads = _names(edge[0], f"{where}[0]"), _names(edge[1], f"{where}[1]")
        about: Mapping[str, Any] = edge[2] if len(edge) > 2 and isinstance(edge[2], Mapping) else {}
        if len(edge) > 2 and isinstance(edge[2], int | float):
            about = {"seconds": edge[2]}
    elif isinstance(edge, Mapping):
        ends = []
        for keys, what in ((_FROM, "from"), (_TO, "to")):
            key = next((key for key in keys if edge.get(key) is not None), None)
            if key is None:
                raise PlanError(where, f"has no {what}; write {{from: …, to: …}}")
            ends.append(_names(edge[key], f"{where}.{key}"))
        (tails, heads), about = ends, edge
    else:
        raise PlanError(where, f"is {_kind(edge)}, not an edge; write {{from: …, to: …}}")
    for index, names in enumerate((tails, heads)):
        if not names:
            raise PlanError(f"{where}[{index}]" if isinstance(edge, list) else where, "names nobody; write from and to")
    seconds = _duration(about, where)
    joins_any = _join(about.get("join"), f"{where}.join")
    for tail in tails:
        for head in heads:
            draft.edge(tail, head, where)
            if seconds is not None:
                draft.edge_seconds[tail, head] = seconds
            if joins_any:
                draft.any_join.add(head)


def _listed(value: Sequence[Any], place: str) -> Plan:
    """A bare list: of edges, or of tasks that say what they need."""
    draft = _Draft("handrail")
    is_tasks = bool(value) and all(
        isinstance(item, Mapping) and not any(key in item for key in ("from", "source", "src")) for item in value
    )
    if is_tasks:
        _read_agents(draft, value, place)
    else:
        _read_edges(draft, value, place or "edges")
    if not draft.agents:
        raise PlanError(place, "names no agent; write agents and edges, see the documentation")
    return draft.plan()


def _adjacency(value: Mapping[Any, Any], place: str) -> Plan:
    draft = _Draft("adjacency")
    if not value:
        raise PlanError(place, "names no agent; write agents and edges, see the documentation")
    (first, about), *more = value.items()
    if not more and isinstance(about, Mapping) and about and not about.keys() & {*_NEEDS, *_NEXT, *_SECONDS, "join"}:
        return of(about, _at(place, str(first)))
    if "depends_on" in value or any(isinstance(about, Mapping) for about in value.values()):
        _read_agents(draft, {name: about for name, about in value.items() if name not in _META}, place or "agents")
        return draft.plan()
    for name, heads in value.items():
        where = _at(place, str(name))
        if name in _META and not isinstance(heads, list):
            continue
        tail = _name(name, where)
        draft.declare(tail)
        for head in _names(heads, where):
            draft.edge(tail, head, where)
    if not draft.edges and not any(isinstance(heads, list) or heads is None for heads in value.values()):
        raise PlanError(place, f"has neither agents nor edges, but {', '.join(map(str, list(value)[:5]))}")
    # Who is only ever a target is declared by that: an adjacency list need not give the last ones a line of their own.
    draft.declared = None
    return draft.plan()


def _is_langgraph(value: Mapping[str, Any]) -> bool:
    nodes, edges = value.get("nodes"), value.get("edges")
    if not isinstance(nodes, list) or not isinstance(edges, list):
        return False
    marks = ("__start__", "__end__")
    named = [node.get("id") for node in nodes[:10_000] if isinstance(node, Mapping)]
    return (
        any(mark in named for mark in marks)
        or any(
            isinstance(node, Mapping) and "id" in node and node.get("type") in ("runnable", "schema") for node in nodes
        )
        or any(isinstance(edge, Mapping) and isinstance(edge.get("conditional"), bool) for edge in edges)
    )


def _langgraph(value: Mapping[str, Any], place: str) -> Plan:
    """`{"nodes": [{"id", "type", "data"}], "edges": [{"source", "target", "conditional"}]}`."""
    draft = _Draft("langgraph")
    called: dict[str | int, str] = {}
    for index, node in enumerate(value["nodes"]):
        where = f"{_at(place, 'nodes')}[{index}]"
        if not isinstance(node, Mapping) or "id" not in node:
            raise PlanError(where, "has no id; give the whole of get_graph().to_json()")
        identity = node["id"]
        name = _name(identity, where)
        data = node.get("data")
        if not isinstance(identity, str) and isinstance(data, Mapping):
            name = _name(data.get("name") or (data.get("id") or [name])[-1], where)
        elif isinstance(data, str) and data and isinstance(identity, int):
            name = data
        if isinstance(identity, str | int):
            called[identity] = name
        draft.declare(name)
        if (seconds := _duration(node.get("metadata") or {}, where)) is not None:
            draft.seconds[name] = seconds
    for index, edge in enumerate(value["edges"]):
        where = f"{_at(place, 'edges')}[{index}]"
        if not isinstance(edge, Mapping) or edge.get("source") is None or edge.get("target") is None:
            raise PlanError(where, "has no source or no target; give the whole of get_graph().to_json()")
        tail = _end(called, edge["source"], f"{where}.source")
        head = _end(called, edge["target"], f"{where}.target")
        draft.edge(tail, head, where)
        if edge.get("conditional"):
            draft.any_join.add(head)
    draft.any_join |= {head for _, head in draft.edges}
    if "__start__" in draft.agents:
        draft.entries.append("__start__")
    if "__end__" in draft.agents:
        draft.exits.append("__end__")
    return draft.plan()


def _end(called: Mapping[str | int, str], said: object, place: str) -> str:
    known = called.get(said) if isinstance(said, str | int) else None
    return known or _name(said, place)


_HEAD = re.compile(r"(?:graph|flowchart(?:-elk)?)(?:\s+(?:TB|TD|BT|RL|LR)\b|\s*$)")
_HEADED = re.compile(r"^(?:graph|flowchart(?:-elk)?)\b(?:\s+(?:TB|TD|BT|RL|LR)\b)?\s*")
_FRONT = re.compile(r"---[ \t]*\r?\n(?:.*\n)*?[ \t]*---[ \t]*(?:\r?\n|\Z)")
_FENCE = re.compile(r"```\s*mermaid\s*\n(.*?)```", re.DOTALL)
_DIRECTIVES = ("classDef", "class ", "style ", "linkStyle", "click ", "direction ", "accTitle", "accDescr")
_ID = re.compile(
    r"[^\s\[\](){}<>&;:|\"'`~=.,@-]+"
    r"(?:(?:-(?![-.>])|\.(?![->.])|@(?![{~=<-]))[^\s\[\](){}<>&;:|\"'`~=.,@-]+)*"
)
_LINK = re.compile(
    r"\s*(?:(?P<id>[\w-]+)@(?=[-=~<xo]))?(?P<back><|[xo](?=--|==|-\.))?(?:"
    r"--\s*(?P<t1>(?:\"[^\"]*\"|[^-\s>|\"][^|\"\n]*?))\s*-{2,}(?P<h1>[>xo])?"
    r"|==\s*(?P<t2>(?:\"[^\"]*\"|[^=\s>|\"][^|\"\n]*?))\s*={2,}(?P<h2>[>xo])?"
    r"|-\.\s*(?P<t3>(?:\"[^\"]*\"|[^-.\s>|\"][^|\"\n]*?))\s*\.+-(?P<h3>[>xo])?"
    r"|(?:-{2,}|={2,}|-\.+-)(?P<h4>[>xo](?=[\s|&\w(\[{\"]|$)|>)?"
    r"|~{3,}(?P<hidden>)"
    r")\s*(?:\|(?P<label>[^|]*)\|)?\s*"
)
_TEXT = r"[^\[\](){}<>\"`\\/|\n\r]*"
_NAMED = rf"\w{{1,{MAX_NAME // 2}}}(?:-\w{{1,{MAX_NAME // 4}}})?"
_SHAPES = rf"\[{_TEXT}\]|\({_TEXT}\)|\{{{_TEXT}\}}|\[\"{_TEXT}\"\]"


def _simple_line(named: str, shapes: str) -> str:
    node = rf"{named}{shapes}?(?::::[\w,-]+)?"
    return (
        r"^[ \t]*(?!subgraph|classDef|linkStyle|accTitle|accDescr|(?:class|style|click|direction)[ ]"
        r"|(?:end|graph|flowchart(?:-elk)?)[ \t]*;?[ \t]*\r?$)"
        rf"{node}(?:[ \t]*-->[ \t]*(?:\|[^|\n\r]*\|[ \t]*)?{node})?[ \t]*;?[ \t]*(?:\r?\n|\Z)"
    )


_SIMPLE_LINE = re.compile(_simple_line(f"({_NAMED})", f"({_SHAPES})"), re.MULTILINE)
_SIMPLE_LINES = re.compile(f"((?:{_simple_line(_NAMED, f'(?:{_SHAPES})')})++)", re.MULTILINE)
"""The lines that large diagrams are made of: one node, or one link of two. They are read all at once."""
_SHAPE = frozenset("[({>")
_SHAPED = re.compile(r"^[\[({>/\\]+|[\])}/\\]+$")
_BREAK = re.compile(r"<br\s*/?>.*", re.DOTALL)
_ENTITY = re.compile(r"(?:&(?:nbsp|amp|lt|gt|quot|apos|#\d{1,6})|#\w{1,8})\Z")
_ESCAPED = re.compile(r"\\([2-7][0-9a-f])")
_MARKUP = re.compile(r"</?\w+>")


def _is_mermaid(text: str) -> bool:
    """Whether the first line that says something is a flowchart's, or stands in a fence of Markdown."""
    if _FENCE.search(text) is not None:
        return True
    return any(
        _HEAD.match(statements[0])
        for statements in itertools.islice(_statements(_without_front(text)), 200)
        if statements[:1]
    )


def mermaid(text: str) -> Plan:
    """A Mermaid flowchart to a Plan: chains, `&`, labels, shapes, subgraphs; comments and styles are skipped.

    An edge to or from a subgraph is one to or from each of its agents. An agent is called by its id; its label is kept
    beside. A line without arrow head (`A --- B`) is read in the direction it is written. A diagram that LangGraph drew
    (`__start__`, `__end__`) is read as LangGraph's.
    """
    fenced = _FENCE.search(text)
    if fenced:
        text = fenced[1]
    draft, labels = _Draft("mermaid"), dict[str, str]()
    groups: dict[str, list[str]] = {}
    inside: list[str] = []
    links: list[tuple[str, str]] = []
    edge_ids: set[str] = set()
    started, number = False, 0
    for part in _SIMPLE_LINES.split(_without_front(text)):
        if started and not inside and _SIMPLE_LINE.match(part) is not None:
            number += _simple(part, draft, labels, links)
            continue
        for line in _statements(part):
            number += 1
            for statement in line:
                if not started:
                    if _HEAD.match(statement):
                        started = True
                        statement = _HEADED.sub("", statement)
                        if not statement:
                            continue
                    else:
                        continue
                if statement.startswith(_DIRECTIVES):
                    continue
                if statement == "end":
                    if not inside:
                        raise PlanError(f"line {number}", "end without subgraph")
                    inside.pop()
                    continue
                if statement.startswith("subgraph"):
                    rest = statement[len("subgraph") :].strip()
                    named = re.match(r"([^\s\[]+)\s*(?:\[(.*)\])?$", rest)
                    group = named[1] if named else rest.strip('"') or f"subgraph {number}"
                    groups.setdefault(group, [])
                    inside.append(group)
                    continue
                _chain(statement, number, draft, labels, groups, inside, links, edge_ids)
    if edge_ids:  # `e1@{ animate: true }` speaks of an edge
        ends = set(itertools.chain.from_iterable(links))
        for name in edge_ids - ends:
            draft.agents.pop(name, None)
    if inside:
        raise PlanError("", f"subgraph {inside[-1]} is not closed; add end")
    if not started or not draft.agents:
        raise PlanError("", "is a Mermaid flowchart without nodes" if started else "is no Mermaid flowchart")
    return _finished(draft, labels, groups, links)


def _simple(part: str, draft: _Draft, labels: dict[str, str], links: list[tuple[str, str]]) -> int:
    """Takes up lines of one node or one link each, and says how many there were."""
    rows = _SIMPLE_LINE.findall(part)
    pairs = [(row[0], row[2]) for row in rows]
    draft.agents.update(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    if "" in draft.agents:
        del draft.agents[""]
        pairs = [pair for pair in pairs if pair[1]]
    links += pairs
    for row in rows:
        if row[1] or row[3]:
            for name, shape in ((row[0], row[1]), (row[2], row[3])):
                label = shape[1:-1].strip('" ')
                if label and label != name:
                    labels[name] = label[:MAX_NAME]
    return len(rows)


def _unescaped(found: re.Match[str]) -> str:
    """What LangGraph writes for a character of a name that is neither letter nor digit: `sub\\3ainner`."""
    letter = chr(int(found[1], 16))
    return found[0] if letter.isalnum() or letter == "\x7f" else letter


def _without_front(text: str) -> str:
    """Empty lines in the place of front matter, so that lines keep their numbers."""
    front = _FRONT.match(text)
    return text if front is None else "\n" * front[0].count("\n") + text[front.end() :]


def _statements(text: str) -> Iterator[list[str]]:
    """Each line's statements; comments and blank lines are empty."""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("%%"):
            yield []
        elif ";" not in stripped:
            yield [stripped] if stripped else []
        else:
            yield [part for piece in _split(stripped) if (part := piece.strip())]


def _split(line: str) -> Iterator[str]:
    """At the semicolons that stand outside quotes and brackets and end no entity (`&nbsp;`, `#quot;`)."""
    depth, start, is_quoted = 0, 0, False
    for index, letter in enumerate(line):
        if letter == '"':
            is_quoted = not is_quoted
        elif is_quoted:
            continue
        elif letter in "[({":
            depth += 1
        elif letter in "])}":
            depth -= 1
        elif letter == ";" and depth <= 0 and _ENTITY.search(line, start, index) is None:
            yield line[start:index]
            start = index + 1
    yield line[start:]


def _chain(
    statement: str,
    number: int,
    draft: _Draft,
    labels: dict[str, str],
    groups: dict[str, list[str]],
    inside: Sequence[str],
    links: list[tuple[str, str]],
    edge_ids: set[str],
) -> None:
    at, before = 0, list[str]()
    link: re.Match[str] | None = None
    while True:
        here, at = _nodes(statement, at, number, labels)
        for node in here:
            if node not in groups:
                draft.agents[node] = None
                for group in inside:
                    if node not in groups[group]:
                        groups[group].append(node)
        if link is not None and link["hidden"] is None:
            head = next((link[key] for key in ("h1", "h2", "h3", "h4") if link[key]), None)
            both = link["back"] is not None and head is not None
            for tail in before:
                for node in here:
                    if head is not None or link["back"] is None:
                        links.append((tail, node))
                    if both or (link["back"] is not None and head is None):
                        links.append((node, tail))
        if at >= len(statement):
            return
        link = _LINK.match(statement, at)
        if link is None or link.end() == at:
            raise PlanError(f"line {number}", f"{statement[at : at + 30]!r} is no Mermaid link; write A --> B")
        if link["id"] is not None:
            edge_ids.add(link["id"])
        before, at = here, link.end()


def _nodes(statement: str, at: int, number: int, labels: dict[str, str]) -> tuple[list[str], int]:
    """`A[text] & B` from `at` on to ids, and where they end."""
    found = []
    while True:
        named = _ID.match(statement, at)
        if named is None:
            raise PlanError(f"line {number}", f"{statement[at : at + 30]!r} is no Mermaid node; write A --> B")
        name, at = named[0][:MAX_NAME], named.end()
        edge_id = re.match(r"@(?=[-=<~])", statement[at:])
        if edge_id:
            return _nodes(statement, at + 1, number, labels)
        if at < len(statement) and statement[at] == "@" and statement[at + 1 : at + 2] == "{":
            end = _closing(statement, at + 1, number)
            label = re.search(r"label\s*:\s*\"([^\"]*)\"", statement[at:end])
            if label:
                labels[name] = label[1]
            at = end
        elif at < len(statement) and statement[at] in _SHAPE:
            end = _closing(statement, at, number)
            label_text = _SHAPED.sub("", statement[at:end]).strip('"` ')
            label_text = _MARKUP.sub("", _BREAK.sub("", label_text)).strip()
            if label_text and label_text != name:
                labels[name] = label_text[:MAX_NAME]
            at = end
        styled = re.match(r":::[\w,-]+", statement[at:])
        at += styled.end() if styled else 0
        found.append(name)
        more = re.match(r"\s*&\s*", statement[at:])
        if more is None:
            return found, at + len(statement[at:]) - len(statement[at:].lstrip())
        at += more.end()


def _closing(statement: str, at: int, number: int) -> int:
    """Where the bracket at `at` is closed; brackets inside quotes do not count."""
    depth, is_quoted = 0, False
    for index in range(at, len(statement)):
        letter = statement[index]
        if letter == '"':
            is_quoted = not is_quoted
        elif is_quoted:
            continue
        elif letter in "[({" or (letter == ">" and index == at):
            depth += 1
        elif letter in "])}":
            depth -= 1
            if not depth:
                return index + 1
    raise PlanError(f"line {number}", f"{statement[at : at + 30]!r} is not closed")


def _finished(
    draft: _Draft, labels: Mapping[str, str], groups: Mapping[str, list[str]], links: Sequence[tuple[str, str]]
) -> Plan:
    if "__start__" in draft.agents and any("\\" in name for name in draft.agents):
        called = {name: _ESCAPED.sub(_unescaped, name) for name in draft.agents}
        draft.agents = dict.fromkeys(called.values())
        links = [(called.get(tail, tail), called.get(head, head)) for tail, head in links]
        labels = {called.get(name, name): label for name, label in labels.items()}
        groups = {group: [called.get(name, name) for name in names] for group, names in groups.items()}
    if groups:
        draft.agents = {name: None for name in draft.agents if name not in groups}
        for tail, head in links:
            for a in groups.get(tail, [tail]):
                for b in groups.get(head, [head]):
                    draft.edge(a, b, "")
    else:
        draft.edges = dict.fromkeys(links)
        draft.bound("")
    draft.labels = {name: label for name, label in labels.items() if name in draft.agents}
    if "__start__" in draft.agents:
        draft.entries.append("__start__")
        draft.any_join |= {head for _, head in draft.edges}
    if "__end__" in draft.agents:
        draft.exits.append("__end__")
    return draft.plan()


def _kind(value: object) -> str:
    names = {type(None): "empty", bool: "true or false", int: "a number", float: "a number", str: "text"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a mapping")


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _name(value: object, place: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()[:MAX_NAME]
    if isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, Mapping):
        for key in _NAMES:
            if isinstance(value.get(key), str):
                return _name(value[key], f"{place}.{key}")
    raise PlanError(place, f"is {_kind(value)}, not the name of an agent")


def _names(value: object, place: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [_name(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and not any(key in value for key in _NAMES):
        return [_name(key, place) for key in value]  # depends_on: {a: {condition: …}}, as Compose has it
    return [_name(value, place)]


def _join(value: object, place: str) -> bool:
    """Whether any is enough."""
    if value is None:
        return False
    known = _JOINS.get(value.lower()) if isinstance(value, str) else None
    if known is None:
        raise PlanError(place, f"is {value!r}; write all or any")
    return known


def _duration(about: Mapping[str, Any], place: str) -> float | None:
    for key in (*_SECONDS, "duration_ms"):
        value = about.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not 0 <= value < 1e15:
                raise PlanError(f"{place}.{key}", f"is {value}; a duration is not negative")
            return value / 1000 if key == "duration_ms" else float(value)
    return None


def config_error(error: PlanError, file: str) -> ConfigError:
    """A PlanError as the error that commands tell."""
    return ConfigError(file, error.place, error.problem)
