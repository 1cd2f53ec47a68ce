"""A small family with demonstrations by chance, and a checkpoint of an untrained policy that infers its task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apprentice.checkpoint import write_checkpoint
from apprentice.config import Experiment
from apprentice.config_base import ObservationKey
from apprentice.config_family import SPLITS
from apprentice.demonstrations.context import keep_context
from apprentice.demonstrations.family import FamilyDemonstrations, read_family, write_family
from apprentice.demonstrations.format import DemonstrationMetadata, DemonstrationSet, Expert
from apprentice.environments import environment_spec, experiment_specs
from apprentice.environments.families import task_split
from apprentice.evaluation import evaluate
from apprentice.networks import UniformPolicy, build_policy
from apprentice.runs import RunFolder

KEYS = ["state", "latent"]
FAMILY = {
    "gamma": 0.98,
    "split": "continuous",
    "num_train": 4,
    "num_validation": 2,
    "num_test": 2,
}


def family_experiment(**changes: Any) -> Experiment:
    tree = {
        "name": "small",
        "task": "reacher_goal",
        "environment": {"family": FAMILY},
        "reads": {"policy": KEYS, "critic": KEYS, "discriminator": KEYS},
        "network": {"hidden_size": 16},
        "context": {"hidden_size": 16, "latent_size": 3},
        "sac": {"gamma": 0.98, "batch_size": 32},
        "imitation": {"method": "dac"},
    }
    return Experiment.model_validate({**tree, **changes})


def family_demonstrations(
    folder: Path,
    num_context: int = 2,
    num_query: int = 1,
    keys: Sequence[ObservationKey] = ("state",),
    **family: Any,
) -> FamilyDemonstrations:
    """Write episodes of chance for every task of the division, which `family` changes."""
    experiment = family_experiment(environment={"family": {**FAMILY, **family}})
    split = task_split("reacher_goal", experiment.environment.family)
    recorded = {}
    for name in SPLITS:
        recorded[name] = {}
        for task in split.of(name):
            spec = environment_spec(task.task_id, keys, experiment.environment)
            num = num_context + num_query
            episodes = evaluate(
                UniformPolicy(spec, 0),
                task.task_id,
                range(num),
                observation=keys,
                settings=experiment.environment,
                keep_trajectories=num,
            ).episodes
            metadata = DemonstrationMetadata(
                environment=spec.to_dict(),
                settings=experiment.environment,
                expert=Expert(
                    run="r", steps=1, digest="0" * 64, return_mean=80.0, return_episodes=2
                ),
                random_return=4.0,
                deterministic=True,
                dm_control="1.0.50",
                mujoco="3.17.0",
            )
            kept = tuple(e.trajectory for e in episodes if e.trajectory is not None)
            recorded[name][task.task_id] = (DemonstrationSet(metadata, kept), num_context)
    write_family(folder, "reacher_goal", experiment.environment.family, split.digest(), recorded)
    return read_family(folder)


def family_run(
    root: Path, family: FamilyDemonstrations | None, **changes: Any
) -> tuple[RunFolder, Path]:
    """Make a run's folder with a checkpoint, and with context where there are demonstrations."""
    experiment = family_experiment(**changes)
    folder = RunFolder.create(root / "runs", experiment)
    if family is not None:
        keep_context(folder.context, family)
    keys = experiment.observation_keys
    spec = experiment_specs(experiment.task, keys, experiment.environment)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = build_policy(experiment, spec)
    path = write_checkpoint(
        folder.checkpoints,
        run=folder.path.name,
        steps=10,
        updates=5,
        policy_version=1,
        experiment=experiment,
        environment=spec,
        tensors={"policy": policy.state_dict()},
        state={},
    )
    return folder, path
