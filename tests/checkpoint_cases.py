"""Small checkpoints for tests, made from specs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apprentice.checkpoint import (
    CorruptCheckpoint,
    load_policy,
    newest_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from apprentice.config import Experiment, NetworkSettings
from apprentice.networks import build_policy
from apprentice.types import ArraySpec, EnvironmentSpec

LOADERS: list[Callable[[Path], Any]] = [verify_checkpoint, load_policy]
SPEC = EnvironmentSpec(
    task="reacher-easy",
    task_id="reacher-easy",
    observation={"state": ArraySpec((6,), "float32")},
    action=ArraySpec((2,), "float32"),
    episode_steps=1000,
    action_repeat=1,
    step_seconds=0.02,
)
EXPERIMENT = Experiment(
    name="small",
    task="reacher-easy",
    network=NetworkSettings(hidden_size=8, num_hidden_layers=1),
)


def example_tensors(steps: int) -> dict[str, dict[str, torch.Tensor]]:
    """Groups like a learner's, with values that depend on `steps`."""
    generator = torch.Generator().manual_seed(steps)
    policy = build_policy(EXPERIMENT, SPEC).state_dict()
    return {
        "policy": {
            name: torch.randn(tensor.shape, generator=generator) for name, tensor in policy.items()
        },
        "random": {"generator": generator.get_state(), "rate_factor": torch.tensor(1.0)},
        "rings": {"identities": torch.arange(steps, steps + 12).reshape(3, 4)},
    }


def write_example(parent: Path, steps: int, **changes: Any) -> Path:
    """Write a checkpoint of `steps` agent steps; `changes` replace arguments of write_checkpoint."""
    arguments: dict[str, Any] = {
        "run": "small-0-0-20260131T120000",
        "steps": steps,
        "updates": steps // 2,
        "policy_version": 3,
        "experiment": EXPERIMENT,
        "environment": SPEC,
        "tensors": example_tensors(steps),
        "state": {"counters": {"steps": steps}, "evaluation_returns": [0.1, 900.25]},
    }
    return write_checkpoint(parent, **{**arguments, **changes})


def assert_refused(
    path: Path, error: type[Exception] = CorruptCheckpoint, match: str | None = None
) -> None:
    """Every loader refuses the checkpoint at `path`, the only one of its folder."""
    for load in LOADERS:
        with pytest.raises(error, match=match):
            load(path)
    assert newest_checkpoint(path.parent, repair=False) is None
