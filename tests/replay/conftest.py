"""Servers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from apprentice.config import ReplaySettings
from apprentice.types import EnvironmentSpec
from tests.replay.cases import PIXELS, SETTINGS, STATE
from tests.replay.serving import ServerProcess

MakeServer = Callable[..., ServerProcess]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    servers: list[ServerProcess] = []

    def make(
        specs: Sequence[EnvironmentSpec] = (STATE,),
        settings: ReplaySettings = SETTINGS,
        folder: Path | None = None,
    ) -> ServerProcess:
        folder = folder or tmp_path / f"replay-{len(servers)}"
        servers.append(ServerProcess(folder, specs, settings))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def both_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server of a state task and a pixel task, for tests that leave its feed empty."""
    server = ServerProcess(tmp_path_factory.mktemp("shared") / "replay", (STATE, PIXELS))
    try:
        yield server.start()
    finally:
        server.close()
