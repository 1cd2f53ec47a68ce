"""The generator of steps: what a step means, how episodes end, and how physics faults are borne."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from apprentice.environments import PhysicsFault
from apprentice.profiling import Profile
from apprentice.rollout import RolloutStep, rollout
from apprentice.types import Ending, TimeStep
from tests.actor.fakes import PIXELS, CountingPolicy, FakeEnvironment


def copied(step: RolloutStep) -> RolloutStep:
    values = [
        {key: array.copy() for key, array in value.items()}
        if isinstance(value, dict)
        else value.copy()
        for value in step
    ]
    return RolloutStep(*values)


def take(environments: list[FakeEnvironment], num: int) -> list[RolloutStep]:
    return [copied(step) for step in islice(rollout(environments, CountingPolicy()), num)]


def test_a_step_holds_what_was_seen_done_and_seen_next() -> None:
    steps = take([FakeEnvironment(0), FakeEnvironment(1)], 3)
    np.testing.assert_array_equal(steps[2].observation["state"], [[0, 0, 2], [1, 0, 2]])
    np.testing.assert_array_equal(steps[2].next_observation["state"], [[0, 0, 3], [1, 0, 3]])
    np.testing.assert_array_equal(steps[2].action, np.full((2, 2), np.float32(0.003)))
    np.testing.assert_array_equal(steps[2].pre_tanh_action, np.full((2, 2), 3.0))
    np.testing.assert_array_equal(steps[2].environment_reward, [3, 3])
    assert [step.first.tolist() for step in steps] == [[True] * 2, [False] * 2, [False] * 2]


def test_the_last_observation_is_the_old_episodes_and_the_next_step_begins_in_the_new_one() -> None:
    steps = take([FakeEnvironment(episode_steps=3)], 4)
    assert steps[2].next_observation["state"].tolist() == [[0, 0, 3]]
    assert steps[2].ending.tolist() == [Ending.TIME_LIMIT]
    assert steps[3].observation["state"].tolist() == [[0, 1, 0]]
    assert steps[3].first.tolist() == [True]


@pytest.mark.parametrize(
    ("ending", "discount"), [(Ending.TIME_LIMIT, 1.0), (Ending.TERMINATED, 0.0)]
)
def test_only_a_termination_has_discount_zero(ending: Ending, discount: float) -> None:
    steps = take([FakeEnvironment(episode_steps=2, ending=ending)], 2)
    assert [step.discount.tolist() for step in steps] == [[1.0], [discount]]


def test_environments_end_their_episodes_independently() -> None:
    steps = take([FakeEnvironment(0, episode_steps=2), FakeEnvironment(1, episode_steps=3)], 7)
    assert [step.first.tolist() for step in steps] == [
        [True, True],
        [False, False],
        [True, False],
        [False, True],
        [True, False],
        [False, False],
        [True, True],
    ]
    assert steps[5].observation["state"].tolist() == [[0, 2, 1], [1, 1, 2]]


def test_a_physics_fault_invalidates_the_step_and_a_new_episode_follows() -> None:
    steps = take([FakeEnvironment(0, faults={(0, 2)}), FakeEnvironment(1)], 3)
    assert [step.valid.tolist() for step in steps] == [[True, True], [False, True], [True, True]]
    assert steps[1].ending.tolist() == [Ending.ABORTED, Ending.GOES_ON]
    assert steps[1].environment_reward.tolist() == [0.0, 2.0]
    assert steps[1].discount.tolist() == [1.0, 1.0]
    assert steps[2].observation["state"].tolist() == [[0, 1, 0], [1, 0, 2]]
    assert steps[2].first.tolist() == [True, False]


def test_only_three_faults_in_a_row_rebuild_an_environment() -> None:
    interrupted = FakeEnvironment(0, faults={(0, 1), (1, 1), (2, 2), (3, 1)})
    repeated = FakeEnvironment(1, faults={(0, 1), (1, 1), (2, 1), (3, 1)})
    take([interrupted, repeated], 5)
    assert (interrupted.num_rebuilds, repeated.num_rebuilds) == (0, 1)


class BadStart(FakeEnvironment):
    """Cannot be reset for the first `num_bad` times."""

    def __init__(self, num_bad: int) -> None:
        super().__init__()
        self.num_bad = num_bad

    def reset(self) -> TimeStep:
        self.num_bad -= 1
        if self.num_bad >= 0:
            raise PhysicsFault("two bodies in one place")
        return super().reset()


@pytest.mark.parametrize(("num_bad", "num_rebuilds"), [(2, 0), (3, 1)])
def test_a_start_state_that_fails_is_drawn_again(num_bad: int, num_rebuilds: int) -> None:
    environment = BadStart(num_bad)
    assert take([environment], 1)[0].valid.all()
    assert environment.num_rebuilds == num_rebuilds


def test_an_environment_that_never_starts_is_an_error() -> None:
    with pytest.raises(PhysicsFault, match="two bodies"):
        take([BadStart(100)], 1)


def test_stacked_frames_are_passed_through() -> None:
    steps = take([FakeEnvironment(spec=PIXELS, episode_steps=5)], 7)
    shown = [step.observation["pixels"][0, :, 0, 0, 0].tolist() for step in steps]
    assert shown == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [10] * 3, [10, 10, 11]]


def test_arrays_are_reused_and_share_nothing_with_the_environments() -> None:
    steps = rollout([FakeEnvironment()], CountingPolicy())
    first, second = next(steps), next(steps)
    assert first.observation["state"] is second.observation["state"]
    second.next_observation["state"][:] = -1.0
    second.observation["state"][:] = -1.0
    assert next(steps).next_observation["state"].tolist() == [[0, 0, 3]]


def test_time_is_charged_to_policy_and_reset() -> None:
    profile = Profile()
    environments = [FakeEnvironment(0, episode_steps=2), FakeEnvironment(1, episode_steps=4)]
    list(islice(rollout(environments, CountingPolicy(), profile), 5))
    spans = profile.snapshot()
    assert spans["policy"].units == 10
    assert spans["reset"].units == 2 + 3
