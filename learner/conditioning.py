"""The context encoder as the learner holds it: what is shown, what it says of each row, its state."""

from __future__ import annotations

import numpy as np
import torch

from apprentice.config import Experiment
from apprentice.demonstrations.context import NONE_SHOWN, TrainContext
from apprentice.networks import Belief, Shown
from apprentice.types import Transition
from learner.context_update import ContextBatch, ContextParts, ContextState
from learner.family_batches import BatchTasks
from learner.flat import AdamState, FlatLayout, adam_state
from learner.sac import SAC, Tensors

LARGEST_ACTION = 1.0 - 1e-6
CHUNK = 64
"""Demonstrations encoded at once where all are."""


class Conditioning:
    """Draws and encodes the train tasks' context demonstrations.

    The encoder is the policy's own module: its parameters are views of the state here, so that what is
    published and stored with the policy is what was learned.
    """

    def __init__(
        self, experiment: Experiment, device: torch.device, context: TrainContext, sac: SAC
    ) -> None:
        encoder = sac.policy.context
        assert encoder is not None
        self._settings, self._device, self._encoder = experiment.context, device, encoder
        self._layout = FlatLayout(encoder)
        adam = adam_state(self._layout.flatten(encoder, device))
        views = self._layout.unflatten(adam.parameters)
        for name, parameter in encoder.named_parameters():
            parameter.data = views[name]
        self.state = ContextState(adam, encoder.running_mean, encoder.running_variance)
        self._average_tau = experiment.sac.policy_average_tau if self.learned else None
        self._average = None if self._average_tau is None else adam.parameters.clone()
        self.parts = ContextParts(encoder, self._layout, experiment.context)
        self._hold(context)
        self._features = torch.zeros(len(context.number), encoder.features_size, device=device)
        self._num_updates = 0
        self.refresh()

    def _hold(self, context: TrainContext) -> None:
        """Lay the demonstrations out: all of one length, and for each task where its own are."""
        bounds = context.bounds.tolist()
        lengths = [stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
        steps = torch.zeros(len(lengths), max(lengths), context.steps.shape[1])
        for place, (start, length) in enumerate(zip(bounds[:-1], lengths, strict=True)):
            steps[place, :length] = context.steps[start : start + length]
        self._steps, self._lengths = steps.to(self._device), torch.tensor(lengths).to(self._device)
        self._task = context.task.to(self._device)
        num_tasks = int(context.task.max()) + 1
        counts = torch.bincount(context.task, minlength=num_tasks)
        places = torch.zeros(num_tasks, int(counts.max()), dtype=torch.int64)
        for task in range(num_tasks):
            own = (context.task == task).nonzero().squeeze(1)
            places[task, : len(own)] = own
        self._places, self._counts = places.to(self._device), counts.to(self._device)
        lookup = torch.full((int(context.number.max()) + 1,), NONE_SHOWN)
        lookup[context.number] = torch.arange(len(context.number))
        self._place_of = lookup.to(self._device)
        self._task_of = dict(zip(context.number.tolist(), context.task.tolist(), strict=True))

    @property
    def learned(self) -> bool:
        """Whether the encoder is trained after its pretraining."""
        return self._settings.learned

    @property
    def num_tasks(self) -> int:
        """Train tasks."""
        return len(self._counts)

    def knows(self, task: int, numbers: np.ndarray) -> bool:
        """Return whether a segment's numbers [C] are of demonstrations of its task, one or more."""
        shown = [number for number in numbers.tolist() if number != NONE_SHOWN]
        return bool(shown) and all(self._task_of.get(number) == task for number in shown)

    def draw(self, tasks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw demonstrations of each of `tasks` [N]: places [N, C], NONE_SHOWN where fewer are shown."""
        return self._some_of(self._shuffled(tasks, generator)[:, : self._settings.most], generator)

    def _shuffled(self, tasks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the places of all demonstrations of each of `tasks` in random order; those of no meaning come last."""
        shape = (len(tasks), self._places.shape[1])
        scores = torch.rand(shape, generator=generator, device=self._device)
        order = scores.masked_fill(self._beyond(tasks), 2.0).argsort(1)
        return self._places[tasks].gather(1, order)

    def _some_of(self, places: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `places` [N, C] with as many of them left out as a draw of sizes says."""
        settings = self._settings
        if settings.fewest == settings.most:
            return places
        sizes = torch.randint(
            settings.fewest,
            settings.most + 1,
            (len(places), 1),
            generator=generator,
            device=self._device,
        )
        columns = torch.arange(settings.most, device=self._device)
        return torch.where(columns < sizes, places, NONE_SHOWN)

    def _beyond(self, tasks: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(self._places.shape[1], device=self._device)
        return columns >= self._counts[tasks][:, None]

    def batch(self, drawn: BatchTasks, generator: torch.Generator) -> ContextBatch:
        """Draw what one update of the encoder is shown of each of a batch's tasks."""
        left = 1.0
        if self._settings.learned_updates is not None:
            left = max(0.0, 1.0 - self._num_updates / self._settings.learned_updates)
        return self._batch(self._shuffled(drawn.tasks, generator), drawn.place, left, generator)

    def _batch(
        self,
        order: torch.Tensor,
        place_of_rows: torch.Tensor,
        rate_factor: float,
        generator: torch.Generator,
    ) -> ContextBatch:
        """Show the first of each task's places in `order` [K, N] to rows [B] of those tasks."""
        settings = self._settings
        other = None
        if settings.information_coefficient > 0.0:  # what is shown and this share no demonstration
            others = self._some_of(order[:, settings.most : 2 * settings.most], generator)
            other = self._shown(others, generator)
        places = self._some_of(order[:, : settings.most], generator)
        shape = (len(order), settings.latent_size)
        noise = torch.randn(shape, generator=generator, device=self._device)
        first, last = settings.kl_ramp
        risen = min(1.0, max(0.0, (self._num_updates - first) / (last - first)))
        weight = torch.full((), settings.kl_coefficient * risen, device=self._device)
        factor = torch.full((), rate_factor, device=self._device)
        return ContextBatch(
            self._shown(places, generator), other, noise, place_of_rows, weight, factor
        )

    def batch_of_context(
        self, tasks_of_rows: torch.Tensor, generator: torch.Generator
    ) -> tuple[ContextBatch, Transition]:
        """Draw what an update is shown of all tasks, and rows [B] of demonstrations of each that are not shown.

        Where a task has no other demonstrations the rows are of those that are shown.
        """
        num, most = len(tasks_of_rows), self._settings.most
        tasks = torch.arange(self.num_tasks, device=self._device)
        places = self._shuffled(tasks, generator)
        shown = self._batch(places, tasks_of_rows, 1.0, generator)
        others = (self._counts - most).clamp_min(0)
        first = torch.where(others > 0, most, 0)
        choice = torch.rand(num, generator=generator, device=self._device)
        counts = torch.where(others > 0, others, self._counts)[tasks_of_rows]
        column = torch.minimum((choice * counts).long(), counts - 1) + first[tasks_of_rows]
        place = places[tasks_of_rows, column]
        share = torch.rand(num, generator=generator, device=self._device)
        length = self._lengths[place]
        steps = self._steps[place, torch.minimum((share * length).long(), length - 1)]
        size, actions = self._encoder.state_size, self._encoder.action_size
        state, action, after = steps.split([size, actions, size], dim=1)
        pre_tanh = torch.atanh(action.clamp(-LARGEST_ACTION, LARGEST_ACTION))
        zero = torch.zeros(num, device=self._device)
        rows = Transition(
            {"state": state}, action, pre_tanh, zero, torch.ones_like(zero), {"state": after}
        )
        return shown, rows

    def begin_anew(self) -> None:
        """Forget the moments and the count of updates, as after pretraining, and encode all demonstrations."""
        for tensor in (self.state.adam.first_moment, self.state.adam.second_moment):
            tensor.zero_()
        self.state.adam.num_steps.zero_()
        if self._average is not None:
            self._average.copy_(self.state.adam.parameters)
        self._num_updates = 0
        self.refresh()

    def updated(self, refreshes: bool = True) -> None:
        """Note an update of the encoder: from time to time all demonstrations are encoded anew.

        Pretraining, which reads no row of replay, has no use for that (`refreshes`).
        """
        self._num_updates += 1
        if self._average is not None and self._average_tau is not None:
            self._average.lerp_(self.state.adam.parameters, self._average_tau)
        period, last = self._settings.refresh_period, self._settings.learned_updates
        rests = last is not None and self._num_updates >= last + period  # encoded since it moved
        if refreshes and self._num_updates % period == 0 and not rests:
            self.refresh()

    def refresh(self) -> None:
        """Encode all demonstrations, of each all steps."""
        steps = torch.arange(self._steps.shape[1], device=self._device)
        with torch.no_grad():
            for first in range(0, len(self._steps), CHUNK):
                rows = slice(first, first + CHUNK)
                mask = steps < self._lengths[rows, None]
                self._features[rows] = self._encoder.features_of(self._steps[rows], mask)[0]

    def belief(self, places: torch.Tensor) -> Belief:
        """Return what the demonstrations at `places` [N, C] say, as they were last encoded."""
        with torch.no_grad():
            return self._encoder.belief(self._features[places.clamp_min(0)], places != NONE_SHOWN)

    def latent(self, places: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return a sample [N, Z] of what they say; its mean without a generator."""
        belief = self.belief(places)
        if generator is None or self._settings.encoder == "context_window":
            return belief.mean
        noise = torch.randn(belief.mean.shape, generator=generator, device=self._device)
        return belief.sample(noise)

    def conditioned(self, batch: Transition, generator: torch.Generator) -> Transition:
        """Return a batch of the rings with `latent` in place of `context`, inferred anew for each row."""
        numbers = batch.observation["context"].long()
        places = torch.where(
            numbers == NONE_SHOWN, NONE_SHOWN, self._place_of[numbers.clamp_min(0)]
        )
        if self._settings.relabel == "fresh":
            places = self.draw(self._task[places[:, 0]], generator)
        told = told_latent(batch, self.latent(places, generator))
        del told.observation["context"]
        return told

    def averaged_tensors(self) -> Tensors:
        """Return copies on the CPU of the encoder's average, by their names in the policy; none without one.

        The policy's average is of as many updates: to the newest encoder it would not fit.
        """
        if self._average is None:
            return {}
        average = self._layout.unflatten(self._average)
        return {f"context.{name}": t.detach().to("cpu", copy=True) for name, t in average.items()}

    def state_views(self) -> dict[str, Tensors]:
        """Return all tensors of the state, by the file they are stored in; buffers are the policy's."""
        adam = self.state.adam
        average = {} if self._average is None else {"context.average": self._average}
        return {
            "networks": {"context": adam.parameters, "context.features": self._features, **average},
            "optimiser": {
                f"context.{field}": getattr(adam, field)
                for field in ("first_moment", "second_moment", "num_steps")
            },
            "random": {},
        }

    def state_tensors(self) -> dict[str, Tensors]:
        """Return copies of what an exact continuation needs."""
        groups = {
            group: {k: t.detach().to("cpu", copy=True) for k, t in tensors.items()}
            for group, tensors in self.state_views().items()
        }
        groups["random"]["context.num_updates"] = torch.tensor([self._num_updates])
        return groups

    def load_state_tensors(self, groups: dict[str, Tensors]) -> None:
        """Continue from what `state_tensors` returned; raise ValueError where shapes differ."""
        for group, tensors in self.state_views().items():
            for name, tensor in tensors.items():
                found = groups[group].get(name)
                if found is None or found.shape != tensor.shape:
                    raise ValueError(f"state of another context encoder: {name}")
                tensor.copy_(found)
        self._num_updates = int(groups["random"]["context.num_updates"])

    def copied_state(self) -> ContextState:
        """Return a copy of the state, for an update that must change nothing."""
        adam = AdamState(*(tensor.clone() for tensor in self.state.adam))
        return ContextState(
            adam, self.state.running_mean.clone(), self.state.running_variance.clone()
        )

    def _shown(self, places: torch.Tensor, generator: torch.Generator) -> Shown:
        """Return the demonstrations at `places` [K, C], some of their steps."""
        num_steps, longest = self._settings.steps, self._steps.shape[1]
        present = places != NONE_SHOWN
        safe = places.clamp_min(0)
        length = self._lengths[safe]  # [K, C]
        if num_steps is None or num_steps >= longest or self._settings.encoder != "posterior":
            steps = torch.arange(longest, device=self._device).expand(*safe.shape, longest)
            mask = (steps < length[..., None]) & present[..., None]
            return Shown(self._steps[safe], mask, present)
        shape = (*safe.shape, num_steps)
        share = torch.rand(shape, generator=generator, device=self._device)
        steps = torch.minimum((share * length[..., None]).long(), length[..., None] - 1)
        mask = present[..., None].expand(shape)
        return Shown(self._steps[safe[..., None], steps], mask, present)


def told_latent(batch: Transition, latent: torch.Tensor) -> Transition:
    """Return a copy of the batch [B] with `latent` [B, Z] in both observations."""
    return batch._replace(
        observation={**batch.observation, "latent": latent},
        next_observation={**batch.next_observation, "latent": latent},
    )
