"""A model that follows a script, behind OpenAI's API: frameworks run against it without a key, and always alike.

    python examples/scripted_model/model.py SCRIPT -- COMMAND …    runs COMMAND with OPENAI_BASE_URL set to it

SCRIPT is a JSON list of lines. A request is answered by the first line that fits it:

    {"system": "text that the system prompt holds",
     "seen": "text that the request holds anywhere", "unseen": "text that it does not hold",
     "say": "what it answers", "call": {"tool name": {its arguments}}}

It speaks chat completions and responses, plain and streamed. What it answered goes to --log FILE, a JSON line each.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

USAGE = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}

Line = dict[str, Any]


class ScriptedModel:
    """The lines of a script behind an HTTP application."""

    def __init__(self, script: Sequence[Line], log: Path | None = None) -> None:
        self.script = script
        self._log = log
        self._numbers = itertools.count(1)
        self.app = web.Application(client_max_size=64 * 1024 * 1024)
        self.app.router.add_post("/v1/chat/completions", self._chat)
        self.app.router.add_post("/v1/responses", self._responses)

    def _line(self, body: Any, system: str) -> Line:
        """The first line that fits a request. Raises HTTPBadRequest where none does."""
        sent = json.dumps(body.get("messages") or body.get("input"), ensure_ascii=False)
        for line in self.script:
            fits = line.get("system", "") in system and line.get("seen", "") in sent
            if fits and ("unseen" not in line or line["unseen"] not in sent):
                if self._log is not None:
                    with self._log.open("a") as log:
                        log.write(json.dumps(line) + "\n")
                return line
        raise web.HTTPBadRequest(text=json.dumps({"error": {"message": "no line of the script fits"}}))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        system = "\n".join(
            _words(message["content"]) for message in body["messages"] if message["role"] in ("system", "developer")
        )
        line = self._line(body, system)
        number = next(self._numbers)
        calls = [
            {"id": f"call_{number}_{at}", "type": "function", "function": {"name": name, "arguments": _text(arguments)}}
            for at, (name, arguments) in enumerate(line.get("call", {}).items())
        ]
        message = {"role": "assistant", "content": line.get("say"), **({"tool_calls": calls} if calls else {})}
        finish = "tool_calls" if calls else "stop"
        head = {"id": f"chatcmpl-{number}", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})
        deltas: list[Any] = [{"role": "assistant", "content": "" if line.get("say") else None}]
        deltas += [{"content": part} for part in _parts(line.get("say", ""))]
        for at, call in enumerate(calls):
            function = call["function"]
            deltas.append({"tool_calls": [{"index": at, **call, "function": {**function, "arguments": ""}}]})
            for part in _parts(function["arguments"]):
                deltas.append({"tool_calls": [{"index": at, "function": {"arguments": part}}]})
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": USAGE})
        head["object"] = "chat.completion.chunk"
        return await _stream(request, [f"data: {json.dumps({**head, **chunk})}" for chunk in chunks] + ["data: [DONE]"])

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        given = body["input"] if isinstance(body["input"], list) else []
        system = body.get("instructions") or "\n".join(
            _words(item["content"]) for item in given if item.get("role") in ("system", "developer")
        )
        line = self._line(body, system)
        number = next(self._numbers)
        output: list[dict[str, Any]] = []
        if "say" in line:
            part = {"type": "output_text", "text": line["say"], "annotations": []}
            message = {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed"}
            output.append({**message, "content": [part]})
        for at, (name, arguments) in enumerate(line.get("call", {}).items()):
            call = {"type": "function_call", "id": f"fc_{number}_{at}", "call_id": f"call_{number}_{at}"}
            output.append({**call, "name": name, "arguments": _text(arguments), "status": "completed"})
        response = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": body["model"],
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": body.get("tools", []),
            "usage": {
                "input_tokens": 50,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": 20,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 70,
            },
        }
        if not body.get("stream"):
            return web.json_response(response)
        started = {**response, "status": "in_progress", "output": [], "usage": None}
        events: list[dict[str, Any]] = [{"type": "response.created", "response": started}]
        for at, item in enumerate(output):
            events += _item_events(at, item)
        events.append({"type": "response.completed", "response": response})
        return await _stream(
            request,
            [
                f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': at})}"
                for at, event in enumerate(events)
            ],
        )


def _item_events(at: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An item of a response as its stream tells it."""
    where = {"output_index": at, "item_id": item["id"]}
    opened = {**item, "status": "in_progress", **({"content": []} if "content" in item else {"arguments": ""})}
    yield {"type": "response.output_item.added", "output_index": at, "item": opened}
    if item["type"] == "message":
        [part] = item["content"]
        inside = {**where, "content_index": 0}
        yield {"type": "response.content_part.added", **inside, "part": {**part, "text": ""}}
        for text in _parts(part["text"]):
            yield {"type": "response.output_text.delta", **inside, "delta": text, "logprobs": []}
        yield {"type": "response.output_text.done", **inside, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **inside, "part": part}
    else:
        for text in _parts(item["arguments"]):
            yield {"type": "response.function_call_arguments.delta", **where, "delta": text}
        done = {"arguments": item["arguments"], "name": item["name"]}
        yield {"type": "response.function_call_arguments.done", **where, **done}
    yield {"type": "response.output_item.done", "output_index": at, "item": item}


async def _stream(request: web.Request, events: Sequence[str]) -> web.StreamResponse:
    reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await reply.prepare(request)
    try:
        for event in events:
            await reply.write(f"{event}\n\n".encode())
        await reply.write_eof()
    except ConnectionResetError:
        pass  # clients hang up when they have read what they need
    return reply


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content or ())


def _parts(text: str) -> Iterator[str]:
    for at in range(0, len(text), 12):
        yield text[at : at + 12]


async def serve(model: ScriptedModel, port: int, command: Sequence[str]) -> int:
    """Until the command ends, whose exit status it returns; without one, for ever."""
    runner = web.AppRunner(model.app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    if not command:
        print(base, flush=True)
        await asyncio.Event().wait()
    environ = {**os.environ, "OPENAI_BASE_URL": base}
    environ.setdefault("OPENAI_API_KEY", "none")
    process = await asyncio.create_subprocess_exec(*command, env=environ)
    status = await process.wait()
    await runner.cleanup()
    return status if status >= 0 else 128 - status


def main() -> int:
    given, command = sys.argv[1:], []
    if "--" in given:
        at = given.index("--")
        given, command = given[:at], given[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args(given)
    return asyncio.run(serve(ScriptedModel(json.loads(Path(args.script).read_text()), args.log), args.port, command))


if __name__ == "__main__":
    sys.exit(main())
