"""The files of demonstrations that come with the project, one a task."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BUNDLED: Final = Path(__file__).resolve().parents[2] / "demonstrations"
"""Where they lie."""


def bundled_names() -> tuple[str, ...]:
    """Return their names, which are their tasks'."""
    return tuple(sorted(path.stem for path in BUNDLED.glob("*.hdf5")))
