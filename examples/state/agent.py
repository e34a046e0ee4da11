"""What the three agents share: a store with a primary and a replica, streams that wake the next agent, and orders.

An agent subclasses `Agent` and does one piece of work in `step`. An output lies under
`agents:{workflow}:{task}:output`; an entry in a stream says that it is complete, and the other side wakes and reads.
Writes, events and what must be current go to the primary; what is read often goes to the replica.

Nothing here knows of Handrail. The agent is told where the two servers are, and those addresses may be a sidecar's; it
tells the server its name (CLIENT SETNAME), as any client should.

With `--supervised` an agent reports on standard output, takes orders on standard input, both as JSON lines, and ends
when its standard input does: whoever started it cannot leave it behind, however that one ends.
"""

import argparse
import json
import os
import signal
import sys
import threading
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

Envelope = dict[str, Any]

GROUP_EXISTS = "BUSYGROUP"


class Agent:
    """One agent. `step` is called again and again until it is over."""

    name: str
    description: str

    def __init__(self, options: argparse.Namespace) -> None:
        self.supervised: bool = options.supervised
        self.waits: bool = options.wait
        self.primary = self._client(options.primary)
        self.replica = self._client(options.replica)
        self.over = threading.Event()
        self.is_dying = False
        """It was told to die in the middle of its next piece of work."""

    def _client(self, url: str) -> redis.Redis:
        return redis.Redis.from_url(
            url, client_name=self.name, decode_responses=True, socket_timeout=10, retry=Retry(NoBackoff(), 0)
        )

    def begin(self) -> None:
        """Called once, before the first step."""

    def step(self) -> None:
        """One piece of work, or a short wait for one."""
        raise NotImplementedError

    # The store.

    def envelope(self, target: str, workflow: str, task: str, output: Any, **more: Any) -> Envelope:
        return {
            "workflow_id": workflow,
            "task_id": task,
            "source_agent": self.name,
            "target_agent": target,
            "status": "completed",
            "output": output,
            **more,
        }

    def write(self, key: str, envelope: Envelope) -> None:
        self.report("write", target=envelope["target_agent"])
        self.primary.set(key, json.dumps(envelope))

    def read(self, server: redis.Redis, key: str, source: str) -> Envelope | None:
        self.report("read", source=source)
        value = server.get(key)
        return None if value is None else json.loads(str(value))

    # The streams.

    def announce(self, stream: str, envelope: Envelope) -> None:
        """Say that the envelope's task is complete; the output itself stays in the store."""
        self.report("publish", target=envelope["target_agent"])
        said = {name: value for name, value in envelope.items() if name != "output"}
        self.primary.xadd(stream, {"task": json.dumps(said)}, maxlen=1000)

    def subscribe(self, stream: str) -> None:
        try:
            self.primary.xgroup_create(stream, self.name, id="0", mkstream=True)
        except redis.ResponseError as error:
            if GROUP_EXISTS not in str(error):
                raise

    def take(self, stream: str, source: str, *, pending: bool = False) -> tuple[str, Envelope] | None:
        """The next entry, after a short wait; with `pending` one that was taken before and never acknowledged."""
        place = "0" if pending else ">"
        found: Any = self.primary.xreadgroup(self.name, self.name, {stream: place}, count=1, block=200)
        for _, entries in found or ():
            for number, fields in entries:
                self.report("deliver", source=source)
                return number, json.loads(fields["task"])
        return None

    # Life.

    def report(self, exchange: str | None = None, **what: Any) -> None:
        """One JSON line on standard output; every operation only for a supervisor, who counts them."""
        if exchange is not None:
            what = {"exchange": exchange, "source": self.name, "target": self.name} | what
        if self.supervised or exchange is None:
            os.write(1, json.dumps({"agent": self.name} | what).encode() + b"\n")

    def die(self) -> None:
        """As the kernel's out-of-memory killer would end it: nothing is tidied up."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _obey(self) -> None:
        for line in sys.stdin:
            self.is_dying = bool(json.loads(line).get("die", self.is_dying))
        self.over.set()

    def run(self) -> None:
        if self.waits:
            self.report(waiting=True)
            if not sys.stdin.readline():
                return
        if self.supervised:
            threading.Thread(target=self._obey, daemon=True).start()
        self.begin()
        self.report(ready=True)
        while not self.over.is_set():
            self.step()


def main(agent: type[Agent]) -> None:
    """The command line of every agent."""
    parser = argparse.ArgumentParser(description=agent.description)
    parser.add_argument("--primary", required=True, metavar="URL", help="redis://host:port of the primary")
    parser.add_argument("--replica", required=True, metavar="URL", help="redis://host:port of the replica")
    parser.add_argument("--supervised", action="store_true", help="JSON lines on standard input and output")
    parser.add_argument("--wait", action="store_true", help="with --supervised: begin when a line comes in")
    parser.add_argument("--version", default="1.0", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        agent(options).run()
    except KeyboardInterrupt:
        pass
