"""Other programs, run to their end for what they print."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping


def output_of(
    *command: str, seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command to its end or its deadline; return exit code and all output, stripped."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end within {seconds:.0f} s"
    except OSError as error:
        return 1, f"cannot be started: {error.strerror}"
    return done.returncode, done.stdout.strip()
