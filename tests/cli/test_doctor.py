from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli import checks
from cli.checks import Finding
from cli.doctor import describe
from cli.main import main

_ROOT = Path(__file__).resolve().parents[2]


def test_machine_that_runs_the_tests_is_fit_for_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = main(["doctor", "--json", "--runs", str(tmp_path / "runs")])
    findings = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(findings) == [
        "python",
        "libraries",
        "processor",
        "torch",
        "compiler",
        "replay",
        "rendering",
        "port",
        "disk",
        "memory",
        "docker",
    ]
    for name in ("python", "processor", "torch", "replay"):
        assert findings[name]["level"] == "OK", findings[name]
    assert code == (1 if any(one["level"] == "FAIL" for one in findings.values()) else 0)


def test_one_failure_makes_the_command_fail_and_the_advice_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = (
        Finding("python", "OK", "3.11"),
        Finding("port", "WARN", "8000 is held", "end that process"),
        Finding("disk", "FAIL", "0.1 GiB free", "free some"),
    )
    monkeypatch.setattr(
        "cli.doctor.all_checks", lambda *_: tuple((lambda one=one: one) for one in found)
    )
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "OK    python     3.11",
        "WARN  port       8000 is held",
        "                 -> end that process",
        "FAIL  disk       0.1 GiB free",
        "                 -> free some",
        "1 fine, 1 to know of, 1 to mend",
    ]


def test_finding_without_advice_is_one_line() -> None:
    assert describe(Finding("memory", "OK", "20.0 GiB")) == "OK    memory     20.0 GiB"


def test_port_that_is_held_is_reported_with_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        finding = checks.check_port("127.0.0.1", port)
        assert finding.level == "WARN"
        assert f"pid {os.getpid()}" in finding.found
    assert checks.check_port("127.0.0.1", port).level == "OK"


def test_libraries_that_differ_from_the_lock_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "base.lock"
    lock.write_text(
        "no-such-thing==1.0 \\\n    --hash=sha256:00\npyyaml==5.0 \\\nnumpy==1.26.4 \\\n"
    )
    finding = checks.check_libraries(lock)
    assert finding.level == "FAIL"
    assert "1 missing: no-such-thing 1.0; 1 of another version: pyyaml" in finding.found
    lock.write_text("pyyaml==5.0 \\\n")
    assert checks.check_libraries(lock).level == "WARN"
    lock.write_text("numpy==1.26.4 \\\n")
    assert checks.check_libraries(lock) == Finding("libraries", "OK", "2 as locked")
    assert checks.check_libraries(tmp_path / "none").level == "WARN"


def test_processor_without_vector_instructions_cannot_run_replay(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu sse sse2\n")
    assert checks.check_processor(cpuinfo).level == "FAIL"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx avx2\n")
    finding = checks.check_processor(cpuinfo)
    assert finding.level == "OK"
    assert "avx avx2" in finding.found
    assert "AVX-512" in finding.found


def test_compiler_that_is_missing_or_broken_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert checks.check_compiler().level == "WARN"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho broken\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    finding = checks.check_compiler()
    assert finding.level == "WARN"
    assert finding.found.startswith(f"{broken}: broken: ")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    finding = checks.check_compiler()
    assert "no Python.h" in finding.found
    assert finding.advice == "apt-get install -y python3.11-dev"


def test_memory_is_what_the_container_may_use(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2**30}\n")
    finding = checks.check_memory(limit)
    assert (finding.level, finding.found) == ("FAIL", "1.0 GiB available, expected 6 or more")
    limit.write_text("max\n")
    assert checks.check_memory(limit).found == checks.check_memory(tmp_path / "none").found


def test_disk_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert f"free in {tmp_path}" in checks.check_disk(tmp_path / "not" / "made" / "yet").found


def test_replay_that_ends_the_process_is_a_failure_with_its_last_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "reverb"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "client.py").write_text(
        "import os, sys\nprint('Illegal instruction')\nsys.stdout.flush()\nos.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = checks.check_replay()
    assert finding.level == "FAIL"
    assert "Illegal instruction" in finding.found


def test_rendering_without_a_back_end_is_a_warning_with_what_to_type(tmp_path: Path) -> None:
    # A process of its own, because what was probed is kept for the life of a process.
    done = subprocess.run(
        [sys.executable, "-c", "from cli.checks import check_rendering; print(check_rendering())"],
        env={**os.environ, "PYTHONPATH": str(_ROOT), "MUJOCO_GL": "nothing"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "level='WARN'" in done.stdout
    assert "apt-get install" in done.stdout


def test_torch_version_is_that_of_the_set_up() -> None:
    script = (_ROOT / "requirements" / "install").read_text()
    assert f"torch_version={checks.TORCH_VERSION}\n" in script
