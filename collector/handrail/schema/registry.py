"""Schema files become the set in force, and an event becomes the subject and version that apply to it.

A schema is compiled once by jsonschema-rs. It reads nothing but itself: a reference to another document is refused, so
neither a URL nor a file is ever opened. Its patterns run on a linear-time engine, and what that engine cannot do
(look-around, back-references) is refused too. `format` follows each draft's own rule: asserted in drafts 4, 6 and 7,
an annotation in 2019-09 and 2020-12.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jsonschema_rs
import msgspec
import orjson
import xxhash

from handrail.config import EdgeConfig
from handrail.event import Event
from handrail.wire.body import parse

MAX_BYTES = 262_144
MAX_DEPTH = 32
MAX_SUBSCHEMAS = 2_000
"""Subschemas of one document; also how many may apply to one value once local references are followed, because thirty
definitions that each name the one before twice are a billion checks."""

MAX_VIOLATIONS = 20
WORK_FOR_ALL = 20_000
"""Nodes of the payload times subschemas that may apply to one value, up to which every violation is looked for. Past it
the first one is reported: jsonschema-rs builds all errors before it gives out one, and 100,000 of them take 1.7 s."""

DRAFTS = {
    "http://json-schema.org/draft-04/schema": "draft-04",
    "http://json-schema.org/draft-06/schema": "draft-06",
    "http://json-schema.org/draft-07/schema": "draft-07",
    "https://json-schema.org/draft/2019-09/schema": "2019-09",
    "https://json-schema.org/draft/2020-12/schema": "2020-12",
}
DEFAULT_DRAFT = "2020-12"


class Problem(msgspec.Struct, frozen=True):
    """Why a schema file cannot be put in force."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class Violation(msgspec.Struct, frozen=True):
    """One place where a payload is not what its schema says. Nothing in it is taken from the payload's values."""

    path: str
    """JSON Pointer into the payload; `*` for array indices and for keys that the schema does not name."""
    keyword: str
    message: str
    """What was expected, and the type that was found."""
    schema_path: str
    """JSON Pointer into the schema."""


class SchemaError(ValueError):
    """A schema that cannot be enforced; says where and why."""


class Schema:
    """One version of one subject, compiled. Raises SchemaError where it cannot be enforced."""

    __slots__ = ("_fits", "_iter_errors", "_names", "_validate", "digest", "draft", "subject", "version", "work")

    def __init__(self, subject: str, version: str, raw: bytes) -> None:
        document = _read(raw)
        self.subject, self.version = subject, version
        self.digest = xxhash.xxh3_128_hexdigest(raw)
        self.draft, validator = _compile(document)
        names: set[str] = set()
        self.work = _measure(document, names)
        self._names = frozenset(names)
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
            if self.work * _nodes(payload, WORK_FOR_ALL // self.work) > WORK_FOR_ALL:
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


def _nodes(value: Any, limit: int) -> int:
    """How many values there are in a payload; counting stops soon after `limit`."""
    count = 0
    rest = [value]
    while rest:
        value = rest.pop()
        count += 1
        if isinstance(value, dict):
            if count + len(rest) + len(value) > limit:
                return limit + 1
            rest.extend(value.values())
        elif isinstance(value, list | tuple):
            if count + len(rest) + len(value) > limit:
                return limit + 1
            rest.extend(value)
    return count


def _read(raw: bytes) -> Any:
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


def _compile(document: Any) -> tuple[str, jsonschema_rs.Validator]:
    if not isinstance(document, dict | bool):
        raise SchemaError("is not a schema: expected an object or a boolean")
    named = document.get("$schema") if isinstance(document, dict) else None
    draft = DEFAULT_DRAFT
    if named is not None:
        known = DRAFTS.get(named.rstrip("#")) if isinstance(named, str) else None
        if known is None:
            raise SchemaError(f"/$schema: unknown draft; known are {', '.join(DRAFTS)}")
        draft = known
    _refuse_references(document)
    try:
        return draft, jsonschema_rs.validator_for(document, retriever=_refuse, pattern_options=_LINEAR, mask="…")
    except jsonschema_rs.ValidationError as error:
        path = "".join("/" + _escape(str(step)) for step in error.instance_path)
        kind = type(error.kind).__name__
        if kind == "Format":
            raise SchemaError(
                f"{path or '/'}: pattern is not a regular expression that runs in linear time "
                "(look-around and back-references do not)"
            ) from None
        if kind == "Referencing":
            raise SchemaError(error.message) from None
        raise SchemaError(f"{path or '/'}: is not a schema: {error.message}") from None
    except ValueError as error:
        raise SchemaError(f"cannot be compiled: {error}") from None


_LITERAL = frozenset({"const", "enum", "default", "examples", "example"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
_IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"})
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keyword and the subschema, for each subschema.

    Keywords that no draft knows count: a reference may lead there.
    """
    for keyword, value in schema.items():
        if keyword in _LITERAL:
            continue
        if isinstance(value, dict):
            if keyword in _MAPS:
                for member in value.values():
                    if isinstance(member, dict):
                        yield keyword, member
            else:
                yield keyword, value
        elif isinstance(value, list):
            for member in value:
                if isinstance(member, dict):
                    yield keyword, member


def _refuse_references(document: Any) -> None:
    """Raise SchemaError for a reference that leaves the document, wherever it stands, even where nothing leads to it.

    A reference to an `$id` inside the document is left to the compiler, which opens nothing.
    """
    rest: list[tuple[str, Any]] = [("", document)]
    ids: set[str] = set()
    found: list[tuple[str, str]] = []
    while rest:
        path, schema = rest.pop()
        if not isinstance(schema, dict):
            continue
        for name in ("$id", "id"):
            if isinstance(schema.get(name), str):
                ids.add(schema[name].split("#")[0])
        for name in _REFERENCES:
            target = schema.get(name)
            if isinstance(target, str) and not target.startswith("#"):
                found.append((f"{path}/{name}", target))
        rest.extend((f"{path}/{_escape(keyword)}", child) for keyword, child in _children(schema))
    for path, target in found:
        base = target.split("#")[0]
        if base not in ids and base.rstrip("#") not in DRAFTS and not any(own.endswith("/" + base) for own in ids):
            raise SchemaError(f"{path}: references leave the document, and none is fetched: {target}")


def _measure(document: Any, names: set[str]) -> int:
    """Collect the property names that a schema names, and count the subschemas that may apply to one value.

    Raises SchemaError past the limits on depth and number.
    """
    if not isinstance(document, dict):
        return 1
    count = 0
    schemas: list[dict[str, Any]] = []
    rest: list[tuple[int, dict[str, Any]]] = [(1, document)]
    while rest:
        depth, schema = rest.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise SchemaError(f"nests subschemas deeper than {MAX_DEPTH}")
        if count > MAX_SUBSCHEMAS:
            raise SchemaError(f"has more than {MAX_SUBSCHEMAS} subschemas")
        schemas.append(schema)
        for keyword in ("properties", "dependentSchemas", "dependencies", "dependentRequired"):
            if isinstance(schema.get(keyword), dict):
                names.update(schema[keyword])
        if isinstance(schema.get("required"), list):
            names.update(name for name in schema["required"] if isinstance(name, str))
        rest.extend((depth + 1, child) for _, child in _children(schema))
    return _widest(document, schemas)


def _widest(document: dict[str, Any], schemas: Sequence[dict[str, Any]]) -> int:
    """The most subschemas that apply to one and the same value, local references followed."""
    anchors = {
        "#" + schema[name]: schema
        for schema in schemas
        for name in ("$anchor", "$dynamicAnchor")
        if isinstance(schema.get(name), str)
    }
    anchors |= {schema["$id"]: schema for schema in schemas if isinstance(schema.get("$id"), str)}
    applying: dict[int, int] = {}

    def applied(schema: dict[str, Any], open_: frozenset[int]) -> int:
        known = applying.get(id(schema))
        if known is not None:
            return known
        if id(schema) in open_:
            return 0  # a cycle at one and the same value: the compiler visits it once
        if len(open_) > MAX_SUBSCHEMAS // 4:
            raise SchemaError("follows references through too many definitions")
        inner = open_ | {id(schema)}
        total = 1
        for keyword, child in _children(schema):
            if keyword in _IN_PLACE:
                total += applied(child, inner)
        for name in _REFERENCES:
            target = schema.get(name)
            if isinstance(target, str):
                found = anchors.get(target)
                if found is None and target.startswith("#"):
                    found = _pointed(document, target[1:])
                if isinstance(found, dict):
                    total += applied(found, inner)
        if total > MAX_SUBSCHEMAS:
            raise SchemaError(f"applies more than {MAX_SUBSCHEMAS} subschemas to one value, references followed")
        applying[id(schema)] = total
        return total

    return max(applied(schema, frozenset()) for schema in schemas)


def _pointed(document: Any, pointer: str) -> Any:
    value = document
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~").replace("%25", "%")
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
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
    __slots__ = ("any_task", "source", "subject", "target", "task", "version")

    def __init__(self, edge: EdgeConfig) -> None:
        self.source, self.target, self.task = matcher(edge.source), matcher(edge.target), matcher(edge.task)
        self.any_task = edge.task == "*"
        self.subject, self.version = edge.subject or None, edge.version

    def covers(self, source: str, target: str, task: str) -> bool:
        return self.source(source) and self.target(target) and (self.any_task or self.task(task))


Selected = tuple[str | None, str | None]


class Registry:
    """The schemas in force. Replaced as a whole, so an event never sees half a change."""

    def __init__(self, edges: Sequence[EdgeConfig] = (), *, remembered: int = 10_000) -> None:
        self._edges = tuple(_Edge(edge) for edge in edges)
        self._by_task = any(not edge.any_task for edge in self._edges)
        self._remembered = remembered
        self._subjects: dict[str, dict[str, Schema]] = {}
        self._latest: dict[str, str] = {}
        self._memo: dict[tuple[str | None, ...], Selected] = {}

    def __len__(self) -> int:
        """How many subjects there are."""
        return len(self._subjects)

    def load(self, files: Mapping[str, bytes]) -> list[Problem]:
        """Put a set of schema files in force, or leave the set that is and say why.

        Keys are `<subject>/<version>.json`; what does not end in `.json` is not a schema and is passed over.
        """
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
                    schema = Schema(subject, version, files[file])
                except SchemaError as error:
                    problems.append(Problem(file, str(error)))
                    continue
            subjects.setdefault(subject, {})[version] = schema
        if not problems:
            self._subjects = {
                subject: dict(sorted(versions.items(), key=lambda item: version_order(item[0])))
                for subject, versions in subjects.items()
            }
            self._latest = {subject: next(reversed(versions)) for subject, versions in self._subjects.items()}
            self._memo = {}
        return problems

    def subjects(self) -> Mapping[str, tuple[str, ...]]:
        """Every subject with its versions, oldest first."""
        return {subject: tuple(versions) for subject, versions in self._subjects.items()}

    def versions(self, subject: str | None) -> tuple[str, ...]:
        """The versions of a subject, oldest first; empty where it is not known."""
        return () if subject is None else tuple(self._subjects.get(subject, ()))

    def schema(self, subject: str | None, version: str | None) -> Schema | None:
        """The schema of a subject and version, None where there is none."""
        versions = self._subjects.get(subject)  # type: ignore[arg-type]  # None is no key, and that is the answer
        return None if versions is None else versions.get(version)  # type: ignore[arg-type]

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
        return subject, version
