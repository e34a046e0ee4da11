"""What was registered is there after kill -9, and nothing that was answered is ever lost or changed."""

import contextlib
import http.client
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.registries import running
from handrail.edge.ledger import Ledger, LedgerError
from handrail.schema.store import LevelSet, Registered, Store

Ports = Callable[[], int]


def test_what_was_answered_survives_a_kill(tmp_path: Path, free_port: Ports) -> None:
    """Two writers, three kills in the middle: every id that was given out still names the same bytes."""
    told: dict[int, str] = {}
    for life in range(3):
        with running(tmp_path, "sqlite: registry.db, compatibility: NONE", free_port(), free_port()) as found:
            for id, text in told.items():
                assert found.call("GET", f"/schemas/ids/{id}/schema").raw.decode() == text

            def write(writer: int, life: int = life, found: Any = found) -> None:
                for number in range(10_000):
                    text = json.dumps({"title": f"{life} {writer} {number}"})
                    try:
                        reply = found.call.register(f"s{writer}", text)
                        told[reply.body["id"]] = text
                    except (OSError, ValueError, http.client.HTTPException):
                        return

            threads = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
            before = len(told)
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 20
            while len(told) < before + 20:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            found.kill()
            for thread in threads:
                thread.join()
    with running(tmp_path, "sqlite: registry.db", free_port(), free_port()) as found:
        for id, text in told.items():
            assert found.call("GET", f"/schemas/ids/{id}/schema").raw.decode() == text
        versions = [each for n in range(2) for each in found.call("GET", f"/subjects/s{n}/versions").body]
        assert len(versions) >= len(told)
        assert found.metric("handrail_registry_versions") == len(versions)


def changes(count: int) -> list[Registered]:
    return [Registered(subject="s", version=n, id=n, text=json.dumps({"title": str(n)})) for n in range(1, count + 1)]


def test_the_same_changes_come_back(tmp_path: Path) -> None:
    """In their order, in another process, and from any row on."""
    ledger = Ledger(tmp_path / "r.db")
    for row, change in enumerate(changes(5)):
        assert ledger.append(row, "now", change) == []
    ledger.append(5, "now", LevelSet(level="FULL"))
    ledger.close()
    again = Ledger(tmp_path / "r.db")
    assert again.after(0) == [*changes(5), LevelSet(level="FULL")]
    assert again.after(5) == [LevelSet(level="FULL")]
    again.close()


def test_who_comes_second_is_told(tmp_path: Path) -> None:
    """What the other wrote, and that nothing of its own was written."""
    one, two = Ledger(tmp_path / "r.db"), Ledger(tmp_path / "r.db")
    first, second = changes(2)
    assert one.append(0, "now", first) == []
    assert two.append(0, "now", second) == [first]
    assert two.append(1, "now", second) == []
    assert one.after(0) == [first, second]
    one.close()
    two.close()


def test_a_row_is_never_altered(tmp_path: Path) -> None:
    """Not even by somebody with a SQLite shell, unless the trigger goes first."""
    ledger = Ledger(tmp_path / "r.db")
    ledger.append(0, "now", changes(1)[0])
    with contextlib.closing(sqlite3.connect(tmp_path / "r.db")) as other:
        for statement in ("DELETE FROM change", "UPDATE change SET body = '{}'"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                other.execute(statement)
    ledger.close()


@pytest.mark.parametrize("content", [b"not a database, by far" * 100, b""])
def test_another_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """A file that is no registry is refused and stays as it is; an empty one becomes one."""
    file = tmp_path / "r.db"
    file.write_bytes(content)
    if not content:
        Ledger(file).close()
        return
    with pytest.raises(LedgerError):
        Ledger(file)
    assert file.read_bytes() == content


def test_the_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A wrong path in the configuration must not put our table into it."""
    with contextlib.closing(sqlite3.connect(tmp_path / "r.db")) as other:
        other.execute("CREATE TABLE theirs (a)")
    with pytest.raises(LedgerError, match="something else"):
        Ledger(tmp_path / "r.db")


def test_a_row_that_is_missing_is_noticed(tmp_path: Path) -> None:
    """What follows it would be the state of another registry."""
    ledger = Ledger(tmp_path / "r.db")
    for row, change in enumerate(changes(3)):
        ledger.append(row, "now", change)
    with contextlib.closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as other:
        other.execute("DROP TRIGGER never_lost")
        other.execute("DELETE FROM change WHERE row = 2")
    with pytest.raises(LedgerError, match="row 2 is missing"):
        ledger.after(0)
    ledger.close()


def test_a_wrong_file_ends_the_start_with_its_name(tmp_path: Path, free_port: Ports) -> None:
    """Exit status 2, the key and the reason."""
    (tmp_path / "r.db").write_bytes(b"not a database, by far" * 100)
    (tmp_path / "h.yaml").write_text(f"registry: {{listen: 127.0.0.1:{free_port()}, sqlite: r.db}}\n")
    result = subprocess.run(
        [sys.executable, "-m", "handrail", "run", "-c", "h.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "registry.sqlite" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_store_is_its_changes(tmp_path: Path) -> None:
    """Applied from the ledger, they make the store that wrote them."""
    ledger, store = Ledger(tmp_path / "r.db"), Store()
    for text in ('{"title":"a"}', '{"title":"b"}'):
        made = store.register("s", text)
        assert isinstance(made, Registered)
        assert ledger.append(store.changes, "now", made) == []
        store.apply(made)
    again = Store()
    for change in ledger.after(0):
        again.apply(change)
    assert again.versions("s") == store.versions("s")
    assert [again.text(each) for each in again.versions("s")] == [store.text(each) for each in store.versions("s")]
    ledger.close()
