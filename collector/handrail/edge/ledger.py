"""The log of a registry in SQLite: a change is written once, survives kill -9, and is never altered.

One row is one change, in the order in which they happened. A writer says which row it writes; who is not the first to
write that row is told what the others wrote, and decides again. So any number of processes may share a file.
"""

import sqlite3
from pathlib import Path

import msgspec

from handrail.schema.store import Change

APPLICATION = 0x48524C47
"""`application_id` of the file: HRLG."""
FORMAT = 1

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Change).decode

_TABLE = """
CREATE TABLE IF NOT EXISTS change (row INTEGER PRIMARY KEY, at TEXT NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS never_altered BEFORE UPDATE ON change
  BEGIN SELECT RAISE(ABORT, 'what was registered is never altered'); END;
CREATE TRIGGER IF NOT EXISTS never_lost BEFORE DELETE ON change
  BEGIN SELECT RAISE(ABORT, 'what was registered is never lost'); END;
"""


class LedgerError(Exception):
    """The file cannot be read or written; says why."""


class Ledger:
    """One connection to the file. Not for use by two threads at once."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Makes the file where there is none, unless it is only to be read. Raises LedgerError."""
        self._path = path
        try:
            if read_only:
                # Without a log beside it the file is open nowhere, and SQLite need not make one to read it.
                how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
                uri = f"{Path(path).absolute().as_uri()}?{how}"
                self._database = sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None)
                self._check()
                return
            self._database = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
            self._check()
            # FULL: a commit is on the disk before a writer is answered. WAL: readers do not wait for writers.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_TABLE)
            self._database.execute(f"PRAGMA application_id = {APPLICATION}")
            self._database.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: cannot be opened: {error}") from None

    def _check(self) -> None:
        """That it is a registry, or nothing yet. Raises LedgerError."""
        found = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if found[0] not in (0, APPLICATION) or found[1] > FORMAT:
            raise LedgerError(f"{self._path}: is not a registry that this version of Handrail can read")
        if found[0] == 0 and self._one("SELECT count(*) FROM sqlite_master"):
            raise LedgerError(f"{self._path}: is the database of something else")

    def _one(self, statement: str) -> int:
        return int(self._database.execute(statement).fetchone()[0])

    def after(self, row: int) -> list[Change]:
        """The changes behind a row, oldest first. Raises LedgerError."""
        try:
            rows = self._database.execute("SELECT row, body FROM change WHERE row > ? ORDER BY row", (row,)).fetchall()
            changes = []
            for number, body in rows:
                row += 1
                if number != row:
                    raise LedgerError(f"{self._path}: row {row} is missing")
                changes.append(_decode(body))
            return changes
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: cannot be read: {error}") from None
        except msgspec.MsgspecError as error:
            raise LedgerError(f"{self._path}: row {row} cannot be read: {error}") from None

    def append(self, row: int, at: str, change: Change) -> list[Change]:
        """Writes the change behind `row`, and returns nothing; or returns what others wrote there, and writes nothing.

        Raises LedgerError where it cannot be written: then nothing was.
        """
        try:
            body = _encode(change).decode()
            self._database.execute("INSERT INTO change (row, at, body) VALUES (?, ?, ?)", (row + 1, at, body))
        except sqlite3.IntegrityError:
            return self.after(row)
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: cannot be written: {error}") from None
        return []

    def close(self) -> None:
        self._database.close()
