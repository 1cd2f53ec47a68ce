"""Videos are decoded again and compared with their frames."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from apprentice.video import EncodingError, encode_gif, encode_mp4, encode_png, encode_webp


def make_frames(number: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A bright square that moves to the right, two pixels a frame."""
    frames = []
    for index in range(number):
        frame = np.full((height, width, 3), 40, np.uint8)
        frame[16:32, 2 * index : 2 * index + 16] = (220, 120, 60)
        frames.append(frame)
    return frames


def pictures(data: bytes) -> list[np.ndarray]:
    """Return the frames of a video as they are decoded: uint8 [H, W, 3]."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_mp4_holds_the_frames_at_their_rate() -> None:
    frames = make_frames(20)
    data = encode_mp4(iter(frames), fps=25)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 25
    decoded = pictures(data)
    assert len(decoded) == 20
    for found, expected in zip(decoded, frames, strict=True):
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 6


def test_mp4_can_be_played_from_its_first_bytes() -> None:
    data = encode_mp4(make_frames(5), fps=25)
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_grow_by_one_row_or_column() -> None:
    data = encode_mp4(make_frames(3, 33, 65), fps=12.5)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (34, 66)
        assert float(stream.average_rate) == 12.5


def test_the_file_holds_what_is_returned(tmp_path: Path) -> None:
    data = encode_mp4(make_frames(3), 25, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == data


@pytest.mark.parametrize(
    ("encode", "kind"), [(encode_gif, "GIF"), (encode_webp, "WEBP")], ids=["gif", "webp"]
)
def test_animations_hold_every_frame_and_loop(encode, kind: str) -> None:
    image = Image.open(io.BytesIO(encode(make_frames(6), 10)))
    assert (image.format, image.n_frames, image.size) == (kind, 6, (64, 48))
    image.seek(5)
    expected = make_frames(6)[5].astype(int)
    assert np.abs(np.asarray(image.convert("RGB")) - expected).mean() < 8
    assert image.info.get("loop") == 0


def test_png_is_exact() -> None:
    frame = make_frames(2)[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(frame)))), frame)


@pytest.mark.parametrize("encode", [encode_mp4, encode_gif, encode_webp])
def test_no_frame_is_no_video(encode) -> None:
    with pytest.raises(EncodingError, match="one frame or more"):
        encode([], 25)


def test_frames_of_two_sizes_are_refused() -> None:
    frames = [*make_frames(2), *make_frames(1, 32, 32)]
    with pytest.raises(EncodingError, match=r"\(32, 32, 3\)"):
        encode_mp4(frames, 25)


def test_frames_that_are_not_bytes_are_refused() -> None:
    with pytest.raises(EncodingError, match="float64"):
        encode_mp4([np.zeros((16, 16, 3))], 25)


def test_an_mp4_shows_the_same_each_time_and_needs_no_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Not the same bytes: once in some thousands the encoder takes a byte more for the same pictures.
    frames = make_frames(12)
    expected = pictures(encode_mp4(frames, 25))
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # what a full or read-only disk comes to
    np.testing.assert_array_equal(pictures(encode_mp4(iter(frames), 25)), expected)


def test_what_goes_wrong_while_a_frame_is_drawn_ends_the_encoder() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from make_frames(3)
        raise KeyError("the camera is gone")

    with pytest.raises(KeyError, match="the camera is gone"):
        encode_mp4(frames(), 25)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]


def test_a_frame_of_another_size_is_named() -> None:
    with pytest.raises(EncodingError, match=r"of one size, found uint8 \(48, 80, 3\)"):
        encode_mp4([*make_frames(3), *make_frames(1, width=80)], 25)
