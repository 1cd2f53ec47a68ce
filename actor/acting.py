"""The actor's loop: K environments, one forward for all of them, segments out, weights kept fresh."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import structlog

from actor.membership import Heartbeats, Progress
from actor.segments import SegmentBuilder
from apprentice.networks import Policy, PolicyMismatch, UniformPolicy
from apprentice.profiling import Profile
from apprentice.rollout import RolloutStep, SteppedEnvironment, rollout
from apprentice.rpc import EpisodeReport, PolicyUpdate
from apprentice.types import ActionBatch, Ending, Observation, Segment
from apprentice.watchdog import Watchdog
from replay.errors import ReplayUnavailable, SegmentRejected

log = structlog.get_logger()

HOUSEKEEPING_SECONDS = 0.02
WAIT_SECONDS = 0.1
APPEND_SECONDS = 1.0
FIRST_POLICY_SECONDS = 30.0
HELD_UP_SECONDS = 0.005
"""An append that took longer was waiting for the learner, not working."""


class WritesSegments(Protocol):
    """Where segments go."""

    def append(self, segment: Segment, timeout_seconds: float | None = None) -> None: ...
    def flush(self, timeout_seconds: float | None = None) -> None: ...


class FollowsPolicies(Protocol):
    """Where policies come from."""

    def latest(self) -> PolicyUpdate | None: ...
    @property
    def age_seconds(self) -> float: ...


class LeavesRun(Exception):
    """The loop is to end; the message says why."""


class DoesNotFit(Exception):
    """The learner now trains on something else; this process cannot serve it."""


class Actor:
    """Steps environments until it is told to leave; owns neither its connections nor its threads."""

    def __init__(
        self,
        environments: Sequence[SteppedEnvironment],
        policy: Policy,
        uniform: UniformPolicy,
        builder: SegmentBuilder,
        writer: WritesSegments,
        policies: FollowsPolicies,
        heartbeats: Heartbeats,
        progress: Progress,
        profile: Profile,
        watchdog: Watchdog,
        max_policy_age_seconds: float,
        should_stop: Callable[[], bool],
    ) -> None:
        self._environments = environments
        self._policy, self._uniform = policy, uniform
        self._builder = builder
        self._writer = writer
        self._policies = policies
        self._heartbeats = heartbeats
        self._progress = progress
        self._profile = profile
        self._watchdog = watchdog
        self._max_policy_age = max_policy_age_seconds
        self._should_stop = should_stop
        self._parent = os.getppid()
        self._version = 0
        self._next_housekeeping = 0.0
        self._returns = np.zeros(len(environments))
        self._lengths = np.zeros(len(environments), np.int64)

    def run(self, published_version: int) -> str:
        """Act until the run is over or a stop is asked for; return the reason.

        Waits for a policy first where one has been published. Raises DoesNotFit.
        """
        try:
            self._await_policy(published_version)
            for step in self._steps():
                segments = self._builder.add(step, self._version)
                self._count(step)
                self._profile.lap("assembling", len(self._environments))
                for segment in segments:
                    self._send(segment)
                if time.monotonic() >= self._next_housekeeping:
                    self._housekeeping()
        except LeavesRun as reason:
            return str(reason)
        raise AssertionError("the rollout never ends by itself")

    def _steps(self) -> Iterator[RolloutStep]:
        return rollout(self._environments, self._select_action, self._profile)

    def _select_action(self, observation: Observation) -> ActionBatch:
        return (self._policy if self._version else self._uniform).act(observation)

    def _await_policy(self, published_version: int) -> None:
        deadline = time.monotonic() + FIRST_POLICY_SECONDS
        while published_version and not self._version and time.monotonic() < deadline:
            self._housekeeping()
            time.sleep(HOUSEKEEPING_SECONDS)
        self._profile.lap("waiting for a policy")

    def _housekeeping(self) -> None:
        """Take a newer policy, and stop or wait where that is asked for."""
        self._next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
        self._watchdog.beat()
        self._look_for_end()
        self._take_policy()
        self._profile.lap("service")
        said = False
        while self._heartbeats.paused or self._stale():
            if self._stale() and not said:
                said = True
                log.warning("no learner is heard of; not acting until one is")
            self._watchdog.beat()
            self._look_for_end()
            time.sleep(WAIT_SECONDS)
            self._take_policy()
            self._profile.lap("paused")

    def _stale(self) -> bool:
        heard = min(self._policies.age_seconds, self._heartbeats.age_seconds)
        return heard > self._max_policy_age

    def _look_for_end(self) -> None:
        if self._heartbeats.mismatch is not None:
            raise DoesNotFit(self._heartbeats.mismatch)
        if self._heartbeats.leave:
            raise LeavesRun("the run is over")
        if self._should_stop():
            raise LeavesRun("asked to stop")
        if os.getppid() != self._parent:
            raise LeavesRun("the process that started it is gone")

    def _take_policy(self) -> None:
        update = self._policies.latest()
        if update is None:
            return
        try:
            self._policy.load(update.tensors)
        except PolicyMismatch as error:
            log.warning("a policy was refused; the old one stays in use", reason=str(error))
            return
        self._version = self._progress.policy_version = update.policy_version

    def _send(self, segment: Segment) -> None:
        """Hand a segment over, however long the replay server or the learner hold it up."""
        started = time.monotonic()
        while True:
            try:
                self._writer.append(segment, APPEND_SECONDS)
                break
            except SegmentRejected as error:
                self._progress.faults += 1
                log.error("a segment was not sent", reason=str(error))
                break
            except ReplayUnavailable as error:
                log.debug("held up", reason=str(error))
                self._watchdog.beat()
                self._look_for_end()
                self._take_policy()
        held_up = time.monotonic() - started > HELD_UP_SECONDS
        self._profile.lap("waiting for replay" if held_up else "segment write", segment.length)

    def _count(self, step: RolloutStep) -> None:
        progress = self._progress
        self._returns += step.environment_reward
        self._lengths += step.valid
        progress.steps += int(step.valid.sum())
        if not (step.ending != Ending.GOES_ON).any():
            return
        for index in np.flatnonzero(step.ending != Ending.GOES_ON):
            if step.ending[index] == Ending.ABORTED:
                progress.faults += 1
            else:
                progress.add_episode(
                    EpisodeReport(
                        0, float(self._returns[index]), int(self._lengths[index]), self._version
                    )
                )
            self._returns[index] = 0.0
            self._lengths[index] = 0
