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

    def __init__(
        self,
        checkpoint: str,
        device: torch.device,
        spec: EnvironmentSpec | None,
        name: str = "imitation.reward.recovered_checkpoint",
    ) -> None:
        """Load it; with `spec` it must be the same environment, that shows what is judged.

        Raises ValueError, which calls the checkpoint `name`.
        """
        path = Path(checkpoint)
        try:
            manifest = verify_checkpoint(path)
            experiment = experiment_of(manifest)
            tensors = read_tensors(path, "networks", manifest)
        except CheckpointError as error:
            raise ValueError(f"{name}: {error}") from error
        imitation = experiment.imitation
        if not imitation.adversarial or imitation.reward.override == "recovered":
            raise ValueError(
                f"{name}: expected a run that learned a reward, found one with method {imitation.method!r} and reward "
                f"override {imitation.reward.override!r}"
            )
        if experiment.infers_task:
            raise ValueError(
                f"{name}: expected a run whose reward is of one task, found one that reads 'latent', which its own "
                "encoder makes of demonstrations"
            )
        self.experiment = experiment
        self.spec = EnvironmentSpec.from_dict(manifest.environment)
        if spec is not None:
            self._require_same(spec, name)
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

    def _require_same(self, spec: EnvironmentSpec, name: str) -> None:
        """Raise ValueError where an environment is another, or does not show what is judged."""
        own = self.spec
        if (spec.task, spec.action_repeat) != (own.task, own.action_repeat):
            raise ValueError(
                f"{name}: expected one of {spec.task} with action repeat {spec.action_repeat}, found {own.task} with "
                f"{own.action_repeat}"
            )
        reads = self.experiment.reads
        airl = self.experiment.imitation.method == "airl"
        for key in dict.fromkeys(reads.discriminator + (reads.policy if airl else ())):
            if spec.observation.get(key) != own.observation[key]:
                shown = {k: list(found.shape) for k, found in spec.observation.items()}
                raise ValueError(
                    f"{name}: expected one that judges what the run reads ({shown}), found one that judges {key!r} "
                    f"{list(own.observation[key].shape)}; set reads and environment to the earlier run's"
                )

    def __call__(self, batch: Transition) -> torch.Tensor:
        """Return the reward [B] of each row."""
        return self._judge.recovered_reward(batch)
