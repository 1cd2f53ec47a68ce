"""Which checkpoints a folder holds, in the order of their steps, and which of them are kept.

A folder of checkpoints has `step-<12 digits>` folders, the text files LATEST (a name), BEST (a name and
its score) and PINNED (names), and `quarantine/`. Anything else in it is left alone.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from apprentice.checkpoint_files import read_text, remove_folder, replace_text, sync_folder
from apprentice.checkpoint_format import CheckpointError

log = structlog.get_logger()

LATEST: Final = "LATEST"
BEST: Final = "BEST"
PINNED: Final = "PINNED"
QUARANTINE: Final = "quarantine"
_REPLACED = ".replaced-"
_STEP_NAME = re.compile(r"step-([0-9]{12})", re.ASCII)


class BestCheckpoint(NamedTuple):
    """The checkpoint that evaluated best so far, and the mean return it reached."""

    name: str
    score: float


def step_name(steps: int) -> str:
    """Return the name of the checkpoint at `steps` agent steps."""
    return f"step-{steps:012d}"


def steps_of(name: str) -> int | None:
    """Return the steps of a checkpoint's name, None where it is none."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def list_checkpoints(parent: Path) -> tuple[Path, ...]:
    """List the checkpoints of a folder, fewest steps first, without opening them. Links are none."""
    try:
        with os.scandir(parent) as entries:
            names = [
                entry.name
                for entry in entries
                if _STEP_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(parent / name for name in sorted(names))


def prune_checkpoints(parent: Path, keep: int, protected: Collection[str] = ()) -> tuple[str, ...]:
    """Remove all but the newest `keep`, those in `protected`, the one in BEST, and the pinned ones.

    Return the names removed. Call it only after a newer checkpoint was written and verified.
    """
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 checkpoint, found keep={keep}")
    noted = read_best(parent)
    spared = {*protected, noted.name if noted else None, *pinned_checkpoints(parent)}
    removed = []
    for path in list_checkpoints(parent)[:-keep]:
        if path.name not in spared:
            remove_folder(path)
            removed.append(path.name)
    return tuple(removed)


def record_best(parent: Path, name: str, score: float) -> None:
    """Note in BEST which checkpoint evaluated best, and with what mean return."""
    if steps_of(name) is None or not math.isfinite(score):
        raise ValueError(
            f"expected a checkpoint's name and a finite score, found {name!r}, {score}"
        )
    replace_text(parent / BEST, f"{name} {score!r}\n")


def read_best(parent: Path) -> BestCheckpoint | None:
    """Return what BEST says; None where there is none, or none that can be understood."""
    words = read_text(parent / BEST).split()
    try:
        name, score = words[0], float(words[1])
    except (IndexError, ValueError):
        return None
    return BestCheckpoint(name, score) if steps_of(name) is not None else None


def pin_checkpoint(path: Path) -> None:
    """Keep this checkpoint for good: pruning leaves it."""
    if path not in list_checkpoints(path.parent):
        raise CheckpointError(f"expected a checkpoint to pin, found nothing named {path.name!r}")
    _write_pinned(path.parent, pinned_checkpoints(path.parent) | {path.name})


def unpin_checkpoint(path: Path) -> None:
    """Let pruning remove this checkpoint again."""
    _write_pinned(path.parent, pinned_checkpoints(path.parent) - {path.name})


def pinned_checkpoints(parent: Path) -> frozenset[str]:
    """Return the names of the pinned checkpoints."""
    names = read_text(parent / PINNED).split()
    return frozenset(name for name in names if steps_of(name) is not None)


def point_latest(parent: Path) -> None:
    """Make LATEST name the newest checkpoint, or remove it where there is none."""
    checkpoints = list_checkpoints(parent)
    if checkpoints:
        replace_text(parent / LATEST, f"{checkpoints[-1].name}\n")
    elif (parent / LATEST).is_file():
        (parent / LATEST).unlink()
        sync_folder(parent)


def set_aside(path: Path) -> None:
    """Rename a checkpoint that is about to be replaced; `restore_replaced` undoes it after a crash."""
    os.rename(path, path.with_name(f"{_REPLACED}{path.name}"))


def restore_replaced(parent: Path) -> None:
    """Bring back every checkpoint that was set aside and has no successor in its place."""
    for aside in _replaced(parent):
        path = parent / aside.name.removeprefix(_REPLACED)
        if not path.exists():
            os.rename(aside, path)


def remove_replaced(parent: Path) -> None:
    """Remove what was set aside; call it once the successor has been verified."""
    for aside in _replaced(parent):
        remove_folder(aside)


def quarantine_checkpoint(path: Path) -> Path | None:
    """Move a refused checkpoint out of the way, into `quarantine/`, and point LATEST elsewhere.

    Return its new path, or None (with a warning) where it could not be moved.
    """
    folder = path.parent / QUARANTINE
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return None
        folder.mkdir(exist_ok=True)
        target, copies = folder / path.name, 1
        while target.exists():
            copies += 1
            target = folder / f"{path.name}.{copies}"
        os.rename(path, target)
        point_latest(path.parent)
    except OSError as error:
        log.warning(
            "a refused checkpoint could not be moved", checkpoint=path.name, error=str(error)
        )
        return None
    return target


def _write_pinned(parent: Path, names: frozenset[str]) -> None:
    replace_text(parent / PINNED, "".join(f"{name}\n" for name in sorted(names)))


def _replaced(parent: Path) -> list[Path]:
    return [
        path
        for path in sorted(parent.glob(f"{_REPLACED}step-*"))
        if path.is_dir() and not path.is_symlink()
    ]
