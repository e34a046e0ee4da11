"""OTLP in its JSON encoding becomes spans and log records; the protobuf encoding becomes the same at the edge.

Field names and encodings as opentelemetry-proto 1.x gives them: camelCase, ids in hex, 64-bit numbers as text or as
numbers. What is wrong with one record costs that record, and is counted; unknown fields are ignored.
"""

import base64
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

__all__ = ["Log", "Read", "Span", "logs_of", "spans_of"]

ATTRIBUTES = 512
"""Attributes of one record that are read."""
DEPTH = 32
"""Levels of a value that are read."""
LONG_NS = 4_102_444_800_000_000_000
"""The year 2100: what claims to be later has no time that means anything."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One span. Times are seconds since the epoch."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    name: str = ""
    start: float = 0.0
    end: float = 0.0
    attributes: Mapping[str, Any] = {}
    resource: Mapping[str, Any] = {}
    scope: str = ""
    error: str | None = None
    """What its status says where that is an error; empty text where it says no more."""
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """One log record."""

    at: float = 0.0
    name: str = ""
    """`eventName`, or the attribute `event.name`."""
    body: Any = None
    attributes: Mapping[str, Any] = {}
    resource: Mapping[str, Any] = {}
    trace_id: str | None = None
    span_id: str | None = None


class Read(msgspec.Struct):
    """What a request held: its records, and how many of them could not be read and why the first could not."""

    spans: list[Span] = []
    logs: list[Log] = []
    rejected: int = 0
    reason: str = ""

    def reject(self, reason: str, count: int = 1) -> None:
        """Records that cannot be read."""
        self.rejected += count
        self.reason = self.reason or reason


_HEX = re.compile(r"[0-9a-fA-F]+\Z")


def id_of(value: object, length: int) -> str | None:
    """An id in hex to lower case; None where it is none or all zero."""
    if type(value) is not str or len(value) != length or not _HEX.match(value) or not value.strip("0"):
        return None
    return value.lower()


def seconds_of(value: object) -> float | None:
    """Nanoseconds since the epoch, as a number or as text, to seconds; None where it is no time."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value / 1e9 if type(value) is int and 0 <= value < LONG_NS else None


def spans_of(value: object) -> Read:
    """The JSON value of an ExportTraceServiceRequest, or of a line of a file, to its spans."""
    read = Read()
    for resource, scope, item in _items(value, "resourceSpans", ("scopeSpans", "instrumentationLibrarySpans"), "spans"):
        trace, span = id_of(item.get("traceId"), 32), id_of(item.get("spanId"), 16)
        start, end = seconds_of(item.get("startTimeUnixNano", 0)), seconds_of(item.get("endTimeUnixNano", 0))
        if trace is None or span is None:
            read.reject("a span has no valid traceId and spanId")
        elif start is None or end is None:
            read.reject("a span has no valid times")
        else:
            status = item.get("status")
            status = status if type(status) is dict else {}
            is_error = status.get("code") in (2, "2", "STATUS_CODE_ERROR", "ERROR")
            events = item.get("events")
            read.spans.append(
                Span(
                    trace_id=trace,
                    span_id=span,
                    parent_id=id_of(item.get("parentSpanId"), 16),
                    name=_text(item.get("name")),
                    start=start,
                    end=max(start, end),
                    attributes=attributes_of(item.get("attributes")),
                    resource=resource,
                    scope=scope,
                    error=_text(status.get("message")) if is_error else None,
                    events=tuple(
                        (_text(each.get("name")), attributes_of(each.get("attributes")))
                        for each in (events[:64] if type(events) is list else ())
                        if type(each) is dict
                    ),
                )
            )
    return read


def logs_of(value: object) -> Read:
    """The JSON value of an ExportLogsServiceRequest, or of a line of a file, to its log records."""
    read = Read()
    for resource, _, item in _items(value, "resourceLogs", ("scopeLogs", "instrumentationLibraryLogs"), "logRecords"):
        at = seconds_of(item.get("timeUnixNano", 0))
        at = at or seconds_of(item.get("observedTimeUnixNano", 0))
        if at is None:
            read.reject("a log record has no valid time")
            continue
        attributes = attributes_of(item.get("attributes"))
        read.logs.append(
            Log(
                at=at,
                name=_text(item.get("eventName")) or _text(attributes.get("event.name")),
                body=value_of(item.get("body")),
                attributes=attributes,
                resource=resource,
                trace_id=id_of(item.get("traceId"), 32),
                span_id=id_of(item.get("spanId"), 16),
            )
        )
    return read


def _items(
    value: object, outer: str, middles: tuple[str, ...], inner: str
) -> Iterator[tuple[Mapping[str, Any], str, dict[str, Any]]]:
    for of_resource in _dicts(value.get(outer) if type(value) is dict else None):
        resource = of_resource.get("resource")
        known = attributes_of(resource.get("attributes")) if type(resource) is dict else {}
        for middle in middles:
            for of_scope in _dicts(of_resource.get(middle)):
                scope = of_scope.get("scope", of_scope.get("instrumentationLibrary"))
                name = _text(scope.get("name")) if type(scope) is dict else ""
                for item in _dicts(of_scope.get(inner)):
                    yield known, name, item


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    for item in value if type(value) is list else ():
        if type(item) is dict:
            yield item


def _text(value: object) -> str:
    return value if type(value) is str else ""


def attributes_of(value: object) -> dict[str, Any]:
    """A list of KeyValue to a mapping; of equal keys the last counts."""
    found: dict[str, Any] = {}
    for item in value[:ATTRIBUTES] if type(value) is list else ():
        if type(item) is dict and type(key := item.get("key")) is str:
            found[key] = value_of(item.get("value"))
    return found


def value_of(value: object, depth: int = 0) -> Any:
    """An AnyValue to a plain value; None where it is none, or nested too deep."""
    if type(value) is not dict or depth > DEPTH:
        return None
    for kind, found in value.items():
        if kind == "stringValue":
            return found if type(found) is str else None
        if kind == "boolValue":
            return found if type(found) is bool else None
        if kind == "intValue":
            try:
                return int(found) if type(found) in (str, int) and len(str(found)) < 21 else None
            except ValueError:
                return None
        if kind == "doubleValue":
            try:
                number = float(found) if type(found) in (str, int, float) else math.nan
            except (ValueError, OverflowError):
                return None
            return number if math.isfinite(number) else None
        if kind == "bytesValue":
            try:
                return base64.b64decode(found) if type(found) is str else None
            except ValueError:
                return None
        if kind == "arrayValue":
            inner = found.get("values") if type(found) is dict else None
            return [value_of(each, depth + 1) for each in inner] if type(inner) is list else []
        if kind == "kvlistValue":
            inner = found.get("values") if type(found) is dict else None
            return {
                each["key"]: value_of(each.get("value"), depth + 1)
                for each in (inner if type(inner) is list else ())
                if type(each) is dict and type(each.get("key")) is str
            }
    return None
