"""Keeps the processes of one run alive, and ends them all together.

One thread, one loop: it sleeps until a signal arrives (a child's death is one) or a tick has
passed. Nothing here knows what the services do; `judge` says what an exit code means.
"""

from __future__ import annotations

import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from cli.processes import Child, Service, bound_log, describe_exit, last_lines
from cli.signals import Signals

_TICK_SECONDS = 0.2
_LOG_CHECK_SECONDS = 5.0


class Verdict(Enum):
    """What the exit of a service means for the run."""

    RESTART = "restart"  # it crashed: start it again, after the back-off
    LEAVE = "leave"  # it has done its work; the others go on
    FINISH = "finish"  # the run has finished: everything ends that does not outlive it
    FAIL = "fail"  # starting it again cannot help: everything ends


class Judgement(NamedTuple):
    """A verdict, and the sentence that tells the user why."""

    verdict: Verdict
    reason: str


class Outcome(NamedTuple):
    """How the supervision ended."""

    kind: str  # "finished", "interrupted", "killed" (second Ctrl-C) or "failed"
    reason: str = ""
    culprit: str = ""  # the service that failed
    exit_code: int | None = None  # the culprit's last one
    last_lines: tuple[str, ...] = ()  # the end of the culprit's log


class ServiceState(NamedTuple):
    """One service, for the view."""

    name: str
    state: str  # "running", "restarting", "stopping" or "ended"
    pid: int | None
    restarts: int
    seconds: float  # since its start, or until its next one


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential back-off, and the breaker that ends a crash loop."""

    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 60.0
    healthy_seconds: float = 60.0
    """A service that lived for this long starts the back-off anew."""
    max_restarts: int = 6
    """More restarts than this within the window are a crash loop."""
    window_seconds: float = 600.0


@dataclass
class _Supervised:
    service: Service
    log: Path
    child: Child | None = None
    started: float = 0.0
    restart_at: float | None = None
    restarts: int = 0
    failures_in_a_row: int = 0
    restart_times: deque[float] = field(default_factory=deque)
    kill_at: float | None = None  # set once SIGTERM was sent


class Supervisor:
    """Starts services, restarts what crashes, and stops everything, leaving no process behind."""

    def __init__(
        self,
        services: Sequence[Service],
        logs: Path,
        judge: Callable[[Service, int], Judgement],
        restart_policy: RestartPolicy | None = None,
        on_event: Callable[[str], None] = lambda text: None,
        on_tick: Callable[[Sequence[ServiceState]], None] = lambda states: None,
    ) -> None:
        self._all = [_Supervised(service, logs / f"{service.name}.log") for service in services]
        self._judge = judge
        self._policy = restart_policy or RestartPolicy()
        self._on_event = on_event
        self._on_tick = on_tick
        self._outcome: Outcome | None = None  # set: everything is being stopped
        self._finished = False  # what does not outlive the run is being stopped

    def run(self, seconds: float | None = None) -> Outcome:
        """Start all services and return when none is left.

        Ctrl-C, SIGTERM, SIGHUP, or `seconds` having passed, stop everything in order; a second
        signal kills at once.
        """
        begun = time.monotonic()
        next_log_check = begun + _LOG_CHECK_SECONDS
        with Signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), (signal.SIGCHLD,)) as signals:
            try:
                for supervised in self._all:
                    self._start(supervised)
                while not self._is_over():
                    select.select([signals.readable], [], [], _TICK_SECONDS)
                    now = time.monotonic()
                    for name in signals.drain():
                        self._on_signal(name)
                    if seconds is not None and now - begun >= seconds and self._outcome is None:
                        self._outcome = Outcome("interrupted", f"{seconds:.0f} seconds have passed")
                    self._step(now)
                    if now >= next_log_check:
                        next_log_check = now + _LOG_CHECK_SECONDS
                        for supervised in self._all:
                            bound_log(supervised.log)
                    self._on_tick(self.states(now))
            finally:
                self._kill_all()
        return self._outcome or Outcome("finished")

    def states(self, now: float) -> tuple[ServiceState, ...]:
        """Return what the view shows of each service, in the order they were given."""
        return tuple(_state(supervised, now) for supervised in self._all)

    def _step(self, now: float) -> None:
        for supervised in self._all:
            if supervised.child is not None:
                code = supervised.child.exit_code()
                if code is not None:
                    self._on_exit(supervised, code, now)
            elif supervised.restart_at is not None and now >= supervised.restart_at:
                self._start(supervised)
        if self._outcome is not None:
            self._stop(self._all, now)
        elif self._finished:
            self._stop([s for s in self._all if not s.service.outlives_run], now)

    def _start(self, supervised: _Supervised) -> None:
        supervised.restart_at = None
        supervised.started = time.monotonic()
        supervised.child = Child(supervised.service, supervised.log)

    def _on_signal(self, name: str) -> None:
        if self._outcome is None:
            self._on_event(f"{name}: stopping all services (once more kills them)")
            kind = "finished" if self._finished else "interrupted"
            self._outcome = Outcome(kind, name)
        else:
            self._on_event(f"{name}: killing all services")
            self._outcome = Outcome("killed", name)
            self._kill_all()

    def _on_exit(self, supervised: _Supervised, code: int, now: float) -> None:
        name = supervised.service.name
        supervised.child = None
        leaving = self._finished and not supervised.service.outlives_run
        if supervised.kill_at is not None or self._outcome is not None or leaving:
            if code != 0:
                self._on_event(f"{name} {describe_exit(code)} while everything was being stopped")
            return
        judgement = self._judge(supervised.service, code)
        if judgement.verdict is Verdict.RESTART:
            self._schedule_restart(supervised, code, judgement.reason, now)
        elif judgement.verdict is Verdict.FAIL:
            self._fail(supervised, judgement.reason, code)
        else:
            self._on_event(f"{name}: {judgement.reason}")
            self._finished = self._finished or judgement.verdict is Verdict.FINISH

    def _schedule_restart(
        self, supervised: _Supervised, code: int, reason: str, now: float
    ) -> None:
        policy = self._policy
        name = supervised.service.name
        recent = supervised.restart_times
        while recent and now - recent[0] > policy.window_seconds:
            recent.popleft()
        if len(recent) >= policy.max_restarts:
            minutes = policy.window_seconds / 60
            text = f"{reason}; given up after {len(recent)} restarts within {minutes:g} minutes"
            self._fail(supervised, text, code)
            return
        if now - supervised.started >= policy.healthy_seconds:
            supervised.failures_in_a_row = 0
        delay = policy.first_delay_seconds * 2.0 ** min(supervised.failures_in_a_row, 30)
        delay = min(delay, policy.longest_delay_seconds)
        supervised.failures_in_a_row += 1
        supervised.restarts += 1
        supervised.restart_at = now + delay
        recent.append(now)
        self._on_event(f"{name} {reason}; starting it again in {delay:g} s (log: {supervised.log})")

    def _fail(self, supervised: _Supervised, reason: str, code: int) -> None:
        name = supervised.service.name
        self._on_event(f"{name} {reason}; stopping everything")
        if self._outcome is None:
            lines = tuple(last_lines(supervised.log))
            self._outcome = Outcome("failed", f"{name} {reason}", name, code, lines)

    def _stop(self, to_stop: Sequence[_Supervised], now: float) -> None:
        """Send SIGTERM to the lowest stage that still runs, and SIGKILL after the deadline."""
        for supervised in to_stop:
            supervised.restart_at = None
        stages = [s.service.stop_stage for s in to_stop if s.child is not None]
        for supervised in to_stop:
            child = supervised.child
            if child is None or supervised.service.stop_stage > min(stages):
                continue
            if supervised.kill_at is None:
                supervised.kill_at = now + supervised.service.stop_seconds
                child.send(signal.SIGTERM)
            elif now >= supervised.kill_at:
                child.kill()

    def _kill_all(self) -> None:
        for supervised in self._all:
            supervised.restart_at = None
            if supervised.child is not None:
                supervised.kill_at = supervised.kill_at or time.monotonic()
                with suppress(ProcessLookupError):
                    supervised.child.kill()
        for supervised in self._all:
            deadline = time.monotonic() + 5.0
            while supervised.child is not None and time.monotonic() < deadline:
                if supervised.child.exit_code() is not None:
                    supervised.child = None
                else:
                    time.sleep(0.01)

    def _is_over(self) -> bool:
        return all(s.child is None and s.restart_at is None for s in self._all)


def _state(supervised: _Supervised, now: float) -> ServiceState:
    name, restarts = supervised.service.name, supervised.restarts
    if supervised.restart_at is not None:
        return ServiceState(name, "restarting", None, restarts, supervised.restart_at - now)
    if supervised.child is None:
        return ServiceState(name, "ended", None, restarts, 0.0)
    state = "running" if supervised.kill_at is None else "stopping"
    return ServiceState(name, state, supervised.child.pid, restarts, now - supervised.started)
