"""The admin port: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever runs the process."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic

from aiohttp import web

from handrail.config import AdminConfig
from handrail.edge.metrics import CONTENT_TYPE, OPENMETRICS_TYPE, Metrics

CACHE_SECONDS = 1.0


class Admin:
    """An aiohttp application on a port of its own. Add routes to `app` before `start`."""

    def __init__(self, config: AdminConfig, metrics: Metrics, *, ready: Callable[[], Mapping[str, str]]) -> None:
        """`ready` says what is not ready yet, component to reason; empty when all is."""
        self._config = config
        self._metrics = metrics
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self._rendering = asyncio.Lock()
        self._rendered: dict[bool, tuple[float, bytes]] = {}
        self.app = web.Application(middlewares=[_explained])
        self.app.router.add_get("/", self._index)
        self.app.router.add_get("/metrics", self._show_metrics)
        self.app.router.add_get("/healthz", self._show_health)
        self.app.router.add_get("/readyz", self._show_readiness)

    async def start(self) -> tuple[str, int]:
        """Listens; returns the address, the port chosen where it was 0. Raises OSError where it cannot."""
        host, _, port = self._config.listen.rpartition(":")
        self._runner = web.AppRunner(self.app, access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]") or None, int(port)).start()
        except BaseException:
            await self.stop()
            raise
        address = self._runner.addresses[0]
        return str(address[0]), int(address[1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def metrics_text(self, openmetrics: bool = False) -> bytes:
        """Rendered in a thread, by one scrape at a time, and the same for all within a second."""
        async with self._rendering:
            at, text = self._rendered.get(openmetrics, (float("-inf"), b""))
            if monotonic() - at >= CACHE_SECONDS:
                render = self._metrics.render_openmetrics if openmetrics else self._metrics.render
                text = await asyncio.to_thread(render)
                self._rendered[openmetrics] = monotonic(), text
            return text

    async def _show_metrics(self, request: web.Request) -> web.Response:
        """OpenMetrics where it is asked for, as Prometheus does: only there can a bucket name a trace."""
        openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
        kind = OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE
        return web.Response(body=await self.metrics_text(openmetrics), headers={"Content-Type": kind, "Vary": "Accept"})

    async def _show_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _show_readiness(self, request: web.Request) -> web.Response:
        waiting = self._ready()
        self._metrics.gauge("handrail_ready", 0 if waiting else 1)
        if waiting:
            lines = "".join(f"{component}: {reason}\n" for component, reason in waiting.items())
            return web.Response(status=503, text="not ready\n" + lines)
        return web.Response(text="ready\n")

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(text="Handrail admin port\n\n" + _paths(request.app))


def _paths(app: web.Application) -> str:
    found = {
        (resource.canonical, route.method)
        for resource in app.router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    return "".join(f"{method} {path}\n" for path, method in sorted(found))


@web.middleware
async def _explained(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Says what there is, where somebody asked for what there is not."""
    try:
        return await handler(request)
    except web.HTTPNotFound as missing:
        if missing.text and not missing.text.startswith("404:"):
            raise
        return web.Response(status=404, text=f"nothing at {request.path!r}; there is\n\n{_paths(request.app)}")
    except web.HTTPMethodNotAllowed as wrong:
        allowed = ", ".join(sorted(wrong.allowed_methods))
        return web.Response(
            status=405, headers={"Allow": allowed}, text=f"{request.path} takes {allowed}, not {request.method}\n"
        )
