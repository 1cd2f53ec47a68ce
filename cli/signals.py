"""Signals as lines to read from a loop, instead of code that runs in the middle of anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType


class Signals:
    """Within the context, the given signals only make `readable` readable; `drain` names them.

    `wanted` are reported; `waking` only wake the loop. The handlers of before come back on leaving.
    """

    def __init__(
        self, wanted: Sequence[signal.Signals], waking: Sequence[signal.Signals] = ()
    ) -> None:
        self._wanted = tuple(wanted)
        self._waking = tuple(waking)
        self._pending: list[str] = []

    def __enter__(self) -> Signals:
        self.readable, self._written = os.pipe()
        os.set_blocking(self.readable, False)
        os.set_blocking(self._written, False)
        self._wakeup = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._note) for number in self._wanted + self._waking
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.readable)
        os.close(self._written)

    def drain(self) -> list[str]:
        """Return the names of the wanted signals that came since the last call, in their order."""
        try:
            while os.read(self.readable, 4096):
                pass
        except BlockingIOError:
            pass
        names, self._pending = self._pending, []
        return names

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in self._wanted:
            self._pending.append(signal.Signals(number).name)
