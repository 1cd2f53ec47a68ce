"""Parameters of a network as one vector, and Adam on such vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class FlatLayout:
    """Where each named parameter of a module lies in a vector."""

    def __init__(
        self, module: nn.Module, include: Callable[[str], bool] = lambda name: True
    ) -> None:
        chosen = [(name, p) for name, p in module.named_parameters() if include(name)]
        self.names = tuple(name for name, _ in chosen)
        self.shapes = tuple(tuple(parameter.shape) for _, parameter in chosen)
        self.sizes = [parameter.numel() for _, parameter in chosen]

    def flatten(self, module: nn.Module, device: torch.device) -> torch.Tensor:
        """Copy the module's parameters into a new vector [P] on `device`."""
        parameters = dict(module.named_parameters())
        pieces = [parameters[name].detach().reshape(-1) for name in self.names]
        return torch.cat(pieces).to(device).clone()

    def unflatten(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of a vector [P] by parameter name."""
        pieces = vector.split(self.sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }


class AdamState(NamedTuple):
    """A vector of parameters with Adam's moments; every field is updated in place."""

    parameters: torch.Tensor  # [P]
    first_moment: torch.Tensor  # [P]
    second_moment: torch.Tensor  # [P]
    num_steps: torch.Tensor  # []


def adam_state(parameters: torch.Tensor) -> AdamState:
    """Start Adam at `parameters`, which it will own."""
    return AdamState(
        parameters,
        torch.zeros_like(parameters),
        torch.zeros_like(parameters),
        torch.zeros((), device=parameters.device),
    )


class AdamSettings(NamedTuple):
    """Step size, decay rates of the moments, and decoupled weight decay per unit of step size."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float = 1e-8
    weight_decay: float = 0.0


def adam_step(
    state: AdamState,
    gradient: torch.Tensor,
    settings: AdamSettings,
    rate_factor: torch.Tensor,
    accept: torch.Tensor,
) -> None:
    """Make one step (Kingma & Ba 2015, algorithm 1) where `accept` [] is true, else change nothing.

    Weights decay decoupled from the gradient (Loshchilov & Hutter 2019, arXiv 1711.05101), after the step and by
    `weight_decay` times the step size, as in torch's AdamW. `rate_factor` [] scales the step size without a new
    compilation.
    """
    first_rate, second_rate = settings.betas
    state.num_steps.add_(accept.float())
    steps = state.num_steps.clamp_min(1.0)
    # Stacked, these scalars are computed once; otherwise a compiler computes them, with their two
    # powers, again for every few parameters.
    first_weight, second_weight, size, correction = torch.stack(
        [
            accept * (1.0 - first_rate),
            accept * (1.0 - second_rate),
            accept * settings.learning_rate * rate_factor / (1.0 - first_rate**steps),
            (1.0 - second_rate**steps).rsqrt(),
        ]
    ).unbind()
    gradient = torch.where(first_weight > 0.0, gradient, 0.0)
    state.first_moment.lerp_(gradient, first_weight)
    state.second_moment.lerp_(gradient.square(), second_weight)
    scale = state.second_moment.sqrt() * correction + settings.epsilon
    state.parameters.sub_(size * state.first_moment / scale)
    if settings.weight_decay > 0.0:
        decayed = accept * rate_factor * settings.learning_rate * settings.weight_decay
        state.parameters.mul_(1.0 - decayed)


def clip_by_norm(
    gradient: torch.Tensor, maximum: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient [P], scaled down to norm `maximum` where it is larger, and its norm before."""
    norm = torch.linalg.vector_norm(gradient)
    if maximum is None:
        return gradient, norm
    return gradient * torch.clamp(maximum / (norm + 1e-6), max=1.0), norm
