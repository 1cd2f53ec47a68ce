"""How a policy does in the tasks of a family that it never learned: per task and number of demonstrations shown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from apprentice.checkpoint import experiment_of, load_policy
from apprentice.config import Experiment
from apprentice.config_family import SplitName
from apprentice.demonstrations.context import ContextChoice, ContextLibrary, context_of
from apprentice.demonstrations.family import INDEX
from apprentice.environments.families import find_family_task, load_family, task_split
from apprentice.evaluation import Evaluation, EvaluationTimeout, evaluate
from apprentice.family_record import (
    FamilyEvaluation,
    Point,
    TaskResult,
    read_family_evaluation,
    write_family_evaluation,
)
from apprentice.latents import LatentPoint, latent_metrics, latent_points, principal_plane
from apprentice.networks import Policy
from apprentice.runs import CONTEXT
from apprentice.types import Metrics

__all__ = [
    "FamilyEvaluation",
    "Point",
    "TaskResult",
    "evaluate_family",
    "method_label",
    "periodic_latent_metrics",
    "read_family_evaluation",
    "write_family_evaluation",
]

SIZES: Final = (1, 2, 4, 8)
"""Numbers of demonstrations shown, as far as there are so many."""
EPISODES: Final = 20
"""Episodes of each task and number, each with a start and a draw of demonstrations of its own."""
FIRST_SEED: Final = 3_000_000
"""Of these episodes: no training, no periodic evaluation and no demonstration has them."""


def evaluate_family(
    checkpoint: Path,
    split: SplitName = "test",
    *,
    sizes: Sequence[int] = SIZES,
    episodes: int = EPISODES,
    deadline_seconds: float = 3600.0,
) -> FamilyEvaluation:
    """Measure a checkpoint on every task of a division.

    A policy that infers its task is shown each number of `sizes` that every task has. Raises CheckpointError,
    DemonstrationError and EvaluationError: EvaluationTimeout where all of it takes longer than the deadline, since a
    part would be taken for the whole.
    """
    deadline = time.monotonic() + deadline_seconds
    policy, manifest = load_policy(checkpoint, seed=FIRST_SEED)
    experiment = experiment_of(manifest)
    library = _library(checkpoint)
    tasks = [
        task.task_id
        for task in task_split(experiment.task, experiment.environment.family).of(split)
    ]
    choices: list[ContextChoice | None] = [None]
    if experiment.infers_task:
        assert library is not None
        most = min(len(library.of_task(task)) for task in tasks)
        choices = [ContextChoice(library, size) for size in sizes if size <= most]
    results: list[TaskResult] = []
    for choice in choices:
        found = _evaluated(policy, experiment, tasks, episodes, choice, deadline)
        results += _by_task(found, experiment, 0 if choice is None else choice.size, library)
    latent: Metrics = {}
    points: list[Point] = []
    if experiment.infers_task and library is not None:
        found_points = latent_points(policy, library)
        latent = latent_metrics(found_points, _parameters(experiment, found_points))
        swapped = _swapped(library, tasks, 1)
        if swapped is not None:
            measured = _evaluated(policy, experiment, tasks, 4, swapped, deadline)
            latent["swapped_return"] = measured.return_mean
        points = _placed(found_points)
    return FamilyEvaluation(
        steps=manifest.steps,
        split=split,
        episodes=episodes,
        results=tuple(results),
        latent=latent,
        points=tuple(points),
    )


def periodic_latent_metrics(
    checkpoint: Path,
    policy: Policy,
    experiment: Experiment,
    tasks: Sequence[str],
    seed: int,
    deadline_seconds: float = 600.0,
) -> Metrics:
    """Return what is logged of a policy that infers its task beside its returns, on validation tasks.

    The return with other demonstrations is left out where the deadline does not allow it, and where there is but one
    validation task.
    """
    library = context_of(checkpoint)
    points = latent_points(policy, library)
    metrics = latent_metrics(points, _parameters(experiment, points))
    metrics.pop("probe_test", None)
    choice = _swapped(library, tasks, experiment.context.fewest)
    if choice is None:
        return metrics
    with suppress(EvaluationTimeout):
        swapped = evaluate(
            policy,
            tasks,
            [seed],
            observation=experiment.acting_keys,
            settings=experiment.environment,
            deadline_seconds=deadline_seconds,
            context=choice,
        )
        metrics["swapped_return"] = swapped.return_mean
    return metrics


def method_label(experiment: Experiment) -> str:
    """Return a name for how a run learned, for tables: method, how it knows its task, and what data it had."""
    imitation, context = experiment.imitation, experiment.context
    parts: list[str] = ["sac" if imitation.method == "none" else imitation.method]
    if experiment.infers_task:
        parts.append(context.encoder)
        if context.linear:
            parts.append("linear")
        if context.information_coefficient:
            parts.append(f"information{context.information_coefficient:g}")
        if context.pretrain_updates:
            parts.append("pretrained")
        if not context.learned:
            parts.append("frozen")
        if context.learned_updates is not None:
            parts.append("settled")
    elif "task_parameters" in experiment.reads.policy:
        parts.append("told")
    elif imitation.method != "none":
        parts.append("blind")
    if experiment.network.task_products:
        parts.append("products")
    if imitation.imagined_share:
        parts.append(f"imagined{imitation.imagined_share:g}")
    decays = (
        imitation.discriminator.weight_decay if imitation.adversarial else 0.0,
        experiment.sac.policy_weight_decay if imitation.method != "bc" else 0.0,
    )
    if any(decays):
        parts.append("decay{:g}+{:g}".format(*decays))
    if experiment.replay.tasks_per_batch is not None:
        parts.append(f"{experiment.replay.tasks_per_batch}tasks")
    data = imitation.demonstrations
    if data.experts > 1:
        parts.append(f"{data.experts}experts")
    if data.episodes is not None or data.subsampling > 1:
        parts.append(f"{data.episodes or 'all'}x{data.subsampling}")
    return "-".join(parts)


def _library(checkpoint: Path) -> ContextLibrary | None:
    folder = checkpoint.resolve().parent.parent / CONTEXT
    return context_of(checkpoint) if (folder / INDEX).exists() else None


def _swapped(library: ContextLibrary, tasks: Sequence[str], size: int) -> ContextChoice | None:
    """Return what shows each of a division's tasks another one's demonstrations; None where there is no other."""
    return ContextChoice(library, size, of_another_task=True) if len(tasks) > 1 else None


def _evaluated(
    policy: Policy,
    experiment: Experiment,
    tasks: Sequence[str],
    episodes: int,
    context: ContextChoice | None,
    deadline: float,
) -> Evaluation:
    try:
        return evaluate(
            policy,
            tasks,
            range(FIRST_SEED, FIRST_SEED + episodes),
            observation=experiment.acting_keys,
            settings=experiment.environment,
            deadline_seconds=deadline - time.monotonic(),
            context=context,
        )
    except EvaluationTimeout as error:
        raise EvaluationTimeout(
            f"expected {len(tasks)} tasks to be measured whole by the deadline, found that {error}; "
            "`apprentice families` measures a finished run again, and allows an hour for it"
        ) from error


def _by_task(
    evaluation: Evaluation, experiment: Experiment, size: int, library: ContextLibrary | None
) -> list[TaskResult]:
    results = []
    for task_id in dict.fromkeys(episode.task for episode in evaluation.episodes):
        own = Evaluation(
            tuple(e for e in evaluation.episodes if e.task == task_id), evaluation.seconds
        )
        expert, random = (None, None) if library is None else library.returns(task_id)
        results.append(
            TaskResult(
                task_id=task_id,
                parameters=dict(
                    find_family_task(task_id, experiment.environment.family).parameters
                ),
                context=size,
                environment_return=own.return_mean,
                metrics=own.metrics_mean,
                expert_return=expert,
                random_return=random,
            )
        )
    return results


def _parameters(experiment: Experiment, points: Sequence[LatentPoint]) -> dict[str, np.ndarray]:
    family, settings = load_family(experiment.task), experiment.environment.family
    return {
        task_id: family.observed_parameters(find_family_task(task_id, settings))
        for task_id in dict.fromkeys(point.task_id for point in points)
    }


def _placed(points: Sequence[LatentPoint]) -> list[Point]:
    plane: Any = principal_plane(points)
    return [
        Point(number=p.number, task_id=p.task_id, split=p.split, x=float(x), y=float(y))
        for p, (x, y) in zip(points, plane, strict=True)
    ]
