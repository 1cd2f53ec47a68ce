"""Going on from a checkpoint: what it holds, and how the rings are filled again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog
import torch

from apprentice.checkpoint import Manifest, newest_checkpoint, read_tensors
from apprentice.config import Experiment
from apprentice.config_context import ENCODER
from apprentice.types import EnvironmentSpec
from learner.learning import Counters, Learning
from learner.sac import Tensors

log = structlog.get_logger()

FILES = ("policy", "networks", "optimiser", "random", "rings")
FIXED = ("task", "reads", "network", "environment")
FIXED_IN_CONTEXT = tuple(f"context.{name}" for name in ENCODER)
VERSIONS_SKIPPED = 10_000
"""Policy versions left out after a restart: more than can have been published since the checkpoint
was written and lost with the process, so that a version never names two policies."""


class CannotResume(Exception):
    """The run folder's checkpoint belongs to another experiment or environment."""


class Resumed:
    """What a checkpoint says beside the state that went into `learning`."""

    def __init__(self, path: Path, manifest: Manifest, identities: torch.Tensor) -> None:
        self.path = path
        self.manifest = manifest
        self.identities = identities
        self.policy_version = manifest.policy_version + VERSIONS_SKIPPED
        returns = manifest.state.get("evaluation_returns", [])
        self.evaluation_returns = [float(value) for value in returns]  # type: ignore[union-attr, arg-type]
        self.rollbacks = int(manifest.state.get("rollbacks", 0))  # type: ignore[arg-type]


def checkpoint_state(learning: Learning, **more: Any) -> dict[str, Any]:
    """Return the JSON part of a checkpoint: counters and what the loop adds."""
    return {
        "counters": learning.counters._asdict(),
        "normalised": learning.normalised,
        "demonstrations": learning.demonstrations,
        **more,
    }


def resume(
    checkpoints: Path, learning: Learning, experiment: Experiment, spec: EnvironmentSpec
) -> Resumed | None:
    """Load the newest valid checkpoint into `learning`; return None where there is none.

    Raises CannotResume where it was made for another environment, networks or algorithm.
    """
    found = newest_checkpoint(checkpoints)
    if found is None:
        return None
    path, manifest = found
    _refuse_differences(path, manifest, experiment, spec)
    used = manifest.state.get("demonstrations", "")
    if used != learning.demonstrations:
        raise CannotResume(
            f"{path.name} learned from demonstrations with SHA-256 {used or 'none'}, found "
            f"{learning.demonstrations or 'none'}. Start a new run, or bring the file back."
        )
    groups: dict[str, Tensors] = {name: read_tensors(path, name, manifest) for name in FILES}
    counters = Counters(**manifest.state["counters"])  # type: ignore[arg-type]
    try:
        learning.load_state(groups, counters, bool(manifest.state["normalised"]))
    except ValueError as error:
        raise CannotResume(f"{path.name}: {error}; start a new run instead") from error
    log.info("continuing from a checkpoint", path=path.name, **counters._asdict())
    return Resumed(path, manifest, groups["rings"]["identities"])


def _refuse_differences(
    path: Path, manifest: Manifest, experiment: Experiment, spec: EnvironmentSpec
) -> None:
    before = Experiment.model_validate(manifest.experiment)
    differing = [
        f"{setting}: the checkpoint has {there!r}, the experiment {here!r}"
        for setting, (there, here) in before.differences(experiment).items()
        if setting.split(".")[0] in FIXED
        or (experiment.infers_task and setting in FIXED_IN_CONTEXT)
    ]
    if not differing and manifest.environment_digest != spec.digest():
        expected = EnvironmentSpec.from_dict(manifest.environment).to_dict()
        actual = spec.to_dict()
        differing += [
            f"environment.{key}: the checkpoint has {expected[key]}, the environment {actual[key]}"
            for key in actual
            if expected[key] != actual[key]
        ]
    if differing:
        raise CannotResume(
            f"{path.name} was made for something else: {'; '.join(differing)}. "
            "Start a new run, or restore the experiment's settings."
        )
