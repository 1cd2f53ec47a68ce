"""What a file is recognised by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from apprentice.types import Trajectory


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trajectory_digest(trajectory: Trajectory, keys: Iterable[str]) -> bytes:
    """Return a digest of a trajectory's observations `keys`, its actions and its rewards."""
    whole = hashlib.blake2b(digest_size=16)
    arrays = [trajectory.observation[key] for key in keys]
    for array in (*arrays, trajectory.action, trajectory.environment_reward):
        whole.update(array.tobytes())
    return whole.digest()
