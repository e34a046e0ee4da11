"""What the `schema` commands work on: a schema directory, or a registry service, read and written from the shell."""

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import orjson

from handrail.config import Config, ConfigError, RegistryConfig
from handrail.edge.files import Unreadable, read_schemas, read_text
from handrail.edge.registry import tokens_of
from handrail.edge.worker import Exhausted, Text, Worker
from handrail.schema.compatibility import Verdict
from handrail.schema.registry import SchemaError, is_version, version_order
from handrail.schema.store import Denied, Reference, Store, Version, content_key, from_files

T = TypeVar("T")

SECONDS = 30.0
"""How long a service may take to answer."""


class Entry(msgspec.Struct, frozen=True):
    """A registered version, as the commands print it."""

    subject: str
    version: str
    id: int
    schema: str
    references: tuple[Reference, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """What came of registering: the entry, or why not."""

    entry: Entry | None = None
    is_new: bool = False
    verdict: dict[str, Any] | None = None
    """Where it is not compatible: `decided`, `reasons` and the `witness`, as far as the registry tells."""
    problem: str = ""


class Catalogue(Protocol):
    """A registry as a person at a shell sees it. Every method raises Unreadable where it cannot be asked."""

    def subjects(self) -> dict[str, list[str]]:
        """Every subject with its versions, oldest first."""
        ...

    def entry(self, subject: str, version: str | None = None) -> Entry:
        """One version, the latest where none is named."""
        ...

    def register(
        self, subject: str, text: str, *, version: str | None, references: Sequence[Reference], mode: str | None
    ) -> Outcome: ...


class Directory:
    """`<directory>/<subject>/<version>.json`"""

    def __init__(self, directory: str, config: RegistryConfig | None = None) -> None:
        self._root, self._config = directory, config or RegistryConfig()

    def subjects(self) -> dict[str, list[str]]:
        store = self._store()
        return {subject: [_label(each) for each in store.versions(subject)] for subject in store.subjects()}

    def entry(self, subject: str, version: str | None = None) -> Entry:
        store = self._store()
        try:
            return _entry(store, store.version(subject, version or "latest"))
        except Denied as denied:
            raise Unreadable([f"{self._root}: {denied.message}"]) from None

    def register(
        self, subject: str, text: str, *, version: str | None, references: Sequence[Reference], mode: str | None
    ) -> Outcome:
        """A file that is there is never written again; the next free number is taken where no version is named."""
        if references:
            raise Unreadable(["--reference: in a directory a $ref names a file itself, such as ../address/1.json"])
        if not subject or subject.startswith(".") or "/" in subject or "\0" in subject:
            raise Unreadable([f"{subject}: is no subject here; it becomes the name of a directory in {self._root}"])
        if version is not None and not is_version(version):
            raise Unreadable([f"--version: {version} is no version; it becomes the name of a file"])
        mode = mode or self._config.compatibility
        for _ in range(100):
            files = read_schemas(self._root) if Path(self._root).exists() else {}
            store = self._stored(files)
            place = self._known(store, subject, text)
            if place is not None and version in (None, _label(place)):
                return Outcome(_entry(store, place))
            versions = store.versions(subject) if subject in store.subjects() else []
            label = version or str(max((each.version for each in versions), default=0) + 1)
            file = f"{subject}/{label}.json"
            if file in files:
                raise Unreadable([f"{Path(self._root) / file}: is there already, with other content"])
            files[file] = text.encode("utf-8", "surrogatepass")
            before = [each for each in versions if version_order(_label(each)) < version_order(label)]
            verdict = asyncio.run(self._vetted(files, file, [_file(each) for each in before], mode))
            if not verdict.compatible:
                found = {"decided": verdict.decided, "reasons": msgspec.to_builtins(verdict.reasons)}
                return Outcome(verdict=found | ({"witness": verdict.witness} if verdict.decided == "witness" else {}))
            if self._write(file, files[file]):
                return Outcome(self.entry(subject, label), is_new=True)
        raise Unreadable([f"{self._root}: too many writers at once; try again"])

    def _known(self, store: Store, subject: str, text: str) -> Version | None:
        try:
            key = content_key(store.read(text), ())
        except Denied as denied:
            raise Unreadable([denied.message]) from None
        if subject not in store.subjects():
            return None
        found = (each for each in store.versions(subject))
        return next((each for each in found if content_key(store.read(store.text(each).text), ()) == key), None)

    async def _vetted(self, files: dict[str, bytes], file: str, before: list[str], mode: str) -> Verdict:
        worker, new = Worker(), Text(file, files)
        try:
            problem = await worker.compile(new, self._config.compile_seconds)
            if problem is not None:
                raise Unreadable([f"{file}: {problem}"])
            if mode == "NONE" or not before:
                return Verdict(True, "proved")
            versions = [Text(each, files) for each in before]
            return await worker.compare(
                versions,
                new,
                mode,  # type: ignore[arg-type]  # argparse lets nothing else through
                self._config.compare_seconds,
                policy=self._config.policy,
                accept_undecided=self._config.accept_undecided,
            )
        except Exhausted as error:
            raise Unreadable([f"{file}: cannot be compiled: it {error}"]) from None
        except SchemaError as error:
            raise Unreadable([f"{file}: {error}"]) from None
        finally:
            await worker.stop()

    def _write(self, file: str, raw: bytes) -> bool:
        """Writes a file that must not be there yet, whole or not at all; False where another writer was first."""
        path = Path(self._root) / file
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(fresh, "wb") as out:
                out.write(raw)
                out.flush()
                os.fsync(out.fileno())
            os.link(fresh, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise Unreadable([f"{path}: cannot be written: {(error.strerror or str(error)).lower()}"]) from None
        finally:
            fresh.unlink(missing_ok=True)
        return True

    def _store(self) -> Store:
        return self._stored(read_schemas(self._root))

    def _stored(self, files: dict[str, bytes]) -> Store:
        try:
            return from_files(files)
        except (SchemaError, UnicodeDecodeError) as error:
            raise Unreadable([f"{self._root}: {error}"]) from None


class Service:
    """A registry that speaks Confluent's REST API."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {
            "Accept": "application/vnd.schemaregistry.v1+json",
            "Confluent-Accept-Unknown-Properties": "true",
        }
        if token:
            basic = "Basic " + base64.b64encode(token.encode()).decode()
            self._headers["Authorization"] = basic if ":" in token else f"Bearer {token}"

    def subjects(self) -> dict[str, list[str]]:
        async def read(session: aiohttp.ClientSession) -> dict[str, list[str]]:
            found = {}
            for subject in _good(await self._ask(session, "GET", "/subjects")):
                versions = _good(await self._ask(session, "GET", f"{_path(subject)}/versions"))
                found[subject] = [str(each) for each in versions]
            return found

        return self._run(read)

    def entry(self, subject: str, version: str | None = None) -> Entry:
        async def read(session: aiohttp.ClientSession) -> Entry:
            where = f"{_path(subject)}/versions/{quote(version or 'latest', safe='')}"
            return _from(_good(await self._ask(session, "GET", where)))

        return self._run(read)

    def register(
        self, subject: str, text: str, *, version: str | None, references: Sequence[Reference], mode: str | None
    ) -> Outcome:
        if mode is not None:
            raise Unreadable(["--mode: a service has a mode of its own for each subject; set it there"])
        body: dict[str, Any] = {"schema": text, "schemaType": "JSON", "references": msgspec.to_builtins(references)}
        if version is not None:
            if not version.isdigit():
                raise Unreadable([f"--version: {version} is no number, and a service numbers its versions"])
            body["version"] = int(version)

        async def write(session: aiohttp.ClientSession) -> Outcome:
            status, known = await self._ask(session, "POST", _path(subject), body)
            if status == 200 and version in (None, str(known.get("version"))):
                return Outcome(_from(known))
            status, answer = await self._ask(session, "POST", f"{_path(subject)}/versions", body)
            if status == 409:
                verdict = {name: answer[name] for name in ("decided", "reasons", "witness") if name in answer}
                return Outcome(verdict=verdict, problem=str(answer.get("message", "")))
            _good((status, answer))
            return Outcome(_from(_good(await self._ask(session, "POST", _path(subject), body))), is_new=True)

        return self._run(write)

    def _run(self, work: Callable[[aiohttp.ClientSession], Awaitable[T]]) -> T:
        async def whole() -> T:
            timeout = aiohttp.ClientTimeout(total=SECONDS)
            async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
                return await work(session)

        try:
            return asyncio.run(whole())
        except TimeoutError:
            raise Unreadable([f"{self._url}: did not answer within {SECONDS:g} s"]) from None
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable([f"{self._url}: {error or type(error).__name__}"]) from None

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, Any]:
        kind = {"Content-Type": "application/vnd.schemaregistry.v1+json"} if body is not None else {}
        raw = None if body is None else orjson.dumps(body)
        async with session.request(method, self._url + path, data=raw, headers=kind, allow_redirects=False) as reply:
            answer = await reply.read()
            try:
                return reply.status, json.loads(answer)
            except ValueError:
                raise Unreadable(
                    [f"{self._url}: is no schema registry: it answered {reply.status}, and no JSON"]
                ) from None


def _path(subject: str) -> str:
    return "/subjects/" + quote(subject, safe="")


def _good(answer: tuple[int, Any]) -> Any:
    """What a service answered. Raises Unreadable with its own words where that is an error."""
    status, body = answer
    if status != 200:
        raise Unreadable(
            [str(body.get("message", body)) if isinstance(body, dict) else f"the registry answered {status}"]
        )
    return body


def _from(body: Any) -> Entry:
    references = msgspec.convert(body.get("references") or [], tuple[Reference, ...])
    return Entry(body["subject"], str(body["version"]), body["id"], body["schema"], references)


def _entry(store: Store, version: Version) -> Entry:
    document = store.text(version)
    return Entry(version.subject, _label(version), version.id, document.text, document.references)


def _label(version: Version) -> str:
    return version.label or str(version.version)


def _file(version: Version) -> str:
    return f"{version.subject}/{_label(version)}.json"


def opened(directory: str | None, url: str | None, token_file: str | None, config: Config | None) -> Catalogue:
    """The catalogue that flags or a configuration name. Raises ConfigError where they name none."""
    registry = config.registry if config is not None else None
    if config is not None:
        directory = directory or config.schemas.directory
        if url is None and registry is not None:
            url = registry.remote
            if url is None and registry.listen is not None and directory is None:
                url = f"{'https' if registry.tls_cert_file else 'http'}://{registry.listen}"
                token_file = token_file or registry.token_file
    if directory is not None:
        return Directory(directory, registry)
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError("command line", "--registry", f"{url!r} is no URL; write http://host:port")
        tokens = tokens_of(token_file, "HANDRAIL_REGISTRY_TOKEN")
        return Service(url, tokens[0] if tokens else None)
    raise ConfigError("command line", "--schemas", "is missing; name a schema directory, or --registry URL")


def register(
    catalogue: Catalogue,
    subject: str,
    file: str,
    *,
    version: str | None = None,
    references: Sequence[str] = (),
    mode: str | None = None,
    output: str = "text",
) -> int:
    """Registers a schema file. The exit status: 0, or 1 where it is not compatible."""
    text = sys.stdin.read() if file == "-" else read_text(file)
    named = [_reference(each) for each in references]
    return register_text(catalogue, subject, text, version=version, references=named, mode=mode, output=output)


def register_text(
    catalogue: Catalogue,
    subject: str,
    text: str,
    *,
    version: str | None = None,
    references: Sequence[Reference] = (),
    mode: str | None = None,
    output: str = "text",
) -> int:
    """Registers a schema and says what came of it. The exit status: 0, or 1 where it is not compatible."""
    outcome = catalogue.register(subject, text, version=version, references=references, mode=mode)
    entry = outcome.entry
    if entry is None:
        if output == "json":
            _print({"type": "refused", "subject": subject, "problem": outcome.problem, **(outcome.verdict or {})})
        else:
            _tell(f"handrail: {subject}: is not compatible with what is registered")
            for each in (outcome.verdict or {}).get("reasons", ()):
                _tell(f"  {each['path'] or '/'}: {each['keyword']}: {each['message']}")
            if "witness" in (outcome.verdict or {}):
                witness = json.dumps((outcome.verdict or {})["witness"])
                _tell(f"  the one admits and the other refuses: {witness}")
            if not outcome.verdict:
                _tell(f"  {outcome.problem}")
        return 1
    if output == "json":
        _print({"type": "registered", "is_new": outcome.is_new, **_shown(entry)})
    else:
        is_new = "registered" if outcome.is_new else "is registered already"
        sys.stdout.write(f"{entry.subject}@{entry.version}: {is_new}, id {entry.id}\n")
    return 0


def list_subjects(catalogue: Catalogue, *, output: str = "text") -> int:
    """Prints every subject with its versions."""
    for subject, versions in catalogue.subjects().items():
        if output == "json":
            _print({"type": "subject", "subject": subject, "versions": versions})
        else:
            sys.stdout.write(f"{subject}  {' '.join(versions)}\n")
    return 0


def show(catalogue: Catalogue, subject: str, *, output: str = "text") -> int:
    """Prints one schema."""
    name, _, version = subject.rpartition("@") if "@" in subject else (subject, "", "")
    entry = catalogue.entry(name, version or None)
    if output == "json":
        _print({"type": "schema", **_shown(entry)})
    else:
        sys.stdout.write(entry.schema if entry.schema.endswith("\n") else entry.schema + "\n")
    return 0


def _shown(entry: Entry) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(entry)
    with contextlib.suppress(ValueError, RecursionError):
        shown["schema"] = json.loads(entry.schema)
    return shown


def _reference(text: str) -> Reference:
    name, _, place = text.rpartition("=")
    subject, _, version = place.rpartition("@")
    if not name or not subject or not (version.isdigit() or version == "latest"):
        raise ConfigError("command line", "--reference", f"{text!r} is not NAME=SUBJECT@VERSION")
    return Reference(name, subject, -1 if version == "latest" else int(version))


def _print(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\n")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
