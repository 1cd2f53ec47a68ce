"""Transitions per second that the loader of a family's demonstrations draws, by its number of workers.

16 tasks of 8 demonstrations to be shown and 8 to be imitated, of 100 steps, 8 observations and 2 actions; a
batch is one whole demonstration of every task and 16 transitions of each, as SMILe draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TASKS, TRAJECTORIES, STEPS, OBSERVATIONS, ACTIONS = 16, 8, 100, 8, 2


def batches(num_workers: int) -> Iterator[int]:
    """Yield the number of transitions of one batch after another."""
    import numpy as np

    from apprentice.demonstrations.meta_dataset import (
        MetaDemonstrationDataset,
        MetaDraw,
        TaskTrajectories,
        meta_loader,
    )
    from benchmarks.made_up import random_trajectory

    random = np.random.default_rng(0)

    context, query = (
        TaskTrajectories(
            [
                [
                    random_trajectory(random, STEPS, OBSERVATIONS, ACTIONS)
                    for _ in range(TRAJECTORIES)
                ]
                for _ in range(TASKS)
            ]
        )
        for _ in range(2)
    )
    dataset = MetaDemonstrationDataset(context, query, MetaDraw(TASKS), seed=0)
    for batch in meta_loader(dataset, num_workers=num_workers):
        yield int(batch.context.mask.sum()) + int(batch.query.mask.sum())


def main() -> None:
    """Measure with no worker, one and two in turns, and print a row of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    rates: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(arguments.rounds):
        for num_workers, found in rates.items():
            loaded = batches(num_workers)
            for _ in range(20):
                next(loaded)
            started, total = time.perf_counter(), 0
            while time.perf_counter() - started < arguments.seconds:
                total += next(loaded)
            found.append(total / (time.perf_counter() - started))
            del loaded
    rows = [
        {
            "benchmark": f"meta_loader_{num_workers}_workers",
            "unit": "transitions/s",
            "ours": round(statistics.median(found)),
            "peer_name": "",
            "peer": None,
        }
        for num_workers, found in rates.items()
    ]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
