"""The command as a person and a script meet it: output, messages and exit statuses of the real process."""

import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import handrail
from handrail.wire import BodyLimits, http1

REPOSITORY = Path(__file__).parents[1]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(handrail_command: Sequence[str], tmp_path: Path) -> Run:
    """Runs `handrail …` in an empty directory, with a clean environment."""

    def call(*args: str | Path, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HANDRAIL_")}
        return subprocess.run(
            [*handrail_command, *map(str, args)],
            input=stdin,
            cwd=tmp_path,
            env={**kept, "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    return call


def refused(result: "subprocess.CompletedProcess[str]") -> list[str]:
    """The lines on standard error of a command that must have been refused for its input."""
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr.splitlines()


def entry(at: str, body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """One HAR entry: a JSON request of `writer` to a reviewer on port 9000, answered 30 ms later."""
    sent = {"content-type": "application/json", **(headers or {})}
    return {
        "startedDateTime": at,
        "time": 30,
        "request": {
            "method": "POST",
            "url": "http://127.0.0.1:9000/tasks",
            "headers": [{"name": name, "value": value} for name, value in sent.items()],
            "postData": {"mimeType": "application/json", "text": json.dumps(body)},
        },
        "response": {
            "status": status,
            "headers": [{"name": "content-type", "value": "application/json"}],
            "content": {"mimeType": "application/json", "text": "{}"},
        },
        "timings": {"send": 0, "wait": 30, "receive": 0},
    }


def envelope(task: str, summary: object = "done") -> dict[str, Any]:
    """The canonical handoff payload."""
    return {
        "task_id": task,
        "source_agent": "writer",
        "target_agent": "reviewer",
        "status": "completed",
        "output": {"summary": summary, "artifacts": [], "confidence": 0.9},
        "context": {"original_goal": "a report", "constraints": [], "decisions_made": []},
        "metadata": {"started_at": "2026-01-01T00:00:00Z", "completed_at": "2026-01-01T00:00:01Z", "token_count": 7},
    }


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three handoffs: a good one, one that breaks its schema, and the first once more."""
    schema = {"handrail-schema": "report@1"}
    entries = [
        entry("2026-01-01T00:00:00Z", envelope("t1"), headers=schema),
        entry("2026-01-01T00:00:01Z", envelope("t2", summary=17), headers=schema),
        entry("2026-01-01T00:00:02Z", envelope("t1"), headers=schema),
    ]
    file = tmp_path / "traffic.har"
    file.write_text(json.dumps({"log": {"version": "1.2", "creator": {}, "entries": entries}}, indent=1))
    output = {"summary": {"type": "string"}, "artifacts": {}, "confidence": {}}
    (tmp_path / "schemas" / "report").mkdir(parents=True)
    (tmp_path / "schemas" / "report" / "1.json").write_text(
        json.dumps({"properties": {**{key: {} for key in envelope("")}, "output": {"properties": output}}})
    )
    return file


def lines(result: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# The command as such


@pytest.mark.parametrize(
    "command",
    [(), ("run",), ("check",), ("replay",), ("rules",), ("rules", "test"), ("rules", "list"), ("report",), ("demo",)],
)
def test_help_teaches(run: Run, command: tuple[str, ...]) -> None:
    """Each command says what it does, shows examples, and fits a terminal."""
    result = run(*command, "--help")

    assert result.returncode == 0
    assert result.stderr == ""
    if command != ("rules",):
        assert "examples:\n  handrail" in result.stdout
    if command not in (("rules",), ("rules", "list")):
        assert "exit status:" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_help_imports_nothing_heavy() -> None:
    """`--help` answers at once: none of the data path, the database client or the validators is loaded for it."""
    code = (
        "import sys, handrail.cli\n"
        "try: handrail.cli.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not set(result.stderr.split()) & {
        "msgspec",
        "aiohttp",
        "rich",
        "jsonschema_rs",
        "clickhouse_connect",
        "yaml",
    }


def test_the_version_is_the_packages(run: Run) -> None:
    """One place holds the version, and the build is told by what is loaded."""
    build = "pure Python" if http1.__file__.endswith(".py") else "compiled"
    assert run("--version").stdout == f"handrail {handrail.__version__} ({build})\n"


def test_nothing_asked_is_bad_input(run: Run) -> None:
    """Without a command the help goes to standard error."""
    for command in ((), ("rules",)):
        assert "usage: handrail" in "".join(refused(run(*command)))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("rn",), "invalid choice: 'rn'"),
        (("replay",), "the following arguments are required: FILE"),
        (("replay", "x", "--fail-on", "fatal"), "invalid choice: 'fatal'"),
        (("check",), "the following arguments are required: -c/--config"),
        (("run",), "there is nothing to listen on; give --listen and --upstream"),
        (("run", "--listen", "127.0.0.1:1"), "--upstream: is missing"),
        (("run", "--listen", "x", "--upstream", "http://a"), "--listen: 'x' is not an address"),
        (("run", "-c", "absent.yaml"), "absent.yaml: cannot be read: no such file or directory"),
        (("report",), "--clickhouse: is missing"),
        (("report", "--clickhouse", "what"), "--clickhouse: is not a ClickHouse address"),
        (("report", "--clickhouse", "chdb:///x", "--since", "soon"), "--since: 'soon'"),
        (("rules", "test", "absent.yaml"), "absent.yaml: cannot be read: no such file or directory"),
    ],
)
def test_wrong_use_is_told_in_one_line(run: Run, args: tuple[str, ...], message: str) -> None:
    """`handrail: FILE: KEY: problem; fix`, status 2, nothing on standard output."""
    told = refused(run(*args))

    assert len(told) == 1
    assert told[0].startswith("handrail")
    assert message in told[0]


# check


def test_check_says_what_is_there(run: Run, recording: Path, tmp_path: Path) -> None:
    """A good configuration is counted; its paths are relative to its file."""
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf" / "handrail.yaml"
    file.write_text("routes: [{listen: ':0', upstream: 'http://a'}]\nschemas: {directory: ../schemas}\n")
    result = run("check", "-c", file)

    assert result.stderr == ""
    assert result.returncode == 0
    assert re.fullmatch(rf"{file}: good: 1 listener, \d+ rules, 1 schema\n", result.stdout)


def test_check_lists_every_wrong_key(run: Run, tmp_path: Path) -> None:
    """All of them in one go."""
    file = tmp_path / "handrail.yaml"
    file.write_text("agnet: x\nlimits: {connections: -1}\nroutes: [{listen: ':0', upstream: 'http://a', side: in}]")

    assert refused(run("check", "-c", file)) == [
        f"handrail: {file}: agnet: unknown key; did you mean agent?",
        f"handrail: {file}: routes[0].side: 'in' is not known; known are ingress, egress",
        f"handrail: {file}: limits.connections: must be more than 0",
    ]


def test_check_lists_what_is_wrong_in_rules_and_schemas(run: Run, tmp_path: Path) -> None:
    """Both kinds of file are read, and each problem names its file."""
    (tmp_path / "schemas" / "report").mkdir(parents=True)
    (tmp_path / "schemas" / "report" / "1.json").write_text("{")
    (tmp_path / "schemas" / "report" / "2.json").write_text('{"type": 5}')
    (tmp_path / "mine.yaml").write_text("language: 1\nruls: []")
    file = tmp_path / "handrail.yaml"
    file.write_text("schemas: {directory: schemas}\nrules: {files: [mine.yaml]}")
    told = refused(run("check", "-c", file))

    assert len(told) == 3
    assert told[0].startswith(f"handrail: {tmp_path}/schemas/report/1.json: ")
    assert told[1].startswith(f"handrail: {tmp_path}/schemas/report/2.json: ")
    assert told[2].startswith(f"handrail: {tmp_path}/mine.yaml: ruls: unknown key; did you mean rules?")


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ("upstream: 'http://127.0.0.1:7'", "routes[0].upstream: is the route's own listen address: a loop"),
        ("upstream: 'http://localhost:7'", "routes[0].upstream: is the route's own listen address: a loop"),
        (
            "upstream: 'http://127.0.0.1:8'}, {listen: '0.0.0.0:8', upstream: 'http://localhost:7'",
            "routes[0].upstream: leads back to this route: a loop",
        ),
        (
            "upstream: 'https://a', tls: {ca_file: none.pem}",
            "routes[0].tls.ca_file: {here}/none.pem cannot be loaded: [Errno 2] No such file or directory",
        ),
    ],
)
def test_check_and_run_refuse_the_same_in_the_same_words(run: Run, tmp_path: Path, route: str, problem: str) -> None:
    """What shows only when listeners are made is told too, with the name of the file."""
    file = tmp_path / "handrail.yaml"
    file.write_text(f"routes: [{{listen: '127.0.0.1:7', {route}}}]\nadmin: {{listen: ':0'}}")

    told = [f"handrail: {file}: {problem.format(here=tmp_path)}"]
    assert refused(run("check", "-c", file)) == told
    assert refused(run("run", "-c", file)) == told


NO_FILE = "cannot be loaded: [Errno 2] No such file or directory"
NOT_READ = "cannot be read: no such file or directory"
NOT_FIT = {
    "stores: [{name: s, listeners: [{listen: ':0', upstream: 'rediss://a', tls: {ca_file: gone}}]}]": (
        f"stores.s.listeners[0].tls.ca_file: {{here}}/gone {NO_FILE}"
    ),
    "stores: [{name: s, listeners: [{listen: ':7', upstream: 'redis://127.0.0.1:7'}]}]": (
        "stores.s.listeners[0].upstream: is the listen address itself: a loop"
    ),
    "buses: [{name: b, listen: ':8', upstream: 'nats://127.0.0.1:8'}]": (
        "buses.b.upstream: is the listen address itself: a loop"
    ),
    "registry: {listen: ':0', token_file: gone}": f"registry.token_file: {{here}}/gone: {NOT_READ}",
    "registry: {listen: ':0', token_file: empty}": (
        "registry.token_file: holds no token; write one on a line of its own"
    ),
    "otlp: {http: ':0', tls_cert_file: gone, tls_key_file: gone}": (
        f"otlp.tls_cert_file: {{here}}/gone and its key {NO_FILE}"
    ),
    "otlp: {grpc: ':0', forward: 'http://a', forward_token_file: gone}": (
        f"otlp.forward_token_file: {{here}}/gone: {NOT_READ}"
    ),
    "traces: {endpoint: 'https://a', ca_file: empty}": (
        "traces.ca_file: {here}/empty cannot be loaded: [X509: NO_CERTIFICATE_OR_CRL_FOUND]"
    ),
    "alerts: {webhooks: [{url: 'https://a', ca_file: gone}]}": f"alerts.webhooks[0].ca_file: {{here}}/gone {NO_FILE}",
    "clickhouse: {dsn: 'https://u@a?ca_file=gone'}": f"clickhouse.dsn: gone {NO_FILE}",
    "graph: {file: gone}": None,
}
"""Configurations whose every key is right, and what the parts that they are for say; None where a file speaks."""


@pytest.mark.parametrize("part", NOT_FIT)
def test_check_tells_what_would_keep_a_run_from_starting(run: Run, tmp_path: Path, part: str) -> None:
    """Every file and address of the configuration is looked at, by the parts that will use them."""
    (tmp_path / "empty").write_text("")
    file = tmp_path / "handrail.yaml"
    needed = "admin: {listen: ':0'}\nroutes: [{listen: ':0', upstream: 'http://a'}]\n"
    file.write_text(f"{needed}{part}" + ("" if part.startswith("clickhouse") else "\nclickhouse: {dsn: null}"))
    problem = NOT_FIT[part]
    told = f"handrail: {file}: {problem}" if problem else f"handrail: {{here}}/gone: {NOT_READ}"

    by_check, by_run = refused(run("check", "-c", file)), refused(run("run", "-c", file))
    assert by_check[-1].startswith(told.format(here=tmp_path))
    assert by_run[-1:] == by_check[-1:]


def test_check_lists_what_is_wrong_in_every_part(run: Run, tmp_path: Path) -> None:
    """A run would stop at the first; and nothing is made, not even the registry that a run would make."""
    file = tmp_path / "handrail.yaml"
    parts = [part for part in NOT_FIT if part.partition(":")[0] in ("stores", "buses", "traces", "alerts", "graph")]
    del parts[0]
    file.write_text("\n".join([*parts, "registry: {listen: ':0', sqlite: new.db, token_file: gone}"]))
    told = refused(run("check", "-c", file))

    assert [line.split(": ")[2] for line in told if line.startswith(f"handrail: {file}: ")] == [
        "registry.token_file",
        "traces.ca_file",
        "alerts.webhooks[0].ca_file",
        "stores.s.listeners[0].upstream",
        "buses.b.upstream",
    ]
    assert f"handrail: {tmp_path}/gone: {NOT_READ}" in told
    assert os.listdir(tmp_path) == ["handrail.yaml"]


def test_check_counts_every_address_that_is_listened_on(run: Run, tmp_path: Path) -> None:
    """Not only those of routes."""
    file = tmp_path / "handrail.yaml"
    file.write_text(
        "forward: {listen: ':1'}\nbuses: [{name: b, listen: ':2', upstream: 'nats://a'}]\n"
        "stores: [{name: s, listeners: [{listen: ':3', upstream: 'redis://a'}, {listen: ':4', upstream: 'redis://b'}]}]\n"
        "otlp: {http: ':5', grpc: ':6'}\nregistry: {listen: ':8'}\n"
    )

    assert ": good: 7 listeners, " in run("check", "-c", file).stdout


# replay


def test_replay_prints_events_findings_and_a_summary(run: Run, recording: Path) -> None:
    """One JSON object a line, every exchange among them, and nothing else on standard output."""
    result = run("replay", recording, "--schemas", "schemas", "--output", "json")
    printed = lines(result)

    assert result.returncode == 0
    assert result.stderr == ""
    assert [line["type"] for line in printed if line["type"] in ("event", "summary")] == ["event"] * 3 + ["summary"]
    assert [(line["task"], line["subject"]) for line in printed if line["type"] == "event"] == [
        ("t1", "report"),
        ("t2", "report"),
        ("t1", "report"),
    ]
    found = {line["kind"]: line for line in printed if line["type"] == "finding"}
    assert set(found) == {"schema.violation", "output.duplicate"}
    assert (found["schema.violation"]["task"], found["output.duplicate"]["task"]) == ("t2", "t1")
    assert found["schema.violation"]["evidence"]["path"] == "/output/summary"
    assert printed[-1] == {
        "type": "summary",
        "files": 1,
        "events": 3,
        "handoffs": 3,
        "findings": 2,
        "faults": 0,
        "by_rule": {"schema.violation": 1, "output.duplicate": 1},
        "by_severity": {"critical": 1, "warning": 1},
        "worst": "critical",
    }


def test_replay_of_its_own_output_finds_the_same(run: Run, recording: Path, tmp_path: Path) -> None:
    """With payloads printed, the event lines are a recording of their own, from a file or standard input."""
    first = run("replay", recording, "--schemas", "schemas", "--output", "json", "--payloads")
    again = run("replay", "-", "--schemas", "schemas", "--output", "json", "--payloads", stdin=first.stdout)

    def in_order(printed: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(line) for line in printed)

    assert in_order(lines(again)) == in_order(lines(first))
    assert lines(again)[-1] == lines(first)[-1]


def test_payloads_are_printed_only_when_asked_for(run: Run, recording: Path) -> None:
    """They may hold what nobody agreed to show."""
    silent = run("replay", recording, "--output", "json")
    asked = run("replay", recording, "--output", "json", "--payloads")

    assert {line["payload"] is None for line in lines(silent) if line["type"] == "event"} == {True}
    assert {line["payload"] is None for line in lines(asked) if line["type"] == "event"} == {False}


def test_the_deepest_payload_that_is_read_can_be_printed(run: Run) -> None:
    """One level more is refused, see below; nothing in between ends in a traceback."""
    for depth in (BodyLimits().depth - 1, BodyLimits().depth):
        line = GOOD_LINE.replace("}", ', "payload": ' + "[" * depth + "]" * depth + "}")
        result = run("replay", "-", "--output", "json", "--payloads", stdin=line)
        assert "Traceback" not in result.stderr
        assert result.returncode == (0 if depth < BodyLimits().depth else 2)


def test_several_recordings_are_one_history(run: Run, recording: Path, tmp_path: Path) -> None:
    """What one file began is known when the next is read: the same task again is a duplicate."""
    other = tmp_path / "later.har"
    later = [entry("2026-01-01T00:00:09Z", envelope("t2"))]
    other.write_text(json.dumps({"log": {"version": "1.2", "entries": later}}))
    alone = lines(run("replay", other, "--output", "json"))
    after = lines(run("replay", recording, other, "--output", "json"))

    assert alone[-1]["by_rule"].get("output.duplicate", 0) == 0
    assert after[-1]["by_rule"]["output.duplicate"] == 2
    assert after[-1]["files"] == 2


@pytest.mark.parametrize(("severity", "status"), [("info", 1), ("warning", 1), ("critical", 0)])
def test_fail_on_looks_at_the_worst_finding(run: Run, recording: Path, severity: str, status: int) -> None:
    """Without the schemas a duplicate, which is a warning, is the worst."""
    assert run("replay", recording, "--fail-on", severity).returncode == status


def test_replay_for_a_person(run: Run, recording: Path) -> None:
    """A table of edges, a line per finding, a line in the end; no escape codes in a pipe."""
    result = run("replay", recording, "--schemas", "schemas")

    assert "\x1b" not in result.stdout
    assert re.search(r"^writer +reviewer +envelope +3 +30\.0 +30\.0 +2$", result.stdout, re.MULTILINE)
    assert re.search(r"^critical +2026-01-01T00:00:01\S+ +schema\.violation ", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("1 file, 3 events (3 handoffs), 2 findings: 1 critical, 1 warning\n")


def test_rules_of_ones_own_apply(run: Run, recording: Path, tmp_path: Path) -> None:
    """--rules adds a pack; a rule with a built-in id replaces the built-in one."""
    pack = tmp_path / "mine.yaml"
    pack.write_text("language: 1\ndisable: [output.duplicate]\nrules: []\n")
    result = run("replay", recording, "--rules", pack, "--output", "json")

    assert "output.duplicate" not in lines(result)[-1]["by_rule"]


GOOD_LINE = '{"type": "event", "kind": "handoff", "id": "a", "at": 0, "outcome": "completed"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.har", b"", "is empty; a recording is HAR 1.2, OTLP JSON lines or event JSON lines"),
        ("x.har", b"not json", "is not JSON: "),
        ("x.har", b'{"log": {}}', "is not a HAR: log.entries is not a list"),
        ("x.har", b'{"log": {"entries": [{}]}}', "entry 0: "),
        ("x.har", b"[" * 100_000, "is not "),
        ("x.har", b'{\n"log": \xff}', "line 2: is not UTF-8 text"),
        ("x.jsonl", b"nonsense", "line 1: is not JSON: "),
        ("x.jsonl", GOOD_LINE.encode() * 2 + b"{\n", "line 3: is not JSON: "),
        ("x.jsonl", GOOD_LINE.encode() + b"[]\n", "line 2: is not an object; each line is one event"),
        ("x.jsonl", b'{"type": ["event"], "kind": "handof"}', "line 1: "),
        ("x.jsonl", b'{"kind": "handoff", "at": 0}', "line 1: "),
        ("x.jsonl", b'{"kind": "gossip", "id": "a", "at": 0}', "line 1: "),
        ("x.jsonl", b'{"kind": "read", "id": "a", "at": "noon"}', "line 1: at: "),
        ("x.jsonl", b'{"kind": "read", "id": "a", "at": 1e13}', "line 1: at: 1e+13 seconds is no time"),
        (
            "x.jsonl",
            GOOD_LINE.encode().replace(b"}", b', "payload": ' + b"[" * 1000 + b"]" * 1000 + b"}"),
            "line 1: is nested deeper than ",
        ),
        ("x.jsonl", b'{"resourceLogs": []}\n{}', "line 2: is no OTLP"),
    ],
)
def test_a_bad_recording_is_named_with_its_place(
    run: Run, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """The file, and the line or the entry; nothing is printed of what came before."""
    file = tmp_path / name
    file.write_bytes(content)
    told = refused(run("replay", file, "--output", "json"))

    assert len(told) == 1
    assert told[0].startswith(f"handrail: {file}: {message}")


def test_a_reader_that_leaves_ends_the_replay(run: Run, recording: Path, handrail_command: Sequence[str]) -> None:
    """`handrail replay … | head -1` prints no traceback."""
    many = recording.parent / "many.jsonl"
    many.write_text("".join(GOOD_LINE.replace('"a"', f'"{number}"') for number in range(20_000)))
    with subprocess.Popen(
        [*handrail_command, "replay", str(many), "--output", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""

    assert process.returncode == 141


# rules


def test_built_in_rules_pass_their_tests(run: Run) -> None:
    """Every rule that comes in the box proves itself."""
    result = run("rules", "test")

    assert result.returncode == 0
    assert re.fullmatch(r"\d+ tests of \d+ rules, 0 failed\n", result.stdout)


RULE = """
language: 1
rules:
  - id: output.duplicate.mine
    title: Mine
    why: To see a test fail.
    maturity: sandbox
    severity: info
    kind: output.duplicate
    tests:
      - {name: twice, events: [{at: 0}, {at: 5}], finds: FINDS}
      - {name: once, events: [{at: 0}], finds: 0}
"""


def test_a_failing_rule_test_is_told(run: Run, tmp_path: Path) -> None:
    """A line for each failure, a count, status 1; built-in rules are not tested along."""
    file = tmp_path / "mine.yaml"
    file.write_text(RULE.replace("FINDS", "1"))
    assert run("rules", "test", file).stdout == "2 tests of 1 rule, 0 failed\n"

    file.write_text(RULE.replace("FINDS", "3"))
    result = run("rules", "test", file)

    assert result.returncode == 1
    assert result.stdout.startswith("FAILED output.duplicate.mine: twice: expected 3 findings, got 1")
    assert result.stdout.endswith("\n2 tests of 1 rule, 1 failed\n")


def test_rules_are_listed(run: Run, tmp_path: Path) -> None:
    """Built-in ones and one's own, as a table or as JSON lines."""
    file = tmp_path / "mine.yaml"
    file.write_text(RULE.replace("FINDS", "1"))
    listed = {line["id"]: line for line in lines(run("rules", "list", file, "--output", "json"))}

    assert listed["output.duplicate"]["builtin"] is True
    assert (listed["output.duplicate.mine"]["file"], listed["output.duplicate.mine"]["tests"]) == (str(file), 2)
    table = run("rules", "list", file).stdout
    assert all(rule in table for rule in listed)


# run


def test_the_environment_stands_in_for_flags(run: Run) -> None:
    """And the command line wins over it."""
    told = refused(run("run", HANDRAIL_LISTEN="nowhere", HANDRAIL_UPSTREAM="http://a"))
    assert "--listen: 'nowhere' is not an address" in told[0]

    told = refused(run("run", "--listen", "elsewhere", HANDRAIL_LISTEN="nowhere", HANDRAIL_UPSTREAM="http://a"))
    assert "'elsewhere'" in told[0]


def test_run_refuses_wrong_rules_and_schemas(run: Run, tmp_path: Path) -> None:
    """Nothing starts on half of what was asked for."""
    route = ("--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:9", "--admin", "127.0.0.1:0")
    assert "absent" in refused(run("run", *route, "--schemas", "absent"))[0]
    (tmp_path / "mine.yaml").write_text("rules: 5")
    assert "mine.yaml" in refused(run("run", *route, "--rules", "mine.yaml"))[0]


def test_run_gives_the_status_of_its_command(run: Run) -> None:
    """`handrail run -- CMD` is CMD with eyes on it."""
    result = run("run", "--admin", "127.0.0.1:0", "--", sys.executable, "-c", "import sys; print('ran'); sys.exit(7)")

    assert result.stdout == "ran\n"
    assert result.returncode == 7


def test_the_commands_traffic_goes_through(run: Run, free_port: Callable[[], int]) -> None:
    """A program that knows nothing of Handrail: what it sent over HTTP is counted."""
    server = HTTPServer(("127.0.0.1", 0), _Upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    admin = f"127.0.0.1:{free_port()}"
    program = f"""if True:
        import json, time, urllib.request
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
        body = json.dumps({envelope("t1")!r}).encode()
        kind = {{"content-type": "application/json"}}
        request = urllib.request.Request("http://127.0.0.1:{server.server_port}/", body, kind)
        print(urllib.request.urlopen(request).read().decode())
        for _ in range(100):
            metrics = direct.open("http://{admin}/metrics").read().decode()
            counted = [line for line in metrics.splitlines() if line.startswith("handrail_handoffs_total{{")]
            if counted:
                break
            time.sleep(0.05)
        print(*counted)
        """
    try:
        result = run("run", "--admin", admin, "--", sys.executable, "-c", program, NO_PROXY="", no_proxy="")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert result.returncode == 0, result.stderr
    answer, counted = result.stdout.splitlines()
    assert answer == "thanks"
    assert 'source="writer"' in counted
    assert counted.endswith((" 1", " 1.0"))


class _Upstream(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        self.wfile.write(b"thanks")

    def log_message(self, *args: object) -> None:
        """Nobody reads it."""


def test_run_names_a_command_that_is_not_there(run: Run) -> None:
    """As a shell would, with the status for bad input."""
    result = run("run", "--admin", "127.0.0.1:0", "--", "no-such-command")

    assert result.returncode == 2
    assert "no-such-command" in result.stderr
    assert "Traceback" not in result.stderr


# The wheel


def test_the_wheel_holds_rules_migrations_and_the_demo(tmp_path: Path) -> None:
    """What is found beside the package in a clone is inside it once it is installed."""
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    for directory, inside, pattern in (
        ("rules/detection", "handrail/packs", "*.yaml"),
        ("collector/handrail/edge/migrations", "handrail/edge/migrations", "*.sql"),
        ("examples/pipeline", "handrail/examples/pipeline", "*.py"),
        ("examples/state", "handrail/examples/state", "*.*"),
    ):
        files = {f"{inside}/{path.name}" for path in (REPOSITORY / directory).glob(pattern)}
        assert files
        assert files <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]
