"""The actor's loop: K environments, one forward for all of them, segments out, weights kept fresh."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import structlog

from actor.errors import DoesNotFit, LearnerLost, NoPolicy
from actor.fresh_policy import FreshPolicy
from actor.membership import Progress
from actor.outbox import Outbox, WritesSegments
from actor.segments import SegmentBuilder
from actor.showing import Showing
from apprentice.profiling import Profile
from apprentice.rollout import RolloutStep, SteppedEnvironment, rollout
from apprentice.rpc import EpisodeReport, PolicyUpdate
from apprentice.types import Ending
from apprentice.watchdog import Watchdog

log = structlog.get_logger()

HOUSEKEEPING_SECONDS = 0.02
WAIT_SECONDS = 0.1
APPEND_SECONDS = 1.0
FIRST_POLICY_SECONDS = 60.0
DRAIN_SECONDS = 1.5
"""With the time to notice a signal and to close connections this stays under the 5 seconds that an
actor has after SIGTERM."""


class FollowsPolicies(Protocol):
    """Where policies come from."""

    def latest(self) -> PolicyUpdate | None: ...
    @property
    def age_seconds(self) -> float: ...


class HearsLearner(Protocol):
    """What the learner last said, heard by a thread of its own."""

    @property
    def slot(self) -> int: ...
    @property
    def leave(self) -> bool: ...
    @property
    def paused(self) -> bool: ...
    @property
    def mismatch(self) -> str | None: ...
    @property
    def alive(self) -> bool: ...
    @property
    def age_seconds(self) -> float: ...


@dataclass(frozen=True)
class Connections:
    """Whom the loop talks to; it owns none of them."""

    writer: WritesSegments
    policies: FollowsPolicies
    heartbeats: HearsLearner


@dataclass(frozen=True)
class Limits:
    """When the loop waits or ends."""

    max_policy_age_seconds: float
    first_policy_seconds: float = FIRST_POLICY_SECONDS
    drain_seconds: float = DRAIN_SECONDS


class _Leaves(Exception):
    """The loop is to end; the message says why."""


class Actor:
    """Steps environments until it is told to leave."""

    def __init__(
        self,
        environments: Sequence[SteppedEnvironment],
        policy: FreshPolicy,
        builder: SegmentBuilder,
        connections: Connections,
        progress: Progress,
        profile: Profile,
        watchdog: Watchdog,
        limits: Limits,
        reason_to_stop: Callable[[], str | None],
        showing: Showing | None = None,
    ) -> None:
        self._environments = environments
        self._showing = showing
        self._policy = policy
        self._builder = builder
        self._outbox = Outbox(connections.writer, profile)
        self._policies, self._heartbeats = connections.policies, connections.heartbeats
        self._progress = progress
        self._profile = profile
        self._watchdog = watchdog
        self._limits = limits
        self._reason_to_stop = reason_to_stop
        self._next_housekeeping = 0.0
        self._returns = np.zeros(len(environments))
        self._lengths = np.zeros(len(environments), np.int64)
        self._num_aborted = 0

    def run(self, published_version: int) -> str:
        """Act until the run is over or a stop is asked for; return the reason.

        Where a policy has been published already, no step is made before it is here. Raises NoPolicy,
        DoesNotFit, LearnerLost.
        """
        try:
            self._await_policy(published_version)
            begin = None if self._showing is None else self._showing.begin
            for step in rollout(self._environments, self._policy.act, self._profile, begin):
                self._outbox.put(self._builder.add(step, self._policy.version))
                self._count(step)
                self._profile.lap("assembling", len(self._environments))
                self._send()
                if time.monotonic() >= self._next_housekeeping:
                    self._housekeeping()
        except _Leaves as reason:
            self._leave()
            return str(reason)
        raise AssertionError("the rollout never ends by itself")

    def _await_policy(self, published_version: int) -> None:
        seconds = self._limits.first_policy_seconds
        deadline = time.monotonic() + seconds
        self._housekeeping()
        while published_version and not self._policy.version:
            if time.monotonic() > deadline:
                raise NoPolicy(
                    f"the learner has published policy {published_version}, and none that fits has "
                    f"arrived within {seconds:.0f} s"
                )
            time.sleep(HOUSEKEEPING_SECONDS)
            self._housekeeping()
        self._profile.lap("waiting for a policy")

    def _send(self) -> None:
        """Hand over what is complete, however long the replay server or the learner hold it up."""
        while self._outbox:
            if not self._outbox.send(APPEND_SECONDS):
                self._watchdog.beat()
                self._look_for_end()
                self._take_policy()
        self._progress.faults = self._num_aborted + self._outbox.num_rejected

    def _housekeeping(self) -> None:
        """Take a newer policy, and stop or wait where that is asked for."""
        self._next_housekeeping = time.monotonic() + HOUSEKEEPING_SECONDS
        self._watchdog.beat()
        self._look_for_end()
        self._take_policy()
        self._builder.actor = self._heartbeats.slot
        self._profile.lap("service")
        said = False
        while self._heartbeats.paused or self._stale():
            if not said and self._stale():
                said = True
                log.warning("no learner is heard of; not acting until one is")
            self._watchdog.beat()
            self._look_for_end()
            time.sleep(WAIT_SECONDS)
            self._take_policy()
            self._profile.lap("paused")

    def _stale(self) -> bool:
        heard = min(self._policies.age_seconds, self._heartbeats.age_seconds)
        return heard > self._limits.max_policy_age_seconds

    def _look_for_end(self) -> None:
        if self._heartbeats.mismatch is not None:
            raise DoesNotFit(self._heartbeats.mismatch)
        if self._heartbeats.leave:
            raise _Leaves("the run is over")
        reason = self._reason_to_stop()
        if reason is not None:
            raise _Leaves(reason)
        if not self._heartbeats.alive:
            raise LearnerLost("the thread that renews the lease has ended; see its error above")

    def _take_policy(self) -> None:
        update = self._policies.latest()
        if update is None:
            return
        was_chance = self._policy.version == 0
        if self._policy.take(update):
            self._progress.policy_version = update.policy_version
            if was_chance and self._showing is not None:
                self._showing.show_again()

    def _leave(self) -> None:
        """Send what is here, unfinished pieces of episodes too, as far as the deadline allows."""
        self._outbox.put(self._builder.cut())
        self._outbox.drain(self._limits.drain_seconds)

    def _count(self, step: RolloutStep) -> None:
        progress = self._progress
        self._returns += step.environment_reward
        self._lengths += step.valid
        progress.steps += int(np.count_nonzero(step.valid))
        if not np.count_nonzero(step.ending):
            return
        for index in np.flatnonzero(step.ending):
            task = int(step.task[index])
            if step.ending[index] == Ending.ABORTED:
                self._num_aborted += 1
            else:
                progress.add_episode(
                    EpisodeReport(
                        task,
                        float(self._returns[index]),
                        int(self._lengths[index]),
                        self._policy.version,
                    )
                )
            self._returns[index] = 0.0
            self._lengths[index] = 0
