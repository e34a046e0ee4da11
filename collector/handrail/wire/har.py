"""Recorded traffic (HAR 1.2) becomes exchanges, for replay.

Vendor fields (`_…`) are ignored. A HAR holds bodies as they were after decoding, so Content-Encoding is dropped.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from handrail.event import seconds
from handrail.wire import Exchange, Reply, Request, Route

__all__ = ["load"]

LONGEST = 366 * 86_400
"""Seconds; an exchange that took longer is a mistake of its recorder, and would move every instant after it."""


def load(text: str, file: str) -> Iterator[Exchange]:
    """HAR text to its exchanges, in the file's order; ids are `<stem of file>:<index>`.

    The route knows the authority of the URL as its upstream, and no names. Entries that are not HTTP (`data:`, `blob:`)
    are left out; a WebSocket is the request that opened it. Raises ValueError with the index of the wrong entry.
    """
    stem = PurePath(file).stem
    for index, entry in enumerate(_entries(text)):
        try:
            exchange = _exchange(entry, f"{stem}:{index}")
        except KeyError as error:
            raise ValueError(f"entry {index}: {error.args[0]} is missing") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"entry {index}: a value is of the wrong type: {error}") from None
        except (ValueError, OverflowError, binascii.Error) as error:
            raise ValueError(f"entry {index}: {error}") from None
        if exchange is not None:
            yield exchange


def _entries(text: str) -> list[Any]:
    text = text.removeprefix("\ufeff")
    try:
        har = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        # `json` reads what a recorder may have put into a body: lone surrogates, numbers past 64 bits
        try:
            har = json.loads(text)
        except RecursionError:
            raise ValueError("is not a HAR: nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"is not JSON: {error}") from None
    entries = har.get("log", {}) if isinstance(har, dict) else None
    entries = entries.get("entries") if isinstance(entries, dict) else None
    if not isinstance(entries, list):
        raise ValueError("is not a HAR: log.entries is not a list")
    return entries


def _exchange(entry: Mapping[str, Any], id: str) -> Exchange | None:
    asked, answered = entry["request"], entry["response"]
    url = urlsplit(asked["url"])
    if not url.scheme:
        raise ValueError(f"request.url {asked['url']!r} is not absolute")
    if url.scheme not in ("http", "https", "ws", "wss"):
        return None
    at = _instant(entry["startedDateTime"])
    ended = at + max(0.0, float(entry.get("time") or 0.0)) / 1000
    if ended - at > LONGEST:
        raise ValueError(f"time {entry['time']} ms is longer than a year")
    sent, first = _instants(entry.get("timings") or {}, at, ended)
    body, cut = _posted(asked)
    request = Request(
        method=asked["method"],
        target=(url.path or "/") + (f"?{url.query}" if url.query else ""),
        headers=_headers(asked.get("headers") or (), (asked.get("postData") or {}).get("mimeType")),
        at=at,
        end=sent,
        body=body,
        size=len(body) if cut is None else max(len(body), int(asked.get("bodySize") or 0), 1),
        cut=cut,
    )
    route = Route(upstream=url.netloc.rpartition("@")[2].lower())
    status = 0 if answered is None else int(answered["status"])
    if status <= 0:  # 0 or -1 is what browsers record for an exchange that failed or was given up
        return Exchange(id=id, route=route, request=request, end="upstream_reset", ended=ended)
    content = answered.get("content") or {}
    body, cut = _received(content)
    reply = Reply(
        status=status,
        headers=_headers(answered.get("headers") or (), content.get("mimeType")),
        at=first,
        end=ended,
        body=body,
        size=len(body) if cut is None else int(content.get("size") or 1),
        cut=cut,
    )
    return Exchange(id=id, route=route, request=request, reply=reply, ended=ended)


def _instant(text: Any) -> float:
    if not isinstance(text, str):
        raise TypeError(f"startedDateTime {text!r} is not text")
    return seconds(text)


def _instants(timings: Mapping[str, Any], at: float, ended: float) -> tuple[float, float]:
    """When the request was complete and when the reply began, from timings in ms of which -1 means unknown."""

    def known(*names: str) -> float:
        return sum(max(0.0, float(timings.get(name) or 0.0)) for name in names) / 1000

    first = max(at, ended - known("receive"))
    if wait := known("wait"):
        return max(at, first - wait), first
    return min(first, at + known("blocked", "dns", "connect", "send")), first


def _headers(pairs: Any, kind: str | None) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for pair in pairs:
        name = pair["name"].lower().encode("utf-8", "replace")
        if name.startswith(b":") or name in (b"content-encoding", b"transfer-encoding"):
            continue
        value = (pair["value"] or "").encode("utf-8", "surrogateescape")
        headers[name] = headers[name] + b", " + value if name in headers else value
    if kind and b"content-type" not in headers:
        headers[b"content-type"] = kind.encode("utf-8", "replace")
    return headers


def _posted(request: Mapping[str, Any]) -> tuple[bytes, str | None]:
    posted = request.get("postData")
    if posted is None:
        return b"", "incomplete" if int(request.get("bodySize") or 0) > 0 else None
    if posted.get("text"):
        return _bytes(posted["text"], posted.get("encoding")), None
    if posted.get("params"):
        pairs = [(param["name"], param.get("value") or "") for param in posted["params"]]
        return urlencode(pairs).encode(), None
    return b"", None


def _received(content: Mapping[str, Any]) -> tuple[bytes, str | None]:
    text = content.get("text")
    if text is None:
        return b"", "incomplete" if int(content.get("size") or 0) > 0 else None
    return _bytes(text, content.get("encoding")), None


def _bytes(text: str, encoding: str | None) -> bytes:
    if encoding == "base64":
        try:
            return base64.b64decode("".join(text.split()), validate=True)  # some write it in lines (RFC 2045 6.8)
        except binascii.Error as error:
            raise ValueError(f"a body is not base64: {error}") from None
    if encoding:
        raise ValueError(f"content.encoding {encoding!r} is neither absent nor base64")
    return text.encode("utf-8", "surrogatepass")
