"""`handrail schema register|list|show`, in a directory and over a service."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edge.registries import running

TEXT = {"type": "object", "properties": {"a": {"type": "string"}}}
OTHER = {"type": "object", "properties": {"a": {"type": "integer"}}}


def run(directory: Path, *args: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "handrail", "schema", *args]
    return subprocess.run(command, cwd=directory, input=stdin, capture_output=True, text=True, check=False, timeout=50)


def register(directory: Path, subject: str, schema: Any, *flags: str) -> "subprocess.CompletedProcess[str]":
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return run(directory, "register", subject, "-", *flags, "--output", "json", stdin=text)


@pytest.fixture(params=["directory", "service"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A directory and the flag that names a registry."""
    if request.param == "directory":
        yield tmp_path, ("--schemas", "schemas")
        return
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    with running(tmp_path, "sqlite: r.db", *ports) as found:
        yield tmp_path, ("--registry", found.call.url)


def test_a_schema_is_registered_listed_and_shown(place: Any) -> None:
    """Once; again is no second version; incompatible is exit 1 with a witness; no schema is exit 2."""
    directory, where = place
    first = register(directory, "a.b", TEXT, *where)
    again = register(directory, "a.b", TEXT, *where)
    refused = register(directory, "a.b", OTHER, *where)
    wrong = register(directory, "a.b", {"$ref": "http://127.0.0.1:9/x"}, *where)

    assert (first.returncode, json.loads(first.stdout)["is_new"]) == (0, True)
    assert (again.returncode, json.loads(again.stdout)["is_new"]) == (0, False)
    assert refused.returncode == 1
    assert isinstance(json.loads(refused.stdout)["witness"]["a"], str)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "nothing is fetched" in wrong.stderr
    listed = run(directory, "list", *where, "--output", "json")
    assert [json.loads(line) for line in listed.stdout.splitlines()] == [
        {"type": "subject", "subject": "a.b", "versions": ["1"]}
    ]
    assert json.loads(run(directory, "show", "a.b@1", *where).stdout) == TEXT
    assert run(directory, "show", "none", *where).returncode == 2


def test_a_file_that_is_there_is_never_written_again(tmp_path: Path) -> None:
    """Two writers of one version: one wins, and the other is told."""
    where = ("--schemas", "schemas", "--version", "7")
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(register(tmp_path, "s", {"title": str(n)}, *where)))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.returncode for each in results) == [0, 2, 2]
    assert [each.name for each in (tmp_path / "schemas" / "s").iterdir()] == ["7.json"]
    assert all("is there already" in each.stderr for each in results if each.returncode)


@pytest.mark.parametrize(("subject", "version"), [("a/b", "1"), ("..", "1"), (".a", "1"), ("", "1"), ("a", "../x")])
def test_nothing_is_written_outside_the_directory(tmp_path: Path, subject: str, version: str) -> None:
    """A subject becomes the name of a directory, and a version that of a file, or neither."""
    refused = register(tmp_path, subject, TEXT, "--schemas", "schemas", "--version", version)
    assert refused.returncode == 2
    assert list(tmp_path.iterdir()) == []
