"""The REST API where a client says what Confluent's Python client never does, and where it should be refused."""

import base64
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.registries import MEDIA, Caller, Running, running

TEXT = {"type": "object", "properties": {"a": {"type": "string"}}}
WIDER = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}


def ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry"), "sqlite: registry.db, poll_seconds: 0.1", *ports()) as found:
        yield found


@pytest.fixture
def call(service: Running) -> Caller:
    return service.call


# What a client may say


def test_media_types_are_agreed_on(call: Caller) -> None:
    """Each of the three is taken and given, the newest where nothing is asked for; others are refused by name."""
    for media in (MEDIA, "application/vnd.schemaregistry+json", "application/json"):
        reply = call("GET", "/subjects", Accept=media)
        assert (reply.status, reply.headers["content-type"]) == (200, media)
    assert call("GET", "/subjects").headers["content-type"] == MEDIA
    preferred = call("GET", "/subjects", Accept="application/json; q=0.5, application/vnd.schemaregistry.v1+json")
    assert preferred.headers["content-type"] == MEDIA
    assert call("GET", "/subjects", Accept="text/html").status == 406
    body = json.dumps({"schema": "{}", "schemaType": "JSON"}).encode()
    for media in (MEDIA, "application/json", "application/octet-stream"):
        assert call("POST", "/subjects/media/versions", body, Content_Type=media).status == 200
    assert call("POST", "/subjects/media/versions", body, Content_Type="text/plain").status == 415


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"schemaType":"JSON"}', 42201),
        (b'{"schema":{},"schemaType":"JSON"}', 42201),
        (b'{"schema":"{}"}', 42201),
        (b'{"schema":"{}","schemaType":"PROTOBUF"}', 42201),
        (b'{"schema":"nonsense","schemaType":"JSON"}', 42201),
        (b'{"schema":"{\\"a\\":1,\\"a\\":2}","schemaType":"JSON"}', 42201),
        (b'{"schema":"7","schemaType":"JSON"}', 42201),
        (b'{"schema":"\\ud800","schemaType":"JSON"}', 400),
        (b'{"schema":"{}","schemaType":"JSON","references":[{"name":"x"}]}', 42201),
        (b'{"schema":"{}","schemaType":"JSON","references":[{"name":"x","subject":"no","version":1}]}', 42201),
        (b'{"schema":"{}","schemaType":"JSON","ruleSet":{"domainRules":[{}]}}', 42201),
        (b'{"schema":"{}","schemaType":"JSON","version":"two"}', 42201),
        (b'{"schema":"{}","schemaType":"JSON","version":7}', 42201),
        (b'{"schema":"{}","schemaType":"JSON","id":77}', 42205),
    ],
)
def test_what_is_no_registration_is_refused(call: Caller, body: bytes, code: int) -> None:
    """With the code that says why, and nothing is registered."""
    reply = call("POST", "/subjects/refused/versions", body)
    assert (reply.code, str(reply.status)) == (code, str(code)[:3])
    assert call("GET", "/subjects/refused/versions").code == 40401


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", 404),
        ("PATCH", "/subjects", 405),
        ("GET", "/schemas/ids/x", 40403),
        ("GET", "/schemas/ids/99999999999999999999", 40403),
        ("GET", "/subjects/paths/versions/0", 42202),
        ("GET", "/subjects/paths/versions/-2", 42202),
        ("GET", "/subjects/paths/versions/99999999999999999999", 42202),
        ("GET", "/subjects/paths/versions/x", 42202),
        ("GET", "/subjects?limit=x", 400),
        ("GET", "/config/none", 40408),
        ("DELETE", "/subjects/none", 40401),
        ("DELETE", "/subjects/none/versions/1", 40401),
        ("DELETE", "/subjects/paths/versions/5", 40402),
        ("DELETE", "/subjects/paths/versions/1?permanent=true", 40407),
    ],
)
def test_what_is_not_there_is_said_so(call: Caller, method: str, path: str, code: int) -> None:
    """In the registry's own words: every error has a code and a message."""
    call.register("paths", TEXT)
    reply = call(method, path)
    assert (reply.code, str(reply.status)) == (code, str(code)[:3])
    assert reply.body["message"]


def test_subjects_may_be_paths(call: Caller) -> None:
    """A subject with slashes and spaces is one subject; one with control characters is none."""
    assert call.register("mcp/tools call", TEXT).status == 200
    assert call("GET", "/subjects/mcp%2Ftools%20call/versions").body == [1]
    assert "mcp/tools call" in call("GET", "/subjects").body
    assert call.register("a\nb", TEXT).code == 42208


def test_an_answer_that_did_not_change_is_not_sent_again(call: Caller) -> None:
    """Every read has an ETag; who has it is told so, until the answer is another."""
    call.register("tagged", TEXT)
    first = call("GET", "/subjects/tagged/versions")
    tag = first.headers["etag"]
    again = call("GET", "/subjects/tagged/versions", If_None_Match=tag)
    assert (again.status, again.raw) == (304, b"")
    call.register("tagged", WIDER)
    assert call("GET", "/subjects/tagged/versions", If_None_Match=tag).body == [1, 2]


def test_equal_content_is_one_schema(call: Caller) -> None:
    """Whatever its layout and wherever it is registered; its text stays as it was first given, to the byte."""
    text = '{"type": "object",\n "title": "\\u00fc"}'
    id = call.register("content-a", text).body["id"]
    assert call.register("content-b", '{"title":"ü","type":"object"}').body["id"] == id
    assert call("GET", f"/schemas/ids/{id}/schema").raw == text.encode()
    assert call("GET", "/subjects/content-b/versions/1/schema").raw == text.encode()
    assert call("GET", f"/schemas/ids/{id}/versions").body == [
        {"subject": "content-a", "version": 1},
        {"subject": "content-b", "version": 1},
    ]
    assert call.register("content-a", {"title": "ü", "type": "array"}).status == 409


def test_a_refusal_says_why(call: Caller) -> None:
    """With reasons and a payload that shows it, for a client that takes members it does not know."""
    call.register("why", TEXT)
    narrower = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = {"schema": json.dumps(narrower), "schemaType": "JSON"}
    more = {"Confluent_Accept_Unknown_Properties": "true"}
    refused = call("POST", "/subjects/why/versions", text, **more)
    asked = call("POST", "/compatibility/subjects/why/versions/latest?verbose=true", text, **more).body
    plain = call("POST", "/compatibility/subjects/why/versions/1?verbose=true", text).body

    assert refused.status == 409
    assert isinstance(refused.body["witness"]["a"], str)
    assert refused.body["reasons"][0]["path"] == "/a"
    assert asked["is_compatible"] is False
    assert asked["witness"] == refused.body["witness"]
    assert asked["messages"]
    assert set(plain) == {"is_compatible", "messages"}
    assert call("POST", "/compatibility/subjects/why/versions/9", text).code == 40402
    assert call("POST", "/compatibility/subjects/unheard/versions", text).body == {"is_compatible": True}


def test_numbers_of_any_length_are_decided(call: Caller) -> None:
    """A limit beyond 64 bits is refuted like any other, and its witness comes whole."""
    most = 2**70
    call.register("long-numbers", {"type": "integer"})
    refused = call.register("long-numbers", {"type": "integer", "maximum": most})
    more = {"Confluent_Accept_Unknown_Properties": "true"}
    text = {"schema": json.dumps({"type": "integer", "maximum": most}), "schemaType": "JSON"}
    told = call("POST", "/subjects/long-numbers/versions", text, **more).body
    assert refused.status == 409
    assert told["decided"] == "witness"
    assert told["witness"] > most
    assert str(most) in told["message"]


def test_lists_come_in_pages(call: Caller) -> None:
    """`subjectPrefix`, `offset`, `limit`, `latestOnly` and `deleted` choose from what there is."""
    for name in ("page-a", "page-b", "page-c"):
        call.register(name, TEXT)
    call.register("page-c", WIDER)
    call("DELETE", "/subjects/page-b")
    every = "/subjects?subjectPrefix=page-"
    assert call("GET", every).body == ["page-a", "page-c"]
    assert call("GET", every + "&deleted=true").body == ["page-a", "page-b", "page-c"]
    assert call("GET", every + "&deletedOnly=true").body == ["page-b"]
    assert call("GET", every + "&deleted=true&offset=1&limit=1").body == ["page-b"]
    schemas = call("GET", "/schemas?subjectPrefix=page-").body
    assert [(each["subject"], each["version"]) for each in schemas] == [("page-a", 1), ("page-c", 1), ("page-c", 2)]
    latest = call("GET", "/schemas?subjectPrefix=page-&latestOnly=true").body
    assert [(each["subject"], each["version"]) for each in latest] == [("page-a", 1), ("page-c", 2)]


# What differs


def test_two_versions_are_told_apart(call: Caller, tmp_path: Path, handrail_command: Sequence[str]) -> None:
    """Number or `latest`, the older one first or not; the answer is what the command prints, as one array."""
    versions = [TEXT, {**WIDER, "maxProperties": 10**30, "required": ["a"]}]
    for number, schema in enumerate(versions, 1):
        assert call("PUT", "/config/told", {"compatibility": "NONE"}).status == 200
        assert call.register("told", schema).status == 200
        (tmp_path / f"{number}.json").write_text(json.dumps(schema))
    command = [*handrail_command, "schema", "diff", "1.json", "2.json", "--output", "json"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60).stdout

    reply = call("GET", "/diff/subjects/told/versions/1/latest")
    assert reply.body == [json.loads(line) for line in printed.splitlines()]
    assert reply.body[-1] == {"type": "summary", "added": 2, "removed": 0, "changed": 1}
    assert reply.headers["content-type"] == MEDIA
    assert call("GET", "/diff/subjects/told/versions/1/2", If_None_Match=reply.headers["etag"]).status == 304
    assert call("GET", "/diff/subjects/told/versions/latest/1").body[-1]["removed"] == 2
    assert call("GET", "/diff/subjects/told/versions/2/latest").body == [
        {"type": "summary", "added": 0, "removed": 0, "changed": 0}
    ]


def test_a_schema_that_is_not_registered_is_told_apart(call: Caller) -> None:
    """From a version, or from another one, whatever each refers to; and nothing is registered by that."""
    for subject in ("part", "whole"):
        call("PUT", f"/config/{subject}", {"compatibility": "NONE"})
    call.register("part", {"type": "integer"})
    call.register("part", {"type": "integer", "minimum": 0})
    for version in (1, 2):
        schema, more = refers_as(version)
        assert call.register("whole", schema, **more).status == 200
    posted = [
        {"schema": json.dumps(schema), "schemaType": "JSON", **more} for schema, more in map(refers_as, (1, 2, -1))
    ]
    change = {"type": "change", "kind": "added", "path": "/part", "keyword": "minimum", "old": None, "new": 0}
    found = [change, {"type": "summary", "added": 1, "removed": 0, "changed": 0}]
    assert call("GET", "/diff/subjects/whole/versions/1/2").body == found
    assert call("POST", "/diff/subjects/whole/versions/1", posted[1]).body == found
    assert call("POST", "/diff", {"old": posted[0], "new": posted[2]}).body == found
    assert call("POST", "/diff/subjects/whole/versions/latest", posted[2]).body[0]["type"] == "summary"
    assert call("GET", "/subjects/whole/versions").body == [1, 2]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/diff/subjects/none/versions/1/2", None, 40401),
        ("GET", "/diff/subjects/apart/versions/1/9", None, 40402),
        ("GET", "/diff/subjects/apart/versions/9/1", None, 40402),
        ("GET", "/diff/subjects/apart/versions/1/newest", None, 42202),
        ("GET", "/diff", None, 405),
        ("POST", "/diff/subjects/none/versions/1", {"schema": "{}", "schemaType": "JSON"}, 40401),
        ("POST", "/diff/subjects/apart/versions/1", {"schema": "{}"}, 42201),
        ("POST", "/diff/subjects/apart/versions/1", {"schema": "{", "schemaType": "JSON"}, 42201),
        ("POST", "/diff/subjects/apart/versions/1", {"schema": '{"type": 7}', "schemaType": "JSON"}, 42201),
        ("POST", "/diff", {"old": {"schema": "{}", "schemaType": "JSON"}}, 42201),
        ("POST", "/diff", {"old": "{}", "new": "{}"}, 42201),
        ("POST", "/diff", b"[]", 400),
    ],
)
def test_what_cannot_be_told_apart_is_said_so(call: Caller, method: str, path: str, body: Any, code: int) -> None:
    """With the codes of every other route."""
    call.register("apart", TEXT)
    reply = call(method, path, body)
    assert (reply.code, str(reply.status)) == (code, str(code)[:3])
    assert reply.body["message"]


def refers_as(version: int) -> tuple[Any, dict[str, Any]]:
    """A schema that refers to a version of `part`."""
    schema = {"properties": {"part": {"$ref": "part.json"}}, "title": f"of {version}"}
    return schema, {"references": [{"name": "part.json", "subject": "part", "version": version}]}


# Two writers


def test_two_writers_of_one_version(call: Caller) -> None:
    """One of them gets it; the other is told, and nothing that was registered is changed."""
    call.register("raced", TEXT)
    texts = [{**WIDER, "title": str(number)} for number in range(6)]
    replies: list[Any] = []
    start = threading.Barrier(len(texts))

    def write(text: Any) -> None:
        start.wait()
        replies.append((call.register("raced", text, version=2), text))

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    won = [text for reply, text in replies if reply.status == 200]
    assert len(won) == 1
    assert {reply.status for reply, text in replies if text is not won[0]} == {409}
    assert call("GET", "/subjects/raced/versions").body == [1, 2]
    assert json.loads(call("GET", "/subjects/raced/versions/2").body["schema"]) == won[0]


def test_a_version_that_exists_is_not_written_again(call: Caller) -> None:
    """The same content is the same version; other content is refused."""
    id = call.register("fixed", TEXT).body["id"]
    assert call.register("fixed", TEXT, version=1).body["id"] == id
    assert call.register("fixed", WIDER, version=1).status == 409
    assert json.loads(call("GET", "/subjects/fixed/versions/1").body["schema"]) == TEXT


def test_two_processes_share_a_file(service: Running, tmp_path: Path) -> None:
    """Each sees what the other registered, and no id is given twice."""
    file = service.log.parent / "registry.db"
    with running(tmp_path, f"sqlite: {file}, poll_seconds: 0.1", *ports()) as other:
        ids = {}
        for number in range(6):
            writer = (service, other)[number % 2]
            ids[number] = writer.call.register(f"shared-{number}", {"title": f"shared {number}"}).body["id"]
        assert len(set(ids.values())) == 6
        other.call.register("shared-last", TEXT)
        deadline = time.monotonic() + 10
        while service.call("GET", "/subjects/shared-last/versions").status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# Hostile schemas


def nested(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def doubling(levels: int) -> Any:
    names = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**names, f"d{levels}": {}}, "$ref": "#/$defs/d0"}


HOSTILE: dict[str, tuple[Any, str]] = {
    "backtracking": ({"pattern": "(a+)+(?=b)"}, "linear time"),
    "back-reference": ({"pattern": r"(a)\1"}, "linear time"),
    "network": ({"$ref": "http://127.0.0.1:{port}/x.json"}, "nothing is fetched"),
    "file": ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
    "relative": ({"$ref": "other.json"}, "nothing is fetched"),
    "meta-schema": ({"$schema": "http://127.0.0.1:{port}/mine"}, "unknown draft"),
    "loop": ({"$ref": "#"}, "references lead back here"),
    "loop of two": ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#"}]}}}, "lead back here"),
    "doubling": (doubling(16), "subschemas to one value"),
    "many": ({"anyOf": [{"const": n} for n in range(10_000)]}, "more than 2000 subschemas"),
    "deep": (nested(40), "deeper than 32"),
    "long": ({"description": "x" * 300_000}, "more than 262144"),
    "patterns": (
        {"anyOf": [{"pattern": f"^{n}\\p{{L}}{{200}}$"} for n in range(200)]},
        "took more than 1 s",
    ),
    "typed by nothing": ({"type": "text"}, "is not a schema"),
    "another draft's": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "unevaluatedProperties": False},
        "would be ignored",
    ),
    "beside a reference": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "properties": {"a": {"$ref": "#/definitions/a", "maxLength": 3}},
            "definitions": {"a": {}},
        },
        "would be ignored",
    ),
    "another language's": ({"properties": {"a": {"type": "string", "nullable": True}}}, "would be ignored"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused(call: Caller, name: str) -> None:
    """With its reason, in time, and without a byte sent anywhere; the registry answers on meanwhile."""
    schema, reason = HOSTILE[name]
    with socket.create_server(("127.0.0.1", 0)) as trap:
        text = json.dumps(schema).replace("{port}", str(trap.getsockname()[1]))
        began = time.monotonic()
        reply = call.register(f"hostile {name}", text)
        assert time.monotonic() - began < 10
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert reply.code == 42201
    assert reason in reply.body["message"]
    assert call("GET", "/schemas/types").body == ["JSON"]


def test_reads_go_on_while_a_schema_is_compiled(call: Caller) -> None:
    """What takes a second in the worker takes none of the event loop's time."""
    schema, _ = HOSTILE["patterns"]
    thread = threading.Thread(target=call.register, args=("slow", schema))
    thread.start()
    times = []
    while thread.is_alive():
        began = time.monotonic()
        call("GET", "/schemas/types")
        times.append(time.monotonic() - began)
    thread.join()
    assert len(times) > 3
    assert sorted(times)[len(times) // 2] < 0.25


def test_a_body_that_is_too_long_is_refused(call: Caller) -> None:
    """Before it is looked at."""
    assert call("POST", "/subjects/long/versions", b'{"schema":"' + b" " * 2_000_000 + b'"}').code == 413


# Who may write


def test_writes_need_a_token(tmp_path: Path) -> None:
    """Bearer, or Basic with the token as the password; reads are free, and so is asking."""
    (tmp_path / "tokens").write_text("first\n\nsecond\n")
    basic = base64.b64encode(b"anybody:second").decode()
    with running(tmp_path, "sqlite: registry.db, token_file: tokens", *ports()) as found:
        call, text = found.call, {"schema": "{}", "schemaType": "JSON"}

        def write(method: str, path: str, **headers: str) -> int:
            return call(method, path, text, **headers).status

        assert write("POST", "/subjects/s/versions") == 401
        assert write("POST", "/subjects/s/versions", Authorization="Bearer third") == 401
        assert write("POST", "/subjects/s/versions", Authorization="Basic !!") == 401
        assert write("POST", "/subjects/s/versions", Authorization="Bearer first") == 200
        assert write("POST", "/subjects/s/versions", Authorization=f"Basic {basic}") == 200
        for method, path in (
            ("DELETE", "/subjects/s"),
            ("DELETE", "/subjects/s/versions/1"),
            ("PUT", "/config"),
            ("PUT", "/config/s"),
            ("DELETE", "/config/s"),
            ("PUT", "/mode"),
            ("DELETE", "/mode/s"),
        ):
            assert write(method, path) == 401
        assert call("GET", "/subjects/s/versions").body == [1]
        assert call("POST", "/subjects/s", text).status == 200
        assert call("POST", "/compatibility/subjects/s/versions/latest", text).status == 200
        assert call("POST", "/diff", {"old": text, "new": text}).status == 200


def test_reads_need_a_token_where_that_is_wanted(tmp_path: Path) -> None:
    """The token may come from the environment too."""
    with running(tmp_path, "sqlite: r.db, protect_reads: true", *ports(), HANDRAIL_REGISTRY_TOKEN="only") as found:
        assert found.call("GET", "/subjects").status == 401
        assert found.call("POST", "/diff", {}).status == 401
        assert found.call("GET", "/subjects", Authorization="Bearer only").body == []


def test_a_read_only_registry_answers_and_takes_nothing(tmp_path: Path) -> None:
    """Whatever the token."""
    with running(tmp_path, "sqlite: registry.db, read_only: true", *ports()) as found:
        assert found.call.register("s", TEXT).code == 42205
        assert found.call("GET", "/mode").body == {"mode": "READONLY"}
        assert found.call("GET", "/subjects").body == []


# A directory


def test_a_directory_is_served_and_not_written(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Its files are versions with ids that come from their content; what changes in it is served."""
    for file, text in {
        "address/1.json": {"type": "object"},
        "order/v1.json": {"properties": {"to": {"$ref": "../address/1.json"}}},
        "order/v2.json": {"properties": {"to": {"$ref": "/address/1.json"}}, "title": "two"},
        "dated/2026-01.json": {"type": "object"},
    }.items():
        path = tmp_path / "schemas" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text))
    with running(tmp_path, "", *ports(), schemas="{directory: schemas, poll_seconds: 0.1}") as found:
        call = found.call
        assert call("GET", "/subjects").body == ["address", "dated", "order"]
        assert call("GET", "/subjects/order/versions").body == [1, 2]
        address = call("GET", "/subjects/address/versions/1").body
        assert address["id"] == call("GET", "/subjects/dated/versions/2026-01").body["id"]
        order = call("GET", "/subjects/order/versions/1").body
        assert order["references"] == [{"name": "../address/1.json", "subject": "address", "version": 1}]
        assert order["id"] in call("GET", "/subjects/address/versions/1/referencedby").body
        refused = call.register("address", WIDER)
        assert refused.code == 42205
        assert "schemas" in refused.body["message"]
        assert call("DELETE", "/subjects/address").code == 42205
        (tmp_path / "schemas" / "dated" / "2026-02.json").write_text("{}")
        deadline = time.monotonic() + 10
        while call("GET", "/subjects/dated/versions").body != [1, 2]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
