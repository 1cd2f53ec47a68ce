"""Orders for a run that is going on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apprentice import exit_codes
from apprentice.config import Experiment
from apprentice.runs import RunFolder, RunStatus
from apprentice.tokens import ensure_token
from cli.main import main
from learner.service import LearnerService

STATES = {"pause": "paused", "resume": "training", "stop": "stopped"}


class FakeLearner:
    """A real service whose loop does nothing but obey."""

    def __init__(self, runs: Path, token: str | None = None) -> None:
        experiment = Experiment(name="test", task="reacher-easy")
        self.folder = RunFolder.create(runs, experiment)
        self.service = LearnerService(experiment, [], "127.0.0.1", 0, token=token)
        self.service.start()
        self.obeyed: list[str] = []
        self.report("training")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._obey)
        self._thread.start()

    def report(self, state: str) -> None:
        fields = {"run": self.folder.path.name, "experiment": "test", "task": "t", "max_steps": 9}
        status = {**fields, "state": state, "learner": self.service.address, "steps": 7}
        self.folder.write_status(RunStatus.model_validate(status))
        self.service.set_status("{}", state, 7, 0)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(10.0)
        self.service.stop(grace=0.1)

    def _obey(self) -> None:
        while not self._closed.wait(0.02):
            for command in self.service.commands():
                self.obeyed.append(command)
                self.report(STATES.get(command, "training"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FakeLearner]]:
    started: list[FakeLearner] = []

    def make(**settings: str) -> FakeLearner:
        started.append(FakeLearner(tmp_path, **settings))
        return started[-1]

    yield make
    for learner in started:
        learner.close()


def order(runs: Path, *words: str) -> int:
    return main(["control", *words, "--runs", str(runs)])


def test_a_run_is_paused_resumed_and_stopped_by_its_name(
    tmp_path: Path, start: Callable[..., FakeLearner], capsys: pytest.CaptureFixture[str]
) -> None:
    learner = start()
    run = learner.folder.path.name
    capsys.readouterr()
    for action in ("pause", "resume", "stop"):
        assert order(tmp_path, action, run) == 0
        assert capsys.readouterr().out == f"run {run}: {STATES[action]} at 7 steps\n"
    assert learner.obeyed == ["pause", "resume", "stop"]


def test_the_newest_run_is_meant_where_none_is_named(
    tmp_path: Path, start: Callable[..., FakeLearner], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    newest = start()
    assert order(tmp_path, "checkpoint") == 0
    assert newest.folder.path.name in capsys.readouterr().out


def test_the_token_of_the_runs_is_used(
    tmp_path: Path, start: Callable[..., FakeLearner], capsys: pytest.CaptureFixture[str]
) -> None:
    learner = start(token=ensure_token(tmp_path / ".token"))
    assert order(tmp_path, "pause") == 0
    other = tmp_path / "other"
    ensure_token(other)
    assert order(tmp_path, "resume", "--token-file", str(other)) == exit_codes.FAILED
    assert "token" in capsys.readouterr().err
    assert learner.obeyed == ["pause"]


def test_a_run_that_is_over_takes_no_orders(
    tmp_path: Path, start: Callable[..., FakeLearner], capsys: pytest.CaptureFixture[str]
) -> None:
    assert order(tmp_path, "pause") == exit_codes.CONFIGURATION
    assert "found none" in capsys.readouterr().err
    learner = start()
    learner.report("finished")
    assert order(tmp_path, "pause") == exit_codes.FAILED
    assert "expected run" in capsys.readouterr().err
    assert order(tmp_path, "pause", "another") == exit_codes.CONFIGURATION
    assert "no such run" in capsys.readouterr().err
    assert learner.obeyed == []
