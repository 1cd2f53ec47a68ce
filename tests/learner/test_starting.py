"""What a learner refuses before it starts, with the exit code that says whether to try again."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from actor.membership import join
from apprentice import exit_codes
from apprentice.checkpoint import write_checkpoint
from apprentice.config import Experiment
from apprentice.environments import environment_spec, experiment_specs
from apprentice.experiments import save_experiment
from apprentice.rpc import ActorReport, LearnerClient
from apprentice.runs import RunFolder, RunStatus
from learner.learning import Learning
from learner.resuming import checkpoint_state
from learner.starting import Addresses, _write_diagnostics, start
from replay.locks import free_port
from tests.learner.test_learning import SPEC, drive, make_experiment
from tests.replay.cases import STATE as OTHER
from tests.replay.cases import wait_until
from tests.replay.serving import ServerProcess
from tests.test_exporter import scrape

EVERYWHERE = "0.0.0.0"  # noqa: S104 - it is to be refused
NOBODY = "127.0.0.1:9"
"""No replay server is there; what is refused must be refused without one."""


def make(**settings: Any) -> Experiment:
    return Experiment.model_validate(
        {"name": "test", "task": "reacher-easy", "network": {"hidden_size": 16}, **settings}
    )


def try_to_start(folder: Path, experiment: Experiment, port: int = 0, **more: Any) -> int:
    folder.mkdir(exist_ok=True)
    file = folder / "experiment.yaml"
    save_experiment(experiment, file)
    addresses = Addresses(**{"replay": NOBODY, "host": "127.0.0.1", "port": port, **more})
    return start(file, folder, addresses, lambda: True)


def test_a_second_learner_of_a_run_is_told_who_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(tmp_path).lock():
        assert try_to_start(tmp_path, make()) == exit_codes.CONFIGURATION
    said = capsys.readouterr().out
    assert "expected to be the only learner" in said
    assert str(os.getpid()) in said


def test_a_division_that_the_family_does_not_have_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = {"gamma": 0.98, "split": "arc"}
    wrong = make(task="reacher_goal", environment={"family": family}, sac={"gamma": 0.98})
    assert try_to_start(tmp_path, wrong) == exit_codes.CONFIGURATION
    assert "'arc'" in capsys.readouterr().out


def test_a_port_in_use_is_named_with_its_holder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert try_to_start(tmp_path, make(), port) == exit_codes.CONFIGURATION
    said = capsys.readouterr().out
    assert f"expected port {port} to be free" in said
    assert str(os.getpid()) in said


def test_beyond_this_machine_it_does_not_listen_without_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert try_to_start(tmp_path, make(), host=EVERYWHERE) == exit_codes.CONFIGURATION
    assert "expected --token-file" in capsys.readouterr().out
    bad = tmp_path / "token"
    bad.write_text("short\n")
    assert (
        try_to_start(tmp_path, make(), host=EVERYWHERE, token_file=bad) == exit_codes.CONFIGURATION
    )
    assert "expected a token of 32 characters or more" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_not_replaced_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert try_to_start(tmp_path, make(learner={"device": "cuda"})) == exit_codes.CONFIGURATION
    assert "expected a working CUDA device, found none" in capsys.readouterr().out


def test_a_gpu_that_fails_at_first_use_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from learner.devices import NoSuchDevice, select_device

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", broken)
    monkeypatch.setattr(torch.version, "cuda", "12.0")
    assert select_device(make().learner).type == "cpu"
    assert "the update runs on the CPU" in capsys.readouterr().out
    with pytest.raises(NoSuchDevice, match="no kernel image"):
        select_device(make(learner={"device": "cuda"}).learner)


def test_an_error_of_the_gpu_in_mid_run_asks_for_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("learner.starting._run", fail)
    assert try_to_start(tmp_path, make()) == exit_codes.TRY_AGAIN


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"task": "cheetah-run"}, "task: the checkpoint has 'reacher-easy'"),
        ({"network": {"hidden_size": 32}}, "network.hidden_size: the checkpoint has"),
        (
            {"environment": {"action_repeat": 2}},
            "environment.action_repeat: the checkpoint has 1, the experiment 2",
        ),
    ],
)
def test_a_checkpoint_of_another_experiment_is_refused_with_the_difference(
    tmp_path: Path,
    changed: dict[str, Any],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = make()
    spec = environment_spec(experiment.task, experiment.observation_keys, experiment.environment)
    learning = Learning(experiment, [spec], torch.device("cpu"))
    write_checkpoint(
        RunFolder(tmp_path).checkpoints,
        run="test",
        steps=10,
        updates=0,
        policy_version=1,
        experiment=experiment,
        environment=spec,
        tensors=learning.state_tensors(),
        state=checkpoint_state(learning, evaluation_returns=[], rollbacks=0),
    )
    assert try_to_start(tmp_path, make(**changed)) == exit_codes.CONFIGURATION
    said = capsys.readouterr().out
    assert named in said
    assert "Start a new run" in said


def test_a_divergence_leaves_settings_counters_and_the_last_batch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learning = Learning(make_experiment(), [SPEC], torch.device("cpu"))
    drive(learning, 0, 3)
    _write_diagnostics(tmp_path, learning, "losses were not finite")
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert report["reason"] == "losses were not finite"
    assert report["counters"]["steps"] == 24
    assert report["experiment"]["task"] == "fake-task"
    batch = load_file(tmp_path / "divergence.safetensors")
    assert batch["observation.state"].shape == (32, 5)
    assert batch["environment_reward"].shape == (32,)


def test_a_replay_server_of_other_tasks_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ServerProcess(tmp_path / "replay", (OTHER,))
    try:
        server.start()
        code = try_to_start(tmp_path / "run", make(), replay=server.address)
    finally:
        server.close()
    assert code == exit_codes.CONFIGURATION
    assert "has no table 'task/reacher-easy' but ['feed', 'task/" in capsys.readouterr().out
    assert not (tmp_path / "run" / "status.json").exists()


def test_a_replay_server_that_comes_back_with_other_tasks_ends_the_run(tmp_path: Path) -> None:
    experiment = make()
    (spec,) = experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)
    server = ServerProcess(tmp_path / "replay", (spec,), experiment.replay)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    save_experiment(experiment, folder.path / "experiment.yaml")
    told = threading.Event()
    try:
        addresses = Addresses(server.start().address, "127.0.0.1", 0)
        with ThreadPoolExecutor(1) as pool:
            words = (folder.path / "experiment.yaml", folder.path, addresses, told.is_set)
            code = pool.submit(start, *words)
            try:
                wait_until(
                    lambda: (found := folder.read_status()) and found.state == "waiting", 60.0
                )
                server.kill()
                server.restart(specs=(OTHER,), folder=tmp_path / "another")
                assert code.result(60.0) == exit_codes.CONFIGURATION
            finally:
                told.set()
    finally:
        server.close()
    status = folder.read_status()
    assert status is not None
    assert status.state == "failed"
    assert "it serves another experiment" in status.message


def test_a_run_that_has_finished_lets_actors_go_and_learns_no_more(tmp_path: Path) -> None:
    experiment, port = make(), free_port()
    RunFolder(tmp_path).write_status(
        RunStatus(
            run=tmp_path.name, experiment="test", task="reacher-easy", state="finished", max_steps=9
        )
    )
    save_experiment(experiment, tmp_path / "experiment.yaml")
    told = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(
            start,
            tmp_path / "experiment.yaml",
            tmp_path,
            Addresses(NOBODY, "127.0.0.1", port),
            told.is_set,
        )
        client = LearnerClient(f"127.0.0.1:{port}", 4.0)
        try:
            membership = join(client, 5, None, 20.0, lambda: None)
            assert membership is not None
            reply = client.heartbeat(ActorReport(membership.slot, 5, 0, 0.0, 0, [], 0, {}))
            assert reply.leave
        finally:
            told.set()
            client.close()
        assert code.result(20.0) == 0
    assert not (tmp_path / "checkpoints").exists()


def test_prometheus_is_answered_until_the_actors_have_left(tmp_path: Path) -> None:
    experiment, port, metrics = make(), free_port(), free_port()
    (spec,) = experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    save_experiment(experiment, folder.path / "experiment.yaml")
    server = ServerProcess(tmp_path / "replay", (spec,), experiment.replay)
    told = threading.Event()
    client = LearnerClient(f"127.0.0.1:{port}", 4.0)
    with ThreadPoolExecutor(1) as pool:
        try:
            addresses = Addresses(
                server.start().address, "127.0.0.1", port, metrics=f"127.0.0.1:{metrics}"
            )
            code = pool.submit(
                start, folder.path / "experiment.yaml", folder.path, addresses, told.is_set
            )
            membership = join(client, 5, None, 60.0, lambda: None)
            assert membership is not None
            wait_until(lambda: (found := folder.read_status()) and found.state == "waiting", 60.0)
            client.control("stop")
            wait_until(lambda: (found := folder.read_status()) and found.state == "stopped", 60.0)
            assert scrape(metrics)
            assert not code.done()
            reply = client.heartbeat(ActorReport(membership.slot, 5, 0, 0.0, 0, [], 0, {}))
            assert reply.leave
            assert code.result(10.0) == 0
        finally:
            told.set()
            client.close()
            server.close()
