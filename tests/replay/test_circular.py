"""Rows that begin anew at the end of their tensor."""

from __future__ import annotations

import torch

from replay.circular import CircularRows


def make_rows(capacity: int = 5) -> CircularRows:
    return CircularRows(capacity, (), torch.int64, torch.device("cpu"))


def append(rows: CircularRows, *values: int) -> int:
    return rows.append(torch.tensor(values))


def test_rows_are_appended_one_behind_the_other() -> None:
    rows = make_rows()
    assert append(rows, 1, 2, 3) == 0
    assert append(rows, 4, 5) == 3
    assert (rows.start, rows.count, rows.capacity) == (0, 5, 5)
    assert rows.read(0, 5).tolist() == [1, 2, 3, 4, 5]
    assert rows.read(1, 3).tolist() == [2, 3, 4]


def test_new_rows_take_the_place_of_dropped_ones() -> None:
    rows = make_rows()
    append(rows, 1, 2, 3, 4, 5)
    rows.drop(2)
    assert (rows.start, rows.count) == (2, 3)
    assert append(rows, 6, 7) == 0
    assert (rows.start, rows.count) == (2, 5)
    assert rows.read(rows.start, rows.count).tolist() == [3, 4, 5, 6, 7]


def test_rows_appended_across_the_end_are_read_in_order() -> None:
    rows = make_rows()
    append(rows, 1, 2, 3, 4)
    rows.drop(3)
    assert append(rows, 5, 6, 7) == 4
    assert (rows.start, rows.count) == (3, 4)
    assert rows.read(3, 4).tolist() == [4, 5, 6, 7]
    assert rows.read(4, 2).tolist() == [5, 6]
    assert rows.read(0, 2).tolist() == [6, 7]
    assert rows.take(torch.tensor([1, 3, 4, 0, 1])).tolist() == [7, 4, 5, 6, 7]


def test_rows_that_end_at_the_end_do_not_wrap() -> None:
    rows = make_rows()
    append(rows, 1, 2)
    rows.drop(2)
    assert (rows.start, rows.count) == (2, 0)
    assert append(rows, 3, 4, 5) == 2
    assert append(rows, 6) == 0
    assert rows.read(2, 4).tolist() == [3, 4, 5, 6]


def test_dropping_goes_round_more_than_once() -> None:
    rows = make_rows(3)
    for number in range(10):
        assert append(rows, number) == number % 3
        rows.drop(1)
    assert (rows.start, rows.count) == (1, 0)


def test_what_was_taken_is_a_copy_with_the_rows_shape_and_dtype() -> None:
    rows = CircularRows(3, (2,), torch.uint8, torch.device("cpu"))
    rows.append(torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.uint8))
    taken = rows.take(torch.tensor([2, 0]))
    rows.drop(1)
    rows.append(torch.tensor([[9, 9]], dtype=torch.uint8))
    assert taken.dtype == torch.uint8
    assert taken.tolist() == [[5, 6], [1, 2]]
    assert rows.read(1, 3).tolist() == [[3, 4], [5, 6], [9, 9]]
