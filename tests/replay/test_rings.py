"""Rings against naive references: what is drawn, how evenly, and whether it comes back the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apprentice.types import Ending, EnvironmentSpec, Segment, Transition
from replay.rings import NothingToSample, Ring
from tests.replay.cases import LENGTH, PIXELS, STATE, frame_value, make_episode, make_segment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(segments: list[Segment], spec: EnvironmentSpec = STATE, capacity: int = 1000) -> Ring:
    ring = Ring(spec, capacity, LENGTH)
    for segment in segments:
        assert ring.append(segment)
    return ring


def check_contents(batch: Transition) -> None:
    """Every number of a transition follows from its episode and step."""
    episode, step = batch.observation["state"][:, 0], batch.observation["state"][:, 1]
    torch.testing.assert_close(batch.next_observation["state"][:, 0], episode)
    torch.testing.assert_close(batch.next_observation["state"][:, 1], step + 1)
    torch.testing.assert_close(batch.environment_reward, 1000 * episode + step)
    torch.testing.assert_close(batch.action[:, 0], (step % 10) / 10)
    torch.testing.assert_close(batch.pre_tanh_action, torch.atanh(batch.action))


def check_pixels(batch: Transition) -> None:
    """Stacks equal those of a naive environment that repeats its first frame."""
    for row in range(len(batch.discount)):
        episode, step = (int(value) for value in batch.observation["state"][row, :2])
        for stacks, newest in ((batch.observation, step), (batch.next_observation, step + 1)):
            expected = [frame_value(episode, max(0, newest - back)) for back in (2, 1, 0)]
            assert stacks["pixels"].shape[1:] == (3, 4, 5, 3)
            assert (stacks["pixels"][row].flatten(1) == torch.tensor(expected)[:, None]).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(LENGTH, 60),
    st.sampled_from([STATE, PIXELS]),
)
def test_no_transition_crosses_an_episode_and_stacks_are_right(
    lengths: list[int], capacity: int, spec: EnvironmentSpec
) -> None:
    episodes = [make_episode(n, spec, episode=number) for number, n in enumerate(lengths)]
    together = [s for group in itertools.zip_longest(*episodes) for s in group if s is not None]
    ring = filled(together, spec, capacity)
    batch = ring.sample(64, generator())
    check_contents(batch)
    if spec is PIXELS:
        check_pixels(batch)
    kept = len(ring.identities())
    assert [s.id for s in together[-kept:]] == ring.identities()
    assert ring.num_transitions == sum(s.length for s in together[-kept:]) <= capacity


def test_valid_transitions_are_equally_likely() -> None:
    # Short segments, padding, and a ring that has begun anew: 8 + 1 + 3 + 8 + 5 = 25 valid steps.
    lengths = [8, 8, 1, 3, 8, 5]
    segments = [make_segment(episode=n, length=length) for n, length in enumerate(lengths)]
    ring = filled(segments, capacity=26)
    assert ring.num_transitions == 25
    batch = ring.sample(50_000, generator())
    _, counts = np.unique(batch.environment_reward.numpy(), return_counts=True)
    assert len(counts) == 25
    chi_square = float(((counts - 2000.0) ** 2 / 2000.0).sum())
    assert chi_square < 51.2  # 24 degrees of freedom: one in a thousand is above


def test_oldest_segments_make_room_whole() -> None:
    ring = filled(make_episode(40), capacity=20)
    assert [identity.first_step for identity in ring.identities()] == [24, 32]
    assert ring.num_transitions == 16


def test_a_segment_is_taken_once_even_after_it_has_made_room() -> None:
    segments = make_episode(40)
    ring = filled(segments, capacity=20)
    digest = ring.digest()
    assert not any(ring.append(segment) for segment in segments)
    signed_bits = segments[-1]._replace(incarnation=segments[-1].incarnation - 2**64)
    assert not ring.append(signed_bits)
    assert ring.digest() == digest


@pytest.mark.parametrize("spec", [STATE, PIXELS])
def test_restoring_gives_the_same_digest_and_the_same_draws(spec: EnvironmentSpec) -> None:
    segments = [s for n in range(9) for s in make_episode(21, spec, episode=n)]
    ring = filled(segments, spec, capacity=50)
    restored = Ring(spec, 50, LENGTH)
    shuffled = [segments[i] for i in np.random.default_rng(0).permutation(len(segments))]
    assert restored.restore(shuffled, ring.index()) == 0
    assert restored.digest() == ring.digest()
    assert restored.identities() == ring.identities()
    for segment in make_episode(13, spec, episode=77):
        assert ring.append(segment)
        assert restored.append(segment)
    for draw in (
        lambda r, g: r.sample(32, g),
        lambda r, g: r.sample_segments(7, 5, g),
        lambda r, g: r.sample_trajectories(1, g)[0],
    ):
        a, b = draw(ring, generator(3)), draw(restored, generator(3))
        for left, right in zip(flat(a), flat(b), strict=True):
            assert torch.equal(left, right)


def flat(batch: Transition) -> list[torch.Tensor]:
    return [
        *batch.observation.values(),
        *batch[1:5],
        *batch.next_observation.values(),
    ]


def test_restoring_counts_what_is_missing() -> None:
    segments = make_episode(40)
    index = filled(segments).index()
    assert index.dtype == torch.int64
    assert index[0].tolist() == [-7, 0, 0]  # the bits of 2^64 - 7
    ring = Ring(STATE, 1000, LENGTH)
    assert ring.restore(segments[1:3], index) == 3
    assert ring.num_transitions == 16


def test_the_digest_sees_every_field() -> None:
    segment = make_segment(PIXELS)
    base = filled([segment], PIXELS).digest()
    changed = [
        segment._replace(policy_version=2),
        segment._replace(actor=2),
        segment._replace(ending=Ending.TIME_LIMIT),
        segment._replace(first_step=3),
        segment._replace(environment_reward=segment.environment_reward + 1),
        segment._replace(discount=segment.discount * np.float32(0.5)),
        segment._replace(
            observation={**segment.observation, "pixels": segment.observation["pixels"] + 1}
        ),
        segment._replace(context=np.array([1], np.int64)),
    ]
    assert len({base, *(filled([s], PIXELS).digest() for s in changed)}) == len(changed) + 1


def test_pieces_reach_over_segment_borders_but_not_over_episodes() -> None:
    segments = [
        s for pair in zip(make_episode(24), make_episode(24, episode=1), strict=True) for s in pair
    ]
    ring = filled(segments)
    batch = ring.sample_segments(500, 10, generator())
    check_contents(batch)
    steps = batch.observation["state"].reshape(500, 10, 3)
    assert (steps[:, 1:, 1] - steps[:, :-1, 1] == 1).all()
    assert (steps[:, :, 0] == steps[:, :1, 0]).all()
    starts = {(int(e), int(t)) for e, t, _ in steps[:, 0].tolist()}
    assert starts == {(e, t) for e in (0, 1) for t in range(15)}


def test_pieces_do_not_lead_into_what_has_made_room() -> None:
    late_first = make_episode(16)[::-1]  # steps 8..15 arrive before steps 0..7
    ring = filled([*late_first, make_segment(episode=5, length=4)], capacity=19)
    assert [i.first_step for i in ring.identities()] == [0, 0]
    with pytest.raises(NothingToSample, match="pieces of 9 steps"):
        ring.sample_segments(4, 9, generator())
    check_contents(ring.sample_segments(4, 8, generator()))


def test_an_episode_is_complete_when_nothing_of_it_is_missing() -> None:
    first, second, last = make_episode(20)
    ring = filled([last, first])
    assert ring.complete_episodes() == []
    with pytest.raises(NothingToSample):
        ring.trajectory(first.incarnation, 0)
    assert ring.append(second)
    assert ring.complete_episodes() == [(first.incarnation, 0)]
    trajectory = ring.trajectory(first.incarnation, 0)
    assert trajectory.observation["state"][:, 1].tolist() == list(range(20))
    for number in range(1, 200):
        ring.append(make_segment(episode=number))
    assert ring.complete_episodes() == []


def test_trajectories_are_drawn_among_complete_episodes() -> None:
    ring = filled(
        [*make_episode(9), *make_episode(17, episode=1), *make_episode(30, episode=2)[:2]]
    )
    drawn = ring.sample_trajectories(20, generator())
    assert {len(t.discount) for t in drawn} == {9, 17}


def test_an_empty_ring_says_so() -> None:
    ring = Ring(STATE, 100, LENGTH)
    with pytest.raises(NothingToSample, match="empty"):
        ring.sample(1, generator())
    with pytest.raises(NothingToSample, match="no episode"):
        ring.sample_trajectories(1, generator())
    assert ring.index().shape == (0, 3)


def test_terminated_steps_keep_discount_zero() -> None:
    ring = filled(make_episode(12, ending=Ending.TERMINATED))
    batch = ring.trajectory(2**64 - 7, 0)
    assert batch.discount.tolist() == [1.0] * 11 + [0.0]
