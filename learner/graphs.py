"""An update whose kernels a GPU starts as one graph: starting each by itself takes longer than running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Graphed:
    """A function of tensors on a GPU, recorded on its second call in a row on the same states and replayed later.

    States are the arguments at `states`: they are read and changed where they lie. All others are copied to where
    the recorded kernels read them, laid out row by row, so that it does not matter where they came from; their
    structure and shapes stay those of the first call. Calls before the recording, and on other states, run without a
    graph.
    """

    def __init__(self, update: Callable[..., torch.Tensor], states: Sequence[int]) -> None:
        self._update, self._states = update, frozenset(states)
        self._structure: pytree.TreeSpec | None = None
        self._held: list[torch.Tensor] = []
        self._inputs: list[Any] = []  # the arguments made of what is held, None where states stand
        self._last: list[torch.Tensor] = []  # held, so that no other states come to lie there
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result = torch.empty(0)

    @property
    def is_recorded(self) -> bool:
        """Whether calls on the states of the last ones replay a graph."""
        return self._graph is not None

    def __call__(self, *arguments: Any) -> torch.Tensor:
        """Return what the update does."""
        chosen = [argument for n, argument in enumerate(arguments) if n in self._states]
        states = _tensors(pytree.tree_leaves(chosen))
        are_known = bool(self._last) and _addresses(states) == _addresses(self._last)
        self._take_in(arguments)
        if self._graph is None:
            self._last = states
        if not are_known:
            return self._update(*self._placed(arguments))
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = self._update(*self._placed(arguments))
            self._graph = graph
        self._graph.replay()
        return self._result.clone()

    def _take_in(self, arguments: Sequence[Any]) -> None:
        """Copy all but the states to where recorded kernels read them."""
        inputs = [None if n in self._states else given for n, given in enumerate(arguments)]
        leaves, structure = pytree.tree_flatten(inputs)
        if self._structure is None:
            room = [_room_for(leaf) for leaf in leaves]
            self._structure, self._held = structure, _tensors(room)
            self._inputs = pytree.tree_unflatten(room, structure)
        given = _tensors(leaves)
        assert structure == self._structure, "arguments of another structure than the first"
        assert [t.shape for t in given] == [t.shape for t in self._held], (
            "arguments of other shapes"
        )
        torch._foreach_copy_(self._held, given)

    def _placed(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the arguments, those that are no states as they were taken in."""
        return [
            given if n in self._states else self._inputs[n] for n, given in enumerate(arguments)
        ]


def _room_for(leaf: Any) -> Any:
    """Return a tensor to copy `leaf` to; what is no tensor stays itself."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return torch.empty_like(leaf, memory_format=torch.contiguous_format)


def _tensors(leaves: Sequence[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
