"""Checkpoints: written so that no crash leaves half of one, verified whenever they are read.

The order of a write is: a stage folder in the same parent, each file and its fsync, fsync of the
stage, rename, fsync of the parent, reading everything again, and LATEST the same way. Only then may
older ones be pruned. One process at a time writes to a folder of checkpoints (see RunFolder.lock).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
import torch
from pydantic import JsonValue, ValidationError

from apprentice.checkpoint_files import (
    collect_stale_stages,
    require_space,
    stage_name,
    sync_folder,
    write_durably,
)
from apprentice.checkpoint_format import (
    FORMAT_VERSION,
    MANIFEST,
    CheckpointError,
    CorruptCheckpoint,
    FileEntry,
    FutureCheckpoint,
    Manifest,
    PickledCheckpoint,
    encode_manifest,
    file_name,
    first_problem,
)
from apprentice.checkpoint_reading import read_tensors, verify_checkpoint
from apprentice.checkpoint_retention import (
    BestCheckpoint,
    list_checkpoints,
    pin_checkpoint,
    pinned_checkpoints,
    point_latest,
    prune_checkpoints,
    quarantine_checkpoint,
    read_best,
    record_best,
    remove_replaced,
    restore_replaced,
    set_aside,
    step_name,
    unpin_checkpoint,
)
from apprentice.checkpoint_tensors import describe_tensors, encode_tensors
from apprentice.config import Experiment
from apprentice.networks import Policy, build_policy
from apprentice.types import EnvironmentSpec

log = structlog.get_logger()

__all__ = [
    "BestCheckpoint",
    "CheckpointError",
    "CorruptCheckpoint",
    "FutureCheckpoint",
    "Manifest",
    "PickledCheckpoint",
    "collect_stale_stages",
    "experiment_of",
    "list_checkpoints",
    "load_policy",
    "newest_checkpoint",
    "pin_checkpoint",
    "pinned_checkpoints",
    "prune_checkpoints",
    "quarantine_checkpoint",
    "read_best",
    "read_tensors",
    "record_best",
    "unpin_checkpoint",
    "verify_checkpoint",
    "write_checkpoint",
]

_HEADER_ALLOWANCE = 2**16
_LIBRARIES = ("torch", "numpy", "safetensors", "mujoco", "dm_control", "dm-reverb")


def write_checkpoint(
    parent: Path,
    *,
    run: str,
    steps: int,
    updates: int,
    policy_version: int,
    experiment: Experiment,
    environment: EnvironmentSpec,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, JsonValue],
) -> Path:
    """Write, verify and announce a checkpoint; return its folder, `step-<12 digits>` in `parent`.

    `tensors` are stored one file a group; the group "policy" must be the policy module's state_dict.
    A checkpoint of the same number of steps is replaced. Raises CheckpointError, with the older ones
    untouched, where a value is not finite or cannot be stored, the disk is full, or does not answer.
    """
    path = parent / step_name(steps)
    entries = {name: describe_tensors(name, group) for name, group in tensors.items()}
    sizes = [entry.num_bytes for group in entries.values() for entry in group.values()]

    try:
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            run=run,
            steps=steps,
            updates=updates,
            policy_version=policy_version,
            experiment=experiment.model_dump(mode="json"),
            environment=json.loads(json.dumps(environment.to_dict())),  # lists for tuples
            environment_digest=environment.digest(),
            state=dict(state),
            libraries=_library_versions(),
            files={},
            tensors=entries,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    except ValidationError as error:
        raise CheckpointError(f"{path.name} cannot be written: {first_problem(error)}") from error
    try:
        parent.mkdir(parents=True, exist_ok=True)
        collect_stale_stages(parent)
        restore_replaced(parent)
        require_space(parent, sum(sizes) + _HEADER_ALLOWANCE * (1 + len(entries)))
        stage = parent / stage_name(path.name)
        try:
            _write_stage(stage, tensors, manifest)
            _move_into_place(stage, path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        _verify_written(path)
        point_latest(parent)
        remove_replaced(parent)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} could not be written: {error}; the older checkpoints are untouched"
        ) from error
    return path


def newest_checkpoint(parent: Path, *, repair: bool = True) -> tuple[Path, Manifest] | None:
    """Return the valid checkpoint with the most steps, None where there is none.

    Those that are refused are skipped with a warning. `repair` moves them into `quarantine/` and is
    for the folder's one writer; readers beside it pass False.
    """
    refused: set[str] = set()
    while True:
        if repair:
            restore_replaced(parent)
        candidates = [path for path in list_checkpoints(parent) if path.name not in refused]
        if not candidates:
            return None
        path = candidates[-1]
        try:
            return path, verify_checkpoint(path)
        except (CheckpointError, OSError) as error:
            log.warning(
                "a checkpoint was refused; trying the one before",
                checkpoint=path.name,
                reason=str(error),
            )
            damaged = isinstance(error, CorruptCheckpoint | FutureCheckpoint)
        if not (repair and damaged and quarantine_checkpoint(path)):
            refused.add(path.name)


def load_policy(path: Path, seed: int = 0) -> tuple[Policy, Manifest]:
    """Return the policy of a checkpoint, whose random stream starts from `seed`, and the manifest.

    torch's global generator is left as it was. Raises CheckpointError where anything in the
    checkpoint is not as it should be.
    """
    manifest = verify_checkpoint(path)
    experiment = experiment_of(manifest)
    spec = EnvironmentSpec.from_dict(manifest.environment)
    tensors = read_tensors(path, "policy", manifest)
    try:
        with torch.device("meta"):
            blueprint = build_policy(experiment, spec).state_dict()
        found, expected = _signature(tensors), _signature(blueprint)
        if found != expected:
            raise ValueError(_first_difference(found, expected))
    except ValueError as error:
        raise CheckpointError(
            f"{path.name}: not the policy its experiment describes: {error}"
        ) from error
    with torch.random.fork_rng(devices=()):
        policy = Policy(build_policy(experiment, spec), seed)
    policy.load(tensors)
    return policy, manifest


def experiment_of(manifest: Manifest) -> Experiment:
    """Return the experiment a checkpoint was made by; raise CheckpointError where it no longer parses."""
    try:
        return Experiment.model_validate(manifest.experiment)
    except ValidationError as error:
        raise CheckpointError(
            f"the experiment in {step_name(manifest.steps)} of {manifest.run} is not one of this version "
            f"of Apprentice: {first_problem(error)}; use the version that "
            f"made it ({manifest.created})"
        ) from error


@functools.cache
def _library_versions() -> dict[str, str]:
    """Return the versions that a checkpoint's numbers may depend on."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _write_stage(
    stage: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], manifest: Manifest
) -> None:
    stage.mkdir()
    files = {}
    for name, group in tensors.items():
        content = encode_tensors(name, group)
        files[name] = FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        write_durably(stage / file_name(name), content)
    complete = manifest.model_copy(update={"files": files})
    write_durably(stage / MANIFEST, encode_manifest(complete))
    sync_folder(stage)


def _move_into_place(stage: Path, path: Path) -> None:
    if path.exists():
        set_aside(path)
    os.rename(stage, path)
    sync_folder(path.parent)


def _verify_written(path: Path) -> None:
    try:
        verify_checkpoint(path)
    except CheckpointError as error:
        quarantine_checkpoint(path)
        restore_replaced(path.parent)
        raise CheckpointError(
            f"{path.name} did not read back as it was written: {error}"
        ) from error


def _signature(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors.items()}


def _first_difference(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    names = found.keys() | expected.keys()
    name = min(name for name in names if found.get(name) != expected.get(name))
    return f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
