from __future__ import annotations

import socket
from pathlib import Path

import pytest

from apprentice.config import Experiment
from apprentice.experiments import load_experiment
from apprentice.runs import RunFolder, RunState, RunStatus
from cli.failure import CommandFailed
from cli.launch import Launch, Ports, exit_code_of, judge, new_run, resumed_run, services_of
from cli.machine import commit_of_run
from cli.processes import Service
from cli.supervisor import Outcome, Verdict
from tests.demonstrations.test_family import SMALL, reacher
from tests.family_cases import family_experiment

_EXPERIMENT = Experiment.model_validate(
    {"name": "tiny", "task": "reacher-easy", "services": {"evalserver_port": 0}}
)


def _status(state: RunState) -> RunStatus:
    return RunStatus(run="r", experiment="tiny", task="reacher-easy", state=state, max_steps=10)


@pytest.mark.parametrize(
    ("service", "code", "state", "verdict"),
    [
        ("learner", 0, "finished", Verdict.FINISH),
        ("learner", 0, "stopped", Verdict.FINISH),
        ("learner", 0, "training", Verdict.RESTART),
        ("learner", 0, None, Verdict.RESTART),
        ("learner", 71, "failed", Verdict.FAIL),
        ("learner", 70, "training", Verdict.RESTART),
        ("learner", 75, "training", Verdict.RESTART),
        ("learner", 78, "starting", Verdict.FAIL),
        ("learner", -9, "finished", Verdict.RESTART),
        ("actor-0", 0, "finished", Verdict.LEAVE),
        ("actor-0", 0, "training", Verdict.RESTART),
        ("actor-0", 78, "training", Verdict.FAIL),
        ("actor-0", 71, "training", Verdict.RESTART),
        ("replay", 0, "training", Verdict.RESTART),
        ("replay", 0, "finished", Verdict.RESTART),
        ("replay", -11, "training", Verdict.RESTART),
        ("evalserver", 0, "finished", Verdict.RESTART),
    ],
)
def test_what_an_exit_means_depends_on_who_left_and_how_the_run_is(
    service: str, code: int, state: RunState | None, verdict: Verdict
) -> None:
    status = None if state is None else _status(state)
    assert judge(Service(service, (), 1.0), code, status).verdict is verdict


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome("finished"), 0),
        (Outcome("interrupted", "SIGINT"), 0),
        (Outcome("killed", "SIGINT"), 130),
        (Outcome("failed", "r", "actor-0", 3), 1),
        (Outcome("failed", "r", "learner", 71), 71),
        (Outcome("failed", "r", "learner", 78), 78),
        (Outcome("failed", "r", "learner", -9), 1),
    ],
)
def test_exit_code_tells_how_the_run_ended(outcome: Outcome, code: int) -> None:
    assert exit_code_of(outcome) == code


def test_services_come_in_the_order_of_the_data_flow_and_replay_leaves_last(
    tmp_path: Path,
) -> None:
    two_actors = _EXPERIMENT.model_copy(
        update={"actor": _EXPERIMENT.actor.model_copy(update={"num_actors": 2})}
    )
    launch = Launch(two_actors, RunFolder(tmp_path / "r"), Ports(1, 2, 3), tmp_path / "copies")
    services = services_of(launch, exit_when_done=False)
    names = [service.name for service in services]
    assert names == ["replay", "learner", "actor-0", "actor-1", "evalserver"]
    assert [service.stop_stage for service in services] == [1, 0, 0, 0, 0]
    assert [service.stop_seconds for service in services] == [30, 30, 5, 5, 10]
    assert [service.name for service in services if service.outlives_run] == ["evalserver"]
    assert not any(s.outlives_run for s in services_of(launch, exit_when_done=True))
    replay, learner, actor = (" ".join(service.command) for service in services[:3])
    assert replay.endswith(
        f"-m replay --experiment {tmp_path}/r/experiment.yaml --port 1 "
        f"--checkpoints {tmp_path}/copies/r --profile {tmp_path}/r/replay-profile.json"
    )
    assert learner.endswith(
        f"-m learner --experiment {tmp_path}/r/experiment.yaml --run-directory {tmp_path}/r "
        "--replay 127.0.0.1:1 --host 127.0.0.1 --port 2"
    )
    assert actor.endswith("-m actor --learner 127.0.0.1:2 --replay 127.0.0.1:1")


def test_services_that_others_can_reach_share_a_token(tmp_path: Path) -> None:
    services = _EXPERIMENT.services.model_copy(update={"host": "192.168.1.2"})
    experiment = _EXPERIMENT.model_copy(update={"services": services})
    launch = Launch(experiment, RunFolder(tmp_path / "r"), Ports(1, 2, 3), tmp_path / "copies")
    with_token = {
        service.name
        for service in services_of(launch, exit_when_done=True)
        if f"--token-file {tmp_path}/.token" in " ".join(service.command)
    }
    assert with_token == {"learner", "actor-0", "evalserver"}


def test_port_in_use_is_refused_before_there_is_a_run_folder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        services = {"evalserver_port": holder.getsockname()[1]}
        experiment = Experiment.model_validate(
            {"name": "tiny", "task": "reacher-easy", "services": services}
        )
        with pytest.raises(CommandFailed, match="held by pid") as caught:
            new_run(experiment, tmp_path / "runs", tmp_path / "copies")
    assert caught.value.exit_code == 78
    assert not (tmp_path / "runs").exists()


def test_resumed_run_keeps_its_experiment(tmp_path: Path) -> None:
    first = new_run(_EXPERIMENT, tmp_path, tmp_path / "copies")
    again = resumed_run(first.folder.path.name, tmp_path, tmp_path / "copies")
    assert again.experiment == _EXPERIMENT
    assert again.folder.path == first.folder.path
    assert again.folder.read_commits() == ()


def test_a_run_is_named_by_the_code_that_made_it_else_by_what_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.machine.describe_commit", lambda: "measuring")
    folder = new_run(_EXPERIMENT, tmp_path, tmp_path / "copies").folder
    assert commit_of_run(folder) == "measuring"
    for commit in ("one", "other"):
        folder.note_commit(commit)
    assert commit_of_run(folder) == "one+other"


@pytest.mark.parametrize("name", ["gone", "../outside", ".", ""])
def test_unknown_run_is_refused_naming_those_that_there_are(tmp_path: Path, name: str) -> None:
    known = new_run(_EXPERIMENT, tmp_path / "runs", tmp_path / "copies")
    new_run(_EXPERIMENT, tmp_path, tmp_path / "copies").folder.path.rename(tmp_path / "outside")
    with pytest.raises(CommandFailed, match=known.folder.path.name) as caught:
        resumed_run(name, tmp_path / "runs", tmp_path / "copies")
    assert caught.value.exit_code == 78
    assert not (tmp_path / "runs" / "gone").exists()


def test_run_that_has_a_learner_is_not_resumed(tmp_path: Path) -> None:
    launch = new_run(_EXPERIMENT, tmp_path, tmp_path / "copies")
    with launch.folder.lock(), pytest.raises(CommandFailed, match="locked by process") as caught:
        resumed_run(launch.folder.path.name, tmp_path, tmp_path / "copies")
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("task", ["cartpole-swingup", "pendulum-swingup"])
def test_a_recovered_reward_is_looked_for_before_anything_is_made(
    tmp_path: Path, task: str
) -> None:
    experiment = load_experiment(f"recovered-{task}")
    reward = experiment.imitation.reward
    assert (experiment.task, experiment.imitation.method) == (task, "airl")
    assert (reward.override, reward.recovered_checkpoint) == ("recovered", "CHECKPOINT")
    with pytest.raises(CommandFailed, match="imitation.reward.recovered_checkpoint: ") as caught:
        new_run(experiment, tmp_path / "runs", tmp_path / "replay")
    assert caught.value.exit_code == 78
    assert list(tmp_path.iterdir()) == []


def test_a_division_that_the_family_does_not_have_is_refused_with_78(tmp_path: Path) -> None:
    reacher(tmp_path / "demos", SMALL)
    imitation = {"method": "dac", "demonstrations": {"file": str(tmp_path / "demos")}}
    environment = {"family": {"split": "arc"}}
    experiment = family_experiment(imitation=imitation, environment=environment)
    with pytest.raises(
        CommandFailed, match="environment.family.split: expected .* 'arc'"
    ) as caught:
        new_run(experiment, tmp_path / "runs", tmp_path / "replay")
    assert caught.value.exit_code == 78
    assert not (tmp_path / "runs").exists()
