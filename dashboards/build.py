"""Writes the dashboards as the JSON that Grafana takes: `python dashboards/build.py`, or `--check` in CI.

Exit status: 0; 1 with `--check` where a committed file is not what this source makes.
"""

import importlib
import sys
from pathlib import Path

from frame import TITLES, UID, Board

HERE = Path(__file__).parent


def boards() -> dict[Path, str]:
    """Every dashboard's file and its text."""
    made: dict[Path, str] = {}
    for name in TITLES:
        board: Board = importlib.import_module(f"boards.{name}").BOARD
        made[HERE / f"{UID.format(name)}.json"] = board.text()
    return made


def main(arguments: list[str]) -> int:
    made = boards()
    if arguments == ["--check"]:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
        stale += sorted(set(HERE.glob("*.json")) - made.keys())
        for path in stale:
            sys.stderr.write(f"{path.name} is not what its source makes; run python dashboards/build.py\n")
        return 1 if stale else 0
    if arguments:
        sys.stderr.write("usage: python dashboards/build.py [--check]\n")
        return 2
    for path, text in made.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
