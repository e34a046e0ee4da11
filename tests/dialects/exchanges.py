"""Exchanges for the dialects' transcripts, and what a reader makes of one."""

import json
from collections.abc import Mapping
from typing import Any

from handrail.config import Config
from handrail.dialects import Reader
from handrail.event import Event, Fault
from handrail.pipeline import build
from handrail.schema.registry import Registry
from handrail.wire import End, Exchange, Reply, Request, Route

ROUTE = Route(upstream="agent.test:80")


def reader(config: Config | None = None) -> Reader:
    """Every dialect, as `run` and `replay` put them together."""
    return build(config or Config(), Registry(), ()).reader


def exchange(
    body: Any = b"",
    *,
    method: str = "POST",
    target: str = "/",
    headers: Mapping[str, str] | None = None,
    status: int = 200,
    reply: Any = b"",
    reply_headers: Mapping[str, str] | None = None,
    end: End = "replied",
    route: Route = ROUTE,
    id: str = "x1",
    cut: str | None = None,
    reply_cut: str | None = None,
) -> Exchange:
    """One exchange that took 10 s to 12 s. What is not bytes is sent as JSON; a status of 0 is no reply at all."""
    raw, kind = _encoded(body)
    asked = Request(
        method=method,
        target=target,
        headers=_headers(kind, headers),
        at=10.0,
        end=10.5,
        body=raw,
        size=len(raw) or (1 if cut else 0),
        cut=cut,
    )
    answered = None
    if status:
        raw, kind = _encoded(reply)
        answered = Reply(
            status=status,
            headers=_headers(kind, reply_headers),
            at=11.0,
            end=12.0,
            body=raw,
            size=len(raw),
            cut=reply_cut,
        )
    return Exchange(id=id, route=route, request=asked, reply=answered, end=end, ended=12.0)


def _encoded(body: Any) -> tuple[bytes, str | None]:
    if isinstance(body, bytes):
        return body, None
    return json.dumps(body).encode(), "application/json"


def _headers(kind: str | None, headers: Mapping[str, str] | None) -> dict[bytes, bytes]:
    named = {"content-type": kind} if kind else {}
    return {name.encode(): value.encode() for name, value in (named | dict(headers or {})).items()}


def halves(exchange: Exchange, by: Reader | None = None) -> tuple[Event, Event]:
    """The one asked event and the one final event of an exchange; any other number fails the test."""
    by = by or reader()
    asked, faults = by.ask(exchange)
    assert faults == []
    (first,) = asked[1]
    (last,) = by.answer(exchange, asked)
    assert isinstance(last, Event), last
    assert (first.id, first.outcome) == (last.id, "asked")
    return first, last


def final(exchange: Exchange, by: Reader | None = None) -> Event:
    """The final event of an exchange that gives one."""
    return halves(exchange, by)[1]


def everything(exchange: Exchange, by: Reader | None = None) -> tuple[list[Event], list[Event | Fault]]:
    """All asked events and everything that is read at the end; a Fault at the beginning fails the test."""
    by = by or reader()
    asked, faults = by.ask(exchange)
    assert faults == []
    return list(asked[1]), list(by.answer(exchange, asked))
