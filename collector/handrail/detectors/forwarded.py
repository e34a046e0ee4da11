"""A payload that repeats most of what another agent had handed on becomes a finding: a summary would have done."""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding
from handrail.detectors.params import ForwardedParams
from handrail.detectors.similarity import phrases_of
from handrail.event import Event, Finding
from handrail.schema.registry import Matcher, Registry, matcher

_ENOUGH: Final = 24
"""Fingerprints that two payloads must be compared by; fewer say little."""


class _Hop:
    __slots__ = ("digest", "id", "mask", "prints", "source", "target", "words")

    def __init__(
        self, id: str, source: str, target: str, digest: str | None, mask: int, prints: Any, words: int
    ) -> None:
        self.id = id
        self.source = source
        self.target = target
        self.digest = digest
        self.mask = mask
        """Fingerprints are those phrases whose hash has none of these bits."""
        self.prints = prints
        """array("I"), which cannot be named as a type in Python 3.11."""
        self.words = words


class ContextForwarded:
    """What somebody else had said is passed on whole.

    Method: every run of three words is hashed (w-shingling, Broder 1997), those with k low bits zero are kept, k as
    small as keeps SAMPLE (modulo sampling: the same phrase is kept in every payload, so that containment can be
    estimated; ± 8 % at 95 %). Order, layout, case, punctuation and the keys of JSON do not matter. Compared is the part
    of the earlier payload that is in the later one, so that what is added does not hide it. What an agent says twice
    itself, and an answer to the one that said it, are not forwarded. What is past
    `per_second` is skipped and not judged.
    """

    kind: ClassVar[str] = "context.forwarded"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first"})
    kinds: ClassVar[frozenset[str]] = frozenset({"handoff"})
    Params: ClassVar[type[msgspec.Struct]] = ForwardedParams

    def __init__(self, rule: Rule, params: ForwardedParams, registry: Registry) -> None:
        self._rule, self._params = rule, params
        self._edges: tuple[tuple[Matcher, Matcher, float], ...] = tuple(
            (matcher(edge.source), matcher(edge.target), edge.share) for edge in params.edges
        )
        self._workflows: OrderedDict[str, list[_Hop]] = OrderedDict()
        self._second = 0.0
        self._compared = 0
        self._per_second: int = params.per_second
        self._hops: int = params.hops
        self._least: int = params.at_least_words

    def observe(self, event: Event) -> Iterable[Finding]:
        key, source, target, payload = event.workflow, event.source, event.target, event.payload
        if key is None or payload is None or source is None or target is None or event.kind != "handoff":
            return NOTHING
        size = event.payload_bytes
        if size is not None and size < 2 * self._least:
            return NOTHING
        hops, digest = self._workflows.get(key), event.digest
        if hops is not None:
            for hop in hops:
                if hop.id == event.id:
                    return NOTHING
                if digest is not None and hop.digest == digest and hop.source == source and hop.target == target:
                    return NOTHING
        at = event.at
        if at >= self._second + 1 or at < self._second:
            self._second, self._compared = at, 0
        self._compared += 1
        if self._compared > self._per_second:
            return NOTHING
        text = phrases_of(payload, digest)
        count, mask, prints = len(text.codes), text.mask, text.sample
        if count < self._least - 2:
            return NOTHING
        found = NOTHING if hops is None else self._judge(event, source, target, hops, mask, prints)
        if hops is None:
            hops = self._workflows[key] = []
            if len(self._workflows) > self._params.keys:
                self._workflows.popitem(last=False)
        hops.append(_Hop(event.id, source, target, digest, mask, array("I", prints), count + 2))
        if len(hops) > self._hops:
            del hops[0]
        return found

    def _judge(
        self, event: Event, source: str, target: str, hops: list[_Hop], mask: int, prints: frozenset[int]
    ) -> tuple[Finding, ...]:
        most = 0.0
        worst: _Hop | None = None
        for hop in hops:
            if hop.source == source or hop.source == target:
                continue
            coarse = mask | hop.mask
            earlier = hop.prints if coarse == hop.mask else [code for code in hop.prints if not code & coarse]
            if len(earlier) < _ENOUGH:
                continue
            share = len(prints.intersection(earlier)) / len(earlier)
            if share > most:
                most, worst = share, hop
        if worst is None or most < self._allowed(source, target):
            return NOTHING
        return (
            finding(
                self._rule,
                event,
                f"{source} passed on to {target} {most:.0%} of what {worst.source} had handed to {worst.target} "
                f"({worst.words:,} words), in place of a summary and a pointer to it",
                evidence={
                    "repeats": worst.id,
                    "of": [worst.source, worst.target],
                    "share": round(most, 3),
                    "words": worst.words,
                    "fingerprints": len(worst.prints),
                },
                side="sender",
                events=(worst.id, event.id),
            ),
        )

    def _allowed(self, source: str, target: str) -> float:
        for matches_source, matches_target, share in self._edges:
            if matches_source(source) and matches_target(target):
                return share if share < 1 else 2.0
        return self._params.share

    def advance(self, now: float) -> Iterable[Finding]:
        return NOTHING

    def __len__(self) -> int:
        return len(self._workflows)
