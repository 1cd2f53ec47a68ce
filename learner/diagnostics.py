"""What tells whether an imitation run is healthy; nothing here is learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import structlog
import torch

from apprentice.config_imitation import RewardSettings
from apprentice.types import Metrics, Transition
from learner.discriminator_update import decision_entropy
from learner.sac import SAC

log = structlog.get_logger()

SURE_ACCURACY = 0.995
LARGEST_HEALTHY_REWARD = 1000.0
NUM_ACTIONS = 16
"""Actions drawn for each state to estimate an integral over actions."""


class CollapseAlarm:
    """Says once, in the log, when a discriminator has stopped teaching: it is always right, guesses, or is huge."""

    def __init__(self, largest_reward: float) -> None:
        """Ring where the policy's mean reward is as large as `largest_reward`: nearly all of it is cut there."""
        self._largest = largest_reward
        self._ringing = False

    def look(self, measured: Metrics) -> float:
        """Return 1 where both accuracies are 0.995 or more, entropy is within 0.001 of chance, or rewards are cut."""
        how = {
            "it is never wrong": min(measured["accuracy_expert"], measured["accuracy_policy"])
            >= SURE_ACCURACY,
            "it guesses": measured["entropy"] >= math.log(2.0) - 0.001,
            "its rewards are at their bound": abs(measured["reward_policy_mean"])
            >= 0.99 * self._largest,
        }
        reason = next((name for name, found in how.items() if found), None)
        if reason is not None and not self._ringing:
            log.warning(
                "the discriminator has collapsed",
                how=reason,
                accuracy_expert=measured["accuracy_expert"],
                accuracy_policy=measured["accuracy_policy"],
                reward_policy_mean=measured["reward_policy_mean"],
            )
        self._ringing = reason is not None
        return float(self._ringing)


def largest_reward(settings: RewardSettings) -> float:
    """Return the magnitude that rewards are cut at; where they are not, what no healthy reward reaches."""
    bounds = [LARGEST_HEALTHY_REWARD]
    if settings.bound is not None:
        bounds.append(settings.bound)
    if settings.logit_bound is not None and settings.form != "fairl":
        bounds.append(settings.logit_bound)
    return min(bounds)


def diagnose(
    logits: Sequence[torch.Tensor],
    held_out: torch.Tensor | None,
    rewards: Sequence[torch.Tensor],
    environment_rewards: Sequence[torch.Tensor],
) -> Metrics:
    """Return accuracies, entropy, logits and rewards of the expert's rows and of the policy's.

    Each argument but `held_out` [N] is a pair of [B]: expert, policy. The accuracy on the expert's is the
    share with a logit above 0, on the policy's of those not above it.
    """
    expert, policy = logits
    result = {
        "accuracy_expert": float((expert > 0.0).float().mean()),
        "accuracy_policy": float((policy <= 0.0).float().mean()),
        "entropy": float(decision_entropy(torch.cat([expert, policy]))),
    }
    if held_out is not None:
        result["accuracy_held_out"] = float((held_out > 0.0).float().mean())
    names = ("expert", "policy")
    for name, values in zip(names, logits, strict=True):
        result |= _spread(f"logit_{name}", values)
    for name, values in zip(names, rewards, strict=True):
        result |= _spread(f"reward_{name}", values)
    for name, learned, true in zip(names, rewards, environment_rewards, strict=True):
        correlation = correlation_of(learned, true)
        result |= mean_or_nothing(f"reward_correlation_{name}", correlation)
    return result


def correlation_of(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return Pearson's correlation of two [B]; NaN where one of them does not vary."""
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    scale = first.norm() * second.norm()
    return float(first.dot(second) / scale) if scale > 1e-12 else math.nan


def log_integral_of_exp_reward(
    reward: Callable[[Transition], torch.Tensor],
    sac: SAC,
    batch: Transition,
    generator: torch.Generator,
) -> float:
    """Return the mean over states of log of the integral of exp r(s, a) over actions.

    Estimated by importance sampling from the policy: log E over a ~ pi of exp r(s, a) / pi(a|s).
    """
    terms = []
    for _ in range(NUM_ACTIONS):
        action, pre_tanh, log_pi = sac.sample_action(batch.observation, generator)
        drawn = batch._replace(action=action, pre_tanh_action=pre_tanh)
        terms.append(reward(drawn) - log_pi)
    logs = torch.logsumexp(torch.stack(terms).double(), dim=0) - math.log(NUM_ACTIONS)
    return float(logs.mean())


def mean_or_nothing(name: str, value: float) -> Metrics:
    """Return the metric, or nothing where it could not be measured."""
    return {name: value} if math.isfinite(value) else {}


def _spread(name: str, values: torch.Tensor) -> Metrics:
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(values.std()),
        f"{name}_min": float(values.min()),
        f"{name}_max": float(values.max()),
    }
