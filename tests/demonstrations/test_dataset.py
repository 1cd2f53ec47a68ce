"""The loader: shapes, thinning, segments, seeds, frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apprentice.demonstrations.dataset import DemonstrationDataset, demonstration_loader
from apprentice.demonstrations.format import DemonstrationError
from apprentice.types import Ending, Trajectory
from tests.demonstrations.cases import demonstrations, trajectory


def where(batch_state: torch.Tensor) -> list[tuple[int, int]]:
    """Return (episode, step) of states."""
    return [(int(row[0]), int(row[1])) for row in batch_state.reshape(-1, 3)]


def test_transitions_are_a_step_and_what_followed() -> None:
    episodes = demonstrations(3, 4).trajectories
    dataset = DemonstrationDataset(episodes)
    assert len(dataset) == dataset.num_rows == 12
    drawn = dataset.transitions(torch.arange(12))
    expected = [(episode, step) for episode in range(3) for step in range(4)]
    assert where(drawn.observation["state"]) == expected
    assert where(drawn.next_observation["state"]) == [(e, s + 1) for e, s in expected]
    for index, (episode, step) in enumerate(expected):
        np.testing.assert_array_equal(drawn.action[index], episodes[episode].action[step])
        np.testing.assert_array_equal(
            drawn.pre_tanh_action[index], episodes[episode].pre_tanh_action[step]
        )
        assert float(drawn.environment_reward[index]) == episodes[episode].environment_reward[step]


def test_thinning_keeps_every_nth_step_from_an_offset_of_each_episode() -> None:
    episodes = demonstrations(30, 40).trajectories
    dataset = DemonstrationDataset(episodes, subsampling=8, seed=2)
    assert dataset.num_rows == 30 * 5
    rows = where(dataset.transitions(torch.arange(dataset.num_rows)).observation["state"])
    offsets = []
    for episode in range(30):
        steps = [step for number, step in rows if number == episode]
        assert np.diff(steps).tolist() == [8] * 4
        offsets.append(steps[0])
    assert min(offsets) == 0
    assert max(offsets) == 7
    following = where(dataset.transitions(torch.arange(dataset.num_rows)).next_observation["state"])
    assert following == [(e, s + 1) for e, s in rows]  # the true successor, not the next kept one
    again = DemonstrationDataset(episodes, subsampling=8, seed=2)
    assert where(again.transitions(torch.arange(150)).observation["state"]) == rows
    other = DemonstrationDataset(episodes, subsampling=8, seed=3)
    assert where(other.transitions(torch.arange(150)).observation["state"]) != rows


def test_one_step_episodes_are_served() -> None:
    episodes = [trajectory(0, 1), trajectory(1, 1, Ending.TERMINATED)]
    dataset = DemonstrationDataset(episodes, subsampling=5)
    assert dataset.num_rows == 2
    assert dataset.num_terminated == 1
    assert dataset.transitions(torch.tensor([0, 1])).discount.tolist() == [1.0, 0.0]
    for draws in ("segments", "trajectories"):
        served = DemonstrationDataset(episodes, draws=draws, length=3)  # type: ignore[arg-type]
        batch = served.__getitems__([0, 1])
        assert batch.mask[:, 0].tolist() == [True, True]
        assert not batch.mask[:, 1:].any()


def test_segments_are_steps_in_a_row_of_one_episode() -> None:
    dataset = DemonstrationDataset(demonstrations(3, 6).trajectories, draws="segments", length=4)
    assert len(dataset) == 3 * 3
    for item in range(9):
        batch = dataset[item]
        rows = where(batch.transitions.observation["state"])
        assert [step - rows[0][1] for _, step in rows] == [0, 1, 2, 3]
        assert len({episode for episode, _ in rows}) == 1
        assert int(batch.episode[0]) == rows[0][0]
        assert batch.mask.all()


def test_trajectories_are_padded_to_the_longest_of_a_batch() -> None:
    episodes = [trajectory(0, 3), trajectory(1, 5)]
    batch = DemonstrationDataset(episodes, draws="trajectories").__getitems__([0, 1])
    assert batch.transitions.observation["state"].shape == (2, 5, 3)
    assert batch.mask.sum(1).tolist() == [3, 5]
    assert not batch.transitions.observation["state"][0, 3:].any()
    assert not batch.transitions.action[0, 3:].any()


def test_frames_are_stacked_as_the_environment_does() -> None:
    episode = trajectory(0, 4)
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    episode = episode._replace(observation={"pixels": frames})
    dataset = DemonstrationDataset([episode, episode], frame_stack=3)
    stacks = dataset.transitions(torch.arange(8)).observation["pixels"][..., 0, 0, 0].tolist()
    one = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert stacks == one + one  # the first frame is repeated, never one of another episode
    after = dataset.transitions(torch.arange(4)).next_observation["pixels"][..., 0, 0, 0].tolist()
    assert after == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_through_everything_once_in_a_seeded_order(num_workers: int) -> None:
    dataset = DemonstrationDataset(demonstrations(4, 10).trajectories)

    def order(seed: int) -> list[tuple[int, int]]:
        loader = demonstration_loader(dataset, 16, seed, num_workers=num_workers)
        return [row for b in loader for row in where(b.transitions.observation["state"])]

    first = order(1)
    assert sorted(first) == [(e, s) for e in range(4) for s in range(10)]
    assert order(1) == first
    assert order(2) != first


def test_states_are_those_of_kept_steps_and_their_successors() -> None:
    dataset = DemonstrationDataset(demonstrations(2, 10).trajectories, subsampling=5)
    assert dataset.states.shape == (8, 3)
    kept = dataset.transitions(torch.arange(4))
    both = torch.cat([kept.observation["state"], kept.next_observation["state"]])
    torch.testing.assert_close(dataset.states, both)
    assert where(both)[4:] == [(e, s + 1) for e, s in where(both)[:4]]


def observed_in_other_ways(number: int, num_steps: int) -> Trajectory:
    """Return an episode whose observations are of several shapes and types; all tell episode and step."""
    episode = trajectory(number, num_steps)
    step = np.arange(num_steps + 1)
    told = {
        "task_parameters": np.stack([step, step + 100.0 * number], 1).astype(np.float32),
        "counter": (step[:, None] + 2**40).astype(np.int64),
        "map": np.broadcast_to(step[:, None, None], (num_steps + 1, 2, 4)).astype(np.float32),
    }
    return episode._replace(observation={**told, **episode.observation})


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 6), ()])
def test_observations_of_any_shape_and_type_are_served(shape: tuple[int, ...]) -> None:
    episodes = [observed_in_other_ways(number, 4) for number in range(2)]
    dataset = DemonstrationDataset(episodes, subsampling=2, seed=1)
    index = torch.randint(dataset.num_rows, shape, generator=torch.Generator().manual_seed(0))
    drawn = dataset.transitions(index)
    assert set(drawn.observation) == {"state", "task_parameters", "counter", "map"}
    for observation, after in ((drawn.observation, 0), (drawn.next_observation, 1)):
        episode, step = drawn.observation["state"][..., 0], drawn.observation["state"][..., 1]
        step = step + after
        torch.testing.assert_close(observation["task_parameters"][..., 0], step)
        torch.testing.assert_close(observation["task_parameters"][..., 1], step + 100.0 * episode)
        assert observation["counter"].dtype == torch.int64
        assert (observation["counter"][..., 0] == step.long() + 2**40).all()
        assert observation["map"].shape == (*shape, 2, 4)
        assert (observation["map"] == step[..., None, None]).all()


def test_nothing_can_be_drawn() -> None:
    drawn = DemonstrationDataset(demonstrations(1, 4).trajectories).transitions(
        torch.zeros(0, dtype=torch.int64)
    )
    assert drawn.observation["state"].shape == (0, 3)
    assert drawn.discount.shape == (0,)


def test_no_episodes_are_refused() -> None:
    with pytest.raises(DemonstrationError, match="expected one or more"):
        DemonstrationDataset([])
