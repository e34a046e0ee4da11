"""Two schemas become a proof that the one admits all that the other does, where one can be read off their structure.

It proves what `jsonschema_rs`' canonical forms leave open: recursive schemas that are spelled differently, schemas of
two drafts, members that only the rest of an object's keywords constrain. Each keyword of the reader must follow from
keywords of the writer at the same place. The proof is coinductive: a pair of subschemas that is met again further down
in the value is taken as proven, for values are finite. False means "not proven", never "refuted".
"""

import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import jsonschema_rs

from handrail.schema.witness import (
    KEYWORD_TYPES,
    REFERENCES,
    TYPES,
    TYPES_OF_NAME,
    Place,
    exact,
    identity,
    matches,
    plain,
    type_of,
)

STEPS = 20_000
"""Pairs of subschemas that are looked at before the proof is given up."""
MAX_TRAIL = 96

Writers = tuple[Place, ...]
"""What is known of the value at one place: every one of these holds."""


def follows(writer: Place, reader: Place, spent: Callable[[], bool]) -> bool:
    """Whether each value that `writer` admits is proven to be admitted by `reader`."""
    return _Proof(spent).follows((writer,), reader, {}, 0)


class _Known:
    """The conjunction of what the writers say, with references and `allOf` followed."""

    def __init__(self, writers: Writers) -> None:
        self.views: list[tuple[dict[str, Any], Place]] = []
        self.is_empty = False
        seen: set[int] = set()
        rest = list(writers)
        while rest and len(self.views) < 64:
            place = rest.pop(0)
            if place.schema is False:
                self.is_empty = True
            if not isinstance(place.schema, dict) or id(place.schema) in seen:
                continue
            seen.add(id(place.schema))
            view = plain(place)
            self.views.append((view, place))
            # What a dynamic reference leads to depends on how the schema was entered: nothing is known from it.
            target = place.target(view["$ref"]) if isinstance(view.get("$ref"), str) else None
            if target is not None:
                rest.append(target)
            rest.extend(place.inner(each) for each in view.get("allOf", ()))
        self.types = TYPES
        for view, _ in self.views:
            if "type" in view:
                self.types &= frozenset().union(*(TYPES_OF_NAME.get(name, frozenset()) for name in view["type"]))
        listed = self.listed()
        if not self.types or (listed is not None and not any(type_of(each) in self.types for each in listed)):
            self.is_empty = True

    def listed(self) -> list[Any] | None:
        """The values that can be, where they are listed."""
        for view, _ in self.views:
            if "const" in view:
                return [view["const"]]
            if "enum" in view:
                return list(view["enum"])
        return None

    def is_of_later_draft(self) -> bool:
        """Whether an integer may be written 1.0, which draft 4 refuses where it asks for an integer."""
        return any(place.draft > 4 for _, place in self.views)

    def of(self, keyword: str) -> list[Any]:
        """The values of a keyword, wherever it stands."""
        return [view[keyword] for view, _ in self.views if keyword in view]

    def member(self, name: str) -> Writers:
        """What is known of a property's value."""
        found = []
        for view, place in self.views:
            here = [view["properties"][name]] if name in view.get("properties", ()) else []
            here += [each for pattern, each in view.get("patternProperties", {}).items() if matches(pattern, name)]
            if not here and "additionalProperties" in view:
                here.append(view["additionalProperties"])
            found += [place.inner(each) for each in here]
        return tuple(found)

    def item(self, index: int) -> Writers:
        """What is known of an item."""
        found = []
        for view, place in self.views:
            prefix = view.get("prefixItems", ())
            if index < len(prefix):
                found.append(place.inner(prefix[index]))
            elif "items" in view:
                found.append(place.inner(view["items"]))
        return tuple(found)

    def names(self) -> list[str]:
        """Properties that are declared."""
        return list(dict.fromkeys(name for view, _ in self.views for name in view.get("properties", ())))


class _Proof:
    def __init__(self, spent: Callable[[], bool]) -> None:
        self._spent = spent
        self._steps = 0
        self._failed: set[tuple[int, ...]] = set()
        self._kept: list[Place] = []

    def follows(self, writers: Writers, reader: Place, trail: Mapping[tuple[int, ...], int], level: int) -> bool:
        if reader.schema is True or reader.schema == {}:
            return True
        self._steps += 1
        if self._steps > STEPS or self._spent():
            return False
        key = (*sorted(id(each.schema) for each in writers), id(reader.schema))
        if key in self._failed or len(trail) > MAX_TRAIL:
            return False
        if key in trail:
            return trail[key] < level
        self._kept += [*writers, reader]  # ids are names only as long as their objects live
        inner = {**trail, key: level}
        if self._follows(writers, reader, inner, level):
            return True
        self._failed.add(key)
        return False

    def _follows(self, writers: Writers, reader: Place, trail: Mapping[tuple[int, ...], int], level: int) -> bool:
        known = _Known(writers)
        if known.is_empty:
            return True
        if not isinstance(reader.schema, dict):
            return False
        view = plain(reader)
        if all(self._holds(keyword, view, known, writers, reader, trail, level) for keyword in view):
            return True
        for split, place in known.views:
            for keyword in ("anyOf", "oneOf"):
                branches = split.get(keyword, ())
                is_split = any(each.schema is branch for each in writers for branch in branches)
                if branches and len(branches) <= 64 and not is_split:
                    rest = tuple(each for each in writers if each.schema is not place.schema)
                    # What is unevaluated depends on the applicator that is taken away here: it goes with it.
                    gone = (keyword, "unevaluatedItems", "unevaluatedProperties")
                    remains = {k: v for k, v in split.items() if k not in gone}
                    fixed = (*rest, place._replace(schema=remains)) if place in writers else writers
                    if all(
                        self.follows((*fixed, place.inner(branch)), reader, trail, level) for branch in split[keyword]
                    ):
                        return True
        if (
            len(known.types) > 1
            and ("anyOf" in view or "oneOf" in view)
            and not any("type" in v for v, _ in known.views)
        ):
            return False
        for split, place in known.views:
            if len(split.get("type", ())) > 1 and place in writers:
                rest = tuple(each for each in writers if each.schema is not place.schema)
                return all(
                    self.follows((*rest, place._replace(schema={**split, "type": [name]})), reader, trail, level)
                    for name in split["type"]
                )
        return _is_covered(writers, reader)

    def _holds(
        self,
        keyword: str,
        view: dict[str, Any],
        known: _Known,
        writers: Writers,
        reader: Place,
        trail: Mapping[tuple[int, ...], int],
        level: int,
    ) -> bool:
        """Whether one keyword of the reader follows from what is known."""
        value = view[keyword]

        def here(schema: Any) -> bool:
            return self.follows(writers, reader.inner(schema), trail, level)

        def below(found: Writers, schema: Any) -> bool:
            return self.follows(found, reader.inner(schema), trail, level + 1)

        of_types = KEYWORD_TYPES.get(keyword)
        if of_types is not None and not known.types & of_types:
            return True
        if keyword in _ORDERED:
            return _ORDERED[keyword](value, known)
        match keyword:
            case "$dynamicRef" | "$recursiveRef" | "dependencies":
                return False
            case "$ref":
                target = reader.target(value) if isinstance(value, str) else None
                return target is not None and self.follows(writers, target, trail, level)
            case "type":
                admitted = frozenset().union(*(TYPES_OF_NAME.get(name, frozenset()) for name in value))
                if reader.draft == 4 and "integer" in value and "number" not in value and known.is_of_later_draft():
                    return False
                listed = known.listed()
                return known.types <= admitted or (listed is not None and _are_of(listed, admitted))
            case "const" | "enum":
                admitted_values = [value] if keyword == "const" else value
                listed = known.listed()
                return listed is not None and set(map(identity, listed)) <= set(map(identity, admitted_values))
            case "allOf":
                return all(here(each) for each in value)
            case "anyOf":
                return any(here(each) for each in value)
            case "oneOf":
                members = [reader.inner(each) for each in value]
                return any(
                    all(each is one or _Known((*writers, each)).is_empty for each in members)
                    and self.follows(writers, one, trail, level)
                    for one in members
                )
            case "not" if _Known((*writers, reader.inner(value))).is_empty:
                return True
            case "not" if any(
                self.follows((reader.inner(value),), place.inner(v["not"]), trail, level)
                for v, place in known.views
                if "not" in v
            ):
                return True
            case "if":
                return here(view.get("then", True)) and here(view.get("else", True))
            case "required":
                promised = {name for names in known.of("required") for name in names}
                return set(value) <= promised
            case "properties":
                return all(below(known.member(name), each) for name, each in value.items())
            case "patternProperties" | "additionalProperties":
                return all(below(found, schema) for found, schema in self._open_members(keyword, view, known))
            case "propertyNames":
                if any(
                    below((place.inner(v["propertyNames"]),), value) for v, place in known.views if "propertyNames" in v
                ):
                    return True
                if any(
                    v.get("additionalProperties") is False and not v.get("patternProperties") for v, _ in known.views
                ):
                    return all(below((_only(reader, name),), value) for name in known.names())
                return below((reader._replace(schema={"type": "string"}),), value)
            case "dependentRequired":
                promised = {name for names in known.of("required") for name in names}
                return all(
                    set(needed) <= promised
                    or _Known(known.member(name)).is_empty
                    or any(set(needed) <= set(each.get(name, ())) for each in known.of("dependentRequired"))
                    for name, needed in value.items()
                )
            case "dependentSchemas":
                return all(
                    _Known(known.member(name)).is_empty
                    or here(each)
                    or any(
                        self.follows(
                            (*writers, place.inner(v["dependentSchemas"][name])), reader.inner(each), trail, level
                        )
                        for v, place in known.views
                        if name in v.get("dependentSchemas", ())
                    )
                    for name, each in value.items()
                )
            case "prefixItems":
                most = min(known.of("maxItems"), default=len(value))
                return all(below(known.item(index), each) for index, each in enumerate(value) if index < most)
            case "items":
                start = len(view.get("prefixItems", ()))
                longest = max((len(v.get("prefixItems", ())) for v, _ in known.views), default=0)
                most = min(known.of("maxItems"), default=None)
                return all(
                    below(known.item(index), value)
                    for index in range(start, max(start, longest) + 1)
                    if most is None or index < most
                )
            case "contains":
                if view.get("minContains", 1) == 0 and "maxContains" not in view:
                    return True
                if "maxContains" in view:
                    return _alike(known, view, reader)
                least = view.get("minContains", 1)
                if any(
                    below((place.inner(theirs["contains"]),), value)
                    for theirs, place in known.views
                    if "contains" in theirs and theirs.get("minContains", 1) >= least
                ):
                    return True
                if least > 1:
                    return False
                return max(known.of("minItems"), default=0) >= 1 and below(known.item(0), value)
            case "uniqueItems":
                return value is not True or True in known.of("uniqueItems") or min(known.of("maxItems"), default=9) <= 1
            case "pattern":
                return value in known.of("pattern") or admits_everything(value)
            case "format":
                if reader.draft >= 19:
                    return True
                return any(v.get("format") == value and place.draft <= 7 for v, place in known.views)
            case "contentEncoding" | "contentMediaType":
                return reader.draft >= 19 or any(v.get(keyword) == value and p.draft <= 7 for v, p in known.views)
            case "not" | "unevaluatedProperties" | "unevaluatedItems":
                return (
                    (value is False and keyword == "not")
                    or (value is True and keyword != "not")
                    or _alike(known, view, reader)
                )
            case _:
                return True

    def _open_members(self, keyword: str, view: dict[str, Any], known: _Known) -> Iterator[tuple[Writers, Any]]:
        """For each kind of member that the keyword reaches: what is known of it, and what it must be."""
        declared = view.get("properties", {})
        patterns = view.get("patternProperties", {})
        if keyword == "additionalProperties":
            for name in known.names():
                if name not in declared and not any(matches(each, name) for each in patterns):
                    yield known.member(name), view[keyword]
            # A name that no one declares: it is under each writer's pattern or additional, whichever it falls under.
            best: list[Writers] = []
            for writer, place in known.views:
                options = [each for each in writer.get("patternProperties", {}) if each not in patterns]
                if "additionalProperties" in writer:
                    if not options:
                        best.append((place.inner(writer["additionalProperties"]),))
                    else:
                        union = [
                            writer["additionalProperties"],
                            *(writer["patternProperties"][each] for each in options),
                        ]
                        best.append((place.inner({"anyOf": union}),))
            yield tuple(each for group in best for each in group), view[keyword]
            return
        for pattern, schema in patterns.items():
            for name in known.names():
                if matches(pattern, name):
                    yield known.member(name), schema
            found = []
            for writer, place in known.views:
                theirs = writer.get("patternProperties", {})
                if pattern in theirs:
                    found.append(place.inner(theirs[pattern]))
                elif "additionalProperties" in writer:
                    union = [writer["additionalProperties"], *theirs.values()]
                    found.append(place.inner({"anyOf": union} if theirs else union[0]))
            yield tuple(found), schema


def _only(place: Place, name: str) -> Place:
    return place._replace(schema={"const": name})


def _are_of(values: list[Any], types: frozenset[str]) -> bool:
    return all(type_of(each) in types for each in values)


def _alike(known: _Known, view: dict[str, Any], reader: Place) -> bool:
    """Whether a writer says word for word what the reader does, in the same draft and without references."""
    return any(writer == view and place.draft == reader.draft and not _refers(view) for writer, place in known.views)


def _refers(schema: Any) -> bool:
    if isinstance(schema, dict):
        return any(name in schema for name in REFERENCES) or any(map(_refers, schema.values()))
    return isinstance(schema, list) and any(map(_refers, schema))


def _is_covered(writers: Writers, reader: Place) -> bool:
    """The canonical forms' answer, where no reference leads out of the subschemas."""
    if not writers or any(each.draft != reader.draft for each in writers):
        return False
    schemas = [each.schema for each in writers]
    if any(map(_refers, [*schemas, reader.schema])):
        return False
    writer = schemas[0] if len(schemas) == 1 else {"allOf": schemas}
    try:
        wide, narrow = (
            jsonschema_rs.canonicalize(each, draft=_DRAFTS[reader.draft]) for each in (reader.schema, writer)
        )
        return str(wide.covers(narrow)) == "yes"
    except (ValueError, TypeError):
        return False


_DRAFTS = {
    4: jsonschema_rs.Draft4,
    6: jsonschema_rs.Draft6,
    7: jsonschema_rs.Draft7,
    19: jsonschema_rs.Draft201909,
    20: jsonschema_rs.Draft202012,
}


def admits_everything(pattern: str) -> bool:
    """Whether a pattern certainly matches every string: it can match nothing at all, and looks at nothing around it.

    Patterns are not anchored, so one that matches the empty string is found at the start of each.
    """
    if any(each in pattern for each in "^$\\") or "(?" in pattern:
        return False
    try:
        return re.match(pattern, "") is not None
    except (re.error, RecursionError, OverflowError):
        return False


def _least(value: Any, known: _Known, keyword: str) -> bool:
    return any(each >= value for each in known.of(keyword))


def _most(value: Any, known: _Known, keyword: str) -> bool:
    return any(each <= value for each in known.of(keyword))


def _is_multiple(value: Any, known: _Known) -> bool:
    step = exact(value)
    if any((exact(each) / step).denominator == 1 for each in known.of("multipleOf")):
        return True
    return "fraction" not in known.types and (Fraction(1) / step).denominator == 1


_ORDERED: Mapping[str, Callable[[Any, _Known], bool]] = {
    "minimum": lambda v, k: _least(v, k, "minimum") or _least(v, k, "exclusiveMinimum"),
    "exclusiveMinimum": lambda v, k: _least(v, k, "exclusiveMinimum") or any(each > v for each in k.of("minimum")),
    "maximum": lambda v, k: _most(v, k, "maximum") or _most(v, k, "exclusiveMaximum"),
    "exclusiveMaximum": lambda v, k: _most(v, k, "exclusiveMaximum") or any(each < v for each in k.of("maximum")),
    "multipleOf": _is_multiple,
    "minLength": lambda v, k: v == 0 or _least(v, k, "minLength"),
    "maxLength": lambda v, k: _most(v, k, "maxLength"),
    "minItems": lambda v, k: v == 0 or _least(v, k, "minItems"),
    "maxItems": lambda v, k: _most(v, k, "maxItems"),
    "minProperties": lambda v, k: (
        v == 0 or _least(v, k, "minProperties") or any(len(set(each)) >= v for each in k.of("required"))
    ),
    "maxProperties": lambda v, k: (
        _most(v, k, "maxProperties")
        or any(
            w.get("additionalProperties") is False
            and not w.get("patternProperties")
            and len(w.get("properties", ())) <= v
            for w, _ in k.views
        )
    ),
}
