"""A workflow that goes round the same agents without progress becomes a finding on the message that closes a round."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from struct import Struct
from sys import intern
from typing import Any, ClassVar, Final
from zlib import crc32

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding
from handrail.detectors.packed import pushed, quoted, unpacked
from handrail.detectors.params import EdgeRounds, LoopParams
from handrail.detectors.similarity import Said, phrases_of, places, revision, signature, text_of
from handrail.event import Event, Finding
from handrail.schema.registry import Matcher, Registry, matcher

_PATH: Final = 64
"""Agents remembered on the way of one workflow, and messages of one round; a longer way forgets its beginning."""
_SEEN: Final = 512
"""Contents, ids and tasks remembered for each workflow."""
_PAIRS: Final = 1_024
"""Pairs of agents whose names are remembered as `pairs` has them, over all workflows."""
_FEW: Final = 32 * 8
"""Bytes of hashes that are searched one by one: a set of so few takes seven times as much."""
_packed: Final = Struct("q").pack
_IDS: Final = 8
"""Messages of a round, the last ones, that its finding names."""
_NEVER_CAME: Final = frozenset({"failed", "rejected", "timeout", "dropped", "ignored", "interrupted"})


_SETTING: Final = (
    "first_rounds",
    "judge",
    "new_phrases",
    "new_places",
    "new_share",
    "replies",
    "rounds",
    "unseen_rounds",
    "whole_below",
)


class _Setting:
    """What `setting` stands for, and what a rule says in its place."""

    __slots__ = _SETTING

    def __init__(
        self,
        *,
        rounds: int,
        first_rounds: int,
        judge: str,
        new_phrases: int,
        new_share: float,
        whole_below: int,
        new_places: bool,
        unseen_rounds: int,
        replies: bool,
    ) -> None:
        self.rounds = rounds
        self.first_rounds = first_rounds
        self.judge = judge
        self.new_phrases = new_phrases
        self.new_share = new_share
        self.whole_below = whole_below
        self.new_places = new_places
        self.unseen_rounds = unseen_rounds
        self.replies = replies

    def changed_by(self, params: LoopParams) -> "_Setting":
        """With what a rule says in place of it."""
        changed: dict[str, Any] = {}
        for name in _SETTING:
            given = getattr(params, name)
            changed[name] = getattr(self, name) if given is None else given
        return _Setting(**changed)


SETTINGS: Final = {
    "precise": _Setting(
        rounds=2,
        first_rounds=0,
        judge="messages",
        new_phrases=18,
        new_share=1 / 3,
        whole_below=10,
        new_places=False,
        unseen_rounds=10,
        replies=False,
    ),
    "sensitive": _Setting(
        rounds=1,
        first_rounds=3,
        judge="answers",
        new_phrases=125,
        new_share=1.0,
        whole_below=0,
        new_places=True,
        unseen_rounds=10,
        replies=True,
    ),
}
"""`precise`: two rounds in a row in which every message repeats what was said, but for a few phrases. `sensitive`: from
the fourth round on, an answer that says little new or names no new place."""


class _Pair:
    """Two agents, and their names as they stand in `pairs`."""

    __slots__ = ("asks", "back", "source", "target", "way")

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = intern(source), intern(target)
        self.way = f"\0{quoted(source)}\1{quoted(target)}\0"
        self.back = f"\0{quoted(target)}\1{quoted(source)}\0"
        self.asks = f"\0{quoted(target)}\1"
        """How whatever the target hands over begins."""


class _Hop:
    """One message of a round whose text was compared."""

    __slots__ = ("number", "of", "phrases", "places", "source")

    def __init__(self, number: int, source: str, phrases: int, of: int, places: int) -> None:
        self.number = number
        """Of all messages of the round."""
        self.source = source
        self.phrases = phrases
        """New ones."""
        self.of = of
        """Different phrases at all."""
        self.places = places


class _Cycle:
    """Agents that the work went round, in their order."""

    __slots__ = ("ids", "rounds", "since", "stale")

    def __init__(self) -> None:
        self.rounds = 0
        self.stale = 0
        """The last of them that were no progress."""
        self.since = 0
        """The workflow's progress when they were counted."""
        self.ids: list[str] = []
        """The messages that closed them, the last few."""


class _Workflow:
    __slots__ = (
        "cycles",
        "few",
        "heard",
        "hops",
        "ids",
        "marks",
        "moved",
        "pairs",
        "path",
        "progress",
        "rounds",
        "seen",
        "versions",
        "visible",
        "ways",
    )

    def __init__(self) -> None:
        self.path: tuple[str, ...] = ()
        """Who holds the work, last; before it, who waits to have it back."""
        self.pairs = "\0"
        """Hand-overs that were seen, packed: who made them, and to whom."""
        self.ways = 0
        """How many they are."""
        self.hops = 0
        """Messages since a round was last closed."""
        self.ids = ""
        """Of the last of them, packed."""
        self.heard: list[_Hop] | None = None
        """Those of the last `_PATH` whose text was compared."""
        self.few = b""
        """Hashes of what was there before, until they are many."""
        self.marks = 0
        """One bit for the last five of each of these hashes; to search where there is none took 500 instructions."""
        self.seen: dict[int, None] | None = None
        """The same when they are."""
        self.versions: dict[str, int] | None = None
        self.rounds = 0
        self.cycles: dict[tuple[str, ...], _Cycle] | None = None
        self.progress = 0
        """Rounds that were progress."""
        self.moved = False
        """A message since the last round was progress by itself: a state version rose, a content was new."""
        self.visible = False
        """The content of a message since the last round could be seen."""


class HandoffLoop:
    """The same agents in the same order again, and nothing new came of it.

    A round is closed by the message that brings the work back to an agent that had it: the way of the work is kept as a
    path, a hand-over to somebody on it closes the round from there, whatever its length. An agent that asks the same
    one again without an answer closes a round too, if that one is known to answer in messages of its own; a reply seen
    on the same connection is the answer otherwise. Hand-overs that failed are no rounds: retries are for budgets.

    Progress is a state version that rises or a write, and new content: in the precise setting any message whose
    content (without ids, instants, counters) was not there before; in the sensitive setting what came back to the agent
    where the round closed, by new words and newly named places.
    """

    kind: ClassVar[str] = "handoff.loop"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first", "final"})
    kinds: ClassVar[frozenset[str]] = frozenset({"handoff", "write"})
    Params: ClassVar[type[msgspec.Struct]] = LoopParams

    def __init__(self, rule: Rule, params: LoopParams, registry: Registry) -> None:
        self._setting = SETTINGS[params.setting].changed_by(params)
        self._by_text = bool(self._setting.new_phrases) or self._setting.new_places
        self._hear_from = 1 if self._setting.judge == "messages" else 0
        """Rounds before which texts are not looked at: most workflows never go round, and pay nothing."""
        self._edges: tuple[tuple[Matcher, Matcher, EdgeRounds], ...] = tuple(
            [(matcher(edge.source), matcher(edge.target), edge) for edge in params.edges]
        )
        self._rule = rule
        self._keys: int = params.keys
        self._replies = self._setting.replies
        self._known: dict[str, dict[str, _Pair]] = {}
        """By source and target. There are few, so each is quoted once: that took 2,500 instructions a message."""
        self._known_count = 0
        self._workflows: OrderedDict[str, _Workflow] = OrderedDict()
        self._newest: str | None = None
        """The last one in `_workflows`, which mostly comes again: 500 instructions less, and no look-up in it."""
        self._newest_workflow: _Workflow | None = None
        self._said: OrderedDict[str, Said] = OrderedDict()
        self._texts: int = params.texts

    def observe(self, event: Event) -> Iterable[Finding]:
        key = event.workflow
        if key is None:
            return NOTHING
        is_newest = key == self._newest
        workflow = self._newest_workflow if is_newest else self._workflows.get(key)
        if event.kind != "handoff":
            if event.kind == "write" and workflow is not None and event.outcome not in _NEVER_CAME:
                self._progress(workflow, event)
            return NOTHING
        source, target = event.source, event.target
        if source is None or target is None:
            return NOTHING
        if workflow is None:
            workflow = self._workflows[key] = _Workflow()
            if len(self._workflows) > self._keys:
                self._said.pop(self._workflows.popitem(last=False)[0], None)
        elif not is_newest:
            self._workflows.move_to_end(key)
        if not is_newest:
            self._newest, self._newest_workflow = key, workflow
        found: list[Finding] = []
        if _new(workflow, "id", event.id):
            if event.outcome in _NEVER_CAME:
                return NOTHING
            self._step(workflow, event, source, target, event.payload, event.digest, found)
        if (
            self._replies
            and event.reply is not None
            and event.outcome == "completed"
            and self._between(source, target).back not in workflow.pairs
            and _new(workflow, "reply", event.id)
        ):
            self._step(workflow, event, target, source, event.reply, None, found, spoken=False)
        return found or NOTHING

    def _step(
        self,
        workflow: _Workflow,
        event: Event,
        source: str,
        target: str,
        payload: object,
        digest: str | None,
        found: list[Finding],
        *,
        spoken: bool = True,
    ) -> None:
        """One message from source to target: it may close a round. `spoken`: it is an event of its own."""
        path, pair = workflow.path, self._between(source, target)
        if spoken and event.chain is not None and not (path and path[-1] == source):
            path = _followed(path, event.chain)
        back = target in path
        closes: tuple[str, ...] = ()
        unanswered = False
        if source != (path[-1] if path else None):
            if source in path:  # the work came back unseen
                if path[-1] == target and source != target and pair.back in workflow.pairs:
                    closes, unanswered = (source, target), True
                path = path[: path.index(source) + 1]
            elif back and _was_asked(workflow, source):
                closes = (target, source)
            else:
                path = path + (pair.source,)  # noqa: RUF005 - a third of the time, compiled
        if unanswered:
            self._close(workflow, event, closes, found, unanswered=True)
            closes = ()
        self._hear(workflow, event, pair, payload, digest)
        if target in path:
            at = path.index(target)
            closes = closes or path[at:]
            path = path[: at + 1]
        else:
            path = path + (pair.target,)  # noqa: RUF005
            closes = ()
        workflow.path = path if len(path) <= _PATH else path[-_PATH:]
        if spoken and workflow.ways < _SEEN and pair.way not in workflow.pairs:
            workflow.pairs += pair.way[1:]
            workflow.ways += 1
        if closes:
            self._close(workflow, event, closes, found)

    def _between(self, source: str, target: str) -> _Pair:
        """These two, as they were made the first time."""
        to = self._known.get(source)
        pair = None if to is None else to.get(target)
        if pair is None:
            if self._known_count >= _PAIRS:
                self._known.clear()
                self._known_count = 0
            pair = _Pair(source, target)
            self._known.setdefault(source, {})[target] = pair
            self._known_count += 1
        return pair

    def _hear(self, workflow: _Workflow, event: Event, pair: _Pair, payload: object, digest: str | None) -> None:
        """What this message says, and whether that is new."""
        new: int | None = None
        new_places = of = 0
        if payload is not None or digest is not None:
            workflow.visible = True
            moved = digest is None or _new(workflow, "digest", digest)
            if payload is not None:
                # Where this way was never taken, or whoever is asked never spoke, nothing can repeat but by digest,
                # which costs nothing.
                if moved and (
                    digest is None or ((workflow.rounds or pair.asks in workflow.pairs) and pair.way in workflow.pairs)
                ):
                    moved = _new(workflow, "content", str(signature(payload)))
                if self._by_text and workflow.rounds >= self._hear_from:
                    new = 0  # of what repeats an earlier message
                    if moved:
                        said = self._said_in(event.workflow)
                        codes = phrases_of(payload, digest).distinct()
                        new, of = said.add(codes), len(codes)
                        text = text_of(payload)
                        if self._setting.new_places:
                            new_places = said.add(sorted(crc32(place.encode()) for place in places(payload, text)))
                        if of >= self._setting.whole_below:
                            moved = self._rises(workflow, pair.source, revision(payload, text))
            workflow.moved = workflow.moved or moved
        elif event.task is not None and _new(workflow, "task", event.task):
            workflow.moved = True
        if event.state_version is not None:
            self._progress(workflow, event)
        workflow.ids = pushed(workflow.ids, "\0" + quoted(event.id), is_full=workflow.hops >= _IDS)
        workflow.hops += 1
        heard = workflow.heard
        if new is not None:
            if heard is None:
                heard = workflow.heard = []
            heard.append(_Hop(workflow.hops, pair.source, new, of, new_places))
        if heard and heard[0].number <= workflow.hops - _PATH:
            del heard[0]

    def _said_in(self, key: str | None) -> Said:
        said = self._said.pop(key or "", None) or Said()
        self._said[key or ""] = said
        if len(self._said) > self._texts:
            self._said.popitem(last=False)
        return said

    def _rises(self, workflow: _Workflow, where: str, version: int | None) -> bool:
        """Whether this version is higher than any before it; the first one is no progress by itself."""
        if version is None:
            return False
        versions = _versions_of(workflow)
        known = versions.get(where)
        if known is None and len(versions) >= _PATH:
            return False
        if known is None or version > known:
            versions[where] = version
        return known is not None and version > known

    def _progress(self, workflow: _Workflow, event: Event) -> None:
        """Whether the state that this event speaks of is newer than any before it."""
        version, where = event.state_version, f"{event.store} {event.key}"
        if type(version) is int:
            versions = _versions_of(workflow)
            known = versions.get(where)
            if known is None or version > known:
                if known is not None or len(versions) < _PATH:
                    versions[where] = version
                workflow.moved = True
        elif version is not None or event.digest is not None:
            if _new(workflow, "state", f"{where} {event.digest if version is None else version}"):
                workflow.moved = True
        elif event.kind == "write":
            workflow.moved = True

    def _close(
        self,
        workflow: _Workflow,
        event: Event,
        cycle: tuple[str, ...],
        found: list[Finding],
        *,
        unanswered: bool = False,
    ) -> None:
        """A round is closed: was there progress in it, and if not, is it one too many?"""
        setting = self._setting
        workflow.rounds += 1
        edge = self._edge(cycle)
        compared = workflow.heard or []
        came = [hop for hop in compared if hop.source != cycle[0]]
        heard = bool(compared)
        progress = workflow.moved or (heard and any(map(self._is_new, self._judged(compared, came))))
        new_phrases = sum(hop.phrases for hop in came)
        new_places = sum(hop.places for hop in came)
        visible, ids = workflow.visible or unanswered, workflow.ids
        workflow.hops, workflow.ids, workflow.heard = 0, "", None
        workflow.moved, workflow.visible = False, False
        cycles = workflow.cycles
        if cycles is None:
            cycles = workflow.cycles = {}
        known = cycles.get(cycle)
        if known is None:
            if len(cycles) >= _PATH:
                del cycles[next(iter(cycles))]
            known = cycles[cycle] = _Cycle()
        known.rounds += 1
        workflow.progress += progress
        if known.since != workflow.progress:
            known.since, known.stale, known.ids = workflow.progress, 0, []
        if not progress:
            known.stale += 1
            known.ids = [*known.ids[-7:], event.id]
        allowed = setting.rounds if edge is None or edge.rounds is None else edge.rounds
        if not visible and (edge is None or edge.rounds is None):
            allowed = max(allowed, setting.unseen_rounds)
        count, without = known.rounds, known.stale
        if edge is not None and edge.at_most is not None and count > edge.at_most:
            reason = f"{edge.at_most} are allowed between them"
        elif without >= allowed and workflow.rounds > setting.first_rounds:
            reason = self._reason(new_phrases, new_places, visible=visible, unanswered=unanswered, heard=heard)
        else:
            return
        events = tuple(dict.fromkeys([*known.ids, *unpacked(ids), event.id]))
        found.append(
            finding(
                self._rule,
                event,
                f"{_round(cycle)} went round {'once' if count == 1 else f'{count} times'}{_without(without)}: {reason}",
                evidence={
                    "cycle": list(cycle),
                    "rounds": count,
                    "rounds_of_workflow": workflow.rounds,
                    "without_progress": without,
                    "allowed": allowed,
                    "new_phrases": new_phrases if heard else None,
                    "new_places": new_places if heard and self._setting.new_places else None,
                    "unanswered": unanswered,
                },
                side="graph",
                events=events,
                same=cycle,
            )
        )

    def _judged(self, hops: list[_Hop], came: list[_Hop]) -> list[_Hop]:
        """What counts in a round: every message, or the answers taken together."""
        if self._setting.judge == "messages":
            return hops
        of, new = sum(hop.of for hop in came), sum(hop.phrases for hop in came)
        return [_Hop(0, "", new, of, sum(hop.places for hop in came))]

    def _is_new(self, hop: _Hop) -> bool:
        setting, new = self._setting, hop.phrases
        if hop.of < setting.whole_below:
            return False
        said = new >= setting.new_phrases or (setting.new_share < 1 and new >= hop.of * setting.new_share)
        return said and (hop.places > 0 or not setting.new_places)

    def _reason(self, new: int, places: int, *, visible: bool, unanswered: bool, heard: bool) -> str:
        setting = self._setting
        if unanswered:
            return "no answer came back"
        if not visible:
            return "no content, task or state version could be seen to change"
        if not heard:
            return "every message repeats one before it"
        if setting.judge == "messages":
            return f"every message repeats what was said before it, but for {new} phrases of the answers"
        short = f"what came back has {new} new phrases (progress is {setting.new_phrases})"
        nowhere = "names no new URL, file or artifact"
        if setting.new_places and not places:
            return f"{short} and {nowhere}" if new < setting.new_phrases else f"what came back {nowhere}"
        return short

    def _edge(self, cycle: Sequence[str]) -> EdgeRounds | None:
        if not self._edges:
            return None
        ways = list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        for source, target, edge in self._edges:
            if any(source(start) and target(end) for start, end in ways):
                return edge
        return None

    def advance(self, now: float) -> Iterable[Finding]:
        return NOTHING

    def __len__(self) -> int:
        return len(self._workflows)


def _followed(path: tuple[str, ...], chain: str) -> tuple[str, ...]:
    """With the way that was not seen here, but stands in the chain that travels with the work."""
    way = list(path)
    for name in chain.split("|"):
        if name in way:
            del way[way.index(name) + 1 :]
        else:
            way.append(intern(name))
    return tuple(way)


def _was_asked(workflow: _Workflow, agent: str) -> bool:
    """Whether anybody was seen to hand over to this agent."""
    return f"\1{quoted(agent)}\0" in workflow.pairs


def _versions_of(workflow: _Workflow) -> dict[str, int]:
    versions = workflow.versions
    if versions is None:
        versions = workflow.versions = {}
    return versions


def _new(workflow: _Workflow, what: str, text: str) -> bool:
    """Whether this was not there before; it is now."""
    seen = workflow.seen
    code = hash((what, text))
    if seen is None:
        few, one, mark = workflow.few, _packed(code), 1 << (code & 31)
        if workflow.marks & mark:
            at = few.find(one)
            while at % 8 and at > 0:
                at = few.find(one, at + 1)
            if at >= 0:
                return False
        workflow.marks |= mark
        if len(few) < _FEW:
            workflow.few = few + one
            return True
        seen = workflow.seen = dict.fromkeys(Struct(f"{len(few) // 8}q").unpack(few))
        workflow.few = b""
    elif code in seen:
        return False
    seen[code] = None
    if len(seen) > _SEEN:
        del seen[next(iter(seen))]
    return True


def _without(rounds: int) -> str:
    if not rounds:
        return ""
    return ", the last time without progress" if rounds == 1 else f", the last {rounds} times without progress"


def _round(cycle: Sequence[str]) -> str:
    """The agents of a round for a sentence; a long round is named by its ends."""
    names = [*cycle, cycle[0]]
    if len(names) > 9:
        names = [*names[:5], "…", *names[-3:]]
    return " → ".join(names)
