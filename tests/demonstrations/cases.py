"""Demonstrations made up from numbers, for tests of the format and the loader."""

from __future__ import annotations

import numpy as np

from apprentice.config import EnvironmentSettings
from apprentice.demonstrations.format import DemonstrationMetadata, DemonstrationSet, Expert
from apprentice.types import ArraySpec, Ending, EnvironmentSpec, Trajectory

SPEC = EnvironmentSpec(
    "fake-task",
    "fake-task",
    {"state": ArraySpec((3,), "float32")},
    ArraySpec((2,), "float32"),
    100,
    2,
    0.02,
)


def trajectory(number: int, length: int = 10, ending: Ending = Ending.TIME_LIMIT) -> Trajectory:
    """An episode whose entries say where they come from: state [number, step, 0]."""
    random = np.random.default_rng(number)
    steps = np.arange(length + 1, dtype=np.float32)
    state = np.stack([np.full(length + 1, number), steps, np.zeros(length + 1)], 1)
    pre_tanh = random.normal(size=(length, 2)).astype(np.float32)
    discount = np.ones(length, np.float32)
    discount[-1] = float(ending != Ending.TERMINATED)
    return Trajectory(
        {"state": state.astype(np.float32)},
        np.tanh(pre_tanh),
        pre_tanh,
        random.uniform(size=length).astype(np.float32),
        discount,
        ending,
        random.normal(size=(length + 1, 7)),
        {"geom_pos": random.normal(size=(4, 3))},
        seed=1000 + number,
    )


def demonstrations(num: int = 4, length: int = 10) -> DemonstrationSet:
    metadata = DemonstrationMetadata(
        environment=SPEC.to_dict(),
        settings=EnvironmentSettings(action_repeat=2),
        expert=Expert(run="run", steps=7, digest="0" * 64, return_mean=5.0, return_episodes=3),
        random_return=1.0,
        deterministic=True,
        dm_control="1.0.50",
        mujoco="3.17.0",
    )
    return DemonstrationSet(metadata, tuple(trajectory(n, length) for n in range(num)))
