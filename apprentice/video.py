"""Frames to files that browsers play: mp4 (h264), gif, webp, png."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

PRESET = "veryfast"
"""As small as `medium` on these pictures and more than twice as fast."""
CONSTANT_QUALITY = "20"


class EncodingError(Exception):
    """The frames cannot be made into a video; the message says why."""


def encode_mp4(frames: Iterable[np.ndarray], fps: float, path: Path | None = None) -> bytes:
    """Encode uint8 frames [H, W, 3] as h264 in mp4, ready to play from its first bytes.

    Odd sizes get one more row or column, which the format needs. Each frame is encoded in another thread
    while the caller's draws the next one. Return the bytes, which are also written to `path` if one is
    given.
    """
    iterator, first = _peek(frames)
    # Moving the index to the front needs a second pass over a file with a name. This one lies in memory
    # and ends with the process: where that is killed, nothing stays behind.
    with os.fdopen(os.memfd_create("rollout.mp4"), "rb") as whole:
        _write_mp4(f"/proc/self/fd/{whole.fileno()}", iterator, first, fps)
        data = whole.read()
    if path is not None:
        path.write_bytes(data)
    return data


def _write_mp4(path: str, frames: Iterator[np.ndarray], first: np.ndarray, fps: float) -> None:
    height, width = first.shape[:2]
    try:
        with (
            av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container,
            ThreadPoolExecutor(1, "encoder") as encoder,
        ):
            rate = Fraction(fps).limit_denominator(1000)
            stream = container.add_stream(
                "libx264", rate=rate, options={"preset": PRESET, "crf": CONSTANT_QUALITY}
            )
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1

            def encode(frame: np.ndarray) -> None:
                padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))

            under_way = encoder.submit(encode, first)
            for frame in itertools.islice(frames, 1, None):
                _check(frame, first.shape)
                under_way.result()
                under_way = encoder.submit(encode, frame)
            under_way.result()
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        raise EncodingError(f"mp4 could not be encoded: {error}") from error


def encode_gif(frames: Iterable[np.ndarray], fps: float, path: Path | None = None) -> bytes:
    """Encode frames as an animated gif with one palette for all, looping for ever."""
    images = [Image.fromarray(frame) for frame in frames]
    if not images:
        raise EncodingError("expected one frame or more, found none")
    palette = images[len(images) // 2].quantize(256, dither=Image.Dither.NONE)
    quantised = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    return _save_animation(quantised, "GIF", fps, path)


def encode_webp(frames: Iterable[np.ndarray], fps: float, path: Path | None = None) -> bytes:
    """Encode frames as an animated webp, looping for ever."""
    images = [Image.fromarray(frame) for frame in frames]
    if not images:
        raise EncodingError("expected one frame or more, found none")
    return _save_animation(images, "WEBP", fps, path, method=0, quality=80)


def encode_png(frame: np.ndarray, path: Path | None = None) -> bytes:
    """Encode one frame as png."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return _finish(buffer, path)


def contact_sheet(frames: Sequence[np.ndarray], most: int = 16) -> np.ndarray:
    """Return up to `most` of the frames, evenly spaced in time, side by side in rows: uint8 [H, W, 3].

    The first and the last are among them; what is left of the last row is black.
    """
    if not frames:
        raise EncodingError("expected one frame or more, found none")
    count = min(most, len(frames))
    chosen = [frames[round(index)] for index in np.linspace(0, len(frames) - 1, count)]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height, width = chosen[0].shape[:2]
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, frame in enumerate(chosen):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = frame
    return sheet


def side_by_side(rollouts: Sequence[Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """Join the frames of several rollouts, left to right; one that is over keeps its last frame."""
    iterators = [iter(rollout) for rollout in rollouts]
    current: list[np.ndarray | None] = [None] * len(iterators)
    while True:
        going_on = False
        for index, iterator in enumerate(iterators):
            frame = next(iterator, None)
            if frame is not None:
                current[index], going_on = frame, True
        if not going_on:
            return
        shown = [frame for frame in current if frame is not None]
        yield shown[0] if len(iterators) == 1 else np.concatenate(shown, axis=1)


def _save_animation(
    images: list[Image.Image], kind: str, fps: float, path: Path | None, **options: int
) -> bytes:
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
    )
    return _finish(buffer, path)


def _peek(frames: Iterable[np.ndarray]) -> tuple[Iterator[np.ndarray], np.ndarray]:
    iterator = iter(frames)
    try:
        first = next(iterator)
    except StopIteration:
        raise EncodingError("expected one frame or more, found none") from None
    _check(first, first.shape)
    return itertools.chain([first], iterator), first


def _check(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != shape or shape[2] != 3:
        raise EncodingError(
            f"expected uint8 frames [H, W, 3] of one size, found {frame.dtype} {frame.shape}"
        )


def _finish(buffer: io.BytesIO, path: Path | None) -> bytes:
    data = buffer.getvalue()
    if path is not None:
        path.write_bytes(data)
    return data
