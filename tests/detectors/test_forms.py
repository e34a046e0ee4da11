"""schema.drift of forms: the declared form of a handoff is another than it was."""

from typing import Any

from handrail.detectors import Rule
from handrail.detectors.drift import SchemaDrift
from handrail.detectors.params import DriftParams
from handrail.event import Event, Finding
from handrail.schema.registry import Registry

RULE = Rule(id="schema.drift.form", kind="schema.drift")


def form(**properties: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()}}


def findings(*documents: dict[str, Any], subjects: int = 1, keys: int = 10) -> list[Finding]:
    """One handoff for each form and subject, in order."""
    registry = Registry()
    detector = SchemaDrift(RULE, DriftParams(of="forms", keys=keys), registry)
    found: list[Finding] = []
    for number, document in enumerate(documents):
        for subject in range(subjects):
            name = f"a.b{subject}"
            version = registry.learn(name, document)
            event = Event(
                kind="handoff", id=f"{number}.{subject}", at=float(number), subject=name, version=version, payload={}
            )
            found += detector.observe(event)
    return found


def test_a_changed_type_is_told_with_its_place() -> None:
    """Which property, what it was and what it is."""
    [found] = findings(form(n="number"), form(n="string"))
    assert (found.evidence["path"], found.evidence["old_version"], found.evidence["new_version"]) == ("/n", "1", "2")
    assert "changed from number to string" in found.message


def test_properties_that_come_and_go() -> None:
    """Each is a change of its own."""
    [found] = findings(form(n="number"), form(m="number") | {"required": ["m"]})
    assert [(each["path"], each["change"]) for each in found.evidence["changes"]] == [
        ("/m", "added"),
        ("/n", "removed"),
    ]
    [found] = findings(form(n="number"), form(n="number") | {"required": ["n"]})
    assert found.evidence["changes"] == [{"path": "/n", "change": "became required"}]


def test_the_same_form_is_silent() -> None:
    """Also after a change that was told."""
    assert findings(form(n="number"), form(n="number")) == []
    assert len(findings(*[form(n="number"), form(n="string")] * 5)) == 2


def test_memory_is_bounded() -> None:
    """A subject that was forgotten begins anew."""
    assert findings(form(n="number"), form(n="string"), subjects=3, keys=2) == []
