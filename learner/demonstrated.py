"""What a run knows of the expert: its demonstrations as the learner draws them, and where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from apprentice.config import Experiment
from apprentice.demonstrations.choosing import (
    digest_of,
    find_demonstrations,
    split_demonstrations,
)
from apprentice.demonstrations.dataset import DemonstrationDataset
from apprentice.demonstrations.format import DemonstrationSet
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.runs import EXPERT_EPISODE, EXPERT_RECORD
from apprentice.trajectories import save_trajectory
from apprentice.types import EnvironmentSpec, Trajectory, Transition


class ExpertRows(Protocol):
    """Transitions of demonstrations, by number."""

    @property
    def num_rows(self) -> int:
        """How many there are."""

    @property
    def num_terminated(self) -> int:
        """Episodes among them that terminated."""

    @property
    def subsampling(self) -> int:
        """Every how many-th step of an episode was kept."""

    def transitions(self, index: torch.Tensor) -> Transition:
        """Return rows `index` [B] as a batch on the learner's device."""


class Demonstrated(NamedTuple):
    """The rows to learn from, those only ever measured on, and the states to fit a normaliser on."""

    train: ExpertRows
    held_out: ExpertRows | None
    states: torch.Tensor | None  # [N, O]
    digest: str = ""  # of the file, so that a run goes on with the same


class ExpertRecord(NamedTuple):
    """What is told of the expert beside a run's own returns."""

    example: Trajectory  # an episode that is learned from, to be shown beside the policy's
    returns: tuple[float, ...]  # of the episodes learned from
    expert_return: float  # its mean where nobody picked episodes, or else that of those in the file
    random_return: float | None  # of uniformly random actions
    rows: int = 0  # steps kept of each episode, on average

    def normalised(self, environment_return: float) -> float | None:
        """Return (R - random) / (expert - random), or None where the file does not say."""
        if self.random_return is None or self.expert_return == self.random_return:
            return None
        return (environment_return - self.random_return) / (self.expert_return - self.random_return)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON tells them."""
        return {
            "expert_return": self.expert_return,
            "random_return": self.random_return,
            "returns": list(self.returns),
            "rows": self.rows,
            "seed": self.example.seed,
        }


def load_demonstrated(
    experiment: Experiment, spec: EnvironmentSpec, device: torch.device
) -> tuple[Demonstrated, ExpertRecord] | None:
    """Read an experiment's demonstrations whole; None where it learns from none.

    Raises DemonstrationError.
    """
    if experiment.imitation.method == "none":
        return None
    settings = experiment.imitation.demonstrations
    path = find_demonstrations(settings.file, experiment.task)
    demonstrations = read_demonstrations(path, spec)
    train, held_out = split_demonstrations(
        demonstrations, settings.episodes, settings.held_out, settings.seed
    )
    keys = tuple(spec.observation)
    stack = experiment.environment.frame_stack

    def rows(chosen: DemonstrationSet, subsampling: int) -> DemonstrationDataset:
        return DemonstrationDataset(
            chosen.trajectories,
            subsampling=subsampling,
            seed=settings.seed,
            frame_stack=stack,
            keys=keys,
            device=device,
        )

    learned = rows(train, settings.subsampling)
    demonstrated = Demonstrated(
        learned,
        None if held_out is None else rows(held_out, 1),
        learned.states if "state" in keys else None,
        digest_of(path),
    )
    return demonstrated, _record(train, learned.num_rows)


def keep_expert(folder: Path, expert: ExpertRecord, experiment: Experiment) -> None:
    """Leave the expert where the evaluation server looks for it: `expert.json` and one episode."""
    folder.mkdir(parents=True, exist_ok=True)
    if expert.example.physics_state.shape[1]:
        save_trajectory(
            folder / EXPERT_EPISODE,
            expert.example,
            task=experiment.task,
            settings=experiment.environment,
        )
    stage = folder / ".expert.json"
    stage.write_text(json.dumps(expert.to_dict()))
    stage.replace(folder / EXPERT_RECORD)


def _record(train: DemonstrationSet, num_rows: int) -> ExpertRecord:
    metadata, returns = train.metadata, train.returns
    expert = metadata.expert
    mean = sum(returns) / len(returns)
    if expert is not None and expert.return_mean is not None:
        mean = expert.return_mean
    rows = round(num_rows / len(returns))
    return ExpertRecord(train.trajectories[0], returns, mean, metadata.random_return, rows)
