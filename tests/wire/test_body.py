"""Bodies: what is read, and the exact reason where nothing is."""

import gzip
import json
import math
import random
import time
import zlib
from typing import Any

import brotli
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from handrail.wire import BodyLimits, body
from handrail.wire.body import REASONS, Body, decode, parse, read_body

LIMITS = BodyLimits()
JSON = {b"content-type": b"application/json"}


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate without wrapper": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd of unknown size": zstandard.ZstdCompressor(write_content_size=False).compress,
}
TEXT = orjson.dumps({"rows": [{"id": n, "name": f"row {n * 7919 % 1000}"} for n in range(500)]})


def encoding(name: str) -> bytes:
    return name.partition(" ")[0].encode()


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoding_is_read(name: str) -> None:
    """One layer of gzip, deflate (with and without its wrapper), br and zstd."""
    body = read_body(JSON | {b"content-encoding": encoding(name)}, ENCODERS[name](TEXT), None, LIMITS)
    assert body == Body(orjson.loads(TEXT))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_truncated_body_is_damaged_at_any_length(name: str) -> None:
    """A prefix never passes for the whole."""
    whole = ENCODERS[name](TEXT)
    for length in {1, 2, 10, len(whole) // 2, len(whole) - 9, len(whole) - 4, len(whole) - 1}:
        assert decode(encoding(name), whole[:length], LIMITS) == "decode_error", length


@pytest.mark.parametrize("name", ENCODERS)
def test_bytes_after_the_end_are_damage(name: str) -> None:
    """Two readers might disagree about them."""
    assert decode(encoding(name), ENCODERS[name](TEXT) + b"more", LIMITS) == "decode_error"


@pytest.mark.parametrize("name", ENCODERS)
def test_a_bomb_is_stopped_by_ratio_and_by_size(name: str) -> None:
    """Past the limit nothing more is decompressed; at it everything is."""
    zeroes = ENCODERS[name](b"0" * 20_000_000)
    before = time.process_time()
    assert decode(encoding(name), zeroes, LIMITS) == "bomb"
    assert decode(encoding(name), zeroes, BodyLimits(decode_ratio=10**9)) == "bomb"
    assert time.process_time() - before < 1.0
    packed = ENCODERS[name](TEXT)
    assert decode(encoding(name), packed, BodyLimits(decoded_bytes=len(TEXT))) == TEXT
    assert decode(encoding(name), packed, BodyLimits(decoded_bytes=len(TEXT) - 1)) == "bomb"


@given(st.lists(st.integers(0, len(TEXT)), max_size=9), st.integers(1, 12))
def test_members_of_gzip_are_one_body(places: list[int], cut: int) -> None:
    """Any number of them one behind the other, up to 64; empty ones too; a cut one is damage."""
    cuts = sorted(places)
    parts = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
    packed = b"".join(map(gzip.compress, parts))
    assert decode(b"gzip", packed, LIMITS) == TEXT
    assert decode(b"gzip", packed[:-cut], LIMITS) == "decode_error"


def test_members_of_gzip_are_bounded_in_number_and_together_in_size() -> None:
    """Each is inflated within what the others left of the limit."""
    empty, million = gzip.compress(b""), gzip.compress(b"0" * 1_000_000)
    assert decode(b"gzip", empty * 63 + gzip.compress(TEXT), LIMITS) == TEXT
    assert decode(b"gzip", empty * 100_000, LIMITS) == "decode_error"
    assert decode(b"gzip", million * 60, LIMITS) == "bomb"


def test_a_bomb_inside_a_compressed_body_stays_packed() -> None:
    """One layer is undone; what is in it is not JSON then."""
    nested = gzip.compress(gzip.compress(b"0" * 1_000_000))
    assert read_body(JSON | {b"content-encoding": b"gzip"}, nested, None, LIMITS).reason == "invalid_json"


@pytest.mark.parametrize("name", [b"gzip, gzip", b"gzip,br", b"compress", b"aes128gcm", b"gzip;q=1", b"x"])
def test_an_unknown_encoding_or_several_layers(name: bytes) -> None:
    """Said, not guessed."""
    assert read_body(JSON | {b"content-encoding": name}, b"{}", None, LIMITS).reason == "unknown_encoding"


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b" GZIP ", b"identity", b""]))
def test_garbage_decodes_to_bytes_or_a_reason(raw: bytes, name: bytes) -> None:
    """Never an exception."""
    decoded = decode(name, raw, LIMITS)
    assert isinstance(decoded, bytes) or decoded in REASONS


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"NaN", "invalid_json"),
        (b"[Infinity]", "invalid_json"),
        (b"[-Infinity]", "invalid_json"),
        (b"1e400", "invalid_json"),
        (b'{"a": -1e400}', "invalid_json"),
        (b'{"a": 1e400, "b": 12345678901234567890}', "invalid_json"),
        (b"9" * 5000, "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b', "a": 1}', "invalid_json"),
        (b'"\xff"', "invalid_json"),
        (b'"\xc0\xaf"', "invalid_json"),
        (b'"\xed\xa0\x80"', "invalid_json"),
        (b'"\\ud800"', "invalid_json"),
        (b'"\\udc00\\ud800"', "invalid_json"),
        ('{"a": 1}'.encode("utf-16"), "invalid_json"),
        ('{"a": 1}'.encode("utf-16-le"), "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b"{}\n{}\n", "invalid_json"),
        (b"{}x", "invalid_json"),
        (b"", "invalid_json"),
        (b" ", "invalid_json"),
        (b"\xef\xbb\xbf", "invalid_json"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "invalid_json"),
        (b"{'a': 1}", "invalid_json"),
        (b'{"a": 1,}', "invalid_json"),
        (b"[01]", "invalid_json"),
        (b"// x\n1", "invalid_json"),
        (b'"a\nb"', "invalid_json"),
        (b"\0", "invalid_json"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a":1,"a":1}', "duplicate_key"),
        (b'[{"b": {"a": [], "\\u0061": []}}]', "duplicate_key"),
        (b'{"\\u0022": 1, "a": 1, "a": 2}', "duplicate_key"),
        (b'{"\\u0022\\u0022": 1, "a": 1, "a": 2}', "duplicate_key"),
        (b'{"a":"\\\\u0022","b":1,"b":2}', "duplicate_key"),
    ],
)
def test_what_is_not_exactly_json_says_why(raw: bytes, reason: str) -> None:
    """The table of strictness: numbers, text, structure, keys."""
    assert parse(raw, 128).reason == reason


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"\xef\xbb\xbf{}", {}),
        (b' {"a" : [ 1 , 2 ] }\r\n', {"a": [1, 2]}),
        (b'"\\u0000"', "\0"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\/"', "/"),
        (b"18446744073709551616", 2**64),
        (b"[-123456789012345678901234567890]", [-123456789012345678901234567890]),
        (b'{"id": "12345678901234567890"}', {"id": "12345678901234567890"}),
        (b"1E2", 100.0),
        (b"-0", 0),
        (b'{"a":{"a":{"a":1}},"b":"a"}', {"a": {"a": {"a": 1}}, "b": "a"}),
        (b'{"a": "\\\\u0022"}', {"a": "\\u0022"}),
        (b"null", None),
    ],
)
def test_what_is_json_is_read_exactly(raw: bytes, value: Any) -> None:
    """Marks, white space, escapes, and integers past 64 bits."""
    body = parse(raw, 128)
    assert body == Body(value)
    assert type(body.value) is type(value) or raw == b"-0"


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**64, 2**63, 10**18])
@pytest.mark.parametrize("offset", range(4))
def test_integers_at_the_edge_of_64_bits_are_exact(number: int, offset: int) -> None:
    """Wherever they stand in the text, between other digits or alone."""
    raw = b" " * offset + b'{"a": %d, "b": [%d.5e3, "7"]}' % (number, 12345678)
    assert parse(raw, 128) == Body({"a": number, "b": [12345678500.0, "7"]})


@pytest.mark.parametrize("depth", [129, 255, 900, 1_024, 1_025, 2_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_what_is_nested_too_deeply_is_not_followed(depth: int, opening: bytes, closing: bytes) -> None:
    """No RecursionError, at any depth, compact or not, wide or not."""
    raw = opening * depth + b"1" + closing * depth
    assert parse(raw, 128).reason == "too_deep"
    assert parse(b"[" + b'{"x": [], "y": "]]}}"}, ' * 50 + raw + b" ]", 128).reason == "too_deep"
    assert parse(opening * depth, 128).reason in ("too_deep", "invalid_json")


def test_the_depth_is_exact_and_strings_do_not_count() -> None:
    """128 levels pass, 129 do not, brackets in strings are text, and width is not depth."""
    for noise in (b"", b'"[[[[", "\\"{{{{\\\\", ', b"[], {}, " * 300):
        for depth, reason in ((127, None), (128, "too_deep")):
            assert parse(b"[" + noise + b"[" * depth + b"]" * depth + b"]", 128).reason == reason
    assert parse(b"[" * 300 + b"]" * 300, 1_000).reason == "too_deep"  # deeper than can be written again
    assert parse(b"[" * 250 + b"]" * 250, 1_000).reason is None


def nesting(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nesting, value), default=0)
    return 0


TEXTS = st.text(st.sampled_from('[]{}"\\au0\x00é\U0001f600 ') | st.characters(codec="utf-8"), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:")]), st.integers(0, 5))
def test_what_is_written_is_read_and_depth_is_judged(
    value: Any, ascii: bool, separators: tuple[str, str], depth: int
) -> None:
    """Any value in any layout, exactly, where it is no deeper than the limit; else too_deep."""
    raw = json.dumps(value, ensure_ascii=ascii, separators=separators).encode()
    assert parse(raw, 128) == Body(value)
    assert parse(raw, depth).reason == ("too_deep" if nesting(value) > depth else None)


def written(value: Any, chance: random.Random) -> str:
    """JSON text in which members may be repeated and characters may be escaped."""
    if isinstance(value, dict):
        members = [(key, item) for key, item in value.items()]
        if members and chance.random() < 0.3:
            members.append((chance.choice(members)[0], chance.choice([0, "", [], {"k": 1}])))
            chance.shuffle(members)
        return "{" + ", ".join(f"{written(key, chance)}: {written(item, chance)}" for key, item in members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(item, chance) for item in value) + "]"
    if isinstance(value, str):
        return '"' + "".join(
            f"\\u{ord(one):04x}" if one < "\uffff" and (chance.random() < 0.3 or one < " ") else json.dumps(one)[1:-1]
            for one in value
        ) + '"'  # fmt: skip
    return json.dumps(value)


@given(VALUES, st.randoms(use_true_random=False))
def test_repeated_keys_are_noticed_exactly(value: Any, chance: random.Random) -> None:
    """The oracle is `json` with object_pairs_hook: the same verdict, and the value that keeps the last."""
    raw = written(value, chance)
    repeated = False

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        repeated = repeated or len(dict(members)) < len(members)
        return dict(members)

    expected = json.loads(raw, object_pairs_hook=pairs)
    assert parse(raw.encode(), 128) == Body(expected, "duplicate_key" if repeated else None)


@given(st.binary(max_size=60) | TEXTS.map(str.encode))
def test_garbage_is_a_value_or_a_reason(raw: bytes) -> None:
    """Never an exception; what is accepted, `json` accepts too, and it has no infinity in it."""
    body = parse(raw, 5)
    assert body.reason is None or body.reason in REASONS
    if body.reason is None:
        assert json.loads(raw.removeprefix(b"\xef\xbb\xbf")) == body.value
        assert not (isinstance(body.value, float) and math.isinf(body.value))


def test_a_cut_or_foreign_body_is_not_looked_at() -> None:
    """The copy's own reason first, then the content type; without one JSON is tried; nothing is nothing."""
    assert read_body(JSON, b"{}", "too_large", LIMITS) == Body(reason="too_large")
    assert read_body({b"content-type": b"text/plain"}, b"{}", None, LIMITS) == Body(reason="not_json")
    assert read_body({b"content-type": b"Application/A2A+JSON"}, b"{}", None, LIMITS) == Body({})
    assert read_body({}, b"{}", None, LIMITS) == Body({})
    assert read_body(JSON, b"", None, LIMITS) == Body()


def test_wide_bodies_cost_little() -> None:
    """A megabyte of small objects is judged in the time of a few passes over it."""
    raw = b"[" + b",".join([b'{"a": [{}, {}], "b": "x"}'] * 40_000) + b"]"
    before = time.process_time()
    assert parse(raw, 128).reason is None
    assert time.process_time() - before < 2.0


def test_small_bodies_are_remembered_within_a_bound() -> None:
    """The same bytes are read once, whatever came between; a lower limit of depth is still a limit."""
    raw = b'{"status":[[["accepted"]]]}'
    for number in range(1_000):
        assert read_body(JSON, raw, None, LIMITS) == Body({"status": [[["accepted"]]]})
        assert read_body(JSON, b'{"id":%d}' % number, None, LIMITS) == Body({"id": number})
        assert read_body(JSON, b'{"id":1,"id":%d}' % number, None, LIMITS) == Body({"id": number}, "duplicate_key")
    assert len(body._small) <= 64
    assert read_body(JSON, raw, None, BodyLimits(depth=3)).reason == "too_deep"
    assert read_body({b"content-type": b"text/csv"}, raw, None, LIMITS).reason == "not_json"
