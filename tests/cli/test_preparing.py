"""What a run learns from is made first: an expert that nobody has trained, demonstrations that nobody recorded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cli.launch
import cli.preparing
from apprentice.config import Experiment
from apprentice.config_family import FamilySettings
from apprentice.environments.families import TaskSplit
from apprentice.environments.reacher_goal import ReacherGoal
from apprentice.experiments import EXPERIMENTS, expand
from apprentice.run_status import RunStatus
from apprentice.runs import RunFolder
from apprentice.suite_tasks import FAMILIES
from cli.failure import CommandFailed
from cli.launch import Launch, Ports, read_experiment
from cli.preparing import prepare
from cli.supervisor import Outcome


def learner(out: Path, tree: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    demonstrations = {"file": str(out), "expert": "reacher_goal-expert", "recorded": 3}
    return Experiment.model_validate(
        {
            "name": "learner",
            "task": "reacher_goal",
            "environment": {"family": {"gamma": 0.98, "split": "arcs"}},
            "sac": {"gamma": 0.98},
            "imitation": {"method": "dac", "demonstrations": demonstrations, **changes},
            **(tree or {}),
        }
    )


class Overlapping(ReacherGoal):
    """A family of a user's own, whose train task is a test task too."""

    name = "overlapping"

    def divide(self, settings: FamilySettings) -> TaskSplit:
        goals = [self.goal(angle) for angle in (0.0, 1.0)]
        return TaskSplit((goals[0],), (goals[1],), (goals[0],))


class Trainer:
    """Stands for the supervisor: an expert's run is finished, or not, at once."""

    def __init__(self, state: str = "finished") -> None:
        self.launches: list[Launch] = []
        self.recorded: list[tuple[object, ...]] = []
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

    def record(self, experiment: Experiment, folders: Sequence[RunFolder], out: Path) -> None:
        self.recorded.append((*(folder.path.name for folder in folders), out))
        out.mkdir(parents=True)


@pytest.fixture(autouse=True)
def _any_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an expert's run be made beside others that hold the ports of its experiment."""
    monkeypatch.setattr(cli.launch, "_choose_ports", lambda settings: Ports(1, 2, 3))


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
    cli.preparing._record(learner(tmp_path / "more"), [launch.folder], tmp_path / "more")
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


def test_several_experts_differ_in_their_seeds_and_are_recorded_together(
    tmp_path: Path, trainer: Trainer
) -> None:
    data = {"file": str(tmp_path / "demos"), "expert": "reacher_goal-expert", "recorded": 3}
    experiment = learner(tmp_path / "demos", demonstrations={**data, "experts": 3})
    ready(experiment, tmp_path, trainer)
    assert [launch.experiment.seed for launch in trainer.launches] == [0, 1, 2]
    runs = [launch.folder.path.name for launch in trainer.launches]
    assert trainer.recorded == [(*runs, tmp_path / "demos")]
    assert len(set(runs)) == 3


def test_the_experts_services_listen_where_the_learners_will(
    tmp_path: Path, trainer: Trainer
) -> None:
    ready(learner(tmp_path / "demos", {"services": {"evalserver_port": 8123}}), tmp_path, trainer)
    assert trainer.launches[0].experiment.services.evalserver_port == 8123
    (tmp_path / "demos").rmdir()
    ready(learner(tmp_path / "demos"), tmp_path, trainer)
    assert len(trainer.launches) == 1  # The same expert, wherever it listened.


def test_an_expert_that_was_interrupted_listens_where_the_learner_will_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted, finishes = Trainer("stopped"), Trainer()
    monkeypatch.setattr(cli.preparing, "_record", finishes.record)
    with pytest.raises(CommandFailed, match="not finished"):
        ready(learner(tmp_path / "demos"), tmp_path, interrupted)
    elsewhere = learner(tmp_path / "demos", {"services": {"evalserver_port": 8123}})
    ready(elsewhere, tmp_path, finishes)
    assert finishes.launches[0].folder.path == interrupted.launches[0].folder.path
    assert finishes.launches[0].experiment.services.evalserver_port == 8123


def test_an_expert_that_was_interrupted_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = learner(tmp_path / "demos")
    interrupted, finishes = Trainer("stopped"), Trainer()
    monkeypatch.setattr(cli.preparing, "_record", finishes.record)
    with pytest.raises(CommandFailed, match="reacher_goal-expert, seed 0, is not finished"):
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


SHOWN = {"reads": {key: ["state", "latent"] for key in ("policy", "critic", "discriminator")}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"task": "point_mass_goal", "environment": {}}, "expert: task: expected 'point_mass_goal' .* 'reacher_goal'"),
        ({"environment": {"action_repeat": 2}}, "expert: environment.action_repeat: expected 2 .* found 1"),
        ({"environment": {"family": {"split": "arc"}}}, "environment.family.split: expected one of .* found 'arc'"),
        ({"task": "overlapping", "environment": {}}, "expected train and test tasks without a task in common"),
        ({"sac": {"gamma": 0.98, "batch_size": 8}}, "sac.batch_size: expected a row .* 16 train tasks .*, found 8"),
        ({**SHOWN, "context": {"most": 4}}, "context.most: expected at most 3 .*recorded.* found 4"),
        ({**SHOWN, "context": {"episodes": 5}}, "context.episodes: expected at most 3 .* found 5"),
        ({**SHOWN, "context": {"most": 2, "information_coefficient": 1.0}}, "twice context.most, .* found 4"),
    ],
)  # fmt: skip
def test_what_could_not_be_learned_from_is_refused_before_an_expert_is_trained(
    tmp_path: Path,
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    tree: dict[str, Any],
    message: str,
) -> None:
    module = ModuleType("overlapping")
    module.FAMILY = Overlapping()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "overlapping", module)
    monkeypatch.setitem(FAMILIES, "overlapping", "overlapping")
    with pytest.raises(CommandFailed, match=message) as caught:
        ready(learner(tmp_path / "demos", tree), tmp_path, trainer)
    assert caught.value.exit_code == 78
    assert trainer.launches == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tree", "settings", "message"),
    [
        ({}, {"expert": "reacher_goal-expert", "episodes": 4}, "demonstrations.episodes: expected at most 3"),
        (
            {"task": "reacher-easy", "environment": {"action_repeat": 4}},
            {"expert": "reacher-easy", "held_out": 3},
            "imitation.demonstrations: expected at most 3 .* found 4",
        ),
    ],
)  # fmt: skip
def test_more_episodes_than_are_recorded_are_refused_before_an_expert_is_trained(
    tmp_path: Path, trainer: Trainer, tree: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    demonstrations = {"file": str(tmp_path / "demos"), "recorded": 3, **settings}
    with pytest.raises(CommandFailed, match=message) as caught:
        ready(learner(tmp_path, tree, demonstrations=demonstrations), tmp_path, trainer)
    assert caught.value.exit_code == 78
    assert trainer.launches == []


def test_the_experts_of_our_experiments_fit() -> None:
    checked = set()
    for path in sorted(EXPERIMENTS.rglob("*.yaml")):
        experiment = expand(str(path))[0]
        expert = experiment.imitation.demonstrations.expert
        if expert is not None:
            cli.preparing._require_fitting(experiment, read_experiment(expert))
            checked.add(experiment.name)
    assert {"reacher_goal_smile", "dac-walker-walk", "absorbing-states"} <= checked
