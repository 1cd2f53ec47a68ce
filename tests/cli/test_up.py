from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cli.fake_run import write_services
from tests.cli.fake_services import read, wait_until

_ROOT = Path(__file__).resolve().parents[2]
_TINY = """
task: reacher-easy
actor: {num_actors: 2}
services: {evalserver_port: 0}
"""
_SERVICES = ("replay", "learner", "actor-0", "actor-1", "evalserver")


class _Up:
    """`apprentice up` over fake services, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.process: subprocess.Popen[bytes] | None = None
        self.children: list[psutil.Process] = []
        write_services(folder / "fakes")
        (folder / "tiny.yaml").write_text(_TINY)

    def start(self, *arguments: str, terminal: int | None = None) -> None:
        path = os.pathsep.join((str(self.folder / "fakes"), str(_ROOT)))
        with self.output.open("ab") as output:
            target = output if terminal is None else terminal
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cli", "up", *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color"},
                stdin=target,
                stdout=target,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def run_folder(self) -> Path:
        (found,) = (self.folder / "runs").iterdir()
        return found

    def log(self, service: str) -> str:
        return read(self.run_folder / "logs" / f"{service}.log")

    def wait_until_all_run(self) -> None:
        def all_run() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, read(self.output)
            runs = self.folder / "runs"
            if not runs.exists() or not any(runs.iterdir()):
                return False
            return all(self.log(service).count("ready") for service in _SERVICES)

        wait_until(all_run, 30.0)
        assert self.process is not None
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert len(self.children) == len(_SERVICES)

    def order(self, text: str) -> None:
        (self.run_folder / "orders").write_text(text)

    def end(self, seconds: float = 20.0) -> int:
        """Wait for the end and return the exit code; nothing may be left."""
        assert self.process is not None
        code = self.process.wait(timeout=seconds)
        _, alive = psutil.wait_procs(self.children, timeout=1)
        assert alive == []
        return code


@pytest.fixture
def up(tmp_path: Path) -> Iterator[_Up]:
    started = _Up(tmp_path)
    yield started
    if started.process is not None and started.process.poll() is None:
        started.process.kill()
        started.process.wait(timeout=5)


def test_ctrl_c_stops_everything_in_order_and_names_the_last_checkpoint(up: _Up) -> None:
    up.start("tiny.yaml")
    up.wait_until_all_run()
    assert up.process is not None
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0
    output = read(up.output)
    assert all("left in order" in up.log(service) for service in _SERVICES)
    assert f"last checkpoint: {up.run_folder}/checkpoints/step-000000000042" in output
    assert f"apprentice up --resume {up.run_folder.name}" in output
    assert "listens on all interfaces" in output


def test_sigterm_stops_everything_in_order(up: _Up) -> None:
    up.start("tiny.yaml")
    up.wait_until_all_run()
    assert up.process is not None
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert all("left in order" in up.log(service) for service in _SERVICES)


def test_killed_supervisor_leaves_no_service_behind(up: _Up) -> None:
    up.start("tiny.yaml")
    up.wait_until_all_run()
    assert up.process is not None
    up.process.kill()
    up.process.wait(timeout=5)
    _, alive = psutil.wait_procs(up.children, timeout=5)
    assert alive == []


def test_terminal_gets_a_live_picture_and_is_restored_after_ctrl_c(up: _Up) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    shown = bytearray()

    def picture_is_drawn() -> bool:
        os.set_blocking(master, False)
        with suppress(BlockingIOError):
            shown.extend(os.read(master, 65536))
        return b"of 100 steps" in shown

    up.start("tiny.yaml", terminal=slave)
    try:
        up.wait_until_all_run()
        wait_until(picture_is_drawn)
        assert up.process is not None
        up.process.send_signal(signal.SIGINT)
        wait_until(lambda: picture_is_drawn() and b"go on with" in shown)
        assert up.end() == 0
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(slave)
        os.close(master)
    assert shown.count(b"\x1b[?25l") == 1
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def test_evaluation_server_stays_after_the_run_until_ctrl_c(up: _Up) -> None:
    up.start("tiny.yaml")
    up.wait_until_all_run()
    up.order("finish")
    wait_until(lambda: "left in order" in up.log("replay"))
    assert up.process is not None
    supervisor = psutil.Process(up.process.pid)
    wait_until(lambda: len(supervisor.children()) == 1)
    assert "evalserver" in supervisor.children()[0].cmdline()
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0
    assert "finished at 42 steps, last evaluation 912.0" in read(up.output)


def test_finished_run_exits_by_itself_when_asked_to_and_is_not_resumed(up: _Up) -> None:
    up.start("tiny.yaml", "--exit-when-done")
    up.wait_until_all_run()
    up.order("finish")
    assert up.end() == 0
    up.start("--resume", up.run_folder.name)
    up.children = []
    assert up.end() == 0
    assert "has finished at 42 steps already" in read(up.output)


def test_killed_services_come_back_at_the_same_addresses_and_the_run_finishes(up: _Up) -> None:
    up.start("tiny.yaml", "--exit-when-done")
    up.wait_until_all_run()
    assert up.process is not None
    commands = sorted(child.cmdline() for child in up.children)
    for child in up.children:
        child.kill()
    wait_until(lambda: all(up.log(service).count("ready") == 2 for service in _SERVICES), 30.0)
    up.children = psutil.Process(up.process.pid).children()
    assert sorted(child.cmdline() for child in up.children) == commands
    up.order("finish")
    assert up.end() == 0


def test_configuration_error_of_a_service_stops_everything_and_shows_its_words(up: _Up) -> None:
    up.start("tiny.yaml")
    up.wait_until_all_run()
    up.order("misconfigured")
    assert up.end() == 78
    assert "sac.gama: did you mean sac.gamma?" in read(up.output)
    assert all("left in order" in up.log(s) for s in _SERVICES if s != "learner")


def test_diverged_run_has_failed(up: _Up) -> None:
    up.start("tiny.yaml")
    up.wait_until_all_run()
    up.order("diverge")
    assert up.end() == 71
    output = read(up.output)
    assert "losses are not finite" in output
    assert "failed: learner exited with 71 (training diverged)" in output


def test_resumed_run_goes_on_in_its_folder(up: _Up) -> None:
    up.start("tiny.yaml")
    up.wait_until_all_run()
    assert up.process is not None
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    up.start("--resume", up.run_folder.name, "--exit-when-done")
    wait_until(lambda: all(up.log(service).count("ready") == 2 for service in _SERVICES), 30.0)
    up.order("finish")
    assert up.end() == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tiny.yaml", "--set", "sac.gama=0.9"), r"sac\.gama.*(\n.*)*did you mean.*gamma"),
        (("tiny.yaml", "--set", "learner.max_steps=soon"), r"learner\.max_steps"),
        (("tiny.yaml", "--set", "replay.warmup_steps=2000000"), "replay"),
        (("tini",), "tini"),
        (("tiny.yaml", "--variant", "7"), "7"),
        ((), "EXPERIMENT"),
        (("--resume", "gone"), "gone"),
        (("--resume", "gone", "--set", "seed=1"), "leave out --set"),
    ],
)
def test_configuration_errors_end_within_two_seconds_before_anything_starts(
    up: _Up, arguments: tuple[str, ...], complaint: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    up.start(*arguments)
    assert up.end() == 78
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, not wall time: the machine that runs the tests may be busy.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    assert re.search(complaint, read(up.output)), read(up.output)
    assert not (up.folder / "runs").exists()
