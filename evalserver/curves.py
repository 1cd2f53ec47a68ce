"""Curves as SVG: of learning, from a run's metrics.jsonl, or over anything else that is counted."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MOST_ROWS = 1500
"""Rows of a file that are parsed; of a longer one evenly spaced ones, and the last."""
WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 14, 30
LABEL = 10
"""Height that a level's name needs beside TOP."""
DEFAULTS = ("evaluation/return_mean", "actor/episode_return")
_HIDDEN = "profile/"


class Point(NamedTuple):
    """One value of one metric."""

    steps: int
    value: float


def read_curves(path: Path) -> dict[str, list[Point]]:
    """Return each metric's finite values by its name, in the order they were written.

    Evaluations are rare and never left out. Lines that do not parse, such as one being written, are
    passed over; a file that is not there has no metrics.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    stride = max(1, math.ceil(len(lines) / MOST_ROWS))
    curves: dict[str, list[Point]] = {}
    for number, line in enumerate(lines):
        if number % stride and number != len(lines) - 1 and '"evaluation/' not in line:
            continue
        try:
            row = json.loads(line)
            steps, metrics = int(row["steps"]), dict(row["metrics"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in metrics.items():
            if not name.startswith(_HIDDEN) and isinstance(value, int | float):
                curves.setdefault(name, []).append(Point(steps, float(value)))
    return curves


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` + 1 round numbers that span [low, high]."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def draw_curve(
    name: str,
    points: Sequence[Point],
    over: str = "agent steps",
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """Return an SVG element of one metric over something, with named levels to compare it with."""
    title = html.escape(f"{name} over {over}")
    head = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
        f'class="curve"><title>{title}</title>'
    )
    if not points:
        middle = f'<text class="none" x="{WIDTH / 2}" y="{HEIGHT / 2}">nothing yet</text>'
        return f"{head}{middle}</svg>"
    x_high = max(1, *(point.steps for point in points))
    values = [p.value for p in points] + [value for _, value in levels]
    low, high = min(values), max(values)
    y_ticks = nice_ticks(min(0.0, low) if high > 0 else low, max(high, 0.0) if low < 0 else high)
    y_low, y_high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    y_span = (y_high - y_low) or 1.0
    top = TOP + (LABEL if levels else 0)  # the highest level's name stands above it

    def x_of(steps: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * steps / x_high

    def y_of(value: float) -> float:
        return top + (HEIGHT - top - BOTTOM) * (1.0 - (value - y_low) / y_span)

    parts = [head]
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text class="y" x="{LEFT - 8}" y="{y + 4:.1f}">{_short(tick)}</text>')
    for tick in nice_ticks(0.0, float(x_high)):
        parts.append(
            f'<text class="x" x="{x_of(tick):.1f}" y="{HEIGHT - BOTTOM + 18}">{_short(tick)}</text>'
        )
    for label, level in levels:
        y = y_of(level)
        parts.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="level" x="{LEFT + 6}" y="{y - 5:.1f}">'
            f"{html.escape(label)}</text>"
        )
    places = " ".join(f"{x_of(p.steps):.1f},{y_of(p.value):.1f}" for p in points)
    parts.append(f'<polyline class="line" points="{places}"/>')
    if len(points) <= 60:
        parts += [
            f'<circle class="dot" cx="{x_of(p.steps):.1f}" cy="{y_of(p.value):.1f}" r="3">'
            f"<title>{p.value:,.4g} at {p.steps:,} {html.escape(over)}</title></circle>"
            for p in points
        ]
    return "".join([*parts, "</svg>"])


def _short(value: float) -> str:
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.3g}"
