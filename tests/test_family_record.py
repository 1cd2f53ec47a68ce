"""What a run's folder says of tasks that its policy never learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from apprentice.family_record import (
    FamilyEvaluation,
    TaskResult,
    read_family_evaluation,
    write_family_evaluation,
)
from apprentice.runs import EVALUATED_FAMILY


def result(context: int, value: float, expert: float | None = 80.0) -> TaskResult:
    return TaskResult(
        task_id="fake-a",
        parameters={"x": 0.5},
        context=context,
        environment_return=value,
        metrics={"final_distance": 0.1},
        expert_return=expert,
        random_return=20.0,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = FamilyEvaluation(
        steps=7,
        split="test",
        episodes=2,
        results=(result(1, 50.0), result(1, 70.0), result(4, 80.0)),
    )
    write_family_evaluation(tmp_path, found)
    assert read_family_evaluation(tmp_path) == found
    assert found.sizes == (1, 4)
    assert found.mean_return(1) == 60.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"steps": 1}'])
def test_what_cannot_be_read_is_as_good_as_nothing(tmp_path: Path, text: str) -> None:
    assert read_family_evaluation(tmp_path) is None
    (tmp_path / EVALUATED_FAMILY).write_text(text)
    assert read_family_evaluation(tmp_path) is None


def test_a_return_is_normalised_where_expert_and_random_differ() -> None:
    assert result(1, 50.0).normalised == pytest.approx(0.5)
    assert result(1, 50.0, expert=None).normalised is None
    assert result(1, 50.0, expert=20.0).normalised is None
