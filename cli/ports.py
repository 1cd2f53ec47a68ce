"""Ports that a run's services listen on, chosen once and kept over restarts."""

from __future__ import annotations

import random
import socket

# Below Linux's range of ephemeral ports: a service that restarts must not find that an outgoing
# connection of some other program was given its port in the meantime.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000


class PortTaken(Exception):
    """A port that the experiment asks for is in use."""


def choose_port(host: str, wanted: int, what: str, taken: set[int]) -> int:
    """Return `wanted` if it is free, or any free port where `wanted` is 0, and add it to `taken`.

    Raises PortTaken naming the process that holds it.
    """
    if wanted:
        if wanted in taken or not is_free(host, wanted):
            holder = "another service of this run" if wanted in taken else describe_holder(wanted)
            raise PortTaken(
                f"{what}: expected a free port, found port {wanted} on {host} held by {holder}; "
                f"end that process, or choose another port with --set services.{what}=PORT"
            )
        taken.add(wanted)
        return wanted
    for _ in range(200):
        port = random.randint(_FIRST_PORT, _LAST_PORT)  # noqa: S311
        if port not in taken and is_free(host, port):
            taken.add(port)
            return port
    raise PortTaken(f"{what}: no free port found between {_FIRST_PORT} and {_LAST_PORT} on {host}")


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
