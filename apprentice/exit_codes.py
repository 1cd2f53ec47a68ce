"""How services and commands end, for whoever decides whether to start them again."""

from __future__ import annotations

from typing import Final

FAILED: Final = 1
STALLED: Final = 70
DIVERGED: Final = 71
TRY_AGAIN: Final = 75
CONFIGURATION: Final = 78
"""Wrong settings, a port or a folder that is held: another start would end the same way."""

MEANINGS: Final = {
    STALLED: "its watchdog found it stalled",
    DIVERGED: "training diverged",
    TRY_AGAIN: "asked to be tried again",
    CONFIGURATION: "configuration error",
}
