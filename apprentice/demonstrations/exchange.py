"""Demonstrations as others keep them: plain numpy archives, and folders that `minari` opens."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from apprentice.demonstrations.format import (
    LARGEST_UNPACKED_BYTES,
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
    refused,
)
from apprentice.demonstrations.modest import require_file
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.setting_problems import describe_problems
from apprentice.types import Ending, Trajectory

_STEPS = ("action", "pre_tanh_action", "environment_reward", "discount")
_EPISODES = ("ending", "seed")
_TORN = (
    OSError,
    ValueError,
    RuntimeError,  # packed or written in a way that zipfile does not know; too deep
    EOFError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
"""What reading an archive that was torn or made up may raise."""


def export_npz(path: Path, demonstrations: DemonstrationSet) -> None:
    """Write one array a field, episodes one after the other, with `lengths` [N] to cut them by.

    Observations have one row more an episode than steps. Raises DemonstrationError where episodes have different
    model fields, and OSError.
    """
    episodes = demonstrations.trajectories
    _require_same_fields(path, episodes)
    arrays = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in _STEPS}
    for key in episodes[0].observation:
        arrays[f"observation.{key}"] = np.concatenate([e.observation[key] for e in episodes])
    arrays["physics_state"] = np.concatenate([e.physics_state for e in episodes])
    arrays["lengths"] = np.array([len(e.action) for e in episodes])
    arrays["ending"] = np.array([int(e.ending) for e in episodes])
    arrays["seed"] = np.array([e.seed for e in episodes])
    for key in episodes[0].model_fields:
        arrays[f"model_fields.{key}"] = np.stack([e.model_fields[key] for e in episodes])
    share = {"clipped_share": demonstrations.clipped_share}
    metadata = demonstrations.metadata.model_copy(update=share).to_json().encode()
    arrays["metadata"] = np.frombuffer(metadata, np.uint8)
    stage = path.with_name(f".{path.name}.{os.getpid()}.stage")
    try:
        with stage.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)


def _require_same_fields(path: Path, episodes: Sequence[Trajectory]) -> None:
    """Refuse episodes whose model fields do not make one array a field."""

    def shapes(episode: Trajectory) -> dict[str, list[int]]:
        return {name: list(value.shape) for name, value in sorted(episode.model_fields.items())}

    first = shapes(episodes[0])
    for number, episode in enumerate(episodes):
        if shapes(episode) != first:
            found = f"{shapes(episode)}; `--format minari` keeps each episode's own"
            raise refused(
                path, f"model_fields, episode {number}", f"{first} as in episode 0", found
            )


def import_npz(path: Path) -> DemonstrationSet:
    """Return what `export_npz` wrote; raise DemonstrationError where it is something else.

    Whether numbers are finite and within bounds is seen when the set is written and read as HDF5.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _require_modest(path, archive)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _TORN as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DemonstrationError(f"{path}: expected a numpy archive, found: {reason}") from None
    return _from_arrays(path, arrays)


def _require_modest(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would unpack to more than it may, or whose arrays say more than it holds."""
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > LARGEST_UNPACKED_BYTES:
        raise refused(path, "arrays", f"at most {LARGEST_UNPACKED_BYTES} bytes unpacked", declared)
    npy: Any = np.lib.format
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    for entry in archive.infolist():
        with archive.open(entry) as file:
            version = npy.read_magic(file)
            read = headers.get(version)
            if read is None:
                raise ValueError(f"{entry.filename} has an unknown format {version}")
            shape, _, dtype = read(file)
        if dtype.kind not in "fiub":
            raise refused(path, entry.filename, "numbers", f"dtype {dtype}")
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            wanted = f"as many bytes as its shape {list(shape)} says"
            raise refused(path, entry.filename, wanted, entry.file_size)


def _from_arrays(path: Path, arrays: dict[str, np.ndarray]) -> DemonstrationSet:
    lengths = _checked_rows(path, arrays)
    ends = np.cumsum(lengths)
    starts = ends - lengths

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
                _ending(path, arrays, number, slice(start, end)),
                arrays["physics_state"][rows],
                {key: value[number] for key, value in fields.items()},
                int(arrays["seed"][number]),
            )
        )
    try:
        metadata = DemonstrationMetadata.model_validate_json(arrays["metadata"].tobytes())
    except ValidationError as error:
        problems = "; ".join(describe_problems(DemonstrationMetadata, error))
        raise DemonstrationError(f"{path}: metadata: {problems}") from None
    return DemonstrationSet(metadata, tuple(episodes), metadata.clipped_share)


def _checked_rows(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the lengths of the episodes [N], after every array was seen to have as many rows as they say."""
    for name in (*_STEPS, *_EPISODES, "lengths", "physics_state", "metadata"):
        if name not in arrays:
            raise refused(path, name, "an array", "nothing")
        if arrays[name].dtype.kind not in ("f" if name in (*_STEPS, "physics_state") else "iu"):
            raise refused(path, name, "numbers of its kind", f"dtype {arrays[name].dtype}")
    lengths, num_rows = arrays["lengths"], len(arrays["action"]) if arrays["action"].ndim else 0
    if lengths.ndim != 1 or len(lengths) == 0 or lengths.min() < 1 or lengths.max() > num_rows:
        found = f"{list(lengths.shape)} from {lengths.min(initial=0)} to {lengths.max(initial=0)}"
        raise refused(path, "lengths", f"numbers from 1 to action's {num_rows} rows", found)
    total, num = int(lengths.sum()), len(lengths)
    for name, array in arrays.items():
        if name in ("lengths", "metadata"):
            continue
        if name in _STEPS:
            wanted = total
        elif name in _EPISODES or name.startswith("model_fields."):
            wanted = num
        elif name == "physics_state" or name.startswith("observation."):
            wanted = total + num  # the state that the last step led to
        else:
            raise refused(path, name, "no array of another name than `export` writes", "one")
        if array.ndim == 0 or len(array) != wanted:
            raise refused(
                path, name, f"{wanted} rows, as lengths say", f"shape {list(array.shape)}"
            )
    return lengths.astype(np.int64)


def _ending(path: Path, arrays: dict[str, np.ndarray], number: int, steps: slice) -> Ending:
    """Return how an episode ended, after its discounts were seen to say the same."""
    found = int(arrays["ending"][number])
    if found not in (Ending.TERMINATED, Ending.TIME_LIMIT):
        raise refused(path, f"ending, episode {number}", "terminated or time limit", found)
    expected = np.ones(steps.stop - steps.start, np.float32)
    expected[-1] = float(found != Ending.TERMINATED)
    if not np.array_equal(arrays["discount"][steps], expected):
        wanted = "1 at every step but the last of an episode that terminated"
        raise refused(path, f"discount, episode {number}", wanted, "others")
    return Ending(found)


def export_minari(folder: Path, demonstrations: DemonstrationSet) -> None:
    """Make a folder that `minari.MinariDataset(folder)` opens: our file and a description of its spaces.

    It appears whole or not at all. Raises DemonstrationError and OSError.
    """
    if folder.exists():
        raise DemonstrationError(f"{folder}: expected a path that is free, found something there")
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
    stage = folder.with_name(f".{folder.name}.{os.getpid()}.stage")
    stage.mkdir(parents=True)
    try:
        write_demonstrations(stage / "main_data.hdf5", demonstrations)
        (stage / "metadata.json").write_text(json.dumps(description, indent=2))
        stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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
