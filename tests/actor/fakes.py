"""Environments whose every number tells where it belongs, and collaborators without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from actor.acting import Actor, Connections, Limits
from actor.fresh_policy import FreshPolicy
from actor.membership import Progress
from actor.segments import Origin, SegmentBuilder
from apprentice.config import Experiment
from apprentice.environments import PhysicsFault
from apprentice.networks import Policy, UniformPolicy, build_policy
from apprentice.profiling import Profile
from apprentice.rpc import PolicyUpdate
from apprentice.types import (
    ActionBatch,
    ArraySpec,
    Ending,
    EnvironmentSpec,
    Observation,
    Segment,
    TimeStep,
)
from apprentice.watchdog import Watchdog
from replay.errors import ReplayUnavailable, SegmentRejected

STACK = 3
STATE = EnvironmentSpec(
    "cheetah-run",
    "cheetah-run",
    {"state": ArraySpec((3,), "float32")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.01,
)
PIXELS = EnvironmentSpec(
    "cheetah-run",
    "cheetah-run",
    {"state": ArraySpec((3,), "float32"), "pixels": ArraySpec((STACK, 4, 5, 3), "uint8")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.01,
)
EXPERIMENT = Experiment(name="fake", task="cheetah-run")


class FakeEnvironment:
    """State [number, episode, t]; frame t shows 10 episode + t; reward 100 episode + t, t from 1.

    `faults` are the (episode, t) whose step fails. Episodes count from 0, failed ones included.
    """

    def __init__(
        self,
        number: int = 0,
        *,
        spec: EnvironmentSpec = STATE,
        episode_steps: int = 10,
        ending: Ending = Ending.TIME_LIMIT,
        faults: Collection[tuple[int, int]] = (),
        on_step: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self.spec = spec
        self._number, self._episode_steps, self._ending = number, episode_steps, ending
        self._faults, self._on_step = faults, on_step
        self._episode, self._time = -1, 0
        self.num_rebuilds = 0
        self.task_index = 0
        self.actions: list[np.ndarray] = []

    def reset(self) -> TimeStep:
        self._episode += 1
        self._time = 0
        return TimeStep(self._observation(), 0.0, 1.0, Ending.GOES_ON)

    def step(self, action: np.ndarray) -> TimeStep:
        if self._on_step is not None:
            self._on_step(action)
        self.actions.append(action.copy())
        self._time += 1
        if (self._episode, self._time) in self._faults:
            raise PhysicsFault(f"episode {self._episode}, step {self._time}")
        over = self._time == self._episode_steps
        ending = self._ending if over else Ending.GOES_ON
        discount = 0.0 if ending == Ending.TERMINATED else 1.0
        reward = 100.0 * self._episode + self._time
        return TimeStep(self._observation(), reward, discount, ending)

    def rebuild(self) -> None:
        self.num_rebuilds += 1

    def _observation(self) -> Observation:
        state = np.array([self._number, self._episode, self._time], np.float32)
        observation = {"state": state}
        if "pixels" in self.spec.observation:
            moments = [max(0, self._time - age) for age in reversed(range(STACK))]
            observation["pixels"] = np.stack(
                [np.full((4, 5, 3), 10 * self._episode + moment, np.uint8) for moment in moments]
            )
        return observation


class CountingPolicy:
    """The n-th call gives action n / 1000 everywhere, and n before tanh."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, observation: Observation) -> ActionBatch:
        self.num_calls += 1
        shape = (len(observation["state"]), 2)
        return ActionBatch(
            np.full(shape, self.num_calls / 1000, np.float32),
            np.full(shape, self.num_calls, np.float32),
        )


class FakeWriter:
    """Collects segments; `blocked` makes it unavailable, `rejects` makes it refuse."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.blocked = threading.Event()
        self.rejects = False
        self.num_tries = 0
        self.num_flushes = 0
        self.on_append: Callable[[Segment], None] | None = None

    def append(self, segment: Segment, timeout_seconds: float | None = None) -> None:
        self.num_tries += 1
        if self.on_append is not None:
            self.on_append(segment)
        if self.blocked.is_set():
            threading.Event().wait(min(0.01, timeout_seconds or 0.0))
            raise ReplayUnavailable("nobody takes them")
        if self.rejects:
            raise SegmentRejected("not finite", segment.actor)
        self.segments.append(segment)

    def flush(self, timeout_seconds: float | None = None) -> None:
        self.num_flushes += 1
        if self.blocked.is_set():
            raise ReplayUnavailable("nobody takes them")


@dataclass
class FakeLearner:
    """Heartbeats and the stream of policies in one, set by the test."""

    slot: int = 0
    leave: bool = False
    paused: bool = False
    mismatch: str | None = None
    alive: bool = True
    age_seconds: float = 0.0
    update: PolicyUpdate | None = None
    on_latest: Callable[[], None] | None = None

    def latest(self) -> PolicyUpdate | None:
        if self.on_latest is not None:
            self.on_latest()
        update, self.update = self.update, None
        return update


@dataclass
class Stage:
    """One actor with everything around it."""

    environments: list[FakeEnvironment] = field(default_factory=lambda: [FakeEnvironment()])
    writer: FakeWriter = field(default_factory=FakeWriter)
    learner: FakeLearner = field(default_factory=FakeLearner)
    segment_length: int = 4
    stop_reason: str | None = None
    max_policy_age_seconds: float = 10.0
    first_policy_seconds: float = 10.0

    def __post_init__(self) -> None:
        self.spec = self.environments[0].spec
        self.module = build_policy(EXPERIMENT, self.spec)
        self.policy = FreshPolicy(Policy(self.module, 0), UniformPolicy(self.spec, 0))
        self.progress, self.profile = Progress(), Profile()

    def update(self, policy_version: int, bias: float = 0.0) -> PolicyUpdate:
        """Return a policy whose mean is `bias` and whose noise is nearly nothing."""
        tensors = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        names = sorted(name for name in tensors if name.startswith("trunk"))
        weight, last = tensors[names[-1]], tensors[names[-2]]
        assert weight.dim() == 2 and last.dim() == 1
        weight.zero_()
        last[: self.spec.action_size] = bias
        last[self.spec.action_size :] = -20.0
        return PolicyUpdate(policy_version, tensors)

    def act(self, published_version: int = 0) -> str:
        """Run the actor to its end."""
        actor = Actor(
            self.environments,
            self.policy,
            SegmentBuilder(self.spec, self.segment_length, len(self.environments), Origin(0, 77)),
            Connections(self.writer, self.learner, self.learner),
            self.progress,
            self.profile,
            Watchdog("actor", 60.0),
            Limits(self.max_policy_age_seconds, self.first_policy_seconds, 0.2),
            lambda: self.stop_reason,
        )
        return actor.run(published_version)

    def stop_after(self, num_segments: int) -> None:
        """Ask the actor to stop once so many segments were taken."""

        def look(segment: Segment) -> None:
            if len(self.writer.segments) + 1 >= num_segments:
                self.stop_reason = "enough"

        self.writer.on_append = look
