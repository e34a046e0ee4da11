"""The data path: bytes are forwarded first, unchanged, and a copy is read afterwards.

One connection of a client has one connection to the upstream, and one exchange at a time. Whatever either side does to
its connection (close, half-close, reset) the other side gets to see, as if nothing stood between. A request is looked
at only when its bytes are already on their way, see `Proxy.look_at`. Where a rule
is in enforce mode, or the route stamps, the request is held instead until its Decision is known, within `hold_bytes`
and `hold_seconds`.
"""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
import orjson

from handrail.config import LimitsConfig
from handrail.dialects import Asked, with_chain
from handrail.dialects.a2a import is_card_path, rewrite_card
from handrail.dialects.llm import ModelDialect
from handrail.dialects.turns import Call
from handrail.edge.gate import ReplyGate
from handrail.edge.record import Recorder
from handrail.edge.route import Listener, Target
from handrail.event import Fault, Finding, Refusal, rfc3339
from handrail.pipeline import OPEN_SECONDS, Inspector, is_long, refusal_in
from handrail.wire import End, Exchange, HeadLimits, Message, Reply, Request, Route
from handrail.wire.body import decode
from handrail.wire.http1 import CopyBudget, ReplyDecoder, RequestDecoder

log = logging.getLogger("handrail.proxy")

MODELS = frozenset({"openai", "anthropic", "gemini"})
"""The dialects whose replies hold handoffs."""

PIPELINE_BYTES: Final = 65_536
"""How much may wait behind a request that is being answered before the client is no longer read."""
COUNTED_BYTES: Final = 65_536
"""A longer body counts against the one budget of all copies until its exchange was looked at."""
SWEEP_SECONDS: Final = 0.25
"""How exact time-outs are; one pass over all connections costs about 0.1 µs each."""
LOOK_SECONDS: Final = 0.005
"""How long an exchange that is over waits for a better moment to be looked at."""
LOOK_TOGETHER: Final = 8
"""So many exchanges are looked at in one go: one caller in eight waits for inspection, and the median for none."""
AFTER_SECONDS: Final = 0.001
"""A deadline is over so long after its instant: deadlines travel as text, and an answer at the instant is in time."""
LINGER_SECONDS: Final = 1.0
"""How long a refused client is read and discarded, so that a reset does not overtake the answer."""
_BEGINNING_BYTES: Final = 512
"""How much of a head each connection remembers at most."""
STALE_SECONDS: Final = 0.05
"""After so long a pause the upstream is looked at before it gets a request: it may have closed its connection."""
HALF_CLOSE_SECONDS: Final = 1.0
"""A client that has sent its last byte may still want the answer. After this long the upstream is told."""

_LAST_BYTES: Final = 65_536

_perf: Final = time.perf_counter


class _Passage:
    """One exchange on its way through, and what the inspector made of it so far."""

    __slots__ = ("asked", "closed", "exchange", "inspected", "kept", "opened", "overhead")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.asked: Asked | None = None
        self.opened = False
        """Whether the inspector was asked about its request before there was a reply."""
        self.closed = False
        self.kept = 0
        self.overhead = 0.0
        self.inspected = 0.0


_NO_EXCHANGE: Final = Exchange(id="", route=Route(), request=Request(headers={}, method="", target=""), ended=1.0)

# What a client connection is doing.
_IDLE: Final = 0
_HEAD: Final = 1
_BODY: Final = 2
_HELD: Final = 3
_WAITING: Final = 4
_TUNNEL: Final = 5
_DISCARD: Final = 6
_CLOSED: Final = 7
# Why it is not read.
_CONNECTING: Final = 1
_PIPELINED: Final = 2
_UPSTREAM_FULL: Final = 4


class _Outlet:
    """A transport whose writes under load are made together, once all is read that the loop found to read.

    The kernel's way through a connection and ours through a message each fill the processor's first caches: taking
    turns batch by batch in place of message by message saves 5% of an exchange. Order is kept: whatever else is done
    to the transport is done behind what waits.
    """

    __slots__ = ("_proxy", "_transport", "_waiting")

    def __init__(self, transport: asyncio.BaseTransport, proxy: "Proxy") -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._proxy = proxy
        self._waiting = b""

    def write(self, data: bytes) -> None:
        if self._waiting:
            self._waiting += data
        elif self._proxy.in_flight <= self._proxy.few:
            self._transport.write(data)
        else:
            self._waiting = data
            self._proxy.write_soon(self)

    def flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, b""
            self._transport.write(waiting)

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._waiting = b""
        self._transport.abort()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)


class _Client(asyncio.Protocol):
    """The connection of a client, and the exchange that it is in."""

    __slots__ = (
        "_alarm",
        "_as_sent",
        "_copy",
        "_counted",
        "_deadline",
        "_eof",
        "_eof_told",
        "_fell",
        "_first",
        "_gate",
        "_has_cards",
        "_held",
        "_holds",
        "_host",
        "_hosted",
        "_interim",
        "_is_forward",
        "_listener",
        "_method",
        "_passage",
        "_paused",
        "_proxy",
        "_queue",
        "_rested",
        "_route",
        "_stamps",
        "_started",
        "_tail",
        "_target",
        "_unsaid",
        "_upstream",
        "decoder",
        "state",
        "transport",
    )

    transport: _Outlet  # from connection_made on

    def __init__(self, proxy: "Proxy", listener: Listener) -> None:
        self._proxy = proxy
        self._listener = listener
        self.state = _IDLE
        self._first = True
        self._passage: _Passage | None = None
        self._upstream: _Upstream | None = None
        self._target: Target | None = listener.target
        self._route = listener.route
        # What every request asks of its listener, which is no compiled class: 1,100 instructions an exchange.
        self._is_forward = listener.target is None
        self._stamps = listener.stamp
        self._holds = listener.stamp or listener.fallback is not None
        self._has_cards = listener.rewrite_cards
        self._host: bytes | None = None  # the value that Host has to have, None where the client's stays
        if listener.target is not None and not listener.own_host:
            self._host = proxy.authorities[listener.target.authority]
        self._as_sent = self._hosted = b""  # how the last head begins, through Host: as it came, and as it went
        self._queue: list[bytes] = []  # bytes for an upstream that is being connected
        self._held: list[bytes] | None = None  # a request that waits for its Decision; the head comes first
        self._tail: bytes | None = None  # end of a reply that is being held, None where replies pass
        self._gate: ReplyGate | None = None  # a model's reply, where a rule may refuse what it calls
        self._paused = 0
        self._eof = False
        self._eof_told = False
        self._counted = False
        self._interim: bytes | None = None  # what came of the upstream's 100 where the client has ours
        self._alarm: asyncio.TimerHandle | None = None  # rings when an enforced budget is used up
        self._copy: bytes | None = None  # the request, where a fallback may get it
        self._fell = False  # whether it is the fallback that answers
        self._unsaid: End | None = None  # how the exchange ended whose request is read on, to know who asked what
        self._method = ""
        self._started = 0.0
        self._rested = 0.0  # since when no exchange is under way
        self._deadline = 0.0
        self.decoder = RequestDecoder(proxy.head_limits, listener.route.limits.body_bytes, proxy.budget)

    # Events of the client's connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        proxy = self._proxy
        self.transport = _Outlet(transport, proxy)
        proxy.clients.add(self)
        proxy.recorder.count("handrail_connections_total", self._listener.route.side)
        self._deadline = proxy.now() + proxy.limits.header_seconds
        if len(proxy.clients) > proxy.limits.connections:
            proxy.recorder.count("handrail_refused_total", "connections")
            self._answer(503, "Too many connections", "limits.connections is reached", retry_after=1)

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state <= _BODY or (state == _HELD and self.decoder.inside):
            self._feed(data, _perf() + self._proxy.offset)
        elif state == _TUNNEL:
            self._to_upstream(data)
        elif state != _DISCARD and state != _CLOSED:
            if self.decoder.wait(data, self._proxy.now()) > PIPELINE_BYTES:
                self._pause(_PIPELINED)
        elif state == _DISCARD and self._unsaid is not None:
            self._read_on(data)

    def eof_received(self) -> bool:
        self._eof = True
        state = self.state
        if state == _TUNNEL:
            upstream = self._upstream
            return upstream is not None and upstream.end_writing()
        if state == _WAITING:
            self._deadline = min(self._deadline or 1e18, self._proxy.now() + HALF_CLOSE_SECONDS)
            return True
        return state == _IDLE and self.decoder.rest != b""

    def connection_lost(self, error: Exception | None) -> None:
        self._proxy.clients.discard(self)
        self._end("client_abort")
        self._uncount()
        self.state = _CLOSED
        self.decoder.drop()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.leave()

    def pause_writing(self) -> None:
        if self._upstream is not None and self._upstream.transport is not None:
            with contextlib.suppress(RuntimeError):
                self._upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream is not None and self._upstream.transport is not None:
            with contextlib.suppress(RuntimeError):
                self._upstream.transport.resume_reading()

    # A request, from its first byte to its last.

    def _feed(self, data: bytes, at: float) -> None:
        decoder = self.decoder
        proxy = self._proxy
        got = decoder.feed(data, at)
        if got is not None and not isinstance(got, Request):
            self._bad_request(got)
            return
        head = decoder.head
        if head is not None:
            if not self._begin(head, got is not None, at):
                return
            if got is not None and self._is_forward:
                got.target = decoder.target.decode("latin-1")
        elif self.state == _IDLE or self.state == _HEAD:
            if decoder.rest:  # part of a head
                if self.state == _IDLE:
                    self.state = _HEAD
                    self._deadline = at + proxy.limits.header_seconds
            return
        else:
            self._deadline = at + proxy.body_idle_seconds
            out = decoder.out
            if self._held is not None:
                self._held.append(out)
                if sum(map(len, self._held)) > proxy.limits.hold_bytes:
                    self._release("too_large_to_hold")
            elif self.state == _BODY:
                self._to_upstream(out)
        if got is not None:
            self._requested(got, at)

    def _begin(self, head: bytes, whole: bool, at: float) -> bool:
        """A head is complete: where to, and whether its bytes may go. False where it was answered here."""
        proxy, decoder = self._proxy, self.decoder
        if proxy.in_flight >= proxy.most_in_flight:
            proxy.recorder.count("handrail_refused_total", "in_flight")
            self._answer(503, "Busy", "limits.in_flight is reached", retry_after=1)
            return False
        self._method = method = decoder.method
        self._started = at
        if self._is_forward:
            rewritten = self._forward_head(head)
            if rewritten is None:
                return False
            head = rewritten
        else:
            if method == "CONNECT":
                proxy.recorder.count("handrail_refused_total", "connect")
                self._answer(501, "CONNECT is not served here", "this is a route to one upstream, not a forward proxy")
                return False
            if self._host is not None:
                head = self._to_host(head, self._host)
        proxy.in_flight += 1
        self._counted = True
        self._passage = None
        self._interim = None
        headers = decoder.headers
        if self._stamps and b"traceparent" not in headers:
            parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01".encode()
            headers[b"traceparent"] = parent
            head = head[:-2] + b"traceparent: " + parent + b"\r\n\r\n"
        self._tail = b"" if self._has_cards and self._wants_card() else None
        self._gate = None
        out = decoder.out
        self._copy = None
        if proxy.enforcing or self._holds:
            if -1 <= decoder.length <= proxy.limits.hold_bytes:
                self._held = [head, out] if out else [head]
                self.state = _HELD
                self._deadline = at + proxy.limits.hold_seconds
                if not whole and b"expect" in headers and decoder.version == "1.1":
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    self._interim = b""
                return True
            if self._listener.fallback is not None:
                proxy.recorder.count("handrail_fallbacks_total", "not_kept")
            proxy.recorder.uninspected("too_large_to_hold")
        self.state = _BODY
        self._deadline = at + proxy.body_idle_seconds
        self._open_upstream(head + out if out else head)
        return True

    def _to_host(self, head: bytes, host: bytes) -> bytes:
        """A head whose Host header has this value.

        The heads of a connection begin alike: one comparison in place of two searches, 2,400 instructions less.
        """
        as_sent = self._as_sent
        if as_sent and head.startswith(as_sent):
            return self._hosted + head[len(as_sent) :]
        if self.decoder.headers.get(b"host") == host:
            return head
        place = _host_in(head)
        if place is None:
            return head
        start, end = place
        hosted = head[:start] + host + b"\r\n"
        end += 2
        if end <= _BEGINNING_BYTES:
            self._as_sent, self._hosted = head[:end], hosted
        return hosted + head[end:]

    def _requested(self, request: Request, at: float) -> None:
        """The request is complete; unless it is held, its bytes are on their way."""
        proxy = self._proxy
        if self.state == _BODY:
            self.state = _WAITING
            self._deadline = self._reply_deadline(at)
            passage = self._passage
            if passage is None:
                self._passage = passage = self._passage_of(request)
                passage.overhead = _perf() + proxy.offset - at
                proxy.forwarded()
            else:  # the reply came first
                self._over(at)
        elif self.state == _HELD:
            passage = self._passage = self._passage_of(request)
            refusal = proxy.open_held(passage)
            if refusal is not None:
                self._refuse(refusal, passage, at)
                return
            if self._stamps and self._held is not None and passage.asked is not None:
                self._held[0] = _stamped(self._held[0], request, passage.asked, proxy.due(passage, enforced=False))
            self._gate = self._gate_for(passage)
            held, self._held = self._held, None
            self.state = _WAITING
            self._deadline = self._reply_deadline(at)
            whole = b"".join(held or ())
            if self._listener.fallback is not None:
                self._copy = proxy.copied(passage, whole)
            self._arm(passage)
            self._open_upstream(whole)
            passage.overhead = _perf() + proxy.offset - at

    def _passage_of(self, request: Request) -> _Passage:
        proxy = self._proxy
        passage = _Passage(Exchange(id=proxy.next_id(), route=self._route, request=request))
        if len(request.body) > COUNTED_BYTES:
            proxy.keep(passage, request)
        return passage

    def _reply_deadline(self, at: float) -> float:
        seconds = self._proxy.reply_seconds
        return at + seconds if seconds else 0.0

    def _release(self, reason: str) -> None:
        """What was held goes on its way unjudged, and is counted."""
        held, self._held = self._held, None
        self._proxy.recorder.uninspected(reason)
        self.state = _BODY
        self._deadline = self._proxy.now() + self._proxy.limits.body_idle_seconds
        self._open_upstream(b"".join(held or ()))

    def _arm(self, passage: _Passage) -> None:
        due = self._proxy.due(passage, enforced=True)
        if due is not None:
            self._alarm = self._proxy.at(due, self._late)

    def _late(self) -> None:
        """An enforced budget is used up: the fallback gets the task, or the caller 504; the upstream is released.

        An answer that has begun goes on: what the client has of it could not be taken back.
        """
        self._alarm = None
        passage, proxy = self._passage, self._proxy
        if self.state != _WAITING or passage is None or self._has_begun():
            return
        now = proxy.now()
        refusal = Refusal(status=504, finding=proxy.overdue(passage, now))
        if not self._fall_back("timeout"):
            self._drop_upstream()
            self._queue.clear()
            self._resume(_CONNECTING)
            self._refuse(refusal, passage, now, "timeout")

    def _has_begun(self) -> bool:
        upstream = self._upstream
        return upstream is not None and upstream.started

    def _fall_back(self, end: End) -> bool:
        """The first attempt ended so, before a byte of its answer: the fallback gets the task. False where it cannot.

        Once, with the attempt raised, and only where the request was held and is still here.
        """
        proxy, fallback, copy, passage = self._proxy, self._listener.fallback, self._copy, self._passage
        if fallback is None or copy is None or passage is None or self._fell or self.state != _WAITING:
            return False
        self._copy = None
        request, asked = passage.exchange.request, passage.asked
        first = asked[1][0] if asked is not None and asked[1] else None
        self._end(end)
        self._drop_upstream()
        self._queue.clear()
        self._resume(_CONNECTING)
        proxy.recorder.count("handrail_fallbacks_total", "taken")
        now = proxy.now()
        tried = first.attempt if first is not None else None
        fields = {b"handrail-attempt": b"%d" % ((1 if tried is None else tried) + 1)}
        if first is not None and first.deadline is not None and first.deadline <= now:
            span = fallback.seconds or max(first.deadline - first.at, 0.0)
            fields[b"handrail-deadline"] = rfc3339(now + span).encode()
        mark = copy.find(b"\r\n\r\n") + 4
        head, body = copy[:mark], copy[mark:]
        if not self._listener.own_host:
            head = _with_host(head, fallback.target.authority.encode("latin-1"))
        for name, value in fields.items():
            head = _with_field(head, name, value)
        again = Request(
            headers={**request.headers, **fields},
            method=request.method,
            target=request.target,
            at=now,
            end=now,
            body=request.body,
            size=request.size,
            cut=request.cut,
        )
        self._fell = True
        self._target = fallback.target
        proxy.in_flight += 1
        self._counted = True
        self._passage = passage = _Passage(Exchange(id=proxy.next_id(), route=fallback.route, request=again))
        refusal = proxy.open_held(passage)
        if refusal is not None:
            self._refuse(refusal, passage, now)
            return True
        self._deadline = self._reply_deadline(now)
        self._arm(passage)
        self._open_upstream(head + body)
        return True

    def _refuse(self, refusal: Refusal, passage: _Passage, at: float, end: End = "refused") -> None:
        """Enforce mode: the request is answered here, and the upstream never hears of it, or no more."""
        self._held = None
        exchange = passage.exchange
        dialect = passage.asked[0].name if passage.asked is not None else ""
        status, kind, body = refusal_reply(refusal, exchange, dialect)
        headers = exchange.request.headers
        stays = self.decoder.version == "1.1" and b"close" not in headers.get(b"connection", b"").lower()
        ids = refusal.finding.rule
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nhandrail-findings: %s\r\n%s\r\n"
            % (
                status,
                _PHRASES.get(status, "Refused").encode(),
                kind.encode(),
                len(body),
                re.sub(r"[^A-Za-z0-9._, -]", "_", ids).encode(),
                b"" if stays else b"connection: close\r\n",
            )
            + (b"" if self._method == "HEAD" else body)
        )
        if end == "refused":
            exchange.reply = Reply(status=refusal.status, headers={}, at=at, end=at, size=len(body))
        self._proxy.recorder.count("handrail_refused_total", "rule")
        self._end(end)
        if stays:
            self._over(at)
        else:
            self.state = _DISCARD
            self.transport.close()

    # Towards the upstream.

    def _open_upstream(self, data: bytes) -> None:
        """The first bytes of a request.

        They go where an answer can come from: an upstream that closed its connection meanwhile has not seen them, so
        that another connection is no repetition.
        """
        upstream = self._upstream
        if upstream is not None:
            if self._started - self._rested > STALE_SECONDS and upstream.is_closed():
                self._upstream = None
                upstream.leave()
            else:
                upstream.expect(self._method)
        self._to_upstream(data)

    def _to_upstream(self, data: bytes) -> None:
        upstream = self._upstream
        if upstream is not None and upstream.transport is not None:
            upstream.transport.write(data)
            return
        self._queue.append(data)
        if upstream is None:
            self._upstream = upstream = _Upstream(self, self._proxy)
            target = self._target
            assert target is not None
            self._deadline = self._proxy.now() + self._proxy.limits.connect_seconds
            self._pause(_CONNECTING)
            self._proxy.spawn(self._connect(target, upstream))

    async def _connect(self, target: Target, upstream: "_Upstream") -> None:
        try:
            await asyncio.wait_for(
                asyncio.get_running_loop().create_connection(
                    lambda: upstream,
                    target.host,
                    target.port,
                    ssl=target.tls,
                    server_hostname=target.server_name if target.tls is not None else None,
                ),
                self._proxy.limits.connect_seconds or None,
            )
        except TimeoutError:
            self._no_upstream(upstream, 504, "timeout", f"no connection to {target.authority} within the limit")
        except (OSError, ValueError) as error:  # ValueError: a name that no resolver takes
            why = "certificate" if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
            self._no_upstream(upstream, 502, "upstream_refused", f"no connection to {target.authority}: {why}: {error}")

    def _no_upstream(self, upstream: "_Upstream", status: int, end: End, detail: str) -> None:
        if self._upstream is upstream:
            if self._fall_back(end):
                return
            self._upstream = None
            self._queue.clear()
            self._proxy.recorder.count("handrail_refused_total", "upstream")
            self._end_unread(end)
            self._answer(status, "The upstream cannot be reached", detail)

    def connected(self, upstream: "_Upstream") -> None:
        """The connection to the upstream is there: what waited for it goes."""
        if self._upstream is not upstream or upstream.transport is None:
            upstream.leave()
            return
        self._resume(_CONNECTING)
        if self._listener.target is None and self._proxy.is_own(upstream.transport):
            self._proxy.recorder.count("handrail_refused_total", "loop")
            self._queue.clear()
            self._end("refused")
            self._drop_upstream()
            self._answer(508, "Loop", "the destination is this sidecar")
            return
        if self.state == _TUNNEL:
            if self._method == "CONNECT":
                self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream.expect(self._method)
            now = self._proxy.now()
            self._deadline = (
                self._reply_deadline(now) if self.state == _WAITING else now + self._proxy.limits.body_idle_seconds
            )
        waiting = b"".join(self._queue)
        self._queue.clear()
        if waiting:
            upstream.transport.write(waiting)
        if self._eof and self.state == _TUNNEL:
            upstream.end_writing()

    # A reply, from its first byte to its last.

    def reply_bytes(self, data: bytes, got: Reply | Fault | None, at: float) -> None:
        """Bytes of the upstream, already parsed: on to the client, then the books."""
        passage = self._passage
        if got is not None and not isinstance(got, Reply):
            self._bad_reply(got)
            return
        if self._deadline and self.state == _WAITING:  # a reply that has begun may pause as long as it likes
            upstream = self._upstream
            begun = upstream is None or upstream.decoder.status
            self._deadline = 0.0 if begun else self._reply_deadline(at)
        if self._interim is not None:
            data = self._without_interim(data)
        if self._gate is not None:
            gated = self._gated(self._gate, data, got, at)
            if gated is None:
                return
            data = gated
        elif self._tail is not None:
            self._tail += data
            if got is None:
                if len(self._tail) > self._listener.route.limits.body_bytes:
                    data, self._tail = self._tail, None
                    self.transport.write(data)
                return
            data = self._card(self._tail, got)
            self._tail = None
        self.transport.write(data)
        if passage is not None:
            passage.overhead += _perf() + self._proxy.offset - at
        if got is not None:
            self._replied(got, at)

    def _gate_for(self, passage: _Passage) -> ReplyGate | None:
        """What holds the calls of a model's reply until they were judged; None where it can ask for no handoff."""
        asked, proxy = passage.asked, self._proxy
        if asked is None or asked[0].name not in MODELS or not proxy.enforcing:
            return None
        reading = cast(ModelDialect, asked[0]).reading(passage.exchange)
        return None if reading is None else ReplyGate(reading, lambda calls: proxy.calls_held(passage, calls))

    def _gated(self, gate: ReplyGate, data: bytes, got: Reply | None, at: float) -> bytes | None:
        """What of a model's reply goes on to the client now; None where it was answered here instead."""
        proxy = self._proxy
        was_holding = gate.is_holding
        out = gate.feed(data)
        if gate.refusal is not None:
            self._gate = None
            self._refuse_rest(gate, gate.refusal, out, got, at)
            return None
        if gate.size > proxy.limits.hold_bytes:
            self._gate = None
            proxy.recorder.uninspected("too_large_to_hold")
            return out + gate.release()
        if got is None:
            if gate.is_holding:
                if not was_holding or out:
                    gate.until = at + proxy.limits.hold_seconds
                self._deadline = gate.until
            return out
        self._gate = None
        if not gate.is_holding or not gate.is_due or self._passage is None:
            return out + gate.release()
        self._deadline = 0.0
        exchange = self._passage.exchange
        exchange.reply, exchange.ended = got, at
        exchange.overhead_ms = self._passage.overhead * 1000
        refusal = proxy.close_held(self._passage)
        if refusal is None:
            return out + gate.release()
        if gate.is_whole:
            proxy.recorder.count("handrail_refused_total", "rule")
            status, kind, body = refusal_reply(refusal, exchange, "")
            head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nhandrail-findings: %s\r\n\r\n" % (
                status,
                _PHRASES.get(status, "Refused").encode(),
                kind.encode(),
                len(body),
                re.sub(r"[^A-Za-z0-9._, -]", "_", refusal.finding.rule).encode(),
            )
            self.transport.write(head + body)
            self._replied(got, at)
        else:
            self._refuse_rest(gate, refusal, out, got, at)
        return None

    def _refuse_rest(self, gate: ReplyGate, refusal: Refusal, out: bytes, got: Reply | None, at: float) -> None:
        """A call in a stream is refused: what came before it passes, and the stream ends with an error.

        What else the upstream would say is of no use to anybody: it is released.
        """
        self._proxy.recorder.count("handrail_refused_total", "rule")
        self._deadline = 0.0
        ending = gate.ending(refusal.finding.rule, refusal.finding.message)
        if out or ending is not None:
            self.transport.write(out + (ending or b""))
        if got is not None:
            self._replied(got, at)
        else:
            self._end("refused")
            self._drop_upstream()
            self._over(at)
        if ending is None:
            self._cut()  # an end that looks orderly would make a whole reply of half of one
        elif gate.ends_connection:
            self._finish()

    def _replied(self, reply: Reply, at: float) -> None:
        proxy = self._proxy
        passage = self._passage
        early = passage is None
        if passage is None:  # before the request was complete: the request as far as it has come
            passage = self._passage = self._passage_of(self.decoder.partial(at))
        exchange = passage.exchange
        exchange.reply = reply
        if len(reply.body) > COUNTED_BYTES:
            proxy.keep(passage, reply)
        exchange.ended = at
        exchange.overhead_ms = passage.overhead * 1000
        proxy.look_at(passage)
        if reply.status == 101:
            self._switch()
        elif not early:
            self._over(at)

    def _over(self, at: float) -> None:
        """The exchange is over, with what came at this instant, and the connection is ready for the next."""
        proxy = self._proxy
        self._uncount()
        self._passage = None
        self._copy = None
        if self._fell:
            self._fell = False
            self._target = self._listener.target
            old, self._upstream = self._upstream, None
            if old is not None:
                old.leave()
        self.state = _IDLE
        self._first = False
        self._method = ""
        self._rested = at
        self._deadline = at + proxy.keepalive_seconds
        if proxy.draining or (self._eof and not self.decoder.rest):
            self._finish()
            return
        if self.decoder.rest:
            if self._upstream is not None and self._upstream.said_close():
                self.decoder.rest = b""  # its connection ends here, and so will ours: this was never to be answered
            proxy.soon(self._next)
        elif self._paused & _PIPELINED:
            self._resume(_PIPELINED)

    def _next(self) -> None:
        """What the client sent while its previous request was answered."""
        if self.state == _IDLE and self.decoder.rest:
            self._feed(b"", self._proxy.now())
            if self._paused & _PIPELINED and (self.state <= _HELD or len(self.decoder.rest) <= PIPELINE_BYTES):
                self._resume(_PIPELINED)
            if self._eof:
                if self.state == _WAITING:
                    self._deadline = min(self._deadline or 1e18, self._proxy.now() + HALF_CLOSE_SECONDS)
                elif self.state <= _HELD:  # it ended inside a request
                    self.transport.close()

    def _switch(self) -> None:
        """101: from here on both sides speak something else, and it passes unread."""
        self._uncount()
        self._proxy.recorder.uninspected("tunnel")
        self._passage = None
        self.state = _TUNNEL
        self._deadline = 0.0
        if self._paused & _PIPELINED:
            self._resume(_PIPELINED)
        rest, self.decoder.rest = self.decoder.rest, b""
        if rest:
            self._to_upstream(rest)

    def upstream_ended(self, upstream: "_Upstream", got: Reply | Fault | None, at: float, clean: bool) -> None:
        """The upstream closed (`clean`) or lost its connection."""
        if self._upstream is not upstream:
            return
        state = self.state
        self._upstream = None
        if state == _HELD:
            return  # it has seen nothing of this request; another connection will
        if ((state == _IDLE and not self.decoder.rest) or state == _HEAD) and not upstream.said_close():
            self._proxy.soon(self._left)
        elif state == _TUNNEL or state == _IDLE or state == _HEAD or state >= _DISCARD:
            self._finish(abort=not clean and state == _TUNNEL)
        elif type(got) is Reply and clean:  # a reply that ends with the connection
            if self._gate is not None:
                gated = self._gated(self._gate, b"", got, at)
                if gated is None:
                    self._finish()
                    return
                self.transport.write(gated)
            if self._tail is not None:
                self.transport.write(self._card(self._tail, got))
                self._tail = None
            early = self._passage is None
            self._replied(got, at)
            if early:
                self._linger()
            elif self.state != _CLOSED:
                self._finish()
        elif self._passage is not None and self._passage.exchange.ended:  # answered before the request was complete
            self._linger()
        elif not upstream.started and self._fall_back("upstream_reset"):
            pass
        elif upstream.started or not self._first:
            # Cut, never a well-formed short body. On a connection that was used before the client may repeat the
            # request by its own rules, as it would without us (RFC 9110 9.2.2); a 502 would take that from it.
            if type(got) is Reply and self._passage is not None:  # it would have ended with the connection
                got.cut = got.cut or "incomplete"
                self._passage.exchange.reply = got
            self._end("client_abort" if self._eof_told else "upstream_reset", upstream)
            if clean:
                self._finish()
            else:
                self._cut()
        else:
            self._end_unread("upstream_reset")
            self._proxy.recorder.count("handrail_refused_total", "upstream")
            self._answer(502, "The upstream closed the connection without an answer", self._authority())

    def _left(self) -> None:
        """Between two requests the upstream closed its connection, and so will we: once what the client sent was read.

        A request that is here by now would be lost with the connection, unseen by anybody. There is one look at the
        sockets between two turns of the loop.
        """
        self._proxy.soon(self._leave)

    def _leave(self) -> None:
        if self.state == _IDLE and self._upstream is None and not self.decoder.rest:
            self._finish()

    def _bad_reply(self, fault: Fault) -> None:
        upstream, self._upstream = self._upstream, None
        if fault.reason == "unexpected" or self.state not in (_BODY, _WAITING):
            self.unasked(upstream)
            return
        forwarded = upstream is not None and upstream.forwarded
        if upstream is not None:
            upstream.leave(abort=True)
        self._proxy.recorder.count("handrail_refused_total", "upstream_invalid")
        self._end("upstream_invalid", upstream)
        if forwarded:
            self._cut()
        else:
            self._answer(502, "The upstream's reply is not valid HTTP/1.1", f"{self._authority()}: {fault.message}")

    def unasked(self, upstream: "_Upstream | None") -> None:
        """The upstream sent what answers no request: dropped, and its connection is not used again, nor ours, because
        nobody can tell what else it takes for an answer. A reply before it was complete and stays so."""
        if self._upstream is upstream:
            self._upstream = None
        if upstream is not None:
            upstream.leave(abort=True)
        if self.state == _HELD:
            return  # it has seen nothing of this request; another connection will
        self._proxy.recorder.count("handrail_refused_total", "upstream_unexpected")
        if self.state in (_IDLE, _HEAD):
            self._finish()
        elif self.state in (_BODY, _WAITING):  # answered before the request was complete
            self._linger()

    def _without_interim(self, data: bytes) -> bytes:
        """Takes out the 100 of an upstream whose client already has ours."""
        data = cast(bytes, self._interim) + data
        if len(data) < 12 and b"HTTP/1.1 100".startswith(data):
            self._interim = data
            return b""
        if data.startswith(b"HTTP/1.1 100"):
            _, end, rest = data.partition(b"\r\n\r\n")
            self._interim = None if end else data
            return rest
        self._interim = None
        return data

    def _wants_card(self) -> bool:
        return self._method == "GET" and is_card_path(self.decoder.target.decode("latin-1").partition("?")[0])

    def _card(self, raw: bytes, reply: Reply) -> bytes:
        """A complete reply with an agent card to one whose interfaces lead back here; unchanged where it is no card."""
        headers = self.decoder.headers
        host = headers.get(b"host", b"").decode("latin-1")
        content = decode(reply.headers.get(b"content-encoding", b""), reply.body, self._listener.route.limits)
        if reply.status != 200 or raw[9:12] != b"200" or reply.cut is not None or isinstance(content, str) or not host:
            return raw  # also where an interim reply stands before the card
        card = rewrite_card(content, f"http://{host}")
        if card is None:
            return raw
        head, _, _ = raw.partition(b"\r\n\r\n")
        dropped = (b"content-length:", b"transfer-encoding:", b"content-encoding:", b"etag:", b"trailer:")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(dropped)]
        lines.append(b"Content-Length: %d" % len(card))
        return b"\r\n".join(lines) + b"\r\n\r\n" + card

    # The forward proxy.

    def _forward_head(self, head: bytes) -> bytes | None:
        """Absolute form to origin form for a destination that the configuration admits; else answered, and None."""
        proxy, decoder = self._proxy, self.decoder
        raw = decoder.target.decode("latin-1")
        if self._method == "CONNECT":
            authority, path = raw, None
        else:
            scheme, _, authority = raw.partition("://")
            split = _PATH.search(authority)
            authority, path = (authority[: split.start()], split[0]) if split else (authority, "/")
            if scheme.lower() != "http" or not authority:
                proxy.recorder.count("handrail_refused_total", "not_absolute")
                self._answer(
                    400,
                    "This is a forward proxy",
                    "the request target must be http://host/… ; set HTTP_PROXY to use it",
                )
                return None
        named = _AUTHORITY.fullmatch(authority)
        host, port = (named[1].strip("[]").lower(), named[2] or "") if named else ("", "")
        if path is not None:
            port = port or ("80" if host else "")
        elif decoder.length:
            port = ""  # the content of CONNECT has no meaning, so no two parsers agree on it
        if not port or not 0 < int(port) < 65536:
            proxy.recorder.count("handrail_refused_total", "malformed")
            self._answer(400, "Bad request target", "host and port cannot be read")
            return None
        if not self._listener.allows(host, int(port)) and f"{host}:{port}" not in proxy.named:
            proxy.recorder.count("handrail_refused_total", "destination")
            self._answer(403, "Destination not allowed", f"{host}:{port} is not in forward.allow")
            return None
        own = proxy.behind(host, int(port)) if (host, int(port)) in proxy.addresses and path is not None else None
        if own is None and (host, int(port)) in proxy.addresses:
            proxy.recorder.count("handrail_refused_total", "loop")
            self._answer(508, "Loop", "the destination is this sidecar")
            return None
        bracketed = f"[{host}]" if ":" in host else host
        target = Target(host=host, port=int(port), authority=bracketed if port == "80" else f"{bracketed}:{port}")
        route = self._listener.route
        if own is not None and own.target is not None:  # a client that asks its proxy for one of our own routes
            target, route = own.target, own.route
        if path is None or self._target is None or (self._target.host, self._target.port) != (target.host, target.port):
            old, self._upstream = self._upstream, None
            if old is not None:
                old.leave()
            self._target = target
            self._route = msgspec.structs.replace(route, upstream=f"{target.host}:{target.port}")
        if path is None:
            self.state = _TUNNEL
            self._deadline = 0.0
            proxy.recorder.uninspected("tunnel")
            rest, decoder.rest = decoder.rest, b""
            self._to_upstream(rest)
            return None
        decoder.target = (path if path.startswith("/") else f"/{path}").encode("latin-1")
        lines = head.split(b"\r\n")
        first = lines[0].split(b" ")
        host_value = target.authority.encode("latin-1")
        kept = [b" ".join((first[0], decoder.target, first[2]))]
        dropped = (b"proxy-connection:", b"proxy-authorization:", b"host:")
        kept.append(b"Host: " + host_value)
        kept += [line for line in lines[1:] if not line.lower().startswith(dropped)]
        decoder.headers[b"host"] = host_value
        return b"\r\n".join(kept)

    # Ends.

    def _bad_request(self, fault: Fault) -> None:
        if fault.reason == "http2" and self._listener.target is not None and self._first:
            self._proxy.recorder.uninspected("tunnel")
            self.state = _TUNNEL
            self._deadline = 0.0
            rest, self.decoder.rest = self.decoder.rest, b""
            self._to_upstream(rest)
            return
        self._proxy.recorder.count("handrail_refused_total", fault.reason)
        forwarded = self.state == _BODY and self._upstream is not None and self._upstream.forwarded
        self._end("client_abort")
        self._drop_upstream()
        if forwarded:
            self._cut()
            return
        status = 431 if fault.reason == "head_too_large" else 400
        self._answer(status, "The request cannot be passed on", fault.message)

    def expired(self, now: float) -> None:
        """A deadline passed."""
        state, limits = self.state, self._proxy.limits
        if self._eof and not self._eof_told and state == _WAITING:
            self._eof_told = True
            self._deadline = self._reply_deadline(now)
            if self._upstream is not None:
                self._upstream.end_writing()
        elif state == _WAITING and self._gate is not None and self._gate.is_holding:
            gate, self._gate = self._gate, None
            self._deadline = 0.0
            self._proxy.recorder.uninspected("too_slow_to_hold")
            self.transport.write(gate.release())
        elif state == _IDLE and not self._first:
            self._finish()
        elif state in (_IDLE, _HEAD):
            self._proxy.recorder.count("handrail_refused_total", "header_timeout")
            self._answer(408, "Request time-out", f"no complete head within {limits.header_seconds:g} s")
        elif state == _HELD:
            self._release("too_slow_to_hold")
        elif state == _BODY:
            if self._paused or (self._upstream is not None and self._upstream.transport is None):
                self._deadline = now + limits.body_idle_seconds  # it is the upstream that does not read
                return
            self._proxy.recorder.count("handrail_refused_total", "body_timeout")
            forwarded = self._upstream is not None and self._upstream.forwarded
            self._end("client_abort")
            self._drop_upstream()
            if forwarded:
                self._cut()
            else:
                self._answer(408, "Request time-out", f"no byte of the body for {limits.body_idle_seconds:g} s")
        elif state == _WAITING:
            if self._upstream is not None and self._upstream.transport is None:
                return  # still connecting, which has its own limit
            if self._asks_for_stream():
                self._deadline = 0.0  # its first event may take as long as it likes
                return
            if not self._has_begun() and self._fall_back("timeout"):
                return
            self._proxy.recorder.count("handrail_refused_total", "reply_timeout")
            self._end("timeout")
            self._drop_upstream()
            self._answer(504, "The upstream did not answer", f"no byte of a reply for {limits.reply_seconds:g} s")
        else:
            self._cut()

    def _answer(self, status: int, title: str, detail: str, *, retry_after: int | None = None) -> None:
        """An answer of our own, after which the connection ends."""
        body = orjson.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
            b"handrail-error: %d\r\nconnection: close\r\n%s\r\n"
            % (
                status,
                _PHRASES[status].encode(),
                len(body),
                status,
                b"" if retry_after is None else b"retry-after: %d\r\n" % retry_after,
            )
            + (b"" if self._method == "HEAD" else body)
        )
        self._linger()

    def _linger(self) -> None:
        """Nothing more will be sent; what still comes is read and discarded for a moment."""
        self._uncount()
        self.state = _DISCARD
        self._paused = 0
        self._deadline = self._proxy.now() + LINGER_SECONDS
        with contextlib.suppress(RuntimeError):
            self.transport.resume_reading()
        if self._eof or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()

    def _end(self, end: End, upstream: "_Upstream | None" = None) -> None:
        """The exchange under way, if there is one, ends without a complete reply of the upstream."""
        upstream = upstream or self._upstream
        passage, self._passage = self._passage, None
        unsaid, self._unsaid = self._unsaid, None
        now = self._proxy.now()
        if passage is None:
            if not self._counted and unsaid is None:
                return
            passage = self._passage_of(self.decoder.partial(now))
        elif passage.exchange.ended:
            return
        exchange = passage.exchange
        exchange.end = unsaid or end
        exchange.ended = now
        exchange.overhead_ms = passage.overhead * 1000
        if upstream is not None and exchange.reply is None:
            exchange.reply = upstream.decoder.partial()
            if exchange.reply is not None:
                self._proxy.keep(passage, exchange.reply)
        self._held = None
        self._proxy.look_at(passage)
        self._uncount()

    def _end_unread(self, end: End) -> None:
        """As `_end` where the upstream could not have the request. Its caller is answered at once; what of the request
        is still on its way is read, while the connection lingers, because it says who hands what to whom."""
        if self.state == _BODY and self._passage is None:
            self._unsaid = end
        else:
            self._end(end)

    def _read_on(self, data: bytes) -> None:
        got = self.decoder.feed(data, self._proxy.now())
        if got is not None:
            if type(got) is Request:
                self._passage = self._passage_of(got)
            self._end("client_abort")

    def _uncount(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._counted:
            self._counted = False
            self._proxy.in_flight -= 1

    def _cut(self) -> None:
        """Resets: an orderly end would make a whole reply of one that ends with the connection."""
        self.state = _CLOSED
        _reset(self.transport)

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.leave(abort=True)

    def _finish(self, *, abort: bool = False) -> None:
        """Nothing more will come: closes once what was written is sent."""
        self.state = _CLOSED
        if abort:
            _reset(self.transport)
        else:
            self.transport.close()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.leave()

    def retire(self) -> bool:
        """The sidecar ends: True where this connection could close at once."""
        if self.state in (_IDLE, _HEAD):
            self._finish()
            return True
        return False

    def shut(self) -> None:
        """The sidecar has ended: cut."""
        if self.state != _CLOSED:
            self._end("shutdown")
            self._cut()

    # Small things.

    def overdue(self, now: float) -> bool:
        return 0.0 < self._deadline < now

    def open_since(self, before: float) -> _Passage | None:
        """The exchange under way if its request is older than this and was not looked at."""
        passage = self._passage
        if passage is None or passage.opened or passage.exchange.ended or passage.exchange.request.end > before:
            return None
        return passage

    def _asks_for_stream(self) -> bool:
        return b"event-stream" in self.decoder.headers.get(b"accept", b"")

    def _authority(self) -> str:
        return self._target.authority if self._target is not None else ""

    def _pause(self, why: int) -> None:
        if not self._paused:
            with contextlib.suppress(RuntimeError):
                self.transport.pause_reading()
        self._paused |= why

    def _resume(self, why: int) -> None:
        self._paused &= ~why
        if not self._paused and not self.transport.is_closing():
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def upstream_full(self, full: bool) -> None:
        if full:
            self._pause(_UPSTREAM_FULL)
        else:
            self._resume(_UPSTREAM_FULL)


class _Upstream(asyncio.Protocol):
    """The connection to an upstream that belongs to one client connection."""

    __slots__ = ("_client", "_proxy", "decoder", "ended", "forwarded", "started", "transport")

    def __init__(self, client: _Client, proxy: "Proxy") -> None:
        self._client: _Client | None = client
        self._proxy = proxy
        self.transport: _Outlet | None = None
        self.decoder = ReplyDecoder(proxy.head_limits, client._listener.route.limits.body_bytes, proxy.budget)
        self.started = False
        """Whether any byte of the reply under way was seen."""
        self.forwarded = False
        """Whether any byte of it was passed on."""
        self.ended = False
        """Whether it will send no more into a tunnel."""

    def expect(self, method: str) -> None:
        self.started = self.forwarded = False
        self.decoder.expect(method)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = _Outlet(transport, self._proxy)
        if self._client is None:
            self.transport.abort()
        else:
            self._client.connected(self)

    def data_received(self, data: bytes) -> None:
        client = self._client
        if client is None:
            return
        if client.state == _TUNNEL:
            client.transport.write(data)
            return
        at = _perf() + self._proxy.offset
        got = self.decoder.feed(data, at)
        self.started = True
        if self.decoder.excess:
            client.reply_bytes(data[: -self.decoder.excess], got, at)
            client.unasked(self)
            return
        client.reply_bytes(data, got, at)
        self.forwarded = True

    def eof_received(self) -> bool:
        client = self._client
        if client is None:
            return False
        if client.state == _TUNNEL and not client._eof and client.transport.can_write_eof():
            self.ended = True
            client.transport.write_eof()
            return True
        at = self._proxy.now()
        self._ended(self.decoder.close(at), at, clean=True)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._read_last()
        if self._client is not None:
            at = self._proxy.now()
            self._ended(self.decoder.close(at), at, clean=error is None)
        self.decoder.drop()

    def _read_last(self) -> None:
        """What had arrived before a write failed, and the loop did not read any more: an early answer, mostly."""
        transport = self.transport
        if transport is None or transport.get_extra_info("ssl_object") is not None:
            return
        held = transport.get_extra_info("socket")
        if held is None or held.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            while self._client is not None and (data := os.read(held.fileno(), _LAST_BYTES)):
                self.data_received(data)

    def _ended(self, got: Reply | Fault | None, at: float, *, clean: bool) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.upstream_ended(self, got, at, clean)

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.upstream_full(True)

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.upstream_full(False)

    def is_closed(self) -> bool:
        """Whether there is something to read on a connection where nothing is due: its end, which is not told yet."""
        transport = self.transport
        if transport is None:
            return False
        held = transport.get_extra_info("socket")
        if transport.is_closing() or held is None or held.fileno() < 0:
            return True
        looking = select.poll()
        looking.register(held.fileno(), select.POLLIN)
        return bool(looking.poll(0))

    def said_close(self) -> bool:
        """Whether its last reply was the last: then what the client sent behind it was never to be answered."""
        return b"close" in self.decoder.headers.get(b"connection", b"").lower()

    def end_writing(self) -> bool:
        """The client will send no more; False where that ends both directions."""
        transport = self.transport
        if transport is None:
            return True  # told when it is there
        if self.ended or not transport.can_write_eof():
            return False
        transport.write_eof()
        return True

    def leave(self, *, abort: bool = False) -> None:
        """The client has no more use for this connection."""
        self._client = None
        if self.transport is not None:
            if abort:
                self.transport.abort()
            else:
                self.transport.close()


class Proxy:
    """Listens, forwards, and shows the inspector what passed.

    Memory is bounded by `limits.connections` connections with a socket buffer and a short body each way, and by one
    budget for all bodies that are long or that arrive in pieces.
    """

    def __init__(
        self, listeners: list[Listener], limits: LimitsConfig, inspector: Inspector, recorder: Recorder
    ) -> None:
        self.listeners = listeners
        self.limits = limits
        self.inspector = inspector
        self.recorder = recorder
        self.head_limits = HeadLimits(
            head_bytes=limits.header_bytes, field_bytes=limits.header_field_bytes, lines=limits.header_lines
        )
        # `limits` are no compiled class, and these every exchange reads.
        self.most_in_flight = limits.in_flight
        self.body_idle_seconds = limits.body_idle_seconds
        self.reply_seconds = limits.reply_seconds
        self.keepalive_seconds = limits.keepalive_seconds
        self.budget = CopyBudget()
        self.clients: set[_Client] = set()
        self.addresses: set[tuple[str, int]] = set()
        self.authorities = {
            listener.target.authority: listener.target.authority.encode("latin-1")
            for listener in listeners
            if listener.target is not None
        }
        self.named = {
            f"{listener.target.host}:{listener.target.port}" for listener in listeners if listener.target is not None
        }
        self.in_flight = 0
        self.few = 4
        """Requests in flight up to which each write is made at once."""
        self.draining = False
        self.enforcing = False
        self.offset = time.time() - _perf()
        self._looking: list[_Passage] = []
        self._unwritten: list[_Outlet] = []
        self._write_due = False
        self._drain_due = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self._opener: asyncio.TimerHandle | None = None
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_due = 0.0
        self._prefix = f"{secrets.token_hex(6)}-"
        self._count = 0
        self._loop = cast(asyncio.AbstractEventLoop, None)

    def now(self) -> float:
        """Seconds since the epoch, steady between two sweeps."""
        return _perf() + self.offset

    def next_id(self) -> str:
        self._count += 1
        return self._prefix + str(self._count)

    async def start(self) -> list[tuple[str, int]]:
        """Starts to listen. The addresses, in the order of the listeners. Raises OSError where one is taken."""
        self._loop = asyncio.get_running_loop()
        self.use(self.inspector)
        bound = []
        for listener in self.listeners:
            server = await self._loop.create_server(
                self._protocol(listener), listener.host, listener.port, backlog=1024, reuse_address=True
            )
            self._servers.append(server)
            address = cast(Any, server).sockets[0].getsockname()[:2]
            listener.host, listener.port = address
            self.addresses.add((str(address[0]), int(address[1])))
            bound.append((str(address[0]), int(address[1])))
        self._sweep_due = self._loop.time() + SWEEP_SECONDS
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        self._opener = self._loop.call_later(OPEN_SECONDS, self._look_at_open)
        return bound

    def is_own(self, transport: _Outlet) -> bool:
        """Whether a connection leads to one of the listeners, by whatever name it was asked for."""
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer is None or here is None:
            return False
        own = peer[:2] in self.addresses
        return own or (peer[0] == here[0] and any((any_, peer[1]) in self.addresses for any_ in ("0.0.0.0", "::")))  # noqa: S104 - compared, not bound

    def behind(self, host: str, port: int) -> Listener | None:
        """The route at an address of ours; None where there is none with an upstream."""
        for listener in self.listeners:
            if listener.target is not None and (listener.host, listener.port) == (host, port):
                return listener
        return None

    def _protocol(self, listener: Listener) -> Callable[[], _Client]:
        return lambda: _Client(self, listener)

    def use(self, inspector: Inspector) -> None:
        """Exchanges that open from now on go to this inspector."""
        self.inspector = inspector
        self.enforcing = any(watch.rule.action == "enforce" for watch in inspector.pipeline.watches)

    async def stop(self, drain_seconds: float) -> None:
        """Stops to listen, lets the exchanges under way finish for so long, then cuts them."""
        self.draining = True
        for server in self._servers:
            server.close()
        for client in list(self.clients):
            client.retire()
        ends = self._loop.time() + drain_seconds
        while self.clients and self._loop.time() < ends:
            await asyncio.sleep(0.05)
        for client in list(self.clients):
            client.shut()
        for task in self._tasks:
            task.cancel()
        for timer in (self._sweeper, self._opener, self._drain_timer):
            if timer is not None:
                timer.cancel()
        await asyncio.sleep(0)
        self.drain()

    def spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def write_soon(self, outlet: _Outlet) -> None:
        self._unwritten.append(outlet)
        if not self._write_due:
            self._write_due = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._write_due = False
        unwritten, self._unwritten = self._unwritten, []
        for outlet in unwritten:
            outlet.flush()

    def soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon(call)

    def forwarded(self) -> None:
        """A request is on its way, and its upstream has work: the moment to look at what is over."""
        if len(self._looking) >= LOOK_TOGETHER and not self._drain_due:
            self._drain_due = True
            self._loop.call_soon(self.drain)

    def look_at(self, passage: _Passage) -> None:
        """This exchange is over. The inspector sees it with a few others when a request is on its way, or soon.

        So inspection overlaps with an upstream's work, and an exchange that was short is read once, as a whole.
        """
        self._looking.append(passage)
        if not self._drain_due and self._drain_timer is None:
            self._drain_timer = self._loop.call_later(LOOK_SECONDS, self._drain_late)

    def _drain_late(self) -> None:
        self._drain_timer = None
        if self._looking and not self._drain_due:
            self.drain()

    def drain(self) -> None:
        """Shows the inspector what is over. Whatever goes wrong here is a fault of ours and stays here."""
        self._drain_due = False
        looking, self._looking = self._looking, []
        now = self.now()
        recorder, inspector = self.recorder, self.inspector
        short: list[Exchange] = []
        for passage in looking:
            if passage.closed:
                continue
            passage.closed = True
            exchange = passage.exchange
            if passage.asked is None and not is_long(exchange):
                short.append(exchange)
                continue
            if short:
                self._inspect(short, now)
                short = []
            try:
                asked, began = passage.asked, _perf()
                decisions = list(inspector.whole(exchange) if asked is None else inspector.close(exchange, asked))
                recorder.inspected(decisions, passage.inspected + _perf() - began)
                recorder.record_all(decisions, now)
                self._count_unread(exchange)
            except Exception as error:
                self._contain(error, now)
        if short:
            self._inspect(short, now)
        for passage in looking:
            self.budget.left += passage.kept
            passage.kept = 0
            passage.exchange, passage.asked = _NO_EXCHANGE, None  # where the client is still sending, it names this

    def _inspect(self, exchanges: list[Exchange], now: float) -> None:
        try:
            began = _perf()
            decisions = self.inspector.together(exchanges)
            self.recorder.inspected(decisions, _perf() - began)
            self.recorder.record_all(decisions, now)
            for exchange in exchanges:
                self._count_unread(exchange)
        except Exception as error:
            self._contain(error, now)

    def _count_unread(self, exchange: Exchange) -> None:
        """A reply that could not be read; what became of a request, its event says."""
        reply = exchange.reply
        if reply is not None and reply.size:
            reason = reply.cut if reply._read is None else reply._read.reason
            if reason is not None and reason != "not_json":
                self.recorder.uninspected(reason)

    def keep(self, passage: _Passage, message: Message) -> None:
        """Counts the copy of a long body for as long as its exchange is under way; past the budget it goes unread."""
        size = len(message.body)
        if self.budget.left < size:
            message.body = b""
            message.cut = "overload"
        else:
            self.budget.left -= size
            passage.kept += size

    def _look_at_open(self) -> None:
        """Shows the inspector what has been open for long: deadlines run, and waits are known while they last."""
        self._opener = self._loop.call_later(OPEN_SECONDS / 2, self._look_at_open)
        now = self.now()
        long = [each for client in self.clients if (each := client.open_since(now - OPEN_SECONDS)) is not None]
        for passage in sorted(long, key=lambda each: each.exchange.request.end):
            passage.opened = True
            try:
                began = _perf()
                passage.asked, decisions = self.inspector.open(passage.exchange)
                passage.inspected += _perf() - began
                self.recorder.record_all(decisions, now)
            except Exception as error:
                self._contain(error, now)

    def open_held(self, passage: _Passage) -> Refusal | None:
        """The Decision on a request that is held; none where we fail."""
        if self._looking:
            self.drain()  # it may repeat an exchange that is over and was not looked at yet
        passage.opened = True
        now = self.now()
        try:
            began = _perf()
            passage.asked, decisions = self.inspector.open(passage.exchange)
            passage.inspected += _perf() - began
            self.recorder.record_all(decisions, now)
            return refusal_in(decisions)
        except Exception as error:
            self._contain(error, now)
            return None

    def due(self, passage: _Passage, *, enforced: bool) -> float | None:
        """Until when a call that was opened has time, see `Pipeline.due`; None where we fail."""
        if passage.asked is None:
            return None
        try:
            dues = [self.inspector.pipeline.due(event, enforced=enforced) for event in passage.asked[1]]
        except Exception as error:
            self._contain(error, self.now())
            return None
        return min([due for due in dues if due is not None], default=None)

    def at(self, due: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls right after an instant; one that is past, as soon as it can."""
        return self._loop.call_later(max(0.0, due - self.now()) + AFTER_SECONDS, call)

    def overdue(self, passage: _Passage, now: float) -> Finding:
        """The finding of a call whose budget is used up; findings of this instant are recorded."""
        found: Finding | None = None
        try:
            decision = self.inspector.advance(now)
            self.recorder.record(decision, now)
            ids = {event.id for event in passage.asked[1]} if passage.asked is not None else set()
            found = next(
                (
                    each
                    for each in decision.findings
                    if each.kind == "budget.exceeded" and ids.intersection(each.events)
                ),
                None,
            )
        except Exception as error:
            self._contain(error, now)
        if found is None:  # a sweep was here first
            found = Finding(
                rule="budget.exceeded",
                kind="budget.exceeded",
                severity="warning",
                at=now,
                side="receiver",
                message="the time that this handoff had is over",
            )
        return found

    def copied(self, passage: _Passage, request: bytes) -> bytes | None:
        """A request that may be sent again, counted against the budget of all copies; None past it."""
        if self.budget.left < len(request):
            self.recorder.count("handrail_fallbacks_total", "not_kept")
            return None
        self.budget.left -= len(request)
        passage.kept += len(request)
        return request

    def calls_held(self, passage: _Passage, calls: dict[int, Call]) -> Refusal | None:
        """The Decision on calls of tools that are complete and held; none where we fail."""
        if passage.asked is None:
            return None
        if self._looking:
            self.drain()
        now = self.now()
        try:
            began = _perf()
            decisions = self.inspector.called(passage.exchange, passage.asked, calls, now)
            passage.inspected += _perf() - began
            self.recorder.record_all(decisions, now)
            refusal = refusal_in(decisions)
            if refusal is not None:
                self.inspector.refuse(passage.exchange, passage.asked)
            return refusal
        except Exception as error:
            self._contain(error, now)
            return None

    def close_held(self, passage: _Passage) -> Refusal | None:
        """The Decision on a reply that is held; none where we fail."""
        if passage.asked is None:
            return None
        if self._looking:
            self.drain()
        now = self.now()
        try:
            began = _perf()
            decisions = list(self.inspector.close(passage.exchange, passage.asked))
            passage.closed = True
            self.recorder.inspected(decisions, passage.inspected + _perf() - began)
            self.recorder.record_all(decisions, now)
            refusal = refusal_in(decisions)
            if refusal is not None:
                self.inspector.refuse(passage.exchange, passage.asked)
            return refusal
        except Exception as error:
            self._contain(error, now)
            return None

    def _contain(self, error: Exception, now: float) -> None:
        log.debug("inspector", exc_info=error)
        fault = Fault(component="inspector", reason="error", message=f"{type(error).__name__}: {error}", at=now)
        self.recorder.fault(fault, now)

    def _sweep(self) -> None:
        """Time-outs, findings that only time can make, and the clock's drift."""
        loop = self._loop
        self.recorder.gauge("handrail_loop_lag_seconds", max(0.0, loop.time() - self._sweep_due))
        self._sweep_due = loop.time() + SWEEP_SECONDS
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)
        drift = time.time() - (_perf() + self.offset)
        if abs(drift) > 0.1:
            self.offset += drift
        now = self.now()
        for client in [client for client in self.clients if client.overdue(now)]:
            client.expired(now)
        try:
            for decision in self.inspector.due(now):
                self.recorder.record(decision, now)
            self.recorder.record(self.inspector.advance(now), now)
            self.recorder.flush(now)
        except Exception as error:
            self._contain(error, now)


def _reset(transport: _Outlet) -> None:
    """Ends a connection with RST, which no peer takes for the end of a message."""
    held = transport.get_extra_info("socket")
    if held is not None:
        with contextlib.suppress(OSError):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


_NO_LINGER = struct.pack("ii", 1, 0)
_PATH = re.compile(r"[/?].*|#.*", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::([0-9]{1,5}))?")


def _host_in(head: bytes) -> tuple[int, int] | None:
    """Where in a head the value of its Host header begins and ends; there is exactly one, or none in HTTP/1.0."""
    start = head.find(b"\r\nHost: ")
    if start >= 0:
        start += 8
    else:
        found = _HOST.search(head)
        if found is None:
            return None
        start = found.end()
    return start, head.find(b"\r\n", start)


def _with_host(head: bytes, authority: bytes) -> bytes:
    """A head with the value of its Host header replaced, if it has one."""
    place = _host_in(head)
    return head if place is None else head[: place[0]] + authority + head[place[1] :]


_HOST = re.compile(rb"\r\nhost:[ \t]*", re.IGNORECASE)


def _with_field(head: bytes, name: bytes, value: bytes) -> bytes:
    """A head in which a field has this value and stands once, at the end."""
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(name + b":")]
    return b"\r\n".join(lines) + b"\r\n" + name + b": " + value + b"\r\n\r\n"


def _stamped(head: bytes, request: Request, asked: Asked, due: float | None) -> bytes:
    """A held head with what is known: `handrail-workflow` if it is missing, the sender in `baggage`, the time left."""
    if due is not None:
        declared = next((event.deadline for event in asked[1] if event.deadline is not None), None)
        if declared is None or declared > due + AFTER_SECONDS:
            head = _with_field(head, b"handrail-deadline", rfc3339(due).encode())
    source = next((event.source for event in asked[1] if event.kind == "handoff" and event.source), None)
    if source is not None:
        head = _with_baggage(head, with_chain(request.headers.get(b"baggage"), source))
    if b"handrail-workflow" in request.headers:
        return head
    workflow = next((event.workflow for event in asked[1] if event.workflow), None)
    if workflow is None or not _TOKEN.fullmatch(workflow):
        return head
    return head[:-2] + b"handrail-workflow: " + workflow.encode("latin-1") + b"\r\n\r\n"


def _with_baggage(head: bytes, value: bytes) -> bytes:
    """A head whose `baggage` is this value, in which all lines of it were joined."""
    head = _BAGGAGE.sub(b"", head)
    return head[:-2] + b"baggage: " + value + b"\r\n\r\n"


_BAGGAGE = re.compile(rb"(?<=\r\n)baggage:[^\r\n]*\r\n", re.IGNORECASE)
_TOKEN = re.compile(r"[\x21-\x7e]{1,256}")


def refusal_reply(refusal: Refusal, exchange: Exchange, dialect: str) -> tuple[int, str, bytes]:
    """A refusal as its caller understands it: status, content type and body.

    `application/problem+json` (RFC 9457), or a JSON-RPC error where the request was a JSON-RPC call.
    """
    finding = refusal.finding
    detail = {
        "rule": finding.rule,
        "kind": finding.kind,
        "severity": finding.severity,
        "side": finding.side,
        "subject": finding.subject,
        "version": finding.version,
        "evidence": finding.evidence,
    }
    if dialect in ("a2a", "mcp"):
        call = exchange.request.json(exchange.route.limits).value
        if isinstance(call, dict) and call.get("jsonrpc") == "2.0":
            error = {
                "code": -32602 if refusal.status == 422 else -32000,
                "message": f"refused by rule {finding.rule}: {finding.message}",
                "data": detail,
            }
            body = {"jsonrpc": "2.0", "id": call.get("id"), "error": error}
            return 200, "application/json", orjson.dumps(body, default=str)
    problem = {
        "type": f"urn:handrail:{finding.kind}",
        "title": f"Refused by rule {finding.rule}",
        "status": refusal.status,
        "detail": finding.message,
        **detail,
    }
    return refusal.status, "application/problem+json", orjson.dumps(problem, default=str)


_PHRASES = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    508: "Loop Detected",
}
