"""A schema and a place in a payload become what the schema declares there: names, types, formats, words.

It is read along the payload, not compiled: references, conditions and the branches of unions are followed only as far
as the payload goes. A branch whose constants the value contradicts declares nothing, so that a field of one member of
a union is not known in another.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urljoin

import jsonschema_rs

from handrail.schema.registry import type_name

_MANY = ("allOf",)
_UNIONS = ("anyOf", "oneOf")
_ONE = ("then", "else", "if")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
MAX_PARTS = 500
"""Subschemas that are gathered for one value; past it nothing is declared, which claims nothing."""

Parts = tuple[Mapping[str, Any], ...]


class Declarations:
    """What one schema declares; documents that it refers to must be embedded in it, as `Schema.whole` has them."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self._resources: dict[str, Any] = {"": document}
        self._anchors: dict[str, Any] = {}
        self._bases: dict[int, str] = {}
        self._patterns: dict[str, Any] = {}
        self._enter(document, "")

    def _enter(self, document: Any, uri: str) -> None:
        rest = [(document, uri)]
        while rest:
            value, base = rest.pop()
            if isinstance(value, list):
                rest.extend((each, base) for each in value)
            if not isinstance(value, dict):
                continue
            identity = value.get("$id", value.get("id") if "$ref" not in value else None)
            if isinstance(identity, str) and value is not document:
                base = _joined(base, identity).partition("#")[0] if not identity.startswith("#") else base
                self._resources.setdefault(base, value)
                if identity.startswith("#"):
                    self._anchors.setdefault(base + identity, value)
            elif isinstance(identity, str) and not identity.startswith("#"):
                self._resources.setdefault(identity.partition("#")[0], value)
                base = identity.partition("#")[0]
            self._bases[id(value)] = base
            for name in ("$anchor", "$dynamicAnchor"):
                if isinstance(value.get(name), str):
                    self._anchors.setdefault(f"{base}#{value[name]}", value)
            rest.extend((each, base) for key, each in value.items() if key not in ("const", "enum", "default"))

    def root(self, value: Any) -> "Declared":
        """What is declared of the payload itself."""
        return self.of((self._document,), value)

    def of(self, schemas: tuple[Any, ...], value: Any) -> "Declared":
        """What these schemas, and all that they apply to the same value, declare of it."""
        parts: list[Mapping[str, Any]] = []
        seen: set[int] = set()
        rest = list(reversed(schemas))
        is_known = True
        while rest:
            schema = rest.pop()
            if not isinstance(schema, dict) or id(schema) in seen:
                continue
            seen.add(id(schema))
            if len(parts) >= MAX_PARTS:
                return Declared(self, (), False)
            parts.append(schema)
            for name in _REFERENCES:
                if isinstance(schema.get(name), str):
                    found = self._referred(schema, schema[name])
                    if found is None:
                        is_known = False
                    else:
                        rest.append(found)
            for name in _MANY:
                rest.extend(schema.get(name) or ())
            for name in _UNIONS:
                if isinstance(schema.get(name), list):
                    rest.extend(self._branches(schema[name], value))
            rest.extend(schema[name] for name in _ONE if name in schema)
            for name in ("dependentSchemas", "dependencies"):
                if isinstance(schema.get(name), dict) and isinstance(value, dict):
                    rest.extend(each for key, each in schema[name].items() if key in value)
        return Declared(self, tuple(parts), is_known)

    def _branches(self, branches: list[Any], value: Any) -> list[Any]:
        fitting = [branch for branch in branches if not self._contradicts(branch, value, 0)]
        return fitting or branches

    def _contradicts(self, schema: Any, value: Any, depth: int) -> bool:
        """Whether a branch of a union is plainly not meant: by its type, or by a constant of one of its members."""
        if not isinstance(schema, dict) or depth > 8:
            return schema is False
        if isinstance(schema.get("$ref"), str):
            found = self._referred(schema, schema["$ref"])
            if found is not None and self._contradicts(found, value, depth + 1):
                return True
        types = _types(schema)
        if types is not None and not _is_of(value, types):
            return True
        if isinstance(value, str) and isinstance(named := schema.get("format"), str) and not has_format(value, named):
            return True
        if not isinstance(value, dict):
            return _differs(schema, value)
        properties = schema.get("properties")
        if isinstance(properties, dict):
            for name, inner in properties.items():
                if name in value and isinstance(inner, dict) and _differs(inner, value[name]):
                    return True
        return any(self._contradicts(each, value, depth + 1) for each in schema.get("allOf") or ())

    def _referred(self, schema: Mapping[str, Any], text: str) -> Any:
        base = self._bases.get(id(schema), "")
        uri = base + text if text.startswith("#") else _joined(base, text)
        resource, _, fragment = uri.partition("#")
        root = self._resources.get(resource)
        if root is None:
            return None
        if not fragment:
            return root
        if not fragment.startswith("/"):
            return self._anchors.get(f"{resource}#{fragment}")
        for step in unquote(fragment).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(root, dict) and step in root:
                root = root[step]
            elif isinstance(root, list) and step.isdecimal() and int(step) < len(root):
                root = root[int(step)]
            else:
                return None
        return root

    def matches(self, pattern: str, name: str) -> bool:
        """Whether a name matches a pattern of the schema, on the engine that validates with it."""
        test = self._patterns.get(pattern)
        if test is None:
            options = jsonschema_rs.RegexOptions()
            test = jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=options).is_valid
            self._patterns[pattern] = test
        try:
            return bool(test(name))
        except ValueError:
            return False


class Declared:
    """What is declared of one value. `is_known` is False where a reference could not be followed."""

    __slots__ = ("_all", "_parts", "is_known")

    def __init__(self, declarations: Declarations, parts: Parts, is_known: bool) -> None:
        self._all, self._parts, self.is_known = declarations, parts, is_known

    def __bool__(self) -> bool:
        """Whether anything is declared at all."""
        return bool(self._parts)

    @property
    def names(self) -> frozenset[str]:
        """The members that are named."""
        return frozenset(name for part in self._parts for name in _dict(part, "properties"))

    @property
    def is_described(self) -> bool:
        """Whether members are named here, so that one which is not is news; an object without names is free."""
        return self.is_known and any(
            _dict(part, "properties") or _dict(part, "patternProperties") for part in self._parts
        )

    def member(self, name: str, value: Any) -> "Declared | None":
        """What is declared of a member; None where no schema here knows the name."""
        schemas: list[Any] = []
        for part in self._parts:
            if name in _dict(part, "properties"):
                schemas.append(part["properties"][name])
            schemas += [each for key, each in _dict(part, "patternProperties").items() if self._all.matches(key, name)]
        if not schemas:
            for part in self._parts:
                for keyword in ("additionalProperties", "unevaluatedProperties"):
                    if isinstance(part.get(keyword), dict) and part[keyword]:
                        schemas.append(part[keyword])
        return self._all.of(tuple(schemas), value) if schemas else None

    def item(self, index: int, value: Any) -> "Declared":
        """What is declared of an item of an array."""
        schemas: list[Any] = []
        for part in self._parts:
            items, first = part.get("items"), part.get("prefixItems")
            if isinstance(items, list):
                first, items = items, part.get("additionalItems")
            if isinstance(first, list) and index < len(first):
                schemas.append(first[index])
            elif items is not None:
                schemas.append(items)
            schemas.extend(part[keyword] for keyword in ("unevaluatedItems", "contains") if keyword in part)
        return self._all.of(tuple(schemas), value)

    def allows_type(self, value: Any) -> bool:
        """Whether some schema here names the value's type; False where none names any."""
        return any((types := _types(part)) is not None and _is_of(value, types) for part in self._parts)

    def allows_word(self, value: str) -> bool:
        """Whether an enumeration or a constant here names the value."""
        return any(value in (part.get("enum") or ()) or part.get("const") == value for part in self._parts)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that are named for strings here."""
        return tuple(part["format"] for part in self._parts if isinstance(part.get("format"), str))


@lru_cache(maxsize=128)
def _format_check(name: str) -> Any:
    return jsonschema_rs.validator_for({"format": name}, validate_formats=True).is_valid


def has_format(text: str, name: str) -> bool:
    """Whether a string has a format, whatever the draft makes of the keyword; every string has an unknown one."""
    try:
        return bool(_format_check(name)(text))
    except ValueError:  # a lone surrogate
        return False


def _dict(part: Mapping[str, Any], keyword: str) -> Mapping[str, Any]:
    value = part.get(keyword)
    return value if isinstance(value, dict) else {}


def _types(schema: Mapping[str, Any]) -> tuple[str, ...] | None:
    named = schema.get("type")
    if isinstance(named, str):
        return (named,)
    return tuple(named) if isinstance(named, list) else None


def _is_of(value: Any, types: tuple[str, ...]) -> bool:
    kind = type_name(value)
    if kind == "integer":
        return "integer" in types or "number" in types
    if kind == "number" and "integer" in types and value == value and abs(value) < 1e300 and value.is_integer():
        return True
    return kind in types


def _differs(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a constant or an enumeration contradicts a value."""
    if "const" in schema:
        return bool(schema["const"] != value)
    words = schema.get("enum")
    return isinstance(words, list) and value not in words


def _joined(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError:
        return reference
