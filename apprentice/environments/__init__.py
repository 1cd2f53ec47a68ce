"""Environments of the DeepMind Control Suite, and the renderer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from apprentice.config import EnvironmentSettings

# First of all imports of dm_control: see there.
from apprentice.environments.tasks import (  # isort: skip
    UnknownTask,
    experiment_tasks,
    find_task,
    suite_tasks,
)
from apprentice.environments.environment import Environment, PhysicsFault
from apprentice.environments.families import FamilyError, Task, load_family, task_split
from apprentice.environments.gl import RenderingBackend, RenderingUnavailable, probe_rendering
from apprentice.environments.renderer import Renderer
from apprentice.suite_tasks import FAMILIES, family_of
from apprentice.types import EnvironmentSpec

__all__ = [
    "Environment",
    "PhysicsFault",
    "Renderer",
    "RenderingBackend",
    "RenderingUnavailable",
    "Task",
    "UnknownTask",
    "environment_spec",
    "evaluated_tasks",
    "experiment_specs",
    "experiment_tasks",
    "find_task",
    "make_environment",
    "probe_rendering",
    "rebuild_environment",
    "shown_task",
    "suite_tasks",
]


def make_environment(
    task: str,
    seed: int,
    observation: Sequence[str] = ("state",),
    settings: EnvironmentSettings | None = None,
) -> Environment:
    """Build an environment of a `domain-task`, or of a family's task by its id; the same seed gives the same episodes.

    `observation` names what `step` answers with: `state`, `pixels`, and for families `task_parameters`. A
    graphics context is opened at the first reset, and only for `pixels`. Raises UnknownTask.
    """
    settings = settings or EnvironmentSettings()
    return Environment(find_task(task, settings.family), seed, observation, settings)


@lru_cache(maxsize=64)
def _spec(
    task: str, observation: tuple[str, ...], settings: EnvironmentSettings
) -> EnvironmentSpec:
    return make_environment(task, 0, observation, settings).spec


def environment_spec(
    task: str, observation: Sequence[str], settings: EnvironmentSettings
) -> EnvironmentSpec:
    """Return the spec of an environment without drawing anything; cheap after the first time."""
    return _spec(task, tuple(observation), settings)


def rebuild_environment(
    spec: EnvironmentSpec, observation: Sequence[str], settings: EnvironmentSettings
) -> Environment:
    """Build the environment that a spec describes, a family's task from its parameters. Raises UnknownTask."""
    family = family_of(spec.task_id)
    if family is None:
        return make_environment(spec.task_id, 0, observation, settings)
    try:
        task = load_family(family).task(**spec.task_parameters)
    except FamilyError as error:
        raise UnknownTask(str(error)) from error
    if task.task_id != spec.task_id:
        raise UnknownTask(
            f"expected the task {task.task_id} of these parameters, found {spec.task_id!r}"
        )
    return Environment(task, 0, observation, settings)


def evaluated_tasks(task: str, settings: EnvironmentSettings) -> tuple[str, ...]:
    """Return ids of the tasks that training may be judged by: a family's validation tasks, or the one."""
    if task not in FAMILIES:
        return (task,)
    return tuple(found.task_id for found in task_split(task, settings.family).validation)


def shown_task(task: str, settings: EnvironmentSettings) -> str:
    """Return the id of the task to show a policy in where nobody says which: of a family the first meta-test one."""
    if task not in FAMILIES:
        return task
    return task_split(task, settings.family).test[0].task_id


def experiment_specs(
    task: str, observation: Sequence[str], settings: EnvironmentSettings
) -> list[EnvironmentSpec]:
    """Return the spec of each task that an experiment trains on, in the order of their tables. Raises UnknownTask."""
    tasks = experiment_tasks(task, settings.family)
    first = environment_spec(tasks[0].task_id, observation, settings)
    return [
        replace(first, task=t.task_id, task_id=t.task_id, task_parameters=dict(t.parameters))
        for t in tasks
    ]
