"""Wall time from the start to two evaluations in a row of 900 or more on reacher-easy, beside stable-baselines3.

Both with action repeat 4 and 20 fresh deterministic episodes every 5,000 agent steps. Ours is `apprentice up
reacher-easy` with all its services; theirs SAC as installed, evaluated in between. A run that has not got
there after 100,000 steps counts as the time it took. One run after the other, each with the whole machine.
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
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TASK = "reacher-easy"
TARGET, ACTION_REPEAT, PERIOD, EPISODES, MAX_STEPS = 900.0, 4, 5_000, 20, 100_000
LONGEST_SECONDS = 3600.0


class Outcome(NamedTuple):
    """How a run ended."""

    seconds: float
    reached: bool
    steps: int


def run_ours(seed: int) -> Outcome:
    """Train with all services until the run finishes by itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cli", "up", "reacher-easy", "--plain", "--exit-when-done"]
        command += ["--runs", f"{folder}/runs", "--replay-checkpoints", f"{folder}/replay"]
        settings = {
            "seed": seed,
            "environment.action_repeat": ACTION_REPEAT,
            "learner.max_steps": MAX_STEPS,
            "learner.target_return": TARGET,
            "evaluation.period_steps": PERIOD,
            "evaluation.episodes": EPISODES,
            "services.evalserver_port": 0,
        }
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        started = time.time()
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, timeout=LONGEST_SECONDS)
        ended = time.time()
        (file,) = Path(folder).glob("runs/*/metrics.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    key = "evaluation/return_mean"
    evaluations = [row for row in rows if key in row["metrics"]]
    for before, after in zip(evaluations, evaluations[1:], strict=False):
        if min(before["metrics"][key], after["metrics"][key]) >= TARGET:
            return Outcome(after["time"] - started, True, after["steps"])
    return Outcome(ended - started, False, rows[-1]["steps"])


def run_sb3(seed: int) -> None:
    """Train stable-baselines3's SAC and print the outcome; for its own interpreter."""
    started = time.time()
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    from benchmarks.flat_environment import Flat

    agent = SAC("MlpPolicy", Flat(TASK, ACTION_REPEAT, seed), seed=seed)
    agent.set_logger(configure(None, []))
    last, steps, fresh = 0.0, 0, Flat(TASK, ACTION_REPEAT, 1_000_000 + seed)
    while steps < MAX_STEPS:
        agent.learn(PERIOD, reset_num_timesteps=False, log_interval=None)
        steps += PERIOD
        total = 0.0
        for _ in range(EPISODES):
            observation, _ = fresh.reset()
            over = False
            while not over:
                action, _ = agent.predict(observation, deterministic=True)
                observation, reward, _, over, _ = fresh.step(action)
                total += reward
        mean = total / EPISODES
        print(f"stable-baselines3, seed {seed}: {steps} steps, {mean:.0f}", file=sys.stderr)
        if min(last, mean) >= TARGET:
            print(json.dumps(Outcome(time.time() - started, True, steps)))
            return
        last = mean
    print(json.dumps(Outcome(time.time() - started, False, steps)))


def known_or_run(folder: Path, who: str, seed: int) -> Outcome:
    """Return an outcome, from `folder` where the run was made already, ours by this very commit."""
    from benchmarks.peers import peer_python
    from cli.machine import describe_commit

    commit = describe_commit() if who == "ours" else "installed"
    file = folder / f"{who}-{seed}-{commit}.json"
    if commit.endswith("-dirty") or not file.exists():
        if who == "ours":
            outcome = run_ours(seed)
        else:
            command = [str(peer_python("sb3")), __file__, "--sb3-seed", str(seed)]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, check=True, text=True, timeout=LONGEST_SECONDS
            )
            outcome = Outcome(*json.loads(done.stdout.splitlines()[-1]))
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(outcome))
    outcome = Outcome(*json.loads(file.read_text()))
    print(f"{who}, seed {seed}: {outcome}", file=sys.stderr)
    return outcome


def main() -> None:
    """Run both in turns and print a row for each seed and one for the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sb3-seed", type=int, help="be stable-baselines3's run of this seed")
    parser.add_argument(
        "--outcomes",
        type=Path,
        default=ROOT / "runs" / "time-to-900",
        help="folder of finished runs, which are not made again",
    )
    arguments = parser.parse_args()
    if arguments.sb3_seed is not None:
        run_sb3(arguments.sb3_seed)
        return
    found: dict[str, list[Outcome]] = {"ours": [], "sb3": []}
    for seed in arguments.seeds:
        for who, outcomes in found.items():
            outcomes.append(known_or_run(arguments.outcomes, who, seed))
    rows = []
    for index, seed in enumerate(arguments.seeds):
        ours, peer = found["ours"][index], found["sb3"][index]
        marks = "".join(
            "" if outcome.reached else f"_{who}_not_reached"
            for who, outcome in (("ours", ours), ("peer", peer))
        )
        rows.append((f"time_to_900_seed_{seed}{marks}", ours.seconds, peer.seconds))
    medians = [statistics.median(o.seconds for o in outcomes) for outcomes in found.values()]
    rows.append(("time_to_900_median", medians[0], medians[1]))
    print(
        json.dumps(
            [
                {
                    "benchmark": name,
                    "unit": "s",
                    "ours": round(ours_seconds, 1),
                    "peer_name": "stable-baselines3 SAC",
                    "peer": round(peer_seconds, 1),
                }
                for name, ours_seconds, peer_seconds in rows
            ],
            indent=None if arguments.json else 2,
        )
    )


if __name__ == "__main__":
    main()
