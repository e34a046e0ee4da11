"""Alert rules, runbook and sample configuration are code: each is run by the program that will run it."""

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.chshim import Server
from handrail.config import AlertsConfig, Config
from handrail.edge.alerts import alert_name, runbook_of
from handrail.edge.database import Database
from handrail.edge.files import load_packs
from handrail.edge.metrics import COUNTERS, GAUGES, Metrics
from handrail.event import Event
from handrail.rules import KINDS, in_force

REPOSITORY = Path(__file__).parents[2]
RULES = sorted((REPOSITORY / "rules" / "alerts").glob("*.yaml"))
TESTS = sorted(Path(__file__).parent.glob("alert_rules/*.yaml"))
RUNBOOK = (REPOSITORY / "rules" / "runbook.md").read_text("utf-8")
SAMPLE = REPOSITORY / "rules" / "alertmanager.yml"

OWN = {"cluster", "namespace", "job", "instance"}
"""Labels that a scrape configuration puts on series, and not we."""
FOREIGN = {"up": {"job", "instance"}, "process_start_time_seconds": {"job", "instance"}}
"""Metrics that are Prometheus's or the client library's."""


@functools.cache
def read(file: Path) -> Any:
    """A YAML file, by the loader that is fast where it is there: these are long."""
    return yaml.load(file.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def rules(kind: str) -> Iterator[dict[str, Any]]:
    for file in RULES:
        for group in read(file)["groups"]:
            yield from (rule for rule in group["rules"] if kind in rule)


ALERTS = [pytest.param(rule, id=rule["alert"]) for rule in rules("alert")]


def metrics() -> dict[str, set[str]]:
    """Every metric that is exported to the labels of its series, from the tables and from what is rendered."""
    exporter = Metrics()
    exporter.handoff(
        Event(kind="handoff", id="e", at=0, duration_ms=1, overhead_ms=1, payload_bytes=1, tokens=1, store="s")
    )
    exporter.handoff(Event(kind="write", id="w", at=0, duration_ms=1, store="s"))
    exporter.wrote("event", "stored", 0.1, 1)
    found = {name: set(labels) for name, (labels, _) in COUNTERS.items()} | {name: set() for name in GAUGES}
    for line in exporter.render().decode().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition(" ")[0].partition("{")
            found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", rest))
    return found | FOREIGN


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def anchors() -> set[str]:
    """What the headings of the runbook are reached by: lower case, without what is neither letter, digit, - nor _."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", RUNBOOK, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", RUNBOOK, re.MULTILINE | re.DOTALL)


def test_promtool_takes_every_rule(needs) -> None:
    """Syntax, names, labels, templates."""
    run(needs("promtool", "prometheus"), "check", "rules", *RULES)


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(file: Path, needs) -> None:
    """promtool's unit tests: the moment before, the moment after, and what must not fire."""
    run(needs("promtool", "prometheus"), "test", "rules", file)


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_has_a_moment_before_a_moment_after_and_a_case_against(rule: dict[str, Any]) -> None:
    """At most three minutes between the two moments, and a transcript in which it never fires."""
    fires, silent = False, False
    for file in TESTS:
        spec = read(file)
        for test in spec["tests"]:
            cases = [case for case in test["alert_rule_test"] if case["alertname"] == rule["alert"]]
            after = [_seconds(case["eval_time"]) for case in cases if case["exp_alerts"]]
            before = [_seconds(case["eval_time"]) for case in cases if not case["exp_alerts"]]
            fires = fires or any(0 < fired - quiet <= 60 for fired in after for quiet in before)
            silent = silent or bool(cases and not after)
    assert fires
    assert silent


def _seconds(text: str) -> int:
    return sum(
        int(n) * {"d": 86_400, "h": 3_600, "m": 60, "s": 1}[unit] for n, unit in re.findall(r"(\d+)([dhms])", text)
    )


def test_every_kind_of_finding_has_an_alert_of_its_rules_severity() -> None:
    """No failure that Handrail can find goes untold, and the pages are those that the rule packs call critical."""
    of_kind = {rule["labels"]["kind"]: rule for rule in rules("alert") if "kind" in rule["labels"]}
    assert set(of_kind) == set(KINDS)
    for _, rule in in_force(load_packs(Config())):
        alert = of_kind[rule.kind]
        pattern = re.search(r'rule=~"([^"]+)"', alert["expr"])
        if rule.kind == "budget.exceeded":
            continue  # by its burn rate, whatever the severity of one miss
        assert pattern is not None
        assert re.fullmatch(pattern[1], rule.id)
        if rule.id == rule.kind:
            assert alert["labels"]["severity"] == rule.severity


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_says_what_a_person_on_call_needs(rule: dict[str, Any]) -> None:
    """Severity, one sentence, a description, a heading of the runbook, and a dashboard that is there."""
    assert re.fullmatch(r"Handrail([A-Z][a-z]+)+", rule["alert"])
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    said = rule["annotations"]
    assert said["summary"].endswith(".")
    assert said["description"]
    file, _, anchor = said["runbook_url"].partition("#")
    assert (REPOSITORY / file).is_file()
    assert anchor in anchors()
    assert f"`{rule['alert']}`" in RUNBOOK or f"## {rule['alert']}\n" in RUNBOOK
    uid, _, query = said["dashboard_url"].removeprefix("/d/").partition("?")
    board = json.loads((REPOSITORY / "dashboards" / f"{uid}.json").read_text("utf-8"))
    assert board["uid"] == uid
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"var-(\w+)=", query)) <= names


def test_what_is_pushed_leads_to_the_runbook_too() -> None:
    """By the heading of its kind."""
    config = AlertsConfig()
    assert {runbook_of(kind, config).partition("#")[2] for kind in KINDS} <= anchors()
    assert alert_name("state.stale_read") == "HandrailFindingStateStaleRead"


def _selectors(expr: str) -> Iterator[tuple[str, set[str]]]:
    for name, labels in re.findall(r"\b((?:handrail|process|up)[\w:]*)(?:\{([^}]*)\})?", expr):
        yield name, set(re.findall(r"(\w+)\s*[=!]", labels))


def test_every_metric_and_label_that_is_named_exists() -> None:
    """In rules, in the runbook's PromQL and in its prose; what a recording rule makes exists too."""
    known, recorded = metrics(), {rule["record"] for rule in rules("record")}
    expressions = [rule["expr"] for rule in (*rules("alert"), *rules("record"))]
    asked = [*expressions, *blocks("promql"), *re.findall(r"`([^`]*handrail_[^`]*)`", RUNBOOK)]
    named = [selector for expr in asked for selector in _selectors(expr)]
    assert len(named) > 80
    for name, labels in named:
        if ":" in name:
            assert name in recorded
            continue
        bare = name.removesuffix("_total") if name not in known else name
        assert bare in known or any(each.startswith(bare) for each in known), name
        assert labels <= known.get(name, labels) | OWN, name
    for expr in expressions:
        for labels in re.findall(r"\bby \(([^)]*)\)", expr):
            everything = set().union(*known.values())
            assert set(re.findall(r"\w+", labels)) <= everything | OWN


def test_the_runbooks_promql_parses(needs, tmp_path) -> None:
    """In its blocks and in its sentences."""
    file = tmp_path / "asked.yaml"
    inline = re.findall(r"`((?:sum|rate|histogram|count)[^`]*\))`", RUNBOOK)
    asked = [{"record": f"asked:{index}", "expr": text} for index, text in enumerate((*blocks("promql"), *inline))]
    assert len(asked) > 20
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asked}]}), "utf-8")
    run(needs("promtool", "prometheus"), "check", "rules", file)


def test_the_runbooks_sql_runs_on_the_tables_as_they_are_made(tmp_path) -> None:
    """One question for each kind of finding."""
    server = Server(tmp_path / "clickhouse")
    database = Database(server.dsn("handrail"), "handrail")
    try:
        database.prepare(30)
        for sql in blocks("sql"):
            assert database.rows(sql) == []
    finally:
        database.close()
        server.stop()
    assert {kind for sql in blocks("sql") for kind in re.findall(r"kind = '([^']+)'", sql)} == set(KINDS)


def test_the_sample_configuration_is_taken(needs) -> None:
    run(needs("amtool", "prometheus-alertmanager"), "check-config", SAMPLE)


@pytest.mark.parametrize(
    ("receiver", "labels"),
    [
        ("pager", ["alertname=HandrailFindingWaitDeadlock", "kind=wait.deadlock", "severity=critical"]),
        ("pager", ["alertname=HandrailSinkFailing", "severity=critical"]),
        ("tickets", ["alertname=HandrailPayloadDrifted", "kind=schema.drift", "severity=warning"]),
        ("tickets", ["alertname=HandrailFindingHandoffLoop", "kind=handoff.loop", "severity=warning"]),
        ("nobody", ["alertname=HandrailContextForwarded", "kind=context.forwarded", "severity=info"]),
        ("tickets", ["alertname=NodeDown", "severity=critical"]),
    ],
)
def test_the_sample_pages_for_what_is_critical_only(receiver: str, labels: list[str], needs) -> None:
    """Warnings are tickets, information is on the dashboards, and alerts of others are not ours to page for."""
    amtool = needs("amtool", "prometheus-alertmanager")
    run(amtool, "config", "routes", "test", f"--config.file={SAMPLE}", f"--verify.receivers={receiver}", *labels)


def test_the_sample_inhibits_by_names_and_kinds_that_exist() -> None:
    """A typing error in an inhibition is silent, and pages."""
    alerts, kinds = {rule["alert"] for rule in rules("alert")}, set(KINDS)
    text = SAMPLE.read_text("utf-8")
    for label, known in (("alertname", alerts), ("kind", kinds)):
        for value in re.findall(rf'{label}=~?"([^"]+)"', text):
            for name in value.split("|"):
                assert name in known or name in ("HandrailFinding.+", "Handrail.+"), name
