"""Joining, and the heartbeats that keep a place while the loop does whatever it does."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from actor.errors import CannotJoin, DoesNotFit
from actor.membership import MAX_EPISODES, Heartbeats, Progress, join
from apprentice.config import Experiment
from apprentice.rpc import (
    ActorReport,
    EpisodeReport,
    HeartbeatReply,
    LearnerUnavailable,
    Membership,
    NotAMember,
    ProtocolMismatch,
    SlotTaken,
    SpecMismatch,
)
from tests.actor.fakes import EXPERIMENT, STATE, Stage
from tests.replay.cases import wait_until


class FakeClient:
    """Answers calls with what the test lined up: errors are raised, once each."""

    def __init__(self) -> None:
        self.join_errors: list[Exception] = []
        self.heartbeat_errors: list[Exception] = []
        self.experiment: Experiment = EXPERIMENT
        self.slots: list[int | None] = []
        self.digests: list[str] = []
        self.reports: list[ActorReport] = []
        self.reply = HeartbeatReply(False, False, 0)
        self.hangs = threading.Event()
        self.closed = threading.Event()

    def join(
        self,
        incarnation: int,
        host: str,
        pid: int,
        slot: int | None = None,
        environment_digest: str = "",
    ) -> Membership:
        self.slots.append(slot)
        self.digests.append(environment_digest)
        if self.join_errors:
            raise self.join_errors.pop(0)
        given = 0 if slot is None else slot
        return Membership(given, self.experiment, (STATE,), 30.0, "run", 0)

    def heartbeat(self, report: ActorReport) -> HeartbeatReply:
        if self.hangs.is_set():
            self.closed.wait(10.0)
            raise ValueError("the channel is closed")
        self.reports.append(report)
        if self.heartbeat_errors:
            raise self.heartbeat_errors.pop(0)
        return self.reply

    def close(self) -> None:
        self.closed.set()


def never() -> str | None:
    return None


@contextmanager
def beating(client: FakeClient, progress: Progress | None = None) -> Iterator[Heartbeats]:
    membership = Membership(4, EXPERIMENT, (STATE,), 30.0, "run", 0)
    heartbeats = Heartbeats(client, membership, 7, progress or Progress(), dict, 0.02)
    try:
        yield heartbeats
    finally:
        heartbeats.close()


@pytest.mark.parametrize("error", [LearnerUnavailable("away"), SlotTaken("held by pid 1")])
def test_joining_is_tried_again_while_the_learner_is_away_or_the_slot_is_held(
    error: Exception,
) -> None:
    client = FakeClient()
    client.join_errors = [error, error]
    membership = join(client, 7, 2, 30.0, never)
    assert membership is not None
    assert membership.slot == 2
    assert client.slots == [2, 2, 2]


def test_joining_ends_at_its_deadline_with_the_reason() -> None:
    client = FakeClient()
    client.join_errors = [SlotTaken("slot 2 is held by pid 1 on host")] * 100
    with pytest.raises(CannotJoin, match="within 0 s: slot 2 is held by pid 1 on host"):
        join(client, 7, 2, 0.3, never)


def test_joining_ends_where_a_stop_is_asked_for() -> None:
    client = FakeClient()
    client.join_errors = [LearnerUnavailable("away")] * 100
    assert join(client, 7, None, 30.0, lambda: "stop" if client.slots else None) is None
    assert len(client.slots) == 1


def unknown_setting() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate({"name": "a", "task": "a-b", "colour": "red"})
    return caught.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SpecMismatch("environment: other"), "environment: other"),
        (ProtocolMismatch("protocol: other"), "protocol: other"),
        (unknown_setting(), "colour"),
    ],
)
def test_joining_what_does_not_fit_is_not_tried_again(error: Exception, message: str) -> None:
    client = FakeClient()
    client.join_errors = [error]
    with pytest.raises(DoesNotFit, match=message):
        join(client, 7, None, 30.0, never)
    assert len(client.slots) == 1


def test_a_heartbeat_tells_steps_episodes_and_faults_once() -> None:
    client, progress = FakeClient(), Progress()
    progress.steps, progress.faults, progress.policy_version = 40, 2, 6
    progress.add_episode(EpisodeReport(0, 12.5, 10, 6))
    with beating(client, progress):
        wait_until(lambda: len(client.reports) >= 3)
    first, *others = client.reports
    assert (first.slot, first.incarnation, first.steps) == (4, 7, 40)
    assert (first.faults, first.policy_version) == (2, 6)
    assert first.steps_per_second > 0
    assert list(first.episodes) == [EpisodeReport(0, 12.5, 10, 6)]
    assert all(not report.episodes for report in others)
    assert others[0].steps_per_second == 0


def test_episodes_are_told_again_where_a_heartbeat_was_not_answered() -> None:
    client, progress = FakeClient(), Progress()
    client.heartbeat_errors = [LearnerUnavailable("away")]
    episodes = [EpisodeReport(0, float(n), 10, 6) for n in range(3)]
    for episode in episodes:
        progress.add_episode(episode)
    with beating(client, progress):
        wait_until(lambda: len(client.reports) >= 2)
    assert [list(report.episodes) for report in client.reports[:2]] == [episodes, episodes]


def test_what_ended_last_is_told_on_closing() -> None:
    client, progress = FakeClient(), Progress()
    membership = Membership(4, EXPERIMENT, (STATE,), 30.0, "run", 0)
    heartbeats = Heartbeats(client, membership, 7, progress, dict, 60.0)
    progress.add_episode(EpisodeReport(0, 1.0, 10, 6))
    heartbeats.close()
    assert [len(report.episodes) for report in client.reports] == [1]
    assert not heartbeats.alive


def test_memory_of_episodes_is_bounded_while_the_learner_is_away() -> None:
    progress = Progress()
    for number in range(MAX_EPISODES + 5):
        progress.add_episode(EpisodeReport(0, float(number), 10, 6))
    taken = progress.take_episodes()
    assert [taken[0].environment_return, len(taken)] == [5.0, MAX_EPISODES]
    progress.add_episode(EpisodeReport(0, -1.0, 10, 6))
    progress.give_back(taken)
    assert len(progress.take_episodes()) == MAX_EPISODES


def test_the_learners_wishes_are_heard() -> None:
    client = FakeClient()
    with beating(client) as heartbeats:
        client.reply = HeartbeatReply(False, True, 3)
        wait_until(lambda: heartbeats.paused)
        client.reply = HeartbeatReply(False, False, 3)
        wait_until(lambda: not heartbeats.paused)
        client.reply = HeartbeatReply(True, False, 3)
        wait_until(lambda: heartbeats.leave)
    assert heartbeats.age_seconds < 10.0


def test_the_age_grows_while_nobody_answers() -> None:
    client = FakeClient()
    client.heartbeat_errors = [LearnerUnavailable("away")] * 1000
    with beating(client) as heartbeats:
        wait_until(lambda: heartbeats.age_seconds > 0.2)
        client.heartbeat_errors.clear()
        wait_until(lambda: heartbeats.age_seconds < 0.2)


def test_an_ended_lease_is_taken_again_with_the_same_slot_and_environment() -> None:
    client = FakeClient()
    client.heartbeat_errors = [NotAMember("the lease has ended")]
    with beating(client) as heartbeats:
        wait_until(lambda: len(client.reports) >= 2)
        assert (heartbeats.slot, heartbeats.mismatch) == (4, None)
    assert client.slots == [4]
    assert client.digests == [STATE.digest()]


def test_another_slot_will_do_where_the_old_one_was_taken_meanwhile() -> None:
    client = FakeClient()
    client.heartbeat_errors = [NotAMember("the lease has ended")]
    client.join_errors = [SlotTaken("held")]
    with beating(client) as heartbeats:
        wait_until(lambda: len(client.reports) >= 2)
        assert heartbeats.slot == 0
    assert client.slots == [4, None]
    assert client.reports[1].slot == 0


@pytest.mark.parametrize("error", [SpecMismatch("environment: other"), ProtocolMismatch("old")])
def test_a_learner_that_trains_on_something_else_is_a_mismatch(error: Exception) -> None:
    client = FakeClient()
    client.heartbeat_errors = [NotAMember("the lease has ended")]
    client.join_errors = [error]
    with beating(client) as heartbeats:
        wait_until(lambda: heartbeats.mismatch is not None)
        assert heartbeats.mismatch == str(error)


def changed(**changes: object) -> Experiment:
    return Experiment.model_validate({**EXPERIMENT.model_dump(), **changes})


@pytest.mark.parametrize(
    ("experiment", "mismatch"),
    [
        (changed(network={"hidden_size": 64}), "network: built for .*hidden_size=64"),
        (changed(replay={"segment_length": 8}), "replay: built for .*segment_length=8"),
        (changed(learner={"max_steps": 5}), None),
        (changed(seed=9), None),
    ],
    ids=["network", "replay", "budget", "seed"],
)
def test_a_learner_that_comes_back_with_other_settings_is_a_mismatch_where_they_matter(
    experiment: Experiment, mismatch: str | None
) -> None:
    client = FakeClient()
    client.heartbeat_errors = [NotAMember("the lease has ended")]
    client.experiment = experiment
    with beating(client) as heartbeats:
        wait_until(lambda: len(client.reports) >= 3)
        if mismatch is None:
            assert heartbeats.mismatch is None
        else:
            assert re.search(mismatch, heartbeats.mismatch or "")


def test_heartbeats_go_on_while_the_writer_is_blocked() -> None:
    client, stage = FakeClient(), Stage()
    stage.writer.blocked.set()
    with beating(client, stage.progress):
        look: Callable[[object], None] = lambda _: setattr(  # noqa: E731
            stage, "stop_reason", "seen" if len(client.reports) >= 10 else None
        )
        stage.writer.on_append = look
        assert stage.act() == "seen"
    assert stage.writer.segments == []
    assert [report.steps for report in client.reports[-2:]] == [4, 4]


def test_closing_ends_a_call_that_hangs() -> None:
    client = FakeClient()
    client.hangs.set()
    with beating(client) as heartbeats:
        pass
    assert client.closed.is_set()
    wait_until(lambda: not heartbeats.alive, 3.0)
