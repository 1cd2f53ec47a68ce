"""Updates are compiled where that can be done, and plain where it cannot."""

from __future__ import annotations

import pytest
import torch

from apprentice.compiler import Compiler
from learner.compiling import compiled


def update(values: torch.Tensor) -> torch.Tensor:
    return values + 1.0


def test_auto_keeps_the_plain_update_where_nothing_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cpu")
    found = Compiler("no Python.h", "apt-get install -y python3.11-dev")
    monkeypatch.setattr("learner.compiling._compiler", lambda: found)
    assert compiled(update, "auto", device) is update
    assert compiled(update, "on", device) is not update
    monkeypatch.setattr("learner.compiling._compiler", lambda: Compiler("g++ 12", None))
    assert compiled(update, "auto", device) is not update
