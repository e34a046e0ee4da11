"""Files become what the core loads from them: schema directories a Registry, rule files packs."""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import handrail
from handrail import rules
from handrail.config import Config, ConfigError
from handrail.edge.text import Unreadable as Unreadable
from handrail.edge.text import decoded as decoded
from handrail.edge.text import in_words
from handrail.edge.text import read_text as read_text
from handrail.edge.worker import vetted
from handrail.event import Fault
from handrail.rules import Pack
from handrail.schema.registry import Registry

MAX_SCHEMA_BYTES = 1_048_576
"""How much of a schema file is read; the registry's own limit is lower and says so better."""

MAX_SCHEMAS = 10_000


def read_schemas(directory: str | Path) -> dict[str, bytes]:
    """A schema directory to the bytes of each `<subject>/<version>.json`, by that path. Raises Unreadable.

    A directory is taken as a whole or not at all, so that no half of a change comes into force. Entries that begin
    with a dot are skipped: a mounted ConfigMap keeps its generations in `..data`, and the visible names are links into
    it. So is a file beside the schemas that is not JSON, such as a README.
    """
    root = Path(directory)
    files: dict[str, bytes] = {}
    problems: list[str] = []
    try:
        for path in _entries(root):
            name = path.relative_to(root).as_posix()
            try:
                if "/" in name and path.is_dir():
                    raise ValueError("is a directory inside a subject; a schema is <subject>/<version>.json")
                if name.endswith(".json"):
                    if len(files) >= MAX_SCHEMAS:
                        problems.append(f"{root}: holds more than {MAX_SCHEMAS} schemas")
                        break
                    files[name] = _read(path)
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {in_words(error)}")
    except OSError as error:
        problems.append(f"{root}: {in_words(error)}")
    if problems:
        raise Unreadable(problems)
    return files


def schema_stamp(directory: str | Path) -> int:
    """A number that changes when the files of a schema directory do: names, sizes, times of change and inodes.

    It costs one stat for each file; contents are not read. A directory that cannot be read has a stamp too.
    """
    root = Path(directory)
    seen: list[tuple[object, ...]] = []
    try:
        for path in _entries(root):
            try:
                stat = path.stat()
                seen.append((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino))
            except OSError as error:
                seen.append((str(path), error.errno))
    except OSError as error:
        seen.append((str(root), error.errno))
    return hash(tuple(seen))


def _entries(root: Path) -> Iterator[Path]:
    """What is in a directory, and in the directories directly below it, in order of name."""
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry
            continue
        for inner in sorted(entry.iterdir()):
            if not inner.name.startswith("."):
                yield inner


def _read(path: Path) -> bytes:
    """The bytes of a regular file of bounded size. Raises OSError or ValueError."""
    # O_NONBLOCK: opening a named pipe must not wait for somebody to write into it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not path.is_file():
            raise ValueError("is not a regular file")
        content = file.read(MAX_SCHEMA_BYTES + 1)
    if len(content) > MAX_SCHEMA_BYTES:
        raise ValueError(f"is longer than {MAX_SCHEMA_BYTES} bytes")
    return content


def builtin_packs() -> list[tuple[str, str]]:
    """The built-in rule packs as (name, text): from the wheel, or from the repository where it runs from there."""
    inside = resources.files("handrail") / "packs"
    if inside.is_dir():
        found = [(entry.name, entry.read_text("utf-8")) for entry in inside.iterdir() if entry.name.endswith(".yaml")]
        return sorted(found)
    beside = Path(handrail.__file__).parents[2] / "rules" / "detection"
    return [(path.name, path.read_text("utf-8")) for path in sorted(beside.glob("*.yaml"))]


def read_packs(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Rule files, and the `*.yaml` of directories, as (path, text). Raises Unreadable."""
    found: list[tuple[str, str]] = []
    problems: list[str] = []
    for given in paths:
        path = Path(given)
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not inside:
            problems.append(f"{given}: holds no .yaml file")
        for file in inside:
            try:
                found.append((str(file), read_text(file)))
            except Unreadable as error:
                problems += error.problems
    if problems:
        raise Unreadable(problems)
    return found


def load_registry(config: Config) -> Registry:
    """The schemas in the directory of a configuration. Raises Unreadable with every file that is wrong."""
    registry = Registry(config.schemas.edges)
    directory = config.schemas.directory
    if directory is not None:
        files = read_schemas(directory)
        problems = [f"{file}: {why}" for file, why in vetted(files).items()]
        problems = problems or [str(problem) for problem in registry.load(files)]
        if problems:
            # not joined as paths: that would make one slash of the two in a URL that the problem names
            raise Unreadable([f"{Path(directory)}/{problem}" for problem in problems])
    return registry


def registry_in_force(config: Config, tell: Callable[[Fault], None]) -> Registry:
    """The schemas that a run would judge by, wherever its registry is. Raises Unreadable, ConfigError."""
    if config.registry is None:
        return load_registry(config)
    from handrail.edge.schemas import registry_of  # only here: a directory needs no HTTP client

    return registry_of(config, tell)


def load_packs(config: Config) -> list[Pack]:
    """The rule packs of a configuration, the built-in ones first. Raises Unreadable with what is wrong in each file."""
    packs: list[Pack] = []
    problems: list[str] = []
    written = [(name, text, True) for name, text in (builtin_packs() if config.rules.builtin else ())]
    written += [(name, text, False) for name, text in read_packs(config.rules.files)]
    for name, text, builtin in written:
        try:
            packs.append(rules.load(text, name, builtin=builtin))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise Unreadable(problems)
    return packs
