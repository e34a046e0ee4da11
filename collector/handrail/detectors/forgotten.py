"""What a contract says must survive a handoff, and did not, becomes a finding: decisions, constraints, artifacts."""

import re
from collections import OrderedDict
from collections.abc import Iterable
from struct import Struct
from sys import intern
from typing import Any, ClassVar, Final
from zlib import crc32

import msgspec
import xxhash

from handrail.detectors import NOTHING, Rule, Sight, finding
from handrail.detectors.packed import quoted, unpacked
from handrail.detectors.params import EdgeContract, ForgottenParams, Keep
from handrail.detectors.similarity import text_of, words
from handrail.event import Event, Finding
from handrail.schema.registry import Matcher, Registry, matcher

_ITEMS: Final = 64
"""Constraints, written keys and artifacts remembered for each workflow."""
_packed: Final = Struct("q").pack
_WORDS: Final = 48
"""Words by which a constraint is known again."""
_WORDINGS: Final = 8
"""Wordings of a constraint that are known without looking at their words."""
_LATER: Final = 2
"""Hops after which a constraint must still be there."""
_REMEMBERED: Final = 1_000
"""Ways, keys of objects and wordings of which the meaning is remembered."""
_KEY_CHARS: Final = 64
"""A longer key is not remembered."""
_STILL: Final = 0.75
"""So many of a constraint's words somewhere in a payload are the constraint in other words or in another place."""


_Coded = tuple[frozenset[int], tuple[int, ...]]
"""Hashes of a constraint's words, and of its wording; one object for all workflows that say it."""


_Listed = tuple[int, _Coded]
"""Index of a constraint in the list that set it, and what it is known by."""


class _Constraint:
    __slots__ = ("event", "hop", "index", "source", "texts", "told", "words")

    def __init__(self, event: str, hop: int, source: str | None, index: int, coded: _Coded) -> None:
        self.event = event
        self.hop = hop
        self.source = None if source is None else intern(source)
        self.index = index
        self.words, self.texts = coded
        """Of its wordings: hashes, by which it is known again at no cost."""
        self.told = False


class _Workflow:
    __slots__ = (
        "as_before",
        "constraints",
        "decided",
        "decisions",
        "hops",
        "ids",
        "listed",
        "named",
        "new",
        "news",
        "origin",
        "origin_event",
        "origin_hop",
        "origin_source",
        "written",
    )

    def __init__(self) -> None:
        self.hops = 0
        self.decided: str | None = None
        """The event that last carried decisions."""
        self.decisions = 0
        self.constraints: tuple[_Constraint, ...] = ()
        self.origin: tuple[_Listed, ...] | None = None
        """The constraints as they were set, while no later hop said others: then they are in `constraints`. One object
        for all workflows with the same ones."""
        self.origin_event = ""
        """The event that set them."""
        self.origin_hop = 0
        self.origin_source: str | None = None
        self.written: dict[str, None] | None = None
        """Names of what was written."""
        self.listed: dict[str, None] | None = None
        """Names in `output.artifacts`, but for the last ones."""
        self.new = ""
        """What the last of them are called, packed; they become names when something asks for them, which most never
        do."""
        self.news = 0
        """How many they are."""
        self.ids = b""
        """Hashes of the last events' ids."""
        self.as_before = 0
        """Hash of the last hop's constraints, where nothing was missing from them; one like it has nothing to tell."""
        self.named = 0
        """Hash of what the last hop's `output.artifacts` names."""


_Wanted = tuple[str, int | None, Any]
"""Path, index in a list, artifact."""
_Contract = tuple[Keep, Keep, Keep]
"""Decisions, constraints, artifacts."""


class ContextLost:
    """Something that later agents need was dropped on the way.

    Judged are payloads in the envelope's form: an object with `context` or `output`. A constraint is there if three in
    four of its words are somewhere in the payload: other order, other wording around it and another field do not
    matter. The agent that set it is not told it again. An artifact is written if a write of this workflow has its name
    (the last part of its key), or if its content is in the payload. Kept are hashes of words and names of keys.
    """

    kind: ClassVar[str] = "context.lost"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first"})
    kinds: ClassVar[frozenset[str]] = frozenset({"handoff", "write"})
    Params: ClassVar[type[msgspec.Struct]] = ForgottenParams

    def __init__(self, rule: Rule, params: ForgottenParams, registry: Registry) -> None:
        self._rule = rule
        self._keys: int = params.keys
        self._whole: _Contract = (params.decisions, params.constraints, params.artifacts)
        self._edges: tuple[tuple[Matcher, Matcher, EdgeContract], ...] = tuple(
            [(matcher(edge.source), matcher(edge.target), edge) for edge in params.edges]
        )
        self._contracts: dict[tuple[str, str], _Contract] = {}
        self._workflows: OrderedDict[str, _Workflow] = OrderedDict()
        self._newest: str | None = None
        """The last one in `_workflows`, which mostly comes again: 600 instructions less, and no look-up in it."""
        self._newest_workflow = _Workflow()
        self._plain: set[str] = set()
        """Keys that do not speak of artifacts."""
        self._coded: dict[int, _Coded] = {}
        """Wordings of constraints to their words: workflows of one kind have the same."""
        self._origins: dict[int, tuple[_Listed, ...]] = {}
        """Marks of whole lists to the constraints in them."""

    def observe(self, event: Event) -> Iterable[Finding]:
        key = event.workflow
        if key is None:
            return NOTHING
        payload = event.payload
        if event.kind != "handoff":
            if event.kind == "write":
                workflow = self._workflow(key)
                if event.key is not None and event.outcome not in ("failed", "rejected"):
                    written = workflow.written
                    if written is None:
                        written = workflow.written = {}
                    _keep(written, _name(event.key))
            return NOTHING
        if type(payload) is not dict or not ("context" in payload or "output" in payload):
            return NOTHING
        workflow = self._workflow(key)
        ids, event_id = workflow.ids, event.id
        one = _packed(hash(event_id))
        at = ids.find(one)
        while at % 8 and at > 0:
            at = ids.find(one, at + 1)
        if at >= 0:
            return NOTHING
        workflow.ids = ids + one if len(ids) < 8 * _ITEMS else ids[8:] + one
        decisions, constraints, artifacts = self._contract(event) if self._edges else self._whole
        context = payload.get("context")
        if type(context) is not dict:
            context = _EMPTY
        found: list[Finding] = []
        made = context.get("decisions_made")
        if made:
            workflow.decided = event_id
            workflow.decisions = len(made) if type(made) is list else 1
        elif decisions == "always" or (decisions == "once_said" and workflow.decided is not None):
            found.append(self._undecided(workflow, event, context))
        said = context.get("constraints")
        mark = _mark_of(said)
        if not mark or mark != workflow.as_before:
            self._constraints(workflow, event, said, mark, constraints, found)
        self._artifacts(workflow, event, payload, context, artifacts, found)
        workflow.hops += 1
        return found or NOTHING

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

    def _contract(self, event: Event) -> _Contract:
        way = (event.source or "", event.target or "")
        contract = self._contracts.get(way)
        if contract is None:
            decisions, constraints, artifacts = self._whole
            contract = self._whole
            for source, target, edge in self._edges:
                if source(way[0]) and target(way[1]):
                    contract = (
                        edge.decisions or decisions,
                        edge.constraints or constraints,
                        edge.artifacts or artifacts,
                    )
                    break
            if len(self._contracts) >= _REMEMBERED:
                self._contracts.clear()
            self._contracts[way] = contract
        return contract

    def _undecided(self, workflow: _Workflow, event: Event, context: dict[str, Any]) -> Finding:
        how = "empty" if "decisions_made" in context else "absent"
        before = f": {workflow.decisions} were made before" if workflow.decided else ""
        return self._found(
            event,
            f"decisions_made is {how} in what {_who(event.source)} handed to {_who(event.target)}{before}",
            "/context/decisions_made",
            {"lost": "decisions_made", "is": how, "before": workflow.decisions, "last_seen": workflow.decided},
            workflow.decided,
        )

    def _constraints(
        self, workflow: _Workflow, event: Event, said: Any, mark: int, keep: Keep, found: list[Finding]
    ) -> None:
        if mark and not workflow.constraints and workflow.origin is None:
            origin = self._origins.get(mark)
            if origin is not None:
                _set(workflow, event, origin, mark)
                return
        listed = [text_of(item) for item in said][:_ITEMS] if type(said) is list else []
        if keep == "always" and not listed:
            found.append(
                self._found(
                    event,
                    f"{_who(event.source)} handed no constraints to {_who(event.target)}",
                    "/context/constraints",
                    {"lost": "constraints", "is": "empty" if said is not None else "absent"},
                    None,
                )
            )
        if workflow.origin is not None:
            _unfold(workflow, workflow.origin)
        known = workflow.constraints
        is_first = not known
        workflow.as_before = 0
        wordings = [_wording(text) for text in listed]
        literal = set(wordings)
        if keep != "never":
            due: list[_Constraint] = []
            target = event.target
            for each in known:
                if workflow.hops - each.hop >= _LATER and each.source != target:
                    if literal.isdisjoint(each.texts):
                        due.append(each)
                    else:
                        each.told = False
            if due:
                self._missing(workflow, event, due, found)
        texts: set[int] = set()
        is_whole = True
        for each in known:
            texts.update(each.texts)
            is_whole = is_whole and not literal.isdisjoint(each.texts)
        if mark and len(listed) < _ITEMS and is_whole:
            workflow.as_before = mark
        for index, wording in enumerate(wordings):
            if wording in texts:
                continue
            coded = self._words_of(listed[index], wording)
            if not coded[0]:
                continue
            same = _near(coded[0], known)
            if same is not None:
                if len(same.texts) < _WORDINGS:
                    same.texts = (*same.texts, wording)
            elif len(known) < _ITEMS:
                known = (*known, _Constraint(event.id, workflow.hops, event.source, index, coded))
        if is_first and workflow.as_before:
            origin = tuple([(each.index, (each.words, each.texts)) for each in known])
            if len(self._origins) >= _REMEMBERED:
                self._origins.clear()
            self._origins[mark] = origin
            _set(workflow, event, origin, mark)
        else:
            workflow.constraints = known

    def _words_of(self, text: str, wording: int) -> _Coded:
        """What a constraint is known by."""
        coded = self._coded.get(wording)
        if coded is None:
            coded = (frozenset(sorted(_codes(words(text)))[:_WORDS]), (wording,))
            if len(self._coded) >= _REMEMBERED:
                self._coded.clear()
            self._coded[wording] = coded
        return coded

    def _missing(self, workflow: _Workflow, event: Event, due: list[_Constraint], found: list[Finding]) -> None:
        """Those of the constraints whose words are nowhere in the payload."""
        here = _codes(words(text_of(event.payload)))
        for each in due:
            if len(each.words & here) >= _STILL * len(each.words):
                each.told = False
            elif not each.told:
                each.told = True
                hops = workflow.hops - each.hop
                found.append(
                    self._found(
                        event,
                        f"a constraint that {_who(each.source)} set is missing {hops} hops later, in what "
                        f"{_who(event.source)} handed to {_who(event.target)}",
                        "/context/constraints/*",
                        {"lost": "constraint", "index": each.index, "set_in": each.event, "hops": hops}
                        | {"words": len(each.words)},
                        each.event,
                        (str(each.index),),
                    )
                )

    def _artifacts(
        self,
        workflow: _Workflow,
        event: Event,
        payload: dict[str, Any],
        context: dict[str, Any],
        keep: Keep,
        found: list[Finding],
    ) -> None:
        output = payload.get("output")
        produced = output.get("artifacts") if type(output) is dict else None
        names: list[str] = []
        mark = 0
        if type(produced) is list and produced:
            if len(produced) > _ITEMS:
                produced = produced[:_ITEMS]
            for artifact in produced:
                name = _called(artifact)
                if name is not None:
                    names.append(name)
            mark = hash(tuple(names))
        else:
            produced = None
        wanted: list[_Wanted] | None = None
        if not (self._is_plain(payload) and self._is_plain(context)):
            wanted = _wanted(payload)
        written = workflow.written or _NO_NAMES
        if keep == "always" or (keep == "once_said" and written):
            listed: list[_Wanted] = []
            if produced is not None:
                for index, artifact in enumerate(produced):
                    listed.append(("/output/artifacts/*", index, artifact))
            self._unwritten(event, listed, written, "wrote", found)
        if wanted:
            _fold(workflow)
        named = workflow.listed or _NO_NAMES
        if wanted and (keep == "always" or (keep == "once_said" and (written or named))):
            own: dict[str, None] = {}
            for name in names:
                if not name.startswith(_WEB):
                    own[_name(name)] = None
            known = {**written, **named, **own}
            self._unwritten(event, wanted, known, "wrote or listed", found)
        if mark != workflow.named:
            workflow.named = mark
            if names:
                workflow.new += "\0" + "\0".join(map(quoted, names))
                workflow.news += len(names)
            if workflow.news > 2 * _ITEMS:
                _fold(workflow)

    def _is_plain(self, part: dict[str, Any]) -> bool:
        """Whether no key of this object speaks of artifacts, or of an input that may."""
        plain = self._plain
        if plain.issuperset(part):
            return True
        for key in part:
            if key in _INPUTS or "artifact" in key.lower():
                return False
        if len(plain) + len(part) > _REMEMBERED:
            plain.clear()
        if len(part) <= _REMEMBERED:
            plain.update([key for key in part if len(key) <= _KEY_CHARS])
        return True

    def _unwritten(
        self, event: Event, artifacts: list[_Wanted], known: dict[str, None], did: str, found: list[Finding]
    ) -> None:
        for path, index, artifact in artifacts:
            name = _reference(artifact)
            if name is None or _was_written(name, known):
                continue
            found.append(
                self._found(
                    event,
                    f"{_who(event.source)} pointed {_who(event.target)} to an artifact that nobody {did}: {name}",
                    path,
                    {"lost": "artifact", "name": name, "index": index, "known": len(known)},
                    None,
                    (name,),
                )
            )

    def _found(
        self,
        event: Event,
        message: str,
        path: str,
        evidence: dict[str, Any],
        since: str | None,
        same: tuple[str, ...] = (),
    ) -> Finding:
        return finding(
            self._rule,
            event,
            message,
            evidence={"path": path, **evidence},
            side="sender",
            events=(since, event.id) if since is not None and since != event.id else (event.id,),
            same=(path, *same),
        )

    def advance(self, now: float) -> Iterable[Finding]:
        return NOTHING

    def __len__(self) -> int:
        return len(self._workflows)


def _who(agent: str | None) -> str:
    return agent or "an unknown agent"


def _keep(known: dict[str, None], name: str) -> None:
    known.pop(name, None)
    known[name] = None
    if len(known) > _ITEMS:
        del known[next(iter(known))]


def _set(workflow: _Workflow, event: Event, origin: tuple[_Listed, ...], mark: int) -> None:
    """The first constraints of a workflow, by the event that set them."""
    workflow.origin, workflow.as_before = origin, mark
    workflow.origin_event, workflow.origin_hop = event.id, workflow.hops
    workflow.origin_source = None if event.source is None else intern(event.source)


def _unfold(workflow: _Workflow, origin: tuple[_Listed, ...]) -> None:
    """Another list of constraints came: each of the first ones is now looked for by itself."""
    event, hop, source = workflow.origin_event, workflow.origin_hop, workflow.origin_source
    workflow.constraints = tuple([_Constraint(event, hop, source, index, coded) for index, coded in origin])
    workflow.origin, workflow.origin_event, workflow.origin_source = None, "", None


def _fold(workflow: _Workflow) -> None:
    """What was called something lately gets its names."""
    listed = workflow.listed
    if listed is None:
        listed = workflow.listed = {}
    for called in unpacked(workflow.new):
        if called and not called.startswith(_WEB):
            name = _name(called)
            if name not in listed:
                _keep(listed, name)
    workflow.new = ""
    workflow.news = 0


def _codes(spoken: list[bytes]) -> frozenset[int]:
    return frozenset(map(crc32, spoken))


def _wording(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _mark_of(said: Any) -> int:
    """Something that is equal for the same texts; 0 for what is no list of texts."""
    if type(said) is not list or not said:
        return 0
    for item in said:
        if type(item) is not str:
            return 0
    return hash(tuple(said))


def _near(coded: frozenset[int], known: Iterable[_Constraint]) -> _Constraint | None:
    """The constraint that is known and is this one; best in the same words, else with others around it."""
    for each in known:
        if coded == each.words:
            return each
    for each in known:
        if len(coded & each.words) >= _STILL * max(len(coded), len(each.words)):
            return each
    return None


def _name(name: str) -> str:
    return name[:512].partition("?")[0].rstrip("/").lower()


def _wanted(payload: dict[str, Any]) -> list[_Wanted]:
    """What stands under keys that speak of artifacts, beside `output.artifacts`."""
    wanted: list[_Wanted] = []
    for start in ("", "/context", "/input", "/inputs"):
        part = payload if not start else payload.get(start[1:])
        if type(part) is not dict:
            continue
        for key, value in part.items():
            if "artifact" not in key.lower():
                continue
            if type(value) is not list:
                wanted.append((f"{start}/{key}", None, value))
                continue
            for index, artifact in enumerate(value[:_ITEMS]):
                wanted.append((f"{start}/{key}/*", index, artifact))
    return wanted


_REFERENCES: Final[tuple[str, ...]] = ("uri", "path", "key", "name", "id", "url")
"""Its type is said, because compiled code makes a tuple of known length again for each loop over it: 2,500 instructions
an exchange."""
_INPUTS: Final = frozenset({"input", "inputs"})
_WEB: Final = ("http://", "https://", "data:")
_EMPTY: Final[dict[str, Any]] = {}
_NO_NAMES: Final[dict[str, None]] = {}


def _called(artifact: Any) -> str | None:
    """What an artifact is called, at most 512 characters of it."""
    if type(artifact) is dict:
        for key in _REFERENCES:
            found = artifact.get(key)
            if type(found) is str:
                return found[:512] or None
        return None
    return artifact[:512] or None if type(artifact) is str else None


def _reference(artifact: Any) -> str | None:
    """The name of an artifact; None where it is on the web, or its content is in the payload."""
    if type(artifact) is dict:
        for part in ("content", "data", "text", "parts", "bytes"):
            if artifact.get(part):
                return None
    called = _called(artifact)
    return None if called is None or called.startswith(_WEB) else _name(called)


def _was_written(name: str, written: dict[str, None]) -> bool:
    """A key of the same last part: `report.md`, `redis://…/report.md` and `w1:report.md` are one."""
    last = _LAST.split(name)[-1]
    return any(_LAST.split(key)[-1] == last for key in written)


_LAST: Final = re.compile(r"[/:#\\\0]")
