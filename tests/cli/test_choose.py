"""Which run services in containers work on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apprentice import exit_codes
from apprentice.runs import Catalogue, RunFolder, RunStatus
from cli.main import main


def choose(runs: Path, *arguments: str) -> str:
    """Choose, and return the name of the run that was chosen."""
    assert main(["choose", "smoke", "--runs", str(runs), *arguments]) == 0
    return str((runs / ".current").readlink())


def end(folder: Path, state: str) -> None:
    status = {"run": folder.name, "experiment": "smoke", "task": "t", "state": state}
    RunFolder(folder).write_status(RunStatus.model_validate({**status, "max_steps": 1}))


@pytest.mark.parametrize("state", ["training", "stopped", "finished"])
def test_the_same_settings_choose_the_same_run(tmp_path: Path, state: str) -> None:
    first = choose(tmp_path)
    end(tmp_path / first, state)
    assert choose(tmp_path) == first
    assert [folder.path.name for folder in Catalogue(tmp_path).runs()] == [first]


def test_other_settings_are_another_run_and_the_first_is_found_again(tmp_path: Path) -> None:
    first = choose(tmp_path)
    second = choose(tmp_path, "--settings", "seed=3 sac.tau=0.01")
    assert second != first
    experiment = RunFolder(tmp_path / ".current").read_experiment()
    assert (experiment.seed, experiment.sac.tau) == (3, 0.01)
    assert choose(tmp_path, "--set", "sac.tau=0.01", "--set", "seed=3") == second
    assert choose(tmp_path) == first


def test_a_new_run_is_made_where_asked_for_or_where_the_last_one_failed(tmp_path: Path) -> None:
    first = choose(tmp_path)
    second = choose(tmp_path, "--new")
    assert second != first
    end(tmp_path / second, "failed")
    assert choose(tmp_path) not in (first, second)


def test_runs_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    first = choose(tmp_path)
    (tmp_path / first / "experiment.yaml").write_text("task: [")
    assert choose(tmp_path) != first


def test_wrong_settings_choose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["choose", "smoke", "--runs", str(tmp_path), "--settings", "sac.tou=1"]
    assert main(arguments) == exit_codes.CONFIGURATION
    assert "did you mean 'tau'" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code = main(["choose", "smoke", "--runs", str(tmp_path / "file")])
    assert code == exit_codes.CONFIGURATION
    assert "cannot choose a run in" in capsys.readouterr().err
