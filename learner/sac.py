"""Soft Actor-Critic with twin critics and a learned temperature (Haarnoja et al. 2018, 1812.05905)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call

from apprentice.config import Experiment
from apprentice.networks import (
    build_policy,
    log_probability,
    log_probability_of_sample,
    with_latent,
)
from apprentice.networks.encoder import ABSORBING, TORSO_PREFIX, ObservationEncoder
from apprentice.types import ArraySpec, EnvironmentSpec, Metrics, Transition
from learner.absorbing import uses_absorbing_states
from learner.augmentation import draw_shifts
from learner.compiling import compiled
from learner.critics import TwinCritic
from learner.flat import AdamState, FlatLayout, adam_state
from learner.sac_update import (
    METRICS,
    POLICY_METRICS,
    Noise,
    SACState,
    Update,
    make_update,
    update_parts,
)

Tensors = dict[str, torch.Tensor]


class SAC:
    """The networks, their optimisers and the update; where transitions come from is not its business."""

    def __init__(
        self, experiment: Experiment, spec: EnvironmentSpec, device: torch.device, seed: int
    ) -> None:
        self._experiment = experiment
        self._settings = experiment.sac
        self._device = device
        self._action_size = spec.action_size
        self.absorbs = uses_absorbing_states(experiment, spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = build_policy(experiment, spec).to(device)
            critic = _build_critic(experiment, spec, self.absorbs).to(device)
        self.critic = critic
        self._parts = update_parts(critic, self.policy)
        initial = math.log(self._settings.initial_temperature)
        self.state = SACState(
            adam_state(self._parts.critic_layout.flatten(critic, device)),
            adam_state(self._parts.policy_layout.flatten(self.policy, device)),
            adam_state(torch.full((1,), initial, device=device)),
            self._parts.target_layout.flatten(critic, device),
            *self._trust_region(),
        )
        self.num_updates = 0
        self.rate_factor = torch.ones((), device=device)  # of every step size, in the next update
        self.rollback_factor = torch.ones((), device=device)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._sums = torch.zeros(len(METRICS), device=device)
        self._num_summed = self._num_policy_summed = 0
        self._rejected_in_a_row = torch.zeros((), device=device)
        self._updates: dict[tuple[bool, bool, int], Update] = {}
        self._shifts_pixels = (
            critic.encoder.torso is not None or self.policy.encoder.torso is not None
        ) and experiment.network.random_shift > 0

    def _trust_region(self) -> tuple[torch.Tensor | None, AdamState | None]:
        """Return a slow copy of the policy and the weight that holds the policy near it, if they are wanted."""
        settings = self._settings
        if settings.trust_region == "none" and settings.policy_average_tau is None:
            return None, None
        slow = self._parts.policy_layout.flatten(self.policy, self._device)
        if settings.trust_region == "none":
            return slow, None
        log_weight = math.log(max(settings.trust_region_coefficient, 1e-12))
        return slow, adam_state(torch.full((1,), log_weight, device=self._device))

    def update(self, batch: Transition, reward: torch.Tensor) -> None:
        """Make one update on a batch of B transitions, with `reward` [B] in place of any stored one."""
        self.num_updates += 1
        update = self._update_of(self.num_updates, len(reward))
        noise = self._draw_noise(len(reward))
        values = update(self.state, batch, reward, noise, self.rate_factor)
        self._sums += values
        self._rejected_in_a_row = (self._rejected_in_a_row + values[-1]) * values[-1]
        self._num_summed += 1
        self._num_policy_summed += self._moves_policy(self.num_updates)

    def prepare(self, batch: Transition, reward: torch.Tensor) -> None:
        """Compile every form of the update by running it on copies; nothing here changes.

        Batch and reward must lie in memory as they will later: compiled code does not look again.
        """
        settings, generator = self._settings, self._generator.get_state()
        noise = self._draw_noise(len(batch.discount))
        self._generator.set_state(generator)
        for number in range(1, 1 + settings.policy_update_period * settings.target_update_period):
            copies = SACState(
                _copied(self.state.critic),
                _copied(self.state.policy),
                _copied(self.state.log_temperature),
                self.state.target_critic.clone(),
                None if self.state.slow_policy is None else self.state.slow_policy.clone(),
                _copied(self.state.trust_multiplier) if self.state.trust_multiplier else None,
            )
            update = self._update_of(number, len(batch.discount))
            update(copies, batch, reward, noise, self.rate_factor.clone())

    def rejected_in_a_row(self) -> int:
        """Return how many of the newest updates were refused for being non-finite (synchronises)."""
        return int(self._rejected_in_a_row.item())

    def metrics(self) -> Metrics:
        """Return the means of METRICS since the last call as `learner/<name>`, and start anew.

        Those of the policy are means over the updates that moved it, and absent where none did.
        """
        if self._num_summed == 0:
            return {}
        sums = dict(zip(METRICS, self._sums.tolist(), strict=True))
        counts = {
            name: self._num_policy_summed if name in POLICY_METRICS else self._num_summed
            for name in METRICS
        }
        self._sums.zero_()
        self._num_summed = self._num_policy_summed = 0
        if self.state.trust_multiplier is None:
            counts["policy_divergence"] = 0
        return {f"learner/{name}": sums[name] / counts[name] for name in METRICS if counts[name]}

    def policy_tensors(self, averaged: bool = False) -> Tensors:
        """Return copies on the CPU of the policy module's weights and buffers, by their names.

        With `averaged` the weights are the slow average, where `sac.policy_average_tau` keeps one.
        """
        own = self._parts.policy_layout.unflatten(self.state.policy.parameters)
        if averaged and self._settings.policy_average_tau and self.state.slow_policy is not None:
            own = self._parts.policy_layout.unflatten(self.state.slow_policy)
        online = self._parts.critic_layout.unflatten(self.state.critic.parameters)
        result = {}
        for name, tensor in self.policy.state_dict().items():
            if name in own:
                tensor = own[name]
            elif self._parts.shares_torso and name in online:
                tensor = online[name]
            result[name] = tensor.detach().to("cpu", copy=True)
        return result

    @property
    def policy_layout(self) -> FlatLayout:
        """Where the policy's own parameters lie in its state's vector."""
        return self._parts.policy_layout

    @property
    def batch_size(self) -> int:
        """Transitions per update."""
        return self._settings.batch_size

    @property
    def temperature(self) -> torch.Tensor:
        """The temperature alpha []."""
        return self.state.log_temperature.parameters.exp()[0]

    def log_probability(
        self, observation: dict[str, torch.Tensor], pre_tanh_action: torch.Tensor
    ) -> torch.Tensor:
        """Return log pi(a|s) [B] of the present policy, exactly; 0 in an absorbing state."""
        result = log_probability(pre_tanh_action, *self._gaussian(observation))
        return result * (1.0 - observation[ABSORBING][:, 0]) if self.absorbs else result

    def sample_action(
        self, observation: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw from the present policy: action and pre-tanh action [B, A], and log pi [B]."""
        mean, log_std = self._gaussian(observation)
        noise = torch.randn(mean.shape, generator=generator, device=self._device)
        pre_tanh = mean + log_std.exp() * noise
        action, log_pi = torch.tanh(pre_tanh), log_probability_of_sample(noise, pre_tanh, log_std)
        return action, pre_tanh, log_pi

    def values(self, observation: dict[str, torch.Tensor], action: torch.Tensor) -> torch.Tensor:
        """Return both critics' values [2, B]."""
        parameters = self._parts.critic_layout.unflatten(self.state.critic.parameters)
        with torch.no_grad():
            result: torch.Tensor = functional_call(self.critic, parameters, (observation, action))
            return result

    def pixel_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the critics' features [B, F] of images [B, S, H, W, 3]; no gradient goes through."""
        encoder = self.critic.encoder
        own = self._parts.critic_layout.unflatten(self.state.critic.parameters)
        parameters = {n: p for n, p in own.items() if n.startswith("encoder.")}
        with torch.no_grad():
            result: torch.Tensor = functional_call(_PixelPath(encoder), parameters, (pixels,))
            return result

    @property
    def normaliser(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and scale [O] of the observation encoders."""
        keys = self.policy.encoder.keys
        encoder = self.policy.encoder if "state" in keys else self.critic.encoder
        return encoder.state_mean, encoder.state_scale

    def _gaussian(self, observation: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        policy, parts = self.policy, self._parts
        own = parts.policy_layout.unflatten(self.state.policy.parameters)
        if parts.shares_torso:
            online = parts.critic_layout.unflatten(self.state.critic.parameters)
            own |= {n: p for n, p in online.items() if n.startswith(TORSO_PREFIX)}
        with torch.no_grad():
            mean, log_std = functional_call(policy, own, (observation,))
        return mean, log_std

    def set_normaliser(self, mean: torch.Tensor, scale: torch.Tensor) -> None:
        """Give every encoder that reads `state` [O] its mean and scale."""
        for encoder in (self.policy.encoder, self.critic.encoder):
            if "state" in encoder.keys:
                encoder.state_mean.copy_(mean)
                encoder.state_scale.copy_(scale)
        if self.policy.context is not None:
            self.policy.context.state_mean.copy_(mean)
            self.policy.context.state_scale.copy_(scale)

    def state_tensors(self) -> dict[str, Tensors]:
        """Return copies of everything an exact continuation needs, by the file it is stored in."""
        views = {**self._state_views(), "random/generator": self._generator.get_state()}
        groups: dict[str, Tensors] = {}
        for name, tensor in views.items():
            group, _, key = name.partition("/")
            groups.setdefault(group, {})[key] = tensor.detach().to("cpu", copy=True)
        return groups

    def load_state_tensors(self, groups: Mapping[str, Tensors], num_updates: int) -> None:
        """Continue from what `state_tensors` returned; raise ValueError where shapes differ."""
        current = self._state_views()
        found = {f"{g}/{n}": t for g, ts in groups.items() for n, t in ts.items()}
        differing = [
            f"{name}: expected {tuple(current[name].shape) if name in current else 'nothing'}, "
            f"found {tuple(found[name].shape) if name in found else 'nothing'}"
            for name in sorted(current.keys() | found.keys())
            if name != "random/generator"
            and (
                name not in current or name not in found or current[name].shape != found[name].shape
            )
        ]
        if differing:
            raise ValueError(f"state of other networks: {'; '.join(differing[:5])}")
        for name, tensor in current.items():
            tensor.copy_(found[name])
        self._generator.set_state(found["random/generator"])
        self.num_updates = num_updates
        # What was measured belongs to the state that is gone.
        self._rejected_in_a_row.zero_()
        self._sums.zero_()
        self._num_summed = self._num_policy_summed = 0

    def load_networks(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over networks and temperature of a checkpoint, to ask them and not to learn on."""
        for name, view in self._state_views().items():
            group, _, key = name.partition("/")
            if group == "networks":
                view.copy_(tensors[key])

    def take_policy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Begin with another run's policy and normaliser. Raises ValueError where their shapes are others."""
        _require_shapes(self.policy.state_dict(), tensors)
        self.policy.load_state_dict(dict(tensors))
        own = self._parts.policy_layout.flatten(self.policy, self._device)
        self.state.policy.parameters.copy_(own)
        if self.state.slow_policy is not None:
            self.state.slow_policy.copy_(own)
        if "state" in self.policy.encoder.keys:
            self.set_normaliser(*self.normaliser)

    def take_critics(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Begin with another run's critics, slow copies and temperature. Raises ValueError as `take_policy`."""
        views = {name.removeprefix("networks/"): view for name, view in self._state_views().items()}
        own = {
            name: view
            for name, view in views.items()
            if name in ("target_critic", "log_temperature") or name.partition(".")[0] == "critic"
        }
        _require_shapes(own, {name: t for name, t in tensors.items() if name in own})
        for name, view in own.items():
            view.copy_(tensors[name])

    def _state_views(self) -> Tensors:
        views: Tensors = {"networks/target_critic": self.state.target_critic}
        if self.state.slow_policy is not None:
            views["networks/slow_policy"] = self.state.slow_policy
        for name in ("critic", "policy", "log_temperature", "trust_multiplier"):
            adam: AdamState | None = getattr(self.state, name)
            if adam is None:
                continue
            views[f"networks/{name}"] = adam.parameters
            for field in ("first_moment", "second_moment", "num_steps"):
                views[f"optimiser/{name}.{field}"] = getattr(adam, field)
        for owner, module in (("critic", self.critic), ("policy", self.policy)):
            for name, tensor in module.named_buffers():
                views[f"networks/{owner}.{name}"] = tensor
        views["random/rate_factor"] = self.rollback_factor
        return views

    def scale_rate(self, factor: float) -> None:
        """Make the step sizes of the next updates `factor` times what rollbacks have left of them."""
        torch.mul(self.rollback_factor, factor, out=self.rate_factor)

    def reseed(self, seed: int) -> None:
        """Start another random stream, as after a return to an earlier checkpoint."""
        self._generator.manual_seed(seed)

    def _moves_policy(self, number: int) -> bool:
        return number % self._settings.policy_update_period == 0

    def _update_of(self, number: int, batch_size: int) -> Update:
        """Return the form that update `number` takes: whether it moves the policy, and the targets."""
        moves_policy = self._moves_policy(number)
        moves_target = number % self._settings.target_update_period == 0
        key = (moves_policy, moves_target, batch_size)
        if key not in self._updates:
            self._updates[key] = self._build(moves_policy, moves_target)
        return self._updates[key]

    def _draw_noise(self, batch_size: int) -> Noise:
        action = torch.randn(
            (2, batch_size, self._action_size), generator=self._generator, device=self._device
        )
        shifts = None
        if self._shifts_pixels:
            maximum = self._experiment.network.random_shift
            shifts = draw_shifts(2 * batch_size, maximum, self._generator, self._device)
            shifts = shifts.view(2, batch_size, 2)
        return Noise(action, shifts)

    def _build(self, update_policy: bool, update_target: bool) -> Update:
        settings = self._settings
        target_entropy = settings.target_entropy
        plain = make_update(
            self._parts,
            settings,
            target_entropy=-float(self._action_size) if target_entropy is None else target_entropy,
            update_policy=update_policy,
            update_target=update_target,
            bfloat16=self._experiment.learner.precision == "bfloat16",
        )
        return compiled(plain, self._experiment.learner.compile, self._device)


def _build_critic(experiment: Experiment, spec: EnvironmentSpec, absorbs: bool) -> TwinCritic:
    """Build the critics, which see one more entry than the policy where there are absorbing states."""
    keys: tuple[str, ...] = experiment.reads.critic
    if absorbs:
        keys += (ABSORBING,)
        more = {ABSORBING: ArraySpec((1,), "float32")}
        spec = replace(spec, observation={**spec.observation, **more})
    return TwinCritic(with_latent(experiment, spec), keys, experiment.network)


class _PixelPath(nn.Module):
    """The encoder's way from images to features, without the other keys."""

    def __init__(self, encoder: ObservationEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self.encoder.torso is not None
        result: torch.Tensor = self.encoder.projection(self.encoder.torso(pixels))
        return result


def _require_shapes(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    for name in sorted(own.keys() | found.keys()):
        expected, other = (list(t[name].shape) if name in t else None for t in (own, found))
        if expected != other:
            raise ValueError(f"{name}: expected shape {expected}, found {other}")


def _copied(adam: AdamState) -> AdamState:
    return AdamState(*(tensor.clone() for tensor in adam))
