from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apprentice.config import Experiment
from apprentice.environments import RenderingBackend
from apprentice.runs import RunFolder
from apprentice.video import EncodingError
from cli.evaluate import find_checkpoint
from cli.failure import CommandFailed
from cli.main import main, parse
from tests.evalserver.serving import make_run, needs_graphics


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


def evaluate(runs: Path, out: Path, *flags: str) -> int:
    """Evaluate the newest checkpoint for a few steps, in small pictures."""
    small = ["--max-steps", "3", "--width", "32", "--height", "32", "--no-frames"]
    return main(["evaluate", "--runs", str(runs), "--out", str(out), *small, *flags])


def test_an_unknown_camera_is_refused_before_an_episode_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("no episode is to be run")

    monkeypatch.setattr("apprentice.evaluation.evaluate", never)
    make_run(tmp_path, "reach", "reacher-easy")
    assert evaluate(tmp_path, tmp_path / "out", "--camera", "99") == 78
    said = capsys.readouterr().err
    assert "--camera: expected a camera out of -1 (free), 0 'fixed', 1 'hand'; found 99" in said
    assert not (tmp_path / "out").exists()


def test_a_policy_that_reads_pixels_where_nothing_draws_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = RenderingBackend("none", "egl: no driver. To mend it: apt-get install x")
    monkeypatch.setattr("apprentice.environments.renderer.probe_rendering", lambda: nothing)
    make_run(tmp_path, "sees", "reacher-easy", reads=("pixels",))
    assert evaluate(tmp_path, tmp_path / "out", "--format", "json") == 1
    said = capsys.readouterr().err
    assert "the policy reads pixels: nothing here can draw" in said
    assert "apt-get install x" in said


@needs_graphics
def test_pictures_that_cannot_be_written_or_encoded_end_the_command_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "reach", "reacher-easy")
    out = tmp_path / "out"
    (out / "episode-000.mp4").mkdir(parents=True)
    assert evaluate(tmp_path, out) == 1
    assert f"--out: cannot write to {out}: " in capsys.readouterr().err
    (out / "evaluation.json").mkdir()
    assert evaluate(tmp_path, out, "--format", "json") == 1
    assert f"--out: cannot write to {out}: " in capsys.readouterr().err

    def broken(*_: Any) -> bytes:
        raise EncodingError("gif could not be encoded")

    monkeypatch.setattr("apprentice.video.encode_gif", broken)
    assert evaluate(tmp_path, out, "--format", "gif") == 1
    said = capsys.readouterr().err
    assert "episode-000.gif: gif could not be encoded; --format json needs no pictures" in said
