"""Rule packs: what is refused and with which path, what `where` matches, which rules are in force, what tests say."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from handrail import ruletest
from handrail.config import ConfigError
from handrail.event import Event
from handrail.rules import KINDS, Pack, in_force, load, watches
from handrail.schema.registry import Registry

DETECTION = Path(__file__).parents[1] / "rules" / "detection"
SHIPPED = sorted(DETECTION.glob("*.yaml"))

POSITIVE = {"name": "twice", "events": [{"at": 0}, {"at": 5}], "finds": 1}
NEGATIVE = {"name": "once", "events": [{"at": 0}], "finds": 0}


def rule(**keys: Any) -> dict[str, Any]:
    """A rule that is right, its keys in order, with some of them changed (None: left out)."""
    written = {
        "id": "output.duplicate",
        "title": "t",
        "why": "w",
        "maturity": "stable",
        "severity": "warning",
        "kind": "output.duplicate",
        "scope": None,
        "action": None,
        "where": None,
        "with": None,
        "tests": [POSITIVE, NEGATIVE],
    } | keys
    return {key: value for key, value in written.items() if value is not None}


def pack_of(*rules: dict[str, Any], builtin: bool = False, file: str = "mine.yaml", **keys: Any) -> Pack:
    text = orjson.dumps({"language": 1, **keys, "rules": list(rules)}, option=orjson.OPT_NON_STR_KEYS).decode()
    return load(text, file, builtin=builtin)


def in_force_of(*packs: Pack) -> list[tuple[str, str]]:
    return [(pack.file, config.id) for pack, config in in_force(packs)]


# --- the shipped packs


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_rules_pass_their_tests(path: Path) -> None:
    """What `handrail rules test` runs."""
    assert [test for test in ruletest.run([load(path.read_text(), path.name)]) if not test.passed] == []


def test_every_kind_is_shipped_as_a_rule() -> None:
    """A detector without a rule would never run; a stable rule tells when it is harmless and what to turn."""
    configs = [config for path in SHIPPED for config in load(path.read_text(), path.name).rules]
    assert {config.kind for config in configs} == set(KINDS)
    for config in configs:
        assert config.maturity == "stable"
        assert "armless" in config.why or "pin the edge" in config.why
        assert "`" in config.why or "Register" in config.why
        assert sum(test.finds == 0 for test in config.tests) >= 2, f"{config.id} needs a near miss"


# --- what is refused

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown key": (rule(sevrity="info"), "rules[0].sevrity", "severity"),
    "a missing key": (rule(why=None), "rules[0].why", "missing"),
    "an unknown kind": (rule(kind="output.duplicates"), "rules[0].kind", "did you mean output.duplicate?"),
    "an id of another kind": (rule(id="budget.exceeded"), "rules[0].id", "output.duplicate.<suffix>"),
    "an id that is no label": (rule(id="twice!"), "rules[0].id", "letters, digits"),
    "a severity that is none": (rule(severity="fatal"), "rules[0].severity", "fatal"),
    "an action that is none": (rule(action="block"), "rules[0].action", "block"),
    "an unknown parameter": (rule(**{"with": {"within": 5}}), "rules[0].with.within", "within_seconds"),
    "a parameter of the wrong type": (
        rule(**{"with": {"within_seconds": "1h"}}),
        "rules[0].with.within_seconds",
        "a number",
    ),
    "a parameter out of range": (rule(**{"with": {"keys": 0}}), "rules[0].with.keys", "1"),
    "an unknown field": (rule(where={"sourc": "a"}), "rules[0].where.sourc", "did you mean source?"),
    "a payload in where": (rule(where={"payload": "a"}), "rules[0].where.payload", "unknown field"),
    "an unknown modifier": (rule(where={"source|like": "a"}), "rules[0].where.source|like", "unknown modifier like"),
    "an outcome that is none": (rule(where={"outcome": "done"}), "rules[0].where.outcome", "done"),
    "a limit on what is no number": (rule(where={"source|gt": 1}), "rules[0].where.source|gt", "not a number"),
    "a limit that is no number": (rule(where={"attempt|gt": "x"}), "rules[0].where.attempt|gt", "a number"),
    "a pattern that is no text": (rule(where={"source|matches": 1}), "rules[0].where.source|matches", "text"),
    "no positive test": (rule(tests=[NEGATIVE]), "rules[0].tests", "finds something"),
    "no negative test": (rule(tests=[POSITIVE]), "rules[0].tests", "finds nothing"),
    "an unknown key in a test": (rule(tests=[POSITIVE | {"find": 1}, NEGATIVE]), "rules[0].tests[0].find", "finds"),
    "an unknown key in an event": (
        rule(tests=[POSITIVE, NEGATIVE | {"events": [{"at": 0, "taks": "a"}]}]),
        "rules[0].tests[1].events[0].taks",
        "did you mean task?",
    ),
    "an event of the wrong type": (
        rule(tests=[POSITIVE, NEGATIVE | {"events": [{"attempt": "x"}]}]),
        "rules[0].tests[1].events[0].attempt",
        "a whole number",
    ),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_rule_is_refused_with_its_path(why: str) -> None:
    """File, key and what would be right."""
    written, key, problem = WRONG[why]
    with pytest.raises(ConfigError) as refused:
        pack_of(written)
    assert (refused.value.file, refused.value.key) == ("mine.yaml", key)
    assert problem in str(refused.value)


def test_a_rule_of_ones_own_may_have_any_order_of_keys_and_any_id() -> None:
    """Programs that write YAML sort keys, and a team has names of its own; what is shipped keeps to the house order."""
    written = dict(sorted(rule(id="billing.once").items()))
    assert [config.id for config in pack_of(written).rules] == ["billing.once"]
    for wrong, key, problem in (
        (dict(reversed(rule().items())), "rules[0]", "in this order"),
        (rule(id="billing.once"), "rules[0].id", "output.duplicate.<suffix>"),
    ):
        with pytest.raises(ConfigError) as refused:
            pack_of(wrong, builtin=True)
        assert refused.value.key == key
        assert problem in str(refused.value)


def test_another_language_is_refused() -> None:
    """A pack for a later version of the language is not half understood."""
    with pytest.raises(ConfigError, match="language"):
        load("language: 2\nrules: []\n", "mine.yaml")


# --- which rules are in force


def test_a_users_rule_replaces_a_built_in_of_the_same_id() -> None:
    """In its place, whatever the order of the packs; other ids are added."""
    builtin = pack_of(rule(), rule(id="output.duplicate.x"), builtin=True, file="builtin.yaml")
    mine = pack_of(rule(severity="critical"), rule(id="output.duplicate.mine"))
    wanted = [
        ("mine.yaml", "output.duplicate"),
        ("builtin.yaml", "output.duplicate.x"),
        ("mine.yaml", "output.duplicate.mine"),
    ]
    assert in_force_of(builtin, mine) == in_force_of(mine, builtin) == wanted
    assert [watch.rule.severity for watch in watches([builtin, mine], Registry())] == ["critical", "warning", "warning"]


def test_two_rules_of_one_id_are_refused() -> None:
    """In one pack, and in two packs of the same standing, naming both files."""
    with pytest.raises(ConfigError, match="there twice"):
        pack_of(rule(), rule())
    with pytest.raises(ConfigError, match=r"b\.yaml.*also in a\.yaml"):
        in_force_of(pack_of(rule(), file="a.yaml"), pack_of(rule(), file="b.yaml"))


def test_rules_can_be_disabled_by_id() -> None:
    """What is disabled is not in force; a name that is no rule is a mistake."""
    builtin = pack_of(rule(), rule(id="output.duplicate.x"), builtin=True, file="builtin.yaml")
    assert in_force_of(builtin, pack_of(disable=["output.duplicate"])) == [("builtin.yaml", "output.duplicate.x")]
    with pytest.raises(ConfigError, match=r"mine\.yaml: disable\[0\]: .*did you mean output\.duplicate"):
        in_force_of(builtin, pack_of(disable=["output.duplicates"]))


# --- where

EVENT = Event(
    kind="handoff",
    id="e1",
    at=10.0,
    source="billing-eu",
    target="refund",
    attempt=2,
    status=502,
    outcome="failed",
    channel="call",
)

LINES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"source": "billing-eu"}, True),
    ({"source": "billing"}, False),
    ({"source": ["a", "billing-eu"]}, True),
    ({"source": []}, False),
    ({"task": None}, True),
    ({"source": None}, False),
    ({"source|not": "billing-eu"}, False),
    ({"source|not": ["a", "b"]}, True),
    ({"task|not": "a"}, True),
    ({"source|startswith": "billing"}, True),
    ({"source|startswith": ["x", "bill"]}, True),
    ({"source|endswith": "-us"}, False),
    ({"source|contains": "ing-"}, True),
    ({"source|matches": "bill*-eu"}, True),
    ({"source|matches": "*-us"}, False),
    ({"task|contains": "a"}, False),
    ({"task|matches": "*"}, False),
    ({"attempt|gt": 1}, True),
    ({"attempt|gt": 2}, False),
    ({"attempt|lt": 3}, True),
    ({"duration_ms|gt": 0}, False),
    ({"status": 502}, True),
    ({"status|startswith": "50"}, True),
    ({"outcome": ["failed", "timeout"], "source|endswith": "-eu"}, True),
    ({"outcome": ["failed", "timeout"], "source|endswith": "-us"}, False),
]


@pytest.mark.parametrize(("where", "matches"), LINES, ids=str)
def test_where_matches(where: dict[str, Any], matches: bool) -> None:
    """Every line must hold, any value of a list will do; absent is null and no text."""
    (watch,) = watches([pack_of(rule(where=where))], Registry())
    assert (watch.where is None or watch.where(EVENT)) is matches


# --- tests inside rules


def verdicts(*tests: dict[str, Any]) -> list[tuple[str, bool]]:
    written = rule(tests=[POSITIVE, NEGATIVE, *tests])
    return [(test.name, test.passed) for test in ruletest.run([pack_of(written)])]


def test_a_wrong_test_fails_and_says_why() -> None:
    """A count that is off, a field that is off, a schema that is none: each with what was found instead."""
    tests = [
        POSITIVE | {"name": "count", "finds": 2},
        POSITIVE | {"name": "field", "finding": {"side": "receiver"}},
        POSITIVE | {"name": "path", "finding": {"evidence.first": "e2"}},
        POSITIVE | {"name": "schema", "schemas": {"s": {1: {"type": "text"}}}},
        POSITIVE | {"name": "learned", "learned": {"s": [{"type": "object"}, {"type": "text"}]}},
        POSITIVE | {"name": "right", "finding": {"side": "sender", "evidence.first": "e1", "event": "e2"}},
    ]
    results = {test.name: test for test in ruletest.run([pack_of(rule(tests=[*tests, NEGATIVE]))])}
    assert [name for name, test in results.items() if test.passed] == ["right", "once"]
    assert "expected 2 findings, got 1\n  writer handed task t1" in results["count"].problem
    assert "'receiver'" in results["field"].problem
    assert "'sender'" in results["field"].problem
    assert "got 'e1'" in results["path"].problem
    assert "s/1.json" in results["schema"].problem
    assert results["learned"].problem.startswith("learned.s[1]: /type: is not a schema")


def test_a_replaced_rule_is_tested_as_it_is_in_force() -> None:
    """The user's tests run, not those of the built-in rule that it replaces."""
    builtin = pack_of(rule(), builtin=True, file="builtin.yaml")
    mine = pack_of(rule(tests=[POSITIVE | {"name": "mine"}, NEGATIVE]))
    assert [test.name for test in ruletest.run([builtin, mine])] == ["mine", "once"]


def test_where_and_with_count_in_tests() -> None:
    """A test runs the rule as written, not the bare detector."""
    tests = [
        {"name": "outside", "events": [{"at": 0}, {"at": 5}], "finds": 0},
        {"name": "inside", "events": [{"at": 0, "source": "x"}, {"at": 5, "source": "x"}], "finds": 1},
        {"name": "too far apart", "events": [{"at": 0, "source": "x"}, {"at": 50, "source": "x"}], "finds": 0},
    ]
    written = rule(where={"source": "x"}, tests=tests, **{"with": {"within_seconds": 10}})
    assert all(test.passed for test in ruletest.run([pack_of(written)]))
