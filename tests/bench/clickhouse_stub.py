"""A ClickHouse for the sink to write to: speaks the HTTP interface, keeps no rows.

Everything but an INSERT into one of the counted tables is answered by embedded ClickHouse, so that migrations,
settings and DESCRIBE are the real thing. The rows of a counted table are counted by their lines, then dropped: what the
bench measures is the sender. Parsing them would take as much of the load generator's core as the generator itself, and
a server stands on a machine of its own.

Usage: clickhouse_stub.py PORT TABLE…; GET /-/rows answers {"table": rows}.
"""

import asyncio
import gzip
import re
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lz4.frame
import orjson
import zstandard
from aiohttp import web
from chdb import session

INSERT = re.compile(r"\s*INSERT\s+INTO\s+(?:TABLE\s+)?([\w.`\"]+)", re.IGNORECASE)
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
HEAD_LINES = {"JSONEachRow": 0, "JSONCompactEachRow": 0, "JSONCompactEachRowWithNames": 1}
"""Formats with a line for each row, and how many lines stand before the rows."""
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "lz4": lz4.frame.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "gzip": gzip.decompress,
}


class Stub:
    def __init__(self, directory: str, tables: list[str]) -> None:
        self._directory = Path(directory)
        self._session = session.Session()
        self._thread = ThreadPoolExecutor(1)
        self.rows = dict.fromkeys(tables, 0)

    async def answer(self, request: web.Request) -> web.Response:
        sent = UNPACK[request.headers.get("Content-Encoding", "identity")](await request.read())
        query = request.query.get("query")
        if query is None:
            head, _, data = sent.partition(b"\n")
            if not INSERT.match(head.decode("latin-1")) or not FORMAT.search(head.decode("latin-1")):
                head, data = sent, b""  # also INSERT … SELECT, which carries no rows
            query, sent = head.decode(), data
        elif not INSERT.match(query):
            query, sent = query + "\n" + sent.decode(), b""
        insert, named = INSERT.match(query), FORMAT.search(query)
        if insert is not None and named is not None and sent:
            table = insert.group(1).replace("`", "").replace('"', "").rpartition(".")[2]
            if table in self.rows and named.group(1) in HEAD_LINES:
                self.rows[table] += sent.count(b"\n") - HEAD_LINES[named.group(1)]
                return web.Response(headers={"X-ClickHouse-Summary": "{}"})
        parameters = {name: value for name, value in request.query.items() if name.startswith("param_")}
        database = request.query.get("database", "default")
        try:
            out = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, query, sent, database, parameters
            )
        except RuntimeError as error:
            code = re.search(r"Code: (\d+)", str(error))
            headers = {"X-ClickHouse-Exception-Code": code.group(1) if code else "1002"}
            return web.Response(status=500, text=str(error), headers=headers)
        return web.Response(body=out, headers={"X-ClickHouse-Summary": "{}"})

    def _run(self, query: str, data: bytes, database: str, parameters: dict[str, str]) -> bytes:
        self._session.query(f"USE `{database}`")
        for name, value in parameters.items():
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            self._session.query(f"SET {name} = '{quoted}'")
        insert, named = INSERT.match(query), FORMAT.search(query)
        if insert is None or not data:
            return bytes(self._session.query(query, named.group(1) if named else "TabSeparated").bytes())
        form = named.group(1) if named else "Native"
        with tempfile.NamedTemporaryFile(dir=self._directory, suffix=".insert") as file:
            file.write(data)
            file.flush()
            into = FORMAT.sub("", query)
            self._session.query(f"{into} FROM INFILE '{file.name}' FORMAT {form}")
        return b""

    async def tell(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self.rows), content_type="application/json")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        stub = Stub(directory, sys.argv[2:])
        app = web.Application(client_max_size=1 << 30, handler_args={"auto_decompress": False})
        app.router.add_get("/-/rows", stub.tell)
        app.router.add_get("/ping", lambda _: web.Response(text="Ok.\n"))
        app.router.add_route("*", "/{path:.*}", stub.answer)
        web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
