"""An actor's place in a run: joining, heartbeats from a thread of their own, and what they bring back."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

from apprentice.profiling import Span
from apprentice.rpc import (
    ActorReport,
    EpisodeReport,
    LearnerClient,
    LearnerError,
    LearnerUnavailable,
    Membership,
    NotAMember,
    ProtocolMismatch,
    SlotTaken,
    SpecMismatch,
)

log = structlog.get_logger()

HEARTBEAT_SECONDS = 2.0
MAX_EPISODES = 1000
LONGEST_PAUSE = 5.0


class CannotJoin(Exception):
    """No learner took this actor in before the deadline."""


def join(
    client: LearnerClient,
    incarnation: int,
    slot: int | None,
    deadline_seconds: float,
    should_stop: Callable[[], bool],
) -> Membership | None:
    """Join the run, trying again while the learner is away or the slot is held.

    Returns None where the actor is asked to stop. Raises CannotJoin at the deadline, SpecMismatch or
    ProtocolMismatch where trying again is of no use.
    """
    deadline = time.monotonic() + deadline_seconds
    pause, reason = 0.2, ""
    while time.monotonic() < deadline:
        if should_stop():
            return None
        try:
            return client.join(incarnation, socket.gethostname(), os.getpid(), slot)
        except (LearnerUnavailable, SlotTaken) as error:
            if str(error) != reason:
                reason = str(error)
                log.info("waiting to join", reason=reason)
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 1.5 * pause)
    raise CannotJoin(f"no learner took this actor in within {deadline_seconds:.0f} s: {reason}")


class Progress:
    """What the acting loop has done, as the next heartbeat will tell it."""

    def __init__(self) -> None:
        self.steps = 0
        self.faults = 0
        self.policy_version = 0
        self._episodes: deque[EpisodeReport] = deque(maxlen=MAX_EPISODES)

    def add_episode(self, episode: EpisodeReport) -> None:
        """Note a finished episode; the oldest are lost if the learner is away for long."""
        self._episodes.append(episode)

    def take_episodes(self) -> list[EpisodeReport]:
        """Return the episodes not told yet; they are told once."""
        return [self._episodes.popleft() for _ in range(len(self._episodes))]

    def give_back(self, episodes: list[EpisodeReport]) -> None:
        """Take episodes back that could not be told."""
        self._episodes.extendleft(reversed(episodes[-MAX_EPISODES:]))


class Heartbeats:
    """Renews the lease while the loop steps, waits or is held up."""

    def __init__(
        self,
        client: LearnerClient,
        membership: Membership,
        incarnation: int,
        progress: Progress,
        spans: Callable[[], dict[str, Span]],
        period_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._client = client
        self._slot = membership.slot
        self._incarnation = incarnation
        self._digest = membership.specs[0].digest()
        self._progress = progress
        self._spans = spans
        self._period = period_seconds
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self.leave = False
        self.paused = False
        self.mismatch: str | None = None
        """Why this actor does not fit the learner any more; None while it does."""
        self._thread = threading.Thread(target=self._beat, name="heartbeats")
        self._thread.start()

    @property
    def age_seconds(self) -> float:
        """Seconds since the learner last answered a heartbeat."""
        return time.monotonic() - self._heard

    def close(self) -> None:
        """End the thread and close the client, which ends a call under way."""
        self._closed.set()
        self._client.close()
        self._thread.join(5.0)

    def _beat(self) -> None:
        steps, told = 0, time.monotonic()
        while not self._closed.wait(self._period):
            now = time.monotonic()
            progress, episodes = self._progress, self._progress.take_episodes()
            report = ActorReport(
                self._slot,
                self._incarnation,
                progress.steps,
                (progress.steps - steps) / max(1e-6, now - told),
                progress.policy_version,
                episodes,
                progress.faults,
                self._spans(),
            )
            steps, told = progress.steps, now
            try:
                reply = self._client.heartbeat(report)
            except NotAMember:
                progress.give_back(episodes)
                self._rejoin()
            except (LearnerError, ValueError) as error:  # ValueError: the client was closed
                progress.give_back(episodes)
                log.debug("a heartbeat was not answered", reason=str(error))
            else:
                self._heard = time.monotonic()
                self.paused = reply.paused
                self.leave = self.leave or reply.leave

    def _rejoin(self) -> None:
        """Take a lease again, as after a restart of the learner; another slot will do."""
        host, pid = socket.gethostname(), os.getpid()
        for slot in (self._slot, None):
            try:
                membership = self._client.join(self._incarnation, host, pid, slot, self._digest)
            except SlotTaken:
                continue
            except (SpecMismatch, ProtocolMismatch) as error:
                self.mismatch = str(error)
                return
            except LearnerError as error:
                log.debug("could not join again yet", reason=str(error))
                return
            self._slot = membership.slot
            log.info("joined again", slot=membership.slot)
            return
