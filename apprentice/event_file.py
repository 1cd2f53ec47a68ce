"""Event files for TensorBoard, written without TensorFlow (whose import costs seconds and 400 MB).

`torch.utils.tensorboard` and tensorboard's own EventFileWriter import it wherever it is installed.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import (
    masked_crc32c,
)

from apprentice.metrics import AppendedFile


class EventFile:
    """A new event file in `folder`, to which scalars are appended, one write a moment."""

    def __init__(self, folder: Path) -> None:
        seconds = time.time()
        name = f"events.out.tfevents.{int(seconds):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name)
        self._file.append(_record(Event(wall_time=seconds, file_version="brain.Event:2")))

    def append(self, seconds: float, steps: int, values: Mapping[str, float | None]) -> None:
        """Append all values that are not None, at `seconds` since 1970; raise OSError where it fails."""
        scalars = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in values.items()
            if value is not None
        ]
        event = Event(wall_time=seconds, step=steps, summary=Summary(value=scalars))
        self._file.append(_record(event))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _record(event: Event) -> bytes:
    """Frame an event as TFRecord: length, its masked CRC, the bytes, their masked CRC."""
    content: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checks[0] + content + checks[1]
