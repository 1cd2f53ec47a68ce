"""What an actor shows its policy: demonstrations of each episode's task, drawn when the episode begins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apprentice.demonstrations.context import NONE_SHOWN, TrainContext
from apprentice.networks import Policy


class Showing:
    """Draws demonstrations of a task, shows them to the policy, and has their numbers noted in the segments."""

    def __init__(
        self,
        context: TrainContext,
        sizes: tuple[int, int],
        policy: Policy,
        note: Callable[[int, np.ndarray], None],
        seed: int,
    ) -> None:
        """Draw `sizes[0]` to `sizes[1]` demonstrations an episode; `note` is told an environment and numbers [C]."""
        self._context, self._policy, self._note = context, policy, note
        self._fewest, self._most = sizes
        self._random = np.random.default_rng(seed)
        task, number = context.task.numpy(), context.number.numpy()
        self._places = [np.flatnonzero(task == index) for index in range(int(task.max()) + 1)]
        self._numbers = number
        self._shown: dict[int, np.ndarray] = {}

    def begin(self, environment: int, task: int) -> None:
        """Show demonstrations of the task whose episode begins; what is inferred stays for the whole of it."""
        places = self._places[task]
        size = self._random.integers(self._fewest, self._most + 1)
        chosen = self._random.permutation(places)[:size]
        numbers = np.full(self._most, NONE_SHOWN, np.int64)
        numbers[: len(chosen)] = self._numbers[chosen]
        self._shown[environment] = chosen
        self._note(environment, numbers)
        self._show(environment)

    def show_again(self) -> None:
        """Infer anew in the middle of episodes: for when the policy that began them was chance."""
        for environment in self._shown:
            self._show(environment)

    def _show(self, environment: int) -> None:
        steps = [self._context.demonstration(int(place)) for place in self._shown[environment]]
        self._policy.show(environment, steps, deterministic=False)
