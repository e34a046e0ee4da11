"""mitmproxy as a validating proxy: the same job as the other contestants, in an addon.

Usage: mitmdump -s mitm_addon.py --set count_port=N
"""

from job import Job
from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader


class Validate:
    def __init__(self) -> None:
        self.job = Job()

    def load(self, loader: Loader) -> None:
        loader.add_option("count_port", int, 0, "Where the counts are told.")

    async def running(self) -> None:
        self.server = await self.job.serve(ctx.options.count_port)

    def request(self, flow: http.HTTPFlow) -> None:
        self.job.check(flow.request.raw_content or b"")


addons = [Validate()]
