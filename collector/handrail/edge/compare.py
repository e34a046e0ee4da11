"""Schema files become verdicts at the shell: `handrail schema check` and `handrail schema diff`.

A schema to compare may be hostile, and the code that compares it is native: it can be slow, eat memory, or bring its
process down. So each pair is compared in a process of its own kind, which is killed when its time is up; the next pair
gets another. A pair that was not decided in time is answered like any other, as `undecided`.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import msgspec

from handrail.edge.files import Unreadable
from handrail.schema import compatibility
from handrail.schema.compatibility import MODES, Reason, Verdict
from handrail.schema.difference import told
from handrail.schema.registry import SchemaError

SECONDS = 5.0
"""How long one pair may take. The search for a witness ends by itself after two fifths of it, in time of the processor,
so that a busy machine changes no answer."""
SEARCH_SHARE = 0.4
MAX_LINE = 4 * 1_048_576
"""Bytes of a line of a batch, and of a schema file."""
MEMORY_BYTES = 2_147_483_648


class Settings(msgspec.Struct, frozen=True):
    """What the command line said about every pair; a line of a batch may say otherwise of mode and draft."""

    mode: str = "BACKWARD"
    draft: str | None = None
    policy: str = "semantic"
    accept_undecided: bool = False
    seconds: float = SECONDS


def check(old: str, new: str, settings: Settings, *, output: str = "text") -> int:
    """Compares two schema files and prints the verdict. 0 compatible, 1 not. Raises Unreadable."""
    case = {"old": _read(old), "new": _read(new), "mode": settings.mode}
    answer = next(_answers([json.dumps(case).encode()], settings, 1))
    if answer["type"] == "error":
        raise Unreadable([answer["error"].replace("old: ", f"{old}: ", 1).replace("new: ", f"{new}: ", 1)])
    if output == "json":
        del answer["id"]
        _print(answer)
    else:
        sys.stdout.write(_told(answer, settings))
    return 0 if answer["compatible"] else 1


def batch(file: str, settings: Settings) -> int:
    """Compares the pair on each line of a file and prints the verdicts as JSON lines, in order. Raises Unreadable.

    A line that cannot be compared is answered with an error. 0 where all are compatible, 1 where one is not, 2 where a
    line could not be compared.
    """
    status = 0
    for answer in _answers(_lines(file), settings, os.cpu_count() or 1):
        _print(answer)
        if answer["type"] == "error":
            status = 2
        elif not answer["compatible"]:
            status = max(status, 1)
    return status


def diff(old: str, new: str, *, draft: str | None = None, output: str = "text") -> int:
    """Prints what was added, removed and changed between two schema files. Raises Unreadable."""
    before, after = _read(old), _read(new)
    try:
        found = compatibility.changes(before, after, draft=draft)
    except SchemaError as error:
        raise Unreadable([str(error).replace("old: ", f"{old}: ", 1).replace("new: ", f"{new}: ", 1)]) from None
    except ValueError as error:
        raise Unreadable([f"command line: {error}"]) from None
    if output == "json":
        for line in told(found):
            _print(line)
        return 0

    from rich.table import Table
    from rich.text import Text

    from handrail.edge.replay import console

    if not found:
        console().print("no difference")
        return 0
    styles = {"added": "green", "removed": "red", "changed": "yellow"}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "path", "keyword", "old", "new"):
        table.add_column(name, no_wrap=name in ("", "path", "keyword"), overflow="fold")
    for each in found:
        values = (_short(each.old) if each.kind != "added" else "", _short(each.new) if each.kind != "removed" else "")
        table.add_row(
            Text(each.kind, styles[each.kind]), *(Text(cell) for cell in (each.path or "/", each.keyword, *values))
        )
    console().print(table)
    *_, counts = told(found)
    console().print(", ".join(f"{counts[kind]} {kind}" for kind in styles if counts[kind]))
    return 0


def _told(answer: dict[str, Any], settings: Settings) -> str:
    """A verdict for a person."""
    how = {
        "proved": "proved",
        "witness": "a payload shows it",
        "undecided": "not decided; taken for incompatible",
    }[answer["decided"]]
    if answer["compatible"]:
        how = "proved" if answer["decided"] == "proved" else "not decided; taken for compatible, as you asked"
        if settings.mode == "NONE":
            how = "nothing was asked"
        return f"compatible, {settings.mode} ({how})\n"
    lines = [f"not compatible, {settings.mode} ({how})"]
    for reason in answer["reasons"]:
        change = f"{_short(reason['old'])} became {_short(reason['new'])}"
        if reason["old"] is None:
            change = f"new: {_short(reason['new'])}"
        elif reason["new"] is None:
            change = f"was {_short(reason['old'])}"
        elif reason["old"] == reason["new"]:
            change = _short(reason["old"])
        lines.append(f"  {reason['path'] or '/'}  {reason['keyword']}  {change}")
        lines.append(f"      {reason['message']}")
    if answer["decided"] == "witness":
        admits, refuses = ("old", "new") if answer["direction"] == "backward" else ("new", "old")
        lines.append(f"  the {admits} version admits this payload, and the {refuses} version refuses it:")
        lines.append(f"      {json.dumps(answer['witness'], ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


# Input


def _read(file: str) -> Any:
    """A schema file as a JSON value; - is standard input."""
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(MAX_LINE + 1)
        else:
            with open(file, "rb") as source:
                raw = source.read(MAX_LINE + 1)
    except OSError as error:
        raise Unreadable([f"{file}: {error.strerror or error}"]) from None
    if len(raw) > MAX_LINE:
        raise Unreadable([f"{file}: is longer than {MAX_LINE} bytes"])
    try:
        return _json(raw)
    except ValueError as error:
        raise Unreadable([f"{file}: is not JSON: {error}"]) from None


def _lines(file: str) -> Iterator[bytes]:
    """The lines of a file, cut where they are too long to be taken."""
    try:
        with contextlib.ExitStack() as opened:
            source = sys.stdin.buffer if file == "-" else opened.enter_context(open(file, "rb"))
            while line := source.readline(MAX_LINE + 1):
                rest = line
                while len(rest) == MAX_LINE + 1 and not rest.endswith(b"\n"):
                    rest = source.readline(MAX_LINE + 1)
                yield line
    except OSError as error:
        raise Unreadable([f"{file}: {error.strerror or error}"]) from None


def _json(raw: bytes) -> Any:
    """JSON with its integers as they are: orjson rounds what is longer than 64 bits. Raises ValueError."""
    try:
        return json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is out of range")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object repeats a key")
    return found


# Processes


class _Worker:
    """One process that compares one pair at a time."""

    def __init__(self, settings: Settings) -> None:
        # A fork is ready at once. This process has one thread and no loop, so there is nothing that a fork could break.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        ours, theirs = context.Pipe()
        self.pipe: Connection = ours
        self._process: BaseProcess = context.Process(target=_serve, args=(theirs, self.pipe, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.deadline = 0.0

    def ask(self, number: int, line: bytes, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.pipe.send((number, line))

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, other_end: Connection, settings: Settings) -> None:
    other_end.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            number, line = pipe.recv()
            pipe.send(_answer(number, line, settings))


def _answers(lines: Iterable[bytes], settings: Settings, processes: int) -> Iterator[dict[str, Any]]:
    """An answer to each line that is not blank, in their order."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    idle: list[_Worker] = []
    busy: dict[Any, tuple[_Worker, int, bytes]] = {}
    done: dict[int, dict[str, Any]] = {}
    order: deque[int] = deque()
    try:
        while True:
            while len(busy) < processes and len(order) < 64 * processes and (item := next(numbered, None)):
                number, line = item
                order.append(number)
                worker = idle.pop() if idle else _Worker(settings)
                try:
                    worker.ask(number, line, settings.seconds)
                except OSError:  # it died while nobody asked anything of it
                    worker.stop()
                    worker = _Worker(settings)
                    worker.ask(number, line, settings.seconds)
                busy[worker.pipe] = worker, number, line
            if not order:
                return
            now = time.monotonic()
            ready = wait(list(busy), max(0.0, min((w.deadline for w, _, _ in busy.values()), default=now) - now))
            for pipe in ready or [pipe for pipe, (w, _, _) in busy.items() if w.deadline <= time.monotonic()]:
                worker, number, line = busy.pop(pipe)
                why = f"it took more than {settings.seconds:g} s"
                try:
                    if not ready:
                        raise EOFError
                    done[number] = worker.pipe.recv()
                    idle.append(worker)
                except (EOFError, OSError):
                    if ready:
                        why = "it took too much memory, or brought its process down"
                    worker.stop()
                    done[number] = _given_up(number, line, why, settings)
            while order and order[0] in done:
                yield done.pop(order.popleft())
    finally:
        for worker in (*idle, *(worker for worker, _, _ in busy.values())):
            worker.stop()


def _given_up(number: int, line: bytes, why: str, settings: Settings) -> dict[str, Any]:
    try:
        case = _json(line)
        key, mode = case.get("id"), case.get("mode") or settings.mode
    except (ValueError, AttributeError):
        return _error(number, None, why)
    compatible = mode == "NONE" or settings.accept_undecided
    reason = Reason("", "schema", None, None, f"It could not be decided whether every payload can be read: {why}.")
    return _line(key, str(mode), Verdict(compatible, "undecided", () if compatible else (reason,)))


def _answer(number: int, line: bytes, settings: Settings) -> dict[str, Any]:
    key = None
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"is longer than {MAX_LINE} bytes")
        try:
            case = _json(line)
        except ValueError as error:
            raise ValueError(f"is not JSON: {error}") from None
        if not isinstance(case, dict):
            raise ValueError('expected an object {"id", "old", "new", "mode", "draft"}')
        key = case.get("id")
        if missing := [name for name in ("old", "new") if name not in case]:
            raise ValueError(f"{' and '.join(missing)}: missing; each line needs old and new")
        mode = case.get("mode")
        mode = settings.mode if mode is None else mode
        if mode not in MODES:
            raise ValueError(f"mode: {mode!r} is not known; known are {', '.join(MODES)}")
        policy = case.get("policy") or settings.policy
        start = time.process_time()
        verdict = compatibility.check(
            case["old"],
            case["new"],
            mode,
            draft=settings.draft if case.get("draft") is None else case["draft"],
            policy=policy,
            accept_undecided=settings.accept_undecided,
            out_of_time=lambda: time.process_time() - start > SEARCH_SHARE * settings.seconds,
        )
        return _line(key, mode, verdict)
    except (ValueError, TypeError) as error:
        return _error(number, key, str(error))
    except (RecursionError, MemoryError) as error:
        return _error(number, key, f"cannot be compared: {type(error).__name__}")


def _line(key: Any, mode: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "type": "check",
        "id": key,
        "compatible": verdict.compatible,
        "decided": verdict.decided,
        "mode": mode,
        "direction": verdict.direction,
        "reasons": [msgspec.structs.asdict(reason) for reason in verdict.reasons],
        "witness": verdict.witness,
    }


def _error(number: int, key: Any, message: str) -> dict[str, Any]:
    return {"type": "error", "id": key, "line": number, "error": message}
