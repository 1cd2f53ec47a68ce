"""A process that hangs ends itself, because nothing else restarts a process that is merely stuck."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

import structlog

from apprentice import exit_codes

log = structlog.get_logger()


class Watchdog:
    """Exit with 70, after every thread's stack went to stderr, when `beat` was not called for too long."""

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

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join(5.0)

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._stall_seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self._stall_seconds:
                log.error(
                    f"{self._name} made no progress for too long; it exits to be restarted",
                    seconds=round(silent, 1),
                    limit=self._stall_seconds,
                )
                faulthandler.dump_traceback()
                os._exit(exit_codes.STALLED)
