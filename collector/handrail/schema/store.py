"""A log of changes becomes the state of a registry: subjects, immutable versions, global ids, references, settings.

A `Store` only ever grows by `Change`s, and the same changes in the same order give the same store, so whoever keeps the
log keeps the registry. The methods that are named after orders (`register`, `delete`, …) look at the state and return
the change that the order would be; nothing happens until it is applied. Errors carry the codes of the Confluent Schema
Registry, whose words these are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from handrail.event import canonical
from handrail.schema.registry import Documents, SchemaError, read_document, version_order

Level = Literal["NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"]
Mode = Literal["READWRITE", "READONLY", "READONLY_OVERRIDE", "IMPORT"]

LEVELS: tuple[Level, ...] = (
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
)
MODES: tuple[Mode, ...] = ("READWRITE", "READONLY", "READONLY_OVERRIDE", "IMPORT")

MAX_ID = 2**31 - 1
MAX_VERSIONS = 100_000
MAX_REFERENCES = 64
MAX_SUBJECT = 512
"""Characters of a subject's name."""


class Denied(Exception):
    """An order that a registry does not follow: the Confluent error code, whose first three digits are the HTTP status,
    and why."""

    def __init__(self, code: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code, self.message, self.more = code, message, more

    @property
    def status(self) -> int:
        return int(str(self.code)[:3])


class Reference(msgspec.Struct, frozen=True):
    """What a `$ref` in a schema stands for: a version of another subject."""

    name: str
    subject: str
    version: int


class Document(msgspec.Struct, frozen=True):
    """A schema by its global id; equal content with equal references is one document wherever it is registered."""

    id: int
    text: str
    """As it was first registered, byte for byte."""
    references: tuple[Reference, ...] = ()


class Version(msgspec.Struct, frozen=True):
    """A place in a subject's lineage, and the document that stands there for ever."""

    subject: str
    version: int
    id: int
    is_deleted: bool = False
    label: str | None = None
    """What the version is called where it is not called by its number: the name of its file."""


class _Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="change"):
    pass


class Registered(_Change, frozen=True, tag="registered"):
    subject: str
    version: int
    id: int
    text: str | None = None
    """None where the id was there already."""
    references: tuple[Reference, ...] = ()
    label: str | None = None


class Deleted(_Change, frozen=True, tag="deleted"):
    subject: str
    versions: tuple[int, ...]
    permanent: bool = False


class LevelSet(_Change, frozen=True, tag="level"):
    """`subject` None is the level of all that have none of their own; `level` None takes it back."""

    subject: str | None = None
    level: Level | None = None


class ModeSet(_Change, frozen=True, tag="mode"):
    subject: str | None = None
    mode: Mode | None = None


Change = Registered | Deleted | LevelSet | ModeSet


def content_key(document: Any, references: Iterable[Reference]) -> bytes:
    """What makes two schemas the same schema: equal JSON whatever its layout, and equal references.

    Cryptographic, unlike the digests of payloads: whoever could make two schemas collide could have one pass for the
    other.
    """
    named = sorted((each.name, each.subject, each.version) for each in references)
    return hashlib.sha256(canonical([document, named])).digest()


class Store:
    """Subjects with their versions, documents by id, and settings. `level` holds where nothing else is set."""

    def __init__(self, level: Level = "BACKWARD") -> None:
        self.changes = 0
        """How many changes made it what it is."""
        self._default: Level = level
        self._subjects: dict[str, dict[int, Version]] = {}
        self._highest: dict[str, int] = {}
        self._documents: dict[int, Document] = {}
        self._ids: dict[bytes, int] = {}
        self._last_id = 0
        self._levels: dict[str | None, Level] = {}
        self._modes: dict[str | None, Mode] = {}
        self._referrers: dict[tuple[str, int], set[int]] = {}

    # State

    def apply(self, change: Change) -> None:
        """Makes a change part of the state. It must be one that this store made, or the log of one that is gone."""
        self.changes += 1
        match change:
            case Registered():
                if change.text is not None:
                    document = Document(change.id, change.text, change.references)
                    self._documents[change.id] = document
                    self._ids[content_key(read_document(change.text.encode()), change.references)] = change.id
                    self._last_id = max(self._last_id, change.id)
                    for each in change.references:
                        self._referrers.setdefault((each.subject, each.version), set()).add(change.id)
                versions = self._subjects.setdefault(change.subject, {})
                versions[change.version] = Version(change.subject, change.version, change.id, label=change.label)
                self._highest[change.subject] = max(self._highest.get(change.subject, 0), change.version)
            case Deleted():
                versions = self._subjects[change.subject]
                for version in change.versions:
                    if change.permanent:
                        del versions[version]
                    else:
                        versions[version] = msgspec.structs.replace(versions[version], is_deleted=True)
                if not versions:
                    del self._subjects[change.subject]
            case LevelSet():
                _set(self._levels, change.subject, change.level)
            case ModeSet():
                _set(self._modes, change.subject, change.mode)

    # Questions

    def subjects(self, prefix: str = "", *, deleted: bool = False, deleted_only: bool = False) -> list[str]:
        return [
            subject
            for subject in sorted(self._subjects)
            if subject.startswith(prefix) and self._listed(subject, deleted, deleted_only)
        ]

    def _listed(self, subject: str, deleted: bool = False, deleted_only: bool = False) -> list[Version]:
        found = self._subjects.get(subject, {})
        versions = [found[number] for number in sorted(found)]
        if deleted_only:
            return [each for each in versions if each.is_deleted]
        return versions if deleted else [each for each in versions if not each.is_deleted]

    def versions(self, subject: str, *, deleted: bool = False, deleted_only: bool = False) -> list[Version]:
        """Oldest first. Raises Denied where there is no such subject."""
        if not self._listed(subject, deleted or deleted_only):
            raise Denied(40401, f"Subject '{subject}' not found.")
        return self._listed(subject, deleted, deleted_only)

    def latest(self, subject: str) -> Version | None:
        versions = self._listed(subject)
        return versions[-1] if versions else None

    def version(self, subject: str, version: str, *, deleted: bool = False) -> Version:
        """A version by its number, its label, or `latest`. Raises Denied."""
        versions = self._listed(subject, deleted)
        for each in versions:
            if each.label == version and each.label is not None:
                return each
        number = version_number(version)
        if not versions:
            raise Denied(40401, f"Subject '{subject}' not found.")
        if number == -1:
            return versions[-1]
        for each in versions:
            if each.version == number:
                return each
        raise Denied(40402, f"Version {version} not found.")

    def document(self, id: int) -> Document:
        """A schema by its id, soft-deleted or not: what was written with it must stay readable. Raises Denied."""
        found = self._documents.get(id)
        if found is None or not any(self.uses(id, deleted=True)):
            raise Denied(40403, f"Schema {id} not found")
        return found

    def text(self, version: Version) -> Document:
        return self._documents[version.id]

    def uses(self, id: int, *, deleted: bool = False) -> Iterator[Version]:
        """Every place where a document is registered."""
        for subject in sorted(self._subjects):
            yield from (each for each in self._listed(subject, deleted) if each.id == id)

    def referrers(self, subject: str, version: int) -> list[int]:
        """Ids of the schemas in use that refer to this one."""
        known = self._referrers.get((subject, version), set())
        return sorted(id for id in known if any(True for _ in self.uses(id)))

    def look_up(self, subject: str, document: Any, references: Iterable[Reference], *, deleted: bool) -> Version:
        """Where equal content is registered under a subject. Raises Denied."""
        versions = self._listed(subject, deleted)
        if not versions:
            raise Denied(40401, f"Subject '{subject}' not found.")
        found = self._place(subject, content_key(document, references), deleted)
        if found is None:
            raise Denied(40403, "Schema not found")
        return found

    def _place(self, subject: str, key: bytes, deleted: bool) -> Version | None:
        id = self._ids.get(key)
        if id is None:
            return None
        return next((each for each in reversed(self._listed(subject, deleted)) if each.id == id), None)

    def level(self, subject: str | None = None) -> Level:
        """What counts for a subject."""
        return self._levels.get(subject) or self._levels.get(None) or self._default

    def level_of(self, subject: str) -> Level:
        """What a subject has of its own. Raises Denied."""
        if subject not in self._levels:
            raise Denied(40408, f"Subject '{subject}' does not have subject-level compatibility configured")
        return self._levels[subject]

    def mode(self, subject: str | None = None) -> Mode:
        return self._modes.get(subject) or self._modes.get(None) or "READWRITE"

    def mode_of(self, subject: str) -> Mode:
        """What a subject has of its own. Raises Denied."""
        if subject not in self._modes:
            raise Denied(40409, f"Subject '{subject}' does not have subject-level mode configured")
        return self._modes[subject]

    def basis(self, subject: str) -> tuple[Any, ...]:
        """What an answer about a new version of a subject hangs on; when it is unchanged, so is the answer."""
        return self.level(subject), self.mode(subject), tuple(self._listed(subject))

    def against(self, subject: str) -> list[Version]:
        """The versions that a new one must be compatible with, newest first."""
        level = self.level(subject)
        versions = self._listed(subject)[::-1]
        return [] if level == "NONE" else versions if level.endswith("_TRANSITIVE") else versions[:1]

    # Orders

    def register(
        self,
        subject: str,
        text: str,
        references: tuple[Reference, ...] = (),
        *,
        version: int | None = None,
        id: int | None = None,
    ) -> Version | Registered:
        """A schema that is not there yet to the change that registers it; one that is there to its place.

        Whether it can be enforced, and is compatible, is for the caller to ask before. Raises Denied.
        """
        if not subject or len(subject) > MAX_SUBJECT or not subject.isprintable():
            raise Denied(42208, f"The specified subject '{subject[:80]}' is not a valid subject.")
        key = content_key(self.read(text, references), references)
        mode = self.mode(subject)
        place = self._place(subject, key, deleted=False)
        if place is not None and version in (None, -1, place.version) and id in (None, -1, place.id):
            return place
        self._writable(subject)
        known, following = self._ids.get(key), self._highest.get(subject, 0) + 1
        if mode != "IMPORT":
            if id not in (None, -1, known):
                raise Denied(42205, f"Subject {subject} is not in import mode")
            if version not in (None, -1, following):
                there = self._subjects.get(subject, {}).get(version)
                if there is not None or version < following:
                    raise Denied(409, f"Version {version} of subject '{subject}' is registered with another schema")
                raise Denied(42201, f"Version {version} is not one more than previous version {following - 1}")
        chosen = known or self._last_id + 1
        if mode == "IMPORT" and id not in (None, -1):
            other = self._documents.get(id)
            if other is not None and id != known:
                raise Denied(42207, f"Schema id {id} is registered with another schema")
            chosen = id
        number = following if version in (None, -1) else version
        if number in self._subjects.get(subject, {}) or not 0 < number <= MAX_ID or not 0 < chosen <= MAX_ID:
            raise Denied(409, f"Version {number} of subject '{subject}' is registered with another schema")
        if len(self._subjects.get(subject, {})) >= MAX_VERSIONS:
            raise Denied(42205, f"Subject '{subject}' has {MAX_VERSIONS} versions, which is the limit")
        fresh = chosen not in self._documents
        return Registered(
            subject=subject,
            version=number,
            id=chosen,
            text=text if fresh else None,
            references=references if fresh else (),
        )

    def read(self, text: str, references: tuple[Reference, ...] = ()) -> Any:
        """The JSON of a schema whose references are all registered. Raises Denied."""
        try:
            document = read_document(text.encode("utf-8", "surrogatepass"))
        except SchemaError as error:
            raise Denied(42201, f"Invalid schema: {error}") from None
        if len(references) > MAX_REFERENCES:
            raise Denied(42201, f"Invalid schema: has {len(references)} references, more than {MAX_REFERENCES}")
        names = [each.name for each in references]
        for each in references:
            if names.count(each.name) > 1:
                raise Denied(42201, f"Invalid schema: two references are called {each.name}")
            self.referred(each)
        return document

    def referred(self, reference: Reference) -> Document:
        """What a reference leads to. Raises Denied."""
        known = self._subjects.get(reference.subject, {})
        number = max((n for n in known if not known[n].is_deleted), default=0)
        found = known.get(number if reference.version == -1 else reference.version)
        if found is None:
            raise Denied(
                42201,
                f"Invalid schema: no schema reference found for subject '{reference.subject}' "
                f"and version {reference.version}",
            )
        return self._documents[found.id]

    def delete(self, subject: str, *, permanent: bool = False) -> Deleted:
        """Raises Denied, also where another schema in use refers to one of its versions."""
        everything = self._listed(subject, deleted=True)
        alive = self._listed(subject)
        if not everything:
            raise Denied(40401, f"Subject '{subject}' not found.")
        self._writable(subject)
        if permanent and alive:
            raise Denied(40405, f"Subject '{subject}' was not deleted first before being permanently deleted")
        if not permanent and not alive:
            raise Denied(40404, f"Subject '{subject}' was soft deleted. Set permanent=true to delete permanently")
        going = everything if permanent else alive
        inside = {each.id for each in going}
        for each in going:
            self._unreferred(each, inside)
        return Deleted(subject=subject, versions=tuple(each.version for each in going), permanent=permanent)

    def delete_version(self, subject: str, version: str, *, permanent: bool = False) -> Deleted:
        """Raises Denied, also where another schema in use refers to it."""
        if not self._listed(subject, deleted=True):
            raise Denied(40401, f"Subject '{subject}' not found.")
        found = self.version(subject, version, deleted=version != "latest")
        self._writable(subject)
        if permanent and not found.is_deleted:
            raise Denied(
                40407,
                f"Subject '{subject}' Version {found.version} was not deleted first before being permanently deleted",
            )
        if found.is_deleted and not permanent:
            raise Denied(
                40406,
                f"Subject '{subject}' Version {found.version} was soft deleted. "
                "Set permanent=true to delete permanently",
            )
        self._unreferred(found, set())
        return Deleted(subject=subject, versions=(found.version,), permanent=permanent)

    def set_level(self, subject: str | None, level: object) -> LevelSet:
        name = level.upper() if isinstance(level, str) else level
        if name not in LEVELS:
            raise Denied(42203, f"Invalid compatibility level. Valid values are {', '.join(map(str.lower, LEVELS))}")
        return LevelSet(subject=subject, level=name)

    def set_mode(self, subject: str | None, mode: object, *, force: bool = False) -> ModeSet:
        name = mode.upper() if isinstance(mode, str) else mode
        if name not in MODES:
            raise Denied(42204, f"Invalid mode. Valid values are {', '.join(MODES)}")
        if name == "IMPORT" and not force:
            taken = self._subjects if subject is None else self._subjects.get(subject)
            if taken:
                raise Denied(42205, "Cannot import since found existing subjects")
        return ModeSet(subject=subject, mode=name)

    def _writable(self, subject: str) -> None:
        mode = self.mode(subject)
        if mode.startswith("READONLY") or self._modes.get(None) == "READONLY_OVERRIDE":
            raise Denied(42205, f"Subject {subject} is in read-only mode")

    def _unreferred(self, version: Version, inside: set[int]) -> None:
        ids = [id for id in self.referrers(version.subject, version.version) if id not in inside]
        if ids:
            where = f"{version.subject}/{version.version}"
            raise Denied(42206, f"One or more references exist to the schema {where}: {ids}")


def _set(settings: dict[Any, Any], subject: str | None, value: object) -> None:
    if value is None:
        settings.pop(subject, None)
    else:
        settings[subject] = value


def version_number(version: str) -> int:
    """`3`, `latest` or `-1` to a number, -1 for the latest. Raises Denied."""
    if version.strip().lower() in ("latest", "-1"):
        return -1
    if version.isascii() and version.isdigit() and 0 < int(version[:11]) <= MAX_ID:
        return int(version)
    raise Denied(
        42202,
        f"The specified version '{version[:40]}' is not a valid version id. "
        'Allowed values are between [1, 2^31-1] and the string "latest"',
    )


def from_files(files: Mapping[str, bytes], level: Level = "BACKWARD") -> Store:
    """A directory's schema files, each a good one, to a store.

    Versions keep their numbers; those of a subject where one is no number are numbered by their place. An id comes from
    the content, so that every replica of a directory, and the same one after a restart, gives a schema the same id.
    """
    store, documents = Store(level), Documents(files)
    places = dict(_places(files))
    schemas: dict[str, tuple[tuple[Reference, ...], bytes]] = {}
    for file in places:
        document = read_document(files[file])
        names = documents.names(file, document)
        references = tuple(Reference(name, *places[other]) for name, other in sorted(names.items()))
        schemas[file] = references, content_key(document, references)
    ids: dict[bytes, int] = {}
    taken: set[int] = set()
    for key in sorted({key for _, key in schemas.values()}):
        id = int.from_bytes(key[:4], "big") & MAX_ID or 1
        while id in taken:
            id = id % MAX_ID + 1
        taken.add(id)
        ids[key] = id
    for file in sorted(places, key=lambda file: places[file]):
        subject, number = places[file]
        references, key = schemas[file]
        fresh = ids[key] in taken
        taken.discard(ids[key])
        store.apply(
            Registered(
                subject=subject,
                version=number,
                id=ids[key],
                text=files[file].decode() if fresh else None,
                references=references if fresh else (),
                label=file.rpartition("/")[2].removesuffix(".json"),
            )
        )
    return store


def _places(files: Mapping[str, bytes]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Each file with its subject and the number of its version."""
    subjects: dict[str, list[str]] = {}
    for file in files:
        if file.endswith(".json"):
            subject, _, label = file.removesuffix(".json").rpartition("/")
            subjects.setdefault(subject, []).append(label)
    for subject, labels in subjects.items():
        labels.sort(key=version_order)
        numbers = [_number(label) for label in labels]
        if None in numbers or len(set(numbers)) < len(numbers):
            numbers = list(range(1, len(labels) + 1))
        for label, number in zip(labels, numbers, strict=True):
            yield f"{subject}/{label}.json", (subject, number or 0)


def _number(label: str) -> int | None:
    plain = label[1:] if label[:1] in ("v", "V") else label
    return int(plain) if plain.isascii() and plain.isdigit() and 0 < int(plain[:11]) <= MAX_ID else None
