from __future__ import annotations

from pathlib import Path

import pytest

from apprentice.experiments import load_experiment
from apprentice.runs import RunFolder, RunState, RunStatus
from cli import grid
from cli.failure import CommandFailed
from cli.launch import Launch
from cli.main import main
from cli.supervisor import Outcome


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("task: reacher-easy\nservices: {evalserver_port: 0}\n")
    return path


def _set_state(folder: RunFolder, state: RunState) -> None:
    folder.write_status(
        RunStatus(
            run=folder.path.name,
            experiment="tiny",
            task="reacher-easy",
            state=state,
            max_steps=10,
        )
    )


class _Watched:
    """Stands for running a launch: notes it, and leaves it in a state."""

    def __init__(self, state: RunState, kind: str) -> None:
        self.names: list[str] = []
        self._state, self._kind = state, kind

    def __call__(self, launch: Launch, *, exit_when_done: bool, plain: bool) -> Outcome:
        assert exit_when_done
        self.names.append(launch.folder.path.name)
        _set_state(launch.folder, self._state)
        return Outcome(self._kind)


def _grid(file: Path, *arguments: str) -> int:
    folders = ["--runs", str(file.parent / "runs"), "--replay-checkpoints", str(file.parent / "r")]
    return main(["grid", str(file), *folders, *arguments])


def test_half_done_variant_is_gone_on_with_and_done_one_is_skipped(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted = _Watched("stopped", "interrupted")
    monkeypatch.setattr(grid, "watch", interrupted)
    assert _grid(file) == 0
    finishing = _Watched("finished", "finished")
    monkeypatch.setattr(grid, "watch", finishing)
    assert _grid(file) == 0
    assert finishing.names == interrupted.names
    assert _grid(file) == 0
    assert len(finishing.names) == 1
    capsys.readouterr()
    assert _grid(file, "--list") == 0
    assert capsys.readouterr().out == f"variant 0: finished {finishing.names[0]}\n"


def test_run_made_before_the_file_was_changed_does_not_count_as_done(
    file: Path, tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "runs", load_experiment(str(file), None, ()))
    _set_state(folder, "finished")
    (same,) = grid.find_entries(str(file), tmp_path / "runs")
    assert (same.state, same.folder is not None) == ("finished", True)
    file.write_text(file.read_text() + "seed: 3\n")
    (changed,) = grid.find_entries(str(file), tmp_path / "runs")
    assert (changed.state, changed.folder) == ("new", None)


def test_failed_variant_is_reported_in_the_exit_code(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "watch", _Watched("failed", "failed"))
    assert _grid(file) == 1
    assert "variants that failed: 0" in capsys.readouterr().out


def test_unknown_variant_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _grid(file, "--variant", "5", "--list") == 78
    assert "expected one of [0], found 5" in capsys.readouterr().err


def test_unreadable_run_is_passed_over(file: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "experiment.yaml").write_text("nonsense: [")
    (entry,) = grid.find_entries(str(file), tmp_path / "runs")
    assert entry.state == "new"


def test_variants_of_an_unknown_experiment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        grid.find_entries("no-such-experiment", tmp_path)
