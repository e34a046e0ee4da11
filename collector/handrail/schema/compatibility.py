"""Two versions of a schema become a verdict: can the one read what the other writes, and if not, what shows it.

The question is about payloads, not about spelling: a reader is compatible with a writer where it admits every payload
that the writer's schema admits. Three parts answer it. `jsonschema_rs` compares canonical forms, which proves or
refutes most pairs; `witness` looks for a payload that the writer's schema admits and the reader's refuses, which the
validator of the data path must confirm before anybody sees it; `containment` proves what canonical forms leave open.
A payload outweighs a proof: where one is found the answer is "not compatible", whatever else was said.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import jsonschema_rs
import msgspec

from handrail.schema import COMPATIBILITY_MODES, COMPATIBILITY_POLICIES, confluent
from handrail.schema.containment import admits_everything, follows
from handrail.schema.difference import Change, difference, escaped
from handrail.schema.registry import DRAFTS, SchemaError, type_name
from handrail.schema.witness import MAX_DEPTH, Place, Wish, plain, refuse, root, values

MODES = COMPATIBILITY_MODES
POLICIES = COMPATIBILITY_POLICIES

MAX_NESTING = 128
"""Levels of JSON in a schema."""
MAX_REASONS = 20
SURE_STEPS = 2_000
"""Steps of the search after a proof that there is nothing to find: the price of not having to trust it."""
SEARCH_STEPS = 30_000
"""Steps of the search where nothing is known, for shallow values and again for deep ones: half a second of one core."""
SHALLOW = 4
"""Levels of a value that are tried first."""
MAX_WITNESSES = 100
MORE_STEPS = 3_000
"""Steps after the first witness, for further reasons and a shorter payload."""


class Reason(msgspec.Struct, frozen=True):
    """One change that breaks a reader."""

    path: str
    """JSON Pointer into the payload; `*` for items, and for members that neither schema names."""
    keyword: str
    """The keyword of JSON Schema that refuses; `false` where nothing is allowed at all."""
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
    """Of the witness, or of what is undecided: `backward` (the old schema admits it, the new one refuses it) or
    `forward`. None where the versions are compatible."""
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
        raise ValueError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; known are {', '.join(POLICIES)}")
    default = draft_number(draft)
    sides = _Side(old, "old", default), _Side(new, "new", default)
    if mode == "NONE":
        return Verdict(True, "proved")
    verdicts = []
    for direction, (writer, reader) in {"backward": sides, "forward": sides[::-1]}.items():
        if not mode.startswith((direction.upper(), "FULL")):
            continue
        if policy == "confluent":
            verdicts.append(_by_rules(writer, reader, direction, out_of_time))
        else:
            verdicts.append(_semantic(writer, reader, direction, out_of_time, accept_undecided=accept_undecided))
    refused = [verdict for verdict in verdicts if not verdict.compatible]
    if not refused:
        return next((verdict for verdict in verdicts if verdict.decided != "proved"), verdicts[0])
    shown = min(refused, key=lambda verdict: ("witness", "proved", "undecided").index(verdict.decided))
    rest = [verdict for verdict in refused if verdict is not shown]
    return msgspec.structs.replace(shown, reasons=tuple(r for each in (shown, *rest) for r in each.reasons))


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
    decided = "proved"
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
        if verdict.decided != "proved":
            decided = verdict.decided
    return Verdict(True, decided)


def changes(old: Any, new: Any, *, draft: str | int | None = None) -> list[Change]:
    """What was added, removed and changed. Raises SchemaError where one of them is no schema."""
    default = draft_number(draft)
    return difference(_Side(old, "old", default).place, _Side(new, "new", default).place)


_NUMBERS: Mapping[str, int] = {"draft-04": 4, "draft-06": 6, "draft-07": 7, "2019-09": 19, "2020-12": 20}
_SHORT: Mapping[str, int] = {
    **_NUMBERS,
    **{str(each): each for each in _NUMBERS.values()},
    **{
        f"{prefix}{each}": each
        for each in (4, 6, 7)
        for prefix in ("draft", "draft-", "0", "draft0", "draft_", "draft_0")
    },
    **{f"{prefix}{year}": number for year, number in {"2019": 19, "2020": 20}.items() for prefix in ("", "draft-")},
    **{
        f"{prefix}{name}": _NUMBERS[name] for name in ("2019-09", "2020-12") for prefix in ("draft-", "draft/", "draft")
    },
    **{name.replace("-", "_"): _NUMBERS[name] for name in ("2019-09", "2020-12")},
    **{f"draft_{name.replace('-', '_')}": _NUMBERS[name] for name in ("2019-09", "2020-12")},
    **{name.replace("-", ""): _NUMBERS[name] for name in ("2019-09", "2020-12")},
}


def draft_number(draft: str | int | None) -> int:
    """A draft as jsonschema-rs counts them: 4, 6, 7, 19 or 20. Raises ValueError where it is not known."""
    if draft is None or draft == "":
        return 20
    text = str(draft).strip().lower()
    uri = DRAFTS.get(text.rstrip("#").replace("https://json-schema.org/draft-0", "http://json-schema.org/draft-0"))
    number = _NUMBERS[uri] if uri is not None else _SHORT.get(text)
    if number is None:
        raise ValueError(f"unknown draft {draft!r}; known are {', '.join(_NUMBERS)}")
    return number


class _Side:
    """One of the two schemas, ready to be asked."""

    def __init__(self, schema: Any, name: str, default: int) -> None:
        self.name = name
        self.schema = schema
        if not isinstance(schema, dict | bool):
            raise SchemaError(f"{name}: is not a schema: expected an object or a boolean")
        if _nesting(schema) > MAX_NESTING:
            raise SchemaError(f"{name}: is nested deeper than {MAX_NESTING} levels")
        named = schema.get("$schema") if isinstance(schema, dict) else None
        try:
            self.draft = default if named is None else draft_number(named)
        except ValueError as error:
            raise SchemaError(f"{name}: /$schema: {error}") from None
        self.options: jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions = jsonschema_rs.RegexOptions()
        try:
            self.validator = self._compiled()
        except jsonschema_rs.ValidationError as error:
            if type(error.kind).__name__ != "Format":
                raise self._refused(error) from None
            # Look-around has no place on the data path, where a schema with it is refused; here it may be compared.
            self.options = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000)
            try:
                self.validator = self._compiled()
            except jsonschema_rs.ValidationError as again:
                raise self._refused(again) from None
        except (ValueError, TypeError) as error:
            raise SchemaError(f"{name}: {error}") from None
        self.place = root(schema, self.draft)

    def _compiled(self) -> jsonschema_rs.Validator:
        return _VALIDATORS[self.draft](self.schema, retriever=refuse, pattern_options=self.options)

    def _refused(self, error: jsonschema_rs.ValidationError) -> SchemaError:
        path = "".join("/" + escaped(str(step)) for step in error.instance_path) or "/"
        if type(error.kind).__name__ == "Referencing":
            return SchemaError(f"{self.name}: {error.message}")
        return SchemaError(f"{self.name}: {path}: is not a schema of its draft: {error.message}")

    def admits(self, value: Any) -> bool | None:
        """Whether the schema admits a value; None where the validator cannot say."""
        try:
            return self.validator.is_valid(value)
        except (ValueError, TypeError):
            return None

    def canonical(self, draft: int) -> jsonschema_rs.CanonicalSchema:
        """The canonical form. Raises ValueError where there is none."""
        schema = self.schema
        if isinstance(schema, dict):
            schema = {key: value for key, value in _without_idle_patterns(schema).items() if key != "$schema"}
        return jsonschema_rs.canonicalize(
            schema, draft=_DRAFT_CONSTANTS[draft], retriever=refuse, pattern_options=self.options
        )


_VALIDATORS: Mapping[int, type[jsonschema_rs.Validator]] = {
    4: jsonschema_rs.Draft4Validator,
    6: jsonschema_rs.Draft6Validator,
    7: jsonschema_rs.Draft7Validator,
    19: jsonschema_rs.Draft201909Validator,
    20: jsonschema_rs.Draft202012Validator,
}
_DRAFT_CONSTANTS: Mapping[int, int] = {
    4: jsonschema_rs.Draft4,
    6: jsonschema_rs.Draft6,
    7: jsonschema_rs.Draft7,
    19: jsonschema_rs.Draft201909,
    20: jsonschema_rs.Draft202012,
}


def _nesting(schema: Any) -> int:
    depth, level = 0, [schema]
    while level and depth <= MAX_NESTING:
        depth += 1
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
        level = below
    return depth


def _without_idle_patterns(schema: Any) -> Any:
    """A schema without patterns that match every string, which the canonical forms take for a constraint."""
    if isinstance(schema, list):
        return [_without_idle_patterns(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    pattern = schema.get("pattern")
    return {
        key: value if key in ("const", "enum", "default", "examples") else _without_idle_patterns(value)
        for key, value in schema.items()
        if not (key == "pattern" and isinstance(pattern, str) and admits_everything(pattern))
    }


def _covers(writer: _Side, reader: _Side) -> str:
    """`yes`, `no` or `unknown`: whether the reader admits all that the writer does, by canonical forms."""
    if writer.draft != reader.draft:
        return "unknown"
    try:
        return str(reader.canonical(reader.draft).covers(writer.canonical(writer.draft)))
    except (ValueError, TypeError):
        return "unknown"


class _Search:
    """Looks for witnesses."""

    def __init__(self, writer: _Side, reader: _Side, out_of_time: Callable[[], bool]) -> None:
        self._writer, self._reader = writer, reader
        self._out_of_time = out_of_time
        self._steps = 0
        self._limit = 0
        self.found: list[Any] = []

    def _spent(self) -> bool:
        self._steps += 1
        return self._steps > self._limit or (self._steps % 64 == 0 and self._out_of_time())

    def run(self, steps: int) -> bool:
        """Whether there is a witness. The search begins anew each time, with the allowance that is given."""
        wishes = (Wish(self._writer.place, True), Wish(self._reader.place, False))
        for depth in (SHALLOW, MAX_DEPTH):  # first what is easily read, and what a recursion would hide
            self._steps, self._limit = 0, steps
            for candidate in values(wishes, self._spent, depth):
                if self._reader.admits(candidate) is False and self._writer.admits(candidate) is True:
                    self.found.append(candidate)
                    self._limit = min(self._limit, self._steps + MORE_STEPS)
                    if len(self.found) >= MAX_WITNESSES:
                        break
            if self.found:
                break
        return bool(self.found)

    def shortest(self) -> Any:
        """The witness that a person reads most easily."""
        return min(self.found, key=_length)


def _length(witness: Any) -> tuple[bool, int]:
    """How hard a payload is to read. Null is easily taken for none, and a member without a name for a misprint."""
    text = repr(witness)
    return witness is None, len(text) + 40 * text.count("'': ")


def _semantic(
    writer: _Side, reader: _Side, direction: str, out_of_time: Callable[[], bool], *, accept_undecided: bool
) -> Verdict:
    answer = _covers(writer, reader)
    search = _Search(writer, reader, out_of_time)
    if answer == "unknown" and not search.run(SURE_STEPS) and follows(writer.place, reader.place, out_of_time):
        answer = "yes"
    elif search.run(SURE_STEPS if answer == "yes" else SEARCH_STEPS):
        return Verdict(False, "witness", _reasons(writer, reader, direction, search), search.shortest(), direction)
    if search.found:
        return Verdict(False, "witness", _reasons(writer, reader, direction, search), search.shortest(), direction)
    if answer == "yes":
        return Verdict(True, "proved")
    decided = "proved" if answer == "no" else "undecided"
    if decided == "undecided" and accept_undecided:
        return Verdict(True, decided)
    return Verdict(False, decided, _suspects(writer, reader, direction, decided), None, direction)


def _by_rules(writer: _Side, reader: _Side, direction: str, out_of_time: Callable[[], bool]) -> Verdict:
    """Confluent's answer: by a closed list of what may change, with a witness where there happens to be one."""
    broken = confluent.broken(writer.place, reader.place)
    if not broken:
        return Verdict(True, "proved")
    search = _Search(writer, reader, out_of_time)
    found = search.run(SURE_STEPS)
    reasons = []
    for change, rule in broken[:MAX_REASONS]:
        old, new = (change.old, change.new) if direction == "backward" else (change.new, change.old)
        reasons.append(Reason(change.path, change.keyword, old, new, rule, direction))
    if found:
        return Verdict(False, "witness", tuple(reasons), search.shortest(), direction)
    return Verdict(False, "proved", tuple(reasons), None, direction)


def _reasons(writer: _Side, reader: _Side, direction: str, search: _Search) -> tuple[Reason, ...]:
    """Why the reader refuses what was found: each place and keyword once, the simplest payloads first."""
    found: dict[tuple[str, str, str], Reason] = {}
    for witness in sorted(search.found, key=_length):
        for error in _errors(reader, witness):
            reason = _reason(writer, reader, direction, error, witness)
            # Two members that are required are two reasons, at one place.
            key = reason.path, reason.keyword, reason.message if reason.keyword == "required" else ""
            found.setdefault(key, reason)
    return tuple(islice(found.values(), MAX_REASONS))


def _errors(reader: _Side, witness: Any) -> list[jsonschema_rs.ValidationError]:
    """What the reader has against a payload; only the first thing where all of them might take long to tell.

    jsonschema-rs collects every error before it gives out one, so a schema that doubles takes for ever.
    """
    try:
        if len(repr(witness)) <= 2_000 and _is_simple(reader.place, _nesting(witness)):
            return list(islice(reader.validator.iter_errors(witness), MAX_REASONS))
        reader.validator.validate(witness)
    except jsonschema_rs.ValidationError as error:
        return [error]
    except (ValueError, TypeError):
        pass
    return []


def _is_simple(place: Place, levels: int) -> bool:
    """Whether few subschemas are applied to a value of so many levels, references followed and repeats counted."""
    rest = [(place, levels)]
    for _ in range(MAX_APPLIED):
        if not rest:
            return True
        place, level = rest.pop()
        if not isinstance(place.schema, dict) or level < 0:
            continue
        view = plain(place)
        for keyword, value in view.items():
            below = level - (keyword in _INTO_MEMBERS)
            if keyword in _OF_NAMED and isinstance(value, dict):
                rest += [(place.inner(each), below) for each in value.values()]
            elif keyword == "$ref" and isinstance(value, str) and (target := place.target(value)) is not None:
                rest.append((target, level))
            elif isinstance(value, list) and keyword in _OF_LISTED:
                rest += [(place.inner(each), below) for each in value]
            elif isinstance(value, dict) and keyword in _OF_ONE:
                rest.append((place.inner(value), below))
    return False


MAX_APPLIED = 5_000
_OF_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas"})
_OF_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_OF_ONE = frozenset({"not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"})
_INTO_MEMBERS = frozenset(
    {"properties", "patternProperties", "prefixItems", "items", "contains", "additionalProperties"}
)


def _reason(writer: _Side, reader: _Side, direction: str, error: jsonschema_rs.ValidationError, witness: Any) -> Reason:
    kind = type(error.kind).__name__
    keyword = str(error.schema_path[-1]) if error.schema_path else kind
    unexpected: Sequence[str | int] = getattr(error.kind, "unexpected", ())
    steps, value = [], witness
    here = {"writer": _Here(writer.place), "reader": _Here(reader.place)}
    for step in error.instance_path:
        is_named = any(each.names(step) for each in here.values())
        steps.append(escaped(step) if isinstance(step, str) and is_named else "*")
        for each in here.values():
            each.step(step)
        try:
            value = value[step]
        except (LookupError, TypeError):
            break
    if kind == "FalseSchema":
        # Where nothing is declared, the validator takes the whole object for refused.
        if keyword in ("additionalProperties", "unevaluatedProperties") and isinstance(value, dict):
            unexpected = [str(name) for name in value]
        else:
            keyword = "false"
    theirs = here["writer"].keyword(keyword)
    ours = _pointed(reader.schema, error.schema_path) if keyword != "false" else False
    if len(unexpected) == 1 and isinstance(unexpected[0], str) and here["writer"].names(unexpected[0]):
        # The writer declares the member that the reader has no place for: that member is what came or went.
        here["writer"].step(unexpected[0])
        theirs = here["writer"].schema()
        steps.append(escaped(unexpected[0]))
    old, new = (theirs, ours) if direction == "backward" else (ours, theirs)
    names = {
        "reader": f"the {reader.name} version",
        "writer": f"the {writer.name} version",
        "found": type_name(value),
        "value": _shown(value),
        "ours": _shown(ours),
        "keyword": keyword,
        "property": _shown(getattr(error.kind, "property", "")),
        "unexpected": ", ".join(_shown(each) for each in unexpected[:3]),
    }
    template = _MESSAGES.get(keyword, "{reader} refuses what {writer} may send here, such as {value}: `{keyword}`")
    path = "".join("/" + step for step in steps)
    message = template.format_map(names)
    return Reason(path, keyword, old, new, message[0].upper() + message[1:] + ".", direction)


_MESSAGES: Mapping[str, str] = {
    "type": "{reader} expects {ours} here, and {writer} may send {found}",
    "required": "{reader} requires {property}, which {writer} may leave out",
    "additionalProperties": "{reader} refuses members that it does not know, and {writer} may send {unexpected}",
    "unevaluatedProperties": "{reader} refuses members that it does not know, and {writer} may send {unexpected}",
    "additionalItems": "{reader} refuses further items, and {writer} may send them",
    "unevaluatedItems": "{reader} refuses further items, and {writer} may send them",
    "enum": "{reader} knows only {ours}, and {writer} may send {value}",
    "const": "{reader} takes only {ours}, and {writer} may send {value}",
    "minimum": "{reader} refuses numbers below {ours}, and {writer} may send {value}",
    "maximum": "{reader} refuses numbers above {ours}, and {writer} may send {value}",
    "exclusiveMinimum": "{reader} refuses numbers that are not above its minimum, and {writer} may send {value}",
    "exclusiveMaximum": "{reader} refuses numbers that are not below its maximum, and {writer} may send {value}",
    "multipleOf": "{reader} takes only multiples of {ours}, and {writer} may send {value}",
    "minLength": "{reader} refuses strings shorter than {ours}, and {writer} may send {value}",
    "maxLength": "{reader} refuses strings longer than {ours}, and {writer} may send {value}",
    "pattern": "{reader} takes only strings that match {ours}, and {writer} may send {value}",
    "format": "{reader} takes only the format {ours}, and {writer} may send {value}",
    "minItems": "{reader} needs at least {ours} items, and {writer} may send fewer",
    "maxItems": "{reader} takes at most {ours} items, and {writer} may send more",
    "uniqueItems": "{reader} refuses items that repeat, and {writer} may send them",
    "contains": "{reader} needs items that {writer} may leave out, or allows fewer of them",
    "minProperties": "{reader} needs at least {ours} members, and {writer} may send fewer",
    "maxProperties": "{reader} takes at most {ours} members, and {writer} may send more",
    "propertyNames": "{reader} refuses names of members that {writer} may use, as in {value}",
    "dependentRequired": "{reader} requires {property} beside another member, and {writer} may leave it out",
    "dependencies": "{reader} makes one member depend on another, and {writer} does not keep to it, as in {value}",
    "anyOf": "none of {reader}'s alternatives takes what {writer} may send here, such as {value}",
    "oneOf": "not exactly one of {reader}'s alternatives takes what {writer} may send here, such as {value}",
    "not": "{reader} excludes what {writer} may send here, such as {value}",
    "false": "{reader} allows nothing here, and {writer} may send {value}",
}


def _suspects(writer: _Side, reader: _Side, direction: str, decided: str) -> tuple[Reason, ...]:
    """What differs, where no payload shows which of it breaks the reader."""
    sides = (writer, reader) if direction == "backward" else (reader, writer)
    why = "refuses some of" if decided == "proved" else "could not be shown to read all of"
    message = f"The {reader.name} version {why} what the {writer.name} version may send, and this differs."
    found = [
        Reason(each.path, each.keyword, each.old, each.new, message, direction)
        for each in difference(sides[0].place, sides[1].place)[:MAX_REASONS]
    ]
    return tuple(found) or (Reason("", "schema", None, None, message.replace(", and this differs", ""), direction),)


class _Here:
    """The subschemas that apply at one place in a payload, whichever branch they stand in."""

    def __init__(self, place: Place) -> None:
        self._places = list(_in_place(place))

    def names(self, step: str | int) -> bool:
        """Whether the member is declared by name."""
        return any(isinstance(step, str) and step in plain(each).get("properties", ()) for each in self._places)

    def step(self, step: str | int) -> None:
        """Goes on to a member or an item."""
        found: list[Place] = []
        for place in self._places:
            view = plain(place)
            if isinstance(step, str):
                here = [view["properties"][step]] if step in view.get("properties", ()) else []
                if not here and "additionalProperties" in view:
                    here = [*view.get("patternProperties", {}).values(), view["additionalProperties"]]
            else:
                prefix = view.get("prefixItems", ())
                here = [prefix[step]] if step < len(prefix) else [view["items"]] if "items" in view else []
            for each in here:
                found += _in_place(place.inner(each))
        self._places = found[:256]

    def schema(self) -> Any:
        """The first subschema here, None where there is none."""
        return self._places[0].schema if self._places else None

    def keyword(self, keyword: str) -> Any:
        """The value of a keyword here, as written; None where no subschema has it."""
        return next((each.schema[keyword] for each in self._places if keyword in each.schema), None)


def _in_place(place: Place) -> Iterator[Place]:
    seen: set[int] = set()
    rest = [place]
    while rest and len(seen) < 256:
        each = rest.pop(0)
        if not isinstance(each.schema, dict) or id(each.schema) in seen:
            continue
        seen.add(id(each.schema))
        yield each
        view = plain(each)
        for keyword in ("allOf", "anyOf", "oneOf"):
            rest += [each.inner(member) for member in view.get(keyword, ())]
        rest += [each.inner(view[keyword]) for keyword in ("then", "else") if keyword in view]
        target = each.target(view["$ref"]) if isinstance(view.get("$ref"), str) else None
        if target is not None:
            rest.append(target)


def _pointed(schema: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        try:
            schema = schema[step]
        except (LookupError, TypeError):
            return None
    return schema


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode() if not _is_huge(value) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_huge(value: Any) -> bool:
    """Whether a value holds a number that msgspec would not write: past 64 bits."""
    return isinstance(value, int) and not -(2**63) <= value < 2**64
