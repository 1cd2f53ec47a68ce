"""What torch.compile needs: a C++ compiler that runs, and Python's headers."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

from apprentice.commands import output_of

_SECONDS = 30.0


class Compiler(NamedTuple):
    """What was found of it."""

    found: str
    """Its version; where something is wrong, what."""
    remedy: str | None
    """The line that mends it, None where nothing is wrong."""


def find_compiler() -> Compiler:
    """Look for both; a compiler that is there and does not run counts as none."""
    name = os.environ.get("CXX") or "g++"
    install = "apt-get install -y g++"
    if shutil.which(name) is None:
        return Compiler(f"no {name}", install)
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return Compiler("no Python.h", "apt-get install -y python3.11-dev")
    code, output = output_of(name, "--version", seconds=_SECONDS)
    if code != 0:
        return Compiler(f"{name}: {output}", install)
    return Compiler(output.partition("\n")[0], None)
