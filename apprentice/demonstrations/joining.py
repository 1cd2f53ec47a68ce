"""One expert a task: its files, joined into the folder of their family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from apprentice.config_family import SPLITS
from apprentice.demonstrations.family import FamilyDemonstrations, read_family, write_family
from apprentice.demonstrations.format import DemonstrationError, DemonstrationSet, refused
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.environments import environment_spec
from apprentice.environments.families import FamilyError, TaskSplit, load_family, task_split
from apprentice.suite_tasks import FAMILIES, family_of


def join_family(files: Sequence[Path], num_context: int, folder: Path) -> FamilyDemonstrations:
    """Write a family's folder from a file for each task of its division; return what was written.

    Of each file the first `num_context` episodes are to be shown, the others to be imitated. The division is that
    of the files' settings. What tells the task is added to the observations where an expert did not read it. Raises
    DemonstrationError, with what is missing, and OSError.
    """
    found: dict[str, tuple[Path, DemonstrationSet]] = {}
    for path in files:
        demonstrations = read_demonstrations(path)
        task_id = _task_of(path, demonstrations)
        if task_id in found:
            raise refused(path, "task", "each task once", f"{task_id} in {found[task_id][0]} too")
        num = len(demonstrations.trajectories)
        if num <= num_context:
            raise refused(path, "episodes", f"more than the {num_context} to be shown", num)
        found[task_id] = path, demonstrations
    name, split = _division(found)
    _require_all(name, split, found)
    first = next(iter(found.values()))[1].metadata
    recorded = {
        part: {
            task.task_id: (
                _told(found[task.task_id][1], load_family(name).observed_parameters(task)),
                num_context,
            )
            for task in split.of(part)
        }
        for part in SPLITS
    }
    write_family(folder, name, first.settings.family, split.digest(), recorded)
    return read_family(folder)


def _task_of(path: Path, demonstrations: DemonstrationSet) -> str:
    spec = demonstrations.metadata.spec
    if spec is None or family_of(spec.task_id) is None:
        found = "no task" if spec is None else spec.task_id
        raise refused(path, "task", f"a task of a family ({', '.join(sorted(FAMILIES))})", found)
    return spec.task_id


def _division(found: Mapping[str, tuple[Path, DemonstrationSet]]) -> tuple[str, TaskSplit]:
    """Return the family and the division that all files are of."""
    if not found:
        raise DemonstrationError("files: expected one for each task of a family, found none")
    first: tuple[Path, str, TaskSplit] | None = None
    for task_id, (path, demonstrations) in found.items():
        name, settings = family_of(task_id), demonstrations.metadata.settings.family
        assert name is not None  # `_task_of` saw to it.
        try:
            split = task_split(name, settings)
        except FamilyError as error:
            raise DemonstrationError(f"{path}: {error}") from None
        if first is None:
            first = path, name, split
        elif (name, split.digest()) != (first[1], first[2].digest()):
            wanted = f"{first[1]}'s {first[2].digest()} as in {first[0]}"
            raise refused(path, "division", wanted, f"{name}'s {split.digest()}")
    assert first is not None
    return first[1], first[2]


def _require_all(
    name: str, split: TaskSplit, found: Mapping[str, tuple[Path, DemonstrationSet]]
) -> None:
    missing = [task.task_id for task in split.tasks if task.task_id not in found]
    if missing:
        raise DemonstrationError(
            f"files: expected one for each of the {len(split.tasks)} tasks of {name}'s division, found none for "
            f"{len(missing)} of them: {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        )
    others = sorted(found.keys() - {task.task_id for task in split.tasks})
    if others:
        raise refused(found[others[0]][0], "task", f"a task of {name}'s division", others[0])


def _told(demonstrations: DemonstrationSet, parameters: np.ndarray) -> DemonstrationSet:
    """Return the episodes with `task_parameters` among their observations."""
    metadata, spec = demonstrations.metadata, demonstrations.metadata.spec
    assert spec is not None
    if "task_parameters" in spec.observation:
        return demonstrations
    keys = (*spec.observation, "task_parameters")
    told = environment_spec(spec.task_id, keys, metadata.settings)
    return DemonstrationSet(
        metadata.model_copy(update={"environment": told.to_dict()}),
        tuple(
            episode._replace(
                observation={
                    **episode.observation,
                    "task_parameters": np.tile(parameters, (len(episode.action) + 1, 1)),
                }
            )
            for episode in demonstrations.trajectories
        ),
    )
