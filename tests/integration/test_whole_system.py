"""`apprentice up` with all its real services: killed one by one, asked for videos, killed whole."""

from __future__ import annotations

import io
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import psutil
import pytest

from apprentice.tokens import read_token
from tests.integration.token_kept import answer, look_at_what_is_left, look_at_what_runs

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("replay", "learner", "actor", "evalserver")
_WATCHER = """
import os, sys
def note(text):
    with open(os.environ["APPRENTICE_AUDIT"], "a") as file:
        file.write(text + "\\n")
def watch(event, arguments):
    if event == "pickle.find_class":
        note(f"unpickled {arguments} in {sys.orig_argv}")
sys.addaudithook(watch)
note(f"watching {sys.orig_argv}")
"""
"""Is imported by every Python process at its start, as `sitecustomize`, and writes down what is unpickled."""


class System:
    """One `apprentice up`, its run folder and its processes."""

    def __init__(self, folder: Path, *settings: str, **environment: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        command = [sys.executable, "-m", "cli", "up", "smoke", "--exit-when-done", "--plain"]
        command += ["--runs", str(folder / "runs"), "--replay-checkpoints", str(folder / "replay")]
        for setting in settings:
            command += ["--set", setting]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._supervisor = psutil.Process(self.process.pid)

    @property
    def run(self) -> Path:
        (found,) = (path for path in (self.folder / "runs").iterdir() if path.is_dir())
        return found

    def said(self) -> str:
        return self.output.read_text()

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        except (OSError, ValueError):
            return {"steps": 0, "updates": 0, "state": ""}
        return found

    def descendants(self) -> list[psutil.Process]:
        return self._supervisor.children(recursive=True)

    def service(self, name: str) -> psutil.Process | None:
        for process in self._supervisor.children():
            try:
                if name in process.cmdline():
                    return process
            except psutil.Error:
                continue
        return None

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"waited for {what}:\n{self.said()}"
            time.sleep(0.1)

    def url(self) -> str:
        """Return where the page is, with a slash at its end."""
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.said())
        assert found is not None
        return found[0]

    def stop(self) -> None:
        """Ask for an end as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60.0) == 0, self.said()

    def evaluate(self, query: str) -> bytes:
        token = read_token(self.folder / "runs" / ".token")
        url = f"{self.url()}evaluate?checkpoint=latest&{query}"
        status, content = answer(url, Authorization=f"Bearer {token}")
        assert status == 200, content
        return content


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., System]]:
    started: list[System] = []

    def make(*settings: str, **environment: str) -> System:
        started.append(System(tmp_path, *settings, **environment))
        return started[-1]

    yield make
    for system in started:
        if system.process.poll() is None:
            system.process.kill()
            system.process.wait(10.0)


@pytest.mark.timeout(400)
def test_a_run_survives_the_loss_of_each_service_shows_its_policy_and_keeps_its_token(
    start: Callable[..., System],
) -> None:
    system = start(
        "services.host=0.0.0.0",  # so that everybody asks for the token
        "learner.max_steps=200000",
        "replay.updates_per_step=0.25",
        "replay.capacity=100000",
        "replay.checkpoint_period_seconds=2",
        "checkpoint.period_steps=500",
        "evaluation.period_steps=200000",
    )
    system.wait(
        lambda: list(system.folder.glob("runs/*/checkpoints/step-*[1-9]*")),
        "a checkpoint of training",
    )
    ready = "the evaluation worker is ready"
    system.wait(lambda: ready in _log(system, "evalserver"), "the first server")
    # Neither of the first two needs the other.
    for names in (("replay", "evalserver"), ("learner",), ("actor",)):
        before = system.status()
        victims = {name: system.service(name) for name in names}
        for victim in victims.values():
            assert victim is not None, victims
            victim.send_signal(signal.SIGKILL)

        def are_back(victims: dict[str, psutil.Process] = victims) -> bool:
            found = {name: system.service(name) for name in victims}
            return all(new not in (None, victims[name]) for name, new in found.items())

        system.wait(are_back, f"{names} to be started again")
        system.wait(
            lambda before=before: (
                system.status()["steps"] > before["steps"] + 500
                and system.status()["updates"] > before["updates"] + 100
            ),
            f"training to go on without the first {names}",
        )
    system.wait(
        lambda: _log(system, "evalserver").count(ready) == 2,
        "the second server",
    )
    found = json.loads(system.evaluate("format=json&episodes=2"))
    assert len(found["episodes"]) == 2
    with av.open(io.BytesIO(system.evaluate("format=mp4&width=64&height=64"))) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert frames[0].shape == (64, 64, 3)
    assert frames[0].std() > 5.0
    status = system.status()
    assert status["replay_ratio"] == pytest.approx(0.25, rel=0.1)
    everything = system.descendants()
    itself = psutil.Process(system.process.pid)
    look_at_what_runs(
        system.folder / "runs", system.url(), [itself, *everything], 1 + len(SERVICES)
    )
    system.stop()
    assert psutil.wait_procs(everything, timeout=1.0)[1] == []
    look_at_what_is_left(system.folder, system.run / "logs", len(SERVICES))


@pytest.mark.timeout(200)
def test_a_short_run_finishes_by_itself_and_unpickles_nothing(
    start: Callable[..., System], tmp_path: Path
) -> None:
    (tmp_path / "watcher").mkdir()
    (tmp_path / "watcher" / "sitecustomize.py").write_text(_WATCHER)
    audit = tmp_path / "audit"
    system = start(PYTHONPATH=str(tmp_path / "watcher"), APPRENTICE_AUDIT=str(audit))
    assert system.process.wait(120.0) == 0, system.said()
    status = system.status()
    assert (status["state"], len(status["evaluation_returns"])) == ("finished", 2)
    assert (system.run / "checkpoints" / "step-000000001000").is_dir()
    noted = audit.read_text().splitlines()
    watched = "\n".join(line for line in noted if line.startswith("watching"))
    assert all(f"'-m', '{module}'" in watched for module in (*SERVICES, "learner.evaluating"))
    assert [line for line in noted if line.startswith("unpickled")] == []


@pytest.mark.timeout(200)
def test_a_killed_supervisor_takes_everything_with_it(start: Callable[..., System]) -> None:
    system = start("learner.max_steps=1000000", "evaluation.episodes=200")
    system.wait(
        lambda: any("learner.evaluating" in _command(child) for child in system.descendants()),
        "an evaluation under way",
    )
    everything = system.descendants()
    assert len(everything) >= len(SERVICES) + 2  # the children of learner and evaluation server
    reachable = {tuple(_command(process)[2:4]): _reachable_ports(process) for process in everything}
    # Reverb cannot be bound to an interface; nothing else listens beyond this machine.
    assert [module for module, ports in reachable.items() if ports] == [("-m", "replay")]
    system.process.kill()
    assert psutil.wait_procs(everything, timeout=5.0)[1] == []


def _reachable_ports(process: psutil.Process) -> list[int]:
    """Return the ports that a process listens on beyond loopback."""
    connections = process.net_connections(kind="tcp")
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    return [
        port
        for host, port in listening
        if not ipaddress.ip_address(host.removeprefix("::ffff:")).is_loopback
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _log(system: System, service: str) -> str:
    return (system.run / "logs" / f"{service}.log").read_text().lower()
