"""`python -m actor`: step environments for a learner; needs two addresses and no files."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from apprentice import exit_codes


@dataclass(frozen=True)
class Flags:
    """Where learner and replay are."""

    learner: str
    """HOST:PORT of the learner."""
    replay: str
    """HOST:PORT of the replay server."""
    slot: int | None = None
    """Slot to ask for; the learner chooses one otherwise."""
    token_file: Path | None = None
    """File of the learner's token, where it asks for one."""
    metrics: str | None = None
    """Serve Prometheus metrics on this HOST:PORT."""


def main() -> int:
    """Run one actor; return its exit code."""
    parent = os.getppid()
    from apprentice.stopping import StopSignal

    stop = StopSignal().install()
    import structlog
    import tyro

    from apprentice.logs import configure_logging
    from apprentice.ports import split_address

    flags = tyro.cli(Flags, prog="python -m actor")
    configure_logging("actor")
    for name, address in (("--learner", flags.learner), ("--replay", flags.replay)):
        try:
            split_address(address)
        except ValueError as error:
            structlog.get_logger().error(f"{name}: {error}")
            return exit_codes.CONFIGURATION

    def reason_to_stop() -> str | None:
        if stop.asked():
            return "asked to stop"
        return None if os.getppid() == parent else "the process that started it is gone"

    from actor.starting import start

    return start(
        flags.learner, flags.replay, flags.slot, reason_to_stop, flags.metrics, flags.token_file
    )


if __name__ == "__main__":
    sys.exit(main())
