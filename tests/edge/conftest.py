"""Tests of the data path run twice: each write made at once, as with little in flight, and together, as under load."""

import pytest

import edge.recorder

BOTH_WAYS = {"test_proxy", "test_proxy_deadline", "test_proxy_enforce", "test_proxy_faults", "test_proxy_transparency"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH_WAYS:
        metafunc.parametrize("few_at_once", [4, -1], ids=["at once", "together"], indirect=True)


@pytest.fixture(autouse=True)
def few_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Proxy.few` is on every stage of this test."""
    monkeypatch.setattr(edge.recorder, "few_at_once", getattr(request, "param", edge.recorder.few_at_once))
