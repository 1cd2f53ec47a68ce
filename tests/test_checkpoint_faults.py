"""No crash, full disk or broken disk leaves half a checkpoint that anybody would load.

A child that writes a checkpoint is killed at, or gets an error from, every system call it makes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from apprentice.checkpoint import collect_stale_stages, newest_checkpoint, read_tensors
from tests.checkpoint_cases import example_tensors, write_example
from tests.checkpoint_child import REFUSED

REPOSITORY = Path(__file__).resolve().parents[1]
SYSTEM_CALLS = ("openat", "write", "fsync", "rename", "mkdir", "unlinkat", "rmdir")
DEADLINE_SECONDS = 20.0
KILLED = -9


class Traced(NamedTuple):
    """How a traced write ended, and strace's lines."""

    exit_code: int
    lines: list[str]

    @property
    def injected(self) -> bool:
        return any("(INJECTED)" in line or "killed by SIGKILL" in line for line in self.lines)


class Writer:
    """Writes checkpoints in children of a warm process, under strace."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint_child", "serve"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, folder: Path, steps: int, *inject: str) -> Traced:
        """Write a checkpoint; `inject` are strace's -e expressions."""
        pid = int(self._ask(f"{folder} {steps}"))
        options = [option for expression in inject for option in ("-e", expression)]
        strace = subprocess.Popen(
            ["strace", "-y", "-o", str(self._log), "-p", str(pid), *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        assert "attached" in attached, f"strace could not attach: {attached}"
        exit_code = int(self._ask("go"))
        strace.communicate(timeout=DEADLINE_SECONDS)
        return Traced(exit_code, self._log.read_text().splitlines())

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_SECONDS)


def _why_not_strace() -> str | None:
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    probe = subprocess.Popen(["sleep", "5"])
    try:
        strace = ["strace", "-o", os.devnull, "-p", str(probe.pid)]
        tracer = subprocess.Popen(strace, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        return (
            None
            if "attached" in line
            else f"strace may not attach to processes here: {line.strip()}"
        )
    finally:
        probe.kill()
        probe.wait(DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    reason = _why_not_strace()
    if reason:
        pytest.skip(reason)
    writer = Writer(tmp_path_factory.mktemp("strace") / "log")
    yield writer
    writer.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: these tests wait for the disk a thousand times."""
    root = Path("/dev/shm")  # noqa: S108
    if not os.access(root, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=root) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    write_example(folder, 1)
    return folder


def assert_sound(folder: Path, steps: tuple[int, ...]) -> None:
    """The newest checkpoint is valid and of one of `steps`; nothing half-written was visible."""
    assert not (folder / "quarantine").exists()
    found = newest_checkpoint(folder)
    assert found is not None and found[1].steps in steps
    assert not (folder / "quarantine").exists(), "a crash left a checkpoint that had to be refused"
    path, manifest = found
    for name, expected in example_tensors(manifest.steps).items():
        tensors = read_tensors(path, name, manifest)
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    collect_stale_stages(folder)
    assert not list(folder.glob(".stage-*"))


def assert_latest_exists(folder: Path) -> None:
    assert (folder / (folder / "LATEST").read_text().strip() / "manifest.json").is_file()


def count_system_calls(writer: Writer, template: Path, folder: Path, steps: int) -> Counter[str]:
    shutil.copytree(template, folder)
    traced = writer.write(folder, steps)
    assert traced.exit_code == 0
    return Counter(line.split("(")[0] for line in traced.lines)


@pytest.mark.parametrize("steps", [2, 1], ids=["a new checkpoint", "a replaced checkpoint"])
def test_a_kill_at_any_system_call_leaves_the_old_or_the_new_checkpoint(
    writer: Writer, one_checkpoint: Path, memory: Path, steps: int
) -> None:
    counts = count_system_calls(writer, one_checkpoint, memory / "counted", steps)
    assert counts["fsync"] >= 8 and counts["rename"] >= 2 and counts["mkdir"] == 2
    outcomes = set()
    for call in SYSTEM_CALLS:
        for number in range(1, counts[call] + 1):
            folder = memory / f"{call}-{number}"
            shutil.copytree(one_checkpoint, folder)
            traced = writer.write(
                folder, steps, f"trace={call}", f"inject={call}:signal=SIGKILL:when={number}"
            )
            assert traced.exit_code == KILLED and traced.injected, (call, number, traced)
            if steps == 2:  # replacing takes the old one away for a moment, until the next start
                assert_latest_exists(folder)
            assert_sound(folder, (1, steps))
            assert_latest_exists(folder)
            found = newest_checkpoint(folder)
            assert found is not None
            outcomes.add((found[1].steps, found[1].updates == 0))
            write_example(folder, 3)
            assert_sound(folder, (3,))
            shutil.rmtree(folder)
    assert len(outcomes) == 2, "expected kills before and after the new checkpoint was in place"


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_an_error_of_any_system_call_is_reported_and_the_old_checkpoint_kept(
    writer: Writer, one_checkpoint: Path, memory: Path, error: str
) -> None:
    counts = count_system_calls(writer, one_checkpoint, memory / "counted", 2)
    calls = (
        ("openat", "write", "fsync", "rename", "mkdir") if error == "EIO" else ("openat", "write")
    )
    for call in calls:
        first = 2 if call == "mkdir" else 1  # the first one finds the folder there
        for number in range(first, counts[call] + 1):
            folder = memory / f"{call}-{number}"
            shutil.copytree(one_checkpoint, folder)
            traced = writer.write(
                folder, 2, f"trace={call}", f"inject={call}:error={error}:when={number}"
            )
            assert traced.injected
            assert traced.exit_code == REFUSED, (call, number, traced)
            assert_latest_exists(folder)
            assert_sound(folder, (1, 2))
            shutil.rmtree(folder)


def test_every_byte_is_on_the_disk_before_the_name_is(
    writer: Writer, one_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(one_checkpoint, folder)
    traced = writer.write(folder, 2, "trace=fsync,rename,openat")
    lines = traced.lines
    stage = re.escape(f"{folder}/.stage-step-000000000002-") + "[0-9a-f]{8}"

    def position(pattern: str) -> int:
        found = [number for number, line in enumerate(lines) if re.search(pattern, line)]
        assert len(found) == 1, (pattern, found, lines)
        return found[0]

    def first_after(start: int, pattern: str) -> int:
        found = [n for n, line in enumerate(lines) if n > start and re.search(pattern, line)]
        assert found, (pattern, lines[start:])
        return found[0]

    files = ["policy.safetensors", "random.safetensors", "rings.safetensors", "manifest.json"]
    synced = [position(rf"^fsync\(\d+<{stage}/{re.escape(name)}>\) += 0") for name in files]
    stage_synced = position(rf"^fsync\(\d+<{stage}>\) += 0")
    renamed = position(rf'^rename\("{stage}", ".*/step-000000000002"\) += 0')
    parent_synced = first_after(renamed, rf"^fsync\(\d+<{re.escape(str(folder))}>\) += 0")
    read_back = first_after(
        parent_synced, r'^openat\(\d+<.*/step-000000000002>, "rings.safetensors"'
    )
    latest_synced = position(r"^fsync\(\d+<.*/\.stage-LATEST-[0-9a-f]{8}>\) += 0")
    latest_renamed = position(r'^rename\(".*/\.stage-LATEST-[0-9a-f]{8}", ".*/LATEST"\) += 0')
    first_after(latest_renamed, rf"^fsync\(\d+<{re.escape(str(folder))}>\) += 0")
    order = [
        *synced,
        stage_synced,
        renamed,
        parent_synced,
        read_back,
        latest_synced,
        latest_renamed,
    ]
    assert order == sorted(order)


def test_a_full_and_a_read_only_disk_are_reported_and_lose_nothing(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("a mount namespace of its own needs root (unshare -m)")
    child = subprocess.run(
        [unshare, "-m", sys.executable, "-m", "tests.checkpoint_child", "disk", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout.splitlines()[-1])
    assert "free bytes for a checkpoint of" in result["refused before writing"]
    assert "No space left on device" in result["full"]
    assert result["left after full"] == ["LATEST", "ballast", "step-000000000001"]
    assert "Read-only file system" in result["read-only"]
    assert result["newest"] == 1
    assert result["left when read-only"] == ["LATEST", "step-000000000001", "step-000000000003"]
