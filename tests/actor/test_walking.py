"""The order in which tasks are visited, and segments that say which task they are of."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from actor.segments import Origin, SegmentBuilder
from actor.walking import TaskEnvironments, TaskWalk, WalkingEnvironment
from apprentice.environments import PhysicsFault
from apprentice.profiling import Profile
from apprentice.rollout import rollout
from apprentice.types import TimeStep
from tests.actor.fakes import STATE, CountingPolicy, FakeEnvironment


def test_a_walk_visits_each_task_once_before_any_twice() -> None:
    walk = TaskWalk(5, (1, 2, 3))
    visits = [walk.next() for _ in range(15)]
    for first in (0, 5, 10):
        assert sorted(visits[first : first + 5]) == [0, 1, 2, 3, 4]
    assert [TaskWalk(5, (1, 2, 3)).next() for _ in range(1)] == visits[:1]
    others = [[TaskWalk(50, seed).next() for _ in range(3)] for seed in ((1, 2, 4), (1, 3, 3))]
    assert others[0] != others[1]


def test_environments_share_a_walk_and_segments_say_the_task() -> None:
    walk = TaskWalk(3, (7,))
    built: list[tuple[int, int]] = []

    def build(task: int, number: int) -> FakeEnvironment:
        built.append((task, number))
        return FakeEnvironment(task, episode_steps=4)

    lent = TaskEnvironments(build)  # type: ignore[arg-type]
    environments = [WalkingEnvironment(walk, lent) for _ in range(2)]
    builder = SegmentBuilder(STATE, 4, 2, Origin(0, 1))
    segments = []
    for step in islice(rollout(environments, CountingPolicy()), 24):
        segments += builder.add(step, 1)
    assert len(segments) == 12
    for segment in segments:
        assert (segment.observation["state"][:, 0] == segment.task).all()
    assert Counter(segment.task for segment in segments) == {0: 4, 1: 4, 2: 4}
    assert len(built) == len(set(built)) <= 5  # no more of a task than are played at once


def test_what_is_lent_is_lent_once_and_again_when_it_has_come_back() -> None:
    lent = TaskEnvironments(lambda task, number: FakeEnvironment(10 * task + number))  # type: ignore[arg-type,return-value]
    first, second, other = lent.take(3), lent.take(3), lent.take(4)
    assert len({id(first), id(second), id(other)}) == 3
    lent.give_back(3, second)
    assert lent.take(3) is second
    assert lent.take(3) is not first


def test_time_is_charged_to_one_profile_in_every_task() -> None:
    environment = WalkingEnvironment(
        TaskWalk(2, (0,)),
        TaskEnvironments(lambda task, _: FakeEnvironment(task, episode_steps=1)),  # type: ignore[arg-type,return-value]
    )
    profile = Profile()
    environment.profile = profile
    for _ in range(4):
        environment.reset()
        assert environment._current.profile is profile
        environment.step(np.zeros(2, np.float32))


def test_a_start_that_fails_is_tried_again_in_the_same_task() -> None:
    class FailsOnce(FakeEnvironment):
        failed = False

        def reset(self) -> TimeStep:
            if not self.failed:
                self.failed = True
                raise PhysicsFault("cannot be borne")
            return super().reset()

    environment = WalkingEnvironment(
        TaskWalk(4, (0,)),
        TaskEnvironments(lambda task, _: FailsOnce(task)),  # type: ignore[arg-type,return-value]
    )
    task = environment.task_index
    with pytest.raises(PhysicsFault):
        environment.reset()
    assert environment.reset().observation["state"][0] == task
    assert environment.task_index == task
