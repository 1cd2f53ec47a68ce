"""The losses of Soft Actor-Critic as pure functions (Haarnoja et al. 2018, arXiv 1812.05905)."""

from __future__ import annotations

import torch


def soft_target(
    reward: torch.Tensor,
    discount: torch.Tensor,
    next_values: torch.Tensor,
    next_log_probability: torch.Tensor,
    temperature: torch.Tensor,
    gamma: float,
) -> torch.Tensor:
    """Return r + gamma * discount * (min_i Q_i(s', a') - alpha log pi(a'|s')) [B], equation 3.

    `next_values` [2, B] come from the target critics at an action drawn from the current policy.
    """
    soft_value = next_values.amin(0) - temperature * next_log_probability
    return reward + gamma * discount * soft_value


def critic_loss(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the sum over both critics of half the mean squared error, equation 5."""
    return 0.5 * (values - target).square().mean(1).sum()


def policy_loss(
    values: torch.Tensor,
    log_probability: torch.Tensor,
    temperature: torch.Tensor,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean of alpha log pi(a|s) - min_i Q_i(s, a), equation 7, for a ~ pi reparameterised."""
    return weighted_mean(temperature * log_probability - values.amin(0), weight)


def temperature_gradient(
    log_probability: torch.Tensor,
    temperature: torch.Tensor,
    target_entropy: float,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the gradient of equation 18, E[-alpha (log pi + target entropy)], in log alpha."""
    return -weighted_mean(temperature * (log_probability + target_entropy), weight)


def weighted_mean(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of `values` [B]; with weights, over rows of weight 1 among those of weight 0."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / weight.sum().clamp_min(1.0)


def gaussian_divergence(
    mean: torch.Tensor,
    log_std: torch.Tensor,
    other_mean: torch.Tensor,
    other_log_std: torch.Tensor,
) -> torch.Tensor:
    """Return KL(N(mean, std) || N(other)) [B] of diagonal Gaussians [B, A]; tanh does not change it."""
    ratio = torch.exp(2.0 * (log_std - other_log_std))
    distance = (mean - other_mean).square() * torch.exp(-2.0 * other_log_std)
    return (other_log_std - log_std + 0.5 * (ratio + distance - 1.0)).sum(-1)
