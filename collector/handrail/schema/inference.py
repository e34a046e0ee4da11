"""Payloads become a profile of their shape, and a profile becomes a JSON Schema: an open one to propose, a closed one
to compare with.

A profile holds counts, never a payload: of types, of names, of string formats, the least and the greatest number. The
one thing it takes from values is words: strings that could be an enumeration's. They are at most 32 characters, look
like words and not like keys or tokens, stand under no name that speaks of a secret, and are dropped for good at a
place that shows more than sixteen of them. Memory is bounded by `MAX_NODES` nodes whatever the payloads.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs

from handrail.schema.registry import type_name

MAX_DEPTH = 24
"""Levels of a payload that are told apart; what lies deeper may be anything."""
MAX_NAMES = 200
"""An object with more names than this is a map: what its names lead to is merged."""
MAX_NODES = 2_000
"""Past it, names that are new lead to what all other new names of their object lead to."""
MAX_WORDS = 16

FORMATS = ("uuid", "date-time", "date", "time", "email", "ipv4", "ipv6", "uri")

_NUMBERS = frozenset({"integer", "number"})
_SECRET = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|api.?key|auth|cookie|session|signature|private", re.IGNORECASE
)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]{0,23}(?:[ _.\-/][A-Za-z0-9]{1,24}){0,3}")
_ID = re.compile(
    r"\d+|(?=.*\d)[0-9a-fA-F]{10,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|[A-Za-z]+[-:#]\d+|\S+@\S+|.*[/\s].*|.{65,}",
    re.DOTALL,
)


def is_id(name: str) -> bool:
    """Whether a member's name is itself a value: a number, a UUID, a hash, `task-12`, a path, an address."""
    return _ID.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return _SECRET.search(name) is not None


def is_word(text: str) -> bool:
    """Whether a string could be a member of an enumeration, by its looks."""
    return len(text) <= 32 and _WORD.fullmatch(text) is not None


_CHECKS = {name: jsonschema_rs.validator_for({"format": name}, validate_formats=True).is_valid for name in FORMATS}


def format_of(text: str) -> str:
    """The format that a string has, the empty string where it has none of `FORMATS`."""
    size = len(text)
    if size < 5 or size > 512:
        return ""
    if size == 36 and text[8] == "-" and _CHECKS["uuid"](text):
        return "uuid"
    if text[0].isdigit():
        for name in ("date-time", "date", "time", "ipv4"):
            if _fits(name, text):
                return name
    if "://" in text and _fits("uri", text):
        return "uri"
    if "@" in text and _fits("email", text):
        return "email"
    return "ipv6" if text.count(":") > 1 and _fits("ipv6", text) else ""


def _fits(name: str, text: str) -> bool:
    try:
        return _CHECKS[name](text)
    except (ValueError, TypeError):  # a lone surrogate
        return False


class Node:
    """What was seen at one place of a payload; all numbers are counts of values."""

    __slots__ = ("count", "formats", "high", "is_map", "is_opaque", "items", "low", "names", "types", "values", "words")

    def __init__(self) -> None:
        self.count = 0
        self.types: dict[str, int] = {}
        self.names: dict[str, Node] = {}
        self.values: Node | None = None
        """What the names lead to that are ids, or too many."""
        self.is_map = False
        self.is_opaque = False
        """Members or items were seen that are not told apart."""
        self.items: Node | None = None
        self.words: dict[str, int] | None = {}
        """None once a string was seen that is no word, or more than `MAX_WORDS` words."""
        self.formats: dict[str, int] = {}
        self.low: Any = None  # a number as it came: where this is compiled, a float would round long integers
        self.high: Any = None

    @property
    def objects(self) -> int:
        return self.types.get("object", 0)

    def enumeration(self, least: int = 0) -> dict[str, int] | None:
        """The words seen here, where they are all there are: eight times as many strings and eight more, each thrice.

        With n words used equally often, that an (n+1)-th was never seen in so many strings has a chance below e⁻⁸.
        """
        words, strings = self.words, self.types.get("string", 0)
        if not words or strings < max(least, 8 * len(words) + 8) or min(words.values()) < 3:
            return None
        return words

    def format(self, least: int = 1) -> str:
        """The one format of all strings here, the empty string where there is none."""
        if len(self.formats) != 1:
            return ""
        ((name, count),) = self.formats.items()
        return name if count >= least else ""

    def is_maplike(self) -> bool:
        """Whether names come and go as keys of a map do: many, each seldom, and all leading to the same types."""
        names = self.names
        if self.is_map:
            return True
        if len(names) < 5 or 2 * sum(node.count for node in names.values()) > len(names) * self.objects:
            return False
        return len({frozenset(node.types) - {"null"} for node in names.values()}) == 1


class Stability:
    """How far a profile may be trusted. Not a Struct, so that this module can be compiled."""

    __slots__ = ("once", "payloads", "places", "unseen")

    def __init__(self, payloads: int, places: int, once: int, unseen: float) -> None:
        self.payloads = payloads
        self.places = places
        """Places, with their types, that were seen."""
        self.once = once
        """Of these, seen in one value only."""
        self.unseen = unseen
        """Chance that the next payload shows something new, by Good and Turing: what was seen once, by payloads."""

    @property
    def is_stable(self) -> bool:
        return self.payloads >= 20 and self.unseen <= 0.05


class Profile:
    """The shapes of the payloads of one sender and subject.

    `add` and `merge` give the same profile in whatever order, as long as it has fewer than `MAX_NODES` nodes.
    """

    def __init__(self) -> None:
        self.root = Node()
        self.nodes = 1
        self.values = 0
        """Values in all payloads that were counted one by one."""

    @property
    def payloads(self) -> int:
        return self.root.count

    def add(self, payload: Any) -> None:
        """Count one payload. Takes any value; what is not JSON is counted as type `unknown`."""
        self._add(self.root, payload, 0, False)

    def _add(self, node: Node, value: Any, depth: int, secret: bool) -> None:
        self.values += 1
        node.count += 1
        kind = type_name(value)
        if kind == "number" and value == value and abs(value) < 1e300 and value.is_integer():
            kind = "integer"
        node.types[kind] = node.types.get(kind, 0) + 1
        if kind == "string":
            self._add_string(node, value, secret)
        elif kind in _NUMBERS:
            if value == value:
                node.low = value if node.low is None else min(node.low, value)
                node.high = value if node.high is None else max(node.high, value)
        elif kind == "object":
            if depth >= MAX_DEPTH:
                node.is_opaque = node.is_opaque or bool(value)
                return
            for name, inner in value.items():
                if type(name) is not str:
                    node.is_opaque = True
                    continue
                child = self._child(node, name)
                if child is not None:
                    self._add(child, inner, depth + 1, secret or _is_secret(name))
            if len(node.names) > MAX_NAMES:
                self.fold(node)
        elif kind == "array" and value:
            if depth >= MAX_DEPTH:
                node.is_opaque = True
                return
            items = node.items
            if items is None:
                items = node.items = Node()
                self.nodes += 1
            for inner in value:
                self._add(items, inner, depth + 1, secret)

    def _child(self, node: Node, name: str) -> Node | None:
        child = node.names.get(name)
        if child is not None:
            return child
        if node.is_map or is_id(name) or self.nodes >= MAX_NODES:
            if node.values is None:
                if self.nodes >= 2 * MAX_NODES:
                    node.is_opaque = True
                    return None
                node.values = Node()
                self.nodes += 1
            return node.values
        child = node.names[name] = Node()
        self.nodes += 1
        return child

    @staticmethod
    def _add_string(node: Node, text: str, secret: bool) -> None:
        name = format_of(text)
        node.formats[name] = node.formats.get(name, 0) + 1
        words = node.words
        if words is None:
            return
        if secret or not is_word(text):
            node.words = None
        else:
            words[text] = words.get(text, 0) + 1
            if len(words) > MAX_WORDS:
                node.words = None

    def fold(self, node: Node) -> None:
        """Take an object for a map from now on: what its names lead to becomes one."""
        node.is_map = True
        merged = node.values
        for child in node.names.values():
            merged = child if merged is None else _merged(merged, child)
        node.names = {}
        node.values = merged
        self.nodes = _size(self.root)

    def merge(self, other: "Profile") -> "Profile":
        """The profile of the payloads of both."""
        both = Profile()
        both.root = _merged(self.root, other.root)
        both._shrink()
        return both

    def _shrink(self) -> None:
        """Within the limit on nodes again: maps out of the objects with the most names, the deepest first."""
        self.nodes = _size(self.root)
        while self.nodes > MAX_NODES:
            _, node = max(
                ((depth, node) for depth, node in _walk(self.root, 0) if len(node.names) > 1),
                key=lambda found: (found[0], len(found[1].names)),
                default=(0, None),
            )
            if node is None:
                return
            self.fold(node)

    def schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) that accepts every payload that was counted, to be proposed to a person.

        Names that it does not know it lets pass, as open schemas do; types, what is always there, enumerations and
        formats it holds to. A range is widened to the next power of ten, for the greatest number so far is no limit.
        """
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema(self.root, closed=False)}

    def closed(self, learn: int = 0) -> dict[str, Any]:
        """The tight form: it refuses a payload that shows a name, type, format or word that was not counted.

        Enumerations and formats count where they are settled; ranges do not count.
        """
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema(self.root, closed=True)}

    def stability(self) -> Stability:
        """How many payloads, and how likely the next one shows something new."""
        places = once = 0
        for _, node in _walk(self.root, 0):
            for count in node.types.values():
                places += 1
                once += count == 1
        payloads = self.payloads
        unseen = 1.0 if not payloads else min(1.0, once / payloads)
        return Stability(payloads, places, once, round(unseen, 6))

    def outline(self) -> Any:
        """All of the profile as plain values, equal for equal profiles."""
        return _outline(self.root)


def _walk(node: Node, depth: int) -> Iterator[tuple[int, Node]]:
    yield depth, node
    for child in (*node.names.values(), node.values, node.items):
        if child is not None:
            yield from _walk(child, depth + 1)


def _size(node: Node) -> int:
    return sum(1 for _ in _walk(node, 0))


def _sum(one: dict[str, int], two: dict[str, int]) -> dict[str, int]:
    total = dict(one)
    for key, count in two.items():
        total[key] = total.get(key, 0) + count
    return total


def _merged(one: Node, two: Node) -> Node:
    both = Node()
    both.count = one.count + two.count
    both.types, both.formats = _sum(one.types, two.types), _sum(one.formats, two.formats)
    both.is_opaque, both.is_map = one.is_opaque or two.is_opaque, one.is_map or two.is_map
    if one.words is None or two.words is None or len(words := _sum(one.words, two.words)) > MAX_WORDS:
        both.words = None
    else:
        both.words = words
    lows = [low for low in (one.low, two.low) if low is not None]
    highs = [high for high in (one.high, two.high) if high is not None]
    both.low, both.high = min(lows, default=None), max(highs, default=None)
    both.items, both.values = _either(one.items, two.items), _either(one.values, two.values)
    for name in {**one.names, **two.names}:
        child = _either(one.names.get(name), two.names.get(name))
        if child is not None:
            both.names[name] = child
    if both.is_map or len(both.names) > MAX_NAMES:
        both.is_map = True
        for child in both.names.values():
            both.values = _either(both.values, child)
        both.names = {}
    return both


def _either(one: Node | None, two: Node | None) -> Node | None:
    if one is None or two is None:
        return one or two
    return _merged(one, two)


_NEAR = 20
"""Values that must have been seen before a range is proposed."""


def _schema(node: Node, *, closed: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    types = [name for name in sorted(node.types) if not (name == "integer" and "number" in node.types)]
    if "unknown" in types or not types:
        return schema
    schema["type"] = types[0] if len(types) == 1 else types
    if "object" in types:
        _object(node, schema, closed=closed)
    if "array" in types and not node.is_opaque:
        if node.items is not None:
            schema["items"] = _schema(node.items, closed=closed)
        elif closed:
            schema["maxItems"] = 0
    if "string" in types:
        if (name := node.format(10 if closed else 1)) != "":
            schema["format"] = name
        words = node.enumeration(20)
        if words is not None and (closed or len(words) > 1) and set(types) <= {"string", "null"}:
            schema["enum"] = [*sorted(words), *([None] if "null" in types else [])]
            del schema["type"]
    if not closed and node.low is not None and node.high is not None and node.count >= _NEAR:
        if node.low >= 0:
            schema["minimum"] = 0
        elif abs(node.low) < 1e15:
            schema["minimum"] = -_power_of_ten(-node.low)
        if 0 < node.high < 1e15:
            schema["maximum"] = _power_of_ten(node.high)
    return schema


def _object(node: Node, schema: dict[str, Any], *, closed: bool) -> None:
    names, values = node.names, node.values
    if node.is_maplike() and names:
        for child in names.values():
            values = _either(values, child)
        names = {}
    required = sorted(name for name, child in names.items() if child.count == node.objects)
    if names:
        schema["properties"] = {name: _schema(child, closed=closed) for name, child in sorted(names.items())}
    if closed and required and len(required) == len(names) and values is None and not node.is_opaque:
        # As many of no others are all of them, and counting costs half of what looking each up does.
        schema["minProperties"] = len(required)
    elif required:
        schema["required"] = required
    if node.is_opaque:
        return
    if values is not None:
        schema["additionalProperties"] = _schema(values, closed=closed)
    elif closed:
        schema["additionalProperties"] = False


def _power_of_ten(number: Any) -> int:
    power = 1
    while power < number:
        power *= 10
    return power


def _outline(node: Node | None) -> Any:
    if node is None:
        return None
    return {
        "count": node.count,
        "types": dict(sorted(node.types.items())),
        "names": {name: _outline(child) for name, child in sorted(node.names.items())},
        "values": _outline(node.values),
        "map": node.is_map,
        "opaque": node.is_opaque,
        "items": _outline(node.items),
        "words": None if node.words is None else dict(sorted(node.words.items())),
        "formats": dict(sorted(node.formats.items())),
        "low": node.low,
        "high": node.high,
    }
