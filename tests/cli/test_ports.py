from __future__ import annotations

import os
import socket

import pytest

from cli.ports import PortTaken, choose_port, is_free


def test_free_ports_differ_and_lie_below_the_ephemeral_range() -> None:
    taken: set[int] = set()
    ports = [choose_port("127.0.0.1", 0, "replay_port", taken) for _ in range(5)]
    assert len(set(ports)) == 5
    assert set(ports) == taken
    assert all(20_000 <= port <= 32_000 for port in ports)


def test_taken_port_is_refused_naming_who_holds_it() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            choose_port("127.0.0.1", port, "evalserver_port", set())
    text = str(caught.value)
    assert f"port {port}" in text
    assert f"pid {os.getpid()}" in text
    assert "--set services.evalserver_port=" in text


def test_port_that_another_grpc_server_would_share_counts_as_taken() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("0.0.0.0", 0))  # noqa: S104
        holder.listen()
        assert not is_free("127.0.0.1", holder.getsockname()[1])


def test_two_services_cannot_ask_for_the_same_port() -> None:
    taken: set[int] = set()
    port = choose_port("127.0.0.1", 0, "learner_port", taken)
    with pytest.raises(PortTaken, match="another service of this run"):
        choose_port("127.0.0.1", port, "evalserver_port", taken)
