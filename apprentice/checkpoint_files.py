"""Writing and reading the files of a folder of checkpoints so that a crash leaves old or new, never half.

Whatever is being written or removed has a name that begins with STAGE; nothing reads such names, and
`collect_stale_stages` removes them.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from apprentice.checkpoint_format import CheckpointError, CorruptCheckpoint

STAGE: Final = ".stage-"


def stage_name(name: str) -> str:
    """Return a new name under which `name` can be written or removed."""
    return f"{STAGE}{name}-{secrets.token_hex(4)}"


def collect_stale_stages(parent: Path) -> int:
    """Remove what a crashed writer left in `parent`; return how many there were.

    Only the folder's one writer may call it (see RunFolder.lock): a living writer's stage would go too.
    """
    removed = 0
    for entry in sorted(parent.glob(f"{STAGE}*")) if parent.is_dir() else ():
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode):
            shutil.rmtree(entry)
        elif stat.S_ISREG(mode):
            entry.unlink()
        else:
            continue
        removed += 1
    return removed


def write_durably(path: Path, content: bytes) -> None:
    """Create `path`, which must not exist, and wait until `content` is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Give `path` the content `text`: after a crash it has the old or the new one, whole."""
    stage = path.with_name(stage_name(path.name))
    try:
        write_durably(stage, text.encode())
        os.rename(stage, path)
    except BaseException:
        with suppress(OSError):
            stage.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_text(path: Path, max_bytes: int = 2**16) -> str:
    """Return a small text file's content; "" where there is no such file, or only a link to one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(max_bytes).decode("utf-8", "replace")
    except OSError:
        return ""


def remove_folder(path: Path) -> None:
    """Remove a folder so that a crash leaves it whole or under a name that nothing reads."""
    stage = path.with_name(stage_name(path.name))
    os.rename(path, stage)
    shutil.rmtree(stage)


def require_space(parent: Path, num_bytes: int) -> None:
    """Raise CheckpointError unless twice `num_bytes` are free where `parent` lies."""
    free = free_bytes(parent)
    if free < 2 * num_bytes:
        raise CheckpointError(
            f"expected {2 * num_bytes:,} free bytes for a checkpoint of {num_bytes:,}, found {free:,}: "
            "free disk space, or lower checkpoint.keep; the older checkpoints are untouched"
        )


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write where `path` lies."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


class FolderReader:
    """Reads the files of one folder, the same one however it is renamed meanwhile; follows no link."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def names(self) -> list[str]:
        """List the folder."""
        return os.listdir(self._descriptor)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """Open a file; yield it and its size. Raise CorruptCheckpoint where it is no regular file."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            raise CorruptCheckpoint(f"{name}: the file is missing") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise CorruptCheckpoint(
                    f"{name}: expected a file, found a link or socket"
                ) from None
            raise
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CorruptCheckpoint(f"{name}: expected a file, found something else")
            yield file, status.st_size


@contextmanager
def open_folder(path: Path) -> Iterator[FolderReader]:
    """Open a folder for reading; raise OSError where there is none, or a link to one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield FolderReader(descriptor)
    finally:
        os.close(descriptor)
