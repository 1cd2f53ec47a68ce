"""What the learner knows and how it learns: segments in, updates owed, updates made. No input or output.

Given the same stream of segments it computes the same parameters, bit for bit, on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import structlog
import torch

from apprentice.config import Experiment
from apprentice.demonstrations.choosing import require_rows
from apprentice.profiling import Profile
from apprentice.types import EnvironmentSpec, Metrics, Segment, SegmentId, Transition
from apprentice.warm_start import WarmStart
from learner.batches import chosen_rows
from learner.cloning import Cloning
from learner.conditioning import Conditioning
from learner.demonstrated import Demonstrated
from learner.family_batches import BatchTasks, draw_batch_tasks, sample_tasks
from learner.imitation import Imitation
from learner.pretraining import pretrain
from learner.sac import SAC, Tensors
from replay.rings import Ring
from replay.tables import signed
from replay.tasks import Experience, TaskRings

log = structlog.get_logger()

_IMITATION, _CONDITIONING = "imitation.", "conditioning."
"""Begin the names of a checkpoint's tensors that are not SAC's."""


class Counters(NamedTuple):
    """What has been done since the run began; none of them goes back but `updates`, after a crash."""

    steps: int = 0  # agent steps received, warm-up included
    updates: int = 0
    segments: int = 0
    duplicates: int = 0
    credit_steps: int = 0  # steps after warm-up, the ones that updates are owed for
    credit_updates: int = 0  # updates made against them


class Learning:
    """SAC, the rings and the replay ratio of one run."""

    def __init__(
        self,
        experiment: Experiment,
        specs: Sequence[EnvironmentSpec],
        device: torch.device,
        profile: Profile | None = None,
        demonstrated: Demonstrated | None = None,
    ) -> None:
        self.experiment = experiment
        self.specs = tuple(specs)
        self.device = device
        self.profile = profile or Profile()
        replay = experiment.replay
        self.sac = SAC(experiment, specs[0], device, experiment.seed)
        self.rings = [
            Ring(spec, replay.capacity, replay.segment_length, device, replay.context_size)
            for spec in specs
        ]
        self.experience: Experience = self.rings[0]
        if experiment.is_family:
            self.experience = TaskRings(self.rings)
        self.counters = Counters()
        self.last_batch: Transition | None = None
        self.num_unknown_contexts = 0
        self._met = False
        self._generator = torch.Generator(device).manual_seed(experiment.seed + 1)
        self._normalised = not experiment.network.normalise_observations
        self.demonstrations = "" if demonstrated is None else demonstrated.digest
        self.imitation: Imitation | None = None
        self.cloning: Cloning | None = None
        self.conditioning: Conditioning | None = None
        if experiment.imitation.method != "none":
            if demonstrated is None:
                raise ValueError(
                    f"imitation.method {experiment.imitation.method!r} needs demonstrations"
                )
            require_rows(experiment, len(specs))
            if not self._normalised and demonstrated.states is not None:
                self._fit_normaliser(demonstrated.states.to(device))
            if demonstrated.context is not None:
                self.conditioning = Conditioning(experiment, device, demonstrated.context, self.sac)
            if experiment.imitation.method == "bc":
                self.cloning = Cloning(
                    experiment, device, demonstrated, self.sac, self.conditioning
                )
            else:
                self.imitation = Imitation(
                    experiment, specs[0], device, demonstrated, self.sac, self.conditioning
                )

    def begin_with(self, found: WarmStart) -> None:
        """Take over an earlier run's networks, for a run that begins.

        Raises ValueError where their shapes are others.
        """
        self.sac.take_policy(found.policy)
        if found.networks is not None:
            self.sac.take_critics(found.networks)
        self._normalised = True

    def pretrain(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Give the context encoder its start, where one is asked for; for a run that begins.

        Return False where a stop was asked for before it was done: the run has then not begun.
        """
        if self.conditioning is None or not self.experiment.context.pretrain_updates:
            return True
        return pretrain(
            self.experiment,
            self.specs[0],
            self.conditioning,
            self.sac.normaliser,
            self.device,
            should_stop,
        )

    @property
    def warm(self) -> bool:
        """Whether the warm-up steps have arrived, and policies may be published."""
        if self.cloning is not None:
            return True
        if self.counters.steps < self.experiment.replay.warmup_steps:
            return False
        return len(self.rings) == 1 or self._met_all_tasks()

    def _met_all_tasks(self) -> bool:
        """Return whether a whole episode of every task has come; once they have, they have."""
        self._met = self._met or all(ring.num_episodes for ring in self.rings)
        return self._met

    @property
    def num_missing(self) -> int:
        """Transitions that must arrive before updates go on: none, unless replay was lost.

        A ring with fewer transitions than the warm-up brought would be learned by heart.
        """
        replay = self.experiment.replay
        wanted = min(replay.warmup_steps, replay.capacity // 2)
        if len(self.rings) > 1:  # a walk over tasks does not bring them as evenly
            wanted //= 2 * len(self.rings)
        wanted = max(1, wanted)
        return max(0, wanted - min(ring.num_transitions for ring in self.rings))

    def receive(self, segment: Segment) -> bool:
        """Take a segment into its task's ring; return False where the ring already had it.

        One that says it was shown what its task's demonstrations are not is left out, and counted.
        """
        conditioning = self.conditioning
        if conditioning is not None and not conditioning.knows(segment.task, segment.context):
            self.num_unknown_contexts += 1
            log.warning(
                "a segment was dropped: it was shown no demonstration of its task",
                actor=segment.actor,
                context=segment.context.tolist(),
            )
            return False
        if not self.rings[segment.task].append(segment):
            self.counters = self.counters._replace(duplicates=self.counters.duplicates + 1)
            return False
        self._count(segment.length)
        return True

    def _count(self, length: int) -> None:
        before = self.counters
        steps = before.steps + length
        credit = max(0, steps - max(before.steps, self.experiment.replay.warmup_steps))
        self.counters = before._replace(
            steps=steps,
            segments=before.segments + 1,
            credit_steps=before.credit_steps + credit,
        )
        if self.warm and not self._normalised:
            self._fit_to_warm_up()

    def updates_owed(self) -> int:
        """Return how many updates the steps received allow now; a large number where both run free."""
        if self.cloning is not None:
            return max(0, self.experiment.learner.max_steps - self.counters.updates)
        if not self.warm or self.num_missing:
            return 0
        ratio = self.experiment.replay.updates_per_step
        if ratio is None:
            return 1_000_000
        allowed = math.floor(self.counters.credit_steps * ratio + 1e-9)
        return max(0, allowed - self.counters.credit_updates)

    def update(self) -> None:
        """Draw a batch from the tasks' rings and make one update: discriminator, relabel, SAC."""
        self.sac.scale_rate(self._schedule())
        if self.cloning is not None:
            self._clone()
            return
        tasks = self._draw_tasks()
        batch = self._sample(tasks)
        self.profile.lap("batch sampling")
        reward = batch.environment_reward
        if self.imitation is not None:
            self.imitation.learn(self.experience, self.counters.updates)
            if self.conditioning is not None:
                batch = self.conditioning.conditioned(batch, self._generator)
            batch, reward = self.imitation.relabel(batch, tasks)
            self.profile.lap("discriminator")
        self.last_batch = batch
        self.sac.update(batch, reward)
        self.profile.lap("update")
        self.counters = self.counters._replace(
            updates=self.counters.updates + 1, credit_updates=self.counters.credit_updates + 1
        )

    def _schedule(self) -> float:
        """Return the factor on every step size that the run's progress asks for."""
        learner = self.experiment.learner
        if learner.learning_rate_schedule == "constant":
            return 1.0
        return max(0.0, 1.0 - self.counters.steps / learner.max_steps)

    def _clone(self) -> None:
        """Behaviour cloning takes no steps in an environment: its updates are its steps."""
        assert self.cloning is not None
        self.cloning.update()
        self.profile.lap("update")
        updates = self.counters.updates + 1
        self.counters = self.counters._replace(updates=updates, steps=updates)

    def prepare(self) -> None:
        """Compile the updates on batches like the real ones; no state and no random stream moves."""
        if self.cloning is not None:
            self.cloning.prepare()
            return
        generator = self._generator.get_state()
        tasks = self._draw_tasks()
        batch = self._sample(tasks)
        reward = batch.environment_reward
        if self.imitation is not None:
            self.imitation.prepare(self.experience)
            if self.conditioning is not None:
                batch = self.conditioning.conditioned(batch, self._generator)
            batch, reward = self.imitation.example(batch, tasks)
        self.sac.prepare(batch, reward)
        self._generator.set_state(generator)

    def rolled_back(self, counters: Counters, times: int) -> None:
        """After an earlier state was loaded: keep the counters, halve the step size, draw anew."""
        self.counters = counters
        if self.warm and not self._normalised:
            self._fit_to_warm_up()
        self.sac.num_updates = counters.updates
        self.sac.rollback_factor.fill_(0.5**times)
        self.sac.reseed(self.experiment.seed + 1000 * times)
        self._generator.manual_seed(self.experiment.seed + 1000 * times + 1)
        if self.imitation is not None:
            self.imitation.reseed(self.experiment.seed + 1000 * times + 3)
        if self.cloning is not None:
            self.cloning.reseed(self.experiment.seed + 1000 * times + 3)

    def _draw_tasks(self) -> BatchTasks | None:
        """Draw the tasks that SAC's batch has rows of; None where there is but one."""
        if not self.experiment.is_family:
            return None
        size, num_drawn = self.experiment.sac.batch_size, self.experiment.replay.tasks_per_batch
        return draw_batch_tasks(size, len(self.rings), num_drawn, self._generator, self.device)

    def _sample(self, tasks: BatchTasks | None) -> Transition:
        settings, ring = self.experiment.replay, self.rings[0]
        size = self.experiment.sac.batch_size
        if settings.sampling == "transitions":
            return sample_tasks(self.experience, size, tasks, self._generator)
        length = settings.sampled_length
        if settings.sampling == "segments":
            num_pieces = math.ceil(size / length)
            return chosen_rows(
                ring.sample_segments(num_pieces, length, self._generator), slice(0, size)
            )
        pieces = ring.sample_segments(math.ceil(2 * size / length), length, self._generator)
        num_rows = len(pieces.discount)
        chosen = torch.randperm(num_rows, generator=self._generator, device=self.device)[:size]
        return chosen_rows(pieces, chosen)

    def metrics(self) -> Metrics:
        """Return SAC's metrics and the replay's: steps, updates, ratio, and what rings hold and refused."""
        counters = self.counters
        imitation: Metrics = {}
        if self.imitation is not None:
            imitation = self.imitation.metrics(self.experience, seed=counters.updates)
        if self.cloning is not None:
            imitation = self.cloning.metrics()
        if self.conditioning is not None:
            imitation["replay/unknown_context_segments"] = float(self.num_unknown_contexts)
        return {
            **self.sac.metrics(),
            **imitation,
            "learner/steps": float(counters.steps),
            "learner/updates": float(counters.updates),
            "learner/environment_frames": float(
                counters.steps * self.experiment.environment.action_repeat
            ),
            "replay/ratio": counters.credit_updates / max(1, counters.credit_steps),
            "replay/transitions": float(sum(ring.num_transitions for ring in self.rings)),
            "replay/duplicate_segments": float(counters.duplicates),
        }

    def identities(self) -> torch.Tensor:
        """Return which segments the rings hold, oldest first: [n, 4] of ring and SegmentId."""
        rows = [
            torch.cat([torch.full((len(index), 1), number), index], dim=1)
            for number, ring in enumerate(self.rings)
            if len(index := ring.index())
        ]
        return torch.cat(rows) if rows else torch.zeros((0, 4), dtype=torch.int64)

    def state_tensors(self) -> dict[str, Tensors]:
        """Return copies of all that an exact continuation needs but the transitions themselves."""
        groups = self.sac.state_tensors()
        groups["policy"] = self.sac.policy_tensors(averaged=True)
        if self.conditioning is not None:
            groups["policy"] |= self.conditioning.averaged_tensors()
        groups["random"]["sampling_generator"] = self._generator.get_state()
        groups["rings"] = {"identities": self.identities()}
        for prefix, part in self._parts():
            for group, tensors in part.state_tensors().items():
                groups[group] |= {prefix + k: t for k, t in tensors.items()}
        return groups

    def _parts(self) -> list[tuple[str, Imitation | Cloning | Conditioning]]:
        """Return what has a state beside SAC's, with what its tensors' names begin with."""
        parts = (
            (_IMITATION, self.imitation),
            (_IMITATION, self.cloning),
            (_CONDITIONING, self.conditioning),
        )
        return [(prefix, part) for prefix, part in parts if part is not None]

    def load_state(
        self, groups: Mapping[str, Tensors], counters: Counters, normalised: bool
    ) -> None:
        """Continue from `state_tensors` and counters; the rings are filled again by `refill`."""
        own, others = _split(groups)
        sampling = own["random"].pop("sampling_generator")
        for prefix, part in self._parts():
            part.load_state_tensors(others[prefix])
        self.sac.load_state_tensors(own, counters.updates)
        self._generator.set_state(sampling)
        self.counters = counters
        self._normalised = normalised

    @property
    def normalised(self) -> bool:
        """Whether the observation normaliser has been fitted, or is not wanted."""
        return self._normalised

    def refill(self, segments: Sequence[Segment], identities: torch.Tensor) -> tuple[int, int]:
        """Fill empty rings from recovered segments, in the order a checkpoint noted.

        Segments the checkpoint did not know are newer: they are counted as received, so that updates
        are owed for them. Return how many of the noted segments are missing, and how many were new.
        """
        missing, noted = 0, {tuple(row) for row in identities.tolist()}
        for task, ring in enumerate(self.rings):
            index = identities[identities[:, 0] == task][:, 1:]
            missing += ring.restore([s for s in segments if s.task == task], index)
        new = sorted((s for s in segments if _row(s) not in noted), key=_order)
        for segment in new:
            self.receive(segment)
        return missing, len(new)

    def _fit_to_warm_up(self) -> None:
        """Fit the normaliser to what the rings hold: the warm-up's observations."""
        if "state" not in self.specs[0].observation:
            self._normalised = True
            return
        generator = torch.Generator(self.device).manual_seed(self.experiment.seed + 2)
        rows = [
            ring.sample(max(4096 // len(self.rings), ring.num_transitions), generator)
            for ring in self.rings
        ]
        self._fit_normaliser(torch.cat([batch.observation["state"] for batch in rows]))

    def _fit_normaliser(self, states: torch.Tensor) -> None:
        """Fit mean and scale to states [N, O]; they stay as they are from then on."""
        self._normalised = True
        deviation = states.std(0).clamp_min(self.experiment.network.normaliser_floor)
        self.sac.set_normaliser(states.mean(0), 1.0 / deviation)


def _split(
    groups: Mapping[str, Tensors],
) -> tuple[dict[str, Tensors], dict[str, dict[str, Tensors]]]:
    """Return SAC's tensors, and others' by their prefix, each by the file they were stored in."""
    own: dict[str, Tensors] = {}
    others: dict[str, dict[str, Tensors]] = {_IMITATION: {}, _CONDITIONING: {}}
    for group in ("networks", "optimiser", "random"):
        left = dict(groups[group])
        for prefix, theirs in others.items():
            names = [name for name in left if name.startswith(prefix)]
            found = {name.removeprefix(prefix): left.pop(name) for name in names}
            if found or prefix == _IMITATION:
                theirs[group] = found
        own[group] = left
    return own, others


def _row(segment: Segment) -> tuple[int, ...]:
    """Return a segment's row of the identities in a checkpoint."""
    identity = segment.id
    return (
        segment.task,
        signed(identity.incarnation),
        identity.episode,
        identity.first_step,
    )


def _order(segment: Segment) -> tuple[int, int, int, int]:
    identity: SegmentId = segment.id
    return (segment.policy_version, identity.incarnation, identity.episode, identity.first_step)
