"""Enforced budgets on the wire: 504 at the deadline, the upstream released, a fallback that gets the task once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from edge.recorder import OK, Script, Stage, Upstream, Wire, eventually, limits, play, replying
from handrail.config import check, load
from handrail.edge.route import Fallback, Target
from handrail.edge.sidecar import listeners_of
from handrail.event import Event, rfc3339, seconds
from handrail.pipeline import Inspector
from handrail.wire import Route

RULES = """
language: 1
rules:
  - id: budget.exceeded
    title: t
    why: w
    maturity: stable
    severity: warning
    kind: budget.exceeded
    action: ACTION
    with: {}
    tests:
      - {name: late, events: [{at: 0, deadline: 1, duration_ms: 2000}], finds: 1}
      - {name: in time, events: [{at: 0}], finds: 0}
"""
ENFORCED: dict[str, Any] = {"rules_text": RULES.replace("ACTION", "enforce")}
OBSERVED: dict[str, Any] = {"rules_text": RULES.replace("ACTION", "observe")}
SOON = 0.3


def post(*lines: bytes, body: bytes = b'{"a": 1}') -> bytes:
    head = [b"POST /t HTTP/1.1", b"Host: a", b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, *lines]) + b"\r\n\r\n" + body


def until(span: float) -> bytes:
    return b"handrail-deadline: " + rfc3339(time.time() + span).encode()


async def hang(wire: Wire) -> None:
    """An upstream that takes a request and never answers."""
    await wire.message()
    await wire.rest(20.0)


@contextlib.asynccontextmanager
async def falling_back(stage: Stage, script: Script, **fields: Any) -> AsyncIterator[Upstream]:
    """A second upstream that the stage's route names as its fallback."""
    other = Upstream(script)
    await other.start()
    listener = stage.proxy.listeners[0]
    target = Target.parse(f"http://127.0.0.1:{other.port}")
    listener.fallback = Fallback(target=target, route=Route(agent="agent", peer="peer", instead="spare"), **fields)
    try:
        yield other
        assert not other.problems, other.problems
    finally:
        for wire in other.wires:
            wire.abort()
        await other.stop()


def body_of(reply: bytes) -> Any:
    return orjson.loads(reply.partition(b"\r\n\r\n")[2])


def test_the_caller_gets_504_at_the_deadline_and_the_upstream_is_released() -> None:
    """Not a quarter of a second later; the connection of the caller stays usable, that of the upstream is closed."""

    async def scenario(stage: Stage) -> None:
        client = await stage.client()
        begun = time.monotonic()
        await client.send(post(until(SOON)))
        reply = await client.message()
        took = time.monotonic() - begun
        assert reply.startswith(b"HTTP/1.1 504 Gateway Timeout\r\ncontent-type: application/problem+json")
        assert b"handrail-findings: budget.exceeded" in reply
        problem = body_of(reply)
        assert (problem["kind"], problem["side"], problem["status"]) == ("budget.exceeded", "receiver", 504)
        assert SOON <= took < SOON + 0.4
        await eventually(lambda: stage.upstream.wires[0].end is not None)
        await client.send(post(until(SOON)))
        assert (await client.message()).startswith(b"HTTP/1.1 504")
        events = await stage.settled(2)
        assert [event.outcome for event in events] == ["timeout", "timeout"]
        assert [event.status for event in events] == [None, None]
        assert [found.kind for found in stage.kept.findings][:1] == ["budget.exceeded"]

    play(scenario, hang, **ENFORCED)


def test_a_caller_of_a2a_gets_a_json_rpc_error() -> None:
    """In its own protocol, with its own id."""

    async def scenario(stage: Stage) -> None:
        part = {"kind": "text", "text": "x"}
        message = {"role": "user", "parts": [part], "messageId": "m1", "kind": "message"}
        call = {"jsonrpc": "2.0", "id": 7, "method": "message/send", "params": {"message": message}}
        reply = await stage.ask(post(until(SOON), body=orjson.dumps(call)))
        assert reply.startswith(b"HTTP/1.1 200 ")
        answer = body_of(reply)
        assert answer["id"] == 7
        assert answer["error"]["data"]["kind"] == "budget.exceeded"
        await stage.settled(1)

    play(scenario, hang, **ENFORCED)


def test_an_answer_that_has_begun_goes_on() -> None:
    """Nobody can take back its first byte, so it is passed on to its end."""

    async def scenario(stage: Stage) -> None:
        reply = await stage.ask(post(until(SOON)))
        assert reply == OK
        (event,) = await stage.settled(1)
        assert event.outcome == "completed"
        assert [found.kind for found in stage.kept.findings] == ["budget.exceeded"]

    play(scenario, replying(OK[:20], OK[20:], pause=2 * SOON), **ENFORCED)


def test_in_observe_mode_the_deadline_changes_nothing() -> None:
    """It is told, and the answer comes late."""

    async def scenario(stage: Stage) -> None:
        assert await stage.ask(post(until(SOON))) == OK
        await stage.settled(1)
        await eventually(lambda: bool(stage.kept.findings))

    async def late(wire: Wire) -> None:
        await wire.message()
        await asyncio.sleep(2 * SOON)
        await wire.send(OK)

    play(scenario, late, **OBSERVED)


def test_the_fallback_gets_the_task_once_with_the_attempt_raised() -> None:
    """The first attempt is an event that timed out, the second one of its own; the body is the same byte for byte."""

    async def scenario(stage: Stage) -> None:
        async with falling_back(stage, replying(OK), seconds=5.0) as other:
            client = await stage.client()
            await client.send(post(until(SOON), b"handrail-task: t1", b"handrail-attempt: 2"))
            assert await client.message() == OK
            first, second = await stage.settled(2)
            assert (first.outcome, first.attempt, first.task) == ("timeout", 2, "t1")
            assert (second.outcome, second.attempt, second.task) == ("completed", 3, "t1")
            assert second.target == "spare"
            assert second.deadline is not None
            assert second.deadline > second.at
            head, _, body = other.seen.partition(b"\r\n\r\n")
            assert body == b'{"a": 1}'
            assert head.count(b"handrail-attempt") == 1
            assert b"handrail-attempt: 3" in head
            assert f"127.0.0.1:{other.port}".encode() in head
            await eventually(lambda: stage.upstream.wires[0].end is not None)
            assert stage.counted("handrail_fallbacks_total", "taken") == 1

    play(scenario, hang, **ENFORCED)


def test_a_call_that_is_late_is_told_while_it_lasts() -> None:
    """Nobody is refused, and nobody has to wait for the reply to hear of it."""

    async def scenario(stage: Stage) -> None:
        client = await stage.client()
        await client.send(post(until(SOON)))
        await eventually(lambda: bool(stage.kept.findings))
        assert [finding.kind for finding in stage.kept.findings] == ["budget.exceeded"]
        assert not stage.kept.events
        assert stage.proxy.in_flight == 1

    play(scenario, hang, **OBSERVED)


class Watching:
    """A detector that keeps what it was shown of calls that are open."""

    def __init__(self) -> None:
        self.open: list[object] = []

    def observe(self, event: Event) -> tuple[()]:
        if event.outcome == "asked":
            self.open.append(event.payload)
        return ()

    def advance(self, now: float) -> tuple[()]:
        return ()

    def due(self, event: Event) -> None:
        return None


def test_calls_that_are_open_for_long_are_looked_at_once_and_in_their_order() -> None:
    """Who waits for whom is known while it lasts; a call that is over in time is not looked at twice."""
    watching = Watching()

    def watched(inspector: Inspector) -> Inspector:
        for watch in inspector.pipeline.watches:
            watch.detector = watching  # type: ignore[assignment]
        return inspector

    async def slow_but_the_first(wire: Wire) -> None:
        if b'"first"' not in await wire.message():
            await asyncio.sleep(0.4)
        await wire.send(OK)
        await wire.rest(20.0)

    async def scenario(stage: Stage) -> None:
        quick = await stage.client()
        await quick.send(post(body=b'"first"'))
        assert await quick.message() == OK
        clients = [await stage.client() for _ in range(6)]
        for number, client in enumerate(clients):
            await client.send(post(body=b"%d" % number))
            await asyncio.sleep(0.003)
        await eventually(lambda: len(watching.open) == len(clients))
        for client in clients:
            assert await client.message() == OK
        await stage.settled(7)
        assert watching.open == list(range(6))

    play(scenario, slow_but_the_first, wrap=watched, **OBSERVED)


def test_the_next_request_goes_to_the_routes_own_upstream_again() -> None:
    """A fallback is for one task, not for a connection."""
    asked = 0

    async def first_hangs(wire: Wire) -> None:
        nonlocal asked
        asked += 1
        await wire.message()
        if asked == 1:
            await wire.rest(20.0)
        else:
            await wire.send(OK)
            await wire.rest(20.0)

    async def scenario(stage: Stage) -> None:
        async with falling_back(stage, replying(OK), seconds=5.0) as other:
            client = await stage.client()
            await client.send(post(until(SOON)))
            assert await client.message() == OK
            await client.send(post())
            assert await client.message() == OK
            await stage.settled(3)
            assert (len(stage.upstream.wires), len(other.wires)) == (2, 1)

    play(scenario, first_hangs, **ENFORCED)


def test_a_fallback_that_is_late_too_gives_504() -> None:
    """Once, and no further: two events, both timed out."""

    async def scenario(stage: Stage) -> None:
        async with falling_back(stage, hang, seconds=SOON):
            reply = await stage.ask(post(until(SOON)))
            assert reply.startswith(b"HTTP/1.1 504")
            first, second = await stage.settled(2)
            assert (first.outcome, second.outcome) == ("timeout", "timeout")

    play(scenario, hang, **ENFORCED)


def test_after_the_first_byte_there_is_no_fallback() -> None:
    """What the caller has of an answer cannot be followed by another one."""

    async def scenario(stage: Stage) -> None:
        async with falling_back(stage, replying(OK), seconds=5.0) as other:
            client = await stage.client()
            await client.send(post(until(SOON)))
            assert await client.rest() == OK[:20]
            await stage.settled(1)
            assert not other.wires

    play(scenario, replying(OK[:20], then="rst"), **ENFORCED)


@pytest.mark.parametrize("how", ["refused", "reset", "silent"])
def test_an_upstream_that_cannot_answer_is_a_reason_too(how: str) -> None:
    """No connection, an end without an answer, silence past the limit: also where no rule is enforced."""

    async def scenario(stage: Stage) -> None:
        async with falling_back(stage, replying(OK)):
            assert await stage.ask(post()) == OK
            first, second = await stage.settled(2)
            assert first.outcome == {"refused": "failed", "reset": "interrupted", "silent": "timeout"}[how]
            assert (second.outcome, second.attempt) == ("completed", 2)

    options: dict[str, Any] = {"upstream_port": 1} if how == "refused" else {}
    play(scenario, replying(then="rst") if how == "reset" else hang, limits=limits(reply_seconds=0.2), **options)


def test_what_was_not_held_is_not_sent_again() -> None:
    """A request past `hold_bytes` passes once; it is counted that it could not be handed on."""

    async def scenario(stage: Stage) -> None:
        async with falling_back(stage, replying(OK), seconds=5.0) as other:
            reply = await stage.ask(post(body=b'{"a": "' + b"x" * 4096 + b'"}'))
            assert reply.startswith(b"HTTP/1.1 502")
            await stage.settled(1)
            assert not other.wires
            assert stage.counted("handrail_fallbacks_total", "not_kept") == 1

    play(scenario, replying(then="rst"), limits=limits(hold_bytes=1024))


def test_where_the_route_stamps_the_time_left_is_written_on_the_way_out() -> None:
    """A nested call carries the deadline of the call that its sender serves; a shorter one of its own stays."""

    async def scenario(stage: Stage) -> None:
        workflow = b"handrail-workflow: w"
        outer = await stage.client()
        due = time.time() + 20
        await outer.send(post(b"handrail-deadline: " + rfc3339(due).encode(), workflow, body=ENVELOPE % (b"a", b"b")))
        await eventually(lambda: len(stage.upstream.wires) == 1 and bool(stage.upstream.wires[0].seen))
        assert await stage.ask(post(workflow, body=ENVELOPE % (b"b", b"c"))) == OK
        assert await stage.ask(post(workflow, until(90), body=ENVELOPE % (b"b", b"c"))) == OK
        assert await stage.ask(post(workflow, until(5), body=ENVELOPE % (b"b", b"c"))) == OK
        said = [deadline_in(wire) for wire in stage.upstream.wires[1:]]
        assert said[:2] == [round(due, 6), round(due, 6)]
        assert said[2] < due - 10
        outer.close()
        await stage.settled(4)

    async def serve(wire: Wire) -> None:
        request = await wire.message()
        if b'"b","status"' in request:
            await wire.rest(20.0)
        else:
            await wire.send(OK)
            await wire.rest(20.0)

    play(scenario, serve, stamp=True, **OBSERVED)


ENVELOPE = (
    b'{"task_id":"t","source_agent":"%s","target_agent":"%s","status":"completed","output":{"summary":"s",'
    b'"artifacts":[],"confidence":1},"context":{"original_goal":"g","constraints":[],"decisions_made":["d"]},'
    b'"metadata":{}}'
)


def deadline_in(wire: Wire) -> float:
    lines = [line for line in bytes(wire.seen).split(b"\r\n") if line.lower().startswith(b"handrail-deadline:")]
    (line,) = lines
    return round(seconds(line.partition(b": ")[2].decode()), 6)


def test_a_route_names_its_fallback_in_the_configuration() -> None:
    """Upstream, agent and seconds reach the listener; a URL that is none is refused with its key."""
    route = {"listen": "127.0.0.1:0", "upstream": "http://one:1", "peer": "one", "side": "egress"}
    given = {"routes": [route | {"fallback": {"upstream": "http://two:2", "agent": "two", "seconds": 5}}]}
    (listener,) = listeners_of(load(orjson.dumps(given).decode(), "handrail.yaml"))
    fallback = listener.fallback
    assert fallback is not None
    assert (fallback.target.authority, fallback.route.target, fallback.seconds) == ("two:2", "two", 5.0)
    assert listener.route.target == "one"
    given["routes"][0]["fallback"] = {"upstream": "two"}
    (problem,) = check(orjson.dumps(given).decode(), "handrail.yaml")
    assert problem.key == "routes[0].fallback.upstream"
