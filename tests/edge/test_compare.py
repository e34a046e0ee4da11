"""`handrail schema check` and `handrail schema diff` as a person and a script meet them."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

OLD = {"type": "object", "properties": {"a": {"type": "integer"}}}
NEW = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def run(handrail_command: Sequence[str], tmp_path: Path) -> Run:
    """Runs `handrail schema …` beside `old.json` and `new.json`."""
    tmp_path.joinpath("old.json").write_text(json.dumps(OLD))
    tmp_path.joinpath("new.json").write_text(json.dumps(NEW))

    def call(*args: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HANDRAIL_")}
        return subprocess.run(
            [*handrail_command, "schema", *args],
            input=stdin,
            cwd=tmp_path,
            env={**kept, "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    return call


def lines(result: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """The JSON lines on standard output."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_refusal_is_told_to_a_person(run: Run) -> None:
    """What became of what, what it means, and a payload that shows it; exit status 1."""
    result = run("check", "old.json", "new.json")
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "not compatible, BACKWARD (a payload shows it)",
        '  /  required  new: ["a"]',
        '      The new version requires "a", which the old version may leave out.',
        "  the old version admits this payload, and the new version refuses it:",
        "      {}",
    ]


def test_a_verdict_is_one_json_object(run: Run) -> None:
    """For a script, with everything that a person is told."""
    result = run("check", "old.json", "new.json", "--mode", "full", "--output", "json")
    assert result.returncode == 1
    [line] = lines(result)
    assert (line["type"], line["compatible"], line["decided"], line["direction"]) == (
        "check",
        False,
        "witness",
        "backward",
    )
    assert line["witness"] == {}
    assert line["reasons"] == [
        {
            "path": "",
            "keyword": "required",
            "old": None,
            "new": ["a"],
            "message": 'The new version requires "a", which the old version may leave out.',
            "direction": "backward",
        }
    ]
    assert run("check", "old.json", "new.json", "--mode", "FORWARD").returncode == 0
    assert run("check", "old.json", "new.json", "--mode", "NONE").returncode == 0


def test_the_policy_of_the_other_registry_can_be_asked_for(run: Run) -> None:
    """A property added to an open object: payloads without it are read, and Confluent's rules refuse it."""
    added = json.dumps({**OLD, "properties": {**OLD["properties"], "b": {"type": "string"}}})  # type: ignore[dict-item]
    result = run("check", "old.json", "-", "--policy", "confluent", "--output", "json", stdin=added)
    assert result.returncode == 1
    [reason] = lines(result)[0]["reasons"]
    assert (reason["path"], reason["keyword"]) == ("/b", "properties")


@pytest.mark.parametrize("bad", ["{", '{"type": 5}', "[]", "NaN", '{"a": 1, "a": 2}'])
def test_what_is_no_schema_is_bad_input(run: Run, tmp_path: Path, bad: str) -> None:
    """The file is named, and the exit status is 2."""
    tmp_path.joinpath("bad.json").write_text(bad)
    for args in (("check", "old.json", "bad.json"), ("diff", "bad.json", "old.json")):
        result = run(*args)
        assert result.returncode == 2
        assert result.stderr.startswith("handrail: bad.json: ")
        assert "Traceback" not in result.stderr


def test_flags_that_contradict_are_bad_input(run: Run) -> None:
    """Two files or a batch, not both and not neither."""
    for args in (("check",), ("check", "old.json"), ("check", "old.json", "new.json", "--batch", "-")):
        assert run(*args).returncode == 2
    assert run("check", "--batch", "nowhere.jsonl").returncode == 2


def test_a_batch_answers_every_line_in_order(run: Run) -> None:
    """Bad lines are answered with an error, the others all the same, and the exit status says so."""
    cases = [
        {"id": "good", "old": True, "new": {}, "mode": "FULL", "draft": "7"},
        {"id": 2, "old": {}, "new": {"type": "string"}, "mode": "BACKWARD"},
        {"id": "none", "old": {}, "new": False, "mode": "NONE"},
        {"id": "none of it a schema", "old": 1, "new": {}, "mode": "FULL"},
        {"id": "no such mode", "old": {}, "new": {}, "mode": "ASKEW"},
        {"id": "half", "old": {}},
        {"id": "remote", "old": {"$ref": "http://127.0.0.1:9/schema"}, "new": {}},
        {"id": "big", "old": {"const": 2**70}, "new": {"const": 2**70 + 1}},
        {"id": "draft 4", "old": {"minimum": 1}, "new": {"minimum": 1, "exclusiveMinimum": True}, "draft": "draft-04"},
    ]
    text = "\n\n".join(json.dumps(case) for case in cases) + "\n{not json\n[]\n"
    result = run("check", "--batch", "-", stdin=text)
    assert result.returncode == 2
    answers = lines(result)
    assert [answer["id"] for answer in answers] == [*(case["id"] for case in cases), None, None]
    kinds = [(answer["type"], answer.get("compatible")) for answer in answers]
    error = ("error", None)
    assert kinds == [
        ("check", True),
        ("check", False),
        ("check", True),
        error,
        error,
        error,
        error,
        ("check", False),
        ("check", False),
        error,
        error,
    ]
    assert answers[7]["witness"] == 2**70
    assert answers[8]["witness"] == 1


def test_the_exit_status_of_a_batch_is_that_of_its_worst_line(run: Run) -> None:
    """0 where all are compatible, 1 where one is not."""
    good, bad = ('{"old": {}, "new": {}}\n', '{"old": {}, "new": false}\n')
    assert run("check", "--batch", "-", stdin=good * 3).returncode == 0
    assert run("check", "--batch", "-", stdin=good + bad + good).returncode == 1
    assert run("check", "--batch", "-", stdin="").returncode == 0


def test_a_hostile_schema_costs_its_own_time_only(run: Run) -> None:
    """Lines that would take for ever are answered, and so are those around them."""
    doubling: dict[str, Any] = {
        f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(40)
    }
    hostile = {"$defs": {**doubling, "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}
    plain = json.dumps({"id": "plain", "old": {}, "new": {"type": "string"}})
    deep = '{"id": "deep", "old": ' + '{"not":' * 100_000 + "{}" + "}" * 100_000 + ', "new": {}}'
    slow = json.dumps({"id": "slow", "old": {"type": "integer"}, "new": hostile, "mode": "FULL"})
    began = time.monotonic()
    result = run("check", "--batch", "-", "--seconds", "2", stdin="\n".join([plain, slow, deep, plain]))
    assert time.monotonic() - began < 20
    answers = lines(result)
    assert [answer["id"] for answer in answers] == ["plain", "slow", None, "plain"]
    assert [answers[index].get("compatible") for index in range(4)] == [False, False, None, False]


def test_a_pair_whose_time_is_up_is_undecided(run: Run) -> None:
    """Its process is killed, the answer stays on the safe side, and the next pair gets another process."""
    wide = {"properties": {f"p{index}": {"enum": list(range(50))} for index in range(2_000)}}
    pair = json.dumps({"id": "wide", "old": wide, "new": {**wide, "maxProperties": 9}, "mode": "FULL"})
    result = run("check", "--batch", "-", "--seconds", "0.01", stdin=f"{pair}\n{pair}\n")
    assert result.returncode == 1
    assert [(answer["id"], answer["decided"]) for answer in lines(result)] == [("wide", "undecided")] * 2
    assert lines(result)[0]["reasons"][0]["message"].endswith("it took more than 0.01 s.")


def test_the_difference_is_told_to_a_person_and_to_a_script(run: Run) -> None:
    """A table with a count, or a line for each change and a summary."""
    result = run("diff", "old.json", "new.json")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "1 added"
    assert lines(run("diff", "old.json", "new.json", "--output", "json")) == [
        {"type": "change", "kind": "added", "path": "/a", "keyword": "required", "old": False, "new": True},
        {"type": "summary", "added": 1, "removed": 0, "changed": 0},
    ]
    assert run("diff", "old.json", "old.json").stdout == "no difference\n"


def doubling(leaf: str, **more: Any) -> Any:
    """A schema that leads to its innermost part in 2^30 ways."""
    parts: dict[str, Any] = {f"p{level}": {"allOf": [{"$ref": f"#/$defs/p{level + 1}"}] * 2} for level in range(30)}
    return {"$ref": "#/$defs/p0", "$defs": parts | {"p30": {"type": leaf}}, **more}


@pytest.mark.parametrize(("leaf", "changed"), [("string", 0), ("integer", 1)])
def test_a_difference_is_found_however_many_ways_lead_there(run: Run, tmp_path: Path, leaf: str, changed: int) -> None:
    """Each pair of subschemas is compared once at a place; and what stands beside a reference hides nothing."""
    (tmp_path / "old.json").write_text(json.dumps(doubling("string")))
    (tmp_path / "new.json").write_text(json.dumps(doubling(leaf, maxProperties=3)))
    *changes, summary = lines(run("diff", "old.json", "new.json", "--output", "json"))
    assert summary == {"type": "summary", "added": 1, "removed": 0, "changed": changed}
    added = {"type": "change", "kind": "added", "path": "", "keyword": "maxProperties", "old": None, "new": 3}
    assert added in changes


def test_what_stands_beside_a_reference_hides_no_difference(run: Run, tmp_path: Path) -> None:
    """A change behind a reference is told though the reference itself and its neighbours stayed as they were."""
    for name, kind in (("old", "string"), ("new", "integer")):
        part = {"properties": {"size": {"type": kind}}}
        schema = {"properties": {"part": {"$ref": "#/$defs/part", "maxProperties": 3}}, "$defs": {"part": part}}
        (tmp_path / f"{name}.json").write_text(json.dumps(schema))
    change, _ = lines(run("diff", "old.json", "new.json", "--output", "json"))
    assert (change["kind"], change["path"], change["keyword"]) == ("changed", "/part/size", "type")
