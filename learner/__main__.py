"""`python -m learner`: train one run, and serve its experiment and policies to actors."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Flags:
    """Where the learner finds its run, its replay and its port."""

    experiment: Path
    """A resolved experiment (YAML)."""
    run_directory: Path
    """The run's folder; a run that has checkpoints goes on from the newest."""
    replay: str
    """HOST:PORT of the replay server."""
    host: str = "127.0.0.1"
    """Interface to listen on."""
    port: int = 50051
    """Port to listen on."""
    token_file: Path | None = None
    """File of the token that callers must know; made if it is not there. Needed beyond loopback."""
    metrics: str | None = None
    """Serve Prometheus metrics on this HOST:PORT."""


def main() -> int:
    """Run the learner; return its exit code."""
    import tyro

    from apprentice.logs import configure_logging
    from apprentice.stopping import StopSignal

    flags = tyro.cli(Flags, prog="python -m learner")
    configure_logging("learner")
    stop = StopSignal().install()
    os.environ.setdefault("MUJOCO_GL", "disabled")
    from learner.starting import Addresses, start

    addresses = Addresses(flags.replay, flags.host, flags.port, flags.metrics, flags.token_file)
    return start(flags.experiment, flags.run_directory.resolve(), addresses, stop.asked)


if __name__ == "__main__":
    sys.exit(main())
