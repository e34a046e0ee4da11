"""Measures all that has a bar, one part after another, and says at the end what was reached and what was not.

Each part is a program of its own that tells how it measures (`--help`): the data path beside Envoy and mitmproxy
(`run.py`), a store behind Handrail (`stores.py`), all detectors together (`detectors.py`), deadlock detection and graph
checks (`waits.py`). What a part says is shown while it runs. Keep the machine quiet meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contestants import ALL
from rich.console import Console
from rich.table import Table
from stores import ADDED_MS, AT_LEAST

HERE = Path(__file__).parent
CONTESTANTS = tuple(entrant.name for entrant in ALL)


@dataclass(frozen=True)
class Figure:
    """What was asked for and what was reached; `reached` is None where it could not be measured."""

    part: str
    title: str
    limit: float
    is_at_least: bool
    reached: float | None

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached >= self.limit if self.is_at_least else self.reached <= self.limit


@dataclass(frozen=True)
class Part:
    """One program of the suite. `minutes` is how long it takes, and how long with --quick."""

    name: str
    program: str
    does: str
    minutes: tuple[float, float]
    quick: tuple[str, ...]
    takes_rounds: bool = False
    takes_handrail: bool = False


PARTS = (
    Part("proxies", "run.py", "the data path beside its alternatives", (16, 4), ("--quick",), True, True),
    Part("stores", "stores.py", "a Redis store behind Handrail", (3, 1), ("--requests", "20000"), True, True),
    Part(
        "detectors", "detectors.py", "all detectors together on one core, and what they remember", (2, 0.7),
        ("--count", "16000", "--workflows", "20000"),
    ),
    Part("waits", "waits.py", "deadlocks against rebuilding the graph, and graph checks", (3, 0.5), ("100000",)),
)  # fmt: skip
OTHER_NAMES = {"redis": "stores"}


def figures(part: str, said: Mapping[str, Any]) -> Iterator[Figure]:
    """What a part's results say of its bars."""
    if part == "proxies":
        for target in said["targets"]:
            yield Figure(part, target["title"], target["limit"], target["is_at_least"], target["reached"])
    elif part == "stores":
        for name, found in said["results"].items():
            clients, pipeline = (int(word) for word in name.split() if word.isdigit())
            if clients == 1:
                yield Figure(part, f"{name}: added to p50, ms", ADDED_MS, False, found["added_p50_ms"])
            else:
                title = f"{name}: share of the server's own throughput"
                yield Figure(part, title, AT_LEAST[pipeline], True, found["share"])
    else:
        for target in said["targets"]:
            yield Figure(part, **target)


def chosen(only: Sequence[str], skip: Sequence[str]) -> dict[Part, list[str]]:
    """The parts to run, each with the arguments that name contestants."""
    named = {OTHER_NAMES.get(name, name) for name in only}
    contestants = [name for name in CONTESTANTS if name in named]
    found: dict[Part, list[str]] = {}
    for part in PARTS:
        if (named and part.name not in named and not (part.name == "proxies" and contestants)) or part.name in skip:
            continue
        arguments = ["--only", ",".join(contestants)] if part.name == "proxies" and contestants else []
        left_out = [name for name in CONTESTANTS if name in skip]
        if part.name == "proxies" and left_out:
            arguments += ["--skip", ",".join(left_out)]
        found[part] = arguments
    return found


def measure(part: Part, more: Sequence[str], options: argparse.Namespace, directory: Path) -> dict[str, Any] | None:
    """What a part measured, None where it could not. What it prints goes to standard error."""
    results = directory / f"{part.name}.json"
    command = [sys.executable, str(HERE / part.program), *(part.quick if options.quick else ()), *more]
    if options.rounds is not None and part.takes_rounds:
        command += ["--rounds", str(options.rounds)]
    elif options.quick and part.name == "stores":
        command += ["--rounds", "3"]
    if options.handrail and part.takes_handrail:
        command += ["--handrail", options.handrail]
    subprocess.run([*command, "--results", str(results)], stdout=sys.stderr, check=False)
    found: dict[str, Any] | None = json.loads(results.read_text()) if results.exists() else None
    return found


def show(found: Sequence[Figure], missing: Sequence[Part], console: Console) -> None:
    table = Table(title="What is asked for, and what was reached", title_justify="left")
    for column, justify in (("part", "left"), ("figure", "left"), ("bar", "right"), ("reached", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    last = None
    for figure in found:
        if last not in (None, figure.part):
            table.add_section()
        word = {None: "not measured", True: "[green]meets", False: "[red]misses"}[figure.met]
        bar = f"{'≥' if figure.is_at_least else '≤'} {number(figure.limit)}"
        reached = "–" if figure.reached is None else number(figure.reached)
        table.add_row("" if figure.part == last else figure.part, figure.title, bar, reached, word)
        last = figure.part
    for part in missing:
        table.add_row(part.name, part.does, "", "", "[yellow]could not be measured, see above")
    console.print(table)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def arguments() -> argparse.Namespace:
    names = [*(part.name for part in PARTS), *OTHER_NAMES, *CONTESTANTS]

    def some(text: str) -> list[str]:
        wrong = [name for name in text.split(",") if name not in names]
        if wrong:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(wrong)}; there are {', '.join(names)}")
        return text.split(",")

    parser = argparse.ArgumentParser(
        prog="tests/bench/suite.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts (minutes, with --quick):\n"
        + "\n".join(f"  {p.name:10} {p.does} ({p.minutes[0]:g}, {p.minutes[1]:g})" for p in PARTS)
        + f"\ncontestants of proxies: {', '.join(CONTESTANTS)}\n\nexamples:\n"
        "  tests/bench/suite.py --quick                     a few minutes, to see a trend\n"
        "  tests/bench/suite.py --only envoy,handrail       of the proxies these two, and no other part\n"
        "  tests/bench/suite.py --only detectors,waits\n"
        "  tests/bench/suite.py --skip mitmproxy --results bench.json --check\n"
        "\nexit status: 0; 1 where a contestant did not do its work, or with --check where a bar was missed;\n"
        "2 where a part could not be measured because something is missing here",
    )
    parser.add_argument("--quick", action="store_true", help="short runs")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of proxies and stores (5, quick 3)")
    parser.add_argument("--only", type=some, default=[], metavar="A,B", help="these parts or contestants alone")
    parser.add_argument("--skip", type=some, default=[], metavar="A,B", help="without these")
    parser.add_argument("--handrail", metavar="PYTHON", help="interpreter where Handrail is installed (this tree)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar was missed")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def main() -> int:
    options = arguments()
    parts = chosen(options.only, options.skip)
    progress = Console(stderr=True)
    results: dict[str, Any] = {}
    missing: list[Part] = []
    try:
        with tempfile.TemporaryDirectory(prefix="handrail-bench-") as directory:
            for index, (part, more) in enumerate(parts.items(), 1):
                minutes = part.minutes[options.quick]
                progress.rule(f"{index} of {len(parts)}: {part.does} (about {minutes:g} min)", align="left")
                began = time.monotonic()
                found = measure(part, more, options, Path(directory))
                progress.print(f"{part.name}: {time.monotonic() - began:.0f} s", style="dim", highlight=False)
                if found is None:
                    missing.append(part)
                else:
                    results[part.name] = found
    except KeyboardInterrupt:
        return 130
    reached = [figure for name, said in results.items() for figure in figures(name, said)]
    if options.results is not None:
        told = [asdict(figure) | {"met": figure.met} for figure in reached]
        options.results.write_text(json.dumps({"figures": told, "parts": results}, indent=2) + "\n")
    show(reached, missing, Console(width=None if sys.stdout.isatty() else 140))
    if missing:
        return 2
    problems = results.get("proxies", {}).get("problems")
    return 1 if problems or (options.check and any(figure.met is False for figure in reached)) else 0


if __name__ == "__main__":
    sys.exit(main())
