"""Drift against real evolution: MCP of 2025-11-25 becomes MCP of 2026-07-28, as the released types of both declare it.

Payloads are made from each version's models, with everything in them that they declare; the known changes are those of
the models' declarations, read place by place without any of our code. Precision and recall are printed (pytest -s) and
held to what they are. What is missed changed the type of a member of one alternative of many, which was counted fewer
than `learn` times before: too few to say what its type was.
"""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from handrail.detectors import Rule
from handrail.detectors.drift import SchemaDrift
from handrail.detectors.params import DriftParams
from handrail.event import Event
from handrail.schema.registry import Registry

old = pytest.importorskip("mcp_types._v2025_11_25")
new = pytest.importorskip("mcp_types._v2026_07_28")

MESSAGES = (
    "CallToolRequest",
    "CallToolResult",
    "ClientCapabilities",
    "CompleteResult",
    "CreateMessageRequest",
    "CreateMessageResult",
    "ElicitRequest",
    "ElicitResult",
    "GetPromptRequest",
    "GetPromptResult",
    "Implementation",
    "ListPromptsResult",
    "ListResourceTemplatesResult",
    "ListResourcesResult",
    "ListRootsRequest",
    "ListRootsResult",
    "ListToolsResult",
    "LoggingMessageNotification",
    "ProgressNotification",
    "PromptReference",
    "ReadResourceRequest",
    "ReadResourceResult",
    "ResourceUpdatedNotification",
    "ServerCapabilities",
    "Tool",
)
BEFORE, AFTER, DEPTH = 100, 60, 7

Places = dict[str, set[str]]
"""Each place that a schema declares, with what may stand there: types, and the words of an enumeration in quotes."""


class Declared:
    """What one version says of one message."""

    def __init__(self, version: Any, message: str) -> None:
        self.schema = getattr(version, message).model_json_schema(by_alias=True)

    def branches(self, schema: Any) -> list[Any]:
        """The alternatives to one another that a schema gives, without null: nothing absent is written as null."""
        if "$ref" in schema:
            return self.branches(self.schema["$defs"][schema["$ref"].rpartition("/")[2]])
        union = schema.get("anyOf") or schema.get("oneOf")
        if union:
            return [each for branch in union for each in self.branches(branch)]
        return [] if schema.get("type") == "null" else [schema]

    def places(self) -> Places:
        found: Places = {}
        self._places(self.schema, "", 0, found)
        return found

    def _places(self, schema: Any, path: str, depth: int, found: Places) -> None:
        here = found.setdefault(path, set())
        for branch in self.branches(schema):
            words = [branch["const"]] if "const" in branch else branch.get("enum", ())
            here.update(f'"{word}"' if isinstance(word, str) else type(word).__name__ for word in words)
            if not words:
                here.add(str(branch.get("type", "any")))
            if depth < DEPTH:
                for name, inner in branch.get("properties", {}).items():
                    self._places(inner, f"{path}/{name}", depth + 1, found)
                if isinstance(branch.get("items"), dict):
                    self._places(branch["items"], f"{path}/*", depth + 1, found)

    def payload(self, index: int) -> Any:
        """One payload in which everything stands that is declared; where there are alternatives, one after another."""
        return self._value(self.schema, index, 0)

    def _value(self, schema: Any, index: int, depth: int) -> Any:
        branches = self.branches(schema)
        if not branches:
            return None
        branch = branches[index % len(branches)]
        index //= len(branches)
        if "const" in branch:
            return branch["const"]
        if "enum" in branch:
            return branch["enum"][index % len(branch["enum"])]
        kind = branch.get("type")
        if kind == "object":
            inner = branch.get("properties", {}) if depth < DEPTH else {}
            return {name: self._value(each, index, depth + 1) for name, each in inner.items() if self.branches(each)}
        if kind == "array":
            if not isinstance(branch.get("items"), dict) or depth >= DEPTH:
                return []
            many = max(1, len(self.branches(branch["items"])))
            return [self._value(branch["items"], index * many + number, depth + 1) for number in range(many)]
        return {"integer": 7 + index % 3, "number": 0.5 + index % 3, "boolean": index % 2 == 0}.get(
            str(kind), f"some text, number {index}"
        )


def stream(message: str) -> Iterator[tuple[bool, Any]]:
    before, after = Declared(old, message), Declared(new, message)
    for number in range(BEFORE + AFTER):
        is_new = number >= BEFORE
        yield is_new, (after if is_new else before).payload(number)


def known(message: str) -> set[tuple[str, str]]:
    """What changed between the two declarations: the uppermost place that came or went, types, words."""
    before, after = (Declared(each, message).places() for each in (old, new))
    found = set()
    for path in before.keys() ^ after.keys():
        if path.rpartition("/")[0] in before.keys() & after.keys():
            found.add((path, "added" if path in after else "removed"))
    for path in before.keys() & after.keys():
        fresh = after[path] - before[path]
        if any(not each.startswith('"') for each in fresh):
            found.add((path, "type"))
        elif fresh and before[path]:
            found.add((path, "enumeration"))
    return found


def told(message: str, *, registered: bool) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """What the detector tells while the old version is spoken, and after the sender was upgraded."""
    registry = Registry()
    if registered:
        assert registry.load({"mcp/1.json": orjson.dumps(Declared(old, message).schema)}) == []
    detector = SchemaDrift(Rule(id="schema.drift", kind="schema.drift"), DriftParams(), registry)
    found: tuple[set[tuple[str, str]], set[tuple[str, str]]] = (set(), set())
    for number, (is_new, payload) in enumerate(stream(message)):
        event = Event(
            kind="handoff",
            id=f"e{number}",
            at=float(number),
            source="client",
            target="server",
            subject="mcp",
            version="1" if registered else None,
            outcome="completed",
            payload=payload,
        )
        for each in detector.observe(event):
            if each.evidence["change"] not in ("distribution", "size", "presence"):
                found[is_new].add((each.evidence["path"], each.evidence["change"]))
    return found


@pytest.mark.parametrize("registered", [False, True], ids=["own past", "2025-11-25 registered"])
def test_the_upgrade_from_mcp_2025_11_25_to_2026_07_28(registered: bool) -> None:
    """What the two versions declare differently is told, and nothing while the old one is spoken."""
    right = wrong = missed = 0
    lines = []
    for message in MESSAGES:
        stable, changed = told(message, registered=registered)
        assert stable == set(), message
        wanted = known(message)
        right += len(changed & wanted)
        wrong += len(changed - wanted)
        missed += len(wanted - changed)
        lines.append(f"  {message}: {len(changed & wanted)} of {len(wanted)}")
        lines += [f"    not known: {path} {change}" for path, change in sorted(changed - wanted)]
        lines += [f"    missed: {path} {change}" for path, change in sorted(wanted - changed)]
    precision, recall = right / (right + wrong), right / (right + missed)
    print(f"\nMCP 2025-11-25 to 2026-07-28: precision {precision:.3f}, recall {recall:.3f}", *lines, sep="\n")
    assert right > 20
    assert precision >= 0.95
    assert recall >= 0.9
