"""Hands requests to worker processes: a few at once, a bounded queue, deadlines, and a new worker
where an old one crashed or hangs."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from typing import Any, NamedTuple

import structlog

log = structlog.get_logger()

START_SECONDS = 180.0
EXIT_SECONDS = 1.0
LARGEST_HEADER = 1 << 20
FIRST_GUESS_SECONDS = 4.0


class Busy(Exception):
    """The queue is full; `retry_seconds` is when there should be room."""

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class WorkerFailed(Exception):
    """The worker crashed over this request; another one takes its place."""


class DeadlinePassed(Exception):
    """The request took longer than it may; the worker was ended."""


class Answer(NamedTuple):
    """What the worker answered: an HTTP status, a JSON report and media."""

    status: int
    report: dict[str, Any]
    media: bytes


class WorkerProcess:
    """One worker: started when it is needed, ended when it must not be trusted any more."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self.rendering = "unknown"
        self.detail = "no worker has started yet"

    @property
    def is_warm(self) -> bool:
        """Whether it runs already."""
        return self._process is not None and self._process.returncode is None

    async def ensure(self) -> Process:
        """Start the process unless it runs; raise WorkerFailed where it does not come up."""
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "evalserver.worker",
            str(os.getpid()),
            stdin=PIPE,
            stdout=PIPE,
            limit=LARGEST_HEADER,
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )
        hello = None
        try:
            async with asyncio.timeout(START_SECONDS):
                hello = await _read(process)
        except (TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            raise WorkerFailed("the worker ended while it started") from error
        finally:
            if hello is None:
                await self.end()
        self.rendering, self.detail = hello.report["rendering"], hello.report["detail"]
        log.info("the evaluation worker is ready", rendering=self.rendering)
        return process

    async def serve(self, request: dict[str, Any]) -> Answer:
        """Have a request served; cancelled or failed, the process is ended with it."""
        done = False
        try:
            process = await self.ensure()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            answer = await _read(process)
            done = True
            return answer
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise WorkerFailed(
                f"the worker ended over this request ({await self._exit()})"
            ) from error
        finally:
            if not done:
                await self.end()

    async def _exit(self) -> str:
        """Say how the process ended, whose pipes close a little earlier."""
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                return f"exit {await self._process.wait()}" if self._process else "it did not start"
        except TimeoutError:
            return "without an exit"

    async def end(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.kill()
        await asyncio.shield(process.wait())


class Jobs:
    """The workers, and the requests that wait for one."""

    def __init__(self, num_workers: int, max_waiting: int, deadline_seconds: float) -> None:
        self._num_workers, self._max_waiting = num_workers, max_waiting
        self._deadline = deadline_seconds
        self._workers = [WorkerProcess() for _ in range(num_workers)]
        self._idle = list(reversed(self._workers))
        self._free = asyncio.Semaphore(num_workers)
        self._starting: asyncio.Task[None] | None = None
        self._mean_seconds = FIRST_GUESS_SECONDS
        self._complaint = "the worker is starting"
        self.num_inside = 0
        """Requests that are served or wait."""

    @property
    def rendering(self) -> str:
        """The back end that draws: "unknown" until a worker has come up, "none" where nothing does."""
        return next((w.rendering for w in self._workers if w.rendering != "unknown"), "unknown")

    @property
    def detail(self) -> str:
        """What there is to say about the back end, or about why no worker comes up."""
        return next((w.detail for w in self._workers if w.rendering != "unknown"), self._complaint)

    def start(self) -> None:
        """Start one worker in the background, so that the first request finds it warm."""
        self._starting = asyncio.create_task(self._warm())

    async def run(self, request: dict[str, Any]) -> Answer:
        """Have a request served.

        Raises Busy, WorkerFailed or DeadlinePassed. Cancelling it drops the request; a worker that is
        at it already is ended, since nobody wants what it makes.
        """
        if self.num_inside >= self._num_workers + self._max_waiting:
            waiting = self.num_inside - self._num_workers + 1
            raise Busy(
                f"{self._num_workers} requests are being served and {self._max_waiting} wait already",
                max(1, math.ceil(waiting * self._mean_seconds / self._num_workers)),
            )
        self.num_inside += 1
        try:
            async with asyncio.timeout(self._deadline), self._free:
                worker = self._take()
                try:
                    started = time.monotonic()
                    answer = await worker.serve({**request, "deadline_seconds": self._deadline})
                    self._mean_seconds += 0.2 * (time.monotonic() - started - self._mean_seconds)
                    return answer
                finally:
                    self._idle.append(worker)
        except TimeoutError:
            raise DeadlinePassed(f"not done within {self._deadline:.0f} s") from None
        finally:
            self.num_inside -= 1

    async def close(self) -> None:
        """End the workers."""
        if self._starting is not None:
            self._starting.cancel()
        for worker in self._workers:
            await worker.end()

    def _take(self) -> WorkerProcess:
        """Return an idle worker, a warm one if there is any."""
        worker = next((worker for worker in self._idle if worker.is_warm), self._idle[-1])
        self._idle.remove(worker)
        return worker

    async def _warm(self) -> None:
        async with self._free:
            worker = self._take()
            try:
                await worker.ensure()
            except (WorkerFailed, OSError) as error:
                self._complaint = str(error)
                log.error("the evaluation worker does not start", reason=str(error))
            finally:
                self._idle.append(worker)


async def _read(process: Process) -> Answer:
    assert process.stdout is not None
    line = await process.stdout.readuntil(b"\n")
    report = json.loads(line)
    media = await process.stdout.readexactly(report.pop("num_bytes"))
    return Answer(int(report.pop("status")), report, media)
