"""A client that leaves while its request waits gives its place in the queue back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import uvicorn
from fastapi import FastAPI

from evalserver.app import create_app
from evalserver.connections import TimedConnection
from tests.evalserver.serving import make_run

LEAVE_SECONDS = 2.0
START_SECONDS = 60.0


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """One request may be served and one may wait."""
    make_run(tmp_path, "reach", "reacher-easy")
    return create_app(tmp_path, num_workers=1, max_waiting=1)


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    config = uvicorn.Config(app, port=0, http=TimedConnection, ws="none", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, START_SECONDS)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join(20)


def wait_until(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def ask(port: int, seed: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    path = f"/evaluate?checkpoint=latest&format=json&max_steps=5&seed={seed}"
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def status(connection: socket.socket) -> int:
    return int(connection.recv(1 << 16).split(b" ")[1])


def test_who_leaves_the_queue_makes_room_within_two_seconds(app: FastAPI, port: int) -> None:
    jobs = app.state.jobs
    wait_until(lambda: jobs.rendering != "unknown", START_SECONDS)
    children = psutil.Process().children()
    (worker,) = (child for child in children if "evalserver.worker" in child.cmdline())
    worker.suspend()  # What is served now is served for as long as this test likes.
    try:
        served = ask(port, 1)
        wait_until(lambda: jobs.num_inside == 1, LEAVE_SECONDS)
        leaving = ask(port, 2)
        wait_until(lambda: jobs.num_inside == 2, LEAVE_SECONDS)
        with closing(ask(port, 3)) as refused:
            assert status(refused) == 503
        leaving.close()
        wait_until(lambda: jobs.num_inside == 1, LEAVE_SECONDS)
        waiting = ask(port, 4)
        wait_until(lambda: jobs.num_inside == 2, LEAVE_SECONDS)
    finally:
        worker.resume()
    with served, waiting:
        assert status(served) == 200
        assert status(waiting) == 200
    assert worker.is_running()  # It was at another's request.
