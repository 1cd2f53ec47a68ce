"""What a run learns from is made first: an expert that nobody has trained, demonstrations that nobody recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cli.preparing
from apprentice.config import Experiment
from apprentice.run_status import RunStatus
from apprentice.runs import RunFolder
from cli.failure import CommandFailed
from cli.launch import Launch
from cli.preparing import prepare
from cli.supervisor import Outcome


def learner(out: Path, **changes: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "learner",
            "task": "reacher_goal",
            "environment": {"family": {"gamma": 0.98, "split": "arcs"}},
            "sac": {"gamma": 0.98},
            "imitation": {
                "method": "dac",
                "demonstrations": {
                    "file": str(out),
                    "expert": "reacher_goal-expert",
                    "recorded": 3,
                },
                **changes,
            },
        }
    )


class Trainer:
    """Stands for the supervisor: an expert's run is finished, or not, at once."""

    def __init__(self, state: str = "finished") -> None:
        self.launches: list[Launch] = []
        self.recorded: list[tuple[str, Path]] = []
        self._state = state

    def watch(self, launch: Launch) -> Outcome:
        self.launches.append(launch)
        experiment = launch.experiment
        launch.folder.write_status(
            RunStatus.model_validate(
                {
                    "run": launch.folder.path.name,
                    "experiment": experiment.name,
                    "task": experiment.task,
                    "state": self._state,
                    "max_steps": 1,
                }
            )
        )
        kind = "finished" if self._state == "finished" else "interrupted"
        return Outcome(kind, "", "")

    def record(self, experiment: Experiment, folder: RunFolder, out: Path) -> None:
        self.recorded.append((folder.path.name, out))
        out.mkdir(parents=True)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    one = Trainer()
    monkeypatch.setattr(cli.preparing, "_record", one.record)
    return one


def ready(experiment: Experiment, folder: Path, trainer: Trainer) -> None:
    prepare(experiment, folder / "runs", folder / "replay", watch=trainer.watch)


def test_the_expert_learns_on_its_own_division_and_is_recorded_in_the_learners(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(learner(tmp_path / "demos"), tmp_path, trainer)
    (launch,) = trainer.launches
    assert launch.experiment.name == "reacher_goal-expert"
    assert launch.experiment.environment.family.split == "standard"
    monkeypatch.undo()
    recorded: list[object] = []
    monkeypatch.setattr(
        "apprentice.demonstrations.recording.record_family",
        lambda *_, **settings: recorded.append(settings["settings"].split),
    )
    monkeypatch.setattr(
        "apprentice.checkpoint.newest_checkpoint", lambda *_, **__: (tmp_path, None)
    )
    cli.preparing._record(learner(tmp_path / "more"), launch.folder, tmp_path / "more")
    assert recorded == ["arcs"]


def test_an_expert_is_trained_once_and_recorded_once(tmp_path: Path, trainer: Trainer) -> None:
    experiment = learner(tmp_path / "demos")
    ready(experiment, tmp_path, trainer)
    assert len(trainer.launches) == 1
    assert trainer.recorded == [(trainer.launches[0].folder.path.name, tmp_path / "demos")]
    ready(experiment, tmp_path, trainer)
    assert len(trainer.launches) == len(trainer.recorded) == 1
    (tmp_path / "demos").rmdir()
    ready(experiment, tmp_path, trainer)
    assert (len(trainer.launches), len(trainer.recorded)) == (1, 2)


def test_an_expert_that_was_interrupted_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = learner(tmp_path / "demos")
    interrupted, finishes = Trainer("stopped"), Trainer()
    monkeypatch.setattr(cli.preparing, "_record", finishes.record)
    with pytest.raises(CommandFailed, match="reacher_goal-expert is not finished"):
        ready(experiment, tmp_path, interrupted)
    ready(experiment, tmp_path, finishes)
    assert finishes.launches[0].folder.path == interrupted.launches[0].folder.path
    assert len(finishes.recorded) == 1


def test_nothing_is_made_where_no_expert_is_named(tmp_path: Path, trainer: Trainer) -> None:
    ready(learner(tmp_path / "demos", demonstrations={"file": str(tmp_path)}), tmp_path, trainer)
    ready(Experiment(name="x", task="reacher-easy"), tmp_path, trainer)
    assert trainer.launches == []


def test_an_expert_without_a_place_for_its_demonstrations_is_refused() -> None:
    with pytest.raises(ValueError, match="imitation.demonstrations.file: expected the path"):
        learner(Path("x"), demonstrations={"expert": "reacher_goal-expert"})
