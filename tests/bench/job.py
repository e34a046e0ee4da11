"""What every validating contestant does with a request body: parse it, validate it, count it.

Also what all of them are fed: canonical envelopes of exactly 4,096 bytes and their schema. Needs orjson and
jsonschema-rs alone, because mitmproxy runs it in an environment of its own.
"""

import asyncio
import random
from typing import Any

import jsonschema_rs
import orjson

BODY_BYTES = 4096
SUBJECT = "bench.handoff"
TASK_PLACE = "@TASK@"
"""Stands in the template where each request has its own task_id of the same length in `TASK_BYTES`."""
TASK_BYTES = 24

REPLY = b'{"status":"accepted","task":"bench","queue":0}'

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["task_id", "source_agent", "target_agent", "status", "output", "context", "metadata"],
    "additionalProperties": False,
    "properties": {
        "task_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "source_agent": {"type": "string", "pattern": "^[a-z][a-z0-9_-]*$"},
        "target_agent": {"type": "string", "pattern": "^[a-z][a-z0-9_-]*$"},
        "status": {"enum": ["completed", "partial", "failed"]},
        "output": {
            "type": "object",
            "required": ["summary", "artifacts", "confidence"],
            "properties": {
                "summary": {"type": "string", "minLength": 1},
                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                "artifacts": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "type", "content"],
                        "properties": {
                            "name": {"type": "string"},
                            "type": {"type": "string"},
                            "content": {"type": "string"},
                        },
                    },
                },
            },
        },
        "context": {
            "type": "object",
            "required": ["original_goal", "constraints", "decisions_made"],
            "properties": {
                "original_goal": {"type": "string"},
                "constraints": {"type": "array", "items": {"type": "string"}},
                "decisions_made": {"type": "array", "items": {"type": "string"}},
            },
        },
        "metadata": {
            "type": "object",
            "required": ["started_at", "completed_at", "token_count", "model"],
            "properties": {
                "started_at": {"type": "string"},
                "completed_at": {"type": "string"},
                "token_count": {"type": "integer", "minimum": 0},
                "model": {"type": "string"},
            },
        },
    },
}


SPOKEN = (
    "demand supply region market report price import export border storage transport harvest energy grid turbine solar "
    "contract renewal account customer margin revenue quarter forecast budget policy subsidy tariff agency ministry "
    "research survey sample estimate trend growth decline shift risk exposure hedge currency interest inflation wage "
    "labour plant factory supplier vendor logistics port railway road bridge water forest mine steel cement glass "
    "paper chip battery engine software platform service cloud network security audit standard licence patent court "
    "city village household income saving credit loan bond share dividend merger owner board council vote election "
    "northern southern eastern western large small early late high low steady sharp local global public private grew "
    "fell rose held moved closed opened covered reached missed passed kept gave took found showed said expects plans "
    "and or but while because although for from with without over under between after before during against within"
)
WORDS = SPOKEN.split()
WORKFLOWS = 256
"""So many workflows say something of their own, one after another; the eight handoffs of each pass the same text on."""


def _prose(chance: random.Random, size: int) -> str:
    """Sentences of eight to sixteen words, exactly so many characters."""
    said = ""
    while len(said) < size:
        said += " ".join(chance.choices(WORDS, k=chance.randint(8, 16))).capitalize() + ". "
    return said[:size]


def template(number: int = 0) -> str:
    """The request body of a workflow, with TASK_PLACE where the task_id goes."""
    chance = random.Random(number)
    envelope: dict[str, Any] = {
        "task_id": TASK_PLACE,
        "source_agent": "researcher",
        "target_agent": "writer",
        "status": "completed",
        "output": {
            "summary": "",
            "artifacts": [
                {"name": f"table-{place}.csv", "type": "text/csv", "content": _prose(chance, 445)} for place in range(5)
            ],
            "confidence": 0.87,
        },
        "context": {
            "original_goal": f"Write a report on {chance.choice(WORDS)} and {chance.choice(WORDS)} for the board.",
            "constraints": ["no forecasts past the year", "sources named", "two pages at most"],
            "decisions_made": ["imports counted at border price", "regions as in the last report"],
        },
        "metadata": {
            "started_at": "2026-01-01T10:00:00Z",
            "completed_at": "2026-01-01T10:00:07Z",
            "token_count": 1834,
            "model": "none",
        },
    }
    room = BODY_BYTES - (len(orjson.dumps(envelope)) - len(TASK_PLACE) + TASK_BYTES)
    envelope["output"]["summary"] = _prose(chance, room)
    return orjson.dumps(envelope).decode()


def templates() -> list[str]:
    """The bodies of all workflows, each of BODY_BYTES once it has its task_id."""
    return [template(number) for number in range(WORKFLOWS)]


def body(task: str) -> bytes:
    """One valid request body; `task` is cut or padded to TASK_BYTES."""
    return template().replace(TASK_PLACE, task[:TASK_BYTES].ljust(TASK_BYTES, "0")).encode()


def invalid_body(task: str) -> bytes:
    """A body of the same protocol that breaks the schema: the confidence is a word."""
    return body(task).replace(b'"confidence":0.87', b'"confidence":"high"')


class Job:
    """Validates bodies and keeps the count; `serve` tells the count to whoever connects."""

    def __init__(self) -> None:
        self._is_valid = jsonschema_rs.validator_for(SCHEMA).is_valid
        self.valid = 0
        self.invalid = 0

    def check(self, data: bytes) -> Any:
        """The parsed body; None where it is not JSON. Counted either way."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            self.invalid += 1
            return None
        if self._is_valid(value):
            self.valid += 1
        else:
            self.invalid += 1
        return value

    async def serve(self, port: int) -> asyncio.Server:
        """Every connection is told the counts as one JSON object and closed."""

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(orjson.dumps({"valid": self.valid, "invalid": self.invalid}))
            await writer.drain()
            writer.close()

        return await asyncio.start_server(tell, "127.0.0.1", port)
