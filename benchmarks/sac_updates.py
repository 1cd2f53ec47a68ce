"""SAC updates per second, batch 256, 2x256, 17 observations, 6 actions, beside stable-baselines3."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import answer, contest  # noqa: E402 - found by the line above

OBSERVATIONS, ACTIONS, BATCH, NUM_BATCHES = 17, 6, 256, 64


def measure_ours(precision: str, threads: int, seconds: float) -> None:
    """Answer rounds with the learner's update, from batches in memory."""
    import torch

    from apprentice.config import Experiment
    from apprentice.types import ArraySpec, EnvironmentSpec, Transition
    from learner.sac import SAC

    torch.set_num_threads(threads)
    state = {"state": ArraySpec((OBSERVATIONS,), "float32")}
    spec = EnvironmentSpec("a-b", "a-b", state, ArraySpec((ACTIONS,), "float32"), 1000, 1, 0.01)
    experiment = Experiment.model_validate(
        {"name": "bench", "task": "a-b", "learner": {"precision": precision, "compile": "on"}}
    )
    sac = SAC(experiment, spec, torch.device("cpu"), seed=0)
    batches = [
        Transition(
            {"state": torch.randn(BATCH, OBSERVATIONS)},
            torch.rand(BATCH, ACTIONS) * 2 - 1,
            torch.zeros(BATCH, ACTIONS),
            torch.rand(BATCH),
            torch.ones(BATCH),
            {"state": torch.randn(BATCH, OBSERVATIONS)},
        )
        for _ in range(NUM_BATCHES)
    ]

    def round_of(num_updates: int) -> None:
        for number in range(num_updates):
            batch = batches[number % NUM_BATCHES]
            sac.update(batch, batch.environment_reward)

    _answer(round_of, seconds)


def measure_sb3(threads: int, seconds: float) -> None:
    """Answer rounds with stable-baselines3's SAC as installed, its replay buffer included."""
    import gymnasium
    import numpy
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    torch.set_num_threads(threads)

    class Empty(gymnasium.Env):  # type: ignore[misc]
        observation_space = gymnasium.spaces.Box(-10.0, 10.0, (OBSERVATIONS,), numpy.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), numpy.float32)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 1.0, False, False, {}

    policy = {"net_arch": [256, 256]}
    agent = SAC("MlpPolicy", Empty(), batch_size=BATCH, policy_kwargs=policy, buffer_size=20_000)
    agent.set_logger(configure(None, []))
    generator = numpy.random.default_rng(0)
    for _ in range(10_000):
        before, after = generator.normal(size=(2, 1, OBSERVATIONS)).astype("f4")
        action = generator.uniform(-1, 1, (1, ACTIONS)).astype("f4")
        agent.replay_buffer.add(before, after, action, numpy.ones(1), numpy.zeros(1), [{}])

    def round_of(num_updates: int) -> None:
        agent.train(gradient_steps=num_updates, batch_size=BATCH)

    _answer(round_of, seconds)


def _answer(round_of: Callable[[int], None], seconds: float) -> None:
    round_of(20)
    started = time.perf_counter()
    round_of(30)
    num_updates = max(20, int(seconds * 30 / (time.perf_counter() - started)))

    def measure() -> float:
        started = time.perf_counter()
        round_of(num_updates)
        return num_updates / (time.perf_counter() - started)

    answer(measure)


def main() -> None:
    """Measure both in turns and print rows, or be one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--contestant", choices=["float32", "bfloat16", "sb3"])
    arguments = parser.parse_args()
    if arguments.contestant == "sb3":
        measure_sb3(arguments.threads, arguments.seconds)
        return
    if arguments.contestant:
        measure_ours(arguments.contestant, arguments.threads, arguments.seconds)
        return
    from benchmarks.peers import peer_python

    flags = ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
    pythons = {"float32": sys.executable, "bfloat16": sys.executable, "sb3": peer_python("sb3")}
    rates = contest(
        {
            name: [python, __file__, "--contestant", name, *flags]
            for name, python in pythons.items()
        },
        arguments.threads,
        arguments.rounds,
    )
    rows = [
        {
            "benchmark": f"sac_updates_{name}_{arguments.threads}_threads",
            "unit": "updates/s",
            "ours": round(rates[name], 1),
            "peer_name": "stable-baselines3 SAC",
            "peer": round(rates["sb3"], 1),
        }
        for name in ("float32", "bfloat16")
    ]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
