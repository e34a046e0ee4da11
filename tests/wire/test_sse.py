"""Server-sent events: the decoder's laws, and the table of the specification."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail.event import Fault
from handrail.wire.sse import ServerSentEvent, SseDecoder


def decoded(*chunks: bytes, limit: int = 1_000) -> list[ServerSentEvent | Fault]:
    decoder = SseDecoder(limit)
    out = [one for chunk in chunks for one in decoder.feed(chunk, 1.0)]
    return out + list(decoder.close(1.0))


def data(stream: bytes) -> list[bytes]:
    return [one.data for one in decoded(stream) if isinstance(one, ServerSentEvent)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_ends_a_line(end: bytes) -> None:
    """LF, CRLF and CR, also mixed."""
    assert data(end.join([b"data: a", b"data: b", b"", b"data: c", b"", b""])) == [b"a\nb", b"c"]
    assert data(b"data: a\r\ndata: b\n\rdata: c\n\n") == [b"a\nb", b"c"]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b": comment\n\ndata: x\n\n", [b"x"]),
        (b"\xef\xbb\xbfdata: x\n\n", [b"x"]),
        (b"data\n\n", [b""]),
        (b"data:\n\n", [b""]),
        (b"data\ndata\n\n", [b"\n"]),
        (b"data:x\n\n", [b"x"]),
        (b"data:  x\n\n", [b" x"]),
        (b"data: a:b\n\n", [b"a:b"]),
        (b"event: only\n\n", []),
        (b"other: x\nDATA: y\n\n", []),
        (b"\n\n\n", []),
        (b"data: \xff\n\n", [b"\xff"]),
        (b"data: a\x0bb\x0cc\x1cd\xc2\x85e\n\n", [b"a\x0bb\x0cc\x1cd\xc2\x85e"]),
    ],
)
def test_fields_as_the_specification_reads_them(stream: bytes, events: list[bytes]) -> None:
    """Comments, the byte order mark, empty data, one space after the colon, fields of other names."""
    assert data(stream) == events


def test_event_id_and_retry() -> None:
    """The type is of one event, the id stays in force, a retry that is no number is ignored."""
    stream = b"event: e\nid: 1\nretry: 20\ndata: a\n\nid: x\0y\nretry: 2s\ndata: b\n\nid\ndata: c\n\n"
    assert decoded(stream) == [
        ServerSentEvent(b"a", "e", "1", 20, 1.0),
        ServerSentEvent(b"b", "message", "1", None, 1.0),
        ServerSentEvent(b"c", "message", "", None, 1.0),
    ]


def test_what_the_end_cuts_off_is_said() -> None:
    """Without its blank line it is no event; the Fault says that something is missing."""
    for stream in (b"data: a\n\ndata: b\n", b"data: a\n\ndata: b"):
        event, fault = decoded(stream)
        assert isinstance(event, ServerSentEvent)
        assert isinstance(fault, Fault)
        assert fault.reason == "incomplete"


def test_an_event_past_the_limit_is_one_fault_and_the_next_is_read() -> None:
    """One line or many: it is skipped to its blank line."""
    for long in (b"data: " + b"x" * 50, b"data: xxxxx\n" * 9, b": " + b"x" * 50):
        fault, event = decoded(b"%b\n\ndata: ok\n\n" % long, limit=40)
        assert isinstance(fault, Fault)
        assert fault.reason == "too_large"
        assert isinstance(event, ServerSentEvent)
        assert event.data == b"ok"


def test_comments_do_not_add_up_to_the_limit() -> None:
    """A stream may be kept alive by comments for as long as it likes."""
    assert decoded(b": ping\n" * 1_000 + b"data: x\n\n", limit=40) == [ServerSentEvent(b"x", at=1.0)]


def test_what_is_held_is_bounded() -> None:
    """A line without an end, and an event without an end."""
    for piece in (b"x" * 10, b"data: x\n", b":" * 10, b"data"):
        decoder = SseDecoder(100)
        for _ in range(1_000):
            list(decoder.feed(piece, 1.0))
            assert len(decoder._line) + sum(map(len, decoder._data)) <= 100


PIECES = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b"data", b"\n", b"\r\n", b"\r", b"\n\n", b": c", b"event: e", b"id: 1", b"retry: 5",
         b"\xef\xbb\xbf", b"x" * 30, b"\0", b":"]
    )
    | st.binary(max_size=4),
    max_size=30,
)  # fmt: skip


@given(PIECES, st.data(), st.sampled_from([20, 1_000]))
def test_any_chunking_gives_the_same_events(pieces: list[bytes], draw: st.DataObject, limit: int) -> None:
    """Also with CRLF split, with a byte order mark split, and past the limit."""
    stream = b"".join(pieces)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = decoded(stream, limit=limit)
    assert decoded(*chunks, limit=limit) == whole
    assert decoded(*(stream[n : n + 1] for n in range(len(stream))), limit=limit) == whole


@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_gives_events_or_faults(stream: bytes, limit: int) -> None:
    """Never an exception; no event is larger than the limit."""
    for one in decoded(stream, limit=limit):
        assert isinstance(one, ServerSentEvent | Fault)
        if isinstance(one, ServerSentEvent):
            assert len(one.data) <= limit


@given(st.lists(st.binary(max_size=20).filter(lambda raw: not {10, 13} & set(raw)), max_size=8))
def test_what_a_server_writes_is_what_is_read(events: list[bytes]) -> None:
    """One `data` line for each event, framed as servers do."""
    assert data(b"".join(b"data: " + event + b"\r\n\r\n" for event in events)) == events
