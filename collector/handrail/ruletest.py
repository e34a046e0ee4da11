"""The tests inside rule packs, run through a real Pipeline: each gives one verdict."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson

from handrail.event import Decision, Finding
from handrail.pipeline import Pipeline
from handrail.rules import Pack, RuleConfig, TestConfig, event_of, in_force, watch
from handrail.schema.registry import Registry, SchemaError


class RuleTest(msgspec.Struct, frozen=True):
    """One test of one rule, and what came of it."""

    rule: str
    name: str
    passed: bool
    problem: str = ""


def run(packs: Sequence[Pack]) -> Iterator[RuleTest]:
    """Every test of every rule in force, each against that rule alone. Raises ConfigError, see `rules.in_force`."""
    for pack, config in in_force(packs):
        for test in config.tests:
            problem = check(pack, config, test)
            yield RuleTest(config.id, test.name, not problem, problem)


def check(pack: Pack, config: RuleConfig, test: TestConfig) -> str:
    """What is wrong, empty where the transcript gives what the test says.

    Time moves on with the events, and never back: an event with an earlier `at` is one that arrived late.
    """
    registry = Registry(test.edges)
    files = {
        f"{subject}/{version}.json": orjson.dumps(schema)
        for subject, versions in test.schemas.items()
        for version, schema in versions.items()
    }
    if problems := registry.load(files):
        return "; ".join(map(str, problems))
    for subject, documents in test.learned.items():
        for index, document in enumerate(documents):
            try:
                registry.learn(subject, document)
            except SchemaError as error:
                return f"learned.{subject}[{index}]: {error}"
    pipeline = Pipeline((watch(pack, config, registry),), registry)
    pipeline.recorded()
    found: list[Finding] = []
    decisions: list[Decision] = []
    now = float("-inf")
    for index, fields in enumerate(test.events):
        event = event_of(fields, index)
        now = max(now, event.at)
        decisions += (pipeline.advance(now), pipeline.observe(event))
    if test.advance is not None:
        now = max(now, test.advance)
        decisions.append(pipeline.advance(test.advance))
    decisions.append(pipeline.close(now))
    for decision in decisions:
        if decision.faults:
            return "; ".join(f"{fault.component}: {fault.message or fault.reason}" for fault in decision.faults)
        found += decision.findings
    if len(found) != test.finds:
        said = "".join(f"\n  {each.message}" for each in found)
        return f"expected {test.finds} findings, got {len(found)}{said}"
    for key, wanted in test.finding.items():
        value: Any = orjson.loads(orjson.dumps(msgspec.structs.asdict(found[0]))) if found else {}
        for step in key.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if value != wanted:
            return f"expected {key} to be {wanted!r} in the first finding, got {value!r}"
    return ""
