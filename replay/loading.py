"""`python -m replay.loading`: load a checkpoint in a process of its own, which may crash or hang.

Tables come as JSON on standard input; exits with 0 where Reverb loads them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from apprentice.config import ReplaySettings
from apprentice.types import EnvironmentSpec
from replay.connection import make_tables
from replay.errors import CheckpointUnloadable
from replay.importing import load_reverb

_BASE_SECONDS = 60.0
_BYTES_PER_SECOND = 20e6  # a fifth of what was measured on one slow core


def try_load(live: Path, specs: Sequence[EnvironmentSpec], settings: ReplaySettings) -> None:
    """Load the checkpoint in Reverb's folder `live`; raise CheckpointUnloadable where that fails or hangs."""
    num_bytes = sum(file.stat().st_size for file in live.rglob("*") if file.is_file())
    try_load_within(live, specs, settings, _BASE_SECONDS + num_bytes / _BYTES_PER_SECOND)


def try_load_within(
    live: Path, specs: Sequence[EnvironmentSpec], settings: ReplaySettings, timeout_seconds: float
) -> None:
    """Do the same with a deadline of one's own."""
    request = {
        "live": str(live),
        "specs": [spec.to_dict() for spec in specs],
        "settings": settings.model_dump(mode="json"),
    }
    try:
        result = subprocess.run(
            [sys.executable, "-m", "replay.loading"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointUnloadable(f"loading took longer than {timeout_seconds:.0f} s") from error
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointUnloadable(f"loading ended with {result.returncode}: {reason}")


def main() -> int:
    """Load what standard input names."""
    request = json.loads(sys.stdin.read())
    specs = [EnvironmentSpec.from_dict(spec) for spec in request["specs"]]
    settings = ReplaySettings.model_validate(request["settings"])
    reverb = load_reverb()
    checkpointer = reverb.checkpointers.DefaultCheckpointer(path=request["live"])
    server = reverb.Server(make_tables(specs, settings), checkpointer=checkpointer)
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
