"""The loop: when it acts, with which weights, and what it does when somebody is away."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from actor.errors import DoesNotFit, LearnerLost, NoPolicy
from apprentice.types import Ending, Segment
from tests.actor.fakes import FakeEnvironment, Stage


def steps_of(stage: Stage) -> int:
    return sum(segment.length for segment in stage.writer.segments)


def test_actions_are_uniform_and_their_atanh_finite_before_there_is_a_policy() -> None:
    stage = Stage(
        [FakeEnvironment(number, episode_steps=1000) for number in range(4)], segment_length=50
    )
    stage.stop_after(16)
    assert stage.act() == "enough"
    full = stage.writer.segments[:16]
    action = np.concatenate([segment.action for segment in full])
    pre_tanh = np.concatenate([segment.pre_tanh_action for segment in full])
    assert len(action) == 800
    assert np.abs(action).max() < 1.0
    # Uniform on [-1, 1]: mean 0 and mean square 1/3, over 1,600 draws.
    assert abs(action.mean()) < 0.06
    assert abs((action**2).mean() - 1 / 3) < 0.04
    assert np.isfinite(pre_tanh).all()
    np.testing.assert_allclose(np.tanh(pre_tanh), action, atol=2e-6)
    assert {segment.policy_version for segment in stage.writer.segments} == {0}


def test_a_published_policy_is_in_use_before_the_first_step() -> None:
    stage = Stage()
    update, num_looks = stage.update(7, bias=0.5), 0

    def arrive_late() -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 3:
            assert stage.environments[0].actions == []
            stage.learner.update = update

    stage.learner.on_latest = arrive_late
    stage.stop_after(2)
    stage.act(published_version=7)
    np.testing.assert_allclose(stage.environments[0].actions[0], np.tanh(0.5), atol=1e-5)
    assert {segment.policy_version for segment in stage.writer.segments} == {7}
    assert stage.progress.policy_version == 7


def test_no_step_is_made_where_a_published_policy_does_not_arrive() -> None:
    stage = Stage(first_policy_seconds=0.1)
    with pytest.raises(NoPolicy, match="published policy 7"):
        stage.act(published_version=7)
    assert stage.environments[0].actions == []


def test_newer_weights_are_used_between_two_steps() -> None:
    stage = Stage([FakeEnvironment(episode_steps=1000)])
    stage.learner.update = stage.update(1, bias=0.5)

    def publish(segment: Segment) -> None:
        if len(stage.writer.segments) == 2:
            stage.learner.update = stage.update(2, bias=-0.5)
        elif segment.policy_version == 2 and segment.action[0, 0] < 0:
            stage.stop_reason = "seen"

    stage.writer.on_append = publish
    assert stage.act(published_version=1) == "seen"
    versions = [segment.policy_version for segment in stage.writer.segments]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    for segment in stage.writer.segments:
        newest = -np.tanh(0.5) if segment.policy_version == 2 else np.tanh(0.5)
        np.testing.assert_allclose(segment.action[segment.length - 1], newest, atol=1e-5)


def spoil(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("weight"))
        tensors[name][0, 0] = value

    return change


def lose_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(iter(tensors))]


def grow_one(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    "change",
    [spoil(float("nan")), spoil(float("inf")), lose_one, grow_one],
    ids=["nan", "infinity", "missing tensor", "other shape"],
)
def test_a_policy_that_is_not_finite_or_does_not_fit_is_refused_whole(
    change: Callable[[dict[str, torch.Tensor]], None],
) -> None:
    stage = Stage()
    assert stage.policy.take(stage.update(3, bias=0.5))
    kept = {name: tensor.clone() for name, tensor in stage.module.state_dict().items()}
    bad = stage.update(4, bias=-0.5)
    change(dict_of(bad.tensors))
    assert not stage.policy.take(bad)
    assert (stage.policy.version, stage.policy.num_refused) == (3, 1)
    for name, tensor in stage.module.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    assert stage.policy.take(stage.update(5))
    assert stage.policy.version == 5


def dict_of(tensors: object) -> dict[str, torch.Tensor]:
    assert isinstance(tensors, dict)
    return tensors


def test_segments_arrive_in_order_and_whole_after_replay_was_away() -> None:
    stage = Stage([FakeEnvironment(0), FakeEnvironment(1)])

    def block_for_a_while(segment: Segment) -> None:
        if len(stage.writer.segments) == 3 and stage.writer.num_tries < 8:
            stage.writer.blocked.set()
        else:
            stage.writer.blocked.clear()
        if len(stage.writer.segments) == 12:
            stage.stop_reason = "enough"

    stage.writer.on_append = block_for_a_while
    stage.act()
    assert stage.writer.num_tries > len(stage.writer.segments)
    for number in (0, 1):
        mine = [s for s in stage.writer.segments if s.observation["state"][0, 0] == number]
        steps = [(s.episode, s.first_step) for s in mine]
        assert steps == sorted(set(steps))
        followed = [
            (a.first_step + a.length if a.ending == Ending.GOES_ON else 0) for a in mine[:-1]
        ]
        assert [segment.first_step for segment in mine[1:]] == followed


def test_no_step_is_made_while_replay_holds_the_actor_up() -> None:
    stage = Stage([FakeEnvironment(0), FakeEnvironment(1)])
    stage.writer.blocked.set()
    made: list[int] = []

    def look(segment: Segment) -> None:
        made.append(stage.progress.steps)
        if stage.writer.num_tries == 10:
            stage.stop_reason = "enough"

    stage.writer.on_append = look
    stage.act()
    assert set(made) == {8}  # The four steps of each environment that make up the first segment.


def test_weights_stay_fresh_while_the_actor_is_held_up() -> None:
    stage = Stage()
    stage.writer.blocked.set()

    def publish(segment: Segment) -> None:
        if stage.writer.num_tries == 3:
            stage.learner.update = stage.update(9)
        if stage.progress.policy_version == 9:
            stage.stop_reason = "fresh"

    stage.writer.on_append = publish
    assert stage.act() == "fresh"


def test_rejected_segments_are_dropped_and_counted() -> None:
    stage = Stage()
    stage.writer.rejects = True

    def look(segment: Segment) -> None:
        if stage.writer.num_tries == 3:
            stage.writer.rejects = False
        if stage.writer.num_tries == 5:
            stage.stop_reason = "enough"

    stage.writer.on_append = look
    stage.act()
    assert stage.progress.faults == 2
    assert stage.writer.segments[0].first_step == 8


def test_leaving_hands_over_what_is_pending_and_flushes() -> None:
    stage = Stage([FakeEnvironment(0), FakeEnvironment(1, episode_steps=6)])

    def leave(action: np.ndarray) -> None:
        stage.learner.leave = len(stage.environments[0].actions) >= 5

    for environment in stage.environments:
        environment._on_step = leave
    assert stage.act() == "the run is over"
    assert steps_of(stage) == stage.progress.steps
    assert stage.writer.num_flushes == 1


def test_leaving_takes_no_longer_than_it_may_where_replay_is_gone() -> None:
    stage = Stage()
    stage.writer.blocked.set()
    stage.stop_after(0)
    finished = threading.Event()

    def run() -> None:
        stage.act()
        finished.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert finished.wait(5.0)
    thread.join(5.0)
    assert stage.writer.segments == []


@pytest.mark.parametrize("absence", ["stale", "paused"])
def test_a_stale_or_paused_actor_makes_no_step_until_that_is_over(absence: str) -> None:
    stage = Stage(max_policy_age_seconds=1.0)
    made: list[int] = []

    def look() -> None:
        made.append(len(stage.environments[0].actions))
        if len(made) == 4:
            stage.learner.paused, stage.learner.age_seconds = False, 0.0

    stage.learner.paused = absence == "paused"
    stage.learner.age_seconds = 2.0 if absence == "stale" else 0.0
    stage.learner.on_latest = look
    stage.stop_after(1)
    stage.act()
    assert made[:4] == [0, 0, 0, 0]
    assert len(stage.environments[0].actions) >= 4
    assert stage.profile.snapshot()["paused"].seconds > 0.1


def test_a_paused_actor_still_leaves() -> None:
    stage = Stage()
    stage.learner.paused = True
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        stage.stop_reason = "asked to stop" if looks == 2 else None

    stage.learner.on_latest = look
    assert stage.act() == "asked to stop"
    assert stage.environments[0].actions == []


def test_a_learner_of_another_kind_ends_the_actor() -> None:
    stage = Stage()
    stage.learner.mismatch = "task: built for a, the learner now has b"
    with pytest.raises(DoesNotFit, match="learner now has b"):
        stage.act()


def test_an_actor_whose_lease_nobody_renews_ends() -> None:
    stage = Stage()
    stage.learner.alive = False
    with pytest.raises(LearnerLost, match="lease"):
        stage.act()


def test_episodes_and_faults_are_reported() -> None:
    environment = FakeEnvironment(episode_steps=3, faults={(1, 2)})
    stage = Stage([environment])
    stage.stop_after(4)
    stage.act()
    assert [segment.ending for segment in stage.writer.segments[:3]] == [
        Ending.TIME_LIMIT,
        Ending.ABORTED,
        Ending.TIME_LIMIT,
    ]
    episodes = stage.progress.take_episodes()
    assert [episode.environment_return for episode in episodes[:2]] == [1 + 2 + 3, 603 + 3]
    assert [episode.length for episode in episodes[:2]] == [3, 3]
    assert stage.progress.faults == 1


def test_a_segment_carries_the_slot_that_a_rejoin_has_brought() -> None:
    stage = Stage()

    def move(segment: Segment) -> None:
        stage.learner.slot = 5
        if segment.actor == 5:
            stage.stop_reason = "moved"

    stage.writer.on_append = move
    assert stage.act() == "moved"


def test_the_spans_explain_the_actors_wall_time() -> None:
    stage = Stage([FakeEnvironment(number) for number in range(4)])
    stage.stop_after(200)
    stage.act()
    spans = stage.profile.snapshot()
    wall = sum(span.seconds for span in spans.values())
    assert spans["other"].seconds < 0.05 * wall
    # A busy machine may take so long over a segment that it counts as waited for.
    sent = spans["segment write"].units + spans["waiting for replay"].units
    assert sent == steps_of(stage)
    assert {"policy", "assembling", "service", "reset"} <= set(spans)
