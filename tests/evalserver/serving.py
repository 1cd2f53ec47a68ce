"""A real server process over a folder of runs, and runs to serve."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from apprentice.checkpoint import write_checkpoint
from apprentice.config import EnvironmentSettings, Experiment, ReadsSettings
from apprentice.config_base import ObservationKey
from apprentice.environments import environment_spec, probe_rendering
from apprentice.evaluation import Episode, evaluate
from apprentice.networks import UniformPolicy, build_policy
from apprentice.runs import EXPERT_EPISODE, EXPERT_RECORD, RunFolder
from apprentice.trajectories import save_trajectory

ROOT = Path(__file__).resolve().parents[2]
needs_graphics = pytest.mark.skipif(probe_rendering().name == "none", reason="nothing draws here")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process over a folder of runs."""

    def __init__(
        self,
        runs: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.log = log
        place = ("--runs", str(runs), "--port", str(self.port))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "evalserver", *place, *flags],
            cwd=ROOT,
            stderr=log.open("wb"),
            env={**os.environ, **(environment or {})},
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def get(self, path: str, headers: dict[str, str] | None = None, **query: Any) -> Reply:
        url = f"http://127.0.0.1:{self.port}{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        try:
            asked = urllib.request.Request(url, headers=headers or {})  # noqa: S310
            with urllib.request.urlopen(asked, timeout=100) as reply:  # noqa: S310
                return Reply(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), error.read())

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if self.get("/readyz").status == 200:
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())


def make_run(
    root: Path,
    name: str,
    task: str,
    steps: int = 100,
    action_repeat: int = 1,
    reads: tuple[ObservationKey, ...] = ("state",),
) -> str:
    """Make a run with one untrained checkpoint; return its id."""
    environment = EnvironmentSettings(action_repeat=action_repeat)
    keys = ReadsSettings(policy=reads, critic=reads)
    experiment = Experiment(name=name, task=task, environment=environment, reads=keys)
    folder = RunFolder.create(root, experiment)
    spec = environment_spec(task, reads, experiment.environment)
    torch.manual_seed(0)
    write_checkpoint(
        folder.checkpoints,
        run=folder.path.name,
        steps=steps,
        updates=7,
        policy_version=1,
        experiment=experiment,
        environment=spec,
        tensors={"policy": build_policy(experiment, spec).state_dict()},
        state={},
    )
    return folder.path.name


def keep_episode(run: Path, steps: int, seed: int = 3) -> Episode:
    """Leave the episode that a periodic evaluation keeps in a run's folder, with its returns."""
    spec = environment_spec("reacher-easy", ("state",), EnvironmentSettings())
    policy = UniformPolicy(spec, seed=0)
    episode = evaluate(policy, "reacher-easy", [seed], max_steps=30, keep_trajectories=1).episodes[
        0
    ]
    assert episode.trajectory is not None
    place = run / "evaluations" / f"step-{steps:012d}.json"
    place.write_text(json.dumps({"steps": steps, "returns": [episode.environment_return]}))
    save_trajectory(
        place.with_suffix(".trajectory.safetensors"),
        episode.trajectory,
        task="reacher-easy",
        settings=EnvironmentSettings(),
    )
    return episode


def keep_expert(run: Path, seed: int = 5) -> Episode:
    """Leave what a learner that imitates leaves of its expert; it starts like the evaluation `seed`."""
    episode = keep_episode(run, 100, seed)
    kept = run / "evaluations" / "step-000000000100.trajectory.safetensors"
    kept.rename(run / "evaluations" / EXPERT_EPISODE)
    numbers = {"expert_return": 900.0, "random_return": 100.0, "returns": [900.0], "seed": seed}
    (run / "evaluations" / EXPERT_RECORD).write_text(json.dumps(numbers))
    return episode


def workers_of(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def busy_worker(server: Server) -> psutil.Process:
    """Wait for one of the workers to be at work."""
    before = {worker: worker.cpu_times().user for worker in workers_of(server)}
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.01)
        for worker, used in before.items():
            if worker.cpu_times().user > used + 0.05:
                return worker
    raise AssertionError("no worker is at work")
