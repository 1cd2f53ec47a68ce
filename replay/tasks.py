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


class TaskRings:
    """Draws K tasks without replacement and as many transitions of each, task by task; all tasks in their order."""

    def __init__(self, rings: Sequence[Ring], tasks_per_batch: int | None) -> None:
        """Draw from `tasks_per_batch` tasks; None takes all, as far as a batch has rows for them."""
        self._rings = tuple(rings)
        self._tasks_per_batch = tasks_per_batch or len(self._rings)

    @property
    def num_transitions(self) -> int:
        """Valid transitions of all tasks."""
        return sum(ring.num_transitions for ring in self._rings)

    def sample(
        self, batch_size: int, generator: torch.Generator, newest: int | None = None
    ) -> Transition:
        """Draw a batch; `newest` counts over all tasks, of each its share."""
        num = min(self._tasks_per_batch, len(self._rings), batch_size)
        tasks = torch.arange(len(self._rings))
        if num < len(self._rings):
            device = self._rings[0].device
            tasks = torch.randperm(len(self._rings), generator=generator, device=device)[:num]
        window = None if newest is None else max(1, newest // len(self._rings))
        rows = [
            self._rings[task].draw_rows(
                (number + 1) * batch_size // num - number * batch_size // num, generator, window
            )
            for number, task in enumerate(tasks.tolist())
        ]
        return self._rings[0].unpack(torch.cat(rows))
