"""Tokens that grow with every hop become a finding before they meet the window of the model that receives them."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Final, Literal

import msgspec

from handrail.config import parse_yaml
from handrail.detectors import NOTHING, Rule, Sight, finding
from handrail.detectors.packed import pushed, quoted, unpacked, unquoted, value_of, without
from handrail.detectors.params import GrowthParams
from handrail.event import Event, Finding, canonical
from handrail.schema.registry import Matcher, Registry, matcher

BYTES_PER_TOKEN: Final = 4
"""Of an estimate: English prose and JSON come to about four bytes a token with the tokenizers in use."""
_AGENTS: Final = 256
"""Agents whose models are remembered as `models` has them, over all workflows."""
_SERIES: Final = 64
"""Receivers, and models of agents, remembered for each workflow."""

Source = Literal["reported", "estimated"]


class _Series:
    """The last hops of one workflow, or of those to one agent."""

    __slots__ = ("counts", "ids", "told")

    def __init__(self, tokens: int, ids: str) -> None:
        self.counts: tuple[int, ...] = (tokens,)
        """Tokens of each."""
        self.ids = ids
        """Packed."""
        self.told = ""


class _Workflow:
    __slots__ = ("chain", "estimated", "hops", "models", "names", "ones", "only", "series", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.hops = 0
        self.estimated = 0
        self.chain: _Series | None = None
        """All hops of it."""
        self.only: str | None = None
        """The receiver of all hops, quoted, as that of a sidecar before one agent is: its series is the chain."""
        self.ones = "\0"
        """Receivers of one hop, as each agent of a chain is, packed: name, and `tokens id` of the hop."""
        self.series: dict[str, _Series] | None = None
        """Receivers of several, quoted."""
        self.names = 0
        """How many receivers there are, and one for the chain."""
        self.models = "\0"
        """Which agent named which model, packed."""


@cache
def shipped_windows() -> Mapping[str, int]:
    """Model name pattern → tokens, from the table beside this module; part of the program, so read once."""
    table: dict[str, int] = parse_yaml(files(__package__).joinpath("windows.yaml").read_text("utf-8"), "windows.yaml")
    return table


def tokens_of(event: Event) -> tuple[int, Source] | None:
    """Tokens of a message: what was reported (`usage`, `metadata.token_count`), else an estimate by its bytes."""
    if event.tokens is not None:
        return event.tokens, "reported"
    payload = event.payload
    if type(payload) is dict:
        metadata = payload.get("metadata")
        count = metadata.get("token_count") if type(metadata) is dict else None
        if type(count) is int and count >= 0:
            return count, "reported"
    size = event.payload_bytes
    if size is None and payload is not None:
        try:
            size = len(canonical(payload))
        except (TypeError, ValueError):
            return None
    return None if size is None else (size // BYTES_PER_TOKEN, "estimated")


def _input_of(event: Event) -> tuple[int, Source] | None:
    """Tokens that a model was given in a call, from its reply's `usage`."""
    given = event.reply.get("input_tokens") if type(event.reply) is dict else None
    tokens = given if type(given) is int else event.tokens
    return None if tokens is None else (tokens, "reported")


def model_of(value: Any) -> str | None:
    """The model that a payload or a reply names: `metadata.model`, else `model`."""
    if type(value) is not dict:
        return None
    metadata = value.get("metadata")
    named = metadata.get("model") if type(metadata) is dict else None
    named = named if type(named) is str else value.get("model")
    return named[:128] if type(named) is str and named else None


_pairs: Final[dict[str, dict[str, str]]] = {}


def _pair(agent: str, model: str) -> str:
    """An agent and the model that it names, as they stand in `models`. There are few, so each is quoted once."""
    of = _pairs.get(agent)
    pair = None if of is None else of.get(model)
    if pair is None:
        if len(_pairs) >= _AGENTS or (of is not None and len(of) >= _SERIES):
            _pairs.clear()
        pair = f"\0{quoted(agent)}\1{quoted(model)}\0"
        _pairs.setdefault(agent, {})[model] = pair
    return pair


class Windows:
    """Finds the window of a model by its name, remembering the answers."""

    def __init__(self, own: Mapping[str, int]) -> None:
        self._patterns: list[tuple[Matcher, int]] = [
            (matcher(name.lower()), tokens) for name, tokens in [*own.items(), *shipped_windows().items()]
        ]
        self._known: dict[str, int | None] = {}

    def of(self, model: str) -> int | None:
        if model not in self._known:
            if len(self._known) >= 1_000:
                self._known.clear()
            name = model.lower()
            names = (name, name.rpartition("/")[2], name.rpartition(".")[2])
            self._known[model] = next(
                (tokens for matches, tokens in self._patterns if any(map(matches, names))),
                None,
            )
        return self._known[model]


def _is_growing(counts: tuple[int, ...]) -> bool:
    """Whether each is larger than the one before."""
    before = counts[0] - 1
    for count in counts:
        if count <= before:
            return False
        before = count
    return True


class ContextGrowth:
    """What is handed on grows from hop to hop, and will not fit the receiver's model in a few hops, or does not now.

    Series that are watched: all hops of a workflow in their order (a chain that passes everything on), those to one
    agent (an orchestrator that hears everybody), and what an agent gives its model (by the `usage` of the replies).
    The forecast is a straight line through the last hops, and only where each is larger than the one before. Told once
    when it is near and once when it is reached, until it shrinks.
    """

    kind: ClassVar[str] = "context.growth"
    sees: ClassVar[frozenset[Sight]] = frozenset({"final"})
    kinds: ClassVar[frozenset[str]] = frozenset({"handoff", "usage"})
    Params: ClassVar[type[msgspec.Struct]] = GrowthParams

    def __init__(self, rule: Rule, params: GrowthParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._keys: int = params.keys
        self._over_hops: int = params.over_hops
        self._windows = Windows(params.windows)
        windows = [*params.windows.values(), *shipped_windows().values()]
        self._smallest: int = min(windows if params.window is None else [*windows, params.window])
        """What does not grow and is below every window fits."""
        self._models = tuple((matcher(each.agent), each.model) for each in params.models)
        self._workflows: OrderedDict[str, _Workflow] = OrderedDict()
        self._newest: str | None = None
        """The last one in `_workflows`, which mostly comes again: 700 instructions less, and no look-up in it."""
        self._newest_workflow = _Workflow()

    def observe(self, event: Event) -> Iterable[Finding]:
        key, kind = event.workflow, event.kind
        if key is None or (kind != "handoff" and kind != "usage"):
            return NOTHING
        is_call = kind == "usage"
        counted = _input_of(event) if is_call else tokens_of(event)
        if counted is None:
            return NOTHING
        tokens, how = counted
        workflow = self._workflow(key)
        workflow.tokens += tokens
        workflow.hops += 1
        if how == "estimated":
            workflow.estimated += 1
        source, target = event.source, event.target
        named = (model_of(event.reply) if is_call else None) or model_of(event.payload) or self._known_model(event)
        if named is not None and source is not None:
            pair = _pair(source, named)
            if pair not in workflow.models:
                _name(workflow, quoted(source), pair)
        event_id = "\0" + quoted(event.id)
        found: tuple[Finding, ...] = NOTHING
        receiver = f"model of {source}" if is_call else target
        if receiver is not None:
            receiver = quoted(receiver)
        if workflow.only is not None and (receiver == workflow.only) == is_call:
            self._part(workflow, workflow.only)
        if not is_call:
            chain = workflow.chain
            if chain is None:
                if workflow.names < _SERIES:
                    workflow.names += 1
                    chain = workflow.chain = _Series(tokens, event_id)
                    if receiver is not None and workflow.names == 1:
                        workflow.names = 2
                        workflow.only = receiver
            elif not self._counted(chain, tokens, event_id):
                return NOTHING
            if chain is not None:
                found = self._judged(workflow, chain, event, tokens, how, named)
        if receiver is None or receiver == workflow.only:
            return found
        series = self._series(workflow, receiver, tokens, event_id)
        if series is not None:
            judged = self._judged(workflow, series, event, tokens, how, named)
            found = found or judged
        return found

    def _workflow(self, key: str) -> _Workflow:
        if key == self._newest:
            return self._newest_workflow
        workflow = self._workflows.get(key)
        if workflow is None:
            workflow = self._workflows[key] = _Workflow()
            if len(self._workflows) > self._keys:
                self._workflows.popitem(last=False)
        else:
            self._workflows.move_to_end(key)
        self._newest, self._newest_workflow = key, workflow
        return workflow

    def _part(self, workflow: _Workflow, receiver: str) -> None:
        """The chain goes on elsewhere, or something else goes there: what was one series becomes two."""
        workflow.only = None
        chain = workflow.chain
        if chain is None:
            return
        if len(chain.counts) == 1 and chain.counts[0] < self._smallest:
            workflow.ones += f"{receiver}\1{chain.counts[0]} {chain.ids[1:]}\0"
            return
        series = _Series(0, chain.ids)
        series.counts = chain.counts
        if workflow.series is None:
            workflow.series = {}
        workflow.series[receiver] = series

    def _series(self, workflow: _Workflow, receiver: str, tokens: int, event_id: str) -> _Series | None:
        """A receiver's hops with this one; None where there is nothing to judge."""
        several = workflow.series
        series = None if several is None else several.get(receiver)
        if series is None:
            first = value_of(workflow.ones, receiver)
            if first is None:
                if workflow.names >= _SERIES:
                    return None
                workflow.names += 1
                if tokens < self._smallest:
                    workflow.ones += f"{receiver}\1{tokens} {event_id[1:]}\0"
                    return None
                series = _Series(tokens, event_id)
            else:
                before, _, first_id = first.partition(" ")
                series = _Series(int(before), "\0" + first_id)
                if series.ids == event_id:
                    return None
                workflow.ones = without(workflow.ones, receiver, first)
                self._counted(series, tokens, event_id)
            if several is None:
                several = workflow.series = {}
            several[receiver] = series
            return series
        return series if self._counted(series, tokens, event_id) else None

    def _counted(self, series: _Series, tokens: int, event_id: str) -> bool:
        """Adds a hop, whose id is ready to be pushed; False where it was the last one already."""
        ids, counts = series.ids, series.counts
        if ids.endswith(event_id):
            return False
        is_full = len(counts) >= self._over_hops
        series.counts = (counts[1:] if is_full else counts) + (tokens,)
        series.ids = pushed(ids, event_id, is_full=is_full)
        return True

    def _judged(
        self, workflow: _Workflow, series: _Series, event: Event, tokens: int, how: Source, named: str | None
    ) -> tuple[Finding, ...]:
        """What its last hop tells, if anything."""
        counts = series.counts
        growing = False
        if len(counts) >= 2:
            before = counts[-2]
            if tokens > before:
                growing = _is_growing(counts)
            elif tokens < before:
                series.told = ""
        if growing or tokens >= self._smallest:
            return self._judge(workflow, series, event, tokens, how, named, growing)
        return NOTHING

    def _known_model(self, event: Event) -> str | None:
        """Where no payload names it: the agent's version, or whom a model call went to, if a table knows that name."""
        for name in (event.agent_version, event.target if event.kind == "usage" else None):
            if name is not None and self._windows.of(name) is not None:
                return name[:128]
        return None

    def _judge(
        self,
        workflow: _Workflow,
        series: _Series,
        event: Event,
        tokens: int,
        how: Source,
        named: str | None,
        growing: bool,
    ) -> tuple[Finding, ...]:
        params, counts = self._params, series.counts
        model = self._model(workflow, event, named)
        window = params.window if model is None else self._windows.of(model) or params.window
        if window is None:
            return NOTHING
        growth = (counts[-1] - counts[0]) / max(1, len(counts) - 1) if growing else 0.0
        hops = 0 if tokens >= window else -(-(window - tokens) // growth) if growth > 0 else None
        if hops is None or hops > params.within_hops or (hops and len(counts) < params.over_hops):
            return NOTHING
        state = "reached" if hops == 0 else "near"
        chain = workflow.chain
        if "reached" in (told := (series.told, "" if chain is None else chain.told)) or state in told:
            return NOTHING
        series.told = state
        who = event.target or (f"the model of {event.source}" if event.kind == "usage" else "the receiver")
        size = f"{'about ' if how == 'estimated' else ''}{tokens:,} tokens"
        model_name = model or "its model"
        if hops == 0:
            giver = event.source or "an unknown agent"
            message = f"{giver} handed {size} to {who}, whose window is {window:,} ({model_name})"
        else:
            message = (
                f"the context handed to {who} grows by {growth:,.0f} tokens a hop and is at {size}: "
                f"in {hops:.0f} {'hop' if hops == 1 else 'hops'} it meets the window of {model_name} ({window:,})"
            )
        return (
            finding(
                self._rule,
                event,
                message,
                evidence={
                    "tokens": tokens,
                    "tokens_are": how,
                    "last_hops": list(counts),
                    "growth_per_hop": round(growth, 1),
                    "hops_left": int(hops),
                    "window": window,
                    "model": model,
                    "workflow_tokens": workflow.tokens,
                    "workflow_hops": workflow.hops,
                    "estimated_hops": workflow.estimated,
                },
                side="sender",
                events=tuple(dict.fromkeys(unpacked(series.ids))),
                same=(state,),
            ),
        )

    def _model(self, workflow: _Workflow, event: Event, named: str | None) -> str | None:
        target = event.source if event.kind == "usage" else event.target
        if target is not None:
            for matches, model in self._models:
                if matches(target):
                    return model
            known = value_of(workflow.models, quoted(target))
            if known is not None:
                return unquoted(known)
        return model_of(event.reply) or named

    def advance(self, now: float) -> Iterable[Finding]:
        return NOTHING

    def __len__(self) -> int:
        return len(self._workflows)


def _name(workflow: _Workflow, agent: str, pair: str) -> None:
    """Remembers the model that an agent, quoted, names as its own for the first time."""
    models = workflow.models
    if models.count("\1") >= _SERIES:
        return
    known = value_of(models, agent)
    if known is not None:
        models = without(models, agent, known)
    workflow.models = models + pair[1:]
