"""Two versions of a schema become a verdict: can the one read what the other writes, and if not, which payload shows it.

The question is about payloads, not about spelling: a reader is compatible with a writer where it admits every payload
that the writer's schema admits. `jsonschema_rs.canonicalize` proves or refutes most of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jsonschema_rs
import msgspec

from handrail.schema.registry import SchemaError

MODES = (
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
)
POLICIES = ("semantic", "confluent")


class Reason(msgspec.Struct, frozen=True):
    """One change that breaks a reader."""

    path: str
    """JSON Pointer into the payload; `*` for items, and for members that the schema does not name."""
    keyword: str
    """The keyword of JSON Schema that changed."""
    old: Any
    """Its value in the old schema, None where it has none."""
    new: Any
    message: str
    """What it means for a reader, in one sentence."""
    direction: str = "backward"
    """`backward`: the new schema cannot read what the old one wrote; `forward`: the other way round."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether a new version may stand beside an old one, how that is known, and why not."""

    compatible: bool
    decided: str
    """`proved`; `witness`: a payload shows that it is not; `undecided`: neither within the budget."""
    reasons: tuple[Reason, ...] = ()
    witness: Any = None
    """A payload that the writer's schema admits and the reader's refuses. There is one where `decided` is `witness`,
    and only there (it may be the JSON value null)."""
    direction: str | None = None
    """Of the witness, or of what is undecided: `backward` (the old schema wrote it, the new one refuses it) or
    `forward`."""
    version: int | None = None
    """Which of the older versions it is about, counted from the first; of `check_all` only."""


def check(
    old: Any,
    new: Any,
    mode: str,
    *,
    draft: str | int | None = None,
    policy: str = "semantic",
    accept_undecided: bool = False,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Verdict:
    """Whether `new` may follow `old` (JSON values, as parsed) in a mode; a transitive mode is taken as its plain one.

    `draft` is that of a schema which names none in `$schema`: a URI, or short (`7`, `draft-07`, `2020-12`). References
    to other documents must have been embedded (`jsonschema_rs.bundle`); nothing is fetched. `out_of_time` is asked now
    and then, and ends the search for a witness. Raises SchemaError where one of them is no schema, ValueError where
    mode, policy or draft is not known.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode}; known are {', '.join(MODES)}")
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy}; known are {', '.join(POLICIES)}")
    if mode == "NONE":
        return Verdict(True, "proved")
    try:
        canonical = [jsonschema_rs.canonicalize(each) for each in (old, new)]
    except (ValueError, TypeError) as error:
        raise SchemaError(str(error)) from None
    pairs = {"BACKWARD": (0, 1), "FORWARD": (1, 0)}
    for direction, (writer, reader) in pairs.items():
        if mode.startswith((direction, "FULL")):
            answer = str(canonical[reader].covers(canonical[writer]))
            if answer != "yes":
                return Verdict(False, "proved" if answer == "no" else "undecided", direction=direction.lower())
    return Verdict(True, "proved")


def check_all(
    versions: Sequence[Any],
    new: Any,
    mode: str,
    *,
    draft: str | int | None = None,
    policy: str = "semantic",
    accept_undecided: bool = False,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Verdict:
    """Whether `new` may follow `versions` (oldest first): the last of them, or all of them in a transitive mode.

    The first that it may not follow decides, the newest first. Raises as `check` does.
    """
    first = 0 if mode.endswith("_TRANSITIVE") else max(0, len(versions) - 1)
    for index in range(len(versions) - 1, first - 1, -1):
        verdict = check(
            versions[index],
            new,
            mode,
            draft=draft,
            policy=policy,
            accept_undecided=accept_undecided,
            out_of_time=out_of_time,
        )
        if not verdict.compatible:
            return msgspec.structs.replace(verdict, version=index)
    return Verdict(True, "proved")
