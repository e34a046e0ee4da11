"""Two schemas become the list of what was added, removed and changed between them, place by place in the payload."""

from collections import Counter
from collections.abc import Sequence
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
    search = _Search()
    search.walk(old, new, "", frozenset())
    return list(search.found.values())


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


class _Search:
    """One walk through two schemas side by side.

    References may lead to one pair of subschemas along many ways, twice as many with each level. A pair is compared
    once at each place, and where nothing differs, once at all.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], Change] = {}
        self._seen: set[tuple[int, int, str]] = set()
        self._alike: set[tuple[int, int]] = set()
        self._kept: list[Any] = []
        """What was compared, so that no identity is given twice."""

    def _add(self, kind: str, path: str, keyword: str, old: Any, new: Any) -> None:
        if len(self.found) < MAX_CHANGES:
            self.found.setdefault((kind, path, keyword), Change(kind, path, keyword, old, new))

    def walk(self, old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> bool:
        """Whether all that is below was compared; False where a pair stands below itself, or the list is full."""
        old, new = _resolved(old), _resolved(new)
        key = id(old.schema), id(new.schema)
        if key in self._alike or (*key, path) in self._seen or (old.draft == new.draft and _is_alike(old, new)):
            return True
        if key in above or len(above) > 64 or len(self.found) >= MAX_CHANGES:
            return False
        self._kept += (old.schema, new.schema)
        self._seen.add((*key, path))
        before = len(self.found)
        if not isinstance(old.schema, dict) or not isinstance(new.schema, dict):
            if not (_is_anything(old.schema) and _is_anything(new.schema)):
                self._add("changed", path, "schema", old.schema, new.schema)
            return True
        is_whole = self._keywords(old, new, path, above | {key})
        if is_whole and len(self.found) == before:
            self._alike.add(key)
        return is_whole

    def _keywords(self, old: Place, new: Place, path: str, above: frozenset[tuple[int, int]]) -> bool:
        before, after = _view(old), _view(new)
        is_whole = True
        for keyword in dict.fromkeys((*before, *after)):
            if keyword in ANNOTATIONS or keyword.startswith("x-"):
                continue
            one, old = before.get(keyword, (None, old))
            other, new = after.get(keyword, (None, new))
            inside: list[tuple[Place, Place, str]] = []
            if keyword in ("properties", "patternProperties", "dependentSchemas"):
                one, other = one or {}, other or {}
                for name in dict.fromkeys((*one, *other)):
                    where = {"properties": f"{path}/{escaped(name)}", "patternProperties": f"{path}/*"}
                    place = where.get(keyword, path)
                    if name not in one:
                        self._add("added", place, keyword, None, other[name])
                    elif name not in other:
                        self._add("removed", place, keyword, one[name], None)
                    else:
                        inside.append((old.inner(one[name]), new.inner(other[name]), place))
            elif keyword in _SINGLE and keyword in before and keyword in after:
                inside.append((old.inner(one), new.inner(other), path + _SINGLE[keyword]))
                if keyword == "if":
                    for branch in ("then", "else"):
                        a, _ = before.get(branch, (True, old))
                        b, _ = after.get(branch, (True, new))
                        inside.append((old.inner(a), new.inner(b), path))
            elif keyword == "prefixItems":
                for index, (a, b) in enumerate(zip_longest(one or (), other or (), fillvalue=None)):
                    if a is None or b is None:
                        self._add("added" if a is None else "removed", f"{path}/{index}", keyword, a, b)
                    else:
                        inside.append((old.inner(a), new.inner(b), f"{path}/{index}"))
            elif keyword in _LISTS and isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
                inside += [(old.inner(a), new.inner(b), path) for a, b in zip(one, other, strict=True)]
            elif keyword == "required":
                for name in dict.fromkeys((*(one or ()), *(other or ()))):
                    if name not in (one or ()):
                        self._add("added", f"{path}/{escaped(name)}", keyword, False, True)
                    elif name not in (other or ()):
                        self._add("removed", f"{path}/{escaped(name)}", keyword, True, False)
            elif one != other or type(one) is not type(other):
                kind = "added" if keyword not in before else "removed" if keyword not in after else "changed"
                self._add(kind, path, keyword, _as_written(old, keyword, one), _as_written(new, keyword, other))
            for each in inside:
                is_whole = self.walk(*each, above) and is_whole
        return is_whole


def _view(place: Place) -> dict[str, tuple[Any, Place]]:
    """The keywords that apply to a value here, with the place of each: beside a reference those of its target too."""
    found: dict[str, tuple[Any, Place]] = {}
    for _ in range(32):
        for keyword, value in plain(place).items():
            found.setdefault(keyword, (value, place))
        reference = plain(place).get("$ref")
        target = place.target(reference) if isinstance(reference, str) else None
        if target is None or not isinstance(target.schema, dict):
            break
        place = target
    return found


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
