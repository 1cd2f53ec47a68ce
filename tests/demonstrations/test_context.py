"""What may be shown: numbered once, drawn without repetition, kept in a run's folder, refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apprentice.demonstrations.context import (
    ContextChoice,
    ContextLibrary,
    TrainContext,
    choose_context,
    context_of,
    keep_context,
    read_context,
    train_context,
)
from apprentice.demonstrations.family import read_family, write_family
from apprentice.demonstrations.format import DemonstrationError
from tests.demonstrations.cases import trajectory
from tests.demonstrations.test_family import SETTINGS, of_task, written

TRAIN = ("fake-10", "fake-11")


@pytest.fixture
def library(tmp_path: Path) -> ContextLibrary:
    return ContextLibrary.of(written(tmp_path / "demos"))


def test_numbers_count_all_context_demonstrations_and_no_query(library: ContextLibrary) -> None:
    assert len(library) == 3 * 2 * 2
    assert [library.of_task(task) for task in TRAIN] == [(0, 1), (2, 3)]
    assert library.tasks("test") == ("fake-30", "fake-31")
    for number in range(len(library)):
        one = library[number]
        assert one.number == number
        assert number in library.of_task(one.task_id)
    first = trajectory(100 * 10 + 0, 6)
    expected = np.concatenate(
        [first.observation["state"][:-1], first.action, first.observation["state"][1:]], axis=1
    )
    np.testing.assert_array_equal(library[0].steps, expected)
    assert library[0].steps.dtype == np.float32


def test_the_same_seed_draws_the_same_and_a_larger_size_adds_to_it(library: ContextLibrary) -> None:
    seen = set()
    for seed in range(30):
        one, both = library.draw("fake-30", 1, seed), library.draw("fake-30", 2, seed)
        assert both[:1] == one
        assert set(both) == set(library.of_task("fake-30"))
        assert library.draw("fake-30", 1, seed) == one
        seen.add(one)
    assert len(seen) == 2


@pytest.mark.parametrize("size", [0, 3, -1])
def test_none_and_more_than_there_are_cannot_be_shown(library: ContextLibrary, size: int) -> None:
    with pytest.raises(DemonstrationError, match=f"expected from 1 to 2 .* found {size}"):
        library.draw("fake-30", size, 0)


def test_a_task_without_demonstrations_is_refused(library: ContextLibrary) -> None:
    with pytest.raises(DemonstrationError, match="expected a task of fake .* found 'fake-99'"):
        library.draw("fake-99", 1, 0)


def test_numbers_of_another_task_are_refused(library: ContextLibrary) -> None:
    assert ContextChoice(library, numbers=(1,)).of("fake-10", 5) == (1,)
    with pytest.raises(DemonstrationError, match=r"expected numbers of fake-11's .*\(2 to 3\)"):
        ContextChoice(library, numbers=(1, 2)).of("fake-11", 5)
    with pytest.raises(DemonstrationError, match="found \\[\\]"):
        ContextChoice(library, numbers=()).of("fake-11", 5)


def test_another_tasks_are_of_the_same_division(library: ContextLibrary) -> None:
    choice = ContextChoice(library, of_another_task=True)
    for task, other in (("fake-30", "fake-31"), ("fake-31", "fake-30"), ("fake-10", "fake-11")):
        assert library[choice.of(task, 3)[0]].task_id == other


def test_a_task_that_is_alone_in_its_division_has_no_other(tmp_path: Path) -> None:
    recorded = {"train": {"fake-1": (of_task(1), 2)}}
    write_family(tmp_path / "alone", "fake", SETTINGS, "0", recorded)  # type: ignore[arg-type]
    choice = ContextChoice(ContextLibrary.of(read_family(tmp_path / "alone")), of_another_task=True)
    with pytest.raises(DemonstrationError, match="expected another train task .* only fake-1"):
        choice.of("fake-1", 0)


def test_what_travels_comes_back_the_same(library: ContextLibrary) -> None:
    sent = train_context(library, TRAIN, None)
    assert sent.task.tolist() == [0, 0, 1, 1]
    assert sent.number.tolist() == [0, 1, 2, 3]
    assert sent.bounds.tolist() == [0, 6, 12, 18, 24]
    found = TrainContext.from_tensors(sent.tensors())
    for place, number in enumerate(sent.number.tolist()):
        np.testing.assert_array_equal(found.demonstration(place), library[number].steps)


def test_fewer_may_be_used_and_more_are_refused(library: ContextLibrary) -> None:
    assert train_context(library, TRAIN, 1).number.tolist() == [0, 2]
    with pytest.raises(DemonstrationError, match="context.episodes: expected at most 2"):
        train_context(library, TRAIN, 3)


@pytest.mark.parametrize("field", ["steps", "bounds", "task", "number"])
def test_parts_that_do_not_fit_together_are_refused(library: ContextLibrary, field: str) -> None:
    tensors = train_context(library, TRAIN, None).tensors()
    with pytest.raises(DemonstrationError, match="context"):
        TrainContext.from_tensors({k: v for k, v in tensors.items() if k != field})
    with pytest.raises(DemonstrationError, match="do not fit together"):
        TrainContext.from_tensors({**tensors, field: tensors[field][:-1]})


def test_a_runs_folder_keeps_what_may_be_shown_and_nothing_else(tmp_path: Path) -> None:
    family = written(tmp_path / "demos")
    run = tmp_path / "runs" / "one"
    (run / "context").mkdir(parents=True)
    keep_context(run / "context", family)
    kept = read_context(run / "context")
    original = ContextLibrary.of(family)
    assert len(kept) == len(original)
    for number in range(len(kept)):
        assert kept[number].task_id == original[number].task_id
        np.testing.assert_array_equal(kept[number].steps, original[number].steps)
        np.testing.assert_array_equal(
            kept[number].trajectory.physics_state, original[number].trajectory.physics_state
        )
    with pytest.raises(DemonstrationError, match="expected one episode or more to show and"):
        read_family(run / "context")
    assert kept.returns("fake-30") == (5.0, 1.0)
    checkpoint = run / "checkpoints" / "step-000000000001"
    assert len(context_of(checkpoint)) == len(kept)
    assert context_of(checkpoint) is context_of(checkpoint)
    before = sorted(path.stat().st_mtime_ns for path in (run / "context").iterdir())
    keep_context(run / "context", family)
    assert sorted(path.stat().st_mtime_ns for path in (run / "context").iterdir()) == before


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [(None, 1), ("1", 1), ("2", 2), ("#0", (0,)), ("#1,#0", (1, 0)), ("ids:1,0", (1, 0))],
)
def test_a_request_says_how_many_or_which(
    tmp_path: Path, asked: str | None, numbers: int | tuple[int, ...]
) -> None:
    keep_context(tmp_path / "run" / "context", written(tmp_path / "demos"))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-1"
    choice = choose_context(asked, checkpoint, True, ["fake-10"])
    assert choice is not None
    found = choice.of("fake-10", 0)
    assert (found == numbers) if isinstance(numbers, tuple) else (len(found) == numbers)


@pytest.mark.parametrize(
    "asked", ["0", "3", "-1", "#7", "ids:0,0", "#0,1", "ids:#0", "", "all", "#", "1e1", "0,1"]
)
def test_a_request_that_cannot_be_met_is_refused(tmp_path: Path, asked: str) -> None:
    keep_context(tmp_path / "run" / "context", written(tmp_path / "demos"))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-1"
    with pytest.raises(DemonstrationError, match="context: expected"):
        choose_context(asked, checkpoint, True, ["fake-10"])


def test_a_policy_that_infers_nothing_is_shown_nothing(tmp_path: Path) -> None:
    assert choose_context(None, tmp_path / "x", False, ["reacher-easy"]) is None
    with pytest.raises(DemonstrationError, match="does not infer its task"):
        choose_context("1", tmp_path / "x", False, ["reacher-easy"])


def test_a_run_without_context_is_told(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="expected the demonstrations to show"):
        choose_context("1", tmp_path / "run" / "checkpoints" / "step-1", True, ["fake-10"])
