"""Policies as actors and evaluation use them: numpy observations in, numpy actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from apprentice.networks.context import Belief, Shown
from apprentice.networks.policy import SquashedGaussianPolicy
from apprentice.types import ActionBatch, EnvironmentSpec, Observation

LARGEST_UNIFORM = 1.0 - 1e-6
"""Uniform actions stay inside this, so that their atanh is finite in float32."""


class PolicyMismatch(Exception):
    """Tensors do not fit the policy network; nothing was loaded."""


class Policy:
    """A squashed-Gaussian policy with a random stream of its own."""

    def __init__(self, module: SquashedGaussianPolicy, seed: int) -> None:
        self._module = module.eval()
        self._generator = torch.Generator().manual_seed(seed)
        self._tensors = module.state_dict()
        self._latent = torch.zeros(0, 0)

    @property
    def infers_task(self) -> bool:
        """Whether demonstrations must be shown before this policy acts."""
        return self._module.context is not None

    def show(self, place: int, demonstrations: Sequence[np.ndarray], deterministic: bool) -> None:
        """Show the policy one or more demonstrations [L, 2 O + A] of the task that environment `place` plays.

        What they say, the belief's mean or a sample of it, stays until others are shown.
        """
        with torch.inference_mode():
            belief = self._belief(demonstrations)
            latent = belief.mean[0]
            if not deterministic:
                noise = torch.randn(belief.mean.shape, generator=self._generator)
                latent = belief.sample(noise)[0]
            missing = place + 1 - len(self._latent)
            if missing > 0:
                more = torch.zeros(missing, len(latent))
                self._latent = torch.cat([self._latent.reshape(-1, len(latent)), more])
            self._latent[place] = latent

    def believe(self, demonstrations: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and deviation [Z] of what demonstrations [L, 2 O + A] of one task say together."""
        with torch.inference_mode():
            belief = self._belief(demonstrations)
            return belief.mean[0].numpy().copy(), belief.std[0].numpy().copy()

    def _belief(self, demonstrations: Sequence[np.ndarray]) -> Belief:
        encoder = self._module.context
        if encoder is None or not demonstrations:
            raise ValueError("expected a policy that infers its task, and demonstrations to show")
        expected = 2 * encoder.state_size + encoder.action_size
        widths = sorted({steps.shape[1] for steps in demonstrations})
        if widths != [expected]:
            raise ValueError(
                f"expected demonstrations of {encoder.state_size} numbers a state and {encoder.action_size} an action, "
                f"{expected} a step; found {widths}"
            )
        belief: Belief = encoder(shown_together([demonstrations]))[0]
        return belief

    def act(self, observation: Observation, deterministic: bool = False) -> ActionBatch:
        """Choose an action for each of K observations: tanh of the mean, or of a sample."""
        with torch.inference_mode():
            inputs = {
                key: self._latent[: len(next(iter(observation.values())))]
                if key == "latent"
                else torch.from_numpy(observation[key])
                for key in self._module.encoder.keys
            }
            pre_tanh, log_std = self._module(inputs)
            if not deterministic:
                noise = torch.randn(pre_tanh.shape, generator=self._generator)
                pre_tanh = torch.addcmul(pre_tanh, noise, log_std.exp())
            return ActionBatch(torch.tanh(pre_tanh).numpy(), pre_tanh.numpy())

    def reseed(self, seed: int) -> None:
        """Start the random stream of sampled actions anew."""
        self._generator.manual_seed(seed)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace all weights and buffers, or raise PolicyMismatch and keep the old ones."""
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        if found != expected:
            differing = sorted(
                name
                for name in found.keys() | expected.keys()
                if found.get(name) != expected.get(name)
            )
            details = "; ".join(
                f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
                for name in differing[:5]
            )
            raise PolicyMismatch(f"tensors of another network: {details}")
        bad = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
        if bad:
            raise PolicyMismatch(f"expected finite weights, found NaN or infinity in {bad[:5]}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._tensors[name].copy_(tensor)


def shown_together(contexts: Sequence[Sequence[np.ndarray]]) -> Shown:
    """Return demonstrations [L, 2 O + A], one or more for each of K contexts, padded to the longest and the most."""
    most = max(len(demonstrations) for demonstrations in contexts)
    longest = max(len(steps) for demonstrations in contexts for steps in demonstrations)
    width = contexts[0][0].shape[1]
    steps = np.zeros((len(contexts), most, longest, width), np.float32)
    mask = np.zeros(steps.shape[:3], bool)
    for number, demonstrations in enumerate(contexts):
        for place, demonstration in enumerate(demonstrations):
            steps[number, place, : len(demonstration)] = demonstration
            mask[number, place, : len(demonstration)] = True
    return Shown(
        torch.from_numpy(steps), torch.from_numpy(mask), torch.from_numpy(mask.any(axis=2))
    )


class UniformPolicy:
    """Uniformly random actions, as in warm-up; their atanh stands for the pre-tanh action."""

    def __init__(self, spec: EnvironmentSpec, seed: int) -> None:
        self._size = spec.action_size
        self._generator = np.random.default_rng(seed)

    def act(self, observation: Observation, deterministic: bool = False) -> ActionBatch:
        """Draw an action for each of K observations; `deterministic` makes no difference."""
        num = len(next(iter(observation.values())))
        action = self._generator.uniform(-LARGEST_UNIFORM, LARGEST_UNIFORM, (num, self._size))
        return ActionBatch(action.astype(np.float32), np.arctanh(action).astype(np.float32))
