"""Policies as actors and evaluation use them: numpy observations in, numpy actions out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

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

    def act(self, observation: Observation, deterministic: bool = False) -> ActionBatch:
        """Choose an action for each of K observations: tanh of the mean, or of a sample."""
        with torch.inference_mode():
            inputs = {key: torch.from_numpy(observation[key]) for key in self._module.encoder.keys}
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
