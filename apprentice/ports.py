"""Whether a port is free, and who holds it."""

from __future__ import annotations

import ipaddress
import socket


def is_free(host: str, port: int) -> bool:
    """Say whether a server could listen on the port, on `host` and on all interfaces.

    The probe does not ask for SO_REUSEPORT, so another gRPC server's port counts as taken even
    though gRPC itself would happily share it.
    """
    for address in {host, "0.0.0.0"}:  # noqa: S104
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; raise ValueError for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"expected HOST:PORT, found {address!r}")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def describe_holder(port: int) -> str:
    """Name the process that listens on the port, as far as we may look."""
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return "a process of another user"
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or connection.laddr[1:] != (port,):
            continue
        if connection.pid is None:
            return "a process of another user"
        try:
            return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
        except psutil.Error:
            return f"pid {connection.pid}"
    return "another process"
