"""Spans of agents become handoffs: one event for each, however many spans, batches and instrumentations tell of it.

Each span is read by the tables below into what it says: that an agent is at work (an *activation*), that a model asks
for a tool, that a tool ran, that work was handed over. When a trace was quiet for `otlp.hold_seconds`, its clues are
put together: those that share a call id, or speak of the same target while its source was not at work again, are one
handoff. So neither the order of spans nor how they were split into batches, nor a batch that comes twice, changes
what is found. A handoff that lacks its target or its outcome then waits for `otlp.wait_seconds` at most.

- source: what the span says, else the agent inside whose activation it lies (`exact`), else the agent that was last at
  work (`inferred`). target: what the span says, else the agent that is at work next (`inferred`).
- outcome: `accepted` when the target was at work afterwards, `completed` when it worked inside the call of its source,
  `rejected` or `failed` when the tool failed, `dropped` when other agents' work is visible and the target's is not.
- workflow: the conversation or session that any span of the trace names, else the trace id.

`Sightings` joins these with what was seen on the wire: first by call id, then by trace and target, then by the names
and the time where neither says anything. Whichever comes second is not told again.

A log record named `handrail.event` is an event of another Handrail: see `log_of`.
"""

import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import orjson

from handrail.config import OtlpConfig
from handrail.dialects import text
from handrail.dialects.conventions import PEOPLE, Conventions, slug, stem
from handrail.event import Event, Fault, Outcome, event_from
from handrail.wire.ingest import ingest_of
from handrail.wire.otlp import Log, Span

# Which attribute says what. The first that is there counts.

WORKFLOW = (
    "gen_ai.conversation.id",
    "session.id",
    "traceloop.association.properties.session_id",
    "traceloop.association.properties.thread_id",
    "traceloop.association.properties.conversation_id",
    "langgraph.thread_id",
    "gcp.vertex.agent.session_id",
    "openai.agents.group_id",
)
AGENT = ("gen_ai.agent.name", "agent.name", "agent_name", "traceloop.association.properties.lc_agent_name")
OWNER = (
    "gen_ai.agent.name",
    "lc_agent_name",
    "traceloop.association.properties.lc_agent_name",
    "metadata.lc_agent_name",
    "gen_ai.handoff.from_agent",
)
TOOL = ("gen_ai.tool.name", "tool.name", "tool_call.function.name", "mcp.tool.name")
DESCRIPTION = ("gen_ai.tool.description", "tool.description")
CALL_ID = ("gen_ai.tool.call.id", "tool_call.id", "tool.call_id", "tool.id", "tool_call_id")
ARGUMENTS = (
    "gen_ai.tool.call.arguments",
    "tool.parameters",
    "gcp.vertex.agent.tool_call_args",
    "tool_call.function.arguments",
    "input.value",
    "traceloop.entity.input",
)
"""OpenInference writes a tool's schema into `tool.parameters` at times: only what is no schema counts."""
DESTINATION = (
    "__handoff_destination",
    "traceloop.association.properties.__handoff_destination",
    "metadata.__handoff_destination",
    "gen_ai.handoff.to_agent",
)
SERVER = ("fastmcp.server.name", "mcp.server.name", "server.name")
OUTPUTS = ("gen_ai.output.messages", "gen_ai.completion", "gcp.vertex.agent.llm_response")

GENERIC = frozenset(
    {
        *("agent", "agents", "react_agent", "agent_workflow", "workflow", "crew", "langgraph", "runnablesequence"),
        *("model", "llm", "chat", "call_model", "tool", "tools", "call_tools", "should_continue", "route", "router"),
        *("channelwrite", "start", "end", "unknown", "none"),
    }
)
"""Names of nodes and spans that are no agents."""

ENDS_OF_CONTROL = ("ParentCommand", "GraphBubbleUp", "GraphInterrupt")
"""Exceptions by which a framework hands over control: no errors."""

_SPAN_NAMES: tuple[tuple[re.Pattern[str], Literal["agent", "tool", "handoff"]], ...] = (
    (re.compile(r"invoke_agent (.+)"), "agent"),
    (re.compile(r"execute_tool (.+)"), "tool"),
    (re.compile(r"tools/call (.+)"), "tool"),
    (re.compile(r"handoff to (.+)"), "handoff"),
    (re.compile(r"(.+)\.agent"), "agent"),
)
_CALL_KEY = re.compile(
    r"(?:llm\.output_messages\.(\d+)\.message\.tool_calls\.(\d+)\.tool_call\.(id|function\.name|function\.arguments)"
    r"|gen_ai\.completion\.(\d+)\.tool_calls\.(\d+)\.(id|name|arguments))\Z"
)
_ARROW = re.compile(r"(.{1,256}?) ?(?:→|->) ?(.{1,256}?)(?:\.handoff)?\Z")

LONG = 262_144
"""A longer attribute is not parsed."""
CLUES = 64
"""Clues of one span."""
NEAR = 48
"""How many handoffs before and after a clue are compared with it."""
TRACE_SPANS = 5_000
"""Spans of one trace that are looked at; a longer one is no conversation."""
OWN_SCOPE = "handrail"
"""Spans that Handrail itself has sent tell nothing new."""

AgentOf = Callable[[str | None, str], tuple[str | None, bool]]
"""(server, tool) to the agent that it stands for, and whether it is one: `Mcp.agent`."""

Form = Literal["model", "tool", "handoff", "message", "edge", "nested"]


class Clue(msgspec.Struct, frozen=True, kw_only=True):
    """What one span says of one handoff."""

    form: Form
    scope: str
    at: float
    span: str
    number: int = 0
    duration_ms: float | None = None
    source: str | None = None
    target: str | None = None
    key: str | None = None
    """What names the same handoff in other spans: `call <id>` or `message <id>`."""
    tool: str | None = None
    is_delegate: bool = False
    payload: Any = None
    error: str | None = None
    is_done: bool = False
    """It happened: not only asked for."""


class _Node(msgspec.Struct):
    """A span, as much of it as is kept."""

    id: str
    parent: str | None
    start: float
    end: float
    agent: str | None = None
    owner: str | None = None
    is_model: bool = False
    tool: str | None = None
    call: str | None = None
    payload: Any = None
    error: str | None = None
    clues: list[Clue] = []


class Told(NamedTuple):
    """What one span says."""

    trace: str
    workflow: str | None
    node: _Node


class _Trace(msgspec.Struct):
    id: str
    nodes: dict[str, _Node] = msgspec.field(default_factory=dict)
    workflow: str | None = None
    told: set[tuple[str, int]] = msgspec.field(default_factory=set)
    """The clues of handoffs that were told."""
    touched: float = 0.0
    is_full: bool = False
    is_read: bool = False
    """Read once since it was touched; what is left is incomplete."""


class _Handoff(msgspec.Struct, eq=False):
    """Clues that are of one handoff."""

    clues: list[Clue]
    source: str | None = None
    target: str | None = None
    is_sure: bool = True
    outcome: Outcome = "unknown"


class Spans:
    """Traces become handoffs. Bounded by `otlp.traces` and `otlp.spans`."""

    name = "spans"

    def __init__(self, config: OtlpConfig, conventions: Conventions, agent_of: AgentOf | None = None) -> None:
        self._config, self._conventions, self._agent_of = config, conventions, agent_of
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._due: OrderedDict[str, _Trace] = OrderedDict()
        self._count = 0
        self._early: list[Event | Fault] = []
        self.sightings = Sightings(config.join_seconds)

    def __len__(self) -> int:
        """How many spans are remembered."""
        return self._count

    def read(self, spans: Iterable[Span]) -> "list[Told]":
        """What spans say, for `add`. Changes nothing, so it may run in a thread of its own."""
        return [
            Told(span.trace_id, _first_text(span.attributes, WORKFLOW), self._node(span))
            for span in spans
            if not span.scope.startswith(OWN_SCOPE)
        ]

    def add(self, told: "Iterable[Told]", now: float) -> None:
        """Spans arrived. `now` is when, in seconds since the epoch; the handoffs are told by `advance` and `end`."""
        for trace_id, workflow, node in told:
            trace = self._trace(trace_id, now)
            if workflow is not None:  # the same whatever the order
                trace.workflow = workflow if trace.workflow is None else min(trace.workflow, workflow)
            self._put(trace, node)

    def ingest(self, value: object, now: float) -> None:
        """An export of the OpenAI Agents SDK's own traces has passed, see `wire.ingest`."""
        self.add(self.read(ingest_of(value).spans), now)

    def add_logs(self, logs: Iterable[Log], now: float) -> list[Event]:
        """Log records arrived: what models said goes to its trace; the events among them are given back."""
        events = []
        for log in logs:
            if log.name == EVENT_NAME:
                event = event_of(log)
                if event is not None:
                    events.append(event)
                continue
            if log.trace_id is None or log.span_id is None or not log.name.startswith("gen_ai."):
                continue
            said = dict(log.attributes)
            if type(log.body) is dict:
                said |= {"gen_ai.output.messages": [log.body]} if log.name == "gen_ai.choice" else log.body
            clues = self._model_clues(said, log.trace_id, f"{log.span_id}.log", "", log.at)
            if clues:  # several choices are several records
                id = f"{log.span_id}.{clues[0].key or clues[0].tool}"
                clues = [msgspec.structs.replace(clue, span=id) for clue in clues]
                node = _Node(id, log.span_id, log.at, log.at, is_model=True, clues=clues)
                self._put(self._trace(log.trace_id, now), node)
        return events

    def _trace(self, id: str, now: float) -> _Trace:
        trace = self._traces.get(id)
        if trace is None:
            trace = self._traces[id] = _Trace(id)
            if len(self._traces) > self._config.traces:
                self._forget()
        trace.touched, trace.is_read = now, False
        self._traces.move_to_end(id)
        self._due[id] = trace
        self._due.move_to_end(id)
        return trace

    def _put(self, trace: _Trace, node: _Node) -> None:
        if node.id not in trace.nodes:
            if len(trace.nodes) >= TRACE_SPANS:
                if not trace.is_full:
                    trace.is_full = True
                    self._early.append(Fault(component="otlp", reason="trace_too_long", message=trace.id))
                return
            self._count += 1
        trace.nodes[node.id] = node
        while self._count > self._config.spans and self._traces:
            self._forget()

    def _forget(self) -> None:
        """The trace that was quiet for longest goes, with what it had to say."""
        id, trace = self._traces.popitem(last=False)
        self._count -= len(trace.nodes)
        if self._due.pop(id, None) is not None:
            self._early += self._told(trace, whole=True)

    def advance(self, now: float) -> list[Event | Fault]:
        """Time passed: the handoffs of traces that were quiet for long enough."""
        told, self._early = self._early, []
        hold, wait = self._config.hold_seconds, self._config.wait_seconds
        over = []
        for trace in self._due.values():
            if now - trace.touched < hold:
                break  # in the order in which they were touched
            whole = now - trace.touched >= wait
            if whole or not trace.is_read:
                trace.is_read = True
                told += self._told(trace, whole=whole)
            if whole:
                over.append(trace.id)
        for id in over:
            del self._due[id]
        return told

    def end(self) -> list[Event | Fault]:
        """Nothing more comes: everything that was held, in the order of its instants."""
        told, self._early = self._early, []
        for trace in self._due.values():
            told += self._told(trace, whole=True)
        self._due.clear()
        return sorted(told, key=lambda each: each.at or 0.0)

    # One span.

    def _node(self, span: Span) -> _Node:
        said = span.attributes
        node = _Node(span.span_id, span.parent_id, span.start, span.end)
        node.error = span.error
        if node.error is not None and any(
            word in node.error or any(word in str(event[1].get("exception.type", "")) for event in span.events)
            for word in ENDS_OF_CONTROL
        ):
            node.error = None
        operation = said.get("gen_ai.operation.name")
        kind = str(said.get("openinference.span.kind") or said.get("traceloop.span.kind") or "").upper()
        by_name, named = _by_name(span.name)
        metadata = _parsed(said.get("metadata"))
        metadata = metadata if type(metadata) is dict else {}
        node.owner = _first_text(said, OWNER) or _first_text(metadata, ("lc_agent_name",))
        scope, ms = span.scope, (span.end - span.start) * 1000

        def clue(form: Form, **fields: Any) -> Clue:
            number = len(node.clues)
            return Clue(form=form, scope=scope, span=node.id, number=number, at=span.start, duration_ms=ms, **fields)

        tool = self._tool_name(span, kind, operation, by_name, named)
        if operation == "invoke_agent" or (by_name == "agent" and (kind in ("AGENT", "") or operation is None)):
            node.agent = _agent(_first_text(said, AGENT) or _first_text(said, ("traceloop.entity.name",)) or named)
        elif kind == "AGENT":
            own = _first_text(said, ("graph.node.id", "traceloop.entity.name")) or span.name.removesuffix(".agent")
            node.agent = _agent(_first_text(said, AGENT) or own)
        elif kind == "CHAIN" and _text(metadata.get("langgraph_node")) == span.name:
            checkpoint = str(metadata.get("langgraph_checkpoint_ns") or metadata.get("checkpoint_ns") or "")
            node.agent = _agent(span.name) if "|" not in checkpoint else None
        elif kind == "HANDOFF" or by_name == "handoff" or "gen_ai.handoff.from_agent" in said:
            source = _first_text(said, ("gen_ai.handoff.from_agent",))
            target = _first_text(said, DESTINATION) or (named if by_name == "handoff" else None)
            if by_name == "handoff":
                source = source or _short(said.get("input.value"))
                target = _short(said.get("output.value")) or target
            arrow = _ARROW.match(span.name)
            if arrow is not None:
                source, target = source or arrow[1].strip(), target or arrow[2].strip()
            target = _agent(target)
            node.clues.append(
                clue("handoff", source=_agent(source), target=target, error=node.error, is_done=node.error is None)
            )
        elif tool is not None:
            self._read_tool(node, span, tool, clue, metadata)
        if kind == "LLM" or operation in ("chat", "generate_content", "text_completion") or span.name == "call_llm":
            node.is_model = True
        node.clues += self._model_clues(said, span.trace_id, node.id, scope, span.end, len(node.clues))
        if node.clues and any(each.form == "model" for each in node.clues):
            node.is_model = True
        for event, attributes in span.events:
            if event.startswith("gen_ai."):
                outputs = dict(attributes)
                if event == "gen_ai.choice":
                    outputs.setdefault("gen_ai.output.messages", [attributes])
                node.clues += self._model_clues(outputs, span.trace_id, node.id, scope, span.end, len(node.clues))
        self._read_edges(node, span, clue)
        del node.clues[CLUES:]
        return node

    def _tool_name(self, span: Span, kind: str, operation: Any, by_name: str | None, named: str | None) -> str | None:
        said = span.attributes
        found = _first_text(said, TOOL)
        if operation == "execute_tool" or by_name == "tool":
            return found or named
        if kind == "TOOL":
            own = _first_text(said, ("traceloop.entity.name",)) or span.name
            own = own.removesuffix(".run").removesuffix(".tool").removeprefix("execute_tool ")
            return found or own
        if found is not None and ("mcp.method.name" in said or span.name.startswith(("tools/call", "MCP"))):
            return found
        # `triage_agent.transfer_to_billing_agent`, and `Delegate work to coworker.run`
        last = span.name.rpartition(".")[2]
        if last != span.name and self._conventions.meant(last, "") is not None:
            return last
        first = span.name.removesuffix(".run").removesuffix("._run")
        if first != span.name and self._conventions.meant(first, "") is not None:
            return first
        return None

    def _read_tool(
        self, node: _Node, span: Span, tool: str, clue: Callable[..., Clue], metadata: Mapping[str, Any]
    ) -> None:
        said = span.attributes
        node.tool = tool
        node.call = _first_text(said, CALL_ID)
        node.payload = _arguments(said)
        described = _first_text(said, DESCRIPTION) or ""
        owner, dot, last = tool.rpartition(".")
        meant = self._conventions.meant(tool, described)
        if meant is None and dot and (meant := self._conventions.meant(last, described)) is not None:
            tool = node.tool = last
            node.owner = node.owner or _agent(owner)
        before, dot, after = span.name.rpartition(".")
        if dot and after == tool and node.owner is None:
            node.owner = _agent(before)
        target: str | None = _first_text(said, DESTINATION) or _first_text(metadata, DESTINATION[:1])
        is_delegate = False
        if meant is not None:
            is_delegate = meant.kind == "delegate"
            target = target or self._conventions.target(meant, node.payload)
        elif target is None:
            is_agent = False
            if self._agent_of is not None and (span.name.startswith("tools/call") or "mcp.method.name" in said):
                target, is_agent = self._agent_of(_first_text(said, SERVER), tool)
                is_delegate = True
            if not is_agent:
                return
        if target is not None and slug(target) in PEOPLE:
            return
        node.clues.append(
            clue(
                "tool",
                source=node.owner,
                target=_agent(target),
                key=None if node.call is None else f"call {node.call}",
                tool=tool,
                is_delegate=is_delegate,
                payload=node.payload,
                error=node.error,
                is_done=node.error is None,
            )
        )

    def _model_clues(
        self, said: Mapping[str, Any], trace: str, span: str, scope: str, at: float, number: int = 0
    ) -> list[Clue]:
        """The handoff tools that a model asks for, in any of the shapes in which its output is written."""
        clues: list[Clue] = []
        for id, name, arguments in _calls(said):
            meant = self._conventions.meant(name, "")
            if meant is None or len(clues) >= CLUES:
                continue
            payload = _parsed(arguments) if type(arguments) is str else arguments
            target = self._conventions.target(meant, payload)
            if target is not None and slug(target) in PEOPLE:
                continue
            clues.append(
                Clue(
                    form="model",
                    scope=scope,
                    at=at,
                    span=span,
                    number=number + len(clues),
                    target=target,
                    key=None if id is None else f"call {id}",
                    tool=name,
                    is_delegate=meant.kind == "delegate",
                    payload=payload if type(payload) is dict else None,
                )
            )
        return clues

    def _read_edges(self, node: _Node, span: Span, clue: Callable[..., Clue]) -> None:
        """What runtimes say of the messages between their parts."""
        said = span.attributes
        if "message" in said and ("recipient_agent_type" in said or "sender_agent_type" in said):
            raw = said["message"]
            if type(raw) is str and "HandoffMessage" in raw:
                for message in _handoff_messages(_parsed(raw)):
                    target, source = _text(message.get("target")), _text(message.get("source"))
                    if target is not None and slug(target) not in PEOPLE:
                        key = _text(message.get("id"))
                        key = None if key is None else f"message {key}"
                        node.clues.append(clue("message", source=source, target=target, key=key, is_done=True))
        source, target = _text(said.get("message.source_id")), _text(said.get("message.target_id"))
        if target is None and "message.destination_executor_id" in said:
            target = _text(said["message.destination_executor_id"])
            source = source or _text(said.get("message.source_executor_id"))
        if target is None:
            target = _text(said.get("langgraph.command.goto_node"))
            source = _agent(_text(said.get("langgraph.command.source_node"))) if target is not None else source
        if target is not None and _agent(target) is not None and (source is None or stem(source) != stem(target)):
            node.clues.append(clue("edge", source=_agent(source), target=target, is_done=True))

    # One trace.

    def _told(self, trace: _Trace, *, whole: bool) -> list[Event]:
        events = []
        for handoff in _handoffs(trace):
            marks = {(clue.span, clue.number) for clue in handoff.clues}
            if not marks.isdisjoint(trace.told):
                trace.told |= marks
                continue
            is_known = handoff.target is not None and handoff.source is not None
            if not whole and (not is_known or handoff.outcome in ("unknown", "dropped")):
                continue
            trace.told |= marks
            events.append(_event(trace, handoff))
        return events


def _event(trace: _Trace, handoff: _Handoff) -> Event:
    clues = handoff.clues
    first = clues[0]
    best = min(clues, key=lambda clue: (_RANK[clue.form], clue.at, clue.span, clue.number))
    payload = next((clue.payload for clue in clues if clue.payload is not None), None)
    call = next((clue.key for clue in clues if clue.key is not None and clue.key.startswith("call ")), None)
    tool = next((clue.tool for clue in clues if clue.tool is not None), None)
    return Event(
        kind="handoff",
        id=f"{trace.id}.{first.span}" + (f".{first.number}" if first.number else ""),
        at=first.at,
        workflow=trace.workflow or trace.id,
        task=None if call is None else call.removeprefix("call "),
        source=handoff.source,
        target=handoff.target,
        channel="call",
        protocol="otlp",
        operation=tool or ("handoff" if best.form in ("handoff", "message") else best.form),
        outcome=handoff.outcome,
        confidence="exact" if handoff.is_sure else "inferred",
        payload=payload,
        payload_bytes=None if payload is None else len(orjson.dumps(payload, default=str)),
        status=next((clue.error for clue in clues if clue.error), None),
        duration_ms=best.duration_ms,
        trace_id=trace.id,
        span_id=first.span if len(first.span) == 16 else None,
    )


_RANK: Mapping[str, int] = {"tool": 0, "nested": 0, "handoff": 1, "model": 2, "edge": 3, "message": 4}


def _handoffs(trace: _Trace) -> list[_Handoff]:
    """All that the spans of a trace say, put together; a pure function of the set of its spans."""
    nodes = trace.nodes
    if sum(len(node.clues) + (node.agent is not None) for node in nodes.values()) < 1:
        return []
    order = sorted(nodes.values(), key=lambda node: (node.start, node.id))
    inside = {node.id: _above(node, nodes) for node in order if node.agent or node.clues or node.is_model}
    work = _Work([node for node in order if node.agent is not None and not _is_wrapped(node, inside[node.id])])
    clues: list[Clue] = []
    for node in order:
        for clue in node.clues:
            if clue.source is None:
                owner = node.owner or inside[node.id][0]
                if owner is not None and (clue.target is None or not _same(owner, clue.target)):
                    clue = msgspec.structs.replace(clue, source=owner)
            clues.append(clue)
    clues.sort(key=lambda clue: (clue.at, clue.span, clue.number))
    groups: list[_Handoff] = []
    by_key: dict[str, _Handoff] = {}
    for clue in clues:
        if clue.key is not None and (same := by_key.get(clue.key)) is not None:
            same.clues.append(clue)
        elif clue.key is not None:
            by_key[clue.key] = group = _Handoff([clue])
            groups.append(group)
    loose = [clue for clue in clues if clue.key is None]
    # Messages and tools name different ids for one handoff: groups that were keyed by messages are loose to the others.
    messages = [group for group in groups if all(clue.form == "message" for clue in group.clues)]
    known = _Groups(group for group in groups if group not in messages)
    for group in messages:
        if (found := _fitting(group.clues[0], known.near(group.clues[0].at), work)) is not None:
            found.clues += group.clues
        else:
            known.add(group)
    for clue in sorted(loose, key=lambda clue: (clue.form == "edge", clue.at, clue.span, clue.number)):
        if (found := _fitting(clue, known.near(clue.at), work)) is not None:
            found.clues.append(clue)
        else:
            known.add(_Handoff([clue]))
    groups = [group for group in known.all() if _is_handoff(group, work)]
    for group in groups:
        group.clues.sort(key=lambda clue: (clue.at, clue.span, clue.number))
    groups.sort(key=_order)
    for group in groups:
        _complete(group, work)
    groups += _nested(groups, work, inside, nodes)
    for group in groups:
        _judge(group, work)
    return [group for group in groups if group.source is None or group.target is None or group.source != group.target]


_Above = tuple[str | None, tuple[_Node, ...]]
"""The agent inside whose work a span lies, and the spans between, that agent's own the last."""


def _above(node: _Node, nodes: Mapping[str, _Node]) -> _Above:
    path: list[_Node] = []
    seen = {node.id}
    parent = node.parent
    while parent is not None and parent not in seen and len(path) < 256:
        seen.add(parent)
        above = nodes.get(parent)
        if above is None:
            break
        path.append(above)
        if above.agent is not None:
            return above.agent, tuple(path)
        parent = above.parent
    return None, tuple(path)


def _is_wrapped(node: _Node, above: _Above) -> bool:
    """Whether an outer span already says that the same agent is at work, with no call of a tool between."""
    return (
        above[0] is not None and _stem(above[0]) == _stem(node.agent or "") and not any(each.tool for each in above[1])
    )


def _same(one: str | None, other: str | None) -> bool:
    return one is None or other is None or _stem(one) == _stem(other)


_stem = lru_cache(4_096)(stem)


_NEVER: list[float] = []


class _Work:
    """Who was at work when, in one trace."""

    def __init__(self, nodes: list[_Node]) -> None:
        self.nodes = nodes
        self._starts = [node.start for node in nodes]
        self._of: dict[str, list[float]] = {}
        self._shown: dict[str, str] = {}
        for node in nodes:
            name = node.agent or ""
            self._of.setdefault(_stem(name), []).append(node.start)
            self._shown.setdefault(_stem(name), name)

    def began(self, agent: str, after: float, until: float) -> bool:
        """Whether an agent began to work after one instant, and no later than another."""
        starts = self._of.get(_stem(agent), _NEVER)
        at = bisect_right(starts, after)
        return at < len(starts) and starts[at] <= until

    def spoke(self, agent: str, since: float) -> bool:
        starts = self._of.get(_stem(agent), _NEVER)
        return bool(starts) and starts[-1] >= since

    def had_begun(self, agent: str, at: float) -> bool:
        starts = self._of.get(_stem(agent), _NEVER)
        return bool(starts) and starts[0] <= at

    def shown(self, agent: str) -> str:
        """The name as the agent's own span has it."""
        return self._shown.get(_stem(agent), agent)

    def next(self, at: float, other_than: str | None = None) -> str | None:
        """Who begins to work next."""
        for index in range(bisect_left(self._starts, at), len(self.nodes)):
            agent = self.nodes[index].agent
            if other_than is None or not _same(agent, other_than):
                return agent
        return None

    def last(self, at: float, other_than: str | None) -> str | None:
        """Who has begun to work last."""
        for index in range(bisect_right(self._starts, at) - 1, -1, -1):
            agent = self.nodes[index].agent
            if other_than is None or not _same(agent, other_than):
                return agent
        return None


class _Groups:
    """Handoffs in the order of their instants, of which only the nearest are compared with a clue."""

    def __init__(self, groups: Iterable[_Handoff]) -> None:
        self._groups = sorted(groups, key=_order)
        self._ats = [group.clues[0].at for group in self._groups]

    def add(self, group: _Handoff) -> None:
        at = bisect_right(self._ats, group.clues[0].at)
        self._ats.insert(at, group.clues[0].at)
        self._groups.insert(at, group)

    def near(self, at: float) -> list[_Handoff]:
        here = bisect_right(self._ats, at)
        return self._groups[max(0, here - NEAR) : here + NEAR]

    def all(self) -> list[_Handoff]:
        return self._groups


def _order(group: _Handoff) -> tuple[float, str, int]:
    first = group.clues[0]
    return first.at, first.span, first.number


def _fitting(clue: Clue, groups: Iterable[_Handoff], work: _Work) -> _Handoff | None:
    """The nearest handoff that a clue without a key may be of."""
    fitting = []
    for group in groups:
        first = group.clues[0]
        target = next((each.target for each in group.clues if each.target is not None), None)
        source = next((each.source for each in group.clues if each.source is not None), None)
        if not _same(clue.target, target) or not _same(clue.source, source):
            continue
        if clue.form not in ("message", "edge") and any(
            each.form == clue.form and each.scope == clue.scope for each in group.clues
        ):
            continue
        tools = {slug(each.tool) for each in group.clues if each.tool is not None}
        if clue.tool is not None and tools and slug(clue.tool) not in tools:
            continue
        low, high = sorted((first.at, clue.at))
        # Who has handed over must be at work again before it can do so a second time.
        actor = clue.source or source
        if actor is not None:
            if work.began(actor, low, high):
                continue
        elif clue.target is not None and clue.form != "message" and work.began(clue.target, low, high):
            continue
        is_equal = clue.payload is not None and any(each.payload == clue.payload for each in group.clues)
        fitting.append((is_equal, -abs(first.at - clue.at), group))
    return max(fitting, key=lambda each: each[:2])[2] if fitting else None


def _is_handoff(group: _Handoff, work: _Work) -> bool:
    """A message between parts of a runtime is a handoff where the agent that it is for is the next at work."""
    if any(clue.form != "edge" for clue in group.clues):
        return True
    at, target = group.clues[0].at, group.clues[0].target
    source = next((clue.source for clue in group.clues if clue.source is not None), None)
    if source is not None and not work.had_begun(source, at):
        return False
    later = work.next(at)
    return later is not None and _same(later, target)


def _complete(group: _Handoff, work: _Work) -> None:
    """Source and target, from the clues and from who is at work before and after."""
    at = group.clues[0].at
    ranked = sorted(group.clues, key=lambda clue: (_RANK[clue.form], clue.at, clue.span, clue.number))
    source = next((clue.source for clue in ranked if clue.source is not None), None)
    target = next((clue.target for clue in ranked if clue.form == "handoff" and clue.target is not None), None)
    target = target or next((clue.target for clue in ranked if clue.target is not None), None)
    group.is_sure = source is not None and target is not None
    group.target = work.next(at, source) if target is None else work.shown(target)
    group.source = work.last(at, group.target) if source is None else work.shown(source)


def _nested(
    groups: list[_Handoff], work: _Work, inside: Mapping[str, _Above], nodes: Mapping[str, _Node]
) -> list[_Handoff]:
    """An agent at work inside another's call: agents as tools. Nothing but a plain order of parts lies between them
    where neither a tool was called nor the outer one has asked a model of its own."""
    found = []
    thinking = {
        inside[node.id][1][-1].id for node in nodes.values() if node.is_model and inside[node.id][0] is not None
    }
    to: dict[str, list[_Handoff]] = {}
    by_span: dict[str, _Handoff] = {}
    for group in groups:
        to.setdefault(_stem(group.target or ""), []).append(group)
        for clue in group.clues:
            by_span.setdefault(clue.span, group)
    for node in work.nodes:
        outer, path = inside[node.id]
        if outer is None or node.agent is None or _same(outer, node.agent):
            continue
        open_ = to.get(_stem(node.agent), [])
        told = next((group for group in open_ if group.clues[0].at <= node.start), None)
        calls = [each for each in path if each.tool is not None]
        told = told or next((by_span[each.id] for each in calls if each.id in by_span), None)
        if told is not None:
            if told in open_:
                open_.remove(told)
            continue
        if not calls and path[-1].id not in thinking:
            continue
        call = calls[0] if calls else node
        clue = Clue(
            form="nested",
            scope="",
            at=call.start,
            span=call.id,
            number=CLUES,
            duration_ms=(call.end - call.start) * 1000,
            key=None if call.call is None else f"call {call.call}",
            tool=call.tool,
            is_delegate=True,
            payload=call.payload,
            error=call.error,
            is_done=call.error is None,
        )
        found.append(_Handoff([clue], source=outer, target=node.agent, is_sure=False))
    return found


def _judge(group: _Handoff, work: _Work) -> None:
    clues = group.clues
    at = clues[0].at
    is_delegate = any(clue.is_delegate for clue in clues)
    if any(clue.error is not None for clue in clues):
        group.outcome = "failed" if is_delegate else "rejected"
        return
    spoke = group.target is not None and work.spoke(group.target, at)
    executed = any(clue.is_done and clue.form in ("tool", "nested") for clue in clues)
    if is_delegate and executed:
        group.outcome = "completed"
    elif spoke or any(clue.is_done and clue.form in ("handoff", "message") for clue in clues):
        group.outcome = "accepted"
    elif work.nodes:
        group.outcome = "dropped"
    else:
        group.outcome = "accepted" if executed else "unknown"


# Attributes.


def _text(value: object) -> str | None:
    return text(value.strip()) if type(value) is str else None


def _short(value: object) -> str | None:
    """A name where an attribute holds one, and not a whole message."""
    found = _text(value)
    return found if found is not None and len(found) <= 256 and found[0] not in "{[" else None


def _agent(name: str | None) -> str | None:
    return None if name is None or slug(name) in GENERIC or not name.strip() else name.strip()


def _first_text(said: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    for key in keys:
        if key in said and (found := _text(said[key])) is not None:
            return found
    return None


def _parsed(value: object) -> Any:
    """JSON in an attribute to its value; what is none as it is."""
    if type(value) is str and len(value) <= LONG and value.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _by_name(name: str) -> tuple[str | None, str | None]:
    for pattern, kind in _SPAN_NAMES:
        if match := pattern.fullmatch(name):
            return kind, text(match[1].strip())
    return None, None


def _arguments(said: Mapping[str, Any]) -> Any:
    """The arguments of a tool's call: the first attribute that holds an object which is no schema."""
    for key in ARGUMENTS:
        value = _parsed(said.get(key))
        if type(value) is str and "=" not in value[:1] and value.startswith("{'"):
            continue
        if type(value) is dict:
            if "inputs" in value and type(inner := _parsed(value["inputs"])) is dict:
                value = inner
            if not ("properties" in value and "type" in value):
                return value
    return None


def _calls(said: Mapping[str, Any]) -> Iterator[tuple[str | None, str, Any]]:
    """(id, name, arguments) of each tool that a model's output asks for."""
    flat: dict[tuple[int, int], dict[str, Any]] = {}
    for key, value in said.items():
        if "tool_calls" in key and (match := _CALL_KEY.match(key)):
            place = (int(match[1] or match[4]), int(match[2] or match[5]))
            flat.setdefault(place, {})[(match[3] or match[6]).removeprefix("function.")] = value
    seen: set[tuple[str | None, str]] = set()
    for _, call in sorted(flat.items()):
        if (name := _text(call.get("name"))) is not None:
            id = _text(call.get("id"))
            seen.add((id, name))
            yield id, name, call.get("arguments")
    for key in OUTPUTS:
        if key in said:
            for id, name, arguments in _calls_in(_parsed(said[key])):
                if (id, name) not in seen:
                    seen.add((id, name))
                    yield id, name, arguments


def _calls_in(value: Any, depth: int = 0) -> Iterator[tuple[str | None, str, Any]]:
    """Tool calls in a model's output as any API writes it."""
    if depth > 8:
        return
    if type(value) is list:
        for item in value[:256]:
            yield from _calls_in(_parsed(item), depth + 1)
    elif type(value) is dict:
        if value.get("type") in ("tool_call", "function_call", "tool_use") and (name := _text(value.get("name"))):
            yield (
                _text(value.get("call_id")) or _text(value.get("id")),
                name,
                value.get("arguments", value.get("input", value.get("args"))),
            )
            return
        for key in ("function", "function_call", "functionCall"):
            inner = value.get(key)
            if type(inner) is dict and (name := _text(inner.get("name"))) is not None:
                id = _text(value.get("id")) or _text(inner.get("id"))
                yield id, name, inner.get("arguments", inner.get("args"))
                return
        for key in ("message", "parts", "tool_calls", "content", "output", "choices"):
            if key in value:
                yield from _calls_in(_parsed(value[key]), depth + 1)


def _handoff_messages(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """AutoGen's HandoffMessage wherever it stands in a message of its runtime."""
    if depth > 6:
        return
    if type(value) is dict:
        if value.get("type") == "HandoffMessage" and "target" in value:
            yield value
            return
        for inner in value.values():
            if type(inner) in (dict, list):
                yield from _handoff_messages(inner, depth + 1)
    elif type(value) is list:
        for inner in value[-16:]:
            yield from _handoff_messages(inner, depth + 1)


# The same handoff on the wire and in spans.


class _Seen(msgspec.Struct):
    id: str
    call: str | None
    trace: str | None
    source: str | None
    target: str | None
    at: float
    end: float
    is_taken: bool = False


MODELS = frozenset({"openai", "anthropic", "gemini"})
"""Protocols whose handoffs have the id of a model's call for their task."""
SAME_TRACE_SECONDS = 300.0


class _Seens:
    """A bounded number of handoffs of one side, found by call id and by target."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.by_id: OrderedDict[str, _Seen] = OrderedDict()
        self._by_call: dict[str, _Seen] = {}
        self._by_target: dict[str, dict[str, _Seen]] = {}

    def put(self, seen: _Seen) -> None:
        self.remove(seen.id)
        self.by_id[seen.id] = seen
        if seen.call is not None:
            self._by_call[seen.call] = seen
        self._by_target.setdefault(seen.target or "", {})[seen.id] = seen
        if len(self.by_id) > self._limit:
            self.remove(next(iter(self.by_id)))

    def remove(self, id: str) -> None:
        old = self.by_id.pop(id, None)
        if old is None:
            return
        if old.call is not None and self._by_call.get(old.call) is old:
            del self._by_call[old.call]
        same = self._by_target.get(old.target or "")
        if same is not None:
            same.pop(id, None)
            if not same:
                del self._by_target[old.target or ""]

    def take(self, other: _Seen, within: float) -> _Seen | None:
        """The one that is the same handoff as `other`, and of no other's yet."""
        if other.call is not None and (found := self._by_call.get(other.call)) is not None and not found.is_taken:
            return found
        if other.target is None:
            near = list(self.by_id.values())
        else:
            near = [*self._by_target.get(other.target, {}).values(), *self._by_target.get("", {}).values()]
        best: tuple[int, float] | None = None
        chosen = None
        for seen in near:
            if seen.is_taken or (seen.call is not None and other.call is not None):
                continue
            if seen.source is not None and other.source is not None and seen.source != other.source:
                continue
            gap = max(0.0, seen.at - other.end, other.at - seen.end)
            if seen.trace is not None and other.trace is not None:
                if seen.trace != other.trace or gap > SAME_TRACE_SECONDS:
                    continue
                rank = (0, gap)
            elif gap <= within and seen.target is not None and other.target is not None:
                rank = (1 if seen.source is not None and other.source is not None else 2, gap)
            else:
                continue
            if best is None or rank < best:
                best, chosen = rank, seen
        return chosen


class Sightings:
    """What was told of handoffs from the wire and from spans, so that neither is told twice.

    The last `limit` of each are remembered.
    """

    def __init__(self, within: float, limit: int = 4_096) -> None:
        self._within = within
        self._limit = limit
        self._wire = _Seens(limit)
        self._spans = _Seens(limit)
        self._same: OrderedDict[str, None] = OrderedDict()

    def on_wire(self, event: Event) -> bool:
        """A handoff was seen on the wire. False where a span has told it already."""
        if event.id in self._same:
            return False
        known = self._wire.by_id.get(event.id)
        seen = _seen(event, event.task if event.protocol in MODELS else None)
        if known is not None:
            seen.is_taken, seen.at = known.is_taken, known.at
        else:
            told = self._spans.take(seen, self._within)
            if told is not None:
                told.is_taken = True
                self._same[event.id] = None
                if len(self._same) > self._limit:
                    self._same.popitem(last=False)
                return False
        self._wire.put(seen)
        return True

    def in_spans(self, event: Event) -> bool:
        """A handoff was read from spans. False where it was seen on the wire."""
        seen = _seen(event, event.task)
        found = self._wire.take(seen, self._within)
        if found is not None:
            found.is_taken = True
            return False
        self._spans.put(seen)
        return True


def _seen(event: Event, call: str | None) -> _Seen:
    return _Seen(
        event.id,
        call,
        event.trace_id,
        None if event.source is None else stem(event.source),
        None if event.target is None else stem(event.target),
        event.at,
        event.at + (event.duration_ms or 0.0) / 1000,
    )


# Events as log records.

EVENT_NAME = "handrail.event"
_PREFIX = "handrail."


def log_of(event: Event, *, payload: bool = False) -> Log:
    """An event as a log record: its fields as attributes `handrail.<field>`, absent ones left out; `at` is the record's
    time, the trace and span ids are its own, and the body holds `payload` and `reply` where they may travel."""
    fields = event.fields()
    body = {name: fields[name] for name in ("payload", "reply") if payload and name in fields}
    for name in ("payload", "reply", "at", "trace_id"):
        fields.pop(name, None)
    return Log(
        at=event.at,
        name=EVENT_NAME,
        body=body or None,
        attributes={f"{_PREFIX}{name}": value for name, value in fields.items()},
        trace_id=event.trace_id,
        span_id=event.span_id if event.span_id is not None and len(event.span_id) == 16 else None,
    )


def event_of(log: Log) -> Event | None:
    """A log record that `log_of` made to its event; None where it is none."""
    fields = {key.removeprefix(_PREFIX): value for key, value in log.attributes.items() if key.startswith(_PREFIX)}
    if type(log.body) is dict:
        fields |= {name: log.body[name] for name in ("payload", "reply") if name in log.body}
    fields |= {"at": log.at, "trace_id": log.trace_id}
    fields.setdefault("span_id", log.span_id)
    fields.pop("type", None)
    try:
        return event_from(fields)
    except ValueError:
        return None
