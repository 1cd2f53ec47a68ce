"""Dropout's choices, drawn eight units to a random number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_LEVELS = 256


def draw_dropout(rate: float, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draw dropout's factors [*shape] on the generator's device: 0, or 1 / (share kept).

    The share is 1 - `rate` to the nearest 1/256, and neither all nor nothing.
    """
    size = math.prod(shape)
    words = torch.empty(-(-size // 8), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    drawn = words.view(torch.uint8)[:size].view(*shape)
    kept = min(max(round((1.0 - rate) * _LEVELS), 1), _LEVELS - 1)
    # 1 or more for bytes below `kept`. Comparing them would take longer than drawing them did.
    return (kept - drawn.float()).clamp_(0.0, 1.0).mul_(_LEVELS / kept)
