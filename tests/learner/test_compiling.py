"""Updates are compiled where that can be done, and plain where it cannot."""

from __future__ import annotations

import pytest
import torch

from apprentice.compiler import Compiler
from learner.compiling import compiled
from learner.graphs import Graphed


def update(values: torch.Tensor) -> torch.Tensor:
    return values + 1.0


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_auto_keeps_the_plain_update_where_nothing_compiles(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device(name)
    found = Compiler("no Python.h", "apt-get install -y python3.11-dev")
    monkeypatch.setattr("learner.compiling._compiler", lambda: found)
    assert compiled(update, "auto", device) is update
    assert compiled(update, "on", device) is not update
    monkeypatch.setattr("learner.compiling._compiler", lambda: Compiler("g++ 12", None))
    assert compiled(update, "auto", device) is not update


@pytest.mark.parametrize(("name", "is_graph"), [("cpu", False), ("cuda", True)])
def test_a_gpu_runs_what_is_compiled_as_a_graph(name: str, is_graph: bool) -> None:
    assert isinstance(compiled(update, "on", torch.device(name)), Graphed) == is_graph
