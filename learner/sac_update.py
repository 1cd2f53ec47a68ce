"""One update of Soft Actor-Critic as a single function of tensors, ready to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.func import functional_call, grad_and_value

from apprentice.config import SACSettings
from apprentice.networks import SquashedGaussianPolicy, log_probability_of_sample
from apprentice.networks.encoder import TORSO_PREFIX
from apprentice.types import Transition
from learner.augmentation import shift_images
from learner.critics import TwinCritic
from learner.flat import AdamSettings, AdamState, FlatLayout, adam_step, clip_by_norm
from learner.losses import critic_loss, policy_loss, soft_target, temperature_gradient

METRICS = (
    "critic_loss",
    "policy_loss",
    "value_mean",
    "value_largest",
    "target_mean",
    "reward_mean",
    "entropy",
    "temperature",
    "critic_gradient_norm",
    "policy_gradient_norm",
    "rejected_updates",
)
"""What an update returns, in this order: losses; mean and largest magnitude of Q_1, Q_2 on the batch;
mean of the critics' target and of the reward; -log pi of fresh actions; alpha; gradient norms before
clipping; and 1 where a non-finite loss or gradient made the update change nothing."""
POLICY_METRICS = frozenset({"policy_loss", "entropy", "policy_gradient_norm"})
"""Those that only an update of the policy has; it returns 0 for them otherwise."""


class SACState(NamedTuple):
    """All tensors that an update changes, in place."""

    critic: AdamState
    policy: AdamState
    log_temperature: AdamState  # [1]
    target_critic: torch.Tensor  # [P'], the critics without a shared pixel torso


class Noise(NamedTuple):
    """The random numbers of one update, drawn outside so that compiled and plain agree."""

    action: torch.Tensor  # [2, B, A] standard normal: for s' and for s
    shifts: torch.Tensor | None  # [2, B, 2] int64: for s and for s', where pixels are shifted


Update = Callable[[SACState, Transition, torch.Tensor, Noise, torch.Tensor], torch.Tensor]
"""(state, batch, reward [B], noise, step-size factor []) -> values of METRICS [11]."""


class UpdateParts(NamedTuple):
    """The networks and their layouts; the modules' own parameters are never read."""

    critic: TwinCritic
    policy: SquashedGaussianPolicy
    critic_layout: FlatLayout
    target_layout: FlatLayout
    policy_layout: FlatLayout

    @property
    def shares_torso(self) -> bool:
        """Whether critics and policy both read pixels: then only the critics train the torso."""
        return self.critic.encoder.torso is not None and self.policy.encoder.torso is not None


def update_parts(critic: TwinCritic, policy: SquashedGaussianPolicy) -> UpdateParts:
    """Lay out the parameters of both networks; a shared torso belongs to the critics."""
    shares = critic.encoder.torso is not None and policy.encoder.torso is not None
    return UpdateParts(
        critic,
        policy,
        FlatLayout(critic),
        FlatLayout(critic, lambda name: not name.startswith(TORSO_PREFIX)),
        FlatLayout(policy, lambda name: not (shares and name.startswith(TORSO_PREFIX))),
    )


def make_update(
    parts: UpdateParts,
    settings: SACSettings,
    *,
    target_entropy: float,
    update_policy: bool,
    update_target: bool,
    bfloat16: bool,
) -> Update:
    """Build the update for one setting; the result reads nothing but its arguments."""
    critic_adam = AdamSettings(settings.critic_learning_rate, settings.adam_betas)
    policy_adam = AdamSettings(settings.policy_learning_rate, settings.adam_betas)
    temperature_adam = AdamSettings(settings.temperature_learning_rate, settings.adam_betas)
    critic, policy = parts.critic, parts.policy
    reads_pixels = critic.encoder.torso is not None
    policy_has_torso = policy.encoder.torso is not None

    def features(
        parameters: dict[str, torch.Tensor], observation: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        torso = critic.encoder.torso
        if torso is None:
            return None
        own = {
            n[len(TORSO_PREFIX) :]: p for n, p in parameters.items() if n.startswith(TORSO_PREFIX)
        }
        result: torch.Tensor = functional_call(torso, own, (observation["pixels"],))
        return result

    def act(
        vector: torch.Tensor,
        observation: dict[str, torch.Tensor],
        shared: torch.Tensor | None,
        noise: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixel_features = shared if parts.shares_torso else None
        mean, log_std = functional_call(
            policy, parts.policy_layout.unflatten(vector), (observation, pixel_features)
        )
        mean, log_std = mean.float(), log_std.float()
        pre_tanh = mean + log_std.exp() * noise
        return torch.tanh(pre_tanh), log_probability_of_sample(noise, pre_tanh, log_std)

    def update(
        state: SACState,
        batch: Transition,
        reward: torch.Tensor,
        noise: Noise,
        rate_factor: torch.Tensor,
    ) -> torch.Tensor:
        observation, next_observation = batch.observation, batch.next_observation
        if noise.shifts is not None:
            observation = _shifted(observation, noise.shifts[0])
            next_observation = _shifted(next_observation, noise.shifts[1])
        with torch.autocast(reward.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            temperature = state.log_temperature.parameters.exp()[0]

            with torch.no_grad():
                online = parts.critic_layout.unflatten(state.critic.parameters)
                next_features = features(online, next_observation)
                next_action, next_log_probability = act(
                    state.policy.parameters, next_observation, next_features, noise.action[0]
                )
                next_values = functional_call(
                    critic,
                    parts.target_layout.unflatten(state.target_critic),
                    (next_observation, next_action, next_features),
                ).float()
                target = soft_target(
                    reward * settings.reward_scale,
                    batch.discount,
                    next_values,
                    next_log_probability,
                    temperature,
                    settings.gamma,
                )

            def critic_objective(
                vector: torch.Tensor,
            ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
                parameters = parts.critic_layout.unflatten(vector)
                pixel_features = features(parameters, observation)
                values = functional_call(
                    critic, parameters, (observation, batch.action, pixel_features)
                ).float()
                kept = values if pixel_features is None else pixel_features
                return critic_loss(values, target), (values.detach(), kept.detach())

            (critic_gradient, (loss_c, (values, kept))) = _gradient(
                critic_objective, state.critic.parameters
            )
            shared = kept if reads_pixels and policy_has_torso else None
            critic_gradient, critic_norm = clip_by_norm(critic_gradient, settings.max_gradient_norm)
            accept = torch.isfinite(loss_c) & torch.isfinite(critic_norm)
            adam_step(state.critic, critic_gradient, critic_adam, rate_factor, accept)

            loss_p = policy_norm = entropy = torch.zeros_like(loss_c)
            if update_policy:
                moved = parts.target_layout.unflatten(_without_torso(parts, state))

                def policy_objective(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                    action, log_pi = act(vector, observation, shared, noise.action[1])
                    judged = functional_call(
                        critic, moved, (observation, action, kept if reads_pixels else None)
                    ).float()
                    return policy_loss(judged, log_pi, temperature), log_pi.detach()

                (policy_gradient, (loss_p, log_pi)) = _gradient(
                    policy_objective, state.policy.parameters
                )
                policy_gradient, policy_norm = clip_by_norm(
                    policy_gradient, settings.max_gradient_norm
                )
                entropy = -log_pi.mean()
                accept = accept & torch.isfinite(loss_p) & torch.isfinite(policy_norm)
                adam_step(state.policy, policy_gradient, policy_adam, rate_factor, accept)
                if settings.learn_temperature:
                    slope = temperature_gradient(log_pi, temperature, target_entropy)
                    adam_step(
                        state.log_temperature,
                        slope.expand(1),
                        temperature_adam,
                        rate_factor,
                        accept,
                    )
        if update_target:
            state.target_critic.lerp_(_without_torso(parts, state), settings.tau)
        return torch.stack(
            [
                loss_c,
                loss_p,
                values.mean(),
                values.abs().amax(),
                target.mean(),
                reward.mean(),
                entropy,
                temperature,
                critic_norm,
                policy_norm,
                (~accept).float(),
            ]
        ).detach()

    return update


def _gradient(objective: Callable[[torch.Tensor], object], vector: torch.Tensor) -> tuple:
    gradient, (value, auxiliary) = grad_and_value(objective, has_aux=True)(vector)
    return gradient, (value, auxiliary)


def _shifted(observation: dict[str, torch.Tensor], shifts: torch.Tensor) -> dict[str, torch.Tensor]:
    if "pixels" not in observation:
        return observation
    return {**observation, "pixels": shift_images(observation["pixels"], shifts)}


def _without_torso(parts: UpdateParts, state: SACState) -> torch.Tensor:
    if len(parts.target_layout.names) == len(parts.critic_layout.names):
        return state.critic.parameters
    online = parts.critic_layout.unflatten(state.critic.parameters)
    return torch.cat([online[name].reshape(-1) for name in parts.target_layout.names])
