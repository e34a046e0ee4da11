"""A sender that writes one version and a receiver that reads another becomes a finding, where the two do not agree.

What the receiver reads is what it says (`handrail-accept: subject@version, …` on its replies), else what the
configuration says (`schemas.edges[].reads`), else the version that is pinned there. Whether a reader of the one can
read all that a writer of the other may write is proved by `schema.compatibility`, once for each pair of versions.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

import msgspec

from handrail.detectors import NOTHING, Rule, Sight, finding
from handrail.detectors.params import MismatchParams
from handrail.event import Event, Finding, FindingSide
from handrail.schema.compatibility import Verdict, check
from handrail.schema.registry import Registry, Schema, SchemaError, version_order

_STEPS: Final = 50
"""How often the search for a witness may ask whether to go on: it runs where traffic is looked at."""
_KINDS: Final = frozenset({"handoff", "write", "publish"})


class SchemaMismatch:
    """The version that the sender wrote with is not one that the receiver can read.

    The side that is behind must move: the sender where it wrote with an older version than its receiver reads, else
    the receiver. A payload may still get through: `fits` says whether this one is what the receiver reads.
    """

    kind: ClassVar[str] = "schema.mismatch"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first", "final"})
    kinds: ClassVar[frozenset[str]] = _KINDS
    Params: ClassVar[type[msgspec.Struct]] = MismatchParams

    def __init__(self, rule: Rule, params: MismatchParams, registry: Registry) -> None:
        self._rule, self._params, self._registry = rule, params, registry
        self._said: OrderedDict[tuple[str | None, ...], float] = OrderedDict()
        self._verdicts: OrderedDict[tuple[str, str], Verdict | None] = OrderedDict()

    def observe(self, event: Event) -> Iterable[Finding]:
        subject, writes = event.subject, event.version
        if subject is None or writes is None or event.kind not in _KINDS:
            return NOTHING
        versions: tuple[str, ...]
        reads = event.reads
        if reads is not None:
            versions, declared_by = versions_of(reads, subject), "handrail-accept"
        else:
            configured, key = self._registry.reads(event)
            if configured is None or configured == writes:
                return NOTHING
            versions, declared_by = (configured,), f"schemas.edges.{key}"
        if not versions or writes in versions:
            return NOTHING
        written = self._registry.schema(subject, writes)
        if written is None:
            return NOTHING  # schema.unknown's
        readers = [reader for each in versions if (reader := self._registry.schema(subject, each)) is not None]
        if not readers:
            return NOTHING
        verdicts = [(reader, self._verdict(written, reader)) for reader in readers]
        refused = [(reader, verdict) for reader, verdict in verdicts if verdict is not None and not verdict.compatible]
        if len(refused) < len(verdicts):
            return NOTHING
        reader, verdict = max(refused, key=lambda each: version_order(each[0].version))
        if verdict.decided == "undecided" and not self._params.undecided:
            return NOTHING
        said_of = (event.workflow, event.source, event.target, subject, writes, reader.version)
        said = self._said.get(said_of)
        if said is not None and abs(event.at - said) < self._params.again_seconds:
            return NOTHING
        self._said[said_of] = event.at
        self._said.move_to_end(said_of)
        if len(self._said) > self._params.keys:
            self._said.popitem(last=False)
        return (self._found(event, reader, verdict, declared_by),)

    def _verdict(self, written: Schema, reader: Schema) -> Verdict | None:
        """Of a pair of schemas; None where they cannot be compared."""
        key = (written.digest, reader.digest)
        if key in self._verdicts:
            return self._verdicts[key]
        try:
            verdict = check(written.whole, reader.whole, "BACKWARD", out_of_time=_limited(_STEPS))
        except SchemaError:
            verdict = None
        self._verdicts[key] = verdict
        if len(self._verdicts) > 1_000:
            self._verdicts.popitem(last=False)
        return verdict

    def _found(self, event: Event, reader: Schema, verdict: Verdict, declared_by: str) -> Finding:
        is_sender_behind = version_order(event.version or "") < version_order(reader.version)
        side: FindingSide = "sender" if is_sender_behind else "receiver"
        sender, receiver = event.source or "an unknown agent", event.target or "an unknown agent"
        reason = verdict.reasons[0] if verdict.reasons else None
        fits = None if event.payload is None else reader.is_valid(event.payload)
        how = (
            "may not be able to read it"
            if verdict.decided == "undecided"
            else "cannot read all of it"
            if fits
            else "cannot read it"
        )
        mover, to = (sender, reader.version) if is_sender_behind else (receiver, event.version)
        at = "" if reason is None else f" ({reason.path or '/'}: {reason.message})"
        evidence: dict[str, Any] = {
            "path": "" if reason is None else reason.path,
            "writes": event.version,
            "reads": reader.version,
            "declared_by": declared_by,
            "decided": verdict.decided,
            "fits": fits,
            "moves": side,
            "reasons": [msgspec.to_builtins(each) for each in verdict.reasons[:10]],
        }
        if verdict.decided == "witness":
            evidence["witness"] = verdict.witness
        return finding(
            self._rule,
            event,
            f"{sender} writes {event.subject}@{event.version} and {receiver} reads {event.subject}@{reader.version}, "
            f"which {how}{at}; {mover} must move to version {to}",
            evidence=evidence,
            side=side,
            same=(event.version, reader.version),
        )

    def advance(self, now: float) -> Iterable[Finding]:
        """Forget what may be said again anyway."""
        said, oldest = self._said, now - self._params.again_seconds
        while said:
            key = next(iter(said))
            if said[key] > oldest:
                break
            del said[key]
        return NOTHING

    def __len__(self) -> int:
        return len(self._said)


def versions_of(accepts: str, subject: str) -> tuple[str, ...]:
    """`subject@version, subject@version, version` to the versions of one subject."""
    found = []
    for part in accepts.split(","):
        named, _, version = part.strip().rpartition("@")
        if version and named in ("", subject):
            found.append(version)
    return tuple(found)


def _limited(steps: int) -> Callable[[], bool]:
    """True from the n-th time on that it is asked: the end of a search, without a clock."""
    asked = iter(range(steps))
    return lambda: next(asked, None) is None
