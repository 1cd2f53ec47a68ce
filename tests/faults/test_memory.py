"""Memory that fills up: replay stays within what its settings say, and the kernel's kill costs a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from apprentice.config import ReplaySettings
from apprentice.types import ArraySpec, EnvironmentSpec, Segment
from cli.processes import Service
from cli.supervisor import RestartPolicy, ServiceState, Supervisor
from replay.reader import FeedReader
from replay.tables import REVERB_BASE_BYTES, full_tables_bytes
from replay.writer import SegmentWriter
from tests.cli.fake_services import judge
from tests.evalserver.serving import Server, make_run, needs_graphics, workers_of
from tests.replay.cases import LENGTH, make_segment
from tests.replay.serving import ServerProcess

OVERHEAD_BYTES = 64 << 20
WIDE = EnvironmentSpec(
    "wide-task",
    "wide-task",
    {"state": ArraySpec((2000,), "float32")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.01,
)
SEGMENTS_KEPT = 1500
WIDE_SETTINGS = ReplaySettings(
    capacity=SEGMENTS_KEPT * LENGTH,
    segment_length=LENGTH,
    feed_segments=4,
    warmup_steps=1,
    checkpoint_period_seconds=3600.0,
)
LIMIT_BYTES = 128 << 20
ALLOCATE = """
import time
print("allocating", flush=True)
held = [bytearray(b"x") * (1 << 20) for _ in range(1024)]
print("the limit was not one", flush=True)
time.sleep(60)
"""


def wide_segment(number: int, values: np.random.Generator) -> Segment:
    """Build a segment that no compression makes smaller."""
    state = values.standard_normal((LENGTH + 1, 2000), np.float32)
    return make_segment(episode=number)._replace(observation={"state": state})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_full_tables_take_the_memory_that_was_promised_and_no_more(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "replay", (WIDE,), WIDE_SETTINGS)
    writer = reader = None
    try:
        server.start()
        writer = SegmentWriter(server.address, (WIDE,), WIDE_SETTINGS)
        reader = FeedReader(server.address, (WIDE,), WIDE_SETTINGS)
        process, values = psutil.Process(server.process.pid), np.random.default_rng(0)
        resident = [process.memory_info().rss]
        for round_number in range(3):
            for number in range(SEGMENTS_KEPT):
                writer.append(wide_segment(round_number * SEGMENTS_KEPT + number, values), 60.0)
                reader.poll(4, 0.0)
            resident.append(process.memory_info().rss)
        promised = full_tables_bytes((WIDE,), WIDE_SETTINGS)
        tables = promised - REVERB_BASE_BYTES
        assert tables > 100e6
        assert 0.8 * tables < resident[1] - resident[0] < tables + OVERHEAD_BYTES
        assert resident[3] - resident[1] < OVERHEAD_BYTES
        assert max(resident) < promised + OVERHEAD_BYTES
    finally:
        if reader is not None:
            reader.close()
        if writer is not None:
            writer.close(0.5)
        server.close()


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group whose processes may use LIMIT_BYTES, where one can be made."""
    name = f"apprentice-test-{uuid.uuid4().hex[:8]}"
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / root / name
        try:
            group.mkdir()
            (group / limit).write_text(str(LIMIT_BYTES))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("needs a control group with a limit of memory, which root can make")


def test_a_service_that_the_kernel_kills_for_its_memory_is_explained_and_started_again(
    tmp_path: Path, limited: Path
) -> None:
    swap = psutil.swap_memory().total
    if swap:
        pytest.skip("with swap space the limit only makes it slow")
    join = f'echo $$ > {limited}/cgroup.procs; exec "$0" -I -S -c "$1"'
    service = Service("actor-0", ("sh", "-c", join, sys.executable, ALLOCATE), 5.0)
    events: list[str] = []
    asked = False

    def tick(states: Sequence[ServiceState]) -> None:
        nonlocal asked
        if states[0].restarts == 2 and not asked:
            asked = True
            os.kill(os.getpid(), signal.SIGINT)

    policy = RestartPolicy(first_delay_seconds=0.1)
    outcome = Supervisor([service], tmp_path, judge, policy, events.append, tick).run(60.0)
    log = (tmp_path / "actor-0.log").read_text()
    assert outcome.reason == "SIGINT", (log, events)
    assert log.count("allocating") >= 2
    assert "the limit was not one" not in log
    restarts = [event for event in events if "starting it again" in event]
    assert len(restarts) == 2
    for event in restarts:
        assert "by the kernel for lack of memory" in event


@needs_graphics
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_worker_without_memory_costs_its_request_and_not_the_server(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "reach", "reacher-easy")
    server = Server(tmp_path / "runs", tmp_path / "log")
    try:
        server.wait_until_ready()
        large = {"format": "gif", "width": 640, "height": 640, "fps": 50}
        assert server.get("/evaluate", checkpoint=run, max_steps=2, **large).status == 200
        (worker,) = workers_of(server)
        space = worker.memory_info().vms + (64 << 20)
        worker.rlimit(psutil.RLIMIT_AS, (space, space))
        reply = server.get("/evaluate", checkpoint=run, max_steps=150, **large)
        assert reply.status == 500
        assert reply.json["incident"]
        assert server.get("/livez").status == 200
        assert server.get("/evaluate", checkpoint=run, format="json", max_steps=3).status == 200
        assert worker not in workers_of(server)
    finally:
        server.end()
