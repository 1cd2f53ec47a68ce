"""The learner's evaluation child: results, failures, and its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from apprentice.checkpoint import write_checkpoint
from apprentice.config import Experiment
from apprentice.environments import environment_spec
from apprentice.trajectories import load_trajectory
from learner.evaluating import EvaluationResult, Evaluator
from learner.learning import Learning
from learner.resuming import checkpoint_state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = Experiment.model_validate(
        {
            "name": "test",
            "task": "reacher-easy",
            "environment": {"action_repeat": 10},
            "network": {"hidden_size": 16},
        }
    )
    spec = environment_spec(experiment.task, experiment.observation_keys, experiment.environment)
    learning = Learning(experiment, [spec], torch.device("cpu"))
    return write_checkpoint(
        tmp_path_factory.mktemp("checkpoints"),
        run="test",
        steps=10,
        updates=0,
        policy_version=1,
        experiment=experiment,
        environment=spec,
        tensors=learning.state_tensors(),
        state=checkpoint_state(learning, evaluation_returns=[], rollbacks=0),
    )


@pytest.fixture
def evaluator(tmp_path: Path) -> Iterator[Evaluator]:
    made = Evaluator(tmp_path, timeout_seconds=60.0)
    yield made
    made.close()


def await_result(evaluator: Evaluator) -> EvaluationResult:
    deadline = time.monotonic() + 90.0
    while time.monotonic() < deadline:
        result = evaluator.poll()
        if result is not None:
            return result
        time.sleep(0.05)
    raise AssertionError("no result came")


def test_evaluations_fail_one_by_one_and_the_next_one_works(
    evaluator: Evaluator, checkpoint: Path, tmp_path: Path
) -> None:
    evaluator.submit(tmp_path / "step-000000000099", 99, 2, 7)
    assert evaluator.busy
    failed = await_result(evaluator)
    assert (failed.steps, failed.returns) == (99, ())
    assert failed.error is not None
    assert not evaluator.busy

    evaluator.submit(checkpoint, 10, 2, 7)
    result = await_result(evaluator)
    assert (result.steps, result.checkpoint, result.error) == (10, checkpoint.name, None)
    stored = json.loads((tmp_path / "step-000000000010.json").read_text())
    assert stored["returns"] == list(result.returns)
    assert (stored["seeds"], stored["lengths"]) == ([7, 8], [100, 100])
    trajectory = load_trajectory(tmp_path / "step-000000000010.trajectory.safetensors")[0]
    assert len(trajectory.action) == 100

    (child,) = [p for p in psutil.Process().children() if "learner.evaluating" in p.cmdline()]
    evaluator.submit(checkpoint, 10, 500, 7)
    child.kill()
    killed = await_result(evaluator)
    assert killed.error == "the evaluation process exited with -9"

    evaluator.submit(checkpoint, 10, 2, 7)
    again = await_result(evaluator)
    assert again.returns == result.returns  # the same seeds, the same episodes

    evaluator.submit(checkpoint, 10, 10_000, 7)
    time.sleep(0.5)
    started = time.monotonic()
    evaluator.close()
    assert time.monotonic() - started < 5.0
    assert not [p for p in psutil.Process().children() if "learner.evaluating" in p.cmdline()]
