"""A thread that waits inside Reverb, so that nobody else has to.

Reverb's sampler has no deadline and cannot be cancelled from outside, so it lives in a thread as long as
its reader does. One that is abandoned, with its process or without, leaves a request behind in the
server, which swallows the next item of a queue (measured: each time). So whoever begins to read the
feed first puts in an empty segment for that request, and whoever ends wakes up with another.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np
import structlog

from replay.connection import UNLIMITED, Connection
from replay.errors import ReplayMismatch, ReplayUnavailable
from replay.importing import load_reverb
from replay.tables import FEED

log = structlog.get_logger()

_WATCH_SECONDS = 0.5
_WAKE_UP_MILLISECONDS = 500


class SamplerThread:
    """Keeps a bounded queue of a table's samples filled, over restarts of the server."""

    def __init__(
        self,
        connection: Connection,
        table: str,
        buffer_size: int,
        queue_size: int,
        distinct: set[int] | None = None,
    ) -> None:
        """Start sampling; `distinct` collects the keys of items, each of which is then passed on once."""
        self._connection = connection
        self._table = table
        self._buffer_size = buffer_size
        self._distinct = distinct
        self._samples: queue.Queue[list[Any]] = queue.Queue(queue_size)
        self._closed = threading.Event()
        self._error: ReplayMismatch | None = None
        self._last = time.monotonic()
        self._waiting = False
        name = f"sampler-{table}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._watch = threading.Thread(target=self._watch_server, name=f"{name}-watch", daemon=True)
        self._thread.start()
        self._watch.start()

    def get(self, timeout_seconds: float) -> list[Any] | None:
        """Return Reverb's next sample, or None where none came; raise what ended the thread."""
        try:
            if timeout_seconds > 0.0:
                return self._samples.get(timeout=timeout_seconds)
            return self._samples.get_nowait()
        except queue.Empty:
            if self._error is not None:
                raise self._error from None
            return None

    def close(self) -> None:
        """End the threads.

        A sampler that waits for a server that is gone cannot be ended: its thread is left behind.
        """
        self._closed.set()
        self._watch.join(5.0)
        self._thread.join(0.2)
        if self._table == FEED:
            self._leave_the_feed()
        self._thread.join(2.0)
        if self._thread.is_alive():
            log.warning("a sampler still waits for the replay server", table=self._table)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._sample()
            except ReplayUnavailable:
                self._closed.wait(0.2)
            except ReplayMismatch as error:
                self._error = error
                return
            except Exception as error:  # noqa: BLE001 - whatever Reverb's stream ended with
                log.warning("a sampler is made anew", table=self._table, reason=str(error))
                self._closed.wait(0.2)

    def _sample(self) -> None:
        client = self._connection.open(1.0)
        if self._table == FEED:
            send_wake_up(client, self._connection.format.num_bytes)
        sampler = client.NewSampler(self._table, UNLIMITED, self._buffer_size)
        distinct = self._distinct
        while not self._closed.is_set():
            self._waiting = True
            sample = sampler.GetNextTrajectory()
            self._waiting = False
            self._last = time.monotonic()
            self._connection.heard()
            if distinct is not None:
                key = int(sample[0])
                if key in distinct:
                    continue
                distinct.add(key)
            self._put(sample)

    def _put(self, sample: list[Any]) -> None:
        while not self._closed.is_set():
            try:
                self._samples.put(sample, timeout=0.2)
                return
            except queue.Full:
                continue

    def _leave_the_feed(self) -> None:
        try:
            client = self._connection.open(1.0)
        except (ReplayUnavailable, ReplayMismatch):
            return
        if self._thread.is_alive() and self._waiting:
            send_wake_up(client, self._connection.format.num_bytes)
            self._thread.join(2.0)
        if not self._thread.is_alive():
            send_wake_up(client, self._connection.format.num_bytes)  # for the request left behind

    def _watch_server(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            if self._waiting and time.monotonic() - self._last > _WATCH_SECONDS:
                try:
                    self._connection.nudge()
                except ReplayMismatch as error:
                    self._error = error


def send_wake_up(client: Any, num_bytes: int) -> None:
    """Put an empty segment into the feed, which every reader skips."""
    writer = client.NewTrajectoryWriter(load_reverb().pybind.ConstantChunkerOptions(1, 1), True)
    try:
        (reference,) = writer.Append([np.zeros(num_bytes, np.uint8)])
        writer.CreateItem(FEED, 1.0, [[reference]], [True])
        writer.Flush(0, _WAKE_UP_MILLISECONDS)
    except RuntimeError as error:  # a full feed needs no wake-up
        log.debug("the wake-up did not arrive", reason=str(error))
    finally:
        writer.Close()
