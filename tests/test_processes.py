"""How processes end: signals, parents, watchdogs, and logs that cannot be written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
FULL = Path("/dev/full")


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WAIT = """
import time
from apprentice.stopping import StopSignal
stop = StopSignal().install()
print("ready", flush=True)
while not stop.asked(): time.sleep(0.01)
print("asked", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    process = start(WAIT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(number)
    assert process.wait(5.0) == 128 + number


def test_a_child_dies_with_its_parent() -> None:
    process = start(
        "import os, subprocess, sys, time\n"
        "from apprentice.stopping import death_with\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
        "    preexec_fn=death_with(os.getpid()))\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    assert child.is_running()
    process.kill()
    process.wait(5.0)
    gone, alive = psutil.wait_procs([child], timeout=5.0)
    assert (len(gone), alive) == (1, [])


@pytest.mark.parametrize("beats", [True, False])
def test_a_watchdog_ends_a_process_that_hangs_with_its_stacks(beats: bool) -> None:
    process = start(
        "import time\n"
        "from apprentice.watchdog import Watchdog\n"
        "watchdog = Watchdog('test', 0.4); watchdog.start()\n"
        "def hang():\n"
        "    for _ in range(15):\n"
        f"        time.sleep(0.1); {'watchdog.beat()' if beats else 'pass'}\n"
        "hang(); watchdog.stop(); print('over')"
    )
    said, errors = process.communicate(timeout=10.0)
    if beats:
        assert (process.returncode, said) == (0, "over\n")
    else:
        assert process.returncode == 70
        assert "made no progress" in said + errors
        assert "in hang" in errors


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_loses_lines_and_not_the_process() -> None:
    code = (
        "import structlog; from apprentice.logs import configure_logging\n"
        "configure_logging('test'); structlog.get_logger().info('x' * 100_000); print('on')"
    )
    with FULL.open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=20.0,
            check=False,
        )
    assert (result.returncode, result.stdout) == (0, "on\n")


def test_laps_add_up_to_the_wall_time() -> None:
    from apprentice.profiling import Profile

    started = time.perf_counter()
    profile, rested = Profile(), 0.0
    for _ in range(50):
        before = time.perf_counter()
        time.sleep(0.002)
        profile.lap("resting")
        # Longer than the sleep that was asked for, where others want the processor.
        rested += time.perf_counter() - before
        sum(range(1000))
        profile.lap("working", 1000)
    spans = profile.snapshot()
    wall = time.perf_counter() - started
    assert set(spans) == {"resting", "working", "other"}
    assert sum(span.seconds for span in spans.values()) == pytest.approx(wall, rel=0.05)
    assert spans["working"].units == 50_000
    assert spans["resting"].seconds == pytest.approx(rested, rel=0.1)
