"""Demonstrations of real tasks: recorded, drawn afterwards, and matched against an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apprentice.config import EnvironmentSettings, Experiment
from apprentice.demonstrations.choosing import (
    bundled_names,
    find_demonstrations,
    require_demonstrations,
)
from apprentice.demonstrations.format import (
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
)
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.demonstrations.recording import record_demonstrations, render_demonstrations
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.environments import environment_spec, suite_tasks
from apprentice.environments.families import task_split
from apprentice.evaluation import evaluate
from apprentice.networks import UniformPolicy
from apprentice.runs import RunFolder
from apprentice.suite_tasks import FAMILIES
from cli.main import main
from tests.evalserver.serving import make_run, needs_graphics

SMALL = EnvironmentSettings(width=32, height=32, frame_stack=2, render_quality="fast")
FAMILY_TASKS = tuple(task_split(family, SMALL.family).train[0].task_id for family in FAMILIES)
"""One task of each family."""


def one_of_each_domain_first(tasks: Iterable[str]) -> Iterator[Any]:
    """Leave the others to `make soak`: most differ in the reward alone, and a dog takes 5 s."""
    seen: set[str] = set()
    for task in tasks:
        domain = task.split("-")[0]
        yield pytest.param(task, marks=[pytest.mark.slow] if domain in seen else [])
        seen.add(domain)


@needs_graphics
@pytest.mark.parametrize("task", [*one_of_each_domain_first([*suite_tasks(), *FAMILY_TASKS])])
def test_frames_drawn_afterwards_are_those_drawn_live(task: str, tmp_path: Path) -> None:
    spec = environment_spec(task, ("state", "pixels"), SMALL)
    evaluation = evaluate(
        UniformPolicy(spec, seed=0),
        task,
        [7, 8],
        observation=("state", "pixels"),
        settings=SMALL,
        max_steps=3,
        keep_trajectories=2,
    )
    live = [e.trajectory for e in evaluation.episodes if e.trajectory is not None]
    unseen = tuple(
        t._replace(observation={"state": t.observation["state"]}, ending=t.ending or 2)
        for t in live
    )
    metadata = DemonstrationMetadata(
        environment=environment_spec(task, ("state",), SMALL).to_dict(),
        settings=SMALL,
        mujoco=versions()["mujoco"],
    )
    path = tmp_path / "demos.hdf5"
    write_demonstrations(path, DemonstrationSet(metadata, unseen))
    drawn = render_demonstrations(read_demonstrations(path), SMALL)
    for ours, theirs in zip(drawn.trajectories, live, strict=True):
        np.testing.assert_array_equal(ours.observation["pixels"], theirs.observation["pixels"])


def versions() -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("mujoco", "dm_control")}


def test_other_versions_states_are_not_drawn() -> None:
    bundled = read_demonstrations(find_demonstrations("reacher-easy", ""))
    old = DemonstrationSet(
        bundled.metadata.model_copy(update={"mujoco": "2.0"}), bundled.trajectories
    )
    with pytest.raises(DemonstrationError, match=r"mujoco: expected .*, found 2\.0"):
        render_demonstrations(old, SMALL)


def drawable(**changes: Any) -> DemonstrationSet:
    """Return an episode of reacher-easy that this MuJoCo can draw, with other fields."""
    bundled = read_demonstrations(find_demonstrations("reacher-easy", ""))
    metadata = bundled.metadata.model_copy(update={"mujoco": versions()["mujoco"]})
    return DemonstrationSet(metadata, (bundled.trajectories[0]._replace(**changes),))


def of_unknown_task() -> DemonstrationSet:
    known = drawable()
    environment = {**(known.metadata.environment or {}), "task_id": "reacher-esy"}
    metadata = known.metadata.model_copy(update={"environment": environment})
    return DemonstrationSet(metadata, known.trajectories)


@pytest.mark.parametrize(
    ("make", "camera", "message"),
    [
        (
            drawable,
            "9",
            "episode 0: expected a camera out of -1 (free), 0 'fixed', 1 'hand'; found 9",
        ),
        (
            of_unknown_task,
            "0",
            "task: expected a task of the DeepMind Control Suite as 'domain-task', found 'reacher-e",
        ),
        (
            lambda: drawable(physics_state=np.zeros((251, 34))),
            "0",
            "episode 0: expected a physics state of 35 numbers, found shape (34,)",
        ),
        (
            lambda: drawable(model_fields={"geom_place": np.zeros((10, 3))}),
            "0",
            "episode 0: expected fields of this task's model, found ['geom_place']",
        ),
        (
            lambda: drawable(model_fields={"geom_pos": np.zeros((4, 3))}),
            "0",
            "episode 0: geom_pos: expected shape [10, 3], found [4, 3]",
        ),
        (  # NumPy would broadcast it.
            lambda: drawable(model_fields={"geom_pos": np.zeros((1, 3))}),
            "0",
            "episode 0: geom_pos: expected shape [10, 3], found [1, 3]",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_the_command(
    make: Callable[[], DemonstrationSet], camera: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    path, out = tmp_path / "states.hdf5", tmp_path / "pixels.hdf5"
    write_demonstrations(path, make())
    asked = ["demos", "render", str(path), "--camera", camera, "--out", str(out)]
    assert main([*asked, "--width", "32", "--height", "32"]) == 78
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_every_bundled_file_fits_its_own_task_and_no_other() -> None:
    for task, name in itertools.product(bundled_names(), bundled_names()):
        found = read_demonstrations(find_demonstrations(name, ""))
        assert found.metadata.spec is not None
        settings = {"action_repeat": found.metadata.spec.action_repeat}
        experiment = Experiment.model_validate(
            {
                "name": "x",
                "task": task,
                "environment": settings,
                "imitation": {"method": "dac", "demonstrations": {"file": name}},
            }
        )
        if task == name:
            require_demonstrations(experiment)
            spec = environment_spec(task, ("state",), experiment.environment)
            read_demonstrations(find_demonstrations(name, ""), spec)
            continue
        with pytest.raises(DemonstrationError, match=f"task: expected '{task}'.*{task}' would fit"):
            require_demonstrations(experiment)


def test_recorded_episodes_are_whole_and_state_their_expert(tmp_path: Path) -> None:
    run = make_run(tmp_path, "reach", "cartpole-balance", action_repeat=8)
    checkpoint = next(RunFolder(tmp_path / run).checkpoints.glob("step-*"))
    found = record_demonstrations(checkpoint, 2, measured_episodes=3)
    assert [len(t.action) for t in found.trajectories] == [125, 125]
    assert [t.seed for t in found.trajectories] == [1_000_000, 1_000_001]
    expert = found.metadata.expert
    assert expert is not None
    assert (expert.run, expert.steps, expert.return_episodes) == (run, 100, 3)
    assert found.metadata.random_return is not None
    with pytest.raises(DemonstrationError, match="expected 1 with a return of 1000000000.0"):
        record_demonstrations(checkpoint, 1, measured_episodes=1, minimum_return=1e9)


def test_a_split_into_one_file_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "both.hdf5"
    split = ["demos", "split", str(tmp_path / "nothing.hdf5"), "--held-out", "1"]
    again = tmp_path / "x" / ".." / "both.hdf5"
    assert main([*split, "--train", str(path), "--test", str(again)]) == 78
    assert "--test: expected another file than --train's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_commands_make_look_at_and_split_a_file(tmp_path: Path, capsys: Any) -> None:
    train, test = tmp_path / "train.hdf5", tmp_path / "test.hdf5"
    split = ["demos", "split", "cartpole-swingup", "--held-out", "4"]
    assert main([*split, "--train", str(train), "--test", str(test)]) == 0
    seeds = [{t.seed for t in read_demonstrations(path).trajectories} for path in (train, test)]
    assert [len(part) for part in seeds] == [8, 4]
    assert not seeds[0] & seeds[1]
    assert main(["demos", "inspect", str(test)]) == 0
    assert "expert's mean return 864" in capsys.readouterr().out
    assert main(["demos", "validate", str(test), "--task", "reacher-easy"]) == 78
    assert "task: expected 'reacher-easy', found 'cartpole-swingup'" in capsys.readouterr().err
    assert main(["demos", "export", str(test), "--out", str(train)]) == 78  # there is such a file
    assert "expected a path that is free" in capsys.readouterr().err
    archive, again = tmp_path / "x.npz", tmp_path / "a" / "new" / "folder" / "again.hdf5"
    assert main(["demos", "export", str(test), "--out", str(archive)]) == 0
    assert main(["demos", "import", str(archive), "--out", str(again)]) == 0
    assert again.read_bytes() == test.read_bytes()
