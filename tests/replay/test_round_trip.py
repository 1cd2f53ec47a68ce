"""Writer, server and reader together, in calm weather."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from apprentice.types import Ending, Segment
from replay.connection import Connection
from replay.errors import ReplayMismatch, ReplayUnavailable, SegmentRejected
from replay.importing import load_reverb
from replay.reader import FeedReader
from replay.tables import FEED
from replay.writer import SegmentWriter
from tests.replay.cases import (
    PIXELS,
    SETTINGS,
    STATE,
    assert_same,
    ids,
    make_segment,
    refuses,
    wait_until,
)
from tests.replay.conftest import MakeServer
from tests.replay.serving import ROOT, ServerProcess

BOTH = (STATE, PIXELS)


def poll_all(reader: FeedReader, number: int, seconds: float = 20.0) -> list[Segment]:
    """Poll until `number` segments have come."""
    found: list[Segment] = []
    deadline = time.monotonic() + seconds
    while len(found) < number:
        assert time.monotonic() < deadline, f"{len(found)} of {number} segments came"
        found += reader.poll(number - len(found), 0.2)
    return found


def test_segments_of_all_shapes_arrive_unchanged(make_server: MakeServer) -> None:
    # One of its own: in another, wake-ups that ended readers left may take the room of segments nobody polls yet.
    server = make_server(BOTH).start()
    sent = [
        make_segment(episode=1),
        make_segment(episode=2, length=1, ending=Ending.TERMINATED),
        make_segment(PIXELS, task=1, episode=3, first_step=0),
        make_segment(PIXELS, task=1, episode=3, first_step=8, length=5, ending=Ending.ABORTED),
    ]
    writer = SegmentWriter(server.address, BOTH, SETTINGS)
    reader = FeedReader(server.address, BOTH, SETTINGS)
    for segment in sent:
        writer.append(segment)
    writer.flush()
    for expected, found in zip(sent, poll_all(reader, 4), strict=True):
        assert_same(expected, found)
    assert writer.metrics()["writer/transitions"] == 8 + 1 + 8 + 5
    assert reader.metrics()["reader/segments"] == 4
    writer.close()
    reader.close()


def test_poll_returns_in_time_from_an_empty_feed(both_tasks: ServerProcess) -> None:
    reader = FeedReader(both_tasks.address, BOTH, SETTINGS)
    for timeout in (0.0, 0.05, 0.5):
        started = time.monotonic()
        assert reader.poll(5, timeout) == []
        assert time.monotonic() - started < timeout + 0.3
    reader.close()


def test_closing_a_reader_ends_its_threads_and_the_next_one_reads_on(
    both_tasks: ServerProcess,
) -> None:
    # A sampler of a test whose server is gone for good cannot be ended, and may still wait in this process.
    others = set(threading.enumerate())
    for number in range(3):
        reader = FeedReader(both_tasks.address, BOTH, SETTINGS)
        assert reader.poll(1, 0.3) == []
        started = time.monotonic()
        reader.close()
        assert time.monotonic() - started < 3.0
        left = set(threading.enumerate()) - others
        assert not [thread for thread in left if thread.name.startswith("sampler-")]
        writer = SegmentWriter(both_tasks.address, BOTH, SETTINGS)
        writer.append(make_segment(episode=100 + number))
        writer.close()
        reader = FeedReader(both_tasks.address, BOTH, SETTINGS)
        assert [s.episode for s in poll_all(reader, 1)] == [100 + number]
        assert reader.metrics()["reader/rejected_segments"] == 0  # the wake-up is no segment
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["writer", "reader"])
def test_a_process_that_leaves_without_closing_ends(both_tasks: ServerProcess, what: str) -> None:
    code = {
        "writer": "w = SegmentWriter(a, BOTH, SETTINGS); w.append(make_segment(episode=200))",
        "reader": "r = FeedReader(a, BOTH, SETTINGS); print(r.poll(1, 0.5))",
    }[what]
    script = (
        "import sys; from replay.writer import SegmentWriter; from replay.reader import FeedReader; "
        "from tests.replay.cases import *; BOTH = (STATE, PIXELS); a = sys.argv[1]; " + code
    )
    result = subprocess.run(
        [sys.executable, "-c", script, both_tasks.address],
        cwd=ROOT,
        timeout=30,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    reader = FeedReader(both_tasks.address, BOTH, SETTINGS)
    reader.poll(4, 1.0)  # leave the feed empty
    reader.close()


def test_what_breaks_its_contract_is_refused_by_the_writer(both_tasks: ServerProcess) -> None:
    writer = SegmentWriter(both_tasks.address, BOTH, SETTINGS)
    bad = make_segment()
    bad.environment_reward[3] = np.nan
    with pytest.raises(SegmentRejected, match="environment_reward: expected finite"):
        writer.append(bad)
    assert writer.metrics()["writer/rejected_segments"] == 1
    writer.close()


def test_what_a_raw_client_smuggles_in_is_dropped_by_the_reader(both_tasks: ServerProcess) -> None:
    connection = Connection(both_tasks.address, BOTH, SETTINGS)
    data = connection.format.encode(make_segment(actor=3))
    spoiled = data.copy()
    spoiled[80:84] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    foreign = data.copy()
    foreign[0] ^= 1
    raw = connection.open(5.0).NewTrajectoryWriter(
        load_reverb().pybind.ConstantChunkerOptions(1, 1), False
    )
    for column in (spoiled, foreign, data):
        (reference,) = raw.Append([column])
        raw.CreateItem(FEED, 1.0, [[reference]], [True])
    raw.Flush(0, 5000)
    raw.Close()
    reader = FeedReader(both_tasks.address, BOTH, SETTINGS)
    (segment,) = poll_all(reader, 1)
    assert_same(make_segment(actor=3), segment)
    metrics = reader.metrics()
    assert metrics["reader/rejected_segments"] == 2
    assert metrics["reader/rejected_segments/actor-3"] == 1
    reader.close()


def test_a_full_feed_holds_the_writer_and_says_why(make_server: MakeServer) -> None:
    server = make_server().start()
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    taken = []
    with pytest.raises(ReplayUnavailable, match="table 'feed' .* holds 4 of 4 .*learner running"):
        for number in range(100):
            writer.append(make_segment(episode=number), timeout_seconds=1.0)
            taken.append(number)
    # The feed's four, and the two that may be under way. The one refused was not taken.
    assert taken == list(range(4 + writer.max_pending_segments))
    for seconds in (0.0, 1e-5, 9e-4):  # less than a millisecond is not for ever
        started = time.monotonic()
        with pytest.raises(ReplayUnavailable):
            writer.append(make_segment(episode=99), timeout_seconds=seconds)
        assert time.monotonic() - started < 5.0
    reader = FeedReader(server.address, (STATE,), SETTINGS)
    first = poll_all(reader, 2)
    for number in range(len(taken), 12):
        writer.append(make_segment(episode=number))
        first += reader.poll(1, 5.0)
    first += poll_all(reader, 12 - len(first))
    assert sorted(s.episode for s in first) == list(range(12))  # nothing lost, nothing twice
    writer.close()
    reader.close()


@pytest.mark.timeout(60)
@pytest.mark.slow
def test_a_reader_that_is_not_polled_takes_a_bounded_number(make_server: MakeServer) -> None:
    server = make_server().start()
    reader = FeedReader(server.address, (STATE,), SETTINGS)
    reader.poll(1, 0.0)
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    taken = 0
    with pytest.raises(ReplayUnavailable):
        for number in range(100):
            writer.append(make_segment(episode=number), timeout_seconds=1.0)
            taken += 1
    # feed 4 + writer 2 + reader: 1 in its queue, 1 in hand, 2 in Reverb's sampler
    assert taken <= 4 + 2 + 4
    reader.close()
    writer.close(0.5)


def test_another_experiments_server_is_refused_by_both_ends(both_tasks: ServerProcess) -> None:
    other = SETTINGS.model_copy(update={"capacity": 800})
    writer = SegmentWriter(both_tasks.address, BOTH, other)
    with pytest.raises(
        ReplayMismatch,
        match=r"'task/.*expected 100 segments .* found 50 of \[\(\(\d+,\), 'uint8'\)\]",
    ):
        writer.append(make_segment())
    writer.close(0.1)
    reader = FeedReader(both_tasks.address, (STATE,), SETTINGS)
    wait_until(lambda: refuses(reader))
    reader.close()


def test_a_server_of_other_tasks_is_refused_by_both_ends(both_tasks: ServerProcess) -> None:
    other = replace(STATE, task="cheetah-walk", task_id="cheetah-walk")
    writer = SegmentWriter(both_tasks.address, (other, PIXELS), SETTINGS)
    with pytest.raises(
        ReplayMismatch, match="has no table 'task/cheetah-walk' but .*'task/cheetah-run'"
    ):
        writer.append(make_segment(other))
    writer.close(0.1)
    reader = FeedReader(both_tasks.address, (other, PIXELS), SETTINGS)
    wait_until(lambda: refuses(reader))
    reader.close()


def test_recovery_draws_every_segment_once(make_server: MakeServer) -> None:
    server = make_server().start()
    writer = SegmentWriter(server.address, (STATE,), SETTINGS)
    feed = FeedReader(server.address, (STATE,), SETTINGS)
    sent = [make_segment(episode=n // 3, first_step=8 * (n % 3)) for n in range(60)]
    for segment in sent:
        writer.append(segment)
        feed.poll(1, 5.0)
    writer.flush()
    reader = FeedReader(server.address, (STATE,), SETTINGS)
    kept = sent[-50:]  # the table's capacity
    found = list(reader.recover({kept[0].id}))
    assert [s.id for s in found] == sorted(ids(kept[1:]))
    assert reader.num_missing == 0
    assert list(reader.recover(ids(kept))) == []
    feed.close()
    writer.close()
    reader.close()


def test_recovery_from_a_server_that_is_not_there_says_so() -> None:
    reader = FeedReader("127.0.0.1:9", (STATE,), SETTINGS)
    with pytest.raises(ReplayUnavailable, match="nothing listens at 127.0.0.1:9"):
        list(reader.recover(set(), timeout_seconds=0.5))
    reader.close()


def test_addresses_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT, found 'localhost'"):
        SegmentWriter("localhost", (STATE,), SETTINGS)
