"""`apprentice evaluate --context FILE`: a policy that infers its task is shown a file of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apprentice import exit_codes
from apprentice.checkpoint import load_policy
from apprentice.config import FamilySettings
from apprentice.demonstrations.format import DemonstrationMetadata, DemonstrationSet
from apprentice.demonstrations.own_context import context_of_file
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.environments import environment_spec
from apprentice.environments.families import task_split
from apprentice.evaluation import evaluate
from cli.main import main
from tests.family_cases import family_demonstrations, family_experiment, family_run

BLIND = {key: ["state"] for key in ("policy", "critic", "discriminator")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family") / "demos"
    family_demonstrations(folder)
    return folder


def file_of(folder: Path) -> Path:
    return min(folder.glob("*.hdf5"))


def try_to_evaluate(tmp_path: Path, checkpoint: Path, file: Path, *more: str) -> int:
    words = ["--checkpoint", str(checkpoint), "--context", str(file), "--format", "json"]
    return main(["evaluate", *words, "--out", str(tmp_path / "out"), *more])


def test_it_is_shown_all_of_the_file_and_acts_in_its_task(tmp_path: Path, folder: Path) -> None:
    _, checkpoint = family_run(tmp_path, None)  # without a context folder of its own
    file = file_of(folder)
    assert try_to_evaluate(tmp_path, checkpoint, file, "--episodes", "2") == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["task"] == file.stem
    assert [episode["context"] for episode in report["episodes"]] == [[0, 1, 2]] * 2
    assert report["context_file"] == str(file)
    task, choice = context_of_file(file, family_experiment(), None)
    policy, _ = load_policy(checkpoint, seed=0)
    settings = family_experiment().environment
    own = evaluate(policy, task, range(2), settings=settings, context=choice)
    assert [episode["metrics"] for episode in report["episodes"]] == [
        episode.metrics for episode in own.episodes
    ]


def test_what_the_file_says_changes_what_the_policy_does(tmp_path: Path, folder: Path) -> None:
    _, checkpoint = family_run(tmp_path, None)
    policy, _ = load_policy(checkpoint)
    settings = family_experiment().environment
    known = read_demonstrations(file_of(folder))
    actions = []
    for number in range(2):
        file = tmp_path / f"{number}.hdf5"
        write_demonstrations(file, known.chosen([number]))
        task, choice = context_of_file(file, family_experiment(), None)
        found = evaluate(policy, task, [0], settings=settings, context=choice, keep_trajectories=1)
        trajectory = found.episodes[0].trajectory
        assert trajectory is not None
        actions.append(trajectory.action[0].tolist())
    assert actions[0] != actions[1]


def test_a_file_of_another_fixed_division_may_be_shown(tmp_path: Path, folder: Path) -> None:
    task = task_split("reacher_goal", FamilySettings(gamma=0.98, split="arcs")).test[0].task_id
    settings = family_experiment().environment
    known = read_demonstrations(file_of(folder))
    spec = environment_spec(task, ("state",), settings).to_dict()
    metadata = known.metadata.model_copy(update={"environment": spec})
    file = tmp_path / "goal.hdf5"
    write_demonstrations(file, DemonstrationSet(metadata, known.trajectories))
    assert context_of_file(file, family_experiment(), None)[0] == task


def test_a_file_that_does_not_say_its_task_needs_to_be_told_it(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = family_run(tmp_path, None)
    known = read_demonstrations(file_of(folder))
    file = tmp_path / "foreign.hdf5"
    write_demonstrations(file, DemonstrationSet(DemonstrationMetadata(), known.trajectories))
    assert try_to_evaluate(tmp_path, checkpoint, file) == exit_codes.CONFIGURATION
    assert "expected a file that says its task, or --task" in capsys.readouterr().err
    assert try_to_evaluate(tmp_path, checkpoint, file, "--task", file_of(folder).stem) == 0


def test_what_it_cannot_be_shown_is_refused(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = family_run(tmp_path, None)
    first, second = sorted(folder.glob("*.hdf5"))[:2]
    known = read_demonstrations(first)
    many = tmp_path / "many.hdf5"
    write_demonstrations(many, DemonstrationSet(known.metadata, known.trajectories * 22))
    torn = tmp_path / "torn.H5"
    torn.write_bytes(b"not HDF5")
    environment = known.metadata.environment
    assert environment is not None
    twice = known.metadata.model_copy(update={"environment": {**environment, "action_repeat": 2}})
    held, narrow = tmp_path / "held.hdf5", tmp_path / "narrow.hdf5"
    write_demonstrations(held, DemonstrationSet(twice, known.trajectories))
    less = known.trajectories[0]
    less = less._replace(observation={"state": less.observation["state"][:, :-1]})
    write_demonstrations(narrow, DemonstrationSet(known.metadata, (less,)))
    _, blind = family_run(tmp_path / "blind", None, reads=BLIND)
    for words, said in (
        ((checkpoint, tmp_path / "none.hdf5"), "cannot be read"),
        ((checkpoint, torn), "expected an HDF5 file, found another or a torn one"),
        ((checkpoint, folder), "expected a demonstration file (.hdf5 or .h5), how many"),
        ((checkpoint, held), "action_repeat: expected 1 as the policy was trained with, found 2"),
        ((checkpoint, narrow), "observations/state: expected [8] float32, found [7]"),
        ((checkpoint, first, "--task", "test"), "--task: expected none with --context"),
        ((checkpoint, first, "--task", second.stem), f"expected demonstrations of {second.stem}, found {first.stem}'s"),
        ((checkpoint, many), "expected at most 64 demonstrations to show at once, found 66"),
        ((blind, first), "expected none, since this policy does not infer its task"),
    ):  # fmt: skip
        assert try_to_evaluate(tmp_path, *words) == exit_codes.CONFIGURATION
        assert said in capsys.readouterr().err


def test_demonstrations_of_another_task_than_the_familys_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from apprentice.demonstrations.choosing import find_demonstrations

    _, checkpoint = family_run(tmp_path, None)
    bundled = find_demonstrations(None, "reacher-easy")
    assert try_to_evaluate(tmp_path, checkpoint, bundled) == exit_codes.CONFIGURATION
    assert "expected demonstrations of a task of reacher_goal" in capsys.readouterr().err
