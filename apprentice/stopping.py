"""How a process ends: asked by a signal, politely at first, or together with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


class StopSignal:
    """Remembers SIGTERM or SIGINT; a second one ends the process without further ado."""

    def __init__(self) -> None:
        self._asked = False

    def install(self) -> StopSignal:
        """Handle both signals from now on; for the main thread."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def asked(self) -> bool:
        """Whether the process should end."""
        return self._asked

    def _handle(self, number: int, frame: object) -> None:
        if self._asked:
            os._exit(128 + number)
        self._asked = True


def death_with(parent: int) -> Callable[[], None]:
    """Return a call that ties the calling process's life to process `parent`, by SIGKILL.

    The kernel sends it when the thread that started the process ends, so that should be a main thread.
    All that takes time happens before the call, which may run between fork and exec.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    kill = int(signal.SIGKILL)

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, kill, 0, 0, 0)
        if os.getppid() != parent:  # The parent died before the line above.
            os._exit(1)

    return arm
