"""Keeping a checkpoint for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from apprentice.checkpoint_retention import list_checkpoints, prune_checkpoints
from apprentice.runs import RunFolder
from cli.main import main
from tests.checkpoint_cases import EXPERIMENT, write_example


def test_a_pinned_checkpoint_outlives_pruning_until_it_is_let_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder.create(tmp_path, EXPERIMENT)
    run, parent = folder.path.name, folder.checkpoints
    for steps in (100, 200, 300):
        write_example(parent, steps)
    assert main(["pin", f"{run}:100", "--runs", str(tmp_path)]) == 0
    assert "pinned are step-000000000100" in capsys.readouterr().out
    prune_checkpoints(parent, 1, set())
    assert [path.name[-3:] for path in list_checkpoints(parent)] == ["100", "300"]
    assert main(["pin", f"{run}:100", "--remove", "--runs", str(tmp_path)]) == 0
    assert "pinned are none" in capsys.readouterr().out
    prune_checkpoints(parent, 1, set())
    assert [path.name[-3:] for path in list_checkpoints(parent)] == ["300"]
    assert main(["pin", f"{run}:100", "--runs", str(tmp_path)]) == 78
