"""Kept episodes on disk: one safetensors file each, with what to draw them by in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from apprentice.config import EnvironmentSettings
from apprentice.types import Ending, Trajectory

FORMAT_VERSION = 1
LARGEST_FILE_BYTES = 4 << 30
_FIELDS = ("action", "pre_tanh_action", "environment_reward", "discount", "physics_state")


class TrajectoryError(Exception):
    """The file does not hold a trajectory that can be used; the message says why."""


class StoredTrajectory(NamedTuple):
    """A kept episode and what it was recorded with."""

    trajectory: Trajectory
    task: str
    settings: EnvironmentSettings


def save_trajectory(
    path: Path, trajectory: Trajectory, *, task: str, settings: EnvironmentSettings
) -> None:
    """Write an episode; the file appears whole or not at all."""
    tensors = {name: np.ascontiguousarray(getattr(trajectory, name)) for name in _FIELDS}
    for key, value in trajectory.observation.items():
        tensors[f"observation/{key}"] = np.ascontiguousarray(value)
    for key, value in trajectory.model_fields.items():
        tensors[f"model_fields/{key}"] = np.ascontiguousarray(value)
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "task": task,
        "settings": settings.model_dump_json(),
        "ending": str(int(trajectory.ending)),
        "seed": str(trajectory.seed),
    }
    stage = path.with_name(f".{path.name}.stage")
    with stage.open("wb") as file:
        file.write(save(tensors, metadata))
        file.flush()
        os.fsync(file.fileno())
    stage.replace(path)


def load_trajectory(path: Path) -> StoredTrajectory:
    """Read a kept episode; raise TrajectoryError where anything about it is wrong."""
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise TrajectoryError(
                f"{path.name}: expected at most {LARGEST_FILE_BYTES} bytes, found {size}"
            )
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TrajectoryError(f"{path.name}: cannot be read: {error}") from error
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise TrajectoryError(
            f"{path.name}: expected format version {FORMAT_VERSION}, found "
            f"{metadata.get('format_version')}"
        )
    missing = [name for name in _FIELDS if name not in tensors]
    if missing:
        raise TrajectoryError(f"{path.name}: expected {list(_FIELDS)}, {missing} are missing")
    length = len(tensors["action"])
    for name, value in tensors.items():
        rows = length if name in _FIELDS[:-1] else length + 1
        if not name.startswith("model_fields/") and len(value) != rows:
            raise TrajectoryError(f"{path.name}: {name}: expected {rows} rows, found {len(value)}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise TrajectoryError(f"{path.name}: {name}: expected finite numbers")

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {n[len(prefix) :]: v for n, v in tensors.items() if n.startswith(prefix)}

    try:
        settings = json.loads(metadata["settings"])
        trajectory = Trajectory(
            observation=group("observation/"),
            action=tensors["action"],
            pre_tanh_action=tensors["pre_tanh_action"],
            environment_reward=tensors["environment_reward"],
            discount=tensors["discount"],
            ending=Ending(int(metadata["ending"])),
            physics_state=tensors["physics_state"],
            model_fields=group("model_fields/"),
            seed=int(metadata["seed"]),
        )
        return StoredTrajectory(
            trajectory, metadata["task"], EnvironmentSettings.model_validate(settings)
        )
    except (KeyError, ValueError) as error:
        raise TrajectoryError(f"{path.name}: its description cannot be read: {error}") from error
