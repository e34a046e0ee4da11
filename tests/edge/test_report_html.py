"""Laws of the page: it says what the report says, loads and runs nothing, and no name from the traffic is markup."""

import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handrail.edge.report import Edge, FindingLine, Found, ReportData, SchemaLine, Traffic, WorkflowLine
from handrail.edge.report_html import page

UNTIL = 1_800_000_000
HOSTILE = "</title></td><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"'&\x1b[31m"


def data(name: str = "writer", *, edges: int = 3, minutes: int = 60) -> ReportData:
    """A report in which every text from the traffic is `name`."""
    times = {"p50_ms": 12.5, "p95_ms": 250.0, "p99_ms": None, "overhead_p50_ms": 0.05, "overhead_p99_ms": 0.2}
    return ReportData(
        since_seconds=3600,
        until=UNTIL,
        edges=tuple(
            Edge(
                source=name, target=f"{name}{n}", channel="call", protocol=name, handoffs=1000 + n, per_second=0.3,
                errors=n, **times,
            )
            for n in range(edges)
        ),
        findings=(
            FindingLine(
                rule=name, severity="critical", occurrences=7, places=2, first="2026-08-01T12:00:00Z",
                latest="2026-08-01T12:30:00Z", message=f"latest {name}", first_message=f"first {name}",
            ),
        ),
        schemas=(
            SchemaLine(
                subject=name, version=name, handoffs=9, sources=(name,), first="2026-08-01T12:00:00Z",
                latest="2026-08-01T12:30:00Z",
            ),
        ),
        workflows=(
            WorkflowLine(
                workflow=name, handoffs=4, errors=1, findings=3, critical=1, warnings=1, elapsed_ms=1234.5,
                rules=(name,), message=name, first="2026-08-01T12:00:00Z", latest="2026-08-01T12:30:00Z",
            ),
        ),
        traffic=tuple(
            Traffic(at=UNTIL - 60 * n, handoffs=n, errors=n // 2, p50_ms=1.0, p95_ms=None, overhead_p99_ms=0.1)
            for n in range(minutes)
        ),
        found=(Found(at=UNTIL - 600, critical=1, warning=2, info=3),),
    )  # fmt: skip


class Read(HTMLParser):
    """What a browser would see: every tag with its attributes, and the text outside style."""

    VOID = frozenset(("meta", "br", "img", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text.append(data)


def assert_needs_nothing(text: str) -> Read:
    """Nothing is loaded and nothing runs: no script, no handler, no address, and a policy that forbids all of it."""
    seen = Read(text)
    for tag, attributes in seen.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "image", "use", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name.endswith(("href", "src"))]
    styles = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [given for tag, given in seen.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0]["content"].startswith("default-src 'none'")  # type: ignore[union-attr]
    return seen


def test_the_page_says_what_the_report_says() -> None:
    """Facts, five charts, four tables; the first and the latest example of a rule."""
    seen = assert_needs_nothing(page(data()))
    text = " ".join(seen.text)
    for said in ("3,003", "failed (0.1%)", "first writer", "latest writer", "08-01 12:30:00", "1.2 s", "2027-01-15"):
        assert said in text
    assert [tag for tag, _ in seen.tags].count("svg") == 5
    assert [tag for tag, _ in seen.tags].count("table") == 4
    assert not re.search(r"https?:", page(data()))


def test_a_bar_says_its_value_without_a_script() -> None:
    """As the title that a browser shows beside the pointer."""
    assert re.search(r"<title[^>]*>[^<]*: 250 ms</title>", page(data()))


def test_names_are_text_and_nothing_else() -> None:
    """Tags, handlers, quotation marks and control characters of the traffic are shown."""
    text = page(data(HOSTILE))
    seen = assert_needs_nothing(text)
    assert "<script>alert(1)</script>" in "".join(seen.text)
    assert "\x1b" not in text


@given(st.text(max_size=30))
@settings(max_examples=10, deadline=None)
def test_any_name_makes_a_page(name: str) -> None:
    """That can be written as UTF-8 and needs nothing."""
    text = page(data(name, edges=1, minutes=2))
    text.encode()
    assert_needs_nothing(text)


def test_nothing_recorded_is_a_page_that_says_so() -> None:
    """Sentences in place of tables, and no empty charts."""
    empty = ReportData(since_seconds=3600, until=UNTIL, edges=(), findings=(), schemas=())
    seen = assert_needs_nothing(page(empty))
    text = " ".join(seen.text)
    for said in ("No handoffs in the last 1h.", "No findings in the last 1h.", "No handoff named a schema."):
        assert said in text
    assert not [tag for tag, _ in seen.tags if tag in ("svg", "table")]


def test_the_same_report_is_the_same_page() -> None:
    """To the last byte, so that two can be compared."""
    assert page(data()) == page(data())


def test_many_edges_do_not_make_the_page_heavy() -> None:
    """Charts show the slowest ones, the table all; it can be mailed."""
    text = page(data(edges=200))
    assert len(text) < 500_000
    assert text.count("<tr>") > 200


@pytest.mark.parametrize("field", ["p50_ms", "p95_ms", "overhead_p50_ms", "overhead_p99_ms"])
def test_what_was_not_measured_is_a_dash(field: str) -> None:
    """In the table, and a gap in the chart."""
    missing: dict[str, Any] = {field: None}
    edges = tuple(msgspec.structs.replace(edge, **missing) for edge in data().edges)
    assert "<td class='n'>-</td>" in page(msgspec.structs.replace(data(), edges=edges))
