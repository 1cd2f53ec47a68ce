"""Makes demonstrations: a checkpoint acts, and pictures come later from what was kept."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apprentice.checkpoint import experiment_of, load_policy
from apprentice.checkpoint_format import MANIFEST
from apprentice.config import EnvironmentSettings
from apprentice.demonstrations.choosing import digest_of
from apprentice.demonstrations.format import (
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
    Expert,
)
from apprentice.environments import environment_spec, make_environment
from apprentice.evaluation import evaluate
from apprentice.networks import UniformPolicy

RANDOM_EPISODES = 40
FIRST_SEED = 1_000_000
"""Of recorded episodes: evaluations count from 0, so that none starts where a demonstration did."""


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
    keys = experiment.reads.policy
    tried = num_episodes if minimum_return is None else 5 * num_episodes
    num = max(tried, measured_episodes)
    evaluation = evaluate(
        policy,
        experiment.task,
        range(first_seed, first_seed + num),
        observation=keys,
        settings=experiment.environment,
        deterministic=deterministic,
        keep_trajectories=tried,
        deadline_seconds=deadline_seconds,
    )
    kept = [
        episode.trajectory
        for episode in evaluation.episodes[:tried]
        if episode.trajectory is not None
        and (minimum_return is None or episode.environment_return >= minimum_return)
    ][:num_episodes]
    if len(kept) < num_episodes:
        raise DemonstrationError(
            f"episodes: expected {num_episodes} with a return of {minimum_return} or more, found {len(kept)} "
            f"among {tried}"
        )
    metadata = DemonstrationMetadata(
        environment=environment_spec(experiment.task, keys, experiment.environment).to_dict(),
        settings=experiment.environment,
        expert=Expert(
            run=manifest.run,
            steps=manifest.steps,
            digest=digest_of(checkpoint / MANIFEST),
            return_mean=evaluation.return_mean,
            return_episodes=num,
        ),
        random_return=evaluate(
            UniformPolicy(
                environment_spec(experiment.task, keys, experiment.environment), seed=first_seed
            ),
            experiment.task,
            range(first_seed, first_seed + RANDOM_EPISODES),
            observation=("state",),
            settings=experiment.environment,
            deadline_seconds=deadline_seconds,
        ).return_mean,
        deterministic=deterministic,
        dm_control=importlib.metadata.version("dm_control"),
        mujoco=importlib.metadata.version("mujoco"),
    )
    return DemonstrationSet(metadata, tuple(kept))


def render_demonstrations(
    demonstrations: DemonstrationSet, settings: EnvironmentSettings
) -> DemonstrationSet:
    """Return the same episodes with `pixels` [L + 1, H, W, 3] of every state, drawn from physics states.

    Size, camera, quality and frame stack are those of `settings`; nothing is simulated again. Raises
    DemonstrationError where states are missing or are another MuJoCo's.
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
        update={"action_repeat": demonstrations.metadata.settings.action_repeat}
    )
    environment = make_environment(spec.task_id, 0, ("state",), settings)
    try:
        episodes = []
        for episode in demonstrations.trajectories:
            environment.restore(episode.physics_state[0], episode.model_fields)
            frames = []
            for state in episode.physics_state:
                environment.set_physics_state(state)
                frames.append(
                    environment.render(
                        settings.width, settings.height, settings.camera, settings.render_quality
                    ).copy()
                )
            observation = {**episode.observation, "pixels": np.stack(frames)}
            episodes.append(episode._replace(observation=observation))
    finally:
        environment.close()
    keys: Sequence[str] = tuple(episodes[0].observation)
    metadata = demonstrations.metadata.model_copy(
        update={
            "environment": environment_spec(spec.task_id, keys, settings).to_dict(),
            "settings": settings,
        }
    )
    return DemonstrationSet(metadata, tuple(episodes), demonstrations.clipped_share)
