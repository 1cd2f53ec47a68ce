"""The learned reward over a plane of two coordinates of a simulation, for tasks with few of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from apprentice.environments import make_environment
from apprentice.networks.encoder import ABSORBING
from apprentice.types import Transition
from learner.recovered import RecoveredReward


class Axis(NamedTuple):
    """One coordinate: index in qpos or qvel, and the range that is shown."""

    kind: str  # "position" or "velocity"
    number: int
    low: float
    high: float


def reward_map(checkpoint: Path, x: Axis, y: Axis, size: int, seed: int = 0) -> np.ndarray:
    """Return rewards [size, size], rows from y.high down, columns from x.low on.

    All other coordinates are those that the episode `seed` starts with; where the reward reads actions they
    are the policy's likeliest. Raises ValueError where the reward reads more than one state.
    """
    recovered = RecoveredReward(str(checkpoint), torch.device("cpu"), None, str(checkpoint))
    experiment, spec = recovered.experiment, recovered.spec
    if set(spec.observation) != {"state"}:
        raise ValueError(f"expected a run that reads `state`, found {sorted(spec.observation)}")
    if experiment.imitation.discriminator.inputs == "state_next_state":
        raise ValueError(
            "imitation.discriminator.inputs: expected 'state' or 'state_action', found 'state_next_state'"
        )
    environment = make_environment(experiment.task, seed, ("state",), experiment.environment)
    try:
        environment.reset()
        rows = []
        for vertical in np.linspace(y.high, y.low, size):
            for horizontal in np.linspace(x.low, x.high, size):
                moved: dict[str, dict[int, float]] = {"position": {}, "velocity": {}}
                moved[x.kind][x.number] = float(horizontal)
                moved[y.kind][y.number] = float(vertical)
                rows.append(environment.state_at(moved["position"], moved["velocity"]))
    finally:
        environment.close()
    state = {"state": torch.from_numpy(np.stack(rows))}
    if recovered.sac.absorbs:
        state[ABSORBING] = torch.zeros(len(rows), 1)
    with torch.no_grad():
        mean, _ = recovered.sac.policy(state)
    blank = torch.ones(len(rows))
    batch = Transition(state, torch.tanh(mean), mean, blank, blank, state)
    return recovered(batch).reshape(size, size).numpy()
