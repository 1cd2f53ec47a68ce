"""The reward that an earlier run recovered from demonstrations, read from its checkpoint.

A fresh learner that is trained on it shows what the reward is worth by itself: AIRL's g without the
potential that shapes it (Fu, Luo & Levine 2018, arXiv 1710.11248, section 7).
"""

from __future__ import annotations

from pathlib import Path

import torch

from apprentice.checkpoint import CheckpointError, experiment_of, read_tensors, verify_checkpoint
from apprentice.types import EnvironmentSpec, Transition
from learner.judging import Judge
from learner.sac import SAC

PREFIX = "imitation."
"""Of the discriminator's tensors in a checkpoint's group of networks."""


class RecoveredReward:
    """A discriminator that no longer learns."""

    def __init__(self, checkpoint: str, device: torch.device, spec: EnvironmentSpec | None) -> None:
        """Load it; with `spec` the environment must be the same. Raises ValueError."""
        path = Path(checkpoint)
        try:
            manifest = verify_checkpoint(path)
            experiment = experiment_of(manifest)
            tensors = read_tensors(path, "networks", manifest)
        except CheckpointError as error:
            raise ValueError(f"imitation.reward.recovered_checkpoint: {error}") from error
        if not experiment.imitation.adversarial:
            raise ValueError(
                "imitation.reward.recovered_checkpoint: expected a run that learned a reward, found one with "
                f"method {experiment.imitation.method!r}"
            )
        self.experiment = experiment
        self.spec = EnvironmentSpec.from_dict(manifest.environment)
        if spec is not None and (spec.task, spec.action_repeat) != (
            self.spec.task,
            self.spec.action_repeat,
        ):
            raise ValueError(
                f"imitation.reward.recovered_checkpoint: expected one of {spec.task} with action repeat "
                f"{spec.action_repeat}, found {self.spec.task} with {self.spec.action_repeat}"
            )
        plain = experiment.model_copy(
            update={"learner": experiment.learner.model_copy(update={"compile": "off"})}
        )
        self.sac = SAC(plain, self.spec, device, seed=0)
        self.sac.load_networks(tensors)
        self.sac.policy.load_state_dict(self.sac.policy_tensors())
        self._judge = Judge(plain, self.spec, device, self.sac)
        self._judge.load_networks(
            {k.removeprefix(PREFIX): t for k, t in tensors.items() if k.startswith(PREFIX)}
        )

    def __call__(self, batch: Transition) -> torch.Tensor:
        """Return the reward [B] of each row."""
        return self._judge.recovered_reward(batch)
