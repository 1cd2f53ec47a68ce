"""Which actor holds which slot, and what each last said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from apprentice.profiling import Span

log = structlog.get_logger()

MAX_ACTORS = 512
"""Living at once: each holds a connection and a thread for its stream of policies."""


class SlotHeld(Exception):
    """A living incarnation holds the slot."""


class UnknownLease(Exception):
    """No living lease of this slot and incarnation."""


@dataclass
class ActorState:
    """One living actor, as of its last heartbeat."""

    slot: int
    incarnation: int
    host: str
    pid: int
    renewed: float  # time.monotonic()
    steps: int = 0
    steps_per_second: float = 0.0
    policy_version: int = 0
    faults: int = 0
    spans: Mapping[str, Span] = field(default_factory=dict)

    @property
    def heartbeat_age_seconds(self) -> float:
        """Seconds since the last heartbeat."""
        return time.monotonic() - self.renewed


class Leases:
    """Slots given out for `lease_seconds`, renewed by heartbeats; safe to use from any thread."""

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease_seconds = lease_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._actors: dict[int, ActorState] = {}

    def take(self, incarnation: int, host: str, pid: int, slot: int | None) -> ActorState:
        """Give the slot asked for, or the lowest free one; the same incarnation keeps its own.

        Raises SlotHeld.
        """
        with self._lock:
            self._expire()
            for actor in self._actors.values():
                if actor.incarnation == incarnation and slot in (None, actor.slot):
                    actor.renewed = self._clock()
                    return actor
            if slot is None:
                slot = next(n for n in range(len(self._actors) + 1) if n not in self._actors)
            holder = self._actors.get(slot)
            if holder is None and len(self._actors) >= MAX_ACTORS:
                raise SlotHeld(f"{MAX_ACTORS} actors have joined, which is as many as may")
            if holder is not None and holder.incarnation != incarnation:
                left = self.lease_seconds - (self._clock() - holder.renewed)
                raise SlotHeld(
                    f"slot {slot} is held by pid {holder.pid} on {holder.host}; it is free "
                    f"{left:.0f} s after that actor's last heartbeat, or ask for no slot"
                )
            actor = ActorState(slot, incarnation, host, pid, self._clock())
            self._actors[slot] = actor
            log.info("an actor joined", slot=slot, host=host, pid=pid)
            return actor

    def renew(self, slot: int, incarnation: int) -> ActorState:
        """Renew a lease; raise UnknownLease where it has ended or is another's."""
        with self._lock:
            self._expire()
            actor = self._actors.get(slot)
            if actor is None or actor.incarnation != incarnation:
                raise UnknownLease(f"slot {slot} is not leased to this incarnation; join again")
            actor.renewed = self._clock()
            return actor

    def end(self, slot: int, incarnation: int) -> None:
        """Take back a lease whose actor has left."""
        with self._lock:
            actor = self._actors.get(slot)
            if actor is not None and actor.incarnation == incarnation:
                del self._actors[slot]
                log.info("an actor left", slot=slot, steps=actor.steps)

    def living(self) -> tuple[ActorState, ...]:
        """Return the actors whose leases are alive, by slot."""
        with self._lock:
            self._expire()
            return tuple(self._actors[slot] for slot in sorted(self._actors))

    def _expire(self) -> None:
        now = self._clock()
        for slot, actor in list(self._actors.items()):
            if now - actor.renewed > self.lease_seconds:
                del self._actors[slot]
                log.warning(
                    "an actor was lost: no heartbeat", slot=slot, host=actor.host, pid=actor.pid
                )
