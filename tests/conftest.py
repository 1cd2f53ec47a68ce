"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Examples differ from run to run on a developer's machine, and never in continuous integration.
# A busy machine is no reason to fail, so single examples have no deadline; each test has one.
settings.register_profile("apprentice", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "apprentice")
