"""Demonstrations of a whole family: one ordinary file a task, and an index that says which episode is for what.

Every task of all parts of a division (meta-train, validation, test) has episodes of two roles: a learner is shown
`context` to find out which task it is in, and imitates `query`. Each episode is in exactly one of the six sets.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from apprentice.config_family import SPLITS, FamilySettings, SplitName
from apprentice.demonstrations.digest import digest_of, trajectory_digest
from apprentice.demonstrations.format import DemonstrationError, DemonstrationSet
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.setting_problems import describe_problems
from apprentice.suite_tasks import FAMILIES
from apprentice.types import Trajectory

if TYPE_CHECKING:
    from apprentice.environments.families import Task

INDEX: Final = "family.json"
Role = Literal["context", "query"]
ROLES: Final[tuple[Role, ...]] = ("context", "query")
_LARGEST_INDEX_BYTES: Final = 4 << 20
_ADVICE: Final = "record them again with `apprentice demos record`"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskEntry(_Model):
    """One task of the family."""

    task_id: str = Field(pattern=r"^[A-Za-z0-9_]+-[A-Za-z0-9._-]+$", max_length=200)
    """Names the file too."""
    split: SplitName
    """Division that the task is in."""
    parameters: dict[str, float]
    """What tells it apart."""
    sha256: str
    """Of the file."""
    context: tuple[int, ...]
    """Numbers of the episodes that may be shown."""
    query: tuple[int, ...]
    """Numbers of the episodes that may be imitated."""

    @model_validator(mode="after")
    def _each_in_one_set(self) -> TaskEntry:
        both = set(self.context) & set(self.query)
        if (
            both
            or len(set(self.context)) < len(self.context)
            or len(set(self.query)) < len(self.query)
        ):
            raise ValueError(
                f"{self.task_id}: expected each episode in one of context and query, once; found {sorted(both)} in both"
                if both
                else f"{self.task_id}: expected each episode once, found one twice"
            )
        return self


class FamilyIndex(_Model):
    """What a folder of a family's demonstrations holds."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    family: str
    """The family's name."""
    settings: FamilySettings
    """How its tasks are divided."""
    split_digest: str
    """TaskSplit.digest of that division."""
    tasks: tuple[TaskEntry, ...] = Field(min_length=1)
    """All tasks, in the order of the parts."""

    @model_validator(mode="after")
    def _tasks_once(self) -> FamilyIndex:
        ids = [task.task_id for task in self.tasks]
        if len(set(ids)) < len(ids):
            raise ValueError("tasks: expected each task in one part, found one twice")
        return self


@dataclass(frozen=True)
class FamilyDemonstrations:
    """All six sets."""

    index: FamilyIndex
    sets: Mapping[str, DemonstrationSet]
    """Episodes by task id, context and query together, in the order of their numbers in the file."""
    digest: str
    """SHA-256 of the index, which names the digest of each file."""

    def tasks(self, split: SplitName) -> tuple[TaskEntry, ...]:
        """Return the tasks of a part of the division, in its order."""
        return tuple(task for task in self.index.tasks if task.split == split)

    def num_starting_alike(self) -> int:
        """Return how many episodes start from a seed that an episode of another task has, where seeds are known."""
        seeds = {
            task_id: [episode.seed for episode in demonstrations.trajectories]
            for task_id, demonstrations in self.sets.items()
        }
        num_tasks = Counter(seed for own in seeds.values() for seed in set(own))
        return sum(seed >= 0 and num_tasks[seed] > 1 for own in seeds.values() for seed in own)

    def episodes(self, task_id: str, role: Role) -> tuple[Trajectory, ...]:
        """Return a task's episodes of one role."""
        for task in self.index.tasks:
            if task.task_id == task_id:
                numbers = task.context if role == "context" else task.query
                return tuple(self.sets[task_id].trajectories[number] for number in numbers)
        raise DemonstrationError(
            f"expected a task of {self.index.family} with demonstrations, found {task_id!r}"
        )


def write_family(
    folder: Path,
    family: str,
    settings: FamilySettings,
    split_digest: str,
    recorded: Mapping[SplitName, Mapping[str, tuple[DemonstrationSet, int]]],
) -> FamilyIndex:
    """Write a folder that appears whole or not at all.

    `recorded` holds for each part and task id the episodes and how many of them, the first ones, are context.
    Raises DemonstrationError and OSError.
    """
    if folder.exists():
        raise DemonstrationError(f"{folder}: expected a path that is free, found something there")
    stage = folder.with_name(f".{folder.name}.{os.getpid()}.stage")
    stage.mkdir(parents=True)
    entries = []
    try:
        for split in SPLITS:
            for task_id, (demonstrations, num_context) in recorded.get(split, {}).items():
                spec = demonstrations.metadata.spec
                file = stage / f"{task_id}.hdf5"
                write_demonstrations(file, demonstrations)
                num = len(demonstrations.trajectories)
                entries.append(
                    TaskEntry(
                        task_id=task_id,
                        split=split,
                        parameters={} if spec is None else dict(spec.task_parameters),
                        sha256=digest_of(file),
                        context=tuple(range(num_context)),
                        query=tuple(range(num_context, num)),
                    )
                )
        index = FamilyIndex(
            family=family, settings=settings, split_digest=split_digest, tasks=tuple(entries)
        )
        (stage / INDEX).write_text(json.dumps(index.model_dump(mode="json"), indent=1) + "\n")
        stage.rename(folder)
    finally:
        if stage.exists():
            for file in stage.iterdir():
                file.unlink()
            stage.rmdir()
    return index


def read_family(folder: Path, roles: Sequence[Role] = ROLES) -> FamilyDemonstrations:
    """Return what a folder holds; refused whole where a file is missing, was changed, or is of another task.

    Every task must have episodes of each of `roles`. Where those to imitate are among them, the tasks must be those
    of the division that the index states, in its order, which is how learners number them, with the parameters that
    the family gives them now. Raises DemonstrationError.
    """
    path = folder / INDEX
    try:
        if path.stat().st_size > _LARGEST_INDEX_BYTES:
            raise DemonstrationError(f"{path}: expected at most {_LARGEST_INDEX_BYTES} bytes")
        index = FamilyIndex.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise DemonstrationError(
            f"{path}: expected the index of a family's demonstrations, found: {error}; "
            "`apprentice demos record` with a family's expert makes one"
        ) from None
    except ValidationError as error:
        problems = "; ".join(describe_problems(FamilyIndex, error))
        raise DemonstrationError(f"{path}: {problems}") from None
    sets = {}
    for task in index.tasks:
        sets[task.task_id] = _read_task(folder, task, roles)
    found = FamilyDemonstrations(index, sets, digest_of(path))
    if "query" in roles and index.family in FAMILIES:
        _require_division(path, found)
    return found


def _require_division(path: Path, found: FamilyDemonstrations) -> None:
    """Refuse tasks that are not those of the division that is stated, each in its place."""
    # Who only shows demonstrations has no use for the simulation, which these import.
    from apprentice.environments.families import FamilyError, task_split

    index = found.index
    try:
        split = task_split(index.family, index.settings)
    except FamilyError as error:
        raise DemonstrationError(f"{path}: {error}") from None
    for name in SPLITS:
        expected = [task.task_id for task in split.of(name)]
        there = [task.task_id for task in found.tasks(name)]
        if there != expected:
            raise DemonstrationError(
                f"{path}: expected demonstrations of all {name} tasks of {index.family}'s division "
                f"{index.settings.split!r} in its order, found {_difference(expected, there)}; {_ADVICE}"
            )
    if index.split_digest != split.digest():
        raise DemonstrationError(
            f"{path}: split_digest: expected {split.digest()} of these tasks, found {index.split_digest}; {_ADVICE}"
        )
    stated = {task.task_id: task.parameters for task in index.tasks}
    for task in split.tasks:
        if stated[task.task_id] != dict(task.parameters):
            raise DemonstrationError(
                f"{path}: {task.task_id}: parameters: expected {dict(task.parameters)}, found "
                f"{stated[task.task_id]}; {_ADVICE}"
            )
        _require_told(path, found, task)


def _difference(expected: Sequence[str], found: Sequence[str]) -> str:
    missing, others = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if missing:
        return f"none of {missing[:3]}"
    return f"{others[:3]} beside them" if others else "another order"


def _require_told(path: Path, found: FamilyDemonstrations, task: Task) -> None:
    """Refuse episodes whose `task_parameters` are not what the family's ranges make of the task's parameters."""
    from apprentice.environments.families import load_family

    told = load_family(found.index.family).observed_parameters(task)
    for episode in found.sets[task.task_id].trajectories:
        seen = episode.observation.get("task_parameters")
        if seen is None:
            continue
        if seen.shape[1:] != told.shape or not np.allclose(seen, told, rtol=0.0, atol=1e-6):
            raise DemonstrationError(
                f"{path}: {task.task_id}: task_parameters: expected {told.tolist()} in every step, scaled from the "
                f"family's ranges, found {seen[0].tolist()}; {_ADVICE}"
            )


def _read_task(folder: Path, task: TaskEntry, roles: Sequence[Role]) -> DemonstrationSet:
    file = folder / f"{task.task_id}.hdf5"
    if not file.is_file():
        raise DemonstrationError(
            f"{file}: expected the demonstrations of a task, found no such file"
        )
    found = digest_of(file)
    if found != task.sha256:
        raise DemonstrationError(f"{file}: sha256: expected {task.sha256}, found {found}")
    demonstrations = read_demonstrations(file)
    spec, num = demonstrations.metadata.spec, len(demonstrations.trajectories)
    stated = None if spec is None else (spec.task_id, dict(spec.task_parameters))
    if stated != (task.task_id, task.parameters):
        raise DemonstrationError(
            f"{file}: task: expected {task.task_id} with {task.parameters}, found {stated}"
        )
    beyond = sorted(n for n in task.context + task.query if not 0 <= n < num)
    if beyond:
        raise DemonstrationError(f"{file}: episodes: expected numbers below {num}, found {beyond}")
    if any(not (task.context if role == "context" else task.query) for role in roles):
        raise DemonstrationError(
            f"{file}: expected one episode or more to show and to imitate, found {len(task.context)} and "
            f"{len(task.query)}"
        )
    _require_different(file, task, demonstrations)
    return demonstrations


def _require_different(file: Path, task: TaskEntry, demonstrations: DemonstrationSet) -> None:
    """Refuse an episode that is there twice: who imitates one that was shown need not infer anything."""
    numbers: dict[bytes, int] = {}
    for number in sorted(task.context + task.query):
        episode = demonstrations.trajectories[number]
        before = numbers.setdefault(
            trajectory_digest(episode, sorted(set(episode.observation) - {"pixels"})), number
        )
        if before != number:
            raise DemonstrationError(
                f"{file}: episodes: expected each to show or to imitate once, found {before} and {number} the same"
            )
