from __future__ import annotations

from pathlib import Path

import pytest

from apprentice.config import Experiment
from apprentice.runs import RunFolder
from cli.evaluate import find_checkpoint
from cli.failure import CommandFailed
from cli.main import parse


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    experiment = Experiment.model_validate({"name": "tiny", "task": "reacher-easy"})
    folder = RunFolder.create(tmp_path / "runs", experiment)
    for steps in (10, 20):
        (folder.checkpoints / f"step-{steps:012d}").mkdir()
        (folder.checkpoints / f"step-{steps:012d}" / "manifest.json").write_text("{}")
    return folder


def test_checkpoint_is_found_by_id_and_by_path(folder: RunFolder) -> None:
    runs, run = folder.path.parent, folder.path.name
    newest = folder.checkpoints / "step-000000000020"
    assert find_checkpoint("latest", runs) == newest
    assert find_checkpoint(run, runs) == newest
    assert find_checkpoint(f"{run}:10", runs) == folder.checkpoints / "step-000000000010"
    assert find_checkpoint(str(newest), runs) == newest


@pytest.mark.parametrize("text", ["gone", "gone:latest", "../../etc:1", "a:b:c"])
def test_unknown_checkpoint_is_refused(folder: RunFolder, text: str) -> None:
    with pytest.raises(CommandFailed, match="--checkpoint: ") as caught:
        find_checkpoint(text, folder.path.parent)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    "flags",
    [
        ("--episodes", "0"),
        ("--width", "8"),
        ("--width", "321"),
        ("--height", "9999"),
        ("--fps", "0"),
        ("--fps", "nan"),
        ("--seed", "-1"),
        ("--format", "avi"),
        ("--max-steps", "0"),
    ],
)
def test_senseless_numbers_are_refused_before_anything_is_loaded(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["evaluate", "--out", "rollouts", *flags])
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err
