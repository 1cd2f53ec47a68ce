"""What of an earlier run's checkpoint a new run may begin with, compared before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apprentice.checkpoint import experiment_of, read_tensors, verify_checkpoint
from apprentice.checkpoint_format import CheckpointError
from apprentice.config import Experiment, NetworkSettings
from apprentice.types import EnvironmentSpec

if TYPE_CHECKING:
    import torch

    from apprentice.checkpoint_format import Manifest

KEY = "learner.warm_start"


class CannotWarmStart(Exception):
    """The checkpoint does not fit the new run; the message says what of it does not."""


class WarmStart(NamedTuple):
    """Tensors by name."""

    policy: dict[str, torch.Tensor]
    """The policy's weights and its normaliser."""
    networks: dict[str, torch.Tensor] | None
    """Critics, their slow copies and the temperature among others; None where only the policy is taken."""


def read_warm_start(experiment: Experiment, spec: EnvironmentSpec) -> WarmStart | None:
    """Return what an experiment begins with, None for one that begins with fresh networks.

    Task and action repeat may be others, shapes may not. Raises CannotWarmStart.
    """
    settings = experiment.learner
    if settings.warm_start is None:
        return None
    path, takes_all = Path(settings.warm_start), settings.warm_start_networks == "all"
    try:
        manifest = verify_checkpoint(path)
        before = experiment_of(manifest)
        _require_fit(before, manifest, experiment, spec)
        policy = read_tensors(path, "policy", manifest)
        networks = read_tensors(path, "networks", manifest) if takes_all else None
    except CheckpointError as error:
        raise CannotWarmStart(f"{KEY}: {error}") from error
    return WarmStart(policy, networks)


def _require_fit(
    before: Experiment, manifest: Manifest, experiment: Experiment, spec: EnvironmentSpec
) -> None:
    takes_all = experiment.learner.warm_start_networks == "all"
    if takes_all and before.imitation.method == "bc":
        raise CannotWarmStart(
            f"{KEY}: expected a run that learned critics, found one with method 'bc'; take its policy alone with "
            "learner.warm_start_networks=policy"
        )
    own = EnvironmentSpec.from_dict(manifest.environment)
    pairs: dict[str, tuple[object, object]] = {
        f"network.{name}": (getattr(before.network, name), getattr(experiment.network, name))
        for name in NetworkSettings.model_fields
    }
    pairs |= {
        "reads.policy": (before.reads.policy, experiment.reads.policy),
        "action": (own.action.shape, spec.action.shape),
    }
    keys: tuple[str, ...] = experiment.reads.policy
    if takes_all:
        pairs["reads.critic"] = (before.reads.critic, experiment.reads.critic)
        keys += experiment.reads.critic
    for key in dict.fromkeys(keys):
        pairs[f"observation {key!r}"] = (own.observation.get(key), spec.observation.get(key))
    differing = [
        f"{name}: expected {new!r}, found {old!r}"
        for name, (old, new) in pairs.items()
        if old != new
    ]
    if differing:
        raise CannotWarmStart(
            f"{KEY}: the checkpoint is of other networks than this experiment's: {'; '.join(differing)}"
        )
