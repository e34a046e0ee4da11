"""Payloads whose shape is no longer what their schema or their sender's own past says become one finding a change.

A payload that shows nothing new is recognised by the closed form of all that its sender has sent (`Profile.closed`),
compiled: a few microseconds. One that does not fit is walked beside the profile and the registered schema; what is new
is reported once and belongs to the past from then on. What cannot be seen in one payload (a field that stopped coming,
rates, sizes and numbers that moved) is counted at the places where it can happen.

Statistics, at the probability `false_alarm` (1e-6) under the assumption that payloads are independent:

- A field that its schema names, that was in all payloads so far, at least `_HABIT`, and is not in this one, is told at
  once: to leave out what may be left out, for the first time, is a change of habit. No test stands behind it; a field
  that is in 98% of the payloads is told so, once, with two chances in three, and one that is in 80% with one in 85.
- Any other field stopped coming where it was absent k times in a row, k at least 3, and the chance of that is at most
  `false_alarm`: of one that was in all n payloads before (1/(n+2))^k, so that of 100 payloads the third absence is
  enough; of one that was missing in some, by its rate with the doubt about it (beta-binomial with a flat prior), so
  that of a rate of one half about the twenty-fifth is.
- Presence rates, numbers, lengths of arrays and sizes of payloads: the two-sample Kolmogorov-Smirnov test of each
  window of 50 against the windows before it, binned to 9% of a value: D > sqrt(-ln(α/2)/2)·sqrt((n+m)/nm) (Massey
  1951). Bins and ties make it more careful, never less. Numbers that mostly rise (counters, clocks) are left out, and
  so are moves of less than about a third of a quartile.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, Literal

import jsonschema_rs
import msgspec
import orjson

from handrail.detectors import NOTHING, Rule, Sight, finding, instant
from handrail.detectors.forms import Forms
from handrail.detectors.params import DriftParams
from handrail.event import Event, Finding
from handrail.schema.declared import Declarations, Declared, has_format
from handrail.schema.inference import MAX_DEPTH, Node, Profile, format_of, is_id, is_word
from handrail.schema.registry import Registry, type_name

Change = Literal["added", "removed", "type", "nullability", "enumeration", "format", "presence", "distribution", "size"]

_KINDS: Final = frozenset({"handoff", "write", "publish"})
_LANDED: Final = frozenset({"completed", "accepted"})
_MAX_CHANGES: Final = 20
"""Changes told of one payload; one that shares nothing with the past is not a hundred changes."""
_MAX_MEASURES: Final = 64
_YOUNG: Final = 1_000
_STEPS: Final = 3
"""The first payloads are all measured; then every n-th, so that each costs about as many steps into it."""
_HABIT: Final = 20
"""Payloads after which doing what the schema allows for the first time is a change."""
_WALK_ALL: Final = 64
_WALK_YOUNG, _WALK_OLD = (31, 255), (511, 8191)
"""The first payloads are all counted; then every 32nd, and of one that is not young every 512th; each that does not
fit is. Of large payloads fewer: one for half as many, and later eight times as many payloads as each has values."""
_KEYS_AT_ONCE = 8
"""As many new names in one object, or told of one object, are keys of a map."""
_LEAST_SHIFT = 3
"""Bins that a quartile must have moved, about a third of its value: what is certain need not be worth telling."""
_PAST: Final = 500
"""Values that a measurement's past holds at most; beyond, it is halved, so that what is long ago weighs less."""


Steps = tuple[str | None, ...]
"""A place in a payload: names, and None for the items of an array."""


class _Change:
    """One thing that is new. Not a Struct, so that this module can be compiled."""

    __slots__ = ("against", "change", "new", "old", "path", "says")

    def __init__(
        self, path: str, change: Change, old: Any, new: Any, against: Literal["schema", "past"], says: str
    ) -> None:
        self.path, self.change, self.old, self.new, self.against, self.says = path, change, old, new, against, says


class Measure:
    """Something counted at one place over windows: how often a field is there, or how large a number is."""

    __slots__ = (
        "_falls",
        "_last",
        "_last_bin",
        "_rises",
        "_window",
        "absent",
        "bins",
        "filled",
        "holder",
        "in_array",
        "kind",
        "name",
        "now",
        "past",
        "path",
        "steps",
        "told",
    )

    def __init__(self, kind: Literal["presence", "number", "length", "size"], steps: Steps) -> None:
        self.kind, self.steps = kind, steps
        self.path = _path(steps)
        self.holder, self.name = steps[:-1], steps[-1] if steps else None
        self.in_array = None in steps
        self.bins: dict[int, int] = {}
        self.past = 0
        self.absent = 0
        """Payloads in a row without it; of presence only."""
        self.told = False
        """Whether these absences were told when they began."""
        self.now: dict[int, int] = {}
        """The last window that differed."""
        self._window: dict[int, int] = {}
        self.filled = 0
        self._rises = self._falls = 0
        self._last: Any = None
        self._last_bin = 0

    def remember(self, value: int, count: int) -> None:
        """Values of before measuring began."""
        if count > 0:
            self.bins[value] = self.bins.get(value, 0) + count
            self.past += count

    def add(self, value: Any) -> None:
        """A number, whatever its length: declared as a float it would be made one where this is compiled."""
        last = self._last
        if last is None or value != last:  # most are as the one before; a bin costs 1,400 instructions
            if last is not None:
                if value > last:
                    self._rises += 1
                else:
                    self._falls += 1
            self._last = value
            self._last_bin = bin_of(value)
        key = self._last_bin
        self._window[key] = self._window.get(key, 0) + 1
        self.filled += 1

    def mark(self, present: bool) -> None:
        self._window[int(present)] = self._window.get(int(present), 0) + 1
        self.filled += 1
        self.absent = 0 if present else self.absent + 1
        self.told = self.told and not present

    def is_gone(self, false_alarm: float) -> bool:
        """Whether this absence is the one that says: it stopped coming."""
        absent = self.absent
        # What came before this run of absences, of the window too.
        past = self.past + self.filled - absent
        missing = max(0, self.bins.get(0, 0) + self._window.get(0, 0) - absent)
        if absent < 3 or past < 5 or missing >= past:
            return False
        if not missing:
            return math.log(past + 2) * absent >= -math.log(false_alarm)
        chance = 1.0
        for step in range(min(absent, 2_000)):
            chance *= (missing + 1 + step) / (past + 2 + step)
        return chance <= false_alarm

    def compare(self, window: int, false_alarm: float) -> "tuple[float, float, dict[int, int]] | None":
        """At the end of a window: the distance, the limit that it exceeds, and the bins before; None where all is well.

        The window belongs to the past afterwards. Where it differs, it is kept as `now`, and the next is a new past.
        """
        if self.filled < window:
            return None
        now, self._window, filled, self.filled = self._window, {}, self.filled, 0
        moves = self._rises + self._falls
        is_counter = self.kind == "number" and moves >= 10 and self._rises > 0.8 * moves
        self._rises = self._falls = 0
        past, count = self.bins, self.past
        if count >= window // 2 and not is_counter:
            distance, limit = ks_distance(past, now), ks_limit(count, filled, false_alarm)
            if distance > limit and (self.kind == "presence" or _shift(past, now) >= _LEAST_SHIFT):
                self.bins, self.past, self.now = {}, 0, now  # half of this window may still be as before
                return distance, limit, past
        for key, number in now.items():
            past[key] = past.get(key, 0) + number
        self.past = count + filled
        if self.past > _PAST:
            self.bins = {key: (number + 1) // 2 for key, number in past.items()}
            self.past = sum(self.bins.values())
        return None

    def forget(self) -> None:
        """What was before is no measure any more."""
        self.bins, self.past, self._window, self.filled = {}, 0, {}, 0


def bin_of(value: Any) -> int:
    """A number to one of eight bins for each doubling, in the order of the numbers; zero is a bin of its own."""
    if value == 0 or value != value:
        return 0
    mantissa, exponent = math.frexp(min(abs(value), 1e300))
    key = (exponent + 1100) * 8 + int((mantissa - 0.5) * 16) + 1
    return key if value > 0 else -key


def value_of(key: int) -> float:
    """The least number of a bin, to show it."""
    if key == 0:
        return 0.0
    exponent, part = divmod(abs(key) - 1, 8)
    value = math.ldexp(0.5 + part / 16, exponent - 1100)
    return float(f"{value if key > 0 else -value:.3g}")


def _shift(one: dict[int, int], two: dict[int, int]) -> int:
    """By how many bins a quartile moved, the one that moved most."""
    pairs = zip(_quartile_bins(one), _quartile_bins(two), strict=True)
    return max(abs(before - after) for before, after in pairs)


def _quartile_bins(bins: dict[int, int]) -> tuple[int, int, int]:
    found: list[int] = []
    total, below = sum(bins.values()), 0
    for key in sorted(bins):
        below += bins[key]
        while len(found) < 3 and 4 * below >= (len(found) + 1) * total:
            found.append(key)
    return found[0], found[1], found[2]


def ks_distance(one: dict[int, int], two: dict[int, int]) -> float:
    """The greatest distance of two empirical distribution functions, over bins."""
    n, m = sum(one.values()), sum(two.values())
    distance = first = second = 0.0
    for key in sorted({*one, *two}):
        first += one.get(key, 0) / n
        second += two.get(key, 0) / m
        distance = max(distance, abs(first - second))
    return distance


def ks_limit(n: int, m: int, false_alarm: float) -> float:
    """The distance that samples of n and m from one distribution exceed with at most this chance (asymptotic)."""
    return math.sqrt(-math.log(false_alarm / 2) / 2) * math.sqrt((n + m) / (n * m))


class Sender:
    """What is known of one direction of one sender and subject."""

    __slots__ = (
        "_gap",
        "_next",
        "agent_version",
        "changes",
        "declared",
        "event",
        "every",
        "fits",
        "is_dirty",
        "is_reply",
        "last_change",
        "measures",
        "messages",
        "old_walk",
        "plan",
        "profile",
        "said",
        "since",
        "size",
        "source",
        "subject",
        "target",
        "used",
        "young_walk",
    )

    def __init__(self, event: Event, *, is_reply: bool) -> None:
        self.source, self.target = (event.target, event.source) if is_reply else (event.source, event.target)
        self.subject, self.is_reply = event.subject, is_reply
        self.event, self.since = event.id, event.at
        self.profile = Profile()
        self.messages = 0
        self.used = 0
        """When it was last judged, counted in what was judged of all senders."""
        self.fits: Any = None
        """Whether a payload shows nothing new; None until there is a past."""
        self.declared: tuple[Any, Declarations] | None = None
        self.measures: dict[tuple[str, Steps], Measure] = {}
        self.plan: tuple[Measure, ...] = ()
        self.every = 1
        self.young_walk, self.old_walk = _WALK_YOUNG[0], _WALK_OLD[0]
        """One less than the number of payloads of which one is counted."""
        self.size = Measure("size", ())
        self.said: dict[tuple[str, str], int] = {}
        """How often each change of each path was told."""
        self.changes: list[dict[str, Any]] = []
        self.agent_version: str | None = None
        self.is_dirty = True
        self.last_change = 0
        self._next, self._gap = 0, 1

    def compile(self, learn: int) -> None:
        """The closed form of the past, and what to measure. Ever more seldom, so that flapping costs little."""
        if self.messages < max(learn, self._next):
            return
        self._gap = min(2 * self._gap, 256)
        self._next = self.messages + self._gap
        self.is_dirty = False
        try:
            self.fits = jsonschema_rs.validator_for(self.profile.closed(), validate_formats=True).is_valid
        except ValueError:  # names that are no text; every payload is walked then
            self.fits = None
        self._measure(self.profile.root, (), 0)
        self.plan = tuple(self.measures.values())
        steps = sum(2 + len(each.steps) + 8 * each.steps.count(None) for each in self.plan)
        self.every = max(8, -(-steps // _STEPS))

    def _measure(self, node: Node, steps: Steps, depth: int) -> None:
        if depth > MAX_DEPTH or len(self.measures) >= _MAX_MEASURES:
            return
        types = node.types.keys() - {"null"}
        if types and types <= {"integer", "number"}:
            self.measure("number", steps)
        if node.objects and not node.is_maplike():
            for name, child in node.names.items():
                if child.count < node.objects:
                    self.presence((*steps, name), child.count, node.objects)
                self._measure(child, (*steps, name), depth + 1)
        if "array" in types and node.items is not None:
            self.measure("length", steps)
            self._measure(node.items, (*steps, None), depth + 1)

    def measure(self, kind: Literal["presence", "number", "length"], steps: Steps) -> Measure | None:
        known = self.measures.get((kind, steps))
        if known is None and len(self.measures) < _MAX_MEASURES:
            known = self.measures[kind, steps] = Measure(kind, steps)
        return known

    def presence(self, steps: Steps, present: int, of: int) -> None:
        """Begin to count how often a field is there; so far it was, in some of the objects that could hold it."""
        if ("presence", steps) not in self.measures and (known := self.measure("presence", steps)) is not None:
            if present == of or None not in steps:  # a share of an array's items is no share of the payloads
                known.remember(1, present)
                known.remember(0, of - present)
            self.plan = tuple(self.measures.values())


class SchemaDrift:
    """The shape of what a sender sends is not what its schema declares, or not what it was.

    One finding for each change of each place. Told of one payload: a name, type, null, word or format that is new, and
    a declared field that is missing for the first time. Told over several: any other that stopped coming, rates,
    numbers and sizes that moved. The past is kept for each sender and subject, over all workflows; what a person
    registers as a new version begins a new past.
    """

    kind: ClassVar[str] = "schema.drift"
    sees: ClassVar[frozenset[Sight]] = frozenset({"first", "final"})
    Params: ClassVar[type[msgspec.Struct]] = DriftParams

    def __init__(self, rule: Rule, params: DriftParams, registry: Registry) -> None:
        self._rule, self._params, self._registry = rule, params, registry
        self._senders: dict[tuple[Any, ...], Sender] = {}
        self._judged = 0
        self._silent: list[tuple[Any, ...]] = []
        """Senders in the order in which they go, the next one last; as it was at `_silent_at`, so that those judged
        since then stay. To keep all in order all the time (`move_to_end`) took 1,700 instructions an exchange."""
        self._silent_at = 0
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._version_from = tuple(tuple(path.split(".")) for path in params.version_from)
        self._forms = Forms(rule, params.keys, registry) if params.of == "forms" else None

    def observe(self, event: Event) -> Iterable[Finding]:
        if event.kind not in _KINDS:
            return NOTHING
        if self._forms is not None:
            return self._forms.observe(event)
        payload, reply = event.payload, event.reply
        if event.outcome == "asked":
            self._asked[event.id] = None
            if len(self._asked) > 10 * self._params.keys:
                self._asked.popitem(last=False)
            reply = None
        elif self._asked and self._asked.pop(event.id, _ABSENT) is None:
            payload = None
        if reply is not None and (not self._params.replies or event.outcome not in _LANDED):
            reply = None
        if payload is None:
            return NOTHING if reply is None else self._judge(event, reply, is_reply=True)
        found = self._judge(event, payload, is_reply=False)
        if reply is None:
            return found
        more = self._judge(event, reply, is_reply=True)
        return (*found, *more) if more else found

    def _judge(self, event: Event, value: Any, *, is_reply: bool) -> Iterable[Finding]:
        schema = None if is_reply else self._registry.schema(event.subject, event.version)
        subject = event.subject
        whom = None if subject is not None and not is_reply else event.target
        key = (is_reply, event.source, whom, subject, None if schema is None else event.version)
        senders = self._senders
        sender = senders.get(key)
        self._judged = judged = self._judged + 1
        if sender is None:
            sender = senders[key] = Sender(event, is_reply=is_reply)
            sender.used = judged
            if len(senders) > self._params.keys:
                self._forget()
        sender.used = judged
        sender.messages = messages = sender.messages + 1
        found: Iterable[Finding] = NOTHING
        try:
            is_known = sender.fits is not None and sender.fits(value)
        except (ValueError, TypeError):
            is_known = False
        if messages > _YOUNG:
            is_walked, is_measured = not messages & sender.old_walk, not messages % sender.every
        else:
            is_walked, is_measured = messages <= _WALK_ALL or not messages & sender.young_walk, True
        if is_walked or not is_known:
            found = self._walk(event, value, sender, schema, is_reply)
        if is_measured:
            moved = self._measured(event, value, sender)
            if moved:
                found = (*found, *moved)
        if sender.is_dirty or not messages & (messages - 1):
            sender.compile(self._params.learn)
        return found

    def _forget(self) -> None:
        """The sender goes that has been silent longest."""
        senders = self._senders
        while True:
            if not self._silent:
                self._silent_at = self._judged
                self._silent = sorted(senders, key=lambda key: senders[key].used, reverse=True)
            key = self._silent.pop()
            if senders[key].used <= self._silent_at:
                del senders[key]
                return

    def _walk(self, event: Event, value: Any, sender: Sender, schema: Any, is_reply: bool) -> Iterable[Finding]:
        declared = None
        if schema is not None:
            if sender.declared is None or sender.declared[0] is not schema:
                sender.declared = schema, Declarations(schema.whole)
            declared = sender.declared[1].root(value)
        profile = sender.profile
        places = profile.nodes
        changes: dict[tuple[str, str, str], _Change] = {}
        for change in _compared(profile.root, declared, value, (), sender, self._params.learn):
            changes.setdefault((change.path, change.change, str(change.new)), change)
            if len(changes) >= _MAX_CHANGES:
                break
        values = profile.values
        profile.add(value)
        values = profile.values - values
        sender.young_walk = _each(values // 2, _WALK_YOUNG)
        sender.old_walk = _each(8 * values, _WALK_OLD)
        found = tuple(
            self._found(event, value, sender, change)
            for change in changes.values()
            if self._may_tell(sender, change.path, change.change)
        )
        if (version := self._version(event, value)) is not None:
            sender.agent_version = version
        if changes or profile.nodes != places:
            sender.is_dirty = True
            sender.last_change = sender.messages
        elif sender.fits is not None and not sender.is_dirty:
            try:
                sender.is_dirty = not sender.fits(value)
            except (ValueError, TypeError):
                sender.is_dirty = False
        return found

    def _may_tell(self, sender: Sender, path: str, change: str) -> bool:
        told = sender.said.get((path, change), 0)
        if told >= self._params.repeats or len(sender.said) >= 1_000:
            return False
        sender.said[path, change] = told + 1
        return True

    def _measured(self, event: Event, value: Any, sender: Sender) -> tuple[Finding, ...]:
        found: tuple[Finding, ...] = ()
        params = self._params
        size = event.reply_bytes if sender.is_reply else event.payload_bytes
        sender.size.add(_size_of(value) if size is None else size)
        if (told := sender.size.compare(params.window, params.false_alarm)) is not None:
            found = self._moved(event, value, sender, sender.size, told)
        for measure in sender.plan:
            if measure.kind == "presence":
                is_there = _has(value, measure.holder, measure.name)
                if is_there is None:
                    continue
                measure.mark(is_there)
                if measure.absent and measure.is_gone(params.false_alarm):
                    absent, past = measure.absent, measure.bins.get(1, 0)
                    if sender.messages > _YOUNG:
                        absent *= sender.every
                    share = _percent(past, measure.past)
                    measure.forget()
                    measure.absent = 0
                    if not measure.told and self._may_tell(sender, measure.path, "removed"):
                        says = (
                            f"stopped coming: it was in {share} of the payloads before and in none of the last {absent}"
                        )
                        change = _Change(measure.path, "removed", share, "absent", "past", says)
                        found = (*found, self._found(event, value, sender, change, count=absent))
                    continue
            else:
                is_length = measure.kind == "length"
                for each in _all_at(value, measure.steps, 8) if measure.in_array else (_at(value, measure.steps),):
                    if is_length:
                        if type(each) is list:
                            measure.add(len(each))
                    elif type(each) is int or type(each) is float:
                        measure.add(each)
            if measure.filled < params.window:
                continue
            if (told := measure.compare(params.window, params.false_alarm)) is not None:
                found = (*found, *self._moved(event, value, sender, measure, told))
        return found

    def _moved(
        self, event: Event, value: Any, sender: Sender, measure: Measure, told: tuple[float, float, dict[int, int]]
    ) -> tuple[Finding, ...]:
        distance, limit, before = told
        name: Change = (
            "presence" if measure.kind == "presence" else "size" if measure.kind == "size" else "distribution"
        )
        if not self._may_tell(sender, measure.path, name):
            return ()
        old: Any
        new: Any
        if measure.kind == "presence":
            old, new = (_percent(bins.get(1, 0), sum(bins.values())) for bins in (before, measure.now))
            says = f"came in {old} of the payloads and now comes in {new}"
        else:
            old, new = _quartiles(before), _quartiles(measure.now)
            what = {"number": "", "length": "its length ", "size": "its size "}[measure.kind]
            says = f"{what}moved: the median was about {old['p50']:g} and is about {new['p50']:g}"
        change = _Change(measure.path, name, old, new, "past", says)
        evidence = {
            "test": "two-sample Kolmogorov-Smirnov",
            "distance": round(distance, 4),
            "limit": round(limit, 4),
            "false_alarm": self._params.false_alarm,
        }
        return (self._found(event, value, sender, change, count=sum(measure.now.values()), **evidence),)

    def _found(self, event: Event, value: Any, sender: Sender, change: _Change, count: int = 1, **more: Any) -> Finding:
        version, before = self._version(event, value), sender.agent_version
        part = "reply" if sender.is_reply else "payload"
        who = sender.source or "an unknown agent"
        place = f"{change.path or f'the {part}'} " if change.change != "size" else ""
        by = "" if version is None else f" ({version})"
        evidence = {
            "path": change.path,
            "change": change.change,
            "old": change.old,
            "new": change.new,
            "against": change.against,
            "part": part,
            "since": instant(event.at),
            "seen": count,
            "payloads": sender.messages,
            "agent_version": version,
            "agent_version_before": before,
            **more,
        }
        sender.changes.append({name: evidence[name] for name in _SHORT})
        del sender.changes[:-20]
        message = (
            f"{part} of {who}{by} to {sender.target or 'an unknown agent'} changed its shape: {place}{change.says}"
        )
        return finding(
            self._rule,
            event,
            message,
            evidence=evidence,
            side="receiver" if sender.is_reply else "sender",
            same=(part, change.path, change.change, change.new if change.change in _BY_VALUE else None),
        )

    def _version(self, event: Event, value: Any) -> str | None:
        if event.agent_version is not None:
            return event.agent_version
        for steps in self._version_from:
            named = _at(value, steps)
            if type(named) is str and named:
                return _clean(named[:128])
        return None

    def learned(self) -> Iterator[Sender]:
        """What is known of each sender, for who wants to propose it as a schema."""
        yield from self._senders.values()

    def advance(self, now: float) -> Iterable[Finding]:
        return NOTHING

    def __len__(self) -> int:
        return len(self._senders)


_ABSENT: Final = object()
_CHANGE_OF: dict[str, Change] = {
    "presence": "presence",
    "size": "size",
    "number": "distribution",
    "length": "distribution",
}
_SHORT = ("path", "change", "old", "new", "since", "agent_version")
_BY_VALUE = frozenset({"type", "nullability", "enumeration", "format"})


def _compared(
    node: Node | None, declared: Declared | None, value: Any, steps: Steps, sender: Sender, learn: int
) -> Iterator[_Change]:
    """What is new in a value, beside what was seen at its place and what is declared there."""
    if len(steps) > MAX_DEPTH:
        return
    kind = type_name(value)
    if kind == "number" and value == value and abs(value) < 1e300 and value.is_integer():
        kind = "integer"
    if node is not None and kind not in node.types and not (kind == "integer" and "number" in node.types):
        allowed = declared is not None and declared.allows_type(value)
        only_null = node.types.keys() == {"null"}
        least = _HABIT if allowed else 3 * learn if only_null else learn
        if node.count >= least and not (allowed and only_null):
            old = "|".join(sorted(node.types))
            name: Change = "nullability" if kind == "null" or only_null else "type"
            yield _Change(_path(steps), name, old, kind, "past", f"was {old.replace('|', ' or ')} and is now {kind}")
            return  # what it holds is news too, and the same news
    if kind == "string":
        yield from _compared_string(node, declared, value, steps)
    elif kind == "object":
        yield from _compared_object(node, declared, value, steps, sender, learn)
    elif kind == "array":
        items = None if node is None else node.items
        inner_steps = (*steps, None)
        for index, inner in enumerate(value):
            below = declared.item(index, inner) if declared is not None else None
            if items is not None or below:
                yield from _compared(items, below, inner, inner_steps, sender, learn)


def _compared_string(node: Node | None, declared: Declared | None, value: str, steps: Steps) -> Iterator[_Change]:
    found = None
    if declared is not None and (wanted := declared.formats):
        found = format_of(value)
        if not any(has_format(value, name) for name in wanted) and (node is None or found not in node.formats):
            new = found or "another string"
            yield _Change(_path(steps), "format", wanted[0], new, "schema", f"should be {wanted[0]} and is {new}")
            return
    if node is None:
        return
    if (old := node.format(10)) != "":
        found = format_of(value) if found is None else found
        if found != old:
            new = found or "another string"
            yield _Change(_path(steps), "format", old, new, "past", f"was {old} and is now {new}")
            return
    words = node.enumeration(16)
    if words is None or value in words or any(_is_free(word) for word in words) or _names_one(steps):
        return
    if declared is not None and declared.allows_word(value) and node.count < _HABIT:
        return
    new = value if is_word(value) and not _is_free(value) else "another string"
    known = ", ".join(sorted(words))
    yield _Change(
        _path(steps), "enumeration", sorted(words), new, "past", f"was one of {known} and is now {_quoted(new)}"
    )


def _compared_object(
    node: Node | None, declared: Declared | None, value: Any, steps: Steps, sender: Sender, learn: int
) -> Iterator[_Change]:
    is_described = declared is not None and declared.is_described
    is_judged = is_described or (node is not None and node.objects >= learn and not node.is_opaque)
    maplike: bool | None = None
    added: list[tuple[str, Any]] = []
    for name, inner in value.items():
        if type(name) is not str:
            continue
        child = None if node is None else node.names.get(name)
        below = declared.member(name, inner) if declared is not None else None
        if child is None and node is not None and node.values is not None and (is_id(name) or node.is_map):
            child = node.values
        if child is None and below is None:
            if is_judged and not is_id(name):
                if maplike is None:
                    maplike = node is not None and node.is_maplike() and not is_described
                if not maplike:
                    added.append((name, inner))
        elif child is not None or below:
            yield from _compared(child, below, inner, (*steps, name), sender, learn)
    if added:
        yield from _added(added, steps, sender, "schema" if is_described else "past")
    if node is not None and node.objects >= 5:
        count = node.objects
        if count == sender.profile.payloads and not node.is_maplike():
            # In all that were counted, so the closed form requires it, and what was not counted fitted that.
            count = sender.messages - 1
        for name, child in node.names.items():
            if child.count == node.objects and name not in value:
                inner_steps = (*steps, name)
                sender.presence(inner_steps, count, count)
                measure = sender.measures.get(("presence", inner_steps))
                is_declared = declared is not None and is_described and declared.member(name, None) is not None
                if is_declared and measure is not None and node.objects >= _HABIT:
                    measure.told = True
                    says = f"did not come, and was in all of the {node.objects} before"
                    yield _Change(_path(inner_steps), "removed", "100%", "absent", "past", says)


def _added(
    added: list[tuple[str, Any]], steps: Steps, sender: Sender, against: Literal["schema", "past"]
) -> Iterator[_Change]:
    what = "is not in its schema" if against == "schema" else "was never there before"
    here = _path(steps)
    told = sum(1 for path, change in sender.said if change == "added" and path.rpartition("/")[0] == here)
    if (here + "/*", "added") in sender.said:
        return
    if len(added) >= _KEYS_AT_ONCE or told >= _KEYS_AT_ONCE:
        names = ", ".join(sorted(_clean(name) for name, _ in added)[:5])
        yield _Change(
            here + "/*", "added", None, "names", against, f"has names that come and go ({names}), as keys of a map do"
        )
        return
    for name, inner in added:
        kind = type_name(inner)
        yield _Change(_path((*steps, name)), "added", None, kind, against, f"{what}: {_article(kind)}")


def _article(kind: str) -> str:
    return kind if kind in ("null", "unknown") else f"an {kind}" if kind[0] in "aio" else f"a {kind}"


_NAMES = frozenset({"id", "name", "key", "title", "user", "owner", "author", "text", "query", "label", "value", "uuid"})
_NAME_ENDS = ("_id", "_name", "_key", "_by", "_user", "_title", "_text", "Id", "ID", "Name", "Key")


def _names_one(steps: Steps) -> bool:
    """Whether a field holds the name or id of one thing, which changes with the thing and is no enumeration."""
    name = next((step for step in reversed(steps) if step is not None), "")
    return name.lower() in _NAMES or name.endswith(_NAME_ENDS)


def _is_free(text: str) -> bool:
    """Whether a word is rather a number, a name with a number or a phrase than one of a few that were agreed on."""
    return " " in text or any(character.isdigit() for character in text)


def _quoted(text: str) -> str:
    return text if text == "another string" else f'"{text}"'


def escape(step: str) -> str:
    """A name as a step of a JSON Pointer, in characters that can be written down."""
    return _clean(step.replace("~", "~0").replace("/", "~1")[:200])


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _path(steps: Steps) -> str:
    return "".join("/*" if step is None else "/" + escape(step) for step in steps)


def _at(value: Any, steps: Steps) -> Any:
    """The value at a place without arrays on the way; None where there is none."""
    for step in steps:
        if type(value) is not dict:
            return None
        value = value.get(step)
    return value


def _has(value: Any, holder: Steps, name: str | None) -> bool | None:
    """Whether some object at a place has a member of that name; None where there is no object."""
    found: bool | None = None
    for each in _all_at(value, holder, 64) if None in holder else (_at(value, holder),):
        if type(each) is dict:
            if name in each:
                return True
            found = False
    return found


def _all_at(value: Any, steps: Steps, limit: int) -> list[Any]:
    """The values at a place; of arrays on the way the first items, `limit` of them."""
    values = [value]
    for step in steps:
        if step is None:
            values = [inner for each in values if type(each) is list for inner in each[:limit]][:limit]
        else:
            values = [each[step] for each in values if type(each) is dict and step in each]
    return values


def _size_of(value: Any) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:
        return 0


def _each(number: int, limits: tuple[int, int]) -> int:
    """The least 2^n - 1 that is no less than a number, within limits."""
    return min(max((1 << number.bit_length()) - 1, limits[0]), limits[1])


def _percent(part: int, whole: int) -> str:
    return f"{round(100 * part / whole)}%" if whole else "0%"


def _quartiles(bins: dict[int, int]) -> dict[str, float]:
    return dict(zip(("p25", "p50", "p75"), map(value_of, _quartile_bins(bins)), strict=True))
