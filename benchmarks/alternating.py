"""Two programs measured in turns within one run, so that both meet the same machine.

A contestant is a child process that prints `ready`, then answers every line on its standard input
with one number on its standard output: the rate of one measuring round.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

LONGEST_SECONDS = 600.0
"""A contestant that says nothing for this long is killed, which fails the benchmark."""


class Contestant:
    """A child process that measures one round when asked."""

    def __init__(
        self, command: Sequence[str], cores: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        pinned = ["taskset", "-c", ",".join(map(str, cores)), *command]
        self._process = subprocess.Popen(
            pinned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )
        self._expect("ready")

    def measure(self) -> float:
        """Run one round and return its rate."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the child."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10.0)

    def _expect(self, word: str) -> None:
        found = self._read()
        if found != word:
            raise RuntimeError(f"expected a contestant to say {word!r}, found {found!r}")

    def _read(self) -> str:
        assert self._process.stdout is not None
        late = threading.Timer(LONGEST_SECONDS, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
        if not line:
            raise RuntimeError(f"a contestant exited with {self._process.wait(10.0)}")
        return line.strip()


def answer(measure: Callable[[], float]) -> None:
    """Be a contestant: measure one round for each line of standard input, until it closes."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(measure(), flush=True)


def contest(
    commands: Mapping[str, Sequence[str | Path]], num_cores: int, rounds: int
) -> dict[str, float]:
    """Start all contestants on the same last cores; return each one's median rate."""
    cores = sorted(os.sched_getaffinity(0))[-num_cores:]
    with ExitStack() as stack:
        contestants = {}
        for name, command in commands.items():
            contestants[name] = Contestant([str(word) for word in command], cores, os.environ)
            stack.callback(contestants[name].close)
        return medians(contestants, rounds)


def medians(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, float]:
    """Let all measure in turns, `rounds` times, and return each one's median rate."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            rates[name].append(contestant.measure())
    return {name: statistics.median(values) for name, values in rates.items()}
