"""Replay, learner and actor as processes of their own, with a network between them that can fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from apprentice.experiments import load_experiment
from apprentice.healthcheck import find_problem
from apprentice.rpc import LearnerClient
from apprentice.runs import RunFolder
from replay.locks import free_port
from tests.faults.relay import Relay
from tests.test_exporter import scrape

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180.0
SETTINGS = (
    "learner.max_steps=100000000",
    "learner.publish_period_seconds=0.5",
    "replay.updates_per_step=0.1",
    "replay.capacity=100000",
    "replay.warmup_steps=500",
    "network.hidden_size=256",
    "actor.max_policy_age_seconds=10",
    "checkpoint.period_steps=1000000",
    "evaluation.period_steps=100000000",
)


class ServiceProcess:
    """One `python -m SERVICE` with its log and its port for Prometheus."""

    def __init__(
        self, name: str, log: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log, self.metrics_port = name, log, free_port()
        command = [sys.executable, "-m", name, *flags]
        command += ["--metrics", f"127.0.0.1:{self.metrics_port}"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stderr=output, cwd=ROOT, env={**os.environ, **(environment or {})}
            )

    def problem(self) -> str | None:
        """Return what the service's health check says."""
        return find_problem(f"http://127.0.0.1:{self.metrics_port}/healthz")

    def metric(self, name: str) -> float:
        """Return one number of the service's port."""
        found = {key: value for (key, _), value in scrape(self.metrics_port).items()}
        return found[name]

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def suspend(self) -> None:
        """Stop the process as SIGSTOP does: its connections stay open and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10.0)


class Services:
    """A run of three processes; every connection between them goes over a relay."""

    def __init__(
        self,
        folder: Path,
        settings: Sequence[str] = (),
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Start them, each in the environment that is named after it."""
        around = environments or {}
        self.experiment = load_experiment("smoke", None, (*SETTINGS, *settings))
        self.run = RunFolder.create(folder / "runs", self.experiment)
        replay_port, learner_port = free_port(), free_port()
        self.learner_to_replay = Relay(replay_port)
        self.actor_to_replay = Relay(replay_port)
        self.actor_to_learner = Relay(learner_port)
        self.relays = (self.learner_to_replay, self.actor_to_replay, self.actor_to_learner)
        experiment = ("--experiment", str(self.run.experiment))
        self.replay = ServiceProcess(
            "replay",
            folder / "replay.log",
            *experiment,
            *("--port", str(replay_port), "--checkpoints", str(folder / "replay")),
            environment=around.get("replay"),
        )
        self.learner = ServiceProcess(
            "learner",
            folder / "learner.log",
            *experiment,
            *("--run-directory", str(self.run.path), "--port", str(learner_port)),
            *("--replay", self.learner_to_replay.address),
            environment=around.get("learner"),
        )
        self.actor = ServiceProcess(
            "actor",
            folder / "actor.log",
            *("--learner", self.actor_to_learner.address),
            *("--replay", self.actor_to_replay.address),
            environment=around.get("actor"),
        )
        self.all = {one.name: one for one in (self.replay, self.learner, self.actor)}
        self.client = LearnerClient(f"127.0.0.1:{learner_port}", 5.0)

    def status(self) -> dict[str, Any]:
        """Return the run's status.json, with zeros where there is none yet."""
        try:
            found: dict[str, Any] = json.loads(self.run.status.read_text())
        except (OSError, ValueError):
            return {"steps": 0, "updates": 0, "actors": []}
        return found

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        """Poll until the condition holds; fail with all logs where a service ends or time runs out."""
        deadline = time.monotonic() + seconds
        while not condition():
            for one in self.all.values():
                assert one.process.poll() is None, f"{one.name} ended: {self.said()}"
            assert time.monotonic() < deadline, f"waited for {what} in vain: {self.said()}"
            time.sleep(0.2)

    def trains(self, seconds: float = START_SECONDS) -> None:
        """Wait until 500 more steps and 50 more updates have been made, and everybody is well."""
        before = self.status()
        self.wait(
            lambda: (
                self.status()["steps"] > before["steps"] + 500
                and self.status()["updates"] > before["updates"] + 50
            ),
            "training to go on",
            seconds,
        )
        self.wait(
            lambda: all(one.problem() is None for one in self.all.values()),
            "everybody to be well",
            seconds,
        )

    def said(self) -> str:
        """Return the ends of all logs."""
        return "".join(
            f"\n--- {one.name}\n{one.log.read_text()[-3000:]}" for one in self.all.values()
        )

    def close(self) -> None:
        self.client.close()
        for one in self.all.values():
            one.close()
        for relay in self.relays:
            relay.close()
