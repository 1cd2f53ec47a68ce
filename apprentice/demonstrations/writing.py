"""Writes demonstrations: the file appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from apprentice.demonstrations.format import METADATA, DemonstrationError, DemonstrationSet
from apprentice.types import Ending, Trajectory

_PACKED = f"{METADATA}/physics_state"


def write_demonstrations(path: Path, demonstrations: DemonstrationSet) -> None:
    """Write a file that Minari reads too; arrays lie in it as in memory, so that they can be mapped.

    Only physics states, which no training reads and which are mostly zeros, are compressed.

    Raises DemonstrationError where there is nothing to write, and OSError.
    """
    if not demonstrations.trajectories:
        raise DemonstrationError(f"{path.name}: episodes: expected one or more to write, found 0")
    stage = path.with_name(f".{path.name}.{os.getpid()}.stage")
    try:
        # Without times in it, the same episodes make the same file.
        with h5py.File(stage, "w", track_order=True) as file:
            file.attrs["total_episodes"] = len(demonstrations.trajectories)
            file.attrs["total_steps"] = demonstrations.num_steps
            share = {"clipped_share": demonstrations.clipped_share}
            file.attrs[METADATA] = demonstrations.metadata.model_copy(update=share).to_json()
            for number, episode in enumerate(demonstrations.trajectories):
                _write_episode(file, number, episode)
        with stage.open("rb") as written:
            os.fsync(written.fileno())
        move_file(stage, path)
    finally:
        stage.unlink(missing_ok=True)


def move_file(source: Path, path: Path) -> None:
    """Give a file its name in the same folder, and wait until that is on the disk."""
    source.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_episode(file: h5py.File, number: int, episode: Trajectory) -> None:
    group = file.create_group(f"episode_{number}", track_order=True)
    length = len(episode.action)
    group.attrs["id"] = number
    group.attrs["total_steps"] = length
    group.attrs["seed"] = episode.seed
    last = np.arange(length) == length - 1
    arrays: dict[str, np.ndarray] = {
        f"observations/{key}": value for key, value in episode.observation.items()
    }
    arrays |= {
        "actions": episode.action,
        "rewards": episode.environment_reward,
        "terminations": last & (episode.ending == Ending.TERMINATED),
        "truncations": last & (episode.ending != Ending.TERMINATED),
        f"{METADATA}/pre_tanh_action": episode.pre_tanh_action,
        _PACKED: episode.physics_state,
    }
    arrays |= {f"{METADATA}/model_fields/{k}": v for k, v in episode.model_fields.items()}
    for name, value in arrays.items():
        if value.size:
            packed = {"compression": "gzip", "shuffle": True} if name == _PACKED else {}
            array = np.ascontiguousarray(value)
            group.create_dataset(name, data=array, track_times=False, **packed)
