"""`docker compose up --scale actor=2` beside `apprentice up` with two actors, on cheetah-run.

One update for each step received, as by default. The two are started in turns and measured over the same
seconds of steady training; the images must have been built (`docker compose build`) from the same sources.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pipeline import BOTH, RATIO_1, TASK, Row, rows_of_the_system, steady_rows  # noqa: E402
from replay.locks import free_port  # noqa: E402

SETTINGS = BOTH | RATIO_1
POLL_SECONDS = 5.0
"""Looking into a container costs some of the processors that are measured."""


class Rates(NamedTuple):
    """What a system did per second."""

    steps: float
    updates: float


class Containers:
    """A compose project of its own, of two actors; its volumes keep what torch compiled."""

    def __init__(self) -> None:
        version_2 = ["docker", "compose", "version"]
        has_version_2 = (
            shutil.which("docker") is not None
            and not subprocess.run(version_2, capture_output=True, check=False).returncode
        )
        client = ["docker", "compose"] if has_version_2 else ["docker-compose"]
        self._command = [*client, "--project-name", f"apprentice-bench-{os.getpid()}"]
        self._port = free_port()

    def measure(self, seed: int, seconds: float) -> Rates:
        """Train a new run and stop again."""
        settings = " ".join(
            f"{key}={value}" for key, value in (SETTINGS | {"seed": str(seed)}).items()
        )
        try:
            self._compose(("up", "--detach", "--scale", "actor=2"), settings)
            read = ("exec", "-T", "learner", "cat", "/runs/.current/metrics.jsonl")
            return rates_of(
                steady_rows(
                    lambda: self._compose(read, settings, check=False), seconds, POLL_SECONDS
                )
            )
        except RuntimeError:
            print(self._compose(("logs", "--tail=50"), settings, check=False), file=sys.stderr)
            raise
        finally:
            self._compose(("down",), settings)

    def close(self) -> None:
        """Throw the volumes away."""
        self._compose(("down", "--volumes"), "")

    def _compose(self, words: Sequence[str], settings: str, check: bool = True) -> str:
        environment = {
            **os.environ,
            "EXPERIMENT": TASK,
            "SETTINGS": settings,
            "EVALSERVER_PORT": str(self._port),
        }
        done = subprocess.run(
            [*self._command, *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600.0,
            check=False,
        )
        if done.returncode and check:
            raise RuntimeError(f"compose {' '.join(words)}:\n{done.stderr[-4000:]}")
        return "" if done.returncode else done.stdout


def rates_of(rows: Sequence[Row]) -> Rates:
    """Return what was done between the first row and the last, per second."""
    first, last = rows[0], rows[-1]
    seconds = last.time - first.time
    return Rates(
        *(
            (last.metrics[name] - first.metrics[name]) / seconds
            for name in ("learner/steps", "learner/updates")
        )
    )


def main() -> None:
    """Measure both in turns, and print rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a measurement")
    arguments = parser.parse_args()
    containers = Containers()
    inside: list[Rates] = []
    outside: list[Rates] = []
    try:
        for seed in range(arguments.rounds):
            settings = SETTINGS | {"seed": str(seed), "actor.num_actors": "2"}
            outside.append(rates_of(rows_of_the_system(settings, arguments.seconds)))
            inside.append(containers.measure(seed, arguments.seconds))
            print(
                f"round {seed}: containers {inside[-1]}, processes {outside[-1]}", file=sys.stderr
            )
    finally:
        containers.close()
    rows = [
        {
            "benchmark": f"containers_two_actors_{name}",
            "unit": unit,
            "ours": round(statistics.median(getattr(rates, name) for rates in inside), 1),
            "peer_name": "apprentice up",
            "peer": round(statistics.median(getattr(rates, name) for rates in outside), 1),
        }
        for name, unit in (("steps", "env steps/s"), ("updates", "updates/s"))
    ]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
