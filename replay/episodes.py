"""Which segments follow one another, and which episodes are whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apprentice.types import Ending, SegmentId


@dataclass(eq=False)
class StoredSegment:
    """What a ring remembers of a segment beside its steps."""

    id: SegmentId
    row: int  # physical row of the first step
    frame: int  # physical row of the first stored frame; 0 without pixels
    length: int
    ending: Ending
    task: int
    actor: int
    policy_version: int
    context: np.ndarray  # [C] int64

    @property
    def episode(self) -> tuple[int, int]:
        return self.id.incarnation, self.id.episode

    @property
    def end(self) -> SegmentId:
        """The identity that the segment after this one would have."""
        return self.id._replace(first_step=self.id.first_step + self.length)


class EpisodeIndex:
    """Stitches segments into episodes, in whatever order they come and go."""

    def __init__(self) -> None:
        self._by_start: dict[SegmentId, StoredSegment] = {}
        self._by_end: dict[SegmentId, StoredSegment] = {}
        self._last: dict[tuple[int, int], StoredSegment] = {}
        self._complete: list[tuple[int, int]] | None = None

    def add(self, segment: StoredSegment) -> None:
        """Take in a segment."""
        self._by_start[segment.id] = segment
        self._by_end[segment.end] = segment
        if segment.ending != Ending.GOES_ON:
            self._last[segment.episode] = segment
        self._complete = None

    def remove(self, segment: StoredSegment) -> None:
        """Forget a segment."""
        del self._by_start[segment.id]
        if self._by_end.get(segment.end) is segment:
            del self._by_end[segment.end]
        if self._last.get(segment.episode) is segment:
            del self._last[segment.episode]
        self._complete = None

    def before(self, segment: StoredSegment) -> StoredSegment | None:
        """Return the segment that ends where this one begins."""
        return self._by_end.get(segment.id)

    def after(self, segment: StoredSegment) -> StoredSegment | None:
        """Return the segment that begins where this one ends."""
        return self._by_start.get(segment.end)

    def complete(self) -> list[tuple[int, int]]:
        """Return (incarnation, episode) of each episode whose ending and all of whose segments are here."""
        if self._complete is None:
            self._complete = [episode for episode in self._last if self.segments(*episode)]
        return self._complete

    def segments(self, incarnation: int, episode: int) -> list[StoredSegment]:
        """Return a complete episode's segments in order, or nothing where it is not complete."""
        segment = self._last.get((incarnation, episode))
        found: list[StoredSegment] = []
        while segment is not None:
            found.append(segment)
            if segment.id.first_step == 0:
                return found[::-1]
            segment = self.before(segment)
        return []
