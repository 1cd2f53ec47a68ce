"""An update whose kernels a GPU starts as one graph: starting each by itself takes longer than running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Graphed:
    """A function of tensors on a GPU, recorded on its second call on the same states and replayed from then on.

    States are the arguments at `states`: they are read and changed where they lie. All others are copied to where
    the recorded kernels read them, laid out row by row, so that it does not matter where they came from. The first
    calls, and those on other states than the recorded ones, run as they are: on copies, they compile.
    """

    def __init__(self, update: Callable[..., torch.Tensor], states: Sequence[int]) -> None:
        self._update, self._states = update, frozenset(states)
        self._held: list[Any] | None = None
        self._places: list[int] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result = torch.empty(0)

    def __call__(self, *arguments: Any) -> torch.Tensor:
        """Return what the update does."""
        states = [argument for n, argument in enumerate(arguments) if n in self._states]
        places = [leaf.data_ptr() for leaf in pytree.tree_leaves(states) if _is_tensor(leaf)]
        placed = self._placed(arguments)
        is_known = places == self._places
        if self._graph is None:
            self._places = places
        if not is_known:
            return self._update(*placed)
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = self._update(*placed)
            self._graph = graph
        self._graph.replay()
        return self._result.clone()

    def _placed(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the arguments with all but the states where recorded kernels read them."""
        inputs = [None if n in self._states else given for n, given in enumerate(arguments)]
        leaves, structure = pytree.tree_flatten(inputs)
        if self._held is None:
            self._held = [
                torch.empty_like(leaf, memory_format=torch.contiguous_format)
                if _is_tensor(leaf)
                else leaf
                for leaf in leaves
            ]
        torch._foreach_copy_(_tensors(self._held), _tensors(leaves))
        held = pytree.tree_unflatten(self._held, structure)
        return [given if n in self._states else held[n] for n, given in enumerate(arguments)]


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _tensors(leaves: Sequence[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if _is_tensor(leaf)]
