"""The token of a run stands in its file and nowhere else: no log, no file of the run, no process's surroundings."""

from __future__ import annotations

import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apprentice.tokens import METRICS_FILE, metrics_token, read_token
from tests.integration.test_whole_system import ROOT, SERVICES, System

SETTINGS = (
    "services.host=0.0.0.0",  # so that everybody asks for the token
    "learner.max_steps=200000",
    "replay.updates_per_step=0.25",
    "replay.capacity=100000",
    "replay.checkpoint_period_seconds=2",
    "checkpoint.period_steps=500",
    "evaluation.period_steps=1000",
)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path, *SETTINGS)
    yield system
    if system.process.poll() is None:
        system.process.kill()
        system.process.wait(10.0)


def answer(url: str, **headers: str) -> tuple[int, bytes]:
    asked = urllib.request.Request(url, headers=headers)  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(asked, timeout=60.0) as reply:  # noqa: S310
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def surroundings(process: psutil.Process) -> dict[str, bytes]:
    """Return what `ps` and other users' eyes find of a process."""
    folder = Path("/proc") / str(process.pid)
    try:
        return {name: (folder / name).read_bytes() for name in ("cmdline", "environ")}
    except OSError:  # It has ended meanwhile.
        return {}


def holders(secrets: tuple[str, ...], folder: Path) -> set[str]:
    """Return the files under a folder that hold one of the secrets."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if any(secret.encode() in content for secret in secrets):
                found.add(str(path.relative_to(folder)))
    return found


@pytest.mark.timeout(300)
def test_nobody_writes_the_token_down(system: System, tmp_path: Path) -> None:
    system.wait(lambda: system.status().get("evaluation_returns"), "the first evaluation")
    token_file = tmp_path / "runs" / ".token"
    token = read_token(token_file)
    secrets = (token, metrics_token(token))
    url = system.url()
    known = {"Authorization": f"Bearer {token}"}
    answers = [
        answer(f"{url}evaluate?checkpoint=latest&format=json&max_steps=5", **known),
        *(answer(f"{url}{page}", **known) for page in ("", "runs", "metrics", "openapi.json")),
        answer(f"{url}runs", Authorization=f"Bearer {token[:-1]}x"),
        answer(f"{url}runs", Authorization=f"Basic {token}"),
    ]
    assert [status for status, _ in answers] == [200, 200, 200, 200, 200, 401, 401]
    assert not any(secret.encode() in body for _, body in answers for secret in secrets)
    control = [
        sys.executable,
        "-m",
        "cli",
        "control",
        "checkpoint",
        "--runs",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run(control, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert token.encode() not in done.stdout + done.stderr
    processes = [psutil.Process(system.process.pid), *system.descendants()]
    seen = {process.pid: surroundings(process) for process in processes}
    assert sum(len(found) == 2 for found in seen.values()) >= 1 + len(SERVICES)
    for found in seen.values():
        for name, content in found.items():
            assert not any(secret.encode() in content for secret in secrets), name
    system.stop()
    logs = [path for path in (system.run / "logs").iterdir() if path.stat().st_size]
    assert len(logs) >= len(SERVICES)
    assert holders(secrets, tmp_path) == {"runs/.token", f"runs/{METRICS_FILE}"}
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
