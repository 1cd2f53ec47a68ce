"""Which tasks a family's batch has rows of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apprentice.config import Experiment
from apprentice.demonstrations.choosing import require_rows
from apprentice.demonstrations.format import DemonstrationError
from learner.family_batches import draw_batch_tasks, places_of_rows, rows_of_tasks

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "num_tasks"), [(256, 17), (48, 16), (100, 7), (5, 5)])
def test_rows_are_told_the_task_that_the_rings_drew_them_from(size: int, num_tasks: int) -> None:
    """TaskRings gives task i the rows from floor(i size / K) on."""
    drawn = [
        task
        for task in range(num_tasks)
        for _ in range((task + 1) * size // num_tasks - task * size // num_tasks)
    ]
    assert places_of_rows(size, num_tasks, CPU).tolist() == drawn


@pytest.mark.parametrize("num_drawn", [None, 16, 40])
def test_all_tasks_come_in_their_order_and_nothing_random_is_drawn(num_drawn: int | None) -> None:
    random = generator()
    before = random.get_state()
    found = draw_batch_tasks(48, 16, num_drawn, random, CPU)
    assert found.are_all
    assert found.of_rows.tolist() == [row // 3 for row in range(48)]
    assert torch.equal(random.get_state(), before)


@pytest.mark.parametrize(
    ("size", "num_drawn", "expected"), [(48, 5, 5), (7, 5, 5), (4, 5, 4), (9, None, 9)]
)
def test_some_tasks_come_each_once_and_at_most_one_a_row(
    size: int, num_drawn: int | None, expected: int
) -> None:
    seen: set[int] = set()
    for seed in range(60):
        found = draw_batch_tasks(size, 16, num_drawn, generator(seed), CPU)
        assert not found.are_all
        tasks, counts = found.of_rows.unique(return_counts=True)
        assert len(tasks) == len(found.tasks) == expected
        assert int(counts.sum()) == size
        assert int(counts.max()) - int(counts.min()) <= 1
        seen.update(tasks.tolist())
    assert seen == set(range(16))


def test_fewer_rows_are_of_the_same_tasks_or_of_some_of_them() -> None:
    whole = draw_batch_tasks(48, 16, 5, generator(), CPU)
    assert (
        whole.of_fewer(10, generator()).of_rows.tolist()
        == whole.tasks.repeat_interleave(2).tolist()
    )
    seen: set[int] = set()
    for seed in range(40):
        few = whole.of_fewer(3, generator(seed))
        assert len(set(few.of_rows.tolist())) == 3
        assert not few.are_all
        seen.update(few.tasks.tolist())
    assert seen == set(whole.tasks.tolist())


def test_rows_are_drawn_of_each_ones_own_task() -> None:
    bounds = torch.tensor([0, 1, 5, 12])
    tasks = torch.tensor([2, 0, 1]).repeat(200)
    rows = rows_of_tasks(bounds, tasks, generator())
    assert (torch.searchsorted(bounds, rows, right=True) - 1 == tasks).all()
    assert len(rows.unique()) == 12


@pytest.mark.parametrize(
    ("tasks_per_batch", "batch_size", "message"),
    [
        (None, 15, r"each of the 16 train tasks \(replay.tasks_per_batch draws some\), found 15"),
        (16, 15, r"each of the 16 tasks drawn \(replay.tasks_per_batch\), found 15"),
        (40, 15, r"each of the 16 train tasks .*, found 15"),
        (5, 4, r"each of the 5 tasks drawn .*, found 4"),
        (None, 16, ""),
        (40, 16, ""),
        (5, 5, ""),
    ],
)
@pytest.mark.parametrize("key", ["sac.batch_size", "imitation.discriminator.batch_size"])
def test_a_batch_without_a_row_of_every_task_that_is_drawn_is_refused(
    key: str, tasks_per_batch: int | None, batch_size: int, message: str
) -> None:
    keys = ["state", "task_parameters"]
    of_sac = key == "sac.batch_size"
    tree: dict[str, Any] = {
        "name": "test",
        "task": "reacher_goal",
        "environment": {"family": {"gamma": 0.98}},
        "reads": {"policy": keys, "critic": keys, "discriminator": keys},
        "replay": {"tasks_per_batch": tasks_per_batch},
        "sac": {"gamma": 0.98, "batch_size": batch_size if of_sac else 48},
        "imitation": {
            "method": "dac",
            "discriminator": {"batch_size": 48 if of_sac else batch_size},
        },
    }
    experiment = Experiment.model_validate(tree)
    if not message:
        require_rows(experiment, 16)
        return
    with pytest.raises(DemonstrationError, match=f"{key}: .*{message}"):
        require_rows(experiment, 16)
