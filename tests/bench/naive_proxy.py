"""The proxy one would write first: an aiohttp server, an aiohttp client, and a validator between them.

Usage: naive_proxy.py PORT UPSTREAM_PORT COUNT_PORT
"""

import sys

import aiohttp
from aiohttp import web
from job import Job

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "host"}


def main() -> None:
    port, upstream, count_port = (int(argument) for argument in sys.argv[1:4])
    job = Job()
    client: aiohttp.ClientSession

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        job.check(body)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = f"http://127.0.0.1:{upstream}{request.rel_url}"
        async with client.request(request.method, url, headers=headers, data=body) as reply:
            answer = await reply.read()
            kept = {name: value for name, value in reply.headers.items() if name.lower() not in HOP}
            return web.Response(status=reply.status, headers=kept, body=answer)

    async def application() -> web.Application:
        nonlocal client
        client = aiohttp.ClientSession(auto_decompress=False)
        await job.serve(count_port)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", forward)
        return app

    web.run_app(application(), host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main()
