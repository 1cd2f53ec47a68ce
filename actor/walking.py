"""The order in which one actor process visits a family's tasks, and an environment that changes task at each reset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from apprentice.environments import Environment
from apprentice.profiling import Profile
from apprentice.types import TimeStep


class TaskWalk:
    """Walks permutations of the tasks, shared by all environments of a process: each task as often as any other."""

    def __init__(self, num_tasks: int, seed: Sequence[int]) -> None:
        self._num_tasks = num_tasks
        self._random = np.random.default_rng(list(seed))
        self._left: list[int] = []

    def next(self) -> int:
        """Return the number of the task whose episode begins now."""
        if not self._left:
            self._left = self._random.permutation(self._num_tasks).tolist()
        return self._left.pop()


class WalkingEnvironment:
    """Plays one task an episode, in the walk's order; each task's physics is compiled once, when first met."""

    def __init__(self, walk: TaskWalk, build: Callable[[int], Environment]) -> None:
        self._walk, self._build = walk, build
        self._environments: dict[int, Environment] = {}
        self._profile: Profile | None = None
        self.task_index = walk.next()
        self._current = self._of(self.task_index)
        self.spec = self._current.spec
        self._begun = False

    @property
    def profile(self) -> Profile | None:
        """Where time is charged to."""
        return self._profile

    @profile.setter
    def profile(self, profile: Profile | None) -> None:
        self._profile = profile
        for environment in self._environments.values():
            environment.profile = profile

    def reset(self) -> TimeStep:
        """Start an episode of the next task; after a PhysicsFault the same task is tried again."""
        if self._begun:
            self.task_index = self._walk.next()
            self._current = self._of(self.task_index)
            self._begun = False
        first = self._current.reset()
        self._begun = True
        return first

    def step(self, action: np.ndarray) -> TimeStep:
        """Apply an action [A] in the present task."""
        return self._current.step(action)

    def rebuild(self) -> None:
        """Compile the present task's physics again."""
        self._current.rebuild()

    def close(self) -> None:
        """Free the graphics contexts of all tasks."""
        for environment in self._environments.values():
            environment.close()

    def _of(self, task: int) -> Environment:
        if task not in self._environments:
            environment = self._build(task)
            environment.profile = self._profile
            self._environments[task] = environment
        return self._environments[task]
