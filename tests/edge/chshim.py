"""ClickHouse over HTTP, as far as clickhouse-connect speaks it: chdb's engine behind a scripted front.

    python chshim.py --path DIR [--port N]        prints the port it listens on

The engine is real: tables, tokens, parts and error codes are ClickHouse's own. The faults are those of a network and of
a server in trouble. `POST /-/script` takes a JSON list, one word for each INSERT that follows; after the last one all
is well again. A word is `ok`, or an object with `do`:

    reply            answers with `status` and `code`, and stores nothing
    drop             closes the connection before anything is stored
    commit_then_drop stores the rows, then closes the connection without an answer
    hang             answers after `seconds`, and stores nothing
    late             status 200 with an exception code in the header, and stores nothing
    bomb             status 500 with a body that does not end

`GET /-/log` gives what was asked, one object for each INSERT: token, rows, the word that was carried out, settings.
"""

import argparse
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import clickhouse_connect
import zstandard
from clickhouse_connect.driver.exceptions import ClickHouseError

INSERT = re.compile(rb"\s*INSERT INTO (\S+) \((.*?)\) FORMAT (\w+)\s*", re.DOTALL)


class Shim(ThreadingHTTPServer):
    """The front; its engine takes one statement at a time."""

    daemon_threads = True

    def __init__(self, path: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), Request)
        self.engine = clickhouse_connect.get_client(dsn=f"chdb://{path}")
        self.lock = threading.Lock()
        self.script: list[Any] = []
        self.log: list[dict[str, Any]] = []


class Request(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Shim

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        if self.path == "/-/log":
            self.reply(200, json.dumps(self.server.log).encode())
        else:
            self.reply(200, b"Ok.\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/-/script":
            self.server.script[:] = json.loads(body)
            self.reply(200, b"")
            return
        if self.headers.get("Content-Encoding") == "zstd":
            body = zstandard.decompress(body)
        parameters = dict(parse_qsl(urlsplit(self.path).query))
        query = parameters.pop("query", "").encode()
        sql = query + b"\n" + body if query else body
        if found := INSERT.match(sql):
            self.insert(found, sql[found.end() :], parameters)
            return
        self.execute(lambda: self.select(sql, parameters))

    def insert(self, found: re.Match[bytes], rows: bytes, settings: dict[str, str]) -> None:
        word = self.server.script.pop(0) if self.server.script else "ok"
        do = word if isinstance(word, str) else word["do"]
        entry = {
            "table": found[1].decode(),
            "token": settings.get("insert_deduplication_token"),
            "rows": rows.count(b"\n") - found[3].endswith(b"WithNames"),
            "did": do,
        }
        self.server.log.append(entry | {"settings": settings})
        if do == "reply":
            code = word.get("code")
            self.reply(
                word["status"],
                f"Code: {code}. DB::Exception: as the script says. (SCRIPTED)".encode(),
                {"X-ClickHouse-Exception-Code": str(code)} if code else {},
            )
        elif do == "late":
            self.reply(200, b"Code: 241. DB::Exception: late", {"X-ClickHouse-Exception-Code": "241"})
        elif do == "bomb":
            self.bomb()
        elif do == "hang":
            time.sleep(word["seconds"])
            self.close_connection = True
        elif do == "drop":
            self.drop()
        else:
            table, columns = found[1].decode(), [name.strip(" `") for name in found[2].decode().split(",")]

            def store() -> bytes:
                self.server.engine.raw_insert(table, columns, rows, settings, found[3].decode())
                return b""

            if do == "commit_then_drop":
                with self.server.lock:
                    store()
                self.drop()
            else:
                self.execute(store)

    def select(self, sql: bytes, parameters: dict[str, str]) -> bytes:
        bound = {name.removeprefix("param_"): parameters.pop(name) for name in list(parameters) if "param_" in name}
        parameters.pop("database", None)
        # The engine's client binds from Python values; its own way in takes them as they came over the wire.
        return self.server.engine.raw_query(sql.decode(), bound or None, settings=parameters)

    def execute(self, order: Any) -> None:
        try:
            with self.server.lock:
                body = order()
        except ClickHouseError as error:
            code = getattr(error, "code", None)
            self.reply(500, str(error).encode(), {"X-ClickHouse-Exception-Code": str(code or 1)})
        else:
            self.reply(200, body)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-ClickHouse-Summary", "{}")
        self.end_headers()
        self.wfile.write(body)

    def bomb(self) -> None:
        self.send_response(500)
        self.send_header("X-ClickHouse-Exception-Code", "241")
        self.send_header("Content-Length", str(2**40))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(4096):
                self.wfile.write(b"x" * 65_536)
        self.close_connection = True

    def drop(self) -> None:
        """A reset, as a server that dies gives."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.wfile = self.rfile = open("/dev/null", "rb+")  # noqa: SIM115 - the server flushes and closes them


class Server:
    """The shim in a process of its own: chdb allows one engine in a process, and a test may want to kill it."""

    def __init__(self, path: Path, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--path", str(path), "--port", str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def dsn(self, database: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.port}/{database}"

    def script(self, *words: Any) -> None:
        """What happens to the next INSERTs."""
        self._ask("/-/script", json.dumps(words).encode())

    def log(self, database: str) -> list[dict[str, Any]]:
        """The INSERTs of one database so far."""
        found: list[dict[str, Any]] = json.loads(self._ask("/-/log", None))
        return [entry for entry in found if entry["table"].startswith(f"{database}.")]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        text = self._ask("/", f"{sql} FORMAT JSONEachRow".encode())
        return [json.loads(line) for line in text.splitlines()]

    def command(self, sql: str) -> None:
        self._ask("/", sql.encode())

    def one(self, sql: str) -> Any:
        """The value of a SELECT of one column and one row."""
        ((value,),) = (row.values() for row in self.rows(sql))
        return int(value) if isinstance(value, str) and value.isdigit() else value

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, path: str, body: bytes | None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", body, timeout=20) as reply:
            answer: bytes = reply.read()
        return answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    shim = Shim(arguments.path, arguments.port)
    print(shim.server_address[1], flush=True)
    shim.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
