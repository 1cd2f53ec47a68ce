"""A web page that rebinds its name to this server gets nothing from it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from evalserver.app import create_app


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LocalHost.:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.3.4:8000", 200),
        (socket.gethostname(), 200),
        ("learner.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_only_known_names_are_served(tmp_path: Path, host: str, status: int) -> None:
    client = TestClient(create_app(tmp_path, allowed_hosts=["learner.example"]))
    reply = client.get("/livez", headers={"Host": host})
    assert reply.status_code == status
    if status == 421:
        assert "--allowed-hosts" in reply.json()["detail"]
