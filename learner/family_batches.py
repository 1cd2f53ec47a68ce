"""Which tasks a family's batch has rows of, so that rows of several sources stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from replay.tasks import draw_tasks


class BatchTasks(NamedTuple):
    """The tasks of a batch, whose rows come task by task."""

    numbers: Sequence[int]  # K of a family's tasks, each once
    tasks: torch.Tensor  # [K] int64, the same
    place: torch.Tensor  # [B] int64: which of the K each row is of

    @property
    def of_rows(self) -> torch.Tensor:
        """The task of each row [B]."""
        return self.tasks[self.place]


def draw_batch_tasks(
    size: int,
    num_tasks: int,
    num_drawn: int | None,
    generator: torch.Generator,
    device: torch.device,
) -> BatchTasks:
    """Draw `num_drawn` of a family's tasks for a batch of `size` rows, at most one a row; None takes all.

    All come in their order, and then nothing random is drawn.
    """
    numbers = draw_tasks(num_tasks, min(num_drawn or num_tasks, size), generator)
    if len(numbers) == num_tasks:
        tasks = torch.arange(
            num_tasks, device=device
        )  # made where it is needed: nothing is copied there
    else:
        tasks = torch.tensor(numbers, device=device)
    return BatchTasks(numbers, tasks, places_of_rows(size, len(numbers), device))


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
