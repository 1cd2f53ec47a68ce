"""`reacher_goal`: dm_control's arm reaches for one of many goals, and is not told which.

The goal lies on a circle of 0.20 m around the shoulder. An episode has 100 steps of 0.02 s, with the joints at
random angles at its start. Reward: 1 where the finger is within 0.05 m of the goal, and the shaping
gamma * Phi(s') - Phi(s) with Phi = -distance (Ng et al. 1999), which leaves the best policy as it is. Neighbouring
train and test goals of `standard` lie 0.039 m apart, less than the tolerance: `arcs` holds whole arcs out, and the
count within 0.02 m and the final distance are what generalisation is to be judged by.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from dm_control.rl import control
from dm_control.suite import base, reacher
from dm_control.suite.utils import randomizers

from apprentice.config_family import FamilySettings
from apprentice.environments.families import Family, Parameter, Task, TaskSplit

RADIUS = 0.20
"""Metres from the shoulder to every goal."""
TOLERANCE = 0.05
"""Metres between finger and goal that are rewarded."""
STRICT_TOLERANCE = 0.02
"""Metres of the count that is only reported."""
EPISODE_STEPS = 100
_CONTROL_SECONDS = 0.02


class ReachGoal(base.Task):  # type: ignore[misc]
    """Reach for a goal that the observation does not contain."""

    def __init__(self, goal: tuple[float, float], show_target: bool, random: int) -> None:
        super().__init__(random=random)
        self._goal = np.array(goal)
        self._show_target = show_target
        self._num_near = self._num_strictly = 0

    def initialize_episode(self, physics: Any) -> None:
        """Put the goal in place and the joints at random."""
        model = physics.named.model
        model.geom_size["target", 0] = TOLERANCE
        model.geom_pos["target", :2] = self._goal
        if not self._show_target:
            model.geom_rgba["target", 3] = 0.0
        randomizers.randomize_limited_and_rotational_joints(physics, self.random)
        self._num_near = self._num_strictly = 0
        super().initialize_episode(physics)

    def get_observation(self, physics: Any) -> dict[str, np.ndarray]:
        """Return cosine and sine of the joints, the finger's place in metres, and the joints' velocity."""
        angles = physics.position()
        return {
            "cosine": np.cos(angles),
            "sine": np.sin(angles),
            "finger": physics.named.data.geom_xpos["finger", :2].copy(),
            "velocity": physics.velocity(),
        }

    def distance(self, physics: Any) -> float:
        """Return metres between finger and goal."""
        finger = physics.named.data.geom_xpos["finger"]
        return math.hypot(finger[0] - self._goal[0], finger[1] - self._goal[1])

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
            "steps_within_0.05": float(self._num_near),
            "steps_within_0.02": float(self._num_strictly),
            "final_distance": self.distance(physics),
        }


class ReacherGoal(Family):
    """Goals on a circle."""

    name = "reacher_goal"
    parameters = (
        Parameter("x", -RADIUS, RADIUS, "m"),
        Parameter("y", -RADIUS, RADIUS, "m"),
    )
    splits: ClassVar[dict[str, str]] = {
        "standard": "16 train goals at even multiples of pi / 16, 16 test goals at odd ones, 8 validation goals too",
        "continuous": "goals drawn uniformly from the circle, as many as num_train, num_validation, num_test say",
        "arcs": "16 train goals on four arcs, 16 test goals on the other four, at least 0.07 m from any train goal",
        "arcs_turned": "arcs turned by 45 degrees: train goals where its test goals' arcs are, and the reverse",
    }
    fixed_splits = frozenset({"standard", "arcs", "arcs_turned"})

    def goal(self, angle: float) -> Task:
        """Return the task with the goal at an angle in radians."""
        x, y = (round(RADIUS * f(angle), 6) for f in (math.cos, math.sin))
        return self.task(x=x + 0.0, y=y + 0.0)

    def divide(self, settings: FamilySettings) -> TaskSplit:
        """Return the goals of each division."""
        if settings.split == "continuous":

            def draw(random: np.random.Generator, _: str) -> dict[str, float]:
                angle = random.uniform(0, 2 * math.pi)
                return {"x": RADIUS * math.cos(angle), "y": RADIUS * math.sin(angle)}

            train, validation, test = self.drawn(settings, draw)
            return TaskSplit(tuple(train), tuple(validation), tuple(test))
        if settings.split == "arcs":
            return _arcs(self, 0.0)
        if settings.split == "arcs_turned":
            return _arcs(self, math.pi / 4)
        turn = 2 * math.pi / 32
        return TaskSplit(
            tuple(self.goal(2 * number * turn) for number in range(16)),
            tuple(self.goal((4 * number + 0.5) * turn) for number in range(8)),
            tuple(self.goal((2 * number + 1) * turn) for number in range(16)),
        )

    def load(self, task: Task, seed: int, settings: FamilySettings) -> Any:
        """Build the environment."""
        physics = reacher.Physics.from_xml_string(*reacher.get_model_and_assets())
        goal = (task.parameters["x"], task.parameters["y"])
        return control.Environment(
            physics,
            ReachGoal(goal, settings.show_target, seed),
            time_limit=EPISODE_STEPS * _CONTROL_SECONDS,
            control_timestep=_CONTROL_SECONDS,
        )


def _arcs(family: ReacherGoal, turn: float) -> TaskSplit:
    """Return four train goals on each of four arcs, test goals in the gaps, validation goals among train's.

    The first arc's middle lies `turn` radians from the x axis.

    A chord of 0.07 m spans 0.351 rad: train goals lie within 0.17 rad of an arc's middle, test goals within 0.24 of
    a gap's, which leaves 0.375 rad between.
    """
    quarter = 2 * math.pi / 4
    train = [q * quarter + t for q in range(4) for t in (-0.17, -0.0567, 0.0567, 0.17)]
    test = [(q + 0.5) * quarter + t for q in range(4) for t in (-0.24, -0.08, 0.08, 0.24)]
    validation = [q * quarter + t for q in range(4) for t in (-0.11, 0.11)]
    divisions = [
        tuple(family.goal(turn + angle) for angle in angles) for angles in (train, validation, test)
    ]
    return TaskSplit(*divisions)


FAMILY = ReacherGoal()
