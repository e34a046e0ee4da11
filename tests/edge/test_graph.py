"""`handrail graph` and `POST /v1/plans`: what is printed, answered and returned."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from handrail.cli import main
from handrail.config import AdminConfig
from handrail.edge.admin import Admin
from handrail.edge.metrics import Metrics
from handrail.edge.plans import PlanApi
from handrail.event import Decision, Event

RING = "edges: [[a, b], [b, a]]\n"


def written(path: Path, name: str, text: str) -> str:
    (path / name).write_text(text)
    return str(path / name)


@pytest.mark.parametrize(("text", "status"), [("edges: [[a, b]]", 0), (RING, 1), ("edges: [[a]]", 2), ("", 2)])
def test_the_exit_status_says_what_it_is(tmp_path: Path, capsys, text: str, status: int) -> None:
    """0 acyclic, 1 cycle, 2 no graph; bad input is told with file, place and problem."""
    file = written(tmp_path, "graph.yaml", text)
    assert main(["graph", "check", file]) == status
    told = capsys.readouterr()
    assert told.err.startswith(f"handrail: {file}: ") == (status == 2)
    assert bool(told.out) == (status != 2)


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path, capsys) -> None:
    """Told like every other."""
    assert main(["graph", "check", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read: no such file" in capsys.readouterr().err


def test_json_is_one_object_for_each_graph(tmp_path: Path, capsys) -> None:
    """Several files, and each plan event of a recording."""
    ring = written(tmp_path, "ring.yaml", RING)
    plans = written(
        tmp_path,
        "plans.jsonl",
        '{"type":"event","kind":"plan","id":"1","at":0,"workflow":"w","payload":{"edges":[["x","y"]]}}\n'
        '{"type":"event","kind":"handoff","id":"2","at":1}\n'
        '{"type":"event","kind":"plan","id":"3","at":2,"workflow":"v","payload":{"z":["z"]}}\n',
    )
    assert main(["graph", "check", ring, plans, "--output", "json"]) == 1
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["type"] == "graph"
    assert first["components"] == [
        {"agents": ["a", "b"], "cycle": ["a", "b"], "edges": 2, "deadlock": True, "entered_through": []}
    ]
    assert (second["acyclic"], second["file"]) == (True, f"{plans}:1")
    assert third["self_loops"] == ["z"]


@pytest.mark.parametrize("form", ["mermaid", "json"])
def test_what_is_drawn_can_be_checked(tmp_path: Path, capsys, form: str) -> None:
    """The observed graph as a declared one, names that Mermaid does not know included."""
    events = [("billing agent", "b"), ("b", "end"), ("end", "b"), ("b", "end")]
    recording = written(
        tmp_path,
        "traffic.jsonl",
        "".join(
            json.dumps({"kind": "handoff", "id": f"e{at}", "at": at, "source": a, "target": b, "outcome": "completed"})
            + "\n"
            for at, (a, b) in enumerate(events)
        ),
    )
    assert main(["graph", "show", recording, "--output", form]) == 1
    drawn = written(tmp_path, "drawn", capsys.readouterr().out)
    assert main(["graph", "check", drawn]) == 1
    assert "3 agents, 3 edges" in capsys.readouterr().out


def test_dot_quotes_names(tmp_path: Path, capsys) -> None:
    """Whatever they hold."""
    line = {"kind": "handoff", "id": "1", "at": 0, "source": 'a"\\b', "target": "c", "outcome": "failed"}
    assert main(["graph", "show", written(tmp_path, "t.jsonl", json.dumps(line)), "--output", "dot"]) == 0
    assert '"a\\"\\\\b" -> "c" [label="1, 1 failed"];' in capsys.readouterr().out


def test_replay_holds_traffic_to_the_configured_graph(tmp_path: Path, capsys) -> None:
    """`graph.file`, relative to the configuration."""
    written(tmp_path, "flow.mmd", "flowchart LR\n a[Writer] --> b --> c\n")
    config = written(tmp_path, "handrail.yaml", "graph: {file: flow.mmd}\n")
    lines = [("Writer", "b"), ("a", "b"), ("c", "a")]
    recording = written(
        tmp_path,
        "t.jsonl",
        "".join(
            json.dumps({"kind": "handoff", "id": f"e{at}", "at": at, "workflow": "w", "source": a, "target": b}) + "\n"
            for at, (a, b) in enumerate(lines)
        ),
    )
    assert main(["replay", recording, "-c", config, "--output", "json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (found,) = [record for record in records if record["type"] == "finding" and record["rule"] == "graph.cycle"]
    assert found["event"] == "e2"


Post = Callable[..., Awaitable[tuple[int, Any]]]


def serve(act: Callable[[Post, list[Event]], Awaitable[None]]) -> None:
    async def run() -> None:
        told: list[Event] = []

        def observe(event: Event) -> Decision:
            told.append(event)
            return Decision(event=event)

        admin = Admin(AdminConfig(listen="127.0.0.1:0"), Metrics(), ready=dict)
        PlanApi(observe, lambda: 12.5).add_to(admin.app)
        host, port = await admin.start()
        try:
            async with aiohttp.ClientSession() as session:

                async def post(body: str, query: str = "", **headers: str) -> tuple[int, Any]:
                    url = f"http://{host}:{port}/v1/plans{query}"
                    async with session.post(url, data=io.BytesIO(body.encode()), headers=headers) as reply:
                        return reply.status, json.loads(await reply.text())

                await act(post, told)
        finally:
            await admin.stop()

    asyncio.run(run())


def test_a_plan_is_answered_and_becomes_an_event() -> None:
    """In any form, for the workflow that the query, a header or the body names."""

    async def act(post: Post, told: list[Event]) -> None:
        status, answer = await post(RING, "?workflow=w1")
        assert (status, answer["acyclic"], answer["workflow"]) == (200, False, "w1")
        assert answer["components"][0]["cycle"] == ["a", "b"]
        assert (await post("graph LR\n a-->b", **{"handrail-workflow": "w2"}))[1]["critical_path"] == ["a", "b"]
        await post('{"workflow": "w3", "edges": [["a", "b"]]}')
        await post('{"a": ["b"]}')
        assert [event.workflow for event in told] == ["w1", "w2", "w3", None]
        assert {(event.kind, event.at, event.outcome) for event in told} == {("plan", 12.5, "completed")}
        assert len({event.id for event in told}) == 4

    serve(act)


def test_what_is_no_plan_is_refused() -> None:
    """As a problem, and nothing is told to the pipeline."""

    async def act(post: Post, told: list[Event]) -> None:
        status, answer = await post("edges: [[a]]")
        assert (status, answer["detail"]) == (400, "edges[0]: names fewer than two agents; write [from, to]")
        assert (await post(" " * 9_000_000))[0] == 413
        assert told == []

    serve(act)
