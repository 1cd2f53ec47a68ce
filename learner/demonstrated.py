"""What a run knows of the expert: its demonstrations as the learner draws them, and where it stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import structlog
import torch

from apprentice.config import Experiment
from apprentice.demonstrations.choosing import (
    find_demonstrations,
    require_family,
    require_fit,
    split_demonstrations,
)
from apprentice.demonstrations.context import ContextLibrary, TrainContext, train_context
from apprentice.demonstrations.dataset import DemonstrationDataset
from apprentice.demonstrations.digest import digest_of
from apprentice.demonstrations.family import FamilyDemonstrations, TaskEntry
from apprentice.demonstrations.format import (
    DemonstrationSet,
    doubt_of_units,
    require_spec,
)
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.runs import EXPERT_EPISODE, EXPERT_RECORD
from apprentice.trajectories import save_trajectory
from apprentice.types import EnvironmentSpec, Trajectory, Transition

log = structlog.get_logger()


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
    task_bounds: torch.Tensor | None = (
        None  # [K + 1] where each of a family's tasks begins in `train`
    )
    context: TrainContext | None = None  # what a policy that infers its task is shown
    family: FamilyDemonstrations | None = None  # all of it, for the run's folder


class ExpertRecord(NamedTuple):
    """What is told of the expert beside a run's own returns."""

    example: Trajectory  # an episode that is learned from, to be shown beside the policy's
    returns: tuple[float, ...]  # of the episodes learned from
    expert_return: float  # its mean where nobody picked episodes, or else that of those in the file
    random_return: float | None  # of uniformly random actions
    rows: int = 0  # steps kept of each episode, on average
    task: str | None = None  # id of the example's task, where it is not the experiment's

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
    if experiment.is_family:
        return _load_family(experiment, spec, device)
    settings = experiment.imitation.demonstrations
    path = find_demonstrations(settings.file, experiment.task)
    demonstrations = read_demonstrations(path, spec)
    require_fit(str(path), demonstrations, experiment)
    _warn_of_clipped(str(path), [demonstrations])
    doubt = doubt_of_units(demonstrations)
    if doubt is not None:
        log.warning("demonstrations may be in other units", source=str(path), doubt=doubt)
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


def _load_family(
    experiment: Experiment, spec: EnvironmentSpec, device: torch.device
) -> tuple[Demonstrated, ExpertRecord]:
    """Read a family's demonstrations: what is imitated are the train tasks' query episodes.

    Measured on, and what returns are compared with, are those of the validation tasks.
    """
    settings = experiment.imitation.demonstrations
    family = require_family(experiment)
    _warn_of_clipped(str(settings.file), list(family.sets.values()))
    if alike := family.num_starting_alike():
        log.warning(
            "demonstrations of several tasks start alike: record them with seeds of their own",
            source=str(settings.file),
            episodes=alike,
        )
    train = [_imitated(family, task, spec, settings.episodes) for task in family.tasks("train")]
    validation = [_imitated(family, task, spec, None) for task in family.tasks("validation")]
    keys = tuple(spec.observation)
    learned, measured = (
        DemonstrationDataset(
            [episode for episodes in of_tasks for episode in episodes],
            subsampling=subsampling,
            seed=settings.seed,
            keys=keys,
            device=device,
        )
        for of_tasks, subsampling in ((train, settings.subsampling), (validation, 1))
    )
    ends = learned.kept_of_episodes.cumsum()[np.cumsum([len(found) for found in train]) - 1]
    demonstrated = Demonstrated(
        learned,
        measured,
        learned.states if "state" in keys else None,
        family.digest,
        torch.tensor([0, *ends.tolist()], device=device),
        _shown(experiment, family),
        family,
    )
    returns = tuple(
        float(episode.environment_reward.sum()) for episodes in train for episode in episodes
    )
    return demonstrated, _family_record(family, returns, learned.num_rows)


def _imitated(
    family: FamilyDemonstrations, task: TaskEntry, spec: EnvironmentSpec, num: int | None
) -> Sequence[Trajectory]:
    """Return a task's first episodes to imitate. Raises DemonstrationError where one is not as the run observes it."""
    expected = replace(
        spec, task=task.task_id, task_id=task.task_id, task_parameters=task.parameters
    )
    found = family.episodes(task.task_id, "query")[:num]
    for episode in found:
        require_spec(task.task_id, family.sets[task.task_id].metadata, episode, expected)
    return found


def _family_record(
    family: FamilyDemonstrations, returns: tuple[float, ...], num_rows: int
) -> ExpertRecord:
    """Return what a family's expert did in the validation tasks, which runs are measured in."""
    tasks = family.tasks("validation")
    validated = [family.sets[task.task_id].metadata for task in tasks]
    experts = [m.expert_return for m in validated if m.expert_return is not None]
    randoms = [m.random_return for m in validated if m.random_return is not None]
    known = len(experts) == len(randoms) == len(validated)
    return ExpertRecord(
        family.episodes(tasks[0].task_id, "query")[0],
        returns,
        sum(experts) / len(experts) if known else sum(returns) / len(returns),
        sum(randoms) / len(randoms) if known else None,
        round(num_rows / len(returns)),
        tasks[0].task_id,
    )


def _warn_of_clipped(source: str, sets: Sequence[DemonstrationSet]) -> None:
    """Log the share of action entries that are not quite the expert's."""
    clipped = sum(found.clipped_share * found.num_steps for found in sets)
    if clipped > 0.0:
        log.warning(
            "demonstrations lack pre-tanh actions, and some were cut before atanh",
            source=source,
            share=clipped / sum(found.num_steps for found in sets),
        )


def _shown(experiment: Experiment, family: FamilyDemonstrations) -> TrainContext | None:
    """Return the train tasks' context demonstrations, where the task is inferred from them."""
    if not experiment.infers_task:
        return None
    library = ContextLibrary.of(family)
    return train_context(library, library.tasks("train"), experiment.context.episodes)


def keep_expert(folder: Path, expert: ExpertRecord, experiment: Experiment) -> None:
    """Leave the expert where the evaluation server looks for it: `expert.json` and one episode."""
    folder.mkdir(parents=True, exist_ok=True)
    if expert.example.physics_state.shape[1]:
        save_trajectory(
            folder / EXPERT_EPISODE,
            expert.example,
            task=expert.task or experiment.task,
            settings=experiment.environment,
        )
    stage = folder / ".expert.json"
    stage.write_text(json.dumps(expert.to_dict()))
    stage.replace(folder / EXPERT_RECORD)


def _record(train: DemonstrationSet, num_rows: int) -> ExpertRecord:
    metadata, returns = train.metadata, train.returns
    mean = metadata.expert_return
    if mean is None:
        mean = sum(returns) / len(returns)
    rows = round(num_rows / len(returns))
    return ExpertRecord(train.trajectories[0], returns, mean, metadata.random_return, rows)
