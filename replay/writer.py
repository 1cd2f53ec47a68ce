"""Hands segments over to the replay server, with bounded data under way and a deadline on each wait."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import structlog

from apprentice.config import ReplaySettings
from apprentice.types import EnvironmentSpec, Metrics, Segment
from replay.connection import Connection
from replay.errors import ReplayMismatch, ReplayUnavailable, SegmentRejected
from replay.importing import load_reverb
from replay.tables import FEED, task_table

log = structlog.get_logger()

_SLICE_SECONDS = 0.5  # signals are handled between two slices of a wait
_MAX_PENDING_SEGMENTS = 16  # Reverb floods the log with warnings from 50 items on


class SegmentWriter:
    """Appends segments to their task's table and to the feed. For one thread.

    A segment under way has been handed to Reverb and not been confirmed: half the feed's size at most.
    It survives a restart of the server. Where Reverb's own writer gives up, another one takes its place
    and sends again what may not have arrived, so that a segment arrives at least once; readers drop
    the second copy by its identity.
    """

    def __init__(
        self,
        address: str,
        specs: Sequence[EnvironmentSpec],
        settings: ReplaySettings,
        timeout_seconds: float = 10.0,
    ) -> None:
        """Write to `address` (HOST:PORT); the connection is made by the first `append`."""
        self._connection = Connection(address, specs, settings)
        self._format = self._connection.format
        self._tables = [task_table(spec) for spec in specs]
        self._timeout_seconds = timeout_seconds
        self.max_pending_segments = min(_MAX_PENDING_SEGMENTS, max(1, settings.feed_segments // 2))
        self._unconfirmed: deque[tuple[int, np.ndarray]] = deque(maxlen=self.max_pending_segments)
        self._writer: Any = None
        self._finalizer: Any = None
        self._held_up = False
        self._segments = self._transitions = self._rejected = self._sent_again = 0

    def append(self, segment: Segment, timeout_seconds: float | None = None) -> None:
        """Hand a segment over, waiting for room first.

        Raises SegmentRejected where it breaks its contract, and ReplayUnavailable at the deadline: it has
        not been taken then, and may be appended again. Raises ReplayMismatch where the server serves another
        experiment.
        """
        try:
            data = self._format.encode(segment)
        except SegmentRejected as error:
            self._rejected += 1
            log.error("a segment was not sent", reason=str(error))
            raise
        self._wait(self.max_pending_segments - 1, self._deadline(timeout_seconds))
        self._unconfirmed.append((segment.task, data))
        try:
            self._send(segment.task, data)
        except RuntimeError as error:
            self._abandon(error)  # it is among the unconfirmed, so the next writer sends it
        self._segments += 1
        self._transitions += segment.length

    def flush(self, timeout_seconds: float | None = None) -> None:
        """Wait until the server has confirmed everything.

        Raises ReplayUnavailable at the deadline, ReplayMismatch where the server is another experiment's by now.
        """
        if self._unconfirmed:
            self._wait(0, self._deadline(timeout_seconds))

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Flush until the deadline, log what could not be delivered, and end the connection."""
        try:
            self.flush(timeout_seconds)
        except (ReplayUnavailable, ReplayMismatch) as error:
            log.warning(
                "segments may not have reached the replay server",
                at_most=min(self.max_pending_segments, len(self._unconfirmed)),
                reason=str(error),
            )
        self._drop_writer()
        self._unconfirmed.clear()

    def metrics(self) -> Metrics:
        """Return counts since the start: segments and transitions taken, segments refused, segments sent a
        second time, and returns of a server that was gone."""
        return {
            "writer/segments": float(self._segments),
            "writer/transitions": float(self._transitions),
            "writer/rejected_segments": float(self._rejected),
            "writer/segments_sent_again": float(self._sent_again),
            "writer/reconnects": float(self._connection.reconnects),
        }

    def problem(self) -> str | None:
        """Say why segments cannot be handed over, where that has been so for long; from any thread."""
        return self._connection.problem()

    def _deadline(self, timeout_seconds: float | None) -> float:
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        return time.monotonic() + seconds

    def _wait(self, num_segments: int, deadline: float) -> None:
        """Wait until at most `num_segments` are under way.

        Each is two items to Reverb; while the feed is full only one of them is unconfirmed, so it is
        items that are counted.
        """
        while True:
            remaining = deadline - time.monotonic()
            try:
                self._ensure_writer(remaining)
                # Reverb takes 0 for no limit at all.
                milliseconds = max(1, int(1000 * min(remaining, _SLICE_SECONDS)))
                self._writer.Flush(num_segments, milliseconds)
                if self._held_up:  # Something was confirmed, at last.
                    self._held_up = False
                    self._connection.heard()
                if num_segments == 0:
                    self._unconfirmed.clear()
                return
            except RuntimeError as error:
                if "Timeout exceeded" in str(error):
                    self._held_up = True
                else:
                    self._abandon(error)
            if time.monotonic() >= deadline:
                raise ReplayUnavailable(
                    f"{self._connection.describe()} (waited for room for a segment)"
                )
            self._connection.nudge(max(1.0, deadline - time.monotonic()))

    def _ensure_writer(self, timeout_seconds: float) -> None:
        if self._writer is not None:
            return
        client = self._connection.open(timeout_seconds)
        options = load_reverb().pybind.ConstantChunkerOptions(1, 1)
        self._writer = client.NewTrajectoryWriter(options, True)
        # Reverb's destructor waits for ever for a server that is gone, at the interpreter's exit too.
        self._finalizer = weakref.finalize(self, self._writer.Close)
        for task, data in self._unconfirmed:
            self._send(task, data)
            self._sent_again += 1

    def _send(self, task: int, data: np.ndarray) -> None:
        (reference,) = self._writer.Append([data])
        for table in (self._tables[task], FEED):
            self._writer.CreateItem(table, 1.0, [[reference]], [True])

    def _abandon(self, error: RuntimeError) -> None:
        log.warning("the connection to replay broke and is made anew", reason=str(error))
        self._drop_writer()

    def _drop_writer(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._writer = self._finalizer = None
