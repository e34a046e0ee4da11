"""The OpenTelemetry SDK's own exporters into `handrail run`, and a file of spans beside a recording of the wire."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult


def conversation(exporter: SpanExporter) -> None:
    """Two agents, one of whom hands over to the other by a tool."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("agents")

    def said(operation: str, **more: str) -> dict[str, str]:
        return {"gen_ai.operation.name": operation, "gen_ai.conversation.id": "talk-1"} | {
            key.replace("__", "."): value for key, value in more.items()
        }

    with tracer.start_as_current_span("invocation"):
        with (
            tracer.start_as_current_span(
                "invoke_agent triage", attributes=said("invoke_agent", gen_ai__agent__name="triage")
            ),
            tracer.start_as_current_span(
                "execute_tool transfer_to_billing",
                attributes=said(
                    "execute_tool", gen_ai__tool__name="transfer_to_billing", gen_ai__tool__call__id="call_1"
                ),
            ),
        ):
            pass
        with tracer.start_as_current_span(
            "invoke_agent billing", attributes=said("invoke_agent", gen_ai__agent__name="billing")
        ):
            pass
    provider.shutdown()


@pytest.fixture
def ports(
    tmp_path: Path, handrail_command: Sequence[str], free_port: Callable[[], int]
) -> Iterator[tuple[int, int, int]]:
    """HTTP, gRPC and admin port of a sidecar that holds a trace for a moment only."""
    http, grpc, admin = free_port(), free_port(), free_port()
    (tmp_path / "handrail.yaml").write_text(
        f"otlp: {{http: '127.0.0.1:{http}', grpc: '127.0.0.1:{grpc}', hold_seconds: 0.2}}\n"
        f"admin: {{listen: '127.0.0.1:{admin}'}}\n"
    )
    command = [*handrail_command, "run", "-c", str(tmp_path / "handrail.yaml")]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        until(lambda: "ready" in get(admin, "/readyz"))
        yield http, grpc, admin
    finally:
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
        assert process.returncode == 0, told


def get(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            text: str = reply.read().decode()
            return text
    except OSError:
        return ""


def until(is_so: Callable[[], object]) -> None:
    over = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < over
        time.sleep(0.05)


@pytest.mark.parametrize("transport", ["http", "http gzip", "grpc", "grpc gzip"])
def test_the_sdks_exporters_are_understood(transport: str, ports: tuple[int, int, int]) -> None:
    """Every span is taken, and the handoff is counted once."""
    http, grpc, admin = ports
    if transport.startswith("http"):
        compression = Compression.Gzip if "gzip" in transport else Compression.NoCompression
        exporter: Any = HttpExporter(f"http://127.0.0.1:{http}/v1/traces", compression=compression, timeout=5)
    else:
        import grpc as library

        how = library.Compression.Gzip if "gzip" in transport else library.Compression.NoCompression
        exporter = GrpcExporter(f"http://127.0.0.1:{grpc}", insecure=True, compression=how, timeout=5)
    conversation(exporter)
    counted = (
        'handrail_handoffs_total{source="triage",target="billing",channel="call",protocol="otlp",outcome="accepted"} 1'
    )
    until(lambda: counted in get(admin, "/metrics"))
    until(lambda: 'handrail_otlp_requests_total{signal="traces",result="OK"} 4' in get(admin, "/metrics"))


class ToFile(SpanExporter):
    """Spans as lines of OTLP JSON, as the Collector's file exporter writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def export(self, spans: Any) -> SpanExportResult:
        from google.protobuf.json_format import MessageToDict
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        request = MessageToDict(encode_spans(spans))
        for of_resource in request["resourceSpans"]:
            for of_scope in of_resource["scopeSpans"]:
                for span in of_scope["spans"]:
                    for key in ("traceId", "spanId", "parentSpanId"):  # OTLP has hex where protobuf's JSON has base64
                        if key in span:
                            import base64

                            span[key] = base64.b64decode(span[key]).hex()
        with self.path.open("a") as out:
            out.write(json.dumps(request) + "\n")
        return SpanExportResult.SUCCESS


def replayed(command: Sequence[str], *files: Path) -> list[dict[str, Any]]:
    run = [*command, "replay", *map(str, files), "--output", "json"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ))
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_file_of_spans_is_replayed(tmp_path: Path, handrail_command: Sequence[str]) -> None:
    """Alone it tells the handoff; beside a recording of the wire, in either order, nothing more."""
    spans = tmp_path / "spans.jsonl"
    conversation(ToFile(spans))
    (found,) = [line for line in replayed(handrail_command, spans) if line["type"] == "event"]
    assert (found["source"], found["target"], found["task"]) == ("triage", "billing", "call_1")
    assert (found["protocol"], found["workflow"], found["outcome"]) == ("otlp", "talk-1", "accepted")
    wire = tmp_path / "wire.har"
    wire.write_text(json.dumps(recording()))
    for files in ((wire, spans), (spans, wire)):
        lines = replayed(handrail_command, *files)
        (found,) = [line for line in lines if line["type"] == "event" and line["kind"] == "handoff"]
        assert (found["protocol"], found["task"]) == ("openai", "call_1")


def recording() -> dict[str, Any]:
    """A model is asked once, and calls the tool that hands over."""
    tool = {"type": "function", "function": {"name": "transfer_to_billing", "parameters": {"type": "object"}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "tools": [tool]}
    call = {"id": "call_1", "type": "function", "function": {"name": "transfer_to_billing", "arguments": "{}"}}
    reply = {"id": "r", "choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": [call]}}]}
    entry = {
        "startedDateTime": "2026-01-02T03:04:05.000Z",
        "time": 20,
        "request": {
            "method": "POST",
            "url": "http://model.test/v1/chat/completions",
            "httpVersion": "HTTP/1.1",
            "headers": [{"name": "Content-Type", "value": "application/json"}],
            "postData": {"mimeType": "application/json", "text": json.dumps(body)},
        },
        "response": {
            "status": 200,
            "statusText": "OK",
            "httpVersion": "HTTP/1.1",
            "headers": [{"name": "Content-Type", "value": "application/json"}],
            "content": {"mimeType": "application/json", "text": json.dumps(reply)},
        },
        "timings": {"send": 0, "wait": 20, "receive": 0},
    }
    return {"log": {"version": "1.2", "creator": {"name": "t", "version": "1"}, "entries": [entry]}}
