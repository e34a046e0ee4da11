"""Laws of the Helm chart: what it renders, Kubernetes and Handrail understand; what could not work, it refuses.

There is no cluster here. Helm's own engine renders, Kubernetes' own schemas judge, and Handrail reads its configuration
from a directory that is laid out as a kubelet lays it out.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import chart as helm
from helm_python.errors import HelmError

import handrail
from handrail.config import AdminConfig, Config
from handrail.edge.admin import Admin
from handrail.edge.files import load_packs
from handrail.edge.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "handrail"
EXAMPLE = REPOSITORY / "helm" / "examples" / "agent"
Manifest = Mapping[str, Any]

ROUTE = {"listen": "0.0.0.0:8081", "upstream": "http://billing:8080", "agent": "billing"}
PACK = {
    "language": 1,
    "rules": [
        {
            "id": "budget.exceeded.slow",
            "title": "Billing answers in ten seconds",
            "why": "Callers wait.",
            "maturity": "stable",
            "severity": "warning",
            "kind": "budget.exceeded",
            "where": {"target": "billing"},
            "with": {"seconds": 10},
            "tests": [
                {"name": "slow", "events": [{"at": 0, "target": "billing", "duration_ms": 11_000}], "finds": 1},
                {"name": "in time", "events": [{"at": 0, "target": "billing", "duration_ms": 9_000}], "finds": 0},
            ],
        }
    ],
}
GATEWAY: dict[str, Any] = {
    "config": {
        "routes": [ROUTE, {"listen": "0.0.0.0:8082", "upstream": "http://refund:8080", "agent": "refund"}],
        "forward": {"listen": "0.0.0.0:3128", "allow": ["*.agents.svc"]},
        "stores": [
            {
                "name": "state",
                "listeners": [
                    {"listen": "0.0.0.0:6380", "upstream": "redis://primary:6379"},
                    {"listen": "0.0.0.0:6381", "upstream": "redis://replica:6379", "role": "replica"},
                ],
            }
        ],
        "buses": [{"name": "bus", "listen": "0.0.0.0:4222", "upstream": "nats://nats:4222"}],
        "registry": {"listen": "0.0.0.0:8085", "sqlite": "/var/lib/handrail/registry.db"},
        "otlp": {"http": "0.0.0.0:4318", "grpc": "0.0.0.0:4317"},
        "limits": {"hold_bytes": 10_485_760, "drain_seconds": 40},
    },
    "persistence": {"enabled": True},
    "clickhouse": {"dsnSecret": {"name": "clickhouse"}},
}
FILES: dict[str, Any] = {
    "config": {"routes": [ROUTE]},
    "schemas": {"triage.billing": {"1": {"type": "object"}, "2": {"type": "object", "required": ["invoice"]}}},
    "rules": {"mine": PACK},
}
ALL: dict[str, Any] = GATEWAY | {
    "image": {"repository": "images.example.com/handrail", "tag": "1"},
    "imagePullSecrets": [{"name": "pull"}],
    "env": [{"name": "HANDRAIL_REGISTRY_TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "registry"}}}],
    "envFrom": [{"configMapRef": {"name": "more"}}],
    "podAnnotations": {"team": "platform"},
    "podLabels": {"team": "platform"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "agents", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {"enabled": True, "adminFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True},
    },
}
CASES: dict[str, dict[str, Any]] = {
    "one route": {"config": {"routes": [ROUTE]}},
    "schemas and rules in files": FILES,
    "a gateway": GATEWAY,
    "everything": ALL,
}
BUILT_IN = sum(len(pack.rules) for pack in load_packs(Config()))
CUSTOM = {"PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, which Kubernetes' schemas do not know."""


def render(values: Mapping[str, Any], chart: Path = CHART) -> list[Manifest]:
    """Every manifest, NOTES.txt apart."""
    with helm.Chart.load(chart) as loaded:
        texts = loaded.render(dict(values), name="demo", namespace="agents")
    return [
        each
        for name, text in sorted(texts.items())
        if not name.endswith("NOTES.txt")
        for each in yaml.safe_load_all(text)
        if each is not None
    ]


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Any]:
    return [each for each in manifests if each["kind"] == kind]


def pods(manifests: Sequence[Manifest]) -> Iterator[Any]:
    for each in of_kind(manifests, "Deployment"):
        yield each["spec"]["template"]["spec"]


def containers(pod: Any) -> list[Any]:
    return [each for each in [*pod["containers"], *pod.get("initContainers", [])] if each["name"] == "handrail"]


def mounted(manifests: Sequence[Manifest], pod: Any, directory: Path) -> Path:
    """What a kubelet makes of the ConfigMap: files in a directory of its own, and links to them where it is mounted."""
    (volume,) = [each["configMap"] for each in pod["volumes"] if each["name"] == "handrail-config"]
    (data,) = [each["data"] for each in of_kind(manifests, "ConfigMap") if each["metadata"]["name"] == volume["name"]]
    real = directory / "..2026_01_01"
    for item in volume["items"]:
        place = real / item["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(data[item["key"]], "utf-8")
    assert len(data) == len(volume["items"]), "a key that nobody mounts"
    (directory / "..data").symlink_to(real.name)
    for each in real.iterdir():
        (directory / each.name).symlink_to(Path("..data") / each.name)
    return directory / "handrail.yaml"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example with its dependency where `helm dependency build` puts it."""
    shutil.copytree(EXAMPLE, tmp_path / "agent")
    shutil.copytree(CHART, tmp_path / "agent" / "charts" / "handrail")
    return tmp_path / "agent"


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
@pytest.mark.parametrize("version", ["1.25.0", "1.29.0", "1.34.0"])
def test_kubernetes_takes_every_manifest(values: dict[str, Any], version: str) -> None:
    """By the schemas of the oldest version that Chart.yaml admits and of later ones, no unknown field."""
    manifests = render(values)
    for each in manifests:
        assert each["metadata"]["name"].startswith("demo-handrail")
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("version", ["1.29.0", "1.34.0"])
def test_kubernetes_takes_the_sidecar(example: Path, version: str) -> None:
    """Beside an agent, as a native sidecar: before it, after it, and asked whether it is alive."""
    manifests = render({}, example)
    for each in manifests:
        kubernetes_validate.validate(each, version, strict=True)
    (pod,) = pods(manifests)
    assert [each["name"] for each in pod["containers"]] == ["agent"]
    assert [(each["name"], each["restartPolicy"]) for each in pod["initContainers"]] == [("handrail", "Always")]
    assert {each["kind"] for each in manifests} == {"ConfigMap", "Deployment", "Service"}
    (service,) = of_kind(manifests, "Service")
    ports = {each["name"] for each in containers(pod)[0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_handrail_takes_its_configuration(
    values: dict[str, Any], tmp_path: Path, handrail_command: Sequence[str]
) -> None:
    """`handrail check` on the directory as it is mounted: schemas and rules are found, and nothing is refused."""
    manifests = render(values)
    (pod,) = pods(manifests)
    file = mounted(manifests, pod, tmp_path)
    (tmp_path / "..data" / "handrail.yaml").write_text(file.read_text().replace("/var/lib/handrail/", f"{tmp_path}/"))
    done = subprocess.run([*handrail_command, "check", "-c", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = re.search(r"good: (\d+) listeners?, (\d+) rules?, (\d+) schemas?", done.stdout + done.stderr)
    assert told is not None
    listeners, rules, schemas = map(int, told.groups())
    assert listeners == len(containers(pod)[0]["ports"]) - 1, "the admin port is none"
    assert rules == BUILT_IN + len(values.get("rules", ()))
    assert schemas == len(values.get("schemas", {})), "subjects"


@pytest.mark.parametrize("beside", [False, True], ids=["gateway", "sidecar"])
def test_every_listener_has_its_port(beside: bool, example: Path) -> None:
    """What the configuration listens on, the container declares and the Service leads to, under one name."""
    manifests = render({}, example) if beside else render(ALL)
    (pod,) = pods(manifests)
    (container,) = containers(pod)
    declared = {port["name"]: port["containerPort"] for port in container["ports"]}
    if beside:
        assert declared == {"route-0": 8081, "admin": 9464}, "not what only the agent in the same pod reaches"
        return
    assert declared == {
        "route-0": 8081,
        "route-1": 8082,
        "forward": 3128,
        "store-0-0": 6380,
        "store-0-1": 6381,
        "bus-0": 4222,
        "registry": 8085,
        "otlp-http": 4318,
        "otlp-grpc": 4317,
        "admin": 9464,
    }
    (service,) = of_kind(manifests, "Service")
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == declared
    (policy,) = of_kind(manifests, "NetworkPolicy")
    assert sorted(rule["ports"][0]["port"] for rule in policy["spec"]["ingress"]) == sorted(declared.values())
    assert all(len(name) <= 15 for name in declared), "what Kubernetes allows"


def test_selectors_find_the_pods() -> None:
    """Whatever selects, selects what the Deployment makes."""
    manifests = render(ALL)
    (deployment,) = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        *(each["spec"]["selector"] for each in of_kind(manifests, "Service")),
        *(each["spec"]["selector"]["matchLabels"] for each in of_kind(manifests, "PodDisruptionBudget")),
        *(each["spec"]["selector"]["matchLabels"] for each in of_kind(manifests, "PodMonitor")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in of_kind(manifests, "NetworkPolicy")),
    ]
    assert len(selectors) == 5
    assert all(selector.items() <= labels for selector in selectors)


def test_probes_ask_what_is_there() -> None:
    """On the admin port, whose paths are the sidecar's own."""
    (pod,) = pods(render(ALL))
    (container,) = containers(pod)
    app = Admin(AdminConfig(), Metrics(), ready=dict).app
    paths = {resource.canonical for resource in app.router.resources()}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "admin"
        assert asked["path"] in paths
    assert pod["terminationGracePeriodSeconds"] > GATEWAY["config"]["limits"]["drain_seconds"]


def test_nothing_may_do_more_than_it_must(example: Path) -> None:
    """No root, no new privileges, no writing but where something is mounted, no token of the cluster."""
    for manifests in (render(ALL), render({}, example)):
        (pod,) = pods(manifests)
        (container,) = containers(pod)
        context = container["securityContext"]
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert f"--uid {context['runAsUser']} " in (REPOSITORY / "deploy" / "Dockerfile").read_text()
        assert {mount["name"] for mount in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}
    (account,) = of_kind(render(ALL), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_alert_rules_and_dashboards_are_the_repository_s() -> None:
    """To the last expression: Helm's braces are not Prometheus's."""
    manifests = render(ALL)
    rules = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "PrometheusRule")}
    files = sorted((REPOSITORY / "rules" / "alerts").glob("*.yaml"))
    assert rules == {f"demo-handrail-{file.stem}": yaml.safe_load(file.read_text("utf-8")) for file in files}
    boards = sorted((REPOSITORY / "dashboards").glob("handrail-*.json"))
    shown = [
        each["data"] for each in of_kind(manifests, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"]
    ]
    assert sorted(name for data in shown for name in data) == [board.name for board in boards]
    for data in shown:
        for name, text in data.items():
            assert json.loads(text) == json.loads((REPOSITORY / "dashboards" / name).read_text("utf-8"))
            assert len(text) < 1_000_000, "what a ConfigMap holds"


def test_a_packed_chart_renders_the_same(tmp_path: Path) -> None:
    """Rules and dashboards are links in the repository; in the archive they are files."""
    with helm.Chart.load(CHART) as loaded:
        archive = Path(loaded.save(tmp_path))
    assert render(ALL, archive) == render(ALL)


def test_what_changes_makes_new_pods_where_it_must() -> None:
    """Configuration and rules do; schemas are taken up by a pod that runs."""

    def checksum(values: dict[str, Any]) -> str:
        (deployment,) = of_kind(render(values), "Deployment")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    first = checksum(GATEWAY)
    assert checksum(GATEWAY) == first
    assert checksum(GATEWAY | {"config": GATEWAY["config"] | {"payloads": True}}) != first
    assert checksum(GATEWAY | {"rules": {"mine": PACK}}) != first
    changed = FILES | {"schemas": {"triage.billing": {"1": {"type": "array"}}}}
    assert checksum(changed) == checksum(FILES)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt value": ({"replica": 2}, "replica"),
    "a misspelt value inside": ({"persistence": {"enable": True}}, "enable"),
    "a value of another type": ({"replicas": "two"}, "replicas"),
    "a rule pack that is none": ({"rules": {"mine": {"rules": []}}}, "language"),
    "a subject that is no file name": ({"schemas": {"a/b": {"1": {}}}}, "a/b"),
    "underscores": (FILES | {"schemas": {"a__b": {"1": {}}}}, "schemas.a__b: two underscores"),
    "nothing": ({}, "config: there is nothing to listen on"),
    "two sources of schemas": (GATEWAY | {"schemas": FILES["schemas"]}, "schemas: config.registry has schemas"),
    "a port taken twice": (
        {"config": {"routes": [ROUTE, ROUTE]}},
        "config.routes[1].listen: port 8081 is that of config.routes[0].listen; choose another",
    ),
    "the admin's port": (
        {"config": {"routes": [ROUTE | {"listen": "0.0.0.0:9464"}]}},
        "config.admin.listen: port 9464",
    ),
    "an address without a port": ({"config": {"routes": [ROUTE | {"listen": "0.0.0.0"}]}}, "config.routes[0].listen"),
    "any free port": ({"config": {"routes": [ROUTE | {"listen": "0.0.0.0:0"}]}}, "has no port"),
    "a loopback address": (
        {"config": {"routes": [ROUTE | {"listen": "127.0.0.1:8081"}]}},
        "nobody outside of the pod reaches 127.0.0.1:8081; write 0.0.0.0:8081",
    ),
    "an admin port that no probe reaches": ({"config": {"admin": {"listen": "127.0.0.1:9464"}}}, "config.admin.listen"),
    "a registry that goes with the pod": (
        {"config": {"registry": {"sqlite": "/var/lib/handrail/r.db"}}},
        "set persistence.enabled",
    ),
    "a registry beside an agent, where the chart makes no disk": (
        GATEWAY | {"gateway": {"enabled": False}},
        "config.registry.sqlite: without a disk",
    ),
    "a registry on no disk": (
        {"config": {"registry": {"sqlite": "r.db"}}, "persistence": {"enabled": True}},
        "name a file below /var/lib/handrail/",
    ),
    "a ClickHouse that goes with the pod": (
        {"config": {"clickhouse": {"dsn": "chdb:///var/lib/handrail/ch"}}},
        "config.clickhouse.dsn",
    ),
    "two pods on one disk": (GATEWAY | {"replicas": 2}, "replicas: several pods cannot share one disk"),
}


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_with_its_name(values: dict[str, Any], said: str) -> None:
    """When it is rendered, not when a pod restarts for the tenth time."""
    with pytest.raises(HelmError) as refused:
        render(values)
    assert said in str(refused.value)


def test_the_chart_is_of_this_version_and_says_what_it_takes() -> None:
    """appVersion is the project's, every value is in the README's table, and lint misses nothing but an icon."""
    told = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert told["appVersion"] == handrail.__version__
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    assert values.keys() == schema["properties"].keys() - {"global"}
    described = set(re.findall(r"`(\w+)(?:\.\w+)?`", (CHART / "README.md").read_text("utf-8")))
    assert values.keys() <= described
    found = helm.lint(CHART, ALL, strict=False)
    assert not found["errors"]
    assert [each["error"] for each in found["messages"]] == ["icon is recommended"]
