"""From a discriminator's logit to a reward: four forms, with D = sigmoid(h) the probability of `expert`.

| form | reward | range for every h | bias |
|---|---|---|---|
| `logit` | log D - log(1 - D) = h | all numbers | none by its sign (DAC, arXiv 1809.02925; AIRL, 1710.11248) |
| `minus_log_one_minus_d` | -log(1 - D) = softplus(h) | above 0 | for long episodes (GAIL, 1606.03476) |
| `log_d` | log D = -softplus(-h) | below 0 | for short episodes |
| `fairl` | -h exp(h) | up to exp(-1), at h = -1 | against what looks too much like the expert (1911.02256) |
"""

from __future__ import annotations

import torch
from torch.nn import functional

from apprentice.config_imitation import RewardForm, RewardSettings


def reward_of_logit(logits: torch.Tensor, form: RewardForm) -> torch.Tensor:
    """Return the reward [B] of logits [B] that are > 0 for the expert."""
    match form:
        case "logit":
            return logits
        case "log_d":
            return -functional.softplus(-logits)
        case "minus_log_one_minus_d":
            return functional.softplus(logits)
        case "fairl":
            return -logits * logits.exp()


def slope_of_reward(logits: torch.Tensor, form: RewardForm) -> torch.Tensor:
    """Return the derivative [B] of `reward_of_logit` by the logit."""
    match form:
        case "logit":
            return torch.ones_like(logits)
        case "log_d":
            return torch.sigmoid(-logits)
        case "minus_log_one_minus_d":
            return torch.sigmoid(logits)
        case "fairl":
            return -(1.0 + logits) * logits.exp()


def imitation_reward(logits: torch.Tensor, settings: RewardSettings) -> torch.Tensor:
    """Return the reward [B] within its bounds, before running normalisation and scale."""
    if settings.logit_bound is not None:
        logits = logits.clamp(-settings.logit_bound, settings.logit_bound)
    reward = reward_of_logit(logits, settings.form)
    if settings.bound is not None:
        reward = reward.clamp(-settings.bound, settings.bound)
    return reward
