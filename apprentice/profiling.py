"""Where a process's wall time goes, told by laps.

A loop calls `lap("name")` after each of its phases; the time since the previous lap, whatever it was
spent on, is charged to that name. Spans therefore add up to the wall time by construction, at about a
tenth of a microsecond each.
"""

from __future__ import annotations

import time
from typing import NamedTuple


class Span(NamedTuple):
    """Time charged to one name since the profile started."""

    seconds: float
    units: int


class Profile:
    """Stop-watch of one thread; `snapshot` may be read from another."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._units: dict[str, int] = {}
        self._started = self._last = time.perf_counter()

    def lap(self, name: str, units: int = 1) -> None:
        """Charge the time since the last lap to `name`, as the cost of `units` of its work."""
        now = time.perf_counter()
        seconds = self._seconds
        if name in seconds:
            seconds[name] += now - self._last
            self._units[name] += units
        else:
            self._units[name] = units
            seconds[name] = now - self._last
        self._last = now

    def snapshot(self) -> dict[str, Span]:
        """Return seconds and units by name since the start; `other` is what no lap has charged yet."""
        elapsed = time.perf_counter() - self._started
        spans = {name: Span(s, self._units[name]) for name, s in list(self._seconds.items())}
        spans["other"] = Span(max(0.0, elapsed - sum(s.seconds for s in spans.values())), 1)
        return spans
