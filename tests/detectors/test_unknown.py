"""schema.unknown: a payload that no registered schema can judge."""

from handrail.event import Event

SCHEMAS = {"report": {"1": {}, "10": {}, "9": {}}}


def handoff(number: int = 1, at: float = 0.0, **fields: object) -> Event:
    known = {"kind": "handoff", "source": "a", "target": "b", "outcome": "completed", "payload": {}}
    return Event(id=f"e{number}", at=at, **known | fields)  # type: ignore[arg-type]


def test_a_version_that_is_not_registered(build) -> None:
    """The finding lists the versions that are, in their order."""
    (found,) = build("schema.unknown", schemas=SCHEMAS).observe(handoff(subject="report", version="2")).findings
    assert (found.subject, found.version, found.side) == ("report", "2", "sender")
    assert found.evidence == {"missing": "version", "known_versions": ["1", "9", "10"]}


def test_each_rule_speaks_of_its_own_half(build) -> None:
    """`of: version` is silent about an unknown subject and the other way round."""
    strange, old = handoff(subject="invoice", version="1"), handoff(2, subject="report", version="2")
    version, subject = (build("schema.unknown", {"of": of}, SCHEMAS) for of in ("version", "subject"))
    assert [len(version.observe(event).findings) for event in (strange, old)] == [0, 1]
    assert [len(subject.observe(event).findings) for event in (strange, old)] == [1, 0]


def test_it_is_said_once_in_a_while(build) -> None:
    """Quiet for `again_seconds` about one version, not about another one."""
    pipeline = build("schema.unknown", {"again_seconds": 60}, SCHEMAS)
    said = [(0, "2"), (59, "2"), (59, "3"), (60, "2"), (119, "2"), (120, "2")]
    events = [handoff(n, float(at), subject="report", version=version) for n, (at, version) in enumerate(said)]
    assert [len(pipeline.observe(event).findings) for event in events] == [1, 0, 1, 1, 0, 1]


def test_another_workflow_is_told_too(build) -> None:
    """Once in one workflow does not silence another."""
    pipeline = build("schema.unknown", schemas=SCHEMAS)
    events = [handoff(n, subject="report", version="2", workflow=workflow) for n, workflow in enumerate("vwv")]
    assert [len(pipeline.observe(event).findings) for event in events] == [1, 1, 0]


def test_an_empty_registry_is_silent_unless_asked(build) -> None:
    """Nobody registered anything yet, so nothing is missing."""
    assert not build("schema.unknown", {"of": "subject"}).observe(handoff()).findings
    assert build("schema.unknown", {"of": "subject", "even_if_empty": True}).observe(handoff()).findings


def test_an_agent_without_a_name_has_no_subject(build) -> None:
    """Without source there is no `<source>.<target>`; the finding says so and invents none."""
    pipeline = build("schema.unknown", {"of": "subject"}, SCHEMAS)
    (found,) = pipeline.observe(handoff(source=None)).findings
    assert (found.subject, found.side) == (None, "unknown")


def test_what_is_no_handoff_or_has_no_payload_is_silent(build) -> None:
    """A read, and a handoff whose body could not be read."""
    pipeline = build("schema.unknown", {"of": "subject"}, SCHEMAS)
    assert not pipeline.observe(handoff(kind="read")).findings
    assert not pipeline.observe(handoff(2, payload=None, uninspected="too_large")).findings
