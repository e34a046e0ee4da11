"""What a contract says must survive a handoff, and did not, becomes a finding: decisions, constraints, artifacts."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar
from zlib import crc32

import msgspec
import xxhash

from handrail.detectors import NOTHING, Rule, Sight, finding
from handrail.detectors.params import EdgeContract, ForgottenParams, Keep
from handrail.detectors.similarity import text_of, words
from handrail.event import Event, Finding
from handrail.schema.registry import Matcher, Registry, matcher

_ITEMS = 64
"""Constraints, written keys and artifacts remembered for each workflow."""
_WORDS = 48
"""Words by which a constraint is known again."""
_WORDINGS = 8
"""Wordings of a constraint that are known without looking at their words."""
_LATER = 2
"""Hops after which a constraint must still be there."""
_STILL = 0.75
"""So many of a constraint's words somewhere in a payload are the constraint in other words or in another place."""


class _Constraint(msgspec.Struct):
    event: str
    hop: int
    source: str | None
    index: int
    words: frozenset[int]
    texts: set[int]
    """Of its wordings: hashes, by which it is known again at no cost."""
    told: bool = False


class _Workflow(msgspec.Struct):
    hops: int = 0
    decided: str | None = None
    """The event that last carried decisions."""
    decisions: int = 0
    constraints: dict[int, _Constraint] = {}
    written: dict[str, str] = {}
    """Names of what was written → the event."""
    listed: dict[str, str] = {}
    """Names in `output.artifacts` → the event."""
    ids: dict[str, None] = {}
    as_before: int = 0
    """Hash of the last hop's constraints, where nothing was missing from them; one like it has nothing to tell."""
    named: int = 0
    """Hash of what the last hop's `output.artifacts` names."""


class ContextLost:
    """Something that later agents need was dropped on the way.

    Judged are payloads in the envelope's form: an object with `context` or `output`. A constraint is there if three in
    four of its words are somewhere in the payload: other order, other wording around it and another field do not
    matter. The agent that set it is not told it again. An artifact is written if a write of this workflow has its name
    (the last part of its key), or if its content is in the payload. Kept are hashes of words and names of keys.
    """

    kind: ClassVar[str] = "context.lost"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first"})
    Params: ClassVar[type[msgspec.Struct]] = ForgottenParams

    def __init__(self, rule: Rule, params: ForgottenParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._edges: tuple[tuple[Matcher, Matcher, EdgeContract], ...] = tuple(
            (matcher(edge.source), matcher(edge.target), edge) for edge in params.edges
        )
        self._workflows: OrderedDict[str, _Workflow] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        key = event.workflow
        if key is None or event.kind not in ("handoff", "write"):
            return NOTHING
        payload = event.payload
        is_write = event.kind == "write"
        if not is_write and (type(payload) is not dict or not ("context" in payload or "output" in payload)):
            return NOTHING
        workflow = self._workflows.get(key)
        if workflow is None:
            workflow = self._workflows[key] = _Workflow()
            if len(self._workflows) > self._params.keys:
                self._workflows.popitem(last=False)
        if is_write:
            if event.key is not None and event.outcome not in ("failed", "rejected"):
                _keep(workflow.written, _name(event.key), event.id)
            return NOTHING
        if event.id in workflow.ids:
            return NOTHING
        _keep(workflow.ids, event.id, None)
        contract = self._contract(event)
        context = payload.get("context")
        context = context if type(context) is dict else {}
        found = [
            *self._decisions(workflow, event, context, contract("decisions")),
            *self._constraints(workflow, event, context, contract("constraints")),
            *self._artifacts(workflow, event, payload, contract("artifacts")),
        ]
        workflow.hops += 1
        return found or NOTHING

    def _contract(self, event: Event) -> Any:
        for source, target, edge in self._edges:
            if source(event.source or "") and target(event.target or ""):
                return lambda name: getattr(edge, name) or getattr(self._params, name)
        return lambda name: getattr(self._params, name)

    def _decisions(
        self, workflow: _Workflow, event: Event, context: Mapping[str, Any], keep: Keep
    ) -> Iterator[Finding]:
        made = context.get("decisions_made")
        if made:
            workflow.decided, workflow.decisions = event.id, len(made) if type(made) is list else 1
            return
        if keep == "never" or (keep == "once_said" and workflow.decided is None):
            return
        how = "empty" if "decisions_made" in context else "absent"
        before = f": {workflow.decisions} were made before" if workflow.decided else ""
        yield self._found(
            event,
            f"decisions_made is {how} in what {_who(event.source)} handed to {_who(event.target)}{before}",
            "/context/decisions_made",
            {"lost": "decisions_made", "is": how, "before": workflow.decisions, "last_seen": workflow.decided},
            workflow.decided,
        )

    def _constraints(
        self, workflow: _Workflow, event: Event, context: Mapping[str, Any], keep: Keep
    ) -> Iterator[Finding]:
        said = context.get("constraints")
        mark = 0
        if type(said) is list and said and all(type(item) is str for item in said):
            mark = hash(tuple(said))
            if mark == workflow.as_before:
                return
        listed = [text_of(item) for item in said][:_ITEMS] if type(said) is list else []
        if keep == "always" and not listed:
            yield self._found(
                event,
                f"{_who(event.source)} handed no constraints to {_who(event.target)}",
                "/context/constraints",
                {"lost": "constraints", "is": "empty" if said is not None else "absent"},
                None,
            )
        known = workflow.constraints
        workflow.as_before = 0
        due = [each for each in known.values() if workflow.hops - each.hop >= _LATER and each.source != event.target]
        literal = set(map(_wording, listed))
        if keep != "never":
            for each in due:
                if not literal.isdisjoint(each.texts):
                    each.told = False
            due = [each for each in due if literal.isdisjoint(each.texts)]
        if due and keep != "never":
            here = _coded(words(text_of(event.payload)))
            for each in due:
                if len(each.words & here) >= _STILL * len(each.words):
                    each.told = False
                elif not each.told:
                    each.told = True
                    hops = workflow.hops - each.hop
                    yield self._found(
                        event,
                        f"a constraint that {_who(each.source)} set is missing {hops} hops later, in what "
                        f"{_who(event.source)} handed to {_who(event.target)}",
                        "/context/constraints/*",
                        {"lost": "constraint", "index": each.index, "set_in": each.event, "hops": hops}
                        | {"words": len(each.words)},
                        each.event,
                        str(each.index),
                    )
        if mark and len(listed) < _ITEMS and all(not literal.isdisjoint(each.texts) for each in known.values()):
            workflow.as_before = mark
        texts: set[int] = set().union(*(each.texts for each in known.values()))
        for index, text in enumerate(listed):
            wording = _wording(text)
            if wording in texts:
                continue
            coded = frozenset(sorted(_coded(words(text)))[:_WORDS])
            code = hash(coded)
            if not coded:
                continue
            same = known.get(code) or _near(coded, known.values())
            if same is not None:
                if len(same.texts) < _WORDINGS:
                    same.texts.add(wording)
            elif len(known) < _ITEMS:
                known[code] = _Constraint(event.id, workflow.hops, event.source, index, coded, {wording})

    def _artifacts(
        self, workflow: _Workflow, event: Event, payload: Mapping[str, Any], keep: Keep
    ) -> Iterator[Finding]:
        output = payload.get("output")
        produced = output.get("artifacts") if type(output) is dict else None
        produced = produced[:_ITEMS] if type(produced) is list else []
        listed = [("/output/artifacts/*", index, artifact) for index, artifact in enumerate(produced)]
        mark = hash(tuple([_mark(artifact) for artifact in produced]))
        wanted = list(_wanted(payload))
        if mark == workflow.named and not wanted and not workflow.written and keep != "always":
            return
        workflow.named = mark
        if keep == "always" or (keep == "once_said" and workflow.written):
            yield from self._unwritten(event, listed, workflow.written, "wrote")
        own = {name: event.id for artifact in produced if (name := _reference(artifact, inside=True)) is not None}
        if wanted and (keep == "always" or (keep == "once_said" and (workflow.written or workflow.listed))):
            yield from self._unwritten(event, wanted, {**workflow.written, **workflow.listed, **own}, "wrote or listed")
        for name in own:
            if name not in workflow.listed:
                _keep(workflow.listed, name, event.id)

    def _unwritten(
        self, event: Event, artifacts: Iterable[tuple[str, int | None, Any]], known: Mapping[str, Any], did: str
    ) -> Iterator[Finding]:
        for path, index, artifact in artifacts:
            name = _reference(artifact)
            if name is None or _was_written(name, known):
                continue
            yield self._found(
                event,
                f"{_who(event.source)} pointed {_who(event.target)} to an artifact that nobody {did}: {name}",
                path,
                {"lost": "artifact", "name": name, "index": index, "known": len(known)},
                None,
                name,
            )

    def _found(
        self, event: Event, message: str, path: str, evidence: dict[str, Any], since: str | None, *same: str
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


def _keep(known: dict[str, Any], name: str, value: Any) -> None:
    known.pop(name, None)
    known[name] = value
    if len(known) > _ITEMS:
        del known[next(iter(known))]


def _coded(spoken: Iterable[bytes]) -> frozenset[int]:
    return frozenset(map(crc32, spoken))


def _wording(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _near(coded: frozenset[int], known: Iterable[_Constraint]) -> _Constraint | None:
    """The constraint that is known and is this one, said with other words around it."""
    near = (each for each in known if len(coded & each.words) >= _STILL * max(len(coded), len(each.words)))
    return next(near, None)


def _name(name: str) -> str:
    return name[:512].partition("?")[0].rstrip("/").lower()


def _wanted(payload: Mapping[str, Any]) -> Iterator[tuple[str, int | None, Any]]:
    """What stands under keys that speak of artifacts, beside `output.artifacts`: path, index in a list, artifact."""
    for start in ("", "/context", "/input", "/inputs"):
        part = payload if not start else payload.get(start[1:])
        if type(part) is not dict:
            continue
        for key, value in part.items():
            if "artifact" not in key.lower():
                continue
            if type(value) is not list:
                yield f"{start}/{key}", None, value
                continue
            for index, artifact in enumerate(value[:_ITEMS]):
                yield f"{start}/{key}/*", index, artifact


def _mark(artifact: Any) -> str | None:
    """Something that is equal for artifacts that are called the same."""
    if type(artifact) is dict:
        for key in _REFERENCES:
            if type(found := artifact.get(key)) is str:
                return found
        return None
    return artifact if type(artifact) is str else None


_REFERENCES = ("uri", "path", "key", "name", "id", "url")


def _reference(artifact: Any, *, inside: bool = False) -> str | None:
    """What an artifact is called; None where it is on the web, or its content is in the payload (unless `inside`)."""
    if type(artifact) is dict:
        if not inside and any(artifact.get(part) for part in ("content", "data", "text", "parts", "bytes")):
            return None
        for key in _REFERENCES:
            if type(found := artifact.get(key)) is str:
                artifact = found
                break
    if type(artifact) is not str or not artifact or artifact.startswith(("http://", "https://", "data:")):
        return None
    return _name(artifact)


def _was_written(name: str, written: Iterable[str]) -> bool:
    """A key of the same last part: `report.md`, `redis://…/report.md` and `w1:report.md` are one."""
    last = _LAST.split(name)[-1]
    return any(_LAST.split(key)[-1] == last for key in written)


_LAST = re.compile(r"[/:#\\]")
