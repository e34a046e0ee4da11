"""What is registered while a sidecar runs is what its next payload is judged by."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from edge.registries import Caller, running, until

RULES = Path(__file__).parents[2] / "rules" / "detection" / "schema.yaml"


class Upstream(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_a_registered_schema_is_in_force_at_once(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """With its references; and a finding names the subject and the version."""
    server = HTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    route = free_port()
    sections = {
        "agent": "reviewer",
        "routes": f"[{{listen: '127.0.0.1:{route}', upstream: 'http://127.0.0.1:{server.server_port}'}}]",
    }
    with running(tmp_path, "sqlite: r.db", free_port(), free_port(), rules=str(RULES), **sections) as found:
        call = Caller(route)

        def violations() -> int:
            call("POST", "/", {"a": {"b": 1}}, Content_Type="application/json", Handrail_Schema="order@1")
            found.admin("GET", "/metrics")
            text = found.admin("GET", "/metrics").raw.decode()
            return sum('rule="schema.violation"' in line for line in text.splitlines())

        assert violations() == 0
        found.call.register("part", {"properties": {"b": {"type": "string"}}})
        order = {"properties": {"a": {"$ref": "part.json"}}}
        reply = found.call.register("order", order, references=[{"name": "part.json", "subject": "part", "version": 1}])
        assert reply.status == 200
        until(lambda: violations() > 0)
        assert json.loads(found.call("GET", "/subjects/order/versions/1").body["schema"]) == order
    server.shutdown()
    server.server_close()
