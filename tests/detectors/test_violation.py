"""schema.violation: a payload that its schema does not allow."""

import orjson
import pytest

from handrail.event import Event, to_json
from handrail.wire.body import MALFORMED, REASONS

SCHEMA = {
    "type": "object",
    "required": ["summary"],
    "properties": {"summary": {"type": "string"}, "artifacts": {"items": {"required": ["name"]}}},
}
SCHEMAS = {"writer.reviewer": {"1": SCHEMA}}


def handoff(payload: object = None, **fields: object) -> Event:
    known = {"kind": "handoff", "id": "e1", "at": 0.0, "source": "writer", "target": "reviewer", "outcome": "completed"}
    return Event(**known | {"payload": payload} | fields)  # type: ignore[arg-type]


def test_one_finding_lists_every_place(build) -> None:
    """Two things are wrong with one payload: one finding, both in its evidence, arrays without their indices."""
    payload = {"summary": 7, "artifacts": [{"name": "a"}, {"uri": "x"}, {"uri": "y"}]}
    (found,) = build("schema.violation", schemas=SCHEMAS).observe(handoff(payload)).findings
    assert (found.rule, found.severity, found.side, found.event) == ("schema.violation", "warning", "sender", "e1")
    assert (found.subject, found.version, found.evidence["path"]) == ("writer.reviewer", "1", "/artifacts/*")
    assert [(each["path"], each["keyword"]) for each in found.evidence["violations"]] == [
        ("/artifacts/*", "required"),
        ("/summary", "type"),
    ]
    assert "writer to reviewer" in found.message
    orjson.loads(to_json(found))


def test_findings_of_one_cause_share_a_fingerprint(build) -> None:
    """Another id, time, workflow, task and value, but the same place and keyword: the same finding again."""
    pipeline = build("schema.violation", schemas=SCHEMAS)
    one = pipeline.observe(handoff({"summary": 1})).findings[0]
    two = pipeline.observe(handoff({"summary": None}, id="e2", at=9.0, workflow="w", task="t")).findings[0]
    other = pipeline.observe(handoff({}, id="e3")).findings[0]
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_a_payload_that_fits_is_silent(build) -> None:
    """Nothing is found in what the schema allows, nor in what it does not mention."""
    assert not build("schema.violation", schemas=SCHEMAS).observe(handoff({"summary": "s", "more": [1]})).findings


def test_the_version_that_the_sender_names_judges(build) -> None:
    """Version 1 is asked for version 1's payload although version 2 is the latest."""
    schemas = {"r": {"1": {"required": ["a"]}, "2": {"required": ["b"]}}}
    pipeline = build("schema.violation", schemas=schemas)
    assert not pipeline.observe(handoff({"a": 1}, subject="r", version="1")).findings
    assert pipeline.observe(handoff({"a": 1}, id="e2", subject="r", version="2")).findings
    assert pipeline.observe(handoff({"a": 1}, id="e3", subject="r")).findings


def test_a_version_that_is_not_registered_is_not_judged(build) -> None:
    """schema.unknown speaks of it; judging by another version would be a guess."""
    assert not build("schema.violation", schemas=SCHEMAS).observe(handoff({}, version="9")).findings


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_only_a_malformed_body_is_the_senders_fault(build, reason: str) -> None:
    """A body that claims to be JSON and is not is a violation; one that we could not read is not."""
    found = build("schema.violation").observe(handoff(uninspected=reason)).findings
    assert [each.evidence["violations"][0]["keyword"] for each in found] == ["json"] * (reason in MALFORMED)


def test_a_repeated_key_comes_with_what_else_is_wrong(build) -> None:
    """The value that one reader sees is validated too, in the same finding."""
    (found,) = build("schema.violation", schemas=SCHEMAS).observe(handoff({}, uninspected="duplicate_key")).findings
    assert [each["keyword"] for each in found.evidence["violations"]] == ["json", "required"]


def test_it_is_judged_once_when_the_request_is_known(build) -> None:
    """The finding comes with the asked event, and not again with the reply."""
    pipeline = build("schema.violation", schemas=SCHEMAS)
    assert len(pipeline.observe(handoff({}, outcome="asked")).findings) == 1
    assert pipeline.observe(handoff({})).findings == ()


def test_nothing_of_the_payload_is_in_the_finding(build) -> None:
    """Values and unnamed keys may be secret; a finding holds neither."""
    schema = {
        "properties": {"key": {"enum": ["a"]}, "n": {"maximum": 1}, "p": {"pattern": "^x$"}, "o": {"anyOf": [False]}},
        "additionalProperties": {"type": "null"},
        "propertyNames": {"maxLength": 4},
    }
    secret = "hunter2-canary"
    payload = {"key": secret, "n": 77123, "p": secret, "o": [secret], secret: {secret: secret}}
    (found,) = build("schema.violation", schemas={"s": {"1": schema}}).observe(handoff(payload, subject="s")).findings
    written = to_json(found)
    assert len(found.evidence["violations"]) >= 6
    assert b"canary" not in written
    assert b"77123" not in written
