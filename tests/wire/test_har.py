"""HAR 1.2 to exchanges: bodies, instants, and what is refused."""

import base64
import json
from typing import Any

import pytest

from handrail.wire import BodyLimits, Exchange, har


def entry(**fields: Any) -> dict[str, Any]:
    return {
        "startedDateTime": "2026-11-22T06:14:13.000Z",
        "time": 100,
        "timings": {"blocked": -1, "send": 10, "wait": 60, "receive": 30},
        "request": {
            "method": "POST",
            "url": "http://User:pw@Agent.test:81/a%2Fb?c=1#d",
            "headers": [{"name": "Content-Type", "value": "application/json"}, {"name": "X", "value": "1"},
                        {"name": "x", "value": "2"}, {"name": ":method", "value": "POST"}],
            "postData": {"mimeType": "application/json", "text": '{"a": "é"}'},
        },
        "response": {
            "status": 200,
            "headers": [{"name": "Content-Encoding", "value": "gzip"}],
            "content": {"mimeType": "application/json", "text": "[1]", "size": 3},
        },
        "_vendor": {"anything": 1},
    } | fields  # fmt: skip


def loaded(*entries: Any) -> list[Exchange]:
    return list(har.load(json.dumps({"log": {"version": "1.2", "entries": list(entries)}}), "dir/run.har"))


def test_an_entry_is_an_exchange() -> None:
    """Id, authority, target, headers and bodies; nothing of the recorder's own, and no encoding that is undone."""
    (exchange,) = loaded(entry())
    assert (exchange.id, exchange.route.upstream, exchange.route.target) == ("run:0", "agent.test:81", None)
    assert (exchange.request.method, exchange.request.target) == ("POST", "/a%2Fb?c=1")
    assert exchange.request.headers == {b"content-type": b"application/json", b"x": b"1, 2"}
    assert exchange.request.json(BodyLimits()).value == {"a": "é"}
    assert exchange.request.size == len('{"a": "é"}'.encode())
    assert exchange.reply is not None
    assert exchange.reply.headers == {b"content-type": b"application/json"}
    assert exchange.reply.json(BodyLimits()).value == [1]


@pytest.mark.parametrize(
    ("timings", "sent", "first"),
    [
        ({"send": 10, "wait": 60, "receive": 30}, 0.010, 0.070),
        ({"send": 10, "wait": -1, "receive": 30}, 0.010, 0.070),
        ({"blocked": 5, "dns": -1, "connect": 5, "send": 0, "wait": 0, "receive": 0}, 0.010, 0.100),
        ({"send": 0, "wait": 0, "receive": 0}, 0.0, 0.100),
        ({"wait": 500, "receive": 500}, 0.0, 0.0),
        ({}, 0.0, 0.100),
        (None, 0.0, 0.100),
    ],
)
def test_instants_are_derived_from_timings(timings: Any, sent: float, first: float) -> None:
    """Unknown and zero timings fall back to the whole, and nothing lies outside it."""
    (exchange,) = loaded(entry(timings=timings))
    assert exchange.reply is not None
    start = 1795328053.0
    assert exchange.request.at == start
    assert exchange.request.end == pytest.approx(start + sent)
    assert exchange.reply.at == pytest.approx(start + first)
    assert exchange.reply.end == exchange.ended == pytest.approx(start + 0.1)


@pytest.mark.parametrize("response", [{"status": 0, "_error": "net::ERR"}, {"status": -1}, None])
def test_an_exchange_that_failed_has_no_reply(response: object) -> None:
    """Chrome and mitmproxy write status 0, Playwright -1, and some nothing at all."""
    (exchange,) = loaded(entry(response=response))
    assert (exchange.reply, exchange.end) == (None, "upstream_reset")


def test_what_recorders_write_in_ways_of_their_own_is_read() -> None:
    """Base64 in lines, headers without a value, names that no header has, a WebSocket's URL."""
    (exchange,) = loaded(
        entry(
            request={
                "method": "GET",
                "url": "wss://a.test/ws",
                "headers": [{"name": "X", "value": None}, {"name": "Ä€", "value": "v"}],
            },
            response={"status": 101, "content": {"text": "eyJvayI6\r\ndHJ1ZX0=\n", "encoding": "base64"}},
        )
    )
    assert (exchange.request.target, exchange.route.upstream) == ("/ws", "a.test")
    assert exchange.request.headers[b"x"] == b""
    assert exchange.reply is not None
    assert (exchange.reply.status, exchange.reply.body) == (101, b'{"ok":true}')


def test_bodies_in_base64_and_forms() -> None:
    """Content that is no text is base64; form parameters are put together again."""
    raw = base64.b64encode(b"\xff\x00").decode()
    posted = {"mimeType": "application/x-www-form-urlencoded", "params": [{"name": "a", "value": "b c"}]}
    (exchange,) = loaded(
        entry(
            request=entry()["request"] | {"postData": posted},
            response={"status": 200, "headers": [], "content": {"text": raw, "encoding": "base64"}},
        )
    )
    assert exchange.request.body == b"a=b+c"
    assert exchange.reply is not None
    assert exchange.reply.body == b"\xff\x00"


def test_a_body_that_was_not_recorded_is_incomplete() -> None:
    """It was there, so its absence is a reason and not an empty body."""
    request = {"method": "POST", "url": "http://a/", "bodySize": 9}
    (exchange,) = loaded(entry(request=request, response={"status": 200, "content": {"size": 7}}))
    assert (exchange.request.cut, exchange.request.size) == ("incomplete", 9)
    assert exchange.reply is not None
    assert (exchange.reply.cut, exchange.reply.size) == ("incomplete", 7)


def test_entries_that_are_not_http_are_left_out() -> None:
    """Indices stay those of the file."""
    data = entry(request={"method": "GET", "url": "data:text/plain,x"})
    assert [exchange.id for exchange in loaded(data, entry(), data, entry())] == ["run:1", "run:3"]


def test_text_that_is_no_unicode_reaches_the_reader_as_it_is() -> None:
    """A lone surrogate in a recorded body is that body's fault, not the file's."""
    request = entry()["request"] | {"postData": {"text": '"\ud800"'}}
    (exchange,) = loaded(entry(request=request))
    assert exchange.request.json(BodyLimits()).reason == "invalid_json"


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    """Some recorders write one."""
    assert list(har.load("\ufeff" + '{"log": {"entries": []}}', "x.har")) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"startedDateTime": "yesterday"}, "entry 1: Invalid isoformat"),
        ({"startedDateTime": None}, "entry 1: "),
        ({"time": "long"}, "entry 1: "),
        ({"time": 1e30}, "entry 1: time 1e\\+30 ms is longer than a year"),
        ({"time": float("inf")}, "entry 1: time inf ms is longer than a year"),
        ({"request": {"url": "http://a/"}}, "entry 1: method is missing"),
        ({"request": {"method": "GET", "url": "/a"}}, "entry 1: request.url '/a' is not absolute"),
        ({"startedDateTime": 1772359200123}, "entry 1: a value is of the wrong type: startedDateTime 1772359200123"),
        ({"request": {"method": "GET"}}, "entry 1: url is missing"),
        ({"request": {"method": "GET", "url": "http://[x/"}}, "entry 1: "),
        ({"request": 7}, "entry 1: a value is of the wrong type"),
        ({"response": {"status": "ok"}}, "entry 1: "),
        (
            {"response": {"status": 200, "content": {"text": "!", "encoding": "base64"}}},
            "entry 1: a body is not base64",
        ),
        ({"response": {"status": 200, "content": {"text": "x", "encoding": "rot13"}}}, "entry 1: content.encoding"),
        ({"response": {"status": 200, "headers": [{"name": "a"}]}}, "entry 1: value is missing"),
        ({"response": {"status": 200, "headers": 5}}, "entry 1: a value is of the wrong type"),
    ],
)
def test_a_wrong_entry_is_named(wrong: dict[str, Any], said: str) -> None:
    """The index in the file and what is wrong there; those before it were read."""
    with pytest.raises(ValueError, match="^" + said.replace("(", r"\(")):
        loaded(entry(), entry(**wrong))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"log": []}', '{"log": {"entries": {}}}', "null", "[" * 100_000]
)
def test_a_wrong_file_is_refused(text: str) -> None:
    """ValueError and nothing else, whatever it is."""
    with pytest.raises(ValueError, match="is not"):
        list(har.load(text, "x.har"))
    with pytest.raises(ValueError, match="entry 0"):
        loaded(17)
