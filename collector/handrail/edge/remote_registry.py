"""A registry somewhere else becomes a `Store` here, asked again and again, and goes on as it was while it is away.

Handrail's own registry, and any that speaks Confluent's REST API, is asked for everything with conditional requests;
one that cannot list everything is walked subject by subject. What it said last, and was good, is kept on disk.
"""

import base64
import contextlib
import os
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import msgspec

from handrail.config import RegistryConfig
from handrail.edge.registry import configured_tokens
from handrail.edge.tls import trusting
from handrail.schema.registry import SchemaError, read_document
from handrail.schema.store import MAX_ID, Level, Reference, Registered, Store, content_key

PAGE = 1_000
MAX_ROWS = 100_000
CACHE_FORMAT = 1
CACHE_FILE = "registry.json"
LATER_SECONDS = 60.0
"""How long to wait at most after failures in a row."""


class Row(msgspec.Struct, frozen=True, rename={"schema_type": "schemaType"}):
    """A registered version, as a registry lists it."""

    subject: str
    version: int
    id: int
    schema: str
    schema_type: str = "AVRO"
    references: tuple[Reference, ...] | None = None


class _Cache(msgspec.Struct):
    format: int
    source: str
    at: float
    rows: list[Row]


class Astray(Exception):
    """The registry is away, slow, or wrong: `reason` is one of a closed list, the text is for people."""

    def __init__(self, reason: Literal["unreachable", "slow", "refused", "invalid", "changed"], text: str) -> None:
        super().__init__(text)
        self.reason = reason


def store_of(rows: Sequence[Row], level: Level = "BACKWARD") -> tuple[Store, list[str]]:
    """Rows to a store, and what is wrong with those that were left out."""
    store, problems = Store(level), []
    known: dict[int, bytes] = {}
    taken: set[tuple[str, int]] = set()
    told: set[int] = set()
    for row in sorted(rows, key=lambda row: (row.subject, row.version)):
        if row.schema_type != "JSON":
            continue
        name, references = f"{row.subject}/{row.version}", row.references or ()
        if not 0 < row.version <= MAX_ID or not 0 <= row.id <= MAX_ID or not row.subject:
            problems.append(f"{name}: has no proper version or id")
            continue
        try:
            key = content_key(read_document(row.schema.encode("utf-8", "surrogatepass")), references)
        except SchemaError as error:
            problems.append(f"{name}: {error}")
            continue
        if known.setdefault(row.id, key) != key or (row.subject, row.version) in taken:
            problems.append(f"{name}: its id {row.id}, or its place, is that of another schema")
            continue
        taken.add((row.subject, row.version))
        fresh = row.id not in told
        told.add(row.id)
        store.apply(
            Registered(
                subject=row.subject,
                version=row.version,
                id=row.id,
                text=row.schema if fresh else None,
                references=references if fresh else (),
            )
        )
    return store, problems


class RemoteRegistry:
    """What a remote registry said last, in memory and on disk."""

    def __init__(self, config: RegistryConfig) -> None:
        """Raises ConfigError where the token or the certificates cannot be read."""
        assert config.remote is not None
        self.url = config.remote.rstrip("/")
        self._config = config
        self._rows: dict[tuple[str, int], Row] = {}
        self._pages: dict[str, tuple[str | None, list[Row]]] = {}
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"} | _credentials(config)
        self._tls: ssl.SSLContext | None = None
        if self.url.startswith("https:"):
            self._tls = trusting(config.remote_ca_file, "registry.remote_ca_file")
        self._session: aiohttp.ClientSession | None = None
        self.confirmed_at: float | None = None
        """When what is here was last known to be what the registry has, seconds since the epoch."""
        self.up = False
        self.failures = 0

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def read_cache(self) -> str | None:
        """Takes what was kept on disk; why not, where there is something that cannot be taken."""
        file = Path(self._config.cache) / CACHE_FILE
        try:
            raw = file.read_bytes()
            cached = msgspec.json.decode(raw, type=_Cache)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            return f"{file}: cannot be read: {error}"
        if cached.format != CACHE_FORMAT or cached.source != self.url:
            return f"{file}: is not of {self.url}"
        self._rows = {(row.subject, row.version): row for row in cached.rows}
        with contextlib.suppress(OSError):
            self.confirmed_at = max(cached.at, min(file.stat().st_mtime, time.time()))
        return None

    def write_cache(self, *, changed: bool) -> None:
        """Keeps what is here; where it did not change, only that it was confirmed. Raises OSError."""
        directory = Path(self._config.cache)
        file = directory / CACHE_FILE
        if not changed and file.exists():
            os.utime(file)
            return
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = directory / f".{CACHE_FILE}.{os.getpid()}"
        body = msgspec.json.encode(_Cache(CACHE_FORMAT, self.url, self.confirmed_at or 0.0, self.rows))
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)

    async def poll(self) -> bool:
        """Asks for everything. Whether something changed. Raises Astray, and then nothing has."""
        try:
            rows = await self._everything()
            changed = self._take(rows)
        except Astray:
            self.up = False
            self.failures += 1
            raise
        self.up, self.failures = True, 0
        self.confirmed_at = time.time()
        return changed

    def wait_seconds(self) -> float:
        """Until the next poll: longer after each failure in a row."""
        seconds: float = self._config.poll_seconds * 2.0 ** min(self.failures, 10)
        return min(seconds, max(LATER_SECONDS, self._config.poll_seconds))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _take(self, rows: list[Row]) -> bool:
        fresh = {(row.subject, row.version): row for row in rows if row.schema_type == "JSON"}
        if not fresh and self._rows:
            raise Astray("changed", f"{self.url} has lost every schema; going on with what it had")
        for place, row in fresh.items():
            before = self._rows.get(place)
            if before is not None and before.id == row.id and before.schema != row.schema:
                raise Astray("changed", f"{self.url} changed {row.subject} version {row.version}; it must never change")
        changed = fresh != self._rows
        self._rows = fresh
        return changed

    async def _everything(self) -> list[Row]:
        rows: list[Row] = []
        for offset in range(0, MAX_ROWS, PAGE):
            found = await self._page(f"/schemas?offset={offset}&limit={PAGE}")
            if found is None:
                return await self._walked()
            rows += found
            if len(found) < PAGE:
                return await self._with_deleted(rows)
        raise Astray("invalid", f"{self.url} lists more than {MAX_ROWS} versions")

    async def _page(self, path: str) -> list[Row] | None:
        """A page of `/schemas`, None where there is no such thing."""
        tag, known = self._pages.get(path, (None, []))
        status, body, tag = await self._get(path, tag)
        if status == 304:
            return known
        if status in (404, 405):
            return None
        rows: list[Row] = self._decoded(path, status, body, list[Row])
        self._pages[path] = tag, rows
        return rows

    async def _walked(self) -> list[Row]:
        """Everything, subject by subject; versions that are here already are not asked for again."""
        rows: list[Row] = []
        for subject in await self._value("/subjects", list[str]):
            path = f"/subjects/{quote(subject, safe='')}/versions"
            for version in await self._value(path, list[int]):
                known = self._rows.get((subject, version))
                rows.append(known or await self._value(f"{path}/{version}", Row))
                if len(rows) > MAX_ROWS:
                    raise Astray("invalid", f"{self.url} lists more than {MAX_ROWS} versions")
        return await self._with_deleted(rows)

    async def _with_deleted(self, rows: list[Row]) -> list[Row]:
        """The rows, and those that they refer to though they were deleted."""
        known = {(row.subject, row.version) for row in rows}
        rest = [each for row in rows for each in row.references or ()]
        while rest:
            each = rest.pop()
            if (each.subject, each.version) not in known and len(rows) < MAX_ROWS:
                known.add((each.subject, each.version))
                row = self._rows.get((each.subject, each.version))
                if row is None:
                    path = f"/subjects/{quote(each.subject, safe='')}/versions/{each.version}?deleted=true"
                    row = await self._value(path, Row)
                rows.append(row)
                rest += row.references or ()
        return rows

    async def _value(self, path: str, kind: Any) -> Any:
        status, body, _ = await self._get(path, None)
        return self._decoded(path, status, body, kind)

    def _decoded(self, path: str, status: int, body: bytes, kind: Any) -> Any:
        if status != 200:
            raise Astray("refused", f"{self.url}{path} answered {status}")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Astray("invalid", f"{self.url}{path}: {error}") from None

    async def _get(self, path: str, tag: str | None) -> tuple[int, bytes, str | None]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._config.request_seconds)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        headers = self._headers | ({"If-None-Match": tag} if tag is not None else {})
        url = self.url + path
        try:
            async with self._session.get(url, headers=headers, ssl=self._tls or True, allow_redirects=False) as reply:
                limit = self._config.remote_bytes
                body = bytearray()
                async for chunk in reply.content.iter_chunked(65_536):
                    body += chunk
                    if len(body) > limit:
                        raise Astray("invalid", f"{url} is longer than {limit} bytes")
                return reply.status, bytes(body), reply.headers.get("ETag")
        except TimeoutError:
            raise Astray("slow", f"{url} took more than {self._config.request_seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Astray("unreachable", f"{url}: {error or type(error).__name__}") from None


def _credentials(config: RegistryConfig) -> dict[str, str]:
    key = "registry.remote_token_file"
    tokens = configured_tokens(config.remote_token_file, key, "HANDRAIL_REGISTRY_REMOTE_TOKEN")
    if not tokens:
        return {}
    if ":" in tokens[0]:
        return {"Authorization": "Basic " + base64.b64encode(tokens[0].encode()).decode()}
    return {"Authorization": f"Bearer {tokens[0]}"}
