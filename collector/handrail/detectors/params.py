"""What detectors are told: their rule, and what a rule of each kind may say under `with:`.

They stand in one module because msgspec reads their annotations when they are defined, which a compiled module does not
keep; the detectors themselves are compiled.
"""

from typing import Annotated, Final, Literal

import msgspec

from handrail.event import Severity
from handrail.schema.registry import MAX_VIOLATIONS

Action = Literal["observe", "enforce"]
Scope = Literal["hop", "workflow", "store"]

Count = Annotated[int, msgspec.Meta(ge=1)]
LIVE: Final = 2_000
"""Workflows that go through one sidecar at a time, where a rule remembers something of each: ten new ones a second that
live for three minutes, and 2 MB for each rule. Those that were quiet for longest are forgotten first."""
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Keep = Literal["always", "once_said", "never"]
Whole = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Some = Annotated[float, msgspec.Meta(gt=0, le=1)]
Hops = Annotated[int, msgspec.Meta(ge=2)]
Grace = Annotated[float, msgspec.Meta(ge=0)]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What the detector of a rule knows about its rule."""

    id: str
    """`kind` or `kind.suffix`; metric label, runbook anchor."""
    kind: str
    """A key of `rules.KINDS`; one of the finding kinds."""
    severity: Severity = "warning"
    scope: Scope = "hop"
    action: Action = "observe"


class ViolationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    violations: Count = MAX_VIOLATIONS
    """How many places one finding lists."""


class UnknownParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    of: Literal["version", "subject", "type"] = "version"
    """`version`: the subject is registered, this version of it is not. `subject`: the subject is not registered.
    `type`: the traffic's own schema says nothing of what is handed over."""
    again_seconds: Seconds = 3600.0
    """How long one subject and version of one workflow stays quiet after a finding."""
    even_if_empty: bool = False
    """Speak although the registry holds nothing at all."""
    keys: Count = 10_000


class MismatchParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    again_seconds: Seconds = 3600.0
    """How long one pair of versions of one workflow, sender and receiver stays quiet after a finding."""
    undecided: bool = True
    """Speak too where it was neither proved nor refuted that the receiver can read what the sender may write."""
    keys: Count = 10_000


class DriftParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    of: Literal["payloads", "forms"] = "payloads"
    """`forms`: the schemas that traffic itself carries, see `Forms`; all but `keys` is for payloads."""
    learn: Count = 20
    """Payloads that make a past where no schema says what is new."""
    window: Annotated[int, msgspec.Meta(ge=10)] = 50
    """Values that are compared with those before them."""
    false_alarm: Annotated[float, msgspec.Meta(gt=0, lt=0.5)] = 1e-6
    """Chance of a wrong finding, for each test that is made."""
    repeats: Count = 3
    """How often one change of one place is told: what comes and goes is not told for ever."""
    replies: bool = True
    """Whether what is answered counts as a payload too."""
    version_from: tuple[str, ...] = ("metadata.agent_version", "metadata.image", "metadata.model")
    """Where a payload says which version of an agent wrote it, where the event does not."""
    keys: Count = 1_000
    """Senders and subjects that are remembered; one takes about 30 KB for payloads of 4 KB."""


class DuplicateParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    within_seconds: Seconds = 43_200.0
    """Two outputs further apart than this are two tasks that share a name: what runs once a day is no retry."""
    lateness_seconds: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    """How late an observation of a store or a bus may arrive."""
    similarity: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """Texts of a workflow whose MinHashes are at least so similar (Jaccard, words in threes) are duplicates too. Needs
    `handrail[similarity]`, and the payloads. None: nothing is compared but digests."""
    keys: Count = 5_000
    """Tasks, and what they left in stores. One takes 0.5 KB; 10 KB more for each workflow whose texts are compared."""


class EdgeBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that a handoff between these agents may take; `*` for any run of characters."""

    seconds: Seconds | None = None
    source: str = "*"
    target: str = "*"
    at_least_seconds: Seconds | None = None
    """What it takes at the very least: a handoff that has less left is told before it begins. Learned where absent."""


class AgentBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that an agent may take in one workflow, all handoffs to it together."""

    agent: str
    seconds: Seconds


class BudgetParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seconds: Seconds | None = None
    """What any handoff may take; none where absent."""
    edges: tuple[EdgeBudget, ...] = ()
    """The first edge that matches overrides `seconds`."""
    agents: tuple[AgentBudget, ...] = ()
    """The first that matches the target counts. Handoffs that are under way at the same time are not added up."""
    workflow_seconds: Seconds | None = None
    """What a workflow may take, from the first handoff of it that was seen; one finding for each workflow."""
    declared: bool = True
    """Hold senders to the deadline that they declare in `handrail-deadline`; of two deadlines the earlier counts."""
    inherited: bool = True
    """Hold an agent's own calls to the deadline of the call that it serves in the same workflow."""
    learn: Count | None = 20
    """Handoffs of an edge that must have completed before the shortest of them counts as what it takes at the least;
    none: only what is declared counts."""
    keys: Count = 100_000


class SilentParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    silence_seconds: Seconds = 300.0
    """A target that neither answered nor did anything else in the workflow for so long never spoke."""
    failures: Count = 3
    """So many calls of one target in a row that it did not take are told, once until it answers again."""
    within_seconds: Seconds = 600.0
    """Two failures further apart than this are not one outage."""
    keys: Count = 100_000


class DeadlockParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    confirm_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """How long a deadlock must stand: a ring that resolves itself within it (an agent that answers while it waits, news
    of an end that is on its way) is none. 0 reports at the next instant."""
    unlabelled_confirm_seconds: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    """The same where neither workflow nor task says which calls belong together."""
    lock_retry_seconds: Seconds = 10.0
    """Who was refused a lock and did not try again for this long does not wait for it."""
    reentrant: tuple[str, ...] = ()
    """Agents that answer while they wait, `*` for any run of characters: their open calls hold up nobody."""
    streams: tuple[str, ...] = ("GET *", "HEAD *", "SubscribeToTask", "tasks/resubscribe", "*/subscribe")
    """Operations that stay open without their caller waiting for them."""
    queues: Count = 10_000
    """Queues, streams and locks of which writers and holders are remembered."""
    keys: Count = 100_000
    """Live waits."""


class CycleParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    undeclared: bool = True
    """Tell of handoffs along an edge that nobody declared, also where it closes no cycle."""
    except_protocols: tuple[str, ...] = ("openai", "anthropic", "gemini", "mcp", "llm")
    """Calls of models and tools, which plans of agents leave out: told only where the plan names it."""
    edges: Count = 100_000
    """A plan with more is not held against traffic."""
    keys: Count = 10_000
    """Workflows of which a plan, or what was told, is remembered."""


class EdgeRounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit of its own for the rounds that take this way; `*` for any run of characters, the first match wins."""

    source: str = "*"
    target: str = "*"
    rounds: Count | None = None
    """As in the rule."""
    at_most: Count | None = None
    """Rounds that may be gone at all, with progress or without."""


class LoopParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    setting: Literal["precise", "sensitive"] = "precise"
    """What the keys down to `replies` are where they are absent, see SETTINGS."""
    rounds: Count | None = None
    """So many rounds of the same agents in a row without progress are a loop."""
    first_rounds: Whole | None = None
    """So many rounds of a workflow are not judged."""
    judge: Literal["messages", "answers"] | None = None
    """`messages`: a round is progress if any message in it says something new. `answers`: only what came back to the
    agent where the round closed counts; that one may put its question in new words as often as it likes."""
    new_phrases: Whole | None = None
    """Something new: at least so many runs of three words that were not there before in the workflow. 0: texts are not
    compared, and everything is new that does not repeat an earlier message word for word."""
    new_share: Share | None = None
    """Or so large a part of the phrases; 1 for never."""
    whole_below: Whole | None = None
    """A message of fewer phrases is new unless it repeats an earlier one word for word."""
    new_places: bool | None = None
    """What is new must also name a URL, a file or an artifact that nobody named before."""
    unseen_rounds: Count | None = None
    """So many rounds in a row whose content could not be seen at all are a loop."""
    replies: bool | None = None
    """A reply on the connection of a call hands the work back, where the called agent sends no message of its own."""
    edges: tuple[EdgeRounds, ...] = ()
    keys: Count = LIVE
    """Workflows. One of eight hops takes 1 KB, and up to 60 KB when it is long."""
    texts: Count = 500
    """Workflows whose phrases are remembered, those that went round last; 64 KB each."""


class AgentModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model an agent runs on, where nothing says it; `*` for any run of characters."""

    agent: str
    model: str


class GrowthParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    within_hops: Count = 3
    """Found when the window is met in so many hops, if they go on to grow as they did."""
    over_hops: Hops = 3
    """Growth is the mean over so many hops in a row, each larger than the one before."""
    windows: dict[str, Count] = {}
    """Model → tokens, before the table that is shipped; `*` for any run of characters."""
    models: tuple[AgentModel, ...] = ()
    """First match wins; else the model that the agent named as its own, else the one that the message names."""
    window: Count | None = None
    """Tokens, for a model that no table knows or nobody names; such hops are not judged where absent."""
    keys: Count = LIVE
    """Workflows. One of eight hops takes 1 KB."""


class EdgeShare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be repeated on this way; `*` for any run of characters, the first match wins."""

    source: str = "*"
    target: str = "*"
    share: Some = 1.0
    """1: everything."""


class ForwardedParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    share: Some = 0.6
    """So much of an earlier payload's phrases, found again in this one, is most of it."""
    at_least_words: Count = 40
    """Shorter payloads are cheap to pass on, and are not compared."""
    hops: Count = 16
    """Earlier hops that a payload is compared with."""
    edges: tuple[EdgeShare, ...] = ()
    per_second: Count = 50
    """Payloads that are compared in a second, 1.5% of a core at 300 µs each. Those past it are not judged: neither as
    what passes on nor as what was passed on."""
    keys: Count = 1_000
    """Workflows; one takes 1 KB for each hop."""


class EdgeContract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must survive on this way; `*` for any run of characters, the first match wins. What is not said is as in
    the rule."""

    source: str = "*"
    target: str = "*"
    decisions: Keep | None = None
    constraints: Keep | None = None
    artifacts: Keep | None = None


class ForgottenParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    decisions: Keep = "once_said"
    """`always`: `context.decisions_made` must be there and not empty. `once_said`: if it was in an earlier hop."""
    constraints: Keep = "once_said"
    """`once_said`: each of `context.constraints` must be there two hops later. `always`: some must be, too."""
    artifacts: Keep = "once_said"
    """`once_said`: what `output.artifacts` names must have been written, if writes of this workflow are seen at all;
    what is named under another key with `artifact` in it must have been written or be in some `output.artifacts`.
    `always`: whether any are seen or not."""
    edges: tuple[EdgeContract, ...] = ()
    keys: Count = LIVE
    """Workflows. One of eight hops and two constraints takes 1 KB."""


class StaleReadParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grace_seconds: Grace = 0.02
    """A write that was acknowledged so shortly before the read was asked for does not count against it."""
    lateness_seconds: Grace = 2.0
    """How late an observation may arrive."""
    acts_seconds: Grace = 3.0
    """How long a finding waits for what the reader does next, so as to say it. A reader that acts ends the wait; one
    that acts later, within an hour, gives a second finding."""
    refuse: Literal["epoch", "stale"] = "epoch"
    """What is refused with `action: enforce`: reads below the epoch, or every stale one."""
    keys: Count = 10_000
    """Keys of stores; one takes up to 4 KB."""


class LostUpdateParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    within_seconds: Grace = 3600.0
    """A base that was read longer ago than this is not what a write was made from."""
    lateness_seconds: Grace = 2.0
    """How late an observation may arrive."""
    keys: Count = 10_000
    """Keys of stores; one takes 1 KB, more with many writers."""


class TornReadParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    within_seconds: Grace = 5.0
    """Reads of one reader further apart than this are two looks at the task. A key read again begins a new look."""
    together_seconds: Grace = 2.0
    """Writes of one writer no further apart than this replace a task's keys together."""
    lateness_seconds: Grace = 2.0
    """How late an observation may arrive."""
    keys: Count = 10_000
    """Tasks of stores, and readers of them; one takes 1 KB and more with the number of its keys."""


class HandoffPartialParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seconds: Seconds = 30.0
    """From the acknowledgement of the write to the event that announces it."""
    until_read: bool = True
    """Whether another agent's reading the output counts as having been told of it, as it does without a bus."""
    retry_within_seconds: Seconds = 86_400.0
    """A task handed out again later than this is a new one of the same name."""
    lateness_seconds: Grace = 2.0
    """How late an observation may arrive."""
    keys: Count = 10_000
    """Tasks; one takes 1.5 KB."""


class HandoffEarlyParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    within_seconds: Seconds = 30.0
    """A write that is acknowledged later than this after an event is not what the event announced."""
    grace_seconds: Grace = 0.002
    """An event that is no more than this ahead is told of by a client that sent both in one go."""
    lateness_seconds: Grace = 2.0
    """How late an observation may arrive."""
    keys: Count = 10_000
    """Tasks, and streams of events; one takes 1 KB."""
