"""Decisions are written down: what goes to the log, and how often."""

import logging

import pytest

from handrail.edge.metrics import Metrics
from handrail.edge.record import Recorder
from handrail.event import Fault


def told(caplog: pytest.LogCaptureFixture, *faults: tuple[str, float]) -> list[str]:
    """The lines of the log after faults of the registry or of a detector, each with its instant."""
    caplog.set_level(logging.WARNING)
    recorder = Recorder(Metrics(), ())
    for message, now in faults:
        component = "registry" if message.endswith("json") else "detector.x"
        recorder.fault(Fault(component=component, reason="invalid", message=message), now)
    return [record.getMessage().rpartition(": ")[2] for record in caplog.records]


def test_every_wrong_schema_file_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Several at once too, for there is one to be put right for each line."""
    assert told(caplog, ("a/1.json", 0.0), ("b/1.json", 0.0), ("a/1.json", 1.0)) == ["a/1.json", "b/1.json"]


def test_what_fails_again_and_again_is_said_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it says of itself: a payload can be part of it, and no two are alike."""
    assert told(caplog, ("one", 0.0), ("two", 9.0), ("three", 10.0)) == ["one", "three"]
