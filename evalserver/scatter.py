"""Marks in a plane as SVG, and the colours that tell a family's tasks apart in them."""

from __future__ import annotations

import colorsys
import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from apprentice.config_family import SPLITS, SplitName

SIZE, MARGIN = 320, 16
_LOW_HUE, _HIGH_HUE = 240.0, 0.0
_STRIPES = 24


class Axis(NamedTuple):
    """One parameter of a family, with its range."""

    name: str
    low: float
    high: float
    unit: str

    def share(self, value: float) -> float:
        """Return where a value lies in the range, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


class Colouring(NamedTuple):
    """A colour for each task, by what tells tasks apart."""

    label: str
    of_task: Mapping[str, str]
    axis: Axis | None  # none where the colour says a direction


class Mark(NamedTuple):
    """One point; the shape says which division it is of."""

    x: float
    y: float
    colour: str
    split: SplitName
    title: str
    task_id: str = ""
    link: str | None = None
    context: str = ""  # what its link shows


def colourings(
    axes: Sequence[Axis], tasks: Mapping[str, Mapping[str, float]]
) -> tuple[Colouring, ...]:
    """Return how to colour tasks by their parameters: two by their direction, others one by one by their value."""
    if len(axes) == 2:
        across, up = axes
        turns = {
            task: math.atan2(2 * up.share(p[up.name]) - 1, 2 * across.share(p[across.name]) - 1)
            for task, p in tasks.items()
        }
        hues = {task: _colour(math.degrees(turn) % 360.0) for task, turn in turns.items()}
        return (Colouring(f"direction of ({across.name}, {up.name})", hues, None),)
    return tuple(
        Colouring(
            f"{axis.name}, {axis.low:g} to {axis.high:g} {axis.unit}".rstrip(),
            {task: _of_share(axis.share(p[axis.name])) for task, p in tasks.items()},
            axis,
        )
        for axis in axes
    )


def draw_marks(name: str, marks: Sequence[Mark]) -> str:
    """Return an SVG element of marks on two axes of the same scale, without ticks; test tasks come on top."""
    placed = [mark for mark in marks if math.isfinite(mark.x) and math.isfinite(mark.y)]
    parts = [_head(name, SIZE, SIZE)]
    if placed:
        xs, ys = [mark.x for mark in placed], [mark.y for mark in placed]
        span = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
        scale = (SIZE - 2 * MARGIN) / span
        middle_x, middle_y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
        for mark in sorted(placed, key=lambda mark: SPLITS.index(mark.split)):
            x = SIZE / 2 + (mark.x - middle_x) * scale
            y = SIZE / 2 - (mark.y - middle_y) * scale
            parts.append(_linked(mark, _shape(mark, x, y)))
    return "".join([*parts, "</svg>"])


def draw_scale(axis: Axis) -> str:
    """Return an SVG element of the colours from an axis's lowest value to its highest."""
    width = SIZE / _STRIPES
    stripes = "".join(
        f'<rect x="{width * n:.2f}" y="0" width="{width + 0.5:.2f}" height="14" '
        f'fill="{_of_share(n / (_STRIPES - 1))}"/>'
        for n in range(_STRIPES)
    )
    ends = (
        f'<text x="0" y="34">{axis.low:g}</text>'
        f'<text class="end" x="{SIZE}" y="34">{axis.high:g} {html.escape(axis.unit)}</text>'
    )
    return f"{_head(f'colours of {axis.name}', SIZE, 40)}{stripes}{ends}</svg>"


def _head(name: str, width: int, height: int) -> str:
    title = html.escape(name)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}" class="scatter">'
        f"<title>{title}</title>"
    )


def _shape(mark: Mark, x: float, y: float) -> str:
    title = f"<title>{html.escape(mark.title)}</title>"
    if mark.split == "train":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{mark.colour}">{title}</circle>'
    if mark.split == "validation":
        return (
            f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="4.5" stroke="{mark.colour}">'
            f"{title}</circle>"
        )
    corners = f"{x:.1f},{y - 7:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 7:.1f} {x - 7:.1f},{y:.1f}"
    return f'<polygon class="test" points="{corners}" fill="{mark.colour}">{title}</polygon>'


def _linked(mark: Mark, shape: str) -> str:
    if mark.link is None:
        return shape
    told = f'data-task="{html.escape(mark.task_id)}" data-context="{html.escape(mark.context)}"'
    return (
        f'<a class="play" href="{html.escape(mark.link)}" data-beside="expert" {told} '
        f'aria-label="{html.escape(mark.title)}">{shape}</a>'
    )


def _of_share(share: float) -> str:
    return _colour(_LOW_HUE + (_HIGH_HUE - _LOW_HUE) * min(1.0, max(0.0, share)))


def _colour(hue: float) -> str:
    """Return a colour of a hue in degrees that shows on light and dark paper."""
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue / 360.0, 0.5, 0.65))
    return f"#{red:02x}{green:02x}{blue:02x}"
