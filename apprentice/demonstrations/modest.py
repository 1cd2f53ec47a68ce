"""Refuses a file that leads elsewhere or would not fit in memory, before any of its arrays is read.

What a file declares is summed first; packed chunks are then unpacked with a bound, because HDF5 itself
unpacks them without one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import h5py

from apprentice.demonstrations.format import (
    LARGEST_DECLARED_BYTES,
    LARGEST_UNPACKED_BYTES,
    DemonstrationError,
    refused,
)

DEEPEST: Final = 6
_FILTERS: Final = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)


def require_file(path: Path) -> None:
    """Raise DemonstrationError where a path is no regular file: opening a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise DemonstrationError(f"{path}: expected a file, found something else there")


def require_modest(path: Path, file: h5py.File) -> None:
    """Raise DemonstrationError where anything in a file is elsewhere, twice, too deep or too large."""
    declared = packed = 0
    arrays = []
    for name, link in _links(path, file, ""):
        if not isinstance(link, h5py.HardLink):
            raise refused(path, name, "an array or a group in this file", "a link elsewhere")
        item = file[name]
        if h5py.h5o.get_info(item.id).rc > 1:
            raise refused(path, name, "one name for each array and group", "another name for one")
        if not isinstance(item, h5py.Dataset):
            continue
        if item.is_virtual or item.external:
            raise refused(path, name, "numbers in this file", "an array kept elsewhere")
        size = item.size * item.dtype.itemsize
        declared += size
        # What has no place in the file is chunked, or was declared and never written.
        packed += max(size, _chunked_bytes(item)) if item.id.get_offset() is None else 0
        for found, most in ((declared, LARGEST_DECLARED_BYTES), (packed, LARGEST_UNPACKED_BYTES)):
            if found > most:
                raise refused(path, name, f"at most {most} bytes in all", f"{found}")
        arrays.append((name, item))
    for name, array in arrays:
        if array.chunks is not None:
            _require_honest_chunks(path, name, array)


def _links(path: Path, group: h5py.Group, prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > DEEPEST:
        raise refused(path, prefix, f"groups at most {DEEPEST} deep", "deeper ones")
    for name in group:
        link = group.get(name, getlink=True)
        yield f"{prefix}{name}", link
        if isinstance(link, h5py.HardLink):
            item = group[name]
            if isinstance(item, h5py.Group):
                yield from _links(path, item, f"{prefix}{name}/", depth + 1)


def _chunked_bytes(array: h5py.Dataset) -> int:
    """Return how many bytes all chunks of an array are; 0 where it has none."""
    if array.chunks is None:
        return 0
    sides = zip(array.shape, array.chunks, strict=True)
    num: int = math.prod(-(-length // side) for length, side in sides)
    return num * _chunk_bytes(array)


def _chunk_bytes(array: h5py.Dataset) -> int:
    return int(math.prod(array.chunks)) * int(array.dtype.itemsize)


def _require_honest_chunks(path: Path, name: str, array: h5py.Dataset) -> None:
    """Refuse chunks that unpack to more than a chunk's bytes."""
    properties = array.id.get_create_plist()
    filters = [properties.get_filter(n)[0] for n in range(properties.get_nfilters())]
    if filters != [known for known in _FILTERS if known in filters]:
        raise refused(path, name, "no packing but gzip, with shuffle before it", f"{filters}")
    if h5py.h5z.FILTER_DEFLATE not in filters:
        return
    most, skipped = _chunk_bytes(array), 1 << filters.index(h5py.h5z.FILTER_DEFLATE)
    offsets: list[tuple[int, ...]] = []
    array.id.chunk_iter(lambda info: offsets.append(info.chunk_offset))
    for offset in offsets:
        mask, stored = array.id.read_direct_chunk(offset)
        if mask & skipped:
            continue
        try:
            unpacked = len(zlib.decompressobj().decompress(stored, most + 1))
        except zlib.error as error:
            raise refused(
                path, name, "chunks packed by gzip", f"one that is torn: {error}"
            ) from None
        if unpacked > most:
            raise refused(path, name, f"at most {most} bytes in a chunk", "one that holds more")
