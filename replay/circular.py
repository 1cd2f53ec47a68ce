"""Rows in a tensor of fixed size that begins anew at its end."""

from __future__ import annotations

import torch


class CircularRows:
    """Keeps the newest rows; knows where the oldest lies and how many there are."""

    def __init__(
        self, capacity: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity = capacity
        self.start = 0  # physical row of the oldest
        self.count = 0
        self._data = torch.empty((capacity, *shape), dtype=dtype, device=device)

    def append(self, rows: torch.Tensor) -> int:
        """Copy `rows` [n, ...] behind the newest, where there must be room; return where they begin."""
        at = (self.start + self.count) % self.capacity
        head = min(len(rows), self.capacity - at)
        self._data[at : at + head] = rows[:head]
        if head < len(rows):
            self._data[: len(rows) - head] = rows[head:]
        self.count += len(rows)
        return at

    def drop(self, num_rows: int) -> None:
        """Forget the oldest rows."""
        self.start = (self.start + num_rows) % self.capacity
        self.count -= num_rows

    def read(self, at: int, num_rows: int) -> torch.Tensor:
        """Return rows from physical row `at` on, in order."""
        head = self._data[at : at + num_rows]
        if len(head) == num_rows:
            return head
        return torch.cat([head, self._data[: num_rows - len(head)]])

    def take(self, index: torch.Tensor) -> torch.Tensor:
        """Return copies of the rows at physical positions `index`."""
        return self._data.index_select(0, index)
