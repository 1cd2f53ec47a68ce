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


class TaskEnvironments:
    """Environments by task, lent to whoever plays it now: as many are built of a task as are played at once."""

    def __init__(self, build: Callable[[int, int], Environment]) -> None:
        """Build with `build(task, number)` where all of a task's are lent; numbers count those of a task."""
        self._build = build
        self._free: dict[int, list[Environment]] = {}
        self._num_built: dict[int, int] = {}

    def take(self, task: int) -> Environment:
        """Lend an environment of a task; its physics is compiled where none is free."""
        free = self._free.setdefault(task, [])
        if free:
            return free.pop()
        number = self._num_built.get(task, 0)
        self._num_built[task] = number + 1
        return self._build(task, number)

    def give_back(self, task: int, environment: Environment) -> None:
        """Take back what was lent."""
        self._free[task].append(environment)


class WalkingEnvironment:
    """Plays one task an episode, in the walk's order; switching to a task that has been played costs nothing."""

    def __init__(self, walk: TaskWalk, environments: TaskEnvironments) -> None:
        self._walk, self._environments = walk, environments
        self._profile: Profile | None = None
        self.task_index = walk.next()
        self._current = environments.take(self.task_index)
        self.spec = self._current.spec
        self._begun = False

    @property
    def profile(self) -> Profile | None:
        """Where time is charged to."""
        return self._profile

    @profile.setter
    def profile(self, profile: Profile | None) -> None:
        self._profile = profile
        self._current.profile = profile

    def reset(self) -> TimeStep:
        """Start an episode of the next task; after a PhysicsFault the same task is tried again."""
        if self._begun:
            self._environments.give_back(self.task_index, self._current)
            self.task_index = self._walk.next()
            self._current = self._environments.take(self.task_index)
            self._current.profile = self._profile
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
