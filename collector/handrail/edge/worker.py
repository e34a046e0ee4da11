"""Schemas from strangers are compiled and compared in a process of their own, which may be slow, or die, alone.

Orders are msgpack and answers JSON behind a length of four bytes, over standard input and output. A native call cannot
be interrupted, so a worker that is past its time is killed, and the next order starts another.
"""

import asyncio
import contextlib
import json
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from handrail.schema import compatibility
from handrail.schema.difference import told
from handrail.schema.registry import Documents, Schema, SchemaError, read_document
from handrail.schema.store import Level

MEMORY_BYTES = 1_073_741_824
START_SECONDS = 20.0
GRACE_SECONDS = 0.5
"""What an order that watches its own time may be late."""


class Text(msgspec.Struct, frozen=True):
    """A schema with the documents that it refers to: `files` by name, and what each name in each file stands for."""

    file: str
    files: dict[str, bytes]
    references: dict[str, dict[str, str]] | None = None


class Compile(msgspec.Struct, frozen=True, tag="compile"):
    schema: Text


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """Whether `new` may follow `versions`, oldest first."""

    versions: list[Text]
    new: Text
    level: str
    seconds: float
    policy: str = "semantic"
    accept_undecided: bool = False


class Differ(msgspec.Struct, frozen=True, tag="differ"):
    """What differs between two schemas."""

    old: Text
    new: Text


class Answer(msgspec.Struct, frozen=True):
    problem: str | None = None
    """Why the schema cannot be enforced."""
    verdict: compatibility.Verdict | None = None
    changes: list[dict[str, Any]] | None = None
    """What differs, as `difference.told` has it."""


Order = Compile | Compare | Differ


class Exhausted(Exception):
    """The order took more time or memory than it may."""


class Worker:
    """One process that takes one order at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def compile(self, schema: Text, seconds: float) -> str | None:
        """Why a schema cannot be enforced, None where it can. Raises Exhausted."""
        return (await self._ask(Compile(schema), seconds)).problem

    async def compare(
        self,
        versions: Sequence[Text],
        new: Text,
        level: Level,
        seconds: float,
        *,
        policy: str = "semantic",
        accept_undecided: bool = False,
    ) -> compatibility.Verdict:
        """Raises Exhausted, and SchemaError where one of them cannot be compared."""
        order = Compare(list(versions), new, level, seconds, policy, accept_undecided)
        answer = await self._ask(order, seconds + GRACE_SECONDS)
        if answer.verdict is None:
            raise SchemaError(answer.problem or "cannot be compared")
        return answer.verdict

    async def differ(self, old: Text, new: Text, seconds: float) -> list[dict[str, Any]]:
        """What differs, as `difference.told` has it. Raises Exhausted, and SchemaError where one is no schema."""
        answer = await self._ask(Differ(old, new), seconds)
        if answer.changes is None:
            raise SchemaError(answer.problem or "cannot be compared")
        return answer.changes

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, order: Order, seconds: float) -> Answer:
        async with self._turn:
            process = await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            raw = msgspec.msgpack.encode(order)
            try:
                async with asyncio.timeout(seconds):
                    process.stdin.write(len(raw).to_bytes(4, "big") + raw)
                    await process.stdin.drain()
                    return msgspec.convert(json.loads(await _frame(process.stdout)), Answer)
            except TimeoutError:
                await self.stop()
                raise Exhausted(f"took more than {seconds:g} s") from None
            except (asyncio.IncompleteReadError, OSError):
                await self.stop()
                raise Exhausted(f"took more memory than {MEMORY_BYTES} bytes, or brought its process down") from None
            except BaseException:
                await self.stop()  # its answer would be taken for the next order's
                raise

    async def _started(self) -> asyncio.subprocess.Process:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "handrail.edge.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=16 * 1_048_576,
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(START_SECONDS):
                    await _frame(process.stdout)
            except (TimeoutError, asyncio.IncompleteReadError):
                await self.stop()
                raise Exhausted("the process that compiles schemas did not start") from None
        return process


def vetted(
    files: Mapping[str, bytes], references: dict[str, dict[str, str]] | None = None, *, seconds: float = 1.0
) -> dict[str, str]:
    """What is wrong with those files, as `Registry.load` takes them, that might compile slowly; found in a worker.

    Only a counted repetition (`a{900}`) makes a pattern larger than its text; without one a file within the limits is
    compiled in milliseconds, and is not looked at here. Blocks; not for the event loop.
    """
    costly = [file for file, raw in sorted(files.items()) if b'"pattern' in raw and _COUNTED.search(raw)]
    if not costly:
        return {}
    with ThreadPoolExecutor(1) as thread:  # the caller's thread may run an event loop of its own
        return thread.submit(asyncio.run, _vet(costly, dict(files), references, seconds)).result()


_COUNTED = re.compile(rb"\{[0-9]")


async def _vet(
    costly: list[str], files: dict[str, bytes], references: dict[str, dict[str, str]] | None, seconds: float
) -> dict[str, str]:
    worker, problems = Worker(), {}
    try:
        for file in costly:
            try:
                problem = await worker.compile(Text(file, files, references), seconds)
            except Exhausted as error:
                problem = f"cannot be compiled: it {error}"
            if problem is not None:
                problems[file] = problem
    finally:
        await worker.stop()
    return problems


async def _frame(stream: asyncio.StreamReader) -> bytes:
    return await stream.readexactly(int.from_bytes(await stream.readexactly(4), "big"))


# The process itself


def answer(order: Order) -> Answer:
    """What an order comes to."""
    try:
        if isinstance(order, Compile):
            text = order.schema
            subject, _, version = text.file.removesuffix(".json").rpartition("/")
            Schema(subject, version, text.files[text.file], Documents(text.files, text.references))
            return Answer()
        if isinstance(order, Differ):
            found = compatibility.changes(bundled(order.old), bundled(order.new))
            return Answer(changes=told(found))
        deadline = time.monotonic() + order.seconds
        verdict = compatibility.check_all(
            [bundled(text) for text in order.versions],
            bundled(order.new),
            order.level,
            policy=order.policy,
            accept_undecided=order.accept_undecided,
            out_of_time=lambda: time.monotonic() > deadline,
        )
        return Answer(verdict=verdict)
    except SchemaError as error:
        return Answer(problem=str(error))


def bundled(text: Text) -> Any:
    """A schema as one document. Raises SchemaError."""
    return Documents(text.files, text.references).bundled(text.file, read_document(text.files[text.file]))


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    source, sink = sys.stdin.buffer, sys.stdout.buffer

    def send(raw: bytes) -> None:
        sink.write(len(raw).to_bytes(4, "big") + raw)
        sink.flush()

    send(b"")
    while len(head := source.read(4)) == 4:
        order = msgspec.msgpack.decode(source.read(int.from_bytes(head, "big")), type=Order)
        # msgpack has no integers beyond 64 bits and no lone surrogates; what a schema or a witness holds may be either.
        send(json.dumps(msgspec.to_builtins(answer(order))).encode())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve()
