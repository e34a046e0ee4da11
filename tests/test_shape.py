"""What erodes first: a core without I/O, imports that point one way, names that say something, few dependencies."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "collector" / "handrail"

RANKS: Mapping[str, int] = {
    "records": 0,
    "event": 1,
    "wire": 2,
    "config": 3,
    "schema": 4,
    "graph": 4,
    "dialects": 5,
    "detectors": 5,
    "rules": 6,
    "pipeline": 7,
    "ruletest": 8,
    "edge": 9,
    "cli": 10,
    "__main__": 11,
}
"""A module may import from its own area and from areas of a lower rank, never sideways and never up."""

SHELL = {"edge", "cli", "__main__"}
"""The areas that may do I/O; everything else is the core."""

FORBIDDEN_IMPORTS: Mapping[str, str] = {
    "asyncio": "event loop",
    "uvloop": "event loop",
    "selectors": "event loop",
    "threading": "threads",
    "concurrent": "threads",
    "multiprocessing": "processes",
    "subprocess": "processes",
    "socket": "sockets",
    "ssl": "sockets",
    "http": "network",
    "urllib.request": "network",
    "aiohttp": "network",
    "httpx": "network",
    "clickhouse_connect": "network",
    "chdb": "database",
    "time": "clock; time comes in with the data",
    "logging": "log",
    "prometheus_client": "metrics",
    "opentelemetry": "metrics",
    "os": "environment and files",
    "pathlib": "files",
    "tempfile": "files",
    "shutil": "files",
    "random": "chance; the same events give the same findings",
}

FORBIDDEN_CALLS: Mapping[str, str] = {
    "open": "files",
    "print": "standard output",
    "input": "standard input",
    "datetime.now": "clock",
    "datetime.utcnow": "clock",
    "datetime.today": "clock",
    "date.today": "clock",
}

EMPTY_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "base",
    "manager",
    "misc",
    "core",
    "handler",
    "processor",
}
EMPTY_CLASS = re.compile(r"_*((Base|Abstract)([A-Z].*)?|.*(Manager|Handler|Processor|Helper|Impl|Utils?))")

PURE_PARTS = {"http.HTTPStatus", "pathlib.PurePath"}
"""A table of numbers and a way to take paths apart are no I/O."""


def impurities(source: str) -> Iterator[str]:
    """What a core module does that only the edge may: `line: what (why)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            for call, why in FORBIDDEN_CALLS.items():
                if called == call or ("." in call and called.endswith("." + call)):
                    yield f"{node.lineno}: {call}() ({why})"
        for name in imported(node):
            for module, why in FORBIDDEN_IMPORTS.items():
                if (name == module or name.startswith(module + ".")) and name not in PURE_PARTS:
                    yield f"{node.lineno}: import {name} ({why})"


def imported(node: ast.AST) -> Iterator[str]:
    """The dotted names that an import statement brings in; those of `from x import y` as `x.y`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uphill(area: str, source: str) -> Iterator[str]:
    """The imports of a module of `area` that do not point to its own or a lower area."""
    for node in ast.walk(ast.parse(source)):
        for name in imported(node):
            first, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if first == "handrail" and other in RANKS and other != area and RANKS[other] >= RANKS[area]:
                yield f"{node.lineno}: {area} imports {name}"
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{node.lineno}: relative import"


def empty_names(name: str, source: str) -> Iterator[str]:
    """Names that say nothing about the domain: of the module, of its classes."""
    if name.strip("_") in EMPTY_NAMES:
        yield f"module {name}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and EMPTY_CLASS.fullmatch(node.name):
            yield f"{node.lineno}: class {node.name}"


def area_of(path: Path) -> str:
    """The part of the package that a module belongs to: `wire` of wire/http1.py, `event` of event.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in sorted(PACKAGE.rglob("*.py"))]


def third_party(*sources: str) -> set[str]:
    """The top-level packages that are neither the standard library's nor ours."""
    names = {
        name.partition(".")[0] for source in sources for node in ast.walk(ast.parse(source)) for name in imported(node)
    }
    return names - set(sys.stdlib_module_names) - {"handrail"}


IMPORT_NAMES = {
    "pyyaml": "yaml",
    "grpcio": "grpc",
    "googleapis-common-protos": "google",
    "protobuf": "google",
    "opentelemetry-proto": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp": "opentelemetry",
}
"""What a distribution is imported as, where that is not its name."""


def distributions(requirements: Iterable[str]) -> set[str]:
    """Requirements to the names under which they are imported; extras of our own are left out."""
    names = {re.split(r"[<>=;\[ ]", requirement)[0].lower() for requirement in requirements}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names} - {"handrail"}


FIXED = {"jsonschema"}
"""Dependencies that the project is given, whether the package imports them or not."""


def test_dependencies_are_what_is_imported() -> None:
    """No import that is not declared, and nothing declared that is not imported, unless it is given."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    used = third_party(*(path.read_text() for path in PACKAGE.rglob("*.py")))
    required = distributions(project["dependencies"])
    optional = distributions(
        requirement for extra in project["optional-dependencies"].values() for requirement in extra
    )

    assert used - required - optional == set()
    assert required - used == FIXED


def test_every_dependency_has_a_reason() -> None:
    """Written on its line."""
    listed = (REPOSITORY / "pyproject.toml").read_text().partition("\ndependencies = [\n")[2].partition("\n]")[0]

    assert listed
    assert [line for line in listed.splitlines() if "  # " not in line] == []


def test_undeclared_imports_are_noticed() -> None:
    """Inside functions too; the standard library and Handrail itself are not third parties."""
    assert third_party("import os\ndef f():\n    from left.pad import x\nimport handrail.event") == {"left"}
    assert distributions(["a-b[c]>=1; x", "PyYAML>=6", "handrail[demo]"]) == {"a_b", "yaml"}


def test_every_area_has_a_rank() -> None:
    """A new area is placed among the others on purpose."""
    areas = {area_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert areas <= set(RANKS)


@pytest.mark.parametrize("path", MODULES)
def test_the_core_is_pure(path: Path) -> None:
    """The core imports no event loop, socket, clock, log or metric, and opens no file."""
    if area_of(path) not in SHELL:
        assert list(impurities(path.read_text())) == []


@pytest.mark.parametrize("path", MODULES)
def test_imports_point_one_way(path: Path) -> None:
    """event <- wire, schema <- dialects, detectors <- rules <- pipeline <- edge <- cli."""
    if area_of(path) != "__init__":
        assert list(uphill(area_of(path), path.read_text())) == []


@pytest.mark.parametrize("path", MODULES)
def test_names_say_something(path: Path) -> None:
    """No module or class is named after nothing in particular."""
    assert list(empty_names(path.stem, path.read_text())) == []


@pytest.mark.parametrize("path", MODULES)
def test_every_module_says_what_it_is(path: Path) -> None:
    """Each module opens with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import os.path",
        "def f():\n    import time",
        "from time import monotonic",
        "from concurrent.futures import Executor",
        "from urllib.request import urlopen",
        "from http import client",
        "from pathlib import Path",
        "open('x')",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.now(UTC)",
    ],
)
def test_impurity_is_noticed(source: str) -> None:
    """The check itself can fail, however the import is written."""
    assert list(impurities(source))


@pytest.mark.parametrize(
    "source",
    [
        "import timeit_of_ours",
        "from pathlib import PurePath",
        "from urllib.parse import urlsplit",
        "self.open(exchange)",
        "datetime.fromisoformat('x')",
    ],
)
def test_purity_is_not_mistaken(source: str) -> None:
    """What only looks like I/O passes."""
    assert list(impurities(source)) == []


@pytest.mark.parametrize(
    ("area", "source"),
    [
        ("event", "from handrail.wire import Exchange"),
        ("wire", "from handrail import schema"),
        ("dialects", "import handrail.detectors.duplicate"),
        ("pipeline", "def f():\n    from handrail.edge.proxy import Proxy"),
        ("edge", "from . import proxy"),
    ],
)
def test_uphill_imports_are_noticed(area: str, source: str) -> None:
    """Up, sideways and relative imports are found, also inside a function."""
    assert list(uphill(area, source))


def test_downhill_imports_pass() -> None:
    """An area may use itself and what lies below it."""
    assert list(uphill("pipeline", "from handrail.rules import Watch\nfrom handrail.pipeline import Pipeline")) == []


def test_empty_names_are_noticed() -> None:
    """Module and class names are both looked at."""
    assert list(empty_names("utils", "")) == ["module utils"]
    assert list(empty_names("queue", "class RowManager: ...\nclass _BaseSink: ...\nclass Basement: ...")) == [
        "1: class RowManager",
        "2: class _BaseSink",
    ]
