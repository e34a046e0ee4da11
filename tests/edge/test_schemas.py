"""`handrail replay`, `check` and `schema infer` judge by the schemas that a run of the same configuration judges by."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.registries import running

Ports = Callable[[], int]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

REPORT = {"type": "object", "properties": {"pages": {"$ref": "count.json"}}}
COUNT = {"type": "integer", "minimum": 1}
NAMED = [{"name": "count.json", "subject": "count", "version": 1}]


@pytest.fixture
def command(handrail_command: Sequence[str], tmp_path: Path) -> Command:
    """Runs `handrail …` in a directory of its own, so that paths are known to be relative to the configuration."""
    (tmp_path / "elsewhere").mkdir()

    def run(*args: str | Path) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HANDRAIL_")}
        return subprocess.run(
            [*handrail_command, *map(str, args)],
            cwd=tmp_path / "elsewhere",
            env={**kept, "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """One handoff of a report that has fewer pages than any has."""
    handoff = {
        "type": "event",
        "kind": "handoff",
        "id": "e1",
        "at": "2026-02-03T04:05:06Z",
        "source": "writer",
        "target": "printer",
        "outcome": "completed",
        "subject": "report",
        "version": "1",
        "payload": {"pages": 0},
    }
    file = tmp_path / "traffic.jsonl"
    file.write_text(json.dumps(handoff) + "\n")
    return file


def configured(tmp_path: Path, registry: str) -> Path:
    file = tmp_path / "handrail.yaml"
    file.write_text(f"registry: {{{registry}}}\n")
    return file


def told(result: "subprocess.CompletedProcess[str]") -> dict[str, list[dict[str, Any]]]:
    """The lines of a replay by their type."""
    assert result.returncode == 0, result.stderr
    found: dict[str, list[dict[str, Any]]] = {"finding": [], "fault": []}
    for line in map(json.loads, result.stdout.splitlines()):
        found.setdefault(line["type"], []).append(line)
    return found


def rules(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [each["rule"] for each in found["finding"]]


def files(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir() if path.is_file()}


def test_a_registry_in_sqlite_is_read_and_not_written(
    command: Command, recording: Path, tmp_path: Path, free_port: Ports
) -> None:
    """While a service has it open, after that was killed, and after it was stopped; references are followed."""
    config = configured(tmp_path, "sqlite: r.db")
    replay = ("replay", recording, "-c", config, "--output", "json")
    with running(tmp_path, "sqlite: r.db", free_port(), free_port()) as service:
        assert service.call.register("count", COUNT).status == 200
        assert service.call.register("report", REPORT, references=NAMED).status == 200
        assert rules(told(command(*replay))) == ["schema.violation"]
        service.kill()
    assert rules(told(command(*replay))) == ["schema.violation"]
    with running(tmp_path, "sqlite: r.db", free_port(), free_port()):
        pass
    before = files(tmp_path)
    found = told(command(*replay))
    assert rules(found) == ["schema.violation"]
    assert found["finding"][0]["evidence"]["path"] == "/pages"
    assert found["fault"] == []
    assert ", 2 schemas" in command("check", "-c", config).stdout
    assert files(tmp_path) == before


def test_a_registry_that_is_not_there_yet_is_empty(command: Command, recording: Path, tmp_path: Path) -> None:
    """As it would be for a run, which would make it; whoever only reads makes nothing, and says so."""
    config = configured(tmp_path, "sqlite: r.db")
    found = told(command("replay", recording, "-c", config, "--output", "json"))
    assert rules(found) == []
    assert [(each["component"], each["reason"]) for each in found["fault"]] == [("registry", "unreadable")]
    checked = command("check", "-c", config)
    assert (checked.returncode, "0 schemas" in checked.stdout) == (0, True)
    assert f"{tmp_path / 'r.db'} is not there" in checked.stderr
    assert not (tmp_path / "r.db").exists()


@pytest.mark.parametrize("verb", ["check", "replay", "infer"])
def test_a_file_that_is_no_registry_is_bad_input(command: Command, recording: Path, tmp_path: Path, verb: str) -> None:
    """With the key and the file; it stays as it is."""
    (tmp_path / "r.db").write_bytes(b"something else altogether, of some length" * 100)
    config = configured(tmp_path, "sqlite: r.db")
    args: dict[str, tuple[Any, ...]] = {
        "check": ("check",),
        "replay": ("replay", recording),
        "infer": ("schema", "infer", recording),
    }
    result = command(*args[verb], "-c", config)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("handrail: ")
    assert "registry.sqlite" in result.stderr
    assert str(tmp_path / "r.db") in result.stderr
    assert "Traceback" not in result.stderr


def test_a_remote_registry_is_asked_or_remembered(
    command: Command, recording: Path, tmp_path: Path, free_port: Ports
) -> None:
    """What it says now counts; while it is away, what a run kept; and where there is neither, nothing can be judged."""
    for name in ("origin", "follower"):
        (tmp_path / name).mkdir()
    port = free_port()
    remote = f"remote: 'http://127.0.0.1:{port}', cache: follower/kept, request_seconds: 5"
    config = configured(tmp_path, remote)
    replay = ("replay", recording, "-c", config, "--output", "json")
    with running(tmp_path / "origin", "sqlite: r.db", port, free_port()) as service:
        service.call.register("count", COUNT)
        service.call.register("report", REPORT, references=NAMED)
        assert rules(told(command(*replay))) == ["schema.violation"]
        assert not (tmp_path / "follower" / "kept").exists()
        with running(tmp_path / "follower", remote.replace("follower/", ""), free_port(), free_port()):
            pass
        service.call.register("unheard", COUNT)
        assert ", 3 schemas" in command("check", "-c", config).stdout

    found = told(command(*replay))
    assert rules(found) == ["schema.violation"]
    assert [each["reason"] for each in found["fault"]] == ["unreachable"]
    checked = command("check", "-c", config)
    assert (checked.returncode, ", 2 schemas" in checked.stdout) == (0, True)
    assert "follower/kept" in checked.stderr

    (tmp_path / "follower" / "kept" / "registry.json").unlink()
    for args in (replay, ("check", "-c", config)):
        result = command(*args)
        assert (result.returncode, result.stdout) == (2, "")
        assert f"registry.remote: http://127.0.0.1:{port}" in result.stderr
        assert "registry.cache" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_directory_that_is_served_is_read(command: Command, recording: Path, tmp_path: Path) -> None:
    """As a run reads it: no other registry is looked for, whether the configuration or the command line names it."""
    schema = tmp_path / "schemas" / "report" / "1.json"
    schema.parent.mkdir(parents=True)
    schema.write_text(json.dumps({"properties": {"pages": COUNT}}))
    config = configured(tmp_path, "listen: '127.0.0.1:8085'")
    replay = ("replay", recording, "-c", config, "--output", "json")
    found = told(command(*replay, "--schemas", tmp_path / "schemas"))
    assert (rules(found), found["fault"]) == (["schema.violation"], [])
    config.write_text(config.read_text() + "schemas: {directory: schemas}\n")
    found = told(command(*replay))
    assert (rules(found), found["fault"]) == (["schema.violation"], [])
