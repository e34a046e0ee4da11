"""Drift against real evolution: agents that spoke A2A 0.3 begin to speak 1.0, each as the released library writes it.

The known changes are those of the protocol's published migration from 0.3 to 1.0, as far as these payloads show them.
Precision and recall are printed (pytest -s) and held to what they are.
"""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from handrail.detectors import Rule
from handrail.detectors.drift import SchemaDrift
from handrail.detectors.params import DriftParams
from handrail.event import Event
from handrail.schema.registry import Registry

v03 = pytest.importorskip("a2a.compat.v0_3.types")
conversions = pytest.importorskip("a2a.compat.v0_3.conversions")
json_format = pytest.importorskip("google.protobuf.json_format")

STATES = ("submitted", "working", "input-required", "completed")
BEFORE, AFTER = 60, 80


def parts(index: int) -> list[Any]:
    """Text always; data, and a file by address or by content, in some."""
    found = [v03.Part(root=v03.TextPart(text=f"part {index} of the report"))]
    if index % 2:
        found.append(v03.Part(root=v03.DataPart(data={"rows": index, "ok": True})))
    if index % 3 == 0:
        file = v03.FileWithUri(uri=f"https://files.example/{index}", mime_type="text/plain", name="report")
        found.append(v03.Part(root=v03.FilePart(file=file)))
    if index % 3 == 1:
        file = v03.FileWithBytes(bytes="aGFuZHJhaWw=", mime_type="text/plain", name="report")
        found.append(v03.Part(root=v03.FilePart(file=file)))
    return found


def message(index: int) -> Any:
    return v03.Message(
        message_id=f"m-{index}",
        context_id=f"c-{index // 7}",
        task_id=f"t-{index}",
        role=("user", "agent")[index % 2],
        parts=parts(index),
        metadata={"attempt": index % 3} if index % 2 else None,
    )


def status(index: int) -> Any:
    return v03.TaskStatus(
        state=STATES[index % 4], message=message(index), timestamp=f"2026-01-01T00:00:{index % 60:02d}Z"
    )


def task(index: int) -> Any:
    artifacts = [v03.Artifact(artifact_id=f"a-{index}", name="report", parts=parts(index))]
    return v03.Task(
        id=f"t-{index}", context_id=f"c-{index}", status=status(index), artifacts=artifacts, history=[message(index)]
    )


def update(index: int) -> Any:
    return v03.TaskStatusUpdateEvent(
        task_id=f"t-{index}", context_id=f"c-{index}", status=status(index), final=index % 4 == 3
    )


def artifact(index: int) -> Any:
    return v03.TaskArtifactUpdateEvent(
        task_id=f"t-{index}",
        context_id=f"c-{index}",
        artifact=v03.Artifact(artifact_id=f"a-{index}", name="report", parts=parts(index)),
        append=bool(index % 2),
        last_chunk=True,
    )


def card(index: int) -> Any:
    return v03.AgentCard(
        name="billing agent",
        description="answers questions about bills",
        url="https://billing.example/a2a",
        version=f"1.{index // 10}.0",
        protocol_version="0.3.0",
        preferred_transport="JSONRPC",
        additional_interfaces=[v03.AgentInterface(url="https://billing.example/grpc", transport="GRPC")],
        capabilities=v03.AgentCapabilities(streaming=True, push_notifications=False),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[v03.AgentSkill(id="bill", name="Bill", description="explains a bill", tags=["billing"])],
        supports_authenticated_extended_card=True,
        security_schemes={
            "key": v03.SecurityScheme(root=v03.APIKeySecurityScheme(name="x-key", in_="header", description="a key"))
        },
        security=[{"key": []}],
    )


PARTS_ADDED = ("url", "raw", "filename", "mediaType")
PARTS_REMOVED = ("kind", "file")


def known_of(*prefixes: str) -> set[tuple[str, str]]:
    """What 1.0 made of the parts below these places: no `kind`, and no `file` around what a file is."""
    return {(f"{prefix}/parts/*/{name}", "added") for prefix in prefixes for name in PARTS_ADDED} | {
        (f"{prefix}/parts/*/{name}", "removed") for prefix in prefixes for name in PARTS_REMOVED
    }


def message_at(prefix: str) -> set[tuple[str, str]]:
    return known_of(prefix) | {(f"{prefix}/kind", "removed"), (f"{prefix}/role", "enumeration")}


SEQUENCES: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any], set[tuple[str, str]]]] = {
    "Message": (message, conversions.to_core_message, message_at("")),
    "Task": (
        task,
        conversions.to_core_task,
        {("/kind", "removed"), ("/status/state", "enumeration")}
        | known_of("/artifacts/*")
        | message_at("/history/*")
        | message_at("/status/message"),
    ),
    "TaskStatusUpdateEvent": (
        update,
        conversions.to_core_task_status_update_event,
        {("/kind", "removed"), ("/final", "removed"), ("/status/state", "enumeration")} | message_at("/status/message"),
    ),
    "TaskArtifactUpdateEvent": (
        artifact,
        conversions.to_core_task_artifact_update_event,
        {("/kind", "removed")} | known_of("/artifact"),
    ),
    "AgentCard": (
        card,
        conversions.to_core_agent_card,
        {
            ("/url", "removed"),
            ("/preferredTransport", "removed"),
            ("/protocolVersion", "removed"),
            ("/additionalInterfaces", "removed"),
            ("/supportsAuthenticatedExtendedCard", "removed"),
            ("/security", "removed"),
            ("/supportedInterfaces", "added"),
            ("/securityRequirements", "added"),
            ("/capabilities/extendedAgentCard", "added"),
            ("/securitySchemes/key/type", "removed"),
            ("/securitySchemes/key/in", "removed"),
            ("/securitySchemes/key/name", "removed"),
            ("/securitySchemes/key/description", "removed"),
            ("/securitySchemes/key/apiKeySecurityScheme", "added"),
        },
    ),
}


def old_form(value: Any) -> Any:
    return value.model_dump(by_alias=True, exclude_none=True, mode="json")


def run(name: str, *, registered: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What is told while 0.3 is spoken, and after the sender was upgraded."""
    make, upgrade, _ = SEQUENCES[name]
    registry = Registry()
    if registered:
        schema = getattr(v03, name).model_json_schema(by_alias=True)
        assert registry.load({"a2a/1.json": orjson.dumps(schema)}) == []
    rule = Rule(id="schema.drift", kind="schema.drift")
    detector = SchemaDrift(rule, DriftParams(), registry)
    told: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for index in range(BEFORE + AFTER):
        is_new = index >= BEFORE
        value = make(index)
        payload = json_format.MessageToDict(upgrade(value)) if is_new else old_form(value)
        event = Event(
            kind="handoff",
            id=f"e{index}",
            at=float(index),
            source="triage",
            target="billing",
            subject="a2a",
            version="1" if registered else None,
            outcome="completed",
            payload=payload,
            agent_version="1.0" if is_new else "0.3",
        )
        for found in detector.observe(event):
            told[is_new].append((found.evidence["path"], found.evidence["change"]))
    return told


@pytest.mark.parametrize("registered", [False, True], ids=["own past", "0.3 registered"])
def test_the_upgrade_from_a2a_0_3_to_1_0(registered: bool) -> None:
    """What changed in the protocol is told, each once, what did not change is not, and nothing while 0.3 is spoken."""
    right = wrong = missed = 0
    lines = []
    for name, (_, _, known) in SEQUENCES.items():
        stable, changed = run(name, registered=registered)
        assert stable == [], name
        shapes = [each for each in changed if each[1] not in ("distribution", "size", "presence")]
        assert len(shapes) == len(set(shapes)), name
        hits = set(shapes) & known
        right, wrong, missed = right + len(hits), wrong + len(set(shapes) - known), missed + len(known - hits)
        lines += [f"  {name}: {len(hits)} of {len(known)}"]
        lines += [f"    not known: {path} {change}" for path, change in sorted(set(shapes) - known)]
        lines += [f"    missed: {path} {change}" for path, change in sorted(known - hits)]
    precision, recall = right / (right + wrong), right / (right + missed)
    print(f"\nA2A 0.3 to 1.0: precision {precision:.3f}, recall {recall:.3f}", *lines, sep="\n")
    assert precision >= 0.95
    assert recall >= 0.95
