"""What holds for all tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# One test is one thread: `make test` runs as many as there are processors. Threads of torch that wait for one another
# spin, and beside any other load they turn seconds into minutes. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.measured import Measured

# Examples differ from run to run on a developer's machine, and never in continuous integration.
# A busy machine is no reason to fail, so single examples have no deadline; each test has one.
settings.register_profile("apprentice", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "apprentice")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole systems, the longest tests, so that none of them is left running alone at the end."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """What the services write and export: found out once, whatever the number of workers."""
    from tests.measured import measured_once

    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return measured_once(shared / "measured.json")
