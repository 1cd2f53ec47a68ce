"""Servers, writers and readers that die and come back; segment identities before and after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from apprentice.types import EnvironmentSpec, SegmentId
from replay.errors import ReplayMismatch, ReplayUnavailable
from replay.reader import FeedReader
from replay.rings import Ring
from replay.writer import SegmentWriter
from tests.replay.cases import (
    LENGTH,
    PIXELS,
    SETTINGS,
    STATE,
    ids,
    make_segment,
    refuses,
    wait_until,
)
from tests.replay.conftest import MakeServer
from tests.replay.serving import ROOT, ServerProcess

FREQUENT = SETTINGS.model_copy(update={"checkpoint_period_seconds": 0.4})


class Learner:
    """Reads the feed into a ring, in a thread."""

    def __init__(self, address: str) -> None:
        self.reader = FeedReader(address, (STATE,), SETTINGS)
        self.ring = Ring(STATE, SETTINGS.capacity, LENGTH)
        self.duplicates = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            for segment in self.reader.poll(8, 0.1):
                self.duplicates += not self.ring.append(segment)

    def holds(self, episodes: range) -> bool:
        return {i.episode for i in self.ring.identities()} >= set(episodes)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(10.0)
        self.reader.close()


def durable(server: ServerProcess) -> set[SegmentId]:
    """Return what the task table holds."""
    reader = FeedReader(server.address, (STATE,), server.settings)
    found = ids(list(reader.recover(set())))
    reader.close()
    return found


def test_writer_and_reader_recover_after_the_server_was_killed(make_server: MakeServer) -> None:
    server = make_server(settings=FREQUENT).start()
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    learner = Learner(server.address)
    try:
        for number in range(10):
            writer.append(make_segment(episode=number))
        wait_until(lambda: learner.holds(range(10)))
        server.wait_for_checkpoints(server.status()["checkpoints"] + 2)
        server.kill()
        number, refusals = 10, 0
        started = time.monotonic()
        while refusals < 2:  # the window under way fills, then the writer says so and keeps nothing
            try:
                writer.append(make_segment(episode=number), timeout_seconds=0.6)
                number += 1
            except ReplayUnavailable as error:
                assert "does not answer" in str(error)
                refusals += 1
        assert 10 < number <= 10 + writer.max_pending_segments
        assert time.monotonic() - started < 10.0
        server.restart()
        up = time.monotonic()
        while number < 20:
            writer.append(make_segment(episode=number), timeout_seconds=30.0)
            number += 1
        writer.flush(30.0)
        wait_until(lambda: learner.holds(range(20)))
        assert time.monotonic() - up < 10.0
        assert (
            learner.duplicates <= 4 + writer.max_pending_segments
        )  # what the checkpoint's feed held
        assert learner.reader.metrics()["reader/reconnects"] >= 1
        assert {i.episode for i in durable(server)} == set(range(20))
    finally:
        learner.close()
        writer.close(0.5)


def test_an_orderly_restart_keeps_every_identity(make_server: MakeServer) -> None:
    server = make_server().start()
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    learner = Learner(server.address)
    try:
        for number in range(30):
            writer.append(make_segment(episode=number))
        writer.flush()
        wait_until(lambda: learner.holds(range(30)))
        before = durable(server)
        assert len(before) == 30
        assert server.terminate() == 0
        server.restart()
        assert server.status()["state"] == "serving"
        assert server.status()["loaded"] is not None
        assert durable(server) == before
        for number in range(30, 35):
            writer.append(make_segment(episode=number), timeout_seconds=30.0)
        wait_until(lambda: learner.holds(range(35)))
        index, digest = learner.ring.index(), learner.ring.digest()
        again = Ring(STATE, SETTINGS.capacity, LENGTH)
        reader = FeedReader(server.address, (STATE,), SETTINGS)
        assert again.restore(reader.recover(set()), index) == 0
        reader.close()
        assert again.digest() == digest
    finally:
        learner.close()
        writer.close(0.5)


MORE = replace(STATE, task="another", task_id="another")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ((PIXELS,), "has no table 'task/cheetah-run' but .*'task/reacher-easy'.*another experiment"),
        ((STATE, MORE), r"has tables \['task/another'\] beside those .*another one, with more tasks"),
    ],
)  # fmt: skip
def test_a_server_that_comes_back_with_other_tasks_is_refused_by_both_ends(
    make_server: MakeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    others: tuple[EnvironmentSpec, ...],
    message: str,
) -> None:
    server = make_server().start()
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    reader = FeedReader(server.address, (STATE,), SETTINGS)
    reader.check()
    writer.append(make_segment())
    wait_until(lambda: reader.poll(1, 0.1))
    server.kill()
    reader.check()  # nobody answers, which says nothing
    server.restart(specs=others, folder=tmp_path / "another")
    with pytest.raises(ReplayMismatch, match=message):
        reader.check()

    wait_until(lambda: refuses(reader))
    with pytest.raises(ReplayMismatch, match=message):
        for episode in range(1, 99):  # the first are under way before it is known
            writer.append(make_segment(episode=episode), timeout_seconds=30.0)
    reader.close()
    writer.close(0.5)
    assert "may not have reached" in capsys.readouterr().out


READ_FOR_EVER = """
import sys
from apprentice.logs import configure_logging
configure_logging("learner")
from replay.reader import FeedReader
from tests.replay.cases import SETTINGS, STATE
reader = FeedReader(sys.argv[1], (STATE,), SETTINGS)
print("ready", flush=True)
while True:
    for segment in reader.poll(1, 1.0):
        print(segment.episode, flush=True)
"""


def test_a_killed_learner_loses_nothing_that_its_successor_cannot_recover(
    make_server: MakeServer,
) -> None:
    server = make_server().start()
    first = subprocess.Popen(
        [sys.executable, "-c", READ_FOR_EVER, server.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert first.stdout is not None
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    for number in range(5):
        writer.append(make_segment(episode=number), timeout_seconds=20.0)
    assert first.stdout.readline() == "ready\n"
    seen = [int(first.stdout.readline()) for _ in range(5)]
    assert seen == list(range(5))
    first.kill()
    first.wait(10.0)
    first.stdout.close()
    # The dead reader's request is still in the server. The successor's first act is to satisfy it.
    reader = FeedReader(server.address, (STATE,), SETTINGS)
    ring = Ring(STATE, SETTINGS.capacity, LENGTH)
    for segment in reader.recover(set()):
        ring.append(segment)
    assert ids_of(ring) == set(range(5))
    assert reader.poll(1, 1.5) == []
    for number in range(5, 25):
        writer.append(make_segment(episode=number))
        for segment in reader.poll(1, 5.0):
            ring.append(segment)
    writer.flush()
    deadline = time.monotonic() + 10.0
    while len(ids_of(ring)) < 25 and time.monotonic() < deadline:
        for segment in reader.poll(1, 0.2):
            ring.append(segment)
    assert ids_of(ring) == set(range(25))
    reader.close()
    writer.close()


def ids_of(ring: Ring) -> set[int]:
    return {identity.episode for identity in ring.identities()}


@pytest.mark.slow
def test_a_server_that_hangs_blocks_nobody_past_the_deadline(make_server: MakeServer) -> None:
    server = make_server().start()
    reader = FeedReader(server.address, (STATE,), SETTINGS)
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    writer.append(make_segment())
    writer.flush()
    wait_until(lambda: bool(reader.poll(1, 0.1)))
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            started = time.monotonic()
            assert reader.poll(1, 0.3) == []
            assert time.monotonic() - started < 0.8
        with pytest.raises(ReplayUnavailable):
            for number in range(10):
                started = time.monotonic()
                writer.append(make_segment(episode=number), timeout_seconds=1.0)
        assert time.monotonic() - started < 4.0
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    writer.append(make_segment(episode=50), timeout_seconds=20.0)
    wait_until(lambda: any(s.episode == 50 for s in reader.poll(4, 0.1)))
    reader.close()
    writer.close()


@pytest.mark.slow
def test_nobody_waits_at_the_exit_for_a_server_that_is_gone(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server().start()
    script = (
        "import sys; from replay.writer import SegmentWriter; from replay.reader import FeedReader; "
        "from tests.replay.cases import *\n"
        "r = FeedReader(sys.argv[1], (STATE,), SETTINGS); r.poll(1, 1.0)\n"
        "w = SegmentWriter(sys.argv[1], (STATE,), SETTINGS); w.append(make_segment())\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "w.close(1.0); r.close()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, server.address],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    server.kill()
    started = time.monotonic()
    process.communicate("go\n", timeout=30.0)
    assert process.returncode == 0
    assert time.monotonic() - started < 12.0
