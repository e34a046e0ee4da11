"""`handrail run -- CMD`: the command's own variables lead through the sidecar, and nothing else of it is changed."""

import contextlib
import json
import os
import pty
import select
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from edge.servers import nats_server, valkey
from handrail.config import (
    BusConfig,
    Config,
    OtlpConfig,
    RouteConfig,
    StoreConfig,
    StoreListenerConfig,
)
from handrail.edge.environment import APIS, led

Call = Callable[..., "subprocess.CompletedProcess[str]"]

FOREIGN = ("HANDRAIL_", "OPENAI_", "AZURE_", "ANTHROPIC_", "GOOGLE_", "GEMINI_", "REDIS_", "NATS_", "OTEL_")

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "transfer_to_billing", "arguments": "{}"}}
                ],
            },
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}

ASK = """
import json, os, sys, urllib.request
body = {"model": "m", "messages": [{"role": "system", "content": "You are triage."}, {"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "transfer_to_billing", "parameters": {"type": "object"}}}]}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode(),
                                 {"content-type": "application/json"})
open_ = urllib.request.build_opener(*([] if "proxied" in sys.argv else [urllib.request.ProxyHandler({})])).open
print(json.load(open_(request))["id"])
"""
"""A client of a model, without any library."""


def environment(**given: str) -> dict[str, str]:
    """The environment of the tests without what would lead a command somewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**{name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}, **given}


@pytest.fixture
def call(handrail_command: Sequence[str], tmp_path: Path) -> Call:
    """`handrail run FLAGS -- COMMAND`."""

    def run(*command: str, flags: Sequence[str] = (), **given: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*handrail_command, "run", *flags, "--", *command],
            cwd=tmp_path,
            env=environment(**given),
            capture_output=True,
            text=True,
            check=False,
            timeout=40,
        )

    return run


@contextlib.contextmanager
def model(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """A model behind an API with a path of its own; the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            paths.append(f"{self.headers['host']}{self.path}")
            body = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def printed(process: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """What `env` printed."""
    assert process.returncode == 0, process.stderr
    return dict(line.split("=", 1) for line in process.stdout.splitlines() if "=" in line)


def names(environ: dict[str, str], config: Config | None = None) -> list[str]:
    return [lead.name for lead in led(config or Config(), environ).leads]


# Which variables lead where.


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.variables[0])
def test_a_variable_that_names_a_server_leads_through(api: object) -> None:
    """Each of them, with its path, and in front of the server that it named."""
    for name in api.variables:  # type: ignore[attr-defined]
        found = led(Config(), {name: "https://models.example:8443/some/v1?a=b"})
        lead = next(lead for lead in found.leads if lead.name == name)
        assert lead.value(("127.0.0.1", 7)) == "http://127.0.0.1:7/some/v1?a=b"
        assert found.config.routes[lead.at[0]].upstream == "https://models.example:8443"
        assert len(found.config.routes) == 1


def test_nothing_is_set_that_leads_nowhere() -> None:
    """Neither a variable nor a listener."""
    assert led(Config(), {"PATH": "/bin", "OPENAI_BASE_URL": ""}) == led(Config(), {})
    assert names({}) == []


def test_a_key_alone_leads_to_the_usual_server() -> None:
    """Where its clients would go; a key of one provider says nothing of another."""
    found = led(Config(), {"ANTHROPIC_API_KEY": "k"})
    assert found.config.routes[0].upstream == "https://api.anthropic.com"
    assert {lead.value(("127.0.0.1", 7)) for lead in found.leads} == {"http://127.0.0.1:7"}
    assert names({"OPENAI_API_KEY": "k"}) == ["OPENAI_BASE_URL", "OPENAI_API_BASE"]
    assert names({"GEMINI_API_KEY": "k"}) == ["GOOGLE_GEMINI_BASE_URL"]


def test_no_client_is_sent_elsewhere_than_before() -> None:
    """A second choice does not become the first; what Azure's client would take for its own is not set."""
    assert names({"OPENAI_API_BASE": "http://a/v1", "OPENAI_API_KEY": "k"}) == ["OPENAI_API_BASE"]
    assert "OPENAI_API_BASE" not in names({"AZURE_OPENAI_ENDPOINT": "https://a.example", "OPENAI_API_KEY": "k"})
    both = led(Config(), {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_BASE": "http://b/v2"})
    assert {lead.name: both.config.routes[lead.at[0]].upstream for lead in both.leads} == {
        "OPENAI_BASE_URL": "http://a",
        "OPENAI_API_BASE": "http://b",
    }


def test_what_only_a_proxy_reaches_is_left_alone() -> None:
    """And is told; a route connects by itself."""
    found = led(Config(), {"OPENAI_API_KEY": "k", "HTTPS_PROXY": "http://proxy:3128"})
    assert found.leads == ()
    assert all("HTTPS_PROXY" in line for line in found.left)
    assert names({"OPENAI_API_KEY": "k", "HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.openai.com"})


@pytest.mark.parametrize(
    ("name", "given", "upstream", "set_to"),
    [
        ("REDIS_URL", "redis://u:p%40@db:6400/2?client_name=a", "redis://db:6400", "redis://u:p%40@{}/2?client_name=a"),
        ("REDIS_URL", "rediss://db/1?ssl_cert_reqs=none&db=3", "rediss://db", "redis://{}/1?db=3"),
        ("VALKEY_URL", "redis://db", "redis://db", "redis://{}"),
        ("NATS_URL", "nats://token@bus:4333", "nats://bus:4333", "nats://token@{}"),
        ("NATS_URL", "bus:4333", "nats://bus:4333", "nats://{}"),
    ],
)
def test_stores_and_buses_keep_what_is_the_clients(name: str, given: str, upstream: str, set_to: str) -> None:
    """User, password, database and options; TLS is the sidecar's."""
    found = led(Config(), {name: given})
    [lead] = found.leads
    assert lead.value(("127.0.0.1", 7)) == set_to.format("127.0.0.1:7")
    places = [listener for store in found.config.stores for listener in store.listeners]
    assert [place.upstream for place in (*places, *found.config.buses)] == [upstream]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "unix:///run/redis.sock"),
        ("NATS_URL", "nats://a:4222,nats://b:4222"),
        ("NATS_URL", "tls://a:4222"),
        ("OPENAI_BASE_URL", "models.example/v1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318/prefix"),
    ],
)
def test_what_cannot_be_led_is_left_and_told(name: str, value: str) -> None:
    """A line that names the variable; the command keeps its value."""
    found = led(Config(), {name: value})
    assert found.leads == ()
    assert [line.partition(":")[0] for line in found.left] == [name]


CONFIGURED = Config(
    routes=(
        RouteConfig(listen="127.0.0.1:8081", upstream="http://agent:1"),
        RouteConfig(listen="127.0.0.1:8082", upstream="https://api.openai.com", side="egress"),
        RouteConfig(listen="127.0.0.1:8083", upstream="http://claude:1", dialects=("anthropic",)),
    ),
    stores=(
        StoreConfig(
            name="s",
            listeners=(
                StoreListenerConfig(listen="127.0.0.1:6390", upstream="redis://r:1", role="replica"),
                StoreListenerConfig(listen="127.0.0.1:6391", upstream="redis://p:1"),
            ),
        ),
    ),
    buses=(BusConfig(name="b", listen="127.0.0.1:4200", upstream="nats://n:1"),),
    otlp=OtlpConfig(http="127.0.0.1:4318"),
)

FIXED = {
    "OPENAI_BASE_URL": "http://127.0.0.1:8082/v1",
    "OPENAI_API_BASE": "http://127.0.0.1:8082/v1",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:8083",
    "ANTHROPIC_API_URL": "http://127.0.0.1:8083",
    "ANTHROPIC_API_BASE": "http://127.0.0.1:8083",
    "REDIS_URL": "redis://127.0.0.1:6391/0",
    "NATS_URL": "nats://127.0.0.1:4200",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
}

FILE = """
routes:
  - {listen: 127.0.0.1:8081, upstream: http://agent:1}
  - {listen: 127.0.0.1:8082, upstream: https://api.openai.com, side: egress}
  - {listen: 127.0.0.1:8083, upstream: http://claude:1, dialects: [anthropic]}
stores:
  - name: s
    listeners:
      - {listen: 127.0.0.1:6390, upstream: redis://r:1, role: replica}
      - {listen: 127.0.0.1:6391, upstream: redis://p:1}
buses:
  - {name: b, listen: 127.0.0.1:4200, upstream: nats://n:1}
otlp: {http: 127.0.0.1:4318}
"""


def test_a_configuration_leads_too_and_its_listeners_are_used() -> None:
    """No second listener in front of the same server, whoever named it."""
    assert led(CONFIGURED, {}).config == CONFIGURED
    named = {"OPENAI_BASE_URL": "https://api.openai.com/v1", "REDIS_URL": "redis://r:1/5", "NATS_URL": "n:1"}
    found = led(CONFIGURED, named)
    assert found.config == CONFIGURED
    assert {lead.name: lead.at for lead in found.leads if lead.name in named} == {
        "OPENAI_BASE_URL": (1, 0),
        "REDIS_URL": (0, 0),
        "NATS_URL": (0, 0),
    }


def test_variables_that_lead_to_the_sidecar_already_stay() -> None:
    """An environment that was made by --print-env is led nowhere else."""
    found = led(CONFIGURED, FIXED)
    assert (found.config, found.leads, found.left) == (CONFIGURED, (), ())


def test_print_env_is_for_a_shell(handrail_command: Sequence[str], tmp_path: Path) -> None:
    """Evaluated, it is the environment of a program beside a sidecar that runs with the same file."""
    (tmp_path / "handrail.yaml").write_text(FILE)
    script = 'eval "$("$@")" && env'
    process = subprocess.run(
        ["sh", "-c", script, "sh", *handrail_command, "run", "-c", "handrail.yaml", "--print-env"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert FIXED.items() <= printed(process).items()
    assert process.stderr == ""


def test_print_env_shows_in_place_of_the_command(call: Call) -> None:
    """Nothing is started; ports that are only free now are told to be so."""
    process = call("sh", "-c", "echo started", flags=["--print-env"], OPENAI_BASE_URL="http://127.0.0.1:9/it's/v1")
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    assert [line.partition("=")[0] for line in lines] == ["export OPENAI_BASE_URL", "export OPENAI_API_BASE"]
    assert "free now" in process.stderr


# The command.


def test_a_handoff_is_seen_and_reported(call: Call, tmp_path: Path) -> None:
    """Standard output is the command's; the report follows on standard error. Nobody answered, so it was dropped."""
    with model() as (port, paths):
        record = str(tmp_path / "run.jsonl")
        base = f"http://127.0.0.1:{port}/some/v1"
        process = call(sys.executable, "-c", ASK, flags=["--record", record], OPENAI_BASE_URL=base)

    assert (process.returncode, process.stdout) == (0, "chatcmpl-1\n")
    assert paths == [f"127.0.0.1:{port}/some/v1/chat/completions"]
    assert "1 handoff (1 dropped), 1 model call" in process.stderr
    told = [json.loads(line) for line in Path(record).read_text().splitlines()]
    [handoff] = [each for each in told if each.get("kind") == "handoff"]
    assert (handoff["source"], handoff["target"], handoff["outcome"]) == ("triage", "billing", "dropped")


def test_a_client_that_asks_the_forward_proxy_is_seen_once(call: Call) -> None:
    """HTTP_PROXY catches calls to the sidecar's own listeners too: they go where the listener leads."""
    with model() as (port, paths):
        process = call(sys.executable, "-c", ASK, "proxied", OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")

    assert process.stdout == "chatcmpl-1\n", process.stderr
    assert paths == [f"127.0.0.1:{port}/v1/chat/completions"]
    assert "1 handoff (1 dropped), 1 model call," in process.stderr


def test_an_https_upstream_is_verified(call: Call, tmp_path: Path) -> None:
    """With the certificates of the environment, as the client would have done; without them it is refused."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with model(context) as (port, paths):
        base = f"https://localhost:{port}/v1"
        trusted = call(sys.executable, "-c", ASK, OPENAI_BASE_URL=base, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        strange = call(sys.executable, "-c", ASK, OPENAI_BASE_URL=base)

    assert trusted.stdout == "chatcmpl-1\n", trusted.stderr
    assert len(paths) == 1
    assert strange.returncode == 1
    assert "502" in strange.stderr


def test_a_store_and_a_bus_are_led_through(call: Call) -> None:
    """The database and the password that the variables name are those of the command."""
    program = """if True:
        import asyncio, os, nats, redis
        client = redis.Redis.from_url(os.environ["REDIS_URL"])
        client.set("agents:w1:t1:output", '{"a": 1}')
        print(client.get("agents:w1:t1:output"), client.connection_pool.connection_kwargs["db"])
        async def publish():
            bus = await nats.connect(os.environ["NATS_URL"])
            await bus.publish("agents.w1.t1.complete", b'{"task_id": "t1"}')
            await bus.drain()
        asyncio.run(publish())
        """
    with valkey("--requirepass", "secret") as store, nats_server() as bus:
        urls = {"REDIS_URL": f"redis://:secret@127.0.0.1:{store.port}/3", "NATS_URL": f"nats://127.0.0.1:{bus.port}"}
        process = call(sys.executable, "-c", program, **urls)

    assert process.stdout == "b'{\"a\": 1}' 3\n", process.stderr
    assert "agents.w1.t1.complete" in process.stderr or "nats" in process.stderr
    assert "write" in process.stderr
    assert "publish" in process.stderr


def test_the_environment_is_otherwise_the_commands_own(call: Call) -> None:
    """What is not led is as it was; limits that the sidecar sets are its own."""
    limits = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    given = subprocess.run([sys.executable, "-c", limits], capture_output=True, text=True, check=True).stdout
    assert call(sys.executable, "-c", "import time; time.sleep(0.2); " + limits).stdout == given
    assert printed(call("env", ANY_BASE_URL="http://a/v1"))["ANY_BASE_URL"] == "http://a/v1"


def test_two_commands_at_once_do_not_meet(call: Call) -> None:
    """Every port is free, the admin port too: a command may run another under Handrail."""
    process = call(sys.executable, "-m", "handrail", "run", "--", "echo", "inner")
    assert (process.returncode, process.stdout) == (0, "inner\n"), process.stderr


def test_a_proxy_that_the_command_has_is_kept(call: Call) -> None:
    """It may be the only way out; the sidecar's takes its place where the configuration has one."""
    assert printed(call("env", http_proxy="http://proxy:3128"))["http_proxy"] == "http://proxy:3128"
    assert printed(call("env"))["http_proxy"].startswith("http://127.0.0.1:")


def test_a_signal_that_ends_the_command_is_its_status(call: Call) -> None:
    """As a shell says it: 128 and its number."""
    assert call("sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def started(handrail_command: Sequence[str], program: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*handrail_command, "run", "--", sys.executable, "-uc", program],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


COUNTS = """if True:
    import signal, sys, time
    got = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
    print("ready")
    deadline = time.monotonic() + 20
    while not got and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    print(*got)
    sys.exit(5)
    """
"""Says which signals it got until a moment after the first."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on(handrail_command: Sequence[str], number: signal.Signals) -> None:
    """Once; the sidecar lives until the command ends, and reports."""
    process = started(handrail_command, COUNTS)
    process.send_signal(number)
    said, told = process.communicate(timeout=30)
    assert said == f"{number.name}\n"
    assert process.returncode == 5
    assert "0 handoffs" in told


def test_ctrl_c_reaches_the_command_once(handrail_command: Sequence[str]) -> None:
    """On a terminal, which gives it to the whole group; the command reads and writes that terminal itself."""
    program = COUNTS.replace(
        'print("ready")', 'print(input(), sys.stdin.isatty(), sys.stdout.isatty())\n    print("ready")'
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(handrail_command[0], [*handrail_command, "run", "--", sys.executable, "-uc", program], environment())
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65_536).decode()
                except OSError:  # Linux tells the end of a terminal so
                    break
        assert text in seen, seen

    try:
        os.write(terminal, b"typed\n")
        until("ready")
        assert "typed True True" in seen
        os.write(terminal, b"\x03")
        until("findings")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert seen.count("SIGINT") == 1
    assert os.waitstatus_to_exitcode(status) == 5


def test_spans_are_led_through_and_passed_on(call: Call) -> None:
    """Over HTTP, by a client that would have asked the forward proxy: they are counted as no traffic."""
    program = """if True:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
        provider.get_tracer("t").start_span("work").end()
        provider.shutdown()
        print("sent")
        """
    with model() as (port, paths):
        process = call(sys.executable, "-c", program, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")

    assert process.stdout == "sent\n", process.stderr
    assert paths == [f"127.0.0.1:{port}/v1/traces"]
    assert "0 handoffs, 0 model calls, 0 findings" in process.stderr
