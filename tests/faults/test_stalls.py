"""An environment whose step never returns: the actor ends itself, is started again, and nobody else notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from apprentice import exit_codes
from apprentice.experiments import save_experiment
from cli.launch import judge
from cli.processes import Service
from cli.supervisor import RestartPolicy, ServiceState, Supervisor
from learner.service import LearnerService
from replay.reader import FeedReader
from tests.actor.test_process import EXPERIMENT, SPEC
from tests.evalserver.serving import free_port
from tests.replay.serving import ROOT, ServerProcess

STALL_SECONDS = 10.0
STALLING_ACTOR = """
import sys, time
from pathlib import Path
import apprentice.environments as environments

stalled, make_environment = Path(sys.argv.pop(1)), environments.make_environment

def make(*arguments):
    environment = make_environment(*arguments)
    step, num_steps = environment.step, 0
    def step_that_stalls(action):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 100 and not stalled.exists():
            stalled.touch()
            time.sleep(3600)
        return step(action)
    environment.step = step_that_stalls
    return environment

environments.make_environment = make
from actor.__main__ import main
sys.exit(main())
"""
HOLD_PYTHONS_LOCK = """
import ctypes, time
from apprentice.watchdog import Watchdog
watchdog = Watchdog("test", 1.0)
watchdog.start()
time.sleep(0.6)
def hang():
    ctypes.PyDLL(None).sleep(60)  # unlike CDLL it keeps the lock
hang()
"""


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path / "replay", (SPEC,), EXPERIMENT.replay)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_actor_whose_environment_stalls_is_started_again_and_goes_on(
    tmp_path: Path, replay: ServerProcess
) -> None:
    settings = EXPERIMENT.actor.model_copy(update={"stall_seconds": STALL_SECONDS})
    experiment = EXPERIMENT.model_copy(update={"actor": settings})
    learner = LearnerService(experiment, [SPEC], "127.0.0.1", 0, "run")
    addresses = ("--learner", f"127.0.0.1:{learner.start()}", "--replay", replay.address)
    stalled = tmp_path / "stalled"
    service = Service(
        "actor-0",
        (sys.executable, "-c", STALLING_ACTOR, str(stalled), *addresses),
        stop_seconds=5.0,
        environment={"PYTHONPATH": str(ROOT)},
    )
    reader = FeedReader(replay.address, [SPEC], experiment.replay)
    incarnations: list[int] = []
    events: list[str] = []
    asked = False

    def tick(states: Sequence[ServiceState]) -> None:
        nonlocal asked
        for segment in reader.poll(16, 0.0):
            if segment.incarnation not in incarnations:
                incarnations.append(segment.incarnation)
        if len(incarnations) == 2 and not asked:
            asked = True
            os.kill(os.getpid(), signal.SIGINT)

    supervisor = Supervisor(
        [service],
        tmp_path,
        lambda service, code: judge(service, code, None),
        RestartPolicy(first_delay_seconds=0.1),
        events.append,
        tick,
    )
    try:
        outcome = supervisor.run(seconds=300.0)
        log = (tmp_path / "actor-0.log").read_text()
        assert outcome.reason == "SIGINT", log
        (crash,) = [event for event in events if "starting it again" in event]
        assert "exited with 70" in crash
        assert "in step_that_stalls" in log  # where it was, for whoever reads the log
        assert stalled.exists()
        assert len(learner.actors()) == 2  # the lease of the first has not ended yet
    finally:
        reader.close()
        learner.stop(0.1)


def test_code_that_never_gives_pythons_lock_back_ends_the_process_too() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HOLD_PYTHONS_LOCK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55.0,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Timeout" in done.stderr
    assert "in hang" in done.stderr
    assert time.monotonic() - started < 50.0


HUNG_EVENT_LOOP = """
import sys, time
import evalserver.__main__ as server
import evalserver.app as app

server.STALL_SECONDS, server.BEAT_SECONDS = 3.0, 1
create_app = app.create_app

def create(*arguments, **more):
    made = create_app(*arguments, **more)
    async def hang():
        time.sleep(3600)
    made.add_api_route("/hang", hang)
    return made

app.create_app = create
sys.exit(server.main())
"""
HUNG_REVERB = """
import sys, time
import replay.server as server
from replay.connection import Connection

server.STALL_SECONDS, server._STATUS_SECONDS = 3.0, 0.2
began, sizes = time.monotonic(), Connection.sizes

def sizes_until_it_hangs(connection):
    if time.monotonic() - began > 15.0:
        raise server.ReplayUnavailable("Reverb does not answer")
    return sizes(connection)

Connection.sizes = sizes_until_it_hangs
from replay.__main__ import main
sys.exit(main())
"""


def test_an_evaluation_server_whose_event_loop_hangs_ends_itself(tmp_path: Path) -> None:
    port = free_port()
    flags = ["--runs", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", HUNG_EVENT_LOOP, *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60.0
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=2.0).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/hang", timeout=60.0)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == exit_codes.STALLED
    assert "made no progress for too long" in said


def test_a_replay_server_whose_reverb_hangs_ends_itself(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.yaml"
    save_experiment(EXPERIMENT, experiment)
    flags = ["--experiment", str(experiment), "--port", str(free_port())]
    flags += ["--checkpoints", str(tmp_path / "checkpoints")]
    process = subprocess.run(
        [sys.executable, "-c", HUNG_REVERB, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == exit_codes.STALLED, process.stderr
    assert "made no progress for too long" in process.stderr
