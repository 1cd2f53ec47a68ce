"""`apprentice pin CHECKPOINT`: keep a checkpoint for good, whatever newer ones a run writes."""

from __future__ import annotations

import argparse
from pathlib import Path

from apprentice import exit_codes
from cli.evaluate import find_checkpoint
from cli.failure import CommandFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="ID", help="RUN:STEP, RUN:best, RUN, latest")
    parser.add_argument("--remove", action="store_true", help="let it be removed again")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    path = find_checkpoint(arguments.checkpoint, arguments.runs, "ID")
    from apprentice.checkpoint import CheckpointError
    from apprentice.checkpoint_retention import pin_checkpoint, pinned_checkpoints, unpin_checkpoint

    try:
        (unpin_checkpoint if arguments.remove else pin_checkpoint)(path)
    except CheckpointError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    except OSError as error:
        raise CommandFailed(f"{path.parent}: {error.strerror}") from None
    kept = sorted(pinned_checkpoints(path.parent))
    print(f"run {path.parent.parent.name}: pinned are {', '.join(kept) or 'none'}")
    return 0
