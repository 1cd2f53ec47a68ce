"""Normalised return of imitation learning from 10 demonstrations, beside GAIL of the `imitation` library.

Theirs is GAIL on PPO with the settings that the library publishes for seals/HalfCheetah (its tuned_hps), on the
same demonstrations, whole, with as many steps as ours had, and again with as much wall time as that took us. Only
its batch of demonstrations is smaller, where there are fewer rows than the published 8,192. Ours are the rows of
benchmarks/results/imitation.csv, made by `apprentice grid main-TASK` from fewer rows of the same episodes. Both:
40 deterministic episodes of the final policy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TASKS = ("cartpole-swingup", "ball_in_cup-catch", "reacher-easy")
NUM_DEMONSTRATIONS, NUM_EPISODES = 10, 40
LONGEST_SECONDS = 4 * 3600.0
PPO_STEPS = 4096


class Outcome(NamedTuple):
    """What GAIL reached after `steps` agent steps and `seconds` of training."""

    steps: int
    seconds: float
    environment_return: float


def run_gail(task: str, file: str, action_repeat: int, steps: int, seconds: float) -> None:
    """Train GAIL and print two outcomes: after `steps`, and after `seconds`; for its own interpreter."""
    import h5py
    import numpy
    from imitation.algorithms.adversarial.gail import GAIL
    from imitation.data.types import Transitions
    from imitation.policies.base import FeedForward32Policy, NormalizeFeaturesExtractor
    from imitation.rewards.reward_nets import BasicRewardNet, NormalizedRewardNet
    from imitation.util.networks import RunningNorm
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from benchmarks.flat_environment import Flat

    parts: dict[str, list[Any]] = {name: [] for name in ("obs", "acts", "next_obs", "dones")}
    with h5py.File(file) as stored:
        for number in range(NUM_DEMONSTRATIONS):
            episode = stored[f"episode_{number}"]
            state = episode["observations/state"][()]
            parts["obs"].append(state[:-1])
            parts["next_obs"].append(state[1:])
            parts["acts"].append(episode["actions"][()])
            parts["dones"].append(episode["terminations"][()] | episode["truncations"][()])
    arrays = {name: numpy.concatenate(values) for name, values in parts.items()}
    demonstrations = Transitions(infos=numpy.array([{}] * len(arrays["obs"])), **arrays)
    environments = DummyVecEnv([lambda: Flat(task, action_repeat, 0)])
    learner = PPO(
        FeedForward32Policy,
        environments,
        n_steps=PPO_STEPS,
        batch_size=64,
        clip_range=0.1,
        ent_coef=3.992371122209408e-06,
        gae_lambda=0.95,
        gamma=0.95,
        learning_rate=0.00026250519057717037,
        max_grad_norm=0.8,
        n_epochs=5,
        vf_coef=0.11483689492120866,
        policy_kwargs={
            "features_extractor_class": NormalizeFeaturesExtractor,
            "features_extractor_kwargs": {"normalize_class": RunningNorm},
        },
        seed=0,
    )
    reward = NormalizedRewardNet(
        BasicRewardNet(
            environments.observation_space,
            environments.action_space,
            normalize_input_layer=RunningNorm,
        ),
        RunningNorm,
    )
    trainer = GAIL(
        demonstrations=demonstrations,
        demo_batch_size=min(8192, len(arrays["obs"])),
        gen_replay_buffer_capacity=512,
        n_disc_updates_per_round=8,
        venv=environments,
        gen_algo=learner,
        reward_net=reward,
        allow_variable_horizon=True,
    )
    started, made, outcomes = time.monotonic(), 0, []
    evaluating = 0.0
    while len(outcomes) < 2:
        trainer.train(PPO_STEPS)
        made += PPO_STEPS
        spent = time.monotonic() - started - evaluating
        reached = (made >= steps) + (made >= steps and spent >= seconds)
        while len(outcomes) < reached:
            begun = time.monotonic()
            fresh = Flat(task, action_repeat, 1_000_000)
            total = 0.0
            for _ in range(NUM_EPISODES):
                observation, _ = fresh.reset()
                over = False
                while not over:
                    action, _ = learner.predict(observation, deterministic=True)
                    observation, environment_reward, _, over, _ = fresh.step(action)
                    total += environment_reward
            outcomes.append(Outcome(made, spent, total / NUM_EPISODES))
            evaluating += time.monotonic() - begun
            print(f"imitation's GAIL on {task}: {outcomes[-1]}", file=sys.stderr)
    print(json.dumps(outcomes))


def main() -> None:
    """Run GAIL on each task and print rows beside ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/imitation.csv")
    parser.add_argument("--seconds", type=float, default=330.0, help="wall time of one of our runs")
    parser.add_argument("--gail", nargs=5, metavar=("TASK", "FILE", "REPEAT", "STEPS", "SECONDS"))
    arguments = parser.parse_args()
    if arguments.gail is not None:
        task, file, repeat, steps, seconds = arguments.gail
        run_gail(task, file, int(repeat), int(steps), float(seconds))
        return
    rows = [row for task in arguments.tasks for row in measure(task, arguments)]
    print(json.dumps(rows, indent=None if arguments.json else 2))


def measure(task: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one task."""
    from apprentice.demonstrations.choosing import find_demonstrations
    from apprentice.demonstrations.reading import read_demonstrations
    from apprentice.results import read_results
    from benchmarks.peers import peer_python

    ours = [
        row
        for row in read_results(arguments.results)
        if (row.task, row.method, row.demonstrations) == (task, "dac", NUM_DEMONSTRATIONS)
    ]
    if not ours:
        raise SystemExit(f"expected rows of dac on {task} in {arguments.results}, found none")
    path = find_demonstrations(task, task)
    spec = read_demonstrations(path).metadata.spec
    assert spec is not None
    steps = ours[0].frames // spec.action_repeat
    command = [str(peer_python("imitation")), __file__, "--gail", task, str(path)]
    command += [str(spec.action_repeat), str(steps), str(arguments.seconds)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, timeout=LONGEST_SECONDS
    )
    best, worst = ours[0].expert_return, ours[0].random_return
    assert best is not None
    assert worst is not None
    values = [row.normalised for row in ours if row.normalised is not None]
    rows = []
    for name, outcome in zip(("steps", "seconds"), json.loads(done.stdout), strict=True):
        reached = Outcome(*outcome)
        rows.append(
            {
                "benchmark": f"imitation_{task}_same_{name}_{reached.steps}_steps_{reached.seconds:.0f}_s",
                "unit": "normalised return",
                "ours": round(sum(values) / len(values), 3),
                "peer_name": "imitation GAIL (PPO)",
                "peer": round((reached.environment_return - worst) / (best - worst), 3),
            }
        )
    return rows


if __name__ == "__main__":
    main()
