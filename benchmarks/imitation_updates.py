"""Updates per second of the whole learner with dac's discriminator, beside the same learner on environment rewards.

Settings of experiments/dac.yaml, for both but for the method: batch 256, 2x256 networks, discriminator 2x128 with
dropout and gradient penalty; 17 observations, 6 actions; batches drawn from a ring of 20,000 transitions and from
1,000 of the expert.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import answer, contest  # noqa: E402 - found by the line above

OBSERVATIONS, ACTIONS, LENGTH, NUM_SEGMENTS = 17, 6, 32, 625


def be_learner(method: str, threads: int, seconds: float) -> None:
    """Answer rounds with whole updates: sampling, discriminator, relabelling, SAC."""
    import torch

    from apprentice.config import Experiment
    from apprentice.experiments import load_experiment
    from apprentice.types import ArraySpec, EnvironmentSpec
    from benchmarks.made_up import begun_learner

    torch.set_num_threads(threads)

    state = {"state": ArraySpec((OBSERVATIONS,), "float32")}
    spec = EnvironmentSpec("a-b", "a-b", state, ArraySpec((ACTIONS,), "float32"), 1000, 1, 0.01)
    tree = load_experiment("dac").model_dump()
    tree["task"] = spec.task
    tree["learner"] |= {"compile": "on"}
    tree["replay"] |= {"updates_per_step": None, "warmup_steps": 100, "capacity": 100_000}
    tree["imitation"]["method"] = method
    experiment = Experiment.model_validate(tree)
    learning = begun_learner(experiment, spec, torch.device("cpu"), NUM_SEGMENTS, LENGTH)
    for _ in range(50):
        learning.update()

    def measure() -> float:
        started, num_updates = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for _ in range(20):
                learning.update()
            num_updates += 20
        return num_updates / (time.perf_counter() - started)

    answer(measure)


def main() -> None:
    """Measure both in turns and print a row, or be one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--contestant", choices=["none", "dac"])
    arguments = parser.parse_args()
    if arguments.contestant:
        be_learner(arguments.contestant, arguments.threads, arguments.seconds)
        return
    flags = ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
    rates = contest(
        {
            name: [sys.executable, __file__, "--contestant", name, *flags]
            for name in ("none", "dac")
        },
        arguments.threads,
        arguments.rounds,
    )
    row = {
        "benchmark": f"imitation_updates_dac_{arguments.threads}_threads",
        "unit": "updates/s",
        "ours": round(rates["dac"], 1),
        "peer_name": "our SAC on environment rewards",
        "peer": round(rates["none"], 1),
    }
    print(json.dumps([row], indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
