"""What headers and the payload's own schema say, in every dialect alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialects.exchanges import exchange, final
from handrail.dialects import instant, schema_named, state, text, trace_of, whole

HEADERS = {
    "handrail-workflow": "w",
    "handrail-task": "t",
    "handrail-attempt": "3",
    "handrail-deadline": "2026-11-22T06:00:00+00:00",
    "handrail-schema": "analyst.report@2",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
}
BODIES = {
    "envelope": {"task_id": "x", "source_agent": "a", "metadata": {"workflow_id": "x", "attempt": 9, "deadline": 5}},
    "a2a": {"jsonrpc": "2.0", "method": "SendMessage", "params": {"message": {"taskId": "x", "contextId": "x"}}},
    "cloudevents": {"specversion": "1.0", "type": "y", "id": "x", "source": "/a", "dataschema": "x@1", "data": {}},
    "http": {"schema_version": 7},
}


@pytest.mark.parametrize("protocol", BODIES)
def test_headers_override_the_body(protocol: str) -> None:
    """The caller's own words to us win in every dialect."""
    kind = "application/cloudevents+json" if protocol == "cloudevents" else "application/json"
    event = final(exchange(BODIES[protocol], headers=HEADERS | {"content-type": kind}))
    assert event.protocol == protocol
    assert (event.workflow, event.task, event.attempt, event.deadline) == ("w", "t", 3, 1795327200.0)
    assert (event.subject, event.version) == ("analyst.report", "2")
    assert (event.trace_id, event.span_id) == ("a" * 32, "b" * 16)


@pytest.mark.parametrize(
    "headers",
    [
        {"handrail-attempt": "many", "handrail-deadline": "tomorrow", "handrail-task": "", "handrail-workflow": " "},
        {"handrail-attempt": "-1", "handrail-deadline": "9999999999999999999", "traceparent": "00-x-y-01"},
        {"handrail-attempt": "9" * 5000, "handrail-deadline": "2026-13-40T00:00:00Z", "baggage": "workflow"},
    ],
)
def test_headers_that_make_no_sense_are_as_if_absent(headers: dict[str, str]) -> None:
    """A wrong header costs nothing else: what the body says stands."""
    event = final(exchange(BODIES["envelope"], headers=headers))
    assert (event.workflow, event.task, event.attempt, event.deadline) == ("x", "x", 9, 5.0)


@pytest.mark.parametrize(
    ("header", "payload", "named"),
    [
        ("a.b@2", {"$schema": "c@1"}, ("a.b", "2")),
        ("a.b", {"schema_version": "1"}, ("a.b", None)),
        ("user@host@1.0", {}, ("user@host", "1.0")),
        (None, {"$schema": "analyst.report@2"}, ("analyst.report", "2")),
        (None, {"$schema": "https://reg.test/s/analyst.report/2.json"}, ("analyst.report", "2")),
        (None, {"$schema": "https://reg.test/s/analyst.report/v2.1#"}, ("analyst.report", "v2.1")),
        (None, {"$schema": "analyst.report/3"}, ("analyst.report", "3")),
        (None, {"$schema": "https://json-schema.org/draft/2020-12/schema"}, (None, None)),
        (None, {"$schema": "http://json-schema.org/draft-07/schema#"}, (None, None)),
        (None, {"$schema": "report"}, (None, None)),
        (None, {"$schema": {"x": 1}, "schema_version": 2.0}, (None, "2")),
        (None, {"schema_version": "2.1"}, (None, "2.1")),
        (None, {"schema_version": True}, (None, None)),
        (None, {"$schema": "a@1", "schema_version": "9"}, ("a", "1")),
    ],
)
def test_subject_and_version(header: str | None, payload: object, named: tuple[str | None, str | None]) -> None:
    """The header, else `$schema`, else `schema_version` for the version alone."""
    event = final(exchange(payload, headers={"handrail-schema": header} if header else {}))
    assert (event.subject, event.version) == named


@pytest.mark.parametrize(
    "traceparent",
    [
        f"ff-{'a' * 32}-{'b' * 16}-01",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"00-{'A' * 32}-{'b' * 16}-01",
        f"00-{'a' * 31}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'b' * 16}-01x",
        "",
    ],
)
def test_a_traceparent_that_is_not_one(traceparent: str) -> None:
    """W3C: all zeroes, version ff, upper case and wrong lengths are invalid."""
    assert trace_of(traceparent.encode()) == (None, None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(_JSON)
def test_readers_of_single_values_take_anything(value: object) -> None:
    """None, or a value of the type that the column has."""
    assert isinstance(text(value), str | None)
    assert isinstance(whole(value), int | None)
    assert isinstance(state(value), int | str | None)
    assert isinstance(instant(value), float | None)
    assert len(schema_named(value)) == 2
