"""Metrics over a run: one JSON object a line, and the same values for TensorBoard.

    {"time": 1769860800.0, "steps": 5000, "updates": 0, "metrics": {"learner/critic_loss": 0.5}}

`metrics.jsonl` is the source of page, report and CSV. Each line is one write, so a crash tears at most
the last one; the reader skips and counts what is torn. Neither TensorFlow nor torch is imported.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import structlog

if TYPE_CHECKING:
    from apprentice.event_file import EventFile

log = structlog.get_logger()


class MetricsRow(NamedTuple):
    """The metrics of one moment; a value that was not finite is None."""

    time: float  # seconds since 1970
    steps: int
    updates: int
    metrics: dict[str, float | None]


class MetricsHistory(NamedTuple):
    """What `read_metrics` found: the rows in the order they were written, and how many lines were torn."""

    rows: tuple[MetricsRow, ...]
    num_torn: int


class MetricsWriter:
    """Appends metrics to a file, and to a new event file in a folder that TensorBoard reads.

    A disk that is full or broken costs rows, not the run: `num_failed` counts them and the first
    of a series is logged. `num_non_finite` counts values that were written as null.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        self.num_failed = 0
        self.num_non_finite = 0
        self._failing = False
        self._lines = AppendedFile(path)
        self._lines.end_line()
        self._events: EventFile | None = None
        if tensorboard is not None:
            # Whoever only reads metrics needs no tensorboard package.
            from apprentice.event_file import EventFile

            self._events = EventFile(tensorboard)

    def write(self, steps: int, updates: int, metrics: Mapping[str, float]) -> None:
        """Append one row; NaN and infinity become null (and are left out of the event file)."""
        now = time.time()
        values = {key: _finite_or_none(float(value)) for key, value in metrics.items()}
        self.num_non_finite += sum(value is None for value in values.values())
        row = {"time": round(now, 3), "steps": steps, "updates": updates, "metrics": values}
        line = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
        try:
            self._lines.append(line.encode())
            if self._events is not None:
                self._events.append(now, steps, values)
            self._failing = False
        except OSError as error:
            self.num_failed += 1
            if not self._failing:
                log.error("metrics could not be written; training goes on", reason=str(error))
            self._failing = True

    def close(self) -> None:
        """Close both files."""
        self._lines.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path) -> MetricsHistory:
    """Read what a MetricsWriter wrote, also while it writes; torn lines are skipped and counted.

    A file that does not exist yet has no rows.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return MetricsHistory((), 0)
    lines = [line for line in content.split(b"\n") if line]
    rows = [row for row in map(_parse, lines) if row is not None]
    return MetricsHistory(tuple(rows), len(lines) - len(rows))


class AppendedFile:
    """A file to which each append goes whole, or not at all unless the process dies in it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)

    def append(self, content: bytes) -> None:
        """Append in one write; where the disk takes only part of it, take that back and raise OSError."""
        size = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, content)
        if written != len(content):
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, f"only {written} of {len(content)} bytes could be written")

    def end_line(self) -> None:
        """Close a line that a crash tore, so that the next one stands by itself."""
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            self.append(b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def _parse(line: bytes) -> MetricsRow | None:
    try:
        row = json.loads(line)
        metrics = {
            str(key): None if value is None else float(value)
            for key, value in row["metrics"].items()
        }
        return MetricsRow(float(row["time"]), int(row["steps"]), int(row["updates"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
