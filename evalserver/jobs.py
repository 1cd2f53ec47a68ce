"""Hands requests to the worker process, one at a time: a bounded queue, deadlines, and a new worker
where the old one crashed or hangs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any, NamedTuple

import structlog

log = structlog.get_logger()

START_SECONDS = 180.0
LARGEST_HEADER = 1 << 20


class Busy(Exception):
    """The queue is full; `retry_seconds` is when to come back."""

    retry_seconds = 5


class WorkerFailed(Exception):
    """The worker crashed over this request; another one takes its place."""


class DeadlinePassed(Exception):
    """The request took longer than it may; the worker was ended."""


class Answer(NamedTuple):
    """What the worker answered: an HTTP status, a JSON report and media."""

    status: int
    report: dict[str, Any]
    media: bytes


class Jobs:
    """One worker process and the requests that wait for it."""

    def __init__(self, max_waiting: int, deadline_seconds: float) -> None:
        self._max_waiting = max_waiting
        self._deadline = deadline_seconds
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._process: Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self.rendering = "unknown"
        self.detail = "the worker is starting"

    def start(self) -> None:
        """Start the worker in the background, so that the first request finds it warm."""
        self._starting = asyncio.create_task(self._warm())

    async def run(self, request: dict[str, Any]) -> Answer:
        """Have a request served.

        Raises Busy, WorkerFailed or DeadlinePassed. Cancelling it drops the request; a worker that is
        at it already is ended, since nobody wants what it makes.
        """
        if self._waiting >= self._max_waiting:
            raise Busy(f"{self._waiting} requests are waiting already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._deadline):
                async with self._turn:
                    return await self._serve({**request, "deadline_seconds": self._deadline})
        except TimeoutError:
            raise DeadlinePassed(f"not done within {self._deadline:.0f} s") from None
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the worker."""
        if self._starting is not None:
            self._starting.cancel()
        await self._end()

    async def _warm(self) -> None:
        try:
            async with self._turn:
                await self._ensure()
        except (WorkerFailed, OSError) as error:
            self.detail = str(error)
            log.error("the evaluation worker does not start", reason=str(error))

    async def _serve(self, request: dict[str, Any]) -> Answer:
        done = False
        try:
            process = await self._ensure()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            answer = await self._read(process)
            done = True
            return answer
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            code = self._process.returncode if self._process else None
            raise WorkerFailed(f"the worker ended over this request (exit {code})") from error
        finally:
            if not done:
                await self._end()

    async def _ensure(self) -> Process:
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
        try:
            async with asyncio.timeout(START_SECONDS):
                hello = await self._read(process)
        except (TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            await self._end()
            raise WorkerFailed("the worker ended while it started") from error
        self.rendering, self.detail = hello.report["rendering"], hello.report["detail"]
        log.info("the evaluation worker is ready", rendering=self.rendering)
        return process

    @staticmethod
    async def _read(process: Process) -> Answer:
        assert process.stdout is not None
        line = await process.stdout.readuntil(b"\n")
        report = json.loads(line)
        media = await process.stdout.readexactly(report.pop("num_bytes"))
        return Answer(int(report.pop("status")), report, media)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.kill()
        await asyncio.shield(process.wait())
