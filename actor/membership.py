"""An actor's place in a run: joining, heartbeats from a thread of their own, and what they bring back."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog
from pydantic import ValidationError

from actor.errors import CannotJoin, DoesNotFit
from apprentice.config import Experiment
from apprentice.profiling import Span
from apprentice.rpc import (
    ActorReport,
    EpisodeReport,
    HeartbeatReply,
    LearnerError,
    LearnerUnavailable,
    Membership,
    NotAMember,
    ProtocolMismatch,
    SlotTaken,
    SpecMismatch,
)
from apprentice.types import Metrics

log = structlog.get_logger()

HEARTBEAT_SECONDS = 2.0
MAX_EPISODES = 1000
LONGEST_PAUSE = 5.0
CLOSE_SECONDS = 1.0
UNHEALTHY_SILENCE_SECONDS = 20.0
"""With what passes until a silence is noticed, a learner that stands still is reported within 30 s."""
BUILT_FROM = ("task", "environment", "reads", "network", "context", "replay", "actor")
"""Parts of the experiment that an actor is built from; with others it must be built anew."""


class ReportsToLearner(Protocol):
    """The calls of LearnerClient that keep a membership up."""

    def join(
        self,
        incarnation: int,
        host: str,
        pid: int,
        slot: int | None = None,
        environment_digest: str = "",
    ) -> Membership: ...
    def heartbeat(self, report: ActorReport) -> HeartbeatReply: ...
    def close(self) -> None: ...


def join(
    client: ReportsToLearner,
    incarnation: int,
    slot: int | None,
    deadline_seconds: float,
    reason_to_stop: Callable[[], str | None],
) -> Membership | None:
    """Join the run, trying again while the learner is away or the slot is held.

    Returns None where the actor is asked to stop. Raises CannotJoin at the deadline, DoesNotFit where
    trying again is of no use.
    """
    deadline = time.monotonic() + deadline_seconds
    pause, reason = 0.2, ""
    while time.monotonic() < deadline:
        if reason_to_stop() is not None:
            return None
        try:
            return client.join(incarnation, socket.gethostname(), os.getpid(), slot)
        except (LearnerUnavailable, SlotTaken) as error:
            if str(error) != reason:
                reason = str(error)
                log.info("waiting to join", reason=reason)
        except (SpecMismatch, ProtocolMismatch) as error:
            raise DoesNotFit(str(error)) from error
        except ValidationError as error:
            raise DoesNotFit(
                f"the learner's experiment has settings that this release does not know: {error}; "
                "install the same release on both sides"
            ) from error
        over = min(deadline, time.monotonic() + pause)
        while time.monotonic() < over and reason_to_stop() is None:
            time.sleep(0.1)
        pause = min(LONGEST_PAUSE, 1.5 * pause)
    raise CannotJoin(f"no learner took this actor in within {deadline_seconds:.0f} s: {reason}")


class Progress:
    """What the acting loop has done, as the next heartbeat will tell it."""

    def __init__(self) -> None:
        self.steps = 0
        self.faults = 0
        self.policy_version = 0
        self._episodes: deque[EpisodeReport] = deque(maxlen=MAX_EPISODES)

    def metrics(self) -> Metrics:
        """Return steps made, faults met and the version of the policy in use."""
        return {
            "actor/steps": float(self.steps),
            "actor/faults": float(self.faults),
            "actor/policy_version": float(self.policy_version),
        }

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
        client: ReportsToLearner,
        membership: Membership,
        incarnation: int,
        progress: Progress,
        spans: Callable[[], dict[str, Span]],
        period_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._client = client
        self.slot = membership.slot
        """Another one than at first where that was taken while the learner was away."""
        self._incarnation = incarnation
        self._experiment = membership.experiment
        self._digest = membership.specs[0].digest()
        self._progress = progress
        self._spans = spans
        self._period = period_seconds
        self._told_steps, self._told = 0, time.monotonic()
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

    @property
    def alive(self) -> bool:
        """Whether the lease is still looked after."""
        return self._thread.is_alive()

    def problem(self) -> str | None:
        """Say why this actor is not well; from any thread."""
        if self.mismatch is not None:
            return self.mismatch
        if self.age_seconds > UNHEALTHY_SILENCE_SECONDS:
            return f"the learner has not answered for {self.age_seconds:.0f} s"
        return None

    def close(self) -> None:
        """Tell what was not told yet, end the thread, and close the client."""
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)
        self._client.close()  # It ends a call that is still under way.
        self._thread.join(CLOSE_SECONDS)

    def _beat(self) -> None:
        while not self._closed.wait(self._period):
            self._report()
        if not self.leave:
            self._report()

    def _report(self) -> None:
        now, progress = time.monotonic(), self._progress
        episodes, steps = progress.take_episodes(), progress.steps
        report = ActorReport(
            self.slot,
            self._incarnation,
            steps,
            (steps - self._told_steps) / max(1e-6, now - self._told),
            progress.policy_version,
            episodes,
            progress.faults,
            self._spans(),
        )
        self._told_steps, self._told = steps, now
        try:
            reply = self._client.heartbeat(report)
        except NotAMember:
            progress.give_back(episodes)
            if not self._closed.is_set():
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
        for slot in (self.slot, None):
            try:
                membership = self._client.join(self._incarnation, host, pid, slot, self._digest)
            except SlotTaken:
                continue
            except (SpecMismatch, ProtocolMismatch, ValidationError) as error:
                self.mismatch = str(error)
                return
            except LearnerError as error:
                log.debug("could not join again yet", reason=str(error))
                return
            self.mismatch = difference(self._experiment, membership.experiment)
            self.slot = membership.slot
            log.info("joined again", slot=membership.slot)
            return


def difference(built: Experiment, served: Experiment) -> str | None:
    """Say in which parts the learner's experiment is not the one that an actor was built from."""
    differing = [
        f"{name}: built for {getattr(built, name)!r}, the learner now has {getattr(served, name)!r}"
        for name in BUILT_FROM
        if getattr(built, name) != getattr(served, name)
    ]
    return f"{'; '.join(differing)}; start the actor anew" if differing else None
