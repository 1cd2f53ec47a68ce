"""`apprentice grid`: all variants of an experiment, one after the other.

Done ones are skipped and half-done ones gone on with, so the same command may be given again after
whatever came in between.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.launch import exit_code_of, new_run, resumed_run
from cli.preparing import prepare
from cli.up import add_folder_arguments, watch

if TYPE_CHECKING:
    from apprentice.config import Experiment
    from apprentice.runs import RunFolder


class Entry(NamedTuple):
    """One variant, and the run that it already has."""

    experiment: Experiment
    folder: RunFolder | None
    state: str  # "new", or the state of the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="name under experiments/, or path of a file")
    parser.add_argument("--variant", type=int, metavar="N", help="only this variant")
    parser.add_argument(
        "--list", action="store_true", help="list the variants and how far they are"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines, even on a terminal")
    add_folder_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    entries = find_entries(arguments.experiment, arguments.runs)
    if arguments.variant is not None:
        numbers = [entry.experiment.variant for entry in entries]
        if arguments.variant not in numbers:
            raise CommandFailed(
                f"--variant: expected one of {numbers}, found {arguments.variant}",
                exit_codes.CONFIGURATION,
            )
        entries = [entry for entry in entries if entry.experiment.variant == arguments.variant]
    if arguments.list:
        for entry in entries:
            print(_describe(entry))
        return 0
    return _run_all(entries, arguments.runs, arguments.replay_checkpoints, arguments.plain)


def find_entries(name: str, runs: Path) -> list[Entry]:
    """Return the variants of an experiment, each with its newest run that fits it exactly.

    A run fits where its resolved experiment is the same: one made before the file was changed
    does not count as done.
    """
    from apprentice.experiments import ExperimentError, expand
    from apprentice.runs import Catalogue

    try:
        experiments = expand(name)
    except ExperimentError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    newest: dict[int, RunFolder] = {}
    for folder in Catalogue(runs.absolute()).runs():
        try:
            resolved = folder.read_experiment()
        except ExperimentError:
            continue  # Made by another version, or by hand: no variant of today's.
        if resolved in experiments:
            newest.setdefault(resolved.variant, folder)
    return [_entry(experiment, newest.get(experiment.variant)) for experiment in experiments]


def _entry(experiment: Experiment, folder: RunFolder | None) -> Entry:
    if folder is None:
        return Entry(experiment, None, "new")
    status = folder.read_status()
    return Entry(experiment, folder, status.state if status is not None else "starting")


def _run_all(entries: list[Entry], runs: Path, replay_checkpoints: Path, plain: bool) -> int:
    failures = []
    for entry in entries:
        print(_describe(entry), flush=True)
        if entry.state == "finished":
            continue
        if entry.folder is None:
            prepare(
                entry.experiment,
                runs,
                replay_checkpoints,
                watch=lambda launch: watch(launch, exit_when_done=True, plain=plain),
            )
            launch = new_run(entry.experiment, runs, replay_checkpoints)
        else:
            launch = resumed_run(entry.folder.path.name, runs, replay_checkpoints)
        outcome = watch(launch, exit_when_done=True, plain=plain)
        if outcome.kind in ("interrupted", "killed"):
            return exit_code_of(outcome)
        if outcome.kind == "failed":
            failures.append(entry.experiment.variant)
    if failures:
        print(f"variants that failed: {', '.join(str(number) for number in failures)}")
    return exit_codes.FAILED if failures else 0


def _describe(entry: Entry) -> str:
    name = entry.folder.path.name if entry.folder is not None else ""
    return f"variant {entry.experiment.variant}: {entry.state} {name}".rstrip()
