"""`cheetah_velocity`: the suite's cheetah runs at a speed that it is not told.

The reward falls linearly from 1 at the target speed to 0 at 3 m/s away from it. An episode lasts 5 s.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from dm_control.rl import control
from dm_control.suite import cheetah

from apprentice.config_family import FamilySettings
from apprentice.environments.families import Family, Parameter, Task, TaskSplit

FASTEST = 3.0
"""Metres a second."""
EPISODE_SECONDS = 5.0


class RunAtSpeed(cheetah.Cheetah):  # type: ignore[misc]
    """Keep a speed that the observation does not contain."""

    def __init__(self, speed: float, random: int) -> None:
        super().__init__(random=random)
        self._speed = speed
        self._errors: list[float] = []

    def initialize_episode(self, physics: Any) -> None:
        """Start as the suite's task does."""
        super().initialize_episode(physics)
        self._errors = []

    def get_reward(self, physics: Any) -> float:
        """Return 1 - |v - target| / 3, at least 0."""
        error = abs(float(physics.speed()) - self._speed)
        self._errors.append(error)
        return max(0.0, 1.0 - error / FASTEST)

    def episode_metrics(self, physics: Any) -> dict[str, float]:
        """Return the mean of |v - target| in m/s over the episode so far, and over its second half."""
        errors = self._errors or [abs(float(physics.speed()) - self._speed)]
        return {
            "speed_error": float(np.mean(errors)),
            "settled_speed_error": float(np.mean(errors[len(errors) // 2 :])),
        }


class CheetahVelocity(Family):
    """Speeds from 0 to 3 m/s."""

    name = "cheetah_velocity"
    parameters = (Parameter("speed", 0.0, FASTEST, "m/s"),)
    splits: ClassVar[dict[str, str]] = {
        "standard": "train speeds evenly spaced over [0, 3], test and validation speeds between them",
        "continuous": "speeds drawn uniformly, as many as num_train, num_validation, num_test say",
    }
    fixed_splits = frozenset({"standard"})

    def divide(self, settings: FamilySettings) -> TaskSplit:
        """Return the speeds of each division."""
        if settings.split == "continuous":
            train, validation, test = self.drawn(
                settings, lambda random, _: {"speed": random.uniform(0, FASTEST)}
            )
            return TaskSplit(tuple(train), tuple(validation), tuple(test))
        spacing = FASTEST / 16
        return TaskSplit(
            tuple(self.task(speed=round(n * spacing, 4)) for n in range(17)),
            tuple(self.task(speed=round((2 * n + 0.25) * spacing, 4)) for n in range(8)),
            tuple(self.task(speed=round((n + 0.5) * spacing, 4)) for n in range(16)),
        )

    def load(self, task: Task, seed: int, settings: FamilySettings) -> Any:
        """Build the environment."""
        physics = cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets())
        speed = task.parameters["speed"]
        return control.Environment(physics, RunAtSpeed(speed, seed), time_limit=EPISODE_SECONDS)


FAMILY = CheetahVelocity()
