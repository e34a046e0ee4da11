"""schema.mismatch: the sender writes one version, the receiver reads another, and the two do not agree."""

from typing import Any

import pytest

from handrail.config import EdgeConfig
from handrail.detectors.mismatch import versions_of
from handrail.event import Event
from handrail.schema.registry import Schema

OPTIONAL = {"type": "object", "properties": {"summary": {"type": "string"}, "score": {"type": "number"}}}
REQUIRED = OPTIONAL | {"required": ["summary"]}
RENAMED = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
SCHEMAS = {"report": {"1": OPTIONAL, "2": REQUIRED, "3": RENAMED, "10": RENAMED}}


def handoff(payload: Any, version: str | None, **fields: Any) -> Event:
    said: dict[str, Any] = {"kind": "handoff", "id": "e1", "at": 0.0, "source": "writer", "target": "reviewer"}
    said |= {"subject": "report", "outcome": "completed", "workflow": "w"}
    return Event(payload=payload, version=version, **said | fields)


def reading(version: str) -> list[EdgeConfig]:
    return [EdgeConfig(target="rev*", subject="report", reads=version)]


def test_the_sender_is_behind(build) -> None:
    """It writes version 1, its receiver reads 2, which requires more: with a witness, and the sender must move."""
    pipeline = build("schema.mismatch", schemas=SCHEMAS, edges=reading("2"))
    (found,) = pipeline.observe(handoff({"summary": "s"}, "1")).findings
    evidence = found.evidence
    assert (found.side, evidence["moves"], evidence["writes"], evidence["reads"]) == ("sender", "sender", "1", "2")
    assert (evidence["decided"], evidence["declared_by"], evidence["fits"]) == ("witness", "schemas.edges.reads", True)
    assert Schema("a", "1", b'{"type":"object"}').is_valid(evidence["witness"])
    assert "summary" not in evidence["witness"]
    assert "writer must move to version 2" in found.message


def test_the_receiver_is_behind(build) -> None:
    """It says on its reply that it reads 2, and gets 10: versions are ordered by number, and the receiver must move."""
    pipeline = build("schema.mismatch", schemas=SCHEMAS)
    (found,) = pipeline.observe(handoff({"text": "s"}, "10", reads="report@2")).findings
    assert (found.side, found.evidence["fits"]) == ("receiver", False)
    assert found.evidence["declared_by"] == "handrail-accept"
    assert "reviewer must move to version 10" in found.message


def test_a_pinned_version_is_what_the_receiver_reads(build) -> None:
    """Where the configuration pins a version and the wire names another."""
    edges = [EdgeConfig(subject="report", version="2")]
    pipeline = build("schema.mismatch", schemas=SCHEMAS, edges=edges)
    (found,) = pipeline.observe(handoff({"summary": "s"}, "1")).findings
    assert found.evidence["declared_by"] == "schemas.edges.version"


def test_the_header_wins_over_the_configuration(build) -> None:
    """What the receiver says itself is newer than what somebody wrote down."""
    pipeline = build("schema.mismatch", schemas=SCHEMAS, edges=reading("3"))
    assert pipeline.observe(handoff({"summary": "s"}, "1", reads="report@1")).findings == ()


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("2", {"reads": "report@1"}),  # a reader of 1 reads all that 2 writes
        ("3", {"reads": "report@2, report@3"}),
        ("3", {"reads": "report@10"}),  # the same content
        ("1", {"reads": "order@2"}),  # of another subject
        ("1", {"reads": "report@77"}),  # not registered
        ("77", {"reads": "report@1"}),
        (None, {"reads": "report@1", "subject": None}),
        ("1", {"reads": "@,, @"}),
        ("1", {"kind": "read", "reads": "report@2"}),
    ],
)
def test_no_finding(build, version: str | None, fields: dict[str, Any]) -> None:
    """Where the versions agree, or nobody knows."""
    assert build("schema.mismatch", schemas=SCHEMAS).observe(handoff({}, version, **fields)).findings == ()


def test_it_is_said_once_in_a_while_for_each_workflow(build) -> None:
    """Once for each pair of versions and workflow, and again after the hour."""
    pipeline = build("schema.mismatch", schemas=SCHEMAS, edges=reading("2"))
    events = [("e1", 0.0, "w"), ("e2", 5.0, "w"), ("e3", 6.0, "v"), ("e4", 4_000.0, "w")]
    found = [
        pipeline.observe(handoff({}, "1", id=name, at=at, workflow=workflow)).findings for name, at, workflow in events
    ]
    assert [len(each) for each in found] == [1, 0, 1, 1]
    assert len({each.fingerprint for finding in found for each in finding}) == 1


def test_versions_of_a_header() -> None:
    """`subject@version` of the subject, or a version alone."""
    assert versions_of("report@1, order@2 , report@3", "report") == ("1", "3")
    assert versions_of("a@b@4", "a@b") == ("4",)
    assert versions_of("2, report@, ,", "report") == ("2",)
