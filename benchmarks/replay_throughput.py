"""Transitions per second from an actor process through Reverb into a learner's ring, and what they cost.

Three processes: one writes cheetah-run segments as fast as it may, one serves, one reads and appends to
a ring of a million. CPU time and the server's memory are the operating system's figures for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from apprentice.config import Experiment
    from apprentice.types import EnvironmentSpec, Segment

CAPACITY = 1_000_000
TASK = "cheetah-run"
START_SECONDS = 60.0


def make_experiment(num_tasks: int | None = None) -> Experiment:
    """Return settings for actors that are not held back, with no checkpoint in between.

    With `num_tasks` it is a family of so many, each with a table and a ring of its own, as large in all.
    """
    from apprentice.config import Experiment

    replay = {
        "capacity": CAPACITY // (num_tasks or 1),
        "segment_length": 64,
        "feed_segments": 128,
        "checkpoint_period_seconds": 3600.0,
    }
    data: dict[str, Any] = {"name": "bench", "task": TASK, "replay": replay}
    if num_tasks is not None:
        family = {"split": "continuous", "num_train": num_tasks, "gamma": 0.99}
        data |= {"task": "cheetah_velocity", "environment": {"family": family}}
    return Experiment.model_validate(data)


def make_specs(experiment: Experiment) -> list[EnvironmentSpec]:
    """Return the specification of each task."""
    from apprentice.environments import experiment_specs

    return experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)


def make_segments(
    spec: EnvironmentSpec, length: int, number: int, num_tasks: int = 1
) -> list[Segment]:
    """Return segments of random numbers, which do not compress better than real ones, of all tasks in turns."""
    import numpy as np

    from apprentice.types import Ending, Segment

    generator = np.random.default_rng(0)
    return [
        Segment(
            {
                key: generator.standard_normal((length + 1, *array.shape), np.float32)
                for key, array in spec.observation.items()
            },
            generator.uniform(-1, 1, (length, spec.action_size)).astype(np.float32),
            generator.standard_normal((length, spec.action_size), np.float32),
            generator.uniform(0, 1, length).astype(np.float32),
            np.ones(length, np.float32),
            length,
            Ending.GOES_ON,
            task=index % num_tasks,
            actor=0,
            incarnation=1,
            episode=index,
            first_step=0,
            policy_version=1,
            context=np.zeros(0, np.int64),
        )
        for index in range(number)
    ]


def write(address: str, num_tasks: int | None) -> None:
    """Write for ever."""

    from replay.errors import ReplayUnavailable
    from replay.writer import SegmentWriter

    experiment = make_experiment(num_tasks)
    specs = make_specs(experiment)
    segments = make_segments(specs[0], experiment.replay.segment_length, 256, len(specs))
    writer = SegmentWriter(address, specs, experiment.replay)
    writer.append(segments[0], START_SECONDS)
    print("ready", flush=True)
    episode = 0
    while True:
        for segment in segments:
            episode += 1
            try:
                writer.append(segment._replace(episode=episode), 10.0)
            except ReplayUnavailable:
                return


def read(address: str, num_tasks: int | None) -> None:
    """Read into rings for ever; say how many transitions came whenever asked."""
    import threading

    import torch

    from replay.reader import FeedReader
    from replay.rings import Ring

    torch.set_num_threads(1)
    experiment = make_experiment(num_tasks)
    specs, replay = make_specs(experiment), experiment.replay
    rings = [Ring(spec, replay.capacity, replay.segment_length, "cpu") for spec in specs]
    reader = FeedReader(address, specs, replay)
    received = 0

    def tell() -> None:
        for _ in sys.stdin:
            print(received, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    while not reader.poll(1, 1.0):
        pass
    print("ready", flush=True)
    while True:
        for segment in reader.poll(64, 1.0):
            rings[segment.task].append(segment)
            received += segment.length


class Child:
    """One of the three processes."""

    def __init__(self, *command: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._process = psutil.Process(self._popen.pid)

    @property
    def _input(self) -> IO[str]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    def line(self) -> str:
        """Return the next line that the child prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().strip()

    def ask(self) -> int:
        """Return how many transitions have come."""
        self._input.write("how many\n")
        self._input.flush()
        return int(self.line())

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Return the memory in use."""
        return int(self._process.memory_info().rss)

    def kill(self) -> None:
        """End it."""
        self._popen.kill()
        self._popen.wait(10.0)


def measure(rounds: int, seconds: float, num_tasks: int | None = None) -> list[dict[str, object]]:
    """Start the three, measure `rounds` times, and return rows of the results' columns."""
    from apprentice.experiments import save_experiment
    from apprentice.ports import is_free

    port = next(port for port in range(29000, 30000) if is_free("127.0.0.1", port))
    address = f"127.0.0.1:{port}"
    children: dict[str, Child] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.yaml"
        save_experiment(make_experiment(num_tasks), file)
        where = ["--port", str(port), "--checkpoints", str(Path(folder) / "replay")]
        try:
            children["server"] = Child("-m", "replay", "--experiment", str(file), *where)
            deadline = time.monotonic() + START_SECONDS
            while is_free("127.0.0.1", port) and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(1.0)
            empty = children["server"].rss_bytes()
            for role in ("reader", "writer"):
                tasks = [] if num_tasks is None else ["--tasks", str(num_tasks)]
                command = (str(Path(__file__)), "--role", role, "--address", address, *tasks)
                children[role] = Child(*command)
            for role in ("reader", "writer"):
                if children[role].line() != "ready":
                    raise RuntimeError(f"the {role} did not start")
            return _rounds(children, rounds, seconds, empty)
        finally:
            for child in children.values():
                child.kill()


def _rounds(
    children: dict[str, Child], rounds: int, seconds: float, empty: int
) -> list[dict[str, object]]:
    reader, server = children["reader"], children["server"]
    time.sleep(2.0)
    rates: list[float] = []
    costs: dict[str, list[float]] = {role: [] for role in children}
    for _ in range(rounds):
        before, started = reader.ask(), time.monotonic()
        used = {role: child.cpu_seconds() for role, child in children.items()}
        time.sleep(seconds)
        transitions = reader.ask() - before
        rates.append(transitions / (time.monotonic() - started))
        for role, child in children.items():
            costs[role].append(1e6 * (child.cpu_seconds() - used[role]) / transitions)
    while (total := reader.ask()) < 1.2 * CAPACITY:
        time.sleep(0.2)
    print(f"{total:,} transitions in all", file=sys.stderr)
    rows = [("replay_transitions", "transitions/s", statistics.median(rates))]
    rows += [
        (f"replay_cpu_{role}", "us per transition", statistics.median(values))
        for role, values in costs.items()
    ]
    size = (server.rss_bytes() - empty) / CAPACITY
    rows.append(("replay_server_memory", "bytes per transition", size))
    return [
        {"benchmark": name, "unit": unit, "ours": round(value, 2), "peer_name": "", "peer": None}
        for name, unit, value in rows
    ]


def main() -> None:
    """Measure and print rows, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--tasks", type=int, help="tasks of a family, a table each (one task)")
    parser.add_argument("--role", choices=["writer", "reader"], help="be this process")
    parser.add_argument("--address", help="the replay server, for a role")
    arguments = parser.parse_args()
    if arguments.role:
        from apprentice.logs import configure_logging

        configure_logging(arguments.role)  # Standard output is for the answers.
        work = write if arguments.role == "writer" else read
        work(arguments.address, arguments.tasks)
        return
    rows = measure(arguments.rounds, arguments.seconds, arguments.tasks)
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
