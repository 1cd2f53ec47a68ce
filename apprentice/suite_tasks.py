"""The names of all tasks, the DeepMind Control Suite's and ours, for who checks a name without importing dm_control.

dm_control takes more than a second to import; its version is locked, and a test holds this list
against it (`tests/test_experiments.py`).
"""

from __future__ import annotations

from typing import Final

SUITE_TASKS: Final = (
    "acrobot-swingup",
    "acrobot-swingup_sparse",
    "ball_in_cup-catch",
    "cartpole-balance",
    "cartpole-balance_sparse",
    "cartpole-swingup",
    "cartpole-swingup_sparse",
    "cartpole-three_poles",
    "cartpole-two_poles",
    "cheetah-run",
    "dog-fetch",
    "dog-run",
    "dog-stand",
    "dog-trot",
    "dog-walk",
    "finger-spin",
    "finger-turn_easy",
    "finger-turn_hard",
    "fish-swim",
    "fish-upright",
    "hopper-hop",
    "hopper-hop_until_fall",
    "hopper-stand",
    "humanoid-run",
    "humanoid-run_pure_state",
    "humanoid-stand",
    "humanoid-walk",
    "humanoid_CMU-run",
    "humanoid_CMU-stand",
    "humanoid_CMU-walk",
    "lqr-lqr_2_1",
    "lqr-lqr_6_2",
    "manipulator-bring_ball",
    "manipulator-bring_peg",
    "manipulator-insert_ball",
    "manipulator-insert_peg",
    "pendulum-swingup",
    "point_mass-easy",
    "point_mass-hard",
    "quadruped-escape",
    "quadruped-fetch",
    "quadruped-run",
    "quadruped-walk",
    "reacher-easy",
    "reacher-hard",
    "stacker-stack_2",
    "stacker-stack_4",
    "swimmer-swimmer15",
    "swimmer-swimmer6",
    "walker-run",
    "walker-stand",
    "walker-walk",
)

TERMINATING_TASKS: Final = frozenset({"hopper-hop_until_fall", "lqr-lqr_2_1", "lqr-lqr_6_2"})
"""Tasks with episodes that can end before the time limit, with discount 0."""


FAMILIES: Final = {
    "cheetah_velocity": "apprentice.environments.cheetah_velocity",
    "point_mass_goal": "apprentice.environments.point_mass_goal",
    "reacher_goal": "apprentice.environments.reacher_goal",
    "walker_dynamics": "apprentice.environments.walker_dynamics",
}
"""Families of tasks, and the module of each, whose `FAMILY` describes and builds it."""


def family_of(task: str) -> str | None:
    """Return the family that a name means: the family's own, or the beginning of a task's id."""
    family = task.partition("-")[0]
    return family if family in FAMILIES else None


def terminates(task: str) -> bool:
    """Return whether an episode of the task can end with discount 0."""
    return task in TERMINATING_TASKS
