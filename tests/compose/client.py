"""One compose project of this checkout, started and looked at from outside, as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUICK_SECONDS = 120.0
BUILD_SECONDS = 1800.0


def compose_command() -> list[str] | None:
    """Return how compose is called here: version 2, else version 1; None where there is neither."""
    if shutil.which("docker"):
        probe = ["docker", "compose", "version"]
        if subprocess.run(probe, capture_output=True, check=False, timeout=30).returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def missing() -> str | None:
    """Say what is missing to start containers; None where nothing is."""
    if compose_command() is None:
        return "neither `docker compose` nor `docker-compose` is installed"
    try:
        found = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no Docker engine answers: {error}"
    return None if found.returncode == 0 else "no Docker engine answers"


class Project:
    """Containers under a project name of their own, on a port of their own."""

    def __init__(self, name: str, port: int, experiment: str, settings: str) -> None:
        self._command = [*(compose_command() or []), "--project-name", name]
        self._name = name
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "EVALSERVER_PORT": str(port),
            "EXPERIMENT": experiment,
            "SETTINGS": settings,
        }

    def compose(
        self, *arguments: str, seconds: float = QUICK_SECONDS, beside: str | None = None
    ) -> str:
        """Call compose, with another file `beside` its own; a failure shows what it said."""
        files = ["-f", "docker-compose.yml", "-f", beside] if beside else []
        done = subprocess.run(
            [*self._command, *files, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"compose {' '.join(arguments)}:\n{done.stdout[-4000:]}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers, stopped ones too."""
        filters = [f"label=com.docker.compose.project={self._name}"]
        filters.append(f"label=com.docker.compose.service={service}")
        flags = [word for text in filters for word in ("--filter", text)]
        return docker("ps", "--all", "--quiet", *flags).split()

    def inspect(self, service: str) -> list[dict[str, Any]]:
        """Return what the engine knows of a service's containers."""
        return [json.loads(docker("inspect", name))[0] for name in self.containers(service)]

    def states(self, service: str) -> list[tuple[str, int]]:
        """Return state and exit code of a service's containers."""
        found = [container["State"] for container in self.inspect(service)]
        return [(state["Status"], state["ExitCode"]) for state in found]

    def get(self, path: str, seconds: float = 60.0) -> bytes:
        """Return what the evaluation server answers."""
        url = f"{self.url}{path}"
        with urllib.request.urlopen(url, timeout=seconds) as reply:  # noqa: S310 - http, as above
            return reply.read()

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs as the evaluation server lists them; none while it is away."""
        try:
            return list(json.loads(self.get("/runs", 10.0)))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return []

    def steps(self) -> int:
        """Return the agent steps of the newest run."""
        return int(next((run["steps"] for run in self.runs()), 0))

    def num_actors(self, run: str) -> int:
        """Return how many living actors the learner of a run knows."""
        sample = f'apprentice_run_actors{{run="{run}"'
        try:
            lines = self.get("/metrics", 10.0).decode().splitlines()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return -1
        return next((int(float(line.split()[-1])) for line in lines if line.startswith(sample)), -1)

    def token(self) -> str:
        """Return what the learner asks for."""
        return docker("exec", self.containers("learner")[0], "cat", "/secrets/token").strip()

    def logs(self) -> str:
        """Return the newest lines of all services."""
        return self.compose("logs", "--no-color", "--tail=60")


def docker(*arguments: str, check: bool = True) -> str:
    """Call the docker client; return what it says."""
    done = subprocess.run(
        ["docker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=QUICK_SECONDS,
        check=False,
    )
    assert done.returncode == 0 or not check, (
        f"docker {' '.join(arguments)}:\n{done.stdout[-4000:]}"
    )
    return done.stdout


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until a condition holds, looking twice a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.5)
