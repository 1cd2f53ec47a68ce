"""Segments on their way to replay: held until they are taken, however long that is."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import structlog

from apprentice.profiling import Profile
from apprentice.types import Segment
from replay.errors import ReplayUnavailable, SegmentRejected

log = structlog.get_logger()

HELD_UP_SECONDS = 0.005
"""An append that took longer was waiting for the learner, not working."""
LONG_SECONDS = 30.0
"""Whoever has waited for so long says why."""


class WritesSegments(Protocol):
    """Where segments go."""

    def append(self, segment: Segment, timeout_seconds: float | None = None) -> None: ...
    def flush(self, timeout_seconds: float | None = None) -> None: ...


class Outbox:
    """Holds what one step of all environments completes, and no more while its owner empties it
    between two steps: one segment an environment.

    Charges `segment write` and `waiting for replay` to the profile, in steps.
    """

    def __init__(self, writer: WritesSegments, profile: Profile) -> None:
        self._writer, self._profile = writer, profile
        self._segments: deque[Segment] = deque()
        self._waiting_since: float | None = None  # infinite once it has been said why
        self.num_rejected = 0
        """Segments that broke their contract and were dropped: not finite, out of bounds."""

    def __len__(self) -> int:
        return len(self._segments)

    def put(self, segments: Iterable[Segment]) -> None:
        """Take segments in, to be sent in this order."""
        self._segments.extend(segments)

    def send(self, timeout_seconds: float) -> bool:
        """Hand the oldest segment over; return False where it was not taken in time, and keep it."""
        segment = self._segments[0]
        started = time.monotonic()
        try:
            self._writer.append(segment, timeout_seconds)
        except ReplayUnavailable as error:
            self._note_held_up(started, str(error))
            self._profile.lap("waiting for replay", 0)
            return False
        except SegmentRejected:  # The writer has logged why.
            self.num_rejected += 1
        self._segments.popleft()
        self._waiting_since = None
        held_up = time.monotonic() - started > HELD_UP_SECONDS
        self._profile.lap("waiting for replay" if held_up else "segment write", segment.length)
        return True

    def _note_held_up(self, started: float, reason: str) -> None:
        """Say why nothing is taken, once that has lasted: a learner that pauses or compiles is no news."""
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = started
        waited = now - self._waiting_since
        if waited >= LONG_SECONDS:
            log.warning("segments are not taken", seconds=round(waited), reason=reason)
            self._waiting_since = math.inf

    def drain(self, timeout_seconds: float) -> int:
        """Send everything and have it confirmed; return how many steps may be lost at the deadline."""
        deadline = time.monotonic() + timeout_seconds
        while self._segments:
            if not self.send(max(0.0, deadline - time.monotonic())):
                break
        lost = sum(segment.length for segment in self._segments)
        self._segments.clear()
        try:
            self._writer.flush(max(0.0, deadline - time.monotonic()))
        except ReplayUnavailable as error:
            log.warning("the last segments may be lost", unsent_steps=lost, reason=str(error))
        else:
            if lost:
                log.warning("the last segments were not sent", steps=lost)
        self._profile.lap("waiting for replay", 0)
        return lost
