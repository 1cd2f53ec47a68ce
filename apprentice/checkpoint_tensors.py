"""The tensor files of a checkpoint: safetensors, compared with the manifest before they are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.torch
import torch

from apprentice.checkpoint_format import (
    DTYPES,
    FILE_NAME,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    CheckpointError,
    CorruptCheckpoint,
    TensorEntry,
    compare_names,
    file_name,
)

_NAMES: dict[torch.dtype, str] = {getattr(torch, name): name for name in DTYPES}


def describe_tensors(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorEntry]:
    """Return the manifest's entries for a group; raise CheckpointError for what cannot be stored."""
    if not FILE_NAME.fullmatch(name):
        raise CheckpointError(
            f"expected a file name of letters, digits, '_' and '-', found {name!r}"
        )
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(
            f"{name}: expected at most {MAX_TENSORS} tensors, found {len(tensors)}"
        )
    entries = {}
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(
                f"{name}/{key}: expected one of the dtypes {', '.join(DTYPES)}, found {tensor.dtype}"
            )
        _refuse_non_finite(name, key, tensor)
        entry = {"dtype": _NAMES[tensor.dtype], "shape": tuple(tensor.shape)}
        entries[key] = TensorEntry.model_validate(entry)
    return entries


def encode_tensors(name: str, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the bytes of a group's file; views and tensors on a device are copied first."""
    own = {
        key: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    raw = safetensors.torch.save(own)
    if int.from_bytes(raw[:8], "little") > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{name}: the names of its tensors need more than {MAX_HEADER_BYTES} bytes"
        )
    return raw


def check_header(
    name: str, header: bytes, num_bytes: int, entries: Mapping[str, TensorEntry]
) -> None:
    """Compare a safetensors header with the manifest, before anything is allocated.

    `header` is the JSON after the 8 bytes of its length, `num_bytes` the size of the whole file.
    Names, dtypes and shapes must be the manifest's and the tensors must fill the file without gap
    or overlap. Raises CorruptCheckpoint.
    """
    try:
        content = json.loads(header)
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{file_name(name)}: its header is not JSON: {error}") from None
    compare_names(file_name(name), content.keys(), entries.keys())
    spans = []
    for key, entry in entries.items():
        found = content[key]
        expected = {"dtype": DTYPES[entry.dtype][0], "shape": list(entry.shape)}
        start, end = _take_offsets(found)
        if found != expected or start < 0 or end - start != entry.num_bytes:
            raise CorruptCheckpoint(
                f"{file_name(name)}: tensor {key!r}: expected {expected} in {entry.num_bytes} bytes, "
                f"found {str(found)[:200]} at {start} to {end}"
            )
        spans.append((start, end))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise CorruptCheckpoint(
                f"{file_name(name)}: tensors overlap or leave a gap at byte {start}"
            )
        position = end
    if 8 + len(header) + position != num_bytes:
        raise CorruptCheckpoint(
            f"{file_name(name)}: expected {8 + len(header) + position} bytes by its header, found {num_bytes}"
        )


def decode_tensors(name: str, raw: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a file whose header has been checked; refuse NaN and infinity."""
    try:
        tensors = safetensors.torch.load(raw)
    except safetensors.SafetensorError as error:
        raise CorruptCheckpoint(f"{file_name(name)}: {error}") from error
    for key, tensor in tensors.items():
        _refuse_non_finite(name, key, tensor, CorruptCheckpoint)
    return tensors


def _take_offsets(entry: object) -> tuple[int, int]:
    """Remove and return `data_offsets` of a header's entry; (-1, -1) where they are no such thing."""
    offsets = entry.pop("data_offsets", None) if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2:
        start, end = offsets
        if type(start) is int and type(end) is int:
            return start, end
    return -1, -1


def _refuse_non_finite(
    name: str, key: str, tensor: torch.Tensor, error: type[CheckpointError] = CheckpointError
) -> None:
    if not tensor.is_floating_point():
        return
    # numpy does not wake torch's threads, which cost 100 ms here while the learner uses the cores.
    plain = tensor.detach().to("cpu")
    values = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    finite = np.isfinite(values)
    if not finite.all():
        raise error(
            f"{name}/{key}: expected finite values, found {finite.size - np.count_nonzero(finite)} of "
            f"{finite.size} NaN or infinite"
        )
