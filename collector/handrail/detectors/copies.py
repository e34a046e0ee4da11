"""Outputs written to stores and announced on buses, to what of them is there twice.

The part of `output.duplicate` that compares facts of several connections, and so holds each until it cannot come late.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple

from handrail.detectors.sighting import ACKNOWLEDGED, Hold, ended, is_output, reader_of, same_content, says_complete
from handrail.detectors.similarity import Phrases, phrases_of, text_of
from handrail.event import Event, digest_of

_KINDS: Final = frozenset({"write", "publish", "deliver"})
_TASKS: Final = 32
"""Tasks remembered for one content, and texts remembered for one workflow."""

_MARGIN: Final = 0.35
"""How far likeness by samples may be from likeness by MinHashes: seven standard deviations of the first."""
_CODES: Final = 2_048
"""Phrases of a text of which its MinHash may be made later; 4 bytes each."""
_MIN_BYTES: Final = 32
"""Content shorter than this (`ok`, `{}`) is the same in many tasks without being copied."""

Reason = Literal["same_task", "same_content", "similar"]
Sketch = Callable[[Any, str | None], Any]
"""A payload and its digest to what it is compared by, None for one without words."""


class Copy(NamedTuple):
    """An output that repeats another."""

    first: Event
    second: Event
    reason: Reason
    similarity: float | None = None


class _Fact(NamedTuple):
    event: Event
    counts: bool
    """Whether it is an output or its announcement, and not a read or a sign of progress."""
    sketch: Any = None
    content: str | None = None
    """Digest of what is the same under another task, where it is copied."""


class _Place:
    """Where an output of a task lies, or on what subject it was announced."""

    __slots__ = ("first", "last", "read_by", "sketch")

    def __init__(self, first: Event, last: Event, sketch: Any = None) -> None:
        self.first, self.last, self.sketch = first, last, sketch
        self.read_by: set[str | None] = set()
        """Who read the key since the last write."""


_Name = tuple[str | None, ...]


class Copies:
    """Finds what is written or published twice.

    A task's output at one place is there twice where it is written again by the same agent, or in a further attempt.
    It is an update and not a second output where the version went on, or where the writer had read what it replaced.
    Two agents of one attempt race, which is another failure. A second announcement is a duplicate unless the output was
    written again between the two. Deliveries are the bus's: one counts only where the publisher is out of sight, and
    only with a sequence number of its own; a message that is delivered again has the one that it had.
    """

    def __init__(self, within: float, lateness: float, keys: int, similarity: float | None) -> None:
        self._within, self._keys, self._similarity = within, keys, similarity
        self._hold: Hold[_Fact] = Hold(lateness, keys)
        self._places: OrderedDict[_Name, _Place] = OrderedDict()
        self._contents: OrderedDict[_Name, dict[str, Event]] = OrderedDict()
        self._texts: OrderedDict[str | None, list[tuple[Event, Any]]] = OrderedDict()
        self._sketch = None if similarity is None else _sketcher()

    def add(self, event: Event) -> list[Copy]:
        """Take in an event; what is past the bound of what may be held is judged at once."""
        kind, sketch = event.kind, None
        if event.outcome not in ACKNOWLEDGED or event.task is None:
            return []
        if event.workflow is None and event.source is None and event.store is None:
            return []  # it could be anybody's
        when = ended(event)  # what took time is known only when it is over, and is held from then on
        if kind == "read":
            counts = False
        elif kind == "write":
            counts = event.outcome != "accepted" and is_output(event)
        elif kind in _KINDS:
            counts = says_complete(event)
        elif self._sketch is not None:
            counts = True
        else:
            return []
        if counts and self._sketch is not None and event.payload is not None:
            sketch = self._sketch(event.payload, event.digest)
        content = _content_of(event) if counts else None
        if event.payload is not None or event.reply is not None:
            event = event.bare()
        self._hold.add(when, event.id, _Fact(event, counts, sketch, content), kind == "write")
        return self._seen(self._hold.excess())

    def advance(self, now: float) -> list[Copy]:
        return self._seen(self._hold.due(now))

    def close(self) -> list[Copy]:
        return self._seen(self._hold.rest())

    def _seen(self, held: Iterable[tuple[float, _Fact]]) -> list[Copy]:
        found = []
        for _, fact in held:
            copy = self._see(fact)
            if copy is not None:
                found.append(copy)
        return found

    def _see(self, fact: _Fact) -> Copy | None:
        event = fact.event
        if event.kind == "read":
            place = self._places.get(_write_place(event))
            if place is not None and event.at >= ended(place.last):
                place.read_by.add(reader_of(event))
            return None
        if not fact.counts:
            return None
        copy = self._again(event, fact.sketch) if event.kind in _KINDS else None
        elsewhere = self._elsewhere(event, fact.content)
        similar = self._similar(event, fact.sketch) if fact.sketch is not None else None
        return copy or elsewhere or similar

    def _again(self, event: Event, sketch: Any) -> Copy | None:
        """The same task's output, at the same place."""
        name = _write_place(event) if event.kind == "write" else _bus_place(event)
        if event.kind == "deliver" and _bus_place(event, "publish") in self._places:
            return None
        place = self._places.get(name)
        if place is None or abs(ended(event) - ended(place.last)) > self._within:
            self._places[name] = _Place(event, event, sketch)
            self._places.move_to_end(name)
            if len(self._places) > self._keys:
                self._places.popitem(last=False)
            return None
        self._places.move_to_end(name)
        last, readers, known = place.last, place.read_by, place.sketch
        is_copy = self._is_update(event, last, readers) is False
        if event.kind == "deliver" and not is_copy:
            return None
        place.last, place.read_by = event, set()
        if not is_copy:
            place.first, place.sketch = event, sketch
            return None
        return Copy(place.first, event, "same_task", _similarity(known, sketch))

    def _is_update(self, event: Event, last: Event, readers: set[str | None]) -> bool:
        """Whether it is something else than the same output once more."""
        same = same_content(last.digest, event.digest)
        one, two = last.state_version, event.state_version
        is_retry = last.attempt is not None and event.attempt is not None and last.attempt != event.attempt
        is_same_agent = last.source is None or event.source is None or last.source == event.source
        if event.kind == "deliver":
            is_again = one is None or two is None or one == two or (event.attempt or 1) > 1
            return is_again or not is_same_agent or self._written_between(last, event)
        if event.kind == "publish":
            return self._written_between(last, event) or not (is_same_agent or is_retry or same)
        if same:
            return False
        if one is not None and two is not None and one != two:
            return True
        if is_same_agent:
            return event.source is not None and event.source in readers
        return not is_retry

    def _written_between(self, last: Event, event: Event) -> bool:
        """Whether the task's output was written between two announcements."""
        name = ("wrote", event.workflow, event.task)
        place = self._places.get(name)
        return place is not None and last.at < ended(place.last) <= event.at

    def _elsewhere(self, event: Event, content: str | None) -> Copy | None:
        """The same content under another task of the workflow."""
        if event.kind == "write":
            self._places[("wrote", event.workflow, event.task)] = _Place(event, event)
            self._places.move_to_end(("wrote", event.workflow, event.task))
            if len(self._places) > self._keys:
                self._places.popitem(last=False)
        if content is None:
            return None
        name = (event.workflow, event.kind, content)
        tasks = self._contents.get(name)
        task = event.task or ""
        if tasks is None:
            self._contents[name] = {task: event}
            if len(self._contents) > self._keys:
                self._contents.popitem(last=False)
            return None
        self._contents.move_to_end(name)
        if task in tasks:
            return None
        first = next(iter(tasks.values()))
        tasks[task] = event
        if len(tasks) > _TASKS:
            del tasks[list(tasks)[1]]
        if ended(event) - ended(first) > self._within:
            self._contents[name] = {task: event}
            return None
        return Copy(first, event, "same_content", 1.0 if self._sketch is not None else None)

    def _similar(self, event: Event, sketch: Any) -> Copy | None:
        """Nearly the same text in the workflow: the most similar one, under another task or by another agent."""
        texts = self._texts.get(event.workflow)
        if texts is None:
            texts = self._texts[event.workflow] = []
            if len(self._texts) > self._keys:
                self._texts.popitem(last=False)
        else:
            self._texts.move_to_end(event.workflow)
        best: Copy | None = None
        least, sample = self._similarity or 1.0, sketch.sample()
        for first, known in texts:
            if first.kind != event.kind or (first.task == event.task and first.source == event.source):
                continue
            if first.digest is not None and first.digest == event.digest and event.kind == "handoff":
                continue  # handed on unchanged: forwarding, and no second output
            if not known.may_reach(sketch, sample, least):
                continue
            likeness = known.jaccard(sketch)
            if likeness >= least and (best is None or likeness > (best.similarity or 0.0)):
                best = Copy(first, event, "similar", round(likeness, 4))
        texts.append((event, sketch))
        if len(texts) > _TASKS:
            del texts[0]
        return best

    def __len__(self) -> int:
        return max(len(self._places), len(self._contents), len(self._texts))


def _content_of(event: Event) -> str | None:
    """What an output says, as a digest: of an envelope its `output` alone, because its task and its agents differ."""
    if event.kind not in ("write", "publish"):
        return None
    payload = event.payload
    output = payload.get("output") if type(payload) is dict else None
    if type(output) is dict and output:
        try:
            return digest_of(output) if len(text_of(output)) >= _MIN_BYTES else None
        except TypeError:
            return event.digest
    is_short = event.payload_bytes is not None and event.payload_bytes < _MIN_BYTES
    return None if is_short else event.digest


def _write_place(event: Event) -> _Name:
    return "write", event.workflow, event.task, event.store, event.key


def _bus_place(event: Event, kind: str | None = None) -> _Name:
    name = (kind or event.kind, event.workflow, event.task, event.store, event.key)
    return name if name[0] != "deliver" else (*name, event.target)


class _Text:
    """What a text is compared by: a sample of its phrases, and its MinHash once one is needed.

    A MinHash costs more than all else that is done with a text, and most texts are like no other: of two it is made
    only where their samples do not rule out that it could tell of as much likeness as is asked for.
    """

    __slots__ = ("_codes", "_empty", "_made", "_mask", "_sample")

    def __init__(self, text: Phrases, empty: Any) -> None:
        self._mask, self._sample = text.mask, array("I", text.sample)
        self._empty: Any = empty
        self._codes: Any = None
        self._made: Any = None
        if len(text.codes) <= _CODES:
            self._codes = text.codes
        else:
            self._made = self._make(text.codes)

    def _make(self, codes: Any) -> Any:
        made = self._empty.copy()
        made.update_batch(codes)
        return made

    def _minhash(self) -> Any:
        if self._made is None:
            self._made = self._make(self._codes)
            self._codes = None
        return self._made

    def jaccard(self, other: "_Text") -> float:
        """How much of the phrases of both is in both, by their MinHashes."""
        return float(self._minhash().jaccard(other._minhash()))

    def sample(self) -> frozenset[int]:
        return frozenset(self._sample)

    def may_reach(self, other: "_Text", sample: frozenset[int], least: float) -> bool:
        """Whether `jaccard` may be so much; `sample` is the other's."""
        floor = least - _MARGIN
        mask = self._mask | other._mask
        own = self._sample if self._mask == mask else [code for code in self._sample if not code & mask]
        if other._mask != mask:
            sample = frozenset([code for code in sample if not code & mask])
        common = len(sample.intersection(own))
        return common >= floor * (len(own) + len(sample) - common)


def _sketcher() -> Sketch:
    """MinHash over shingles of words, by datasketch (the extra `similarity`). Raises ValueError where it is missing."""
    try:
        from datasketch.minhash import MinHash  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(f"`similarity` needs handrail[similarity] to be installed: {error}") from None

    # Its permutations are the same for every text, and making them takes longer than reading one.
    empty = MinHash(num_perm=128, seed=1, hashfunc=int)

    def sketch(payload: Any, digest: str | None) -> _Text | None:
        text = phrases_of(payload, digest)
        return _Text(text, empty) if text.codes else None

    return sketch


def _similarity(one: Any, other: Any) -> float | None:
    return None if one is None or other is None else round(float(one.jaccard(other)), 4)
