"""`apprentice experiments`: what there is to train, and what it resolves to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.launch import read_experiment
from cli.up import add_experiment_arguments

if TYPE_CHECKING:
    from apprentice.config import Experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show this experiment, resolved, as YAML")
    lists = parser.add_mutually_exclusive_group()
    lists.add_argument(
        "--list", action="store_true", help="list all experiments, or NAME's variants"
    )
    lists.add_argument(
        "--tasks",
        action="store_true",
        help="list the tasks of NAME's family, with their parameters",
    )
    add_experiment_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.name is None:
        if arguments.tasks:
            raise CommandFailed(
                "--tasks: expected the name of an experiment", exit_codes.CONFIGURATION
            )
        _list_experiments()
    elif arguments.tasks:
        _list_tasks(read_experiment(arguments.name, arguments.variant, tuple(arguments.overrides)))
    elif arguments.list:
        _list_variants(arguments.name)
    else:
        from apprentice.plain_yaml import write_yaml

        experiment = read_experiment(arguments.name, arguments.variant, tuple(arguments.overrides))
        print(write_yaml(experiment.model_dump(mode="json")), end="")
    return 0


def _list_experiments() -> None:
    from apprentice.experiments import ExperimentError, expand, experiment_names

    for name in experiment_names():
        try:
            variants = expand(name)
        except ExperimentError as error:
            print(f"{name:28} broken: {error}")
            continue
        tasks = ", ".join(dict.fromkeys(variant.task for variant in variants))
        number = f"{len(variants)} variants, " if len(variants) > 1 else ""
        print(f"{name:28} {number}{tasks}, {variants[0].learner.max_steps:,} steps")


def _list_variants(name: str) -> None:
    from apprentice.experiments import ExperimentError, expand

    try:
        variants = expand(name)
    except ExperimentError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    for variant, differences in zip(variants, differing_settings(variants), strict=True):
        shown = "  ".join(f"{key}={value}" for key, value in differences.items())
        print(f"{variant.variant:4}  {shown}".rstrip())


def _list_tasks(experiment: Experiment) -> None:
    from apprentice.config_family import SPLITS
    from apprentice.environments.families import load_family, task_split
    from apprentice.suite_tasks import family_of

    name = family_of(experiment.task)
    if name is None:
        raise CommandFailed(
            f"--tasks: expected an experiment of a family of tasks, found one of {experiment.task}",
            exit_codes.CONFIGURATION,
        )
    family, split = load_family(name), task_split(name, experiment.environment.family)
    for part in SPLITS:
        for task in split.of(part):
            parameters = "  ".join(
                f"{p.name} {task.parameters[p.name]:.6g}{f' {p.unit}' if p.unit else ''}"
                for p in family.parameters
            )
            print(f"{part:11} {task.task_id}  {parameters}")


def differing_settings(variants: tuple[Experiment, ...]) -> list[dict[str, Any]]:
    """Return of each variant the settings in which they do not all agree."""
    flat = [variant.flat() for variant in variants]
    return [
        {
            key: value
            for key, value in settings.items()
            if key != "variant" and any(other.get(key) != value for other in flat)
        }
        for settings in flat
    ]
