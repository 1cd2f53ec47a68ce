"""The meta-loader: a test for each property that a meta-learner relies on."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch

from apprentice.demonstrations.format import DemonstrationError
from apprentice.demonstrations.meta_dataset import (
    MetaBatch,
    MetaDemonstrationDataset,
    MetaDraw,
    TaskTrajectories,
    meta_loader,
)
from apprentice.types import Trajectory
from tests.demonstrations.cases import trajectory

TASKS, TRAJECTORIES = 5, 4


def episodes(
    base: int = 0, lengths: tuple[int, ...] = (10, 10, 10, 10), tasks: int = TASKS
) -> list[list[Trajectory]]:
    """State is [100 task + number + base, step, 0]."""
    return [
        [trajectory(100 * task + number + base, n) for number, n in enumerate(lengths)]
        for task in range(tasks)
    ]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(state: torch.Tensor) -> torch.Tensor:
    return state[..., 0] // 100


def dataset(draw: MetaDraw, seed: int = 0) -> MetaDemonstrationDataset:
    return MetaDemonstrationDataset(
        TaskTrajectories(episodes()), TaskTrajectories(episodes(50)), draw, seed
    )


def first(loaded: MetaDemonstrationDataset) -> MetaBatch:
    return next(iter(loaded))


def test_tasks_are_drawn_without_replacement_and_each_as_often() -> None:
    sets = TaskTrajectories(episodes())
    random, counts = generator(), Counter[int]()
    for _ in range(500):
        tasks = sets.draw_tasks(3, random).tolist()
        assert len(set(tasks)) == 3
        counts.update(tasks)
    assert set(counts) == set(range(TASKS))
    assert max(counts.values()) - min(counts.values()) < 60  # 300 each, deviation 11


def test_context_and_query_are_of_the_task_and_share_no_trajectory() -> None:
    for batch, _ in zip(dataset(MetaDraw(3, (1, 3), query_transitions=7)), range(50), strict=False):
        shown = batch.context.transitions.observation["state"]
        asked = batch.query.transitions.observation["state"]
        tasks = batch.task[:, None]
        assert (task_of(shown) == tasks[..., None])[batch.context.mask].all()
        assert (task_of(asked) == tasks).all()
        assert ((shown[..., 0] % 100 < 50) | ~batch.context.mask).all()
        assert (asked[..., 0] % 100 >= 50).all()


def test_the_size_of_the_context_varies_within_a_batch_and_the_rest_is_masked() -> None:
    sizes = Counter[int]()
    for batch, _ in zip(dataset(MetaDraw(4, (1, 3))), range(100), strict=False):
        context = batch.context
        assert context.mask.shape == (4, 3, 10)
        assert context.transitions.action.shape == (4, 3, 10, 2)
        drawn = context.trajectory >= 0
        torch.testing.assert_close(context.mask.any(-1), drawn)
        numbers = [row[row >= 0].tolist() for row in context.trajectory]
        assert all(len(set(found)) == len(found) for found in numbers)
        sizes.update(len(found) for found in numbers)
        assert (context.transitions.observation["state"][~context.mask] == 0).all()
    assert set(sizes) == {1, 2, 3}
    assert min(sizes.values()) > 90  # 133 of each


def test_shorter_trajectories_are_padded_and_the_padding_masked() -> None:
    sets = TaskTrajectories(episodes(lengths=(4, 10)))
    batch = sets.trajectories(torch.tensor([2, 0]), torch.tensor([[0, 1], [1, -1]]))
    assert batch.mask.sum(-1).tolist() == [[4, 10], [10, 0]]
    state = batch.transitions.observation["state"]
    assert state[0, 0, :4, 1].tolist() == [0, 1, 2, 3]
    assert state[0, 0, 3, 0] == 200
    assert (state[~batch.mask] == 0).all()
    following = batch.transitions.next_observation["state"]
    assert following[0, 1, :, 1].tolist() == list(range(1, 11))


def test_steps_of_a_context_are_different_ones_in_order() -> None:
    sets = TaskTrajectories(episodes(lengths=(4, 30)))
    seen = Counter[int]()
    random = generator()
    for _ in range(200):
        batch = sets.trajectories(torch.tensor([1]), torch.tensor([[0, 1]]), random, num_steps=8)
        steps = batch.transitions.observation["state"][0, 1, :, 1].tolist()
        assert sorted(set(steps)) == steps
        assert len(steps) == 8
        assert batch.mask[0].sum(-1).tolist() == [4, 8]
        seen.update(int(step) for step in steps)
    assert set(seen) == set(range(30))
    assert max(seen.values()) < 2.2 * min(seen.values())


def test_transitions_come_from_as_many_trajectories_as_asked() -> None:
    sets = TaskTrajectories(episodes())
    random = generator()
    for num in (1, 2, 4):
        batch = sets.draw_transitions(torch.arange(5), 40, random, num_trajectories=num)
        for task in range(5):
            found = batch.transitions.observation["state"][task]
            assert len(set(found[:, 0].tolist())) == num
            assert (found[:, 0] == 100 * task + batch.trajectory[task]).all()


def test_random_transitions_are_uniform_over_the_steps_of_the_trajectories() -> None:
    sets = TaskTrajectories(episodes(lengths=(2, 6), tasks=1))
    batch = sets.draw_transitions(torch.tensor([0]), 8000, generator())
    rows = batch.transitions.observation["state"][0].long().tolist()
    counts = Counter((row[0], row[1]) for row in rows)
    assert set(counts) == {(0, 0), (0, 1), *((1, step) for step in range(6))}
    assert max(counts.values()) < 1200
    assert min(counts.values()) > 800


def test_contiguous_transitions_are_steps_in_a_row_and_start_anywhere() -> None:
    sets = TaskTrajectories(episodes())
    random, starts = generator(), Counter[int]()
    for _ in range(100):
        batch = sets.draw_transitions(
            torch.tensor([3, 1]), 8, random, num_trajectories=2, contiguous=True
        )
        state = batch.transitions.observation["state"].reshape(2, 2, 4, 3)
        assert (np.diff(state[..., 1].numpy(), axis=-1) == 1).all()
        assert (state[..., 0] == state[..., :1, 0]).all()
        assert batch.mask.all()
        starts.update(int(value) for value in state[..., 0, 1].flatten())
    assert set(starts) == set(range(7))


@pytest.mark.parametrize("contiguous", [True, False])
def test_as_many_transitions_come_as_are_asked_for_of_as_many_as_the_fewest_trajectories(
    contiguous: bool,
) -> None:
    given, shown = episodes(), episodes(50)
    given[0] = given[0][:2]
    draw = MetaDraw(5, query_transitions=16, contiguous=contiguous)
    loaded = MetaDemonstrationDataset(TaskTrajectories(shown), TaskTrajectories(given), draw, 0)
    for batch, _ in zip(loaded, range(10), strict=False):
        assert batch.query.mask.shape == (5, 16)
        assert batch.query.mask.all()
        assert all(len(set(row.tolist())) <= 2 for row in batch.query.trajectory)


def test_pieces_longer_than_a_trajectory_are_masked() -> None:
    sets = TaskTrajectories(episodes(lengths=(3,)))
    batch = sets.draw_transitions(torch.tensor([0]), 5, generator(), contiguous=True)
    assert batch.mask.tolist() == [[True] * 3 + [False] * 2]
    assert batch.transitions.observation["state"][0, :, 1].tolist() == [0, 1, 2, 0, 0]
    assert (batch.transitions.action[0, 3:] == 0).all()


def test_tasks_may_have_different_numbers_of_trajectories() -> None:
    given = [[trajectory(0)], [trajectory(100), trajectory(101), trajectory(102)]]
    sets = TaskTrajectories(given)
    assert sets.fewest() == 1
    random, seen = generator(), set()
    for _ in range(100):
        batch = sets.draw_trajectories(torch.tensor([0, 1]), (1, 1), random)
        assert batch.trajectory[0].tolist() == [0]
        seen.add(int(batch.trajectory[1]))
    assert seen == {0, 1, 2}


def test_thinning_keeps_every_nth_step_and_its_true_successor() -> None:
    sets = TaskTrajectories(episodes(), subsampling=4, seed=1)
    batch = sets.trajectories(torch.arange(5), torch.arange(4).expand(5, 4))
    before = batch.transitions.observation["state"][..., 1]
    after = batch.transitions.next_observation["state"][..., 1]
    assert ((after - before)[batch.mask] == 1).all()
    gaps = (before[..., 1:] - before[..., :-1])[batch.mask[..., 1:]]
    assert (gaps == 4).all()
    assert len(set(before[..., 0].flatten().tolist())) > 1


def test_the_same_seed_draws_the_same() -> None:
    draw = MetaDraw(2, (1, 2), context_steps=3, query_transitions=5)
    one, same, other = (first(dataset(draw, seed)) for seed in (3, 3, 4))
    for field in ("task", "context", "query"):
        for left, right in zip(
            torch.utils._pytree.tree_leaves(getattr(one, field)),
            torch.utils._pytree.tree_leaves(getattr(same, field)),
            strict=True,
        ):
            torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert not torch.equal(
        one.query.transitions.observation["state"], other.query.transitions.observation["state"]
    )


def test_workers_draw_from_streams_of_their_own() -> None:
    draws = [
        next_batch
        for next_batch, _ in zip(
            meta_loader(dataset(MetaDraw(2, query_transitions=6)), num_workers=2),
            range(6),
            strict=False,
        )
    ]
    drawn = {tuple(batch.query.transitions.action.flatten().tolist()) for batch in draws}
    assert len(drawn) == 6


@pytest.mark.parametrize("draw", [MetaDraw(2, query_transitions=6), MetaDraw(5, (1, 3), 4)])
def test_what_a_worker_sends_is_what_it_drew(draw: MetaDraw) -> None:
    drawn = dataset(draw, seed=7)
    state = int(np.random.SeedSequence([7, 1]).generate_state(1, np.uint64)[0])
    expected = drawn.draw(generator(state & (2**63 - 1)))
    found = next(iter(meta_loader(drawn, num_workers=1)))
    theirs, kind = torch.utils._pytree.tree_flatten(expected)
    ours, kind_of_ours = torch.utils._pytree.tree_flatten(found)
    assert kind == kind_of_ours
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_drawing_is_fast_enough() -> None:
    """200,000 transitions a second; 16 tasks, 100 steps shown and 16 asked, as SMILe draws."""
    sets = [TaskTrajectories(episodes(base, (100,) * 8, 16)) for base in (0, 50)]
    loader = meta_loader(MetaDemonstrationDataset(*sets, MetaDraw(16), 0))
    batches = iter(loader)
    next(batches)
    rates = []
    for _ in range(5):
        begun = time.perf_counter()
        num = 0
        for _ in range(20):
            batch = next(batches)
            num += int(batch.context.mask.sum()) + int(batch.query.mask.sum())
        rates.append(num / (time.perf_counter() - begun))
    assert max(rates) > 200_000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: MetaDraw(2, (0, 1)), "context: expected from 1 trajectory"),
        (lambda: MetaDraw(2, (3, 2)), "found 3 to 2"),
        (lambda: MetaDraw(0), "expected at least one task"),
        (
            lambda: MetaDraw(2, query_trajectories=3, query_transitions=4, contiguous=True),
            "found 4",
        ),
        (
            lambda: dataset(MetaDraw(2, query_transitions=6, contiguous=True)),
            "each of 4 trajectories, found 6 in all; set query_trajectories",
        ),
        (
            lambda: TaskTrajectories(episodes()).draw_transitions(
                torch.tensor([0]), 3, generator(), contiguous=True
            ),
            "each of 4 trajectories, found 3",
        ),
        (lambda: dataset(MetaDraw(6)), "at most 5 tasks, found 6"),
        (lambda: dataset(MetaDraw(2, (1, 5))), "at most 4 context trajectories, found 5"),
        (lambda: dataset(MetaDraw(2, query_trajectories=5)), "at most 4 query trajectories"),
        (lambda: TaskTrajectories([[trajectory(0)], []]), r"found none of \[1\]"),
        (
            lambda: MetaDemonstrationDataset(
                TaskTrajectories(episodes()),
                # The last of each task is thinned otherwise, and yet the same.
                TaskTrajectories(
                    [
                        [*other[:3], own[3]]
                        for own, other in zip(episodes(), episodes(50), strict=True)
                    ],
                    subsampling=3,
                ),
                MetaDraw(2),
                0,
            ),
            "without a trajectory in common, found 5 in both",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(draw: object, message: str) -> None:
    with pytest.raises(DemonstrationError, match=message):
        draw()  # type: ignore[operator]
