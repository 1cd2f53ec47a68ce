"""The relay itself: what it lets through, holds back, delays and breaks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.relay import Relay
from tests.replay.cases import wait_until


class Echo:
    """Sends back what it gets, and counts it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.num_bytes = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.num_bytes += len(data)
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5.0)


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    relay = Relay(echo.port)
    yield relay
    relay.close()


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), 10.0)


def receive(connection: socket.socket, num_bytes: int) -> bytes:
    found = b""
    while len(found) < num_bytes:
        piece = connection.recv(num_bytes - len(found))
        assert piece, "the connection ended"
        found += piece
    return found


def test_what_is_sent_comes_back_in_order_and_the_end_is_passed_on(relay: Relay) -> None:
    sent = bytes(range(256)) * 400
    with connect(relay) as connection:
        sending = threading.Thread(target=connection.sendall, args=(sent,))
        sending.start()
        assert receive(connection, len(sent)) == sent
        sending.join(10.0)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_nothing_passes_a_network_that_is_down_and_nothing_is_lost_by_it(
    relay: Relay, echo: Echo
) -> None:
    with connect(relay) as connection:
        connection.sendall(b"before")
        assert receive(connection, 6) == b"before"
        relay.stop_passing()
        connection.sendall(b"during")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with connect(relay) as second:
            second.sendall(b"new")
            second.settimeout(0.3)
            with pytest.raises(TimeoutError):
                second.recv(1)
            assert echo.num_bytes == 6
            relay.pass_again()
            for one, expected in ((connection, b"during"), (second, b"new")):
                one.settimeout(10.0)
                assert receive(one, len(expected)) == expected


def test_whoever_sends_into_a_network_that_is_down_is_held_up(relay: Relay) -> None:
    relay.stop_passing()
    with connect(relay) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.sendall(bytes(8 << 20))


def test_a_slow_line_takes_its_time(relay: Relay) -> None:
    relay.slow_down(bits_per_second=800_000, round_trip_seconds=0.2)
    with connect(relay) as connection:
        started = time.monotonic()
        connection.sendall(b"x")
        receive(connection, 1)
        assert time.monotonic() - started >= 0.2
        started = time.monotonic()
        connection.sendall(bytes(50_000))  # half a second there; the way back overlaps it
        receive(connection, 50_000)
        assert time.monotonic() - started >= 0.6


def test_broken_connections_are_reset_and_new_ones_served(relay: Relay) -> None:
    with connect(relay) as connection:
        connection.sendall(b"x")
        receive(connection, 1)
        relay.break_connections()

        def gone() -> bool:
            try:
                return connection.recv(1) == b""
            except ConnectionError:
                return True

        wait_until(gone)
    with connect(relay) as connection:
        connection.sendall(b"y")
        assert receive(connection, 1) == b"y"
