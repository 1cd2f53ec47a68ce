"""A hundred requests at once: what is served, what waits, what is sent away, and what stays behind."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.evalserver.serving import Server, busy_worker, make_run, needs_graphics, workers_of

pytestmark = [pytest.mark.slow, needs_graphics]

NUM_REQUESTS = 100
LIVEZ_SECONDS = 0.25
GROWTH = 128 * 2**20
"""Bytes that the server may grow by: its cache may hold as many."""


class Found(NamedTuple):
    status: int
    headers: dict[str, str]
    num_bytes: int
    seconds: float


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    make_run(runs, "reach", "reacher-easy")
    return runs


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return scratch


@pytest.fixture
def server(runs: Path, tmp_path: Path, scratch: Path) -> Iterator[Server]:
    server = Server(runs, tmp_path / "server.log", {"TMPDIR": str(scratch)})
    server.wait_until_ready()
    yield server
    server.end()


async def ask(port: int, path: str, begin: asyncio.Barrier | None = None) -> Found:
    """GET a path over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    if begin is not None:
        await begin.wait()
    started = time.perf_counter()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    seconds = time.perf_counter() - started
    writer.close()
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Found(int(first.split()[1]), headers, len(body), seconds)


async def watch_health(port: int, over: asyncio.Event) -> list[float]:
    found = []
    while not over.is_set():
        answer = await ask(port, "/livez")
        assert answer.status == 200
        found.append(answer.seconds)
        await asyncio.sleep(0.02)
    return found


async def ask_all_at_once(port: int) -> tuple[list[Found], list[float]]:
    begin, over = asyncio.Barrier(NUM_REQUESTS), asyncio.Event()
    health = asyncio.create_task(watch_health(port, over))
    paths = [f"/evaluate?checkpoint=latest&seed={seed}" for seed in range(NUM_REQUESTS)]
    async with asyncio.timeout(100):
        answers = await asyncio.gather(*(ask(port, path, begin) for path in paths))
    over.set()
    return answers, await health


def test_two_run_eight_wait_and_the_rest_are_sent_away_while_health_answers(
    server: Server, scratch: Path
) -> None:
    server.get("/evaluate", checkpoint="latest", max_steps=5)
    process = psutil.Process(server.process.pid)
    memory, files = process.memory_info().rss, process.num_fds()
    answers, health = asyncio.run(ask_all_at_once(server.port))
    statuses = Counter(answer.status for answer in answers)
    assert statuses == {200: 10, 503: 90}
    for answer in answers:
        if answer.status == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.headers["content-type"] == "application/problem+json"
        else:
            assert answer.headers["content-type"] == "video/mp4"
            assert answer.num_bytes > 10_000
    refused = sorted(answer.seconds for answer in answers if answer.status == 503)
    p99 = sorted(health)[int(0.99 * len(health))]
    print(f"/livez: {len(health)} asked, p99 {p99:.3f} s; refusals at most {refused[-1]:.3f} s")
    assert len(health) > 50
    assert p99 <= LIVEZ_SECONDS
    assert process.memory_info().rss - memory < GROWTH
    assert len(workers_of(server)) == 2
    wait_until(
        lambda: process.num_fds() <= files + 8
    )  # the second worker's pipes, a spare thread's
    assert list(scratch.iterdir()) == []
    assert server.get("/evaluate", checkpoint="latest", max_steps=5).status == 200


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def leave(port: int, server: Server) -> psutil.Process:
    """Ask for a long video and leave while a worker is at it; return the worker."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    path = (
        "/evaluate?checkpoint=latest&fps=50&width=640&height=640&max_steps=4000&episodes=1&seed=9"
    )
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await writer.drain()
    worker = await asyncio.to_thread(busy_worker, server)
    await asyncio.sleep(3.0)  # until it draws and encodes
    assert worker.is_running()
    writer.close()
    return worker


def test_who_leaves_while_a_video_is_drawn_frees_the_worker_in_two_seconds(
    server: Server, scratch: Path
) -> None:
    server.get("/evaluate", checkpoint="latest", max_steps=5)
    worker = asyncio.run(leave(server.port, server))
    started = time.monotonic()
    assert psutil.wait_procs([worker], timeout=10)[1] == []
    assert time.monotonic() - started <= 2.0
    assert server.get("/evaluate", checkpoint="latest", max_steps=5).status == 200
    assert list(scratch.iterdir()) == []


async def hold(port: int, number: int) -> list[asyncio.StreamWriter]:
    """Open connections whose requests never end."""
    held = []
    for _ in range(number):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        held.append(writer)
    return held


async def answer_beside_held_connections(port: int, process: psutil.Process) -> float:
    held = await hold(port, 150)
    slowest = max([(await ask(port, "/livez")).seconds for _ in range(50)])
    deadline = time.monotonic() + 30
    while len(process.net_connections("tcp")) > 20:
        assert time.monotonic() < deadline, "the held connections are still there"
        await asyncio.sleep(0.1)
    for writer in held:
        writer.close()
    return slowest


def test_connections_that_never_finish_asking_neither_stop_others_nor_stay(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    slowest = asyncio.run(answer_beside_held_connections(server.port, process))
    assert slowest <= 1.0
    assert server.get("/livez").status == 200
