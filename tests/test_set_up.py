"""The set-up script, with a Python that only writes down what it is asked to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apprentice.environments.gl import INSTALL_LINE

_ROOT = Path(__file__).resolve().parents[1]
_FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
  "-m venv")
    echo venv >>{log}
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip")
    echo "pip ${{@: -1}}" >>{log}
    [[ ! -e {broken} ]] || kill -9 "$PPID"
    [[ $* != *--editable* ]] || cp /bin/true .venv/bin/apprentice ;;
  *) exec {python} "$@" ;;
esac
"""


class _SetUp:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.log = folder / "log"
        self.broken = folder / "broken"
        self.python = folder / "python"
        self.folder.mkdir()
        shutil.copytree(_ROOT / "requirements", self.folder / "requirements")
        (self.folder / "pyproject.toml").write_text("[project]\n")
        self.python.write_text(
            _FAKE_PYTHON.format(log=self.log, broken=self.broken, python=sys.executable)
        )
        self.python.chmod(0o755)

    def run(self, lock: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [self.folder / "requirements" / "install", lock],
            env={**os.environ, "PYTHON": str(self.python), "SYSTEM_PACKAGES": "no"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def did(self) -> list[str]:
        return self.log.read_text().splitlines()


_BASE = ["venv", "pip requirements/base.lock", "pip torch==2.13.0", "pip ."]


@pytest.fixture
def set_up(tmp_path: Path) -> _SetUp:
    return _SetUp(tmp_path)


def test_second_set_up_does_nothing(set_up: _SetUp) -> None:
    assert set_up.run("base").returncode == 0
    assert set_up.did == _BASE
    assert set_up.run("base").returncode == 0
    assert set_up.did == []


def test_what_tests_need_holds_what_runs_need(set_up: _SetUp) -> None:
    set_up.run("base")
    set_up.run("dev")
    assert set_up.did == ["pip requirements/dev.lock"]
    set_up.run("base")
    assert set_up.did == []


def test_changed_lock_is_installed(set_up: _SetUp) -> None:
    set_up.run("dev")
    lock = set_up.folder / "requirements" / "dev.lock"
    lock.write_text(lock.read_text() + "# changed\n")
    set_up.run("dev")
    assert set_up.did == ["pip requirements/dev.lock"]


def test_interrupted_set_up_is_begun_anew(set_up: _SetUp) -> None:
    set_up.broken.touch()
    assert set_up.run("base").returncode != 0
    assert set_up.did == _BASE[:2]
    set_up.broken.unlink()
    done = set_up.run("base")
    assert done.returncode == 0
    assert "interrupted: starting anew" in done.stderr
    assert set_up.did == _BASE


def test_moved_project_is_set_up_anew(set_up: _SetUp) -> None:
    set_up.run("base")
    set_up.folder = set_up.folder.rename(set_up.folder.with_name("moved"))
    done = set_up.run("base")
    assert "the folder was moved" in done.stderr
    assert set_up.did == _BASE


def test_other_python_is_refused_with_what_to_type(set_up: _SetUp) -> None:
    set_up.python.write_text("#!/bin/sh\nexit 1\n")
    bare = set_up.folder.with_name("bin")
    bare.mkdir()
    for tool in ("bash", "dirname", "flock", "sed"):
        (bare / tool).symlink_to(Path(str(shutil.which(tool))))
    done = subprocess.run(
        [set_up.folder / "requirements" / "install", "base"],
        env={"PATH": str(bare), "PYTHON": str(set_up.python), "SYSTEM_PACKAGES": "no"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install -y python3.11 python3.11-venv" in done.stderr


def _pins(name: str) -> dict[str, str]:
    text = (_ROOT / "requirements" / f"{name}.lock").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, re.MULTILINE))


def test_locks_agree() -> None:
    base, dev = _pins("base"), _pins("dev")
    assert len(base) > 50
    assert {name: dev.get(name) for name in base} == base


def test_libraries_that_hold_each_other_up_are_the_known_ones() -> None:
    pins = _pins("dev")
    expected = {
        "dm-reverb": "0.14.0",
        "mujoco": "3.17.0",
        "dm-control": "1.0.50",
        "grpcio-tools": "1.62.3",
        "grpcio-health-checking": "1.62.3",
        "grpcio-reflection": "1.62.3",
    }
    assert {name: pins[name] for name in expected} == expected
    assert pins["protobuf"].startswith("4.25.")
    assert pins["numpy"].startswith("1.")
    assert int(pins["setuptools"].partition(".")[0]) < 81
    assert "torch" not in pins


def test_set_up_installs_what_rendering_asks_for() -> None:
    packages = set((_ROOT / "requirements" / "system.txt").read_text().split())
    asked = set(INSTALL_LINE.removeprefix("apt-get install -y").split())
    # OSMesa is only what rendering falls back to, and newer systems have it no more.
    assert asked - {"libosmesa6"} <= packages
