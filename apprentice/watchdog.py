"""A process that hangs ends itself, because nothing else restarts a process that is merely stuck."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

import structlog

from apprentice import exit_codes

log = structlog.get_logger()

UNHEALTHY_SILENCE_SECONDS = 30.0
_STANDARD_ERROR = 2
_LATER = 1.5
"""Where this thread itself is kept from running, the process ends after the limit times this."""


class Watchdog:
    """Exit with 70, after every thread's stack went to stderr, when `beat` was not called for too long.

    Code that hangs without giving Python's lock back stops this thread too. Then a timer outside of Python,
    which only this thread sets back, ends the process: with 1, and with the stacks as well. One per process.
    """

    def __init__(self, name: str, stall_seconds: float) -> None:
        self._name = name
        self._stall_seconds = stall_seconds
        self._last = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """Say that the loop made progress, or waits for somebody on purpose."""
        self._last = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last

    def problem(self) -> str | None:
        """Say that there has been no progress for long; from any thread."""
        silent = self.silent_seconds
        return f"no progress for {silent:.0f} s" if silent > UNHEALTHY_SILENCE_SECONDS else None

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._stall_seconds / 4)):
            seconds = _LATER * self._stall_seconds
            faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)
            silent = self.silent_seconds
            if silent > self._stall_seconds:
                log.error(
                    f"{self._name} made no progress for too long; it exits to be restarted",
                    seconds=round(silent, 1),
                    limit=self._stall_seconds,
                )
                faulthandler.dump_traceback()
                os._exit(exit_codes.STALLED)
