"""The squashed Gaussian: a normal distribution pushed through tanh, with exact log-probabilities."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

LOG_TWO = math.log(2.0)
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def log_probability(
    pre_tanh_action: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor
) -> torch.Tensor:
    """Return log pi(a) [B] of a = tanh(u) for u = `pre_tanh_action` [B, A].

    Haarnoja et al. 2018 (arXiv 1812.05905), appendix C, equation 26, with
    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which is exact for every u.
    """
    return log_probability_of_sample(
        (pre_tanh_action - mean) * torch.exp(-log_std), pre_tanh_action, log_std
    )


def log_probability_of_sample(
    noise: torch.Tensor, pre_tanh_action: torch.Tensor, log_std: torch.Tensor
) -> torch.Tensor:
    """Return log pi(a) [B] for u = mean + exp(log_std) * `noise` [B, A]: the same, from less.

    The gradient is the reparameterised one: the noise stays what it is.
    """
    normal = -0.5 * noise.square() - log_std - HALF_LOG_TWO_PI
    jacobian = 2.0 * (LOG_TWO - pre_tanh_action - functional.softplus(-2.0 * pre_tanh_action))
    return (normal - jacobian).sum(-1)
