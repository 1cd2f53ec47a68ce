"""Makes demonstrations: a checkpoint acts, and pictures come later from what was kept."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from apprentice.checkpoint import experiment_of, load_policy
from apprentice.checkpoint_format import MANIFEST, Manifest
from apprentice.config import EnvironmentSettings, Experiment
from apprentice.config_family import SPLITS, FamilySettings
from apprentice.demonstrations.digest import digest_of
from apprentice.demonstrations.family import FamilyDemonstrations, read_family, write_family
from apprentice.demonstrations.format import (
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
    Expert,
)
from apprentice.environments import (
    Environment,
    UnknownTask,
    environment_spec,
    rebuild_environment,
)
from apprentice.environments.families import task_split
from apprentice.evaluation import Episode, evaluate
from apprentice.networks import Policy, UniformPolicy
from apprentice.types import EnvironmentSpec, Trajectory

RANDOM_EPISODES = 40
"""At most, and never more than of the expert."""
FIRST_SEED = 1_000_000
"""Of recorded episodes: whoever evaluates counts from elsewhere, so that none starts where a demonstration did."""


def record_demonstrations(
    checkpoint: Path,
    num_episodes: int,
    *,
    first_seed: int = FIRST_SEED,
    deterministic: bool = True,
    minimum_return: float | None = None,
    measured_episodes: int = 100,
    deadline_seconds: float = 3600.0,
) -> DemonstrationSet:
    """Let a checkpoint act for whole episodes and return them.

    With `minimum_return` only episodes with at least this return are kept, out of at most five times as
    many. The expert's own mean return is measured on `measured_episodes` that nobody picks. Raises
    CheckpointError, EvaluationError and DemonstrationError.
    """
    policy, manifest = load_policy(checkpoint)
    experiment = experiment_of(manifest)
    if experiment.is_family:
        raise DemonstrationError(
            f"checkpoint: expected the expert of one task, found one of the family {experiment.task}, whose "
            "demonstrations are a folder: give --out a path without .hdf5"
        )
    recording = _Recording(
        policy, checkpoint, manifest, experiment, deterministic, deadline_seconds
    )
    tried = num_episodes if minimum_return is None else 5 * num_episodes
    seeds = range(first_seed, first_seed + max(tried, measured_episodes))
    of_task = {experiment.task: seeds}
    randoms = recording.random_returns(of_task)
    return recording.record(of_task, randoms, num_episodes, minimum_return, tried)[experiment.task]


def record_family(
    checkpoints: Sequence[Path],
    num_context: int,
    num_query: int,
    folder: Path,
    *,
    first_seed: int = FIRST_SEED,
    deterministic: bool = True,
    deadline_seconds: float = 3600.0,
    settings: FamilySettings | None = None,
) -> FamilyDemonstrations:
    """Let a family's experts act in every task of every division; return what was written to `folder`.

    The division is that of `settings`, or the one that the first expert learned on; those of the others do not count.
    Of each task the first `num_context` episodes are to be shown, the next `num_query` to be imitated; of either the
    experts act in turn, so that what they do differently (which way an arm bends) does not look as if it told the
    task. Each episode has a seed of its own, from `first_seed` on, so that there are as many starts as episodes.
    Raises CheckpointError, EvaluationError and DemonstrationError.
    """
    if folder.exists():
        raise DemonstrationError(f"{folder}: expected a path that is free, found something there")
    most = min(num_context, num_query)
    if not 1 <= len(checkpoints) <= most:
        raise DemonstrationError(
            f"checkpoints: expected 1 to {most}, as many as there are episodes of a task to be shown or "
            f"imitated, found {len(checkpoints)}"
        )
    recordings = _recordings(checkpoints, settings, deterministic, deadline_seconds)
    family, environment = recordings[0].experiment.task, recordings[0].experiment.environment
    split = task_split(family, environment.family)
    num = num_context + num_query
    recorded = {}
    for name in SPLITS:
        seeds = {
            task.task_id: range(first_seed + number * num, first_seed + (number + 1) * num)
            for number, task in enumerate(split.of(name))
        }
        found = _record_in_turn(recordings, seeds, num_context)
        recorded[name] = {task: (episodes, num_context) for task, episodes in found.items()}
        first_seed += num * len(seeds)
    write_family(folder, family, environment.family, split.digest(), recorded)
    return read_family(folder)


def _recordings(
    checkpoints: Sequence[Path],
    settings: FamilySettings | None,
    deterministic: bool,
    deadline_seconds: float,
) -> list[_Recording]:
    """Return a family's experts, all of them to act in one division; raise DemonstrationError."""
    recordings: list[_Recording] = []
    for checkpoint in checkpoints:
        policy, manifest = load_policy(checkpoint)
        experiment = experiment_of(manifest)
        if not experiment.is_family:
            raise DemonstrationError(
                f"checkpoint: expected an expert of a family, found one of {experiment.task}"
            )
        settings = settings or experiment.environment.family
        environment = experiment.environment.model_copy(update={"family": settings})
        experiment = experiment.model_copy(update={"environment": environment})
        recordings.append(
            _Recording(policy, checkpoint, manifest, experiment, deterministic, deadline_seconds)
        )
        recordings[0].require_same(recordings[-1])
    return recordings


def _record_in_turn(
    recordings: Sequence[_Recording], seeds: Mapping[str, Sequence[int]], num_context: int
) -> dict[str, DemonstrationSet]:
    """Return an episode for each task's seed, of which the first `num_context` are to be shown."""
    num = len(next(iter(seeds.values())))
    randoms = recordings[0].random_returns(seeds)
    found = []
    for turn, recording in enumerate(recordings):
        places = _places(turn, len(recordings), num_context, num - num_context)
        own = {task: [seeds[task][place] for place in places] for task in seeds}
        found.append(recording.record(own, randoms, len(places)))
    return {task: _in_turn([sets[task] for sets in found]) for task in seeds}


def _places(turn: int, num_experts: int, num_context: int, num_query: int) -> list[int]:
    """Return which of a task's episodes an expert acts in."""
    shown = range(turn, num_context, num_experts)
    imitated = range(num_context + turn, num_context + num_query, num_experts)
    return [*shown, *imitated]


def _in_turn(sets: Sequence[DemonstrationSet]) -> DemonstrationSet:
    """Return one task's episodes of several experts, in the order of their seeds."""
    others = tuple(expert for one in sets[1:] for expert in one.metadata.experts)
    metadata = sets[0].metadata.model_copy(update={"other_experts": others})
    episodes = [episode for one in sets for episode in one.trajectories]
    return DemonstrationSet(metadata, tuple(sorted(episodes, key=lambda episode: episode.seed)))


class _Recording:
    """One expert and how it is recorded."""

    def __init__(
        self,
        policy: Policy,
        checkpoint: Path,
        manifest: Manifest,
        experiment: Experiment,
        deterministic: bool,
        deadline_seconds: float,
    ) -> None:
        self._policy, self.experiment = policy, experiment
        self._checkpoint, self._manifest = checkpoint, manifest
        self._deterministic = deterministic
        self._deadline = time.monotonic() + deadline_seconds

    def require_same(self, other: _Recording) -> None:
        """Refuse an expert of another family, one that acts otherwise, and one that is the same."""
        if other is not self and other._checkpoint.resolve() == self._checkpoint.resolve():
            raise DemonstrationError(
                f"{other._manifest.run}: expected other experts to act in turn with, found the same one twice"
            )
        differing = [
            f"{setting}: expected {own!r} as of {self._manifest.run}, found {found!r}"
            for setting, (own, found) in self.experiment.differences(other.experiment).items()
            if setting in ("task", "reads.policy") or setting.startswith("environment.")
        ]
        if differing:
            raise DemonstrationError(
                f"{other._manifest.run}: {'; '.join(differing)}; record experts of one experiment together"
            )

    def record(
        self,
        seeds: Mapping[str, Sequence[int]],
        randoms: Mapping[str, float],
        num_episodes: int,
        minimum_return: float | None = None,
        tried: int | None = None,
    ) -> dict[str, DemonstrationSet]:
        """Return `num_episodes` of each task, out of the first `tried`; all seeds measure the expert.

        `randoms` is what random actions earn in each.
        """
        tasks, tried = list(seeds), num_episodes if tried is None else tried
        num = len(seeds[tasks[0]])
        evaluation = evaluate(
            self._policy,
            tasks,
            seeds,
            observation=self.experiment.acting_keys,
            settings=self.experiment.environment,
            deterministic=self._deterministic,
            keep_trajectories=tried if len(tasks) == 1 else num * len(tasks),
            deadline_seconds=self._left(),
        )
        own = {task: [e for e in evaluation.episodes if e.task == task] for task in tasks}
        kept = {task: _kept(own[task][:tried], num_episodes, minimum_return) for task in tasks}
        recorded = {}
        for task in tasks:
            mean = float(np.mean([episode.environment_return for episode in own[task]]))
            metadata = self._metadata(task, mean, num, randoms[task])
            recorded[task] = DemonstrationSet(metadata, kept[task])
        return recorded

    def _metadata(
        self, task: str, expert_return: float, num_measured: int, random_return: float
    ) -> DemonstrationMetadata:
        experiment = self.experiment
        spec = environment_spec(task, experiment.acting_keys, experiment.environment)
        return DemonstrationMetadata(
            environment=spec.to_dict(),
            settings=experiment.environment,
            expert=Expert(
                run=self._manifest.run,
                steps=self._manifest.steps,
                digest=digest_of(self._checkpoint / MANIFEST),
                return_mean=expert_return,
                return_episodes=num_measured,
            ),
            random_return=random_return,
            deterministic=self._deterministic,
            dm_control=importlib.metadata.version("dm_control"),
            mujoco=importlib.metadata.version("mujoco"),
        )

    def random_returns(self, seeds: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Return the mean return of uniformly random actions in each task, from its first seed on."""
        experiment, tasks = self.experiment, list(seeds)
        spec = environment_spec(tasks[0], experiment.acting_keys, experiment.environment)
        found = evaluate(
            UniformPolicy(spec, seed=seeds[tasks[0]][0]),
            tasks,
            {task: own[:RANDOM_EPISODES] for task, own in seeds.items()},
            observation=("state",),
            settings=experiment.environment,
            deadline_seconds=self._left(),
        ).episodes
        return {
            task: float(np.mean([e.environment_return for e in found if e.task == task]))
            for task in tasks
        }

    def _left(self) -> float:
        return self._deadline - time.monotonic()


def _kept(
    episodes: Sequence[Episode], num_episodes: int, minimum_return: float | None
) -> tuple[Trajectory, ...]:
    """Return as many as are wanted of those that are good enough."""
    kept = [
        episode.trajectory
        for episode in episodes
        if episode.trajectory is not None
        and (minimum_return is None or episode.environment_return >= minimum_return)
    ][:num_episodes]
    if len(kept) < num_episodes:
        raise DemonstrationError(
            f"episodes: expected {num_episodes} with a return of {minimum_return} or more, found {len(kept)} "
            f"among {len(episodes)}"
        )
    return tuple(kept)


def render_demonstrations(
    demonstrations: DemonstrationSet, settings: EnvironmentSettings
) -> DemonstrationSet:
    """Return the same episodes with `pixels` [L + 1, H, W, 3] of every state, drawn from physics states.

    Size, camera, quality and frame stack are those of `settings`; nothing is simulated again. Raises
    DemonstrationError where states are missing or are another MuJoCo's, where they or model fields do not fit the
    task's model, and where that has no such camera.
    """
    spec = demonstrations.metadata.spec
    if spec is None or demonstrations.trajectories[0].physics_state.shape[1] == 0:
        raise DemonstrationError(
            "physics_state: expected the states that Apprentice records, found a file without them"
        )
    here, there = importlib.metadata.version("mujoco"), demonstrations.metadata.mujoco
    if there != here:
        raise DemonstrationError(f"mujoco: expected {here}, as installed, found {there}")
    settings = settings.model_copy(
        update={
            "action_repeat": demonstrations.metadata.settings.action_repeat,
            "family": demonstrations.metadata.settings.family,
        }
    )
    try:
        environment = rebuild_environment(spec, ("state",), settings)
    except UnknownTask as error:
        raise DemonstrationError(f"task: {error}") from None
    try:
        episodes = []
        for number, episode in enumerate(demonstrations.trajectories):
            try:
                pixels = _drawn(environment, episode, settings)
            except ValueError as error:  # of states, model fields or the camera
                raise DemonstrationError(f"episode {number}: {error}") from None
            observation = {**episode.observation, "pixels": pixels}
            episodes.append(episode._replace(observation=observation))
    finally:
        environment.close()
    keys: Sequence[str] = tuple(episodes[0].observation)
    metadata = demonstrations.metadata.model_copy(
        update={
            "environment": _spec_with(spec, keys, settings).to_dict(),
            "settings": settings,
        }
    )
    return DemonstrationSet(metadata, tuple(episodes), demonstrations.clipped_share)


def _drawn(
    environment: Environment, episode: Trajectory, settings: EnvironmentSettings
) -> np.ndarray:
    """Return `pixels` [L + 1, H, W, 3] of an episode's states; raise ValueError where they are another model's."""
    environment.restore(episode.physics_state[0], episode.model_fields)
    frames = []
    for state in episode.physics_state:
        environment.set_physics_state(state)
        frames.append(
            environment.render(
                settings.width, settings.height, settings.camera, settings.render_quality
            ).copy()
        )
    return np.stack(frames)


def _spec_with(
    spec: EnvironmentSpec, keys: Sequence[str], settings: EnvironmentSettings
) -> EnvironmentSpec:
    """Return the spec of the same task as other keys see it."""
    environment = rebuild_environment(spec, keys, settings)
    environment.close()
    return environment.spec
