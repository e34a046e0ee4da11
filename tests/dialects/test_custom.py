"""Protocols of the operator's own: JMESPath expressions say where everything is."""

from typing import Any

import pytest

from dialects.exchanges import exchange, final, reader
from handrail.config import Config, ConfigError, CustomConfig
from handrail.dialects.custom import Custom
from handrail.pipeline import build
from handrail.schema.registry import Registry

CUSTOM = CustomConfig(
    name="acme",
    path="/jobs/*",
    when="kind == 'job'",
    workflow="trace.id",
    task="job.id",
    attempt="job.try",
    source="from.name",
    target="to[0]",
    subject="schema.name",
    version="schema.version",
    payload="job.input",
    state_version="state",
    tokens="length(job.words)",
    outcome="result.state",
)
BODY: dict[str, Any] = {
    "kind": "job",
    "trace": {"id": "w"},
    "job": {"id": 17, "try": 2, "input": {"a": 1}, "words": ["x", "y"]},
    "from": {"name": "a"},
    "to": ["b"],
    "schema": {"name": "s", "version": 3},
    "state": 4.0,
}


def test_every_expression_fills_its_field() -> None:
    """The name is the protocol; the payload is what its expression finds; the reply tells the outcome."""
    by = reader(Config(custom=(CUSTOM,)))
    event = final(exchange(BODY, target="/jobs/new?x=1", reply={"result": {"state": "accepted"}}), by)
    assert (event.protocol, event.operation, event.confidence) == ("acme", "POST /jobs/new", "exact")
    assert (event.workflow, event.task, event.attempt) == ("w", "17", 2)
    assert (event.source, event.target, event.subject, event.version) == ("a", "b", "s", "3")
    assert (event.payload, event.state_version, event.tokens) == ({"a": 1}, 4, 2)
    assert event.outcome == "accepted"


@pytest.mark.parametrize(
    ("target", "body"), [("/job/1", BODY), ("/x/jobs/1", BODY), ("/jobs/1", BODY | {"kind": "x"}), ("/jobs/1", {})]
)
def test_path_and_condition_must_both_hold(target: str, body: dict[str, Any]) -> None:
    """Anything else is for the other dialects."""
    assert final(exchange(body, target=target), reader(Config(custom=(CUSTOM,)))).protocol == "http"


@pytest.mark.parametrize("reply", [{"result": {"state": "asked"}}, {"result": {"state": []}}, {"result": 1}, b"", None])
def test_an_outcome_that_is_none_is_https(reply: object) -> None:
    """Only the outcomes that an event can end with are taken from the reply."""
    event = final(exchange(BODY, target="/jobs/1", reply=reply), reader(Config(custom=(CUSTOM,))))
    assert (event.protocol, event.outcome) == ("acme", "completed")


def test_http_decides_before_the_reply() -> None:
    """A reply that failed is not read for its outcome."""
    seen = exchange(BODY, target="/jobs/1", status=500, reply={"result": {"state": "completed"}})
    assert final(seen, reader(Config(custom=(CUSTOM,)))).outcome == "failed"


def test_without_path_and_condition_a_name_must_be_found() -> None:
    """An entry with neither claims what it can name, and leaves the rest."""
    by = reader(Config(custom=(CustomConfig(name="acme", task="job.id", tokens="length(@)"),)))
    assert final(exchange({"job": {"id": "j"}}), by).protocol == "acme"
    assert final(exchange({"other": 1}), by).protocol == "http"
    assert final(exchange(7), by).protocol == "http"


def test_a_path_alone_claims_what_cannot_be_read() -> None:
    """The event says why there is no payload; without a body there is no handoff."""
    by = reader(Config(custom=(CustomConfig(name="acme", path="/jobs"),)))
    event = final(exchange(b"{", target="/jobs"), by)
    assert (event.protocol, event.uninspected) == ("acme", "invalid_json")
    assert final(exchange(method="GET", target="/jobs"), by).protocol == "http"


def test_the_path_is_a_pattern_and_nothing_more() -> None:
    """A star is any run of characters; all else stands for itself."""
    by = reader(Config(custom=(CustomConfig(name="acme", path="/a.b/*/c+"),)))
    assert final(exchange({}, target="/a.b/x/y/c+"), by).protocol == "acme"
    assert final(exchange({}, target="/aXb/x/cc"), by).protocol == "http"


@pytest.mark.parametrize("field", ["when", "task", "payload", "outcome"])
def test_a_wrong_expression_names_its_key(field: str) -> None:
    """Loading fails with the file and the key, in the class and through the configuration."""
    config = CustomConfig(name="acme", **{field: "a[?"})
    with pytest.raises(ConfigError) as caught:
        build(Config(custom=(CUSTOM, config)), Registry(), (), "handrail.yaml")
    assert (caught.value.file, caught.value.key) == ("handrail.yaml", f"custom[1].{field}")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        Custom(config)
