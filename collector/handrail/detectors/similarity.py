"""A payload becomes what can be compared without keeping it: its content's signature, its words, its fingerprints.

Nothing here runs unless a rule asks, and nothing keeps text: a signature is 8 bytes, a vocabulary a bit set of a fixed
size, fingerprints a bounded set of whole numbers. The hashes are seeded by their input alone, so that a recording gives
the findings that the live system gave.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import xxhash
from xxhash import xxh32_intdigest

from handrail.event import canonical

if TYPE_CHECKING:
    from mypy_extensions import i64

TEXT_CHARS: Final = 65_536
"""So much of a payload's text is looked at; what comes after it is not compared."""
MAX_LEAVES: Final = 4_096
MAX_DEPTH: Final = 64

VOLATILE = frozenset(
    {
        "timestamp",
        "created",
        "updated",
        "started_at",
        "completed_at",
        "created_at",
        "updated_at",
        "sent_at",
        "received_at",
        "attempt",
        "retry",
        "trace_id",
        "span_id",
        "traceparent",
        "request_id",
        "message_id",
        "messageId",
        "task_id",
        "taskId",
        "context_id",
        "contextId",
        "event_id",
        "correlation_id",
        "idempotency_key",
        "nonce",
        "uuid",
        "token_count",
        "tokens",
        "duration",
        "duration_ms",
        "elapsed",
        "latency_ms",
        "metadata",
    }
)
"""Keys whose values differ in every message and say nothing about its content."""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[^\W{_CJK}_]+|[{_CJK}]")
"""A run of letters and digits; a character where a script puts no spaces between its words."""
_SMALL = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else 32 for code in range(256))
"""Every byte of ASCII to its small letter, and what is no letter or digit to a space."""
_PLACE = re.compile(r"(?:https?|file|s3|gs)://[^\s)\]}\"'<>]+", re.IGNORECASE)
_ARTIFACT_KEYS = frozenset({"artifacts", "artifact", "artifactId", "artifact_id", "uri", "url", "file", "path"})


def leaves(payload: Any) -> Iterator[tuple[str, Any]]:
    """Every scalar of a JSON value under its nearest key, in document order, without volatile keys; bounded."""
    stack: list[tuple[str, Any, int]] = [("", payload, 0)]
    left = MAX_LEAVES
    while stack and left:
        key, value, depth = stack.pop()
        if type(value) is dict:
            if depth < MAX_DEPTH:
                stack += [
                    (str(name) if key not in _ARTIFACT_KEYS else key, item, depth + 1)
                    for name, item in reversed(value.items())
                    if name not in VOLATILE
                ]
        elif type(value) is list:
            if depth < MAX_DEPTH:
                stack += [(key, item, depth + 1) for item in reversed(value)]
        elif value is not None and value is not True and value is not False:
            left -= 1
            yield key, value


def text_of(payload: Any) -> str:
    """The texts and numbers of a JSON value, a line each, at most TEXT_CHARS long."""
    if type(payload) is str:
        return payload[:TEXT_CHARS]
    found = _Texts()
    found.take(payload, 0)
    return "\n".join(found.parts)[:TEXT_CHARS]


def texts_of(payload: Any) -> list[str]:
    """The lines of `text_of`, each by itself."""
    found = _Texts()
    found.take(payload, 0)
    parts, over = found.parts, found.size - 1 - TEXT_CHARS
    if over > 0:
        parts[-1] = parts[-1][:-over]
    return parts


class _Texts:
    """The `leaves` of a value as text, without their keys."""

    __slots__ = ("left", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0
        self.left = MAX_LEAVES

    def take(self, value: Any, depth: int) -> bool:
        """Whether there may be more."""
        if type(value) is dict:
            if depth < MAX_DEPTH:
                for name, item in value.items():
                    if name not in VOLATILE and not self.take(item, depth + 1):
                        return False
            return True
        if type(value) is list:
            if depth < MAX_DEPTH:
                for item in value:
                    if not self.take(item, depth + 1):
                        return False
            return True
        if value is None or value is True or value is False:
            return True
        part = value if type(value) is str else str(value)
        self.parts.append(part)
        self.size += len(part) + 1
        self.left -= 1
        return self.left > 0 and self.size <= TEXT_CHARS


def signature(payload: Any) -> int:
    """64 bits, equal for payloads that differ only in volatile keys and in the order of keys."""
    try:
        return xxhash.xxh3_64_intdigest(canonical(_settled(payload, 0)))
    except (TypeError, ValueError, RecursionError):
        return xxhash.xxh3_64_intdigest(text_of(payload).encode("utf-8", "replace"))


def _settled(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        return None
    if type(value) is dict:
        kept = {name: _settled(item, depth + 1) for name, item in value.items() if name not in VOLATILE}
        return kept or value
    if type(value) is list:
        return [_settled(item, depth + 1) for item in value]
    return value


def words(text: str) -> list[bytes]:
    """The words of a text in their order, in small letters, without punctuation and layout."""
    if text.isascii():
        return text.encode().translate(_SMALL).split()
    return [word.encode("utf-8", "replace") for word in _WORD.findall(text.lower())]


def places(payload: Any, text: str) -> set[str]:
    """What a payload names that lies somewhere: URLs without their query, and what stands under artifact keys."""
    found: set[str] = set()
    if "://" in text:
        found = {match.partition("?")[0].partition("#")[0].rstrip("/.,;:").lower() for match in _PLACE.findall(text)}
    if type(payload) is dict:
        for key, value in leaves(payload):
            if key in _ARTIFACT_KEYS and type(value) is str:
                found.add(value.partition("?")[0].partition("#")[0].rstrip("/").lower())
    return found


def phrases(text: str) -> frozenset[int]:
    """Every three words in a row of a text, as 32-bit hashes; fewer words are one phrase, no words none.

    A paraphrase has new phrases though few new words; a text that is re-wrapped, re-quoted or put in capitals has none.
    Each word is hashed once (XXH32), and a phrase is the sum of its words' hashes, the second and the third times an
    odd number, modulo 2^32: cheaper than joining the words and hashing what comes of it.
    """
    return Phrases.of_text(text).distinct()


def _joined(text: str, size: int) -> tuple[list[Any], list[Any], int]:
    """The hash of each three words in a row; with a size, those that a sample of it would keep, and by which mask.

    Sums have less than 64 bits and what a list holds is Any, so that compiled code counts in machine words and makes no
    object twice.
    """
    spoken = words(text)
    if len(spoken) < 3:
        made: list[Any] = [xxh32_intdigest(b" ".join(spoken))] if spoken else []
        return made, made, 0
    hashes: list[Any] = list(map(xxh32_intdigest, spoken))
    mask = _mask(len(hashes) - 2, size) if size else 0
    bits: i64 = mask
    made = []
    kept: list[Any] = []
    first: i64 = hashes[0]
    second: i64 = hashes[1]
    for third_hash in hashes[2:]:
        third: i64 = third_hash
        code: i64 = (first + second * 0x2C1B3C6D + third * 0x297A2D39) & 0xFFFFFFFF
        boxed: Any = code
        made.append(boxed)
        if code & bits == 0:
            kept.append(boxed)
        first = second
        second = third
    return made, kept, mask


class Phrases:
    """The phrases of a text, and those by which it is compared with others: at most SAMPLE that have no bit of `mask`.

    Which are kept depends on each phrase alone, so that two samples can be compared: by the larger mask of both.
    `codes` are all phrases in their order, 32 bits each: a set of them takes three times as long to make.
    """

    __slots__ = ("codes", "mask", "sample")

    def __init__(self, codes: "array[int]", mask: int, sample: frozenset[int]) -> None:
        while len(sample) > SAMPLE:
            mask = mask << 1 | 1
            sample = frozenset(_without(sample, mask))
        self.codes, self.mask, self.sample = codes, mask, sample

    @staticmethod
    def of_text(text: str) -> "Phrases":
        made, kept, mask = _joined(text, SAMPLE)
        codes = array("I", made)
        sample: frozenset[int] = frozenset(kept)
        if mask and len(sample) < SAMPLE // 4:  # it repeats itself
            mask, sample = sampled(frozenset(codes), SAMPLE)
        return Phrases(codes, mask, sample)

    @staticmethod
    def of_texts(texts: list[str]) -> "Phrases":
        """Those of the short texts one behind the other, and of each long one by itself.

        A workflow says the same long texts again and again (goals, results, what was said before): what their phrases
        are is remembered by their hashes, one by one and all together, so that a payload costs what is new in it.
        """
        said = [text for text in texts if len(text) >= _LONG]
        if len(said) < len(texts):
            said.append("\n".join([text for text in texts if len(text) < _LONG]))
        keys = tuple([xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in said])
        if len(keys) == 1:
            return _of_text(keys[0], said[0])
        known = _together.get(keys)
        if known is None:
            known = _joint([_of_text(keys[index], text) for index, text in enumerate(said)])
            if len(known.codes) <= _REMEMBERED_CODES:
                _together[keys] = known
                if len(_together) > _PAYLOADS:
                    del _together[next(iter(_together))]
        return known

    def distinct(self) -> frozenset[int]:
        """Each phrase once."""
        return frozenset(self.codes)


_LONG: Final = 256
"""Characters of a text whose phrases are its own: between two of them nothing is said."""
_TEXTS: Final = 128
_PAYLOADS: Final = 64
"""How many of each are remembered."""
_REMEMBERED_CODES: Final = 4_096
"""Phrases of one of them, as many as 25,000 characters have: with the sample 24 KB, all together 5 MB at the most."""
_texts: Final[dict[int, Phrases]] = {}
_together: Final[dict[tuple[int, ...], Phrases]] = {}


def _of_text(key: int, text: str) -> Phrases:
    known = _texts.get(key)
    if known is None:
        known = Phrases.of_text(text)
        if len(known.codes) <= _REMEMBERED_CODES:
            _texts[key] = known
            if len(_texts) > _TEXTS:
                del _texts[next(iter(_texts))]
    return known


def _joint(made: list[Phrases]) -> Phrases:
    codes = array("I")
    mask = 0
    for each in made:
        codes += each.codes
        mask |= each.mask
    sample: set[int] = set()
    for each in made:
        sample.update(each.sample if each.mask == mask else _without(each.sample, mask))
    return Phrases(codes, mask, frozenset(sample))


SAMPLE: Final = 128
_LATEST: Final = 16
"""Payloads whose phrases are remembered: several rules ask about the events that are observed together."""
_latest: Final[dict[tuple[int, str], Phrases]] = {}


def phrases_of(payload: Any, digest: str | None) -> Phrases:
    """A payload's phrases. With its digest they are made once for the rules that ask about it in turn."""
    if digest is None:
        return Phrases.of_texts(texts_of(payload))
    key = (id(payload), digest)  # the object too, because equal payloads may have their keys in another order
    known = _latest.get(key)
    if known is None:
        known = Phrases.of_texts(texts_of(payload))
        if len(known.codes) <= _REMEMBERED_CODES:
            _latest[key] = known
            if len(_latest) > _LATEST:
                del _latest[next(iter(_latest))]
    return known


def sampled(codes: frozenset[int], size: int) -> tuple[int, frozenset[int]]:
    """At most `size` of the hashes, those that have none of the low bits of a mask, and the mask."""
    mask = _mask(len(codes), size)
    if not mask:
        return 0, codes
    kept = _without(codes, mask)
    while len(kept) > size:
        mask = mask << 1 | 1
        kept = _without(kept, mask)
    return mask, frozenset(kept)


def _mask(count: int, size: int) -> int:
    """The bits by which so many hashes become `size` or fewer, as a rule."""
    return (1 << ((count - 1) // size).bit_length()) - 1 if count else 0


def _without(codes: Iterable[Any], bits: "i64") -> list[Any]:
    """Those that have none of the bits."""
    kept: list[Any] = []
    for each in codes:
        code: i64 = each
        if code & bits == 0:
            kept.append(each)
    return kept


class Said:
    """Which phrases were there before, in a bit set of a fixed size: 64 KiB, 524,288 bits, one for a phrase.

    It never takes a known phrase for new; after 25,000 different phrases it takes one new one in twenty for known.
    """

    __slots__ = ("_bits",)
    _MASK = 0x7FFFF

    def __init__(self) -> None:
        self._bits = bytearray((self._MASK + 1) // 8)

    def add(self, codes: Iterable[int]) -> int:
        """Remember these; how many of them were new."""
        bits, mask = self._bits, self._MASK
        fresh = [place for code in codes if not bits[(place := code & mask) >> 3] & (1 << (place & 7))]
        for place in fresh:
            bits[place >> 3] |= 1 << (place & 7)
        return len(fresh)


_REVISION_WORDS = ("version", "revision", "rev", "draft")
_REVISION = re.compile(r"(?:version|revision|rev|draft)[\s#:._-]{0,2}(\d{1,9})\b|v(?<![a-z0-9]v)(\d{1,9})\b")
_REVISION_KEYS = frozenset({"version", "revision", "rev", "draft_version", "state_version", "draft_number"})


def revision(payload: Any, text: str) -> int | None:
    """The highest version that a payload says it has: `revision: 3`, `"version": 3`, `draft 3`, `v3`."""
    start = text[:1024].lower()
    found = [int(word or letter) for word, letter in _REVISION.findall(start)] if _may_number(start) else []
    if type(payload) is dict:
        found += [value for key, value in leaves(payload) if key in _REVISION_KEYS and type(value) is int]
    return max(found, default=None)


_LETTER_NUMBER = re.compile(r"v\d")


def _may_number(text: str) -> bool:
    """Whether the slower look is worth it."""
    return any(word in text for word in _REVISION_WORDS) or _LETTER_NUMBER.search(text) is not None
