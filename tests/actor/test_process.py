"""`python -m actor` itself, between a real learner's service and a real replay server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apprentice.config import Experiment, NetworkSettings
from apprentice.environments import environment_spec, experiment_specs
from apprentice.networks import build_policy
from apprentice.types import Segment
from learner.service import LearnerService
from replay.locks import free_port
from replay.reader import FeedReader
from tests.family_cases import family_experiment
from tests.replay.cases import wait_until
from tests.replay.serving import ROOT, ServerProcess
from tests.test_exporter import scrape

START_SECONDS = 90.0  # torch, TensorFlow and dm_control are imported, on a machine that may be busy
LEAVE_SECONDS = 10.0
EXPERIMENT = Experiment.model_validate(
    {
        "name": "process",
        "task": "cartpole-balance",
        "network": {"hidden_size": 16},
        "replay": {
            "capacity": 4000,
            "segment_length": 16,
            "feed_segments": 4,
            "warmup_steps": 100,
        },
        "actor": {"environments": 2},
    }
)
SPEC = environment_spec(EXPERIMENT.task, EXPERIMENT.observation_keys, EXPERIMENT.environment)
TENSORS = build_policy(EXPERIMENT, SPEC).state_dict()


class ActorProcess:
    """One `python -m actor` and its log."""

    def __init__(self, log: Path, learner: str, replay: str, *flags: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "actor", "--learner", learner, "--replay", replay, *flags]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stderr=output, cwd=ROOT, env={**os.environ, "MUJOCO_GL": "egl"}
            )

    def wait(self, seconds: float) -> int:
        """Return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the actor did not end within {seconds} s: {self.log.read_text()}")

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(LEAVE_SECONDS)


StartActor = Callable[..., ActorProcess]


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("actor") / "replay"
    server = ServerProcess(folder, (SPEC,), EXPERIMENT.replay)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def reader(replay: ServerProcess) -> Iterator[FeedReader]:
    reader = FeedReader(replay.address, [SPEC], EXPERIMENT.replay)
    yield reader
    reader.close()


class ServedLearner:
    """A learner's service that may go and come back on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self, experiment: Experiment = EXPERIMENT, lease_seconds: float = 30.0) -> None:
        self.service = LearnerService(
            experiment, [SPEC], "127.0.0.1", self.port, "run", lease_seconds
        )
        self.service.start()


@pytest.fixture
def learner() -> Iterator[ServedLearner]:
    served = ServedLearner()
    yield served
    served.service.stop(0.1)


@pytest.fixture
def start(tmp_path: Path, learner: ServedLearner, replay: ServerProcess) -> Iterator[StartActor]:
    actors: list[ActorProcess] = []

    def make(*flags: str) -> ActorProcess:
        log = tmp_path / f"actor-{len(actors)}.log"
        actors.append(ActorProcess(log, learner.address, replay.address, *flags))
        return actors[-1]

    yield make
    for actor in actors:
        if actor.process.poll() is None:
            actor.process.kill()
            actor.process.wait(10.0)


def receive(
    reader: FeedReader,
    learner: ServedLearner,
    wanted: Callable[[Segment], bool] = lambda segment: True,
    seconds: float = START_SECONDS,
) -> list[Segment]:
    """Take segments of living actors until one is as wanted; return them all."""
    segments: list[Segment] = []

    def look() -> bool:
        found = reader.poll(4, 0.1)
        living = {state.incarnation for state in learner.service.actors()}
        segments.extend(segment for segment in found if segment.incarnation in living)
        return any(map(wanted, segments))

    wait_until(look, seconds)
    return segments


def test_it_acts_at_random_then_as_published_draws_nothing_and_leaves_when_the_run_is_over(
    start: StartActor, learner: ServedLearner, reader: FeedReader
) -> None:
    port = free_port()
    actor = start("--metrics", f"127.0.0.1:{port}")
    segments = receive(reader, learner)
    assert {segment.policy_version for segment in segments} == {0}
    assert {segment.actor for segment in segments} == {0}
    learner.service.publish(1, TENSORS)
    segments += receive(reader, learner, lambda segment: segment.policy_version == 1, 20.0)
    identities = [segment.id for segment in segments]
    assert len(set(identities)) == len(identities)
    starts = {
        segment.observation["state"][0].tobytes() for segment in segments if not segment.first_step
    }
    assert len(starts) == 2  # Two environments, two seeds.
    maps = Path(f"/proc/{actor.process.pid}/maps").read_text()
    assert "libEGL" not in maps
    assert "libOSMesa" not in maps
    wait_until(lambda: learner.service.actors()[0].policy_version == 1)

    def explained() -> bool:
        reader.poll(64, 0.0)
        (state,) = learner.service.actors()
        wall = sum(span.seconds for span in state.spans.values())
        return state.steps > 0 and state.spans["other"].seconds < 0.05 * wall

    wait_until(explained)
    found = scrape(port)
    assert found["apprentice_actor_steps", ("actor",)] > 0
    assert found["apprentice_actor_policy_version", ("actor",)] == 1
    assert found["apprentice_span_seconds_total", ("actor", "physics")] > 0
    learner.service.finish()
    wait_until(lambda: not learner.service.actors())
    assert actor.wait(LEAVE_SECONDS) == 0
    assert "the run is over" in actor.log.read_text()


def test_sigterm_ends_an_actor_that_the_learner_holds_up(
    start: StartActor, learner: ServedLearner, reader: FeedReader
) -> None:
    actor = start()
    receive(reader, learner)

    def held_up() -> bool:
        states = learner.service.actors()
        return bool(states) and "waiting for replay" in states[0].spans

    wait_until(held_up)
    assert actor.terminate() == 0
    assert "asked to stop" in actor.log.read_text()


def test_after_a_kill_another_incarnation_begins_with_the_published_policy(
    start: StartActor, learner: ServedLearner, reader: FeedReader
) -> None:
    learner.service.publish(5, TENSORS)
    killed = start("--slot", "3")
    before = receive(reader, learner, lambda segment: segment.actor == 3)
    newcomer = start("--slot", "3")
    wait_until(lambda: "slot 3 is held by pid" in newcomer.log.read_text(), START_SECONDS)
    killed.process.kill()
    learner.service.stop(0.1)
    learner.start(lease_seconds=1.0)  # The lease would live for 30 seconds.
    learner.service.publish(6, TENSORS)
    old = {segment.incarnation for segment in before}
    after = receive(reader, learner, lambda segment: segment.incarnation not in old)
    found = [segment for segment in after if segment.incarnation not in old]
    assert {segment.policy_version for segment in found} == {6}
    assert {segment.actor for segment in found} == {3}
    assert newcomer.terminate() == 0


def test_a_learner_that_comes_back_with_another_network_ends_the_actor_with_78(
    start: StartActor, learner: ServedLearner, reader: FeedReader
) -> None:
    actor = start()
    receive(reader, learner)
    learner.service.stop(0.1)
    learner.start(EXPERIMENT.model_copy(update={"network": NetworkSettings(hidden_size=32)}))
    assert actor.wait(20.0) == 78
    assert "network: built for" in actor.log.read_text()


def test_an_actor_without_a_learner_waits_and_ends_at_sigterm(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    actor = ActorProcess(tmp_path / "log", nobody, nobody)
    try:
        wait_until(lambda: "waiting to join" in actor.log.read_text(), START_SECONDS)
        assert actor.terminate() == 0
    finally:
        actor.process.kill()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Accepts, and never answers.
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        actor = ActorProcess(tmp_path / "log", address, address)
        try:
            wait_until(lambda: "waiting to join" in actor.log.read_text(), START_SECONDS)
            # Both wait for it when it goes on, the lower number first.
            for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
                actor.process.send_signal(number)
            assert actor.wait(LEAVE_SECONDS) == 128 + signal.SIGTERM
        finally:
            actor.process.kill()


def test_an_actor_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    parent = subprocess.Popen(
        [
            "sh",
            "-c",
            '"$0" -m actor --learner "$1" --replay "$1" 2>"$2" & echo $! >"$3"; wait',
            *(sys.executable, nobody, str(log), str(pid_file)),
        ],
        cwd=ROOT,
    )
    try:
        wait_until(lambda: log.exists() and "waiting to join" in log.read_text(), START_SECONDS)
        pid = int(pid_file.read_text())
        parent.kill()
        parent.wait(5.0)
        wait_until(lambda: not running(pid), LEAVE_SECONDS)
    finally:
        parent.kill()
        if running(int(pid_file.read_text())):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("address", ["localhost", ":50051", "localhost:port"])
def test_a_wrong_address_is_refused_with_78(tmp_path: Path, address: str) -> None:
    actor = ActorProcess(tmp_path / "log", address, "localhost:1")
    assert actor.wait(START_SECONDS) == 78
    assert f"--learner: expected HOST:PORT, found '{address}'" in actor.log.read_text()


STALL = """
import time
from tests.actor.fakes import FakeEnvironment, Stage
import tests.actor.fakes as fakes
from apprentice.watchdog import Watchdog
watchdog = Watchdog("actor", 1.0)
watchdog.start()
fakes.Watchdog = lambda name, seconds: watchdog
steps = []
def stall(action):
    steps.append(action)
    if len(steps) == 10:
        time.sleep(60.0)
Stage([FakeEnvironment(on_step=stall)]).act()
"""


def test_an_environment_that_stalls_ends_the_actor_with_70_and_every_threads_stack() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STALL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert done.returncode == 70, done.stderr
    assert "in stall" in done.stderr
    assert time.monotonic() - started < 50.0


def test_no_two_starts_of_an_actor_have_a_seed_in_common() -> None:
    from actor.starting import environment_seeds

    starts = [(0, 0, 2**63 + 1), (0, 0, 2**63 + 3), (0, 1, 2**63 + 1), (1, 0, 2**63 + 1)]
    seeds = [environment_seeds(*start, 16) for start in starts]
    assert np.unique(seeds).size == 4 * 18
    assert environment_seeds(*starts[0], 16) == seeds[0]
    assert environment_seeds(*starts[0], 4) == seeds[0][:6]


def test_every_task_of_a_family_has_a_seed_that_the_simulation_takes() -> None:
    from actor.starting import _Serving, task_seed

    experiment = family_experiment()
    specs = experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)
    membership = SimpleNamespace(experiment=experiment, specs=specs, slot=0)
    with ExitStack() as stack:
        heartbeats = SimpleNamespace(problem=lambda: None)
        serving = _Serving(membership, 1, "", None, heartbeats)  # type: ignore[arg-type]
        (environment,) = serving._environments([2**32 - 1], stack)
        played = set()
        for _ in specs:
            environment.reset()
            played.add(environment.task_index)
    assert played == {0, 1, 2, 3}
    assert [task_seed(2**32 - 1, task) for task in (0, 1)] == [2**32 - 1, 7918]
    assert [task_seed(5, task) for task in (0, 1)] == [5, 7924]
