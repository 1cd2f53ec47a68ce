"""A task of the suite as gymnasium wants it, for peers: state as one array, actions held, rewards summed.

Read by interpreters of peers, which have gymnasium and none of our libraries.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy
from dm_control import suite


class Flat(gymnasium.Env):  # type: ignore[misc]
    """Observations [O] float32 in dm_control's order; an episode ends at its time limit only."""

    def __init__(self, task: str, action_repeat: int, seed: int) -> None:
        domain, _, name = task.partition("-")
        self._inner = suite.load(domain, name, task_kwargs={"random": seed})
        self._action_repeat = action_repeat
        shape = self._flat(self._inner.reset()).shape
        actions = self._inner.action_spec().shape
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, actions, numpy.float32)
        self.observation_space = gymnasium.spaces.Box(-numpy.inf, numpy.inf, shape, numpy.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Start an episode; the seed is the constructor's."""
        return self._flat(self._inner.reset()), {}

    def step(self, action: Any) -> Any:
        """Hold the action for the action repeat."""
        total = 0.0
        for _ in range(self._action_repeat):
            moment = self._inner.step(action)
            total += moment.reward
            if moment.last():
                break
        return self._flat(moment), total, False, moment.last(), {}

    @staticmethod
    def _flat(moment: Any) -> Any:
        parts = [numpy.ravel(value) for value in moment.observation.values()]
        return numpy.concatenate(parts).astype(numpy.float32)
