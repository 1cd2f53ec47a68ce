"""Environment steps per second of one actor on one core: physics, policy and segments, no network.

The actor's own loop with K environments, a 2x256 policy and a writer that throws its segments away.
Steps are control steps of the suite (action repeat 1).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]

if TYPE_CHECKING:
    from apprentice.profiling import Span
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


def measure(
    task: str, num_environments: int, rounds: int, seconds: float
) -> tuple[list[float], float, dict[str, Span]]:
    """Return the rate of each round, steps per CPU second, and where the time of all of them went."""
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
    deadline = 0.0
    actor = Actor(
        environments,
        policy,
        SegmentBuilder(
            spec, experiment.replay.segment_length, num_environments, Origin(0, 0, incarnation=1)
        ),
        Connections(DiscardingWriter(), QuietLearner(), QuietLearner()),
        progress,
        profile,
        Watchdog("actor", 60.0),
        Limits(max_policy_age_seconds=60.0),
        lambda: "the round is over" if time.monotonic() > deadline else None,
    )
    rates, cpu_started, steps_started = [], 0.0, 0
    for number in range(rounds + 1):
        before, started = progress.steps, time.monotonic()
        deadline = started + (seconds if number else 1.0)
        actor.run(published_version=1)
        if number == 0:  # This round warmed up.
            cpu_started, steps_started = time.process_time(), progress.steps
        else:
            rates.append((progress.steps - before) / (time.monotonic() - started))
    cpu_rate = (progress.steps - steps_started) / (time.process_time() - cpu_started)
    return rates, cpu_rate, profile.snapshot()


def main() -> None:
    """Measure each task on one core and print rows of the results' columns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    parser.add_argument("--tasks", nargs="+", default=["reacher-easy", "cheetah-run"])
    parser.add_argument("--environments", type=int, nargs="+", default=[16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    for task in arguments.tasks:
        for num_environments in arguments.environments:
            rates, cpu_rate, spans = measure(
                task, num_environments, arguments.rounds, arguments.seconds
            )
            rows.append(
                {
                    "benchmark": f"actor_steps_{task}_{num_environments}_environments",
                    "unit": "env steps/s",
                    "ours": round(statistics.median(rates), 1),
                    "peer_name": "",
                    "peer": None,
                }
            )
            if not arguments.json:
                print_spans(task, num_environments, rates, cpu_rate, spans)
    print(json.dumps(rows, indent=None if arguments.json else 2))


def print_spans(
    task: str,
    num_environments: int,
    rates: list[float],
    cpu_rate: float,
    spans: dict[str, Span],
) -> None:
    """Say on standard error what each step's time went to.

    Steps per CPU second are what an idle core would give where others compete for this one.
    """
    steps = spans["assembling"].units
    shares = ", ".join(
        f"{name} {1e6 * span.seconds / steps:.2f}"
        for name, span in sorted(spans.items(), key=lambda item: -item[1].seconds)
    )
    print(
        f"{task}, {num_environments} environments: {min(rates):,.0f} to {max(rates):,.0f} steps/s, "
        f"{cpu_rate:,.0f} per CPU second; "
        f"microseconds a step: {shares}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
