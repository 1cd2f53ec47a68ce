"""One generator of steps, for actors, evaluation and the recording of demonstrations alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import structlog

from apprentice.environments import PhysicsFault
from apprentice.profiling import Profile
from apprentice.types import ActionBatch, Ending, EnvironmentSpec, Observation, TimeStep

log = structlog.get_logger()

FAULTS_BEFORE_REBUILD = 3
"""Physics faults of one environment in a row after which its physics is compiled again."""

_GOES_ON = np.uint8(Ending.GOES_ON)

SelectAction = Callable[[Observation], ActionBatch]
"""From observations [K, ...] to actions for K environments."""


class SteppedEnvironment(Protocol):
    """What the generator needs of an environment; `step` and `reset` may raise PhysicsFault."""

    spec: EnvironmentSpec
    task_index: int  # number of the task of the episode that `reset` has begun

    def reset(self) -> TimeStep: ...
    def step(self, action: np.ndarray) -> TimeStep: ...
    def rebuild(self) -> None: ...


class RolloutStep(NamedTuple):
    """One step of K environments. The arrays are overwritten by the next step."""

    observation: Observation  # [K, ...] before the action
    action: np.ndarray  # [K, A]
    pre_tanh_action: np.ndarray  # [K, A]
    environment_reward: np.ndarray  # [K] float32
    discount: np.ndarray  # [K] float32
    ending: np.ndarray  # [K] uint8, values of Ending
    next_observation: Observation  # [K, ...] after it; an episode's last, not the next one's first
    first: np.ndarray  # [K] bool: the first step of its episode
    task: np.ndarray  # [K] int64: number of the task being played
    valid: np.ndarray  # [K] bool: false where the physics failed and the step does not count


def rollout(
    environments: Sequence[SteppedEnvironment],
    select_action: SelectAction,
    profile: Profile | None = None,
    begin: Callable[[int, int], None] | None = None,
) -> Iterator[RolloutStep]:
    """Step all environments for ever, resetting each where its episode ends.

    A step that raises PhysicsFault is not valid and aborts its episode; after three in a row the
    environment is rebuilt. Raises PhysicsFault where an environment cannot even be reset after that.
    Charges laps `policy` and `reset` to `profile`; environments charge their own. `begin` is told the number of
    an environment and of its task once an episode has been started, before the first action is asked for.
    """
    num, spec = len(environments), environments[0].spec

    def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros((num, *shape), dtype)

    before: Observation = {k: empty(s.shape, s.dtype) for k, s in spec.observation.items()}
    after: Observation = {k: empty(s.shape, s.dtype) for k, s in spec.observation.items()}
    reward, discount = empty((), "float32"), empty((), "float32")
    ending, first, valid = empty((), "uint8"), empty((), "bool"), empty((), "bool")
    task = empty((), "int64")
    num_faults = [0] * num
    for index, environment in enumerate(environments):
        _store(before, index, _reset(environment).observation)
        task[index] = environment.task_index
        if begin is not None:
            begin(index, environment.task_index)
    first[:] = True
    if profile is not None:
        profile.lap("reset", num)
    keys = tuple(spec.observation)
    while True:
        chosen = select_action(before)
        if profile is not None:
            profile.lap("policy", num)
        actions = chosen.action
        for index, environment in enumerate(environments):
            try:
                observation, reward[index], discount[index], ended = environment.step(
                    actions[index]
                )
            except PhysicsFault as fault:
                num_faults[index] += 1
                log.warning("an episode was aborted", reason=str(fault))
                reward[index], discount[index] = 0.0, 1.0
                ending[index], valid[index] = Ending.ABORTED, False
                continue
            num_faults[index] = 0
            valid[index] = True
            ending[index] = ended
            for key in keys:
                after[key][index] = observation[key]
        yield RolloutStep(
            before,
            actions,
            chosen.pre_tanh_action,
            reward,
            discount,
            ending,
            after,
            first,
            task,
            valid,
        )
        for key in keys:
            before[key][...] = after[key]
        np.not_equal(ending, _GOES_ON, out=first)
        if np.count_nonzero(first):  # Ten times cheaper than first.any().
            for index in np.flatnonzero(first):
                if num_faults[index] >= FAULTS_BEFORE_REBUILD:
                    log.warning("an environment is rebuilt after repeated faults", index=int(index))
                    environments[index].rebuild()
                    num_faults[index] = 0
                _store(before, int(index), _reset(environments[index]).observation)
                task[index] = environments[index].task_index
                if begin is not None:
                    begin(int(index), environments[index].task_index)
            if profile is not None:
                profile.lap("reset", int(first.sum()))


def _reset(environment: SteppedEnvironment) -> TimeStep:
    """Start an episode; a start state that the physics cannot bear is drawn again, then rebuilt."""
    for _ in range(FAULTS_BEFORE_REBUILD):
        try:
            return environment.reset()
        except PhysicsFault as fault:
            log.warning("an episode could not be started", reason=str(fault))
    environment.rebuild()
    return environment.reset()


def _store(batch: Observation, index: int, observation: Observation) -> None:
    for key, value in observation.items():
        batch[key][index] = value
