"""Whatever the bytes and however they are cut, both sides get what the other sent: of stores and buses, held or not."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.splicing import Joined, Seer, bus, store

LONG = b"$9000\r\n" + b"x" * 9000 + b"\r\n"
COMMANDS = [b"GET a\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n" + LONG]
COMMANDS += [b"MULTI\r\n", b"EXEC\r\n", b"SUBSCRIBE c\r\n", b"MONITOR\r\n", b"BLPOP q 0\r\n", b"CLIENT REPLY SKIP\r\n"]
COMMANDS += [b"PUB a 2\r\nhi\r\n", b"SUB a 1\r\n", b"CONNECT {}\r\n", b"\x16\x03\x01\x00", b"PUB a 9000\r\n" + LONG]
ANSWERS = [b"+OK\r\n", b"$1\r\nv\r\n", b"*1\r\n:1\r\n", b"-ERR no\r\n", b"+QUEUED\r\n", b"%1\r\n+a\r\n+b\r\n"]
ANSWERS += [b">2\r\n+message\r\n+c\r\n", b"MSG a 1 2\r\nhi\r\n", b"INFO {}\r\n", b"|1\r\n+a\r\n+b\r\n", LONG]


def pieces_of(tokens: list[bytes]) -> st.SearchStrategy[list[bytes]]:
    """A stream of tokens and garbage, cut anywhere."""
    stream = st.lists(st.one_of(*[st.sampled_from(tokens)] * 4, st.binary(min_size=1, max_size=9)), max_size=8)

    def cut(parts: list[bytes], cuts: list[int]) -> list[bytes]:
        raw = b"".join(parts)
        places = sorted({at % (len(raw) + 1) for at in cuts} | {0, len(raw)})
        return [raw[a:b] for a, b in itertools.pairwise(places)]

    return st.builds(cut, stream, st.lists(st.integers(0, 20_000), max_size=6))


class Upstream:
    """Takes one connection at a time, answers each piece that it reads with the next of its own, records."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    def serve(self, answers: list[bytes], seen: bytearray) -> threading.Thread:
        def work() -> None:
            connection, _ = self._listening.accept()
            with connection:
                connection.settimeout(10)
                left = list(answers)
                while data := connection.recv(65_536):
                    seen.extend(data)
                    if left:
                        connection.sendall(left.pop(0))
                connection.sendall(b"".join(left))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self._listening.close()


MODES: dict[str, Callable[[int], Any]] = {
    "store": lambda port: store(f"redis://127.0.0.1:{port}", value_bytes=4096),
    "store, nothing wanted": lambda port: store(f"redis://127.0.0.1:{port}", seer=Seer(wanted=False)),
    "store, held": lambda port: store(f"redis://127.0.0.1:{port}", seer=Seer(lambda _: None), value_bytes=4096),
    "bus": lambda port: bus(f"nats://127.0.0.1:{port}", payload_bytes=4096),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module", params=MODES)
def spliced(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[Joined]:
    with MODES[request.param](upstream.port) as joined:
        yield joined


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=pieces_of(COMMANDS), answers=pieces_of(ANSWERS))
def test_both_sides_get_what_the_other_sent(
    spliced: Joined, upstream: Upstream, sent: list[bytes], answers: list[bytes]
) -> None:
    """Commands, answers, garbage; a half-close of the client; the rest of the answers after it."""
    seen = bytearray()
    serving = upstream.serve(answers, seen)
    got = bytearray()
    with socket.create_connection(("127.0.0.1", spliced.port)) as client:
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in sent:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        while data := client.recv(65_536):
            got.extend(data)
    serving.join(10)
    assert bytes(seen) == b"".join(sent)
    assert bytes(got) == b"".join(answers)
    assert ("store", "error") not in spliced.counted("handrail_faults_total")
    assert ("bus", "error") not in spliced.counted("handrail_faults_total")


def test_an_observer_that_raises_changes_nothing(upstream: Upstream) -> None:
    """It is counted, and the bytes pass."""

    class Broken(Seer):
        def wants(self, _: Any) -> bool:
            raise RuntimeError("broken")

    for is_held in (False, True):
        seen = bytearray()
        serving = upstream.serve([b"+OK\r\n"], seen)
        seer = Broken((lambda _: None) if is_held else None)
        with store(f"redis://127.0.0.1:{upstream.port}", seer=seer) as joined:
            with socket.create_connection(("127.0.0.1", joined.port)) as client:
                client.sendall(b"GET a\r\n")
                client.settimeout(5)
                assert client.recv(100) == b"+OK\r\n"
            serving.join(5)
            seer.until(lambda: ("store", "error") in joined.counted("handrail_faults_total"))
        assert bytes(seen) == b"GET a\r\n"
