"""One command from nothing to a policy that is shown a task it never learned: expert, demonstrations, learner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apprentice.checkpoint import newest_checkpoint, read_tensors
from apprentice.demonstrations.context import read_context
from apprentice.family_evaluation import read_family_evaluation
from apprentice.runs import RunFolder

ROOT = Path(__file__).resolve().parents[2]
EXPERT = """
task: reacher_goal
environment:
  family: {gamma: 0.98, split: continuous, num_train: 3, num_validation: 2, num_test: 2}
reads: {policy: [state, task_parameters], critic: [state, task_parameters]}
network: {hidden_size: 32, normalise_observations: true}
sac: {gamma: 0.98, batch_size: 48}
replay: {warmup_steps: 400, updates_per_step: 0.1, segment_length: 50, feed_segments: 8, capacity: 5000}
actor: {environments: 4}
learner: {max_steps: 1200, compile: "off", publish_period_seconds: 0.2, metrics_period_seconds: 0.5}
checkpoint: {period_steps: 600}
evaluation: {period_steps: 1200, episodes: 1}
services: {evalserver_port: 0}
"""
LEARNER = """
extends: expert
reads: {{policy: [state, latent], critic: [state, latent], discriminator: [state, latent]}}
context: {{hidden_size: 16, latent_size: 3, most: 2}}
imitation:
  method: dac
  demonstrations: {{file: {out}, expert: {expert}, recorded: 2}}
"""


def up(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "cli", "up", *arguments, "--exit-when-done", "--plain"]
    command += ["--runs", str(folder / "runs"), "--replay-checkpoints", str(folder / "replay")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_nothing_to_a_policy_measured_on_unseen_tasks(tmp_path: Path) -> None:
    out = tmp_path / "demonstrations" / "small"
    (tmp_path / "expert.yaml").write_text(EXPERT)
    (tmp_path / "learner.yaml").write_text(LEARNER.format(out=out, expert=tmp_path / "expert.yaml"))
    said = up(tmp_path, str(tmp_path / "learner.yaml"))
    assert "its expert expert is trained first" in said
    (path,) = (tmp_path / "runs").glob("learner-*")
    folder = RunFolder(path)
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.steps >= 1200, status.updates > 0) == ("finished", True, True)

    library = read_context(folder.context)
    assert [len(library.tasks(split)) for split in ("train", "validation", "test")] == [3, 2, 2]
    assert len(library) == 7 * 2
    found = read_family_evaluation(folder.evaluations)
    assert found is not None
    assert (found.split, found.sizes, len(found.results)) == ("test", (1, 2), 4)
    assert {result.task_id for result in found.results} == set(library.tasks("test"))

    newest = newest_checkpoint(folder.checkpoints, repair=False)
    assert newest is not None
    published = read_tensors(newest[0], "policy", newest[1])
    assert any(name.startswith("context.") for name in published)
    rows = [json.loads(line)["metrics"] for line in folder.metrics.read_text().splitlines()]
    evaluated = [row for row in rows if "evaluation/swapped_return" in row]
    assert evaluated
    assert "evaluation/probe_validation" in evaluated[-1]
    assert any("discriminator/context_gradient_norm" in row for row in rows)
