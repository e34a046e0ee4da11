"""Learning at the edge: from recordings, and from the traffic of a running sidecar to a registered schema."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, web

from handrail import cli
from handrail.config import AdminConfig, Config, RouteConfig, RulesConfig, SchemasConfig
from handrail.edge.learn import Learner
from handrail.edge.sidecar import Sidecar
from handrail.event import Event, to_json
from handrail.schema.registry import Registry, Schema


def handoff(index: int, payload: Any, target: str = "reviewer") -> Event:
    return Event(
        kind="handoff",
        id=f"e{index}",
        at=float(index),
        source="writer",
        target=target,
        subject=f"writer.{target}",
        outcome="completed",
        payload=payload,
    )


def recorded(path: Path, events: list[Event]) -> str:
    path.write_bytes(b"".join(to_json(event, payloads=True) + b"\n" for event in events))
    return str(path)


def test_infer_proposes_a_schema_for_each_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON lines with subject, number of payloads, stability and schema; and the schema alone for one subject."""
    events = [handoff(index, {"n": index}) for index in range(30)]
    events += [handoff(index, {"text": "a"}, "editor") for index in range(30, 33)]
    file = recorded(tmp_path / "events.jsonl", events)
    assert cli.main(["schema", "infer", file, "--output", "json"]) == 0
    editor, reviewer = map(json.loads, capsys.readouterr().out.splitlines())
    assert (editor["subject"], editor["payloads"], editor["stability"]["stable"]) == ("writer.editor", 3, False)
    assert (reviewer["type"], reviewer["payloads"], reviewer["stability"]["stable"]) == ("schema", 30, True)
    assert cli.main(["schema", "infer", file, "--subject", "writer.reviewer"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == reviewer["schema"]
    assert "from 30 payloads, stable" in told.err


def test_infer_of_nothing_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No payload, or none of the subject that was asked for, ends with 2 and says so."""
    file = recorded(tmp_path / "events.jsonl", [handoff(0, None)])
    assert cli.main(["schema", "infer", file]) == 2
    assert "no event carries a payload" in capsys.readouterr().err
    assert cli.main(["schema", "infer", str(tmp_path / "missing.har")]) == 2


def test_a_learner_is_bounded_and_passes_over_what_has_a_schema() -> None:
    """So many subjects and no more; a subject that is registered is not learned, or no longer proposed."""
    registry = Registry()
    learner = Learner(registry, limit=3)
    for index in range(10):
        learner.put(handoff(index, {"a": 1}, f"t{index}"))
    assert [each["subject"] for each in learner.learned()] == ["writer.t7", "writer.t8", "writer.t9"]
    assert registry.load({"writer.t8/1.json": b"{}"}) == []
    learner.put(handoff(11, {"a": "another type"}, "t8"))
    assert [each["subject"] for each in learner.learned()] == ["writer.t7", "writer.t9"]


def test_what_a_running_sidecar_has_learned_is_accepted(tmp_path: Path) -> None:
    """Traffic through the proxy, `schema accept` beside it: the schema is in the directory, and accepts the traffic."""

    async def story() -> tuple[int, str, int, bytes]:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response({"ok": True}, headers={"handrail-accept": "writer.reviewer@1"})

        app = web.Application()
        app.router.add_post("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        route = RouteConfig(listen="127.0.0.1:0", upstream=f"http://{host}:{port}")
        seen: list[Event] = []

        class Rows:
            def put(self, record: Any) -> None:
                if isinstance(record, Event):
                    seen.append(record)

        sidecar = Sidecar(
            Config(
                agent="reviewer",
                routes=(route,),
                admin=AdminConfig(listen="127.0.0.1:0"),
                schemas=SchemasConfig(learn=True),
                rules=RulesConfig(builtin=False),
            ),
            also=(Rows(),),
        )
        await sidecar.start()
        (front,) = sidecar.proxy.addresses
        admin = "{}:{}".format(*sidecar.admin_address)  # type: ignore[misc]
        sent = [
            {"task_id": f"t{n}", "source_agent": "writer", "target_agent": "reviewer", "output": {"score": n / 30}}
            for n in range(30)
        ]
        async with ClientSession() as session:
            for payload in sent:
                async with session.post("http://{}:{}/".format(*front), json=payload) as reply:
                    await reply.read()
            for _ in range(200):
                if len(seen) == len(sent):
                    break
                await asyncio.sleep(0.01)
            async with session.get(f"http://{admin}/v1/learned") as reply:
                listed = await reply.json()
            async with session.get(f"http://{admin}/v1/learned/nobody") as reply:
                missing = reply.status
        accept = ["schema", "accept", "writer.reviewer", "--admin", admin, "--schemas", str(tmp_path / "schemas")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "handrail", *accept, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        await sidecar.stop(0.1)
        await runner.cleanup()
        assert {event.reads for event in seen} == {"writer.reviewer@1"}
        (learned,) = listed["learned"]
        schema = Schema("s", "1", orjson.dumps(learned["schema"]))
        assert all(schema.is_valid(payload) for payload in sent)
        assert not schema.is_valid({**sent[0], "output": {"score": "high"}})
        return missing, learned["subject"], process.returncode or 0, out

    missing, subject, status, out = asyncio.run(story())
    assert (missing, subject, status) == (404, "writer.reviewer", 0)
    assert b"writer.reviewer@1" in out
    assert (tmp_path / "schemas" / "writer.reviewer" / "1.json").exists()


def test_accept_of_nothing_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sidecar that is not there ends with 2."""
    accept = ["schema", "accept", "a.b", "--admin", "127.0.0.1:9", "--schemas", str(tmp_path)]
    assert cli.main(accept) == 2
    assert "cannot be asked" in capsys.readouterr().err
