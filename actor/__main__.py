"""`python -m actor`: step environments for a learner; needs two addresses and no files."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Flags:
    """Where learner and replay are."""

    learner: str
    """HOST:PORT of the learner."""
    replay: str
    """HOST:PORT of the replay server."""
    slot: int | None = None
    """Slot to ask for; the learner chooses one otherwise."""


def main() -> int:
    """Run one actor; return its exit code."""
    import tyro

    from apprentice.logs import configure_logging
    from apprentice.stopping import StopSignal

    flags = tyro.cli(Flags, prog="python -m actor")
    configure_logging("actor")
    stop = StopSignal().install()
    from actor.starting import start

    return start(flags.learner, flags.replay, flags.slot, stop.asked)


if __name__ == "__main__":
    sys.exit(main())
