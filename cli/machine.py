"""What was measured on which machine, for results that others read."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apprentice.runs import RunFolder

_ROOT = Path(__file__).resolve().parents[1]


def describe_hardware() -> str:
    """Name processor, usable cores, memory, and GPU where there is one."""
    import psutil

    parts = [
        _processor_name(),
        f"{len(os.sched_getaffinity(0))} cores",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    ]
    if shutil.which("nvidia-smi"):
        gpu = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        parts += gpu.splitlines()[:1]
    return ", ".join(parts)


def describe_commit() -> str:
    """Name the commit, with "-dirty" where code differs from it; "unknown" outside a checkout."""
    commit = _output("git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    # Results are what a benchmark changes; they make its code no other.
    paths = (":/", ":(exclude,top)benchmarks/results")
    changed = _output("git", "-C", str(_ROOT), "status", "--porcelain", "--", *paths)
    return commit + ("-dirty" if changed else "")


def commit_of_run(folder: RunFolder) -> str:
    """Name the code that made a run, with "+" between where it was resumed with other code; else what measures it."""
    return "+".join(folder.read_commits()) or describe_commit()


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _output(*command: str) -> str:
    """Return what a command prints, or "" where it cannot be had."""
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
