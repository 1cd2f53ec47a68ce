"""`apprentice families`: how final policies do in tasks of their family that they never learned."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.machine import commit_of_run
from cli.report import command_of_run, finished_run, put_table

if TYPE_CHECKING:
    from apprentice.family_results import FamilyRow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs of a family"
    )
    parser.add_argument(
        "--csv", type=Path, required=True, metavar="FILE", help="rows are read from and added to it"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="measure again, instead of taking what the run measured at its end",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE.md", help="put the tables between this file's two marks"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write a picture for each family and division there"
    )


def run(arguments: argparse.Namespace) -> int:
    from apprentice.family_results import (
        family_plot,
        family_table,
        read_family_results,
        write_family_results,
    )
    from apprentice.results import ResultsError

    try:
        rows = {row.key: row for row in read_family_results(arguments.csv)}
    except ResultsError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    for path in arguments.runs:
        measured = _measure(path, arguments.again)
        _refuse_other_settings(path, measured[0], rows.values(), arguments.csv)
        rows |= {row.key: row for row in measured}
        write_family_results(arguments.csv, list(rows.values()))
        mean = sum(row.environment_return for row in measured) / len(measured)
        print(f"{path.name}: mean return {mean:.1f} over {len(measured)} rows", file=sys.stderr)
    found = list(rows.values())
    text = family_table(found)
    print(text, end="")
    if arguments.into is not None:
        put_table(text, arguments.into)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for family, split in sorted({(row.family, row.split) for row in found}):
            picture = arguments.out / f"{family}-{split}.svg"
            picture.write_text(family_plot(found, family, split))
            print(picture, file=sys.stderr)
    return 0


def _refuse_other_settings(
    path: Path, row: FamilyRow, rows: Iterable[FamilyRow], results: Path
) -> None:
    """Refuse a run that would be taken together with seeds of other settings."""
    for before in rows:
        same = (before.family, before.split, before.method) == (row.family, row.split, row.method)
        if same and _what_is_learned(before.command) != _what_is_learned(row.command):
            raise CommandFailed(
                f"{path}: expected a run that `{before.command}` makes, with any seed, which {results} has as "
                f"{row.method}; found one of `{row.command}`: keep it in a file of its own, or remove the old rows",
                exit_codes.CONFIGURATION,
            )


def _what_is_learned(command: str) -> str:
    """Leave out the seed, and what only says when a run is looked at."""
    return re.sub(r" --set (seed|evaluation\.\w+|checkpoint\.\w+)=\S+", "", command)


def _measure(path: Path, again: bool) -> list[FamilyRow]:
    """Return the rows of a run's final policy."""
    folder, checkpoint, experiment = finished_run(path)
    if not experiment.is_family:
        raise CommandFailed(
            f"{path}: expected a run of a family of tasks, found one of {experiment.task}: `apprentice report` "
            "measures it",
            exit_codes.CONFIGURATION,
        )
    from apprentice.checkpoint import CheckpointError
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.evaluation import EvaluationError
    from apprentice.family_evaluation import (
        evaluate_family,
        method_label,
        read_family_evaluation,
        write_family_evaluation,
    )
    from apprentice.family_results import FamilyRow, metric_text

    found = None if again else read_family_evaluation(folder.evaluations)
    if found is None:
        try:
            found = evaluate_family(checkpoint)
        except (CheckpointError, DemonstrationError, EvaluationError) as error:
            raise CommandFailed(f"{path}: {error}", exit_codes.CONFIGURATION) from None
        write_family_evaluation(folder.evaluations, found)
    return [
        FamilyRow(
            experiment.task,
            experiment.environment.family.split,
            method_label(experiment),
            result.context,
            result.task_id,
            experiment.seed,
            result.environment_return,
            metric_text(result.metrics),
            result.expert_return,
            None,  # known once it stands among the others
            command_of_run(experiment),
            commit_of_run(folder),
        )
        for result in found.results
    ]
