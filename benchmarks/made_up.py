"""Episodes of Gaussian numbers, for benchmarks that need no environment."""

from __future__ import annotations

import numpy as np

from apprentice.types import Ending, EnvironmentSpec, Segment, Trajectory


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


def random_segment(
    random: np.random.Generator, spec: EnvironmentSpec, length: int, episode: int
) -> Segment:
    """Return an episode of `length` steps as the one segment that it is sent in; images are noise."""
    made = random_trajectory(random, length, 1, spec.action_size)
    observation = {}
    for key, own in spec.observation.items():
        shape = (spec.num_leading_frames(key) + length, *spec.frame_shape(key))
        values: np.ndarray = random.integers(0, 256, shape, np.uint8)
        if own.dtype == "float32":
            values = random.normal(size=shape).astype(np.float32)
        observation[key] = values
    return Segment(
        observation,
        made.action,
        made.pre_tanh_action,
        made.environment_reward,
        made.discount,
        length,
        made.ending,
        task=0,
        actor=0,
        incarnation=1,
        episode=episode,
        first_step=0,
        policy_version=1,
        context=np.zeros(0, np.int64),
    )
