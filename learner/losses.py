"""The three losses of Soft Actor-Critic as pure functions (Haarnoja et al. 2018, arXiv 1812.05905)."""

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
    values: torch.Tensor, log_probability: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """Return the mean of alpha log pi(a|s) - min_i Q_i(s, a), equation 7, for a ~ pi reparameterised."""
    return (temperature * log_probability - values.amin(0)).mean()


def temperature_gradient(
    log_probability: torch.Tensor, temperature: torch.Tensor, target_entropy: float
) -> torch.Tensor:
    """Return the gradient of equation 18, E[-alpha (log pi + target entropy)], in log alpha."""
    return -(temperature * (log_probability + target_entropy)).mean()
