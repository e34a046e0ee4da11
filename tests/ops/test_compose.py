"""Laws of compose.yaml: what it names exists, what one part says another understands, and the parts run together.

There is no container engine here. So the files are read as an engine would read them, the tools of Prometheus and
Alertmanager check theirs, and the commands of the services run as processes with the files where they are mounted.
"""

import contextlib
import fnmatch
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from edge.chshim import Server as ClickHouse
from handrail import cli
from handrail.config import parse_yaml
from ops.scraped import Prometheus

REPOSITORY = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text("utf-8"))
SERVICES: Mapping[str, Any] = COMPOSE["services"]
AGENTS = ("coordinator", "researcher", "analyst", "writer", "reviewer")

SERVICE_KEYS = {
    *("build", "image", "command", "entrypoint", "environment", "volumes", "ports", "depends_on", "healthcheck"),
    *("init", "restart", "network_mode", "ulimits"),
}
"""Of the Compose specification, what is used here: a misspelt key would be refused by `docker compose`."""

LISTENS = {"clickhouse": {8123, 9000}, "prometheus": {9090}, "alertmanager": {9093}, "grafana": {3000}}
"""What images listen on by themselves."""


def mounts(service: str) -> dict[str, str]:
    """Where what is mounted, bind mounts and volumes."""
    pairs = (mount.split(":") for mount in SERVICES[service].get("volumes", ()))
    return {parts[1]: parts[0] for parts in pairs}


def read(path: str) -> Any:
    return parse_yaml((REPOSITORY / path).read_text("utf-8"), path)


def test_compose_says_only_what_compose_understands() -> None:
    """Keys of the specification, and images of a version that is named."""
    assert COMPOSE.keys() <= {"name", "services", "volumes", "x-agent"}
    for name, service in SERVICES.items():
        assert service.keys() <= SERVICE_KEYS, name
        if "build" not in service:
            assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), "a version, never latest"
        for needed in service.get("depends_on", ()):
            assert needed in SERVICES, name
            conditions = service["depends_on"]
            if isinstance(conditions, dict) and conditions[needed]["condition"] == "service_healthy":
                assert SERVICES[needed]["healthcheck"]["test"], needed
        if "network_mode" in service:
            assert service["network_mode"] == "service:handrail"
            assert "ports" not in service, "they are published where the network is"
    assert {*AGENTS, "handrail", "clickhouse", "prometheus", "alertmanager", "grafana"} == SERVICES.keys()


def test_every_mount_exists() -> None:
    """A bind mount of what is not there makes an empty directory, and nobody knows why nothing works."""
    named = set()
    for name in SERVICES:
        for target, source in mounts(name).items():
            assert target.startswith("/")
            if source.startswith("."):
                path = REPOSITORY / source
                assert path.exists(), f"{name}: {source}"
                assert path.is_dir() == ("." not in target.rpartition("/")[2]), f"{name}: a file on a directory"
                # What is written to stays in volumes.
                assert f"{source}:{target}:ro" in SERVICES[name]["volumes"]
            else:
                named.add(source)
    assert named == COMPOSE["volumes"].keys()


def listens(service: str) -> set[int]:
    if service == "handrail":
        return {int(read("deploy/handrail.yaml")["admin"]["listen"].rpartition(":")[2])}
    return LISTENS[service]


def test_published_ports_are_those_that_somebody_listens_on() -> None:
    """On this machine only, and each once."""
    published = []
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            address, outside, inside = port.split(":")
            assert address == "127.0.0.1", "a demo is nobody else's business"
            assert int(inside) in listens(name), name
            published.append(outside)
    assert len(published) == len(set(published))


def references() -> Iterator[tuple[str, int]]:
    """Every `service:port` that a part of the whole is told."""
    for target in read("deploy/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]:
        yield target.split(":")[0], int(target.split(":")[1])
    for group in read("deploy/prometheus.yml")["alerting"]["alertmanagers"][0]["static_configs"]:
        for target in group["targets"]:
            yield target.split(":")[0], int(target.split(":")[1])
    told = [SERVICES["handrail"]["environment"]["HANDRAIL_CLICKHOUSE"]]
    told += read("deploy/handrail.yaml")["alerts"]["alertmanagers"]
    told += [value for name, value in SERVICES["grafana"]["environment"].items() if name.endswith("_URL")]
    for url in told:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        yield parts.hostname, parts.port


def test_services_find_each_other() -> None:
    """Every host is a service, and every port one that it listens on."""
    found = list(references())
    assert {host for host, _ in found} == {"handrail", "clickhouse", "prometheus", "alertmanager"}
    for host, port in found:
        assert port in listens(host), (host, port)
    assert read("deploy/handrail.yaml")["admin"]["listen"].startswith("0.0.0.0:"), "Prometheus is elsewhere"


def flags(command: str | Sequence[str]) -> dict[str, list[str]]:
    """`--flag value` pairs of a command."""
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    found: dict[str, list[str]] = {}
    for flag, value in itertools.pairwise(words):
        if flag.startswith("--"):
            found.setdefault(flag, []).append(value)
    return found


def command_of(agent: str) -> list[str]:
    """How an agent is started; of the analyst, which is replaced again and again, the first way."""
    command = SERVICES[agent]["command"]
    if agent == "analyst":
        (first, *_) = re.findall(r"python ([^;]*);", command[0])
        return shlex.split(first)
    return [str(word) for word in command]


def test_agents_stand_behind_their_listeners() -> None:
    """The agent of a route serves where the route leads, and its peers call where the peer's route listens."""
    routes = {route["agent"]: route for route in read("deploy/handrail.yaml")["routes"]}
    assert routes.keys() == set(AGENTS)
    assert routes == {route["agent"]: route for route in read("examples/pipeline/handrail.yaml")["routes"]}
    for agent in AGENTS:
        script, *_ = command_of(agent)
        assert (REPOSITORY / "examples" / "pipeline" / script).is_file()
        said = flags(command_of(agent))
        assert routes[agent]["upstream"] == f"http://127.0.0.1:{said['--port'][0]}"
        for peer in said["--peer"]:
            name, url = peer.split("=")
            assert url == f"http://{routes[name]['listen']}"
    versions = re.findall(r"--version (\S+)", SERVICES["analyst"]["command"][0])
    source = (REPOSITORY / "examples" / "pipeline" / "analyst.py").read_text("utf-8")
    assert len(set(versions)) == 2
    assert all(version[0] in source for version in versions)


def mounted(directory: Path, service: str) -> Path:
    """The bind mounts of a service under a directory, as links, except what a test has put there."""
    for target, source in mounts(service).items():
        place = directory / target[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith(".") and not place.exists():
            place.symlink_to(REPOSITORY / source)
    return directory


def test_the_sidecar_takes_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`handrail check` on the file where it is mounted, with the schemas beside it; the command line is known."""
    place = mounted(tmp_path, "handrail")
    verb, flag, file = SERVICES["handrail"]["command"]
    assert (verb, flag) == ("run", "-c")
    assert file in mounts("handrail")
    assert cli.main(["check", "-c", str(place / file[1:])]) == 0, capsys.readouterr().err
    assert cli._parser().parse_args(SERVICES["handrail"]["command"]).config == file


def test_prometheus_takes_its_configuration(tmp_path: Path, needs: Callable[[str, str], str]) -> None:
    """promtool on the file that is mounted, with the rules where they are mounted."""
    promtool = needs("promtool", "prometheus")
    config = read("deploy/prometheus.yml")
    said = flags(" ".join(word.replace("=", " ", 1) for word in SERVICES["prometheus"]["command"]))
    assert said["--config.file"][0] in mounts("prometheus")
    assert said["--storage.tsdb.path"][0] in mounts("prometheus")
    (pattern,) = config["rule_files"]
    assert pattern.rpartition("/")[0] in mounts("prometheus")
    place = mounted(tmp_path, "prometheus")
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config | {"rule_files": [str(place / pattern[1:])]}), "utf-8")
    done = subprocess.run([promtool, "check", "config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_takes_its_configuration(needs: Callable[[str, str], str]) -> None:
    """amtool on the file that is mounted."""
    amtool = needs("amtool", "prometheus-alertmanager")
    said = flags(" ".join(word.replace("=", " ", 1) for word in SERVICES["alertmanager"]["command"]))
    (file,) = said["--config.file"]
    path = REPOSITORY / mounts("alertmanager")[file]
    done = subprocess.run([amtool, "check-config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_what_it_is_provisioned_with() -> None:
    """Data sources and dashboards where Grafana looks, and every variable that they use is set."""
    places = mounts("grafana")
    provisioning = REPOSITORY / places["/etc/grafana/provisioning"]
    (provider,) = parse_yaml((provisioning / "dashboards" / "handrail.yaml").read_text("utf-8"), "")["providers"]
    assert provider["options"]["path"] in places
    environment = SERVICES["grafana"]["environment"]
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (REPOSITORY / places[str(home.parent)] / home.name).is_file()
    text = (provisioning / "datasources" / "handrail.yaml").read_text("utf-8")
    used = set(re.findall(r"\$(?!__)(\w+)", text))
    assert used <= environment.keys()
    assert {name for name in environment if name.startswith("HANDRAIL_")} <= used
    sources = {source["type"]: source for source in parse_yaml(text, "")["datasources"]}
    assert sources.keys() == {"prometheus", "grafana-clickhouse-datasource", "alertmanager"}
    assert sources["grafana-clickhouse-datasource"]["type"] in environment["GF_PLUGINS_PREINSTALL_SYNC"]
    assert sources["grafana-clickhouse-datasource"]["jsonData"]["port"] in LISTENS["clickhouse"]
    interval = read("deploy/prometheus.yml")["global"]["scrape_interval"]
    assert sources["prometheus"]["jsonData"]["timeInterval"] == interval


def test_clickhouse_knows_its_users() -> None:
    """The sidecar's and Grafana's, under the passwords that they use; Grafana's may only read."""
    root = ElementTree.parse(REPOSITORY / "deploy" / "clickhouse" / "users.xml").getroot()
    environment = SERVICES["clickhouse"]["environment"]
    users = {user.tag: user for user in root.find("users") or ()}
    passwords = {name: environment[user.find("password").attrib["from_env"]] for name, user in users.items()}  # type: ignore[union-attr]
    dsn = urlsplit(SERVICES["handrail"]["environment"]["HANDRAIL_CLICKHOUSE"])
    grafana = SERVICES["grafana"]["environment"]
    assert passwords == {
        dsn.username: dsn.password,
        grafana["HANDRAIL_CLICKHOUSE_USER"]: grafana["HANDRAIL_CLICKHOUSE_PASSWORD"],
    }
    profile = users["grafana"].findtext("profile")
    assert root.findtext(f"profiles/{profile}/readonly") == "1"
    database = parse_yaml((REPOSITORY / "dashboards/provisioning/datasources/handrail.yaml").read_text("utf-8"), "")
    (source,) = (each for each in database["datasources"] if "clickhouse" in each["type"])
    assert users["grafana"].findtext("allow_databases/database") == source["jsonData"]["defaultDatabase"]
    assert dsn.path == f"/{source['jsonData']['defaultDatabase']}"


def dockerfile() -> list[tuple[str, str]]:
    """`(instruction, rest)` of the Dockerfile, continued lines as one."""
    text = (REPOSITORY / "deploy" / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = (line.partition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return [(word, rest.strip()) for word, _, rest in lines]


def test_images_are_built_from_what_is_there() -> None:
    """What is copied exists and is not ignored; what compose asks for is a target; nothing runs as root."""
    ignored = [
        line for line in (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"
    ]
    stages: dict[str, dict[str, str]] = {}
    for word, rest in dockerfile():
        if word == "FROM":
            assert re.match(r"python:3\.1[1-4]-slim AS ", rest)
            stage = stages[rest.rpartition(" ")[2]] = {}
        stage[word] = rest
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), source
        elif word == "COPY":
            assert rest.split()[0].removeprefix("--from=") in stages
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (REPOSITORY / service["build"]["dockerfile"]).is_file()
            assert stages[service["build"]["target"]]["USER"] == "10001", name
    assert json.loads(stages["handrail"]["ENTRYPOINT"]) == ["handrail"]
    # The wheel is built in the image: everything that its build reads is copied before.
    copied = " ".join(rest for word, rest in dockerfile() if word == "COPY")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source in (*wheel["force-include"], *wheel["packages"], "pyproject.toml", project["project"]["readme"]):
        assert source.split("/")[0] in copied.split(), source
    # The agents' image has what the demo asks for, without Handrail.
    wanted = {
        each for each in project["project"]["optional-dependencies"]["demo"] if re.match("a2a|uvicorn|httpx", each)
    }
    installed = set(re.findall(r"'([^']+)'", stages["demo"]["RUN"]))
    assert installed == wanted


# As processes.


@contextlib.contextmanager
def started(command: Sequence[str], log: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, **more)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    running = ClickHouse(tmp_path_factory.mktemp("clickhouse"))
    yield running
    running.stop()


def test_the_parts_run_together(
    tmp_path: Path,
    needs: Callable[[str, str], str],
    free_port: Callable[[], int],
    clickhouse: ClickHouse,
    handrail_command: Sequence[str],
) -> None:
    """Its commands and files on other ports: handoffs pass, are recorded and scraped, and no rule is bad."""
    program = needs("prometheus", "prometheus")
    ports = {old: free_port() for old in (*range(7001, 7006), *range(7101, 7106), 9464)}

    def moved(text: str) -> str:
        for old, new in ports.items():
            text = re.sub(rf"\b{old}\b", str(new), text)
        return text.replace("alertmanager:9093", "127.0.0.1:9")

    place = tmp_path / "etc" / "handrail"
    place.mkdir(parents=True)
    (place / "handrail.yaml").write_text(moved((REPOSITORY / "deploy/handrail.yaml").read_text("utf-8")), "utf-8")
    mounted(tmp_path, "handrail")
    command = [*handrail_command, *SERVICES["handrail"]["command"]]
    command[-1] = str(tmp_path / command[-1][1:])
    environment = os.environ | {"HANDRAIL_CLICKHOUSE": clickhouse.dsn("handrail", "handrail:some@")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(command, tmp_path / "handrail.log", env=environment))
        for agent in AGENTS:
            words = [sys.executable, *(moved(word) for word in command_of(agent))]
            log = tmp_path / f"{agent}.log"
            stack.enter_context(started(words, log, cwd=REPOSITORY / "examples" / "pipeline"))
        config = read("deploy/prometheus.yml")
        rules = mounted(tmp_path, "prometheus") / config["rule_files"][0][1:]
        config |= {"rule_files": [str(rules)], "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{ports[9464]}"]
        prometheus = Prometheus(program, config, tmp_path / "prometheus", free_port())
        stack.callback(prometheus.stop)
        prometheus.until('sum by (cluster) (handrail_handoffs_total{target="reviewer"}) > 2')
        (row,) = prometheus.ask("query", query='handrail_build_info{cluster="compose", namespace="demo"}')["result"]
        assert row["value"][1] == "1"
        for group in prometheus.ask("rules")["groups"]:
            assert [rule["name"] for rule in group["rules"] if rule["health"] == "err"] == []
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                if clickhouse.one("SELECT uniqExact(source, target) FROM handrail.handoff WHERE source != ''") >= 5:
                    break
            assert time.monotonic() < deadline, (tmp_path / "handrail.log").read_text()[-2000:]
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[9464]}/readyz", timeout=5) as reply:
            assert reply.status == 200, "what the health check of compose.yaml asks"
