"""Measures Handrail beside its alternatives, in one go on pinned cores, and prints medians and ratios.

The proxy under test runs alone on one core; the load generator, the upstream (nginx), and what Handrail writes to run
on another. Rounds alternate: every round starts every contestant afresh, warms it up, measures it and stops it, and
each round begins with another contestant, so that a slow minute of the machine hits all of them. What a contestant
answers and what it says that it counted is checked; one that does not do the work is named and the exit status is 1.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import job
import load
import stores
from contestants import (
    ALL,
    Broken,
    Contestant,
    Handrail,
    Missing,
    Place,
    Server,
    post,
    start_stub,
    start_upstream,
    stub_rows,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

CONNECTIONS = 16
RATE = 1000
REFERENCE = "envoy"


@dataclass(frozen=True)
class Measure:
    key: str
    title: str
    form: str


MEASURES = (
    Measure("requests_per_second", f"requests/s, {CONNECTIONS} connections", "{:,.0f}"),
    Measure("cpu_us", f"CPU µs per request, {CONNECTIONS} connections", "{:.1f}"),
    Measure("p50_us", "p50 µs, 1 connection", "{:,.0f}"),
    Measure("p99_us", "p99 µs, 1 connection", "{:,.0f}"),
    Measure("cpu_percent", f"CPU per 1,000 requests/s at {RATE:,}/s, % of a core", "{:.1f}"),
    Measure("open_p99_us", f"p99 µs, open loop at {RATE:,}/s", "{:,.0f}"),
    Measure("resident_mb", "resident MB under load", "{:.0f}"),
    Measure("ready_seconds", "start to ready, s", "{:.2f}"),
)


@dataclass(frozen=True)
class Target:
    """What Handrail is to reach; `against` is the contestant that the limit is a multiple of."""

    title: str
    measure: str
    limit: float
    is_at_least: bool
    against: str | None = None


TARGETS = (
    Target("throughput, times Envoy's", "requests_per_second", 1.2, True, "envoy"),
    Target("p50 at one connection, times Envoy's", "p50_us", 0.8, False, "envoy"),
    Target("throughput, times mitmproxy's", "requests_per_second", 25.0, True, "mitmproxy"),
    Target("resident MB", "resident_mb", 90.0, False),
    Target("start to ready, s", "ready_seconds", 1.0, False),
)


@dataclass(frozen=True)
class Durations:
    """Seconds of each part; `memory` is the load that a contestant has had in all when its memory is read."""

    rounds: int
    warm: float
    throughput: float
    latency: float
    rate: float
    memory: float

    @property
    def round(self) -> float:
        return self.warm + self.throughput + self.latency + self.rate


FULL = Durations(rounds=5, warm=2, throughput=5, latency=5, rate=8, memory=60)
QUICK = Durations(rounds=3, warm=1, throughput=2, latency=2, rate=3, memory=10)

Samples = dict[str, dict[str, list[float]]]


class Bench:
    """Runs the rounds; `samples` and `problems` are what came of them."""

    def __init__(self, contestants: Sequence[type[Contestant]], place: Place, seconds: Durations) -> None:
        self.contestants, self.place, self.seconds = list(contestants), place, seconds
        self.samples: Samples = {entrant.name: {measure.key: [] for measure in MEASURES} for entrant in contestants}
        self.checks: dict[str, list[str]] = {entrant.name: [] for entrant in contestants}
        self.problems: list[str] = []

    def run(self, tell: Callable[[str, float], None]) -> None:
        """All rounds. `tell` gets what comes next and the seconds that were just spent on load."""
        for number in range(self.seconds.rounds):
            turn = number % len(self.contestants) if self.contestants else 0
            for entrant in (*self.contestants[turn:], *self.contestants[:turn]):
                tell(f"round {number + 1}: {entrant.name}", 0)
                contestant = entrant(self.place)
                try:
                    contestant.start()
                    Turn(self, contestant, tell).take(number == 0, number == self.seconds.rounds - 1)
                except (Broken, OSError) as error:
                    self.problems.append(f"{entrant.name}: {error}")
                    self.contestants.remove(entrant)
                finally:
                    contestant.stop()


class Turn:
    """One contestant in one round."""

    def __init__(self, bench: Bench, contestant: Contestant, tell: Callable[[str, float], None]) -> None:
        self.bench, self.it, self.tell = bench, contestant, tell
        self.sent, self.slack = contestant.starts, 0
        self.rows_before = self.rows()

    def rows(self) -> int:
        stub = self.bench.place.stub
        return stub_rows(stub) if stub is not None and isinstance(self.it, Handrail) else 0

    def take(self, is_first: bool, is_last: bool) -> None:
        it, seconds = self.it, self.bench.seconds
        if is_first:
            self.check_answer()
        self.closed(CONNECTIONS, seconds.warm)
        before = self.cpu_seconds()
        result = self.closed(CONNECTIONS, seconds.throughput)
        spent = self.cpu_seconds() - before
        self.keep("requests_per_second", result["requests"] / result["seconds"])
        if it.server is not None:
            self.keep("cpu_us", spent / max(1, result["requests"]) * 1e6)
        result = self.closed(1, seconds.latency)
        self.keep("p50_us", result["p50_us"])
        self.keep("p99_us", result["p99_us"])
        self.at_a_rate()
        loaded = seconds.round
        if it.server is not None:
            if is_last:
                if seconds.memory > loaded:
                    self.closed(CONNECTIONS, seconds.memory - loaded)
                self.keep("resident_mb", it.server.resident_bytes() / 1e6)
            assert it.ready_seconds is not None
            self.keep("ready_seconds", it.ready_seconds)
        if it.validates:
            self.check_counts(is_first)

    def keep(self, key: str, value: float) -> None:
        self.bench.samples[self.it.name][key].append(value)

    def cpu_seconds(self) -> float:
        return 0.0 if self.it.server is None else self.it.server.cpu_seconds()

    def closed(self, connections: int, seconds: float) -> dict[str, Any]:
        result = load.closed(self.it.port, connections, seconds, self.bench.place.directory)
        self.sent += result["requests"]
        self.slack += connections  # wrk leaves with as many requests in flight, and does not count them
        self.tell("", seconds)
        if result["errors"]:
            self.bench.problems.append(f"{self.it.name}: {result['errors']} of {result['requests']} requests failed")
        return result

    def at_a_rate(self) -> None:
        """A contestant that cannot keep the rate is charged for the requests that it answered."""
        seconds = self.bench.seconds.rate
        result = load.opened(self.it.port, RATE, seconds, CONNECTIONS, self.cpu_seconds)
        self.sent += result["sent"] - CONNECTIONS  # the last of each connection may not have been answered
        self.slack += CONNECTIONS
        self.tell("", seconds)
        self.keep("open_p99_us", result["p99_us"])
        if self.it.server is not None:
            self.keep("cpu_percent", result["cpu_seconds"] / max(1, result["requests"]) * 1000 * 100)

    def check_answer(self) -> None:
        """The proxy's answer is the upstream's, for a valid body and for one that is not."""
        for data in (job.body("answer"), job.invalid_body("invalid")):
            want, got = post(self.bench.place.upstream, data), post(self.it.port, data)
            self.sent += 1
            if want != got:
                raise Broken(f"answers {got} where the upstream answers {want}")
        self.bench.checks[self.it.name].append("answers as the upstream does")

    def check_counts(self, is_first: bool) -> None:
        """What the contestant counted is what was sent; the one invalid body is among it."""
        it, name = self.it, self.it.name
        told, deadline = it.counted(), time.monotonic() + 5
        while (told.requests or 0) < self.sent and time.monotonic() < deadline:
            time.sleep(0.2)
            told = it.counted()
        requests = told.requests or 0
        if not self.sent <= requests <= self.sent + self.slack:
            raise Broken(f"counted {requests} requests of {self.sent} to {self.sent + self.slack} sent")
        if is_first and told.invalid != 1:
            raise Broken(f"counted {told.invalid} invalid bodies of 1 sent")
        self.bench.checks[name].append(f"counted {requests} of {self.sent} answered and {told.invalid} invalid")
        if isinstance(it, Handrail):
            self.check_rows(it, requests)

    def check_rows(self, it: Handrail, handoffs: int) -> None:
        """Once the sidecar has flushed and ended, ClickHouse has a row for every handoff that it did not drop."""
        dropped = it.dropped()
        it.stop()
        rows = self.rows() - self.rows_before
        self.bench.checks[it.name].append(f"ClickHouse received {rows} rows of {handoffs} handoffs, {dropped} dropped")
        if abs(rows + dropped - handoffs) > self.slack:
            raise Broken(f"ClickHouse received {rows} rows of {handoffs} handoffs, {dropped} dropped")
        if dropped:
            self.bench.problems.append(f"{it.name}: {dropped} of {handoffs} handoffs dropped on the way to ClickHouse")


def machine(cores: Sequence[int]) -> dict[str, Any]:
    """Where the figures come from."""
    told = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_core": cores[0],
        "proxy_core": cores[1],
        "load_average_before": os.getloadavg()[0],
    }


def versions(contestants: Sequence[type[Contestant]], place: Place) -> dict[str, str]:
    found = {entrant.name: entrant(place).version() for entrant in contestants}
    for package in ("uvloop", "httptools", "aiohttp", "jsonschema_rs", "orjson"):
        found[package] = metadata.version(package)
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    for name, command in (("nginx", [nginx, "-v"]), ("wrk", ["wrk", "-v"])):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        words = (done.stdout + done.stderr).replace("nginx/", "").split()
        found[name] = words[2] if name == "nginx" else words[1].removeprefix("debian/")
    return {name: version for name, version in found.items() if version}


def judge(medians: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Each target with what was reached; None where a contestant was left out."""
    judged = []
    for target in TARGETS:
        value = medians.get("handrail", {}).get(target.measure)
        base = 1.0 if target.against is None else medians.get(target.against, {}).get(target.measure)
        reached = value / base if value is not None and base else None
        met = None if reached is None else reached >= target.limit if target.is_at_least else reached <= target.limit
        judged.append({**asdict(target), "reached": reached, "met": met})
    return judged


def cell(medians: dict[str, dict[str, float]], name: str, measure: Measure) -> str:
    """The median, and how many times the reference's it is."""
    value, base = medians[name].get(measure.key), medians.get(REFERENCE, {}).get(measure.key)
    if value is None:
        return "–"
    text = measure.form.format(value)
    return f"{text} ({value / base:.2f}×)" if base and name != REFERENCE else text


def headline(result: dict[str, Any]) -> str:
    at, seconds = result["machine"], result["durations"]
    parts = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['date'][:10]}. {at['cpu']}, {at['cores']} cores, {at['memory_gb']} GB, Linux {at['kernel']}, Python "
        f"{at['python']}; {parts}. The proxy alone on one core, load and upstream on another; {job.BODY_BYTES:,} byte "
        f"JSON body; medians of {seconds['rounds']} alternating rounds, in brackets the multiple of "
        f"{REFERENCE.capitalize()}'s."
    )


def markdown(result: dict[str, Any]) -> str:
    """The table of the README."""
    lines = ["| | " + " | ".join(measure.title for measure in MEASURES) + " |", "| --- |" + " ---: |" * len(MEASURES)]
    for name, does in result["contestants"].items():
        cells = (cell(result["medians"], name, measure) for measure in MEASURES)
        lines.append(f"| **{name}**: {does} | " + " | ".join(cells) + " |")
    return headline(result) + "\n\n" + "\n".join(lines)


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Medians, and multiples of Envoy's", caption=headline(result), caption_justify="left")
    raw = Table(title="Raw numbers, round by round")
    for number, column in enumerate(("", *(measure.title for measure in MEASURES))):
        table.add_column(column, justify="right" if number else "left")
        raw.add_column(column, justify="right" if number else "left")
    for name in result["contestants"]:
        table.add_row(name, *(cell(result["medians"], name, measure) for measure in MEASURES))
        samples = result["samples"][name]
        rows = ("\n".join(measure.form.format(value) for value in samples[measure.key]) or "–" for measure in MEASURES)
        raw.add_row(name, *rows)
        raw.add_section()
    targets = Table(title="To reach")
    for column in ("target", "limit", "reached", ""):
        targets.add_column(column)
    for target in result["targets"]:
        limit = f"{'≥' if target['is_at_least'] else '≤'} {target['limit']:g}"
        word = {None: "not measured", True: "[green]met", False: "[red]missed"}[target["met"]]
        targets.add_row(target["title"], limit, "–" if target["reached"] is None else f"{target['reached']:.2f}", word)
    for shown in (raw, table, targets):
        console.print(shown)
    for name, checks in result["checks"].items():
        for check in checks:
            console.print(f"{name}: {check}", style="dim", highlight=False)
    for problem in result["problems"]:
        console.print(f"problem: {problem}", style="red", highlight=False, markup=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="contestants:\n"
        + "\n".join(f"  {entrant.name:10} {entrant.does}" for entrant in ALL)
        + "\n\nexamples:\n"
        "  tests/bench/run.py --results bench.json      all of it, a quarter of an hour; keep the machine quiet\n"
        "  tests/bench/run.py --quick                   three minutes, to see a trend\n"
        "  tests/bench/run.py --only envoy,handrail --rounds 9\n"
        "  tests/bench/run.py --only redis              what a store costs, see tests/bench/stores.py --help\n"
        "\nexit status: 0; 1 where a contestant did not do its work, or with --check where a target was missed;\n"
        "2 where something is missing on this machine, named with the way to get it",
    )
    names = [entrant.name for entrant in ALL]

    def chosen(text: str) -> list[str]:
        wrong = [name for name in text.split(",") if name not in names]
        if wrong:
            raise argparse.ArgumentTypeError(f"no contestant {', '.join(wrong)}; there are {', '.join(names)}")
        return text.split(",")

    parser.add_argument("--quick", action="store_true", help="short runs, three rounds, memory after 10 s of load")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (5, quick 3)")
    parser.add_argument("--only", type=chosen, default=names, metavar="A,B", help="these contestants alone")
    parser.add_argument("--skip", type=chosen, default=[], metavar="A,B", help="without these")
    parser.add_argument(
        "--handrail", metavar="PYTHON", help="interpreter of an environment where Handrail is installed (this tree)"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--output", choices=("text", "json", "markdown"), default="text", help="on standard output")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target was missed")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Starts what all need, runs the rounds, stops it. Raises Missing."""
    entrants = [entrant for entrant in ALL if entrant.name in options.only and entrant.name not in options.skip]
    seconds = QUICK if options.quick else FULL
    if options.rounds is not None:
        seconds = Durations(**{**asdict(seconds), "rounds": options.rounds})
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Missing("two cores: one for the proxy under test, one for load and upstream")
    load.need_wrk()
    with tempfile.TemporaryDirectory(prefix="handrail-bench-") as name:
        directory, servers = Path(name), list[Server]()
        try:
            for entrant in entrants:
                entrant(Place(directory, cores[1], cores[0], 0)).missing()
            at = machine(cores)
            os.sched_setaffinity(0, {cores[0]})  # this process and the generators that it starts
            server, upstream = start_upstream(directory, cores[0])
            servers.append(server)
            stub = None
            if Handrail in entrants:
                server, stub = start_stub(directory, cores[0])
                servers.append(server)
            place = Place(directory, cores[1], cores[0], upstream, stub, options.handrail)
            bench = Bench(entrants, place, seconds)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            columns = (TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            # drawn between measurements alone: a refreshing thread would share the load generator's core
            with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
                extra = max(0.0, seconds.memory - seconds.round)
                task = progress.add_task("", total=len(entrants) * (seconds.rounds * seconds.round + extra))

                def tell(what: str, spent: float) -> None:
                    progress.update(task, advance=spent, **({"description": what} if what else {}))
                    progress.refresh()

                bench.run(tell)
        finally:
            for server in servers:
                server.stop()
        medians = {
            name: {key: statistics.median(values) for key, values in measures.items() if values}
            for name, measures in bench.samples.items()
        }
        return {
            "date": date,
            "machine": at,
            "versions": versions(entrants, place),
            "durations": asdict(seconds),
            "contestants": {entrant.name: entrant.does for entrant in entrants},
            "medians": medians,
            "samples": bench.samples,
            "targets": judge(medians),
            "checks": bench.checks,
            "problems": bench.problems,
        }


def main() -> int:
    if "--only" in sys.argv and sys.argv[sys.argv.index("--only") + 1 : sys.argv.index("--only") + 2] == ["redis"]:
        at = sys.argv.index("--only")
        del sys.argv[at : at + 2]
        return stores.main()
    options = arguments()
    progress = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    try:
        result = measure(options, progress)
    except Missing as error:
        print(f"missing: {error}", file=sys.stderr)
        return 2
    except Broken as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.results is not None:
        options.results.write_text(json.dumps(result, indent=2) + "\n")
    if options.output == "json":
        print(json.dumps(result))
    elif options.output == "markdown":
        print(markdown(result))
    else:
        # a pipe has no width of its own, and a table folded into 80 columns cannot be read
        show(result, Console(width=None if sys.stdout.isatty() else 180))
        print("\n" + markdown(result))
    missed = options.check and any(target["met"] is False for target in result["targets"])
    return 1 if result["problems"] or missed else 0


if __name__ == "__main__":
    sys.exit(main())
