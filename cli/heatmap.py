"""`apprentice heatmap`: the reward that a run learned, over a plane of two coordinates, as a picture."""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from cli.evaluate import find_checkpoint
from cli.failure import CommandFailed

if TYPE_CHECKING:
    import numpy as np

    from learner.reward_map import Axis

_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From low to high, equally far apart to the eye and told apart by the colour-blind."""
_LEFT, _TOP, _SIDE = 70, 30, 360


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="latest", metavar="ID")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument(
        "--x",
        default="position:0:-3.1416:3.1416",
        metavar="KIND:INDEX:LOW:HIGH",
        help="position or velocity, number of the coordinate, and the range to show",
    )
    parser.add_argument("--y", default="velocity:0:-8:8", metavar="KIND:INDEX:LOW:HIGH")
    parser.add_argument("--size", type=int, default=81, metavar="N", help="points along each side")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg")


def run(arguments: argparse.Namespace) -> int:
    x, y = _axis("--x", arguments.x), _axis("--y", arguments.y)
    if not 2 <= arguments.size <= 1000:
        raise CommandFailed(
            f"--size: expected from 2 to 1000, found {arguments.size}", exit_codes.CONFIGURATION
        )
    path = find_checkpoint(arguments.checkpoint, arguments.runs)
    from learner.reward_map import reward_map

    try:
        rewards = reward_map(path, x, y, arguments.size)
    except ValueError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    arguments.out.write_text(_drawn(rewards, x, y))
    print(f"{arguments.out}: rewards from {rewards.min():.3g} to {rewards.max():.3g}")
    return 0


def _axis(flag: str, text: str) -> Axis:
    from learner.reward_map import Axis

    try:
        kind, index, low, high = text.split(":")
        axis = Axis(kind, int(index), float(low), float(high))
    except ValueError:
        axis = None
    if axis is None or axis.kind not in ("position", "velocity") or not axis.low < axis.high:
        raise CommandFailed(
            f"{flag}: expected position or velocity, a number, and a range, as in velocity:0:-8:8; "
            f"found {text!r}",
            exit_codes.CONFIGURATION,
        )
    return axis


def _drawn(rewards: np.ndarray, x: Axis, y: Axis) -> str:
    """Return an SVG with the picture, both axes, and a bar that says what the colours mean."""
    import numpy as np
    from PIL import Image

    def coloured(values: np.ndarray) -> str:
        place = values * (len(_COLOURS) - 1)
        colours = np.array(_COLOURS, np.float64)
        below = np.clip(place.astype(int), 0, len(_COLOURS) - 2)
        share = (place - below)[..., None]
        picture = colours[below] * (1.0 - share) + colours[below + 1] * share
        stored = io.BytesIO()
        Image.fromarray(picture.round().astype(np.uint8)).save(stored, "PNG")
        return "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()

    low, high = float(rewards.min()), float(rewards.max())
    scaled = (rewards - low) / ((high - low) or 1.0)
    bottom, right = _TOP + _SIDE, _LEFT + _SIDE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 110} {bottom + 50}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<image x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" preserveAspectRatio="none" '
        f'href="{coloured(scaled)}"/>',
        f'<image x="{right + 20}" y="{_TOP}" width="16" height="{_SIDE}" preserveAspectRatio="none" '
        f'href="{coloured(np.linspace(1.0, 0.0, 128)[:, None])}"/>',
        f'<text x="{_LEFT}" y="{_TOP - 10}">learned reward</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        across, up = _LEFT + share * _SIDE, bottom - share * _SIDE
        parts += [
            f'<text x="{across}" y="{bottom + 18}" text-anchor="middle">{x.low + share * (x.high - x.low):.3g}</text>',
            f'<text x="{_LEFT - 8}" y="{up + 4}" text-anchor="end">{y.low + share * (y.high - y.low):.3g}</text>',
            f'<text x="{right + 42}" y="{up + 4}">{low + share * (high - low):.3g}</text>',
        ]
    middle = _TOP + _SIDE / 2
    turned = f'text-anchor="middle" transform="rotate(-90 18 {middle})"'
    parts += [
        f'<text x="{_LEFT + _SIDE / 2}" y="{bottom + 38}" text-anchor="middle">{x.kind} {x.number}</text>',
        f'<text x="18" y="{middle}" {turned}>{y.kind} {y.number}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
