"""How a policy does in the tasks of a family that it never learned: per task and number of demonstrations shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from apprentice.checkpoint import experiment_of, load_policy
from apprentice.config import Experiment
from apprentice.config_family import SplitName
from apprentice.demonstrations.context import ContextChoice, ContextLibrary, context_of
from apprentice.demonstrations.family import INDEX
from apprentice.environments.families import find_family_task, load_family, task_split
from apprentice.evaluation import Evaluation, evaluate
from apprentice.latents import LatentPoint, latent_metrics, latent_points, principal_plane
from apprentice.networks import Policy
from apprentice.runs import CONTEXT, EVALUATED_FAMILY
from apprentice.types import Metrics

SIZES: Final = (1, 2, 4, 8)
"""Numbers of demonstrations shown, as far as there are so many."""
EPISODES: Final = 20
"""Episodes of each task and number, each with a start and a draw of demonstrations of its own."""
FIRST_SEED: Final = 3_000_000
"""Of these episodes: no training, no periodic evaluation and no demonstration has them."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskResult(_Model):
    """One task, with one number of demonstrations shown."""

    task_id: str
    parameters: dict[str, float]
    """What tells it apart."""
    context: int
    """Demonstrations shown; 0 where the policy infers nothing."""
    environment_return: float
    """Mean over episodes."""
    metrics: Metrics
    """Means of what the family measures beside the return."""
    expert_return: float | None
    """Mean of the expert that made the demonstrations of this task."""
    random_return: float | None
    """Mean of uniformly random actions."""

    @property
    def normalised(self) -> float | None:
        """Return (R - random) / (expert - random)."""
        if self.expert_return is None or self.random_return is None:
            return None
        return (self.environment_return - self.random_return) / (
            self.expert_return - self.random_return
        )


class Point(_Model):
    """One demonstration's latent on the plane in which those of the train tasks vary most."""

    number: int
    task_id: str
    split: SplitName
    x: float
    y: float


class FamilyEvaluation(_Model):
    """All that a run's final policy was measured by on unseen tasks."""

    steps: int
    """Agent steps of the checkpoint."""
    split: SplitName
    """Division that the tasks are of."""
    episodes: int
    """Of each task and number of demonstrations."""
    results: tuple[TaskResult, ...]
    latent: Metrics = {}
    """How well latents tell tasks (apprentice/latents.py), and the return with another task's demonstrations."""
    points: tuple[Point, ...] = ()
    """For a picture."""

    def of_size(self, context: int) -> tuple[TaskResult, ...]:
        """Return the results with so many demonstrations shown."""
        return tuple(result for result in self.results if result.context == context)

    def mean_return(self, context: int) -> float:
        """Return the mean over tasks."""
        return float(np.mean([result.environment_return for result in self.of_size(context)]))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of demonstrations that were shown."""
        return tuple(sorted({result.context for result in self.results}))


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
    EvaluationError and DemonstrationError.
    """
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
        found = _evaluated(policy, experiment, tasks, episodes, choice, deadline_seconds)
        results += _by_task(found, experiment, 0 if choice is None else choice.size, library)
    latent: Metrics = {}
    points: list[Point] = []
    if experiment.infers_task and library is not None:
        found_points = latent_points(policy, library)
        latent = latent_metrics(found_points, _parameters(experiment, found_points))
        swapped = ContextChoice(library, 1, of_another_task=True)
        measured = _evaluated(policy, experiment, tasks, 4, swapped, deadline_seconds)
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


def read_family_evaluation(evaluations: Path) -> FamilyEvaluation | None:
    """Return what a run's folder of evaluations holds of this kind, if anything that can be read."""
    path = evaluations / EVALUATED_FAMILY
    try:
        return FamilyEvaluation.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def write_family_evaluation(evaluations: Path, found: FamilyEvaluation) -> None:
    """Leave it in a run's folder of evaluations, whole."""
    stage = evaluations / f".{EVALUATED_FAMILY}"
    stage.write_text(json.dumps(found.model_dump(mode="json"), indent=1))
    stage.replace(evaluations / EVALUATED_FAMILY)


def periodic_latent_metrics(
    checkpoint: Path, policy: Policy, experiment: Experiment, tasks: Sequence[str], seed: int
) -> Metrics:
    """Return what is logged of a policy that infers its task beside its returns, on validation tasks."""
    library = context_of(checkpoint)
    points = latent_points(policy, library)
    metrics = latent_metrics(points, _parameters(experiment, points))
    del metrics["probe_test"]
    choice = ContextChoice(library, experiment.context.fewest, of_another_task=True)
    swapped = evaluate(
        policy,
        tasks,
        [seed],
        observation=experiment.acting_keys,
        settings=experiment.environment,
        context=choice,
    )
    return {**metrics, "swapped_return": swapped.return_mean}


def method_label(experiment: Experiment) -> str:
    """Return a name for how a run learned, for tables: method, how it knows its task, and what data it had."""
    imitation, context = experiment.imitation, experiment.context
    if imitation.method == "none":
        return "sac" + ("-told" if "task_parameters" in experiment.reads.policy else "")
    parts: list[str] = [imitation.method]
    if experiment.infers_task:
        parts.append(context.encoder)
        if context.pretrain_updates:
            parts.append("pretrained")
        if not context.learned:
            parts.append("frozen")
    else:
        parts.append("told" if "task_parameters" in experiment.reads.policy else "blind")
    data = imitation.demonstrations
    if data.episodes is not None or data.subsampling > 1:
        parts.append(f"{data.episodes or 'all'}x{data.subsampling}")
    return "-".join(parts)


def _library(checkpoint: Path) -> ContextLibrary | None:
    folder = checkpoint.resolve().parent.parent / CONTEXT
    return context_of(checkpoint) if (folder / INDEX).exists() else None


def _evaluated(
    policy: Policy,
    experiment: Experiment,
    tasks: Sequence[str],
    episodes: int,
    context: ContextChoice | None,
    deadline_seconds: float,
) -> Evaluation:
    return evaluate(
        policy,
        tasks,
        range(FIRST_SEED, FIRST_SEED + episodes),
        observation=experiment.acting_keys,
        settings=experiment.environment,
        deadline_seconds=deadline_seconds,
        context=context,
    )


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
