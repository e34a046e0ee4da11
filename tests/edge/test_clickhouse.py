"""Laws of the ClickHouse sink, on the real engine behind a front that can lose, delay and refuse."""

import asyncio
import itertools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.chshim import Server
from handrail.config import ClickHouseConfig
from handrail.edge import database
from handrail.edge.clickhouse import Batch, Busy, ClickHouseSink, Refused, target_of
from handrail.edge.database import COLUMNS, Database, migrate, migrations, statements
from handrail.edge.metrics import Metrics
from handrail.event import FIELDS, Event, Finding, rfc3339

AT = 1_785_000_000.0

NEVER = 1e15
"""A deadline in a year that DateTime64 does not have: ClickHouse refuses the row."""

TTL_DAYS = 10_000  # the rows here have fixed dates, and ClickHouse drops what is past its time at the insert

_names = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    shim = Server(tmp_path_factory.mktemp("clickhouse"))
    yield shim
    shim.stop()


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """A database of the test's own; nothing is left of the last test's script."""
    server.script()
    yield f"h{next(_names)}"
    server.script()


def config(dsn: str, **changes: Any) -> ClickHouseConfig:
    return ClickHouseConfig(
        **{"dsn": dsn, "batch_seconds": 0.05, "retry_seconds": 0.02, "retry_limit_seconds": 0.1, "ttl_days": TTL_DAYS}
        | changes
    )


def event(number: int, **changes: Any) -> Event:
    return Event(
        **{
            "kind": "handoff",
            "id": f"e{number}",
            "at": AT + number,
            "source": "a",
            "target": "b",
            "channel": "call",
            "protocol": "a2a",
            "outcome": "completed",
        }
        | changes
    )


def counted(metrics: Metrics, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = metrics.render().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def with_sink(
    settings: ClickHouseConfig, act: Callable[[ClickHouseSink], Awaitable[None]], *, payloads: bool = False
) -> Metrics:
    """Runs a sink around `act`, until everything is written."""
    metrics = Metrics()

    async def run() -> None:
        sink = ClickHouseSink(settings, metrics, payloads=payloads)
        await sink.start()
        try:
            await act(sink)
            await until(lambda: sink.queued == 0)
        finally:
            await sink.close(5.0)

    asyncio.run(run())
    return metrics


def putting(*records: Event | Finding) -> Callable[[ClickHouseSink], Awaitable[None]]:
    async def act(sink: ClickHouseSink) -> None:
        for record in records:
            sink.put(record)

    return act


def lines(*records: str) -> bytes:
    return "".join(record + "\n" for record in records).encode()


# Tables


def test_every_field_is_a_column(server: Server, name: str) -> None:
    """What an Event or a Finding has, its table has, under the same name."""
    with_sink(config(server.dsn(name)), putting(event(1)))
    for table, fields in COLUMNS.items():
        columns = [
            row["name"]
            for row in server.rows(f"SELECT name FROM system.columns WHERE database = '{name}' AND table = '{table}'")
        ]
        assert [column for column in columns if column != "written_at"] == list(fields)


def test_migrations_run_once_and_may_run_twice(server: Server, name: str) -> None:
    """The second start does nothing; the same statements again change nothing."""
    source = Database(server.dsn(name), name)
    client = source._connected()
    names = [number for number, _ in migrations()]
    assert migrate(client, name, TTL_DAYS) == names
    assert migrate(client, name, TTL_DAYS) == []
    shape = server.rows(f"SELECT name, create_table_query FROM system.tables WHERE database = '{name}' ORDER BY name")
    assert migrate(client, name, TTL_DAYS, again=True) == names
    assert (
        server.rows(f"SELECT name, create_table_query FROM system.tables WHERE database = '{name}' ORDER BY name")
        == shape
    )
    assert server.one(f"SELECT count() FROM {name}.migration FINAL") == len(names)
    source.close()


def test_migrations_are_numbered_without_a_gap() -> None:
    """0001, 0002, …: two branches cannot add the same number unseen."""
    assert [int(number[:4]) for number, _ in migrations()] == list(range(1, len(migrations()) + 1))
    assert all(statements(text) for _, text in migrations())


def test_two_sidecars_may_migrate_at_once(server: Server, name: str) -> None:
    """Both end with every table, and neither with an error."""
    errors: list[BaseException] = []

    def start() -> None:
        source = Database(server.dsn(name), name)
        try:
            source.prepare(TTL_DAYS)
        except (Busy, Refused) as error:
            errors.append(error)
        source.close()

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert server.one(f"SELECT count() FROM {name}.migration FINAL") == len(migrations())


def test_a_changed_ttl_reaches_the_tables(server: Server, name: str) -> None:
    """The configuration says how long rows stay, also where the tables are older than it."""
    for days in (30, 7):
        source = Database(server.dsn(name), name)
        source.prepare(days)
        source.close()
        for table in COLUMNS:
            engine = server.one(f"SELECT engine_full FROM system.tables WHERE database = '{name}' AND name = '{table}'")
            assert f"toIntervalDay({days})" in engine


# Rows


def test_an_event_comes_back_as_it_was(server: Server, name: str) -> None:
    """Every field, microseconds and the types that ClickHouse does not have."""
    sent = event(
        1,
        at=1_785_000_000.123457,
        deadline=1_785_000_001.000001,
        workflow="w",
        attempt=2,
        status=-32001,
        state_version='W/"3"',
        tokens=2**40,
        duration_ms=12.5,
        overhead_ms=0.034,
        payload={"secret": 1},
        reply=[1],
        payload_bytes=12,
    )
    with_sink(config(server.dsn(name)), putting(sent))
    (row,) = server.rows(f"SELECT * EXCEPT written_at FROM {name}.event")
    assert row.pop("at") == "2026-07-25 17:20:00.123457"
    assert row.pop("deadline") == "2026-07-25 17:20:01.000001"
    expected = {field: getattr(sent, field) for field in FIELDS if field not in ("at", "deadline")}
    assert row == expected | {"status": "-32001", "payload": None, "reply": None}


def test_a_finding_comes_back_as_it_was(server: Server, name: str) -> None:
    """Evidence as JSON text, the ids as an array."""
    sent = Finding(
        rule="r", kind="k", severity="warning", at=AT + 0.25, event="e", events=("e", "f"), message="m\n",
        evidence={"path": "/a/*", "n": [1, None]}, fingerprint="f", count=3,
    )  # fmt: skip
    with_sink(config(server.dsn(name)), putting(sent))
    (row,) = server.rows(f"SELECT * EXCEPT written_at FROM {name}.finding")
    assert row.pop("evidence") == '{"path":"/a/*","n":[1,null]}'
    assert row.pop("at") == "2026-07-25 17:20:00.250000"
    assert row.pop("events") == ["e", "f"]
    fields = set(Finding.__struct_fields__) - {"evidence", "at", "events"}
    assert row == {field: getattr(sent, field) for field in fields}


def test_the_instant_in_the_table_is_the_one_in_the_json_output(server: Server, name: str) -> None:
    """Both round to the microsecond; ClickHouse by itself would cut off."""
    instants = [AT + number / 7 + number * 1e-7 for number in range(500)]
    with_sink(config(server.dsn(name)), putting(*(event(number, at=at) for number, at in enumerate(instants))))
    rows = server.rows(f"SELECT id, at FROM {name}.event")
    assert {row["id"]: row["at"].replace(" ", "T") + "Z" for row in rows} == {
        f"e{number}": rfc3339(at) for number, at in enumerate(instants)
    }


def test_payloads_are_stored_only_where_asked_for(server: Server, name: str) -> None:
    """As JSON text."""
    with_sink(config(server.dsn(name)), putting(event(1, payload={"a": [1, 2.5]}, reply="x")), payloads=True)
    assert server.rows(f"SELECT payload, reply FROM {name}.event") == [{"payload": '{"a":[1,2.5]}', "reply": "x"}]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "\ud800!"}, {"task": "?!"}),
        ({"tokens": 2**70}, {"tokens": None}),
        ({"status": 2**70}, {"status": str(2**70)}),
        ({"duration_ms": float("nan")}, {"duration_ms": None}),
    ],
)
def test_what_is_not_json_costs_its_own_field_only(
    server: Server, name: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    """The row and its neighbours are stored."""
    with_sink(config(server.dsn(name)), putting(event(1), event(2, **changes), event(3)))
    rows = server.rows(f"SELECT {', '.join(expected)} FROM {name}.event WHERE id = 'e2'")
    assert rows == [expected]
    assert server.one(f"SELECT count() FROM {name}.event") == 3


def test_an_older_table_takes_what_it_has_columns_for(server: Server, name: str) -> None:
    """A newer sidecar beside a table that it may not alter."""
    with_sink(config(server.dsn(name)), putting(event(1)))
    server.command(f"ALTER TABLE {name}.event DROP COLUMN ttfb_ms")
    with_sink(config(server.dsn(name)), putting(event(2, ttfb_ms=1.0)))
    assert server.one(f"SELECT count() FROM {name}.event") == 2


# One copy


@given(st.lists(st.binary(max_size=8), max_size=3), st.lists(st.binary(max_size=8), max_size=3))
def test_equal_tokens_are_equal_bytes(one: list[bytes], other: list[bytes]) -> None:
    """A token names content, so it can never stand for other rows."""
    first, second = (Batch.seal("event", b"\n".join(rows), len(rows)) for rows in (one, other))
    assert (first.token == second.token) == (first.body == second.body)
    assert first.token != Batch.seal("finding", first.body, first.rows).token


@given(st.lists(st.from_regex(rb"[^\n\r]{1,9}", fullmatch=True), min_size=2, max_size=9))
def test_the_halves_of_a_batch_are_the_batch(rows: list[bytes]) -> None:
    """No row is lost or moved, and both halves have some."""
    first, second = Batch.seal("event", b"".join(row + b"\n" for row in rows), len(rows)).halves()
    assert first.body + second.body == b"".join(row + b"\n" for row in rows)
    assert first.rows + second.rows == len(rows)
    assert min(first.rows, second.rows) >= 1


def test_a_batch_that_is_sent_twice_is_stored_once(server: Server, name: str) -> None:
    """In the table, and in the sums that a materialized view made of it."""
    source = Database(server.dsn(name), name)
    source.prepare(TTL_DAYS)
    batch = Batch.seal("event", lines('{"kind":"handoff","id":"x","at":1785000000.5}'), 1)
    for _ in range(3):
        source.insert(batch)
    source.close()
    assert server.one(f"SELECT count() FROM {name}.event") == 1
    assert server.one(f"SELECT sum(handoffs) FROM {name}.edge_minute") == 1


def test_a_copy_under_another_token_is_one_row_to_whoever_asks(server: Server, name: str) -> None:
    """After the window of tokens the key still tells."""
    with_sink(config(server.dsn(name)), putting(event(1)))
    with_sink(config(server.dsn(name)), putting(event(1), event(2)))
    assert server.one(f"SELECT count() FROM {name}.handoff") == 2


@pytest.mark.parametrize("times", [1, 2, 3])
def test_rows_that_were_stored_without_an_answer_are_stored_once(server: Server, name: str, times: int) -> None:
    """The driver repeats the insert by itself and then the sink does; all of them carry the token of the bytes."""
    source = Database(server.dsn(name), name)
    source.prepare(TTL_DAYS)
    source.close()
    server.script(*["commit_then_drop"] * times)
    with_sink(config(server.dsn(name)), putting(*map(event, range(5))))
    log = server.log(name)
    assert len(log) == times + 1
    assert len({entry["token"] for entry in log}) == 1
    assert server.one(f"SELECT count() FROM {name}.event") == 5
    assert server.one(f"SELECT sum(handoffs) FROM {name}.edge_minute") == 5


def test_both_ways_of_inserting_are_pinned(server: Server, name: str) -> None:
    """The server's defaults change between releases; the DSN may choose."""
    with_sink(config(server.dsn(name)), putting(event(1)))
    with_sink(config(server.dsn(name) + "?async_insert=1"), putting(event(2)))
    first, second = (entry["settings"] for entry in server.log(name))
    assert (first["async_insert"], second["async_insert"]) == ("0", "1")
    assert first["wait_for_async_insert"] == first["wait_end_of_query"] == "1"


# Trouble


@pytest.mark.parametrize(
    "word",
    [
        "drop",
        "late",
        "bomb",
        *({"do": "reply", "status": 500, "code": code} for code in (252, 202, 241, 159, 209, 210, 425, 999, 31337)),
        *({"do": "reply", "status": status, "code": None} for status in (429, 502, 503)),
    ],
    ids=str,
)
def test_a_server_in_trouble_gets_the_same_batch_later(server: Server, name: str, word: Any) -> None:
    """Not one row is lost, and none is divided."""
    source = Database(server.dsn(name), name)
    source.prepare(TTL_DAYS)
    source.close()
    server.script(word, word)
    metrics = with_sink(config(server.dsn(name)), putting(*map(event, range(4))))
    assert server.one(f"SELECT count() FROM {name}.event") == 4
    assert {entry["rows"] for entry in server.log(name)} == {4}
    assert counted(metrics, "handrail_dropped_total") == 0
    assert 'handrail_faults_total{component="clickhouse",reason="busy"}' in metrics.render().decode()


def test_too_many_parts_is_busy(server: Server, name: str) -> None:
    """By the engine's own answer."""
    source = Database(server.dsn(name), name)
    source.prepare(TTL_DAYS)
    server.command(f"SYSTEM STOP MERGES {name}.event")
    server.command(f"ALTER TABLE {name}.event MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 2")

    def fill() -> None:
        for number in range(4):
            source.insert(Batch.seal("event", lines(f'{{"kind":"handoff","id":"{number}","at":1785000000}}'), 1))

    with pytest.raises(Busy, match="TOO_MANY_PARTS"):
        fill()
    source.close()


def test_a_refusal_says_what_is_at_fault(server: Server, name: str) -> None:
    """Each code of the table."""
    source = Database(server.dsn(name), name)
    source.prepare(TTL_DAYS)
    batch = Batch.seal("event", lines('{"kind":"handoff","id":"x","at":1785000000}'), 1)
    for code, reason in database.REFUSED.items():
        server.script({"do": "reply", "status": 500, "code": code})
        with pytest.raises(Refused) as refused:
            source.insert(batch)
        assert refused.value.reason == reason, code
    source.close()


def test_a_bad_row_costs_itself(server: Server, name: str) -> None:
    """The batch is halved until the row stands alone; it is counted, the others are stored."""
    records = [event(number, **({"deadline": NEVER} if number in (3, 700) else {})) for number in range(1000)]
    metrics = with_sink(config(server.dsn(name)), putting(*records))
    stored = {row["id"] for row in server.rows(f"SELECT id FROM {name}.event")}
    assert stored == {f"e{number}" for number in range(1000)} - {"e3", "e700"}
    assert 'handrail_dropped_total{reason="refused",intentional="false"} 2.0' in metrics.render().decode()
    assert counted(metrics, "handrail_sink_rows_total") == 998
    assert server.one(f"SELECT sum(handoffs) FROM {name}.edge_minute") == 998


def test_tables_that_were_dropped_are_made_again(server: Server, name: str) -> None:
    """No row is lost meanwhile."""

    async def act(sink: ClickHouseSink) -> None:
        sink.put(event(1))
        await until(lambda: sink.queued == 0)
        server.command(f"DROP TABLE {name}.event SYNC")
        sink.put(event(2))

    metrics = with_sink(config(server.dsn(name)), act)
    assert [row["id"] for row in server.rows(f"SELECT id FROM {name}.event")] == ["e2"]
    assert counted(metrics, "handrail_dropped_total") == 0


def test_rows_wait_for_a_server_that_is_down_at_the_start(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """All of them arrive once it is up, and `start` did not wait for it."""
    port = free_port()
    servers: list[Server] = []

    async def act(sink: ClickHouseSink) -> None:
        for number in range(300):
            sink.put(event(number))
        await until(lambda: sink.state.startswith("busy"))
        assert "refused" in sink.state
        assert sink.queued == 300
        servers.append(await asyncio.to_thread(Server, tmp_path, port))

    try:
        metrics = with_sink(config(f"clickhouse://127.0.0.1:{port}", batch_rows=64), act)
        assert servers[0].one("SELECT count() FROM handrail.event") == 300
        assert counted(metrics, "handrail_sink_rows_total") == 300
        assert counted(metrics, "handrail_sink_up") == 1
    finally:
        for server in servers:
            server.stop()


def test_a_hung_server_ends_the_attempt_and_not_the_loop(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same token goes out again; meanwhile records are taken."""
    monkeypatch.setattr(database, "REQUEST_SECONDS", 1)
    source = Database(server.dsn(name), name)
    source.prepare(TTL_DAYS)
    source.close()
    server.script({"do": "hang", "seconds": 3})
    slowest = 0.0

    async def act(sink: ClickHouseSink) -> None:
        nonlocal slowest
        sink.put(event(1))
        await until(lambda: bool(server.log(name)))
        for number in range(2, 60):
            began = time.perf_counter()
            sink.put(event(number))
            await asyncio.sleep(0)
            slowest = max(slowest, time.perf_counter() - began)
            await asyncio.sleep(0.01)

    with_sink(config(server.dsn(name)), act)
    log = server.log(name)
    assert log[0]["token"] == log[1]["token"]
    assert server.one(f"SELECT count() FROM {name}.event") == 59
    assert slowest < 0.5


@pytest.mark.parametrize("limits", [{"queue_rows": 50}, {"queue_bytes": 10_000}], ids=str)
def test_the_queue_has_a_bound(limits: dict[str, int]) -> None:
    """Newest first, each counted; neither rows nor bytes ever pass the limit."""
    metrics = Metrics()
    sink = ClickHouseSink(config("http://127.0.0.1:1", batch_rows=20, **limits), metrics, payloads=False)
    for number in range(500):
        sink.put(event(number))
        assert sink._rows <= limits.get("queue_rows", 10**9)
        assert sink._bytes <= limits.get("queue_bytes", 10**9)
    assert sink.queued + counted(metrics, "handrail_dropped_total") == 500
    sink._seal_all()
    waiting = b"".join(batch.body for batch in sink._sealed)
    assert waiting.count(b"\n") == sum(batch.rows for batch in sink._sealed) == sink.queued
    assert len(waiting) == sink._bytes
    assert b'"e0"' in waiting
    assert b'"e499"' not in waiting


def test_closing_writes_what_waits_and_counts_what_does_not(server: Server, name: str) -> None:
    """Within its time; after it nothing is taken, and that is counted too."""

    async def act(sink: ClickHouseSink) -> None:
        await putting(*map(event, range(7)))(sink)
        await sink.close(10.0)

    with_sink(config(server.dsn(name), batch_seconds=60.0), act)
    assert server.one(f"SELECT count() FROM {name}.event") == 7

    metrics = Metrics()

    async def down() -> None:
        sink = ClickHouseSink(config("http://127.0.0.1:1"), metrics, payloads=False)
        await sink.start()
        for number in range(9):
            sink.put(event(number))
        began = time.perf_counter()
        await sink.close(0.3)
        assert time.perf_counter() - began < 2.0
        sink.put(event(10))

    asyncio.run(down())
    text = metrics.render().decode()
    assert 'handrail_dropped_total{reason="shutdown",intentional="false"} 9.0' in text
    assert 'handrail_dropped_total{reason="closed",intentional="false"} 1.0' in text


# Secrets


@pytest.mark.parametrize("word", ["drop", {"do": "reply", "status": 500, "code": 516}, {"do": "bomb"}], ids=str)
def test_the_password_is_in_no_log_and_no_state(
    server: Server, name: str, word: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor are the rows: an error of ClickHouse quotes what it could not read."""
    caplog.set_level(logging.DEBUG)
    for noisy in ("clickhouse_connect", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.DEBUG)
    states: list[str] = []

    async def act(sink: ClickHouseSink) -> None:
        await until(lambda: sink.state == "writing")
        server.script(word, word)
        sink.put(event(1, task="canary-task"))
        await until(lambda: sink.state != "writing")
        states.append(sink.state)

    with_sink(config(server.dsn(name, "alice:canary-word@")), act)
    assert states
    assert "canary" not in caplog.text + "".join(states)


@pytest.mark.parametrize(
    "dsn",
    ["", "mysql://u:canary@h", "http://u:canary@", "http://u:canary@h:port", "http://u:canary@h/a;b", "clickhouse://["],
)
def test_a_wrong_dsn_is_refused_without_its_password(dsn: str) -> None:
    """Before anything starts."""
    with pytest.raises(ValueError, match=r"clickhouse\.") as error:
        ClickHouseSink(config(dsn), Metrics(), payloads=False)
    assert "canary" not in str(error.value)


def test_a_dsn_says_where(server: Server) -> None:
    """Scheme, port and database; a database in the path goes first."""
    target = target_of("clickhouses://al%40ice:p%2Fw@db.example:9440/traces?async_insert=1", "handrail")
    assert (target.scheme, target.host, target.port, target.database) == ("https", "db.example", 9440, "traces")
    assert (target.username, target.password) == ("al@ice", "p/w")
    assert target.parameters == {"async_insert": "1"}
    assert target_of("https://h", "handrail").port == 8443
    assert target_of("clickhouse://h", "handrail").port == 8123
    assert target_of("chdb:///var/lib/x", "handrail").database == "handrail"
    assert "p/w" not in repr(target)


# Embedded


def test_the_embedded_engine_takes_the_same_rows(tmp_path: Path) -> None:
    """`chdb://` in a process of its own, since a process has one engine."""
    program = """
import asyncio, sys, time
from handrail.config import ClickHouseConfig
from handrail.edge.clickhouse import ClickHouseSink
from handrail.edge.database import Database
from handrail.edge.metrics import Metrics
from handrail.event import Event

dsn = sys.argv[1]

async def main():
    sink = ClickHouseSink(ClickHouseConfig(dsn=dsn), Metrics(), payloads=False)
    await sink.start()
    for number in range(100):
        sink.put(Event(kind="handoff", id=str(number), at=time.time(), deadline=1e15 if number == 50 else None))
    await sink.close(20)

asyncio.run(main())
source = Database(dsn, "handrail")
print(source.rows("SELECT count() AS n, uniqExact(id) AS ids FROM handrail.handoff"))
source.close()
"""
    command = [sys.executable, "-c", program, f"chdb://{tmp_path}/db"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "[{'n': 99, 'ids': 99}]", done.stderr


def test_the_embedded_engine_is_closed_before_the_process_ends(tmp_path: Path) -> None:
    """However slow it opens, and though nothing waits to be written: an exit with it half open can be a SIGSEGV."""
    program = """
import asyncio, sys, time
from handrail.config import ClickHouseConfig
from handrail.edge import database
from handrail.edge.clickhouse import ClickHouseSink
from handrail.edge.metrics import Metrics

opened, closed = [], []

class Slow(database.Database):
    def __init__(self, *told):
        time.sleep(1.5)  # as on a busy machine
        super().__init__(*told)
        opened.append(True)

    def close(self):
        super().close()
        closed.append(True)

database.Database = Slow

async def main():
    sink = ClickHouseSink(ClickHouseConfig(dsn=sys.argv[1]), Metrics(), payloads=False)
    await sink.start()
    await asyncio.sleep(0)  # its task asks for the connection
    await sink.close(0.01)
    print(len(opened), len(closed))

asyncio.run(main())
"""
    command = [sys.executable, "-c", program, f"chdb://{tmp_path}/db"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout.strip()) == (0, "1 1"), done.stderr


def test_an_embedded_database_that_another_process_holds_is_busy(tmp_path: Path) -> None:
    """One process at a time has it; the rows of the other wait."""
    holder = Server(tmp_path / "db")
    program = "import sys; from handrail.edge.report import run; sys.exit(run(sys.argv[1], 'handrail', '1h', 'json'))"
    command = [sys.executable, "-c", program, f"chdb://{tmp_path}/db"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    holder.stop()
    assert done.returncode == 2
    assert "in use by another process" in done.stderr


# Views


def test_the_views_say_what_the_events_say(server: Server, name: str) -> None:
    """Against the same figures computed here."""
    now = time.time()
    outcomes = ("completed", "failed", "timeout", "completed", "rejected")
    events = [
        event(
            number,
            at=now - number * 7.0,
            source=f"s{number % 3}",
            outcome=outcomes[number % 5],
            duration_ms=None if number % 11 == 0 else float(number * 37 % 101),
            kind="usage" if number % 13 == 0 else "handoff",
        )
        for number in range(700)
    ]
    findings = [
        Finding(rule=f"r{number % 2}", kind="k", severity="info", at=now - number, fingerprint=f"f{number % 5}",
                message=str(number), count=number % 3 + 1)
        for number in range(40)
    ]  # fmt: skip
    with_sink(config(server.dsn(name)), putting(*events, *findings))

    handoffs = [one for one in events if one.kind == "handoff"]
    assert server.one(f"SELECT count() FROM {name}.handoff") == len(handoffs)
    rows = {row["source"]: row for row in server.rows(f"SELECT * FROM {name}.edge_latency")}
    assert set(rows) == {"s0", "s1", "s2"}
    for source, row in rows.items():
        # A minute's tolerance at the end of the hour: the view's clock is the server's.
        mine = [one for one in handoffs if one.source == source and one.at > now - 3600 + 2]
        assert int(row["handoffs"]) - len(mine) in (0, 1)
        if int(row["handoffs"]) == len(mine):
            times = sorted(one.duration_ms for one in mine if one.duration_ms is not None)
            assert row["p50_ms"] == times[int(0.5 * len(times))]
            assert row["p95_ms"] == times[int(0.95 * len(times))]
            assert int(row["errors"]) == sum(one.outcome != "completed" for one in mine)

    minutes = f"SELECT sum(handoffs) FROM {name}.edge_minute WHERE outcome = 'failed'"
    assert server.one(minutes) == sum(one.outcome == "failed" for one in handoffs)
    groups = server.rows(f"SELECT * FROM {name}.finding_group")
    assert {(row["rule"], row["fingerprint"]): int(row["occurrences"]) for row in groups} == {
        key: sum(one.count for one in findings if (one.rule, one.fingerprint) == key)
        for key in {(one.rule, one.fingerprint) for one in findings}
    }
    assert server.one(f"SELECT sum(findings) FROM {name}.finding_minute") == sum(one.count for one in findings)
