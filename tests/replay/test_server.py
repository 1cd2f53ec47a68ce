"""Ports, folders, memory and signals of the replay server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apprentice.config import Experiment
from apprentice.experiments import save_experiment
from apprentice.healthcheck import find_problem
from apprentice.ports import is_free
from apprentice.runs import RunFolder, RunStatus
from replay.errors import FolderHeld, NotEnoughMemory, PortHeld
from replay.locks import free_port, hold_folder, hold_port
from replay.server import ReplayServer, _check_memory, memory_limit_bytes
from tests.replay.cases import SETTINGS, STATE, wait_until
from tests.replay.conftest import MakeServer
from tests.replay.serving import ROOT
from tests.test_exporter import scrape


@pytest.mark.parametrize("reuse", [False, True])
def test_a_port_that_is_listened_on_is_refused_with_the_holders_pid(reuse: bool) -> None:
    with socket.socket() as holder:
        if reuse:  # as every gRPC server does
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortHeld, match=f"port {port} is held by pid {os.getpid()}"):
            hold_port(port)
    hold_port(port).release()


def test_a_port_is_held_before_anyone_listens() -> None:
    port = free_port()
    lock = hold_port(port)
    with pytest.raises(PortHeld, match=f"pid {os.getpid()} on"):
        hold_port(port)
    lock.release()
    hold_port(port).release()


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    lock = hold_folder(tmp_path)
    with pytest.raises(FolderHeld, match=f"is used by pid {os.getpid()} on"):
        hold_folder(tmp_path)
    lock.release()


def test_a_containers_limit_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    assert memory_limit_bytes(limit) is None
    for text, expected in (("max\n", None), ("4294967296\n", 4 << 30)):
        limit.write_text(text)
        assert memory_limit_bytes(limit) == expected
    monkeypatch.setattr("replay.server.memory_limit_bytes", lambda: 1_300_000_000)
    _check_memory([STATE], SETTINGS)
    large = SETTINGS.model_copy(update={"capacity": 1_000_000})
    with pytest.raises(NotEnoughMemory, match="this container is allowed 1.30: .*REPLAY_MEMORY"):
        _check_memory([STATE], large)


def test_tables_too_large_for_memory_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"capacity": 10**9})
    with pytest.raises(
        NotEnoughMemory, match=r"may need .* GB, replay.memory_limit_gigabytes is 4"
    ):
        ReplayServer((STATE,), settings, 1, tmp_path / "replay")
    assert not (tmp_path / "replay").exists()


def test_a_second_server_on_the_port_of_the_first_exits_with_78(make_server: MakeServer) -> None:
    first = make_server().start()
    second = make_server()
    second.close()
    second.port = first.port
    second.process = second._spawn()
    assert f"port {first.port} is held by pid {first.process.pid}" in second.refused()
    assert first.process.poll() is None
    # Both wait for it when it goes on, the lower number first: the second one means at once.
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        os.kill(first.process.pid, number)
    assert first.process.wait(5.0) == 128 + signal.SIGTERM


def experiment_file(folder: Path, **replay: object) -> Path:
    experiment = Experiment.model_validate(
        {"name": "test", "task": "cartpole-swingup", "replay": replay}
    )
    save_experiment(experiment, folder / "experiment.yaml")
    return folder / "experiment.yaml"


def command(experiment: Path, port: int, folder: Path) -> list[str]:
    flags = ["--experiment", str(experiment), "--port", str(port), "--checkpoints", str(folder)]
    return [
        sys.executable,
        "-m",
        "replay",
        *flags,
        "--run-directory",
        str(folder.parent / "runs" / "first"),
        "--profile",
        str(folder / "p.json"),
    ]


def ask_to_stop(process: subprocess.Popen[str], run: RunFolder) -> None:
    process.send_signal(signal.SIGTERM)


def finish_the_run(process: subprocess.Popen[str], run: RunFolder) -> None:
    run.write_status(
        RunStatus(run="first", experiment="test", task="t", state="finished", max_steps=1)
    )


@pytest.mark.parametrize("end", [ask_to_stop, finish_the_run])
def test_the_service_starts_from_an_experiment_and_stops_with_0(
    tmp_path: Path, end: Callable[[subprocess.Popen[str], RunFolder], None]
) -> None:
    port, folder = free_port(), tmp_path / "checkpoints"
    run = RunFolder(tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    metrics_port = free_port()
    process = subprocess.Popen(
        [
            *command(experiment_file(tmp_path), port, folder),
            *("--metrics", f"127.0.0.1:{metrics_port}"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until((folder / "first" / "status.json").exists, 60.0)
    wait_until(lambda: not is_free("127.0.0.1", metrics_port), 20.0)
    found = scrape(metrics_port)
    assert found["apprentice_replay_degraded", ("replay",)] == 0
    assert found["apprentice_replay_segments_feed", ("replay",)] == 0
    assert find_problem(f"http://127.0.0.1:{metrics_port}/healthz") is None
    end(process, run)
    _, messages = process.communicate(timeout=30.0)
    assert process.returncode == 0, messages
    assert "asks nobody who they are" in messages
    assert "[reverb/" not in messages
    assert "[reverb/" in (folder / "first" / "reverb.log").read_text()
    assert '"state": "stopped"' in (folder / "first" / "status.json").read_text()
    assert len(list((folder / "first").glob("*.kept/*.json"))) == 1
    assert '"replay saving"' in (folder / "p.json").read_text()


def test_an_experiment_that_cannot_be_served_exits_with_78(tmp_path: Path) -> None:
    experiment = experiment_file(tmp_path, memory_limit_gigabytes=0.1)
    result = subprocess.run(
        command(experiment, free_port(), tmp_path / "c"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 78
    assert "memory_limit_gigabytes is 0.1" in result.stderr
