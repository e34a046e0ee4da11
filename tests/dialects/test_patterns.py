"""Patterns say what keys and subjects mean."""

import pytest

from handrail.config import ConfigError, EventsConfig, StateConfig
from handrail.dialects.patterns import default_keys, default_subjects, patterns_of, read_value


@pytest.mark.parametrize(
    ("pattern", "key", "said"),
    [
        ("agents:{workflow}:{task}:output", "agents:w1:t.2:output", {"workflow": "w1", "task": "t.2"}),
        ("agents:{workflow}:{task}:output", "agents:w1:t1:plan", None),
        ("{source}/{task}", "a b/7", {"source": "a b", "task": "7"}),
        ("out-{task}-*", "out-5-x-y", {"task": "5"}),
        ("t.{task}.try{attempt}", "t.9.try3", {"task": "9", "attempt": 3}),
        ("a+b", "a+b", {}),
        ("a+b", "aab", None),
        ("*", "anything\nat all", {}),
    ],
)
def test_what_a_key_says(pattern: str, key: str, said: dict[str, object] | None) -> None:
    """A placeholder ends where the next character of the pattern begins; everything else is literal."""
    named = patterns_of([StateConfig(key=pattern)], "state").of(key)
    assert (None if named.pattern is None else dict(named.said)) == said


@pytest.mark.parametrize(
    ("config", "key", "problem"),
    [
        (StateConfig(key="a:{wrkflow}"), "state[0].key", "unknown placeholder wrkflow"),
        (StateConfig(key="a:{task}:{task}"), "state[0].key", "{task} is there twice"),
        (StateConfig(key="a:{task"), "state[0].key", "a brace of its own"),
        (StateConfig(key="a", version="a..b"), "state[0].version", "is not JMESPath"),
        (EventsConfig(subject="a.{x}"), "state[0].subject", "unknown placeholder x"),
    ],
)
def test_a_wrong_pattern_is_refused(config: StateConfig | EventsConfig, key: str, problem: str) -> None:
    """With the key and what is wrong."""
    with pytest.raises(ConfigError) as refused:
        patterns_of([config], "state")
    assert refused.value.key == key
    assert problem in refused.value.problem


def test_the_usual_keys_and_subjects_need_no_configuration() -> None:
    """The pattern of the documentation is among them."""
    assert dict(default_keys().of("agents:w1:t1:output").said) == {"workflow": "w1", "task": "t1"}
    assert dict(default_subjects().of("agents.w1.t1.complete").said) == {"workflow": "w1", "task": "t1"}
    assert default_keys().of("session:42").pattern is None


def test_content_is_compared_as_json_where_it_is_json() -> None:
    """Layout and the order of keys do not count; text counts to the byte."""
    named = default_keys().of("k")
    assert read_value(b'{"a":1,"b":2}', named).digest == read_value(b'{ "b": 2, "a": 1 }', named).digest
    assert read_value(b"text", named).digest != read_value(b"text ", named).digest
    assert read_value(b'{"a":', named).digest is not None


@pytest.mark.parametrize(
    ("value", "version"),
    [
        (b'{"version": 3}', 3),
        (b'{"version": "1.0"}', None),
        (b'{"state_version": "v3"}', "v3"),
        (b'{"rev": 2, "epoch": 4}', "4.2"),
    ],
)
def test_a_version_that_nobody_configured(value: bytes, version: object) -> None:
    """A whole number is a count; `"1.0"` is more often that of a format."""
    assert read_value(value, default_keys().of("k")).said.get("state_version") == version
