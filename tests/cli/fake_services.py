"""Tiny services to supervise: Python one-liners that start in some milliseconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from cli.processes import Service, describe_exit
from cli.supervisor import Judgement, Verdict

WAIT = "import time; time.sleep(60)"
WAIT_AND_LEAVE_IN_ORDER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print('ready', flush=True)
time.sleep(60)
"""
IGNORE_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(60)
"""


def service(
    name: str,
    code: str,
    stop_seconds: float = 5.0,
    stop_stage: int = 0,
    outlives_run: bool = False,
) -> Service:
    command = (sys.executable, "-I", "-S", "-c", code)
    return Service(name, command, stop_seconds, stop_stage, outlives_run)


def judge(service: Service, code: int) -> Judgement:
    """Apply the rules of a run: 78 fails, the learner's 0 finishes, all else is a crash."""
    if code == 78:
        return Judgement(Verdict.FAIL, describe_exit(code))
    if code == 0:
        finishes = service.name == "learner"
        return Judgement(Verdict.FINISH if finishes else Verdict.LEAVE, "has done its work")
    return Judgement(Verdict.RESTART, describe_exit(code))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.02)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
