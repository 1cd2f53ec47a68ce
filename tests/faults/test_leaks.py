"""Nothing grows with the number of episodes or evaluations: memory, open files, threads."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest

from apprentice.runs import Catalogue
from tests.evalserver.serving import ROOT, make_run, needs_graphics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ANSWER_SECONDS = 300.0
NUM_EVALUATIONS = 1_000
NUM_EPISODES = 10_000
EPISODES = """
import sys
from apprentice.config import EnvironmentSettings
from apprentice.environments import make_environment
from apprentice.networks import UniformPolicy
from apprentice.rollout import rollout

task, observation = sys.argv[1], tuple(sys.argv[2].split(","))
settings = EnvironmentSettings(action_repeat=16, width=32, height=32)
environments = [make_environment(task, seed, observation, settings) for seed in range(4)]
policy = UniformPolicy(environments[0].spec, 0)
episodes = 0
for step in rollout(environments, policy.act):
    over = int((step.ending != 0).sum())
    episodes += over
    if over:
        print(episodes, flush=True)
        sys.stdin.readline()
"""


class Held(NamedTuple):
    """What a process holds at one moment."""

    resident_bytes: int
    num_files: int
    num_threads: int


def held_by(process: psutil.Process) -> Held:
    with process.oneshot():
        return Held(process.memory_info().rss, process.num_fds(), process.num_threads())


def assert_flat(
    history: list[Held], bytes_each: float, numbers: Sequence[int] | None = None
) -> None:
    """Fail where the second half of a history grows: memory by line, the rest not at all.

    `numbers` says how many had been done at each moment, where that is not one after the other.
    """
    half = len(history) // 2
    later, done = history[half:], np.array(numbers or range(len(history)))[half:]
    resident = np.array([held.resident_bytes for held in later], np.float64)
    slope = float(np.polyfit(done - done[0], resident, 1)[0])
    said = f"{slope:.0f} bytes each; {later[0]} .. {later[-1]}"
    assert slope < bytes_each, said
    assert later[-1].num_files <= max(held.num_files for held in history[:10]), said
    assert later[-1].num_threads <= max(held.num_threads for held in history[:10]), said


def test_what_grows_is_noticed() -> None:
    noise = np.random.default_rng(0).integers(-(2**20), 2**20, 300)
    level = [Held(300_000_000 + int(one), 20, 8) for one in noise]
    assert_flat(level, bytes_each=20_000)
    leaks = {
        "bytes each": [
            held._replace(resident_bytes=held.resident_bytes + 100_000 * number)
            for number, held in enumerate(level)
        ],
        "num_files=": [held._replace(num_files=20 + n // 50) for n, held in enumerate(level)],
        "num_threads=": [held._replace(num_threads=8 + n // 50) for n, held in enumerate(level)],
    }
    for sign, history in leaks.items():
        with pytest.raises(AssertionError, match=sign):
            assert_flat(history, bytes_each=20_000)


class Worker:
    """The evaluation server's worker, asked as the server asks it."""

    def __init__(self, log: Path) -> None:
        with log.open("w") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "evalserver.worker", str(psutil.Process().pid)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
            )
        self.process = psutil.Process(self.popen.pid)
        self.read()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(request).encode() + b"\n")
        self.popen.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        readable, _, _ = select.select([self.popen.stdout], [], [], ANSWER_SECONDS)
        assert readable, "the worker does not answer"
        report: dict[str, Any] = json.loads(self.popen.stdout.readline())
        media = self.popen.stdout.read(report["num_bytes"])
        assert len(media) == report["num_bytes"]
        return report

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate(timeout=10.0)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path / "log")
    yield worker
    worker.close()


@pytest.mark.parametrize("kind", ["json", pytest.param("mp4", marks=needs_graphics)])
def test_a_thousand_evaluations_leave_nothing_behind(
    tmp_path: Path, worker: Worker, kind: str
) -> None:
    runs = [make_run(tmp_path / "runs", f"run-{number}", "reacher-easy") for number in range(12)]
    catalogue = Catalogue(tmp_path / "runs")
    paths = [str(catalogue.resolve(run).path) for run in runs]  # more than it keeps at a time
    history = []
    for number in range(NUM_EVALUATIONS):
        report = worker.ask(
            {
                "paths": [paths[number % len(paths)]],
                "task": None,
                "context": None,
                "seed": number,
                "episodes": 1,
                "deterministic": True,
                "max_steps": 25,
                "format": kind,
                "width": 64,
                "height": 64,
                "fps": 25.0,
                "camera": 0,
                "deadline_seconds": 60.0,
            }
        )
        assert report["status"] == 200, report
        history.append(held_by(worker.process))
    assert_flat(history, bytes_each=10_000)


@pytest.mark.parametrize(
    ("task", "observation", "num_episodes"),
    [
        ("hopper-hop_until_fall", "state", NUM_EPISODES),  # they are short
        ("reacher-easy", "state", 1_000),
        pytest.param("reacher-easy", "pixels", 120, marks=needs_graphics),
    ],
)
def test_ten_thousand_episodes_leave_nothing_behind(
    tmp_path: Path, task: str, observation: str, num_episodes: int
) -> None:
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", EPISODES, task, observation],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert child.stdin is not None
    assert child.stdout is not None
    history: list[Held] = []
    numbers: list[int] = []
    try:
        process, episodes = psutil.Process(child.pid), 0
        while episodes < num_episodes:
            readable, _, _ = select.select([child.stdout], [], [], ANSWER_SECONDS)
            assert readable, "no episode ends"
            line = child.stdout.readline()
            assert line, (tmp_path / "log").read_text()
            episodes = int(line)
            history.append(held_by(process))
            numbers.append(episodes)
            child.stdin.write("\n")
            child.stdin.flush()
    finally:
        child.kill()
        child.communicate(timeout=10.0)
    # The observations of a reacher's episode are 1.5 KB as states, 190 KB as pixels.
    assert_flat(history, 500 if observation == "state" else 5_000, numbers)
