"""A family's demonstrations: six sets without an episode in common, refused whole where anything is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from apprentice.config import Experiment
from apprentice.config_family import SPLITS, FamilySettings, SplitName
from apprentice.demonstrations.choosing import require_demonstrations, require_family
from apprentice.demonstrations.family import (
    INDEX,
    ROLES,
    FamilyDemonstrations,
    read_family,
    write_family,
)
from apprentice.demonstrations.format import DemonstrationError, DemonstrationSet
from apprentice.environments.families import task_split
from tests.demonstrations.cases import SPEC, demonstrations, trajectory

SETTINGS = FamilySettings()


def of_task(number: int, num: int = 4, length: int = 6) -> DemonstrationSet:
    spec = replace(
        SPEC, task=f"fake-{number}", task_id=f"fake-{number}", task_parameters={"x": float(number)}
    )
    metadata = demonstrations().metadata.model_copy(update={"environment": spec.to_dict()})
    episodes = tuple(trajectory(100 * number + n, length) for n in range(num))
    return DemonstrationSet(metadata, episodes)


def written(folder: Path, num_episodes: int = 4) -> FamilyDemonstrations:
    recorded: dict[SplitName, dict[str, tuple[DemonstrationSet, int]]] = {
        name: {
            f"fake-{10 * number + task}": (
                of_task(10 * number + task, num_episodes),
                num_episodes // 2,
            )
            for task in range(2)
        }
        for number, name in enumerate(SPLITS, 1)
    }
    write_family(folder, "fake", SETTINGS, "0123", recorded)
    return read_family(folder)


def test_each_trajectory_is_in_exactly_one_of_six_sets(tmp_path: Path) -> None:
    family = written(tmp_path / "demos")
    seen: list[tuple[int, ...]] = []
    for split in SPLITS:
        for task in family.tasks(split):
            for role in ROLES:
                episodes = family.episodes(task.task_id, role)
                assert len(episodes) == 2
                seen += [tuple(e.action.ravel().tobytes()) for e in episodes]
    assert len(seen) == len(set(seen)) == 3 * 2 * 4


def test_a_folder_appears_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    first = written(folder)
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [INDEX, *(f"fake-{n}.hdf5" for n in (10, 11, 20, 21, 30, 31))]
    )
    with pytest.raises(DemonstrationError, match="expected a path that is free"):
        written(folder)
    assert read_family(folder).digest == first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]
    with pytest.raises(DemonstrationError, match="expected one or more to write"):
        write_family(
            tmp_path / "none", "fake", SETTINGS, "0", {"train": {"fake-1": (of_task(1, 0), 0)}}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]


def change(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["tasks"][0].update(changes)
    (folder / INDEX).write_text(json.dumps(index))


def test_what_is_wrong_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    with pytest.raises(DemonstrationError, match="expected the index of a family"):
        read_family(folder)
    written(folder)
    whole = (folder / INDEX).read_text()
    for changes, message in (
        ({"context": [0, 1], "query": [1, 2]}, r"found \[1\] in both"),
        ({"context": [0, 0]}, "found one twice"),
        ({"context": []}, "found 0 and 2"),
        ({"query": [7]}, r"expected numbers below 4, found \[7\]"),
        ({"parameters": {"x": 3.0}}, "task: expected fake-10 with .*3.0"),
        ({"sha256": "0" * 64}, "sha256: expected 0000"),
        ({"task_id": "fake-11"}, "found one twice"),
        ({"task_id": "../up"}, "task_id"),
        ({"split": "practice"}, "split"),
    ):
        (folder / INDEX).write_text(whole)
        change(folder, **changes)
        with pytest.raises(DemonstrationError, match=message):
            read_family(folder)
    (folder / INDEX).write_text(whole)
    (folder / "fake-21.hdf5").rename(folder / "fake-9.hdf5")
    with pytest.raises(DemonstrationError, match=r"fake-21.hdf5: expected the demonstrations"):
        read_family(folder)


def test_a_task_without_demonstrations_is_named(tmp_path: Path) -> None:
    family = written(tmp_path / "demos")
    with pytest.raises(DemonstrationError, match="found 'fake-77'"):
        family.episodes("fake-77", "context")


def reacher(folder: Path, settings: FamilySettings, without: str | None = None) -> None:
    """Write made-up demonstrations of a division of reacher_goal."""
    split = task_split("reacher_goal", settings)
    recorded: dict[SplitName, dict[str, tuple[DemonstrationSet, int]]] = {}
    for name in SPLITS:
        recorded[name] = {}
        for number, task in enumerate(split.of(name)):
            if task.task_id == without:
                continue
            made = of_task(number, 3)
            spec = {
                **(made.metadata.environment or {}),
                "task": task.task_id,
                "task_id": task.task_id,
                "task_parameters": dict(task.parameters),
            }
            metadata = made.metadata.model_copy(update={"environment": spec})
            recorded[name][task.task_id] = (DemonstrationSet(metadata, made.trajectories), 1)
    write_family(folder, "reacher_goal", settings, split.digest(), recorded)


def imitates(folder: Path, **changes: object) -> Experiment:
    demonstrations = {"file": str(folder), **changes}
    return Experiment.model_validate(
        {
            "name": "test",
            "task": "reacher_goal",
            "sac": {"gamma": 0.98},
            "imitation": {"method": "dac", "demonstrations": demonstrations},
        }
    )


def test_a_family_s_demonstrations_must_be_of_its_division(tmp_path: Path) -> None:
    reacher(tmp_path / "whole", SETTINGS)
    assert require_family(imitates(tmp_path / "whole")).index.family == "reacher_goal"
    reacher(tmp_path / "arcs", FamilySettings(split="arcs"))
    missing = task_split("reacher_goal", SETTINGS).train[3].task_id
    reacher(tmp_path / "less", SETTINGS, without=missing)
    written(tmp_path / "other")
    for name, message in (
        ("nowhere", "expected the folder of reacher_goal's demonstrations"),
        ("arcs", r"expected the division 'standard' .* found 'arcs' .* set environment.family"),
        ("less", f"found none of .*{missing}"),
        ("other", "expected demonstrations of reacher_goal, found fake's"),
    ):
        with pytest.raises(DemonstrationError, match=message):
            require_demonstrations(imitates(tmp_path / name))
    with pytest.raises(DemonstrationError, match="expected at most 2 to imitate of each task"):
        require_demonstrations(imitates(tmp_path / "whole", episodes=3))
