"""The policy network, shared by actors, evaluation and the learner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from apprentice.config import Experiment, NetworkSettings
from apprentice.networks.encoder import ObservationEncoder, initialise_orthogonally
from apprentice.types import EnvironmentSpec


class SquashedGaussianPolicy(nn.Module):
    """pi(a|s) = tanh of a diagonal Gaussian whose mean and deviation an MLP gives."""

    def __init__(
        self, spec: EnvironmentSpec, keys: Sequence[str], settings: NetworkSettings
    ) -> None:
        super().__init__()
        self.encoder = ObservationEncoder(spec, keys, settings)
        self.log_std_bounds = settings.log_std_bounds
        self.log_std_parametrisation = settings.log_std_parametrisation
        layers: list[nn.Module] = []
        size = self.encoder.output_size
        for _ in range(settings.num_hidden_layers):
            layers += [nn.Linear(size, settings.hidden_size), nn.ReLU()]
            size = settings.hidden_size
        layers.append(nn.Linear(size, 2 * spec.action_size))
        self.trunk = nn.Sequential(*layers)
        initialise_orthogonally(self)

    def forward(
        self, observation: dict[str, torch.Tensor], pixel_features: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log standard deviation [B, A] of the Gaussian before tanh."""
        output = self.trunk(self.encoder(observation, pixel_features))
        mean, raw = output.chunk(2, dim=-1)
        low, high = self.log_std_bounds
        if self.log_std_parametrisation == "tanh":
            return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)
        return mean, raw.clamp(low, high)


def build_policy(experiment: Experiment, spec: EnvironmentSpec) -> SquashedGaussianPolicy:
    """Build the policy an experiment describes, with fresh weights from torch's global generator."""
    return SquashedGaussianPolicy(spec, experiment.reads.policy, experiment.network)
