"""The policy network, shared by actors, evaluation and the learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from apprentice.config import Experiment, NetworkSettings
from apprentice.networks.context import ContextEncoder
from apprentice.networks.encoder import ObservationEncoder, initialise_orthogonally
from apprentice.types import ArraySpec, EnvironmentSpec

CONTEXT_PREFIX = "context."
"""Begins the names of the context encoder's tensors, which travel with the policy's and are not its own."""


class SquashedGaussianPolicy(nn.Module):
    """pi(a|s) = tanh of a diagonal Gaussian whose mean and deviation an MLP gives.

    `context` is what makes `latent` where the policy reads it; forward takes `latent` as it is.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        keys: Sequence[str],
        settings: NetworkSettings,
        context: ContextEncoder | None = None,
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
        self.context = context

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
    context = ContextEncoder(spec, experiment.context) if experiment.infers_task else None
    return SquashedGaussianPolicy(
        with_latent(experiment, spec), experiment.reads.policy, experiment.network, context
    )


def with_latent(experiment: Experiment, spec: EnvironmentSpec) -> EnvironmentSpec:
    """Return the environment's specification as networks see it: with `latent`, where the task is inferred."""
    if not experiment.infers_task:
        return spec
    latent = ArraySpec((experiment.context.latent_size,), "float32")
    return replace(spec, observation={**spec.observation, "latent": latent})
