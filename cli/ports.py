"""Ports that a run's services listen on, chosen once and kept over restarts."""

from __future__ import annotations

import random

from apprentice.ports import describe_holder, is_free

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
