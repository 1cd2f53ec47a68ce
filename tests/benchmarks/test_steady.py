"""Rates are taken from a window of steady training, out of a file that is being written."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from benchmarks.containers import Rates, rates_of
from benchmarks.pipeline import Row, steady_rows

WARM_UP_SECONDS = 20


def being_written(num_seconds: int) -> Callable[[], str]:
    """Return a reader of a file that grows by a line and a half each time it is read."""
    lines = [
        json.dumps(
            {
                "time": 1000.0 + second,
                "metrics": {
                    "learner/steps": 50.0 * second,
                    "learner/updates": 40.0 * max(0, second - WARM_UP_SECONDS),
                },
            }
        )
        + "\n"
        for second in range(num_seconds)
    ]
    text, known = "".join(lines), 0

    def read() -> str:
        nonlocal known
        known += len(lines[0]) * 3 // 2
        return text[:known]

    return read


def test_the_window_begins_ten_seconds_after_training_does() -> None:
    rows = steady_rows(being_written(100), seconds=30.0, period_seconds=0.001)
    begun = WARM_UP_SECONDS + 3 + 10  # more than 100 updates have been made in second 23
    assert [row.time - 1000.0 for row in rows] == list(range(begun + 1, begun + 31))
    assert rates_of(rows) == Rates(steps=50.0, updates=40.0)


def test_rates_are_what_was_done_between_the_first_row_and_the_last() -> None:
    rows = [
        Row(10.0, {"learner/steps": 100.0, "learner/updates": 7.0}),
        Row(11.0, {"learner/steps": 900.0, "learner/updates": 7.0}),
        Row(14.0, {"learner/steps": 300.0, "learner/updates": 47.0}),
    ]
    assert rates_of(rows) == Rates(steps=50.0, updates=10.0)


def test_a_system_that_ends_is_not_waited_for() -> None:
    def read() -> str:
        raise RuntimeError("the system ended; its output is above")

    with pytest.raises(RuntimeError, match="the system ended"):
        steady_rows(read, seconds=30.0, period_seconds=0.001)
