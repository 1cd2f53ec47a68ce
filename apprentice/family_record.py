"""What a run's final policy reached in tasks of its family that it never learned, as its folder keeps it.

Read by who shows it; nothing here needs torch or the simulation.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict, ValidationError

from apprentice.checkpoint_files import read_text
from apprentice.config_family import SplitName
from apprentice.runs import EVALUATED_FAMILY
from apprentice.types import Metrics

LARGEST_BYTES = 32 << 20


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
        """Return (R - random) / (expert - random), or None where these are unknown or the same."""
        if self.expert_return is None or self.random_return is None:
            return None
        span = self.expert_return - self.random_return
        return (self.environment_return - self.random_return) / span if span else None


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
        return fmean(result.environment_return for result in self.of_size(context))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of demonstrations that were shown."""
        return tuple(sorted({result.context for result in self.results}))


def read_family_evaluation(evaluations: Path) -> FamilyEvaluation | None:
    """Return what a run's folder of evaluations holds of this kind, if anything that can be read."""
    try:
        text = read_text(evaluations / EVALUATED_FAMILY, LARGEST_BYTES)
        return FamilyEvaluation.model_validate_json(text) if text else None
    except (OSError, ValidationError):
        return None


def write_family_evaluation(evaluations: Path, found: FamilyEvaluation) -> None:
    """Leave it in a run's folder of evaluations, whole."""
    stage = evaluations / f".{EVALUATED_FAMILY}"
    stage.write_text(json.dumps(found.model_dump(mode="json"), indent=1))
    stage.replace(evaluations / EVALUATED_FAMILY)
