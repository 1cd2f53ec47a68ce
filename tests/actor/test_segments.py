"""Segments are the episode: nothing lost, nothing twice, nothing over a border."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actor.segments import Origin, SegmentBuilder
from apprentice.config import ReplaySettings
from apprentice.rollout import rollout
from apprentice.types import Ending, EnvironmentSpec, Segment
from replay.tables import SegmentFormat
from tests.actor.fakes import PIXELS, STATE, CountingPolicy, FakeEnvironment

LENGTH = 4


def build(
    environments: list[FakeEnvironment],
    num_steps: int,
    spec: EnvironmentSpec = STATE,
    segment_length: int = LENGTH,
) -> list[Segment]:
    builder = SegmentBuilder(spec, segment_length, len(environments), Origin(3, 2**64 - 5), 2)
    segments: list[Segment] = []
    for number, step in enumerate(islice(rollout(environments, CountingPolicy()), num_steps)):
        segments += builder.add(step, policy_version=number)
    return segments


def shape_of(segments: list[Segment]) -> list[tuple[int, int, int, Ending]]:
    return [(s.episode, s.first_step, s.length, s.ending) for s in segments]


def test_a_short_segment_ends_the_episode() -> None:
    segments = build([FakeEnvironment(episode_steps=10)], 14)
    assert shape_of(segments) == [
        (0, 0, 4, Ending.GOES_ON),
        (0, 4, 4, Ending.GOES_ON),
        (0, 8, 2, Ending.TIME_LIMIT),
        (1, 0, 4, Ending.GOES_ON),
    ]


def test_an_episode_that_fills_its_last_segment_sends_no_empty_one() -> None:
    segments = build([FakeEnvironment(episode_steps=8)], 9)
    assert shape_of(segments) == [(0, 0, 4, Ending.GOES_ON), (0, 4, 4, Ending.TIME_LIMIT)]


def test_a_segment_says_who_made_it_and_which_policy_was_the_newest() -> None:
    first, second = build([FakeEnvironment()], 8)
    assert (first.task, first.actor, first.incarnation) == (0, 3, 2**64 - 5)
    assert (first.policy_version, second.policy_version) == (3, 7)
    assert first.context.tolist() == [-1, -1]


def test_padding_is_zero_and_rows_before_it_are_not_touched() -> None:
    segment = build([FakeEnvironment(episode_steps=2)], 2)[0]
    assert segment.observation["state"].tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 2],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert segment.pre_tanh_action[:, 0].tolist() == [1, 2, 0, 0]
    assert segment.environment_reward.tolist() == [1, 2, 0, 0]
    assert segment.discount.tolist() == [1, 1, 0, 0]


def test_a_terminated_episode_has_discount_zero_at_its_last_step_only() -> None:
    segments = build([FakeEnvironment(episode_steps=6, ending=Ending.TERMINATED)], 6)
    assert segments[0].discount.tolist() == [1, 1, 1, 1]
    assert segments[1].discount.tolist() == [1, 0, 0, 0]
    assert segments[1].ending == Ending.TERMINATED


def test_a_fault_sends_the_pending_steps_as_aborted_without_the_bad_one() -> None:
    segments = build([FakeEnvironment(faults={(0, 6)})], 10)
    assert shape_of(segments) == [
        (0, 0, 4, Ending.GOES_ON),
        (0, 4, 1, Ending.ABORTED),
        (1, 0, 4, Ending.GOES_ON),
    ]
    assert segments[1].observation["state"][:3].tolist() == [[0, 0, 4], [0, 0, 5], [0, 0, 0]]
    assert segments[1].policy_version == 4  # Version 5 chose the bad step, which is not in it.


@pytest.mark.parametrize("bad_step", [1, 5])
def test_a_fault_with_no_step_pending_sends_nothing(bad_step: int) -> None:
    segments = build([FakeEnvironment(faults={(0, bad_step)})], bad_step + 4)
    assert Ending.ABORTED not in {segment.ending for segment in segments}
    assert segments[-1].episode == 1  # The failed episode keeps its number.


def test_episodes_are_counted_over_all_environments() -> None:
    environments = [FakeEnvironment(n, episode_steps=2) for n in range(3)]
    segments = build(environments, 4)
    assert [segment.episode for segment in segments] == [0, 1, 2, 3, 4, 5]
    assert [segment.observation["state"][0, 0] for segment in segments] == [0, 1, 2, 0, 1, 2]


def test_what_is_pending_can_be_cut_off() -> None:
    environments = [FakeEnvironment(0, episode_steps=10), FakeEnvironment(1, episode_steps=2)]
    builder = SegmentBuilder(STATE, LENGTH, 2, Origin(0, 1))
    for step in islice(rollout(environments, CountingPolicy()), 6):
        builder.add(step, 1)
    assert shape_of(builder.cut()) == [(0, 4, 2, Ending.GOES_ON)]
    assert builder.cut() == []


def test_segments_own_their_arrays() -> None:
    builder = SegmentBuilder(STATE, LENGTH, 1, Origin(0, 1))
    found: list[Segment] = []
    for step in islice(rollout([FakeEnvironment()], CountingPolicy()), 8):
        for segment in builder.add(step, 1):
            assert segment.observation["state"][0, 2] == segment.first_step
            for array in (*segment.observation.values(), *segment[1:5], segment.context):
                assert isinstance(array, np.ndarray)
                assert array.base is None
                array[...] = 9
            found.append(segment)
    assert all((segment.action == 9).all() for segment in found)


def test_frame_stacks_never_reach_over_an_episodes_border() -> None:
    segments = build([FakeEnvironment(spec=PIXELS, episode_steps=6)], 8, PIXELS)
    assert [segment.observation["pixels"].shape for segment in segments[:2]] == [(7, 4, 5, 3)] * 2
    frames = [segment.observation["pixels"][:, 0, 0, 0].tolist() for segment in segments]
    assert frames == [[0, 0, 0, 1, 2, 3, 4], [2, 3, 4, 5, 6, 0, 0]]
    later = build([FakeEnvironment(spec=PIXELS, episode_steps=6)], 12, PIXELS)[2]
    assert later.observation["pixels"][:, 0, 0, 0].tolist() == [10, 10, 10, 11, 12, 13, 14]


def rebuilt(segments: list[Segment], spec: EnvironmentSpec) -> dict[int, list[tuple]]:
    """Put each episode together again as (stack or state before, action, reward, ... after)."""
    episodes: dict[int, list[tuple]] = defaultdict(list)
    for segment in segments:
        steps = episodes[segment.episode]
        assert segment.first_step == len(steps), "steps are missing, or there twice"
        for t in range(segment.length):
            before, after = (
                {
                    key: segment.observation[key][row : row + spec.num_leading_frames(key)].tolist()
                    for key in spec.observation
                }
                for row in (t, t + 1)
            )
            values = (segment.action[t], segment.pre_tanh_action[t])
            numbers = (float(segment.environment_reward[t]), float(segment.discount[t]))
            steps.append((before, *(value.tolist() for value in values), *numbers, after))
    return episodes


def stepped(environments: list[FakeEnvironment], num_steps: int) -> dict[int, list[tuple]]:
    """The same, straight from the generator's steps."""
    episodes: dict[int, list[tuple]] = {}
    current, count = [0] * len(environments), 0
    for step in islice(rollout(environments, CountingPolicy()), num_steps):
        for index in range(len(environments)):
            if step.first[index]:
                current[index], count = count, count + 1
            if not step.valid[index]:
                continue
            before, after = (
                {
                    key: (value[index] if key == "pixels" else value[index][None]).tolist()
                    for key, value in observation.items()
                }
                for observation in (step.observation, step.next_observation)
            )
            values = (step.action[index], step.pre_tanh_action[index])
            numbers = (float(step.environment_reward[index]), float(step.discount[index]))
            episodes.setdefault(current[index], []).append(
                (before, *(value.tolist() for value in values), *numbers, after)
            )
    return episodes


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    faults=st.sets(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=6),
    segment_length=st.integers(1, 6),
    pixels=st.booleans(),
)
def test_segments_rebuild_every_episode_exactly(
    lengths: list[int], faults: set[tuple[int, int]], segment_length: int, pixels: bool
) -> None:
    spec, num_steps = (PIXELS if pixels else STATE), 25

    def make() -> list[FakeEnvironment]:
        return [
            FakeEnvironment(n, spec=spec, episode_steps=steps, faults=faults)
            for n, steps in enumerate(lengths)
        ]

    builder = SegmentBuilder(spec, segment_length, len(lengths), Origin(0, 1))
    segments: list[Segment] = []
    for step in islice(rollout(make(), CountingPolicy()), num_steps):
        segments += builder.add(step, 1)
    segments += builder.cut()
    assert rebuilt(segments, spec) == stepped(make(), num_steps)


@pytest.mark.parametrize("spec", [STATE, PIXELS], ids=["state", "pixels"])
def test_replay_takes_them_as_they_are(spec: EnvironmentSpec) -> None:
    environment = FakeEnvironment(
        spec=spec, episode_steps=6, ending=Ending.TERMINATED, faults={(1, 3)}
    )
    settings = ReplaySettings(segment_length=LENGTH)
    segment_format = SegmentFormat([spec], settings.segment_length)
    builder = SegmentBuilder(spec, LENGTH, 1, Origin(0, 2**64 - 1))
    count = 0
    for step in islice(rollout([environment], CountingPolicy()), 20):
        for segment in builder.add(step, 1):
            found = segment_format.decode(segment_format.encode(segment))
            np.testing.assert_array_equal(found.observation["state"], segment.observation["state"])
            assert found.id == segment.id
            count += 1
    assert count == 6
