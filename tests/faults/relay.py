"""A TCP relay that stands for the network between two services: it can stop, slow down, break, and go away."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

_CHUNK_BYTES = 4096
_CHUNKS_UNDER_WAY = 8
_BUFFER_BYTES = 16_384
_CALL_SECONDS = 20.0


@dataclass
class _Link:
    """One direction: bytes leave one after the other, and arrive after a delay."""

    bytes_per_second: float | None = None
    delay_seconds: float = 0.0
    free_at: float = 0.0

    def arrival(self, now: float, num_bytes: int) -> float:
        self.free_at = max(now, self.free_at)
        if self.bytes_per_second is not None:
            self.free_at += num_bytes / self.bytes_per_second
        return self.free_at + self.delay_seconds


class Relay:
    """Passes connections on to a port of this machine, from a thread of its own.

    Holds little in between, so that whoever sends notices that nobody takes anything.
    """

    def __init__(self, target_port: int, host: str = "127.0.0.1", port: int = 0) -> None:
        self.target_port = target_port
        self._up, self._down = _Link(), _Link()
        self._transports: set[asyncio.WriteTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        listener = _small(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        self.port = int(listener.getsockname()[1])
        self.address = f"{host}:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, sock=listener))

    def stop_passing(self) -> None:
        """Let nothing through any more, as a network does that drops every packet."""
        self._soon(self._passing.clear)

    def pass_again(self) -> None:
        """Let through what has waited, and what comes."""
        self._soon(self._passing.set)

    def slow_down(self, bits_per_second: float | None, round_trip_seconds: float) -> None:
        """Be a line of that speed and delay for all connections together; None is as fast as can be."""
        for link in (self._up, self._down):
            link.bytes_per_second = None if bits_per_second is None else bits_per_second / 8
            link.delay_seconds = round_trip_seconds / 2

    def break_connections(self) -> None:
        """Reset all that there are; new ones are passed on."""
        self._soon(lambda: [transport.abort() for transport in tuple(self._transports)])

    def close(self) -> None:
        """Listen no more, reset all connections, and end the thread."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for transport in tuple(self._transports):
            transport.abort()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        # Python 3.11 reports a connection's task that was cancelled as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await self._join(reader, writer)
        self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.add(writer.transport)
        writers = [writer]
        try:
            await self._passing.wait()
            target = _small(socket.socket())
            target.setblocking(False)
            await self._loop.sock_connect(target, ("127.0.0.1", self.target_port))
            there = await asyncio.open_connection(sock=target)
            self._transports.add(there[1].transport)
            writers.append(there[1])
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, there[1], self._up))
                pumps.create_task(self._pump(there[0], writer, self._down))
        except* OSError:
            pass  # Either side is gone, and so the other is to be.
        finally:
            for one in writers:
                one.transport.abort()
                self._transports.discard(one.transport)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)

        async def take() -> None:
            while data := await reader.read(_CHUNK_BYTES):
                await self._passing.wait()
                await under_way.put((link.arrival(self._loop.time(), len(data)), data))
            await under_way.put((0.0, b""))

        async def give() -> None:
            while True:
                at, data = await under_way.get()
                await asyncio.sleep(at - self._loop.time())
                await self._passing.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

        async with asyncio.TaskGroup() as both:
            both.create_task(take())
            both.create_task(give())

    def _soon(self, do: Callable[[], object]) -> None:
        async def call() -> None:
            do()

        self._do(call())

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_CALL_SECONDS)


def _small(one: socket.socket) -> socket.socket:
    """Make the kernel hold little of what has not been read; what is accepted inherits it."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return one
