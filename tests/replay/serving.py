"""Real replay servers in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apprentice.config import ReplaySettings
from apprentice.types import EnvironmentSpec
from replay.locks import free_port
from tests.replay.cases import SETTINGS, STATE, wait_until

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """A server that can be killed and started again on the same port and folder."""

    def __init__(
        self,
        folder: Path,
        specs: Sequence[EnvironmentSpec] = (STATE,),
        settings: ReplaySettings = SETTINGS,
    ) -> None:
        self.folder, self.specs, self.settings = folder, specs, settings
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder.with_name(f"{folder.name}.log")
        self.process = self._spawn()

    def start(self) -> ServerProcess:
        """Wait until the server is ready."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", self.log.read_text()
        return self

    def refused(self, timeout_seconds: float = 60.0) -> str:
        """Wait for a start that must fail with 78; return what the server said."""
        assert self.process.wait(timeout_seconds) == 78, self.log.read_text()
        return self.log.read_text()

    def restart(self, **changes: Any) -> ServerProcess:
        """Start again after `kill` or `terminate`."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.process = self._spawn()
        return self.start()

    def kill(self) -> None:
        """End the server as a crash would."""
        self.process.kill()
        self.process.wait(10.0)

    def terminate(self, timeout_seconds: float = 30.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_seconds)

    def close(self) -> None:
        """Leave no process behind."""
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def status(self) -> dict[str, Any]:
        """Return what the server says of itself."""
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found

    def wait_for_checkpoints(self, number: int, seconds: float = 20.0) -> None:
        """Wait until this process has written so many."""
        wait_until(lambda: self.status()["checkpoints"] >= number, seconds)

    def _spawn(self) -> subprocess.Popen[str]:
        request = {
            "specs": [spec.to_dict() for spec in self.specs],
            "settings": self.settings.model_dump(mode="json"),
            "port": self.port,
            "folder": str(self.folder),
        }
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.replay.serve_child", json.dumps(request)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=dict(os.environ),
            )
