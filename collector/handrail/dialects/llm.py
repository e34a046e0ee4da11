"""Calls of models become handoffs: what the dialects of the model providers have in common.

A dialect reads a request into a `Turn` and a reply into what was `Said`; this module knows conversations. An exchange
is one event of kind `usage`. A tool call in a reply whose tool is a handoff tool is one event of kind `handoff`: it is
`asked` when the reply is over, and seen again under the same id when later exchanges of its conversation tell what came
of it: `accepted` when the target speaks, `rejected`, `ignored`, or `dropped` when it never does.

Which conversation a request goes on with, in tiers, and how sure that is:

1. ids that the provider made, found again: response, conversation, call (exact), also inside a quoted history;
2. the history ends with what was said before (inferred);
3. the same first words and a handoff that waits for another speaker (inferred);
4. the words that a call of a tool gave, spoken to another agent while the call is open (inferred).

Where more than one conversation fits, the oldest is taken and everything about all of them is `ambiguous` from then on.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec
import orjson
import xxhash

from handrail.config import HandoffsConfig
from handrail.dialects import Told, begin, complete, outcome_of, state, text, trace_of, workflow_in_baggage
from handrail.dialects.bounded import Bounded
from handrail.dialects.conventions import (
    IGNORED,
    INLINE_NAME,
    NOBODY,
    PEOPLE,
    QUOTED_CALL_IDS,
    REJECTED,
    TOOL_VERBS,
    Conventions,
    HandoffKind,
    Meant,
    back_at,
    name_in_result,
    slug,
    source_in_words,
    speaker,
    spoken_to,
    stem,
)
from handrail.dialects.spans import Spans
from handrail.dialects.turns import Call, Format, Item, Reading, Result, Said, Tool, Turn, read_reply
from handrail.event import Confidence, Event, Fault, Outcome, digest_of
from handrail.schema.registry import Registry, SchemaError, is_untyped
from handrail.wire import Body, Exchange

KEPT_BYTES = 262_144
"""Arguments that are longer are judged when they are seen and not kept until their outcome is known."""

OPEN_CALLS = 64
"""How many unanswered calls of one conversation are remembered."""

NESTABLE = 256
"""How many of the latest open calls are compared with the first words of a new conversation."""

LAST_SAID = 4
"""How many of the last answers in a history are looked for among those that ended a conversation."""

TELLING = 24
"""From this length on, a text that is found inside another is no chance."""


class ModelDialect:
    """One provider's API in front of the conversations, which all providers share."""

    def __init__(self, format: Format, conversations: "Conversations", spans: Spans | None = None) -> None:
        self.name = format.name
        self._format = format
        self._conversations = conversations
        self._spans = spans
        self._heard: OrderedDict[str, tuple[Turn, _Heard]] = OrderedDict()

    def ask(self, exchange: Exchange) -> tuple[Event, ...]:
        """One event of kind `usage`, where the request is of this format."""
        if exchange.request.method != "POST":
            return ()
        turn = self._format.turn(exchange)
        if turn is None:
            return self._aside(exchange)
        heard = self._conversations.hear(turn, exchange)
        self._heard[exchange.id] = turn, heard
        if len(self._heard) > 4_096:
            self._heard.popitem(last=False)
        said = Told(workflow=heard.thread.workflow, source=heard.name)
        body = Body(reason=exchange.request.json(exchange.route.limits).reason)
        return (begin(exchange, self.name, turn.operation, said, body, kind="usage"),)

    def _aside(self, exchange: Exchange) -> tuple[Event, ...]:
        """A request to the same API that is no turn, or cannot be read as one: no handoff either."""
        operation = self._format.aside(exchange)
        if operation is None:
            return ()
        body = Body(reason=exchange.request.json(exchange.route.limits).reason)
        return (begin(exchange, self.name, operation, Told(), body, kind="usage"),)

    def reading(self, exchange: Exchange) -> Reading | None:
        """What reads the reply while it comes; None where none is due that could ask for a handoff."""
        turn, _ = self._heard.get(exchange.id, (None, None))
        return None if turn is None else self._format.reading(turn)

    def called(self, exchange: Exchange, calls: dict[int, Call], at: float) -> list[Event]:
        """The handoffs that calls ask for which are complete while their reply still comes.

        Each is given once: `answer` does not repeat what was given here.
        """
        turn, heard = self._heard[exchange.id]
        return self._conversations.call(self.name, turn, heard, calls, exchange, at)

    def refuse(self, exchange: Exchange) -> None:
        """A rule has kept this reply from its agent: the handoffs that it asks for are rejected."""
        self._conversations.refuse(exchange.id, exchange.ended)

    def answer(self, exchange: Exchange, asked: tuple[Event, ...]) -> Iterable[Event | Fault]:
        """What became known of earlier handoffs, the model's answer, and the handoffs that it asks for."""
        (usage,) = asked
        turn, heard = self._heard.pop(exchange.id, (None, None))
        if turn is None or heard is None:
            if usage.operation == "traces.ingest" and self._spans is not None:
                self._spans.ingest(exchange.request.json(exchange.route.limits).value, exchange.ended)
            return (*self._conversations.known(), complete(usage, exchange))
        said = read_reply(self._format, exchange, turn)
        told = {"model": said.model or turn.model}
        for name in ("input_tokens", "output_tokens"):
            if (count := getattr(said, name)) is not None:
                told[name] = count
        if said.error is not None:
            told["error"] = said.error
        fields: dict[str, Any] = {"tokens": said.tokens, "reply": told, "outcome": _outcome(exchange, said)}
        done = complete(usage, exchange, **fields)
        handoffs = self._conversations.say(self.name, turn, heard, said, exchange)
        return (*self._conversations.known(), done, *handoffs)

    def advance(self, now: float) -> Iterable[Event]:
        """Time passed."""
        return self._conversations.advance(now)

    def end(self, silent: Outcome) -> Iterable[Event]:
        """Nothing more comes."""
        return self._conversations.end(silent)


def _outcome(exchange: Exchange, said: Said) -> Outcome:
    if exchange.end == "client_abort":  # clients hang up at the last event of a stream
        return "completed" if said.is_over and said.error is None else "interrupted"
    by_http = outcome_of(exchange)
    if by_http not in ("completed", "accepted"):
        return by_http
    if said.error is not None:
        return "failed"
    if said.is_over:
        return "completed"
    return "unknown" if said.is_unread else "interrupted"


class _Handoff(msgspec.Struct):
    """A call of a tool that has not come to an end: a handoff, or what may turn out to be one."""

    event: Event
    """As it was asked."""
    key: str
    reply: str
    """Id of the exchange whose reply asked for it."""
    id: str | None
    tool: str
    kind: HandoffKind
    is_known: bool
    """The tool is a handoff tool; otherwise only nesting can tell."""
    identity: str
    source_sure: int
    thread: "_Thread"
    arguments: Any = None
    is_valid: bool = True
    is_ok: bool = False
    """A tool result says that it was done."""
    has_sibling: bool = False
    """Another handoff of the same reply was accepted, and its call got no answer either: only the first counted.

    Where that one's call was answered, this one's would have been too: it went missing.
    """
    link: int = 2
    child: "_Thread | None" = None
    target: str | None = None
    accepted: bool = False


class _Thread(msgspec.Struct):
    """A conversation."""

    workflow: str
    first: str = ""
    """Its first words, cut."""
    trace: str | None = None
    open: OrderedDict[str, _Handoff] = msgspec.field(default_factory=OrderedDict)
    ending: tuple[str, str] | None = None
    """What was said last, under which the next request finds it."""
    last_text: str = ""
    last_identity: str = ""
    is_ambiguous: bool = False


class _Heard(msgspec.Struct):
    """Who speaks in which conversation, as a request told."""

    thread: _Thread
    identity: str
    name: str | None
    sure: int
    link: int
    first: str
    is_led: bool = False
    """The name is what a handoff or a history taught of this speaker."""
    told: dict[int, tuple[Call, _Handoff | None]] = {}
    """Calls that were complete before their reply was, by their place in it."""


# How sure something is. The numbers order; the words are what an event says.
_EXACT, _INFERRED, _AMBIGUOUS = 2, 1, 0
_WORDS: tuple[Confidence, ...] = ("ambiguous", "inferred", "exact")


class Conversations:
    """What is remembered of conversations. Bounded by `handoffs.conversations` and `handoffs.silence_seconds`.

    Time comes in with the exchanges and with `advance`; the same exchanges in the same order give the same events.
    """

    def __init__(self, config: HandoffsConfig, registry: Registry, spans: Spans | None = None) -> None:
        """`spans` gets to know of every handoff, so that no span tells it again."""
        self._spans = spans
        limit = config.conversations
        self._conventions = Conventions(config)
        self._registry = registry
        self._silence = config.silence_seconds
        self._limit = limit
        self._calls: Bounded[str, _Thread] = Bounded(8 * limit)
        self._responses: Bounded[str, _Thread] = Bounded(4 * limit)
        self._endings: Bounded[tuple[str, str], list[_Thread]] = Bounded(limit)
        self._waiting: Bounded[str, list[_Thread]] = Bounded(limit)
        self._open: OrderedDict[str, _Handoff] = OrderedDict()
        self._names: Bounded[str, tuple[str, int]] = Bounded(limit)
        self._shown: Bounded[str, str] = Bounded(limit)
        self._stems: Bounded[str, str] = Bounded(limit)
        self._meant: Bounded[tuple[str, str], Meant | None] = Bounded(limit)
        self._known: list[Event] = []

    def __len__(self) -> int:
        """How many handoffs are open."""
        return len(self._open)

    def known(self) -> tuple[Event, ...]:
        """The final events of handoffs whose outcome became known since the last call."""
        if not self._known:
            return ()
        known, self._known = tuple(self._known), []
        return known

    def advance(self, now: float) -> tuple[Event, ...]:
        """Time passed: a target that was silent for too long has dropped its task."""
        while self._open:
            handoff = next(iter(self._open.values()))
            if now - handoff.event.at < self._silence:
                break
            self._lost(handoff, handoff.event.at + self._silence)
        return self.known()

    def end(self, silent: Outcome = "dropped") -> tuple[Event, ...]:
        """The recording is over: what has not spoken will not."""
        while self._open:
            handoff = next(iter(self._open.values()))
            self._lost(handoff, None, silent)
        return self.known()

    # A request.

    def hear(self, turn: Turn, exchange: Exchange) -> _Heard:
        """Which conversation a request goes on with, who speaks in it, and what that says of open handoffs."""
        for tool in turn.tools.values():
            self._learn_tool(tool)
        identity = _identity(turn)
        first = next((item.text for item in turn.items if item.role == "user"), "")[:2_048]
        name, sure = self._speaker(turn, identity, exchange)
        heard = _Heard(_NOWHERE, identity, name, sure, _EXACT, first, identity in self._names)
        self._place(turn, heard, exchange)
        self._learn_names(turn, heard.thread)
        if heard.sure < _EXACT and heard.identity in self._names:
            heard.name, heard.sure = self._names[heard.identity]
            heard.is_led = True
        self._settle(turn, heard, exchange.request.end or exchange.request.at)
        if heard.sure < _EXACT and heard.identity in self._names:
            heard.name, heard.sure = self._names[heard.identity]
        return heard

    def _speaker(self, turn: Turn, identity: str, exchange: Exchange) -> tuple[str | None, int]:
        mapped = self._conventions.mapped(turn.system, turn.tools)
        if mapped is not None:
            return mapped, _EXACT
        strong, weak = speaker(turn.system)
        if strong is None and turn.items:
            strong = spoken_to(turn.items[0].text)
        if turn.speaker is not None and not NOBODY.fullmatch(turn.speaker):
            strong = turn.speaker
        if strong is not None:
            self._learn_name(strong)
            self._names.put(identity, (strong, _EXACT))
            return strong, _EXACT
        known = self._names.get(identity)
        if known is not None:
            return known
        last = turn.items[-1].results if turn.items else ()
        if last and (back := back_at(last[-1].text)) is not None:
            return back, _INFERRED
        if weak is not None:
            return self._stems.get(stem(weak), weak), _INFERRED
        return exchange.route.source, _INFERRED

    def _place(self, turn: Turn, heard: _Heard, exchange: Exchange) -> None:
        """Finds the conversation, by the tiers of the module's docstring."""
        headers = exchange.request.headers
        given = headers.get(b"handrail-workflow")
        named = None if given is None else text(given.decode("utf-8", "replace").strip())
        if named is None and b"baggage" in headers:
            named = workflow_in_baggage(headers[b"baggage"])
        trace, _ = trace_of(headers.get(b"traceparent", b""))
        key = None
        if turn.conversation is not None:
            key = f"conversation {turn.conversation}"
        elif named is not None:
            key = f"workflow {named}"
        found = self._by_id(turn, key)
        if found is None:
            found = self._by_ending(turn, heard, trace)
        if found is None:
            found = self._by_first_words(turn, heard, trace)
        if found is None:
            found = self._by_nesting(turn, heard, exchange, trace)
        if found is None:
            workflow = named or turn.conversation or trace or exchange.id
            found = _Thread(workflow=workflow, first=heard.first, trace=trace)
        if key is not None:
            self._responses.put(key, found)
        heard.thread = found
        if found.is_ambiguous:
            heard.link = _AMBIGUOUS

    def _by_id(self, turn: Turn, key: str | None) -> _Thread | None:
        for id in (turn.previous, key):
            if id is not None and (thread := self._responses.get(id)) is not None:
                return thread
        calls = self._calls
        for item in reversed(turn.items):
            for result in item.results:
                if result.id is not None and result.id in calls:
                    return calls[result.id]
            for call in item.calls:
                if call.id is not None and call.id in calls:
                    return calls[call.id]
            if "call_id" in item.text or "tool_use_id" in item.text or "'type': 'function'" in item.text:
                for match in QUOTED_CALL_IDS.finditer(item.text):
                    if (match[1] or match[2]) in calls:
                        return calls[match[1] or match[2]]
        return None

    def _by_ending(self, turn: Turn, heard: _Heard, trace: str | None) -> _Thread | None:
        tried = 0
        for item in reversed(turn.items):
            if item.role == "assistant" and (item.text or item.calls):
                fitting = self._endings.get((heard.first, _ending(_named(item)[1], item.calls)))
                if fitting:
                    return self._one_of(list(fitting), heard, trace)
                tried += 1  # a framework may have put words of its own behind, such as a way back to a supervisor
                if tried == LAST_SAID:
                    break
        return None

    def _by_first_words(self, turn: Turn, heard: _Heard, trace: str | None) -> _Thread | None:
        fitting = self._expecting(self._waiting.get(heard.first, ()), turn, heard) if heard.first else []
        if not fitting:
            recent = list(self._open.values())[-NESTABLE:] if self._open else []
            if recent:
                early = "\n".join(item.text for item in turn.items[:3])
                quoted = {
                    id(handoff.thread): handoff.thread
                    for handoff in recent
                    if handoff.is_known
                    and handoff.kind == "transfer"
                    and len(handoff.thread.first) >= TELLING // 2
                    and handoff.thread.first != heard.first
                    and handoff.thread.first in early
                }
                fitting = self._expecting(quoted.values(), turn, heard)
        return self._one_of(fitting, heard, trace)

    def _expecting(self, threads: Iterable[_Thread], turn: Turn, heard: _Heard) -> list[_Thread]:
        """Those of the conversations in which a handoff waits for somebody who may be this speaker."""
        fitting, hinted = [], []
        for thread in threads:
            waiting = [handoff for handoff in thread.open.values() if _may_be(handoff, heard)]
            if waiting:
                fitting.append(thread)
                if any(_hints(turn.system, handoff) for handoff in waiting):
                    hinted.append(thread)
        return hinted or fitting

    def _one_of(self, fitting: list[_Thread], heard: _Heard, trace: str | None) -> _Thread | None:
        if not fitting:
            return None
        if len(fitting) > 1 and trace is not None:
            fitting = [thread for thread in fitting if thread.trace == trace] or fitting
        heard.link = _INFERRED
        if len(fitting) > 1:
            for thread in fitting:
                thread.is_ambiguous = True
        return fitting[0]

    def _by_nesting(self, turn: Turn, heard: _Heard, exchange: Exchange, trace: str | None) -> _Thread | None:
        """A new conversation that begins with what an open call of a tool gave."""
        if not self._open or any(item.role == "assistant" for item in turn.items):
            return None
        asked = "\n".join(item.text for item in turn.items if item.role == "user").strip()
        if not asked:
            return None
        recent = list(self._open.values())[-NESTABLE:]
        moved = {
            id(each.thread): each.thread for each in recent if _may_be(each, heard) and _carries(each, heard, asked)
        }
        if moved:  # control went on with the words of the call alone
            return self._one_of(list(moved.values()), heard, trace)
        fitting = []
        for handoff in recent:
            if handoff.identity != heard.identity and handoff.child is None:
                if handoff.is_known and handoff.kind != "delegate":
                    continue
                fit = _nests(handoff, heard, asked)
                if fit:
                    fitting.append((fit, handoff))
        if not fitting:
            return None
        best = max(fit for fit, _ in fitting)
        calls = [handoff for fit, handoff in fitting if fit == best]
        call = calls[0]
        heard.link = _INFERRED if len(calls) == 1 else _AMBIGUOUS
        parent = call.thread
        child = _Thread(
            workflow=parent.workflow,
            first=heard.first,
            trace=parent.trace,
            is_ambiguous=parent.is_ambiguous or len(calls) > 1,
        )
        if len(calls) > 1:
            for other in calls:
                other.link = _AMBIGUOUS
        call.child = child
        call.link = min(call.link, heard.link)
        if call.target is None or not call.is_known:
            call.target = heard.name if heard.sure == _EXACT and heard.name else call.target or _agent_of(call.tool)
        if call.is_known or best >= _CERTAIN:
            self._accept(call, heard, exchange.request.end or exchange.request.at)
        return child

    # What a request says of the handoffs that were open.

    def _settle(self, turn: Turn, heard: _Heard, at: float) -> None:
        thread = heard.thread
        if not thread.open:
            return
        fresh = _fresh_results(turn)
        for handoff in list(thread.open.values()):
            result = _result_of(handoff, turn, fresh)
            if result is not None:
                self._answered(handoff, result, heard, at)
        waiting = [handoff for handoff in thread.open.values() if handoff.is_known]
        if not waiting:
            return
        spoken = _spoken_since(turn, waiting)
        for handoff in [each for each in waiting if each.target and stem(each.target) in spoken.get(each.key, ())]:
            self._accept(handoff, heard, at, by_history=True)
        waiting = [each for each in thread.open.values() if each.is_known and _may_be(each, heard)]
        if any(handoff.is_ok for handoff in waiting):
            waiting = [handoff for handoff in waiting if handoff.is_ok]
        if len(waiting) > 1:
            named = [each for each in waiting if _hints(turn.system, each)]
            waiting = named or waiting
        if waiting:
            if len(waiting) > 1:
                heard.link = _AMBIGUOUS
                for handoff in waiting:
                    handoff.link = _AMBIGUOUS
            self._source_in(turn, waiting[0])
            self._accept(waiting[0], heard, at)

    def _answered(self, handoff: _Handoff, result: Result, heard: _Heard, at: float) -> None:
        """A result of its tool is there."""
        if not handoff.is_known:
            child = handoff.child
            if child is not None and child.last_text and _same_words(child.last_text, result.text):
                self._accept(handoff, heard, at, by_history=True)
            else:
                self._close(handoff)
            return
        if IGNORED.search(result.text):
            self._resolve(handoff, "ignored", at)
        elif result.is_error or REJECTED.match(result.text):
            self._resolve(handoff, "rejected", at)
        else:
            handoff.is_ok = True
            named = name_in_result(result.text)
            if named is not None and slug(named) not in PEOPLE:
                handoff.target = named
                self._learn_name(named)
            if handoff.kind == "delegate" and handoff.identity == heard.identity:
                self._accept(handoff, heard, at, by_history=True)

    def _source_in(self, turn: Turn, handoff: _Handoff) -> None:
        """The message by which a framework announces a handoff to its target carries the source's name."""
        if handoff.source_sure == _EXACT:
            return
        opening = next((item for item in turn.items if item.role == "user"), None)
        asker = None if opening is None else opening.name
        for item in reversed(turn.items):
            name = item.name or (source_in_words(item.text) if item is opening else None)
            if item.role != "user" or name is None or name == asker or slug(name) in PEOPLE:
                continue  # what an assistant said may be the words of one that spoke before the source
            if handoff.target is None or stem(name) != stem(handoff.target):
                self._learn_name(name)
                self._names.put(handoff.identity, (name, _EXACT))
                for each in handoff.thread.open.values():  # all that one reply asked for has one source
                    if each.reply == handoff.reply:
                        each.event = each.event.but(source=name)
                        each.source_sure = _EXACT
            return

    def _accept(self, handoff: _Handoff, heard: _Heard, at: float, *, by_history: bool = False) -> None:
        thread = handoff.thread
        handoff.link = min(handoff.link, heard.link)
        if thread.is_ambiguous:
            handoff.link = _AMBIGUOUS
        if not by_history and handoff.target is not None and handoff.link > _AMBIGUOUS and heard.sure < _EXACT:
            sure = _EXACT if handoff.link == _EXACT else _INFERRED
            self._names.put(heard.identity, (handoff.target, sure))
            heard.name, heard.sure = handoff.target, sure
        self._resolve(handoff, "accepted", at)
        for other in thread.open.values():
            if other.reply == handoff.reply and not handoff.is_ok:
                other.has_sibling = True

    def _lost(self, handoff: _Handoff, at: float | None, silent: Outcome = "dropped") -> None:
        if not handoff.is_known:
            self._close(handoff)
        elif not handoff.is_valid and not handoff.is_ok:
            self._resolve(handoff, "rejected", at)  # frameworks end the run at bad arguments, and say nothing
        elif handoff.has_sibling and not handoff.is_ok:
            self._resolve(handoff, "ignored", at)
        else:
            self._resolve(handoff, silent, at)

    def _resolve(self, handoff: _Handoff, outcome: Outcome, at: float | None) -> None:
        self._close(handoff)
        event = handoff.event
        sure = min(handoff.link, handoff.source_sure)
        target = handoff.target
        if event.source is None or target is None:
            sure = min(sure, _INFERRED)
        event = event.but(
            outcome=outcome,
            target=target,
            confidence=_WORDS[sure],
            duration_ms=None if at is None else max(0.0, at - event.at) * 1000,
        )
        if self._spans is not None:
            self._spans.sightings.on_wire(event)
        self._known.append(event)

    def _close(self, handoff: _Handoff) -> None:
        self._open.pop(handoff.key, None)
        thread = handoff.thread
        thread.open.pop(handoff.key, None)
        if handoff.is_known and not any(each.is_known for each in thread.open.values()):
            waiting = self._waiting.get(thread.first)
            if waiting is not None:
                waiting[:] = [each for each in waiting if each is not thread]
                if not waiting:
                    del self._waiting[thread.first]

    # A reply.

    def say(self, protocol: str, turn: Turn, heard: _Heard, said: Said, exchange: Exchange) -> list[Event]:
        """Remembers what was said, and gives the handoffs that it asks for."""
        thread = heard.thread
        if said.id is not None:
            self._responses.put(said.id, thread)
        if said.text or said.calls:
            self._end_with(thread, _ending(said.text, said.calls))
            thread.last_text, thread.last_identity = said.text, heard.identity
        status = None if exchange.reply is None else exchange.reply.status
        for _, handoff in heard.told.values():
            if handoff is not None:
                handoff.event = handoff.event.but(tokens=said.tokens, status=status)
        calls = dict(enumerate(said.calls, 1))
        if not said.is_over:
            is_broken = exchange.end != "replied" or said.error is not None
            calls = {number: call for number, call in calls.items() if not _is_cut_off(call, is_broken=is_broken)}
        if exchange.end == "refused":  # what had begun when a call was refused is none
            calls = {number: call for number, call in calls.items() if number in heard.told}
        return self.call(protocol, turn, heard, calls, exchange, exchange.ended, said.tokens)

    def call(
        self,
        protocol: str,
        turn: Turn,
        heard: _Heard,
        calls: dict[int, Call],
        exchange: Exchange,
        at: float,
        tokens: int | None = None,
    ) -> list[Event]:
        """The handoffs that these calls of a reply ask for, by their place in it; those that were told stay out."""
        thread = heard.thread
        events = []
        for number, call in calls.items():
            if number in heard.told and heard.told[number][0] == call:
                continue
            handoff = self._handoff(protocol, turn, heard, exchange, call, number, at, tokens)
            heard.told[number] = (call, handoff)
            if handoff is None:
                continue
            if call.id is not None:
                self._calls.put(call.id, thread)
            thread.open[handoff.key] = handoff
            self._open[handoff.key] = handoff
            if handoff.is_known:
                events.append(handoff.event)
                if self._spans is not None:
                    self._spans.sightings.on_wire(handoff.event)
                waiting = self._waiting.get(thread.first)
                if waiting is None:
                    self._waiting.put(thread.first, [thread])
                elif thread not in waiting:
                    waiting.append(thread)
        while len(thread.open) > OPEN_CALLS:
            self._lost(next(iter(thread.open.values())), None)
        while len(self._open) > self._limit:
            self._lost(next(iter(self._open.values())), None)
        return events

    def _end_with(self, thread: _Thread, ending: str) -> None:
        if thread.ending is not None and (old := self._endings.get(thread.ending)) is not None:
            old[:] = [each for each in old if each is not thread]
            if not old:
                del self._endings[thread.ending]
        thread.ending = (thread.first, ending)
        same = self._endings.get(thread.ending)
        if same is None:
            self._endings.put(thread.ending, [thread])
        else:
            same.append(thread)

    def refuse(self, reply: str, at: float) -> None:
        """None of the handoffs that a reply asked for will come to anything: it never reached its agent."""
        for handoff in [each for each in self._open.values() if each.reply == reply]:
            if handoff.is_known:
                self._resolve(handoff, "rejected", at or None)
            else:
                self._close(handoff)

    def _handoff(
        self,
        protocol: str,
        turn: Turn,
        heard: _Heard,
        exchange: Exchange,
        call: Call,
        number: int,
        at: float,
        tokens: int | None,
    ) -> _Handoff | None:
        thread = heard.thread
        arguments, size, reason = _arguments(call.arguments)
        meant = self._meaning(turn, call.name)
        target, is_known = None, meant is not None
        kind: HandoffKind = "delegate"
        if meant is not None:
            kind = meant.kind
            target = self._conventions.target(meant, arguments)
            if target is not None and slug(target) in PEOPLE:
                return None
            if target is not None and not meant.is_named:
                target = self._shown.get(slug(target), target)
        elif slug(call.name) in self._shown:  # an agent as a tool, under its own name
            target, is_known = self._shown[slug(call.name)], True
        key = f"{exchange.id}.{number}"
        source = heard.name
        event = Event(
            kind="handoff",
            id=key,
            at=at,
            workflow=thread.workflow,
            task=call.id,
            source=source,
            target=target,
            channel="call",
            protocol=protocol,
            operation=call.name,
            outcome="asked",
            confidence=_WORDS[min(heard.link, heard.sure if source is not None else _INFERRED)],
            side=exchange.route.side,
            payload=arguments,
            payload_bytes=size,
            tokens=tokens,
            status=None if exchange.reply is None else exchange.reply.status,
            state_version=state(arguments.get("state_version")) if type(arguments) is dict else None,
            uninspected=reason,
            manner=kind,
        )
        trace, span = trace_of(exchange.request.headers.get(b"traceparent", b""))
        if trace is not None:
            event = event.but(trace_id=trace, span_id=span)
        is_valid = reason is None
        if is_known:
            event = self._typed(event, turn.tools.get(call.name), heard)
            schema = self._registry.schema(event.subject, event.version)
            if arguments is not None and schema is not None and not schema.is_valid(arguments):
                is_valid = False
        return _Handoff(
            event=event if size <= KEPT_BYTES else event.but(payload=None),
            key=key,
            reply=exchange.id,
            id=call.id,
            tool=call.name,
            kind=kind,
            is_known=is_known,
            identity=heard.identity,
            source_sure=heard.sure if source is not None else _INFERRED,
            thread=thread,
            arguments=arguments if size <= KEPT_BYTES else None,
            is_valid=is_valid,
            link=_AMBIGUOUS if thread.is_ambiguous else _EXACT,
            target=target,
        )

    def _typed(self, event: Event, tool: Tool | None, heard: _Heard) -> Event:
        """The event with subject, version and digest: the schema of its tool, unless somebody registered another.

        An operator's schema stands for a tool that has none. A tool's own is always a version of the subject, the one
        that is registered where they are equal, so that a form that changes is seen at once.
        """
        registry = self._registry
        subject, version = registry.select(event)
        is_registered = version is not None and not registry.is_learned(subject, version)
        if not is_registered or subject is None:
            source = f"agent-{heard.identity[:8]}" if event.source is None else slug(event.source)
            subject, version = f"{source}.{slug(event.target or 'unknown')}", None
        document = None if tool is None else tool.schema
        if type(document) is dict and not (is_registered and is_untyped(document)):
            try:
                version = registry.learn(subject, document)
            except SchemaError:
                version = None
        digest = None
        if event.payload is not None:
            try:
                digest = digest_of(event.payload)
            except TypeError:
                digest = None
        return event.but(subject=subject, version=version, digest=digest)

    # What is learned of names.

    def _meaning(self, turn: Turn, name: str) -> Meant | None:
        tool = turn.tools.get(name)
        return self._learn_tool(tool if tool is not None else Tool(name))

    def _learn_tool(self, tool: Tool) -> Meant | None:
        key = (tool.name, tool.description)
        try:
            return self._meant[key]
        except KeyError:
            pass
        meant = self._conventions.meant(tool.name, tool.description)
        self._meant.put(key, meant)
        if meant is not None and meant.is_named and meant.target is not None:
            self._learn_name(meant.target)
        if meant is not None and meant.argument is not None and type(tool.schema) is dict:
            properties = tool.schema.get("properties")
            for argument in meant.argument.split(","):
                choices = properties.get(argument) if type(properties) is dict else None
                choices = choices.get("enum") if type(choices) is dict else None
                for choice in choices[:256] if type(choices) is list else ():
                    if (name := text(choice)) is not None:
                        self._learn_name(name)
        return meant

    def _learn_name(self, name: str) -> None:
        short = slug(name)
        if short not in self._shown:
            self._shown.put(short, name)
            if stem(name) not in self._stems:
                self._stems.put(stem(name), name)

    def _learn_names(self, turn: Turn, thread: _Thread) -> None:
        """Names that a history gives to what was said, and to the calls that we saw."""
        for item in turn.items:
            name, said = _named(item)
            if name is None:
                continue
            self._learn_name(name)
            for call in item.calls:
                handoff = next((each for each in thread.open.values() if each.id == call.id), None)
                if handoff is not None and call.id is not None:
                    self._names.put(handoff.identity, (name, _EXACT))
                    if handoff.source_sure < _EXACT or handoff.event.source != name:
                        handoff.event = handoff.event.but(source=name)
                        handoff.source_sure = _EXACT
            if said and said == thread.last_text and thread.last_identity:
                self._names.put(thread.last_identity, (name, _EXACT))


_NOWHERE = _Thread(workflow="")
_CERTAIN = 3
"""How well a call fits a new conversation when nothing else could have begun it so."""


def _identity(turn: Turn) -> str:
    """The same for the turns of one agent: its prompt's first line without what changes, and the names of its tools."""
    line = turn.system.lstrip()[:512].partition("\n")[0]
    parts = [_CHANGING.sub("#", line), *sorted(turn.tools)]
    own = re.search(r'Your internal name is "([^"\n]+)"', turn.system) if "Your internal" in turn.system else None
    if own is not None:
        parts.append(own[1])
    return xxhash.xxh3_64_hexdigest("\x1f".join(parts).encode("utf-8", "surrogatepass"))


_CHANGING = re.compile(r"[0-9][0-9.,:/TZ+-]*")


def _may_be(handoff: _Handoff, heard: _Heard) -> bool:
    """Whether the target of a handoff may be who speaks now."""
    if not handoff.is_known or handoff.identity == heard.identity:
        return False
    if heard.name is None or handoff.target is None:
        return True
    if stem(heard.name) == stem(handoff.target):
        return True
    return heard.sure < _EXACT and not heard.is_led


def _hints(system: str, handoff: _Handoff) -> bool:
    """Whether a prompt's beginning names the target of a handoff."""
    if handoff.target is None:
        return False
    begun = slug(system[:512])
    return f"_{stem(handoff.target)}_" in f"_{begun}_"


def _ending(said: str, calls: Iterable[Call]) -> str:
    if said:
        return xxhash.xxh3_64_hexdigest(said.strip().encode("utf-8", "surrogatepass"))
    parts = []
    for call in calls:
        arguments, _, _ = _arguments(call.arguments)
        try:
            parts.append(call.name + digest_of(arguments))
        except TypeError:
            parts.append(call.name)
    return " ".join(parts)


def _arguments(given: Any) -> tuple[Any, int, str | None]:
    """The arguments of a call as a value, their length in bytes, and why they are none."""
    if given is None or given == "":
        return {}, 0, None
    if type(given) is not str:
        try:
            return given, len(orjson.dumps(given)), None
        except TypeError:
            return given, 0, None
    raw = given.encode("utf-8", "surrogatepass")
    try:
        return orjson.loads(raw), len(raw), None
    except orjson.JSONDecodeError:
        return None, len(raw), "invalid_json"


def _is_cut_off(call: Call, *, is_broken: bool) -> bool:
    """Whether a call was begun and not asked for: the reply ended within its arguments, or broke off before them."""
    if type(call.arguments) is not str:
        return False
    return is_broken if not call.arguments else _arguments(call.arguments)[2] is not None


def _fresh_results(turn: Turn) -> list[Result]:
    """Results that came after the last call, for those that name no call."""
    fresh: list[Result] = []
    for item in reversed(turn.items):
        if item.calls:
            break
        fresh += item.results
    return fresh


def _result_of(handoff: _Handoff, turn: Turn, fresh: list[Result]) -> Result | None:
    if handoff.id is None:
        return next((result for result in fresh if result.name == handoff.tool), None)
    for item in reversed(turn.items):
        for result in item.results:
            if result.id == handoff.id:
                return result
    return None


def _named(item: Item) -> tuple[str | None, str]:
    """Who a history says has spoken, and the words."""
    if item.role != "assistant":
        return None, item.text
    if item.name is None and item.text.startswith("<name>") and (match := INLINE_NAME.match(item.text)):
        return text(match[1].strip()), match[2]
    return item.name, item.text


def _spoken_since(turn: Turn, waiting: list[_Handoff]) -> dict[str, set[str]]:
    """For each open handoff, who has spoken in the history after its call."""
    spoken: dict[str, set[str]] = {}
    by_id = {handoff.id: handoff.key for handoff in waiting if handoff.id is not None}
    for item in turn.items:
        name, _ = _named(item)
        if name is not None:
            for names in spoken.values():
                names.add(stem(name))
        for call in item.calls:
            if call.id in by_id:
                spoken[by_id[call.id]] = set()
    return spoken


def _nests(handoff: _Handoff, heard: _Heard, asked: str) -> int:
    """How well a conversation's first words fit the arguments of an open call: 0 not at all, 3 beyond chance."""
    arguments = handoff.arguments
    if heard.name is not None and heard.sure == _EXACT:
        wanted = handoff.target if handoff.is_known else handoff.tool
        if wanted is not None and stem(wanted) == stem(heard.name):
            return _CERTAIN
        if handoff.is_known and wanted is not None:
            return 0
    if type(arguments) is not dict or not arguments:
        return 0
    if asked.startswith("{"):
        try:
            if orjson.loads(asked) == arguments:
                return _CERTAIN
        except orjson.JSONDecodeError:
            pass
    given = [value.strip() for value in arguments.values() if type(value) is str and value.strip()]
    if any(value == asked for value in given):
        return 2
    if handoff.is_known:
        given = [value for value in given if value != handoff.target]
        return 2 if given and all(value in asked for value in given) else 0
    return 1 if any(len(value) >= TELLING and value in asked for value in given) else 0


def _carries(handoff: _Handoff, heard: _Heard, asked: str) -> bool:
    """Whether a conversation's first words hold all that a transfer said beside its target, and that is no chance."""
    if handoff.kind != "transfer" or type(handoff.arguments) is not dict:
        return False
    given = [each.strip() for each in handoff.arguments.values() if type(each) is str and each != handoff.target]
    is_target = heard.sure == _EXACT and heard.name is not None and stem(heard.name) == stem(handoff.target or "")
    return sum(map(len, given)) >= (1 if is_target else TELLING // 2) and all(each in asked for each in given)


def _same_words(one: str, other: str) -> bool:
    one, other = one.strip(), other.strip()
    return one == other or (len(one) >= TELLING and one in other) or (len(other) >= TELLING and other in one)


def _agent_of(tool: str) -> str:
    """The agent's name in the name of a tool that is one: `ask_billing` is billing."""
    return TOOL_VERBS.sub("", slug(tool)) or tool
