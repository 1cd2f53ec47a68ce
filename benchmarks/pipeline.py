"""Actor, replay and learner together on cheetah-run, beside what actor and learner reach alone on one core.

`free`: both sides run as fast as they can. `ratio 1`: one update for each step received. The system is
`apprentice up` with all its services, on two cores; policies are published every second.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.actor_throughput import measure_ours as answer_as_actor  # noqa: E402
from benchmarks.alternating import answer, contest  # noqa: E402

TASK = "cheetah-run"
LEARNER_ALONE_STEPS = 20_000
FREE = {
    "replay.updates_per_step": "null",
    "replay.segment_length": "64",
    "replay.feed_segments": "64",
    "actor.environments": "16",
}
RATIO_1 = {"replay.updates_per_step": "1.0"}
BOTH = {
    "learner.max_steps": "1000000000",
    "learner.publish_period_seconds": "1.0",
    "learner.metrics_period_seconds": "1.0",
    "replay.warmup_steps": "5000",
    "evaluation.period_steps": "1000000000",
    "checkpoint.period_steps": "1000000000",
}


def answer_as_learner(seconds: float) -> None:
    """Answer rounds with updates on batches from a ring, in one process on its own."""
    import torch

    from apprentice.config import Experiment
    from apprentice.environments import environment_spec
    from benchmarks.replay_throughput import make_segments
    from learner.learning import Learning

    torch.set_num_threads(1)
    experiment = Experiment(name="bench", task=TASK)
    spec = environment_spec(TASK, experiment.observation_keys, experiment.environment)
    learning = Learning(experiment, [spec], torch.device("cpu"))
    length = experiment.replay.segment_length
    for segment in make_segments(spec, length, LEARNER_ALONE_STEPS // length):
        learning.receive(segment)
    learning.prepare()

    def measure(seconds: float = seconds) -> float:
        started, updates = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds:
            for _ in range(10):
                learning.update()
            updates += 10
        return updates / elapsed

    measure(1.0)
    answer(measure)


def measure_together(settings: dict[str, str], seconds: float) -> dict[str, float]:
    """Run the whole system and return medians of its rates and of its policy lag."""
    rows = rows_of_the_system(BOTH | settings, seconds)
    names = ("actor/steps_per_second", "learner/updates_per_second", "learner/policy_lag_steps")
    return {
        name: statistics.median(row.metrics[name] for row in rows if name in row.metrics)
        for name in names
    }


def rows_of_the_system(settings: dict[str, str], seconds: float) -> list[Row]:
    """Run `apprentice up`, and return what it wrote of itself in `seconds` of steady training."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cli", "up", TASK, "--plain", "--runs", f"{folder}/runs"]
        command += ["--replay-checkpoints", f"{folder}/replay"]
        ports = ("replay_port", "learner_port", "evalserver_port")
        for key, value in (settings | {f"services.{name}": "0" for name in ports}).items():
            command += ["--set", f"{key}={value}"]
        with (Path(folder) / "output").open("w+") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ
            )

            def read() -> str:
                if process.poll() is not None:
                    raise RuntimeError("the system ended; its output is above")
                files = list(Path(folder).glob("runs/*/metrics.jsonl"))
                return files[0].read_text() if files else ""

            try:
                return steady_rows(read, seconds)
            except RuntimeError:
                output.seek(0)
                print(output.read(), file=sys.stderr)
                raise
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(60.0)


class Row(NamedTuple):
    """A line of metrics.jsonl."""

    time: float
    metrics: dict[str, float]


def steady_rows(read: Callable[[], str], seconds: float, period_seconds: float = 1.0) -> list[Row]:
    """Return the rows of `seconds` after ten seconds of training, out of a metrics.jsonl that is being written."""
    deadline, begun = time.monotonic() + 180.0, 0.0
    while True:
        if time.monotonic() > deadline:
            raise RuntimeError("the system did not train in time")
        time.sleep(period_seconds)
        lines = [json.loads(line) for line in read().splitlines(keepends=True) if line[-1] == "\n"]
        rows = [Row(line["time"], line["metrics"]) for line in lines]
        times = [row.time for row in rows if row.metrics.get("learner/updates", 0) > 100]
        if times:
            if not begun:
                deadline = time.monotonic() + seconds + 60.0
            begun = times[0] + 10.0
        if times and times[-1] > begun + seconds:
            return [row for row in rows if begun < row.time <= begun + seconds]


def main() -> None:
    """Measure alone and together, and print rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a measurement")
    parser.add_argument("--contestant", choices=["actor", "learner"], help="be this one, alone")
    arguments = parser.parse_args()
    if arguments.contestant == "actor":
        answer_as_actor(TASK, int(FREE["actor.environments"]), arguments.seconds)
        return
    if arguments.contestant == "learner":
        answer_as_learner(arguments.seconds)
        return
    alone: dict[str, list[float]] = {"actor": [], "learner": []}
    free: list[dict[str, float]] = []
    ratio: list[dict[str, float]] = []
    for _ in range(arguments.rounds):  # In turns, so that all meet the same machine.
        for name, values in alone.items():
            flags = ["--contestant", name, "--seconds", str(arguments.seconds / 4)]
            values.append(contest({name: [sys.executable, __file__, *flags]}, 1, 2)[name])
        free.append(measure_together(FREE, arguments.seconds))
        ratio.append(measure_together(RATIO_1, arguments.seconds))
    actor, learner = statistics.median(alone["actor"]), statistics.median(alone["learner"])
    alone_name = "alone on one core"

    def median(rows: list[dict[str, float]], name: str) -> float:
        return statistics.median(row[name] for row in rows)

    steps, updates = "actor/steps_per_second", "learner/updates_per_second"
    lag = "learner/policy_lag_steps"
    table: list[tuple[str, str, float, float | None]] = [
        ("pipeline_free_actor", "env steps/s", median(free, steps), actor),
        ("pipeline_free_learner", "updates/s", median(free, updates), learner),
        ("pipeline_ratio_1_learner", "updates/s", median(ratio, updates), learner),
        ("pipeline_ratio_1_policy_lag", "steps", median(ratio, lag), None),
    ]
    rows = [
        {
            "benchmark": name,
            "unit": unit,
            "ours": round(ours, 1),
            "peer_name": alone_name if peer else "",
            "peer": round(peer, 1) if peer else None,
        }
        for name, unit, ours, peer in table
    ]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
