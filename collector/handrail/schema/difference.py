"""Two schemas become the list of what was added, removed and changed between them, place by place in the payload."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from handrail.schema.witness import Place, plain

MAX_CHANGES = 1_000


class Change(msgspec.Struct, frozen=True):
    """One difference between two schemas."""

    kind: str
    """`added`, `removed` or `changed`."""
    path: str
    """JSON Pointer into the payload; `*` for items, and for members that are not named."""
    keyword: str
    """The keyword that differs; `properties` where a property came or went."""
    old: Any
    new: Any


def difference(old: Place, new: Place) -> list[Change]:
    """What differs, at most MAX_CHANGES places, in the order of the old schema. Annotations do not count."""
    found: dict[tuple[str, str, str], Change] = {}
    for change in _changes(old, new, "", frozenset()):
        found.setdefault((change.kind, change.path, change.keyword), change)
        if len(found) >= MAX_CHANGES:
            break
    return list(found.values())


def told(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Changes as they are written in JSON: an object with a `type` for each, and at the end a summary that counts."""
    counts = Counter(each.kind for each in changes)
    return [
        *({"type": "change", **msgspec.structs.asdict(each)} for each in changes),
        {"type": "summary", **{kind: counts[kind] for kind in ("added", "removed", "changed")}},
    ]


ANNOTATIONS = frozenset(
    {"$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$comment", "$vocabulary"}
    | {"$defs", "definitions", "title", "description", "default", "examples", "example", "deprecated"}
    | {"readOnly", "writeOnly", "contentSchema", "$ref", "then", "else"}
)
"""Keywords that admit and refuse nothing by themselves."""

_LISTS = ("allOf", "anyOf", "oneOf")
_SINGLE = {"items": "/*", "additionalProperties": "/*", "contains": "/*", "propertyNames": "", "not": "", "if": ""}


def escaped(step: str) -> str:
    """A step of a JSON Pointer."""
    return step.replace("~", "~0").replace("/", "~1")


def _changes(old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> Iterator[Change]:
    old, new = _resolved(old), _resolved(new)
    key = id(old.schema), id(new.schema)
    if key in above or len(above) > 64 or (old.draft == new.draft and _is_alike(old, new)):
        return
    above |= {key}
    if not isinstance(old.schema, dict) or not isinstance(new.schema, dict):
        if not (_is_anything(old.schema) and _is_anything(new.schema)):
            yield Change("changed", path, "schema", old.schema, new.schema)
        return
    before, after = plain(old), plain(new)
    for keyword in dict.fromkeys((*before, *after)):
        if keyword in ANNOTATIONS or keyword.startswith("x-"):
            continue
        one, other = before.get(keyword), after.get(keyword)
        if keyword in ("properties", "patternProperties", "dependentSchemas"):
            one, other = one or {}, other or {}
            for name in dict.fromkeys((*one, *other)):
                where = {"properties": f"{path}/{escaped(name)}", "patternProperties": f"{path}/*"}.get(keyword, path)
                if name not in one:
                    yield Change("added", where, keyword, None, other[name])
                elif name not in other:
                    yield Change("removed", where, keyword, one[name], None)
                else:
                    yield from _changes(old.inner(one[name]), new.inner(other[name]), where, above)
        elif keyword in _SINGLE and keyword in before and keyword in after:
            yield from _changes(old.inner(one), new.inner(other), path + _SINGLE[keyword], above)
            if keyword == "if":
                for branch in ("then", "else"):
                    yield from _changes(
                        old.inner(before.get(branch, True)), new.inner(after.get(branch, True)), path, above
                    )
        elif keyword == "prefixItems":
            for index, (a, b) in enumerate(zip_longest(one or (), other or (), fillvalue=None)):
                if a is None or b is None:
                    yield Change("added" if a is None else "removed", f"{path}/{index}", keyword, a, b)
                else:
                    yield from _changes(old.inner(a), new.inner(b), f"{path}/{index}", above)
        elif keyword in _LISTS and isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            for a, b in zip(one, other, strict=True):
                yield from _changes(old.inner(a), new.inner(b), path, above)
        elif keyword == "required":
            for name in dict.fromkeys((*(one or ()), *(other or ()))):
                if name not in (one or ()):
                    yield Change("added", f"{path}/{escaped(name)}", keyword, False, True)
                elif name not in (other or ()):
                    yield Change("removed", f"{path}/{escaped(name)}", keyword, True, False)
        elif one != other or type(one) is not type(other):
            kind = "added" if keyword not in before else "removed" if keyword not in after else "changed"
            yield Change(kind, path, keyword, _as_written(old, keyword, one), _as_written(new, keyword, other))


def _as_written(place: Place, keyword: str, normal: Any) -> Any:
    return place.schema.get(keyword, normal) if keyword == "type" else normal


def _resolved(place: Place) -> Place:
    for _ in range(32):
        if not isinstance(place.schema, dict) or not isinstance(place.schema.get("$ref"), str):
            break
        if set(plain(place)) - ANNOTATIONS:
            break
        target = place.target(place.schema["$ref"])
        if target is None:
            break
        place = target
    return place


def _is_anything(schema: Any) -> bool:
    return schema is True or (isinstance(schema, dict) and not set(schema) - ANNOTATIONS)


def _is_alike(old: Place, new: Place) -> bool:
    return old.schema == new.schema and not _refers(old.schema) and repr(old.schema) == repr(new.schema)


def _refers(schema: Any) -> bool:
    if isinstance(schema, dict):
        return "$ref" in schema or any(map(_refers, schema.values()))
    return isinstance(schema, list) and any(map(_refers, schema))
