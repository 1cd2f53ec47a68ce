"""What an update recorded as a graph does, with a stand-in for CUDA's that keeps its rules.

Recording runs nothing; replaying runs what was recorded, on the tensors it was recorded with, and writes its result
where the recording put it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

from learner.graphs import Graphed


class State(NamedTuple):
    total: torch.Tensor  # [3]


class Batch(NamedTuple):
    rows: dict[str, torch.Tensor]  # [4, 3] each
    noise: torch.Tensor | None


class Recorder:
    """The stand-in: one graph, and the update that it may record."""

    recording = False

    def __init__(self) -> None:
        self.num_replayed, self.num_run = 0, 0
        self._recorded: tuple[Any, ...] = ()
        self._result = torch.empty(0)

    def update(self, state: State, batch: Batch, factor: torch.Tensor) -> torch.Tensor:
        if self.recording:
            self._recorded, self._result = (state, batch, factor), torch.zeros(3)
            return self._result
        self.num_run += 1
        return self._run(state, batch, factor)

    def _run(self, state: State, batch: Batch, factor: torch.Tensor) -> torch.Tensor:
        assert all(rows.is_contiguous() for rows in batch.rows.values())
        state.total.add_(factor * batch.rows["one"].sum(0) - batch.rows["two"].sum(0))
        return state.total * 2.0

    def replay(self) -> None:
        self.num_replayed += 1
        self._result.copy_(self._run(*self._recorded))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    result = Recorder()

    @contextmanager
    def recording(graph: Recorder, **_: Any) -> Iterator[None]:
        graph.recording = True
        yield
        graph.recording = False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: result)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return result


def batch(number: int) -> Batch:
    """Rows as a ring gives them: columns of one wider tensor."""
    packed = torch.arange(24.0).view(4, 6) + number
    one, two = packed.split(3, dim=1)
    return Batch({"one": one, "two": two * 2.0}, None)


def expected(num_updates: int) -> torch.Tensor:
    """Sums of columns: 36, 40, 44 and 48, 52, 56, and 4 more of each an update; the first are taken half."""
    total = torch.zeros(3)
    for number in range(num_updates):
        one = torch.tensor([36.0, 40.0, 44.0]) + 4 * number
        two = torch.tensor([48.0, 52.0, 56.0]) + 4 * number
        total += 0.5 * one - 2.0 * two
    return total


def test_replayed_updates_do_what_plain_ones_do(recorder: Recorder) -> None:
    graphed, state = Graphed(recorder.update, (0,)), State(torch.zeros(3))
    results = [graphed(state, batch(number), torch.tensor(0.5)) for number in range(5)]
    assert (recorder.num_run, recorder.num_replayed) == (1, 4)
    assert graphed.is_recorded
    torch.testing.assert_close(state.total, expected(5))
    for number, result in enumerate(results):  # also those that were returned before the last
        torch.testing.assert_close(result, 2.0 * expected(number + 1))


def test_copies_are_changed_without_a_graph_and_the_states_stay(recorder: Recorder) -> None:
    graphed, state = Graphed(recorder.update, (0,)), State(torch.zeros(3))
    for _ in range(2):  # as `prepare` does, for each form of an update
        copies = State(state.total.clone())
        graphed(copies, batch(0), torch.tensor(0.5))
        torch.testing.assert_close(copies.total, expected(1))
        assert not graphed.is_recorded
    for number in range(3):
        graphed(state, batch(number), torch.tensor(0.5))
    copies = State(torch.zeros(3))
    graphed(copies, batch(0), torch.tensor(0.5))
    torch.testing.assert_close(copies.total, expected(1))
    torch.testing.assert_close(state.total, expected(3))
    graphed(state, batch(3), torch.tensor(0.5))
    torch.testing.assert_close(state.total, expected(4))
    assert (recorder.num_run, recorder.num_replayed) == (4, 3)


def test_states_that_are_loaded_are_gone_on_from(recorder: Recorder) -> None:
    graphed, state = Graphed(recorder.update, (0,)), State(torch.zeros(3))
    for number in range(3):
        graphed(state, batch(number), torch.tensor(0.5))
    state.total.copy_(expected(1))
    graphed(state, batch(1), torch.tensor(0.5))
    torch.testing.assert_close(state.total, expected(2))


@pytest.mark.parametrize("other", ["shape", "order"])
def test_what_was_not_recorded_is_refused(other: str, recorder: Recorder) -> None:
    graphed, state = Graphed(recorder.update, (0,)), State(torch.zeros(3))
    graphed(state, batch(0), torch.tensor(0.5))
    rows = batch(1).rows
    changed = {
        "shape": {"one": rows["one"][:1], "two": rows["two"]},
        "order": {"two": rows["two"], "one": rows["one"]},
    }
    with pytest.raises(AssertionError):
        graphed(state, Batch(changed[other], None), torch.tensor(0.5))
