"""Requests in the words of the Confluent Schema Registry become questions and orders to a `Store`.

Reads are answered from memory, with an ETag each. A schema is vetted in a worker before it is registered: that it can
be enforced, and that it is compatible. A change is in the log, and the log on the disk, before its writer is answered.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
from aiohttp import BasicAuth, web

from handrail.config import ConfigError, RegistryConfig, listen_address
from handrail.edge.files import Unreadable, read_text
from handrail.edge.ledger import Ledger, LedgerError
from handrail.edge.metrics import Metrics
from handrail.edge.tls import serving
from handrail.edge.worker import Exhausted, Text, Worker
from handrail.schema.compatibility import Verdict
from handrail.schema.registry import SchemaError
from handrail.schema.store import Change, Denied, Document, Reference, Registered, Store, Version

log = logging.getLogger("handrail.registry")

MEDIA_TYPES = (
    "application/vnd.schemaregistry.v1+json",
    "application/vnd.schemaregistry+json",
    "application/json",
)
TAKEN = frozenset({*MEDIA_TYPES, "application/octet-stream"})
BODY_SECONDS = 10.0
ATTEMPTS = 20
"""How often a registration begins again because another one came between."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def tokens_of(file: str | None, variable: str, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The tokens in a file, a line each, else in an environment variable. Raises Unreadable."""
    text = read_text(file) if file is not None else environment.get(variable, "")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def configured_tokens(file: str | None, key: str, variable: str) -> tuple[str, ...]:
    """As `tokens_of` for a file that stands under a key of the configuration. Raises ConfigError, also where it holds
    none."""
    try:
        tokens = tokens_of(file, variable)
    except Unreadable as error:
        raise ConfigError("configuration", key, "; ".join(error.problems)) from None
    if file is not None and not tokens:
        raise ConfigError("configuration", key, "holds no token; write one on a line of its own")
    return tokens


class RegistryBook:
    """A store, and where its changes go: a ledger, or nowhere where it follows a source of its own.

    `changed` is called on the event loop after each change of the store.
    """

    def __init__(self, store: Store, ledger: Ledger | None = None, source: str = "") -> None:
        self.store, self.ledger, self.source = store, ledger, source
        self.changed: Callable[[], None] = lambda: None
        self.turn = asyncio.Lock()

    @classmethod
    def opened(cls, path: str, level: Any, *, read_only: bool = False) -> "RegistryBook":
        """What a ledger holds. Raises LedgerError."""
        ledger = Ledger(path, read_only=read_only)
        book = cls(Store(level), ledger, path)
        book._apply(ledger.after(0))
        return book

    def replace(self, store: Store) -> None:
        """Another state as a whole, from a source that is followed."""
        self.store = store
        self.changed()

    async def catch_up(self) -> None:
        """What other processes wrote meanwhile. Raises LedgerError."""
        if self.ledger is not None:
            async with self.turn:
                row = self.store.changes
                self._caught(row, await asyncio.to_thread(self.ledger.after, row))

    async def order(self, decide: Callable[[Store], Any]) -> Any:
        """Decides, writes and applies as one step; returns what was decided. Raises Denied.

        `decide` is asked again where another process wrote meanwhile.
        """
        if self.ledger is None:
            raise Denied(42205, f"This registry is read-only: its schemas come from {self.source}")
        async with self.turn:
            for _ in range(ATTEMPTS):
                change = decide(self.store)
                if not isinstance(change, Change):
                    return change
                at = datetime.now(UTC).isoformat(timespec="microseconds")
                try:
                    # Not to be abandoned half way: what was written must be applied.
                    others = await asyncio.shield(asyncio.ensure_future(self._write(self.store.changes, at, change)))
                except LedgerError as error:
                    log.error("a change could not be written: %s", error)
                    raise Denied(50001, "Error in the backend data store: the change was not written") from None
                if not others:
                    return change
        raise Denied(50002, "Too many writers at once; try again")

    async def _write(self, row: int, at: str, change: Change) -> list[Change]:
        assert self.ledger is not None
        others = await asyncio.to_thread(self.ledger.append, row, at, change)
        self._caught(row, others or [change])
        return others

    def _caught(self, row: int, changes: list[Change]) -> None:
        """Applies the changes behind a row that are not applied yet: who gave up waiting may have left some."""
        fresh = changes[max(self.store.changes - row, 0) :]
        if fresh:
            self._apply(fresh)
            self.changed()

    def _apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.store.apply(change)

    def texts(self) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
        """Every version that is not deleted, as a file, and what each name in it stands for: for `Registry.load`.

        A file is called after the label of its version, and then there is a second one under its number where another
        schema refers to it.
        """
        files: dict[str, bytes] = {}
        references: dict[str, dict[str, str]] = {}
        store = self.store
        for subject in store.subjects():
            for version in store.versions(subject):
                text = text_of(store, file_of(version), store.text(version))
                for file, raw in text.files.items():
                    files.setdefault(file, raw)
                references |= text.references or {}
        return files, references


def file_of(version: Version) -> str:
    """What a version is called as a file."""
    return f"{version.subject}/{version.label or version.version}.json"


def text_of(store: Store, file: str, document: Document) -> Text:
    """A document with everything that it refers to. Raises Denied where that is not registered."""
    files: dict[str, bytes] = {}
    references: dict[str, dict[str, str]] = {}
    rest = [(file, document)]
    while rest:
        file, document = rest.pop()
        if file in files:
            continue
        files[file] = document.text.encode()
        names = references[file] = {}
        for each in document.references:
            names[each.name] = f"{each.subject}/{each.version}.json"
            rest.append((names[each.name], store.referred(each)))
    return Text(next(iter(files)), files, references)


class RegistryApi:
    """The REST API on a port of its own."""

    def __init__(self, config: RegistryConfig, book: RegistryBook, metrics: Metrics) -> None:
        """Raises ConfigError where tokens or certificates cannot be read."""
        self._config, self.book, self._metrics = config, book, metrics
        self.worker = Worker()
        self._waiting = 0
        tokens = configured_tokens(config.token_file, "registry.token_file", "HANDRAIL_REGISTRY_TOKEN")
        self._tokens = [each.encode() for each in tokens]
        self._tls = serving(config.tls_cert_file, config.tls_key_file, "registry.tls_cert_file")
        self._runner: web.AppRunner | None = None
        self.address: tuple[str, int] | None = None
        self.app = web.Application(middlewares=[self._answered], client_max_size=config.request_bytes)
        self._routes(self.app.router)

    async def start(self) -> None:
        """Raises OSError where the address is taken."""
        assert self._config.listen is not None
        host, port = listen_address(self._config.listen)
        self._runner = web.AppRunner(self.app, access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()
        except BaseException:
            await self.stop()
            raise
        found = self._runner.addresses[0]
        self.address = str(found[0]), int(found[1])
        if not self._tokens and not host.startswith("127.") and host not in ("localhost", "::1"):
            log.warning("whoever reaches %s:%d can register schemas; set registry.token_file", *self.address)
        log.info("registry on %s://%s:%d, from %s", "https" if self._tls else "http", *self.address, self.book.source)

    async def stop(self) -> None:
        await self.worker.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _routes(self, router: web.UrlDispatcher) -> None:
        subject, version = "/subjects/{subject}", "/subjects/{subject}/versions/{version}"
        check = "/compatibility/subjects/{subject}/versions"
        for method, path, handler in (
            ("GET", "/", self._root),
            ("GET", "/schemas", self._schemas),
            ("GET", "/schemas/types", self._types),
            ("GET", "/schemas/ids/{id}", self._by_id),
            ("GET", "/schemas/ids/{id}/schema", self._text_by_id),
            ("GET", "/schemas/ids/{id}/versions", self._versions_by_id),
            ("GET", "/schemas/ids/{id}/subjects", self._subjects_by_id),
            ("GET", "/subjects", self._subjects),
            ("POST", subject, self._look_up),
            ("DELETE", subject, self._delete_subject),
            ("GET", subject + "/versions", self._versions),
            ("POST", subject + "/versions", self._register),
            ("GET", version, self._version),
            ("DELETE", version, self._delete_version),
            ("GET", version + "/schema", self._text),
            ("GET", version + "/referencedby", self._referrers),
            ("POST", check, self._compatible),
            ("POST", check + "/{version}", self._compatible),
            ("GET", "/diff" + version + "/{other}", self._diff_of_versions),
            ("POST", "/diff" + version, self._diff_to_posted),
            ("POST", "/diff", self._diff_of_posted),
            ("GET", "/config", self._config_of_all),
            ("PUT", "/config", self._set_config),
            ("DELETE", "/config", self._delete_config),
            ("GET", "/config/{subject}", self._config_of),
            ("PUT", "/config/{subject}", self._set_config),
            ("DELETE", "/config/{subject}", self._delete_config),
            ("GET", "/mode", self._mode_of_all),
            ("PUT", "/mode", self._set_mode),
            ("DELETE", "/mode", self._delete_mode),
            ("GET", "/mode/{subject}", self._mode_of),
            ("PUT", "/mode/{subject}", self._set_mode),
            ("DELETE", "/mode/{subject}", self._delete_mode),
            ("GET", "/contexts", self._contexts),
        ):
            router.add_route(method, path, handler)

    # What is around every request

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        media = _accepted(request.headers.get("Accept", "*/*"))
        try:
            if media is None:
                raise Denied(406, "HTTP 406 Not Acceptable")
            self._admit(request)
            reply = await handler(request)
        except Denied as denied:
            status = denied.status
            body: dict[str, Any] = {"error_code": denied.code, "message": denied.message}
            if _takes_more(request):
                body |= denied.more
            reply = _any_json(body, status)
            if status == 401:
                reply.headers["WWW-Authenticate"] = "Bearer"
            elif status == 503:
                reply.headers["Retry-After"] = "1"
        except web.HTTPException as error:
            raised = {"error_code": error.status, "message": f"HTTP {error.status} {error.reason}"}
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            reply = web.Response(status=error.status, body=orjson.dumps(raised), headers=allow)
        except LedgerError as error:
            log.error("the registry cannot be read: %s", error)
            failed = {"error_code": 50001, "message": "Error in the backend data store"}
            reply = web.Response(status=500, body=orjson.dumps(failed))
        if reply.content_type == "application/octet-stream":
            reply.headers["Content-Type"] = media or MEDIA_TYPES[0]
        reply = _conditional(request, reply)
        self._metrics.count("handrail_registry_requests_total", request.method, str(reply.status))
        return reply

    def _admit(self, request: web.Request) -> None:
        """Who may do it. Raises Denied."""
        writes = request.match_info.handler in (
            self._register,
            self._delete_subject,
            self._delete_version,
            self._set_config,
            self._delete_config,
            self._set_mode,
            self._delete_mode,
        )
        if self._tokens and (writes or self._config.protect_reads) and not self._knows(request):
            raise Denied(401, "A token is needed: Authorization: Bearer TOKEN, or Basic with it as the password")
        if writes and self._config.read_only:
            raise Denied(42205, "This registry is read-only")

    def _knows(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        scheme, _, token = given.partition(" ")
        if scheme.lower() == "basic":
            try:
                token = BasicAuth.decode(given).password
            except ValueError:
                return False
        elif scheme.lower() != "bearer":
            return False
        raw = token.strip().encode("utf-8", "surrogateescape")
        return sum(hmac.compare_digest(raw, each) for each in self._tokens) > 0  # compares with all: equal time

    async def _read(self, request: web.Request) -> dict[str, Any]:
        """The body as a JSON object. Raises Denied."""
        if request.content_type not in TAKEN:
            raise Denied(415, "HTTP 415 Unsupported Media Type; send application/vnd.schemaregistry.v1+json")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = orjson.loads(await request.read())
        except TimeoutError:
            raise Denied(408, f"The body did not come within {BODY_SECONDS:g} s") from None
        except ValueError:
            raise Denied(400, "The body is not JSON") from None
        if not isinstance(body, dict):
            raise Denied(400, "The body is not a JSON object")
        return body

    # Schemas

    async def _root(self, request: web.Request) -> web.Response:
        return _json({})

    async def _types(self, request: web.Request) -> web.Response:
        return _json(["JSON"])

    async def _contexts(self, request: web.Request) -> web.Response:
        return _json(["."])

    async def _schemas(self, request: web.Request) -> web.Response:
        store = self.book.store
        found = []
        for subject in store.subjects(request.query.get("subjectPrefix", ""), deleted=_flag(request, "deleted")):
            versions = store.versions(subject, deleted=_flag(request, "deleted"))
            found += versions[-1:] if _flag(request, "latestOnly") else versions
        return _json([_shown(store, each) for each in _page(request, found)])

    def _document(self, request: web.Request) -> Document:
        id = request.match_info["id"]
        if not id.isascii() or not id.isdigit() or len(id) > 10:
            raise Denied(40403, f"Schema {id[:40]} not found")
        return self.book.store.document(int(id))

    async def _by_id(self, request: web.Request) -> web.Response:
        document = self._document(request)
        return _json(
            {"schema": document.text, "schemaType": "JSON"}
            | ({"references": msgspec.to_builtins(document.references)} if document.references else {})
        )

    async def _text_by_id(self, request: web.Request) -> web.Response:
        return web.Response(body=self._document(request).text.encode())

    async def _versions_by_id(self, request: web.Request) -> web.Response:
        uses = self.book.store.uses(self._document(request).id, deleted=_flag(request, "deleted"))
        return _json([{"subject": each.subject, "version": each.version} for each in uses])

    async def _subjects_by_id(self, request: web.Request) -> web.Response:
        uses = self.book.store.uses(self._document(request).id, deleted=_flag(request, "deleted"))
        return _json(sorted({each.subject for each in uses}))

    # Subjects and versions

    async def _subjects(self, request: web.Request) -> web.Response:
        found = self.book.store.subjects(
            request.query.get("subjectPrefix", ""),
            deleted=_flag(request, "deleted"),
            deleted_only=_flag(request, "deletedOnly"),
        )
        return _json(_page(request, found))

    async def _versions(self, request: web.Request) -> web.Response:
        found = self.book.store.versions(
            request.match_info["subject"],
            deleted=_flag(request, "deleted"),
            deleted_only=_flag(request, "deletedOnly"),
        )
        return _json([each.version for each in _page(request, found)])

    def _found(self, request: web.Request, *, deleted: bool = False) -> Version:
        info = request.match_info
        return self.book.store.version(info["subject"], info["version"], deleted=deleted or _flag(request, "deleted"))

    async def _version(self, request: web.Request) -> web.Response:
        return _json(_shown(self.book.store, self._found(request)))

    async def _text(self, request: web.Request) -> web.Response:
        return web.Response(body=self.book.store.text(self._found(request)).text.encode())

    async def _referrers(self, request: web.Request) -> web.Response:
        found = self._found(request, deleted=True)
        return _json(self.book.store.referrers(found.subject, found.version))

    async def _look_up(self, request: web.Request) -> web.Response:
        subject, store = request.match_info["subject"], self.book.store
        text, references = self._given(await self._read(request))
        store.versions(subject, deleted=_flag(request, "deleted"))
        document = store.read(text, references)
        found = store.look_up(subject, document, references, deleted=_flag(request, "deleted"))
        return _json(_shown(store, found))

    def _given(self, body: Mapping[str, Any]) -> tuple[str, tuple[Reference, ...]]:
        """The schema of a request, and its references with their versions pinned. Raises Denied."""
        kind = body.get("schemaType") or "AVRO"
        if kind != "JSON":
            raise Denied(42201, f"Invalid schema: this registry holds JSON Schema; schemaType must be JSON, not {kind}")
        for name in ("ruleSet", "metadata"):
            if body.get(name):
                raise Denied(42201, f"Invalid schema: {name} cannot be enforced here; leave it out")
        text = body.get("schema")
        if not isinstance(text, str):
            raise Denied(42201, "Invalid schema: schema must be the schema as a string")
        try:
            references = msgspec.convert(body.get("references") or [], tuple[Reference, ...])
        except msgspec.ValidationError as error:
            raise Denied(42201, f"Invalid schema: references: {error}") from None
        store = self.book.store
        pinned = []
        for each in references:
            version = each.version
            if version == -1:
                version = store.version(each.subject, "latest").version
            pinned.append(Reference(each.name, each.subject, version))
        return text, tuple(pinned)

    async def _register(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        subject = request.match_info["subject"]
        text, references = self._given(body)
        version, id = (_whole(body, name) for name in ("version", "id"))
        found = await self.register(subject, text, references, version=version, id=id)
        if _takes_more(request):
            return _json({"id": found.id, "version": found.version, "subject": found.subject})
        return _json({"id": found.id})

    async def register(
        self,
        subject: str,
        text: str,
        references: tuple[Reference, ...] = (),
        *,
        version: int | None = None,
        id: int | None = None,
    ) -> Version | Registered:
        """Registers a schema where it is not there yet. Raises Denied, with `reasons` and `witness` of a 409.

        Vetting takes its time outside the writers' turn, so what it hangs on is looked at again inside.
        """
        if self.book.ledger is None:
            await self.book.order(lambda _: None)
        vetted = False

        def decide(store: Store) -> Version | Registered:
            return store.register(subject, text, references, version=version, id=id)

        for _ in range(ATTEMPTS):
            store = self.book.store
            first, basis = decide(store), store.basis(subject)
            if isinstance(first, Version):
                return first
            if not vetted:
                await self._vet(store, subject, text, references)
                vetted = True
            if store.mode(subject) != "IMPORT":
                verdict = await self._compare(store, subject, text, references, store.against(subject))
                if not verdict.compatible:
                    raise _incompatible(subject, verdict)

            def settled(store: Store, basis: tuple[Any, ...] = basis) -> Version | Registered | None:
                return decide(store) if store.basis(subject) == basis else None

            made: Version | Registered | None = await self.book.order(settled)
            if made is not None:
                return made
        raise Denied(50002, f"Too many writers of subject '{subject}' at once; try again")

    async def _vet(self, store: Store, subject: str, text: str, references: tuple[Reference, ...]) -> None:
        candidate = text_of(store, f"{subject}/0.json", Document(0, text, references))
        async with self._place():
            try:
                problem = await self.worker.compile(candidate, self._config.compile_seconds)
            except Exhausted as error:
                problem = f"cannot be compiled: it {error}"
        if problem is not None:
            raise Denied(42201, f"Invalid schema: {problem}")

    async def _compare(
        self, store: Store, subject: str, text: str, references: tuple[Reference, ...], versions: list[Version]
    ) -> Verdict:
        """Whether a schema may follow versions (newest first) in the mode that counts for its subject."""
        if not versions or store.level(subject) == "NONE":
            return Verdict(True, "proved")
        async with self._place():
            try:
                return await self.worker.compare(
                    [text_of(store, file_of(each), store.text(each)) for each in reversed(versions)],
                    text_of(store, f"{subject}/0.json", Document(0, text, references)),
                    store.level(subject),
                    self._config.compare_seconds,
                    policy=self._config.policy,
                    accept_undecided=self._config.accept_undecided,
                )
            except Exhausted:
                return Verdict(self._config.accept_undecided, "undecided")
            except SchemaError as error:
                raise Denied(42201, f"Invalid schema: {error}") from None

    @contextlib.asynccontextmanager
    async def _place(self) -> Any:
        """A place in the queue before the worker. Raises Denied where it is full."""
        if self._waiting >= self._config.waiting:
            raise Denied(50301, "Too many schemas are waiting to be compiled; try again")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _compatible(self, request: web.Request) -> web.Response:
        subject, version, store = request.match_info["subject"], request.match_info.get("version"), self.book.store
        text, references = self._given(await self._read(request))
        store.read(text, references)
        if version is None:
            against = store.against(subject) if store.latest(subject) is not None else []
        else:
            against = [store.version(subject, version)]
        await self._vet(store, subject, text, references)
        verdict = await self._compare(store, subject, text, references, against)
        answer: dict[str, Any] = {"is_compatible": verdict.compatible}
        if _flag(request, "verbose"):
            answer["messages"] = [] if verdict.compatible else _messages(verdict)
            if _takes_more(request):
                answer |= _explained(verdict)
        return _any_json(answer)

    # What differs: Confluent's API has no such question, so the routes and the answer are our own

    async def _diff_of_versions(self, request: web.Request) -> web.Response:
        other = self.book.store.version(
            request.match_info["subject"], request.match_info["other"], deleted=_flag(request, "deleted")
        )
        return await self._diff(self._registered(self._found(request)), self._registered(other))

    async def _diff_to_posted(self, request: web.Request) -> web.Response:
        found = self._found(request)
        return await self._diff(self._registered(found), self._posted("new", await self._read(request)))

    async def _diff_of_posted(self, request: web.Request) -> web.Response:
        body, texts = await self._read(request), []
        for name in ("old", "new"):
            given = body.get(name)
            if not isinstance(given, dict):
                raise Denied(42201, f"Invalid schema: {name} must be an object with schema and schemaType")
            texts.append(self._posted(name, given))
        return await self._diff(*texts)

    def _registered(self, version: Version) -> Text:
        return text_of(self.book.store, file_of(version), self.book.store.text(version))

    def _posted(self, name: str, body: Mapping[str, Any]) -> Text:
        """The schema in a request, which stands nowhere. Raises Denied."""
        text, references = self._given(body)
        self.book.store.read(text, references)
        return text_of(self.book.store, f"{name}/0.json", Document(0, text, references))

    async def _diff(self, old: Text, new: Text) -> web.Response:
        async with self._place():
            try:
                return _any_json(await self.worker.differ(old, new, self._config.compare_seconds))
            except Exhausted as error:
                raise Denied(42201, f"Invalid schema: cannot be compared: it {error}") from None
            except SchemaError as error:
                raise Denied(42201, f"Invalid schema: {error}") from None

    async def _delete_subject(self, request: web.Request) -> web.Response:
        subject, permanent = request.match_info["subject"], _flag(request, "permanent")
        done = await self.book.order(lambda store: store.delete(subject, permanent=permanent))
        return _json(done.versions)

    async def _delete_version(self, request: web.Request) -> web.Response:
        info, permanent = request.match_info, _flag(request, "permanent")
        done = await self.book.order(
            lambda store: store.delete_version(info["subject"], info["version"], permanent=permanent)
        )
        return _json(done.versions[0])

    # Settings

    async def _config_of_all(self, request: web.Request) -> web.Response:
        return _json({"compatibilityLevel": self.book.store.level()})

    async def _config_of(self, request: web.Request) -> web.Response:
        subject, store = request.match_info["subject"], self.book.store
        whole = _flag(request, "defaultToGlobal")
        return _json({"compatibilityLevel": store.level(subject) if whole else store.level_of(subject)})

    async def _set_config(self, request: web.Request) -> web.Response:
        body, subject = await self._read(request), request.match_info.get("subject")
        unknown = sorted(name for name, value in body.items() if value is not None and name not in _SETTINGS)
        if unknown:
            raise Denied(42203, f"{unknown[0]} cannot be set here; compatibility can")
        done = await self.book.order(lambda store: store.set_level(subject, body.get("compatibility")))
        return _json({"compatibility": done.level})

    async def _delete_config(self, request: web.Request) -> web.Response:
        subject, store = request.match_info.get("subject"), self.book.store
        before = store.level() if subject is None else store.level_of(subject)
        await self.book.order(lambda store: msgspec.structs.replace(store.set_level(subject, "NONE"), level=None))
        return _json({"compatibilityLevel": before})

    async def _mode_of_all(self, request: web.Request) -> web.Response:
        return _json({"mode": self._mode(None)})

    async def _mode_of(self, request: web.Request) -> web.Response:
        subject = request.match_info["subject"]
        return _json({"mode": self._mode(subject, whole=_flag(request, "defaultToGlobal"))})

    def _mode(self, subject: str | None, *, whole: bool = True) -> str:
        store = self.book.store
        if self._config.read_only or self.book.ledger is None:
            return "READONLY"
        return store.mode(subject) if whole or subject is None else store.mode_of(subject)

    async def _set_mode(self, request: web.Request) -> web.Response:
        body, subject, force = await self._read(request), request.match_info.get("subject"), _flag(request, "force")
        done = await self.book.order(lambda store: store.set_mode(subject, body.get("mode"), force=force))
        return _json({"mode": done.mode})

    async def _delete_mode(self, request: web.Request) -> web.Response:
        subject, store = request.match_info.get("subject"), self.book.store
        before = store.mode() if subject is None else store.mode_of(subject)
        await self.book.order(lambda store: msgspec.structs.replace(store.set_mode(subject, "READONLY"), mode=None))
        return _json({"mode": before})


_SETTINGS = frozenset({"compatibility", "compatibilityLevel", "normalize"})


def _shown(store: Store, version: Version) -> dict[str, Any]:
    document = store.text(version)
    shown: dict[str, Any] = {
        "subject": version.subject,
        "version": version.version,
        "id": version.id,
        "schemaType": "JSON",
    }
    if document.references:
        shown["references"] = msgspec.to_builtins(document.references)
    return {**shown, "schema": document.text}


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value))


def _any_json(value: Any, status: int = 200) -> web.Response:
    """For what may hold integers beyond 64 bits, or text that is not Unicode, as payloads made up for a schema do."""
    return web.Response(status=status, body=json.dumps(value).encode())


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() == "true"


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise Denied(42201, f"Invalid schema: {name} must be a whole number")


def _page(request: web.Request, found: list[Any]) -> list[Any]:
    """What `offset` and `limit` leave of a list; a limit of -1 is none."""
    try:
        offset, limit = (int(request.query.get(name, default)) for name, default in (("offset", "0"), ("limit", "-1")))
    except ValueError:
        raise Denied(400, "offset and limit must be whole numbers") from None
    offset = max(offset, 0)
    return found[offset:] if limit < 0 else found[offset : offset + limit]


def _takes_more(request: web.Request) -> bool:
    """Whether the client says that it takes members of answers that it does not know."""
    return request.headers.get("Confluent-Accept-Unknown-Properties", "").lower() == "true"


def _accepted(accept: str) -> str | None:
    """The media type for an Accept header; None where the client takes none of ours."""
    found: list[tuple[float, int, str]] = []
    for part in accept.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        weight = next((each.removeprefix("q=") for each in parameters if each.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            quality = 0.0
        for place, media in enumerate(MEDIA_TYPES):
            if quality > 0 and name in (media, "*/*", "application/*", ""):
                found.append((-quality, place, media))
    return min(found)[2] if found else None


def _conditional(request: web.Request, reply: web.StreamResponse) -> web.StreamResponse:
    """Adds the ETag of what was asked for; who has that already is told so and no more."""
    if request.method != "GET" or reply.status != 200 or not isinstance(reply, web.Response):
        return reply
    body = reply.body
    assert isinstance(body, bytes)
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if tag in (each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")):
        return web.Response(status=304, headers={"ETag": tag})
    reply.headers["ETag"] = tag
    return reply


def _messages(verdict: Verdict) -> list[str]:
    lines = [f"{each.path or '/'}: {each.keyword}: {each.message}" for each in verdict.reasons]
    if verdict.decided == "witness":
        lines.append(f"the one admits and the other refuses: {json.dumps(verdict.witness)}")
    if verdict.decided == "undecided":
        lines.append("neither proved nor refuted in time; registry.accept_undecided takes that for compatible")
    return lines or ["the one admits what the other refuses"]


def _explained(verdict: Verdict) -> dict[str, Any]:
    found = {"decided": verdict.decided, "reasons": msgspec.to_builtins(verdict.reasons)}
    return found | ({"witness": verdict.witness} if verdict.decided == "witness" else {})


def _incompatible(subject: str, verdict: Verdict) -> Denied:
    details = "; ".join(_messages(verdict))
    message = f'Schema being registered is incompatible with an earlier schema for subject "{subject}": {details}'
    return Denied(409, message, **_explained(verdict))
