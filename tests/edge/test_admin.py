"""Laws of the admin port."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from handrail.config import AdminConfig
from handrail.edge.admin import Admin
from handrail.edge.metrics import Metrics

Get = Callable[[str], Awaitable[tuple[int, str]]]


def serve(act: Callable[[Get, Admin], Awaitable[None]], ready: dict[str, str] | None = None) -> None:
    """Runs an admin port around `act`."""

    async def run() -> None:
        admin = Admin(AdminConfig(listen="127.0.0.1:0"), Metrics(), ready=lambda: ready or {})
        host, port = await admin.start()
        try:
            async with aiohttp.ClientSession() as session:

                async def get(path: str) -> tuple[int, str]:
                    method, _, path = path.rpartition(" ")
                    async with session.request(method or "GET", f"http://{host}:{port}{path}") as reply:
                        return reply.status, await reply.text()

                await act(get, admin)
        finally:
            await admin.stop()

    asyncio.run(run())


def test_metrics_are_the_text_that_prometheus_reads() -> None:
    """With every family of ours and of the process."""

    async def act(get: Get, _: Admin) -> None:
        status, text = await get("/metrics")
        assert status == 200
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {"handrail_handoffs", "handrail_build_info", "process_resident_memory_bytes"} <= families

    serve(act)


def test_it_is_alive_and_ready_or_says_why_not() -> None:
    """503 with each reason; alive all the same."""
    waiting = {"listener": "127.0.0.1:1: in use"}

    async def act(get: Get, _: Admin) -> None:
        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (503, "not ready\nlistener: 127.0.0.1:1: in use\n")
        waiting.clear()
        assert await get("/readyz") == (200, "ready\n")

    serve(act, waiting)


def test_what_is_not_there_is_answered_with_what_is() -> None:
    """A person who guesses a path finds the right one."""

    async def act(get: Get, _: Admin) -> None:
        status, text = await get("/metric")
        assert status == 404
        assert "GET /metrics\n" in text
        status, text = await get("DELETE /metrics")
        assert status == 405
        assert "GET" in text
        assert (await get("/"))[0] == 200

    serve(act)


def test_a_page_is_rendered_off_the_loop_once_for_all_who_ask() -> None:
    """Ten scrapers within a second cost one rendering."""

    async def act(get: Get, admin: Admin) -> None:
        threads: list[str] = []

        def seen() -> float:
            threads.append(threading.current_thread().name)
            return 1.0

        admin._metrics.watch("handrail_connections", seen)
        pages = await asyncio.gather(*(get("/metrics") for _ in range(10)))
        assert len({text for _, text in pages}) == 1
        assert len(threads) == 1
        assert threads[0] != threading.main_thread().name

    serve(act)


def test_routes_can_be_added_before_the_start() -> None:
    """The registry's API lives on the same port."""

    async def run() -> None:
        admin = Admin(AdminConfig(listen="127.0.0.1:0"), Metrics(), ready=dict)

        async def hello(_: web.Request) -> web.Response:
            return web.Response(text="hello")

        admin.app.router.add_get("/v1/hello", hello)
        host, port = await admin.start()
        async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/v1/hello") as reply:
            assert await reply.text() == "hello"
        await admin.stop()

    asyncio.run(run())
