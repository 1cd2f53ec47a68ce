"""Services whose clocks are days apart, in other zones, and jump while they run: nobody notices.

`tests/faults/test_clocks.py` holds who may read the time of day at all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apprentice.checkpoint import newest_checkpoint
from tests.faults.services import Services

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
COMPILER = shutil.which("gcc")
DAY_SECONDS = 86_400.0
SLEEP = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left) {
    return syscall(SYS_clock_nanosleep, clock, flags, until, left) ? errno : 0;
}
"""
"""libfaketime 0.9.10 takes the end of a sleep by the monotonic clock for a time of day; Python sleeps that way."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not LIBRARIES or COMPILER is None,
        reason="needs libfaketime and gcc: apt-get install faketime gcc",
    ),
]


class Clocks:
    """What each service takes for the time of day: ours and some days, in a file that may change."""

    def __init__(self, folder: Path, days: dict[str, float], zones: dict[str, str]) -> None:
        self._files = {name: folder / f"{name}.clock" for name in days}
        for name in days:
            self.set(name, days[name])
        source, library = folder / "sleep.c", folder / "sleep.so"
        source.write_text(SLEEP)
        subprocess.run(
            [str(COMPILER), "-shared", "-fPIC", "-o", library, source], check=True, timeout=60
        )
        self.environments = {
            name: {
                "LD_PRELOAD": f"{library} {LIBRARIES[0]}",
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_CACHE_DURATION": "1",
                # The monotonic clock is the kernel's, and jumps for nobody.
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "TZ": zones[name],
            }
            for name, file in self._files.items()
        }

    def set(self, name: str, days: float) -> None:
        stage = self._files[name].with_suffix(".stage")
        stage.write_text(f"{days * DAY_SECONDS:+.0f}\n")
        stage.replace(self._files[name])


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    zones = {
        "replay": "Asia/Kathmandu",
        "learner": "Pacific/Kiritimati",
        "actor": "Pacific/Pago_Pago",
    }
    return Clocks(tmp_path, {"replay": -1.0, "learner": 1.0, "actor": 0.0}, zones)


@pytest.fixture
def services(tmp_path: Path, clocks: Clocks) -> Iterator[Services]:
    settings = ("checkpoint.period_steps=500", "replay.checkpoint_period_seconds=2")
    services = Services(tmp_path, settings, clocks.environments)
    yield services
    services.close()


def days_ahead(services: Services) -> float:
    """Return how far ahead of ours the learner's clock is, as its metrics say."""
    last = services.run.metrics.read_text().splitlines()[-1]
    return (json.loads(last)["time"] - time.time()) / DAY_SECONDS


def test_clocks_that_differ_and_jump_disturb_nobody(services: Services, clocks: Clocks) -> None:
    services.trains()
    pids = {name: one.process.pid for name, one in services.all.items()}
    assert days_ahead(services) == pytest.approx(1.0, abs=0.01)
    for jumps in (
        {"learner": -1.0, "actor": 2.0},
        {"replay": 3.0},
        {"replay": -3.0, "learner": 0.0, "actor": -2.0},
    ):
        before = newest_steps(services)
        for name, days in jumps.items():
            clocks.set(name, days)
        services.trains()
        services.wait(lambda: newest_steps(services) > before, "a further checkpoint")  # noqa: B023
        assert days_ahead(services) == pytest.approx(jumps.get("learner", -1.0), abs=0.01)
    assert {name: one.process.pid for name, one in services.all.items()} == pids
    assert "an actor was lost" not in services.learner.log.read_text()
    assert services.replay.metric("apprentice_replay_checkpoints") > 3
    assert services.replay.metric("apprentice_replay_failed_checkpoints") == 0


def newest_steps(services: Services) -> int:
    """Return the steps of the checkpoint that a learner would go on from."""
    newest = newest_checkpoint(services.run.checkpoints)
    return 0 if newest is None else newest[1].steps
