"""Files of one expert a task, joined into the folder of their family."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from apprentice.config_family import SPLITS
from apprentice.demonstrations.family import FamilyDemonstrations
from apprentice.demonstrations.format import DemonstrationError
from apprentice.demonstrations.joining import join_family
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.environments.families import load_family, task_split
from cli.main import main
from tests.demonstrations.cases import demonstrations
from tests.family_cases import family_demonstrations, family_experiment


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FamilyDemonstrations]:
    folder = tmp_path_factory.mktemp("family") / "recorded"
    return folder, family_demonstrations(folder, num_context=2, num_query=1)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.hdf5"), reverse=True)


def test_files_of_all_tasks_make_the_family_and_the_task_is_told(
    family: tuple[Path, FamilyDemonstrations], tmp_path: Path
) -> None:
    folder, recorded = family
    joined = join_family(files_of(folder), 1, tmp_path / "joined")
    assert joined.num_starting_alike() == 3 * len(joined.sets)  # as they were made up
    assert joined.index.split_digest == recorded.index.split_digest
    split = task_split("reacher_goal", family_experiment().environment.family)
    for name in SPLITS:
        assert [entry.task_id for entry in joined.tasks(name)] == [
            task.task_id for task in split.of(name)
        ]
        for task in split.of(name):
            (shown,) = joined.episodes(task.task_id, "context")
            assert len(joined.episodes(task.task_id, "query")) == 2
            original = recorded.sets[task.task_id].trajectories[0]
            np.testing.assert_array_equal(shown.action, original.action)
            np.testing.assert_array_equal(shown.observation["state"], original.observation["state"])
            told = load_family("reacher_goal").observed_parameters(task)
            assert shown.observation["task_parameters"].dtype == np.float32
            assert (shown.observation["task_parameters"] == told).all()


def test_what_does_not_make_a_family_is_refused_and_nothing_written(
    family: tuple[Path, FamilyDemonstrations], tmp_path: Path
) -> None:
    folder, _ = family
    files = files_of(folder)
    alien, twice = tmp_path / "alien.hdf5", tmp_path / "twice.hdf5"
    write_demonstrations(alien, demonstrations(4))
    shutil.copy(files[0], twice)
    elsewhere = tmp_path / "elsewhere"
    family_demonstrations(elsewhere, num_context=2, num_query=1, split_seed=7)
    out = tmp_path / "joined"
    for chosen, num_context, problem in (
        (files[1:], 1, f"found none for 1 of them: {files[0].stem}"),
        ([*files, twice], 1, "expected each task once"),
        ([*files, alien], 1, "expected a task of a family .*found fake-task"),
        ([*files, *files_of(elsewhere)[:1]], 1, "division: expected reacher_goal's"),
        (files, 3, "episodes: expected more than the 3 to be shown, found 3"),
        ([], 1, "expected one for each task of a family, found none"),
    ):
        with pytest.raises(DemonstrationError, match=problem):
            join_family(chosen, num_context, out)
        assert not out.exists()
    with pytest.raises(DemonstrationError, match="path that is free"):
        join_family(files, 1, folder)


def test_the_command_says_what_was_made(
    family: tuple[Path, FamilyDemonstrations], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "joined"
    files = [str(file) for file in files_of(family[0])]
    assert main(["demos", "join", *files, "--context", "2", "--out", str(out)]) == 0
    assert "train: 4 tasks, 8 episodes to be shown and 4 to be imitated" in capsys.readouterr().out
