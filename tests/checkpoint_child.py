"""The other process of tests/test_checkpoint_faults.py.

`serve` imports torch once and then forks a child for each write, so that a test can attach strace to
it before it starts. `disk` tries a full and a read-only disk in a mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from apprentice import checkpoint_files
from apprentice.checkpoint import CheckpointError, newest_checkpoint, verify_checkpoint
from tests.checkpoint_cases import write_example

REFUSED = 3
BROKEN = 4


def serve() -> None:
    """For each line `FOLDER STEPS`: print a waiting child's pid; after another line print its exit code."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_example(Path(folder), 1)  # what is done once only is not done in the children
    for line in iter(sys.stdin.readline, ""):
        folder, steps = line.split()
        gate_read, gate_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate_write)
            os.read(gate_read, 1)
            _write_and_exit(Path(folder), int(steps))
        os.close(gate_read)
        print(pid, flush=True)
        sys.stdin.readline()
        os.close(gate_write)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _write_and_exit(folder: Path, steps: int) -> None:
    code = BROKEN
    try:
        write_example(folder, steps, updates=steps + os.getpid())
        code = 0
    except CheckpointError:
        code = REFUSED
    finally:
        os._exit(code)


def disk(folder: Path) -> None:
    """Print what happened on a tmpfs of 1 MiB, as JSON; needs the right to mount."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    result: dict[str, object] = {}
    large = {"policy": {"weight": torch.ones(200_000)}}
    write_example(folder, 1)
    result["refused before writing"] = _error(folder, 2, large)
    real, checkpoint_files.free_bytes = checkpoint_files.free_bytes, lambda path: 2**40
    (folder / "ballast").write_bytes(bytes(600_000))
    result["full"] = _error(folder, 2, large)
    checkpoint_files.free_bytes = real
    result["left after full"] = sorted(os.listdir(folder))
    (folder / "ballast").unlink()
    (write_example(folder, 3) / "manifest.json").write_text("{}")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    result["read-only"] = _error(folder, 4, None)
    found = newest_checkpoint(folder)
    result["newest"] = found[1].steps if found else None
    result["left when read-only"] = sorted(os.listdir(folder))
    verify_checkpoint(folder / "step-000000000001")
    print(json.dumps(result))


def _error(folder: Path, steps: int, tensors: dict[str, dict[str, torch.Tensor]] | None) -> str:
    try:
        write_example(folder, steps, **({"tensors": tensors} if tensors else {}))
    except CheckpointError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        disk(Path(sys.argv[2]))
