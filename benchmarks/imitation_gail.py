"""Normalised return of imitation learning from 10 demonstrations, beside GAIL of the `imitation` library.

Ours is `apprentice grid main-TASK`, one run a seed, with all its services. Theirs is GAIL on PPO with the settings
that the library publishes for seals/HalfCheetah (its tuned_hps), on the very rows that our run learns from, with
as many agent steps as ours and, going on, with as much wall time as ours took, and never less of either. Only its
batch of demonstrations is smaller, where there are fewer rows than the published 8,192. Both: 40 deterministic
episodes of the final policy. One run after the other, each with the whole machine; what was finished is kept in
`--outcomes` and, of ours, in `--runs`, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from apprentice.config import Experiment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TASKS = ("cartpole-swingup", "ball_in_cup-catch", "reacher-easy")
EXPERIMENT = "main-{task}"
PEER_NAME = "imitation 1.0.1 GAIL (PPO)"
LONGEST_SECONDS = 2 * 3600.0
LONGEST_PAUSE_SECONDS = 60.0
"""Lines of metrics that are further apart lie on both sides of a stop."""
PPO_STEPS = 4096
PEER_FIRST_SEED = 1_000_000


class Outcome(NamedTuple):
    """What was reached after `steps` agent steps and `seconds` of training."""

    steps: int
    seconds: float
    environment_return: float


class Comparison(NamedTuple):
    """One seed of one task: ours, and GAIL with our steps, and with our wall time as well."""

    ours: Outcome
    same_steps: Outcome
    same_seconds: Outcome


class Reference(NamedTuple):
    """Returns between which a task is normalised."""

    expert: float
    random: float

    def normalised(self, outcome: Outcome) -> float:
        return (outcome.environment_return - self.random) / (self.expert - self.random)


def run_gail(
    rows: Path, task: str, action_repeat: int, seed: int, least: Outcome, num_episodes: int
) -> None:
    """Train GAIL and print two outcomes, after `least`'s steps and after its seconds too; for its own interpreter."""
    import numpy
    from imitation.algorithms.adversarial.gail import GAIL
    from imitation.data.types import Transitions
    from imitation.policies.base import FeedForward32Policy, NormalizeFeaturesExtractor
    from imitation.rewards.reward_nets import BasicRewardNet, NormalizedRewardNet
    from imitation.util.networks import RunningNorm
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from benchmarks.flat_environment import Flat

    with numpy.load(rows) as stored:
        arrays = {name: stored[name] for name in ("obs", "acts", "next_obs", "dones")}
    demonstrations = Transitions(infos=numpy.array([{}] * len(arrays["obs"])), **arrays)
    environments = DummyVecEnv([lambda: Flat(task, action_repeat, seed)])
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
        seed=seed,
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
        log_dir=rows.parent / "log",
    )
    started, evaluating, made = time.monotonic(), 0.0, 0
    outcomes: list[Outcome] = []
    while len(outcomes) < 2:
        trainer.train(PPO_STEPS)
        made += PPO_STEPS
        spent = time.monotonic() - started - evaluating
        reached = 0 if made < least.steps else 1 + (spent >= least.seconds)
        if len(outcomes) < reached:
            begun = time.monotonic()
            fresh = Flat(task, action_repeat, PEER_FIRST_SEED)
            value = _mean_return(learner, fresh, num_episodes)
            outcomes += [Outcome(made, spent, value)] * (reached - len(outcomes))
            evaluating += time.monotonic() - begun
            print(f"GAIL on {task}, seed {seed}: {outcomes[-1]}", file=sys.stderr)
    print(json.dumps(outcomes))


def _mean_return(learner: Any, environment: Any, num_episodes: int) -> float:
    total = 0.0
    for _ in range(num_episodes):
        observation, _ = environment.reset()
        over = False
        while not over:
            action, _ = learner.predict(observation, deterministic=True)
            observation, environment_reward, _, over, _ = environment.step(action)
            total += environment_reward
    return total / num_episodes


def run_ours(name: str, experiment: Experiment, runs: Path, num_episodes: int) -> Outcome:
    """Train with all services, or go on with what is there; evaluate the final policy."""
    from cli.grid import find_entries

    command = [sys.executable, "-m", "cli", "grid", name, "--variant", str(experiment.variant)]
    command += ["--plain", "--runs", str(runs.absolute())]
    command += ["--replay-checkpoints", str(runs.absolute().parent / "replay-checkpoints")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, timeout=LONGEST_SECONDS)
    (entry,) = [e for e in find_entries(name, runs) if e.experiment == experiment]
    if entry.folder is None or entry.state != "finished":
        raise SystemExit(
            f"{name}, seed {experiment.seed}: stopped; the same command goes on with it"
        )
    from apprentice.checkpoint import newest_checkpoint
    from cli.report import return_of

    found = newest_checkpoint(entry.folder.checkpoints, repair=False)
    assert found is not None
    lines = [json.loads(line) for line in (entry.folder.path / "metrics.jsonl").open()]
    value = return_of(found[0], experiment, num_episodes)
    return Outcome(lines[-1]["steps"], trained_seconds([line["time"] for line in lines]), value)


def trained_seconds(times: Sequence[float]) -> float:
    """Return the time between lines of metrics, without the pauses of a run that was stopped."""
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    return sum(gap for gap in gaps if 0.0 < gap < LONGEST_PAUSE_SECONDS)


def run_theirs(experiment: Experiment, ours: Outcome, num_episodes: int) -> list[Outcome]:
    """Train GAIL on the rows of our run, in its own interpreter."""
    import numpy as np
    import torch

    from apprentice.environments import environment_spec
    from benchmarks.peers import peer_python
    from learner.demonstrated import load_demonstrated

    spec = environment_spec(experiment.task, ("state",), experiment.environment)
    loaded = load_demonstrated(experiment, spec, torch.device("cpu"))
    assert loaded is not None
    train = loaded[0].train
    every = train.transitions(torch.arange(train.num_rows))
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        np.savez(
            rows,
            obs=every.observation["state"].numpy(),
            acts=every.action.numpy(),
            next_obs=every.next_observation["state"].numpy(),
            dones=every.discount.numpy() == 0.0,
        )
        command = [str(peer_python("imitation")), __file__, "--gail", str(rows), experiment.task]
        command += [
            str(spec.action_repeat),
            str(experiment.seed),
            json.dumps(ours),
            str(num_episodes),
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, timeout=LONGEST_SECONDS
        )
    return [Outcome(*outcome) for outcome in json.loads(done.stdout.splitlines()[-1])]


def compare(name: str, experiment: Experiment, arguments: argparse.Namespace) -> Comparison:
    """Return both outcomes of one seed, from `--outcomes` where they are there already."""
    num_episodes = arguments.episodes
    settings = f"{num_episodes} {experiment.model_dump_json()}"
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    file = arguments.outcomes / f"{experiment.task}-seed-{experiment.seed}-{digest}.json"
    found: list[Outcome] = []
    if file.exists():
        found = [Outcome(*outcome) for outcome in json.loads(file.read_text())]
    if not found:
        found = _kept(file, [run_ours(name, experiment, arguments.runs, num_episodes)])
    if len(found) == 1:
        found = _kept(file, [*found, *run_theirs(experiment, found[0], num_episodes)])
    comparison = Comparison(*found)
    print(f"{experiment.task}, seed {experiment.seed}: {comparison}", file=sys.stderr)
    return comparison


def _kept(file: Path, outcomes: list[Outcome]) -> list[Outcome]:
    file.parent.mkdir(parents=True, exist_ok=True)
    stage = file.with_suffix(".stage")
    stage.write_text(json.dumps(outcomes))
    stage.replace(file)
    return outcomes


def rows_of(
    task: str, reference: Reference, comparisons: dict[int, Comparison]
) -> list[dict[str, Any]]:
    """Return a row for each seed and budget, with steps and seconds, and one for the means over seeds."""
    rows = []
    for budget in ("same_steps", "same_seconds"):
        pairs = {seed: (one.ours, getattr(one, budget)) for seed, one in comparisons.items()}
        for seed, (ours, theirs) in pairs.items():
            spent = "_".join(
                f"{who}_{outcome.steps}_steps_{outcome.seconds:.0f}_s"
                for who, outcome in (("ours", ours), ("gail", theirs))
            )
            values = [reference.normalised(ours)], [reference.normalised(theirs)]
            rows.append(_row(f"gail_{task}_{budget}_seed_{seed}_{spent}", *values))
        means = ([reference.normalised(pair[n]) for pair in pairs.values()] for n in (0, 1))
        rows.append(_row(f"gail_{task}_{budget}_mean_of_{len(pairs)}", *means))
    return rows


def _row(name: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    return {
        "benchmark": name,
        "unit": "normalised return",
        "ours": round(statistics.fmean(ours), 3),
        "peer_name": PEER_NAME,
        "peer": round(statistics.fmean(theirs), 3),
    }


def reference_of(task: str) -> Reference:
    """Return what the demonstrations' file says of its expert and of random actions."""
    from apprentice.demonstrations.choosing import find_demonstrations
    from apprentice.demonstrations.reading import read_demonstrations

    metadata = read_demonstrations(find_demonstrations(task, task)).metadata
    assert metadata.expert is not None
    assert metadata.expert.return_mean is not None
    assert metadata.random_return is not None
    return Reference(metadata.expert.return_mean, metadata.random_return)


def main() -> None:
    """Run both on each task and seed, in turns, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--experiment", default=EXPERIMENT, help="name or path of ours, with {task} in it"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of our runs")
    parser.add_argument("--outcomes", type=Path, default=ROOT / "runs" / "imitation-gail")
    parser.add_argument("--episodes", type=int, default=40, help="of each evaluation")
    parser.add_argument("--gail", nargs=6, metavar="VALUE", help="be GAIL's run")
    arguments = parser.parse_args()
    if arguments.gail is not None:
        file, task, repeat, seed, ours, num = arguments.gail
        least = Outcome(*json.loads(ours))
        run_gail(Path(file), task, int(repeat), int(seed), least, int(num))
        return
    from apprentice.experiments import expand

    found: dict[str, dict[int, Comparison]] = {task: {} for task in arguments.tasks}
    for seed in arguments.seeds:  # so that a benchmark that is stopped has whole seeds
        for task in arguments.tasks:
            name = arguments.experiment.format(task=task)
            experiments = [one for one in expand(name) if one.seed == seed]
            if not experiments:
                raise SystemExit(f"{name}: expected a variant with seed {seed}, found none")
            found[task][seed] = compare(name, experiments[0], arguments)
    rows = [row for task in found for row in rows_of(task, reference_of(task), found[task])]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
