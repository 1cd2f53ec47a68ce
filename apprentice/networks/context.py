"""The context encoder: from demonstrations of a task to `latent`, what the task is inferred to be.

`posterior` is SMILe's encoder (Ghasemipour, Gu & Zemel 2019, Advances in Neural Information Processing
Systems 32): an MLP over each step, pooled over a demonstration's steps, pooled over demonstrations, and a
Gaussian q(z | context). `context_window` has the last steps of a demonstration side by side in place of the
first two, and no noise. Pooling makes both blind to the order in which demonstrations are shown.

Either may end linearly (`linear`): `posterior` then averages the steps themselves, weighed by attention (a softmax
over the scores that its layers give them: Bahdanau, Cho & Bengio 2015, arXiv 1409.0473; as pooling Ilse, Tomczak &
Welling 2018, arXiv 1802.04712), and `latent` is linear in that average, or in the window. Which steps count stays
the layers' choice; what they say is read off by a line, which goes on beyond the tasks that are learned.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from apprentice.config import ContextSettings
from apprentice.types import EnvironmentSpec

LOG_STD_SHIFT = -2.0
"""Added to the raw log deviation, so that a fresh encoder is nearly certain (as in the published code)."""
LOG_STD_BOUNDS = (-6.0, 1.0)
MOMENTUM = 0.01
"""Rate at which batch norm's running statistics follow."""
_ABSENT_SCORE = -1e9
"""Of a step that is not there; finite, as a demonstration without steps must not make NaN."""


class Shown(NamedTuple):
    """Demonstrations that are shown: up to C of each of K tasks (or episodes), S steps of each.

    A step is [state, action, next state] as it was recorded.
    """

    steps: torch.Tensor  # [K, C, S, 2 O + A]
    mask: torch.Tensor  # [K, C, S] bool: false past a demonstration's end
    present: torch.Tensor  # [K, C] bool: false where fewer are shown


class Belief(NamedTuple):
    """A Gaussian over `latent` for each of K contexts; its deviation is 0 where there is no noise."""

    mean: torch.Tensor  # [K, Z]
    std: torch.Tensor  # [K, Z]

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Return mean + std * `noise` [K, Z], which gradients go through."""
        return self.mean + self.std * noise


class ContextEncoder(nn.Module):
    """Demonstrations -> Belief, in two parts: each demonstration's features, and what many of them say."""

    state_mean: torch.Tensor
    state_scale: torch.Tensor
    running_mean: torch.Tensor
    running_variance: torch.Tensor

    def __init__(self, spec: EnvironmentSpec, settings: ContextSettings) -> None:
        super().__init__()
        self.settings = settings
        size, actions = spec.observation["state"].shape[0], spec.action_size
        self.state_size, self.action_size = size, actions
        self.register_buffer("state_mean", torch.zeros(size))
        self.register_buffer("state_scale", torch.ones(size))
        step = 2 * size + (actions if settings.inputs == "state_action_next_state" else 0)
        inputs = step if settings.encoder == "posterior" else settings.window * step
        hidden = settings.hidden_size
        attends = settings.linear and settings.encoder == "posterior"
        num_layers = settings.num_hidden_layers if attends or not settings.linear else 0
        self.step_layers = nn.ModuleList(
            nn.Linear(inputs if number == 0 else hidden, hidden) for number in range(num_layers)
        )
        self.features_size = inputs if settings.linear else hidden
        if attends:
            self.score_layer = nn.Linear(hidden, 1)
        if not settings.linear:
            self.features_layer = nn.Linear(hidden, hidden)
            self.head_layer = nn.Linear(hidden, hidden)
        self.mean_layer = nn.Linear(self.features_size, settings.latent_size)
        self.log_std_layer = nn.Linear(self.features_size, settings.latent_size)
        num = num_layers if settings.batch_norm else 0
        self.register_buffer("running_mean", torch.zeros(num, hidden))
        self.register_buffer("running_variance", torch.ones(num, hidden))

    def forward(
        self, shown: Shown, training: bool = False
    ) -> tuple[Belief, torch.Tensor, torch.Tensor]:
        """Return the belief [K] and the batch's statistics [2, N, H] and features [K, C, F].

        Statistics are of the hidden layers that are normalised, N = 0 without batch norm.
        """
        features, statistics = self.features_of(
            shown.steps.flatten(0, 1), shown.mask.flatten(0, 1), training
        )
        features = features.unflatten(0, shown.present.shape)
        return self.belief(features, shown.present), statistics, features

    def features_of(
        self, steps: torch.Tensor, mask: torch.Tensor, training: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features [N, F] of N demonstrations [N, S, 2 O + A] with mask [N, S], and the statistics."""
        inputs = self._inputs(steps)
        if self.settings.encoder == "context_window":
            return self._of_windows(inputs, mask, training)
        weight = mask.to(inputs.dtype)[..., None]
        values, statistics = self._layers(inputs, weight, training)
        if self.settings.linear:
            scores = self.score_layer(values).masked_fill(~mask[..., None], _ABSENT_SCORE)
            return (inputs * torch.softmax(scores, dim=-2) * weight).sum(-2), statistics
        values = self.features_layer(values)
        pooled = (values * weight).sum(-2)
        if self.settings.time_pooling == "mean":
            pooled = pooled / weight.sum(-2).clamp_min(1.0)
        return pooled, statistics

    def belief(self, features: torch.Tensor, present: torch.Tensor) -> Belief:
        """Return what features [K, C, F] of the demonstrations that are `present` [K, C] say together."""
        weight = present.to(features.dtype)[..., None]
        pooled = (features * weight).sum(-2)
        if self.settings.demonstration_pooling == "mean":
            pooled = pooled / weight.sum(-2).clamp_min(1.0)
        hidden = pooled if self.settings.linear else torch.relu(self.head_layer(pooled))
        mean = self.mean_layer(hidden)
        if self.settings.encoder == "context_window":
            return Belief(mean, torch.zeros_like(mean))
        log_std = (self.log_std_layer(hidden) + LOG_STD_SHIFT).clamp(*LOG_STD_BOUNDS)
        return Belief(mean, log_std.exp())

    def _inputs(self, steps: torch.Tensor) -> torch.Tensor:
        size, actions = self.state_size, self.action_size
        state, action, after = steps.split([size, actions, size], dim=-1)
        parts = [(state - self.state_mean) * self.state_scale]
        if self.settings.inputs == "state_action_next_state":
            parts.append(action)
        parts.append((after - self.state_mean) * self.state_scale)
        return torch.cat(parts, dim=-1)

    def _of_windows(
        self, inputs: torch.Tensor, mask: torch.Tensor, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the last steps of each; a demonstration that is shorter begins with its first step again."""
        length = mask.sum(-1, keepdim=True)  # [N, 1]
        back = torch.arange(-self.settings.window, 0, device=inputs.device)
        places = (length + back).clamp_min(0)  # [N, window]
        window = inputs.gather(1, places[..., None].expand(-1, -1, inputs.shape[-1]))
        there = (length > 0).to(inputs.dtype)
        values, statistics = self._layers(window.flatten(1), there, training)
        return values if self.settings.linear else self.features_layer(values), statistics

    def _layers(
        self, values: torch.Tensor, weight: torch.Tensor, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the hidden layers before pooling; rows of weight 0 do not count in a batch's statistics."""
        means, variances = [], []
        for number, layer in enumerate(self.step_layers):
            values = layer(values)
            if self.settings.batch_norm:
                mean, variance = self.running_mean[number], self.running_variance[number]
                if training:
                    rows = tuple(range(values.dim() - 1))
                    total = weight.sum().clamp_min(1.0)
                    mean = (values * weight).sum(rows) / total
                    variance = ((values - mean).square() * weight).sum(rows) / total
                    means.append(mean.detach())
                    variances.append(variance.detach())
                values = (values - mean) * (variance + 1e-5).rsqrt()
            values = torch.relu(values)
        if not means:
            return values, torch.zeros_like(torch.stack([self.running_mean, self.running_variance]))
        return values, torch.stack([torch.stack(means), torch.stack(variances)])


def divergence_from_prior(belief: Belief) -> torch.Tensor:
    """Return KL(q(z | context), N(0, I)) in nats, the mean [] over contexts."""
    variance = belief.std.square()
    terms = belief.mean.square() + variance - variance.log() - 1.0
    return 0.5 * terms.sum(-1).mean()
