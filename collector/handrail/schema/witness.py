"""A wish about a value (this schema admits it, that one refuses it) becomes values that may well fulfil it.

A schema is a formula, and a wish is a conjunction of formulas and negated formulas. The search pushes negation inward,
splits disjunctions into cases, and builds for each case the smallest values at the edges of what its keywords say: the
number next to a bound, the string one character too long, the object with one property too many. Cases take turns, so
that the branch that matters is reached early. What comes out is a candidate: rounding in the formulas (`unevaluated*`,
patterns beyond Python's, formats) is made good by the validator, which has the last word.

Deterministic, and lazy: who asks for ten candidates pays for ten.
"""

import importlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice, product
from typing import Any, NamedTuple

import jsonschema_rs

MAX_DEPTH = 24
"""Levels of a value; a recursive schema is unrolled no further."""
MAX_HOPS = 64
"""References and in-place applicators between one level of a value and the next."""
MAX_LENGTH = 4_096
"""Characters, items and properties of what is built."""
CASES = 512
"""Cases of one wish at one place that are looked at."""

TYPES = frozenset({"null", "boolean", "integer", "fraction", "string", "array", "object"})
"""`fraction` is a number that is no integer, so that the types are disjoint."""
TYPES_OF_NAME: Mapping[str, frozenset[str]] = {
    **{name: frozenset({name}) for name in TYPES if name != "fraction"},
    "number": frozenset({"integer", "fraction"}),
}
_NUMBERS, _STRING, _ARRAY, _OBJECT = (TYPES_OF_NAME[name] for name in ("number", "string", "array", "object"))

KEYWORD_TYPES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _NUMBERS),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType"), _STRING),
    **dict.fromkeys(("minItems", "maxItems", "uniqueItems", "prefixItems", "items", "contains"), _ARRAY),
    "unevaluatedItems": _ARRAY,
    **dict.fromkeys(("minProperties", "maxProperties", "required", "properties", "patternProperties"), _OBJECT),
    **dict.fromkeys(("additionalProperties", "propertyNames", "dependentRequired"), _OBJECT),
    "unevaluatedProperties": _OBJECT,
}

_SINCE: Mapping[str, int] = {
    **dict.fromkeys(("const", "contains", "propertyNames"), 6),
    **dict.fromkeys(("if", "then", "else"), 7),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "minContains", "maxContains"), 19),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems", "$recursiveRef"), 19),
    **dict.fromkeys(("prefixItems", "$dynamicRef"), 20),
}
"""The draft that brought a keyword, numbered as jsonschema-rs does; before it the keyword says nothing."""

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class Scope:
    """Where references start from. A reference is looked up once, so that a subschema is one object however reached."""

    __slots__ = ("_known", "_resolver")

    def __init__(self, resolver: jsonschema_rs.Resolver, known: dict[tuple[str, str], "Place | None"]) -> None:
        self._resolver = resolver
        self._known = known

    def place(self, reference: str, draft: int) -> "Place | None":
        """What a reference names, None where nothing has that name."""
        key = self._resolver.base_uri, reference
        if key not in self._known:
            try:
                found = self._resolver.lookup(reference)
            except (ValueError, jsonschema_rs.ReferencingError):
                self._known[key] = None
            else:
                self._known[key] = Place(found.contents, Scope(found.resolver, self._known), draft)
        return self._known[key]


class Place(NamedTuple):
    """A subschema, with what its references start from."""

    schema: Any
    scope: Scope
    draft: int

    def inner(self, schema: Any) -> "Place":
        """A subschema of this one."""
        if isinstance(schema, dict):
            identity = schema.get("id" if self.draft == 4 else "$id")
            if isinstance(identity, str) and not identity.startswith("#") and (self.draft > 7 or "$ref" not in schema):
                named = self.scope.place(identity, self.draft)
                if named is not None:
                    return named._replace(schema=schema)
        return Place(schema, self.scope, self.draft)

    def target(self, reference: str) -> "Place | None":
        """What a reference names, None where nothing has that name."""
        return self.scope.place(reference, self.draft)


def root(document: Any, draft: int) -> Place:
    """A document as a place. `draft` is 4, 6, 7, 19 or 20."""
    identity = document.get("id" if draft == 4 else "$id") if isinstance(document, dict) else None
    uri = identity.rstrip("#") if isinstance(identity, str) and ":" in identity else "handrail:/schema"
    registry = jsonschema_rs.Registry([(uri, document)], draft=_DRAFT_CONSTANTS[draft], retriever=refuse)
    return Place(document, Scope(registry.resolver(uri), {}), draft)


_DRAFT_CONSTANTS: Mapping[int, int] = {
    4: jsonschema_rs.Draft4,
    6: jsonschema_rs.Draft6,
    7: jsonschema_rs.Draft7,
    19: jsonschema_rs.Draft201909,
    20: jsonschema_rs.Draft202012,
}


def refuse(uri: str) -> Any:
    raise ValueError(f"references leave the document: {uri}")


def plain(place: Place) -> dict[str, Any]:
    """The keywords of one subschema as the newest draft would write them, without those that its own draft ignores.

    Its subschemas are left as they are.
    """
    schema, draft = place.schema, place.draft
    if draft <= 7 and isinstance(schema.get("$ref"), str):
        return {"$ref": schema["$ref"]}
    view = {key: value for key, value in schema.items() if _SINCE.get(key, 0) <= draft}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(view.get(exclusive), bool) and view.pop(exclusive) and bound in view:
            view[exclusive] = view.pop(bound)
    if isinstance(view.get("type"), str):
        view["type"] = [view["type"]]
    additional = view.pop("additionalItems", True)
    if isinstance(view.get("items"), list):
        view["prefixItems"] = view.pop("items")
        view["items"] = additional
    if draft <= 19 and isinstance(view.get("dependencies"), dict):
        for name, needed in view.pop("dependencies").items():
            keyword = "dependentRequired" if isinstance(needed, list) else "dependentSchemas"
            view[keyword] = {**view.get(keyword, {}), name: needed}
    if "if" not in view:
        view.pop("then", None)
        view.pop("else", None)
    if "contains" not in view:
        view.pop("minContains", None)
        view.pop("maxContains", None)
    return view


class Wish(NamedTuple):
    """That a value is what a schema says, or that it is not."""

    place: Place
    holds: bool


class _Goal(NamedTuple):
    """Something that an object or an array must have to make a keyword fail."""

    kind: str
    """`has` a property, `lacks` one, any `other` property than declared, one `matching` a pattern, one with a `name`
    of a kind; an item `at` an index, or anywhere `from` an index on; `twins` among the items."""
    key: Any
    wishes: tuple[Wish, ...] = ()


class _Case(NamedTuple):
    """One conjunction: nothing in it is left to choose between."""

    types: frozenset[str]
    shapes: tuple[tuple[dict[str, Any], Place], ...] = ()
    """Keywords that must hold, subschema by subschema."""
    fails: tuple[tuple[str, Any], ...] = ()
    """Keywords of numbers and strings, and `const` and `enum`, that must fail."""
    goals: tuple[_Goal, ...] = ()


Budget = Callable[[], bool]


def values(wishes: Iterable[Wish], spent: Budget, max_depth: int = MAX_DEPTH) -> Iterator[Any]:
    """Values that may fulfil all the wishes, likely ones first, at most `max_depth` levels deep.

    `spent` is asked at each step and ends the search.
    """
    wishes = tuple(wishes)
    return _Builder(_hints(wishes), spent, min((wish.place.draft for wish in wishes), default=20), max_depth).values(
        wishes, 0
    )


class _Hints(NamedTuple):
    """What the schemas mention: the edges of what they say lie next to it."""

    numbers: tuple[int | float, ...]
    strings: tuple[str, ...]
    names: tuple[str, ...]
    patterns: tuple[str, ...]
    formats: tuple[str, ...]


def _hints(wishes: Iterable[Wish]) -> _Hints:
    numbers: dict[int | float, None] = {}
    strings: dict[str, None] = {}
    names: dict[str, None] = {}
    patterns: dict[str, None] = {}
    formats: dict[str, None] = {}
    rest = [(wish.place.schema, "") for wish in wishes]
    for _ in range(20_000):
        if not rest:
            break
        value, keyword = rest.pop()
        if isinstance(value, dict):
            if keyword in ("properties", "dependentRequired", "dependentSchemas", "dependencies"):
                names.update(dict.fromkeys(value))
            if keyword == "patternProperties":
                patterns.update(dict.fromkeys(value))
            inside = keyword in ("properties", "patternProperties", "$defs", "definitions")
            rest.extend((each, "" if inside else key) for key, each in value.items())
        elif isinstance(value, list):
            if keyword == "required":
                names.update(dict.fromkeys(each for each in value if isinstance(each, str)))
            rest.extend((each, "const" if keyword == "enum" else "") for each in value)
        elif isinstance(value, str):
            if keyword == "pattern":
                patterns[value] = None
            elif keyword == "format":
                formats[value] = None
            elif keyword == "const":
                strings[value] = None
        elif isinstance(value, int | float) and not isinstance(value, bool) and keyword not in _COUNTS:
            numbers[value] = None
    return _Hints(*(tuple(islice(each, 64)) for each in (numbers, strings, names, patterns, formats)))  # type: ignore[arg-type]


_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})


class _Builder:
    def __init__(self, hints: _Hints, spent: Budget, oldest: int, max_depth: int) -> None:
        self._max_depth = max_depth
        self._hints = hints
        self._spent = spent
        self._oldest = oldest
        """The oldest draft among the schemas. Draft 4 takes 1 for an integer and 1.0 for none; up to draft 7 a format
        is asserted."""

    def values(self, wishes: tuple[Wish, ...], depth: int) -> Iterator[Any]:
        if depth > self._max_depth:
            return iter(())
        cases = islice(self._cases(wishes, _Case(TYPES), 0), CASES)
        return self._in_turn(self._of_case(case, depth) for case in cases)

    def _in_turn(self, sources: Iterable[Iterator[Any]]) -> Iterator[Any]:
        """Items of several sources, one of each in turn; a source is opened when its turn comes first."""
        fresh = iter(sources)
        opened: list[Iterator[Any]] = []
        while not self._spent():
            source = next(fresh, None)
            if source is not None:
                opened.append(source)
            elif not opened:
                return
            for each in list(opened):
                try:
                    yield next(each)
                except StopIteration:
                    opened.remove(each)

    # Formulas to cases

    def _cases(self, pending: tuple[Wish, ...], case: _Case, hops: int) -> Iterator[_Case]:
        if self._spent() or hops > MAX_HOPS or not case.types:
            return
        if not pending:
            yield case
            return
        (place, holds), rest = pending[0], pending[1:]
        if not isinstance(place.schema, dict):
            if place.schema is holds:
                yield from self._cases(rest, case, hops)
            return
        view = plain(place)
        branches = self._holding(view, place, case) if holds else self._failing(view, place, case)
        yield from self._in_turn(self._cases((*more, *rest), next_case, hops + 1) for more, next_case in branches)

    def _holding(self, view: dict[str, Any], place: Place, case: _Case) -> Iterator[tuple[tuple[Wish, ...], _Case]]:
        """What must hold besides, for each way in which the subschema can hold."""
        must: list[Wish] = []
        for name in REFERENCES:
            if isinstance(view.get(name), str):
                target = place.target(view[name])
                if target is None:
                    return
                must.append(Wish(target, True))
        must += [Wish(place.inner(each), True) for each in view.get("allOf", ())]
        if "not" in view:
            must.append(Wish(place.inner(view["not"]), False))
        types = case.types
        if "type" in view:
            types &= frozenset().union(*(TYPES_OF_NAME.get(name, frozenset()) for name in view["type"]))
        case = case._replace(types=types, shapes=(*case.shapes, (view, place)))
        ways: list[tuple[tuple[Wish, ...], _Case]] = [(tuple(must), case)]
        for choices in self._choices(view, place):
            ways = [
                ((*wishes, *more), so_far._replace(goals=(*so_far.goals, *goals), types=so_far.types & types))
                for more, goals, types in choices
                for wishes, so_far in ways[:64]
            ]
        yield from ways

    def _choices(
        self, view: dict[str, Any], place: Place
    ) -> Iterator[list[tuple[tuple[Wish, ...], tuple[_Goal, ...], frozenset[str]]]]:
        """The ways to satisfy each applicator that leaves one."""
        if "anyOf" in view:
            yield [((Wish(place.inner(each), True),), (), TYPES) for each in view["anyOf"]]
        if "oneOf" in view:
            members = [place.inner(each) for each in view["oneOf"]]
            yield [
                (tuple(Wish(each, each is one) for each in (one, *(m for m in members if m is not one))), (), TYPES)
                for one in members
            ]
        if "if" in view:
            test = place.inner(view["if"])
            then, other = (place.inner(view.get(name, True)) for name in ("then", "else"))
            yield [
                ((Wish(test, True), Wish(then, True)), (), TYPES),
                ((Wish(test, False), Wish(other, True)), (), TYPES),
            ]
        for name, needed in view.get("dependentSchemas", {}).items():
            yield [
                ((), (_Goal("lacks", name),), _OBJECT),
                ((Wish(place.inner(needed), True),), (_Goal("has", name),), _OBJECT),
                ((), (), TYPES - _OBJECT),
            ]

    def _failing(self, view: dict[str, Any], place: Place, case: _Case) -> Iterator[tuple[tuple[Wish, ...], _Case]]:
        """What must hold besides, for each way in which the subschema can fail: one keyword at a time."""

        def fails(*schemas: Any) -> tuple[Wish, ...]:
            return tuple(Wish(place.inner(each), False) for each in schemas)

        def goal(types: frozenset[str], *goals: _Goal) -> tuple[tuple[Wish, ...], _Case]:
            return (), case._replace(types=case.types & types, goals=(*case.goals, *goals))

        for keyword in sorted(view, key=_COSTLY.__contains__):
            value = view[keyword]
            if keyword == "type":
                admitted = frozenset().union(*(TYPES_OF_NAME.get(name, frozenset()) for name in value))
                yield (), case._replace(types=case.types - admitted)
                if place.draft == 4 and "integer" in value and "number" not in value:
                    yield (), case._replace(types=case.types & TYPES_OF_NAME["integer"])  # 1.0 is none in draft 4
            elif keyword in ("const", "enum"):
                yield (), case._replace(fails=(*case.fails, (keyword, value)))
            elif keyword in _SIMPLE:
                types = case.types & KEYWORD_TYPES[keyword]
                yield (), case._replace(types=types, fails=(*case.fails, (keyword, value)))
            elif keyword in REFERENCES:
                target = place.target(value) if isinstance(value, str) else None
                if target is not None:
                    yield (Wish(target, False),), case
            elif keyword == "allOf":
                for each in value:
                    yield fails(each), case
            elif keyword == "anyOf":
                yield fails(*value), case
            elif keyword == "oneOf":
                yield fails(*value), case
                members = [place.inner(each) for each in value]
                for index, one in enumerate(members):
                    for other in members[:index]:
                        yield (Wish(one, True), Wish(other, True)), case
            elif keyword == "not":
                yield (Wish(place.inner(value), True),), case
            elif keyword == "if":
                test = place.inner(value)
                if "then" in view:
                    yield (Wish(test, True), *fails(view["then"])), case
                if "else" in view:
                    yield (Wish(test, False), *fails(view["else"])), case
            elif keyword == "required":
                for name in value:
                    yield goal(_OBJECT, _Goal("lacks", name))
            elif keyword == "properties":
                for name, each in value.items():
                    if not _is_held(name, each, case):
                        yield goal(_OBJECT, _Goal("has", name, fails(each)))
            elif keyword == "patternProperties":
                for pattern, each in value.items():
                    yield goal(_OBJECT, _Goal("matching", pattern, fails(each)))
            elif keyword in ("additionalProperties", "unevaluatedProperties"):
                yield goal(_OBJECT, _Goal("other", view, fails(value)))
            elif keyword == "propertyNames":
                yield goal(_OBJECT, _Goal("name", None, fails(value)))
            elif keyword == "dependentRequired":
                for name, needed in value.items():
                    for each in needed:
                        yield goal(_OBJECT, _Goal("has", name), _Goal("lacks", each))
            elif keyword == "dependentSchemas":
                for name, each in value.items():
                    more, with_goal = goal(_OBJECT, _Goal("has", name))
                    yield (*more, *fails(each)), with_goal
            elif keyword == "prefixItems":
                for index, each in enumerate(value):
                    yield goal(_ARRAY, _Goal("at", index, fails(each)))
            elif keyword in ("items", "unevaluatedItems"):
                yield goal(_ARRAY, _Goal("from", len(view.get("prefixItems", ())), fails(value)))
            elif keyword == "contains":
                least = view.get("minContains", 1)
                if least == 1:
                    shape = ({"items": {"not": value}}, place)
                    yield (), case._replace(types=case.types & _ARRAY, shapes=(*case.shapes, shape))
                elif least > 1:
                    yield goal(_ARRAY, *(_Goal("from", 0, (Wish(place.inner(value), True),)) for _ in range(least - 1)))
                if "maxContains" in view and view["maxContains"] < MAX_LENGTH:
                    many = view["maxContains"] + 1
                    yield goal(_ARRAY, *(_Goal("from", 0, (Wish(place.inner(value), True),)) for _ in range(many)))
            elif keyword == "uniqueItems" and value is True:
                yield goal(_ARRAY, _Goal("twins", None))

    # Cases to values

    def _of_case(self, case: _Case, depth: int) -> Iterator[Any]:
        admitted, excluded = _admitted(case), _excluded(case)
        if admitted is not None:
            return (each for each in admitted if type_of(each) in case.types and identity(each) not in excluded)
        builders: tuple[tuple[str, Callable[[], Iterator[Any]]], ...] = (
            ("object", lambda: self._objects(case, depth)),
            ("array", lambda: self._arrays(case, depth)),
            ("string", lambda: self._strings(case)),
            ("integer", lambda: self._numbers(case, whole=True)),
            ("fraction", lambda: self._numbers(case, whole=False)),
            ("boolean", lambda: iter((True, False))),
            ("null", lambda: iter((None,))),
        )
        if depth >= 3:  # far down what is simple comes first
            builders = builders[2:] + builders[:2]
        found = self._in_turn(build() for name, build in builders if name in case.types)
        return (each for each in found if identity(each) not in excluded) if excluded else found

    def _numbers(self, case: _Case, *, whole: bool) -> Iterator[Any]:
        holds = [(k, view[k]) for view, _ in case.shapes for k in view if KEYWORD_TYPES.get(k) is _NUMBERS]
        fails = [(k, v) for k, v in case.fails if KEYWORD_TYPES.get(k) is _NUMBERS]
        edges: dict[Fraction, None] = {}
        steps = [Fraction(exact(v)) for k, v in chain(holds, fails) if k == "multipleOf" and v]
        step = math.prod({_positive(each) for each in steps}, start=Fraction(1)) if len(steps) < 5 else Fraction(1)
        near = [exact(v) for k, v in chain(fails, holds) if k != "multipleOf"]
        near += [Fraction(0)]
        near += [exact(each) for each in self._hints.numbers if math.isfinite(each)]
        for edge in near:
            for each in (edge, edge + 1, edge - 1, edge + Fraction(1, 2), edge - Fraction(1, 2)):
                edges[each] = None
            for size in (*steps, step):
                multiple = size * (edge // size)
                for each in (multiple, multiple + size, multiple - size, multiple + 2 * size):
                    edges[each] = None
        for each in (Fraction(1, 3), Fraction(1, 10), Fraction(1, 100), *(Fraction(n) for n in (7, 11, 97, 10**6))):
            edges[each] = None
        for edge in edges:
            if (edge.denominator == 1) is not whole:
                continue
            value: int | float = int(edge) if whole else _rounded(edge)
            if not whole and (not math.isfinite(value) or float(value).is_integer()):
                continue
            at = exact(value)
            if all(_number_holds(k, v, at) for k, v in holds) and not any(_number_holds(k, v, at) for k, v in fails):
                yield value
                if whole and self._oldest == 4 and abs(value) < 2**53:
                    yield float(value)

    def _strings(self, case: _Case) -> Iterator[str]:
        holds = [(k, view[k]) for view, _ in case.shapes for k in view if KEYWORD_TYPES.get(k) is _STRING]
        fails = [(k, v) for k, v in case.fails if KEYWORD_TYPES.get(k) is _STRING]
        shortest = max((int(v) for k, v in holds if k == "minLength"), default=0)
        shortest = max([shortest, *(int(v) + 1 for k, v in fails if k == "maxLength")])
        longest = min((int(v) for k, v in holds if k == "maxLength"), default=MAX_LENGTH)
        longest = min([longest, *(int(v) - 1 for k, v in fails if k == "minLength")])
        if shortest > min(longest, MAX_LENGTH) or longest < 0:
            return
        draft = case.shapes[0][1].draft if case.shapes else 20

        def admitted(text: str) -> bool:
            return (
                shortest <= len(text) <= longest
                and all(_string_holds(k, v, text, draft) for k, v in holds if k in _CHECKED)
                and not any(_string_holds(k, v, text, self._oldest) for k, v in fails if k in _CHECKED)
            )

        seen = set()
        for text in self._texts(
            [v for k, v in holds if k == "pattern"],
            [v for k, v in holds if k == "format"],
            shortest,
            min(longest, MAX_LENGTH),
            [v for k, v in fails if k == "pattern"],
        ):
            if text not in seen and admitted(text):
                seen.add(text)
                yield text

    def _texts(
        self, patterns: list[str], formats: list[str], shortest: int, longest: int, refused: list[str]
    ) -> Iterator[str]:
        for name in formats:
            yield from _FORMATTED.get(name, ())
        for pattern in patterns:
            for text in pattern_samples(pattern, shortest):
                yield text
                if len(text) < shortest:
                    yield text + "a" * (shortest - len(text))
                    yield "a" * (shortest - len(text)) + text
                    yield (text * (shortest // max(1, len(text)) + 1))[:shortest]
                yield from (text + "é", "a" + text[1:], text[:-1] + "a")
        for length in dict.fromkeys((shortest, shortest + 1, longest)):
            for character in "a0 é~A":
                if length <= longest:
                    yield character * length
        yield from ("", "a", "ab", "0", "-", " ", "A", "1.5", "YQ==", "\n", "😀", "a b", "null")
        yield from self._hints.strings
        for pattern in (*refused, *self._hints.patterns):
            for text in islice(pattern_samples(pattern, shortest), 4):
                yield from (text, text + "!", "!" + text, text.upper(), text[:-1])
        for name in self._hints.formats:
            yield from _FORMATTED.get(name, ())
        for text in self._hints.strings:
            yield from (text + "a", text.upper(), text[:-1])

    def _arrays(self, case: _Case, depth: int) -> Iterator[list[Any]]:
        least = max((int(view["minItems"]) for view, _ in case.shapes if "minItems" in view), default=0)
        least = max([least, *(int(v) + 1 for k, v in case.fails if k == "maxItems")])
        most = min((int(view["maxItems"]) for view, _ in case.shapes if "maxItems" in view), default=MAX_LENGTH)
        most = min([most, *(int(v) - 1 for k, v in case.fails if k == "minItems")])
        goals = [goal for goal in case.goals if goal.kind in ("at", "from", "twins")]
        for view, place in case.shapes:
            if "contains" in view:
                wish = Wish(place.inner(view["contains"]), True)
                goals += [_Goal("from", 0, (wish,))] * min(int(view.get("minContains", 1)), MAX_LENGTH)
        unique = any(view.get("uniqueItems") is True for view, _ in case.shapes)
        if least > min(most, MAX_LENGTH):
            return

        def wishes(index: int) -> tuple[Wish, ...]:
            found = []
            for view, place in case.shapes:
                prefix = view.get("prefixItems", ())
                if index < len(prefix):
                    found.append(Wish(place.inner(prefix[index]), True))
                elif "items" in view:
                    found.append(Wish(place.inner(view["items"]), True))
                elif "unevaluatedItems" in view and "contains" not in view:
                    found.append(Wish(place.inner(view["unevaluatedItems"]), True))
            return tuple(found)

        declared = max((len(view.get("prefixItems", ())) for view, _ in case.shapes), default=0)
        # One item may serve several goals, or each its own.
        for start, apart in product(dict.fromkeys((0, declared)), (True, False)):
            wanted: dict[int, list[Wish]] = {}
            twins = False
            free = start
            for goal in goals:
                if goal.kind == "twins":
                    twins = True
                    continue
                index = goal.key
                if goal.kind == "from":
                    index = max(goal.key, free)
                    free = index + apart
                wanted.setdefault(index, []).extend(goal.wishes)
            need = max([least, *(index + 1 for index in wanted), 2 if twins else 0])
            lengths = (need, need + 1, declared, declared + 1, min(most, 16), most if most < MAX_LENGTH else need)
            for length in dict.fromkeys(lengths):
                if need <= length <= min(most, MAX_LENGTH):
                    yield from self._filled(length, wanted, wishes, depth, unique=unique, twins=twins)

    def _filled(
        self,
        length: int,
        wanted: Mapping[int, list[Wish]],
        wishes: Callable[[int], tuple[Wish, ...]],
        depth: int,
        *,
        unique: bool,
        twins: bool,
    ) -> Iterator[list[Any]]:
        items: list[Any] = []
        taken: set[Hashable] = set()
        known: dict[tuple[int, ...], Any] = {}
        for index in range(length):
            if self._spent():
                return
            all_of = (*wanted.get(index, ()), *wishes(index))
            if twins and index and items:
                all_of = (*wanted.get(index, ()), *wishes(index))
            key = tuple(id(each.place.schema) * 2 + each.holds for each in all_of)
            if key in known and not unique:
                items.append(known[key])
                continue
            found = self.values(all_of, depth + 1)
            if unique:
                found = (each for each in found if identity(each) not in taken)
            try:
                items.append(next(found))
            except StopIteration:
                return
            known[key] = items[-1]
            taken.add(identity(items[-1]))
        if twins:
            items[-1] = items[0]
        yield items
        for index in [*wanted, *(i for i in range(min(length, 8)) if i not in wanted)]:
            all_of = (*wanted.get(index, ()), *wishes(index))
            for value in islice(self.values(all_of, depth + 1), 1, 24 if index in wanted else 6):
                yield [*items[:index], value, *items[index + 1 :]]
        if not unique and length and not wanted:
            for value in islice(self.values(wishes(length - 1), depth + 1), 1, 6):
                yield [value] * length

    def _objects(self, case: _Case, depth: int) -> Iterator[dict[str, Any]]:
        shapes = _Shapes(case.shapes)
        least = max((int(view["minProperties"]) for view, _ in case.shapes if "minProperties" in view), default=0)
        least = max([least, *(int(v) + 1 for k, v in case.fails if k == "maxProperties")])
        most = min((int(view["maxProperties"]) for view, _ in case.shapes if "maxProperties" in view), default=10**9)
        most = min([most, *(int(v) - 1 for k, v in case.fails if k == "minProperties")])
        if least > min(most, MAX_LENGTH):
            return
        lacking = {goal.key for goal in case.goals if goal.kind == "lacks"}
        fixed = {name: () for view, _ in case.shapes for name in view.get("required", ())}
        wanted: dict[str, tuple[Wish, ...]] = dict(fixed)
        open_goals = []
        for goal in case.goals:
            if goal.kind == "has":
                wanted[goal.key] = (*wanted.get(goal.key, ()), *goal.wishes)
            elif goal.kind in ("other", "matching", "name"):
                open_goals.append(goal)
        for chosen in self._chosen(wanted, open_goals, shapes, lacking, depth):
            yield from self._assembled(chosen, set(fixed), shapes, lacking, least, most, depth)

    def _chosen(
        self,
        wanted: dict[str, tuple[Wish, ...]],
        goals: list[_Goal],
        shapes: "_Shapes",
        lacking: set[str],
        depth: int,
    ) -> Iterator[dict[str, tuple[Wish, ...]]]:
        """Names for the properties that goals leave open."""
        if not goals:
            yield wanted
            return
        goal, rest = goals[0], goals[1:]
        for name in islice(self._names(goal, shapes, depth), 24):
            if name not in lacking:
                more = () if goal.kind == "name" else goal.wishes
                yield from self._chosen({**wanted, name: (*wanted.get(name, ()), *more)}, rest, shapes, lacking, depth)

    def _names(self, goal: _Goal, shapes: "_Shapes", depth: int) -> Iterator[str]:
        if goal.kind == "matching":
            candidates: Iterable[str] = chain(
                (name for name in self._hints.names if matches(goal.key, name)), pattern_samples(goal.key, 0)
            )
        elif goal.kind == "name":
            texts = self.values((*goal.wishes, *shapes.naming, Wish(_any_text(goal.wishes[0].place), True)), depth + 1)
            candidates = chain(
                (each for each in islice(texts, 12) if isinstance(each, str)),
                self._hints.names,
            )
        else:
            declared = goal.key.get("properties", {})
            patterns = goal.key.get("patternProperties", {})
            candidates = (
                name
                for name in self._some_names(shapes)
                if name not in declared and not any(matches(each, name) for each in patterns)
            )
        return (name for name in candidates if shapes.allows(name))

    def _some_names(self, shapes: "_Shapes") -> Iterator[str]:
        yield from shapes.declared
        yield from self._hints.names
        for pattern in (*shapes.patterns, *self._hints.patterns):
            yield from islice(pattern_samples(pattern, 0), 3)
        yield from ("extra", "a", "0", "", "x-extra", "Extra", "extra_property_with_a_long_name")
        for wish in shapes.naming[:1]:
            texts = self.values((*shapes.naming, Wish(_any_text(wish.place), True)), self._max_depth - 1)
            yield from (each for each in islice(texts, 8) if isinstance(each, str))

    def _assembled(
        self,
        chosen: Mapping[str, tuple[Wish, ...]],
        required: set[str],
        shapes: "_Shapes",
        lacking: set[str],
        least: int,
        most: int,
        depth: int,
    ) -> Iterator[dict[str, Any]]:
        """Objects with the chosen properties: nothing else, then with all that is declared, then one at a time."""
        names = shapes.closed(chosen)
        if names & lacking or len(names) > most:
            return
        base: dict[str, Any] = {}
        for name in sorted(names, key=lambda each: (each not in chosen, each not in required)):
            if self._spent():
                return
            value = next(self.values((*chosen.get(name, ()), *shapes.wishes(name)), depth + 1), _NOTHING)
            if value is _NOTHING:
                return
            base[name] = value
        spare = self._spare(base, lacking, shapes)
        padded = dict(base)
        while len(padded) < least:
            spared = next(spare, None)
            if spared is None or self._spent():
                return
            if spared not in padded and spared not in lacking:
                value = next(self.values(shapes.wishes(spared), depth + 1), _NOTHING)
                if value is not _NOTHING:
                    padded[spared] = value
        yield padded
        goals = [name for name in chosen if chosen[name]]
        for name in (*goals, *(each for each in base if each not in goals)):
            wishes = (*chosen.get(name, ()), *shapes.wishes(name))
            for value in islice(self.values(wishes, depth + 1), 1, 48 if name in goals else 8):
                yield {**padded, name: value}
        optional = [name for name in shapes.declared if name not in base and name not in lacking]
        if depth > 6:
            optional = []
        full = dict(padded)
        for name in optional:
            if self._spent():
                return
            for index, value in enumerate(islice(self.values(shapes.wishes(name), depth + 1), 6)):
                if len(padded) < most:
                    yield {**padded, name: value}
                if not index and len(full) < most:
                    full[name] = value
        if len(full) > len(padded) + 1:
            yield full
        if most < MAX_LENGTH and len(padded) < most:
            for name in islice(spare, 2 * most):
                if len(padded) >= most:
                    break
                if name not in padded and name not in lacking:
                    value = next(self.values(shapes.wishes(name), depth + 1), _NOTHING)
                    if value is not _NOTHING:
                        padded[name] = value
            yield padded

    def _spare(self, base: Mapping[str, Any], lacking: set[str], shapes: "_Shapes") -> Iterator[str]:
        yield from shapes.declared
        yield from (name for name in self._hints.names if shapes.allows(name))
        for pattern in dict.fromkeys((*shapes.patterns, *self._hints.patterns)):
            stem = next(pattern_samples(pattern, 0), "")
            yield from (f"{stem}{index}" for index in range(64) if shapes.allows(f"{stem}{index}"))
        yield from (name for name in "abcdefghijklmnopqrstuvwxyz" if shapes.allows(name))
        yield from (name for name in (f"k{index}" for index in range(2 * MAX_LENGTH)) if shapes.allows(name))


_COSTLY = frozenset({"properties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "items", "prefixItems"})
"""Keywords that can fail in many ways; those that can fail in one come first."""


def _is_held(name: str, schema: Any, case: _Case) -> bool:
    """Whether a property must satisfy word for word what is asked to fail, so that it cannot."""
    return any(
        name in view.get("properties", ())
        and repr(view["properties"][name]) == repr(schema)
        and "$" not in repr(schema)
        for view, _ in case.shapes
    )


class _Nothing:
    pass


_NOTHING = _Nothing()


class _Shapes:
    """What the subschemas of a case say together of an object's properties."""

    def __init__(self, shapes: tuple[tuple[dict[str, Any], Place], ...]) -> None:
        self._shapes = shapes
        self.declared = tuple(dict.fromkeys(name for view, _ in shapes for name in view.get("properties", ())))
        self.patterns = tuple(dict.fromkeys(each for view, _ in shapes for each in view.get("patternProperties", ())))
        self.naming = tuple(
            Wish(place.inner(view["propertyNames"]), True) for view, place in shapes if "propertyNames" in view
        )

    def wishes(self, name: str) -> tuple[Wish, ...]:
        """What the value of a property must be."""
        found = []
        for view, place in self._shapes:
            here = []
            if name in view.get("properties", ()):
                here.append(view["properties"][name])
            here += [each for pattern, each in view.get("patternProperties", {}).items() if matches(pattern, name)]
            if not here and "additionalProperties" in view:
                here.append(view["additionalProperties"])
            if not here and "unevaluatedProperties" in view and name not in self.declared:
                here.append(view["unevaluatedProperties"])
            found += [Wish(place.inner(each), True) for each in here if each is not True]
        return tuple(found)

    def allows(self, name: str) -> bool:
        """Whether there can be a property of this name, as far as that is quickly known."""
        if any(wish.place.schema is False for wish in self.wishes(name)):
            return False
        return all(_name_holds(wish.place, name) for wish in self.naming)

    def closed(self, names: Iterable[str]) -> set[str]:
        """The names with those that they make necessary."""
        found = set(names)
        rest = list(found)
        while rest:
            name = rest.pop()
            for view, _ in self._shapes:
                for needed in view.get("dependentRequired", {}).get(name, ()):
                    if needed not in found:
                        found.add(needed)
                        rest.append(needed)
        return found


_SIMPLE = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
    | {
        "pattern",
        "format",
        "contentEncoding",
        "contentMediaType",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
    }
)


_CHECKED = frozenset({"pattern", "format", "contentEncoding", "contentMediaType"})
"""Keywords of strings that the validator is asked about."""


def _any_text(place: Place) -> Place:
    return place._replace(schema={"type": "string"})


def _admitted(case: _Case) -> list[Any] | None:
    """The values that `const` and `enum` leave, None where there is neither."""
    found: list[Any] | None = None
    for view, _ in case.shapes:
        for listed in ([view["const"]] if "const" in view else None, view.get("enum")):
            if isinstance(listed, list):
                here = set(map(identity, listed))
                found = [each for each in (listed if found is None else found) if identity(each) in here]
    return found


def _excluded(case: _Case) -> set[Hashable]:
    return {identity(x) for k, v in case.fails if k in ("const", "enum") for x in ([v] if k == "const" else v)}


def type_of(value: Any) -> str:
    if isinstance(value, float):
        return "integer" if value.is_integer() else "fraction"
    return _TYPE_OF[type(value)]


_TYPE_OF = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", type(None): "null"}


def identity(value: Any) -> Hashable:
    """What is equal for equal JSON values and for no others: 1 is 1.0, and neither is true."""
    if isinstance(value, list):
        return "array", tuple(map(identity, value))
    if isinstance(value, dict):
        return "object", frozenset((key, identity(each)) for key, each in value.items())
    return isinstance(value, bool), value


def is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal."""
    return identity(one) == identity(other)


def exact(value: int | float) -> Fraction:
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _positive(value: Fraction) -> Fraction:
    return abs(value) or Fraction(1)


def _number_holds(keyword: str, limit: int | float, value: Fraction) -> bool:
    bound = exact(limit)
    if keyword == "multipleOf":
        return bound == 0 or value % bound == 0
    return {
        "minimum": value >= bound,
        "maximum": value <= bound,
        "exclusiveMinimum": value > bound,
        "exclusiveMaximum": value < bound,
    }[keyword]


@lru_cache(maxsize=2_048)
def _checker(keyword: str, value: str, draft: int) -> Callable[[Any], bool]:
    classes = {4: jsonschema_rs.Draft4Validator, 6: jsonschema_rs.Draft6Validator, 7: jsonschema_rs.Draft7Validator}
    classes |= {19: jsonschema_rs.Draft201909Validator, 20: jsonschema_rs.Draft202012Validator}
    try:
        return classes[draft]({keyword: value}).is_valid
    except ValueError:
        return lambda _: True


def _string_holds(keyword: str, value: str, text: str, draft: int) -> bool:
    try:
        return _checker(keyword, value, draft)(text)
    except ValueError:
        return True


def matches(pattern: str, name: str) -> bool:
    return _string_holds("pattern", pattern, name, 20)


def _name_holds(place: Place, name: str) -> bool:
    if not isinstance(place.schema, dict):
        return bool(place.schema)
    view = plain(place)
    return all(
        _string_holds(keyword, view[keyword], name, place.draft) for keyword in ("pattern", "format") if keyword in view
    ) and view.get("minLength", 0) <= len(name) <= view.get("maxLength", math.inf)


_FORMATTED: Mapping[str, tuple[str, ...]] = {
    "date-time": ("2024-02-29T12:30:45Z", "1985-04-12T23:20:50.52+01:00"),
    "date": ("2024-02-29", "1985-04-12"),
    "time": ("12:30:45Z", "23:20:50.52+01:00"),
    "duration": ("P1D", "PT4H"),
    "email": ("ada@example.org", "a@b.co"),
    "idn-email": ("ada@example.org", "é@exämple.org"),
    "hostname": ("example.org", "localhost"),
    "idn-hostname": ("example.org", "exämple.org"),
    "ipv4": ("192.0.2.1", "10.0.0.1"),
    "ipv6": ("2001:db8::1", "::1"),
    "uri": ("https://example.org/a?b#c", "urn:a:b"),
    "uri-reference": ("/a/b?c", "https://example.org/"),
    "iri": ("https://example.org/é", "https://example.org/"),
    "iri-reference": ("/é", "/a"),
    "uri-template": ("https://example.org/{a}", "/a"),
    "uuid": ("3e4666bf-d5e5-4aa7-b8ce-cefe41c7568a", "00000000-0000-0000-0000-000000000000"),
    "json-pointer": ("/a/b", ""),
    "relative-json-pointer": ("1/a", "0#"),
    "regex": ("a+", "^b$"),
}


# Patterns to strings

_parser: Any = importlib.import_module("re._parser")
"""The standard library's own parser of regular expressions. Private to it, yet the same since 1998 under one name or
another; the alternative is a parser of our own."""


def pattern_samples(pattern: str, shortest: int) -> Iterator[str]:
    """Strings that a pattern matches, as far as Python's dialect and JSON Schema's agree; the caller checks."""
    try:
        tree = _parser.parse(pattern)
    except (ValueError, RecursionError, OverflowError, _ERROR):
        return
    seen = set()
    for extra in dict.fromkeys((0, 1, 2, min(shortest, MAX_LENGTH))):
        for pick in (0, 1, 2, 3, 5):
            try:
                text = _spelled(tree, extra, pick)
            except (_Dead, RecursionError):
                continue
            if text not in seen and len(text) <= MAX_LENGTH:
                seen.add(text)
                yield text


_ERROR = importlib.import_module("re").error


class _Dead(Exception):
    """No sample along this way."""


def _spelled(tree: Any, extra: int, pick: int) -> str:
    return "".join(_spelled_one(str(op), argument, extra, pick) for op, argument in tree)


def _spelled_one(op: str, argument: Any, extra: int, pick: int) -> str:
    match op:
        case "LITERAL":
            return chr(argument)
        case "NOT_LITERAL":
            return next(each for each in "ab" if ord(each) != argument)
        case "ANY":
            return "axz0"[pick % 4]
        case "IN":
            return _one_of(argument, pick)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, inner = argument
            times = min(int(least) + extra, int(most))
            if times > MAX_LENGTH:
                raise _Dead
            return _spelled(inner, min(extra, 2), pick) * times
        case "SUBPATTERN":
            return _spelled(argument[3], extra, pick)
        case "ATOMIC_GROUP":
            return _spelled(argument, extra, pick)
        case "BRANCH":
            branches = argument[1]
            return _spelled(branches[pick % len(branches)], extra, pick)
        case "AT" | "ASSERT_NOT":
            return ""
        case "ASSERT":
            direction, inner = argument
            return "" if direction < 0 or pick % 2 else _spelled(inner, extra, pick)
        case _:
            raise _Dead


_CLASSES = {"CATEGORY_DIGIT": "0123456789", "CATEGORY_WORD": "a0_Z", "CATEGORY_SPACE": " \t"}
_OTHERS = {"CATEGORY_NOT_DIGIT": "0", "CATEGORY_NOT_WORD": "a", "CATEGORY_NOT_SPACE": " "}


def _one_of(members: Any, pick: int) -> str:
    inside: list[str] = []
    is_negated = False
    ranges: list[tuple[int, int]] = []
    for op, argument in members:
        match str(op):
            case "NEGATE":
                is_negated = True
            case "LITERAL":
                inside.append(chr(argument))
                ranges.append((argument, argument))
            case "RANGE":
                low, high = argument
                ranges.append((low, high))
                inside += [chr(each) for each in (low, high, (low + high) // 2) if not 0xD800 <= each <= 0xDFFF]
            case "CATEGORY":
                known = _CLASSES.get(str(argument))
                inside += known or "-é"
                ranges += [(ord(each), ord(each)) for each in known or "-é"]
    if not is_negated:
        if not inside:
            raise _Dead
        return inside[pick % len(inside)]
    outside = [each for each in "az0A -_é" if not any(low <= ord(each) <= high for low, high in ranges)]
    if not outside:
        raise _Dead
    return outside[pick % len(outside)]
