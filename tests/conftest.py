"""Fixtures that every area shares. Those of one area live in a module of that area."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import handrail

IN_CI = os.environ.get("HANDRAIL_CI") == "1"
"""Set by .ci/run, which installs every program that a test may ask for: there a missing one is a failure."""


def missing(what: str) -> None:
    """Skip the test, or fail it where nothing may skip."""
    if IN_CI:
        pytest.fail(f"{what}; .ci/run must install it", pytrace=False)
    pytest.skip(what)


def pytest_sessionstart() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and so would start what tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"handrail: {Path(handrail.__file__).parent}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where nothing may skip, a skip of any kind fails the run, however it came about; recordings apart, which are not
    part of the project."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    if IN_CI and any("beside this checkout" not in str(report.longrepr) for report in skipped):
        reporter.write_line("HANDRAIL_CI=1: nothing may be skipped here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def needs() -> Callable[[str, str], str]:
    """`needs("promtool", "prometheus")`: the program's path, or a skip that names the Debian package that has it."""

    def find(program: str, debian_package: str) -> str:
        found = shutil.which(program)
        if found is None:
            missing(f"{program} is not installed (apt-get install {debian_package})")
        return found or ""

    return find


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A TCP port on 127.0.0.1 that nothing listens on at the moment, a different one each time.

    Below those that the kernel gives to connections and to whoever asks for any port: one of them may be taken between
    the look and its use. Each process of a run begins somewhere else.
    """

    def find() -> int:
        while True:
            port = 20_000 + next(_ports) % 12_000
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port

    return find


_ports = itertools.count(os.getpid() * 7919)


@pytest.fixture(scope="session")
def handrail_command() -> Sequence[str]:
    """How to start the command in a process of its own, with the interpreter that runs the tests."""
    return (sys.executable, "-m", "handrail")


@pytest.fixture(scope="session", autouse=True)
def _programs_find_the_package() -> None:
    """Programs that tests start import the same tree as the tests do, the source or an installed build."""
    paths = [str(Path(handrail.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
