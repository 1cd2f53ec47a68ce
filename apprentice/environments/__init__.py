"""Environments of the DeepMind Control Suite, and the renderer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from apprentice.config import EnvironmentSettings

# First of all imports of dm_control: see there.
from apprentice.environments.tasks import Task, UnknownTask, find_task, suite_tasks  # isort: skip
from apprentice.environments.environment import Environment, PhysicsFault
from apprentice.environments.gl import RenderingBackend, RenderingUnavailable, probe_rendering
from apprentice.environments.renderer import Renderer
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
    "find_task",
    "make_environment",
    "probe_rendering",
    "suite_tasks",
]


def make_environment(
    task: str,
    seed: int,
    observation: Sequence[str] = ("state",),
    settings: EnvironmentSettings | None = None,
) -> Environment:
    """Build an environment of a `domain-task`; the same seed gives the same episodes.

    `observation` names what `step` answers with: `state`, `pixels` or both. A graphics context is
    opened at the first reset, and only for `pixels`. Raises UnknownTask.
    """
    return Environment(find_task(task), seed, observation, settings or EnvironmentSettings())


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
