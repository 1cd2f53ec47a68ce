"""Connections of those who never finish asking, or never take their answer, end by themselves."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from evalserver.connections import TimedConnection

LARGE = b"x" * 50_000_000
"""More than two sockets hold between them."""
ASK = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Impatient(TimedConnection):
    """The deadlines of the real one are too long to wait for."""

    head_seconds = 0.6
    answer_seconds = 2.5


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/slow":
        await receive()
        await asyncio.sleep(1.5)
    body = LARGE if scope["path"] == "/large" else b"here"
    if scope["path"] == "/body":
        body = b"%d" % len(await Request(scope, receive).body())
    await Response(body)(scope, receive, send)


@pytest.fixture(scope="module")
def server() -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(
        application, port=0, http=Impatient, ws="none", lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def connection(server: uvicorn.Server) -> Iterator[socket.socket]:
    port = server.servers[0].sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def seconds_until_closed(connection: socket.socket) -> float:
    started = time.monotonic()
    while True:
        try:
            if not connection.recv(65_536):
                break
        except ConnectionResetError:
            break
    return time.monotonic() - started


def wait_until_nobody_is_connected(server: uvicorn.Server) -> None:
    deadline = time.monotonic() + 20
    while server.server_state.connections:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: local"])
def test_a_head_that_does_not_end_is_not_waited_for(
    connection: socket.socket, server: uvicorn.Server, sent: bytes
) -> None:
    connection.sendall(sent)
    assert seconds_until_closed(connection) < 10
    wait_until_nobody_is_connected(server)


def test_a_head_that_comes_drop_by_drop_is_not_waited_for(connection: socket.socket) -> None:
    started = time.monotonic()
    with pytest.raises(OSError):  # a reset or a broken pipe
        for number in range(1000):
            connection.sendall(b"GET / HTTP/1.1\r\n" if number == 0 else b"X-%d: y\r\n" % number)
            time.sleep(0.05)
    assert time.monotonic() - started < 10


def test_the_next_head_on_a_connection_has_the_same_time(connection: socket.socket) -> None:
    connection.sendall(ASK % b"/")
    answer = b""
    while not answer.endswith(b"here"):  # head and body may arrive apart
        piece = connection.recv(65_536)
        assert piece, f"closed after {answer!r}"
        answer += piece
    connection.sendall(b"GET / HTTP/1.1\r\nHost:")
    assert (
        seconds_until_closed(connection) < 4.5
    )  # uvicorn's own deadline, were it still there, is 5


def test_a_request_that_takes_longer_than_a_head_may_is_answered(connection: socket.socket) -> None:
    connection.sendall(ASK % b"/slow")
    assert b"200 OK" in connection.recv(65_536)


def test_a_body_larger_than_a_head_may_be_is_read(connection: socket.socket) -> None:
    size = 300_000
    connection.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    connection.sendall(b"x" * size)
    answer = b""
    while not answer.endswith(b"%d" % size):  # head and body may arrive apart
        piece = connection.recv(65_536)
        assert piece, f"closed after {answer!r}"
        answer += piece


def test_who_does_not_take_the_answer_is_cut_off(
    connection: socket.socket, server: uvicorn.Server
) -> None:
    connection.sendall(ASK % b"/large")
    assert connection.recv(10).startswith(b"HTTP/1.1")
    wait_until_nobody_is_connected(server)


def test_who_takes_it_in_time_gets_all_of_it(connection: socket.socket) -> None:
    connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    found = 0
    while part := connection.recv(1 << 20):
        found += len(part)
    assert found > len(LARGE)
