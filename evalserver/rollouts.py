"""Episodes with what is needed to draw them, and the requests that cannot be served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from apprentice.config import EnvironmentSettings
    from apprentice.environments.renderer import Quality
    from apprentice.evaluation import Episode, Evaluation
    from apprentice.types import Trajectory


class Answerable(Exception):
    """A request that is at fault itself; `status` is the HTTP status it gets."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Rollout(NamedTuple):
    """One checkpoint's episodes, or demonstrations, and what is needed to draw them."""

    task: str
    settings: EnvironmentSettings
    quality: Quality
    steps: int
    evaluation: Evaluation


def kept_rollout(path: Path, steps: int) -> Rollout:
    """Return an episode that a training run kept. Raises Answerable."""
    from apprentice.evaluation import Evaluation
    from apprentice.trajectories import TrajectoryError, load_trajectory

    try:
        trajectory, task, settings = load_trajectory(path)
    except (OSError, TrajectoryError) as error:
        raise Answerable(422, f"the kept episode cannot be used: {error}") from error
    return Rollout(
        task, settings, "look", steps, Evaluation((kept_episode(task, trajectory),), 0.0)
    )


def kept_episode(task: str, trajectory: Trajectory, context: tuple[int, ...] = ()) -> Episode:
    """Return a recorded trajectory as an episode like those that are evaluated."""
    from apprentice.evaluation import Episode

    total, length = float(trajectory.environment_reward.sum()), len(trajectory.action)
    return Episode(task, trajectory.seed, total, length, trajectory.ending, trajectory, {}, context)
