"""Services that come back under another address, as recreated containers do: their names are looked up anew."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from learner.service import LearnerService
from replay.locks import free_port
from replay.reader import FeedReader
from tests.faults.relay import Relay
from tests.learner.test_service import EXPERIMENT, SPEC
from tests.replay.cases import SETTINGS, STATE, wait_until
from tests.replay.serving import ROOT, ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FIRST, SECOND = "127.0.0.2", "127.0.0.3"
START_SECONDS = 120.0
MOVE_SECONDS = 30.0
POLICY = {"weight": torch.zeros(3)}
FOLLOW_LEARNER = """
import sys, time
from apprentice.rpc import ActorReport, LearnerClient, LearnerError
client = LearnerClient(sys.argv[1], 4.0)
policies = client.subscribe()
while True:
    update = policies.latest()
    if update is not None:
        print("policy", update.policy_version, flush=True)
    try:
        print("status", client.status().steps, flush=True)
    except LearnerError as error:
        print("nobody", error, flush=True)
    time.sleep(0.2)
"""
WRITE_SEGMENTS = """
import sys
from replay.errors import ReplayUnavailable
from replay.writer import SegmentWriter
from tests.replay.cases import SETTINGS, STATE, make_segment
writer = SegmentWriter(sys.argv[1], (STATE,), SETTINGS)
number = 0
while True:
    try:
        writer.append(make_segment(episode=number), 1.0)
        number += 1
    except ReplayUnavailable as error:
        print("nobody", error, flush=True)
"""


class Elsewhere:
    """A child process that finds `service.test` at the address that we say, whoever asks for it."""

    def __init__(self, folder: Path, code: str, address: str, port: int) -> None:
        self._hosts, self.log = folder / "hosts", folder / "log"
        self.move(address)
        mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, str(self._hosts), sys.executable]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "-c", code, f"service.test:{port}"],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def move(self, address: str) -> None:
        """Change the file in place: it is the mounted one."""
        self._hosts.write_text(f"127.0.0.1 localhost\n{address} service.test\n")

    def said(self, line: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return line in self.log.read_text().splitlines()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10.0)


@pytest.fixture(autouse=True)
def needs_a_mount_namespace() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("a mount namespace of its own needs root (unshare -m)")


@pytest.fixture
def services() -> Iterator[list[LearnerService]]:
    services: list[LearnerService] = []
    yield services
    for service in services:
        service.stop(0.0)


def serve(host: str, port: int, version: int, steps: int) -> LearnerService:
    service = LearnerService(EXPERIMENT, [SPEC], host, port, "run")
    service.start()
    service.set_status("{}", "training", steps, 0)
    service.publish(version, POLICY)
    return service


def port_of(service: LearnerService) -> int:
    return int(service.address.rpartition(":")[2])


def test_a_learner_that_comes_back_elsewhere_is_followed(
    tmp_path: Path, services: list[LearnerService]
) -> None:
    port = free_port()
    services.append(serve(FIRST, port, 1, 11))
    child = Elsewhere(tmp_path, FOLLOW_LEARNER, FIRST, port)
    try:
        wait_until(lambda: child.said("policy 1") and child.said("status 11"), START_SECONDS)
        services.pop().stop(0.0)
        services.append(serve(SECOND, port, 10_001, 22))
        child.move(SECOND)
        wait_until(lambda: child.said("policy 10001") and child.said("status 22"), MOVE_SECONDS)
    finally:
        child.close()


def test_a_learner_whose_old_address_answers_nobody_is_followed_elsewhere(
    tmp_path: Path, services: list[LearnerService]
) -> None:
    port = free_port()
    services.append(serve("127.0.0.1", 0, 1, 11))
    old = Relay(port_of(services[0]), FIRST, port)
    new = None
    child = Elsewhere(tmp_path, FOLLOW_LEARNER, FIRST, port)
    try:
        wait_until(lambda: child.said("policy 1") and child.said("status 11"), START_SECONDS)
        old.stop_passing()  # as when a container's network has gone with it
        services.append(serve("127.0.0.1", 0, 10_001, 22))
        new = Relay(port_of(services[1]), SECOND, port)
        child.move(SECOND)
        wait_until(lambda: child.said("policy 10001") and child.said("status 22"), 2 * MOVE_SECONDS)
    finally:
        child.close()
        old.close()
        if new is not None:
            new.close()


def test_a_replay_server_that_comes_back_elsewhere_gets_the_segments(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "replay")
    reader = FeedReader(server.address, (STATE,), SETTINGS)
    way = child = None

    def episode_beyond(number: int) -> bool:
        return any(segment.episode > number for segment in reader.poll(4, 0.1))

    try:
        server.start()
        port = free_port()
        way = Relay(server.port, FIRST, port)
        child = Elsewhere(tmp_path, WRITE_SEGMENTS, FIRST, port)
        wait_until(lambda: episode_beyond(5), START_SECONDS)
        way.close()
        way = Relay(server.port, SECOND, port)
        child.move(SECOND)
        newest = 0

        def drained() -> bool:
            nonlocal newest
            found = reader.poll(4, 0.2)
            newest = max([newest, *(segment.episode for segment in found)])
            return not found

        wait_until(drained)
        # Reverb's gRPC looks names up at most once in 30 s, and tells nobody how to change that.
        wait_until(lambda: episode_beyond(newest + 20), 2 * MOVE_SECONDS)
    finally:
        if child is not None:
            child.close()
        if way is not None:
            way.close()
        reader.close()
        server.close()
