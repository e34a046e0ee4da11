"""The schemas in force follow the registry that is configured: a ledger, a remote registry, or a directory.

What is compiled is compiled in a thread, and put in force on the event loop as a whole. A version that cannot be
enforced is left out and counted; a directory that holds one stays as it was.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handrail.config import Config, ConfigError, RegistryConfig
from handrail.edge.files import MAX_SCHEMAS, Unreadable, load_registry, read_schemas
from handrail.edge.ledger import LedgerError
from handrail.edge.metrics import Metrics
from handrail.edge.registry import RegistryApi, RegistryBook
from handrail.edge.remote_registry import Astray, RemoteRegistry, store_of
from handrail.edge.worker import vetted
from handrail.event import Fault
from handrail.schema.registry import Registry
from handrail.schema.store import Store, from_files

log = logging.getLogger("handrail.registry")

DEFAULT_FILE = "handrail-registry.sqlite3"


def registry_of(config: Config, tell: Callable[[Fault], None]) -> Registry:
    """The schemas that a run would judge by now, for who only reads them. Nothing is written, and nothing made.

    `tell` is told what a run would count as a fault: a version that is left out, a remote registry that is away. Raises
    Unreadable where there is neither an answer of that nor one from before, and ConfigError as a run does.
    """
    settings = config.registry
    if settings is None or config.schemas.directory is not None:
        return load_registry(config)

    def refused(problem: str, reason: str = "invalid") -> None:
        tell(Fault(component="registry", reason=reason, message=problem))

    if settings.remote is not None:
        remote = RemoteRegistry(settings)
        if problem := remote.read_cache():
            refused(f"nothing kept from before is used: {problem}", "unreadable")
        try:
            asyncio.run(_polled(remote))
        except Astray as error:
            if remote.confirmed_at is None:
                raise Unreadable([f"registry.remote: {error}; {_CURES[error.reason]}"]) from None
            since = datetime.fromtimestamp(remote.confirmed_at, UTC).isoformat(timespec="seconds")
            refused(f"{error}; what it had at {since} is used, from {settings.cache}", error.reason)
        store, problems = store_of(remote.rows, settings.compatibility)
        book = RegistryBook(store, source=remote.url)
    else:
        problems, file = [], settings.sqlite or DEFAULT_FILE
        if not Path(file).parent.is_dir():
            raise ConfigError("configuration", "registry.sqlite", f"{Path(file).parent} is no directory; make it")
        try:
            is_there = Path(file).exists() and Path(file).stat().st_size > 0
        except OSError as error:
            raise ConfigError("configuration", "registry.sqlite", f"cannot be a file: {error.strerror}") from None
        if not is_there:
            refused(f"registry.sqlite: {file} is not there; a run would begin without a schema", "unreadable")
            return Registry(config.schemas.edges)
        try:
            book = RegistryBook.opened(file, settings.compatibility, read_only=True)
        except LedgerError as error:
            raise ConfigError("configuration", "registry.sqlite", str(error)) from None
        assert book.ledger is not None
        book.ledger.close()
    registry = Registry(config.schemas.edges)
    subjects, more = _compiled(book, registry, settings)
    registry.replace(subjects)
    for problem in problems + more:
        refused(problem)
    return registry


_CURES = {
    "unreachable": "start it, or mend the URL; a run that reached it once leaves its answer in registry.cache",
    "slow": "it is at fault, or raise registry.request_seconds; a run that was answered keeps that in registry.cache",
    "refused": "it is at fault, or the token in registry.remote_token_file is; what it answers says which",
    "invalid": "it is at fault, or the URL leads to something that is no schema registry",
    "changed": "it is at fault: what was registered must never change",
}


async def _polled(remote: RemoteRegistry) -> None:
    try:
        await remote.poll()
    finally:
        await remote.close()


def _compiled(book: RegistryBook, registry: Registry, settings: RegistryConfig) -> tuple[Any, list[str]]:
    """What `Registry.replace` takes, and what is wrong with the versions that were left out."""
    files, references = book.texts()
    if len(files) > MAX_SCHEMAS:
        return {}, [f"{book.source}: holds more than {MAX_SCHEMAS} schemas"]
    costly: dict[str, str] = {}
    if settings.remote is not None:  # what is in our own ledger was vetted when it was registered
        costly = vetted(files, references, seconds=settings.compile_seconds)
        files = {file: raw for file, raw in files.items() if file not in costly}
    subjects, problems = registry.compiled(files, references)
    return subjects, [f"{file}: {why}" for file, why in costly.items()] + [str(problem) for problem in problems]


class Schemas:
    """Keeps a `Registry` what the configured registry says it is, and serves that one where it should be served."""

    def __init__(self, config: Config, registry: Registry, metrics: Metrics, fault: Callable[[Fault], None]) -> None:
        """Loads what there is. Raises ConfigError where the ledger, a token or a certificate cannot be read."""
        assert config.registry is not None
        self._config, self._settings = config, config.registry
        self._registry, self._metrics, self._fault = registry, metrics, fault
        self._loaded = asyncio.Lock()
        self._dirty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.remote: RemoteRegistry | None = None
        self.book = self._opened()
        self.api = RegistryApi(self._settings, self.book, metrics) if self._settings.listen is not None else None
        if config.schemas.directory is None:
            self._put(*self._compiled())
        self.book.changed = self._dirty.set

    def _opened(self) -> RegistryBook:
        settings, level = self._settings, self._settings.compatibility
        if self._config.schemas.directory is not None:
            directory = self._config.schemas.directory
            try:
                return RegistryBook(from_files(read_schemas(directory), level), source=directory)
            except Unreadable as error:
                raise ConfigError("configuration", "schemas.directory", str(error)) from None
        if settings.remote is not None:
            self.remote = RemoteRegistry(settings)
            if problem := self.remote.read_cache():
                log.warning("nothing kept from before is used: %s", problem)
            return RegistryBook(self._remote_store(), source=self.remote.url)
        try:
            return RegistryBook.opened(settings.sqlite or DEFAULT_FILE, level)
        except LedgerError as error:
            raise ConfigError("configuration", "registry.sqlite", str(error)) from None

    async def start(self) -> None:
        """Raises OSError where the address of the API is taken."""
        metrics, remote = self._metrics, self.remote
        metrics.watch("handrail_registry_age_seconds", self._age)
        metrics.watch("handrail_registry_up", lambda: remote is None or remote.up)
        if self.api is not None:
            await self.api.start()
        self._tasks.append(asyncio.create_task(self._reload()))
        if remote is not None:
            await self._poll(remote)
            self._tasks.append(asyncio.create_task(self._follow(remote)))
        elif self.book.ledger is not None:
            self._tasks.append(asyncio.create_task(self._catch_up()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.api is not None:
            await self.api.stop()
        if self.remote is not None:
            await self.remote.close()
        if self.book.ledger is not None:
            async with self.book.turn:
                self.book.ledger.close()

    def directory_changed(self, files: Mapping[str, bytes]) -> None:
        """The directory was read again, and is in force."""
        self.book.replace(from_files(files, self._settings.compatibility))

    def _age(self) -> float:
        if self.remote is None:
            return 0.0
        at = self.remote.confirmed_at
        return time.time() - at if at is not None else float("inf")

    def _remote_store(self) -> Store:
        assert self.remote is not None
        store, problems = store_of(self.remote.rows, self._settings.compatibility)
        self._tell(problems)
        return store

    def _compiled(self) -> tuple[Any, list[str]]:
        return _compiled(self.book, self._registry, self._settings)

    def _put(self, subjects: Any, problems: list[str]) -> None:
        self._registry.replace(subjects)
        found = self._registry.subjects()
        self._metrics.gauge("handrail_registry_subjects", len(found))
        self._metrics.gauge("handrail_registry_versions", sum(map(len, found.values())))
        self._metrics.gauge("handrail_registry_refused", len(problems))
        self._tell(problems)

    def _tell(self, problems: list[str]) -> None:
        for problem in problems:
            self._fault(Fault(component="registry", reason="invalid", message=problem))

    async def load(self) -> None:
        """Puts what the book holds in force."""
        async with self._loaded:
            self._put(*await asyncio.to_thread(self._compiled))

    async def _reload(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._config.schemas.directory is None:
                await self.load()
                log.info("schemas reloaded from %s", self.book.source)

    async def _catch_up(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self.book.catch_up()
            except LedgerError as error:
                self._fault(Fault(component="registry", reason="unreadable", message=str(error)))

    async def _follow(self, remote: RemoteRegistry) -> None:
        while True:
            await asyncio.sleep(remote.wait_seconds())
            await self._poll(remote)

    async def _poll(self, remote: RemoteRegistry) -> None:
        try:
            changed = await remote.poll()
        except Astray as error:
            self._fault(Fault(component="registry", reason=error.reason, message=str(error)))
            self._metrics.gauge("handrail_registry_valid", error.reason not in ("invalid", "changed"))
            return
        self._metrics.gauge("handrail_registry_valid", True)
        if changed:
            self.book.replace(self._remote_store())
            await self.load()
        try:
            await asyncio.to_thread(remote.write_cache, changed=changed)
        except OSError as error:
            message = f"{self._settings.cache}: cannot be written: {error.strerror or error}"
            self._fault(Fault(component="registry", reason="unwritable", message=message))
