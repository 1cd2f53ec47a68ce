"""Which tasks a family's batch has rows of, so that rows of several sources stand beside each other."""

from __future__ import annotations

from typing import NamedTuple

import torch

from apprentice.types import Transition
from replay.tasks import Experience, TaskRings


class BatchTasks(NamedTuple):
    """The tasks of a batch, whose rows come task by task."""

    tasks: torch.Tensor  # [K] int64, each once
    place: torch.Tensor  # [B] int64: which of the K each row is of
    are_all: bool  # of the family's, in their order

    @property
    def of_rows(self) -> torch.Tensor:
        """The task of each row [B]."""
        return self.tasks[self.place]

    def of_fewer(self, size: int, generator: torch.Generator) -> BatchTasks:
        """Return the tasks of `size` rows that join the batch: the same, or some where there are more than rows."""
        num, device = len(self.tasks), self.tasks.device
        if num <= size:
            return BatchTasks(self.tasks, places_of_rows(size, num, device), self.are_all)
        chosen = torch.randperm(num, generator=generator, device=device)[:size]
        return BatchTasks(self.tasks[chosen], torch.arange(size, device=device), are_all=False)


def draw_batch_tasks(
    size: int,
    num_tasks: int,
    num_drawn: int | None,
    generator: torch.Generator,
    device: torch.device,
) -> BatchTasks:
    """Draw `num_drawn` of a family's tasks without replacement for a batch of `size` rows, at most one a row.

    None takes all. Where that is all, they come in their order and nothing random is drawn.
    """
    num = min(num_drawn or num_tasks, num_tasks, size)
    if num == num_tasks:
        tasks = torch.arange(num_tasks, device=device)
    else:
        tasks = torch.randperm(num_tasks, generator=generator, device=device)[:num]
    return BatchTasks(tasks, places_of_rows(size, num, device), num == num_tasks)


def sample_tasks(
    experience: Experience,
    size: int,
    tasks: BatchTasks | None,
    generator: torch.Generator,
    newest: int | None = None,
) -> Transition:
    """Draw transitions of these tasks, or of the only one where it is None.

    A GPU is waited for where they are not all: rings are chosen here.
    """
    if tasks is None:
        return experience.sample(size, generator, newest)
    assert isinstance(experience, TaskRings)
    numbers = None if tasks.are_all else tasks.tasks.tolist()
    return experience.sample(size, generator, newest, numbers)


def places_of_rows(size: int, num_tasks: int, device: torch.device) -> torch.Tensor:
    """Return which of a batch's tasks each row [size] is of; rows come task by task.

    Task i begins at floor(i * size / num_tasks), as in the batches that TaskRings draws.
    """
    return ((torch.arange(size, device=device) + 1) * num_tasks - 1) // size


def rows_of_tasks(
    bounds: torch.Tensor, tasks: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw a row [B] of each of `tasks` [B], whose own lie between `bounds` [N + 1]."""
    place = torch.rand(len(tasks), generator=generator, device=bounds.device)
    counts = bounds[tasks + 1] - bounds[tasks]
    return bounds[tasks] + torch.minimum((place * counts).long(), counts - 1)
