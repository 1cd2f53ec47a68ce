"""Minari itself opens files of ours, and we open its; it runs in an environment of its own, made on first use."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apprentice.demonstrations.choosing import find_demonstrations
from apprentice.demonstrations.exchange import export_minari
from apprentice.demonstrations.format import DemonstrationSet
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.types import Ending
from benchmarks.peers import peer_python
from cli.main import main
from tests.demonstrations.cases import SPEC, demonstrations, trajectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return peer_python("minari")
    except subprocess.SubprocessError as error:
        pytest.skip(f"the environment of requirements/bench-minari.txt cannot be made: {error}")


def told(python: Path, *arguments: str, datasets: Path | None = None) -> dict[str, Any]:
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("minari_child.py")), *arguments],
        env={**os.environ, "MINARI_DATASETS_PATH": str(datasets or "")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def assert_told(found: dict[str, Any], expected: DemonstrationSet) -> None:
    """Check that Minari read what we have."""
    assert found["total_episodes"] == len(expected.trajectories)
    assert found["total_steps"] == expected.num_steps
    for number, (theirs, ours) in enumerate(
        zip(found["episodes"], expected.trajectories, strict=True)
    ):
        assert (theirs["id"], theirs["length"], theirs["fits"]) == (number, len(ours.action), True)
        np.testing.assert_array_equal(np.float32(theirs["observations"]), ours.observation["state"])
        np.testing.assert_array_equal(np.float32(theirs["actions"]), ours.action)
        np.testing.assert_array_equal(np.float32(theirs["rewards"]), ours.environment_reward)
        ends = [False] * (len(ours.action) - 1) + [True]
        terminated = ours.ending == Ending.TERMINATED
        assert theirs["terminations"] == (ends if terminated else [False] * len(ends))
        assert theirs["truncations"] == ([False] * len(ends) if terminated else ends)


def test_minari_opens_a_folder_of_ours(python: Path, tmp_path: Path) -> None:
    episodes = (trajectory(0, 5, Ending.TERMINATED), trajectory(1, 1), trajectory(2, 8))
    expected = DemonstrationSet(demonstrations().metadata, episodes)
    export_minari(tmp_path / "ours", expected)
    found = told(python, "open", str(tmp_path / "ours"))
    assert_told(found, expected)
    assert found["observation_space"] == "Dict('state': Box(-inf, inf, (3,), float32))"
    assert found["action_space"] == "Box(-1.0, 1.0, (2,), float32)"


def test_minari_opens_a_bundled_file(python: Path, tmp_path: Path) -> None:
    assert (
        main(
            ["demos", "export", "reacher-easy", "--format", "minari", "--out", str(tmp_path / "x")]
        )
        == 0
    )
    expected = read_demonstrations(find_demonstrations("reacher-easy", ""))
    assert_told(told(python, "open", str(tmp_path / "x")), expected)


@pytest.mark.parametrize("name", ["box", "dict"])
def test_a_file_of_minaris_is_opened_imported_and_given_back(
    python: Path, tmp_path: Path, name: str
) -> None:
    made = told(python, "make", f"ours/{name}-v0", datasets=tmp_path / "datasets")
    (path,) = (tmp_path / "datasets").rglob("main_data.hdf5")
    found = read_demonstrations(path, SPEC)
    assert [t.ending for t in found.trajectories] == [Ending.TIME_LIMIT, Ending.TERMINATED]
    assert found.metadata.spec is None
    assert_told(made, found)
    ours, back = tmp_path / "ours.hdf5", tmp_path / "back"
    assert main(["demos", "import", str(path), "--out", str(ours)]) == 0
    assert main(["demos", "export", str(ours), "--format", "minari", "--out", str(back)]) == 0
    assert_told(told(python, "open", str(back)), found)
