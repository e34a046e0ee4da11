"""Two versions of a schema become the changes that Confluent's Schema Registry does not allow: its strict policy.

That registry compares how schemas are written, keyword by keyword, and lets a closed list of changes pass. Its rules
differ from what payloads say in both directions: an optional property may not be added to an open object (some payload
may have used the name), a required one may be added to a closed object where it has a `default` (which no validator
fills in). It is here for those who come from it and want its answers; the behaviour follows the documentation and the
published tests of the registry, version 8.

Content models: an object is *open* where it says nothing about other members, *closed* where it refuses them, and
*partially open* where `patternProperties` or a schema in `additionalProperties` constrain them. Likewise arrays.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from handrail.schema.difference import ANNOTATIONS, Change, escaped
from handrail.schema.witness import Place, exact, identity, is_same, matches, plain

MAX_DEPTH = 64

Broken = tuple[Change, str]


def broken(writer: Place, reader: Place) -> list[Broken]:
    """The changes from what `writer` wrote to what `reader` reads that are not allowed, each with the rule."""
    return list(_compare(writer, reader, "", frozenset()))


_LOWER_IS_STRICTER = ("maxLength", "maximum", "exclusiveMaximum", "maxProperties", "maxItems")
_HIGHER_IS_STRICTER = ("minLength", "minimum", "exclusiveMinimum", "minProperties", "minItems")

_KEYWORDS_OF: Mapping[str, frozenset[str]] = {
    "object": frozenset(
        {"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}
        | {"maxProperties", "minProperties", "dependentRequired", "dependentSchemas"}
    ),
    "array": frozenset({"items", "prefixItems", "maxItems", "minItems", "uniqueItems", "contains"}),
    "string": frozenset({"maxLength", "minLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
}
_COMBINED = ("allOf", "anyOf", "oneOf")


def _resolved(place: Place) -> Place:
    for _ in range(32):
        reference = place.schema.get("$ref") if isinstance(place.schema, dict) else None
        target = place.target(reference) if isinstance(reference, str) else None
        if target is None:
            return place
        place = target
    return place


def _kind(place: Place) -> str:
    """What sort of schema it is: a type, `enum`, `not`, a combination, `empty` or `false`."""
    place = _resolved(place)
    if place.schema is False:
        return "false"
    if not isinstance(place.schema, dict):
        return "empty"
    view = plain(place)
    if _members(place) is not None:
        return "combined"
    if "const" in view or "enum" in view:
        return "enum"
    if "not" in view:
        return "not"
    types = view.get("type", ())
    if types:
        return "number" if types[0] in ("integer", "number") else str(types[0])
    return next((kind for kind, words in _KEYWORDS_OF.items() if words & set(view)), "empty")


def _members(place: Place) -> tuple[str, list[Place]] | None:
    """The combination that a schema is, and of what; None where it is none."""
    view = plain(place)
    parts = [(word, [place.inner(each) for each in view[word]]) for word in _COMBINED if view.get(word)]
    rest = {key: value for key, value in view.items() if key not in _COMBINED}
    types = rest.get("type", ())
    if len(types) > 1:
        wide = [place._replace(schema={**rest, "type": [name]}) for name in types]
        parts.append(("anyOf", wide))
    elif parts and set(rest) - ANNOTATIONS:
        parts.append(("allOf", [place._replace(schema=rest)]))
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    members = [
        member
        for word, group in parts
        for member in (group if word == "allOf" else [place._replace(schema={word: [each.schema for each in group]})])
    ]
    return "allOf", members


def _compare(old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> Iterator[Broken]:
    old, new = _resolved(old), _resolved(new)
    key = id(old.schema), id(new.schema)
    if key in above or len(above) > MAX_DEPTH:
        return
    above |= {key}
    before, after = _kind(old), _kind(new)
    if before == "false" or after == "empty":
        return
    if before != "combined" and after == "combined":
        word, members = _members(new) or ("", [])
        if (len(members) == 1 or word != "allOf") and any(
            not any(_compare(old, member, path, above)) for member in members
        ):
            return
    if before == "combined" and after != "combined":
        _, members = _members(old) or ("", [])
        if len(members) == 1 and not any(_compare(members[0], new, path, above)):
            return
    if before != after:
        yield Change("changed", path, "type", old.schema, new.schema), f"The kind of schema changed: {before}, {after}."
        return
    one, other = (plain(old), plain(new)) if before != "empty" else ({}, {})
    if before == "combined":
        yield from _combined(old, new, path, above)
    elif before == "enum":
        listed = [([view["const"]] if "const" in view else view["enum"]) for view in (one, other)]
        if not set(map(identity, listed[0])) <= set(map(identity, listed[1])):
            yield Change("changed", path, "enum", *listed), "Values may not be taken out of an enumeration."
    elif before == "not":
        if any(_compare(new.inner(other["not"]), old.inner(one["not"]), path, above)):
            yield Change("changed", path, "not", one["not"], other["not"]), "What is excluded may not grow."
    else:
        yield from _bounds(one, other, path)
        if before == "object":
            yield from _objects(old, new, path, above)
        elif before == "array":
            yield from _arrays(old, new, path, above)


def _bounds(one: dict[str, Any], other: dict[str, Any], path: str) -> Iterator[Broken]:
    for keyword in (*_LOWER_IS_STRICTER, *_HIGHER_IS_STRICTER):
        a, b = one.get(keyword), other.get(keyword)
        if b is not None and (a is None or (b < a if keyword in _LOWER_IS_STRICTER else b > a)):
            yield _change(path, keyword, a, b), f"`{keyword}` may not be added or made stricter."
    a, b = one.get("multipleOf"), other.get("multipleOf")
    if b is not None and (a is None or exact(a) % exact(b)):
        yield _change(path, "multipleOf", a, b), "`multipleOf` may not be added, or become what is no divisor of it."
    for keyword, words in (("pattern", "added or changed"), ("uniqueItems", "added")):
        a, b = one.get(keyword), other.get(keyword)
        if b not in (None, False, a):
            yield _change(path, keyword, a, b), f"`{keyword}` may not be {words}."
    types = one.get("type", ["number"]), other.get("type", ["number"])
    if types == (["number"], ["integer"]):
        yield _change(path, "type", "number", "integer"), "A number may not become an integer."


def _change(path: str, keyword: str, old: Any, new: Any) -> Change:
    return Change("added" if old is None else "removed" if new is None else "changed", path, keyword, old, new)


def _combined(old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> Iterator[Broken]:
    word, members = _members(old) or ("", [])
    other_word, others = _members(new) or ("", [])
    change = Change("changed", path, other_word, old.schema, new.schema)
    is_single = len(members) == 1
    if word != other_word and not (
        other_word == "anyOf"
        or (other_word == "oneOf" and is_single)
        or (other_word == "allOf" and is_single and len(others) == 1)
    ):
        yield change, f"`{word}` may not become `{other_word}`."
        return
    members, others = _distinct(members), _distinct(others)
    if len(members) < len(others) and other_word == "allOf":
        yield change, "A conjunction may not be extended."
    if len(members) > len(others) and other_word != "allOf":
        yield change, "Alternatives may not be taken away."
    fits = [
        [index for index, other in enumerate(others) if not any(_compare(member, other, path, above))]
        for member in members
    ]
    if _matched(fits) < min(len(members), len(others)):
        yield change, f"The members of `{other_word}` are not compatible one by one."


def _distinct(places: list[Place]) -> list[Place]:
    found: list[Place] = []
    for place in places:
        if not any(is_same(place.schema, each.schema) for each in found):
            found.append(place)
    return found


def _matched(fits: list[list[int]]) -> int:
    """The size of a largest matching, by augmenting paths."""
    taken: dict[int, int] = {}

    def place(member: int, seen: set[int]) -> bool:
        for other in fits[member]:
            if other not in seen:
                seen.add(other)
                if other not in taken or place(taken[other], seen):
                    taken[other] = member
                    return True
        return False

    return sum(place(member, set()) for member in range(len(fits)))


def _model(view: dict[str, Any]) -> str:
    """The content model of an object."""
    rest = view.get("additionalProperties", True)
    if view.get("patternProperties") or isinstance(rest, dict):
        return "partial"
    return "open" if rest is True else "closed"


def _cover(place: Place, view: dict[str, Any], name: str) -> Place | None:
    """What a partially open object says of a member that it does not name."""
    for pattern, schema in view.get("patternProperties", {}).items():
        if matches(pattern, name):
            return place.inner(schema)
    rest = view.get("additionalProperties")
    return place.inner(rest) if isinstance(rest, dict) else None


def _objects(old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> Iterator[Broken]:
    one, other = plain(old), plain(new)
    before, after = one.get("properties", {}), other.get("properties", {})
    required = set(one.get("required", ())), set(other.get("required", ()))
    for name in dict.fromkeys((*before, *after)):
        where = f"{path}/{escaped(name)}"
        has_default = isinstance(after.get(name), dict) and "default" in after[name]
        if name in before and name in after:
            if name in required[1] - required[0] and not has_default:
                yield Change("added", where, "required", False, True), "A property may not become required."
            yield from _compare(old.inner(before[name]), new.inner(after[name]), where, above)
        elif name in before:
            change = Change("removed", where, "properties", before[name], None)
            cover = _cover(new, other, name)
            if _model(other) == "open":
                continue
            if cover is None:
                if before[name] is not False:
                    yield change, "A property may not be removed from a closed object."
            elif any(_compare(old.inner(before[name]), cover, where, above)):
                yield change, "A property was removed, and what is left for other members does not cover it."
        else:
            change = Change("added", where, "properties", None, after[name])
            if _model(one) == "open":
                if _kind(new.inner(after[name])) != "empty":
                    yield change, "A property may not be added to an open object: old payloads may use the name."
                continue
            cover = _cover(old, one, name)
            if cover is not None and any(_compare(cover, new.inner(after[name]), where, above)):
                yield change, "A property was added that refuses what was allowed for other members."
            if name in required[1] and not has_default:
                yield change, "A required property may not be added."
    a, b = one.get("additionalProperties", True), other.get("additionalProperties", True)
    if a is not False and b is False:
        yield Change("changed", path, "additionalProperties", a, b), "An object may not be closed."
    elif a is True and isinstance(b, dict):
        yield Change("changed", path, "additionalProperties", a, b), "Other members may not be constrained."
    elif isinstance(a, dict) and isinstance(b, dict):
        yield from _compare(old.inner(a), new.inner(b), f"{path}/*", above)
    yield from _dependencies(old, new, path, above)


def _dependencies(old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> Iterator[Broken]:
    one, other = plain(old), plain(new)
    for name, needed in other.get("dependentRequired", {}).items():
        if not set(needed) <= set(one.get("dependentRequired", {}).get(name, ())):
            a = one.get("dependentRequired", {}).get(name)
            yield _change(path, "dependentRequired", a, needed), "A dependency may not be added or extended."
    for name, schema in other.get("dependentSchemas", {}).items():
        known = one.get("dependentSchemas", {})
        if name not in known:
            yield _change(path, "dependentSchemas", None, schema), "A dependency may not be added."
        else:
            yield from _compare(old.inner(known[name]), new.inner(schema), path, above)


def _arrays(old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> Iterator[Broken]:
    one, other = plain(old), plain(new)
    before, after = one.get("prefixItems", []), other.get("prefixItems", [])
    a, b = one.get("items", True), other.get("items", True)
    for index in range(max(len(before), len(after))):
        where = f"{path}/{index}"
        if index < len(before) and index < len(after):
            yield from _compare(old.inner(before[index]), new.inner(after[index]), where, above)
        elif index < len(before):
            if _kind(new.inner(b)) == "empty":
                continue
            if any(_compare(old.inner(before[index]), new.inner(b), where, above)):
                change = Change("removed", where, "prefixItems", before[index], None)
                yield change, "An item may not be removed where the rest is closed or does not cover it."
        elif a is False or _kind(new.inner(after[index])) == "empty":
            continue
        elif _kind(old.inner(a)) == "empty" or any(_compare(old.inner(a), new.inner(after[index]), where, above)):
            change = Change("added", where, "prefixItems", None, after[index])
            yield change, "An item may not be added where the rest is open or allowed more."
    if a is not False and b is False:
        yield Change("changed", path, "items", a, b), "An array may not be closed."
    elif _kind(old.inner(a)) == "empty" and isinstance(b, dict) and _kind(new.inner(b)) != "empty":
        yield Change("changed", path, "items", a, b), "Items may not be constrained."
    elif isinstance(a, dict) and isinstance(b, dict):
        yield from _compare(old.inner(a), new.inner(b), f"{path}/*", above)
