"""One update of Soft Actor-Critic as a single function of tensors, ready to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.func import functional_call, grad_and_value

from apprentice.config import SACSettings
from apprentice.networks import (
    CONTEXT_PREFIX,
    SquashedGaussianPolicy,
    log_probability_of_sample,
)
from apprentice.networks.encoder import ABSORBING, TORSO_PREFIX
from apprentice.types import Transition
from learner.augmentation import shift_images
from learner.critics import TwinCritic
from learner.flat import AdamSettings, AdamState, FlatLayout, adam_step, clip_by_norm
from learner.losses import (
    critic_loss,
    gaussian_divergence,
    policy_loss,
    soft_target,
    temperature_gradient,
    weighted_mean,
)

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
    "policy_divergence",
    "rejected_updates",
)
"""What an update returns, in this order: losses; mean and largest magnitude of Q_1, Q_2 on the batch;
mean of the critics' target and of the reward; -log pi of fresh actions; alpha; gradient norms before
clipping; KL from the policy to its slow copy, where it is held near it; and 1 where a non-finite loss or
gradient made the update change nothing."""
POLICY_METRICS = frozenset({"policy_loss", "entropy", "policy_gradient_norm", "policy_divergence"})
"""Those that only an update of the policy has; it returns 0 for them otherwise."""


class SACState(NamedTuple):
    """All tensors that an update changes, in place."""

    critic: AdamState
    policy: AdamState
    log_temperature: AdamState  # [1]
    target_critic: torch.Tensor  # [P'], the critics without a shared pixel torso
    slow_policy: torch.Tensor | None = (
        None  # [P] of the policy, where it is held near it or it is kept
    )
    trust_multiplier: AdamState | None = None  # [1], log of the weight on the divergence from it


class Noise(NamedTuple):
    """The random numbers of one update, drawn outside so that compiled and plain agree."""

    action: torch.Tensor  # [2, B, A] standard normal: for s' and for s
    shifts: torch.Tensor | None  # [2, B, 2] int64: for s and for s', where pixels are shifted


Update = Callable[[SACState, Transition, torch.Tensor, Noise, torch.Tensor], torch.Tensor]
"""(state, batch, reward [B], noise, step-size factor []) -> values of METRICS [12]."""


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
    """Lay out the parameters of both networks; a shared torso belongs to the critics, a context encoder to neither."""
    shares = critic.encoder.torso is not None and policy.encoder.torso is not None
    return UpdateParts(
        critic,
        policy,
        FlatLayout(critic),
        FlatLayout(critic, lambda name: not name.startswith(TORSO_PREFIX)),
        FlatLayout(
            policy,
            lambda name: (
                not (shares and name.startswith(TORSO_PREFIX))
                and not name.startswith(CONTEXT_PREFIX)
            ),
        ),
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
    forward = _Forward(parts, settings, target_entropy)

    def update(
        state: SACState,
        batch: Transition,
        reward: torch.Tensor,
        noise: Noise,
        rate_factor: torch.Tensor,
    ) -> torch.Tensor:
        if noise.shifts is not None:
            batch = batch._replace(
                observation=_shifted(batch.observation, noise.shifts[0]),
                next_observation=_shifted(batch.next_observation, noise.shifts[1]),
            )
        with torch.autocast(reward.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            temperature = state.log_temperature.parameters.exp()[0]
            target = forward.target(state, batch, reward, temperature, noise.action[0])
            critic = forward.step_critic(state, batch, target, rate_factor)
            accept, policy = critic.accept, None
            if update_policy:
                policy = forward.step_policy(
                    state, batch.observation, critic, temperature, noise.action[1], rate_factor
                )
                accept = policy.accept
        if update_target:
            state.target_critic.lerp_(_without_torso(parts, state), settings.tau)
        nothing = torch.zeros_like(critic.loss)
        return torch.stack(
            [
                critic.loss,
                nothing if policy is None else policy.loss,
                critic.values.mean(),
                critic.values.abs().amax(),
                target.mean(),
                reward.mean(),
                nothing if policy is None else policy.entropy,
                temperature,
                critic.gradient_norm,
                nothing if policy is None else policy.gradient_norm,
                nothing if policy is None else policy.divergence,
                (~accept).float(),
            ]
        ).detach()

    return update


class _Sample(NamedTuple):
    """An action drawn from the policy, and the Gaussian it came from."""

    action: torch.Tensor  # [B, A]
    log_probability: torch.Tensor  # [B]
    mean: torch.Tensor  # [B, A]
    log_std: torch.Tensor  # [B, A]


class _CriticStep(NamedTuple):
    loss: torch.Tensor
    gradient_norm: torch.Tensor
    values: torch.Tensor  # [2, B]
    pixel_features: torch.Tensor | None  # [B, F] of the torso before the step
    accept: torch.Tensor


def trust_gradient(
    multiplier: torch.Tensor, bound: float, divergence: torch.Tensor
) -> torch.Tensor:
    """Return the slope [] by the log multiplier of multiplier * (bound - KL): it grows while KL is above the bound."""
    return multiplier * (bound - divergence)


class _PolicyStep(NamedTuple):
    loss: torch.Tensor
    gradient_norm: torch.Tensor
    entropy: torch.Tensor
    divergence: torch.Tensor
    accept: torch.Tensor


class _Forward:
    """The parts of an update; they see parameters only through the state they are given."""

    def __init__(self, parts: UpdateParts, settings: SACSettings, target_entropy: float) -> None:
        self._parts, self._settings = parts, settings
        self._target_entropy = target_entropy
        self._critic_adam = AdamSettings(settings.critic_learning_rate, settings.adam_betas)
        self._policy_adam = AdamSettings(
            settings.policy_learning_rate,
            settings.adam_betas,
            weight_decay=settings.policy_weight_decay,
        )
        self._temperature_adam = AdamSettings(
            settings.temperature_learning_rate, settings.adam_betas
        )

    def target(
        self,
        state: SACState,
        batch: Transition,
        reward: torch.Tensor,
        temperature: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """Return the critics' target [B]; in an absorbing state the action is 0 and there is no entropy."""
        parts, settings = self._parts, self._settings
        with torch.no_grad():
            online = parts.critic_layout.unflatten(state.critic.parameters)
            features = self._features(online, batch.next_observation)
            sample = self._act(state.policy.parameters, batch.next_observation, features, noise)
            next_values = functional_call(
                parts.critic,
                parts.target_layout.unflatten(state.target_critic),
                (batch.next_observation, sample.action, features),
            ).float()
            return soft_target(
                reward * settings.reward_scale,
                batch.discount,
                next_values,
                sample.log_probability,
                temperature,
                settings.gamma,
            )

    def step_critic(
        self,
        state: SACState,
        batch: Transition,
        target: torch.Tensor,
        rate_factor: torch.Tensor,
    ) -> _CriticStep:
        """Move the critics towards the target."""
        parts = self._parts

        def objective(
            vector: torch.Tensor,
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            parameters = parts.critic_layout.unflatten(vector)
            features = self._features(parameters, batch.observation)
            values = functional_call(
                parts.critic, parameters, (batch.observation, batch.action, features)
            ).float()
            kept = values if features is None else features
            return critic_loss(values, target), (values.detach(), kept.detach())

        gradient, (loss, (values, kept)) = _gradient(objective, state.critic.parameters)
        gradient, norm = clip_by_norm(gradient, self._settings.max_gradient_norm)
        accept = torch.isfinite(loss) & torch.isfinite(norm)
        adam_step(state.critic, gradient, self._critic_adam, rate_factor, accept)
        features = None if parts.critic.encoder.torso is None else kept
        return _CriticStep(loss, norm, values, features, accept)

    def step_policy(
        self,
        state: SACState,
        observation: dict[str, torch.Tensor],
        critic: _CriticStep,
        temperature: torch.Tensor,
        noise: torch.Tensor,
        rate_factor: torch.Tensor,
    ) -> _PolicyStep:
        """Move the policy towards what the critics prefer, and the temperature towards the target entropy."""
        parts, settings = self._parts, self._settings
        moved = parts.target_layout.unflatten(_without_torso(parts, state))
        features = critic.pixel_features
        shared = features if parts.policy.encoder.torso is not None else None
        weight = _acting(observation)
        multiplier = (
            None if state.trust_multiplier is None else state.trust_multiplier.parameters.exp()[0]
        )

        def objective(
            vector: torch.Tensor,
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            sample = self._act(vector, observation, shared, noise)
            judged = functional_call(
                parts.critic, moved, (observation, sample.action, features)
            ).float()
            loss = policy_loss(judged, sample.log_probability, temperature, weight)
            divergence = torch.zeros_like(loss)
            if state.slow_policy is not None and multiplier is not None:
                slow = self._gaussian(state.slow_policy, observation, shared)
                divergence = weighted_mean(
                    gaussian_divergence(sample.mean, sample.log_std, *slow), weight
                )
                loss = loss + multiplier * divergence
            return loss, (sample.log_probability.detach(), divergence.detach())

        gradient, (loss, (log_pi, divergence)) = _gradient(objective, state.policy.parameters)
        gradient, norm = clip_by_norm(gradient, settings.max_gradient_norm)
        accept = critic.accept & torch.isfinite(loss) & torch.isfinite(norm)
        adam_step(state.policy, gradient, self._policy_adam, rate_factor, accept)
        if settings.learn_temperature:
            slope = temperature_gradient(log_pi, temperature, self._target_entropy, weight)
            self._step_scalar(state.log_temperature, slope, rate_factor, accept)
        if state.slow_policy is not None:
            tau = settings.policy_average_tau or settings.trust_region_tau
            state.slow_policy.lerp_(state.policy.parameters, tau)
        if state.trust_multiplier is not None and settings.trust_region == "constraint":
            assert multiplier is not None
            slope = trust_gradient(multiplier, settings.trust_region_bound, divergence)
            self._step_scalar(state.trust_multiplier, slope, rate_factor, accept)
        return _PolicyStep(loss, norm, -weighted_mean(log_pi, weight), divergence, accept)

    def _step_scalar(
        self,
        state: AdamState,
        slope: torch.Tensor,
        rate_factor: torch.Tensor,
        accept: torch.Tensor,
    ) -> None:
        adam_step(state, slope.expand(1), self._temperature_adam, rate_factor, accept)

    def _features(
        self, parameters: dict[str, torch.Tensor], observation: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        torso = self._parts.critic.encoder.torso
        if torso is None:
            return None
        own = {
            n[len(TORSO_PREFIX) :]: p for n, p in parameters.items() if n.startswith(TORSO_PREFIX)
        }
        result: torch.Tensor = functional_call(torso, own, (observation["pixels"],))
        return result

    def _gaussian(
        self,
        vector: torch.Tensor,
        observation: dict[str, torch.Tensor],
        features: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = self._parts
        shared = features if parts.shares_torso else None
        mean, log_std = functional_call(
            parts.policy, parts.policy_layout.unflatten(vector), (observation, shared)
        )
        return mean.float(), log_std.float()

    def _act(
        self,
        vector: torch.Tensor,
        observation: dict[str, torch.Tensor],
        features: torch.Tensor | None,
        noise: torch.Tensor,
    ) -> _Sample:
        mean, log_std = self._gaussian(vector, observation, features)
        pre_tanh = mean + log_std.exp() * noise
        action = torch.tanh(pre_tanh)
        log_pi = log_probability_of_sample(noise, pre_tanh, log_std)
        weight = _acting(observation)
        if weight is not None:
            action, log_pi = action * weight[:, None], log_pi * weight
        return _Sample(action, log_pi, mean, log_std)


def _acting(observation: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """Return 1 where the agent acts and 0 in an absorbing state [B]; None where there is no such state."""
    return 1.0 - observation[ABSORBING][:, 0] if ABSORBING in observation else None


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
