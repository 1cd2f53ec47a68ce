"""`point_mass_goal`: the suite's point mass slides to one of many goals, and is not told which.

It starts within 0.05 m of the middle; goals lie 0.10 to 0.25 m away from it. Reward: 1 within 0.03 m of the goal,
and potential-based shaping as in `reacher_goal`. An episode has 200 steps of 0.02 s; the experiments act
at every fifth of them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from dm_control.rl import control
from dm_control.suite import base, point_mass

from apprentice.config_family import FamilySettings
from apprentice.environments.families import Family, Parameter, Task, TaskSplit

NEAREST, FARTHEST = 0.10, 0.25
"""Metres from the middle to a goal."""
TOLERANCE = 0.03
"""Metres between mass and goal that are rewarded."""
STRICT_TOLERANCE = 0.01
"""Metres of the count that is only reported."""
START_SPREAD = 0.05
EPISODE_STEPS = 200
_CONTROL_SECONDS = 0.02


class SlideToGoal(base.Task):  # type: ignore[misc]
    """Slide to a goal that the observation does not contain."""

    def __init__(self, goal: tuple[float, float], show_target: bool, random: int) -> None:
        super().__init__(random=random)
        self._goal = np.array(goal)
        self._show_target = show_target
        self._num_near = self._num_strictly = 0

    def initialize_episode(self, physics: Any) -> None:
        """Put the goal in place and the mass near the middle."""
        model = physics.named.model
        model.geom_pos["target", :2] = self._goal
        if not self._show_target:
            model.geom_rgba["target", 3] = 0.0
        for joint in ("root_x", "root_y"):
            physics.named.data.qpos[joint] = self.random.uniform(-START_SPREAD, START_SPREAD)
        self._num_near = self._num_strictly = 0
        super().initialize_episode(physics)

    def get_observation(self, physics: Any) -> dict[str, np.ndarray]:
        """Return place and velocity of the mass."""
        return {"position": physics.position(), "velocity": physics.velocity()}

    def distance(self, physics: Any) -> float:
        """Return metres between mass and goal, in the plane."""
        mass = physics.named.data.geom_xpos["pointmass"]
        return math.hypot(mass[0] - self._goal[0], mass[1] - self._goal[1])

    def potential(self, physics: Any) -> float:
        """Return Phi of the present state."""
        return -self.distance(physics)

    def get_reward(self, physics: Any) -> float:
        """Return 1 within the tolerance, else 0."""
        distance = self.distance(physics)
        self._num_strictly += distance <= STRICT_TOLERANCE
        self._num_near += distance <= TOLERANCE
        return float(distance <= TOLERANCE)

    def episode_metrics(self, physics: Any) -> dict[str, float]:
        """Return steps within both tolerances so far, and metres to the goal now."""
        return {
            "steps_within_0.03": float(self._num_near),
            "steps_within_0.01": float(self._num_strictly),
            "final_distance": self.distance(physics),
        }


class PointMassGoal(Family):
    """Goals in a ring."""

    name = "point_mass_goal"
    parameters = (
        Parameter("x", -FARTHEST, FARTHEST, "m"),
        Parameter("y", -FARTHEST, FARTHEST, "m"),
    )
    splits: ClassVar[dict[str, str]] = {
        "standard": "goals drawn, as many as num_train, num_validation, num_test say"
    }

    def divide(self, settings: FamilySettings) -> TaskSplit:
        """Return the goals of each division."""

        def draw(random: np.random.Generator, _: str) -> dict[str, float]:
            angle = random.uniform(0, 2 * math.pi)
            radius = math.sqrt(random.uniform(NEAREST**2, FARTHEST**2))
            return {"x": radius * math.cos(angle), "y": radius * math.sin(angle)}

        train, validation, test = self.drawn(settings, draw)
        return TaskSplit(tuple(train), tuple(validation), tuple(test))

    def load(self, task: Task, seed: int, settings: FamilySettings) -> Any:
        """Build the environment."""
        physics = point_mass.Physics.from_xml_string(*point_mass.get_model_and_assets())
        goal = (task.parameters["x"], task.parameters["y"])
        return control.Environment(
            physics,
            SlideToGoal(goal, settings.show_target, seed),
            time_limit=EPISODE_STEPS * _CONTROL_SECONDS,
            control_timestep=_CONTROL_SECONDS,
        )


FAMILY = PointMassGoal()
