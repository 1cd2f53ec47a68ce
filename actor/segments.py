"""Cuts the steps of K environments into segments, the unit that travels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apprentice.rollout import RolloutStep
from apprentice.types import Ending, EnvironmentSpec, Observation, Segment

_GOES_ON = np.uint8(Ending.GOES_ON)


@dataclass(frozen=True)
class Origin:
    """Who makes the segments."""

    actor: int
    incarnation: int


class SegmentBuilder:
    """Collects each environment's steps until T of them are there or the episode ends.

    Segments own their arrays. An episode that is aborted with no step pending sends nothing more:
    its last segment then says that it goes on. `actor` may be set to another slot at any time.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        segment_length: int,
        num_environments: int,
        origin: Origin,
        context_size: int = 0,
    ) -> None:
        self._spec = spec
        self._length = segment_length
        self._num = num_environments
        self._origin = origin
        self.actor = origin.actor
        self._shown = np.full((num_environments, context_size), -1, np.int64)
        self._context = self._shown.copy()
        self._leading = {key: spec.num_leading_frames(key) for key in spec.observation}
        self._filled = np.zeros(num_environments, np.int64)  # steps pending
        self._first_step = np.zeros(num_environments, np.int64)
        self._episode = np.full(num_environments, -1, np.int64)
        self._num_episodes = 0
        self._task = np.zeros(num_environments, np.int64)
        self._policy_version = np.zeros(num_environments, np.int64)
        size = spec.action_size
        shape = (num_environments, segment_length)
        self._observation: Observation = {
            key: np.zeros(
                (
                    num_environments,
                    self._leading[key] + segment_length,
                    *spec.frame_shape(key),
                ),
                spec.observation[key].dtype,
            )
            for key in spec.observation
        }
        self._action = np.zeros((*shape, size), np.float32)
        self._pre_tanh = np.zeros((*shape, size), np.float32)
        self._reward = np.zeros(shape, np.float32)
        self._discount = np.zeros(shape, np.float32)
        # The same memory as one list of rows: one index finds a row twice as fast as two do.
        self._action_rows = self._action.reshape(-1, size)
        self._pre_tanh_rows = self._pre_tanh.reshape(-1, size)
        self._reward_rows, self._discount_rows = (
            self._reward.reshape(-1),
            self._discount.reshape(-1),
        )
        self._observation_rows = {
            key: rows.reshape(-1, *spec.frame_shape(key)) for key, rows in self._observation.items()
        }
        numbers = np.arange(num_environments)
        self._step_starts = numbers * segment_length
        self._observation_starts = {
            key: numbers * (leading + segment_length) + leading
            for key, leading in self._leading.items()
        }

    def show(self, index: int, context: np.ndarray) -> None:
        """Note the demonstrations [C] that are shown in the episode environment `index` begins next."""
        self._shown[index] = context

    def add(self, step: RolloutStep, policy_version: int) -> list[Segment]:
        """Take one step of every environment; return the segments that it completes."""
        if np.count_nonzero(step.first):
            for index in np.flatnonzero(step.first):
                self._begin_episode(int(index), step.observation)
            np.copyto(self._task, step.task, where=step.first)
        at = self._filled
        rows = self._step_starts + at
        self._action_rows[rows] = step.action
        self._pre_tanh_rows[rows] = step.pre_tanh_action
        self._reward_rows[rows] = step.environment_reward
        self._discount_rows[rows] = step.discount
        for key, starts in self._observation_starts.items():
            newest = step.next_observation[key]
            self._observation_rows[key][starts + at] = newest[:, -1] if key == "pixels" else newest
        at += step.valid
        np.copyto(self._policy_version, policy_version, where=step.valid)
        complete = (at == self._length) | (step.ending != _GOES_ON)
        if not np.count_nonzero(complete):
            return []
        return [
            self._emit(index, Ending(int(step.ending[index])))
            for index in map(int, np.flatnonzero(complete))
            if at[index] > 0
        ]

    def cut(self) -> list[Segment]:
        """Return what is pending, as segments of episodes that go on; for when no step follows."""
        return [
            self._emit(index, Ending.GOES_ON) for index in map(int, np.flatnonzero(self._filled))
        ]

    def _begin_episode(self, index: int, observation: Observation) -> None:
        self._episode[index] = self._num_episodes
        self._num_episodes += 1
        self._filled[index] = self._first_step[index] = 0
        self._context[index] = self._shown[index]
        for key, leading in self._leading.items():
            rows = observation[key][index]
            self._observation[key][index, :leading] = rows if key == "pixels" else rows[None]

    def _emit(self, index: int, ending: Ending) -> Segment:
        length = int(self._filled[index])
        segment = Segment(
            observation={
                key: self._padded(rows[index], self._leading[key] + length)
                for key, rows in self._observation.items()
            },
            action=self._padded(self._action[index], length),
            pre_tanh_action=self._padded(self._pre_tanh[index], length),
            environment_reward=self._padded(self._reward[index], length),
            discount=self._padded(self._discount[index], length),
            length=length,
            ending=ending,
            task=int(self._task[index]),
            actor=self.actor,
            incarnation=self._origin.incarnation,
            episode=int(self._episode[index]),
            first_step=int(self._first_step[index]),
            policy_version=int(self._policy_version[index]),
            context=self._context[index].copy(),
        )
        # The last rows lead up to the next segment's first action.
        for key, leading in self._leading.items():
            rows = self._observation[key][index]
            rows[:leading] = rows[length : length + leading].copy()
        self._first_step[index] += length
        self._filled[index] = 0
        return segment

    @staticmethod
    def _padded(rows: np.ndarray, length: int) -> np.ndarray:
        copy = rows.copy()
        copy[length:] = 0
        return copy
