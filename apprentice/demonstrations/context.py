"""What a policy that infers its task may be shown: the context demonstrations of every task, by number.

The numbers count all context demonstrations of a family, task by task in the order of its index. They are what
segments carry, evaluations report and requests name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from apprentice.config_family import SPLITS, SplitName
from apprentice.demonstrations.asking import parse_context
from apprentice.demonstrations.family import (
    INDEX,
    FamilyDemonstrations,
    read_family,
    write_family,
)
from apprentice.demonstrations.format import (
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
)
from apprentice.runs import CONTEXT
from apprentice.types import Trajectory

STREAM: Final = 0xC0417
"""Mixed into the seed of every draw of demonstrations for an evaluation."""
NONE_SHOWN: Final = -1
"""Stands in place of a demonstration's number where fewer are shown than there is room for."""


class ContextDemonstration(NamedTuple):
    """One demonstration that may be shown."""

    number: int
    task_id: str
    split: SplitName
    trajectory: Trajectory

    @property
    def steps(self) -> np.ndarray:
        """What an encoder sees of it: [state, action, next state] [L, 2 O + A] float32."""
        return context_steps(self.trajectory)


class ContextOfTask(NamedTuple):
    """What may be shown of one task."""

    task_id: str
    split: SplitName
    metadata: DemonstrationMetadata
    episodes: tuple[Trajectory, ...]


class ContextLibrary:
    """All context demonstrations of a family, or what else may be shown."""

    def __init__(self, family: str, tasks: Sequence[ContextOfTask]) -> None:
        self.family = family
        self._all: list[ContextDemonstration] = []
        self._of_task: dict[str, tuple[int, ...]] = {}
        self._metadata = {task.task_id: task.metadata for task in tasks}
        for task in tasks:
            first = len(self._all)
            self._of_task[task.task_id] = tuple(range(first, first + len(task.episodes)))
            self._all += [
                ContextDemonstration(first + place, task.task_id, task.split, episode)
                for place, episode in enumerate(task.episodes)
            ]

    @classmethod
    def of(cls, family: FamilyDemonstrations) -> ContextLibrary:
        """Take the context of a family's demonstrations, in the order of its index."""
        return cls(
            family.index.family,
            [
                ContextOfTask(
                    task.task_id,
                    task.split,
                    family.sets[task.task_id].metadata,
                    family.episodes(task.task_id, "context"),
                )
                for task in family.index.tasks
            ],
        )

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, number: int) -> ContextDemonstration:
        return self._all[number]

    def tasks(self, split: SplitName) -> tuple[str, ...]:
        """Return the ids of the tasks of a part of the division, in its order."""
        return tuple(
            task for task, numbers in self._of_task.items() if self._all[numbers[0]].split == split
        )

    def of_task(self, task_id: str) -> tuple[int, ...]:
        """Return the numbers of a task's demonstrations. Raises DemonstrationError where there are none."""
        if task_id not in self._of_task:
            raise DemonstrationError(
                f"context: expected a task of {self.family} with demonstrations to show, found {task_id!r}"
            )
        return self._of_task[task_id]

    def returns(self, task_id: str) -> tuple[float | None, float | None]:
        """Return the mean returns in a task of the experts that made its demonstrations and of random actions."""
        metadata = self._metadata[task_id]
        return metadata.expert_return, metadata.random_return

    def draw(self, task_id: str, size: int, seed: int) -> tuple[int, ...]:
        """Draw `size` different demonstrations of a task; the same seed draws the same, and a larger size more.

        Raises DemonstrationError where there are fewer.
        """
        numbers = self.of_task(task_id)
        if not 1 <= size <= len(numbers):
            raise DemonstrationError(
                f"context: expected from 1 to {len(numbers)} demonstrations, as many as {task_id} has, found {size}"
            )
        order = np.random.default_rng([STREAM, seed, numbers[0]]).permutation(len(numbers))
        return tuple(numbers[place] for place in order[:size].tolist())

    def require(self, task_id: str, numbers: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers where all are of this task. Raises DemonstrationError."""
        known = self.of_task(task_id)
        if not numbers or not set(numbers) <= set(known) or len(set(numbers)) < len(numbers):
            raise DemonstrationError(
                f"context: expected numbers of {task_id}'s demonstrations ({known[0]} to {known[-1]}), each once; "
                f"found {list(numbers)}"
            )
        return tuple(numbers)

    def steps(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Return what an encoder sees of these demonstrations, [L, 2 O + A] each."""
        return [self._all[number].steps for number in numbers]


@dataclass(frozen=True)
class ContextChoice:
    """What an evaluation shows a policy that infers its task."""

    library: ContextLibrary
    size: int = 1
    """How many demonstrations of the task."""
    numbers: tuple[int, ...] | None = None
    """Which ones; null draws them with each episode's seed."""
    of_another_task: bool = False
    """Show those of another task of the same part instead: what a policy makes of them says whether it heeds
    what it is shown."""

    def of(self, task_id: str, seed: int) -> tuple[int, ...]:
        """Return the numbers of what is shown in the episode `seed` of a task.

        Raises DemonstrationError where there are no such ones, or no other task of the part.
        """
        if self.of_another_task:
            task_id = self._another(task_id)
        if self.numbers is not None:
            return self.library.require(task_id, self.numbers)
        return self.library.draw(task_id, self.size, seed)

    def _another(self, task_id: str) -> str:
        split = self.library[self.library.of_task(task_id)[0]].split
        tasks = self.library.tasks(split)
        if len(tasks) < 2:
            raise DemonstrationError(
                f"context: expected another {split} task with demonstrations to show, found only {task_id}"
            )
        return tasks[(tasks.index(task_id) + max(1, len(tasks) // 2)) % len(tasks)]


class TrainContext(NamedTuple):
    """The train tasks' demonstrations as learner and actors hold them; tasks count as segments count them."""

    steps: torch.Tensor  # [S, 2 O + A] float32, one after another
    bounds: torch.Tensor  # [N + 1] int64, where each demonstration begins
    task: torch.Tensor  # [N] int64
    number: torch.Tensor  # [N] int64, of the demonstration

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the fields by name, as they travel."""
        return self._asdict()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> TrainContext:
        """Take what `tensors` gave; raise DemonstrationError where it is something else."""
        if set(tensors) != set(cls._fields):
            raise DemonstrationError(f"context: expected {cls._fields}, found {sorted(tensors)}")
        found = cls(**tensors)
        num = len(found.number)
        fits = len(found.bounds) == num + 1 and len(found.task) == num and num > 0
        if not fits or found.steps.dim() != 2 or int(found.bounds[-1]) != len(found.steps):
            raise DemonstrationError("context: its parts do not fit together")
        return found

    def demonstration(self, place: int) -> np.ndarray:
        """Return the steps [L, 2 O + A] of the demonstration at a place of `number`."""
        steps: np.ndarray = self.steps[
            int(self.bounds[place]) : int(self.bounds[place + 1])
        ].numpy()
        return steps


def train_context(
    library: ContextLibrary, task_ids: Sequence[str], episodes: int | None
) -> TrainContext:
    """Return the first `episodes` demonstrations of each task, in the order of `task_ids`.

    Raises DemonstrationError where a task has fewer.
    """
    numbers: list[int] = []
    tasks: list[int] = []
    for place, task_id in enumerate(task_ids):
        of_task = library.of_task(task_id)
        if episodes is not None and len(of_task) < episodes:
            raise DemonstrationError(
                f"context.episodes: expected at most {len(of_task)} for {task_id}, found {episodes}"
            )
        numbers += of_task[:episodes]
        tasks += [place] * len(of_task[:episodes])
    steps = library.steps(numbers)
    bounds = np.cumsum([0, *(len(part) for part in steps)])
    return TrainContext(
        torch.from_numpy(np.concatenate(steps)),
        torch.from_numpy(bounds),
        torch.tensor(tasks),
        torch.tensor(numbers),
    )


def context_steps(trajectory: Trajectory) -> np.ndarray:
    """Return [state, action, next state] of each step [L, 2 O + A] float32."""
    state = trajectory.observation["state"]
    steps: np.ndarray = np.concatenate([state[:-1], trajectory.action, state[1:]], axis=1)
    return steps.astype(np.float32, copy=False)


def keep_context(folder: Path, family: FamilyDemonstrations) -> None:
    """Leave the context demonstrations of all three parts in a run's folder, which then needs no other file.

    What an earlier start of the run has left there stays. Raises DemonstrationError where that is of another
    division.
    """
    if (folder / INDEX).exists():
        found = read_family(folder, ("context",)).index
        if (found.family, found.split_digest) != (family.index.family, family.index.split_digest):
            raise DemonstrationError(
                f"{folder}: expected the context of {family.index.family} ({family.index.split_digest}), found "
                f"{found.family}'s ({found.split_digest})"
            )
        return
    recorded: dict[SplitName, dict[str, tuple[DemonstrationSet, int]]] = {}
    for split in SPLITS:
        recorded[split] = {}
        for task in family.tasks(split):
            shown = family.sets[task.task_id].chosen(list(task.context))
            recorded[split][task.task_id] = (shown, len(task.context))
    if folder.exists():
        folder.rmdir()
    index = family.index
    write_family(folder, index.family, index.settings, index.split_digest, recorded)


def read_context(folder: Path) -> ContextLibrary:
    """Return what `keep_context` left. Raises DemonstrationError."""
    return ContextLibrary.of(read_family(folder, ("context",)))


def choose_context(
    asked: str | None, checkpoint: Path, infers_task: bool, tasks: Sequence[str]
) -> ContextChoice | None:
    """Return what a request asks to be shown (see `parse_context`); null means one demonstration.

    Raises DemonstrationError where a task has no such demonstrations, or where the policy infers nothing and
    something is to be shown to it.
    """
    if not infers_task:
        if asked is None:
            return None
        raise DemonstrationError(
            f"context: expected none, since this policy does not infer its task from demonstrations; found {asked!r}"
        )
    meant = parse_context("1" if asked is None else asked)
    library = context_of(checkpoint)
    numbers = None if isinstance(meant, int) else meant
    choice = ContextChoice(library, meant if isinstance(meant, int) else len(meant), numbers)
    for task in tasks:
        choice.of(task, 0)
    return choice


def context_of(checkpoint: Path) -> ContextLibrary:
    """Return the context beside a run's checkpoint, read once for as long as it stays the same.

    Raises DemonstrationError.
    """
    folder = checkpoint.resolve().parent.parent / CONTEXT
    index = folder / INDEX
    if not index.exists():
        raise DemonstrationError(
            f"{folder}: expected the demonstrations to show, which the learner keeps there; found none. Take the "
            "checkpoint in its run's folder, and the folder whole"
        )
    return _read_once(folder, index.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read_once(folder: Path, changed: int) -> ContextLibrary:
    return read_context(folder)
