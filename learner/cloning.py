"""Behaviour cloning (Pomerleau 1991): the policy learns the expert's actions, and never acts to learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call, grad_and_value

from apprentice.config import Experiment
from apprentice.config_imitation import CloningSettings
from apprentice.networks import SquashedGaussianPolicy, log_probability
from apprentice.types import Metrics, Transition
from learner.compiling import compiled
from learner.demonstrated import Demonstrated
from learner.flat import AdamSettings, AdamState, FlatLayout, adam_step, clip_by_norm
from learner.sac import SAC, Tensors

METRICS = ("loss", "action_error", "gradient_norm", "rejected_updates")
"""What an update returns, in this order: the objective; the mean squared error of the executed action,
tanh of the mean, against the expert's; the gradient's norm; and 1 where a number was not finite."""

CloningUpdate = Callable[[AdamState, Transition, torch.Tensor, torch.Tensor], torch.Tensor]
"""(policy's state, expert's batch, noise [B, O] or [0], step-size factor []) -> values of METRICS [4]."""


def action_error(mean: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error [] of tanh(mean), the action that is executed, against `action` [B, A]."""
    return (torch.tanh(mean) - action).square().sum(-1).mean()


def make_cloning_update(
    policy: SquashedGaussianPolicy,
    layout: FlatLayout,
    settings: CloningSettings,
    max_gradient_norm: float | None,
) -> CloningUpdate:
    """Build the update for one setting; the result reads nothing but its arguments."""
    adam = AdamSettings(settings.learning_rate, (0.9, 0.999))

    def update(
        state: AdamState, batch: Transition, noise: torch.Tensor, rate_factor: torch.Tensor
    ) -> torch.Tensor:
        observation = dict(batch.observation)
        if settings.noise > 0.0:
            spread = settings.noise / policy.encoder.state_scale
            observation["state"] = observation["state"] + spread * noise

        def objective(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, log_std = functional_call(policy, layout.unflatten(vector), (observation,))
            error = action_error(mean, batch.action)
            if settings.loss == "mean_squared_error":
                return error, error.detach()
            likelihood = log_probability(batch.pre_tanh_action, mean, log_std.clamp_min(-5.0))
            return -likelihood.mean(), error.detach()

        gradient, (loss, error) = grad_and_value(objective, has_aux=True)(state.parameters)
        gradient, norm = clip_by_norm(gradient, max_gradient_norm)
        accept = torch.isfinite(loss) & torch.isfinite(norm)
        adam_step(state, gradient, adam, rate_factor, accept)
        if settings.weight_decay > 0.0:
            state.parameters.mul_(
                1.0 - accept * rate_factor * settings.learning_rate * settings.weight_decay
            )
        return torch.stack([loss, error, norm, (~accept).float()]).detach()

    return update


class Cloning:
    """Trains SAC's policy on demonstrations alone; critics and temperature stay as they are."""

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        demonstrated: Demonstrated,
        sac: SAC,
    ) -> None:
        self._settings = experiment.imitation.cloning
        self._sac, self._device = sac, device
        self._rows = demonstrated.train
        self._average_tau = experiment.sac.policy_average_tau
        self._generator = torch.Generator(device).manual_seed(experiment.seed + 3)
        self._sums = torch.zeros(len(METRICS), device=device)
        self._num_summed = 0
        plain = make_cloning_update(
            sac.policy, FlatLayout(sac.policy), self._settings, experiment.sac.max_gradient_norm
        )
        self._update: CloningUpdate = compiled(plain, experiment.learner.compile, device)

    def update(self) -> None:
        """Make one update on a batch of demonstrations."""
        batch, noise = self._draw()
        self._sums += self._update(self._sac.state.policy, batch, noise, self._sac.rate_factor)
        self._num_summed += 1
        slow, tau = self._sac.state.slow_policy, self._average_tau
        if slow is not None and tau is not None:
            slow.lerp_(self._sac.state.policy.parameters, tau)

    def prepare(self) -> None:
        """Compile the update by running it on copies; nothing here changes."""
        generator = self._generator.get_state()
        batch, noise = self._draw()
        self._generator.set_state(generator)
        copies = AdamState(*(tensor.clone() for tensor in self._sac.state.policy))
        self._update(copies, batch, noise, self._sac.rate_factor.clone())

    def metrics(self) -> Metrics:
        """Return the means of METRICS since the last call as `cloning/<name>`, and start anew."""
        if self._num_summed == 0:
            return {}
        sums = dict(zip(METRICS, self._sums.tolist(), strict=True))
        result = {f"cloning/{name}": value / self._num_summed for name, value in sums.items()}
        self._sums.zero_()
        self._num_summed = 0
        return result

    def state_tensors(self) -> dict[str, Tensors]:
        """Return copies of what an exact continuation needs beside SAC's own state."""
        return {"random": {"generator": self._generator.get_state()}}

    def load_state_tensors(self, groups: dict[str, Tensors]) -> None:
        """Continue from what `state_tensors` returned."""
        if set(groups["random"]) != {"generator"}:
            raise ValueError("state of another method than behaviour cloning")
        self._generator.set_state(groups["random"]["generator"])
        self._sums.zero_()
        self._num_summed = 0

    def reseed(self, seed: int) -> None:
        """Start another random stream, as after a return to an earlier checkpoint."""
        self._generator.manual_seed(seed)

    def _draw(self) -> tuple[Transition, torch.Tensor]:
        rows, size = self._rows, self._sac.batch_size
        index = torch.randint(
            rows.num_rows, (size,), generator=self._generator, device=self._device
        )
        batch = self._rows.transitions(index)
        noise = torch.zeros(0, device=self._device)
        if self._settings.noise > 0.0:
            shape = batch.observation["state"].shape
            noise = torch.randn(shape, generator=self._generator, device=self._device)
        return batch, noise
