"""Payloads of subjects without a schema become proposed schemas: live in a sidecar, and from recordings.

What is kept is a `Profile` for each subject, never a payload; see `schema.inference` for what that holds. The admin
port shows what was learned at `/v1/learned`; a person accepts it, nothing registers itself.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import web

from handrail.config import Config
from handrail.edge import catalogue
from handrail.edge.files import Unreadable, registry_in_force
from handrail.event import Event, Fault, Finding
from handrail.pipeline import build
from handrail.schema.inference import Profile
from handrail.schema.registry import Registry

_KINDS = frozenset({"handoff", "write", "publish"})
_ALL, _EACH = 1_000, 16
"""The first payloads of a subject are all counted, then every 16th: a profile that stands changes seldom."""

MAX_BYTES = 4_194_304
"""What an admin port may answer with."""


class Learner:
    """A profile for each subject that has no schema, of at most `limit` subjects; the longest unseen goes first.

    It is one of the places where records go, so it never blocks and never changes an exchange.
    """

    def __init__(self, registry: Registry, limit: int = 200) -> None:
        self._registry, self._limit = registry, limit
        self._profiles: OrderedDict[str, Profile] = OrderedDict()
        self._seen: dict[str, int] = {}

    def put(self, record: Event | Finding) -> None:
        """Counts the payload of an event; passes over everything else."""
        if not isinstance(record, Event) or record.payload is None or record.kind not in _KINDS:
            return
        subject = record.subject
        if subject is None or self._registry.versions(subject):
            return
        profile = self._profiles.get(subject)
        if profile is None:
            profile = self._profiles[subject] = Profile()
            if len(self._profiles) > self._limit:
                dropped, _ = self._profiles.popitem(last=False)
                del self._seen[dropped]
        else:
            self._profiles.move_to_end(subject)
        seen = self._seen[subject] = self._seen.get(subject, 0) + 1
        if seen <= _ALL or not seen % _EACH:
            profile.add(record.payload)

    def learned(self) -> Iterator[dict[str, Any]]:
        """Each subject with its proposed schema and how stable it is; those that have a schema now are left out."""
        for subject, profile in sorted(self._profiles.items()):
            if not self._registry.versions(subject):
                yield proposal(subject, profile, self._seen[subject])

    def add_to(self, app: web.Application) -> None:
        """`GET /v1/learned` and `GET /v1/learned/{subject}` on the admin port."""
        app.router.add_get("/v1/learned", self._all)
        app.router.add_get("/v1/learned/{subject:.+}", self._one)

    async def _all(self, request: web.Request) -> web.Response:
        return _json({"learned": list(self.learned())})

    async def _one(self, request: web.Request) -> web.Response:
        subject = request.match_info["subject"]
        found = next((each for each in self.learned() if each["subject"] == subject), None)
        if found is None:
            return _json({"error": f"nothing was learned of {subject}"}, status=404)
        return _json(found)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def proposal(subject: str, profile: Profile, seen: int) -> dict[str, Any]:
    """What is proposed for a subject, as JSON output carries it."""
    stability = profile.stability()
    return {
        "type": "schema",
        "subject": subject,
        "payloads": seen,
        "stability": {
            "stable": stability.is_stable,
            "unseen": stability.unseen,
            "places": stability.places,
            "once": stability.once,
        },
        "schema": profile.schema(),
    }


def infer(files: Sequence[str], config: Config, *, subject: str | None = None, output: str = "text") -> int:
    """Recordings to a proposed schema for each subject, or for one. Raises Unreadable for bad input.

    Subjects that have a schema count too: a proposal beside it is worth comparing.
    """
    from handrail.edge.replay import records

    inspector = build(config, registry_in_force(config, _told), ())
    learner = Learner(Registry(), limit=10_000)
    for record in records(files, inspector, _unseen):
        if isinstance(record, Event):
            learner.put(record)
    found = [each for each in learner.learned() if subject in (None, each["subject"])]
    if not found:
        what = "a payload" if subject is None else f"a payload of {subject}"
        raise Unreadable([f"{', '.join(files)}: no event carries {what}"])
    for each in found:
        if output == "json":
            sys.stdout.buffer.write(orjson.dumps(each) + b"\n")
            continue
        sys.stdout.flush()
        sys.stderr.write(_stable(each) + "\n")
        sys.stdout.buffer.write(orjson.dumps(each["schema"], option=orjson.OPT_INDENT_2) + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _told(fault: Fault) -> None:
    sys.stderr.write(f"handrail: {fault.message}\n")


def _unseen(read: int) -> None:
    """Nobody looks at the progress."""


def _stable(found: dict[str, Any]) -> str:
    stability = found["stability"]
    word = "stable" if stability["stable"] else "not stable yet"
    return (
        f"{found['subject']}: from {found['payloads']} payloads, {word}: the next shows something new with a chance of "
        f"about {100 * stability['unseen']:.2g}%"
    )


def accept(
    into: catalogue.Catalogue, subject: str, admin: str, *, mode: str | None = None, output: str = "text"
) -> int:
    """Register what a running sidecar has learned of a subject. The exit status: 0, or 1 where it is not compatible.

    Raises Unreadable where the sidecar cannot be asked, or has learned nothing of it.
    """
    found = _asked(admin, subject)
    sys.stderr.write(_stable(found) + "\n")
    text = orjson.dumps(found["schema"], option=orjson.OPT_INDENT_2).decode()
    return catalogue.register_text(into, subject, text, mode=mode, output=output)


def _asked(admin: str, subject: str) -> dict[str, Any]:
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, build_opener

    url = admin if "://" in admin else f"http://{admin if not admin.startswith(':') else '127.0.0.1' + admin}"
    if not url.startswith(("http://", "https://")):
        raise Unreadable([f"{admin}: is no address; write the admin port as host:port"])
    # No proxy from the environment: the traffic of a sidecar's own agent is routed there.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{url.rstrip('/')}/v1/learned/{quote(subject)}", timeout=10) as reply:
            found = orjson.loads(reply.read(MAX_BYTES))
    except HTTPError as error:
        if error.code == 404 and "json" in error.headers.get("content-type", ""):
            raise Unreadable([f"{admin}: nothing was learned of {subject}"]) from None
        hint = "; does it run with `schemas.learn: true`?" if error.code == 404 else ""
        raise Unreadable([f"{admin}: answered {error.code}{hint}"]) from None
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Unreadable([f"{admin}: cannot be asked: {reason}"]) from None
    if not isinstance(found, dict) or "schema" not in found or "stability" not in found:
        raise Unreadable([f"{admin}: is no admin port of a sidecar"])
    return found
