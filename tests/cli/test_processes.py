from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from cli.processes import bound_log, describe_exit, last_lines
from tests.cli.fake_services import read, wait_until

_SUPERVISE = """
import sys
from pathlib import Path
from tests.cli.fake_services import IGNORE_SIGTERM, judge, service
from cli.supervisor import Supervisor
services = [service(name, IGNORE_SIGTERM) for name in ('learner', 'actor-0')]
Supervisor(services, Path(sys.argv[1]), judge).run()
"""


def test_children_die_within_seconds_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", _SUPERVISE, str(tmp_path)], cwd=Path(__file__).resolve().parents[2]
    )
    try:
        wait_until(lambda: "ready" in read(tmp_path / "learner.log"))
        wait_until(lambda: "ready" in read(tmp_path / "actor-0.log"))
        children = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(children) == 2
        assert {os.getsid(child.pid) for child in children} == {child.pid for child in children}
    finally:
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait(timeout=5)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_log_over_the_limit_is_moved_aside_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "actor-0.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        assert not bound_log(log, limit_bytes=400)
        writer.write(b"x\n")
        assert bound_log(log, limit_bytes=400)
        writer.write(b"new\n")
    assert log.read_text() == "new\n"
    assert (tmp_path / "actor-0.log.1").stat().st_size == 402


def test_missing_log_is_neither_moved_nor_quoted(tmp_path: Path) -> None:
    assert not bound_log(tmp_path / "none.log")
    assert last_lines(tmp_path / "none.log") == []


def test_last_lines_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "learner.log"
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    assert last_lines(log, 2) == ["line 99998", "line 99999"]


def test_exits_are_told_in_words() -> None:
    assert describe_exit(-9) == "was killed (SIGKILL: by hand, or by the kernel for lack of memory)"
    assert describe_exit(-11) == "was ended by SIGSEGV"
    assert describe_exit(71) == "exited with 71 (training diverged)"
    assert describe_exit(5) == "exited with 5"
