"""`apprentice report`: how well the final policies of runs do, as rows of a CSV, a table and a plot."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.machine import commit_of_run

if TYPE_CHECKING:
    from apprentice.config import Experiment
    from apprentice.results import LearningRow
    from apprentice.runs import RunFolder

FIRST_SEED = 2_000_000
"""Of the episodes that results are measured on: no periodic evaluation and no demonstration has them."""


BEGIN, END = "<!-- results -->", "<!-- end of results -->"
"""Marks of the place for a table in a Markdown file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs to measure"
    )
    parser.add_argument(
        "--csv", type=Path, required=True, metavar="FILE", help="rows are read from and added to it"
    )
    parser.add_argument("--episodes", type=int, default=40, metavar="N")
    parser.add_argument(
        "--measure",
        choices=("final", "curve", "evaluations"),
        default="final",
        help="the final policy, evaluated now; the mean of the run's own evaluations: how fast it learned; or each of "
        "those, a row for each: its learning curve",
    )
    parser.add_argument(
        "--against",
        metavar="METHOD",
        help="print every method's difference from this one, with its interval",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY",
        help="setting that tells variants apart, as in imitation.reward.form; it joins the method's name, and may be "
        "given again",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE.md", help="put the table between this file's two marks"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write table.md and returns.svg there"
    )


def run(arguments: argparse.Namespace) -> int:
    from apprentice.results import (
        ResultsError,
        differences,
        plot,
        read_results,
        table,
        write_results,
    )

    try:
        rows = {row.key: row for row in read_results(arguments.csv)}
    except ResultsError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    for path, row in ((run, row) for run in arguments.runs for row in _measure(run, arguments)):
        before = rows.get(row.key)
        if before is not None and before.command != row.command:
            raise CommandFailed(
                f"{path}: expected a run that `{before.command}` makes, which {arguments.csv} has as {row.method} on "
                f"{row.task}, seed {row.seed}; found one of `{row.command}`: tell them apart with --label KEY, keep "
                "them in files of their own, or remove the old row",
                exit_codes.CONFIGURATION,
            )
        rows[row.key] = row
        write_results(arguments.csv, list(rows.values()))
        print(f"{path.name}: return {row.environment_return:.1f}", file=sys.stderr)
    text = table(list(rows.values()))
    print(text, end="")
    if arguments.against is not None:
        try:
            print("\n" + differences(list(rows.values()), arguments.against), end="")
        except ResultsError as error:
            raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "table.md").write_text(text)
        (arguments.out / "returns.svg").write_text(plot(list(rows.values())))
    if arguments.into is not None:
        put_table(text, arguments.into)
    return 0


def put_table(table: str, path: Path) -> None:
    """Replace what lies between the marks of a Markdown file."""
    before, first, rest = path.read_text().partition(BEGIN)
    _, second, after = rest.partition(END)
    if not first or not second:
        raise CommandFailed(
            f"--into: expected {path} with the lines {BEGIN} and {END}, found none",
            exit_codes.CONFIGURATION,
        )
    path.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}")


def _measure(path: Path, arguments: argparse.Namespace) -> list[LearningRow]:
    """Return a run's rows: one of its final policy (never the best, which would select on the environment's reward)
    or of the mean of its own evaluations, or one of each of those."""
    folder, checkpoint, experiment = finished_run(path)
    if experiment.infers_task:
        raise CommandFailed(
            f"{path}: expected a policy that is shown nothing, found one that infers its task: `apprentice families` "
            "measures it",
            exit_codes.CONFIGURATION,
        )
    bc, repeat = experiment.imitation.method == "bc", experiment.environment.action_repeat
    budget = 0 if bc else experiment.learner.max_steps * repeat
    if arguments.measure == "final":
        values = {budget: return_of(checkpoint, experiment, arguments.episodes)}
    elif arguments.measure == "curve":
        means = _evaluations(folder).values()
        values = {budget: sum(means) / len(means)}
    elif bc:
        raise CommandFailed(
            f"{path}: --measure evaluations: expected a run whose policy acts while it learns, found one of `bc`, "
            "which uses no environment frames",
            exit_codes.CONFIGURATION,
        )
    else:
        values = {steps * repeat: value for steps, value in _evaluations(folder).items()}
    expert = _expert_of(folder)
    return [
        _row(folder, experiment, frames, value, expert, arguments)
        for frames, value in values.items()
    ]


def finished_run(path: Path) -> tuple[RunFolder, Path, Experiment]:
    """Return a run's folder, newest checkpoint and experiment; refuse one that has not finished."""
    from apprentice.checkpoint import newest_checkpoint
    from apprentice.checkpoint_format import CheckpointError
    from apprentice.experiments import ExperimentError, load_resolved
    from apprentice.runs import RunFolder

    folder = RunFolder(path)
    try:
        experiment = load_resolved(folder.path / "experiment.yaml")
        found = newest_checkpoint(folder.checkpoints, repair=False)
    except (ExperimentError, CheckpointError) as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    status = folder.read_status()
    if found is None or status is None or status.state != "finished":
        state = "no status" if status is None else status.state
        raise CommandFailed(
            f"{path}: expected a run that has finished, found {state}: "
            f"`apprentice up --resume {path.name}` goes on with it",
            exit_codes.CONFIGURATION,
        )
    return folder, found[0], experiment


def _evaluations(folder: RunFolder) -> dict[int, float]:
    """Return the mean return of each of a run's periodic evaluations, by agent steps."""
    means: dict[int, float] = {}
    for path in sorted(folder.evaluations.glob("step-*.json")):
        found = json.loads(path.read_text())
        means[found["steps"]] = sum(found["returns"]) / len(found["returns"])
    if not means:
        raise CommandFailed(
            f"{folder.path}: expected evaluations that the run made, found none",
            exit_codes.CONFIGURATION,
        )
    return means


def return_of(checkpoint: Path, experiment: Experiment, episodes: int) -> float:
    """Return a policy's mean return over episodes that nothing else has seen, with the likeliest actions."""
    from apprentice.checkpoint import load_policy
    from apprentice.evaluation import evaluate

    policy, _ = load_policy(checkpoint)
    return evaluate(
        policy,
        experiment.task,
        range(FIRST_SEED, FIRST_SEED + episodes),
        observation=experiment.acting_keys,
        settings=experiment.environment,
        deadline_seconds=3600.0,
    ).return_mean


def _row(
    folder: RunFolder,
    experiment: Experiment,
    frames: int,
    value: float,
    expert: dict[str, Any],
    arguments: argparse.Namespace,
) -> LearningRow:
    from apprentice.results import LearningRow

    imitation = experiment.imitation
    num = len(expert.get("returns", ()))
    best, worst = expert.get("expert_return"), expert.get("random_return")
    normalised = None if best is None or worst is None else (value - worst) / (best - worst)
    method: str = "sac" if imitation.method == "none" else imitation.method
    for label in arguments.label:
        setting: Any = experiment
        for name in label.split("."):
            if not hasattr(setting, name):
                raise CommandFailed(
                    f"--label: expected a setting's key, found {label!r}",
                    exit_codes.CONFIGURATION,
                )
            setting = getattr(setting, name)
        method = f"{method}:{setting}"
    return LearningRow(
        experiment.task,
        method,
        num,
        int(expert.get("rows", 0)),
        experiment.seed,
        frames,
        value,
        best,
        worst,
        normalised,
        command_of_run(experiment),
        commit_of_run(folder),
    )


def command_of_run(experiment: Experiment) -> str:
    """Return what makes a run again: experiment, variant, and all settings that its file does not say."""
    from apprentice.experiments import ExperimentError, expand

    reference = _reference(experiment.name)
    words, found = ["apprentice", "up", reference], experiment.flat()
    try:
        variants = [one.flat() for one in expand(reference)]
    except ExperimentError:
        return shlex.join(words)
    changes = [
        {k: v for k, v in found.items() if stated.get(k) != v and not k.startswith("services.")}
        for stated in variants
    ]
    nearest = min(range(len(variants)), key=lambda number: len(changes[number]))
    if len(variants) > 1:
        if not changes[nearest]:
            return shlex.join(["apprentice", "grid", reference])
        words += ["--variant", str(nearest)]
    for key, value in _with_presets(changes[nearest], found).items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _with_presets(changes: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return changes with what a method or preset among them would set otherwise than was found."""
    from apprentice.config_base import flatten
    from apprentice.config_imitation import ARCHITECTURES, PRESETS

    method, preset = "imitation.method", "imitation.discriminator.preset"
    set_by = flatten({"imitation": PRESETS[changes[method]]}) if method in changes else {}
    if changes.get(preset) is not None:
        set_by |= flatten({"imitation": {"discriminator": ARCHITECTURES[changes[preset]]}})
    return changes | {key: found[key] for key, value in set_by.items() if found[key] != value}


def _reference(name: str) -> str:
    """Return what an experiment is called by: its name, or its path where it lies in a folder of its own."""
    files = sorted(Path("experiments").rglob(f"{name}.yaml"))
    if files and Path("experiments") not in {file.parent for file in files}:
        return files[0].as_posix()
    return name


def _expert_of(folder: RunFolder) -> dict[str, Any]:
    from apprentice.runs import EXPERT_RECORD

    try:
        found = json.loads((folder.evaluations / EXPERT_RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
