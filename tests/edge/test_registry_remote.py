"""A registry that is followed: while it is there, while it is away, slow or wrong, and after a restart without it."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge.registries import Running, running, until
from handrail.config import RegistryConfig
from handrail.edge.remote_registry import Astray, RemoteRegistry, Row, store_of

Ports = Callable[[], int]
TEXT = {"type": "object", "properties": {"a": {"type": "string"}}}
WIDER = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}


class Scripted:
    """A registry that answers what a script says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.release = threading.Event()
        scripted = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                scripted.asked.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
                answer = scripted.answers.get(self.path, scripted.answers.get(self.path.partition("?")[0], 404))
                if answer == "hang":
                    scripted.release.wait(20)
                    return
                status, body = (answer, b"{}") if isinstance(answer, int) else (200, answer)
                if not isinstance(body, bytes):
                    body = json.dumps(body).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


def row(subject: str, version: int, id: int, schema: Any, **more: Any) -> dict[str, Any]:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return {"subject": subject, "version": version, "id": id, "schemaType": "JSON", "schema": text, **more}


def polled(remote: RemoteRegistry) -> bool:
    async def run() -> bool:
        try:
            return await remote.poll()
        finally:
            await remote.close()

    return asyncio.run(run())


def following(scripted: Scripted, directory: Path, **more: Any) -> RemoteRegistry:
    return RemoteRegistry(RegistryConfig(remote=scripted.url, cache=str(directory / "cache"), **more))


# In one process


def test_a_registry_that_cannot_list_everything_is_walked(scripted: Scripted, tmp_path: Path) -> None:
    """Subject by subject; what is known is not asked for again, and other kinds of schema are passed over."""
    scripted.answers = {
        "/subjects": ["a/b", "avro"],
        "/subjects/a%2Fb/versions": [1, 2],
        "/subjects/a%2Fb/versions/1": row("a/b", 1, 1, TEXT),
        "/subjects/a%2Fb/versions/2": row("a/b", 2, 2, WIDER),
        "/subjects/avro/versions": [1],
        "/subjects/avro/versions/1": {"subject": "avro", "version": 1, "id": 3, "schema": '"string"'},
    }
    remote = following(scripted, tmp_path)
    assert polled(remote)
    assert [(each.subject, each.version) for each in remote.rows] == [("a/b", 1), ("a/b", 2)]
    before = len(scripted.asked)
    assert not polled(remote)
    paths = [path for path, _ in scripted.asked[before:]]
    assert "/subjects/a%2Fb/versions/1" not in paths


def test_a_long_list_comes_in_pages(scripted: Scripted, tmp_path: Path) -> None:
    """Until a page is not full."""
    rows = [row("s", number, number, {"title": str(number)}) for number in range(1, 1501)]
    scripted.answers = {"/schemas?offset=0&limit=1000": rows[:1000], "/schemas?offset=1000&limit=1000": rows[1000:]}
    remote = following(scripted, tmp_path)
    assert polled(remote)
    assert len(remote.rows) == 1500


def test_what_is_referred_to_is_fetched_though_it_was_deleted(scripted: Scripted, tmp_path: Path) -> None:
    """A schema in use needs it."""
    refers = row("o", 1, 2, {"$ref": "a.json"}, references=[{"name": "a.json", "subject": "a", "version": 1}])
    scripted.answers = {"/schemas": [refers], "/subjects/a/versions/1": row("a", 1, 1, TEXT)}
    remote = following(scripted, tmp_path)
    polled(remote)
    assert {each.subject for each in remote.rows} == {"o", "a"}


WRONG: dict[str, tuple[Any, str]] = {
    "not JSON": (b"<html>", "invalid"),
    "not a list": ({"error": 1}, "invalid"),
    "not rows": ([{"subject": 1}], "invalid"),
    "not UTF-8": (b'["\xff"]', "invalid"),
    "an error": (500, "refused"),
    "a redirect": (302, "refused"),
    "nothing any more": ([], "changed"),
    "other content": ([row("a", 1, 1, WIDER)], "changed"),
    "too long": (b"[" + b" " * 300_000 + b"]", "invalid"),
    "silence": ("hang", "slow"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_changes_nothing(scripted: Scripted, tmp_path: Path, what: str) -> None:
    """It is named, and what was good before stays."""
    scripted.answers = {"/schemas": [row("a", 1, 1, TEXT)]}
    remote = following(scripted, tmp_path, request_seconds=0.3, remote_bytes=200_000)
    polled(remote)
    good, confirmed = remote.rows, remote.confirmed_at
    scripted.answers = {"/schemas": WRONG[what][0]}
    with pytest.raises(Astray) as caught:
        polled(remote)
    assert caught.value.reason == WRONG[what][1]
    assert remote.rows == good
    assert remote.confirmed_at == confirmed
    assert not remote.up
    assert remote.wait_seconds() > RegistryConfig().poll_seconds


def test_a_cache_is_that_of_its_registry(scripted: Scripted, tmp_path: Path) -> None:
    """It comes back; a damaged one, or another registry's, is not taken."""
    scripted.answers = {"/schemas": [row("a", 1, 1, TEXT)]}
    remote = following(scripted, tmp_path)
    polled(remote)
    remote.write_cache(changed=True)
    again = following(scripted, tmp_path)
    assert again.read_cache() is None
    assert again.rows == remote.rows
    other = RemoteRegistry(RegistryConfig(remote="http://127.0.0.1:1", cache=str(tmp_path / "cache")))
    assert "is not of" in (other.read_cache() or "")
    file = tmp_path / "cache" / "registry.json"
    raw = file.read_bytes()
    for cut in range(0, len(raw), 17):
        file.write_bytes(raw[:cut])
        damaged = following(scripted, tmp_path)
        assert damaged.read_cache() is not None
        assert damaged.rows == []


def test_rows_that_contradict_each_other_are_left_out() -> None:
    """One id is one schema, one place is one version, and a text must be a document; the others are taken."""
    good = Row("a", 1, 1, "{}", "JSON")
    store, problems = store_of(
        [
            good,
            Row("a", 1, 2, '{"title":"twice"}', "JSON"),
            Row("b", 1, 1, '{"title":"another"}', "JSON"),
            Row("c", 1, 3, "{", "JSON"),
            Row("d", 0, 4, "{}", "JSON"),
            Row("e", 1, 1, "{ }", "JSON"),
        ]
    )
    assert store.subjects() == ["a", "e"]
    assert len(problems) == 4


# Between processes


def subjects_of(found: Running) -> Any:
    return found.call("GET", "/subjects").body


def test_a_follower_outlives_its_registry(tmp_path: Path, free_port: Ports) -> None:
    """It follows with conditional requests, goes on without it, also after a restart, and catches up in the end."""
    for name in ("origin", "follower"):
        (tmp_path / name).mkdir()
    port, admin = free_port(), free_port()
    keys = f"remote: http://127.0.0.1:{port}, poll_seconds: 0.1, request_seconds: 2, cache: cache"
    origin = contextlib.ExitStack()
    source = origin.enter_context(running(tmp_path / "origin", "sqlite: r.db", port, admin))
    source.call.register("address", TEXT)
    order = {"properties": {"to": {"$ref": "a.json"}}}
    source.call.register("order", order, references=[{"name": "a.json", "subject": "address", "version": 1}])
    id = source.call("GET", "/subjects/order/versions/1").body["id"]

    with running(tmp_path / "follower", keys, free_port(), free_port()) as found:
        assert subjects_of(found) == ["address", "order"]
        assert found.call("GET", "/subjects/order/versions/1").body["id"] == id
        assert found.call.register("x", TEXT).code == 42205
        source.call.register("address", WIDER)
        until(lambda: found.metric("handrail_registry_versions") == 3)
        until(lambda: 'requests_total{method="GET",status="304"}' in source.admin("GET", "/metrics").raw.decode())
        assert found.metric("handrail_registry_age_seconds") < 5
        source.kill()
        until(lambda: found.metric("handrail_registry_up") == 0)
        assert subjects_of(found) == ["address", "order"]
        age = found.metric("handrail_registry_age_seconds")
        until(lambda: found.metric("handrail_registry_age_seconds") > age)
        until(lambda: 'component="registry",reason="unreachable"' in found.admin("GET", "/metrics").raw.decode())
    origin.close()

    with running(tmp_path / "follower", keys, free_port(), free_port()) as found:
        assert found.metric("handrail_registry_up") == 0
        assert subjects_of(found) == ["address", "order"]
        assert found.call("GET", "/subjects/address/versions").body == [1, 2]
        with running(tmp_path / "origin", "sqlite: r.db", port, admin) as source:
            source.call.register("later", TEXT)
            until(lambda: "later" in subjects_of(found))
            until(lambda: found.metric("handrail_registry_up") == 1)


def test_a_hanging_registry_does_not_hold_up_the_start(scripted: Scripted, tmp_path: Path, free_port: Ports) -> None:
    """The process is ready after one attempt's time, without schemas, and says that it is behind."""
    scripted.answers = {"/schemas": "hang"}
    keys = f"remote: '{scripted.url}', request_seconds: 0.5, poll_seconds: 0.1"
    with running(tmp_path, keys, free_port(), free_port()) as found:
        assert subjects_of(found) == []
        assert found.metric("handrail_registry_up") == 0


def test_what_cannot_be_enforced_is_left_out_and_counted(scripted: Scripted, tmp_path: Path, free_port: Ports) -> None:
    """Somebody else's registry takes schemas that we refuse; the others are in force all the same."""
    scripted.answers = {"/schemas": [row("bad", 1, 1, {"pattern": "(?=a)"}), row("good", 1, 2, TEXT)]}
    keys = f"remote: '{scripted.url}', poll_seconds: 0.1"
    with running(tmp_path, keys, free_port(), free_port()) as found:
        until(lambda: found.metric("handrail_registry_refused") == 1)
        until(lambda: found.metric("handrail_registry_subjects") == 1)
        until(lambda: "linear time" in found.log.read_text())
