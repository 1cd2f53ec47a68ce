"""A demonstration file of one's own, shown to a policy that infers its task."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from apprentice.config import Experiment
from apprentice.demonstrations.context import ContextChoice, ContextLibrary, ContextOfTask
from apprentice.demonstrations.format import DemonstrationError, require_spec
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.environments import UnknownTask, environment_spec
from apprentice.suite_tasks import family_of

MOST_SHOWN: Final = 64
"""Demonstrations shown at once."""


def context_of_file(
    path: Path, experiment: Experiment, task: str | None
) -> tuple[str, ContextChoice]:
    """Return the task that a file's demonstrations are of, and the choice of all of them.

    `task` stands in for that of a file that does not say its own. Raises DemonstrationError where they are not what
    the experiment's policy can be shown.
    """
    if not experiment.infers_task:
        raise DemonstrationError(
            f"expected none, since this policy does not infer its task from demonstrations; found {path}"
        )
    demonstrations = read_demonstrations(path)
    spec = demonstrations.metadata.spec
    if spec is not None:
        if task not in (None, spec.task_id):
            raise DemonstrationError(
                f"{path}: expected demonstrations of {task}, found {spec.task_id}'s"
            )
        task = spec.task_id
    if task is None:
        raise DemonstrationError(
            f"{path}: expected a file that says its task, or --task; found neither"
        )
    family = family_of(experiment.task)
    if family is None or family_of(task) != family:
        raise DemonstrationError(
            f"{path}: expected demonstrations of a task of {family}, found {task}'s"
        )
    try:
        expected = environment_spec(task, ("state",), experiment.environment)
    except UnknownTask as error:
        raise DemonstrationError(f"{path}: {error}") from None
    if spec is not None and spec.action_repeat != expected.action_repeat:
        raise DemonstrationError(
            f"{path}: action_repeat: expected {expected.action_repeat} as the policy was trained with, found "
            f"{spec.action_repeat}"
        )
    for episode in demonstrations.trajectories:
        require_spec(str(path), demonstrations.metadata, episode, expected)
    num = len(demonstrations.trajectories)
    if num > MOST_SHOWN:
        raise DemonstrationError(
            f"{path}: expected at most {MOST_SHOWN} demonstrations to show at once, found {num}; `apprentice demos "
            "split` makes smaller files"
        )
    shown = ContextOfTask(task, "test", demonstrations.metadata, demonstrations.trajectories)
    return task, ContextChoice(ContextLibrary(family, [shown]), num, tuple(range(num)))
