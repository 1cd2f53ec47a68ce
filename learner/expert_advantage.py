"""AIRL's fixed point as a reward: the soft advantage of an expert trained with this project.

Where the discriminator of AIRL has converged, f(s, a) is the expert's soft advantage (Fu, Luo & Levine
2018, arXiv 1710.11248, section 4). Learning on that advantage, with nothing learned about the reward,
tells a fault of the policy's optimiser from one of the discriminator.
"""

from __future__ import annotations

from pathlib import Path

import torch

from apprentice.checkpoint import experiment_of, read_tensors, verify_checkpoint
from apprentice.networks.encoder import ABSORBING
from apprentice.types import EnvironmentSpec, Transition
from learner.sac import SAC

NUM_ACTIONS = 8
"""Actions drawn for each state to estimate its soft value."""


class ExpertAdvantage:
    """Q(s, a) - V(s) of a checkpoint's critics and policy, V(s) = E over a ~ pi of Q(s, a) - alpha log pi(a|s)."""

    def __init__(self, checkpoint: str, spec: EnvironmentSpec, device: torch.device) -> None:
        path = Path(checkpoint)
        manifest = verify_checkpoint(path)
        experiment = experiment_of(manifest)
        found = EnvironmentSpec.from_dict(manifest.environment)
        if found.task != spec.task or found.action_repeat != spec.action_repeat:
            raise ValueError(
                f"imitation.reward.expert_checkpoint: expected an expert of {spec.task} with action repeat "
                f"{spec.action_repeat}, found {found.task} with {found.action_repeat}"
            )
        if found.observation != spec.observation:
            raise ValueError(
                "imitation.reward.expert_checkpoint: expected an expert that reads what the run reads "
                f"({sorted(spec.observation)}), found {sorted(found.observation)}"
            )
        self._device = device
        self._sac = SAC(experiment, found, device, seed=0)
        self._sac.load_networks(read_tensors(path, "networks", manifest))

    def __call__(self, batch: Transition) -> torch.Tensor:
        """Return the advantage [B] of each row's action: 0 in an absorbing state, where there is nothing to choose.

        The same batch has the same one: every call draws the same noise.
        """
        generator = torch.Generator(self._device).manual_seed(0)
        sac, temperature = self._sac, self._sac.temperature
        values = []
        for _ in range(NUM_ACTIONS):
            action, _, log_pi = sac.sample_action(batch.observation, generator)
            values.append(sac.values(batch.observation, action).amin(0) - temperature * log_pi)
        own = sac.values(batch.observation, batch.action).amin(0)
        advantage = own - torch.stack(values).mean(0)
        if ABSORBING in batch.observation:
            advantage = advantage * (1.0 - batch.observation[ABSORBING].squeeze(-1))
        return advantage
