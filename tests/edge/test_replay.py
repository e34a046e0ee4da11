"""Recordings become findings: what is printed where, and what a replay remembers."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.config import Config, SchemasConfig
from handrail.edge.files import load_packs, load_registry
from handrail.edge.replay import Summary, quantile, records, shown
from handrail.event import Event, Fault, Finding, Severity, to_json
from handrail.pipeline import Inspector, build
from handrail.rules import watches


def inspector() -> Inspector:
    registry = load_registry(Config())
    return build(Config(), registry, watches(load_packs(Config()), registry))


def event(id: str, at: float, outcome: str = "completed", task: str = "t") -> Event:
    return Event(
        kind="handoff", id=id, at=at, outcome=outcome, task=task, workflow="w", source="writer", target="reviewer"
    )


def replayed(file: Path) -> list[Event | Finding | Fault]:
    return list(records([str(file)], inspector(), lambda read: None))


def test_a_call_is_printed_once_when_it_is_over(tmp_path: Path) -> None:
    """Its open half is the same event; only one that never ended is printed as asked."""
    file = tmp_path / "calls.jsonl"
    seen = [event("a", 0, "asked", "t1"), event("b", 1, "asked", "t2"), event("a", 2, "failed", "t1")]
    file.write_bytes(b"\n".join(map(to_json, seen)))

    assert [(record.id, record.outcome) for record in replayed(file) if isinstance(record, Event)] == [
        ("a", "failed"),
        ("b", "asked"),
    ]


def test_empty_lines_and_our_other_lines_are_passed_over(tmp_path: Path) -> None:
    """The output of a replay is a recording."""
    file = tmp_path / "calls.jsonl"
    file.write_bytes(b'{"type": "finding"}\n\n' + to_json(event("a", 0)) + b'\n{"type": "summary"}\n')

    assert [record.id for record in replayed(file) if isinstance(record, Event)] == ["a"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    """Some shells write one before what they redirect."""
    file = tmp_path / "calls.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + to_json(event("a", 0)) + b"\n" + to_json(event("b", 1)))

    assert [record.id for record in replayed(file) if isinstance(record, Event)] == ["a", "b"]


def test_numbers_past_64_bits_are_judged_exactly(tmp_path: Path) -> None:
    """As live: a float in place of 2^64 + 1 would be even, and pass."""
    schema = tmp_path / "schemas" / "writer.reviewer" / "1.json"
    schema.parent.mkdir(parents=True)
    schema.write_text('{"properties": {"n": {"multipleOf": 2}}}')
    file = tmp_path / "calls.jsonl"
    line = to_json(event("a", 0)).replace(b'"payload":null', b'"payload":{"n":18446744073709551617}')
    file.write_bytes(line)
    config = Config(schemas=SchemasConfig(directory=str(tmp_path / "schemas")))
    registry = load_registry(config)
    judging = build(config, registry, watches(load_packs(config), registry))

    found = [each.kind for each in records([str(file)], judging, lambda read: None) if isinstance(each, Finding)]
    assert found == ["schema.violation"]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    """The bar reaches its end, for JSON lines and for HAR."""
    events, har = tmp_path / "calls.jsonl", tmp_path / "calls.har"
    events.write_bytes(b"\n".join(to_json(event(str(number), number)) for number in range(5_000)))
    har.write_text('{"log": {"entries": []}}')
    read: list[int] = []
    list(records([str(events), str(har)], inspector(), read.append))

    assert sum(read) == events.stat().st_size + har.stat().st_size
    assert len(read) > 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_bar_is_for_people_only(tmp_path: Path, handrail_command: Sequence[str]) -> None:
    """On a terminal something moves on standard error; in a pipe nothing is written there."""
    file = tmp_path / "calls.jsonl"
    file.write_bytes(b"\n".join(to_json(event(str(number), number)) for number in range(20_000)))
    command = [*handrail_command, "replay", str(file), "--output", "json"]
    terminal, side = os.openpty()
    try:
        terms = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=side, env=terms) as running:
            os.close(side)
            seen = b""
            with contextlib.suppress(OSError):  # how a pseudo-terminal ends on Linux
                while piece := os.read(terminal, 65_536):  # unread, a slow run fills it and waits
                    seen += piece
        assert running.returncode == 0
        assert b"replay" in seen
    finally:
        os.close(terminal)

    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True).stderr == b""


@pytest.mark.parametrize(
    ("worst", "asked", "met"),
    [
        ("warning", "info", True),
        ("warning", "warning", True),
        ("warning", "critical", False),
        (None, "info", False),
        ("critical", None, False),
    ],
)
def test_severities_are_in_order(worst: Severity | None, asked: Severity | None, met: bool) -> None:
    """info, warning, critical; without findings nothing is reached."""
    assert Summary(worst=worst).reaches(asked) is met


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_one_of_the_values(values: list[float], share: float) -> None:
    """Nearest rank: at least that share of the values is not above it."""
    shown = float(quantile(values, share))

    assert any(abs(value - shown) <= 0.5 for value in values)
    assert sum(value <= shown + 0.5 for value in values) >= share * len(values) - 1e-6


@given(st.text())
def test_text_from_the_traffic_cannot_move_the_cursor(text: str) -> None:
    """Every character that is not printable is escaped; the others are left alone."""
    assert shown(text).isprintable()
    assert shown("über [red]") == "über [red]"


def test_nothing_has_no_quantile() -> None:
    """An edge without durations shows an empty cell."""
    assert quantile([], 0.5) == ""
