"""Checkpoints written in a thread of their own, from snapshots, so that learning goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from apprentice.profiling import Profile

log = structlog.get_logger()

LONGEST_SECONDS = 120.0
"""A checkpoint takes less than a second; where it takes this long, the disk does not answer."""


class SaveResult(NamedTuple):
    """Where a checkpoint lies, or why there is none."""

    steps: int
    path: Path | None
    error: str | None
    final: bool


class CheckpointSaver:
    """Runs one save at a time; the owner polls for results and joins it at the end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: SaveResult | None = None
        self._started = 0.0
        self.profile = Profile()
        """Where the thread's time goes."""
        self.failures_in_a_row = 0

    @property
    def busy(self) -> bool:
        """Whether a save is under way or its result has not been fetched."""
        return self._thread is not None

    def submit(self, steps: int, save: Callable[[], Path], final: bool = False) -> None:
        """Start `save` in the thread; the caller has looked at `busy`."""
        assert self._thread is None

        def work() -> None:
            self.profile.lap("idle")
            try:
                self._result = SaveResult(steps, save(), None, final)
            except Exception as error:  # noqa: BLE001 - reported by `poll`; the learner decides
                self._result = SaveResult(steps, None, f"{type(error).__name__}: {error}", final)
            self.profile.lap("checkpoint writing")

        self._started = time.monotonic()  # before there is a thread that `problem` may ask about
        # What it has written counts only when it is whole, so that the process need not wait for it.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def problem(self) -> str | None:
        """Say that a save does not come to its end; from any thread."""
        seconds = time.monotonic() - self._started
        if self._thread is None or seconds < LONGEST_SECONDS:
            return None
        return f"a checkpoint has been being written for {seconds:.0f} s: does the disk answer?"

    def poll(self, timeout_seconds: float = 0.0) -> SaveResult | None:
        """Return the result of a save that has ended, waiting at most `timeout_seconds`."""
        if self._thread is None:
            return None
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            return None
        self._thread = None
        result, self._result = self._result, None
        assert result is not None
        if result.error is None:
            self.failures_in_a_row = 0
        else:
            self.failures_in_a_row += 1
            log.error(
                "the checkpoint could not be saved; the previous one is kept",
                steps=result.steps,
                error=result.error,
                failures_in_a_row=self.failures_in_a_row,
            )
        return result
