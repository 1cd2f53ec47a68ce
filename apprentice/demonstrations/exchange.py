"""Demonstrations as others keep them: plain numpy archives, and folders that `minari` opens."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from apprentice.demonstrations.format import (
    LARGEST_UNPACKED_BYTES,
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
)
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.types import Ending, Trajectory

_STEPS = ("action", "pre_tanh_action", "environment_reward", "discount")


def export_npz(path: Path, demonstrations: DemonstrationSet) -> None:
    """Write one array a field, episodes one after the other, with `lengths` [N] to cut them by.

    Observations have one row more an episode than steps.
    """
    episodes = demonstrations.trajectories
    arrays = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in _STEPS}
    for key in episodes[0].observation:
        arrays[f"observation.{key}"] = np.concatenate([e.observation[key] for e in episodes])
    arrays["physics_state"] = np.concatenate([e.physics_state for e in episodes])
    arrays["lengths"] = np.array([len(e.action) for e in episodes])
    arrays["ending"] = np.array([int(e.ending) for e in episodes])
    arrays["seed"] = np.array([e.seed for e in episodes])
    for key in episodes[0].model_fields:
        arrays[f"model_fields.{key}"] = np.stack([e.model_fields[key] for e in episodes])
    metadata = demonstrations.metadata.model_dump_json().encode()
    arrays["metadata"] = np.frombuffer(metadata, np.uint8)
    stage = path.with_name(f".{path.name}.stage")
    try:
        with stage.open("wb") as file:
            np.savez(file, **arrays)
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)


def import_npz(path: Path) -> DemonstrationSet:
    """Return what `export_npz` wrote; raise DemonstrationError where it is something else.

    What the arrays hold is checked when the set is written and read as HDF5.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_modest(path, archive)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _from_arrays(arrays)
    except KeyError as error:
        raise DemonstrationError(f"{path}: expected an array {error}, found none") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DemonstrationError(f"{path}: expected a numpy archive, found: {error}") from None


def _require_modest(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would unpack to more than it may, or whose arrays say more than it holds."""
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > LARGEST_UNPACKED_BYTES:
        raise DemonstrationError(
            f"{path}: expected at most {LARGEST_UNPACKED_BYTES} bytes unpacked, found {declared}"
        )
    npy: Any = np.lib.format
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    for entry in archive.infolist():
        with archive.open(entry) as file:
            version = npy.read_magic(file)
            read = headers.get(version)
            if read is None:
                raise ValueError(f"{entry.filename} has an unknown format {version}")
            shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            raise DemonstrationError(
                f"{path}: {entry.filename}: expected as many bytes as its shape {list(shape)} says, "
                f"found {entry.file_size}"
            )


def _from_arrays(arrays: dict[str, np.ndarray]) -> DemonstrationSet:
    lengths = arrays["lengths"].astype(np.int64)
    if lengths.ndim != 1 or len(lengths) == 0 or lengths.min() < 1:
        raise ValueError("lengths: expected one or more positive numbers")
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if len(arrays["action"]) != ends[-1]:
        raise ValueError(f"action: expected {ends[-1]} rows, found {len(arrays['action'])}")

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}

    observation, fields = group("observation."), group("model_fields.")
    episodes = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows = slice(start + number, end + number + 1)
        episodes.append(
            Trajectory(
                {key: value[rows] for key, value in observation.items()},
                arrays["action"][start:end],
                arrays["pre_tanh_action"][start:end],
                arrays["environment_reward"][start:end],
                arrays["discount"][start:end],
                Ending(int(arrays["ending"][number])),
                arrays["physics_state"][rows],
                {key: value[number] for key, value in fields.items()},
                int(arrays["seed"][number]),
            )
        )
    metadata = DemonstrationMetadata.model_validate_json(arrays["metadata"].tobytes())
    return DemonstrationSet(metadata, tuple(episodes))


def export_minari(folder: Path, demonstrations: DemonstrationSet) -> None:
    """Make a folder that `minari.MinariDataset(folder)` opens: our file and a description of its spaces."""
    folder.mkdir(parents=True)
    write_demonstrations(folder / "main_data.hdf5", demonstrations)
    first = demonstrations.trajectories[0]
    spec = demonstrations.metadata.spec
    description = {
        "dataset_id": f"apprentice/{spec.task_id if spec else 'unknown'}/expert-v0",
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "minari_version": "0.5.4",
        "total_episodes": len(demonstrations.trajectories),
        "total_steps": demonstrations.num_steps,
        "observation_space": json.dumps(
            {
                "type": "Dict",
                "subspaces": {key: _box(value) for key, value in first.observation.items()},
            }
        ),
        "action_space": json.dumps(_box(first.action, 1.0)),
    }
    (folder / "metadata.json").write_text(json.dumps(description, indent=2))


def _box(array: np.ndarray, bound: float | None = None) -> dict[str, object]:
    """Return a gymnasium Box of one row, as Minari writes it."""
    shape = list(array.shape[1:])
    if array.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = (-np.inf, np.inf) if bound is None else (-bound, bound)
    return {
        "type": "Box",
        "dtype": str(array.dtype),
        "shape": shape,
        "low": np.full(shape, low).tolist(),
        "high": np.full(shape, high).tolist(),
    }
