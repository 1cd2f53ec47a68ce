"""One replay server to a port, and one to a folder.

gRPC would share a port with another gRPC server (SO_REUSEPORT) and take part of its traffic, so the
port is tried with a plain socket first, and held by a lock file from then on.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import IO

import psutil

from replay.errors import FolderHeld, PortHeld


class FileLock:
    """An exclusive lock that ends with its process; the file says who holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> str | None:
        """Take the lock, or return the holder's words where another process has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            return holder or "another process"
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return None

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None


def hold_folder(folder: Path) -> FileLock:
    """Lock a folder of checkpoints; raise FolderHeld where another server has it."""
    lock = FileLock(folder / ".lock")
    holder = lock.acquire()
    if holder is not None:
        raise FolderHeld(f"{folder} is used by {holder}; stop it, or choose another --checkpoints")
    return lock


def hold_port(port: int) -> FileLock:
    """Check that nobody listens on `port`, and lock it; raise PortHeld with the holder's pid."""
    locks = Path(tempfile.gettempdir()) / f"apprentice-ports-{os.getuid()}"
    lock = FileLock(locks / f"{port}.lock")
    holder = lock.acquire()
    if holder is not None:
        raise PortHeld(f"port {port} is held by {holder}; stop it, or choose another --port")
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        try:
            _bind(family, host, port)
        except OSError as error:
            lock.release()
            raise PortHeld(
                f"port {port} is held by {_listener(port)} ({error.strerror}); stop it, or choose "
                "another --port"
            ) from error
    return lock


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _bind(family: socket.AddressFamily, host: str, port: int) -> None:
    try:
        probe = socket.socket(family)
    except OSError:
        return  # this machine has no such addresses
    with probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)


def _listener(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        connections = []
    for connection in connections:
        address = connection.laddr
        if address and address.port == port and connection.status == psutil.CONN_LISTEN:
            return f"pid {connection.pid}" if connection.pid else "a process of another user"
    return "an unknown process"
