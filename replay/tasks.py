"""The rings of a family's tasks, drawn from as if they were one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from apprentice.types import Transition
from replay.rings import Ring


class Experience(Protocol):
    """Transitions that batches are drawn from: one ring, or those of many tasks."""

    @property
    def num_transitions(self) -> int:
        """Valid transitions that can be drawn."""

    def sample(
        self, batch_size: int, generator: torch.Generator, newest: int | None = None
    ) -> Transition:
        """Draw transitions, of the `newest` so many where that is said, with replacement."""


def draw_tasks(num_tasks: int, num_drawn: int, generator: torch.Generator) -> Sequence[int]:
    """Draw so many of a family's tasks without replacement; all in their order, where that is all or more."""
    if num_drawn >= num_tasks:
        return range(num_tasks)
    order = torch.randperm(num_tasks, generator=generator, device=generator.device)
    drawn: list[int] = order[:num_drawn].tolist()
    return drawn


class TaskRings:
    """Draws K tasks without replacement and as many transitions of each, task by task; all tasks in their order."""

    def __init__(self, rings: Sequence[Ring], tasks_per_batch: int | None) -> None:
        """Draw from `tasks_per_batch` tasks; None takes all, as far as a batch has rows for them."""
        self._rings = tuple(rings)
        self._tasks_per_batch = tasks_per_batch

    @property
    def num_transitions(self) -> int:
        """Valid transitions of all tasks."""
        return sum(ring.num_transitions for ring in self._rings)

    def sample(
        self, batch_size: int, generator: torch.Generator, newest: int | None = None
    ) -> Transition:
        """Draw a batch; `newest` counts over all tasks, of each its share."""
        most = min(self._tasks_per_batch or len(self._rings), batch_size)
        tasks = draw_tasks(len(self._rings), most, generator)
        return self.sample_of(tasks, batch_size, generator, newest)

    def sample_of(
        self,
        tasks: Sequence[int],
        batch_size: int,
        generator: torch.Generator,
        newest: int | None = None,
    ) -> Transition:
        """Draw a batch of these tasks in this order; `newest` counts over all tasks, of each its share."""
        num = len(tasks)
        window = None if newest is None else max(1, newest // len(self._rings))
        rows = [
            self._rings[task].draw_rows(
                (place + 1) * batch_size // num - place * batch_size // num, generator, window
            )
            for place, task in enumerate(tasks)
        ]
        return self._rings[0].unpack(torch.cat(rows))
