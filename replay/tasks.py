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
    """Draws as many transitions of each of some tasks, task by task."""

    def __init__(self, rings: Sequence[Ring]) -> None:
        self._rings = tuple(rings)

    @property
    def num_transitions(self) -> int:
        """Valid transitions of all tasks."""
        return sum(ring.num_transitions for ring in self._rings)

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        newest: int | None = None,
        tasks: Sequence[int] | None = None,
    ) -> Transition:
        """Draw a batch of these tasks in this order, or of all; `newest` counts over all tasks, of each its share."""
        drawn = range(len(self._rings)) if tasks is None else tasks
        num = len(drawn)
        window = None if newest is None else max(1, newest // len(self._rings))
        rows = [
            self._rings[task].draw_rows(
                (place + 1) * batch_size // num - place * batch_size // num, generator, window
            )
            for place, task in enumerate(drawn)
        ]
        return self._rings[0].unpack(torch.cat(rows))
