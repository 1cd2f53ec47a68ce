"""Learning from an expert instead of a reward: the discriminator around SAC, and what it makes of a batch.

Inside a step the order is: discriminator, relabel, SAC. Rewards are computed with the newest
discriminator for every batch and are never stored; the environment's reward is measured, never learned on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from apprentice.config import Experiment
from apprentice.config_base import TELLING
from apprentice.networks.encoder import ABSORBING
from apprentice.types import EnvironmentSpec, Metrics, Transition
from learner.absorbing import absorbing_share, share_beside, with_absorbing_states
from learner.batches import chosen_rows, with_expert_last, with_rows_at
from learner.conditioning import Conditioning, told_latent
from learner.context_update import CONTEXT_METRICS, ContextBatch
from learner.demonstrated import Demonstrated, ExpertRows
from learner.diagnostics import (
    CollapseAlarm,
    diagnose,
    largest_reward,
    log_integral_of_exp_reward,
    mean_or_nothing,
)
from learner.discriminator_update import METRICS
from learner.expert_advantage import ExpertAdvantage
from learner.family_batches import BatchTasks, draw_batch_tasks, rows_of_tasks, sample_tasks
from learner.judging import Judge
from learner.recovered import RecoveredReward
from learner.sac import SAC, Tensors
from replay.tasks import Experience

DIAGNOSED_ROWS, DIAGNOSED_PICTURES = 1024, 128
"""Rows that diagnostics look at; fewer where they have pixels, of which as many take longer than an update."""
NORMALISER_RATE = 1e-3


class Imitation:
    """Discriminator, its optimiser and random stream; SAC and the rings belong to others."""

    def __init__(
        self,
        experiment: Experiment,
        spec: EnvironmentSpec,
        device: torch.device,
        demonstrated: Demonstrated,
        sac: SAC,
        conditioning: Conditioning | None = None,
    ) -> None:
        self._conditioning = conditioning
        self._settings = experiment.imitation
        self._experiment, self._device, self._sac = experiment, device, sac
        self._demonstrated = demonstrated
        self._absorbs = sac.absorbs
        reads_pixels = "pixels" in experiment.reads.discriminator
        self._num_diagnosed = DIAGNOSED_PICTURES if reads_pixels else DIAGNOSED_ROWS
        self._size, self._tasks_per_batch = sac.batch_size, experiment.replay.tasks_per_batch
        self._generator = torch.Generator(device).manual_seed(experiment.seed + 3)
        self._num_summed = 0
        self._mean_square = torch.ones(1, device=device)
        self._recent: dict[int, torch.Tensor] = {}  # places in a batch, by its size
        self._collapse = CollapseAlarm(largest_reward(self._settings.reward))
        reward = self._settings.reward
        judges = self._settings.adversarial and reward.override != "recovered"
        self._judge = Judge(experiment, spec, device, sac, conditioning) if judges else None
        num_metrics = len(METRICS) if self._judge is None else self._judge.num_metrics
        self._sums = torch.zeros(num_metrics, device=device)
        self._other: Callable[[Transition], torch.Tensor] | None = None
        if reward.recovered_checkpoint is not None:
            self._other = RecoveredReward(reward.recovered_checkpoint, device, spec)
        elif reward.expert_checkpoint is not None:
            self._other = ExpertAdvantage(reward.expert_checkpoint, spec, device)

    def learn(self, experience: Experience, num_updates: int) -> None:
        """Update the discriminator as its schedule says, before SAC's update `num_updates` + 1."""
        settings = self._settings.discriminator
        if self._judge is None or num_updates % settings.period:
            return
        size = settings.batch_size or self._size
        for _ in range(settings.updates):
            expert, policy, shown = self._drawn_for_update(experience, size)
            self._sums += self._judge.update(expert, policy, self._generator, shown)
            self._num_summed += 1
            if shown is not None and self._conditioning is not None:
                self._conditioning.updated()

    def _drawn_for_update(
        self, experience: Experience, size: int
    ) -> tuple[Transition, Transition, ContextBatch | None]:
        """Draw rows of the expert and of the policy, and what the encoder is shown where it is trained.

        Both are of the same tasks. All rows of a task are told the same `latent`, inferred from demonstrations
        drawn now.
        """
        tasks = self._draw_tasks(size, self._tasks_per_batch, self._generator)
        expert = self._expert_batch(size, tasks)
        policy = self._made_absorbing(self._policy_batch(experience, size, tasks))
        shown = None
        if self._conditioning is not None:
            assert tasks is not None
            if self._conditioning.learned:
                shown = self._conditioning.batch(tasks, self._generator)
            else:
                places = self._conditioning.draw(tasks.tasks, self._generator)
                latent = self._conditioning.latent(places, self._generator)[tasks.place]
                expert, policy = told_latent(expert, latent), told_latent(policy, latent)
        if self._settings.discriminator.mismatched_share > 0.0:
            assert tasks is not None
            policy = self._mismatched(policy, expert, tasks)
        return expert, policy, shown

    def _draw_tasks(
        self, size: int, num_drawn: int | None, generator: torch.Generator
    ) -> BatchTasks | None:
        """Draw the tasks of a batch, `num_drawn` or all; None where there is but one."""
        bounds = self._demonstrated.task_bounds
        if bounds is None:
            return None
        return draw_batch_tasks(size, len(bounds) - 1, num_drawn, generator, self._device)

    def relabel(
        self, batch: Transition, tasks: BatchTasks | None = None
    ) -> tuple[Transition, torch.Tensor]:
        """Return the batch that SAC learns on, and its reward [B] by the newest discriminator.

        Rows of the expert that join a family's batch are of its `tasks`.
        """
        batch = self._made_absorbing(self._imagined(batch))
        num_expert = round(self._settings.demonstration_share * len(batch.discount))
        if num_expert:
            own = None if tasks is None else tasks.of_fewer(num_expert, self._generator)
            expert = self._told(self._expert_batch(num_expert, own), own, self._generator)
            batch = with_expert_last(batch, expert)
        return batch, self._reward(batch, num_expert)

    def prepare(self, experience: Experience) -> None:
        """Compile the discriminator's update by running it on copies; nothing here changes."""
        if self._judge is None:
            return
        generator = self._generator.get_state()
        size = self._settings.discriminator.batch_size or self._size
        expert, policy, shown = self._drawn_for_update(experience, size)
        self._judge.prepare(expert, policy, self._generator, shown)
        self._generator.set_state(generator)

    def example(
        self, batch: Transition, tasks: BatchTasks | None = None
    ) -> tuple[Transition, torch.Tensor]:
        """Return what `relabel` would, whose reward is compiled by that; no state and no random stream moves."""
        generator, mean_square = self._generator.get_state(), self._mean_square.clone()
        result = self.relabel(batch, tasks)
        self._generator.set_state(generator)
        self._mean_square.copy_(mean_square)
        return result

    def metrics(self, experience: Experience, seed: int) -> Metrics:
        """Return means of METRICS since the last call, and what `docs/metrics.md` lists under diagnostics.

        Those are measured now, on rows drawn with `seed`: no random stream of training moves.
        """
        if self._judge is None:
            return {}
        generator = torch.Generator(self._device).manual_seed(seed)
        names = METRICS + CONTEXT_METRICS[: len(self._sums) - len(METRICS)]
        values = dict(zip(names, self._sums.tolist(), strict=True)) if self._num_summed else {}
        result = {f"discriminator/{k}": v / self._num_summed for k, v in values.items()}
        self._sums.zero_()
        self._num_summed = 0
        if experience.num_transitions == 0:
            return result
        num = self._num_diagnosed
        tasks = self._draw_tasks(num, None, generator)
        drawn = sample_tasks(experience, num, tasks, generator)
        policy = self._made_absorbing(drawn, generator=generator)
        if self._conditioning is not None:
            policy = self._conditioning.conditioned(policy, generator)
        expert = self._told(self._expert_batch(num, tasks, generator), tasks, generator)
        held_out = self._held_out_batch(generator)
        judge = self._judge
        logits, rewards = zip(*(judge.judged(rows) for rows in (expert, policy)), strict=True)
        measured = diagnose(
            logits,
            None if held_out is None else judge.logits(held_out),
            rewards,
            [rows.environment_reward for rows in (expert, policy)],
        )
        measured |= self._log_integral(policy, generator)
        measured["alarm"] = self._collapse.look(measured)
        return {**result, **{f"discriminator/{key}": value for key, value in measured.items()}}

    def reward_of(self, batch: Transition) -> torch.Tensor:
        """Return the learned reward [B] of any transitions, before running normalisation and scale."""
        assert self._judge is not None
        return self._judge.reward(batch)

    def state_tensors(self) -> dict[str, Tensors]:
        """Return copies of everything an exact continuation needs, by the file it is stored in."""
        groups: dict[str, Tensors] = {
            "networks": {"mean_square": self._mean_square},
            "optimiser": {},
            "random": {"generator": self._generator.get_state()},
        }
        if self._judge is not None:
            for group, tensors in self._judge.state_views().items():
                groups[group] |= tensors
        return {
            group: {k: t.detach().to("cpu", copy=True) for k, t in tensors.items()}
            for group, tensors in groups.items()
        }

    def load_state_tensors(self, groups: dict[str, Tensors]) -> None:
        """Continue from what `state_tensors` returned; raise ValueError where shapes differ."""
        expected = {
            g: {k: t.shape for k, t in ts.items()} for g, ts in self.state_tensors().items()
        }
        found = {g: {k: t.shape for k, t in ts.items()} for g, ts in groups.items()}
        if expected != found:
            raise ValueError("state of another discriminator")
        self._mean_square.copy_(groups["networks"]["mean_square"])
        self._generator.set_state(groups["random"]["generator"])
        if self._judge is not None:
            for group, tensors in self._judge.state_views().items():
                for name, tensor in tensors.items():
                    tensor.copy_(groups[group][name])
        self._sums.zero_()
        self._num_summed = 0

    def reseed(self, seed: int) -> None:
        """Start another random stream, as after a return to an earlier checkpoint."""
        self._generator.manual_seed(seed)

    def _reward(self, batch: Transition, num_expert: int) -> torch.Tensor:
        settings = self._settings.reward
        if settings.override == "environment":
            return batch.environment_reward
        if settings.override == "zero":
            return torch.zeros_like(batch.discount)
        if self._other is not None:
            return self._other(batch) * settings.scale
        if self._judge is None:  # sqil: 1 for the expert's rows, which come last (1905.11108)
            reward = torch.zeros_like(batch.discount)
            reward[len(reward) - num_expert :] = 1.0
            return reward * settings.scale
        reward = self._judge.compiled_reward(batch)
        if settings.normalise:
            self._mean_square.lerp_(reward.square().mean(), NORMALISER_RATE)
            reward = reward * self._mean_square.rsqrt()
        return reward * settings.scale

    def _policy_batch(
        self, experience: Experience, size: int, tasks: BatchTasks | None
    ) -> Transition:
        """Draw what the discriminator is to call the policy's: some of it recent, where a window is set."""
        settings = self._settings.discriminator
        if settings.replay_window is None:
            return sample_tasks(experience, size, tasks, self._generator)
        recent = sample_tasks(experience, size, tasks, self._generator, settings.replay_window)
        if settings.replay_window_share == 1.0:
            return recent
        places = self._places_of_recent(size, settings.replay_window_share)
        any_age = sample_tasks(experience, size, tasks, self._generator)
        return with_rows_at(any_age, chosen_rows(recent, places), places)

    def _places_of_recent(self, size: int, share: float) -> torch.Tensor:
        """Return which rows of a batch are recent ones: spread over it, since rows may come task by task."""
        if size not in self._recent:
            places = (torch.arange(size + 1) * share).floor().diff().nonzero().squeeze(1)
            self._recent[size] = places.to(self._device)
        return self._recent[size]

    def _imagined(self, batch: Transition) -> Transition:
        """Return the batch with a share of its rows, chosen at random, told a task between theirs and another row's."""
        share = self._settings.imagined_share
        if share == 0.0:
            return batch
        size, device = len(batch.discount), self._device
        others = torch.randint(size, (size,), generator=self._generator, device=device)
        chosen, weight = torch.rand((2, size, 1), generator=self._generator, device=device)
        weight = weight * (chosen < share)
        imagined = {}
        for key in TELLING:
            if key in batch.observation:
                told = batch.observation[key]
                imagined[key] = torch.lerp(told, told[others], weight)
        return batch._replace(
            observation={**batch.observation, **imagined},
            next_observation={**batch.next_observation, **imagined},
        )

    def _mismatched(self, policy: Transition, expert: Transition, tasks: BatchTasks) -> Transition:
        """Return the batch with a share of its rows replaced by the expert's of other tasks, told to be of the row's.

        A discriminator that ignored the task would have to call these the expert's.
        """
        size = len(policy.discount)
        num = round(self._settings.discriminator.mismatched_share * size)
        places = torch.arange(num, device=self._device) * size // num
        rows, bounds = self._demonstrated.train, self._demonstrated.task_bounds
        assert bounds is not None
        index = torch.randint(rows.num_rows, (num,), generator=self._generator, device=self._device)
        differs = torch.searchsorted(bounds, index, right=True) - 1 != tasks.of_rows[places]
        others = rows.transitions(index)
        told = {k: expert.observation[k][places] for k in TELLING if k in expert.observation}
        relabelled = others._replace(
            observation={**others.observation, **told},
            next_observation={**others.next_observation, **told},
        )
        return with_rows_at(policy, chosen_rows(relabelled, differs), places[differs])

    def _told(
        self, expert: Transition, tasks: BatchTasks | None, generator: torch.Generator
    ) -> Transition:
        """Return the expert's rows with `latent` where the task is inferred."""
        if self._conditioning is None:
            return expert
        assert tasks is not None
        places = self._conditioning.draw(tasks.of_rows, generator)
        return told_latent(expert, self._conditioning.latent(places, generator))

    def _expert_batch(
        self, size: int, tasks: BatchTasks | None, generator: torch.Generator | None = None
    ) -> Transition:
        return self._drawn(self._demonstrated.train, size, tasks, generator or self._generator)

    def _held_out_batch(self, generator: torch.Generator) -> Transition | None:
        held_out = self._demonstrated.held_out
        if self._conditioning is not None:  # of validation tasks, which have no demonstrations here
            return None
        if held_out is None:
            return None
        return self._drawn(held_out, self._num_diagnosed, None, generator)

    def _drawn(
        self,
        rows: ExpertRows,
        size: int,
        tasks: BatchTasks | None,
        generator: torch.Generator,
    ) -> Transition:
        """Draw rows: of these tasks, or of any where it is None."""
        if tasks is None:
            index = torch.randint(rows.num_rows, (size,), generator=generator, device=self._device)
        else:
            assert self._demonstrated.task_bounds is not None
            index = rows_of_tasks(self._demonstrated.task_bounds, tasks.of_rows, generator)
        share = absorbing_share(rows.num_rows, rows.num_terminated, rows.subsampling)
        return self._made_absorbing(rows.transitions(index), share, generator=generator)

    def _made_absorbing(
        self,
        batch: Transition,
        share: float | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Transition:
        """Return the batch with absorbing states, `share` of it or as many as are beside rows of replay."""
        if not self._absorbs:
            return batch
        stays = share_beside(batch) if share is None else share
        return with_absorbing_states(batch, stays, generator or self._generator)

    def _log_integral(self, policy: Transition, generator: torch.Generator) -> Metrics:
        if self._settings.discriminator.inputs == "state_next_state" or self._judge is None:
            return {}
        if ABSORBING in policy.observation:  # no action is chosen there
            policy = chosen_rows(policy, policy.observation[ABSORBING].squeeze(-1) == 0.0)
        few = chosen_rows(policy, slice(0, 128))
        # AIRL's f would look at the state that another action led to.
        reward = self._judge.recovered_reward
        value = log_integral_of_exp_reward(reward, self._sac, few, generator)
        return mean_or_nothing("log_integral_exp_reward", value)
