"""Our imitation beside GAIL: what was finished is not made again, and rows say what each side spent."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apprentice.experiments import expand
from benchmarks import imitation_gail
from benchmarks.imitation_gail import Comparison, Outcome, Reference

ROOT = Path(__file__).resolve().parents[2]
OURS, STEPS, SECONDS = Outcome(100, 50.0, 90.0), Outcome(104, 20.4, 30.0), Outcome(208, 51.0, 40.0)
TINY = """extends: {base}
replay: {{warmup_steps: 200, updates_per_step: 0.1}}
learner: {{max_steps: 600, compile: "off", metrics_period_seconds: 1}}
evaluation: {{period_steps: 600, episodes: 1}}
checkpoint: {{period_steps: 600}}
services: {{evalserver_port: 0}}
grid: {{seed: [0]}}
"""


def test_rows_state_steps_and_seconds_of_both_and_end_with_the_mean() -> None:
    comparisons = {
        0: Comparison(OURS, STEPS, SECONDS),
        1: Comparison(OURS._replace(environment_return=70.0), STEPS, SECONDS),
    }
    rows = imitation_gail.rows_of("x", Reference(expert=110.0, random=10.0), comparisons)
    assert [(row["benchmark"], row["ours"], row["peer"]) for row in rows] == [
        ("gail_x_same_steps_seed_0_ours_100_steps_50_s_gail_104_steps_20_s", 0.8, 0.2),
        ("gail_x_same_steps_seed_1_ours_100_steps_50_s_gail_104_steps_20_s", 0.6, 0.2),
        ("gail_x_same_steps_mean_of_2", 0.7, 0.2),
        ("gail_x_same_seconds_seed_0_ours_100_steps_50_s_gail_208_steps_51_s", 0.8, 0.3),
        ("gail_x_same_seconds_seed_1_ours_100_steps_50_s_gail_208_steps_51_s", 0.6, 0.3),
        ("gail_x_same_seconds_mean_of_2", 0.7, 0.3),
    ]
    assert {row["unit"] for row in rows} == {"normalised return"}


def test_a_stopped_benchmark_goes_on_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def ours(*_: Any) -> Outcome:
        made.append("ours")
        return OURS

    def theirs(*_: Any) -> list[Outcome]:
        made.append("theirs")
        if len(made) == 2:
            raise KeyboardInterrupt
        return [STEPS, SECONDS]

    monkeypatch.setattr(imitation_gail, "run_ours", ours)
    monkeypatch.setattr(imitation_gail, "run_theirs", theirs)
    experiment = expand("main-cartpole-swingup")[0]
    arguments = argparse.Namespace(
        outcomes=tmp_path / "outcomes", runs=tmp_path / "runs", episodes=40
    )
    with pytest.raises(KeyboardInterrupt):
        imitation_gail.compare("main-cartpole-swingup", experiment, arguments)
    for _ in range(2):
        found = imitation_gail.compare("main-cartpole-swingup", experiment, arguments)
        assert found == Comparison(OURS, STEPS, SECONDS)
    assert made == ["ours", "theirs", "theirs"]
    other = experiment.model_copy(update={"seed": 1})
    imitation_gail.compare("main-cartpole-swingup", other, arguments)
    assert made == ["ours", "theirs", "theirs", "ours", "theirs"]
    assert len(list(arguments.outcomes.glob("*.json"))) == 2


def test_pauses_are_no_training() -> None:
    assert imitation_gail.trained_seconds([10.0, 15.0, 20.0, 5000.0, 5004.0]) == 14.0


def test_the_default_compares_three_tasks_over_three_seeds() -> None:
    for task in imitation_gail.TASKS:
        experiments = expand(imitation_gail.EXPERIMENT.format(task=task))
        assert [one.seed for one in experiments] == [0, 1, 2]
        assert {one.imitation.demonstrations.episodes for one in experiments} == {10}
    assert len(imitation_gail.TASKS) == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_tiny_budget_runs_end_to_end(tmp_path: Path) -> None:
    """Makes the peer's environment on first use, which takes minutes."""
    from benchmarks.peers import peer_python

    try:
        peer_python("imitation")
    except subprocess.SubprocessError as error:
        pytest.skip(f"the environment of requirements/bench-imitation.txt cannot be made: {error}")
    base = ROOT / "experiments" / "main-cartpole-swingup.yaml"
    (tmp_path / "tiny-cartpole-swingup.yaml").write_text(TINY.format(base=base))
    command = [sys.executable, str(ROOT / "benchmarks" / "imitation_gail.py"), "--json"]
    command += ["--tasks", "cartpole-swingup", "--seeds", "0", "--episodes", "2"]
    command += ["--experiment", str(tmp_path / "tiny-{task}.yaml")]
    command += ["--runs", str(tmp_path / "runs"), "--outcomes", str(tmp_path / "outcomes")]
    for _ in range(2):  # the second time nothing is left to do
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = json.loads(done.stdout)
        assert len(rows) == 4
        assert all(-0.5 < row["peer"] < 1.1 and -0.5 < row["ours"] < 1.1 for row in rows)
        assert "_ours_6" in rows[0]["benchmark"] and "_gail_4096_steps_" in rows[0]["benchmark"]
    assert len(list((tmp_path / "runs").glob("tiny-*"))) == 1
