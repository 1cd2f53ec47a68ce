"""Episodes of Gaussian numbers, and learners of them, for benchmarks and tests that need no environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apprentice.types import Ending, EnvironmentSpec, Segment, Trajectory

if TYPE_CHECKING:
    import torch

    from apprentice.config import Experiment
    from learner.learning import Learning


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
    observation: dict[str, np.ndarray] = {}
    for key, own in spec.observation.items():
        shape = (spec.num_leading_frames(key) + length, *spec.frame_shape(key))
        if own.dtype == "uint8":
            observation[key] = random.integers(0, 256, shape, np.uint8)
        else:
            observation[key] = random.normal(size=shape).astype(np.float32)
    pre_tanh = random.normal(size=(length, spec.action_size)).astype(np.float32)
    return Segment(
        observation,
        np.tanh(pre_tanh),
        pre_tanh,
        random.normal(size=length).astype(np.float32),
        np.ones(length, np.float32),
        length,
        Ending.TIME_LIMIT,
        task=0,
        actor=0,
        incarnation=1,
        episode=episode,
        first_step=0,
        policy_version=1,
        context=np.zeros(0, np.int64),
    )


def begun_learner(
    experiment: Experiment,
    spec: EnvironmentSpec,
    device: torch.device,
    num_segments: int,
    length: int,
) -> Learning:
    """Return a learner with a full ring and 1,000 made-up steps to imitate, whose updates are compiled."""
    from apprentice.demonstrations.dataset import DemonstrationDataset
    from learner.demonstrated import Demonstrated
    from learner.learning import Learning

    random = np.random.default_rng(0)
    demonstrated = None
    if experiment.imitation.method != "none":
        (observations,) = spec.observation["state"].shape
        shown = random_trajectory(random, 1000, observations, spec.action_size)
        rows = DemonstrationDataset([shown], device=device)
        demonstrated = Demonstrated(rows, None, rows.states)
    learning = Learning(experiment, [spec], device, demonstrated=demonstrated)
    for number in range(num_segments):
        learning.receive(random_segment(random, spec, length, number))
    learning.prepare()
    return learning
