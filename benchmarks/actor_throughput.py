"""Environment steps per second of one actor on one core, beside stable-baselines3's collection.

Ours: the actor's own loop, with a writer that throws its segments away. Theirs: `learn` of SAC with no
gradient step, its replay buffer included. Both with a 2x256 policy; steps are the suite's control steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import answer, contest  # noqa: E402 - found by the line above

if TYPE_CHECKING:
    from apprentice.types import Segment


class DiscardingWriter:
    """Takes every segment at once and forgets it."""

    def append(self, segment: Segment, timeout_seconds: float | None = None) -> None:
        """Take a segment."""

    def flush(self, timeout_seconds: float | None = None) -> None:
        """Confirm what was taken."""


class QuietLearner:
    """A learner that is there and says nothing."""

    slot, leave, paused, mismatch, alive, age_seconds = 0, False, False, None, True, 0.0

    def latest(self) -> None:
        """No policy is newer than the one in use."""


def measure_ours(task: str, num_environments: int, seconds: float) -> None:
    """Answer rounds with the actor's loop; say on standard error where the time of each step went."""
    import torch

    from actor.acting import Actor, Connections, Limits
    from actor.fresh_policy import FreshPolicy
    from actor.membership import Progress
    from actor.segments import Origin, SegmentBuilder
    from apprentice.config import Experiment
    from apprentice.environments import make_environment
    from apprentice.networks import Policy, UniformPolicy, build_policy
    from apprentice.profiling import Profile
    from apprentice.rpc import PolicyUpdate
    from apprentice.watchdog import Watchdog

    torch.set_num_threads(1)
    torch.manual_seed(0)
    experiment = Experiment(name="actor-throughput", task=task)
    environments = [make_environment(task, seed) for seed in range(num_environments)]
    spec = environments[0].spec
    module = build_policy(experiment, spec)
    policy = FreshPolicy(Policy(module, 0), UniformPolicy(spec, 0))
    policy.take(PolicyUpdate(1, module.state_dict()))
    profile, progress = Profile(), Progress()
    for environment in environments:
        environment.profile = profile
    length = experiment.replay.segment_length
    deadline = 0.0
    actor = Actor(
        environments,
        policy,
        SegmentBuilder(spec, length, num_environments, Origin(0, incarnation=1)),
        Connections(DiscardingWriter(), QuietLearner(), QuietLearner()),
        progress,
        profile,
        Watchdog("actor", 60.0),
        Limits(max_policy_age_seconds=60.0),
        lambda: "the round is over" if time.monotonic() > deadline else None,
    )

    def measure(seconds: float = seconds) -> float:
        nonlocal deadline
        profile.lap("between rounds")
        before, started = progress.steps, time.monotonic()
        deadline = started + seconds
        actor.run(published_version=1)
        return (progress.steps - before) / (time.monotonic() - started)

    measure(1.0)
    answer(measure)
    spans = sorted(profile.snapshot().items(), key=lambda item: -item[1].seconds)
    shares = ", ".join(f"{name} {1e6 * s.seconds / progress.steps:.2f}" for name, s in spans)
    print(f"{task}, {num_environments} environments, us a step: {shares}", file=sys.stderr)


def measure_sb3(task: str, seconds: float) -> None:
    """Answer rounds with stable-baselines3's collection from one dm_control environment."""
    import gymnasium
    import numpy
    import torch
    from dm_control import suite
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    torch.set_num_threads(1)
    domain, _, name = task.partition("-")
    inner = suite.load(domain, name, task_kwargs={"random": 0})

    class Flat(gymnasium.Env):  # type: ignore[misc]
        action_space = gymnasium.spaces.Box(-1.0, 1.0, inner.action_spec().shape, numpy.float32)
        observation_space = gymnasium.spaces.Box(
            -numpy.inf,
            numpy.inf,
            (sum(int(numpy.prod(s.shape)) for s in inner.observation_spec().values()),),
            numpy.float32,
        )

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return self._flat(inner.reset()), {}

        def step(self, action: Any) -> Any:
            moment = inner.step(action)
            return self._flat(moment), moment.reward, False, moment.last(), {}

        @staticmethod
        def _flat(moment: Any) -> Any:
            parts = [numpy.ravel(value) for value in moment.observation.values()]
            return numpy.concatenate(parts).astype(numpy.float32)

    agent = SAC(
        "MlpPolicy",
        Flat(),
        learning_starts=0,
        gradient_steps=0,
        buffer_size=100_000,
        policy_kwargs={"net_arch": [256, 256]},
    )
    agent.set_logger(configure(None, []))

    def collect(num_steps: int) -> float:
        started = time.perf_counter()
        agent.learn(num_steps, log_interval=None)
        return num_steps / (time.perf_counter() - started)

    num_steps = max(200, int(seconds * collect(1000)))
    answer(lambda: collect(num_steps))


def main() -> None:
    """Measure both in turns and print rows, or be one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    parser.add_argument("--tasks", nargs="+", default=["reacher-easy", "cheetah-run"])
    parser.add_argument("--environments", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--contestant", help="be this one: sb3, or a number of environments")
    arguments = parser.parse_args()
    if arguments.contestant == "sb3":
        measure_sb3(arguments.tasks[0], arguments.seconds)
        return
    if arguments.contestant:
        measure_ours(arguments.tasks[0], int(arguments.contestant), arguments.seconds)
        return
    from benchmarks.peers import peer_python

    rows = []
    for task in arguments.tasks:
        pythons = {str(number): sys.executable for number in arguments.environments}
        flags = ["--tasks", task, "--seconds", str(arguments.seconds)]
        commands = {
            name: [python, __file__, "--contestant", name, *flags]
            for name, python in {**pythons, "sb3": peer_python("sb3")}.items()
        }
        rates = contest(commands, 1, arguments.rounds)
        rows += [
            {
                "benchmark": f"actor_steps_{task}_{name}_environments",
                "unit": "env steps/s",
                "ours": round(rates[name], 1),
                "peer_name": "stable-baselines3 SAC, collection",
                "peer": round(rates["sb3"], 1),
            }
            for name in pythons
        ]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
