"""Verifying a checkpoint and reading its tensors; everything is checked on every read."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from apprentice.checkpoint_files import FolderReader, open_folder
from apprentice.checkpoint_format import (
    MANIFEST,
    MAX_HEADER_BYTES,
    MAX_MANIFEST_BYTES,
    CheckpointError,
    CorruptCheckpoint,
    Manifest,
    compare_names,
    decode_manifest,
    file_name,
    refuse_pickle,
)
from apprentice.checkpoint_retention import step_name
from apprentice.checkpoint_tensors import check_header, decode_tensors


def verify_checkpoint(path: Path) -> Manifest:
    """Read every byte of a checkpoint as a loader would and return its manifest.

    Raises CheckpointError (CorruptCheckpoint, PickledCheckpoint, FutureCheckpoint) saying what was
    expected and found, OSError where the disk does not answer.
    """
    with _open(path) as folder:
        manifest = _read_manifest(folder, path)
        for name in manifest.files:
            _read_group(folder, name, manifest)
    return manifest


def read_tensors(path: Path, file: str, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Return one group of tensors, on the CPU, that `manifest` (from `verify_checkpoint`) describes.

    Raises CheckpointError where there is no such group, or it is not what the manifest says.
    """
    if file not in manifest.files:
        raise CheckpointError(
            f"{path.name}: expected one of {sorted(manifest.files)}, asked for {file!r}"
        )
    with _open(path) as folder:
        return _read_group(folder, file, manifest)


@contextmanager
def _open(path: Path) -> Iterator[FolderReader]:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        raise CheckpointError(f"{path.name}: there is no such checkpoint") from None
    if stat.S_ISREG(kind):
        with path.open("rb") as file:
            refuse_pickle(file.read(8), path.name)
    if not stat.S_ISDIR(kind):
        raise CorruptCheckpoint(
            f"{path.name}: expected a folder with {MANIFEST} and *.safetensors, found a file or a link"
        )
    with open_folder(path) as folder:
        yield folder


def _read_manifest(folder: FolderReader, path: Path) -> Manifest:
    with folder.open(MANIFEST) as (file, size):
        if size > MAX_MANIFEST_BYTES:
            raise CorruptCheckpoint(
                f"{MANIFEST}: expected at most {MAX_MANIFEST_BYTES} bytes, found {size}"
            )
        manifest = decode_manifest(file.read(size))
    if path.name != step_name(manifest.steps):
        raise CorruptCheckpoint(
            f"{MANIFEST}: it is of {step_name(manifest.steps)}, but lies in another folder"
        )
    expected = {MANIFEST, *map(file_name, manifest.files)}
    compare_names("the folder's files", set(folder.names()), expected)
    return manifest


def _read_group(folder: FolderReader, name: str, manifest: Manifest) -> dict[str, torch.Tensor]:
    entry, stored = manifest.files[name], file_name(name)
    with folder.open(stored) as (file, size):
        start = file.read(8)
        refuse_pickle(start, stored)
        if size != entry.bytes:
            raise CorruptCheckpoint(f"{stored}: expected {entry.bytes} bytes, found {size}")
        header_bytes = int.from_bytes(start, "little")
        if header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise CorruptCheckpoint(
                f"{stored}: expected a header of at most {MAX_HEADER_BYTES} bytes within the file, "
                f"found {header_bytes}"
            )
        header = file.read(header_bytes)
        check_header(name, header, size, manifest.tensors[name])
        content = start + header + file.read(size - 8 - header_bytes)
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise CorruptCheckpoint(
            f"{stored}: expected SHA-256 {entry.sha256[:12]}..., found {found[:12]}..."
        )
    return decode_tensors(name, content)
