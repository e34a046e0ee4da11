"""The blocking side of ClickHouse: connect, migrate, insert, ask. Lives in one thread and is imported there.

Its errors name the next step: `Busy` (send the same again later) or `Refused` (something has to change first). They
carry the code and its name and never the server's text, which quotes the rows it could not read.
"""

import io
import logging
import re
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

import clickhouse_connect
import orjson
import zstandard
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error
from clickhouse_connect.driver.httputil import get_pool_manager_options
from urllib3 import BaseHTTPResponse, HTTPResponse, PoolManager
from urllib3.exceptions import HTTPError

from handrail.edge.clickhouse import Batch, Busy, Reason, Refused, Target, target_of
from handrail.event import FIELDS, Finding

T = TypeVar("T")

CONNECT_SECONDS = 5
REQUEST_SECONDS = 10
ERROR_BYTES = 65_536
ANSWER_BYTES = 16_777_216

COLUMNS = {"event": FIELDS, "finding": Finding.__struct_fields__}

# Only what is known to be somebody's fault is refused. Every other code, and every lost connection, means the same
# batch again later: TOO_MANY_PARTS (252), TOO_MANY_SIMULTANEOUS_QUERIES (202), MEMORY_LIMIT_EXCEEDED (241),
# TIMEOUT_EXCEEDED (159), SOCKET_TIMEOUT (209), NETWORK_ERROR (210), SYSTEM_ERROR (425), KEEPER_EXCEPTION (999),
# TABLE_IS_READ_ONLY (242), NOT_ENOUGH_SPACE (243), and what a release that is not out yet will say.
REFUSED: dict[int, Reason] = {
    **dict.fromkeys((6, 25, 26, 27, 33, 38, 41, 53, 69, 70, 72, 117, 130, 131, 321, 349, 407, 469, 561), "data"),
    **dict.fromkeys((16, 47, 60, 81, 115, 344), "schema"),
    **dict.fromkeys((164, 192, 193, 194, 195, 291, 492, 497, 516), "auth"),
}
"""ClickHouse error code to what is at fault."""

INSERT_SETTINGS: dict[str, str] = {
    # Both ways of inserting are pinned, because the server's default for the first has changed between releases. A
    # fleet of many sidecars says `?async_insert=1` in its DSN.
    "async_insert": "0",
    "wait_for_async_insert": "1",
    "async_insert_deduplicate": "1",
    "insert_deduplicate": "1",
    "deduplicate_blocks_in_dependent_materialized_views": "1",
    "wait_end_of_query": "1",
    # A newer sidecar may know fields that this table does not have yet.
    "input_format_skip_unknown_fields": "1",
    "input_format_with_names_use_header": "1",
    "input_format_null_as_default": "1",
    # Fields that hold any JSON are String columns.
    "input_format_json_read_objects_as_strings": "1",
    "input_format_json_read_arrays_as_strings": "1",
    "input_format_json_read_numbers_as_strings": "1",
    "input_format_json_read_bools_as_strings": "1",
    "date_time_input_format": "best_effort",
    # One block for each batch, so that a batch is stored whole or not at all.
    "input_format_parallel_parsing": "0",
}


class Database:
    """One connection, made when it is first needed. Every method blocks, and raises Busy or Refused."""

    def __init__(self, dsn: str, database: str) -> None:
        self.target = target_of(dsn, database)
        self.name = self.target.database
        self._dsn = dsn
        self._client: Client | None = None
        self._columns: dict[str, tuple[str, ...]] = {}
        self._settings: dict[str, str] = {}
        self._ready = False

    def prepare(self, ttl_days: int) -> None:
        """Connects and migrates where that was not done, or where an insert found the tables to be others."""
        if not self._ready:
            _step(lambda: self._prepare(ttl_days))
            self._ready = True

    def insert(self, batch: Batch) -> None:
        """Stores a batch whole, under its token."""
        try:
            _step(lambda: self._insert(batch))
        except Refused as refused:
            if refused.reason == "schema":
                self._ready = False
            raise

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """A SELECT to its rows, by column name."""
        text: bytes = _step(lambda: self._connected().raw_query(sql, fmt="JSONEachRow"))
        return [orjson.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Client:
        if self._client is None:
            self._client = _client(self.target, self._dsn)
        return self._client

    def _prepare(self, ttl_days: int) -> None:
        client = self._connected()
        # Every statement again where this is the second time: the tables may have been dropped since.
        migrate(client, self.name, ttl_days, again=bool(self._columns))
        known = client.server_settings
        wanted = INSERT_SETTINGS | {
            name: value for name, value in self.target.parameters.items() if name not in ("ca_file", "path")
        }
        self._settings = {name: value for name, value in wanted.items() if name in known or name == "wait_end_of_query"}
        self._columns = {}
        for table, fields in COLUMNS.items():
            sql = "SELECT name FROM system.columns WHERE database = {database:String} AND table = {table:String}"
            there = _text(client, sql, database=self.name, table=table).split()
            self._columns[table] = tuple(field for field in fields if field in there)

    def _insert(self, batch: Batch) -> None:
        embedded = self.target.scheme == "chdb"
        self._connected().raw_insert(
            f"{self.name}.{batch.table}",
            # Named, so that a sidecar which knows fewer columns than the table has goes on working.
            column_names=self._columns[batch.table],
            insert_block=bytes(batch.block) if embedded else zstandard.compress(batch.block, 1),
            settings=self._settings | {"insert_deduplication_token": batch.token},
            fmt="JSONCompactEachRowWithNames" if batch.names else "JSONEachRow",
            compression=None if embedded else "zstd",
        )


MIGRATION = """
CREATE TABLE IF NOT EXISTS {database}.migration
(
    number UInt32,
    name String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree ORDER BY number
"""


def migrate(client: Client, database: str, ttl_days: int, *, again: bool = False) -> list[str]:
    """Brings the tables up to date; returns the names of the migrations that ran.

    Every statement may run twice, and at the same time elsewhere: sidecars that start together migrate together.
    """

    def run(statement: str) -> None:
        # Names cannot be bound; `target_of` has seen to it that this one is letters, digits and _.
        client.command(statement.replace("{database}", database).replace("{ttl_days}", str(ttl_days)))

    ran = []
    if _text(client, "SELECT count() FROM system.databases WHERE name = {database:String}", database=database) == "0":
        run("CREATE DATABASE IF NOT EXISTS {database}")
    exists = "SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'migration'"
    if again or _text(client, exists, database=database) == "0":
        run(MIGRATION)
    done = _text(client, f"SELECT DISTINCT name FROM {database}.migration").split()  # noqa: S608 - as above
    for name, text in migrations():
        if again or name not in done:
            for statement in statements(text):
                run(statement)
            if name not in done:
                run(f"INSERT INTO {{database}}.migration (number, name) VALUES ({int(name[:4])}, '{name}')")  # noqa: S608
            ran.append(name)
    for table in COLUMNS:
        engine = "SELECT engine_full FROM system.tables WHERE database = {database:String} AND name = {table:String}"
        if f"toIntervalDay({ttl_days})" not in _text(client, engine, database=database, table=table):
            run(
                f"ALTER TABLE {{database}}.{table} MODIFY TTL toDate(at) + INTERVAL {{ttl_days}} DAY DELETE "
                "SETTINGS materialize_ttl_after_modify = 0"
            )
    return ran


def migrations() -> list[tuple[str, str]]:
    """`(name, SQL)` of every migration, in order."""
    folder = resources.files("handrail.edge") / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(file.name.removesuffix(".sql"), file.read_text("utf-8")) for file in files]


def statements(text: str) -> list[str]:
    """SQL text to its statements, which end with `;` at the end of a line."""
    text = re.sub(r"^--.*\n", "", text, flags=re.MULTILINE)
    return [statement.strip() for statement in re.split(r";\s*(?:\n|$)", text) if statement.strip()]


def quiet() -> None:
    """The driver logs every failed request, with its text; the sink logs a change of state once."""
    for name in ("clickhouse_connect", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _text(client: Client, sql: str, **parameters: str) -> str:
    text: bytes = client.raw_query(sql, parameters, fmt="TSVRaw")
    return text.decode().strip()


def _client(target: Target, dsn: str) -> Client:
    if target.scheme == "chdb":
        try:
            return clickhouse_connect.get_client(dsn=dsn)
        except Error as error:
            # The engine's code for this is one for everything; its own words went to standard error.
            raise Busy("the directory is in use by another process, or cannot be written") from error
    return clickhouse_connect.get_client(
        interface=target.scheme,
        host=target.host,
        port=target.port,
        username=target.username or None,
        password=target.password,
        connect_timeout=CONNECT_SECONDS,
        send_receive_timeout=REQUEST_SECONDS,
        query_retries=0,
        compress=False,
        # A session would let only one of two connections write, and nothing here needs one.
        autogenerate_session_id=False,
        client_name="handrail",
        pool_mgr=_BoundedPool(**get_pool_manager_options(ca_cert=target.parameters.get("ca_file"), maxsize=2)),
    )


class _BoundedPool(PoolManager):
    """Reads no more of a reply than is wanted: what answers at this address may not be ClickHouse, or may not end.

    It also takes no proxy from the environment, where that may be this very sidecar, and follows no redirect.
    """

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> BaseHTTPResponse:  # type: ignore[override]
        whole = kw.pop("preload_content", True)
        began = time.monotonic()
        response = super().urlopen(method, url, redirect=False, preload_content=False, **kw)
        if not whole and response.status == 200:
            return response
        limit = ANSWER_BYTES if response.status == 200 else ERROR_BYTES
        body = b""
        ended = False
        try:
            while len(body) < limit:
                piece = response.read1(limit - len(body))
                if not piece:
                    ended = True
                    break
                body += piece
                if time.monotonic() - began > REQUEST_SECONDS:
                    raise HTTPError("the reply does not end")
        finally:
            if ended:
                response.release_conn()
            else:
                response.close()
        if not ended and response.status == 200:
            raise HTTPError(f"the reply is longer than {limit} bytes")
        return HTTPResponse(
            body=io.BytesIO(body),
            headers=response.headers,
            status=response.status,
            reason=response.reason,
            request_method=method,
            request_url=url,
            enforce_content_length=False,
        )


def _step(step: Callable[[], T]) -> T:
    """Runs one step with the client. Raises Busy or Refused in place of what the client raises."""
    try:
        return step()
    except (Busy, Refused):
        raise
    except ImportError as error:
        raise Refused("client", f"{error}") from None
    except Exception as error:  # noqa: BLE001 - whatever the client raises on whatever it is sent, the rows are kept
        code = getattr(error, "code", None) or _code_in(error)
        if code is None:
            raise Busy(_plain(error)) from None
        name = getattr(error, "name", None) or "ClickHouse error"
        reason = REFUSED.get(code)
        if reason is None:
            raise Busy(f"{name} ({code})") from None
        raise Refused(reason, f"{name} ({code})") from None


def _code_in(error: BaseException) -> int | None:
    """chdb's own errors have their code in the text only."""
    found = re.search(r"\bCode: (\d+)", str(error))
    return int(found.group(1)) if found else None


def _plain(error: BaseException) -> str:
    """The innermost cause in a few words, without the request that failed."""
    seen = 0
    while seen < 10:
        inner = getattr(error, "reason", None) if isinstance(error, HTTPError) else None
        inner = inner if isinstance(inner, BaseException) else error.__cause__
        if inner is None:
            break
        error, seen = inner, seen + 1
    if isinstance(error, Error):
        text = str(error).partition(", server response")[0].partition(" (for url")[0]
    else:
        text = f"{type(error).__name__}: {error}".rpartition(": Failed")[2].rpartition("): ")[2]
        text = re.sub(r"\?\S*", "", text)
    return text.strip()[:200]
