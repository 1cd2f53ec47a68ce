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
from learner.conditioning import Conditioning, told_latent
from learner.context_update import (
    CONTEXT_METRICS,
    ContextBatch,
    ContextParts,
    ContextState,
)
from learner.demonstrated import Demonstrated
from learner.family_batches import draw_batch_tasks, rows_of_tasks
from learner.flat import AdamSettings, AdamState, FlatLayout, adam_step, clip_by_norm
from learner.sac import SAC, Tensors

METRICS = ("loss", "action_error", "gradient_norm", "rejected_updates")
"""What an update returns, in this order: the objective; the mean squared error of the executed action,
tanh of the mean, against the expert's; the gradient's norm; and 1 where a number was not finite."""

CloningUpdate = Callable[
    [
        AdamState,
        Transition,
        torch.Tensor,
        torch.Tensor,
        ContextState | None,
        ContextBatch | None,
    ],
    torch.Tensor,
]
"""(policy's state, expert's batch, noise [B, O] or [0], step-size factor [], encoder's state, what it is shown) ->
values of METRICS [4], and of CONTEXT_METRICS [3] where the encoder is trained with the policy."""
STATES = (0, 4)
"""Which of them are states."""


def action_error(mean: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error [] of tanh(mean), the action that is executed, against `action` [B, A]."""
    return (torch.tanh(mean) - action).square().sum(-1).mean()


def make_cloning_update(
    policy: SquashedGaussianPolicy,
    layout: FlatLayout,
    settings: CloningSettings,
    max_gradient_norm: float | None,
    context: ContextParts | None = None,
    context_learning_rate: float = 0.0,
) -> CloningUpdate:
    """Build the update for one setting; the result reads nothing but its arguments.

    With `context` the encoder learns what lets the policy predict the action (meta-BC).
    """
    adam = AdamSettings(settings.learning_rate, (0.9, 0.999), weight_decay=settings.weight_decay)

    def objective(
        vector: torch.Tensor,
        context_vector: torch.Tensor,
        batch: Transition,
        noise: torch.Tensor,
        shown: ContextBatch | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
        observation = dict(batch.observation)
        if settings.noise > 0.0:
            spread = settings.noise / policy.encoder.state_scale
            observation["state"] = observation["state"] + spread * noise
        inferred: tuple[torch.Tensor, ...] = ()
        context_loss = torch.zeros((), device=vector.device)
        if shown is not None:
            assert context is not None
            found = context.infer(context_vector, shown)
            observation["latent"], context_loss = found.latent, found.loss
            inferred = (found.divergence, found.information, found.statistics)
        mean, log_std = functional_call(policy, layout.unflatten(vector), (observation,))
        error = action_error(mean, batch.action)
        loss = error
        if settings.loss == "likelihood":
            loss = -log_probability(batch.pre_tanh_action, mean, log_std.clamp_min(-5.0)).mean()
        detached = tuple(value.detach() for value in inferred)
        return loss + context_loss, (error.detach(), detached)

    def update(
        state: AdamState,
        batch: Transition,
        noise: torch.Tensor,
        rate_factor: torch.Tensor,
        context_state: ContextState | None = None,
        shown: ContextBatch | None = None,
    ) -> torch.Tensor:
        nothing = state.parameters[:0]
        context_vector = nothing if context_state is None else context_state.adam.parameters
        (gradient, context_gradient), (loss, (error, inferred)) = grad_and_value(
            objective, argnums=(0, 1), has_aux=True
        )(state.parameters, context_vector, batch, noise, shown)
        gradient, norm = clip_by_norm(gradient, max_gradient_norm)
        accept = torch.isfinite(loss) & torch.isfinite(norm)
        adam_step(state, gradient, adam, rate_factor, accept)
        values = [loss, error, norm, (~accept).float()]
        if context_state is not None:
            assert context is not None
            assert shown is not None
            divergence, information, statistics = inferred
            context_norm = context.step(
                context_state,
                context_gradient,
                statistics,
                rate_factor * shown.rate_factor,
                accept,
                context_learning_rate,
            )
            values += [divergence, information, context_norm]
        return torch.stack(values).detach()

    return update


class Cloning:
    """Trains SAC's policy on demonstrations alone; critics and temperature stay as they are."""

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        demonstrated: Demonstrated,
        sac: SAC,
        conditioning: Conditioning | None = None,
    ) -> None:
        self._settings = experiment.imitation.cloning
        self._conditioning = conditioning
        self._learns_context = conditioning is not None and conditioning.learned
        self._bounds = demonstrated.task_bounds
        self._tasks_per_batch = experiment.replay.tasks_per_batch
        self._sac, self._device = sac, device
        self._rows = demonstrated.train
        self._average_tau = experiment.sac.policy_average_tau
        self._generator = torch.Generator(device).manual_seed(experiment.seed + 3)
        self._names = METRICS + (CONTEXT_METRICS if self._learns_context else ())
        self._sums = torch.zeros(len(self._names), device=device)
        self._num_summed = 0
        plain = make_cloning_update(
            sac.policy,
            sac.policy_layout,
            self._settings,
            experiment.sac.max_gradient_norm,
            None if conditioning is None else conditioning.parts,
            experiment.context.learning_rate,
        )
        self._update: CloningUpdate = compiled(plain, experiment.learner.compile, device, STATES)

    def update(self) -> None:
        """Make one update on a batch of demonstrations."""
        batch, noise, shown = self._draw()
        context = None
        if shown is not None and self._conditioning is not None:
            context = self._conditioning.state
        self._sums += self._update(
            self._sac.state.policy, batch, noise, self._sac.rate_factor, context, shown
        )
        if shown is not None and self._conditioning is not None:
            self._conditioning.updated()
        self._num_summed += 1
        slow, tau = self._sac.state.slow_policy, self._average_tau
        if slow is not None and tau is not None:
            slow.lerp_(self._sac.state.policy.parameters, tau)

    def prepare(self) -> None:
        """Compile the update by running it on copies; nothing here changes."""
        generator = self._generator.get_state()
        batch, noise, shown = self._draw()
        self._generator.set_state(generator)
        copies = AdamState(*(tensor.clone() for tensor in self._sac.state.policy))
        context = None
        if shown is not None and self._conditioning is not None:
            context = self._conditioning.copied_state()
        self._update(copies, batch, noise, self._sac.rate_factor.clone(), context, shown)

    def metrics(self) -> Metrics:
        """Return the means of METRICS since the last call as `cloning/<name>`, and start anew."""
        if self._num_summed == 0:
            return {}
        sums = dict(zip(self._names, self._sums.tolist(), strict=True))
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

    def _draw(self) -> tuple[Transition, torch.Tensor, ContextBatch | None]:
        """Draw rows, their noise, and what the encoder is shown of each task.

        They come task by task where the task is inferred or some tasks are drawn, else from all rows alike.
        """
        rows, size = self._rows, self._sac.batch_size
        drawn = None
        if self._bounds is not None and (self._conditioning is not None or self._tasks_per_batch):
            num_tasks = len(self._bounds) - 1
            drawn = draw_batch_tasks(
                size, num_tasks, self._tasks_per_batch, self._generator, self._device
            )
            index = rows_of_tasks(self._bounds, drawn.of_rows, self._generator)
        else:
            index = torch.randint(
                rows.num_rows, (size,), generator=self._generator, device=self._device
            )
        batch = rows.transitions(index)
        noise = torch.zeros(0, device=self._device)
        if self._settings.noise > 0.0:
            shape = batch.observation["state"].shape
            noise = torch.randn(shape, generator=self._generator, device=self._device)
        if self._conditioning is None:
            return batch, noise, None
        assert drawn is not None
        if self._learns_context:
            return batch, noise, self._conditioning.batch(drawn, self._generator)
        places = self._conditioning.draw(drawn.tasks, self._generator)
        latent = self._conditioning.latent(places, self._generator)
        return told_latent(batch, latent[drawn.place]), noise, None
