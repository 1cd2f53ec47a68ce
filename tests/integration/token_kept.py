"""Whether the token of a run stands in its file and nowhere else: no log, file of the run or process shows it."""

from __future__ import annotations

import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from apprentice.tokens import METRICS_FILE, metrics_token, read_token

ROOT = Path(__file__).resolve().parents[2]


def look_at_what_runs(
    runs: Path, url: str, processes: Sequence[psutil.Process], least: int
) -> None:
    """Look at answers of the page, and at command lines and environments of `least` processes or more."""
    token = read_token(runs / ".token")
    secrets = (token, metrics_token(token))
    known = {"Authorization": f"Bearer {token}"}
    answers = [
        answer(f"{url}evaluate?checkpoint=latest&format=json&max_steps=5", **known),
        *(answer(f"{url}{page}", **known) for page in ("", "runs", "metrics", "openapi.json")),
        answer(f"{url}runs", Authorization=f"Bearer {token[:-1]}x"),
        answer(f"{url}runs", Authorization=f"Basic {token}"),
    ]
    assert [status for status, _ in answers] == [200, 200, 200, 200, 200, 401, 401]
    assert not any(secret.encode() in body for _, body in answers for secret in secrets)
    control = [sys.executable, "-m", "cli", "control", "checkpoint", "--runs", str(runs)]
    done = subprocess.run(control, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert token.encode() not in done.stdout + done.stderr
    seen = {process.pid: surroundings(process) for process in processes}
    assert sum(len(found) == 2 for found in seen.values()) >= least
    for found in seen.values():
        for name, content in found.items():
            assert not any(secret.encode() in content for secret in secrets), name


def look_at_what_is_left(folder: Path, logs: Path, least: int) -> None:
    """Look at all files below `folder`, `least` logs that are not empty among them; the run is in `runs`."""
    token_file = folder / "runs" / ".token"
    token = read_token(token_file)
    assert len([path for path in logs.iterdir() if path.stat().st_size]) >= least
    secrets = (token, metrics_token(token))
    assert holders(secrets, folder) == {"runs/.token", f"runs/{METRICS_FILE}"}
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600


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
