"""Compiling an update, or a part of one, or keeping it plain where there is no compiler."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, TypeVar, cast

import structlog
import torch

from apprentice.compiler import find_compiler
from learner.graphs import Graphed

log = structlog.get_logger()

_compiler = functools.cache(find_compiler)
Update = TypeVar("Update", bound=Callable[..., torch.Tensor])


def compiled(
    update: Update, mode: str, device: torch.device, states: Sequence[int] = (0,)
) -> Update:
    """Compile an update, or a part of one, as `learner.compile` asks; `auto` without a compiler keeps the plain one.

    On a GPU its kernels are started as one graph; `states` are the arguments that lie where they are (`Graphed`).

    The compiled update is for the shapes, dtypes and devices of its first call and does not check them:
    the checks take as long as twenty of its operations. Nor does it look at what `update` closes over.
    """
    if mode == "off":
        return update
    compiler = _compiler() if mode == "auto" else None
    if compiler is not None and compiler.remedy is not None:
        times = "1.5" if device.type == "cpu" else "4 to 14"
        log.warning(
            f"the update is not compiled; with a C++ compiler it has about {times} times the speed",
            found=compiler.found,
            install=compiler.remedy,
        )
        return update
    # Compiled code is kept by code object, and found again without checks: each update needs its own.
    assert isinstance(update, FunctionType)
    own = FunctionType(
        update.__code__.replace(), update.__globals__, "update", None, update.__closure__
    )
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "max_pointwise_cat_inputs": 1,
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    }
    if device.type == "cpu":
        options["cpp_wrapper"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = torch.compile(own, fullgraph=True, dynamic=False, options=options)
    return cast(Update, Graphed(result, states) if device.type == "cuda" else result)
