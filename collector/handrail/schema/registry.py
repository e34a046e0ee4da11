"""Schema files become the set in force, and an event becomes the subject and version that apply to it.

A schema is compiled once by jsonschema-rs. It reads nothing but itself and the registered documents that it refers to:
any other reference is refused, so neither a URL nor a file is ever opened. Its patterns run on a linear-time engine,
and what that engine cannot do (look-around, back-references) is refused too. So is a keyword that would be passed over,
because its draft does not know it or because it stands beside `$ref`. `format` follows each draft's own rule: asserted
in drafts 4, 6 and 7, an annotation in 2019-09 and 2020-12.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urljoin

import jsonschema_rs
import orjson
import xxhash

from handrail.config import EdgeConfig
from handrail.event import Event
from handrail.schema.problem import Problem as Problem
from handrail.schema.problem import Violation as Violation
from handrail.wire.body import parse

MAX_BYTES = 262_144
MAX_DEPTH = 32
MAX_SUBSCHEMAS = 2_000
"""Subschemas of one document; also how many may apply to one value once local references are followed, because thirty
definitions that each name the one before twice are a billion checks."""

MAX_VIOLATIONS = 20
WORK = 20_000
"""How many checks of a subschema on a value may be spent on saying where a payload is wrong. That it is wrong costs
microseconds; jsonschema-rs builds all errors before it gives out one (100,000 of them take 1.7 s), and where a schema
applies several subschemas to one value level after level, what it builds doubles with each level of the payload."""

DRAFTS = {
    "http://json-schema.org/draft-04/schema": "draft-04",
    "http://json-schema.org/draft-06/schema": "draft-06",
    "http://json-schema.org/draft-07/schema": "draft-07",
    "https://json-schema.org/draft/2019-09/schema": "2019-09",
    "https://json-schema.org/draft/2020-12/schema": "2020-12",
}
DEFAULT_DRAFT = "2020-12"


class SchemaError(ValueError):
    """A schema that cannot be enforced; says where and why."""


class Schema:
    """One version of one subject, compiled. Raises SchemaError where it cannot be enforced.

    References lead into the document itself, or to one of `documents`.
    """

    __slots__ = (
        "_fits",
        "_iter_errors",
        "_names",
        "_shape",
        "_validate",
        "digest",
        "document",
        "draft",
        "subject",
        "version",
        "whole",
    )

    def __init__(self, subject: str, version: str, raw: bytes, documents: "Documents | None" = None) -> None:
        document = read_document(raw)
        self.subject, self.version = subject, version
        self.document = document
        """As it was registered; not to be changed."""
        self.draft = _draft_of(document)
        whole = document if documents is None else documents.bundled(f"{subject}/{version}.json", document)
        self.whole = whole
        """With the documents that it refers to embedded in it."""
        self.digest = xxhash.xxh3_128_hexdigest(raw if whole is document else raw + orjson.dumps(whole))
        outline = _Outline(whole, self.draft)
        self._shape = outline.shape()
        self._names = frozenset(outline.names)
        validator = _compile(whole, outline)
        self._fits = validator.is_valid
        self._validate = validator.validate
        self._iter_errors = validator.iter_errors

    def is_valid(self, payload: Any) -> bool:
        """Whether the payload is what the schema says; False for what is not a JSON value."""
        try:
            return self._fits(payload)
        except (ValueError, TypeError):
            return False

    def check(self, payload: Any, limit: int = MAX_VIOLATIONS) -> list[Violation]:
        """Where the payload is not what the schema says, at most `limit` places, in the order of their paths.

        Equal places are named once, so that an array of a thousand wrong items is one violation.
        """
        try:
            if self._fits(payload):
                return []
            nodes, depth = _size(payload, WORK)
            applied = self._shape.applied(depth)
            if applied > WORK:
                return [Violation("", "schema", "does not satisfy the schema, which is too entangled to say where", "")]
            if applied * nodes > WORK:
                self._validate(payload)
                return []
            errors = self._iter_errors(payload)
        except jsonschema_rs.ValidationError as error:
            return [self._violation(error, payload)]
        except (ValueError, TypeError):  # more than 255 levels, a key that is no string, a lone surrogate
            return [Violation("", "json", "is not a JSON value that can be validated", "")]
        found = {self._violation(each, payload) for each in errors}
        return sorted(found, key=lambda each: (each.path, each.schema_path, each.message))[:limit]

    def _violation(self, error: jsonschema_rs.ValidationError, payload: Any) -> Violation:
        steps = []
        value = payload
        for step in error.instance_path:
            steps.append("*" if isinstance(step, int) or step not in self._names else _escape(step))
            try:
                value = value[step]
            except (LookupError, TypeError):
                break
        kind = type(error.kind).__name__
        keyword = error.schema_path[-1] if error.schema_path else kind
        if kind == "FalseSchema":
            keyword = "false"
        return Violation(
            "".join("/" + step for step in steps),
            str(keyword),
            _message(error.kind, type_name(value)),
            "".join("/" + _escape(str(step)) for step in error.schema_path),
        )


def type_name(value: Any) -> str:
    """The JSON type of a value."""
    return _TYPES.get(type(value), "unknown")


_TYPES = {
    dict: "object",
    list: "array",
    tuple: "array",
    str: "string",
    bool: "boolean",
    float: "number",
    int: "integer",
    type(None): "null",
}


def _shown(value: Any) -> str:
    """A value of the schema (never of the payload) as JSON, cut where it is long."""
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 120 else text[:117] + "..."


_COUNTED = frozenset({"unexpected", "context"})
"""Attributes of an error that hold keys or errors of the payload: only their number is told."""


def _message(kind: Any, found: str) -> str:
    template = _MESSAGES.get(type(kind).__name__)
    if template is None:
        return f"does not satisfy the schema, found {found}"
    known = {"found": found}
    for name in kind.__match_args__:
        value = getattr(kind, name)
        if name in _COUNTED:
            known[name] = str(len(value))
        else:
            known[name] = " or ".join(value) if name == "types" else _shown(value)
    return template.format_map(known)


_MESSAGES = {
    "Type": "expected {types}, found {found}",
    "Required": "required property {property} is missing",
    "Constant": "expected the constant {expected_value}, found another {found}",
    "Enum": "expected one of {options}, found another {found}",
    "AdditionalProperties": "properties that the schema does not allow: {unexpected}",
    "UnevaluatedProperties": "properties that the schema does not allow: {unexpected}",
    "UnevaluatedItems": "items that the schema does not allow: {unexpected}",
    "AdditionalItems": "expected at most {limit} items",
    "AnyOf": "matches none of the {context} alternatives, found {found}",
    "OneOfNotValid": "matches none of the {context} alternatives, found {found}",
    "OneOfMultipleValid": "matches more than one of the {context} alternatives",
    "Not": "matches what the schema excludes, found {found}",
    "FalseSchema": "nothing is allowed here, found {found}",
    "Contains": "too few or too many items match `contains`",
    "Format": "expected the format {format}, found another {found}",
    "Pattern": "expected a string that matches {pattern}",
    "PropertyNames": "a property name does not satisfy `propertyNames`",
    "MaxLength": "expected at most {limit} characters",
    "MinLength": "expected at least {limit} characters",
    "MaxItems": "expected at most {limit} items",
    "MinItems": "expected at least {limit} items",
    "MaxProperties": "expected at most {limit} properties",
    "MinProperties": "expected at least {limit} properties",
    "Maximum": "expected at most {limit}",
    "Minimum": "expected at least {limit}",
    "ExclusiveMaximum": "expected less than {limit}",
    "ExclusiveMinimum": "expected more than {limit}",
    "MultipleOf": "expected a multiple of {multiple_of}",
    "UniqueItems": "items repeat",
}


def _escape(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def _size(value: Any, limit: int) -> tuple[int, int]:
    """How many values there are in a payload, and how deep; counting the values stops soon after `limit`."""
    count = depth = 0
    level = [value]
    while level:
        count += len(level)
        depth += 1
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
            elif isinstance(each, list | tuple):
                below.extend(each)
            if len(below) > limit:
                return limit + 1, max(depth, 128)
        if count > limit:
            return limit + 1, max(depth, 128)
        level = below
    return count, depth


def read_document(raw: bytes) -> Any:
    """The bytes of a schema to JSON within the limits. Raises SchemaError."""
    if len(raw) > MAX_BYTES:
        raise SchemaError(f"is {len(raw)} bytes, more than {MAX_BYTES}")
    body = parse(raw, 4 * MAX_DEPTH)
    if body.reason == "too_deep":
        raise SchemaError(f"is nested deeper than {4 * MAX_DEPTH} levels of JSON")
    if body.reason is not None:
        raise SchemaError(f"is not JSON without repeated keys ({body.reason})")
    return body.value


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"references leave the document: {uri}")


_LINEAR = jsonschema_rs.RegexOptions()


def _draft_of(document: Any, default: str = DEFAULT_DRAFT) -> str:
    if not isinstance(document, dict | bool):
        raise SchemaError("is not a schema: expected an object or a boolean")
    named = document.get("$schema") if isinstance(document, dict) else None
    if named is None:
        return default
    known = DRAFTS.get(named.rstrip("#")) if isinstance(named, str) else None
    if known is None:
        raise SchemaError(f"/$schema: unknown draft; known are {', '.join(DRAFTS)}")
    return known


def _compile(document: Any, outline: "_Outline") -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.validator_for(document, retriever=_refuse, pattern_options=_LINEAR, mask="…")
    except jsonschema_rs.ValidationError as error:
        path = "".join("/" + _escape(str(step)) for step in error.instance_path) or "/"
        kind = type(error.kind).__name__
        if kind == "Format":
            raise SchemaError(
                f"{path}: pattern is not a regular expression that runs in linear time "
                "(look-around and back-references do not)"
            ) from None
        if kind == "Referencing":
            raise SchemaError(outline.dangling() or error.message) from None
        raise SchemaError(f"{path}: is not a schema: {error.message}") from None
    except ValueError as error:
        raise SchemaError(f"cannot be compiled: {error}") from None


_ORDER = tuple(DRAFTS.values())
"""The drafts, oldest first."""

_SINCE = {
    "const": "draft-06",
    "contains": "draft-06",
    "propertyNames": "draft-06",
    "if": "draft-07",
    "dependentRequired": "2019-09",
    "dependentSchemas": "2019-09",
    "unevaluatedItems": "2019-09",
    "unevaluatedProperties": "2019-09",
    "minContains": "2019-09",
    "maxContains": "2019-09",
    "$recursiveRef": "2019-09",
    "prefixItems": "2020-12",
    "$dynamicRef": "2020-12",
}
"""Keywords that constrain a payload from this draft on; an older one passes them over."""

_GONE = {
    "additionalItems": ("2020-12", "`items` beside `prefixItems` says it there"),
    "$recursiveRef": ("2020-12", "`$dynamicRef` says it there"),
    "extends": ("draft-04", "`allOf` says it there"),
    "disallow": ("draft-04", "`not` says it there"),
    "divisibleBy": ("draft-04", "`multipleOf` says it there"),
}
"""Keywords that constrain nothing any more from this draft on, and what to write in their place."""

_CONSTRAINTS = frozenset(  # a list of words is easier to read than forty strings
    """type enum const multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern
    additionalItems items prefixItems contains minContains maxContains maxItems minItems uniqueItems
    maxProperties minProperties required properties patternProperties additionalProperties propertyNames
    dependencies dependentRequired dependentSchemas allOf anyOf oneOf not if format
    unevaluatedItems unevaluatedProperties""".split()  # noqa: SIM905
)

_LITERAL = frozenset({"const", "enum", "default", "examples", "example"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
_IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"})
"""These apply their subschemas to the very value that the schema is applied to; so do references."""
_ONE_OF_THESE = frozenset(
    {"properties", "additionalProperties", "unevaluatedProperties"}
    | {"prefixItems", "items", "additionalItems", "unevaluatedItems"}
)
"""Of these at most one subschema is applied to any one member of an object or item of an array."""
_EACH_OF_THESE = frozenset({"patternProperties", "contains"})
_APPLIED = _IN_PLACE | _ONE_OF_THESE | _EACH_OF_THESE | {"propertyNames", "$defs", "definitions", "contentSchema"}
"""What holds subschemas in every draft or in none that is meant; other keywords may hold anything."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class _Part:
    """A subschema, where it stands, and the URI that its references start from."""

    __slots__ = ("base", "depth", "draft", "is_schema", "path", "schema")

    def __init__(
        self, path: str, base: str, schema: dict[str, Any], depth: int, draft: str, is_schema: bool = True
    ) -> None:
        self.path, self.base, self.schema, self.depth, self.draft = path, base, schema, depth, draft
        self.is_schema = is_schema
        """False below a keyword that no draft knows: only a reference would make it one."""


class _Shape:
    """How much work a schema can make of one payload."""

    __slots__ = ("growth", "height", "work")

    def __init__(self, work: int, growth: int, height: float) -> None:
        self.work = work
        """The most subschemas that apply to one value for each time that the schema above applies."""
        self.growth = growth
        """How many times over that happens again one level down."""
        self.height = height
        """Levels of a payload that the schema looks at; infinite where it is recursive."""

    def applied(self, depth: int) -> float:
        """The most subschemas that may be applied to one value of a payload of this depth."""
        levels = min(depth, self.height)
        return self.work * math.pow(self.growth, min(levels, 64))


class _Outline:
    """A schema as a graph of subschemas and references, before it is compiled.

    Raises SchemaError past the limits on depth and number. Needs no well-formed schema: what is malformed is left to
    the compiler, which knows better how to say so.
    """

    def __init__(self, document: Any, draft: str, base: str = "") -> None:
        """`base` is the URI of the document."""
        self.names: set[str] = set()
        self._parts: dict[int, _Part] = {}
        self._resources: dict[str, _Part] = {}
        self._anchors: dict[str, list[_Part]] = {}
        self._root = _Part("", base, document, 1, draft) if isinstance(document, dict) else None
        rest = [self._root] if self._root is not None else []
        while rest:
            part = self._enter(rest.pop())
            rest.extend(child for _, child in self._children(part))

    def _misplaced(self, part: _Part) -> str | None:
        """The keyword of a subschema that would be passed over in silence, and why."""
        schema, draft = part.schema, part.draft
        age = _ORDER.index(draft)
        for keyword in schema:
            where = f"{part.path}/{_escape(keyword)}"
            since, gone = _SINCE.get(keyword), _GONE.get(keyword)
            if since is not None and age < _ORDER.index(since):
                return f"{where}: would be ignored: {draft} does not know it, {since} does"
            if gone is not None and age >= _ORDER.index(gone[0]):
                return f"{where}: would be ignored: {draft} does not know it; {gone[1]}"
        if schema.get("nullable") is True:
            return f'{part.path}/nullable: would be ignored: it is OpenAPI\'s; write "type": ["…", "null"]'
        if age <= _ORDER.index("draft-07") and isinstance(schema.get("$ref"), str):
            beside = sorted(keyword for keyword in schema if keyword in _CONSTRAINTS)
            if beside:
                return (
                    f"{part.path}/{beside[0]}: would be ignored: {draft} passes over everything beside `$ref`; "
                    "put the reference into `allOf`"
                )
        return None

    def _enter(self, part: _Part) -> _Part:
        if part.depth > MAX_DEPTH:
            raise SchemaError(f"nests subschemas deeper than {MAX_DEPTH}")
        if len(self._parts) >= MAX_SUBSCHEMAS:
            raise SchemaError(f"has more than {MAX_SUBSCHEMAS} subschemas")
        schema = part.schema
        identity = schema.get(_identity_of(part.draft))
        if not self._parts:
            self._resources[part.base] = part
        if isinstance(identity, str):
            if identity.startswith("#"):
                self._anchors.setdefault(part.base + identity, []).append(part)
            else:
                named = schema.get("$schema")
                base = _joined(part.base, identity).partition("#")[0]
                draft = DRAFTS.get(named.rstrip("#"), part.draft) if isinstance(named, str) else part.draft
                part = _Part(part.path, base, schema, part.depth, draft, part.is_schema)
                self._resources[part.base] = part
        if part.is_schema and (problem := self._misplaced(part)):
            raise SchemaError(problem)
        for name in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(name), str):
                self._anchors.setdefault(f"{part.base}#{schema[name]}", []).append(part)
                if name == "$dynamicAnchor":
                    self._anchors.setdefault(f"*#{schema[name]}", []).append(part)
        for keyword in ("properties", "dependentSchemas", "dependencies", "dependentRequired"):
            if isinstance(schema.get(keyword), dict):
                self.names.update(schema[keyword])
        if isinstance(schema.get("required"), list):
            self.names.update(name for name in schema["required"] if isinstance(name, str))
        self._parts[id(schema)] = part
        return part

    def _children(self, part: _Part) -> Iterator[tuple[str, _Part]]:
        """The keyword and the subschema, for each subschema.

        Keywords that no draft knows count: a reference may lead there.
        """
        for keyword, value in part.schema.items():
            if keyword in _LITERAL:
                continue
            path = f"{part.path}/{_escape(keyword)}"
            members: list[tuple[str, Any]] = []
            if isinstance(value, list):
                members = [(f"{path}/{index}", member) for index, member in enumerate(value)]
            elif isinstance(value, dict) and keyword in _MAPS:
                members = [(f"{path}/{_escape(str(name))}", member) for name, member in value.items()]
            elif isinstance(value, dict):
                members = [(path, value)]
            for where, member in members:
                if isinstance(member, dict):
                    known = self._parts.get(id(member))
                    is_schema = part.is_schema and keyword in _APPLIED
                    yield keyword, known or _Part(where, part.base, member, part.depth + 1, part.draft, is_schema)

    def _referred(self, part: _Part) -> Iterator[tuple[str, str, list[_Part]]]:
        """Keyword, text and possible targets of each reference of a subschema."""
        for name in _REFERENCES:
            text = part.schema.get(name)
            if not isinstance(text, str):
                continue
            uri = self._uri(part, text)
            resource, _, fragment = uri.partition("#")
            root = self._resources.get(resource)
            found = []
            if not fragment and root is not None:
                found = [root]
            elif fragment.startswith("/") and root is not None:
                target = _pointed(root.schema, unquote(fragment))
                if isinstance(target, dict):
                    found = [self._parts.get(id(target)) or _Part("", root.base, target, 1, root.draft)]
            else:
                found = list(self._anchors.get(uri, ()))
            if name == "$dynamicRef":
                found += [each for each in self._anchors.get(f"*#{fragment}", ()) if each not in found]
            yield name, text, found

    def _uri(self, part: _Part, text: str) -> str:
        return part.base + text if text.startswith("#") else _joined(part.base, text)

    def outward(self) -> Iterator[tuple[_Part, str, str, str]]:
        """The references that leave the document: where, the keyword, the text and the URI without its fragment."""
        for part in list(self._parts.values()):
            for name in _REFERENCES:
                text = part.schema.get(name)
                if isinstance(text, str):
                    uri = self._uri(part, text).partition("#")[0]
                    if uri not in self._resources and not _is_draft(uri):
                        yield part, name, text, uri

    def dangling(self) -> str | None:
        """The first reference that leads nowhere in the document."""
        for part in self._parts.values():
            for name, text, found in self._referred(part):
                resource = text.partition("#")[0]
                if not found and not _is_draft(resource):
                    why = "is not in the document" if not resource else "leaves the document, and nothing is fetched"
                    return f"{part.path}/{name}: {text} {why}"
        return None

    def shape(self) -> _Shape:
        """How much work the schema can make. Raises SchemaError where one value can make endless work."""
        known: dict[int, tuple[int, int]] = {}

        def applied(part: _Part, trail: tuple[int, ...]) -> tuple[int, int]:
            """Subschemas that apply to one value with this one, and subschemas that they apply to one value in it."""
            key = id(part.schema)
            if key in known:
                return known[key]
            if key in trail:
                raise SchemaError(f"{part.path or '/'}: references lead back here without a step into the payload")
            if len(trail) > 4 * MAX_DEPTH:
                raise SchemaError(f"{part.path or '/'}: follows references through too many definitions")
            inner = (*trail, key)
            work, each = 1, 0
            some = False
            for keyword, child in self._children(part):
                if keyword in _IN_PLACE:
                    more, below = applied(child, inner)
                    work, each = work + more, each + below
                elif keyword in _EACH_OF_THESE:
                    each += 1
                elif keyword in _ONE_OF_THESE:
                    some = True
            for _, _, found in self._referred(part):
                reached = [applied(target, inner) for target in found]
                work += max((more for more, _ in reached), default=0)
                each += max((below for _, below in reached), default=0)
            if work > MAX_SUBSCHEMAS:
                raise SchemaError(f"applies more than {MAX_SUBSCHEMAS} subschemas to one value, references followed")
            known[key] = work, each + some
            return known[key]

        for part in list(self._parts.values()):
            applied(part, ())
        work = max((work for work, _ in known.values()), default=1)
        growth = max((growth for _, growth in known.values()), default=1)
        return _Shape(work, max(1, growth), self._height())

    def _height(self) -> float:
        heights: dict[int, float] = {}

        def height(part: _Part, trail: tuple[int, ...]) -> float:
            key = id(part.schema)
            if key in heights:
                return heights[key]
            if key in trail or len(trail) > 4 * MAX_DEPTH:
                return math.inf
            inner = (*trail, key)
            high = 0.0
            for keyword, child in self._children(part):
                if keyword in _IN_PLACE:
                    high = max(high, height(child, inner))
                elif keyword in _ONE_OF_THESE or keyword in _EACH_OF_THESE:
                    high = max(high, 1.0 + height(child, inner))
            for _, _, found in self._referred(part):
                high = max(high, *(height(target, inner) for target in found), 0.0)
            heights[key] = high
            return high

        return height(self._root, ()) if self._root is not None else 0.0


def _is_draft(uri: str) -> bool:
    """Whether a URI is that of a meta-schema or of a vocabulary of one, which the validator has by heart."""
    return uri in DRAFTS or uri.startswith(
        ("https://json-schema.org/draft/2019-09/", "https://json-schema.org/draft/2020-12/")
    )


PLACE = "http://registry.invalid/"
"""Where registered documents stand, so that one may refer to another by a relative path. The name can never exist
(RFC 2606), and nothing looks it up."""

MAX_DOCUMENTS = 64
"""Documents that one schema may refer to, directly or not."""


def _place(file: str) -> str:
    return PLACE + quote(file)


class Documents:
    """The registered documents that references may lead to.

    `references` says for a file what each name in it stands for, as another file. Where it is None, the files of a
    directory refer to each other by relative path (`../address/1.json`) or by `$id`.
    """

    def __init__(self, files: Mapping[str, bytes], references: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._files, self._references = files, references
        self._identities: dict[str, str] | None = None

    def _find(self, file: str, base: str, text: str, uri: str) -> tuple[str | None, str]:
        """The file that a reference in a file leads to, None where it leads to none; and what it is called there."""
        if self._references is not None:
            plain = text.partition("#")[0]
            for name, other in self._references.get(file, {}).items():
                if other in self._files and (name in (plain, uri) or _joined(base, name) == uri):
                    return other, name
            return None, ""
        if uri.startswith(PLACE):
            other = unquote(uri.removeprefix(PLACE))
            return (other, "") if other in self._files and other.endswith(".json") else (None, "")
        if self._identities is None:
            self._identities = _identities(self._files)
        return self._identities.get(uri), ""

    def names(self, file: str, document: Any) -> dict[str, str]:
        """The references of a file that leave it, as they are written, to the files that they lead to."""
        found = {}
        for part, _, text, uri in _Outline(document, _draft_of(document), _place(file)).outward():
            other, _ = self._find(file, part.base, text, uri)
            if other is not None:
                found[text.partition("#")[0]] = other
        return found

    def bundled(self, file: str, document: Any) -> Any:
        """A schema with every document that it refers to embedded in it; itself where it refers to none.

        Every reference to another document is made to say where that one stands, so each document may give its own
        names to others. What is not registered is left as it is, and found dangling later. Raises SchemaError where
        there are too many, or where two of them have one `$id`.
        """
        if self._references is not None and not self._references.get(file):
            return document
        draft = _draft_of(document)
        if not self.names(file, document):
            return document
        whole = orjson.loads(orjson.dumps(document))
        found = {file: (whole, draft, _place(file))}
        holders = {_named(whole, file, draft): file}
        rest = [file]
        while rest:
            here = rest.pop(0)
            each, age, base = found[here]
            for part, keyword, text, uri in list(_Outline(each, age, base).outward()):
                other, name = self._find(here, part.base, text, uri)
                if other is None:
                    continue
                if other not in found:
                    if len(found) > MAX_DOCUMENTS:
                        raise SchemaError(f"refers to more than {MAX_DOCUMENTS} documents")
                    target = _embeddable(read_document(self._files[other]), age)
                    found[other] = target, _draft_of(target, age), name if ":" in name else _place(other)
                    uri = _named(target, other, found[other][1])
                    if holders.setdefault(uri, other) != other:
                        raise SchemaError(f"{part.path}: {holders[uri]} and {other} have the same $id")
                    rest.append(other)
                part.schema[keyword] = _named(found[other][0], other, found[other][1]) + "".join(
                    text.partition("#")[1:]
                )
        for other, (each, age, _) in found.items():
            each[_identity_of(age)] = _named(each, other, age)
        held = whole.setdefault("definitions" if draft.startswith("draft") else "$defs", {})
        others = [each for other, (each, *_) in found.items() if other != file]
        held |= {f"registered-{place}": each for place, each in enumerate(others)}
        return whole


def _identity_of(draft: str) -> str:
    return "id" if draft == "draft-04" else "$id"


def _named(document: Any, file: str, draft: str) -> str:
    """The URI of a registered document: what it calls itself, or the place of its file."""
    identity = document.get(_identity_of(draft))
    own = identity if isinstance(identity, str) and not identity.startswith("#") else ""
    return _joined(_place(file), own).partition("#")[0]


def _embeddable(document: Any, draft: str) -> dict[str, Any]:
    """A document in a form that can have a name inside another one, of the draft that it has by itself."""
    if not isinstance(document, dict):
        document = {} if document is True else {"not": {}}
    named: dict[str, Any] = _marked(document, draft)
    old = _draft_of(named).startswith("draft")
    if old and isinstance(named.get("$ref"), str):  # there a name beside `$ref` would be passed over
        named["allOf"] = [{"$ref": named.pop("$ref")}]
    return named


def _marked(document: dict[str, Any], draft: str) -> dict[str, Any]:
    """A document that names no draft is of the draft of whoever refers to it."""
    if "$schema" not in document:
        uri = next(uri for uri, name in DRAFTS.items() if name == draft)
        document["$schema"] = uri + "#" if draft.startswith("draft") else uri
    return document


def _identities(files: Mapping[str, bytes]) -> dict[str, str]:
    """The `$id` of each file to the file: the latest version where a subject repeats it, none where two subjects do."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    ordered = sorted(
        (file for file in files if file.endswith(".json")), key=lambda file: version_order(file.rpartition("/")[2][:-5])
    )
    for file in ordered:
        try:
            document = read_document(files[file])
        except SchemaError:
            continue
        identity = (document.get("$id") or document.get("id")) if isinstance(document, dict) else None
        if isinstance(identity, str) and ":" in identity:
            identity = identity.partition("#")[0]
            before = found.get(identity)
            if before is not None and before.rpartition("/")[0] != file.rpartition("/")[0]:
                twice.add(identity)
            found[identity] = file
    return {identity: file for identity, file in found.items() if identity not in twice}


def _joined(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError:
        return reference


def _pointed(document: Any, pointer: str) -> Any:
    value = document
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_PART = re.compile(r"[0-9]+|[a-z]+")


def version_order(version: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A version to its place: numbers by value (10 after 9, 1.10 after 1.9), `v2` like `2`, `1.0-rc1` before `1.0`.

    Total: versions that are equal by number are ordered by their text.
    """
    plain = version.lower().partition("+")[0]
    if len(plain) > 1 and plain[0] == "v" and plain[1].isdigit():
        plain = plain[1:]
    parts = tuple((2, int(part), "") if part[0] <= "9" else (0, 0, part) for part in _PART.findall(plain))
    return (*parts, (1, 0, "")), version


def is_version(text: str) -> bool:
    """Whether a text can be the name of a version."""
    return _VERSION.fullmatch(text) is not None


Matcher = Callable[[str], bool]


def matcher(pattern: str) -> Matcher:
    """A pattern with `*` for any run of characters to a predicate on names, in time linear in the name."""
    if "*" not in pattern:
        return pattern.__eq__
    first, *middle, last = pattern.split("*")
    shortest = len(first) + len(last)

    def matches(name: str) -> bool:
        if len(name) < shortest or not name.startswith(first) or not name.endswith(last):
            return False
        start, end = len(first), len(name) - len(last)
        for part in middle:
            at = name.find(part, start, end)
            if at < 0:
                return False
            start = at + len(part)
        return True

    return matches


class _Edge:
    __slots__ = ("any_task", "reads", "source", "subject", "target", "task", "version")

    def __init__(self, edge: EdgeConfig) -> None:
        self.source, self.target, self.task = matcher(edge.source), matcher(edge.target), matcher(edge.task)
        self.any_task = edge.task == "*"
        self.subject, self.version = edge.subject or None, edge.version
        self.reads = edge.reads

    def covers(self, source: str, target: str, task: str) -> bool:
        return self.source(source) and self.target(target) and (self.any_task or self.task(task))


Selected = tuple[str | None, str | None]


_SAYING = frozenset(
    "properties required allOf anyOf oneOf not $ref patternProperties enum const if".split()  # noqa: SIM905
)


def is_untyped(document: object) -> bool:
    """Whether a schema says nothing of its values but that they are objects."""
    return type(document) is dict and not any(document.get(key) for key in _SAYING)


LEARNED_SUBJECTS = 1_000
LEARNED_VERSIONS = 20
"""How much is kept of what traffic itself says of its schemas."""


class Registry:
    """The schemas in force. Replaced as a whole, so an event never sees half a change."""

    def __init__(self, edges: Sequence[EdgeConfig] = (), *, remembered: int = 10_000) -> None:
        self._edges = tuple(_Edge(edge) for edge in edges)
        self._reading = tuple(edge for edge in self._edges if (edge.reads or edge.version) is not None)
        self._by_task = any(not edge.any_task for edge in self._edges)
        self._remembered = remembered
        self.generation = 0
        """Another number whenever the schemas in force have changed."""
        self._subjects: dict[str, dict[str, Schema]] = {}
        self._latest: dict[str, str] = {}
        self._memo: dict[tuple[str | None, ...], Selected] = {}
        self._learned: dict[str, dict[str, Schema]] = {}

    def __len__(self) -> int:
        """How many subjects there are."""
        return len(self._subjects)

    def load(
        self, files: Mapping[str, bytes], references: Mapping[str, Mapping[str, str]] | None = None
    ) -> list[Problem]:
        """Put a set of schema files in force, or leave the set that is and say why.

        Keys are `<subject>/<version>.json`; what does not end in `.json` is not a schema and is passed over.
        `references` says what a name in a file stands for, see `Documents`.
        """
        fresh, problems = self.compiled(files, references)
        if not problems:
            self.replace(fresh)
        return problems

    def compiled(
        self, files: Mapping[str, bytes], references: Mapping[str, Mapping[str, str]] | None = None
    ) -> tuple[dict[str, dict[str, Schema]], list[Problem]]:
        """The slow half of `load`: changes nothing, so it may run in another thread."""
        documents = Documents(files, references)
        problems: list[Problem] = []
        subjects: dict[str, dict[str, Schema]] = {}
        for file in sorted(files):
            if not file.endswith(".json"):
                continue
            subject, _, version = file.removesuffix(".json").rpartition("/")
            if not subject or not _VERSION.fullmatch(version):
                problems.append(Problem(file, "is not <subject>/<version>.json"))
                continue
            known = self._subjects.get(subject, {}).get(version)
            if known is not None and known.digest == xxhash.xxh3_128_hexdigest(files[file]):
                schema = known
            else:
                try:
                    schema = Schema(subject, version, files[file], documents)
                except SchemaError as error:
                    problems.append(Problem(file, str(error)))
                    continue
            subjects.setdefault(subject, {})[version] = schema
        return subjects, problems

    def replace(self, subjects: Mapping[str, Mapping[str, Schema]]) -> None:
        """The quick half of `load`: puts a set of compiled schemas in force."""
        self._subjects = {
            subject: dict(sorted(versions.items(), key=lambda item: version_order(item[0])))
            for subject, versions in subjects.items()
        }
        self._latest = {subject: next(reversed(versions)) for subject, versions in self._subjects.items()}
        self._memo = {}
        self.generation += 1

    def subjects(self) -> Mapping[str, tuple[str, ...]]:
        """Every subject with its versions, oldest first."""
        return {subject: tuple(versions) for subject, versions in self._subjects.items()}

    def learn(self, subject: str, document: Any) -> str:
        """A schema that traffic itself carries becomes a version of its subject, in memory; which one.

        An equal document is the version that it already is, registered or learned; a new form is the next whole number.
        Raises SchemaError where it cannot be enforced. Holds `LEARNED_SUBJECTS` subjects of `LEARNED_VERSIONS` forms.
        """
        learned = self._learned.get(subject)
        known = {**self._subjects.get(subject, {}), **(learned or {})}
        for version, schema in known.items():
            if schema.document == document:
                return version
        version = str(1 + max((int(name) for name in known if name.isdecimal()), default=0))
        try:
            raw = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
        except TypeError as error:
            raise SchemaError(f"is not JSON: {error}") from None
        schema = Schema(subject, version, raw)
        if learned is None:
            if len(self._learned) >= LEARNED_SUBJECTS:
                del self._learned[next(iter(self._learned))]
            learned = self._learned[subject] = {}
        elif len(learned) >= LEARNED_VERSIONS:
            del learned[next(iter(learned))]
        learned[version] = schema
        self._memo.clear()
        self.generation += 1
        return version

    def is_learned(self, subject: str | None, version: str | None) -> bool:
        """Whether a version was learned from traffic and not registered by anybody."""
        return version in self._learned.get(subject or "", ()) and version not in self._subjects.get(subject or "", ())

    def versions(self, subject: str | None) -> tuple[str, ...]:
        """The versions of a subject, oldest first, then those that were learned; empty where it is not known."""
        if subject is None:
            return ()
        return tuple(dict.fromkeys((*self._subjects.get(subject, ()), *self._learned.get(subject, ()))))

    def schema(self, subject: str | None, version: str | None) -> Schema | None:
        """The schema of a subject and version, None where there is none."""
        versions = self._subjects.get(subject)  # type: ignore[arg-type]  # None is no key, and that is the answer
        found = None if versions is None else versions.get(version)  # type: ignore[arg-type]
        if found is None and self._learned:
            found = self._learned.get(subject or "", {}).get(version or "")
        return found

    def select(self, event: Event) -> Selected:
        """Which subject and version apply to an event's payload; either may be None.

        The subject is what the wire said, else what the first matching edge says, else `<source>.<target>`. The version
        is what the wire said, else the edge's pin, else the latest.
        """
        key = (event.source, event.target, event.subject, event.version, event.task if self._by_task else None)
        selected = self._memo.get(key)
        if selected is None:
            selected = self._select(event)
            if len(self._memo) >= self._remembered:
                self._memo.clear()
            self._memo[key] = selected
        return selected

    def reads(self, event: Event) -> tuple[str | None, str]:
        """The version of its subject that an event's target reads by configuration, and by which key: the first edge
        that matches and says `reads`, or pins a version. None where none does."""
        for edge in self._reading:
            if edge.subject != event.subject:
                continue
            if edge.covers(event.source or "", event.target or "", event.task or ""):
                return (edge.version, "version") if edge.reads is None else (edge.reads, "reads")
        return None, ""

    def _select(self, event: Event) -> Selected:
        subject, version = event.subject, event.version
        if subject is None:
            source, target = event.source, event.target
            pinned = None
            for edge in self._edges:
                if edge.covers(source or "", target or "", event.task or ""):
                    subject, pinned = edge.subject, edge.version
                    break
            if subject is None and source is not None and target is not None:
                subject = f"{source}.{target}"
            if version is None:
                version = pinned
        if subject is not None and version is None:
            version = self._latest.get(subject)
            if version is None and subject in self._learned:
                version = next(reversed(self._learned[subject]), None)
        return subject, version
