"""Takes segments out of the replay server: new ones from the feed, old ones after a restart."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
import structlog

from apprentice.config import ReplaySettings
from apprentice.types import EnvironmentSpec, Metrics, Segment, SegmentId
from replay.connection import Connection
from replay.errors import ReplayUnavailable, SegmentRejected
from replay.sampling import SamplerThread
from replay.tables import FEED, task_table

log = structlog.get_logger()

_RECOVERY_BUFFER = 64
_INFO_COLUMNS = 5  # key, probability, table size, priority, times sampled


class FeedReader:
    """One long-lived reader of the feed.

    Beside what `poll` has returned it holds at most `feed_segments // 4` segments, at least one, plus
    one in its thread's hand and, inside Reverb's sampler, one more than `feed_segments // 16`, at least
    two: while nobody polls, it takes no more, the feed fills, and actors wait.
    """

    def __init__(
        self, address: str, specs: Sequence[EnvironmentSpec], settings: ReplaySettings
    ) -> None:
        """Read from `address` (HOST:PORT); the server may come up later."""
        self._connection = Connection(address, specs, settings)
        self._format = self._connection.format
        self._specs = tuple(specs)
        self._rejected: Counter[int] = Counter()
        self._segments = self._transitions = 0
        self._num_prefetched = max(1, settings.feed_segments // 4)
        self._buffer_size = max(1, settings.feed_segments // 16)
        self._feed: SamplerThread | None = None
        self.num_missing = 0
        """Segments of the task tables that the last recovery did not get to see."""

    def poll(self, max_segments: int, timeout_seconds: float) -> list[Segment]:
        """Return up to `max_segments` new segments, valid ones; none where none came in time.

        Waits for the first only. Raises ReplayMismatch where the server serves another experiment.
        """
        if self._feed is None:
            self._feed = SamplerThread(
                self._connection, FEED, self._buffer_size, self._num_prefetched
            )
        deadline = time.monotonic() + timeout_seconds
        segments: list[Segment] = []
        while len(segments) < max_segments:
            wait = 0.0 if segments else max(0.0, deadline - time.monotonic())
            sample = self._feed.get(wait)
            if sample is None:
                break
            segment = self._decode(sample)
            if segment is not None:
                self._segments += 1
                self._transitions += segment.length
                segments.append(segment)
        return segments

    def check(self) -> None:
        """Raise ReplayMismatch where a server answers that serves another experiment; pass where none does yet."""
        with contextlib.suppress(ReplayUnavailable):
            self._connection.sizes()

    def recover(
        self,
        known: Container[SegmentId],
        timeout_seconds: float = 120.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Segment]:
        """Return every segment of the task tables whose identity is not in `known`, once.

        Reverb cannot list a table: each is sampled until as many distinct items were seen as it holds.
        Ordered by incarnation, episode and first step. What was not seen by the deadline is logged and
        counted in `num_missing`. Raises ReplayUnavailable where the server does not answer at all, or had
        not when `should_stop` became true.
        """
        deadline = time.monotonic() + timeout_seconds
        self._connection.open(timeout_seconds, should_stop)
        self.num_missing = 0
        found: dict[SegmentId, Segment] = {}
        for spec in self._specs:
            self._recover_table(task_table(spec), deadline, found, should_stop)
        log.info("task tables read", segments=len(found), missing=self.num_missing)
        order = sorted(found)
        return (found.pop(identity) for identity in order if identity not in known)

    def metrics(self) -> Metrics:
        """Return counts since the start: segments and transitions read, segments rejected (in all and by
        actor), segments a recovery missed, and returns of a server that was gone."""
        return {
            "reader/segments": float(self._segments),
            "reader/transitions": float(self._transitions),
            "reader/rejected_segments": float(sum(self._rejected.values())),
            **{
                f"reader/rejected_segments/actor-{actor}": float(count)
                for actor, count in self._rejected.items()
            },
            "reader/missing_segments": float(self.num_missing),
            "reader/reconnects": float(self._connection.reconnects),
        }

    def problem(self) -> str | None:
        """Say why no segment can come, where that has been so for long; from any thread."""
        return self._connection.problem()

    def close(self) -> None:
        """End the reader's thread; what it had prefetched stays in the task tables only."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _decode(self, sample: Sequence[Any]) -> Segment | None:
        data: np.ndarray = sample[_INFO_COLUMNS]
        if not data.any():
            return None  # a wake-up, see sampling.py
        try:
            return self._format.decode(data)
        except SegmentRejected as error:
            self._rejected[error.actor] += 1
            log.error("a segment was dropped", reason=str(error), actor=error.actor)
            return None

    def _recover_table(
        self,
        table: str,
        deadline: float,
        found: dict[SegmentId, Segment],
        should_stop: Callable[[], bool],
    ) -> None:
        size = self._connection.sizes()[table]
        if size == 0:
            return
        keys: set[int] = set()
        thread = SamplerThread(self._connection, table, _RECOVERY_BUFFER, _RECOVERY_BUFFER, keys)
        num_seen = 0
        try:
            while num_seen < size and time.monotonic() < deadline and not should_stop():
                sample = thread.get(min(1.0, max(0.0, deadline - time.monotonic())))
                if sample is None:
                    continue
                num_seen += 1
                segment = self._decode(sample)
                if segment is not None:
                    found.setdefault(segment.id, segment)
                if num_seen == size:
                    size = max(size, self._connection.sizes()[table])
        finally:
            thread.close()
        if num_seen < size:
            self.num_missing += size - num_seen
            log.warning(
                "not all of a table was seen in time", table=table, seen=num_seen, size=size
            )
