"""How a service is asked to end: the first signal politely, the second one at once."""

from __future__ import annotations

import os
import signal


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
