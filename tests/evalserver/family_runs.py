"""A run of a family as a learner leaves it, with an untrained policy and short demonstrations."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from apprentice.checkpoint import write_checkpoint
from apprentice.config import Experiment
from apprentice.config_family import SPLITS, SplitName
from apprentice.demonstrations.family import write_family
from apprentice.demonstrations.format import DemonstrationMetadata, DemonstrationSet, Expert
from apprentice.environments import environment_spec, experiment_specs
from apprentice.environments.families import find_family_task, task_split
from apprentice.evaluation import evaluate
from apprentice.networks import UniformPolicy, build_policy
from apprentice.runs import RunFolder

NUM_TASKS: dict[SplitName, int] = {"train": 1, "validation": 1, "test": 2}
"""Tasks of each division that have demonstrations."""
NUM_SHOWN = 2
"""Demonstrations of each: 0 and 1 of the train task, 2 and 3, and then 4 to 7 of the test tasks."""
STEPS = 12


def family_experiment(infers: bool = True, name: str = "meta") -> Experiment:
    """Return an experiment on reacher_goal whose policy infers its task, or knows nothing of it."""
    keys = ["state", "latent"] if infers else ["state"]
    tree: dict[str, Any] = {
        "name": name,
        "task": "reacher_goal",
        "reads": {"policy": keys, "critic": keys, "discriminator": keys},
        "network": {"hidden_size": 16},
        "sac": {"gamma": 0.98, "batch_size": 64},
        "context": {"hidden_size": 16, "latent_size": 3},
        "imitation": {"method": "dac"},
    }
    return Experiment.model_validate(tree)


def task_of(split: SplitName, number: int) -> str:
    """Return the id of a task of reacher_goal's standard division."""
    return (
        task_split("reacher_goal", family_experiment().environment.family).of(split)[number].task_id
    )


def make_family_run(
    root: Path, name: str = "meta", infers: bool = True, context: bool = True, steps: int = 100
) -> str:
    """Make a run with one untrained checkpoint, and with demonstrations to show; return its id."""
    experiment = family_experiment(infers, name)
    folder = RunFolder.create(root, experiment)
    spec = experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)[0]
    torch.manual_seed(0)
    write_checkpoint(
        folder.checkpoints,
        run=folder.path.name,
        steps=steps,
        updates=7,
        policy_version=1,
        experiment=experiment,
        environment=spec,
        tensors={"policy": build_policy(experiment, spec).state_dict()},
        state={},
    )
    if context:
        write_context(folder.context)
    return folder.path.name


def write_context(folder: Path) -> None:
    """Write demonstrations of the first tasks of each division, as a run keeps them."""
    family = family_experiment().environment.family
    split = task_split("reacher_goal", family)
    recorded = {
        part: {
            t.task_id: (_recorded(t.task_id), NUM_SHOWN) for t in split.of(part)[: NUM_TASKS[part]]
        }
        for part in SPLITS
    }
    write_family(folder, "reacher_goal", family, split.digest(), recorded)


@cache
def _recorded(task_id: str) -> DemonstrationSet:
    """Let random actions act in a task for a few steps."""
    settings = family_experiment().environment
    task = find_family_task(task_id, settings.family)
    first = environment_spec(task_of("train", 0), ("state",), settings)
    spec = replace(first, task=task_id, task_id=task_id, task_parameters=dict(task.parameters))
    evaluation = evaluate(
        UniformPolicy(spec, seed=0),
        task_id,
        range(1000, 1000 + NUM_SHOWN),
        settings=settings,
        max_steps=STEPS,
        keep_trajectories=NUM_SHOWN,
    )
    metadata = DemonstrationMetadata(
        environment=spec.to_dict(),
        settings=settings,
        expert=Expert(run="expert", steps=1, digest="0" * 64, return_mean=80.0, return_episodes=2),
        random_return=2.0,
    )
    kept = [e.trajectory for e in evaluation.episodes if e.trajectory is not None]
    return DemonstrationSet(metadata, tuple(kept))
