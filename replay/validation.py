"""What a segment must be before it is sent, and again before it is trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from apprentice.types import Ending, Segment
from replay.errors import SegmentRejected

_ACTION_BOUND = 1.0 + 1e-5  # tanh in float32 may round past one


class Bounds(NamedTuple):
    """What an experiment allows."""

    segment_length: int
    num_tasks: int


def check_scalars(segment: Segment, bounds: Bounds) -> Segment:
    """Return the segment with its ending as an Ending; raise SegmentRejected where a number cannot be."""
    if not 1 <= segment.length <= bounds.segment_length:
        _reject(segment, f"length: expected 1 to {bounds.segment_length}, found {segment.length}")
    if not 0 <= segment.task < bounds.num_tasks:
        _reject(segment, f"task: expected 0 to {bounds.num_tasks - 1}, found {segment.task}")
    for name in ("episode", "first_step", "actor", "policy_version"):
        if getattr(segment, name) < 0:
            _reject(segment, f"{name}: expected 0 or more, found {getattr(segment, name)}")
    try:
        return segment._replace(ending=Ending(segment.ending))
    except ValueError:
        _reject(segment, f"ending: expected 0 to 3, found {segment.ending}")
        raise


def check_numbers(numbers: np.ndarray, segment: Segment) -> None:
    """Raise SegmentRejected unless all numbers are finite, actions in [-1, 1], discounts as promised."""
    if not np.isfinite(numbers).all():
        names = [name for name, value in _named(segment) if not np.isfinite(value).all()]
        _reject(segment, f"{', '.join(names)}: expected finite numbers, found NaN or infinity")
    if segment.action.size and max(segment.action.max(), -segment.action.min()) > _ACTION_BOUND:
        _reject(segment, f"action: expected [-1, 1], found {np.abs(segment.action).max():g}")
    discount = segment.discount[: segment.length]
    if discount.min() < 0.0 or discount.max() > 1.0:
        _reject(
            segment, f"discount: expected [0, 1], found {discount.min():g} to {discount.max():g}"
        )
    zeros = np.flatnonzero(discount == 0.0)
    last = segment.length - 1
    if len(zeros) and (zeros[0] != last or segment.ending != Ending.TERMINATED):
        _reject(
            segment,
            f"discount: expected 0 only at the last step of a terminated episode, found 0 at step "
            f"{zeros[0]} of {segment.length}, ending {segment.ending!r}",
        )


def _named(segment: Segment) -> list[tuple[str, np.ndarray]]:
    pairs = [
        (name, value) for name, value in segment.observation.items() if value.dtype != np.uint8
    ]
    names = ("action", "pre_tanh_action", "environment_reward", "discount")
    return pairs + [(name, getattr(segment, name)) for name in names]


def _reject(segment: Segment, reason: str) -> None:
    raise SegmentRejected(
        f"segment {tuple(segment.id)} of actor {segment.actor}: {reason}", segment.actor
    )
