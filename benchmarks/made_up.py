"""Episodes of Gaussian numbers, for benchmarks that need no environment."""

from __future__ import annotations

import numpy as np

from apprentice.types import Ending, Trajectory


def random_trajectory(
    random: np.random.Generator, steps: int, observations: int, actions: int
) -> Trajectory:
    """Return an episode that a time limit cut."""

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    pre_tanh = normal(steps, actions)
    return Trajectory(
        {"state": normal(steps + 1, observations)},
        np.tanh(pre_tanh),
        pre_tanh,
        normal(steps),
        np.ones(steps, np.float32),
        Ending.TIME_LIMIT,
        np.zeros((steps + 1, 0)),
        {},
        0,
    )
