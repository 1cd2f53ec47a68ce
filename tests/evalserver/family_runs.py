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
from apprentice.environments.families import TaskSplit, find_family_task, task_split
from apprentice.evaluation import evaluate
from apprentice.family_record import FamilyEvaluation, Point, TaskResult
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


def family_split() -> TaskSplit:
    """Return the standard division of reacher_goal."""
    return task_split("reacher_goal", family_experiment().environment.family)


def task_of(split: SplitName, number: int) -> str:
    """Return the id of one of its tasks."""
    return family_split().of(split)[number].task_id


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
    family, split = family_experiment().environment.family, family_split()
    recorded = {
        part: {
            t.task_id: (_recorded(t.task_id), NUM_SHOWN) for t in split.of(part)[: NUM_TASKS[part]]
        }
        for part in SPLITS
    }
    write_family(folder, "reacher_goal", family, split.digest(), recorded)


def made_up_evaluation(sizes: tuple[int, ...] = (1, 2, 4), **changes: Any) -> FamilyEvaluation:
    """Return what a learner measures at the end: 10 more for each demonstration, 50 for the first."""
    split = family_split()
    results = [
        TaskResult(
            task_id=task.task_id,
            parameters=dict(task.parameters),
            context=size,
            environment_return=40.0 + 10.0 * size,
            metrics={"final_distance": 0.1 / (size + 1)},
            expert_return=84.0,
            random_return=4.0,
        )
        for size in sizes
        for task in split.test
    ]
    points = [
        Point(number=number, task_id=task.task_id, split=part, x=task.parameters["x"], y=1.0)
        for number, (part, task) in enumerate((p, t) for p in SPLITS for t in split.of(p))
    ]
    return FamilyEvaluation(
        steps=100,
        split="test",
        episodes=20,
        results=tuple(results),
        latent={"probe_test": 0.91, "latent_spread_over_noise": 4.5, "swapped_return": 3.25},
        points=tuple(points),
    ).model_copy(update=changes)


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
