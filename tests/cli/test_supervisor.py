from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from cli.processes import Service
from cli.supervisor import Outcome, RestartPolicy, ServiceState, Supervisor
from tests.cli.fake_services import (
    IGNORE_SIGTERM,
    WAIT,
    WAIT_AND_LEAVE_IN_ORDER,
    judge,
    read,
    service,
)

_FAST = RestartPolicy(first_delay_seconds=0.1, longest_delay_seconds=0.4, max_restarts=3)


class _Watcher:
    """Collects what happens, and signals us once something has."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.pids: dict[str, list[int]] = {}
        self.seen: list[tuple[ServiceState, ...]] = []
        self.signal_when: Callable[[], bool] = lambda: False
        self.signals = [signal.SIGINT]

    def tick(self, states: Sequence[ServiceState]) -> None:
        self.seen.append(tuple(states))
        for state in states:
            known = self.pids.setdefault(state.name, [])
            if state.pid is not None and state.pid not in known:
                known.append(state.pid)
        if self.signals and self.signal_when():
            os.kill(os.getpid(), self.signals.pop(0))


def _run(
    logs: Path, services: Sequence[Service], watcher: _Watcher, seconds: float | None = None
) -> Outcome:
    supervisor = Supervisor(services, logs, judge, _FAST, watcher.events.append, watcher.tick)
    outcome = supervisor.run(seconds)
    living = [p for p in psutil.Process().children(recursive=True) if p.status() != "zombie"]
    assert living == []
    return outcome


def test_crash_is_restarted_with_growing_delays_until_the_breaker_ends_it(tmp_path: Path) -> None:
    watcher = _Watcher()
    crash = "import sys; print('the reason', flush=True); sys.exit(3)"
    outcome = _run(tmp_path, [service("actor-0", crash), service("replay", WAIT)], watcher)
    assert outcome.kind == "failed"
    assert outcome.culprit == "actor-0"
    assert outcome.exit_code == 3
    assert "given up after 3 restarts within 10 minutes" in outcome.reason
    assert outcome.last_lines == ("the reason",) * 4
    delays = [event.split(" again in ")[1].split(" s ")[0] for event in watcher.events[:3]]
    assert delays == ["0.1", "0.2", "0.4"]


def test_restarted_service_goes_on_with_a_new_process_and_the_same_log(tmp_path: Path) -> None:
    watcher = _Watcher()
    flag = tmp_path / "second"
    code = f"""
import os, pathlib, time
flag = pathlib.Path({str(flag)!r})
print('start', flush=True)
if not flag.exists():
    flag.touch()
    os.kill(os.getpid(), 9)
time.sleep(60)
"""
    watcher.signal_when = lambda: read(tmp_path / "learner.log").count("start") == 2
    outcome = _run(tmp_path, [service("learner", code)], watcher)
    assert outcome == Outcome("interrupted", "SIGINT")
    assert "SIGKILL" in watcher.events[0]
    assert watcher.seen[-2][0].restarts == 1


def test_healthy_life_resets_the_back_off(tmp_path: Path) -> None:
    watcher = _Watcher()
    policy = RestartPolicy(
        first_delay_seconds=0.05, healthy_seconds=0.2, max_restarts=3, window_seconds=60
    )
    code = "import time; time.sleep(0.4); raise SystemExit(1)"
    Supervisor([service("actor-0", code)], tmp_path, judge, policy, watcher.events.append).run()
    assert [" in 0.05 s" in event for event in watcher.events] == [True, True, True, False]


def test_configuration_error_stops_everything_without_restart(tmp_path: Path) -> None:
    watcher = _Watcher()
    broken = "import sys; print('actor.num_actor: did you mean num_actors?'); sys.exit(78)"
    outcome = _run(tmp_path, [service("replay", WAIT), service("learner", broken)], watcher)
    assert (outcome.kind, outcome.culprit, outcome.exit_code) == ("failed", "learner", 78)
    assert outcome.last_lines == ("actor.num_actor: did you mean num_actors?",)
    assert len(watcher.pids["replay"]) == 1


def test_evaluation_server_stays_when_the_run_has_finished(tmp_path: Path) -> None:
    watcher = _Watcher()
    services = [
        service("replay", WAIT_AND_LEAVE_IN_ORDER, stop_stage=1),
        service("learner", "import time; time.sleep(0.3)"),
        service("actor-0", WAIT_AND_LEAVE_IN_ORDER),
        service("evalserver", WAIT_AND_LEAVE_IN_ORDER, outlives_run=True),
    ]

    def others_have_ended() -> bool:
        replay, learner, actor, evalserver = watcher.seen[-1]
        ended = all(state.state == "ended" for state in (replay, learner, actor))
        return ended and evalserver.state == "running"

    watcher.signal_when = others_have_ended
    outcome = _run(tmp_path, services, watcher)
    assert outcome == Outcome("finished", "SIGINT")
    assert len(watcher.pids["actor-0"]) == 1


def test_finished_run_ends_by_itself_where_nothing_outlives_it(tmp_path: Path) -> None:
    services = [service("learner", "pass"), service("evalserver", WAIT_AND_LEAVE_IN_ORDER)]
    assert _run(tmp_path, services, _Watcher()).kind == "finished"


def test_replay_is_told_to_stop_only_when_its_clients_have_gone(tmp_path: Path) -> None:
    stamp = "import pathlib, signal, sys, time\n"
    leave = "signal.signal(signal.SIGTERM, lambda *_: (print(time.monotonic()), sys.exit(0)))\n"
    slow = leave.replace("print", "time.sleep(0.7), print")
    ready = "print('ready', flush=True)\ntime.sleep(60)"
    services = [
        service("replay", stamp + leave + ready, stop_stage=1),
        service("learner", stamp + slow + ready),
    ]
    watcher = _Watcher()
    logs = [tmp_path / "replay.log", tmp_path / "learner.log"]
    watcher.signal_when = lambda: all("ready" in read(log) for log in logs)
    _run(tmp_path, services, watcher)
    replay_left, learner_left = (float(log.read_text().split()[1]) for log in logs)
    assert learner_left < replay_left


def test_service_that_ignores_sigterm_is_killed_at_its_deadline(tmp_path: Path) -> None:
    watcher = _Watcher()
    watcher.signal_when = lambda: "ready" in read(tmp_path / "learner.log")
    begun = time.monotonic()
    outcome = _run(tmp_path, [service("learner", IGNORE_SIGTERM, stop_seconds=0.5)], watcher)
    assert outcome.kind == "interrupted"
    assert time.monotonic() - begun < 5
    assert any("SIGKILL" in event for event in watcher.events)


def test_second_signal_kills_at_once(tmp_path: Path) -> None:
    watcher = _Watcher()
    watcher.signals = [signal.SIGTERM, signal.SIGINT]
    watcher.signal_when = lambda: "ready" in read(tmp_path / "learner.log")
    begun = time.monotonic()
    outcome = _run(tmp_path, [service("learner", IGNORE_SIGTERM, stop_seconds=60)], watcher)
    assert outcome == Outcome("killed", "SIGINT")
    assert time.monotonic() - begun < 10


def test_what_a_crashed_service_left_behind_is_killed_with_it(tmp_path: Path) -> None:
    watcher = _Watcher()
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)'])
print(child.pid, flush=True)
sys.exit(78)
"""
    _run(tmp_path, [service("learner", code)], watcher)
    grandchild = int((tmp_path / "learner.log").read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(grandchild) and time.monotonic() < deadline:
        if psutil.Process(grandchild).status() == "zombie":
            break  # Whoever adopted it has yet to reap it.
        time.sleep(0.02)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie"


def test_time_limit_stops_in_order(tmp_path: Path) -> None:
    outcome = _run(tmp_path, [service("learner", WAIT)], _Watcher(), seconds=0.5)
    assert outcome.kind == "interrupted"


def test_signal_handlers_of_before_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    _run(tmp_path, [service("learner", "pass")], _Watcher())
    assert signal.getsignal(signal.SIGINT) is before


def test_supervisor_needs_next_to_no_processor_time(tmp_path: Path) -> None:
    before = time.process_time()
    _run(tmp_path, [service(f"actor-{n}", WAIT) for n in range(4)], _Watcher(), seconds=3.0)
    assert time.process_time() - before < 0.3
