"""An agent as a process: takes a task over HTTP, hands it on to the next agent, and answers when that has answered.

`waiting_agent.py PORT NAME NEXT_NAME NEXT_URL ROUNDS`: one request at a time where ROUNDS is 0, so that it waits for
ever in a ring; else it answers while it waits, and ends the ring in the request that has passed it ROUNDS times.
"""

import http.server
import json
import sys
import time
import urllib.request


def main() -> None:
    port, name, following, url, rounds = int(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])

    class Agent(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            task = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            passed = [*task["context"]["decisions_made"], name]
            if not rounds or passed.count(name) <= rounds:
                handed = task | {"source_agent": name, "target_agent": following, "task_id": f"{name}-{len(passed)}"}
                handed["context"] = task["context"] | {"decisions_made": passed}
                headers = {
                    "Content-Type": "application/json",
                    "handrail-workflow": self.headers["handrail-workflow"],
                }
                request = urllib.request.Request(url, json.dumps(handed).encode(), headers)
                try:
                    urllib.request.urlopen(request, timeout=20).read()
                except OSError:
                    pass
            else:
                time.sleep(0.2)  # long enough for the ring to be seen closed
            body = json.dumps({"by": passed}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    kind = http.server.ThreadingHTTPServer if rounds else http.server.HTTPServer
    server = kind(("127.0.0.1", port), Agent)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
