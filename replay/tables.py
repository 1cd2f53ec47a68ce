"""How a segment lies in Reverb: one column of bytes, in two tables.

Every column of a Reverb item is a chunk of its own, of about one kilobyte beside its data. Measured
with cheetah's segments of 32 steps: 588 bytes a transition with a column for each field, 380 with the
scalars in one column, 247 with three columns, 178 with one; and a third of the CPU. So a segment is
one array of bytes, written and read only here:

    header    int64 [9 + C]   layout digest, incarnation, episode, first_step, length, ending, task,
                              actor, policy_version, context
    numbers   float32         each observation but `pixels` [1 + T, ...] in the spec's order, action and
                              pre_tanh_action [T, A], environment_reward and discount [T]
    pixels    uint8 [S + T, H, W, 3]

The digest in the header tells layouts of equal size apart, whoever wrote the bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from apprentice.config import ReplaySettings
from apprentice.types import EnvironmentSpec, Segment
from replay.errors import SegmentRejected
from replay.validation import Bounds, check_numbers, check_scalars

FEED = "feed"
COLUMN = "segment"
FORMAT_VERSION = 1
REVERB_BASE_BYTES = 320_000_000  # an empty Reverb process takes 270
_ITEM_BYTES = 1_600  # what Reverb adds to the bytes of one segment in two tables
_HEADER = 9
_UNSIGNED = 0xFFFF_FFFF_FFFF_FFFF


class _Field(NamedTuple):
    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Layout(NamedTuple):
    """Where one task's fields lie."""

    digest: int
    observation: tuple[_Field, ...]
    steps: tuple[_Field, ...]  # action, pre_tanh_action, environment_reward, discount
    numbers_stop: int
    num_bytes: int


class SegmentFormat:
    """Turns segments of an experiment's tasks into bytes and back; both ways check the contract."""

    def __init__(
        self, specs: Sequence[EnvironmentSpec], segment_length: int, context_size: int = 0
    ) -> None:
        self.specs = tuple(specs)
        self.segment_length = segment_length
        self.context_size = context_size
        self._header_bytes = 8 * (_HEADER + context_size)
        self._layouts = tuple(self._layout(spec) for spec in self.specs)
        self.num_bytes = max(layout.num_bytes for layout in self._layouts)
        """Bytes of every segment; shorter layouts are padded, since a column has one shape."""
        self._bounds = Bounds(segment_length, len(self.specs))

    def encode(self, segment: Segment) -> np.ndarray:
        """Return the segment's bytes [num_bytes]; raise SegmentRejected where it breaks its contract."""
        check_scalars(segment, self._bounds)
        layout = self._layouts[segment.task]
        data = np.zeros(self.num_bytes, np.uint8)
        header = data[: self._header_bytes].view(np.int64)
        header[:_HEADER] = (
            layout.digest,
            signed(segment.incarnation),
            segment.episode,
            segment.first_step,
            segment.length,
            int(segment.ending),
            segment.task,
            segment.actor,
            segment.policy_version,
        )
        self._put(header[_HEADER:], segment.context, "context", np.dtype(np.int64), segment.actor)
        expected, found = [f.name for f in layout.observation], list(segment.observation)
        if sorted(expected) != sorted(found):
            raise SegmentRejected(f"expected observations {expected}, found {found}", segment.actor)
        for field in layout.observation:
            value = segment.observation[field.name]
            self._put(_view(data, field), value, field.name, field.dtype, segment.actor)
        for field in layout.steps:
            value = getattr(segment, field.name)
            self._put(_view(data, field), value, field.name, field.dtype, segment.actor)
        check_numbers(self._numbers(data, layout), segment)
        return data

    def decode(self, data: np.ndarray) -> Segment:
        """Return the segment in `data`, as views of it; raise SegmentRejected where it is not one."""
        if data.dtype != np.uint8 or data.shape != (self.num_bytes,):
            raise SegmentRejected(
                f"expected uint8 [{self.num_bytes}], found {data.dtype} {list(data.shape)}"
            )
        header = data[: self._header_bytes].view(np.int64)
        digest, incarnation, episode, first_step, length, ending, task, actor, version = header[
            :_HEADER
        ].tolist()
        if not 0 <= task < len(self._layouts) or self._layouts[task].digest != digest:
            raise SegmentRejected(
                "its layout is not this experiment's: another task, observation, action size or "
                "segment length",
            )
        layout = self._layouts[task]
        action, pre_tanh_action, environment_reward, discount = (
            _view(data, field) for field in layout.steps
        )
        segment = Segment(
            {field.name: _view(data, field) for field in layout.observation},
            action,
            pre_tanh_action,
            environment_reward,
            discount,
            length,
            ending,
            task,
            actor,
            incarnation & _UNSIGNED,
            episode,
            first_step,
            version,
            header[_HEADER:],
        )
        segment = check_scalars(segment, self._bounds)
        check_numbers(self._numbers(data, layout), segment)
        return segment

    def _numbers(self, data: np.ndarray, layout: _Layout) -> np.ndarray:
        return data[self._header_bytes : layout.numbers_stop].view(np.float32)

    @staticmethod
    def _put(
        target: np.ndarray, value: np.ndarray, name: str, dtype: np.dtype[Any], actor: int
    ) -> None:
        if value.shape != target.shape or value.dtype != dtype:
            raise SegmentRejected(
                f"{name}: expected {dtype} {list(target.shape)}, "
                f"found {value.dtype} {list(value.shape)}",
                actor,
            )
        target[...] = value

    def _layout(self, spec: EnvironmentSpec) -> _Layout:
        length, size = self.segment_length, spec.action_size
        numbers = [key for key in spec.observation if key != "pixels"]
        for key, array in spec.observation.items():
            expected = "uint8" if key == "pixels" else "float32"
            if array.dtype != expected:
                raise ValueError(f"observation {key!r}: expected {expected}, found {array.dtype}")
        at = self._header_bytes
        fields: dict[str, _Field] = {}

        def place(name: str, shape: tuple[int, ...], dtype: str) -> None:
            nonlocal at
            stop = at + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            fields[name] = _Field(name, at, stop, shape, np.dtype(dtype))
            at = stop

        for key in numbers:
            place(key, (1 + length, *spec.frame_shape(key)), "float32")
        for name in ("action", "pre_tanh_action"):
            place(name, (length, size), "float32")
        for name in ("environment_reward", "discount"):
            place(name, (length,), "float32")
        numbers_stop = at
        if "pixels" in spec.observation:
            rows = spec.num_leading_frames("pixels") + length
            place("pixels", (rows, *spec.frame_shape("pixels")), "uint8")
        observation = tuple(fields[key] for key in spec.observation)
        names = ("action", "pre_tanh_action", "environment_reward", "discount")
        steps = tuple(fields[name] for name in names)
        described = [spec.digest(), FORMAT_VERSION, length, self.context_size]
        return _Layout(signed(_digest64(described)), observation, steps, numbers_stop, at)


def task_table(spec: EnvironmentSpec) -> str:
    """Return the name of a task's durable table."""
    return f"task/{spec.task_id}"


def table_sizes(specs: Sequence[EnvironmentSpec], settings: ReplaySettings) -> dict[str, int]:
    """Return how many segments each table may hold, by its name."""
    capacity = max(1, settings.capacity // settings.segment_length)
    return {**{task_table(spec): capacity for spec in specs}, FEED: settings.feed_segments}


def replay_digest(specs: Sequence[EnvironmentSpec], settings: ReplaySettings) -> str:
    """Return 16 hex digits that change with whatever makes a stored table unfit: specs, sizes, format."""
    described = [
        FORMAT_VERSION,
        [spec.to_dict() for spec in specs],
        table_sizes(specs, settings),
        settings.segment_length,
    ]
    if settings.context_size:
        described.append(settings.context_size)
    return format(_digest64(described), "016x")


def full_tables_bytes(specs: Sequence[EnvironmentSpec], settings: ReplaySettings) -> int:
    """Return what the server's process needs at most once every table is full, in bytes."""
    num_bytes = SegmentFormat(specs, settings.segment_length, settings.context_size).num_bytes
    return REVERB_BASE_BYTES + sum(table_sizes(specs, settings).values()) * (
        num_bytes + _ITEM_BYTES
    )


def signed(value: int) -> int:
    """Return the int64 of the same 64 bits; incarnations are unsigned, arrays of them are signed."""
    value &= _UNSIGNED
    return value - (1 << 64) if value >> 63 else value


def unsigned(value: int) -> int:
    """Return the same 64 bits as a number from 0 on."""
    return value & _UNSIGNED


def _view(data: np.ndarray, field: _Field) -> np.ndarray:
    return data[field.start : field.stop].view(field.dtype).reshape(field.shape)


def _digest64(value: Any) -> int:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return int(hashlib.sha256(canonical.encode()).hexdigest()[:16], 16)
