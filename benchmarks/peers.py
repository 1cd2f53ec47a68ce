"""The Python of a peer, in a virtual environment of its own.

Peers pin other versions of our dependencies, so a benchmark starts them as processes and alternates
between them and us. Each environment is made on first use.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_INSTALL_SECONDS = 1800.0


def peer_python(name: str, root: Path = _ROOT) -> Path:
    """Return the interpreter of `.venv-bench-<name>`, made from `requirements/bench-<name>.txt`.

    An environment made from other requirements than today's is brought up to date. Raises
    FileNotFoundError where there are no such requirements, CalledProcessError where pip fails.
    """
    requirements = root / "requirements" / f"bench-{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    environment = root / f".venv-bench-{name}"
    environment.mkdir(exist_ok=True)
    python, stamp = environment / "bin" / "python", environment / "requirements.sha256"
    with (environment / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            _run([sys.executable, "-m", "venv", str(environment)])
            _run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
            stamp.write_text(digest)
    return python


def _run(command: list[str]) -> None:
    # Standard output belongs to the benchmark's JSON.
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=_INSTALL_SECONDS)
