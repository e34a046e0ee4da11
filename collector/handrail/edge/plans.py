"""`POST /v1/plans`: declared graphs over HTTP become `plan` events, and answers that say what they are as DAGs."""

from collections.abc import Callable
from typing import Any

import msgspec
import orjson
from aiohttp import web

from handrail.event import Decision, Event, rfc3339
from handrail.graph import declared, report
from handrail.graph.declared import PlanError

MAX_BODY_BYTES = 8_388_608


class PlanApi:
    """`POST /v1/plans`: a declared graph is checked, answered, and from then on what its workflow is held to.

    The body is any form that `handrail graph check` reads. `?workflow=` or the header `handrail-workflow` says whose
    plan it is; without either it is that of every workflow that has none of its own.
    """

    def __init__(self, observe: Callable[[Event], Decision], now: Callable[[], float]) -> None:
        """`observe` takes the `plan` event to the pipeline and the sinks."""
        self._observe, self._now, self._count = observe, now, 0

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/plans", self._post)

    async def _post(self, request: web.Request) -> web.Response:
        raw = bytearray()
        async for chunk in request.content.iter_any():
            raw += chunk
            if len(raw) > MAX_BODY_BYTES:
                return _problem(413, f"a plan may be {MAX_BODY_BYTES} bytes long; split it")
        workflow = request.query.get("workflow") or request.headers.get("handrail-workflow")
        try:
            text = raw.decode("utf-8-sig")
            payload = _json_or_text(text)
            if workflow is None and isinstance(payload, dict) and isinstance(payload.get("workflow"), str):
                workflow = payload["workflow"]
            plan = declared.of(payload)
        except UnicodeDecodeError:
            return _problem(400, "is not UTF-8 text")
        except PlanError as error:
            return _problem(400, str(error))
        found = report.check(plan)
        at = self._now()
        self._count += 1
        event = Event(
            kind="plan",
            id=f"plan-{at:.6f}-{self._count}",
            at=at,
            workflow=workflow,
            operation="POST /v1/plans",
            outcome="completed",
            payload=payload,
            payload_bytes=len(raw),
        )
        decision = self._observe(event)
        answer = report.as_json(found) | {
            "id": event.id,
            "at": rfc3339(at),
            "workflow": workflow,
            "findings": [
                {"rule": each.rule, "severity": each.severity, "message": each.message} for each in decision.findings
            ],
        }
        return web.Response(body=orjson.dumps(answer), content_type="application/json")


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _problem(status: int, detail: str) -> web.Response:
    body = orjson.dumps({"type": "about:blank", "title": "not a plan", "status": status, "detail": detail})
    return web.Response(status=status, body=body, content_type="application/problem+json")
