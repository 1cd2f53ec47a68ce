"""Soft Actor-Critic once more, the plain way: modules, `backward`, torch's own Adam.

Written from the paper's equations without any of the fast path's parts, to compare with it.
"""

from __future__ import annotations

import copy

import torch

from apprentice.networks import SquashedGaussianPolicy
from apprentice.types import Transition
from learner.critics import TwinCritic


class PlainSAC:
    """State-only SAC with learned temperature; parameters in the modules themselves."""

    def __init__(
        self,
        policy: SquashedGaussianPolicy,
        critic: TwinCritic,
        *,
        learning_rate: float,
        gamma: float,
        tau: float,
        initial_temperature: float,
    ) -> None:
        self.policy, self.critic = copy.deepcopy(policy), copy.deepcopy(critic)
        self.target = copy.deepcopy(critic)
        self.log_alpha = torch.tensor([initial_temperature]).log().requires_grad_()
        self.gamma, self.tau = gamma, tau
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=learning_rate)
        self.policy_adam = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], lr=learning_rate)

    def update(self, batch: Transition, reward: torch.Tensor, noise: torch.Tensor) -> None:
        """One update with the given standard normal noise [2, B, A]."""
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_log_pi = self._sample(batch.next_observation, noise[0])
            next_q = self.target(batch.next_observation, next_action)
            soft_value = torch.minimum(next_q[0], next_q[1]) - alpha * next_log_pi
            target = reward + self.gamma * batch.discount * soft_value
        q = self.critic(batch.observation, batch.action)
        loss = 0.5 * ((q[0] - target) ** 2).mean() + 0.5 * ((q[1] - target) ** 2).mean()
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()

        action, log_pi = self._sample(batch.observation, noise[1])
        q = self.critic(batch.observation, action)
        policy_loss = (alpha * log_pi - torch.minimum(q[0], q[1])).mean()
        self.policy_adam.zero_grad()
        policy_loss.backward()
        self.policy_adam.step()

        target_entropy = -action.shape[1]
        alpha_loss = -(self.log_alpha.exp() * (log_pi.detach() + target_entropy)).mean()
        self.alpha_adam.zero_grad()
        alpha_loss.backward()
        self.alpha_adam.step()

        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.mul_(1 - self.tau).add_(self.tau * fast)

    def _sample(
        self, observation: dict[str, torch.Tensor], noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = self.policy(observation)
        distribution = torch.distributions.Normal(mean, log_std.exp())
        pre_tanh = mean + log_std.exp() * noise
        action = torch.tanh(pre_tanh)
        log_pi = distribution.log_prob(pre_tanh).sum(-1)
        return action, log_pi - torch.log1p(-action.square() + 1e-7).sum(-1)
