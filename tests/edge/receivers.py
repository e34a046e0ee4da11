"""Real OTLP receivers for tests: spans over HTTP and over gRPC, kept as the protocol's own messages."""

import http.server
import threading
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Kept:
    """The spans that came, their resources' attributes, and the headers that each batch came with."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.changed = threading.Condition()

    def take(self, request: service.ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        with self.changed:
            self.headers.append(headers)
            for resource_spans in request.resource_spans:
                self.resources.append(attributes(resource_spans.resource))
                for scope in resource_spans.scope_spans:
                    self.spans += scope.spans
            self.changed.notify_all()

    def wait(self, count: int, seconds: float = 10.0) -> list[Span]:
        """The spans, once there are `count`."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.spans) >= count, seconds), [s.name for s in self.spans]
            return list(self.spans)


def attributes(of: Any) -> dict[str, Any]:
    """Attributes of a span, an event, a link or a resource as plain values."""
    return {each.key: _plain(each.value) for each in of.attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class HttpReceiver(Kept):
    """OTLP over HTTP: `POST /v1/traces`."""

    def __init__(self) -> None:
        super().__init__()
        kept = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                found = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
                if found:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    kept.take(service.ExportTraceServiceRequest.FromString(body), headers)
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class GrpcReceiver(Kept):
    """OTLP over gRPC: `TraceService/Export`."""

    def __init__(self) -> None:
        super().__init__()
        kept = self

        class Service(rpc.TraceServiceServicer):  # type: ignore[misc]
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  the protocol's own name
                kept.take(request, {each.key: each.value for each in context.invocation_metadata()})
                return service.ExportTraceServiceResponse()

        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        rpc.add_TraceServiceServicer_to_server(Service(), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.endpoint = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self._server.stop(None).wait()
