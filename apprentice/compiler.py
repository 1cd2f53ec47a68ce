"""What torch.compile needs on a CPU: a C++ compiler that runs, and Python's headers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

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
    try:
        done = subprocess.run(  # noqa: S603
            [name, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Compiler(f"{name}: no answer within {_SECONDS:.0f} s", install)
    except OSError as error:
        return Compiler(f"{name}: cannot be started: {error.strerror}", install)
    said = done.stdout.strip()
    if done.returncode != 0:
        return Compiler(f"{name}: {said}", install)
    return Compiler(said.partition("\n")[0], None)
