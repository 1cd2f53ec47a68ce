"""`apprentice choose EXPERIMENT`: the run that services which are started one by one work on, as in containers.

It is the newest run with exactly these settings, or a new one; `RUNS/.current` is made a link to it.
Asked again, with the same settings, the answer is the same: `docker compose up` goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.launch import read_experiment
from cli.up import add_experiment_arguments

if TYPE_CHECKING:
    from apprentice.config import Experiment
    from apprentice.runs import RunFolder

CURRENT = ".current"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="name under experiments/, or path of a file")
    parser.add_argument(
        "--settings",
        default="",
        metavar="'KEY=VALUE ...'",
        help="settings to change, all in one argument, as an environment variable holds them",
    )
    parser.add_argument("--new", action="store_true", help="a new run, whatever there is")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (runs)"
    )
    add_experiment_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    overrides = (*arguments.settings.split(), *arguments.overrides)
    experiment = read_experiment(arguments.experiment, arguments.variant, overrides)
    try:
        folder = None if arguments.new else newest_run_of(experiment, arguments.runs)
        if folder is None:
            from apprentice.runs import RunFolder

            folder = RunFolder.create(arguments.runs.absolute(), experiment)
        point_at(folder)
    except OSError as error:
        raise CommandFailed(
            f"cannot choose a run in {arguments.runs}: {error}", exit_codes.CONFIGURATION
        ) from None
    status = folder.read_status()
    state = f"{status.state} at {status.steps:,} steps" if status else "new"
    print(f"run {folder.path.name}: {experiment.task}, {state}")
    return 0


def newest_run_of(experiment: Experiment, runs: Path) -> RunFolder | None:
    """Return the newest run with just these settings; one that failed is not taken up again."""
    from apprentice.experiments import ExperimentError
    from apprentice.runs import Catalogue

    for folder in Catalogue(runs.absolute()).runs():
        try:
            found = folder.read_experiment()
        except (ExperimentError, OSError):
            continue  # A run of an older release, say: it stays for whoever wants to look at it.
        if found == experiment:
            status = folder.read_status()
            return None if status is not None and status.state == "failed" else folder
    return None


def point_at(folder: RunFolder) -> None:
    """Make `.current` beside a run a link to it; whoever follows it meanwhile finds the old or the new."""
    stage = folder.path.parent / f"{CURRENT}.{os.getpid()}"
    stage.symlink_to(folder.path.name)
    os.rename(stage, folder.path.parent / CURRENT)
