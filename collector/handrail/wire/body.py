"""A message's bounded copy of its body becomes a JSON value, or the reason why it cannot be read.

The bytes that travel are never touched; this reads a copy. Reasons are a closed list, `REASONS`, and each is counted.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import brotli
import orjson
import zstandard

from handrail.wire.route import BodyLimits

REASONS = {
    "too_large": "the body is longer than inspection.body_bytes",
    "overload": "the copies of all bodies under way reached their common budget",
    "incomplete": "the connection ended before the body did",
    "stream_too_long": "a stream was longer than inspection.body_bytes",
    "not_json": "the content type is not JSON",
    "unknown_encoding": "Content-Encoding names something other than gzip, deflate, br or zstd, or several layers",
    "decode_error": "the compressed body is damaged",
    "bomb": "the body decompresses to more than inspection.decoded_bytes, or more than inspection.decode_ratio times",
    "invalid_json": "the body is not JSON (nor are NaN, Infinity, numbers out of range, bad UTF-8, lone surrogates)",
    "duplicate_key": "an object repeats a key, so two readers may see two different payloads",
    "too_deep": "the body is nested deeper than inspection.depth",
    "tunnel": "CONNECT, Upgrade or HTTP/2: bytes pass through unread",
}

MALFORMED: Final = frozenset({"invalid_json", "duplicate_key", "too_deep"})
"""The reasons that are the sender's doing: the body claims to be JSON and is not, or is ambiguous."""


class Body:
    """What a body says: `value` where it is JSON, `reason` where it could not be read. With `duplicate_key` both are
    there: the value is what a reader that keeps the last of two equal keys sees."""

    __slots__ = ("reason", "value")

    def __init__(self, value: Any = None, reason: str | None = None) -> None:
        self.value = value
        self.reason = reason

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Body) and self.value == other.value and self.reason == other.reason

    __hash__ = None  # type: ignore[assignment]  # its value has none

    def __repr__(self) -> str:
        return f"Body({self.value!r}, {self.reason!r})"


EMPTY: Final = Body()
_loads: Final = orjson.loads
_dumps: Final = orjson.dumps


_SMALL: Final = 192
_REMEMBERED: Final = 64
_small: Final[dict[bytes, Body]] = {}


def read_body(
    headers: dict[bytes, bytes], raw: bytes, cut: str | None, limits: BodyLimits, is_json: bool = False
) -> Body:
    """Headers and the bounded copy to a Body. An empty body is a Body with neither value nor reason.

    `is_json`: it is known that the headers say so, and name no coding.

    Acknowledgements and polls are the same few bytes again and again: such bodies are remembered, which spares 5,000
    instructions where one comes again and costs 500 where not. So a value may be shared, and nobody may change it.
    """
    if cut is not None:
        return Body(reason=cut)
    if not raw:
        return EMPTY
    if not is_json:
        kind = headers.get(b"content-type")
        # The comparison spares nearly every body the search: `in` raises and clears an error first, 0.3 µs.
        if kind is not None and kind != b"application/json" and kind and b"json" not in kind.lower():
            return Body(reason="not_json")
        encoding = headers.get(b"content-encoding")
        if encoding is not None:
            decoded = decode(encoding, raw, limits)
            if isinstance(decoded, str):
                return Body(reason=decoded)
            raw = decoded
    depth = limits.depth
    if len(raw) > _SMALL or depth < _SMALL:  # fewer bytes than levels are never too deep
        return parse(raw, depth)
    body = _small.get(raw)
    if body is None:
        if len(_small) >= _REMEMBERED:
            _small.clear()
        body = _small[raw] = parse(raw, depth)
    return body


def decode(encoding: bytes, raw: bytes, limits: BodyLimits) -> bytes | str:
    """Undo one layer of Content-Encoding within the limits: the bytes, or the reason why not."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return raw
    decoder = _DECODERS.get(name)
    if decoder is None:
        return "unknown_encoding"
    limit = min(limits.decoded_bytes, limits.decode_ratio * max(len(raw), 64))
    try:
        out = decoder(raw, limit)
    except (zlib.error, zstandard.ZstdError, brotli.error, EOFError, ValueError):
        return "decode_error"
    return "bomb" if len(out) > limit else out


def _inflate(raw: bytes, limit: int, window: int) -> bytes:
    inflater = zlib.decompressobj(window)
    out = inflater.decompress(raw, limit + 1)
    if len(out) <= limit and (not inflater.eof or inflater.unused_data):
        raise EOFError("truncated, or followed by something else")
    return out


_MEMBERS: Final = 64
"""Of one gzip body: what lies behind each is copied, so that a body of empty members would cost its square."""


def _gunzip(raw: bytes, limit: int) -> bytes:
    """Any number of members one behind the other is gzip too (RFC 1952 2.2), as log shippers write it."""
    out = b""
    for _ in range(_MEMBERS):
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        out += inflater.decompress(raw, limit + 1 - len(out))
        if len(out) > limit:
            return out
        if not inflater.eof:
            raise EOFError("truncated")
        raw = inflater.unused_data
        if not raw:
            return out
    raise EOFError("too many members")


def _deflate(raw: bytes, limit: int) -> bytes:
    try:
        return _inflate(raw, limit, zlib.MAX_WBITS)
    except zlib.error:
        return _inflate(raw, limit, -zlib.MAX_WBITS)  # RFC 9110 8.4.1.2: some senders leave the zlib wrapper out


def _brotli(raw: bytes, limit: int) -> bytes:
    decompressor = brotli.Decompressor()
    out: bytes = decompressor.process(raw, output_buffer_limit=limit + 1)
    while len(out) <= limit and not decompressor.is_finished():
        more: bytes = decompressor.process(b"", output_buffer_limit=limit + 1 - len(out))
        if not more:
            raise EOFError("truncated")
        out += more
    return out


def _zstd(raw: bytes, limit: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    with decompressor.stream_reader(raw, read_across_frames=False) as reader:
        out = reader.read(limit + 1)
    if len(out) > limit:
        return out
    # The reader ends in silence where a frame is cut, and the object that notices has no limit on its output: so the
    # first pass proves that the output is small, and the second that it is whole.
    whole = decompressor.decompressobj()
    out = whole.decompress(raw)
    if not whole.eof or whole.unused_data:
        raise EOFError("truncated, or followed by something else")
    return out


_DECODERS: Final[Mapping[bytes, Callable[[bytes, int], bytes]]] = {
    b"gzip": _gunzip,
    b"x-gzip": _gunzip,
    b"deflate": _deflate,
    b"br": _brotli,
    b"zstd": _zstd,
}

_DIGITS_AS_ZERO: Final = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
_WRITE_DEPTH: Final = 254
"""Deeper than this orjson reads (to 1,024) but does not write."""


def parse(raw: bytes, depth: int) -> Body:
    """JSON text to a Body: strict UTF-8, no NaN, no lone surrogates; numbers exact; repeated keys noticed.

    orjson reads the text (9 µs for 4 KB where `json` takes 40). It keeps the last of two equal keys and turns integers
    past 64 bits into floats, both in silence. Where writing the value again gives the same bytes, neither happened:
    3 µs, and true of every compact sender. Otherwise quotation marks are counted on both sides; see `_repeats_a_key`.
    """
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]  # RFC 8259 8.1: a reader may ignore a byte order mark
    try:
        value = _loads(raw)
    except orjson.JSONDecodeError as error:
        return Body(reason="too_deep" if "depth" in str(error) else "invalid_json")
    if depth < _WRITE_DEPTH and raw.count(b"{") + raw.count(b"[") > depth and _deeper_than(raw, depth):
        return Body(reason="too_deep")
    try:
        again = _dumps(value)
    except orjson.JSONEncodeError:
        return Body(reason="too_deep")
    if again == raw:
        return Body(value)
    if has_long_number(raw):
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return Body(reason="invalid_json")
    if _repeats_a_key(raw, again):
        return Body(value, "duplicate_key")
    return Body(value)


def has_long_number(raw: bytes) -> bool:
    """Whether 19 digits stand in a row, from which on an integer may not fit into 64 bits.

    Every such run has four digits at distances of four, so a quarter of the text is looked at first: 2 µs for 4 KB
    where a regular expression takes 80.
    """
    if b"0000" not in raw[::4].translate(_DIGITS_AS_ZERO):
        return False
    return b"0" * 19 in raw.translate(_DIGITS_AS_ZERO)


_BRACKETS = bytes.maketrans(b"[]", b"{}")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"{}[]")


def _deeper_than(raw: bytes, depth: int) -> bool:
    """Whether valid JSON nests deeper than `depth`.

    Strings are cut out, what is left is reduced to its brackets, and each pass removes the innermost pair of every
    chain: all in C, so that a body with thousands of small objects does not pay for a walk over its tokens.
    """
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    nest = b"".join(raw.split(b'"')[::2]).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(depth):
        if not nest:
            return False
        nest = nest.replace(b"{}", b"")
    return bool(nest)


def _repeats_a_key(raw: bytes, again: bytes) -> bool:
    """Whether some object in `raw` repeats a key, given the same text parsed and written again.

    Every string has two quotation marks in both texts, and a quotation mark inside a string is one in both (written
    `\\"` or `\\u0022`). A dropped member takes at least two with it, so equal counts prove that none was dropped. The
    count of `raw` may be too high (a backslash before `\\u0022`), never too low: only then is the exact answer needed.
    """
    if raw.count(b'"') + raw.count(b"\\u0022") == again.count(b'"'):
        return False
    repeated = False

    def pairs(members: list[tuple[str, Any]]) -> None:
        nonlocal repeated
        repeated = repeated or len({key for key, _ in members}) < len(members)

    json.loads(raw, object_pairs_hook=pairs)
    return repeated
